//! Two peers and their servers, over virtual time, while data flows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::{Datagram, FakeServer};
use rawr_nat::{Interface, PathKind, Peer, PeerConfig, PeerEvent, PeerOutput, Via};
use rawr_proto::{
    Attributes, IntegrityKey, LegState, Mac, Message, Method, Role, SessionSecret, TransactionId,
    decode,
};

const LATENCY: Duration = Duration::from_millis(2);
const GATEWAY: &str = "192.0.2.1:3478";
const ROOT: &str = "192.0.2.99:3478";

/// One peer's host.
struct Host {
    peer: Peer,
    control: SocketAddr,
    data: SocketAddr,
    events: Vec<PeerEvent>,
    /// When data came.
    received: Vec<Duration>,
    lookups: Vec<IpAddr>,
}

struct Net {
    now: Instant,
    started: Instant,
    hosts: Vec<Host>,
    servers: Vec<FakeServer>,
    in_flight: Vec<(Instant, Datagram)>,
    /// Pairs of hosts that reach each other without a server.
    same_subnet: bool,
    /// What servers send to this address takes so much longer.
    late: Option<(SocketAddr, Duration)>,
    /// What the first host sends by its data port 2000 arrives from 2001; both lead back to it.
    remapped: bool,
    /// Both sides send a datagram so often.
    pace: Option<Duration>,
    next_send: Instant,
    /// Data sent by each host.
    sent: HashMap<usize, usize>,
}

impl Net {
    fn new(servers: &[&str]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        Self {
            now,
            started: now,
            hosts: Vec::new(),
            servers: servers.iter().map(|address| FakeServer::new(address)).collect(),
            in_flight: Vec::new(),
            same_subnet: false,
            late: None,
            remapped: false,
            pace: None,
            next_send: now,
            sent: HashMap::new(),
        }
    }

    fn join(&mut self, role: Role, gateways: &[&str]) {
        let last = if role == Role::A { 10 } else { 20 };
        let subnet = if self.same_subnet || role == Role::A { 1 } else { 2 };
        let address: IpAddr = [198, 51, subnet, last].into();
        let config = PeerConfig {
            secret: SessionSecret::from_bytes([7; 32]),
            role,
            root: Some(ROOT.parse::<SocketAddr>().unwrap().into()),
            gateways: gateways.iter().map(|it| it.parse::<SocketAddr>().unwrap().into()).collect(),
            interfaces: vec![Interface { address, prefix_len: 24, mac: Some(mac(role)) }],
            data_port: 2000,
            epoch: 1_000,
            raw_mac: false,
            lifetime: 120,
        };
        self.hosts.push(Host {
            peer: Peer::new(config, u64::from(last), self.now),
            control: SocketAddr::new(address, 1000),
            data: SocketAddr::new(address, 2000),
            events: Vec::new(),
            received: Vec::new(),
            lookups: Vec::new(),
        });
    }

    fn run(&mut self, end: Duration) {
        let end = self.started + end;
        loop {
            (0..self.hosts.len()).for_each(|i| self.drain(i));
            let arrivals = self.in_flight.iter().map(|(at, _)| *at);
            let timeouts = self.hosts.iter().filter_map(|host| host.peer.poll_timeout());
            let sends = self.pace.map(|_| self.next_send);
            let Some(next) = arrivals.chain(timeouts).chain(sends).min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if let Some(i) = self.in_flight.iter().position(|(at, _)| *at <= next) {
                let (_, datagram) = self.in_flight.remove(i);
                self.deliver(&datagram);
            } else if sends.is_some_and(|at| at <= next) {
                self.next_send += self.pace.unwrap();
                (0..self.hosts.len()).for_each(|i| self.send_data(i));
            } else {
                for host in &mut self.hosts {
                    if host.peer.poll_timeout().is_some_and(|at| at <= next) {
                        host.peer.handle_timeout(next);
                    }
                }
            }
        }
        self.now = end;
    }

    fn send_data(&mut self, i: usize) {
        let Some(to) = self.hosts[i].peer.destination() else { return };
        *self.sent.entry(i).or_default() += 1;
        let datagram = Datagram { from: self.hosts[i].data, to, bytes: b"media".to_vec() };
        self.in_flight.push((self.now + LATENCY, datagram));
    }

    fn deliver(&mut self, datagram: &Datagram) {
        let mut datagram = datagram.clone();
        if self.remapped && datagram.from == self.hosts[0].data {
            datagram.from.set_port(2_001);
        } else if datagram.to.ip() == self.hosts[0].data.ip() && datagram.to.port() == 2_001 {
            datagram.to = self.hosts[0].data;
        }
        let datagram = &datagram;
        let Datagram { from, to, bytes } = datagram;
        if let Some(server) = self.servers.iter_mut().find(|server| server.owns(*to)) {
            for reply in server.handle(datagram) {
                let extra = self.late.filter(|(to, _)| *to == reply.to);
                let extra = extra.map_or(Duration::ZERO, |(_, extra)| extra);
                self.in_flight.push((self.now + LATENCY + extra, reply));
            }
            return;
        }
        let from_server = self.servers.iter().any(|server| server.owns(*from));
        let Some(host) = self.hosts.iter_mut().find(|host| host.data.ip() == to.ip()) else {
            return;
        };
        if *to == host.control {
            host.peer.handle_control(self.now, *from, bytes);
        } else if (from_server || self.same_subnet) && host.peer.handle_data(self.now, *from, bytes)
        {
            assert_eq!(bytes, b"media");
            host.received.push(self.now - self.started);
        }
    }

