//! A simulated network: a host, NATs of every kind before it, and servers with two addresses, in virtual
//! time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::SocketId;
use rawr_proto::{ChangeRequest, OtherAddress, ResponsePort, parse_stun};
use stun_types::attribute::XorMappedAddress;
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWrite, MessageWriteVec,
};

/// How a NAT chooses, in the simulation's own words, so that the verdict is not compared with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maps {
    /// No translation, a firewall at most.
    Nothing,
    PerSocket,
    PerAddress,
    PerEndpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    Everybody,
    KnownAddresses,
    KnownEndpoints,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gives {
    /// The socket's own, while no other mapping has it.
    Kept,
    Next(i16),
    Within(u16, u16),
    Any,
}

/// A network to be classified.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) maps: Maps,
    pub(crate) admits: Admits,
    pub(crate) gives: Gives,
    pub(crate) hairpins: bool,
    pub(crate) blocks_udp: bool,
    pub(crate) tcp: bool,
    /// Parts in a thousand that are lost, each way.
    pub(crate) loss: u32,
    /// To the servers and back.
    pub(crate) rtt: Duration,
    /// The datagram with this number, from 0, is sent from a mapping of its own.
    pub(crate) odd: Option<u32>,
    /// After so long without traffic a mapping is gone.
    pub(crate) keeps: Duration,
    /// Whether the servers have other addresses.
    pub(crate) discovery: bool,
    /// Other hosts' flows for each of ours, at most.
    pub(crate) foreign: u16,
}

impl Scene {
    pub(crate) fn new(maps: Maps, admits: Admits, gives: Gives) -> Self {
        Self {
            maps,
            admits,
            gives,
            hairpins: false,
            blocks_udp: false,
            tcp: true,
            loss: 0,
            rtt: Duration::from_millis(2),
            odd: None,
            keeps: Duration::from_secs(300),
            discovery: true,
            foreign: 0,
        }
    }
}

/// Something that arrives at the host.
#[derive(Debug)]
pub(crate) enum Arrival {
    Datagram { socket: SocketId, from: SocketAddr, bytes: Vec<u8> },
    Stream { stream: u32, answer: Option<(SocketAddr, Vec<u8>)> },
    Router { socket: SocketId, router: IpAddr },
}

#[derive(Debug)]
struct Mapping {
    external: u16,
    socket: SocketId,
    local: SocketAddr,
    sent_to: BTreeSet<SocketAddr>,
    used: Instant,
}

/// The network in use.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) scene: Scene,
    /// The host's own address.
    pub(crate) own: IpAddr,
    /// The NAT's.
    pub(crate) external: IpAddr,
    /// Four endpoints of each server.
    servers: Vec<[SocketAddr; 4]>,
    mappings: HashMap<(u32, Option<IpAddr>, Option<u16>), Mapping>,
    next_port: u16,
    sent: u32,
    rng: StdRng,
    arrivals: BTreeMap<(Instant, u32), Arrival>,
    count: u32,
    /// Datagrams that the host has sent.
    pub(crate) datagrams: u32,
}

impl Net {
    pub(crate) fn new(scene: Scene, is_ipv6: bool, seed: u64) -> Self {
        let ip = |v4: &str, v6: &str| -> IpAddr {
            if is_ipv6 { v6.parse().unwrap() } else { v4.parse().unwrap() }
        };
        let external = ip("203.0.113.11", "2001:db8:1::11");
        let own = match scene.maps {
            Maps::Nothing => external,
            _ => ip("10.0.1.2", "fd00::2"),
        };
        let pair = [ip("198.51.100.1", "2001:db8:9::1"), ip("198.51.100.2", "2001:db8:9::2")];
        let at = |address: usize, port| SocketAddr::new(pair[address], port);
        Self {
            scene,
            own,
            external,
            servers: vec![[at(0, 3478), at(0, 3479), at(1, 3478), at(1, 3479)]],
            mappings: HashMap::new(),
            next_port: 41_000,
            sent: 0,
            rng: StdRng::seed_from_u64(seed),
            arrivals: BTreeMap::new(),
            count: 0,
            datagrams: 0,
        }
    }

    pub(crate) fn server(&self) -> SocketAddr {
        self.servers[0][0]
    }

