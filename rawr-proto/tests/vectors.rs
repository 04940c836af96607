//! The test vectors of RFC 5769 and RFC 8489.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::net::SocketAddr;

use hmac::{Hmac, Mac as _};
use rawr_proto::{IntegrityAttribute, LongTermIntegrity, PasswordAlgorithm, PasswordKey, userhash};
use sha2::Sha256;
use stun_types::attribute::{
    Attribute, AttributeExt, AttributeStaticType, AttributeType, Fingerprint, MessageIntegrity,
    MessageIntegritySha256, Nonce, RawAttribute, Realm, Software, Userhash, Username,
    XorMappedAddress,
};
use stun_types::message::{Message, MessageWrite, MessageWriteVec};

/// RFC 5769 §2.1.
const REQUEST: &str = "\
    00010058 2112a442 b7e7a701 bc34d686 fa87dfae
    80220010 5354554e 20746573 7420636c 69656e74
    00240004 6e0001ff
    80290008 932ff9b1 51263b36
    00060009 6576746a 3a683676 59202020
    00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2
    80280004 e57a3bcf";

/// RFC 5769 §2.2.
const RESPONSE_V4: &str = "\
    0101003c 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220
    00200008 0001a147 e112a643
    00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
    80280004 c07d4c96";

/// RFC 5769 §2.3.
const RESPONSE_V6: &str = "\
    01010048 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220
    00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
    00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
    80280004 c8fb0b4c";

/// RFC 5769 §2.4.
const LONG_TERM: &str = "\
    00010060 2112a442 78ad3433 c6ad72c0 29da412e
    00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000
    0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341
    0014000b 6578616d 706c652e 6f726700
    00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666";

/// RFC 8489 §B.1, as erratum 6268 corrects it.
const LONG_TERM_SHA256: &str = "\
    00010090 2112a442 78ad3433 c6ad72c0 29da412e
    001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704
    00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476
    79363473 41000000
    0014000b 6578616d 706c652e 6f726700
    001d0004 00020000
    001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65";

/// Password of the short-term vectors.
const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// USERNAME, REALM and password of the long-term vectors, after SASLprep.
fn long_term(algorithm: PasswordAlgorithm) -> PasswordKey {
    PasswordKey::new(algorithm, "マトリックス", "example.org", "TheMatrIX")
}

/// Whether `key` fits, and no longer once any byte that it covers is another.
fn assert_covers(vector: &[u8], key: &LongTermIntegrity, number: AttributeType) {
    let message = Message::from_bytes(vector).unwrap();
    assert!(key.verify(&message));
    let (offset, integrity) = message.raw_attribute_and_offset(number).unwrap();
    // Without FINGERPRINT, which would be wrong as well.
    let mut bare = vector[..offset + integrity.padded_len()].to_vec();
    let length = (bare.len() - 20) as u16;
    bare[2..4].copy_from_slice(&length.to_be_bytes());
    assert!(key.verify(&Message::from_bytes(&bare).unwrap()));
    for at in (0..bare.len()).filter(|at| ![2, 3].contains(at)) {
        let mut changed = bare.clone();
        changed[at] ^= 1;
        let verified = Message::from_bytes(&changed).is_ok_and(|message| key.verify(&message));
        assert!(!verified, "byte {at}");
    }
}

#[test]
fn short_term_request() {
    let vector = bytes(REQUEST);
    let key = LongTermIntegrity::from_key(IntegrityAttribute::Sha1, PASSWORD);
    assert_covers(&vector, &key, MessageIntegrity::TYPE);
    let message = Message::from_bytes(&vector).unwrap();
    assert_eq!(message.attribute::<Username>().unwrap().username(), "evtj:h6vY");
    assert_eq!(message.attribute::<Software>().unwrap().software(), "STUN test client");
    assert!(message.has_attribute(Fingerprint::TYPE), "and it is right, or nothing was read");
    let other = LongTermIntegrity::from_key(IntegrityAttribute::Sha1, b"another");
    assert!(!other.verify(&message));
    let sha256 = LongTermIntegrity::from_key(IntegrityAttribute::Sha256, PASSWORD);
    assert!(!sha256.verify(&message), "there is no such attribute");
}

