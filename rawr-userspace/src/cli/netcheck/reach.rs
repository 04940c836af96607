//! Which peers a host reaches directly, and why not the others.

use std::fmt;

use rawr_nat::classify::FamilyReport;
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};

/// What stands before a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Public,
    Home,
    ByAddress,
    Sequential,
    Block,
    Random,
    NoUdp,
}

/// How traffic to such a peer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Direct(How),
    Relayed(Why),
}

/// What makes a direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Both write to where the other one is known to be.
    Straight,
    /// The port that a NAT will give next is known.
    Prediction,
    /// Many ports are tried at once (birthday paradox).
    ManyPorts,
    /// Many ports of a known range are tried at once.
    KnownRange,
    /// Over TCP.
    Tcp,
}

/// What keeps from a direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Neither side's port can be foreseen.
    BothUnforeseen,
    /// One side has no UDP, the other a port over TCP that cannot be foreseen.
    NoUdpAndHard,
    /// Neither side has UDP, and neither takes connections.
    NoUdpOnBothSides,
    /// Nothing gets out.
    Offline,
}

/// What stands before this host: as much of it as decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// Whoever knows the endpoint gets in, or whoever's address we have written to.
    Open,
    Easy,
    ByAddress,
    Sequential,
    Block,
    Random,
    /// No UDP; whether TCP ports can be told to peers.
    NoUdp {
        easy: bool,
    },
    Offline,
}

impl Peer {
    pub(super) const ALL: [Self; 7] = [
        Self::Public,
        Self::Home,
        Self::ByAddress,
        Self::Sequential,
        Self::Block,
        Self::Random,
        Self::NoUdp,
    ];

    /// In JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Home => "home",
            Self::ByAddress => "address-dependent",
            Self::Sequential => "symmetric-sequential",
            Self::Block => "symmetric-block",
            Self::Random => "symmetric-random",
            Self::NoUdp => "udp-blocked",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "with a public address",
            Self::Home => "behind a usual home router",
            Self::ByAddress => "behind a NAT with a port for each address",
            Self::Sequential => "behind a symmetric NAT, ports in sequence",
            Self::Block => "behind a symmetric NAT, ports of a block",
            Self::Random => "behind a symmetric NAT, any ports",
            Self::NoUdp => "where UDP is blocked",
        })
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Straight => "direct",
            Self::Prediction => "direct, ports predicted",
            Self::ManyPorts => "direct, many ports tried",
            Self::KnownRange => "direct, a block of ports tried",
            Self::Tcp => "direct over TCP",
        })
    }
}

impl How {
    /// In JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::Prediction => "prediction",
            Self::ManyPorts => "many-ports",
            Self::KnownRange => "known-range",
            Self::Tcp => "tcp",
        }
    }
}

impl Why {
    /// In a table.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::BothUnforeseen => "relayed: both ports unknown",
            Self::NoUdpAndHard => "relayed: one has no UDP",
            Self::NoUdpOnBothSides => "relayed: neither has UDP",
            Self::Offline => "not at all",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BothUnforeseen => {
                "both NATs choose a new port for each destination, and neither's can be foreseen: to meet by \
                 chance would take tens of thousands of ports on each side"
            }
            Self::NoUdpAndHard => {
                "without UDP only TCP is left, and one of the NATs chooses a new TCP port for each \
                 destination"
            }
            Self::NoUdpOnBothSides => {
                "without UDP on both sides they have to connect to each other over TCP at the same \
                 time, which firewalls that block UDP mostly do not let happen"
            }
            Self::Offline => "no server answered over this family",
        })
    }
}

/// How traffic from the host of this report to such a peer goes.
pub(super) fn reach(report: &FamilyReport, peer: Peer) -> Reach {
    use How::{KnownRange, ManyPorts, Prediction, Straight, Tcp};
    use Reach::{Direct, Relayed};
    match (own(report), peer) {
        (Own::Offline, _) => Relayed(Why::Offline),
        (Own::Open | Own::Easy, Peer::NoUdp) => Direct(Tcp),
        (Own::NoUdp { .. }, Peer::Public) => Direct(Tcp),
        (Own::NoUdp { easy: true }, Peer::Home) => Direct(Tcp),
        (Own::NoUdp { .. }, Peer::NoUdp) => Relayed(Why::NoUdpOnBothSides),
        (Own::NoUdp { .. }, _) => Relayed(Why::NoUdpAndHard),
        (Own::ByAddress | Own::Sequential | Own::Block | Own::Random, Peer::NoUdp) => {
            Relayed(Why::NoUdpAndHard)
        }
        (_, Peer::Public) | (Own::Open, _) | (Own::Easy, Peer::Home) => Direct(Straight),
        (Own::Easy | Own::ByAddress, Peer::Sequential)
        | (Own::Sequential, Peer::Home | Peer::ByAddress | Peer::Sequential) => Direct(Prediction),
        (Own::Easy, Peer::ByAddress | Peer::Random)
        | (Own::ByAddress | Own::Random, Peer::Home) => Direct(ManyPorts),
        (Own::ByAddress, Peer::ByAddress) => Direct(ManyPorts),
        (Own::Easy | Own::ByAddress | Own::Block, Peer::Block)
        | (Own::Block, Peer::Home | Peer::ByAddress) => Direct(KnownRange),
        (Own::Sequential, Peer::Block | Peer::Random)
        | (Own::Block, Peer::Sequential | Peer::Random)
        | (Own::ByAddress, Peer::Random)
        | (Own::Random, Peer::ByAddress | Peer::Sequential | Peer::Block | Peer::Random) => {
            Relayed(Why::BothUnforeseen)
        }
    }
}

