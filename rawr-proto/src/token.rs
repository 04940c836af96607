//! Access tokens of third-party authorization (RFC 7635 §6.2): what an authorization server tells this
//! server about a client, sealed under a key that both have.

use std::fmt;
use std::time::Duration;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm};

/// Bytes of the AEAD's nonce, for AES-GCM.
const NONCE: usize = 12;

/// Longest key of a client, in bytes.
const MAX_KEY: usize = 256;

/// Bytes that follow a client's key: timestamp, lifetime.
const AFTER_KEY: usize = 8 + 4;

/// Bytes that the AEAD adds.
const TAG: usize = 16;

/// How far the clocks of the two servers may be apart (RFC 7635 §4.1.1).
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// A key that is shared with an authorization server.
#[derive(Clone)]
pub struct TokenKey {
    id: String,
    /// Since 1970.
    expires: Option<Duration>,
    cipher: Cipher,
}

#[derive(Clone)]
enum Cipher {
    A128(Box<Aes128Gcm>),
    A256(Box<Aes256Gcm>),
}

impl TokenKey {
    /// A key and its name (the `kid`, which clients send as USERNAME): 16 bytes for AES-128-GCM, 32 for
    /// AES-256-GCM; `None` for another length.
    pub fn new(id: &str, key: &[u8]) -> Option<Self> {
        let cipher = match key.len() {
            16 => Cipher::A128(Box::new(Aes128Gcm::new_from_slice(key).ok()?)),
            32 => Cipher::A256(Box::new(Aes256Gcm::new_from_slice(key).ok()?)),
            _ => return None,
        };
        Some(Self { id: id.to_owned(), expires: None, cipher })
    }

    /// The same key, which is good until then (since 1970): `exp` of RFC 7635 §4.1.
    #[must_use]
    pub fn expiring(self, expires: Option<Duration>) -> Self {
        Self { expires, ..self }
    }

    /// Whether the key may still be used.
    pub fn is_good(&self, now: Duration) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// The key's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Opens the value of ACCESS-TOKEN, made for the server of this name.
    ///
    /// # Errors
    /// It was not made under this key for this server, or is malformed; which of them is not said.
    pub fn open(&self, server_name: &str, token: &[u8]) -> Result<Token, TokenError> {
        // Nothing is copied, and nothing computed, before all lengths fit each other.
        let (length, rest) = token.split_first_chunk().ok_or(TokenError)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(TokenError)?;
        let longest = 2 + MAX_KEY + AFTER_KEY + TAG;
        if usize::from(u16::from_be_bytes(*length)) != NONCE || sealed.len() > longest {
            return Err(TokenError);
        }
        let payload = Payload { msg: sealed, aad: server_name.as_bytes() };
        let plain = match &self.cipher {
            Cipher::A128(cipher) => cipher.decrypt(nonce.into(), payload),
            Cipher::A256(cipher) => cipher.decrypt(nonce.into(), payload),
        };
        Token::parse(&plain.map_err(|_| TokenError)?).ok_or(TokenError)
    }

    /// Seals a token, as an authorization server does. `nonce` must never be used twice with this key.
    pub fn seal(&self, server_name: &str, token: &Token, nonce: [u8; NONCE]) -> Vec<u8> {
        let plain = token.encode();
        let payload = Payload { msg: &plain, aad: server_name.as_bytes() };
        let sealed = match &self.cipher {
            Cipher::A128(cipher) => cipher.encrypt(&nonce.into(), payload),
            Cipher::A256(cipher) => cipher.encrypt(&nonce.into(), payload),
        };
        let sealed = sealed.expect("a token is shorter than AES-GCM's limit");
        [(NONCE as u16).to_be_bytes().as_slice(), &nonce, &sealed].concat()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a token holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Keys the integrity of the client's requests and of the answers.
    pub key: Vec<u8>,
    /// Since 1970.
    pub issued: Duration,
    /// How long it is good for.
    pub lifetime: Duration,
}

impl Token {
    /// When it ends to be good, since 1970; `None` if it is not good at `now`.
    pub fn good_until(&self, now: Duration) -> Option<Duration> {
        let until = self.issued.saturating_add(self.lifetime);
        let in_time = now + CLOCK_SKEW >= self.issued && now <= until.saturating_add(CLOCK_SKEW);
        in_time.then_some(until)
    }

    fn parse(plain: &[u8]) -> Option<Self> {
        let (length, rest) = plain.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let (timestamp, lifetime) = rest.split_first_chunk()?;
        let lifetime = u32::from_be_bytes(lifetime.try_into().ok()?);
        // 48 bits of seconds and 16 of their 64,000ths.
        let timestamp = u64::from_be_bytes(*timestamp);
        let fraction = Duration::from_nanos((timestamp & 0xffff) * 15_625);
        let issued = Duration::from_secs(timestamp >> 16) + fraction;
        let lifetime = Duration::from_secs(u64::from(lifetime));
        (!key.is_empty()).then(|| Self { key: key.to_vec(), issued, lifetime })
    }

