//! Nonces that show a request's source address to be real, without state (RFC 8489 §9.2.4).
//!
//! A nonce is the nonce cookie with the server's security features (RFC 8489 §9.2), then, in base64, the
//! second it was made in and 80 bits of an HMAC-SHA-256 over the features, that second and the address it
//! was made for. Clients take all of it for opaque text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::base64;
use crate::session::hmac_with;

/// How long a nonce is good for, in seconds.
pub const NONCE_LIFETIME: u64 = 600;

/// How far ahead of a server's clock a nonce may lie, in seconds: the clock may have been set back.
const FUTURE_TOLERANCE: u64 = 5;

/// What the nonces of a server that negotiates password algorithms begin with (RFC 8489 §9.2).
const COOKIE: &str = "obMatJos2";

/// What a server can do beyond RFC 5389, as its nonces say it: the set of security features
/// (RFC 8489 §18.1). Since the nonce comes back with the request, nobody on the way can take a feature
/// out unnoticed (bid-down protection).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecurityFeatures {
    /// It negotiates the algorithm that makes keys of passwords.
    pub password_algorithms: bool,
    /// It takes USERHASH in place of USERNAME.
    pub username_anonymity: bool,
}

impl SecurityFeatures {
    /// The 24-bit set. The RFC's text numbers bits from the left, its example and erratum 6290 from the
    /// right, and clients follow either; so each feature is set from both ends, where nothing else is
    /// assigned.
    const fn bits(self) -> [u8; 3] {
        let (algorithms, anonymity) =
            (self.password_algorithms as u8, self.username_anonymity as u8);
        [algorithms << 7 | anonymity << 6, 0, anonymity << 1 | algorithms]
    }

    fn from_bits(bits: [u8; 3]) -> Self {
        let [left, ..] = bits;
        Self { password_algorithms: left & 0x80 != 0, username_anonymity: left & 0x40 != 0 }
    }
}

/// A server's key for the nonces it makes.
#[derive(Clone)]
pub struct NonceKey {
    key: [u8; 32],
    hmac: Hmac<Sha256>,
    features: SecurityFeatures,
}

impl NonceKey {
    /// A key of 32 bytes from a cryptographic random generator.
    pub fn from_bytes(key: [u8; 32]) -> Self {
        Self { key, hmac: hmac_with(&key), features: SecurityFeatures::default() }
    }

    /// The same key, for nonces that say that the server has these features.
    #[must_use]
    pub fn with_features(self, features: SecurityFeatures) -> Self {
        Self { features, ..self }
    }

    /// The key's bytes, for a snapshot.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// A nonce for `source`, made at `now_secs` (seconds since 1970).
    pub fn make(&self, now_secs: u64, source: SocketAddr) -> String {
        // 32 bits of seconds last until 2106, and the lifetime is compared modulo them.
        let made = (now_secs as u32).to_be_bytes();
        let features = self.features.bits();
        let tag = self.tag(features, made, source);
        let stamp: [u8; 14] = std::array::from_fn(|i| if i < 4 { made[i] } else { tag[i - 4] });
        [COOKIE, &base64::encode_unpadded(&features), &base64::encode_unpadded(&stamp)].concat()
    }

    /// Whether `nonce` was made for `source` and is still good at `now_secs`; returns the features that
    /// it told the client of.
    ///
    /// # Errors
    /// Says whether it expired, or never was this key's nonce for this source.
    pub fn check(
        &self,
        now_secs: u64,
        source: SocketAddr,
        nonce: &str,
    ) -> Result<SecurityFeatures, NonceError> {
        let rest = nonce.as_bytes().strip_prefix(COOKIE.as_bytes()).ok_or(NonceError::Forged)?;
        let (features, stamp) = rest.split_at_checked(4).ok_or(NonceError::Forged)?;
        let features = base64::decode_unpadded(features).ok_or(NonceError::Forged)?;
        let stamp: [u8; 14] = base64::decode_unpadded(stamp).ok_or(NonceError::Forged)?;
        let (made, claimed) = stamp.split_first_chunk().ok_or(NonceError::Forged)?;
        if !bool::from(self.tag(features, *made, source).ct_eq(claimed)) {
            return Err(NonceError::Forged);
        }
        let latest = (now_secs + FUTURE_TOLERANCE) as u32;
        let age = u64::from(latest.wrapping_sub(u32::from_be_bytes(*made)));
        if age > NONCE_LIFETIME + FUTURE_TOLERANCE {
            return Err(NonceError::Stale);
        }
        Ok(SecurityFeatures::from_bits(features))
    }

