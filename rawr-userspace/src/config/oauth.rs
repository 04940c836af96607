//! Keys of access tokens: the tables `turn.oauth_keys` (RFC 7635).

use std::ops::Range;
use std::time::Duration;

use rawr_proto::decode_base64;

use super::draft::{integer, parsed, text};
use super::reader::Table;
use super::value::{Secret, ValueError};

/// A key that is shared with an authorization server (RFC 7635 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OauthKey {
    /// Its name, which clients send as USERNAME.
    pub kid: String,
    /// In base64 or base64url.
    pub key: Secret,
    pub algorithm: OauthAlgorithm,
    /// Since 1970; without it, the key is good for ever.
    pub expires: Option<Duration>,
}

/// How tokens are sealed (RFC 7635 §4.1, §6.2): AEAD, with keys of 16 and 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OauthAlgorithm {
    A128Gcm,
    #[default]
    A256Gcm,
}

impl OauthAlgorithm {
    fn key_length(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm => 32,
        }
    }
}

impl std::str::FromStr for OauthAlgorithm {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "A128GCM" => Ok(Self::A128Gcm),
            "A256GCM" => Ok(Self::A256Gcm),
            _ => Err(ValueError::Choice(&["A128GCM", "A256GCM"])),
        }
    }
}

impl OauthKey {
    #[cfg(feature = "oauth")]
    pub(super) fn to_proto(&self) -> Option<rawr_proto::TokenKey> {
        let key = decode_base64(self.key.expose())?;
        Some(rawr_proto::TokenKey::new(&self.kid, &key)?.expiring(self.expires))
    }
}

/// The server's name in tokens; clients are told it in THIRD-PARTY-AUTHORIZATION.
pub(super) fn server_name(text: &str) -> Result<String, ValueError> {
    match text {
        "" => Err(ValueError::Because("must not be empty")),
        // RFC 7635 §6.1: the name that tokens are made for.
        name if name.len() <= 255 => Ok(name.to_owned()),
        _ => Err(ValueError::Expected("a name of at most 255 bytes")),
    }
}

pub(super) fn read_key(table: Table<'_>, span: Range<usize>) -> Option<OauthKey> {
    let kid = table.require("kid", span.clone(), |value| match text(value)? {
        "" => Err(ValueError::Because("must not be empty")),
        kid if kid.len() > 508 => Err(ValueError::Because("is longer than USERNAME may be (508)")),
        kid => Ok(kid.to_owned()),
    });
    let algorithm = table.read("algorithm", parsed::<OauthAlgorithm>).unwrap_or_default();
    let key = table.require("key", span, |value| {
        let key = text(value)?;
        match decode_base64(key).map(|bytes| bytes.len() == algorithm.key_length()) {
            Some(true) => Ok(Secret::new(key)),
            Some(false) => {
                Err(ValueError::Because("has the wrong length: A128GCM takes 16 bytes, A256GCM 32"))
            }
            None => Err(ValueError::Expected("a key in base64")),
        }
    });
    let expires = table.read("expires", |value| integer(value, 1..=u64::from(u32::MAX)));
    table.finish();
    Some(OauthKey { kid: kid?, key: key?, algorithm, expires: expires.map(Duration::from_secs) })
}
