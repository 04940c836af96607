//! Two agents behind the routers of the simulated network. What they send over RAWR takes a way of its own,
//! which always works.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_nat::agent::{
    Agent, AgentConfig, AgentEvent, AgentOutput, AgentPath, AgentSocket, LocalSocket, Signalling,
};
use rawr_nat::punch::Tuning;
use rawr_nat::{Interface, PeerConfig, SocketId, Via};
use rawr_proto::{Attributes, Class, Message, Method, Role, SessionSecret, decode, peek};
use rawr_sim::{Arrival, HostId, Link, Network};

use crate::kinds::Kind;
use crate::support::{Datagram, FakeServer};

const RAWR: &str = "192.0.2.1:3478";
/// One way, over RAWR.
const RELAY: Duration = Duration::from_millis(30);
const PACE: Duration = Duration::from_millis(10);

struct Side {
    agent: Agent,
    host: HostId,
    /// Where it sends over RAWR from.
    address: IpAddr,
    sockets: HashMap<SocketId, SocketAddr>,
    next_socket: u32,
    events: Vec<(Duration, AgentEvent)>,
    received: u32,
    /// Data with a lower number would be out of order.
    expected: u32,
    sent: u32,
}

impl Side {
    fn address_of(&self, socket: AgentSocket) -> Option<SocketAddr> {
        match socket {
            AgentSocket::Rawr(Via::Control) => Some(SocketAddr::new(self.address, 1000)),
            AgentSocket::Rawr(Via::Data) => Some(SocketAddr::new(self.address, 2000)),
            AgentSocket::Own(id) => self.sockets.get(&id).copied(),
        }
    }
}

pub(crate) struct Wild {
    now: Instant,
    started: Instant,
    network: Network,
    stun: SocketAddr,
    server: FakeServer,
    relayed: Vec<(Instant, Datagram)>,
    sides: Vec<Side>,
    next_send: Instant,
    is_flowing: bool,
    /// When both were there.
    origin: Duration,
    /// Turns since time last went on.
    turns: u32,
}

impl Wild {
    /// Two agents that have classified their NATs before.
    pub(crate) fn new(kinds: [Kind; 2], link: Link, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut network = Network::new(Link::default(), seed);
        let stun_host = network.add_host(None);
        let stun = network.bind(stun_host);
        let mut wild = Self {
            now,
            started: now,
            network,
            stun,
            server: FakeServer::new(RAWR),
            relayed: Vec::new(),
            sides: Vec::new(),
            next_send: now,
            is_flowing: true,
            origin: Duration::ZERO,
            turns: 0,
        };
        wild.join(Role::A, kinds[0], seed);
        wild.join(Role::B, kinds[1], seed);
        wild.network.set_link(link);
        wild.origin = wild.now - wild.started;
        wild
    }

    fn join(&mut self, role: Role, kind: Kind, seed: u64) {
        let address: IpAddr = [192, 0, 2, if role == Role::A { 10 } else { 20 }].into();
        let routers = kind.nats().into_iter().rev();
        let zone = routers.fold(None, |zone, nat| Some(self.network.add_nat(nat, zone)));
        let host = self.network.add_host(zone);
        let own = self.network.bind(host);
        let external = self.external(own);
        let config = AgentConfig {
            rawr: PeerConfig {
                secret: SessionSecret::from_bytes([8; 32]),
                role,
                root: Some(RAWR.parse::<SocketAddr>().unwrap().into()),
                gateways: Vec::new(),
                interfaces: vec![Interface { address, prefix_len: 32, mac: None }],
                data_port: 2000,
                epoch: 1,
                raw_mac: false,
                lifetime: 120,
            },
            sockets: vec![LocalSocket { id: SocketId::MAPPED, address: own }],
            stun_servers: vec![self.stun],
            signalling: Signalling::InBand,
            nat64: None,
            punching: Some(Tuning::default()),
            behaviour: Some(kind.behaviour(external, None)),
            probe_budget: 2_048,
        };
        self.sides.push(Side {
            agent: Agent::new(config, seed.wrapping_mul(2) + u64::from(role == Role::B), self.now),
            host,
            address,
            sockets: HashMap::from([(SocketId::MAPPED, own)]),
            next_socket: 1,
            events: Vec::new(),
            received: 0,
            expected: 0,
            sent: 0,
        });
    }

