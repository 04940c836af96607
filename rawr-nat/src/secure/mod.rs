//! End-to-end encryption and authentication, over whichever path datagrams take.
//!
//! A [`Session`] is made by two [`Identity`](crate::Identity)s with the handshake IK of the Noise
//! protocol (`Noise_IK_25519_ChaChaPoly_SHA256`, revision 34): one message each way, after which each
//! side knows that the other one has the private key of its public key, and no later loss of those
//! keys opens what was sent. It knows no addresses, so it lasts while paths come and go. Each datagram
//! is sealed by itself and carries its counter: [`OVERHEAD`] bytes. Datagrams come at most once, in
//! any order, or not at all.
//!
//! [`Streams`] makes reliable streams of bytes of such datagrams, and [`Tunnel`] puts the two together:
//! streams and single datagrams side by side in one session. With the feature `tokio`, [`Connection`]
//! drives a tunnel over anything that sends and receives [`Datagrams`].

mod config;
#[cfg(feature = "tokio")]
mod connection;
mod keys;
mod noise;
mod replay;
mod session;
mod streams;
mod tunnel;
mod wire;

pub use config::{
    Dropped, Rekeying, SealError, SessionConfig, SessionError, SessionEvent, SessionOutput,
};
#[cfg(feature = "tokio")]
pub use connection::{Connection, Datagrams, SecureStream};
pub use session::{MAX_PAYLOAD, Session};
pub use streams::{OpenError, StreamError, StreamEvent, StreamId, Streams, StreamsConfig};
pub use tunnel::{Tunnel, TunnelEvent};
pub use wire::OVERHEAD;
