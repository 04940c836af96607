//! This server's side of the key agreement.

use std::fmt;

use hmac::{Hmac, Mac as _};
use rawr_proto::BridgeKey;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

/// The server's X25519 key pair (RFC 7748). It follows from the key of the nonces: whoever shows a valid
/// nonce has been told of this key, too.
pub(in crate::control) struct ServerKey {
    secret: StaticSecret,
    public: [u8; 32],
}

impl ServerKey {
    pub(in crate::control) fn of(nonce_key: &[u8; 32]) -> Self {
        let mut hmac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(nonce_key)
            .expect("HMAC takes keys of any length");
        hmac.update(b"rawr bridge server key");
        let secret = StaticSecret::from(<[u8; 32]>::from(hmac.finalize().into_bytes()));
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// SERVER-KEY.
    pub(in crate::control) const fn public(&self) -> [u8; 32] {
        self.public
    }

    /// What keys the messages of this caller; `None` if its key is one of those that make the same
    /// agreement with everybody (RFC 7748 §6.1).
    pub(super) fn agree(&self, caller: &[u8; 32]) -> Option<BridgeKey> {
        let agreed = self.secret.diffie_hellman(&PublicKey::from(*caller));
        let usable = agreed.was_contributory();
        usable.then(|| BridgeKey::new(agreed.as_bytes(), caller, &self.public))
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(..)")
    }
}
