//! A network in memory: two hosts, a NAT in front of each, and a server that both reach.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::agent::{
    Agent, AgentConfig, AgentEvent, AgentOutput, AgentPath, AgentSocket, LocalSocket, Signalling,
};
use rawr_nat::{Interface, PeerConfig, SocketId, Via};
use rawr_proto::{Role, SessionSecret};

use crate::support::{Datagram, FakeServer};

pub(crate) const SERVER: &str = "203.0.113.1:3478";
/// One way, to the server or from it.
const TO_SERVER: Duration = Duration::from_millis(20);
/// One way, without the server.
const STRAIGHT: Duration = Duration::from_millis(4);
/// Pause between datagrams of data.
pub(crate) const PACE: Duration = Duration::from_millis(5);

/// What stands between a host and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: all hosts like this are on one network.
    None,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    Cone,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
    /// Like [`Kind::Symmetric`], and drops what does not go to the server's address.
    OnlyServer,
}

#[derive(Debug)]
struct Nat {
    kind: Kind,
    external: IpAddr,
    ports: HashMap<(SocketAddr, Option<SocketAddr>), u16>,
    inside: HashMap<u16, SocketAddr>,
    allowed: HashSet<(u16, SocketAddr)>,
    next_port: u16,
}

impl Nat {
    fn outbound(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        if self.kind == Kind::None {
            return from;
        }
        let depends = self.kind != Kind::Cone;
        let next = &mut self.next_port;
        let port = *self.ports.entry((from, depends.then_some(to))).or_insert_with(|| {
            *next += 7;
            *next
        });
        self.inside.insert(port, from);
        self.allowed.insert((port, to));
        SocketAddr::new(self.external, port)
    }

    fn inbound(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.kind == Kind::None {
            return Some(to);
        }
        let inside = self.inside.get(&to.port()).copied();
        inside.filter(|_| self.allowed.contains(&(to.port(), from)))
    }
}

pub(crate) struct Host {
    pub(crate) agent: Agent,
    role: Role,
    address: IpAddr,
    nat: Nat,
    sockets: HashMap<SocketId, SocketAddr>,
    next_socket: u32,
    pub(crate) events: Vec<(Duration, AgentEvent)>,
    /// Numbers of the data that came, and when.
    pub(crate) received: Vec<(Duration, u32)>,
    pub(crate) sent: u32,
    /// Data that there was no path for.
    pub(crate) unsent: u32,
    pub(crate) most_sockets: usize,
    /// Of all kinds, sent so far.
    pub(crate) datagrams: u64,
}

impl Host {
    pub(crate) fn path(&self) -> Option<AgentPath> {
        self.agent.path()
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.received.iter().map(|(_, number)| *number).collect()
    }

    fn address_of(&self, socket: AgentSocket) -> Option<SocketAddr> {
        match socket {
            AgentSocket::Rawr(Via::Control) => Some(SocketAddr::new(self.address, 1000)),
            AgentSocket::Rawr(Via::Data) => Some(SocketAddr::new(self.address, 2000)),
            AgentSocket::Own(id) => self.sockets.get(&id).copied(),
        }
    }

    fn socket_at(&self, address: SocketAddr) -> Option<AgentSocket> {
        match address.port() {
            1000 => Some(AgentSocket::Rawr(Via::Control)),
            2000 => Some(AgentSocket::Rawr(Via::Data)),
            _ => {
                let own = self.sockets.iter().find(|(_, at)| **at == address);
                own.map(|(id, _)| AgentSocket::Own(*id))
            }
        }
    }
}

/// What a test changes of a configuration.
pub(crate) type Adjust = fn(&mut AgentConfig);

pub(crate) struct Net {
    pub(crate) now: Instant,
    started: Instant,
    pub(crate) hosts: Vec<Host>,
    pub(crate) server: FakeServer,
    in_flight: Vec<(Instant, Datagram)>,
    /// Signals that the application carries, to the host with this position.
    signals: Vec<(Instant, usize, Vec<u8>)>,
    pub(crate) is_flowing: bool,
    next_send: Instant,
    /// Nothing arrives that does not pass the server.
    pub(crate) straight_is_down: bool,
    /// What this host sends straight does not arrive.
    pub(crate) mute: Option<usize>,
    pub(crate) loss: f64,
    pub(crate) rng: StdRng,
    seed: u64,
}

