//! Kinds of hosts, and an oracle that says which of them must reach each other.

use std::net::SocketAddr;
use std::time::Duration;

use rawr_nat::{Behaviour, Filtering, Mapping, Ports};
use rawr_sim as sim;
use rawr_sim::NatConfig;

/// What stands between a host and the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Nothing.
    Public,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    Home,
    /// The same, and an early datagram spoils the mapping.
    OpenHome,
    /// A home router behind a carrier's full cone.
    Carrier,
    /// Address-dependent mapping within 256 ports.
    ByAddress,
    /// Address-dependent mapping and filtering, ports at random.
    ByAddressWide,
    /// Symmetric, the next port in sequence, others behind it.
    Sequential,
    /// Symmetric, within 512 ports.
    Block,
    /// Symmetric, any port.
    Random,
    /// The same, and an early datagram makes it choose another one.
    OpenRandom,
}

pub(crate) const KINDS: [Kind; 12] = [
    Kind::Public,
    Kind::FullCone,
    Kind::Restricted,
    Kind::Home,
    Kind::OpenHome,
    Kind::Carrier,
    Kind::ByAddress,
    Kind::ByAddressWide,
    Kind::Sequential,
    Kind::Block,
    Kind::Random,
    Kind::OpenRandom,
];

impl Kind {
    pub(crate) fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| format!("{kind:?}") == name)
    }

    /// Routers, the host's own first.
    pub(crate) fn nats(self) -> Vec<NatConfig> {
        let home = NatConfig::home();
        let full_cone =
            NatConfig { filtering: sim::Filtering::EndpointIndependent, hairpins: true, ..home };
        let by_address = |filtering, ports| NatConfig {
            mapping: sim::Mapping::AddressDependent,
            filtering,
            ports,
            ..home
        };
        let random = NatConfig::symmetric(sim::Ports::Random);
        match self {
            Self::Public => vec![],
            Self::FullCone => vec![full_cone],
            Self::Restricted => {
                vec![NatConfig { filtering: sim::Filtering::AddressDependent, ..home }]
            }
            Self::Home => vec![home],
            Self::OpenHome => vec![NatConfig { keeps_early: true, ..home }],
            Self::Carrier => vec![home, NatConfig { ports: sim::Ports::Random, ..full_cone }],
            Self::ByAddress => vec![by_address(
                sim::Filtering::AddressAndPortDependent,
                sim::Ports::Block { low: 41_000, high: 41_255 },
            )],
            Self::ByAddressWide => {
                vec![by_address(sim::Filtering::AddressDependent, sim::Ports::Random)]
            }
            Self::Sequential => {
                let ports = sim::Ports::Sequential { step: 1 };
                vec![NatConfig { foreign_flows: 20.0, ..NatConfig::symmetric(ports) }]
            }
            Self::Block => {
                vec![NatConfig::symmetric(sim::Ports::Block { low: 20_000, high: 20_511 })]
            }
            Self::Random => vec![random],
            Self::OpenRandom => vec![NatConfig { keeps_early: true, ..random }],
        }
    }

    /// What a perfect classification says.
    pub(crate) fn behaviour(self, external: SocketAddr, hairpins: Option<bool>) -> Behaviour {
        let (mapping, filtering, ports) = match self {
            Self::Public => (Mapping::None, Filtering::EndpointIndependent, Ports::Preserved),
            Self::FullCone => {
                (Mapping::EndpointIndependent, Filtering::EndpointIndependent, Ports::Preserved)
            }
            Self::Restricted => {
                (Mapping::EndpointIndependent, Filtering::AddressDependent, Ports::Preserved)
            }
            Self::Home | Self::OpenHome => {
                (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Preserved)
            }
            Self::Carrier => {
                (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Random)
            }
            Self::ByAddress => (
                Mapping::AddressDependent,
                Filtering::AddressAndPortDependent,
                Ports::Block { low: 41_000, high: 41_255 },
            ),
            Self::ByAddressWide => {
                (Mapping::AddressDependent, Filtering::AddressDependent, Ports::Random)
            }
            Self::Sequential => symmetric(Ports::Sequential { step: 1 }),
            Self::Block => symmetric(Ports::Block { low: 20_000, high: 20_511 }),
            Self::Random | Self::OpenRandom => symmetric(Ports::Random),
        };
        Behaviour {
            external: external.ip(),
            mapping,
            filtering: Some(filtering),
            ports: Some(ports),
            last_port: external.port(),
            hairpins,
        }
    }
}

fn symmetric(ports: Ports) -> (Mapping, Filtering, Ports) {
    (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, ports)
}

/// Datagrams that a side may send.
const FLOWS: f64 = 2048.0;
/// Sockets that it may open.
const SOCKETS: f64 = 256.0;

/// The chance of a direct path between two kinds if each side may send 2,048 datagrams. Computed
/// from what the routers do, and not from the plan.
pub(crate) fn oracle(a: Kind, b: Kind) -> f64 {
    // Half of them pass a router that takes no port that a datagram has come to.
    let is_open = [a, b].contains(&Kind::OpenRandom);
    let flows = if is_open { FLOWS / 2.0 } else { FLOWS };
    let (a, b) = (Outside::of(a), Outside::of(b));
    // The mean count of flows that meet.
    let meeting = match (a.ports, b.ports) {
        (None, None) => f64::INFINITY,
        (None, Some(_)) if a.is_wide => f64::INFINITY,
        (Some(_), None) if b.is_wide => f64::INFINITY,
        (None, Some(next)) | (Some(next), None) => SOCKETS * flows / next.count(),
        (Some(next), Some(_)) if a.is_wide => SOCKETS * flows / next.count(),
        (Some(_), Some(next)) if b.is_wide => SOCKETS * flows / next.count(),
        // One round's sweeps meet once on average, and there are flows for many.
        (Some(Next::Sequence), Some(Next::Sequence)) => 6.0,
        (Some(Next::Sequence), Some(Next::Within(count)))
        | (Some(Next::Within(count)), Some(Next::Sequence)) => FLOWS / count,
        (Some(Next::Within(a)), Some(Next::Within(b))) => FLOWS * FLOWS / (a * b),
    };
    1.0 - (-meeting).exp()
}

/// What the others see of a kind.
struct Outside {
    /// Where the next mapping will be, if it depends on the destination.
    ports: Option<Next>,
    /// Any port of an address that the host has sent to is let in, by a mapping for all of them.
    is_wide: bool,
}

#[derive(Clone, Copy)]
enum Next {
    Sequence,
    Within(f64),
}

impl Next {
    fn count(self) -> f64 {
        match self {
            Self::Sequence => 48.0,
            Self::Within(count) => count,
        }
    }
}

impl Outside {
    fn of(kind: Kind) -> Self {
        let nats = kind.nats();
        let is_by_port = |nat: &NatConfig| nat.filtering == sim::Filtering::AddressAndPortDependent;
        let hard = nats.iter().find(|nat| nat.mapping != sim::Mapping::EndpointIndependent);
        let is_exact = nats.iter().any(|nat| nat.mapping == sim::Mapping::AddressAndPortDependent);
        let ports = hard.map(|nat| match nat.ports {
            sim::Ports::Sequential { .. } => Next::Sequence,
            sim::Ports::Block { low, high } => Next::Within(f64::from(high - low) + 1.0),
            sim::Ports::Preserved | sim::Ports::Random => Next::Within(64_512.0),
        });
        Self { ports, is_wide: !nats.iter().any(is_by_port) && !is_exact }
    }
}

/// The simulation's time is a duration.
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