    fn drain(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        while let Some(output) = host.peer.poll_output() {
            match output {
                PeerOutput::Transmit { via, to, bytes } => {
                    let from = if via == Via::Control { host.control } else { host.data };
                    self.in_flight.push((self.now + LATENCY, Datagram { from, to, bytes }));
                }
                PeerOutput::Event(event) => host.events.push(event),
                PeerOutput::LookUp(ip) => host.lookups.push(ip),
            }
        }
    }

    fn kind(&self, i: usize) -> Option<PathKind> {
        self.hosts[i].peer.path().map(|path| path.kind)
    }

    /// The longest silence at a host, from a time on.
    fn gap(&self, i: usize, from: Duration) -> Duration {
        let times = &self.hosts[i].received;
        let gaps = times.windows(2).filter(|pair| pair[1] >= from).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap()
    }
}

fn mac(role: Role) -> Mac {
    Mac([2, 0, 0, 0, 0, role as u8])
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn meets_at_the_gateway_and_the_root_sees_no_data() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.pace = Some(millis(5));
    net.join(Role::A, &[GATEWAY]);
    net.run(millis(500));
    assert_eq!(net.kind(0), None);
    net.join(Role::B, &[GATEWAY]);
    net.run(millis(600));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Gateway));
    }
    let [PeerEvent::Ready { connect, .. }] = net.hosts[1].events[..] else {
        panic!("{:?}", net.hosts[1].events)
    };
    assert!(connect <= millis(30), "{connect:?}");
    net.run(Duration::from_secs(10));
    assert_eq!(net.servers[1].forwarded, 0);
    assert!(net.servers[0].forwarded > 1_800 * 2);
    for i in 0..2 {
        let lost = net.sent[&(1 - i)] - net.hosts[i].received.len();
        assert!(lost <= 2, "{lost} lost, but for what is under way");
    }
}

#[test]
fn falls_back_to_the_root_and_comes_back() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.pace = Some(millis(5));
    net.join(Role::A, &[GATEWAY]);
    net.join(Role::B, &[GATEWAY]);
    net.run(millis(2_000));
    net.servers[0].up = false;
    net.run(millis(6_000));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Root));
        let gap = net.gap(i, millis(2_000));
        assert!(gap <= millis(1_500), "{gap:?}");
    }
    net.servers[0].up = true;
    let (before_back, sent) = (net.hosts[0].received.len(), net.sent[&1]);
    net.run(millis(16_000));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Gateway), "{:?}", net.hosts[i].events);
        let gap = net.gap(i, millis(6_000));
        assert!(gap <= millis(20), "nothing is lost by the way back: {gap:?}");
    }
    let arrived = net.hosts[0].received.len() - before_back;
    assert!(net.sent[&1] - sent <= arrived + 1);
    let root = net.servers[1].sessions.values().next().unwrap();
    assert!(root.legs.is_empty(), "abandoned legs are released");
}

#[test]
fn shared_subnet_needs_no_server_for_data() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.same_subnet = true;
    net.pace = Some(millis(5));
    net.join(Role::A, &[GATEWAY]);
    net.run(millis(300));
    net.join(Role::B, &[GATEWAY]);
    net.run(millis(10_000));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Direct));
        assert!(net.hosts[i].received.len() > 1_900);
    }
    assert_eq!(net.servers.iter().map(|server| server.forwarded).sum::<usize>(), 0);
    let gateway = net.servers[0].sessions.values().next();
    assert!(gateway.is_none_or(|session| session.legs.is_empty()));
}

#[test]
fn probe_that_overtakes_the_candidates_opens_a_direct_path_all_the_same() {
    let mut net = Net::new(&[ROOT]);
    net.same_subnet = true;
    net.join(Role::A, &[]);
    net.run(millis(300));
    net.join(Role::B, &[]);
    // What A hears from the root is late.
    let a = net.hosts[0].control;
    net.late = Some((a, millis(40)));
    net.run(millis(330));
    assert_eq!(net.kind(0), Some(PathKind::Offered));
    net.run(millis(400));
    assert_eq!(net.kind(0), Some(PathKind::Direct));
    assert_eq!(net.kind(1), Some(PathKind::Direct));
}

#[test]
fn silent_gateway_is_passed_over_quickly() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.servers[0].up = false;
    net.join(Role::A, &[GATEWAY]);
    net.join(Role::B, &[GATEWAY]);
    net.run(millis(250));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Root));
    }
}

