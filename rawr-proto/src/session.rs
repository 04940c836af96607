//! A session's names and keys, all derived from the secret that its two peers share.
//!
//! The secret and [`CandidateKey`] never leave the peers. Servers on the path get [`SessionKey`], by
//! which they tell the session's legs from strangers, and gateways [`MacKey`]. [`SessionId`] is
//! public: it follows from the session key but does not give it away.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use hmac::{Hmac, Mac as _};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::hex;

/// What the two peers of a session share, and nobody else has.
#[derive(Clone)]
pub struct SessionSecret([u8; 32]);

impl SessionSecret {
    /// A secret of 32 bytes from a cryptographic random generator.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret as 64 hexadecimal digits, to hand it to the other peer.
    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }

    /// The key that servers on the path get.
    pub fn key(&self) -> SessionKey {
        SessionKey(hmac_sha256(&self.0, &[b"rawr session key"]))
    }

    /// The key that blinds MAC addresses.
    pub fn mac_key(&self) -> MacKey {
        MacKey(hmac_sha256(&self.0, &[b"rawr mac key"]))
    }

    /// The key that seals candidates from peer to peer.
    pub fn candidate_key(&self) -> CandidateKey {
        CandidateKey(hmac_sha256(&self.0, &[b"rawr candidates"]))
    }

    /// A key for what the two peers do without any server, one for each `label`.
    pub fn derive(&self, label: &[u8]) -> [u8; 32] {
        hmac_sha256(&self.0, &[b"rawr between peers: ", label])
    }
}

impl FromStr for SessionSecret {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, ParseHexError> {
        hex::decode(text).map(Self)
    }
}

/// What a server must know to check a session's legs.
#[derive(Clone)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// A key as a snapshot holds it.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, for a snapshot.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The session's public name.
    pub fn id(&self) -> SessionId {
        let digest = Sha256::new().chain_update(b"rawr session id").chain_update(self.0).finalize();
        SessionId(first_16(&digest.into()))
    }
}

/// What blinds and unblinds MAC addresses.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// A key as a snapshot holds it.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, for a snapshot.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The form of `mac` that tells nothing to who lacks this key.
    pub fn blind(&self, mac: Mac) -> MacToken {
        MacToken::Blinded(first_16(&hmac_sha256(&self.0, &[&mac.0])))
    }

    /// Whether `token` stands for `mac`.
    pub fn matches(&self, token: &MacToken, mac: Mac) -> bool {
        match token {
            MacToken::Raw(raw) => *raw == mac,
            MacToken::Blinded(_) => self.blind(mac) == *token,
        }
    }
}

/// What seals candidates so that no server on the path can read them.
#[derive(Clone)]
pub struct CandidateKey([u8; 32]);

impl CandidateKey {
    /// Length of a sealed list with nothing in it: nonce and tag.
    const OVERHEAD: usize = 12 + 16;
    /// Longest value of CANDIDATES.
    const MAX_LEN: usize = 256;

    /// Seals as many of `addresses`, from the front, as CANDIDATES has room for (12 over IPv6, 32
    /// over IPv4). `nonce` is random and used once.
    pub fn seal(&self, nonce: [u8; 12], addresses: &[SocketAddr]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(Self::MAX_LEN);
        for address in addresses {
            let before = plain.len();
            write_address(&mut plain, *address);
            if plain.len() + Self::OVERHEAD > Self::MAX_LEN {
                plain.truncate(before);
                break;
            }
        }
        let sealed = self.cipher().encrypt(Nonce::from_slice(&nonce), plain.as_slice());
        // The cipher fails for messages of 256 GiB and more only.
        [nonce.as_slice(), &sealed.unwrap_or_default()].concat()
    }

    /// The addresses in `sealed`; `None` if it was not made with this key or is malformed.
    pub fn open(&self, sealed: &[u8]) -> Option<Vec<SocketAddr>> {
        if sealed.len() > Self::MAX_LEN {
            return None;
        }
        let (nonce, ciphertext) = sealed.split_at_checked(12)?;
        let plain = self.cipher().decrypt(Nonce::from_slice(nonce), ciphertext).ok()?;
        let mut rest = plain.as_slice();
        let mut addresses = Vec::new();
        while !rest.is_empty() {
            addresses.push(read_address(&mut rest)?);
        }
        Some(addresses)
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(&self.0.into())
    }
}

/// A key as it stands in a message: in clear, or masked ([`crate::LongTermKey`]).
#[derive(Clone, Copy)]
pub struct WireKey(pub [u8; 32]);

impl WireKey {
    /// The session key that this is in clear.
    pub const fn session_key(self) -> SessionKey {
        SessionKey(self.0)
    }

    /// The MAC key that this is in clear.
    pub const fn mac_key(self) -> MacKey {
        MacKey(self.0)
    }
}

impl From<&SessionKey> for WireKey {
    fn from(key: &SessionKey) -> Self {
        Self(key.0)
    }
}

impl From<&MacKey> for WireKey {
    fn from(key: &MacKey) -> Self {
        Self(key.0)
    }
}

/// Secrets compare in constant time and do not show in logs.
macro_rules! secret {
    ($($name:ident),*) => {$(
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )*};
}

secret!(SessionSecret, SessionKey, MacKey, CandidateKey, WireKey);

/// A session's public name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

/// A server's name in hop lists: random, chosen once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub [u8; 8]);

