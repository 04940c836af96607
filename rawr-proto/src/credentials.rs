//! Who may use a server, and the keys of MESSAGE-INTEGRITY-SHA256.
//!
//! Every message of a session is keyed by its [`SessionKey`], in the shape of a short-term
//! credential's password (RFC 8489 §9.1.1), so that any STUN library can compute it. Where a server
//! asks for a user, [`LongTermKey`] goes into that password and masks the keys on their way.

use std::fmt;

use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base64;
use crate::bridge::BridgeKey;
use crate::hex;
use crate::message::TransactionId;
use crate::opaque::opaque_or_as_is;
use crate::session::{SessionKey, WireKey, hmac_sha256, hmac_with};

/// A user's name and password, as a client is given them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// USERNAME.
    pub username: String,
    /// Shown nowhere.
    pub password: String,
}

impl Credentials {
    /// The key in the realm that a server named.
    pub fn key(&self, realm: &str) -> LongTermKey {
        LongTermKey::new(&self.username, realm, &self.password)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// SHA-256 of username, realm and password, all three as OpaqueString has them (RFC 8489 §9.2.2).
#[derive(Clone)]
pub struct LongTermKey([u8; 32]);

impl LongTermKey {
    /// The key of a user in a realm.
    pub fn new(username: &str, realm: &str, password: &str) -> Self {
        let [username, realm, password] = [username, realm, password].map(opaque_or_as_is);
        let joined = Sha256::new().chain_update(&*username).chain_update(":").chain_update(&*realm);
        Self(joined.chain_update(":").chain_update(&*password).finalize().into())
    }

    /// SESSION-KEY masked, or unmasked again, for one transaction.
    pub fn mask_session_key(&self, key: WireKey, nonce: &str, id: TransactionId) -> WireKey {
        self.mask(b"rawr mask", key, nonce, id)
    }

    /// MAC-KEY masked, or unmasked again, for one transaction.
    pub fn mask_mac_key(&self, key: WireKey, nonce: &str, id: TransactionId) -> WireKey {
        self.mask(b"rawr mask mac", key, nonce, id)
    }

    fn mask(&self, purpose: &[u8], key: WireKey, nonce: &str, id: TransactionId) -> WireKey {
        let mask = hmac_sha256(&self.0, &[purpose, nonce.as_bytes(), &id.0]);
        WireKey(std::array::from_fn(|i| key.0[i] ^ mask[i]))
    }
}

impl PartialEq for LongTermKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for LongTermKey {}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongTermKey(..)")
    }
}

/// The key of MESSAGE-INTEGRITY-SHA256, ready for use.
#[derive(Clone)]
pub struct IntegrityKey(Hmac<Sha256>);

impl IntegrityKey {
    /// For messages without USERNAME: keyed by the session alone.
    pub fn session(key: &SessionKey) -> Self {
        Self(hmac_with(hex::encode(key.as_bytes()).as_bytes()))
    }

    /// For messages with USERNAME, and their answers.
    pub fn credentialed(user: &LongTermKey, key: &SessionKey) -> Self {
        Self(hmac_with(hex::encode(&hmac_sha256(&user.0, &[key.as_bytes()])).as_bytes()))
    }

    /// For messages of Bridge without USERNAME.
    pub fn bridge(key: &BridgeKey) -> Self {
        Self(hmac_with(hex::encode(key.as_bytes()).as_bytes()))
    }

    /// For messages of Bridge with USERNAME, and their answers.
    pub fn bridge_credentialed(user: &LongTermKey, key: &BridgeKey) -> Self {
        Self(hmac_with(hex::encode(&hmac_sha256(&user.0, &[key.as_bytes()])).as_bytes()))
    }

    /// HMAC-SHA-256 of the concatenated `parts`.
    pub(crate) fn compute(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hmac = self.0.clone();
        parts.iter().for_each(|part| hmac.update(part));
        hmac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntegrityKey(..)")
    }
}

