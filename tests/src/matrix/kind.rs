//! The kinds of host that the matrix has, and how a pair of them is expected to connect.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::nat::Nat;

/// A host, by what stands between it and the Internet. In the terms of RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A public address, and nothing in between.
    P,
    /// Endpoint-independent mapping and filtering.
    N1,
    /// Endpoint-independent mapping, address-dependent filtering.
    N2,
    /// The usual home router: endpoint-independent mapping, address and port-dependent filtering.
    N3,
    /// The same, whose own outside is open: an early packet spoils a mapping.
    N3a,
    /// Address-dependent mapping.
    N4,
    /// A mapping for each address and port, ports in sequence.
    N5,
    /// The same, any ports.
    N6,
    /// The same, ports of a block of 512.
    N7,
    /// A home router behind a carrier's NAT that hairpins.
    N8,
    /// A home router behind a carrier's NAT that does not.
    N8x,
    /// No UDP.
    N9,
    /// Nothing but TCP to port 443.
    N10,
    /// No IPv4, but NAT64 (RFC 6146).
    N11,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::P,
        Self::N1,
        Self::N2,
        Self::N3,
        Self::N3a,
        Self::N4,
        Self::N5,
        Self::N6,
        Self::N7,
        Self::N8,
        Self::N8x,
        Self::N9,
        Self::N10,
        Self::N11,
    ];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name)
    }

    /// For people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::P => "public address",
            Self::N1 => "endpoint-independent mapping and filtering",
            Self::N2 => "endpoint-independent mapping, address-dependent filtering",
            Self::N3 => {
                "home router: endpoint-independent mapping, address and port-dependent filtering"
            }
            Self::N3a => "home router whose own outside is open",
            Self::N4 => "address-dependent mapping",
            Self::N5 => "symmetric, ports in sequence",
            Self::N6 => "symmetric, any ports",
            Self::N7 => "symmetric, ports of a block of 512",
            Self::N8 => "home router behind a carrier's NAT that hairpins",
            Self::N8x => "home router behind a carrier's NAT that does not hairpin",
            Self::N9 => "no UDP",
            Self::N10 => "TCP to port 443 alone",
            Self::N11 => "IPv6 alone, and NAT64",
        }
    }

    /// What the router next to the host does.
    pub const fn nat(self) -> Option<Nat> {
        match self {
            Self::P => None,
            Self::N1 => Some(Nat::FullCone),
            Self::N2 => Some(Nat::AddressFiltered),
            Self::N3 | Self::N8 | Self::N8x => Some(Nat::Home),
            Self::N3a => Some(Nat::HomeOpen),
            Self::N4 => Some(Nat::AddressDependent),
            Self::N5 => Some(Nat::Sequential),
            Self::N6 => Some(Nat::Symmetric),
            Self::N7 => Some(Nat::Block),
            Self::N9 => Some(Nat::UdpBlocked),
            Self::N10 => Some(Nat::WebOnly),
            // IPv6 passes through a firewall, and what NAT64 makes of it is translated as at home.
            Self::N11 => Some(Nat::Home),
        }
    }

    /// The carrier's NAT before that, which both hosts of this kind share.
    pub const fn carrier(self) -> Option<Nat> {
        match self {
            Self::N8 => Some(Nat::Carrier { hairpin: true }),
            Self::N8x => Some(Nat::Carrier { hairpin: false }),
            _ => None,
        }
    }

    /// Whether its UDP passes.
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::N9 | Self::N10)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// By what way two hosts came to exchange data in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// None.
    Nothing,
    /// Through a relay.
    Relay,
    /// Straight, over TCP.
    Tcp,
    /// Straight, over UDP.
    Direct,
}

/// What is expected of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// A path without a relay, each time.
    Direct,
    /// One by many tries, in this share of all trials.
    Likely { permille: u16 },
    /// One over TCP at least, in this share of all trials.
    Tcp { permille: u16 },
    /// Data flows. A path without a relay is better than theory promises.
    Connected,
}

impl Expected {
    /// Of a pair of hosts, in whichever order.
    pub fn of(a: Kind, b: Kind) -> Self {
        use Kind::{N1, N2, N3, N3a, N4, N5, N6, N7, N8, N8x, N9, N10, N11, P};
        match (a.min(b), a.max(b)) {
            (_, N10) | (N10, _) => Self::Connected,
            (P | N1 | N2 | N3 | N3a | N8 | N8x, N9) => Self::Tcp { permille: 950 },
            (N4 | N5 | N6 | N7 | N9, N9) | (N9, N11) => Self::Connected,
            // Two behind one carrier, which does not let them meet.
            (N8x, N8x) => Self::Connected,
            (P | N1 | N2 | N3 | N3a | N8 | N8x, P | N1 | N2 | N3 | N3a | N8 | N8x) => Self::Direct,
            (P | N1 | N2, N4 | N5 | N6 | N7) => Self::Direct,
            (N3 | N3a, N4 | N6) => Self::Likely { permille: 980 },
            (N3 | N3a, N5 | N7) => Self::Likely { permille: 950 },
            (N4 | N5 | N7, N4 | N5 | N7) => Self::Likely { permille: 950 },
            (N4 | N5 | N7, N6) | (N6, N6 | N7) => Self::Connected,
            (N4 | N5 | N6 | N7, N8 | N8x) => Self::Likely { permille: 950 },
            (P | N1 | N2 | N3 | N3a | N8 | N8x, N11) | (N11, N11) => Self::Direct,
            // Ports cannot be guessed through NAT64: the other side's are another family's.
            (N4 | N5 | N6 | N7, N11) => Self::Connected,
            // No pair of which the second is less than the first.
            (N4 | N5 | N6 | N7 | N8 | N8x | N9 | N11, _) => Self::Connected,
        }
    }

    /// Whether this is as good as expected, or better.
    pub fn is_met(self, outcome: Outcome) -> bool {
        match self {
            Self::Direct | Self::Likely { .. } => outcome == Outcome::Direct,
            Self::Tcp { .. } => outcome >= Outcome::Tcp,
            Self::Connected => outcome > Outcome::Nothing,
        }
    }

    /// Share of the trials that have to be as expected, in thousandths.
    pub const fn permille(self) -> u16 {
        match self {
            Self::Direct | Self::Connected => 1000,
            Self::Likely { permille } | Self::Tcp { permille } => permille,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Likely { permille } => write!(f, "direct in {} %", f64::from(*permille) / 10.0),
            Self::Tcp { permille } => {
                write!(f, "direct over TCP in {} %", f64::from(*permille) / 10.0)
            }
            Self::Connected => f.write_str("connected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_pair_does_not_matter() {
        for (a, b) in Kind::ALL.into_iter().flat_map(|a| Kind::ALL.map(|b| (a, b))) {
            assert_eq!(Expected::of(a, b), Expected::of(b, a), "{a} and {b}");
        }
    }

    #[test]
    fn kinds_are_known_by_their_names() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(&kind.to_string()), Some(kind));
        }
        assert_eq!(Kind::named("N12"), None);
    }

    #[test]
    fn what_is_better_than_expected_counts() {
        assert!(Expected::Connected.is_met(Outcome::Direct));
        assert!(Expected::Tcp { permille: 950 }.is_met(Outcome::Direct));
        assert!(!Expected::Direct.is_met(Outcome::Tcp));
        assert!(!Expected::Connected.is_met(Outcome::Nothing));
    }
}
