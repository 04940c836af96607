//! Two sides that have told each other all they can, in a simulated network.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_sim::{HostId, Link, NatConfig, Network};

use super::address::{Findings, MappedSocketAddr};
use super::info::behaviour;
use super::meeting::{Meeting, MeetingConfig};
use crate::nat::{Behaviour, Filtering, Mapping, Ports};
use crate::socket_id::SocketId;

const LIMIT: Duration = Duration::from_secs(20);

fn home() -> NatConfig {
    NatConfig::home()
}

fn open_home() -> NatConfig {
    NatConfig { keeps_early: true, ..home() }
}

fn cone() -> NatConfig {
    NatConfig { filtering: rawr_sim::Filtering::EndpointIndependent, ..home() }
}

fn sequential() -> NatConfig {
    NatConfig::symmetric(rawr_sim::Ports::Sequential { step: 1 })
}

fn random() -> NatConfig {
    NatConfig::symmetric(rawr_sim::Ports::Random)
}

/// What a classification would have found.
fn classified(nat: &NatConfig, external: SocketAddr) -> Behaviour {
    let mapping = match nat.mapping {
        rawr_sim::Mapping::EndpointIndependent => Mapping::EndpointIndependent,
        rawr_sim::Mapping::AddressDependent => Mapping::AddressDependent,
        rawr_sim::Mapping::AddressAndPortDependent => Mapping::AddressAndPortDependent,
    };
    let filtering = match nat.filtering {
        rawr_sim::Filtering::EndpointIndependent => Filtering::EndpointIndependent,
        rawr_sim::Filtering::AddressDependent => Filtering::AddressDependent,
        rawr_sim::Filtering::AddressAndPortDependent => Filtering::AddressAndPortDependent,
    };
    let ports = match nat.ports {
        rawr_sim::Ports::Preserved => Ports::Preserved,
        rawr_sim::Ports::Sequential { step } => Ports::Sequential { step },
        rawr_sim::Ports::Block { low, high } => Ports::Block { low, high },
        rawr_sim::Ports::Random => Ports::Random,
    };
    Behaviour {
        external: external.ip(),
        mapping,
        filtering: Some(filtering),
        ports: Some(ports),
        last_port: external.port(),
        hairpins: Some(nat.hairpins),
    }
}

struct Side {
    host: HostId,
    endpoints: Vec<MappedSocketAddr>,
    starts: Duration,
    meeting: Option<Meeting>,
    sockets: HashMap<SocketId, SocketAddr>,
}

impl Side {
    /// Maps a socket with two servers.
    fn new(network: &mut Network, nat: NatConfig, servers: [SocketAddr; 2]) -> Self {
        let router = network.add_nat(nat, None);
        let host = network.add_host(Some(router));
        let mapped = network.bind(host);
        let mut seen = Vec::new();
        for server in servers {
            network.send(mapped, server, None, Vec::new());
            let arrival = network.step(network.now() + Duration::from_secs(1)).unwrap();
            seen.push((server, arrival.from));
        }
        let reported = [Some(classified(&nat, seen[0].1)), None];
        let endpoints =
            Findings { local: vec![mapped], seen, mapped: Vec::new(), reported }.endpoints();
        let sockets = HashMap::from([(SocketId::MAPPED, mapped)]);
        Self { host, endpoints, starts: Duration::ZERO, meeting: None, sockets }
    }

    fn start(
        &mut self,
        network: &mut Network,
        theirs: &[MappedSocketAddr],
        is_initiator: bool,
        now: Instant,
    ) {
        let nats = behaviour(&self.endpoints, false).zip(behaviour(theirs, false));
        let config = MeetingConfig {
            key: [5; 32],
            is_initiator,
            nats: nats.map(Into::into),
            their_endpoints: theirs.to_vec(),
        };
        let mut meeting = Meeting::new(config, u64::from(is_initiator), now);
        let mut opened = Vec::new();
        for number in 1..=u32::from(meeting.sockets_wanted()) {
            self.sockets.insert(SocketId(number), network.bind(self.host));
            opened.push(SocketId(number));
        }
        if !opened.is_empty() {
            meeting.handle_opened(opened);
        }
        self.meeting = Some(meeting);
    }
}

