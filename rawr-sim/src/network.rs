//! Hosts and routers, and what travels between them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::nat::{Nat, NatConfig};

/// Hop limit of datagrams for which none is given.
const USUAL_TTL: u8 = 64;
/// Delay inside a home.
const LOCAL_DELAY: Duration = Duration::from_micros(200);
/// Where local ports of sockets begin.
const FIRST_PORT: u16 = 32_768;

/// The way through the Internet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The shortest delay of one way.
    pub delay: Duration,
    /// Added to it, at random for each datagram: later ones may overtake.
    pub jitter: Duration,
    /// The chance of a datagram to be lost.
    pub loss: f64,
    /// Routers between two sites.
    pub hops: u8,
}

impl Default for Link {
    /// 20 to 21 ms, no loss, 8 routers.
    fn default() -> Self {
        let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(1));
        Self { delay, jitter, loss: 0.0, hops: 8 }
    }
}

/// A router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatId(usize);

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(usize);

/// A datagram that a socket has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Duration,
    /// The socket.
    pub local: SocketAddr,
    /// The source, as the socket sees it.
    pub from: SocketAddr,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// All of it.
#[derive(Debug)]
pub struct Network {
    link: Link,
    now: Duration,
    rng: StdRng,
    nats: Vec<Router>,
    hosts: Vec<Host>,
    sockets: HashSet<SocketAddr>,
    queue: BinaryHeap<Reverse<Event>>,
    sent: u64,
    /// Events so far.
    pushed: u64,
}

/// Where addresses are unique: inside a router, or outside all of them.
type Zone = Option<NatId>;

#[derive(Debug)]
struct Router {
    nat: Nat,
    outside: Zone,
}

#[derive(Debug)]
struct Host {
    zone: Zone,
    ip: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Duration,
    /// Settles draws in the order of sending.
    number: u64,
    zone: Option<usize>,
    packet: Packet,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    bytes: Vec<u8>,
}

impl Network {
    /// An empty one.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            nats: Vec::new(),
            hosts: Vec::new(),
            sockets: HashSet::new(),
            queue: BinaryHeap::new(),
            sent: 0,
            pushed: 0,
        }
    }

    /// Adds a router whose outside is the inside of another one, or the Internet.
    pub fn add_nat(&mut self, config: NatConfig, outside: Option<NatId>) -> NatId {
        let ip = match outside {
            None => Ipv4Addr::new(203, 0, 113, octet(self.nats.len())),
            Some(NatId(carrier)) => Ipv4Addr::new(100, 64, octet(carrier), octet(self.nats.len())),
        };
        let rng = StdRng::seed_from_u64(self.rng.random());
        self.nats.push(Router { nat: Nat::new(config, ip, rng), outside });
        NatId(self.nats.len() - 1)
    }

    /// Adds a host inside a router, or a public one.
    pub fn add_host(&mut self, inside: Option<NatId>) -> HostId {
        let ip = match inside {
            None => Ipv4Addr::new(198, 51, 100, octet(self.hosts.len())),
            Some(NatId(router)) => Ipv4Addr::new(10, 0, octet(router), octet(self.hosts.len())),
        };
        self.hosts.push(Host { zone: inside, ip });
        HostId(self.hosts.len() - 1)
    }

    /// Opens a socket on a random port, and returns its local address.
    pub fn bind(&mut self, host: HostId) -> SocketAddr {
        let ip = self.hosts[host.0].ip;
        loop {
            let local = SocketAddr::from((ip, self.rng.random_range(FIRST_PORT..=u16::MAX)));
            if self.sockets.insert(local) {
                return local;
            }
        }
    }

    /// Closes a socket: what comes for it from now on is lost.
    pub fn close(&mut self, local: SocketAddr) {
        self.sockets.remove(&local);
    }

    /// Changes the way through the Internet for all that is sent from now on.
    pub const fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    /// The time.
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Datagrams sent so far.
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends a datagram from a socket, with a hop limit (TTL) or the usual one. A closed socket
    /// sends nothing.
    pub fn send(&mut self, local: SocketAddr, to: SocketAddr, ttl: Option<u8>, bytes: Vec<u8>) {
        let is_here = |host: &&Host| IpAddr::from(host.ip) == local.ip();
        let Some(host) = self.hosts.iter().find(is_here) else { return };
        if self.sockets.contains(&local) {
            self.sent += 1;
            let ttl = ttl.unwrap_or(USUAL_TTL);
            self.route(host.zone, Packet { from: local, to, ttl, bytes });
        }
    }

    /// When something arrives next.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse(event)| event.at)
    }

    /// Goes on to the next datagram that a socket receives, or to `until` if there is none before.
    pub fn step(&mut self, until: Duration) -> Option<Arrival> {
        while self.next_at().is_some_and(|at| at <= until) {
            let Some(Reverse(event)) = self.queue.pop() else { break };
            self.now = event.at;
            if let Some(arrival) = self.arrive(event.zone.map(NatId), event.packet) {
                return Some(arrival);
            }
        }
        self.now = self.now.max(until);
        None
    }

    /// Passes routers on the way out, until the destination is in the same zone.
    fn route(&mut self, mut zone: Zone, mut packet: Packet) {
        loop {
            if self.is_in(zone, packet.to.ip()) {
                return self.travel(zone, packet);
            }
            let Some(NatId(id)) = zone else { return };
            if packet.ttl < 2 {
                return;
            }
            packet.ttl -= 1;
            let router = &mut self.nats[id];
            let comes_back = packet.to.ip() == IpAddr::from(router.nat.ip);
            if comes_back && !router.nat.hairpins() {
                return;
            }
            let Some(source) = router.nat.outbound(self.now, packet.from, packet.to) else {
                return;
            };
            packet.from = source;
            zone = router.outside;
            if comes_back {
                return self.push(LOCAL_DELAY, zone, packet);
            }
        }
    }

    fn is_in(&self, zone: Zone, ip: IpAddr) -> bool {
        self.hosts.iter().any(|host| host.zone == zone && IpAddr::from(host.ip) == ip)
            || self.router_at(zone, ip).is_some()
    }

    fn router_at(&self, zone: Zone, ip: IpAddr) -> Option<usize> {
        let is_it = |router: &Router| router.outside == zone && IpAddr::from(router.nat.ip) == ip;
        self.nats.iter().position(is_it)
    }

    /// The way from one site to another.
    fn travel(&mut self, zone: Zone, mut packet: Packet) {
        if zone.is_some() {
            return self.push(LOCAL_DELAY, zone, packet);
        }
        if packet.ttl <= self.link.hops || self.rng.random_bool(self.link.loss) {
            return;
        }
        packet.ttl -= self.link.hops;
        let jitter = self.link.jitter.mul_f64(self.rng.random());
        self.push(self.link.delay + jitter, zone, packet);
    }

    fn push(&mut self, delay: Duration, zone: Zone, packet: Packet) {
        self.pushed += 1;
        let (at, zone) = (self.now + delay, zone.map(|NatId(id)| id));
        self.queue.push(Reverse(Event { at, number: self.pushed, zone, packet }));
    }

    /// Passes routers on the way in.
    fn arrive(&mut self, mut zone: Zone, mut packet: Packet) -> Option<Arrival> {
        while let Some(id) = self.router_at(zone, packet.to.ip()) {
            let inside = self.nats[id].nat.inbound(self.now, packet.from, packet.to.port())?;
            if packet.ttl < 2 {
                return None;
            }
            packet.ttl -= 1;
            (packet.to, zone) = (inside, Some(NatId(id)));
        }
        let Packet { from, to: local, bytes, .. } = packet;
        let at = self.now;
        self.sockets.contains(&local).then_some(Arrival { at, local, from, bytes })
    }
}