/// The password of an ephemeral user: base64 of HMAC-SHA1(`secret`, `username`), where the secret is
/// shared by the server and by what hands out users.
pub fn ephemeral_password(secret: &str, username: &str) -> String {
    let mut hmac = <Hmac<Sha1> as hmac::Mac>::new_from_slice(secret.as_bytes())
        .expect("HMAC takes keys of any length");
    hmac.update(username.as_bytes());
    base64::encode(&hmac.finalize().into_bytes())
}

/// The same by HMAC-SHA-256, which some services hand out.
pub fn ephemeral_password_sha256(secret: &str, username: &str) -> String {
    let mut hmac = hmac_with(secret.as_bytes());
    hmac.update(username.as_bytes());
    base64::encode(&hmac.finalize().into_bytes())
}

/// The name of an ephemeral user that expires at `expires_secs` (seconds since 1970).
pub fn ephemeral_username(expires_secs: u64, name: &str) -> String {
    format!("{expires_secs}:{name}")
}

/// When an ephemeral user expires, in seconds since 1970, if that lies after `now_secs`. Some services put the
/// name first, so either order is read.
///
/// # Errors
/// Says whether it has expired or the name holds no expiry.
pub fn expiry(username: &str, now_secs: u64) -> Result<u64, ExpiryError> {
    let (first, second) = username.split_once(':').unwrap_or((username, ""));
    let expires = first.parse().or_else(|_| second.parse());
    let expires: u64 = expires.map_err(|_| ExpiryError::NoExpiry)?;
    if expires <= now_secs {
        return Err(ExpiryError::Expired { seconds: now_secs - expires });
    }
    Ok(expires)
}

/// Why an ephemeral user does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpiryError {
    /// Its time is over.
    #[error("the user expired {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// Neither part of the name is seconds since 1970.
    #[error(
        "the name of an ephemeral user has the form EXPIRY:NAME or NAME:EXPIRY, with the expiry in seconds since 1970"
    )]
    NoExpiry,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionSecret;

    #[test]
    fn ephemeral_users_expire() {
        let username = ephemeral_username(1_000, "cam");
        assert_eq!(username, "1000:cam");
        assert_eq!(expiry(&username, 999), Ok(1_000));
        assert_eq!(expiry(&username, 1_000), Err(ExpiryError::Expired { seconds: 0 }));
        assert_eq!(expiry("cam", 0), Err(ExpiryError::NoExpiry));
        assert_eq!(expiry("cam:1000", 999), Ok(1_000));
        assert_eq!(expiry("1000:2000", 999), Ok(1_000));
        assert_eq!(expiry("cam:1000:x", 0), Err(ExpiryError::NoExpiry));
        assert_eq!(
            ephemeral_password("key", "The quick brown fox jumps over the lazy dog"),
            "3nybhbi3iqa8ino29wqQcBydtNk="
        );
        assert_eq!(
            ephemeral_password_sha256("key", "The quick brown fox jumps over the lazy dog"),
            "97yD9DBThCSxMpjmqm+xQ+9NWaFJRhdZl0edvC0aPNg="
        );
    }

    #[test]
    fn mask_undoes_itself_for_its_transaction_only() {
        let user = LongTermKey::new("cam", "example.org", "secret");
        let key = WireKey([5; 32]);
        let id = TransactionId([1; 12]);
        let masked = user.mask_session_key(key, "nonce", id);
        assert_ne!(masked, key);
        assert_ne!(masked, user.mask_mac_key(key, "nonce", id));
        assert_eq!(user.mask_session_key(masked, "nonce", id), key);
        assert_ne!(user.mask_session_key(masked, "nonce", TransactionId([2; 12])), key);
    }

    #[test]
    fn long_term_key_is_that_of_rfc_8489() {
        let joined = Sha256::digest("user:realm:pass");
        assert_eq!(LongTermKey::new("user", "realm", "pass").0, <[u8; 32]>::from(joined));
    }

    #[test]
    fn debug_shows_no_secret() {
        let user = Credentials { username: "cam".into(), password: "hunter2".into() };
        let key = SessionSecret::from_bytes([1; 32]).key();
        let shown = format!("{user:?} {:?} {:?}", user.key("r"), IntegrityKey::session(&key));
        assert_eq!(shown, "Credentials { username: \"cam\", .. } LongTermKey(..) IntegrityKey(..)");
    }
}
