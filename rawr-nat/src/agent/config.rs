//! What an agent is told from outside, and what it wants done.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rawr_proto::ErrorCode;

use crate::attachment::Via;
use crate::nat::Behaviour;
use crate::nat64::Prefix;
use crate::peer::{PathKind, PeerConfig};
use crate::punch::{Reason, Tuning};
use crate::socket_id::SocketId;

/// What an [`super::Agent`] is to do.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The session, and the path over RAWR that is there first. Without a root and gateways there is none.
    /// Role A decides which path both take.
    pub rawr: PeerConfig,
    /// Sockets for paths without RAWR. [`SocketId::MAPPED`] is punched from, and others are opened on its
    /// address: an IPv4 one where there is any.
    pub sockets: Vec<LocalSocket>,
    /// Where own external addresses are asked for.
    pub stun_servers: Vec<SocketAddr>,
    /// How the agents tell each other their candidates.
    pub signalling: Signalling,
    /// Reaches the other agent's IPv4 addresses from IPv6-only hosts.
    pub nat64: Option<Prefix>,
    /// How a path is punched where ICE alone finds none; `None` if not at all.
    pub punching: Option<Tuning>,
    /// What own NATs do to UDP over IPv4, if that is known; see also [`super::Agent::set_behaviour`].
    pub behaviour: Option<Behaviour>,
    /// Probes that may be sent each time that a path is punched.
    pub probe_budget: u32,
}

/// A UDP socket of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSocket {
    /// Its name.
    pub id: SocketId,
    /// The address that it is bound to: no unspecified one.
    pub address: SocketAddr,
}

/// How two agents tell each other their candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Signalling {
    /// Over the path that data takes, which begins as one over RAWR.
    #[default]
    InBand,
    /// By the application: what [`AgentOutput::Signal`] has goes to the other agent's
    /// [`super::Agent::handle_signal`]. It is sealed; it may be lost, repeated, and arrive in any order.
    Application,
}

/// A socket of an agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentSocket {
    /// One of the two that the path over RAWR has.
    Rawr(Via),
    /// One for paths without RAWR.
    Own(SocketId),
}

/// Where the next datagram of data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Out of this socket.
    pub socket: AgentSocket,
    /// To this address.
    pub to: SocketAddr,
    /// With this byte before it.
    pub frame: u8,
}

/// What an [`super::Agent`] wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentOutput {
    /// Send a datagram.
    Transmit {
        /// Out of this socket.
        socket: AgentSocket,
        /// The destination.
        to: SocketAddr,
        /// Time to live, or hop limit, of this datagram alone; `None` for the usual one.
        ttl: Option<u8>,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// The other agent's data, which had been held back to keep it in order.
    Data(Vec<u8>),
    /// Open so many sockets on the address of [`SocketId::MAPPED`], each on any port, and call
    /// [`super::Agent::handle_opened`]; with fewer, if there are no more to be had.
    Open(u16),
    /// Close one of those.
    Close(SocketId),
    /// Give this to the other agent ([`Signalling::Application`]).
    Signal(Vec<u8>),
    /// Look this address up in the neighbour table, and call [`super::Agent::handle_neighbour`].
    LookUp(IpAddr),
    /// Something happened.
    Event(AgentEvent),
}

/// What happened to an [`super::Agent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// Data can flow for the first time.
    Ready {
        /// The path it takes.
        path: AgentPath,
        /// Since the agent was made.
        after: Duration,
    },
    /// Data takes another path from now on.
    PathChanged {
        /// The one it took; `None` where there was none for a while.
        from: Option<AgentPath>,
        /// The one it takes.
        to: AgentPath,
    },
    /// No path is left, for now.
    PathLost(AgentPath),
    /// A server on the way over RAWR does not want us.
    Refused {
        /// Its STUN port.
        server: SocketAddr,
        /// What it said.
        error: ErrorCode,
    },
    /// Punching has ended without a path.
    NotPunched {
        /// Why.
        reason: Reason,
        /// Probes spent on it.
        probes: u32,
    },
    /// Everything has been released.
    Closed,
}

/// A path that data takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentPath {
    /// What it leads through.
    pub kind: AgentPathKind,
    /// Where data is sent to.
    pub remote: SocketAddr,
    /// Round trip time to the other agent, smoothed; zero where it is not known yet.
    pub rtt: Duration,
}

/// What a path leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentPathKind {
    /// Nothing that translates: to an address that the other agent has itself.
    Host,
    /// The other agent's NAT.
    Reflexive,
    /// NATs that had to be punched.
    Punched,
    /// RAWR.
    Rawr(PathKind),
}

impl AgentPathKind {
    /// The name in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Reflexive => "reflexive",
            Self::Punched => "punched",
            Self::Rawr(kind) => kind.as_str(),
        }
    }

    /// Whether no relay is on it.
    pub const fn is_direct(self) -> bool {
        match self {
            Self::Host | Self::Reflexive | Self::Punched | Self::Rawr(PathKind::Direct) => true,
            Self::Rawr(PathKind::Gateway | PathKind::Offered | PathKind::Root) => false,
        }
    }
}
