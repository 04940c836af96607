//! What can go wrong, and what went wrong without doing harm.

use std::io;
use std::net::SocketAddr;

use crate::identity::WeakKey;
use crate::punch::Hopeless;

/// What did not work while a socket was mapped that is mapped nevertheless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapWarning {
    /// No external server is known for sockets of this kind, so none has told an external endpoint.
    #[error(
        "no server to ask for external endpoints: hosts outside can use none but those that a \
         router maps; MappingContext::add_servers takes servers"
    )]
    NoServers,
    /// A server has not answered.
    #[error(
        "the server {0} has not answered; is it the right address, and does a firewall block it?"
    )]
    NoAnswer(SocketAddr),
    /// A server could not be asked, or has answered what is of no use.
    #[error("the server {server} was of no use: {why}")]
    Useless {
        /// Which.
        server: SocketAddr,
        /// What it was.
        why: String,
    },
    /// A router has mapped no port.
    #[error("{gateway} has mapped no port: {why}")]
    NotMapped {
        /// The router, as it calls itself.
        gateway: String,
        /// What it was.
        why: String,
    },
    /// A router has mapped a port, but another NAT stands behind it.
    #[error(
        "a router has mapped {0}, but another NAT stands before the Internet: only hosts in between reach that"
    )]
    DoubleNat(SocketAddr),
    /// The NATs could not be classified. Hole punching makes do with less.
    #[error("the NATs could not be classified: {0}")]
    Unclassified(String),
}

/// Something that worked, with what did not work beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warned<T> {
    /// What worked.
    pub value: T,
    /// What did not, and did not have to.
    pub warnings: Vec<MapWarning>,
}

impl<T> Warned<T> {
    /// Writes the warnings to the log, and forgets them.
    pub(super) fn logged(self) -> T {
        for warning in &self.warnings {
            log::warn!("{warning}");
        }
        self.value
    }
}

/// Why there is no path to the other side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PunchError {
    /// The information that was handed over is our own.
    #[error("this is our own rendezvous information; the other side's is needed")]
    OwnInfo,
    /// There is no secret to be had with the other side's key.
    #[error(transparent)]
    WeakKey(#[from] WeakKey),
    /// The other side has told no endpoint that this socket can send to.
    #[error(
        "the other side has told no endpoint that a socket on {local} can send to; do both have the \
         same family of addresses?"
    )]
    NoEndpoints {
        /// Our socket.
        local: SocketAddr,
    },
    /// Nothing has come of it in time.
    #[error(
        "no path to the other side within the time, by {endpoints} endpoints{}; both sides must punch at \
         the same time, and a relay is the way where their NATs do not let them",
        .hopeless.map(|why| format!(" ({why})")).unwrap_or_default()
    )]
    TimedOut {
        /// How many were tried.
        endpoints: usize,
        /// Why more than sending to known endpoints was not tried, if so.
        hopeless: Option<Hopeless>,
    },
    /// A socket has failed.
    #[error("{what}: {source}")]
    Socket {
        /// What was to be done with it.
        what: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
}