fn own(report: &FamilyReport) -> Own {
    match (&report.udp, &report.tcp) {
        (Some(udp), _) => own_udp(udp),
        (None, Some(tcp)) => Own::NoUdp { easy: tcp.is_easy() },
        (None, None) => Own::Offline,
    }
}

fn own_udp(udp: &Behaviour) -> Own {
    match (udp.mapping, udp.filtering, udp.ports) {
        (
            Mapping::None | Mapping::EndpointIndependent,
            Some(Filtering::EndpointIndependent | Filtering::AddressDependent),
            _,
        ) => Own::Open,
        (Mapping::None | Mapping::EndpointIndependent, _, _) => Own::Easy,
        (Mapping::AddressDependent, _, _) => Own::ByAddress,
        (Mapping::AddressAndPortDependent, _, Some(Ports::Sequential { .. })) => Own::Sequential,
        (Mapping::AddressAndPortDependent, _, Some(Ports::Block { .. })) => Own::Block,
        (Mapping::AddressAndPortDependent, _, Some(Ports::Preserved | Ports::Random) | None) => {
            Own::Random
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(mapping: Mapping, filtering: Filtering, ports: Ports) -> FamilyReport {
        let udp = Behaviour {
            external: [203, 0, 113, 11].into(),
            mapping,
            filtering: Some(filtering),
            ports: Some(ports),
            last_port: 40_000,
            hairpins: None,
        };
        FamilyReport { udp: Some(udp), ..FamilyReport::default() }
    }

    /// What a host that is like each of the peers reaches.
    fn reaches(report: &FamilyReport) -> [Reach; 7] {
        Peer::ALL.map(|peer| reach(report, peer))
    }

    #[test]
    fn who_meets_is_the_same_from_both_sides() {
        let closed = Filtering::AddressAndPortDependent;
        let hard = Mapping::AddressAndPortDependent;
        let hosts = [
            (Peer::Public, report(Mapping::None, Filtering::EndpointIndependent, Ports::Preserved)),
            (Peer::Home, report(Mapping::EndpointIndependent, closed, Ports::Preserved)),
            (Peer::ByAddress, report(Mapping::AddressDependent, closed, Ports::Random)),
            (Peer::Sequential, report(hard, closed, Ports::Sequential { step: 1 })),
            (Peer::Block, report(hard, closed, Ports::Block { low: 20_000, high: 20_511 })),
            (Peer::Random, report(hard, closed, Ports::Random)),
        ];
        for (kind, host) in &hosts {
            for (other_kind, other) in &hosts {
                assert_eq!(
                    reach(host, *other_kind),
                    reach(other, *kind),
                    "{kind:?} {other_kind:?}"
                );
            }
        }
    }

    #[test]
    fn a_home_router_meets_everybody() {
        let closed = Filtering::AddressAndPortDependent;
        let home = report(Mapping::EndpointIndependent, closed, Ports::Preserved);
        assert!(reaches(&home).iter().all(|reach| matches!(reach, Reach::Direct(_))));
        let open =
            report(Mapping::EndpointIndependent, Filtering::AddressDependent, Ports::Preserved);
        assert_eq!(reach(&open, Peer::Random), Reach::Direct(How::Straight));
    }

    #[test]
    fn without_udp_there_is_tcp() {
        let tcp = |mapping| FamilyReport {
            tcp: report(mapping, Filtering::EndpointIndependent, Ports::Random).udp,
            ..FamilyReport::default()
        };
        let easy = tcp(Mapping::EndpointIndependent);
        assert_eq!(reach(&easy, Peer::Home), Reach::Direct(How::Tcp));
        assert_eq!(reach(&easy, Peer::NoUdp), Reach::Relayed(Why::NoUdpOnBothSides));
        let hard = tcp(Mapping::AddressAndPortDependent);
        assert_eq!(reach(&hard, Peer::Public), Reach::Direct(How::Tcp));
        assert_eq!(reach(&hard, Peer::Home), Reach::Relayed(Why::NoUdpAndHard));
        let offline = reaches(&FamilyReport::default());
        assert!(offline.iter().all(|reach| *reach == Reach::Relayed(Why::Offline)));
    }
}