/// Both are shown and read as hexadecimal digits.
macro_rules! hex_name {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex::write(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseHexError;

            fn from_str(text: &str) -> Result<Self, ParseHexError> {
                hex::decode(text).map(Self)
            }
        }
    )*};
}

hex_name!(SessionId, ServerId);

/// Which of a session's two peers. They agree on it where they agree on the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The first.
    A,
    /// The second.
    B,
}

impl Role {
    /// The role that the other peer has.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// A 48-bit MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ParseHexError;

    /// Reads six pairs of digits, with or without colons between them.
    fn from_str(text: &str) -> Result<Self, ParseHexError> {
        hex::decode(&text.replace(':', "")).map(Self)
    }
}

/// A MAC address as it stands in a message.
#[derive(Clone, Copy, Debug)]
pub enum MacToken {
    /// In clear.
    Raw(Mac),
    /// Readable only to who has the [`MacKey`] and the address to compare with.
    Blinded([u8; 16]),
}

impl PartialEq for MacToken {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Raw(a), Self::Raw(b)) => a == b,
            (Self::Blinded(a), Self::Blinded(b)) => a.ct_eq(b).into(),
            (Self::Raw(_), Self::Blinded(_)) | (Self::Blinded(_), Self::Raw(_)) => false,
        }
    }
}

impl Eq for MacToken {}

/// Text that is not the hexadecimal form of what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHexError {
    /// Too short or too long.
    #[error("expected {expected} hexadecimal digits, found {actual} characters")]
    Length {
        /// Digits wanted.
        expected: usize,
        /// Bytes of text found.
        actual: usize,
    },
    /// Something other than 0-9, a-f or A-F.
    #[error("no hexadecimal digit at position {position}")]
    Digit {
        /// Byte offset, from 0.
        position: usize,
    },
}

/// HMAC-SHA-256 of the concatenated `parts`.
pub(crate) fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut hmac = hmac_with(key);
    parts.iter().for_each(|part| hmac.update(part));
    hmac.finalize().into_bytes().into()
}

/// HMAC-SHA-256 that has taken up `key` and nothing else.
pub(crate) fn hmac_with(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn first_16(digest: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| digest[i])
}

/// Family (1 or 2, as in RFC 8489 §14.1), port, address.
fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(if address.is_ipv4() { 1 } else { 2 });
    out.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
}

fn read_address(rest: &mut &[u8]) -> Option<SocketAddr> {
    let [family, port_high, port_low] = take(rest)?;
    let ip = match family {
        1 => Ipv4Addr::from(take(rest)?).into(),
        2 => Ipv6Addr::from(take::<16>(rest)?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([port_high, port_low])))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> SessionSecret {
        SessionSecret::from_bytes(std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn derived_keys_differ_and_are_stable() {
        let keys = [secret().key().0, secret().mac_key().0, secret().candidate_key().0];
        assert_ne!(keys[0], keys[1]);
        assert_ne!(keys[1], keys[2]);
        assert_eq!(secret().key(), secret().key());
        assert_ne!(secret().key().id().0, keys[0][..16]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let digits = &secret().to_hex()[8..24];
        let shown = format!("{:?} {:?} {:?}", secret(), secret().key(), WireKey(secret().0));
        assert!(!shown.contains(digits), "{shown}");
        assert_eq!(shown, "SessionSecret(..) SessionKey(..) WireKey(..)");
    }

    #[test]
    fn hex_round_trips_and_names_the_mistake() {
        assert_eq!(secret().to_hex().parse::<SessionSecret>().unwrap(), secret());
        assert_eq!(
            "00".parse::<ServerId>(),
            Err(ParseHexError::Length { expected: 16, actual: 2 })
        );
        assert_eq!(
            "000000000000000g".parse::<ServerId>(),
            Err(ParseHexError::Digit { position: 15 })
        );
        assert_eq!("02:00:00:00:00:0a".parse(), Ok(Mac([2, 0, 0, 0, 0, 10])));
        assert_eq!(Mac([2, 0, 0, 0, 0, 10]).to_string(), "02:00:00:00:00:0a");
    }

    #[test]
    fn blinded_macs_match_under_their_key_only() {
        let (mac, key) = (Mac([2, 0, 0, 0, 0, 1]), secret().mac_key());
        let token = key.blind(mac);
        assert!(key.matches(&token, mac));
        assert!(key.matches(&MacToken::Raw(mac), mac));
        assert!(!key.matches(&token, Mac([2, 0, 0, 0, 0, 2])));
        assert!(!MacKey::from_bytes([0; 32]).matches(&token, mac));
    }

    #[test]
    fn candidates_open_under_their_key_only() {
        let key = secret().candidate_key();
        let addresses: Vec<SocketAddr> =
            vec!["192.0.2.1:5000".parse().unwrap(), "[2001:db8::1]:5000".parse().unwrap()];
        let sealed = key.seal([9; 12], &addresses);
        assert_eq!(key.open(&sealed), Some(addresses));
        assert_eq!(CandidateKey([0; 32]).open(&sealed), None);
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert_eq!(key.open(&changed), None);
            assert_eq!(key.open(&sealed[..i]), None);
        }
    }

    #[test]
    fn candidates_are_cut_to_what_fits() {
        let key = secret().candidate_key();
        let addresses = vec!["[2001:db8::1]:5000".parse().unwrap(); 40];
        let sealed = key.seal([9; 12], &addresses);
        assert_eq!(sealed.len(), 256);
        assert_eq!(key.open(&sealed).unwrap().len(), 12);
    }
}