    fn encode(&self) -> Vec<u8> {
        let fraction = u64::from(self.issued.subsec_nanos()) / 15_625;
        let timestamp = self.issued.as_secs() << 16 | fraction;
        let lifetime = u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX);
        let key = &self.key[..self.key.len().min(MAX_KEY)];
        [
            (key.len() as u16).to_be_bytes().as_slice(),
            key,
            &timestamp.to_be_bytes(),
            &lifetime.to_be_bytes(),
        ]
        .concat()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("issued", &self.issued)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// A token that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token was not made for this server under this key")]
pub struct TokenError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVER: &str = "blackdow.carleon.gov";
    const ISSUED: Duration = Duration::from_secs(1_800_000_000);

    fn key(length: usize) -> TokenKey {
        TokenKey::new("oldempire", &b"0123456789abcdef0123456789abcdef"[..length]).unwrap()
    }

    fn token() -> Token {
        let key = b"ZksjpweoixXmvn67534mWsdfghjklqwe".to_vec();
        Token { key, issued: ISSUED, lifetime: Duration::from_secs(3600) }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        hex.as_bytes().chunks(2).map(|it| pair(it).unwrap()).collect()
    }

    /// Made by another implementation: coturn's `turnutils_oauth`.
    #[test]
    fn tokens_of_another_implementation_open_and_are_made_alike() {
        for (length, hex) in [(32, A256), (16, A128)] {
            let foreign = bytes(hex);
            assert_eq!(key(length).open(SERVER, &foreign), Ok(token()));
            assert_eq!(key(length).seal(SERVER, &token(), *b"abcdefghijkl"), foreign);
        }
    }

    #[test]
    fn tokens_are_for_one_server_and_one_key() {
        let sealed = key(32).seal(SERVER, &token(), [1; NONCE]);
        assert_eq!(key(32).open("elsewhere", &sealed), Err(TokenError));
        assert_eq!(key(16).open(SERVER, &sealed), Err(TokenError));
        assert!(TokenKey::new("short", &[0; 24]).is_none());
    }

    #[test]
    fn a_token_has_its_time() {
        let good = |seconds: i64| {
            let now = ISSUED.as_secs().checked_add_signed(seconds).unwrap();
            token().good_until(Duration::from_secs(now)).is_some()
        };
        assert!(good(-5) && good(0) && good(3600) && good(3605));
        assert!(!good(-6) && !good(3606));
        assert_eq!(token().good_until(ISSUED), Some(ISSUED + Duration::from_secs(3600)));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let sealed = key(32).seal(SERVER, &token(), [1; NONCE]);
        for length in [0, 11, 13, 0x7fff, 0xffff_u16] {
            let mut wrong = sealed.clone();
            wrong[..2].copy_from_slice(&length.to_be_bytes());
            assert_eq!(key(32).open(SERVER, &wrong), Err(TokenError), "nonce of {length}");
        }
        assert_eq!(Token::parse(&[&[0, 40][..], &[7; 40], &[0; 11]].concat()), None);
        assert_eq!(Token::parse(&[&[0, 40][..], &[7; 40], &[0; 13]].concat()), None);
        assert_eq!(Token::parse(&[&[0, 0][..], &[0; 12]].concat()), None);
        assert_eq!(Token::parse(&[&[0xff, 0xff][..], &[0; 52]].concat()), None);
    }

    proptest! {
        #[test]
        fn noise_is_no_token(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(key(32).open(SERVER, &noise), Err(TokenError));
            // As plain text, too, it is taken apart without a panic.
            Token::parse(&noise);
        }

        #[test]
        fn a_changed_token_is_refused(at: prop::sample::Index, bit in 0..8_u8) {
            let mut sealed = key(16).seal(SERVER, &token(), [1; NONCE]);
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(key(16).open(SERVER, &sealed), Err(TokenError));
        }
    }

    const A256: &str = "\
        000c6162636465666768696a6b6c69ec93d4b88f1da406739b6952f42e516a068e2c8ded38287ad859f4b837\
        a29b1bada0fc451d20a34a7a90a000837b5d63c6e121fcff043ffc473ef062d0";

    const A128: &str = "\
        000c6162636465666768696a6b6ce5f226de20cf29d23c5fdd42ae53a9673c22d9d40c966421e09aaa10383c\
        24c06b7b5f9155fa034885f5085f21c68bff78c1a32034f07ae1a03a57a83cb2";
}
