//! All effects that the control plane has.

use std::net::{IpAddr, SocketAddr};

use super::bridge::NameRecord;
use super::client::ConnectionId;
use rawr_proto::BridgeName;

use crate::dataplane::{FlowKey, Leg, RateLimits};

/// What the shell does for the server, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a datagram.
    Transmit { from: Source, to: SocketAddr, bytes: Vec<u8> },
    /// Open a data port and report it to [`super::Server::port_opened`]. The relay may only take one
    /// whose index in the flow table is free.
    OpenPort { id: PortId, on: On, kind: PortKind },
    /// Close a data port. Nothing is forwarded to or from it any more.
    ClosePort { local: SocketAddr },
    /// Forward what arrives on `a` to `b`, and what arrives on `b` to `a`, within `limits` each way.
    /// Replaces what stood for either. What legs that share their port bring is forwarded by the kernel
    /// alone: what it passes up comes to the server.
    Pair { a: Leg, b: Leg, limits: RateLimits },
    /// Forward what arrives on `from` to `to`, one way. Replaces what stood for `from`; what stands for
    /// `to` stays.
    Drain { from: Leg, to: Leg, limits: RateLimits },
    /// Stop forwarding what arrives on the leg of this key. The other direction stays.
    Unpair { key: FlowKey },
    /// Connect from the TCP data port `local` to a peer, and report to
    /// [`super::Server::peer_connected`] (RFC 6062 §5.2).
    Connect { attempt: AttemptId, local: SocketAddr, to: SocketAddr },
    /// From now on, what comes in on either stream goes out on the other, as bytes (RFC 6062 §5.4). When
    /// either ends, so does the other.
    Splice { client: ConnectionId, peer: ConnectionId },
    /// Close a stream or DTLS association, of a client or of a peer.
    Close(ConnectionId),
    /// Ask the own subnets, by ARP and neighbour discovery, for hosts that have been silent. What is
    /// found is reported to [`super::Server::neighbour`].
    ProbeNeighbours,
    /// Remember a name, in place of what was remembered of it, where names are to survive a restart.
    Remember(Box<NameRecord>),
    /// Remember this name no more.
    Forget(BridgeName),
}

/// The socket that a datagram leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The STUN port, from this address of ours.
    Control(SocketAddr),
    /// The STUN port, from the address that the route to the destination chooses.
    Route,
    /// The data port with this address.
    Data(SocketAddr),
    /// The same, and the datagram must not be fragmented on its way (RFC 8656 §14).
    DataUnfragmented(SocketAddr),
    /// A client's stream or DTLS association. What it cannot take at once is dropped whole.
    Connection(ConnectionId),
}

/// What kind of data port is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// For datagrams.
    Udp(Parity),
    /// A listening socket: the relayed transport address of a TCP allocation (RFC 6062 §5.1).
    /// Connections that come in are reported to [`super::Server::peer_accepted`].
    Tcp,
}

/// What is asked of a data port's number (RFC 8656 §7.2, EVEN-PORT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parity {
    #[default]
    Any,
    Even,
    /// Even, and the next port is opened as well: a data port of its own from then on.
    EvenAndNext,
}

/// Where a data port is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On this address of ours.
    Address(IpAddr),
    /// On the address of ours that the route to this remote chooses.
    Toward(SocketAddr),
    /// On exactly this address and port: it was open before a restart.
    Exactly(SocketAddr),
}

/// Names a data port until it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub(super) u64);

/// Names a TCP connection that is being made to a peer. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId(pub u64);

/// Why no TCP connection to a peer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectError {
    #[error("the peer refused, or could not be reached in time")]
    Failed,
    #[error("there is a connection between these two addresses already")]
    Exists,
}

/// Why a data port could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PortError {
    /// All ports of the address are taken.
    #[error("no free port; add an address or widen the port range")]
    Exhausted,
    /// The address is not (or no longer) ours, or there is no route to the remote.
    #[error("no such address of this host, or no route")]
    Unreachable,
    /// The operating system refused.
    #[error("the system refused the socket (limit of open files?)")]
    System,
}
