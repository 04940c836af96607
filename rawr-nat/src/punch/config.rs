//! What a hole punching is to do, and what it wants done.

use std::net::SocketAddr;
use std::time::Duration;

use crate::nat::Behaviour;
use crate::punch::plan::Hopeless;
use crate::socket_id::SocketId;

/// What a [`UdpPunch`](super::UdpPunch) is to do.
#[derive(Clone, Debug)]
pub struct PunchConfig {
    /// What the two sides share: authenticates probes.
    pub key: [u8; 32],
    /// One side is; the other is not. It picks the path.
    pub is_initiator: bool,
    /// What our NATs do.
    pub ours: Behaviour,
    /// What the other side's NATs do.
    pub theirs: Behaviour,
    /// External endpoints of [`SocketId::MAPPED`]; the other side is told them.
    pub our_external: Vec<SocketAddr>,
    /// External endpoints of the other side's mapped socket, as far as known.
    pub their_endpoints: Vec<SocketAddr>,
    /// Probes that may be sent in search of a path. Answers to the other side's are not counted:
    /// there are no more of them than of those.
    pub budget: u32,
    /// Times and rates.
    pub tuning: Tuning,
}

/// Times and rates of hole punching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Probes a second, at most.
    pub rate: u32,
    /// Hop limit (TTL) of the datagrams that open the own NATs before a straight attempt, so that
    /// they do not come to the other side's before it is open; `None` for none of them. Two pass a
    /// home router, and end at the next one.
    pub opening_ttl: Option<u8>,
    /// The longest pause after the last probe of a round before the next round begins.
    pub settle: Duration,
    /// The longest that all of it may take.
    pub deadline: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            rate: 1000,
            opening_ttl: Some(2),
            settle: Duration::from_millis(500),
            deadline: Duration::from_secs(15),
        }
    }
}

/// What a [`UdpPunch`](super::UdpPunch) wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PunchOutput {
    /// Open so many sockets on any local ports, and hand their names to
    /// [`handle_opened`](super::UdpPunch::handle_opened).
    Open {
        /// How many.
        count: u16,
    },
    /// Send a datagram.
    Transmit {
        /// The socket.
        socket: SocketId,
        /// The destination.
        to: SocketAddr,
        /// Hop limit (TTL) of this datagram; `None` for the usual one.
        ttl: Option<u8>,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Close a socket.
    Close(SocketId),
    /// Hand this to the other side's [`handle_message`](super::UdpPunch::handle_message) by
    /// whatever path there is. It is neither sealed nor authenticated here: the path must do that.
    /// Loss, repetition and disorder do no harm.
    Message(Vec<u8>),
    /// Ask a STUN server from this very socket (RFC 8489, Binding), and hand the answer to
    /// [`handle_sample`](super::UdpPunch::handle_sample). Said again where no answer came.
    Learn {
        /// The socket.
        socket: SocketId,
    },
    /// There is a path, and the other side uses the same. Datagrams are still to be handed over for
    /// some seconds: the other side may have to be told again. Said once more if the initiator
    /// changed its mind because the path had died.
    Punched {
        /// Our end.
        socket: SocketId,
        /// Their end, as we see it.
        remote: SocketAddr,
        /// Round-trip time of a probe.
        rtt: Duration,
    },
    /// The end: there is no path.
    Failed(Reason),
}

/// Why a hole punching failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It was not tried.
    #[error("no direct path is possible: {0}")]
    Hopeless(#[from] Hopeless),
    /// All rounds were in vain.
    #[error("all rounds of probes were in vain")]
    Exhausted,
    /// [`Tuning::deadline`] is over.
    #[error("no path was found in time")]
    TimedOut,
    /// The other side has sent no message.
    #[error("the other side has not taken part")]
    Silent,
    /// The other side has failed.
    #[error("the other side has given up")]
    GivenUp,
    /// No socket could be opened.
    #[error("no socket could be opened")]
    NoSockets,
    /// No STUN server told the port of a fresh socket.
    #[error("no STUN server answered to a fresh socket")]
    NoSample,
}