impl Net {
    pub(crate) fn new(kinds: [Kind; 2], seed: u64, adjust: Adjust) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut net = Self {
            now,
            started: now,
            hosts: Vec::new(),
            server: FakeServer::new(SERVER),
            in_flight: Vec::new(),
            signals: Vec::new(),
            is_flowing: true,
            next_send: now,
            straight_is_down: false,
            mute: None,
            loss: 0.0,
            rng: StdRng::seed_from_u64(seed),
            seed,
        };
        net.join(Role::A, kinds[0], 1_000, adjust);
        net.join(Role::B, kinds[1], 1_000, adjust);
        net
    }

    /// A host takes the place of the one before with the same role, if there was one.
    pub(crate) fn join(&mut self, role: Role, kind: Kind, epoch: u64, adjust: Adjust) {
        let last = if role == Role::A { 10 } else { 20 };
        let address: IpAddr = match kind {
            Kind::None => [192, 0, 2, last].into(),
            _ => [10, 0, last, 2].into(),
        };
        let own = SocketAddr::new(address, 3000);
        let server: SocketAddr = SERVER.parse().unwrap();
        let mut config = AgentConfig {
            rawr: PeerConfig {
                secret: SessionSecret::from_bytes([7; 32]),
                role,
                root: Some(server.into()),
                gateways: Vec::new(),
                // Not a subnet to look for the other one on: that is RAWR's part, and another test's.
                interfaces: vec![Interface { address, prefix_len: 32, mac: None }],
                data_port: 2000,
                epoch,
                raw_mac: false,
                lifetime: 120,
            },
            sockets: vec![LocalSocket { id: SocketId::MAPPED, address: own }],
            stun_servers: vec![server],
            signalling: Signalling::InBand,
            nat64: None,
            punching: None,
            behaviour: None,
            probe_budget: 1_024,
        };
        adjust(&mut config);
        let nat = Nat {
            kind,
            external: [198, 51, 100, last].into(),
            ports: HashMap::new(),
            inside: HashMap::new(),
            allowed: HashSet::new(),
            next_port: 20_000,
        };
        let host = Host {
            agent: Agent::new(config, self.seed ^ u64::from(last), self.now),
            role,
            address,
            nat,
            sockets: HashMap::from([(SocketId::MAPPED, own)]),
            next_socket: 1,
            events: Vec::new(),
            received: Vec::new(),
            sent: 0,
            unsent: 0,
            most_sockets: 1,
            datagrams: 0,
        };
        match self.hosts.iter().position(|it| it.role == role) {
            Some(at) => self.hosts[at] = host,
            None => self.hosts.push(host),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.started
    }

    /// The host gets another address, and loses the one before.
    pub(crate) fn move_to(&mut self, i: usize, last: u8) {
        let host = &mut self.hosts[i];
        host.agent.remove_socket(self.now, SocketId::MAPPED);
        host.address = [192, 0, 2, last].into();
        let address = SocketAddr::new(host.address, 3000);
        host.sockets.insert(SocketId::MAPPED, address);
        host.agent.add_socket(self.now, LocalSocket { id: SocketId::MAPPED, address });
    }

    /// Runs for so long.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0_u32;
        loop {
            (0..self.hosts.len()).for_each(|i| self.drain(i));
            let arrivals = self.in_flight.iter().map(|(at, _)| *at);
            let signals = self.signals.iter().map(|(at, ..)| *at);
            let timeouts = self.hosts.iter_mut().filter_map(|host| host.agent.poll_timeout());
            let sends = self.is_flowing.then_some(self.next_send);
            let Some(next) = arrivals.chain(signals).chain(timeouts).chain(sends).min() else {
                break;
            };
            if next > end {
                break;
            }
            turns = if next > self.now { 0 } else { turns + 1 };
            assert!(turns < 20_000, "time stands still at {:?}", self.elapsed());
            self.now = self.now.max(next);
            self.turn();
        }
        self.now = end;
    }

    fn turn(&mut self) {
        let now = self.now;
        if let Some(i) = self.in_flight.iter().position(|(at, _)| *at <= now) {
            let (_, datagram) = self.in_flight.remove(i);
            self.deliver(datagram);
        } else if let Some(i) = self.signals.iter().position(|(at, ..)| *at <= now) {
            let (_, host, bytes) = self.signals.remove(i);
            self.hosts[host].agent.handle_signal(now, &bytes);
        } else if self.is_flowing && self.next_send <= now {
            self.next_send = now + PACE;
            (0..self.hosts.len()).for_each(|i| self.send_data(i));
        } else {
            for host in &mut self.hosts {
                if host.agent.poll_timeout().is_some_and(|at| at <= now) {
                    host.agent.handle_timeout(now);
                }
            }
        }
    }

    fn send_data(&mut self, i: usize) {
        let now = self.now;
        let host = &mut self.hosts[i];
        match host.agent.route(now) {
            Some(route) => {
                let from = host.address_of(route.socket).unwrap();
                let bytes = [&[route.frame], host.sent.to_be_bytes().as_slice()].concat();
                host.sent += 1;
                self.send(i, Datagram { from, to: route.to, bytes });
            }
            None => host.unsent += 1,
        }
    }

    fn drain(&mut self, i: usize) {
        let elapsed = self.elapsed();
        while let Some(output) = self.hosts[i].agent.poll_output() {
            match output {
                AgentOutput::Transmit { socket, to, bytes, .. } => {
                    if let Some(from) = self.hosts[i].address_of(socket) {
                        self.send(i, Datagram { from, to, bytes });
                    }
                }
                AgentOutput::Data(data) => self.note(i, &data),
                AgentOutput::Open(count) => self.open(i, count),
                AgentOutput::Close(socket) => {
                    self.hosts[i].sockets.remove(&socket).unwrap();
                }
                AgentOutput::Signal(bytes) => {
                    self.signals.push((self.now + TO_SERVER * 2, 1 - i, bytes));
                }
                AgentOutput::LookUp(_) => {}
                AgentOutput::Event(event) => self.hosts[i].events.push((elapsed, event)),
            }
        }
    }

    fn open(&mut self, i: usize, count: u16) {
        let host = &mut self.hosts[i];
        let first = host.next_socket;
        host.next_socket += u32::from(count);
        let ids: Vec<_> = (first..host.next_socket).map(SocketId).collect();
        for id in &ids {
            let port = 3000 + u16::try_from(id.0).unwrap();
            host.sockets.insert(*id, SocketAddr::new(host.address, port));
        }
        host.most_sockets = host.most_sockets.max(host.sockets.len());
        host.agent.handle_opened(self.now, ids);
    }

    /// From a host to its NAT, and on.
    fn send(&mut self, i: usize, datagram: Datagram) {
        let Datagram { from, to, bytes } = datagram;
        let to_server = self.server.owns(to);
        let host = &mut self.hosts[i];
        host.datagrams += 1;
        if host.nat.kind == Kind::OnlyServer && !to_server {
            return;
        }
        let from = host.nat.outbound(from, to);
        let is_cut = !to_server && (self.straight_is_down || self.mute == Some(i));
        if is_cut || self.is_lost() {
            return;
        }
        let delay = if to_server { TO_SERVER } else { STRAIGHT };
        self.in_flight.push((self.now + delay, Datagram { from, to, bytes }));
    }

    fn is_lost(&mut self) -> bool {
        self.rng.random_bool(self.loss)
    }

    fn deliver(&mut self, datagram: Datagram) {
        let now = self.now;
        if self.server.owns(datagram.to) {
            for reply in self.server.handle(&datagram) {
                if !self.is_lost() {
                    self.in_flight.push((now + TO_SERVER, reply));
                }
            }
            return;
        }
        let Some((i, to)) = self.resolve(datagram.from, datagram.to) else { return };
        let host = &mut self.hosts[i];
        let Some(socket) = host.socket_at(to) else { return };
        let data = host.agent.handle_datagram(now, socket, datagram.from, &datagram.bytes);
        self.drain(i);
        if let Some(range) = data {
            self.note(i, &datagram.bytes[range]);
        }
    }

    /// The host that what is sent from `from` to `to` reaches, and which of its addresses.
    fn resolve(&self, from: SocketAddr, to: SocketAddr) -> Option<(usize, SocketAddr)> {
        let is_it = |host: &Host| match host.nat.kind {
            Kind::None => host.address == to.ip(),
            _ => host.nat.external == to.ip(),
        };
        let i = self.hosts.iter().position(is_it)?;
        Some((i, self.hosts[i].nat.inbound(from, to)?))
    }

    fn note(&mut self, i: usize, data: &[u8]) {
        let elapsed = self.elapsed();
        let number = u32::from_be_bytes(data.try_into().unwrap());
        self.hosts[i].received.push((elapsed, number));
    }

    /// Whether both send data by the same path.
    pub(crate) fn agree(&mut self) -> bool {
        let now = self.now;
        let ends: Vec<_> = self
            .hosts
            .iter_mut()
            .filter_map(|host| {
                let route = host.agent.route(now)?;
                Some((host.address_of(route.socket)?, route.to))
            })
            .collect();
        let &[(a, to_b), (b, to_a)] = ends.as_slice() else { return false };
        match (self.server.owns(to_b), self.server.owns(to_a)) {
            (true, true) => true,
            (false, false) => {
                let seen_a = self.hosts[0].nat.outbound(a, to_b);
                let seen_b = self.hosts[1].nat.outbound(b, to_a);
                let there = self.resolve(seen_a, to_b) == Some((1, b));
                there && self.resolve(seen_b, to_a) == Some((0, a))
            }
            _ => false,
        }
    }

    /// The longest time between two datagrams of data that came to a host, since `from`.
    pub(crate) fn longest_gap(&self, i: usize, from: Duration) -> Duration {
        let times = self.hosts[i].received.iter().map(|(at, _)| *at).filter(|at| *at >= from);
        let times: Vec<_> = [from].into_iter().chain(times).chain([self.elapsed()]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}
