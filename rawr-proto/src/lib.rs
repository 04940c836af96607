//! What RAWR sends over the wire: messages on top of STUN (RFC 8489), the keys of a session,
//! credentials, nonces and URIs. No sockets and no clock: time and randomness are arguments.
//!
//! ```
//! use rawr_proto::{Attributes, IntegrityKey, Message, Method, SessionSecret, TransactionId, decode};
//!
//! let key = SessionSecret::from_bytes([7; 32]).key();
//! let attributes = Attributes { session: Some(key.id()), ..Attributes::default() };
//! let probe = Message::request(Method::Probe, TransactionId([1; 12]), attributes);
//! let bytes = probe.encode(Some(&IntegrityKey::session(&key)));
//!
//! let decoded = decode(&bytes)?;
//! assert!(decoded.verify(&IntegrityKey::session(&key)));
//! assert_eq!(decoded.message, probe);
//! # Ok::<(), rawr_proto::DecodeError>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod attribute;
mod base64;
mod bridge;
mod channel;
mod credentials;
mod demux;
mod error_code;
mod hex;
mod long_term;
mod message;
mod method;
mod name;
mod nonce;
mod opaque;
mod session;
mod stream;
mod stun_attributes;
mod stun_error;
#[cfg(feature = "oauth")]
mod token;
mod uri;

pub use base64::decode as decode_base64;
pub use bridge::{
    BridgeAttributes, BridgeKey, IntroductionId, MAX_SEALED, MIN_FIRST_BRIDGE_REQUEST,
};
pub use channel::{ChannelData, ChannelNumber};
pub use credentials::{
    Credentials, ExpiryError, IntegrityKey, LongTermKey, ephemeral_password,
    ephemeral_password_sha256, ephemeral_username, expiry,
};
pub use demux::{Datagram, classify, parse_stun, peek};
pub use error_code::ErrorCode;
pub use long_term::{
    IntegrityAttribute, LongTermIntegrity, PasswordAlgorithm, PasswordKey, userhash,
};
pub use message::{
    Attributes, Class, DecodeError, Decoded, Head, LegState, Message, TransactionId, decode,
};
pub use method::Method;
pub use name::{BridgeName, NameError};
pub use nonce::{NONCE_LIFETIME, NonceError, NonceKey, SecurityFeatures};
pub use opaque::{NotOpaque, opaque_string};
pub use session::{
    CandidateKey, Mac, MacKey, MacToken, ParseHexError, Role, ServerId, SessionId, SessionKey,
    SessionSecret, WireKey,
};
pub use stream::{FrameError, MAX_STUN, messages, padded, whole};
pub use stun_attributes::{
    AccessToken, ChangeRequest, MobilityTicket, OtherAddress, Padding, ResponseOrigin,
    ResponsePort, ThirdPartyAuthorization,
};
pub use stun_error::StunError;
#[cfg(feature = "oauth")]
pub use token::{Token, TokenError, TokenKey};
pub use uri::{Host, ParseUriError, RawrUri, Transport};

/// Port of `rawr:` (STUN, TURN and RAWR share it; RFC 8489 §18.6).
pub const DEFAULT_PORT: u16 = 3478;

/// Port of `rawrs:`, over TLS or DTLS.
pub const DEFAULT_SECURE_PORT: u16 = 5349;

/// Shortest first request, in bytes of UDP payload, that a server answers with a challenge.
pub const MIN_FIRST_REQUEST: usize = 160;