    /// What the STUN server sees of a socket.
    fn external(&mut self, local: SocketAddr) -> SocketAddr {
        self.network.send(local, self.stun, None, Vec::new());
        let until = self.network.now() + Duration::from_secs(1);
        let arrival = self.network.step(until).unwrap();
        assert_eq!(arrival.local, self.stun);
        self.now = self.started + self.network.now();
        self.next_send = self.now;
        arrival.from
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            (0..2).for_each(|i| self.drain(i));
            let timeouts = self.sides.iter_mut().filter_map(|side| side.agent.poll_timeout());
            let relayed = self.relayed.iter().map(|(at, _)| *at);
            let arrival = self.network.next_at().map(|at| self.started + at);
            let sends = self.is_flowing.then_some(self.next_send);
            let Some(next) = timeouts.chain(relayed).chain(arrival).chain(sends).min() else {
                break;
            };
            if next > end {
                break;
            }
            self.turns = if next > self.now { 0 } else { self.turns + 1 };
            assert!(self.turns < 20_000, "a timer is not served");
            self.now = self.now.max(next);
            self.turn();
        }
        self.now = end;
    }

    fn turn(&mut self) {
        let now = self.now;
        if let Some(arrival) = self.network.step(now - self.started) {
            self.arrive(arrival);
        } else if let Some(i) = self.relayed.iter().position(|(at, _)| *at <= now) {
            let (_, datagram) = self.relayed.remove(i);
            self.relay(&datagram);
        } else if self.is_flowing && self.next_send <= now {
            self.next_send = now + PACE;
            (0..2).for_each(|i| self.send_data(i));
        } else {
            for side in &mut self.sides {
                if side.agent.poll_timeout().is_some_and(|at| at <= now) {
                    side.agent.handle_timeout(now);
                }
            }
        }
    }

    fn send_data(&mut self, i: usize) {
        let side = &mut self.sides[i];
        if let Some(route) = side.agent.route(self.now) {
            let bytes = [&[route.frame], side.sent.to_be_bytes().as_slice()].concat();
            side.sent += 1;
            self.send(i, route.socket, route.to, None, bytes);
        }
    }

    fn send(
        &mut self,
        i: usize,
        socket: AgentSocket,
        to: SocketAddr,
        ttl: Option<u8>,
        bytes: Vec<u8>,
    ) {
        let Some(from) = self.sides[i].address_of(socket) else { return };
        match socket {
            AgentSocket::Own(_) => self.network.send(from, to, ttl, bytes),
            AgentSocket::Rawr(_) => {
                self.relayed.push((self.now + RELAY / 2, Datagram { from, to, bytes }));
            }
        }
    }

    fn drain(&mut self, i: usize) {
        while let Some(output) = self.sides[i].agent.poll_output() {
            match output {
                AgentOutput::Transmit { socket, to, ttl, bytes } => {
                    self.send(i, socket, to, ttl, bytes);
                }
                AgentOutput::Data(data) => self.note(i, &data),
                AgentOutput::Open(count) => {
                    let ids: Vec<_> = (0..count).map(|_| self.open(i)).collect();
                    self.sides[i].agent.handle_opened(self.now, ids);
                }
                AgentOutput::Close(socket) => {
                    let local = self.sides[i].sockets.remove(&socket).unwrap();
                    self.network.close(local);
                }
                AgentOutput::Event(event) => {
                    self.sides[i].events.push((self.now - self.started, event));
                }
                AgentOutput::Signal(_) => panic!("signals go in band"),
                AgentOutput::LookUp(_) => {}
            }
        }
    }

    fn open(&mut self, i: usize) -> SocketId {
        let side = &mut self.sides[i];
        let (id, local) = (SocketId(side.next_socket), self.network.bind(side.host));
        side.next_socket += 1;
        side.sockets.insert(id, local);
        id
    }

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { local, from, bytes, .. } = arrival;
        if local == self.stun {
            self.answer(from, &bytes);
            return;
        }
        let find = |side: &Side| {
            let own = side.sockets.iter().find(|(_, address)| **address == local);
            own.map(|(id, _)| *id)
        };
        for i in 0..2 {
            if let Some(id) = find(&self.sides[i]) {
                self.hand_over(i, AgentSocket::Own(id), from, &bytes);
            }
        }
    }

    fn answer(&mut self, from: SocketAddr, bytes: &[u8]) {
        assert_eq!(peek(bytes), Some((Class::Request, Method::Binding)));
        let head = decode(bytes).unwrap().message.head();
        let attributes = Attributes { mapped: Some(from), ..Attributes::default() };
        let reply = Message::success(head, attributes).encode(None);
        self.network.send(self.stun, from, None, reply);
    }

    fn relay(&mut self, datagram: &Datagram) {
        if self.server.owns(datagram.to) {
            let replies = self.server.handle(datagram);
            self.relayed.extend(replies.into_iter().map(|reply| (self.now + RELAY / 2, reply)));
            return;
        }
        let is_it = |side: &Side| side.address == datagram.to.ip();
        let Some(i) = self.sides.iter().position(is_it) else { return };
        let via = if datagram.to.port() == 1000 { Via::Control } else { Via::Data };
        self.hand_over(i, AgentSocket::Rawr(via), datagram.from, &datagram.bytes);
    }

    fn hand_over(&mut self, i: usize, socket: AgentSocket, from: SocketAddr, bytes: &[u8]) {
        let data = self.sides[i].agent.handle_datagram(self.now, socket, from, bytes);
        self.drain(i);
        if let Some(range) = data {
            self.note(i, &bytes[range]);
        }
    }

    /// Data comes once at most, and in order.
    fn note(&mut self, i: usize, data: &[u8]) {
        let (side, number) = (&mut self.sides[i], u32::from_be_bytes(data.try_into().unwrap()));
        assert!(number >= side.expected, "{number} to {i} comes after {}", side.expected);
        side.expected = number + 1;
        side.received += 1;
    }

    /// Stops sending, and says whether all data has come.
    pub(crate) fn is_intact(&mut self) -> bool {
        self.is_flowing = false;
        self.run(Duration::from_secs(1));
        (0..2).all(|i| self.sides[i].received == self.sides[1 - i].sent)
    }

    pub(crate) fn paths(&self) -> Vec<AgentPath> {
        self.sides.iter().filter_map(|side| side.agent.path()).collect()
    }

    /// Whether both take the same path, without a relay.
    pub(crate) fn is_direct(&self) -> bool {
        let paths = self.paths();
        paths.len() == 2 && paths.iter().all(|path| path.kind.is_direct())
    }

    /// Sockets that are open on each side.
    pub(crate) fn sockets(&self) -> Vec<usize> {
        self.sides.iter().map(|side| side.sockets.len()).collect()
    }

    /// Sockets that each side has ever had.
    pub(crate) fn sockets_ever(&self) -> Vec<u32> {
        self.sides.iter().map(|side| side.next_socket).collect()
    }

    /// When the last side could send at first, and when it took a path without a relay.
    pub(crate) fn ready_and_direct(&self) -> Option<(Duration, Duration)> {
        let first = |side: &Side, is_wanted: fn(AgentPath) -> bool| {
            let path_of = |event: &AgentEvent| match event {
                AgentEvent::Ready { path, .. } | AgentEvent::PathChanged { to: path, .. } => {
                    Some(*path)
                }
                _ => None,
            };
            let mut events = side.events.iter();
            let found = events.find(|(_, event)| path_of(event).is_some_and(is_wanted));
            found.map(|(at, _)| *at)
        };
        let both = |side: &Side| {
            Some((first(side, |_| true)?, first(side, |path| path.kind.is_direct())?))
        };
        let sides: Vec<_> = self.sides.iter().filter_map(both).collect();
        let &[(ready_a, direct_a), (ready_b, direct_b)] = sides.as_slice() else { return None };
        let start = self.origin;
        Some((ready_a.max(ready_b) - start, direct_a.max(direct_b) - start))
    }

    /// Events of both sides.
    pub(crate) fn events(&self) -> impl Iterator<Item = &(Duration, AgentEvent)> {
        self.sides.iter().flat_map(|side| &side.events)
    }
}
