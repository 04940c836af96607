//! The long-term credential mechanism of STUN: keys, MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256
//! (RFC 8489 §9.2, §14.5, §14.6).

use std::fmt;

use hmac::Hmac;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use stun_types::attribute::{
    AttributeStaticType, MessageIntegrity, MessageIntegritySha256, RawAttribute,
};
use stun_types::message::{Message, MessageHeader, MessageWrite};
use subtle::ConstantTimeEq;

use crate::opaque::opaque_or_as_is;

/// How a password becomes a key (RFC 8489 §18.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PasswordAlgorithm {
    /// That of RFC 5389, and of a request that names none.
    #[default]
    Md5,
    /// The better one.
    Sha256,
}

impl PasswordAlgorithm {
    /// The value of PASSWORD-ALGORITHMS that a server sends: the better one first.
    pub const OFFERED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

    /// Reads the value of PASSWORD-ALGORITHM (RFC 8489 §14.12); `None` for an algorithm that is not
    /// offered.
    pub fn from_value(value: &[u8]) -> Option<Self> {
        match *value {
            [0, 1, 0, 0] => Some(Self::Md5),
            [0, 2, 0, 0] => Some(Self::Sha256),
            _ => None,
        }
    }
}

/// Which attribute shows a message to be its sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntegrityAttribute {
    /// MESSAGE-INTEGRITY, an HMAC-SHA-1.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256, always with all 32 bytes: TURN allows no truncation (RFC 8489 §14.6).
    Sha256,
}

impl IntegrityAttribute {
    /// Which one `message` carries; of both the better (RFC 8489 §9.2.4).
    pub fn of(message: &Message<'_>) -> Option<Self> {
        let has = |number| message.has_attribute(number);
        match (has(MessageIntegritySha256::TYPE), has(MessageIntegrity::TYPE)) {
            (true, _) => Some(Self::Sha256),
            (false, true) => Some(Self::Sha1),
            (false, false) => None,
        }
    }
}

/// Hash of username, realm and password (RFC 8489 §9.2.2). Realm and password are brought into the form of
/// OpaqueString (RFC 8265); the username counts as it stands in USERNAME.
#[derive(Clone)]
pub enum PasswordKey {
    /// For [`PasswordAlgorithm::Md5`].
    Md5([u8; 16]),
    /// For [`PasswordAlgorithm::Sha256`].
    Sha256([u8; 32]),
}

impl PasswordKey {
    /// The key of a user in a realm.
    pub fn new(algorithm: PasswordAlgorithm, username: &str, realm: &str, password: &str) -> Self {
        let [realm, password] = [realm, password].map(opaque_or_as_is);
        let parts = [username, ":", &*realm, ":", &*password];
        match algorithm {
            PasswordAlgorithm::Md5 => Self::Md5(hash::<Md5>(&parts).into()),
            PasswordAlgorithm::Sha256 => Self::Sha256(hash::<Sha256>(&parts).into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Md5(key) => key,
            Self::Sha256(key) => key,
        }
    }
}

impl fmt::Debug for PasswordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordKey(..)")
    }
}

/// The value of USERHASH (RFC 8489 §14.4).
pub fn userhash(username: &str, realm: &str) -> [u8; 32] {
    let [username, realm] = [username, realm].map(opaque_or_as_is);
    hash::<Sha256>(&[&*username, ":", &*realm]).into()
}

/// A user's key, ready to check requests with and to sign their answers with.
#[derive(Clone)]
pub struct LongTermIntegrity(Keyed);

#[derive(Clone)]
enum Keyed {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
}

impl LongTermIntegrity {
    /// For messages with this attribute.
    pub fn new(attribute: IntegrityAttribute, key: &PasswordKey) -> Self {
        Self::from_key(attribute, key.as_bytes())
    }

    /// For messages with this attribute and any key: a short-term credential's is the password itself
    /// (RFC 8489 §9.1.1), a token's is the session key in it (RFC 7635 §4.1).
    pub fn from_key(attribute: IntegrityAttribute, key: &[u8]) -> Self {
        match attribute {
            IntegrityAttribute::Sha1 => Self(Keyed::Sha1(keyed(key))),
            IntegrityAttribute::Sha256 => Self(Keyed::Sha256(keyed(key))),
        }
    }

    /// The attribute that it is for.
    pub const fn attribute(&self) -> IntegrityAttribute {
        match self.0 {
            Keyed::Sha1(_) => IntegrityAttribute::Sha1,
            Keyed::Sha256(_) => IntegrityAttribute::Sha256,
        }
    }

    /// Whether `message` carries the attribute and it was made with this key. Compares in constant time.
    pub fn verify(&self, message: &Message<'_>) -> bool {
        let number = match self.0 {
            Keyed::Sha1(_) => MessageIntegrity::TYPE,
            Keyed::Sha256(_) => MessageIntegritySha256::TYPE,
        };
        let Some((offset, claimed)) = message.raw_attribute_and_offset(number) else {
            return false;
        };
        let before = &message.as_bytes()[..offset];
        match &self.0 {
            Keyed::Sha1(hmac) => compute::<20>(hmac, before).ct_eq(&claimed.value).into(),
            Keyed::Sha256(hmac) => compute::<32>(hmac, before).ct_eq(&claimed.value).into(),
        }
    }

    /// Appends the attribute to a message that has none yet, and no FINGERPRINT.
    pub fn sign(&self, out: &mut impl MessageWrite) {
        match &self.0 {
            Keyed::Sha1(hmac) => {
                let value = compute::<20>(hmac, out.data());
                out.push_attribute_unchecked(&RawAttribute::new(MessageIntegrity::TYPE, &value));
            }
            Keyed::Sha256(hmac) => {
                let value = compute::<32>(hmac, out.data());
                let attribute = RawAttribute::new(MessageIntegritySha256::TYPE, &value);
                out.push_attribute_unchecked(&attribute);
            }
        }
    }
}

impl fmt::Debug for LongTermIntegrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongTermIntegrity(..)")
    }
}

/// The HMAC of what stands before the attribute, with the length that the header has if the attribute
/// is the last (RFC 8489 §14.5).
fn compute<const N: usize>(hmac: &(impl hmac::Mac + Clone), before: &[u8]) -> [u8; N] {
    let length = (before.len() - MessageHeader::LENGTH + 4 + N) as u16;
    let mut hmac = hmac.clone();
    hmac.update(&before[..2]);
    hmac.update(&length.to_be_bytes());
    hmac.update(&before[4..]);
    let full = hmac.finalize().into_bytes();
    std::array::from_fn(|i| full[i])
}

fn keyed<M: hmac::digest::KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hash<D: Digest>(parts: &[&str]) -> hmac::digest::Output<D> {
    parts.iter().fold(D::new(), |digest, part| digest.chain_update(part)).finalize()
}
