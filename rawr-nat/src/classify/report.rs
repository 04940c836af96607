//! What a classification has found.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::nat::Behaviour;
use crate::nat64::Prefix;

/// What is known of the NATs and firewalls between a host and the Internet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `None` if the host or the servers have no IPv4 address.
    pub ipv4: Option<FamilyReport>,
    /// `None` if the host or the servers have no IPv6 address.
    pub ipv6: Option<FamilyReport>,
    /// The prefix by which IPv4 hosts are reached over IPv6. The classifier does not look for it; who
    /// does ([`nat64::discover`](crate::nat64)) puts it here.
    pub nat64: Option<Prefix>,
    /// What the report took, without the test of lifetimes.
    pub elapsed: Duration,
}

/// The same for one family of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyReport {
    /// `None` if no server answered over UDP.
    pub udp: Option<Behaviour>,
    /// What the verdict on UDP rests on.
    pub udp_evidence: Evidence,
    /// `None` if no server answered over TCP. Filtering and hairpinning of TCP are not tested.
    pub tcp: Option<Behaviour>,
    /// What the verdict on TCP rests on.
    pub tcp_evidence: Evidence,
    /// The own address that the servers were asked from.
    pub local: Option<IpAddr>,
    /// Routers that told their addresses, by how many hops they are away.
    pub routers: Vec<(u8, IpAddr)>,
    /// Whether a carrier's NAT shares the external address among subscribers: addresses of
    /// 100.64.0.0/10 (RFC 6598) are in use on this side of it.
    pub carrier_grade: bool,
    /// Whether more than one NAT stands in the way; `None` where nothing tells.
    pub double_nat: Option<bool>,
    /// Servers with other addresses (RFC 5780), without which filtering is unknown.
    pub discovery: Vec<SocketAddr>,
    /// Over UDP, if it was asked for and a server could help.
    pub mapping_lifetime: Option<Lifetime>,
    /// The least time to a server and back, over UDP where it works.
    pub round_trip: Option<Duration>,
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// IP addresses of servers that answered. With one, mapping is a guess: endpoint-independent
    /// where the NAT keeps ports, which such NATs mostly do, else dependent on address and port.
    pub addresses: usize,
    /// Answers.
    pub answers: usize,
    /// Answers that contradict the verdict.
    pub odd: usize,
}

impl Evidence {
    /// Whether mapping was measured, and not guessed.
    pub const fn is_measured(&self) -> bool {
        self.addresses > 1
    }
}

/// How long a mapping is kept without traffic (RFC 4787 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The longest silence after which it was still there; zero if there was none.
    pub at_least: Duration,
    /// The shortest after which it was gone; `None` if there was none.
    pub less_than: Option<Duration>,
}