/// Whether both meet, where the second one begins so much later.
fn meets(nats: [NatConfig; 2], link: Link, later: Duration, seed: u64) -> bool {
    let mut network = Network::new(Link::default(), seed);
    let servers = [(); 2].map(|()| {
        let host = network.add_host(None);
        network.bind(host)
    });
    let mut sides = nats.map(|nat| Side::new(&mut network, nat, servers));
    let epoch = crate::driver::now();
    network.set_link(link);
    let begun = network.now();
    sides[0].starts = begun;
    sides[1].starts = begun + later;
    while network.now() < begun + LIMIT {
        let now = network.now();
        let told = [sides[0].endpoints.clone(), sides[1].endpoints.clone()];
        let mut due = begun + LIMIT;
        for (number, side) in sides.iter_mut().enumerate() {
            if side.meeting.is_none() && side.starts <= now {
                side.start(&mut network, &told[1 - number], number == 0, epoch + now);
            }
            let Some(meeting) = &mut side.meeting else {
                due = due.min(side.starts);
                continue;
            };
            if meeting.poll_timeout().is_some_and(|at| at <= epoch + now) {
                meeting.handle_timeout(epoch + now);
            }
            while let Some(sent) = meeting.poll_transmit() {
                network.send(side.sockets[&sent.socket], sent.to, sent.ttl, sent.bytes);
            }
            if let Some(at) = meeting.poll_timeout() {
                due = due.min((at - epoch).max(now + Duration::from_micros(1)));
            }
        }
        if sides.iter().all(|side| side.meeting.as_ref().is_some_and(|it| it.met().is_some())) {
            return true;
        }
        if let Some(arrival) = network.step(due) {
            let at = epoch + arrival.at;
            for side in &mut sides {
                let socket = side.sockets.iter().find(|(_, local)| **local == arrival.local);
                let (Some((socket, _)), Some(meeting)) = (socket, &mut side.meeting) else {
                    continue;
                };
                meeting.handle_datagram(at, *socket, arrival.from, &arrival.bytes);
            }
        }
    }
    false
}

#[test]
fn usual_routers_meet_also_if_one_side_is_late_or_datagrams_get_lost() {
    let lossy = Link { loss: 0.2, ..Link::default() };
    for nats in [[home(), home()], [home(), cone()], [open_home(), home()], [cone(), cone()]] {
        for seed in 0..5 {
            assert!(meets(nats, Link::default(), Duration::ZERO, seed), "{nats:?}");
            assert!(meets(nats, lossy, Duration::ZERO, seed), "{nats:?}, with loss");
        }
    }
    for seed in 0..5 {
        let late = Duration::from_secs(5);
        assert!(meets([home(), home()], Link::default(), late, seed), "{seed}");
    }
}

#[test]
fn a_router_with_open_outside_meets_if_both_begin_at_once() {
    for seed in 0..5 {
        let soon = Duration::from_millis(300);
        assert!(meets([open_home(), open_home()], Link::default(), soon, seed), "{seed}");
    }
}

#[test]
fn one_hard_side_is_found() {
    for (hard, name) in [(sequential(), "sequential"), (random(), "random")] {
        for easy in [home(), cone()] {
            for seed in 0..5 {
                let soon = Duration::from_millis(200);
                assert!(meets([easy, hard], Link::default(), soon, seed), "{name} {seed}");
                assert!(meets([hard, easy], Link::default(), soon, seed), "{name} {seed}");
            }
        }
    }
}

#[test]
fn two_sequences_meet_also_if_one_side_is_late_or_datagrams_get_lost() {
    let lossy = Link { loss: 0.05, ..Link::default() };
    let nats = [sequential(), sequential()];
    let met = |link, later: u64| {
        (0..50).filter(|seed| meets(nats, link, Duration::from_millis(later), *seed)).count()
    };
    // Each of six rounds succeeds with 63 %.
    for (link, later) in [(Link::default(), 0), (Link::default(), 3000), (lossy, 500)] {
        let met = met(link, later);
        assert!(met >= 48, "{met} of 50, {later} ms later, {link:?}");
    }
}

#[test]
fn two_random_sides_do_not_meet() {
    assert!(!meets([random(), random()], Link::default(), Duration::ZERO, 1));
}