/// The last part of the n-th address.
fn octet(n: usize) -> u8 {
    u8::try_from(n + 1).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Ports;

    const LATER: Duration = Duration::from_secs(60);

    /// Sends from one socket, and says as whom the other one sees it.
    fn seen(network: &mut Network, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        network.send(from, to, None, b"x".to_vec());
        let until = network.now() + Duration::from_secs(1);
        network.step(until).filter(|arrival| arrival.local == to).map(|arrival| arrival.from)
    }

    #[test]
    fn two_homes_open_for_each_other() {
        let mut network = Network::new(Link::default(), 1);
        let server = network.add_host(None);
        let server = network.bind(server);
        let sides = [(); 2].map(|()| {
            let home = network.add_nat(NatConfig::home(), None);
            let host = network.add_host(Some(home));
            let local = network.bind(host);
            let external = seen(&mut network, local, server).unwrap();
            (local, external)
        });
        let [(a, a_outside), (b, b_outside)] = sides;
        network.send(a, b_outside, None, b"opens".to_vec());
        assert_eq!(network.step(Duration::from_secs(5)), None, "the other side is closed");
        network.send(b, a_outside, None, b"arrives".to_vec());
        let arrival = network.step(LATER).unwrap();
        assert_eq!((arrival.local, arrival.from), (a, b_outside));
    }

    #[test]
    fn a_datagram_of_few_hops_opens_its_own_router_only() {
        let mut network = Network::new(Link::default(), 1);
        let home = network.add_nat(NatConfig::home(), None);
        let (guest, server) = (network.add_host(Some(home)), network.add_host(None));
        let (guest, server) = (network.bind(guest), network.bind(server));
        network.send(guest, server, Some(2), b"ends on the way".to_vec());
        assert_eq!(network.step(LATER), None);
        let outside = SocketAddr::from(([203, 0, 113, 1], guest.port()));
        network.send(server, outside, None, b"arrives".to_vec());
        assert_eq!(network.step(2 * LATER).unwrap().local, guest);
    }

    #[test]
    fn two_behind_one_carrier_meet_only_if_it_hairpins() {
        for hairpins in [true, false] {
            let mut network = Network::new(Link::default(), 1);
            let server = network.add_host(None);
            let server = network.bind(server);
            let carrier = network.add_nat(NatConfig { hairpins, ..NatConfig::home() }, None);
            let sides = [(); 2].map(|()| {
                let home = network.add_nat(NatConfig::home(), Some(carrier));
                let host = network.add_host(Some(home));
                let local = network.bind(host);
                let external = seen(&mut network, local, server).unwrap();
                (local, external)
            });
            let [(a, a_outside), (b, b_outside)] = sides;
            network.send(a, b_outside, None, b"opens".to_vec());
            let until = network.now() + Duration::from_secs(1);
            network.step(until);
            network.send(b, a_outside, None, b"arrives".to_vec());
            let arrival = network.step(LATER);
            assert_eq!(arrival.map(|arrival| arrival.local), hairpins.then_some(a));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let run = |seed| {
            let link = Link { loss: 0.3, jitter: Duration::from_millis(30), ..Link::default() };
            let mut network = Network::new(link, seed);
            let nat = network.add_nat(NatConfig::symmetric(Ports::Random), None);
            let (guest, server) = (network.add_host(Some(nat)), network.add_host(None));
            let (guest, server) = (network.bind(guest), network.bind(server));
            for n in 0..50 {
                network.send(guest, server, None, vec![n]);
            }
            std::iter::from_fn(|| network.step(LATER)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert!(run(7).len() < 50, "some are lost");
        assert!(!run(7).is_sorted_by_key(|arrival| arrival.bytes[0]), "some are overtaken");
    }
}
