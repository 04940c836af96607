//! Nonces that show a request's source address to be real, without state (RFC 8489 §9.2.4).
//!
//! A nonce is 8 hexadecimal digits of the second it was made in, and 32 of an HMAC-SHA-256 over that
//! second and the address it was made for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use subtle::ConstantTimeEq;

use crate::hex;
use crate::session::hmac_sha256;

/// How long a nonce is good for, in seconds.
pub const NONCE_LIFETIME: u64 = 600;

/// How far ahead of a server's clock a nonce may lie, in seconds: the clock may have been set back.
const FUTURE_TOLERANCE: u64 = 5;

/// A server's key for the nonces it makes.
#[derive(Clone)]
pub struct NonceKey([u8; 32]);

impl NonceKey {
    /// A key of 32 bytes from a cryptographic random generator.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, for a snapshot.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A nonce for `source`, made at `now_secs` (seconds since 1970).
    pub fn make(&self, now_secs: u64, source: SocketAddr) -> String {
        // 32 bits of seconds last until 2106, and the lifetime is compared modulo them.
        let made = (now_secs as u32).to_be_bytes();
        hex::encode(&[made.as_slice(), &self.tag(made, source)].concat())
    }

    /// Whether `nonce` was made for `source` and is still good at `now_secs`.
    ///
    /// # Errors
    /// Says whether it expired, or never was this key's nonce for this source.
    pub fn check(&self, now_secs: u64, source: SocketAddr, nonce: &str) -> Result<(), NonceError> {
        let bytes: [u8; 20] = hex::decode(nonce).map_err(|_| NonceError::Forged)?;
        let (made, tag) = bytes.split_first_chunk().ok_or(NonceError::Forged)?;
        if !bool::from(self.tag(*made, source).ct_eq(tag)) {
            return Err(NonceError::Forged);
        }
        let latest = (now_secs + FUTURE_TOLERANCE) as u32;
        let age = u64::from(latest.wrapping_sub(u32::from_be_bytes(*made)));
        if age > NONCE_LIFETIME + FUTURE_TOLERANCE {
            return Err(NonceError::Stale);
        }
        Ok(())
    }

    fn tag(&self, made: [u8; 4], source: SocketAddr) -> [u8; 16] {
        let ip = match source.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let full = hmac_sha256(&self.0, &[b"rawr nonce", &made, &ip, &source.port().to_be_bytes()]);
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

    #[test]
    fn good_for_its_source_and_time_only() {
        let (key, now) = (NonceKey::from_bytes([3; 32]), 1_800_000_000);
        let source = "192.0.2.1:4000".parse().unwrap();
        let nonce = key.make(now, source);
        assert_eq!(nonce.len(), 40);
        assert_eq!(key.check(now, source, &nonce), Ok(()));
        assert_eq!(key.check(now + NONCE_LIFETIME, source, &nonce), Ok(()));
        assert_eq!(key.check(now - 5, source, &nonce), Ok(()));
        assert_eq!(key.check(now + NONCE_LIFETIME + 1, source, &nonce), Err(NonceError::Stale));
        assert_eq!(key.check(now - 6, source, &nonce), Err(NonceError::Stale));
        for other in ["192.0.2.1:4001", "192.0.2.2:4000", "[2001:db8::1]:4000"] {
            assert_eq!(key.check(now, other.parse().unwrap(), &nonce), Err(NonceError::Forged));
        }
        let other_key = NonceKey::from_bytes([4; 32]);
        assert_eq!(other_key.check(now, source, &nonce), Err(NonceError::Forged));
        assert_eq!(key.check(now, source, "short"), Err(NonceError::Forged));
        let mapped = "[::ffff:192.0.2.1]:4000".parse().unwrap();
        assert_eq!(key.check(now, mapped, &nonce), Ok(()));
    }
}
