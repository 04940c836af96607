//! Finding hosts that have not spoken yet: every address of an own IPv4 subnet is resolved by ARP,
//! and every IPv6 host of a link is pinged (ICMPv6 echo to ff02::1). What is found shows up in the
//! kernel's neighbour tables.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;

use crate::topology::{Address, LinkKind, NeighbourKey, Topology};

/// What may be probed, and how fast.
#[derive(Clone, Debug)]
pub struct SweepConfig {
    /// Names of the interfaces to probe; empty for all. Name the inside ones to spare the uplink.
    pub interfaces: Vec<String>,
    /// IPv4 subnets with a shorter prefix are too large and left alone.
    pub shortest_prefix: u8,
    /// Least time between two sweeps of a subnet.
    pub interval: Duration,
    /// Most addresses that are being resolved at once. The kernel refuses new neighbours above
    /// net.ipv4.neigh.default.gc_thresh3 (1,024 by default, of all network namespaces together) and
    /// drops what would have gone to them, so stay far below it.
    pub batch: usize,
    /// How long an address has to answer; then its entry is removed to make room.
    pub patience: Duration,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            shortest_prefix: 22,
            interval: Duration::from_secs(5),
            batch: 64,
            patience: Duration::from_millis(400),
        }
    }
}

/// Something to do for a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the kernel resolve this neighbour.
    Provoke(NeighbourKey),
    /// Nobody answered: remove the entry.
    Forget(NeighbourKey),
    /// Ping all IPv6 hosts of a link, with this source address.
    PingAll { ifindex: u32, source: Ipv6Addr },
}

/// Sweeps in progress. Sans-IO.
#[derive(Debug, Default)]
pub struct Sweep {
    config: SweepConfig,
    last: HashMap<Address, Instant>,
    pings: Vec<(u32, Ipv6Addr)>,
    waiting: VecDeque<NeighbourKey>,
    /// Being resolved since.
    asked: BTreeMap<NeighbourKey, Instant>,
}

impl Sweep {
    pub fn new(config: SweepConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes up every subnet that may be probed and has not been of late. Returns how many
    /// addresses that adds.
    pub fn start(&mut self, now: Instant, topology: &Topology) -> usize {
        let before = self.waiting.len();
        for own in topology.addresses() {
            if !self.may_probe(own.ifindex, topology) || !self.is_due(*own, now) {
                continue;
            }
            match own.address {
                IpNet::V4(subnet) => self.queue(own.ifindex, subnet, topology),
                IpNet::V6(source) => self.pings.push((own.ifindex, source.addr())),
            }
        }
        self.waiting.len() - before
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Instant, topology: &Topology) -> Vec<Step> {
        let mut steps: Vec<_> = std::mem::take(&mut self.pings)
            .into_iter()
            .map(|(ifindex, source)| Step::PingAll { ifindex, source })
            .collect();
        let patience = self.config.patience;
        self.asked.retain(|key, since| {
            let found = topology.neighbour(*key).is_some_and(|entry| entry.mac.is_some());
            let given_up = !found && now.saturating_duration_since(*since) >= patience;
            if given_up {
                steps.push(Step::Forget(*key));
            }
            !found && !given_up
        });
        while self.asked.len() < self.config.batch {
            let Some(key) = self.waiting.pop_front() else { break };
            self.asked.insert(key, now);
            steps.push(Step::Provoke(key));
        }
        steps
    }

    /// When to poll next, with nothing started in between.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.asked.values().min().map(|since| *since + self.config.patience)
    }

    fn may_probe(&self, ifindex: u32, topology: &Topology) -> bool {
        topology.link(ifindex).is_some_and(|link| {
            let named = self.config.interfaces.contains(&link.name);
            let frames = !matches!(link.kind, LinkKind::Loopback | LinkKind::NotEthernet);
            link.up && link.arp && frames && (named || self.config.interfaces.is_empty())
        })
    }

    fn is_due(&mut self, own: Address, now: Instant) -> bool {
        let interval = self.config.interval;
        self.last.retain(|_, last| now.saturating_duration_since(*last) < interval);
        if self.last.contains_key(&own) {
            return false;
        }
        self.last.insert(own, now);
        true
    }

    fn queue(&mut self, ifindex: u32, subnet: Ipv4Net, topology: &Topology) {
        if subnet.prefix_len() < self.config.shortest_prefix {
            log::debug!("{subnet} is too large to be probed for silent hosts");
            return;
        }
        for host in subnet.hosts() {
            let key = NeighbourKey { ifindex, ip: IpAddr::V4(host) };
            let known = topology.neighbour(key).is_some_and(|entry| entry.mac.is_some());
            if !known && !topology.is_own(key.ip) && !self.asked.contains_key(&key) {
                self.waiting.push_back(key);
            }
        }
    }
}

/// Pings all IPv6 hosts of links, and hears who answers. An answer by itself makes nobody a
/// neighbour (its sender may have known our MAC address), so whoever answered is to be resolved.
pub struct AllNodes {
    /// A raw ICMPv6 socket; what it receives begins with the ICMPv6 header.
    listener: UdpSocket,
    identifier: u16,
}