#[test]
fn peers_behind_different_gateways_that_do_not_reach_each_other_use_the_root() {
    let mut net = Net::new(&[GATEWAY, "192.0.2.2:3478", ROOT]);
    net.join(Role::A, &[GATEWAY]);
    net.join(Role::B, &["192.0.2.2:3478"]);
    net.run(millis(1_200));
    for i in 0..2 {
        assert_eq!(net.kind(i), Some(PathKind::Root), "{:?}", net.hosts[i].events);
    }
}

#[test]
fn lone_peer_waits_without_wandering() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.join(Role::A, &[GATEWAY]);
    net.run(Duration::from_secs(40));
    assert!(net.hosts[0].events.is_empty());
    assert!(net.servers[1].sessions.values().all(|session| session.legs.is_empty()));
    net.join(Role::B, &[GATEWAY]);
    net.run(Duration::from_millis(40_100));
    assert_eq!(net.kind(0), Some(PathKind::Gateway));
}

#[test]
fn stranger_with_a_neighbours_number_is_not_probed_on() {
    let mut net = Net::new(&[ROOT]);
    net.same_subnet = true;
    net.join(Role::A, &[]);
    net.join(Role::B, &[]);
    net.same_subnet = false;
    net.run(millis(400));
    assert_eq!(net.kind(0), Some(PathKind::Root));
    let ip = net.hosts[1].data.ip();
    assert_eq!(net.hosts[0].lookups, [ip]);
    let now = net.now;
    net.hosts[0].peer.handle_neighbour(now, ip, Some(Mac([2, 9, 9, 9, 9, 9])));
    net.drain(0);
    net.in_flight.clear();
    net.run(millis(1_000));
    let stranger = net.hosts[1].data;
    assert!(!net.in_flight.iter().any(|(_, datagram)| datagram.to == stranger));
}

#[test]
fn offered_path_is_answered_probed_and_taken() {
    let mut net = Net::new(&[ROOT]);
    net.join(Role::B, &[]);
    net.run(millis(100));
    let server: SocketAddr = "192.0.2.1:40000".parse().unwrap();
    let key = IntegrityKey::session(&SessionSecret::from_bytes([7; 32]).key());
    let session = Some(SessionSecret::from_bytes([7; 32]).key().id());
    let attributes = Attributes { session, role: Some(Role::A), ..Attributes::default() };
    let id = TransactionId([3; 12]);
    let offer = Message::request(Method::Probe, id, attributes.clone());
    let (now, host) = (net.now, &mut net.hosts[0]);

    // Our own Probe, reflected, is no offer; nor is one without the session's key.
    let reflected = Attributes { role: Some(Role::B), ..attributes };
    let reflected = Message::request(Method::Probe, id, reflected).encode(Some(&key));
    assert!(!host.peer.handle_data(now, server, &reflected));
    assert!(!host.peer.handle_data(now, server, &offer.encode(None)));
    assert_eq!(host.peer.poll_output(), None);

    assert!(!host.peer.handle_data(now, server, &offer.encode(Some(&key))));
    let mut sent = Vec::new();
    while let Some(output) = host.peer.poll_output() {
        let PeerOutput::Transmit { to, bytes, .. } = output else { continue };
        if to == server {
            sent.push(decode(&bytes).unwrap().message);
        }
    }
    let [answer, probe] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(answer.transaction, id);
    assert_eq!(answer.attributes.leg_state, Some(LegState::Peer));
    let attributes =
        Attributes { session, leg_state: Some(LegState::Peer), ..Attributes::default() };
    let confirmed = Message::success(probe.head(), attributes).encode(Some(&key));
    host.peer.handle_data(now + LATENCY, server, &confirmed);
    let path = host.peer.path().unwrap();
    assert_eq!((path.kind, path.remote, path.rtt), (PathKind::Offered, server, LATENCY));
    assert!(host.peer.handle_data(now, server, b"media"));
    assert!(!host.peer.handle_data(now, "192.0.2.1:40001".parse().unwrap(), b"media"));
}

#[test]
fn closing_releases_everything() {
    let mut net = Net::new(&[GATEWAY, ROOT]);
    net.join(Role::A, &[GATEWAY]);
    net.join(Role::B, &[GATEWAY]);
    net.run(millis(500));
    for i in 0..2 {
        let now = net.now;
        net.hosts[i].peer.close(now);
    }
    net.run(millis(600));
    for host in &net.hosts {
        assert!(host.peer.is_closed());
        assert_eq!(host.events.last(), Some(&PeerEvent::Closed));
        assert_eq!(host.peer.poll_timeout(), None);
    }
    assert!(net.servers[0].sessions.values().next().unwrap().legs.is_empty());
}

#[test]
fn changed_mapping_is_mended_before_the_path_is_given_up() {
    let mut net = Net::new(&[ROOT]);
    net.join(Role::A, &[]);
    net.join(Role::B, &[]);
    net.run(millis(500));
    // From now on the NAT in front of A gives its data another port; the way in stays open.
    net.remapped = true;
    net.run(millis(3_000));
    let session = net.servers[0].sessions.values().next().unwrap();
    assert_eq!(session.legs[&Role::A].remote.map(|remote| remote.port()), Some(2_001));
    for host in &net.hosts {
        assert_eq!(host.events.len(), 1, "{:?}", host.events);
    }
}
