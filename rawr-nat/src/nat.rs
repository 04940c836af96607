//! What a NAT does to the sockets behind it, in the terms of RFC 4787.

use std::net::IpAddr;

/// How a NAT chooses the external endpoint of a socket (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// There is no NAT: the external endpoint is the socket's own.
    None,
    /// One external endpoint, whatever the destination.
    EndpointIndependent,
    /// One for each destination address.
    AddressDependent,
    /// One for each destination address and port: "symmetric".
    AddressAndPortDependent,
}

/// Whose datagrams a NAT or firewall lets in to a mapped socket (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those of addresses that the socket has sent to.
    AddressDependent,
    /// Those of addresses and ports that the socket has sent to.
    AddressAndPortDependent,
}

/// How the ports of new mappings follow from each other (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// The socket's own port.
    Preserved,
    /// The last one's plus `step`; others behind the same NAT may have taken some in between.
    Sequential {
        /// From one mapping to the next.
        step: i16,
    },
    /// Any within these bounds, both included: the block that a carrier gives to a subscriber.
    Block {
        /// The lowest.
        low: u16,
        /// The highest.
        high: u16,
    },
    /// Any.
    Random,
}

/// What is known of the NATs between a host and the others, for one family and one transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Behaviour {
    /// The address that others see.
    pub external: IpAddr,
    /// How external endpoints are chosen.
    pub mapping: Mapping,
    /// Who is let in; `None` where no server could tell.
    pub filtering: Option<Filtering>,
    /// How ports of new mappings are chosen; `None` where there were too few of them to tell.
    pub ports: Option<Ports>,
    /// The external port that was seen last: where a sequence goes on from.
    pub last_port: u16,
    /// Whether two sockets behind the NAT reach each other by their external endpoints.
    pub hairpins: Option<bool>,
}

impl Behaviour {
    /// Whether a socket has one external endpoint that all peers can be told.
    pub const fn is_easy(&self) -> bool {
        matches!(self.mapping, Mapping::None | Mapping::EndpointIndependent)
    }
}