impl AllNodes {
    /// Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let listener = raw_socket()?;
        listener.set_nonblocking(true)?;
        let listener = UdpSocket::from_std(OwnedFd::from(listener).into())?;
        Ok(Self { listener, identifier: std::process::id() as u16 })
    }

    /// Sends one echo request to ff02::1. Hosts answer to `source` from an address of that scope.
    pub fn ping(&self, ifindex: u32, source: Ipv6Addr) -> io::Result<()> {
        let socket = raw_socket()?;
        let scope = if source.is_unicast_link_local() { ifindex } else { 0 };
        socket.bind(&SockAddr::from(SocketAddrV6::new(source, 0, 0, scope)))?;
        socket.set_multicast_if_v6(ifindex)?;
        socket.set_multicast_loop_v6(false)?;
        let all_nodes =
            SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, ifindex);
        let request = echo_request(self.identifier);
        socket.send_to(&request, &all_nodes.into()).map(|_| ())
    }

    /// The next host that answered: its address, and the interface if the address is link-local.
    /// Cancel safe.
    pub async fn answered(&self) -> io::Result<(Ipv6Addr, Option<u32>)> {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = self.listener.recv_from(&mut buffer).await?;
            let SocketAddr::V6(from) = from else { continue };
            if is_echo_reply(&buffer[..length], self.identifier) {
                let scope = Some(from.scope_id()).filter(|scope| *scope != 0);
                return Ok((*from.ip(), scope));
            }
        }
    }
}

fn raw_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))
}

/// RFC 4443 §4.1. The kernel fills in the checksum.
fn echo_request(identifier: u16) -> [u8; 8] {
    let [high, low] = identifier.to_be_bytes();
    [128, 0, 0, 0, high, low, 0, 1]
}

/// RFC 4443 §4.2.
fn is_echo_reply(message: &[u8], identifier: u16) -> bool {
    matches!(message, [129, 0, _, _, high, low, ..] if [*high, *low] == identifier.to_be_bytes())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some point in time to count from")]
mod tests {
    use super::*;
    use crate::topology::tests::{ethernet, neighbour};
    use crate::topology::{Event, Link};

    fn topology(addresses: &[(u32, &str)]) -> Topology {
        let mut topology = Topology::default();
        topology.apply(Event::Link(ethernet(2, "lan")));
        topology.apply(Event::Link(ethernet(3, "wan")));
        topology.apply(Event::Link(Link { kind: LinkKind::Loopback, ..ethernet(1, "lo") }));
        for (ifindex, address) in addresses {
            let address = address.parse().unwrap();
            topology.apply(Event::Address(Address { ifindex: *ifindex, address }));
        }
        topology
    }

    fn key(ip: &str) -> NeighbourKey {
        NeighbourKey { ifindex: 2, ip: ip.parse().unwrap() }
    }

    #[test]
    fn a_small_subnet_is_asked_at_once_but_for_us_and_those_known() {
        let mut topology = topology(&[(2, "192.0.2.1/29"), (1, "127.0.0.1/8")]);
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.2", [1; 6])));
        let mut sweep = Sweep::default();
        let now = Instant::now();
        assert_eq!(sweep.start(now, &topology), 4);
        let expected = ["192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"];
        assert_eq!(sweep.poll(now, &topology), expected.map(|ip| Step::Provoke(key(ip))));
        assert_eq!(sweep.poll(now, &topology), []);
        let timeout = sweep.poll_timeout().unwrap();
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.4", [4; 6])));
        let silent = ["192.0.2.3", "192.0.2.5", "192.0.2.6"];
        assert_eq!(sweep.poll(timeout, &topology), silent.map(|ip| Step::Forget(key(ip))));
        assert_eq!(sweep.poll_timeout(), None);
    }

    #[test]
    fn a_subnet_is_swept_once_in_an_interval() {
        let topology = topology(&[(2, "192.0.2.1/30")]);
        let mut sweep = Sweep::default();
        let now = Instant::now();
        assert_eq!(sweep.start(now, &topology), 1);
        assert_eq!(sweep.start(now + Duration::from_secs(4), &topology), 0);
        assert_eq!(sweep.start(now + Duration::from_secs(5), &topology), 1);
    }

    #[test]
    fn large_subnets_and_other_interfaces_are_left_alone() {
        let topology = topology(&[(2, "10.0.0.1/21"), (3, "198.51.100.1/24"), (2, "192.0.2.1/30")]);
        let interfaces = vec!["lan".to_owned()];
        let mut sweep = Sweep::new(SweepConfig { interfaces, ..SweepConfig::default() });
        assert_eq!(sweep.start(Instant::now(), &topology), 1);
    }

    #[test]
    fn never_more_than_a_batch_is_being_resolved() {
        let topology = topology(&[(2, "10.0.0.1/22")]);
        let mut sweep = Sweep::new(SweepConfig { batch: 256, ..SweepConfig::default() });
        let mut now = Instant::now();
        assert_eq!(sweep.start(now, &topology), 1021);
        let mut asked = 0;
        for batch in [256, 256, 256, 253, 0] {
            let steps = sweep.poll(now, &topology);
            let provoked = steps.iter().filter(|step| matches!(step, Step::Provoke(_))).count();
            assert_eq!(provoked, batch);
            asked += provoked;
            now = sweep.poll_timeout().unwrap_or(now);
        }
        assert_eq!(asked, 1021);
    }

    #[test]
    fn ipv6_links_are_pinged_from_every_own_address() {
        let topology = topology(&[(2, "fe80::1/64"), (2, "2001:db8::1/64")]);
        let mut sweep = Sweep::default();
        let now = Instant::now();
        sweep.start(now, &topology);
        let steps = sweep.poll(now, &topology);
        let ping = |source: &str| Step::PingAll { ifindex: 2, source: source.parse().unwrap() };
        assert_eq!(steps, [ping("2001:db8::1"), ping("fe80::1")]);
    }

    #[test]
    fn only_answers_to_our_own_pings_count() {
        assert!(is_echo_reply(&[129, 0, 9, 9, 1, 2, 0, 1], 0x0102));
        assert!(!is_echo_reply(&[129, 0, 9, 9, 1, 3, 0, 1], 0x0102));
        assert!(!is_echo_reply(&echo_request(0x0102), 0x0102));
        assert!(!is_echo_reply(&[129, 0, 0], 0x0102));
    }
}