    fn tag(&self, features: [u8; 3], made: [u8; 4], source: SocketAddr) -> [u8; 10] {
        let ip = match source.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let port = source.port().to_be_bytes();
        let mut hmac = self.hmac.clone();
        let parts = [b"rawr nonce".as_slice(), &features, &made, &ip, &port];
        parts.iter().for_each(|part| hmac.update(part));
        let full = hmac.finalize().into_bytes();
        std::array::from_fn(|i| full[i])
    }
}

impl fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceKey(..)")
    }
}

/// Why a nonce does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// It was good once: answer 438 with a fresh one.
    #[error("nonce expired")]
    Stale,
    /// It is no nonce of this server's for this source: answer 401 with one.
    #[error("nonce was not made by this server for this source")]
    Forged,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const ALL: SecurityFeatures =
        SecurityFeatures { password_algorithms: true, username_anonymity: true };

    fn source() -> SocketAddr {
        "192.0.2.1:4000".parse().unwrap()
    }

    #[test]
    fn good_for_its_source_and_time_only() {
        let key = NonceKey::from_bytes([3; 32]);
        let none = Ok(SecurityFeatures::default());
        let nonce = key.make(NOW, source());
        assert_eq!(nonce.len(), 32);
        assert_eq!(key.check(NOW, source(), &nonce), none);
        assert_eq!(key.check(NOW + NONCE_LIFETIME, source(), &nonce), none);
        assert_eq!(key.check(NOW - 5, source(), &nonce), none);
        let late = key.check(NOW + NONCE_LIFETIME + 1, source(), &nonce);
        assert_eq!(late, Err(NonceError::Stale));
        assert_eq!(key.check(NOW - 6, source(), &nonce), Err(NonceError::Stale));
        for other in ["192.0.2.1:4001", "192.0.2.2:4000", "[2001:db8::1]:4000"] {
            assert_eq!(key.check(NOW, other.parse().unwrap(), &nonce), Err(NonceError::Forged));
        }
        let other_key = NonceKey::from_bytes([4; 32]);
        assert_eq!(other_key.check(NOW, source(), &nonce), Err(NonceError::Forged));
        let mapped = "[::ffff:192.0.2.1]:4000".parse().unwrap();
        assert_eq!(key.check(NOW, mapped, &nonce), none);
    }

    #[test]
    fn features_are_read_from_either_end_and_cannot_be_taken_out() {
        let key = NonceKey::from_bytes([3; 32]).with_features(ALL);
        let nonce = key.make(NOW, source());
        assert!(nonce.starts_with("obMatJos2wAAD"), "{nonce}");
        assert_eq!(key.check(NOW, source(), &nonce), Ok(ALL));
        let stripped = nonce.replacen("wAAD", "AAAA", 1);
        assert_eq!(key.check(NOW, source(), &stripped), Err(NonceError::Forged));
        let plain = NonceKey::from_bytes([3; 32]);
        assert_eq!(plain.check(NOW, source(), &nonce), Ok(ALL), "whatever it has by now");
    }

    #[test]
    fn nothing_else_is_a_nonce() {
        let key = NonceKey::from_bytes([3; 32]);
        let nonce = key.make(NOW, source());
        let cut = &nonce[..nonce.len() - 1];
        let long = format!("{nonce}A");
        for wrong in ["", "short", "obMatJos2", "obMatJos2AAAA", cut, &long] {
            assert_eq!(key.check(NOW, source(), wrong), Err(NonceError::Forged), "{wrong}");
        }
        for i in 0..nonce.len() {
            let mut bytes = nonce.clone().into_bytes();
            bytes[i] = if bytes[i] == b'B' { b'C' } else { b'B' };
            let changed = String::from_utf8(bytes).unwrap();
            let last_digit = i + 1 == nonce.len();
            // The last digit holds two bits that belong to no byte.
            assert!(last_digit || key.check(NOW, source(), &changed).is_err(), "{changed}");
        }
    }
}
