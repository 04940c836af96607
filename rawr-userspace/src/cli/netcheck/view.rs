//! The report as `--json` writes it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rawr_nat::classify::{Evidence, FamilyReport, Report};
use rawr_nat::portmap::Protocols;
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};
use serde::Serialize;

use super::reach::{Peer, Reach, reach};

#[derive(Serialize)]
pub(super) struct View {
    servers: Vec<SocketAddr>,
    elapsed_ms: f64,
    pub(super) ipv4: Option<FamilyView>,
    pub(super) ipv6: Option<FamilyView>,
    /// Prefix and length.
    nat64: Option<String>,
    /// By which protocols the router maps ports; null where there is no gateway to ask.
    port_mapping: Option<PortMappingView>,
}

#[derive(Serialize)]
struct PortMappingView {
    pcp: bool,
    nat_pmp: bool,
    upnp_igd: bool,
}

#[derive(Serialize)]
pub(super) struct FamilyView {
    local: Option<IpAddr>,
    external: Option<IpAddr>,
    /// Null where no server answered.
    udp: Option<TransportView>,
    tcp: Option<TransportView>,
    carrier_grade_nat: bool,
    /// Null where nothing tells.
    double_nat: Option<bool>,
    routers: Vec<RouterView>,
    /// Servers by which filtering could be tested.
    discovery_servers: Vec<SocketAddr>,
    mapping_lifetime: Option<LifetimeView>,
    round_trip_ms: Option<f64>,
    pub(super) peers: Vec<PeerView>,
}

#[derive(Serialize)]
struct TransportView {
    external: IpAddr,
    mapping: &'static str,
    /// Whether mapping was compared over two addresses; it is a guess otherwise.
    mapping_measured: bool,
    filtering: Option<&'static str>,
    ports: Option<PortsView>,
    last_port: u16,
    hairpins: Option<bool>,
    answers: usize,
    odd_answers: usize,
}

#[derive(Serialize)]
#[serde(tag = "pattern", rename_all = "kebab-case")]
enum PortsView {
    Preserved,
    Sequential { step: i16 },
    Block { low: u16, high: u16 },
    Random,
}

#[derive(Serialize)]
struct RouterView {
    hops: u8,
    address: IpAddr,
}

#[derive(Serialize)]
struct LifetimeView {
    at_least_seconds: u64,
    less_than_seconds: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct PeerView {
    peer: &'static str,
    direct: bool,
    /// What makes it direct.
    by: Option<&'static str>,
    /// What keeps it from being direct.
    why: Option<String>,
    #[serde(skip)]
    pub(super) kind: Peer,
    #[serde(skip)]
    pub(super) reach: Reach,
}

impl View {
    pub(super) fn of(report: &Report, router: Option<Protocols>, servers: &[SocketAddr]) -> Self {
        Self {
            servers: servers.to_vec(),
            elapsed_ms: milliseconds(report.elapsed),
            ipv4: report.ipv4.as_ref().map(FamilyView::of),
            ipv6: report.ipv6.as_ref().map(FamilyView::of),
            nat64: report.nat64.map(|prefix| prefix.to_string()),
            port_mapping: router.map(|Protocols { pcp, nat_pmp, igd }| PortMappingView {
                pcp,
                nat_pmp,
                upnp_igd: igd,
            }),
        }
    }
}

impl FamilyView {
    fn of(report: &FamilyReport) -> Self {
        let peers = Peer::ALL.map(|kind| PeerView::of(kind, reach(report, kind)));
        Self {
            local: report.local,
            external: report.udp.or(report.tcp).map(|behaviour| behaviour.external),
            udp: report.udp.map(|udp| TransportView::of(&udp, report.udp_evidence)),
            tcp: report.tcp.map(|tcp| TransportView::of(&tcp, report.tcp_evidence)),
            carrier_grade_nat: report.carrier_grade,
            double_nat: report.double_nat,
            routers: (report.routers.iter())
                .map(|(hops, address)| RouterView { hops: *hops, address: *address })
                .collect(),
            discovery_servers: report.discovery.clone(),
            mapping_lifetime: report.mapping_lifetime.map(|lifetime| LifetimeView {
                at_least_seconds: lifetime.at_least.as_secs(),
                less_than_seconds: lifetime.less_than.map(|less_than| less_than.as_secs()),
            }),
            round_trip_ms: report.round_trip.map(milliseconds),
            peers: peers.into(),
        }
    }
}

impl TransportView {
    fn of(behaviour: &Behaviour, evidence: Evidence) -> Self {
        Self {
            external: behaviour.external,
            mapping: mapping(behaviour.mapping),
            mapping_measured: evidence.is_measured() || behaviour.mapping == Mapping::None,
            filtering: behaviour.filtering.map(filtering),
            ports: behaviour.ports.map(PortsView::of),
            last_port: behaviour.last_port,
            hairpins: behaviour.hairpins,
            answers: evidence.answers,
            odd_answers: evidence.odd,
        }
    }
}

impl PortsView {
    const fn of(ports: Ports) -> Self {
        match ports {
            Ports::Preserved => Self::Preserved,
            Ports::Sequential { step } => Self::Sequential { step },
            Ports::Block { low, high } => Self::Block { low, high },
            Ports::Random => Self::Random,
        }
    }
}

impl PeerView {
    fn of(kind: Peer, reach: Reach) -> Self {
        let (by, why) = match reach {
            Reach::Direct(how) => (Some(how.name()), None),
            Reach::Relayed(why) => (None, Some(why.to_string())),
        };
        Self { peer: kind.name(), direct: by.is_some(), by, why, kind, reach }
    }
}

const fn mapping(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::None => "none",
        Mapping::EndpointIndependent => "endpoint-independent",
        Mapping::AddressDependent => "address-dependent",
        Mapping::AddressAndPortDependent => "address-and-port-dependent",
    }
}

const fn filtering(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::EndpointIndependent => "endpoint-independent",
        Filtering::AddressDependent => "address-dependent",
        Filtering::AddressAndPortDependent => "address-and-port-dependent",
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