#[test]
fn responses_over_both_families() {
    let key = LongTermIntegrity::from_key(IntegrityAttribute::Sha1, PASSWORD);
    let cases = [
        (RESPONSE_V4, "192.0.2.1:32853"),
        (RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ];
    for (vector, mapped) in cases {
        let vector = bytes(vector);
        assert_covers(&vector, &key, MessageIntegrity::TYPE);
        let message = Message::from_bytes(&vector).unwrap();
        let address = message.attribute::<XorMappedAddress>().unwrap();
        let mapped: SocketAddr = mapped.parse().unwrap();
        assert_eq!(address.addr(message.transaction_id()), mapped);
    }
}

#[test]
fn long_term_request_is_read_and_signed_alike() {
    let vector = bytes(LONG_TERM);
    let key = long_term(PasswordAlgorithm::Md5);
    let key = LongTermIntegrity::new(IntegrityAttribute::Sha1, &key);
    assert_covers(&vector, &key, MessageIntegrity::TYPE);
    assert_eq!(sign_again(&vector, &key), vector);
    let message = Message::from_bytes(&vector).unwrap();
    assert_eq!(message.attribute::<Realm>().unwrap().realm(), "example.org");
    assert_eq!(IntegrityAttribute::of(&message), Some(IntegrityAttribute::Sha1));
}

#[test]
fn long_term_request_with_sha256_and_userhash_is_read_and_signed_alike() {
    let vector = bytes(LONG_TERM_SHA256);
    let key = long_term(PasswordAlgorithm::Sha256);
    let key = LongTermIntegrity::new(IntegrityAttribute::Sha256, &key);
    assert_covers(&vector, &key, MessageIntegritySha256::TYPE);
    assert_eq!(sign_again(&vector, &key), vector);
    let message = Message::from_bytes(&vector).unwrap();
    let hash = message.attribute::<Userhash>().unwrap();
    assert_eq!(*hash.hash(), userhash("マトリックス", "example.org"));
    assert!(message.attribute::<Nonce>().unwrap().nonce().starts_with("obMatJos2"));
    assert_eq!(IntegrityAttribute::of(&message), Some(IntegrityAttribute::Sha256));
    let algorithm = message.raw_attribute(0x001d.into()).unwrap();
    assert_eq!(PasswordAlgorithm::from_value(&algorithm.value), Some(PasswordAlgorithm::Sha256));
}

/// The message with the same attributes before its integrity, which is made anew.
fn sign_again(vector: &[u8], key: &LongTermIntegrity) -> Vec<u8> {
    let message = Message::from_bytes(vector).unwrap();
    let (kind, transaction) = (message.get_type(), message.transaction_id());
    let mut out = Message::builder(kind, transaction, MessageWriteVec::new());
    let ends = [MessageIntegrity::TYPE, MessageIntegritySha256::TYPE];
    for (_, attribute) in message.iter_attributes() {
        if !ends.contains(&attribute.get_type()) {
            out.push_attribute_unchecked(&attribute);
        }
    }
    key.sign(&mut out);
    out.finish()
}

#[test]
fn a_shortened_hmac_is_refused() {
    let PasswordKey::Sha256(secret) = long_term(PasswordAlgorithm::Sha256) else { panic!() };
    let key = LongTermIntegrity::from_key(IntegrityAttribute::Sha256, &secret);
    let vector = bytes(LONG_TERM_SHA256);
    let before = &vector[..vector.len() - 36];
    for length in [0, 4, 16, 20, 28, 32, 36] {
        let total = (before.len() - 20 + 4 + length) as u16;
        let mut hmac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
        hmac.update(&before[..2]);
        hmac.update(&total.to_be_bytes());
        hmac.update(&before[4..]);
        let mut value = hmac.finalize().into_bytes().to_vec();
        value.resize(length, 0);
        let attribute = RawAttribute::new(MessageIntegritySha256::TYPE, &value);
        let mut signed = [before, &attribute.to_bytes()].concat();
        signed[2..4].copy_from_slice(&total.to_be_bytes());
        let verified = Message::from_bytes(&signed).is_ok_and(|message| key.verify(&message));
        assert_eq!(verified, length == 32, "{length} bytes");
    }
}