    /// Both addresses of the server, as if they were two servers.
    pub(crate) fn two_servers(&self) -> Vec<SocketAddr> {
        vec![self.servers[0][0], self.servers[0][2]]
    }

    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.arrivals.keys().next().map(|(at, _)| *at)
    }

    pub(crate) fn arrival(&mut self, now: Instant) -> Option<Arrival> {
        let key = *self.arrivals.keys().next().filter(|(at, _)| *at <= now)?;
        self.arrivals.remove(&key)
    }

    /// The host sends a datagram.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        (socket, local): (SocketId, SocketAddr),
        to: SocketAddr,
        ttl: Option<u8>,
        bytes: &[u8],
    ) {
        self.datagrams += 1;
        if self.scene.blocks_udp || self.is_lost() {
            return;
        }
        if ttl.is_some_and(|hops| hops < 3) {
            let router = if ttl == Some(1) { [10, 0, 1, 1] } else { [100, 64, 0, 1] };
            let at = now + self.scene.rtt / 4;
            self.push(at, Arrival::Router { socket, router: router.into() });
            return;
        }
        let source = self.translate(now, socket, local, to);
        let at = now + self.scene.rtt / 2;
        if to.ip() == self.external {
            if self.scene.hairpins {
                self.deliver(at, source, to, bytes.to_vec());
            }
        } else if let Some((from, back, answer)) = self.answer(source, to, bytes)
            && !self.is_lost()
        {
            self.deliver(at + self.scene.rtt / 2, from, back, answer);
        }
    }

    /// The host connects over TCP: the port is mapped as those of UDP are.
    pub(crate) fn connect(
        &mut self,
        now: Instant,
        stream: u32,
        local: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) {
        let answer = self.scene.tcp.then(|| {
            // Ports of TCP and UDP are different ports.
            let socket = SocketId(1_000_000 + u32::from(local.port()));
            let source = self.translate(now, socket, local, to);
            let (_, _, answer) = self.answer(source, to, bytes)?;
            Some((local, answer))
        });
        let at = now + self.scene.rtt * 2;
        self.push(at, Arrival::Stream { stream, answer: answer.flatten() });
    }

    fn is_lost(&mut self) -> bool {
        self.rng.random_range(0..1000) < self.scene.loss
    }

    fn push(&mut self, at: Instant, what: Arrival) {
        self.count += 1;
        self.arrivals.insert((at, self.count), what);
    }

    fn translate(
        &mut self,
        now: Instant,
        socket: SocketId,
        local: SocketAddr,
        to: SocketAddr,
    ) -> SocketAddr {
        let odd = self.scene.odd == Some(self.sent);
        self.sent += 1;
        let key = match self.scene.maps {
            _ if odd => (u32::MAX, None, None),
            Maps::Nothing | Maps::PerSocket => (socket.0, None, None),
            Maps::PerAddress => (socket.0, Some(to.ip()), None),
            Maps::PerEndpoint => (socket.0, Some(to.ip()), Some(to.port())),
        };
        let keeps = self.scene.keeps;
        self.mappings.retain(|_, mapping| now < mapping.used + keeps);
        if !self.mappings.contains_key(&key) {
            let external = if odd { 33_333 } else { self.choose(local.port()) };
            let sent_to = BTreeSet::new();
            self.mappings.insert(key, Mapping { external, socket, local, sent_to, used: now });
        }
        let mapping = self.mappings.get_mut(&key).unwrap();
        mapping.sent_to.insert(to);
        mapping.used = now;
        SocketAddr::new(self.external, mapping.external)
    }

    fn choose(&mut self, local: u16) -> u16 {
        if self.scene.maps == Maps::Nothing {
            return local;
        }
        match self.scene.gives {
            Gives::Kept if self.mappings.values().all(|each| each.external != local) => local,
            Gives::Kept => self.free(1024, 65_535),
            Gives::Next(step) => {
                let foreign = self.rng.random_range(0..=self.scene.foreign);
                let by = step.wrapping_mul(foreign.cast_signed() + 1);
                self.next_port = self.next_port.wrapping_add_signed(by);
                self.next_port
            }
            Gives::Within(low, high) => self.free(low, high),
            Gives::Any => self.free(1024, 65_535),
        }
    }

    fn free(&mut self, low: u16, high: u16) -> u16 {
        loop {
            let port = self.rng.random_range(low..=high);
            if self.mappings.values().all(|mapping| mapping.external != port) {
                return port;
            }
        }
    }

    /// Lets in what the NAT lets in.
    fn deliver(&mut self, at: Instant, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let keeps = self.scene.keeps;
        let admits = self.scene.admits;
        let is_admitted = |mapping: &&mut Mapping| {
            let known = match admits {
                Admits::Everybody => true,
                Admits::KnownAddresses => mapping.sent_to.iter().any(|to| to.ip() == from.ip()),
                Admits::KnownEndpoints => mapping.sent_to.contains(&from),
            };
            mapping.external == to.port() && at < mapping.used + keeps && known
        };
        if let Some(mapping) = self.mappings.values_mut().find(is_admitted) {
            let socket = mapping.socket;
            assert_eq!(mapping.local.is_ipv6(), from.is_ipv6());
            self.push(at, Arrival::Datagram { socket, from, bytes });
        }
    }

    fn answer(
        &self,
        source: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
        let endpoints = self.servers.iter().find(|endpoints| endpoints.contains(&to))?;
        answer(endpoints, self.scene.discovery, (source, to), bytes)
    }
}

/// What a server with these endpoints says to `bytes`, which came from one to another address: from
/// where, to where, what. Without `discovery` it is a plain one.
pub(crate) fn answer(
    endpoints: &[SocketAddr; 4],
    discovery: bool,
    (source, to): (SocketAddr, SocketAddr),
    bytes: &[u8],
) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
    let message = parse_stun(bytes).filter(|it| it.has_class(MessageClass::Request))?;
    let kind = MessageType::from_class_method(MessageClass::Success, BINDING);
    let transaction = message.transaction_id();
    let mut out = Message::builder(kind, transaction, MessageWriteVec::new());
    out.push_attribute_unchecked(&XorMappedAddress::new(source, transaction));
    if !discovery {
        let asks_more = message.attribute::<ChangeRequest>().is_ok();
        return (!asks_more).then(|| (to, source, out.finish()));
    }
    let position = endpoints.iter().position(|endpoint| *endpoint == to)?;
    out.push_attribute_unchecked(&OtherAddress(endpoints[position ^ 3]));
    let change = message.attribute::<ChangeRequest>().unwrap_or_default();
    let from = endpoints[position ^ (usize::from(change.ip) << 1) ^ usize::from(change.port)];
    let port = message.attribute::<ResponsePort>().map_or_else(|_| source.port(), |it| it.0);
    Some((from, SocketAddr::new(source.ip(), port), out.finish()))
}
