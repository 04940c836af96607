//! How many messages per second one core decodes and verifies, and encodes: Probes, and TURN's requests.
//! `cargo run --release -p rawr-proto --example codec_rate`

#![expect(clippy::disallowed_methods, reason = "measures time")]

use std::hint::black_box;
use std::time::Instant;

use rawr_proto::{
    Attributes, IntegrityAttribute, IntegrityKey, LongTermIntegrity, Message, Method, NonceKey,
    PasswordAlgorithm, PasswordKey, Role, SessionSecret, TransactionId, decode, ephemeral_password,
    parse_stun,
};
use stun_types::attribute::RawAttribute;
use stun_types::message::{self as stun, MessageWrite, MessageWriteVec};

const ROUNDS: u32 = 200_000;

fn main() {
    let session = SessionSecret::from_bytes([7; 32]).key();
    let key = IntegrityKey::session(&session);
    let attributes = Attributes {
        session: Some(session.id()),
        role: Some(Role::A),
        nonce: Some("0123456789abcdef0123456789abcdef01234567".into()),
        ..Attributes::default()
    };
    let probe = Message::request(Method::Probe, TransactionId([1; 12]), attributes);
    let bytes = probe.encode(Some(&key));
    report("decode and verify", || {
        assert!(decode(black_box(&bytes)).is_ok_and(|decoded| decoded.verify(&key)));
    });
    report("decode", || {
        assert!(decode(black_box(&bytes)).is_ok());
    });
    report("encode", || {
        black_box(black_box(&probe).encode(Some(&key)));
    });
    report("make an integrity key", || {
        black_box(IntegrityKey::session(black_box(&session)));
    });
    long_term();
}

/// What the server does with a request of a TURN client.
fn long_term() {
    let nonces = NonceKey::from_bytes([3; 32]);
    let source = "192.0.2.9:4000".parse().expect("it is an address");
    let nonce = nonces.make(0, source);
    report("check a nonce", || {
        assert!(nonces.check(0, source, black_box(&nonce)).is_ok());
    });
    for (algorithm, attribute) in [
        (PasswordAlgorithm::Md5, IntegrityAttribute::Sha1),
        (PasswordAlgorithm::Sha256, IntegrityAttribute::Sha256),
    ] {
        let key = PasswordKey::new(algorithm, "cam", "example.org", "hunter2");
        let key = LongTermIntegrity::new(attribute, &key);
        let mut out = stun::Message::builder_request(stun::Method::new(3), MessageWriteVec::new());
        let values =
            [(0x0019, "\x11\0\0\0"), (0x0006, "cam"), (0x0014, "example.org"), (0x0015, &nonce)];
        for (number, value) in values {
            out.push_attribute_unchecked(&RawAttribute::new(number.into(), value.as_bytes()));
        }
        key.sign(&mut out);
        let bytes = out.finish();
        report(&format!("parse and verify Allocate, {attribute:?}"), || {
            assert!(parse_stun(black_box(&bytes)).is_some_and(|message| key.verify(&message)));
        });
        report(&format!("key of an ephemeral user, {attribute:?}"), || {
            let password = ephemeral_password("secret", black_box("1800000000:cam"));
            let key = PasswordKey::new(algorithm, "1800000000:cam", "example.org", &password);
            black_box(LongTermIntegrity::new(attribute, &key));
        });
    }
}

fn report(what: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| work());
    let each = start.elapsed() / ROUNDS;
    println!("{what}: {each:?} each, {:.0} per second", 1.0 / each.as_secs_f64());
}
