//! All effects that the control plane has.

use std::net::{IpAddr, SocketAddr};

use crate::dataplane::Leg;

/// What the shell does for the server, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a datagram.
    Transmit { from: Source, to: SocketAddr, bytes: Vec<u8> },
    /// Open a data port and report it to [`super::Server::port_opened`]. The relay may only take one
    /// whose index in the flow table is free.
    OpenPort { id: PortId, on: On },
    /// Close a data port. Nothing is forwarded to or from it any more.
    ClosePort { local: SocketAddr },
    /// Forward what arrives on `a` to `b`, and what arrives on `b` to `a`. Replaces what stood for
    /// either `local`. `rate` is in bytes (of layer 3) per second, each way.
    Pair { a: Leg, b: Leg, rate: Option<u64> },
    /// Forward what arrives on `from` to `to`, one way. Replaces what stood for `from.local`; what
    /// stands for `to.local` stays.
    Drain { from: Leg, to: Leg, rate: Option<u64> },
    /// Stop forwarding what arrives here.
    Unpair { local: SocketAddr },
    /// Ask the own subnets, by ARP and neighbour discovery, for hosts that have been silent. What is
    /// found is reported to [`super::Server::neighbour`].
    ProbeNeighbours,
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
