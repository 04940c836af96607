//! NAT traversal: the client of RAWR.
//!
//! [`agent::Agent`] finds the best path to another agent: over RAWR at once, then a direct one by ICE or
//! punching, and moves data there and back.
//!
//! [`Peer`] is one of a session's two peers. It finds the best way to the other one: straight where
//! they share a subnet, else over the nearest server that both reach. With the feature `tokio`
//! (default), `PeerSocket` drives one and carries an application's datagrams.
//!
//! [`Bridge`] holds a name at a server, finds the holders of others, and introduces itself to them, for
//! peers that have no secret in common yet.
//!
//! `rendezvous` (with `tokio`) maps a socket and punches it: four calls, and one message to the other side.
//!
//! [`classify`] finds out what the NATs before a host do, in the terms of RFC 4787.
//!
//! [`secure`] encrypts what goes over whichever path, between two [`Identity`]s, and makes streams of it;
//! `link` (feature `tokio`) puts all of this together: an encrypted connection with whoever holds a name.
//! [`secure`] encrypts what goes over whichever path, between two [`Identity`]s, and makes streams of it.
//! With the feature `portmap` (default), `portmap` has routers let in what comes to a port, and [`nat64`]
//! finds the way from a host without IPv4 to one without IPv6.
//!
//! The state machines are sans-IO: time, randomness and bytes come in as arguments, effects go out
//! as values. Whoever calls a `handle_…` method then drains `poll_output`, and calls
//! `handle_timeout` once `poll_timeout` has come.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
mod attachment;
mod bridge;
pub mod classify;
#[cfg(feature = "tokio")]
mod driver;
mod exchange;
mod health;
#[cfg(feature = "tokio")]
mod host;
mod identity;
#[cfg(feature = "tokio")]
pub mod link;
mod nat;
pub mod nat64;
mod path;
mod peer;
#[cfg(feature = "portmap")]
pub mod portmap;
pub mod punch;
#[cfg(feature = "tokio")]
pub mod rendezvous;
mod request;
pub mod secure;
mod socket_id;

pub use attachment::{
    Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, AttachmentState, LostReason,
    Via,
};
pub use bridge::{
    Bridge, BridgeConfig, BridgeError, BridgeEvent, BridgeOutput, Holder, MAX_MESSAGE, SealError,
    session_secret,
};
#[cfg(feature = "tokio")]
pub use bridge::{BridgeSocket, BridgeSocketConfig, StreamError, is_stream};
#[cfg(feature = "tokio")]
pub use driver::{Incoming, PeerSocket, PeerSocketConfig, Traffic, bind_udp};
pub use exchange::{Exchange, ExchangeConfig, ExchangeOutput, PeerCard};
#[cfg(feature = "tokio")]
pub use host::{Host, LinuxHost, default_gateway};
#[cfg(feature = "tokio")]
pub use identity::IdentityFileError;
pub use identity::{Identity, ParseKeyError, PublicKey, WeakKey};
pub use nat::{Behaviour, Filtering, Mapping, Ports};
pub use peer::{
    Interface, PathInfo, PathKind, Peer, PeerConfig, PeerEvent, PeerOutput, ServerConfig,
};
pub use rawr_proto::Credentials;
pub use socket_id::SocketId;
