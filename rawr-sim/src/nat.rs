//! A router that translates and filters UDP as RFC 4787 describes it, or worse.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// How long a router remembers a datagram that nobody has asked for.
const EARLY_LIFETIME: Duration = Duration::from_secs(30);
/// Tries to find a free port at random before a flow is refused.
const PORT_TRIES: u32 = 10_000;

/// What a router does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NatConfig {
    /// How it chooses external endpoints.
    pub mapping: Mapping,
    /// Whose datagrams it lets in.
    pub filtering: Filtering,
    /// How it chooses ports.
    pub ports: Ports,
    /// Whether its own outside is open, as with plain Linux masquerading: it keeps a datagram that
    /// nobody has asked for as a flow of its own, and the inside's flow between the same endpoints
    /// has another port from then on.
    pub keeps_early: bool,
    /// Whether it sends back what its inside sends to its outside.
    pub hairpins: bool,
    /// Whether it lets no UDP out.
    pub blocks_udp: bool,
    /// How long a mapping lives without datagrams from inside.
    pub lifetime: Duration,
    /// New mappings of others behind it, a second; they matter where ports are sequential.
    pub foreign_flows: f64,
}

/// RFC 4787 §4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One external endpoint, whatever the destination.
    EndpointIndependent,
    /// One for each destination address.
    AddressDependent,
    /// One for each destination address and port.
    AddressAndPortDependent,
}

/// RFC 4787 §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those of addresses that the socket has sent to.
    AddressDependent,
    /// Those of addresses and ports that the socket has sent to.
    AddressAndPortDependent,
}

/// RFC 4787 §4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The inside's own port, or any if that is taken.
    Preserved,
    /// The last one's plus `step`.
    Sequential {
        /// From one mapping to the next.
        step: i16,
    },
    /// Any within these bounds.
    Block {
        /// The lowest.
        low: u16,
        /// The highest.
        high: u16,
    },
    /// Any.
    Random,
}

impl NatConfig {
    /// The usual home router: endpoint-independent mapping, address and port-dependent filtering,
    /// ports preserved, closed to the outside.
    pub const fn home() -> Self {
        Self {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: Ports::Preserved,
            keeps_early: false,
            hairpins: false,
            blocks_udp: false,
            lifetime: Duration::from_secs(120),
            foreign_flows: 0.0,
        }
    }

    /// "Symmetric": address and port-dependent mapping and filtering.
    pub const fn symmetric(ports: Ports) -> Self {
        Self { mapping: Mapping::AddressAndPortDependent, ports, ..Self::home() }
    }
}

/// A router, and what it remembers.
#[derive(Debug)]
pub(crate) struct Nat {
    config: NatConfig,
    /// Its external address.
    pub(crate) ip: Ipv4Addr,
    entries: Vec<Entry>,
    by_key: HashMap<Key, usize>,
    by_port: HashMap<u16, Vec<usize>>,
    /// Datagrams that nobody has asked for: their source and the port that they came to.
    early: HashMap<(SocketAddr, u16), Duration>,
    /// The last port of a sequence, and when it was given.
    last_port: u16,
    last_at: Duration,
    rng: StdRng,
}

/// What a mapping belongs to: the inside, and as much of the destination as matters.
type Key = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Entry {
    inside: SocketAddr,
    port: u16,
    filtering: Filtering,
    /// Where the inside has sent to.
    sent_to: HashSet<SocketAddr>,
    used_at: Duration,
}

impl Nat {
    pub(crate) fn new(config: NatConfig, ip: Ipv4Addr, mut rng: StdRng) -> Self {
        let last_port = rng.random_range(10_000..60_000);
        Self {
            config,
            ip,
            entries: Vec::new(),
            by_key: HashMap::new(),
            by_port: HashMap::new(),
            early: HashMap::new(),
            last_port,
            last_at: Duration::ZERO,
            rng,
        }
    }

    pub(crate) const fn hairpins(&self) -> bool {
        self.config.hairpins
    }

    /// The source that a datagram has outside; nothing if it is not let out.
    pub(crate) fn outbound(
        &mut self,
        now: Duration,
        inside: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        if self.config.blocks_udp {
            return None;
        }
        let at = self.mapping(now, inside, to)?;
        let entry = &mut self.entries[at];
        entry.used_at = now;
        entry.sent_to.insert(to);
        Some(SocketAddr::from((self.ip, entry.port)))
    }

    /// Whom a datagram is for that has come from outside; nothing if it is not let in.
    pub(crate) fn inbound(
        &mut self,
        now: Duration,
        from: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        let at_port = self.by_port.get(&port).map_or(&[][..], Vec::as_slice);
        let alive = || at_port.iter().map(|at| &self.entries[*at]).filter(|e| self.lives(e, now));
        let exact = alive().find(|entry| entry.sent_to.contains(&from));
        if let Some(entry) = exact.or_else(|| alive().find(|entry| entry.lets_in(from))) {
            return Some(entry.inside);
        }
        if self.config.keeps_early {
            self.early.insert((from, port), now);
        }
        None
    }

    /// The mapping for a datagram, which may be new.
    fn mapping(&mut self, now: Duration, inside: SocketAddr, to: SocketAddr) -> Option<usize> {
        let exact = (inside, Some(to.ip()), Some(to.port()));
        if let Some(at) = self.alive(&exact, now) {
            return Some(at);
        }
        let key = match self.config.mapping {
            Mapping::EndpointIndependent => (inside, None, None),
            Mapping::AddressDependent => (inside, Some(to.ip()), None),
            Mapping::AddressAndPortDependent => exact,
        };
        let Some(at) = self.alive(&key, now) else {
            let port = self.choose_port(now, inside, to)?;
            return Some(self.insert(now, key, port, self.config.filtering));
        };
        let entry = &self.entries[at];
        if entry.sent_to.contains(&to) || !self.is_spoilt(now, to, entry.port) {
            return Some(at);
        }
        let port = self.random_port(now, 1024, u16::MAX, to)?;
        Some(self.insert(now, exact, port, Filtering::AddressAndPortDependent))
    }

    fn insert(&mut self, now: Duration, key: Key, port: u16, filtering: Filtering) -> usize {
        let at = self.entries.len();
        let sent_to = HashSet::new();
        self.entries.push(Entry { inside: key.0, port, filtering, sent_to, used_at: now });
        self.by_key.insert(key, at);
        self.by_port.entry(port).or_default().push(at);
        at
    }

    fn choose_port(&mut self, now: Duration, inside: SocketAddr, to: SocketAddr) -> Option<u16> {
        match self.config.ports {
            Ports::Preserved => {
                let own = inside.port();
                if self.is_free(now, own, to) && !self.is_spoilt(now, to, own) {
                    return Some(own);
                }
                self.random_port(now, 1024, u16::MAX, to)
            }
            Ports::Sequential { step } => {
                let elapsed = now.saturating_sub(self.last_at).as_secs_f64();
                let foreign = self.poisson(elapsed * self.config.foreign_flows);
                self.last_at = now;
                for _ in 0..=foreign {
                    self.last_port = next_port(self.last_port, step);
                }
                while !self.is_free(now, self.last_port, to) {
                    self.last_port = next_port(self.last_port, step);
                }
                Some(self.last_port)
            }
            Ports::Block { low, high } => self.random_port(now, low, high, to),
            Ports::Random => self.random_port(now, 1024, u16::MAX, to),
        }
    }

    fn random_port(&mut self, now: Duration, low: u16, high: u16, to: SocketAddr) -> Option<u16> {
        for _ in 0..PORT_TRIES {
            let port = self.rng.random_range(low..=high);
            if self.is_free(now, port, to) && !self.is_spoilt(now, to, port) {
                return Some(port);
            }
        }
        None
    }

    /// Flows to destinations that have different mappings may share a port.
    fn is_free(&self, now: Duration, port: u16, to: SocketAddr) -> bool {
        let meets = |entry: &Entry| match self.config.mapping {
            Mapping::EndpointIndependent => true,
            Mapping::AddressDependent => entry.sent_to.iter().any(|old| old.ip() == to.ip()),
            Mapping::AddressAndPortDependent => entry.sent_to.contains(&to),
        };
        let taken = |at: &usize| {
            let entry = &self.entries[*at];
            self.lives(entry, now) && meets(entry)
        };
        !self.by_port.get(&port).is_some_and(|entries| entries.iter().any(taken))
    }

    fn is_spoilt(&self, now: Duration, to: SocketAddr, port: u16) -> bool {
        self.early.get(&(to, port)).is_some_and(|at| now < *at + EARLY_LIFETIME)
    }

    fn alive(&self, key: &Key, now: Duration) -> Option<usize> {
        self.by_key.get(key).copied().filter(|at| self.lives(&self.entries[*at], now))
    }

    fn lives(&self, entry: &Entry, now: Duration) -> bool {
        now < entry.used_at + self.config.lifetime
    }

    /// A random count of mean `mean` (D. Knuth's method; the mean is bounded).
    fn poisson(&mut self, mean: f64) -> u32 {
        let limit = (-mean.min(200.0)).exp();
        let mut product = self.rng.random::<f64>();
        let mut count = 0;
        while product > limit {
            product *= self.rng.random::<f64>();
            count += 1;
        }
        count
    }
}

impl Entry {
    fn lets_in(&self, from: SocketAddr) -> bool {
        match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.sent_to.iter().any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => self.sent_to.contains(&from),
        }
    }
}

/// The next port of a sequence; the well-known ones are left out.
fn next_port(port: u16, step: i16) -> u16 {
    let next = 1024 + (i32::from(port) + i32::from(step) - 1024).rem_euclid(65_536 - 1024);
    u16::try_from(next).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn nat(config: NatConfig) -> Nat {
        Nat::new(config, Ipv4Addr::new(203, 0, 113, 1), StdRng::seed_from_u64(1))
    }

    fn inside(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn remote(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, host], port))
    }

    /// External ports towards two ports of one address, and another address.
    fn three(config: NatConfig) -> [u16; 3] {
        let mut nat = nat(config);
        [remote(1, 1), remote(1, 2), remote(2, 1)]
            .map(|to| nat.outbound(NOW, inside(5000), to).unwrap().port())
    }

    #[test]
    fn mappings_depend_on_what_they_say() {
        let [a, b, c] = three(NatConfig::home());
        assert_eq!((a, b, c), (5000, 5000, 5000));
        let by_address =
            NatConfig { mapping: Mapping::AddressDependent, ..NatConfig::symmetric(Ports::Random) };
        let [a, b, c] = three(by_address);
        assert!(a == b && b != c);
        let [a, b, c] = three(NatConfig::symmetric(Ports::Sequential { step: 3 }));
        assert_eq!((b, c), (a + 3, a + 6));
    }

    #[test]
    fn filters_let_in_whom_they_say() {
        let cases = [
            (Filtering::EndpointIndependent, [true, true, true]),
            (Filtering::AddressDependent, [true, true, false]),
            (Filtering::AddressAndPortDependent, [true, false, false]),
        ];
        for (filtering, expected) in cases {
            let mut nat = nat(NatConfig { filtering, ..NatConfig::home() });
            nat.outbound(NOW, inside(5000), remote(1, 1)).unwrap();
            let got = [remote(1, 1), remote(1, 2), remote(2, 1)]
                .map(|from| nat.inbound(NOW, from, 5000).is_some());
            assert_eq!(got, expected, "{filtering:?}");
        }
    }

    #[test]
    fn an_early_datagram_moves_the_flow_of_an_open_router_only() {
        for keeps_early in [true, false] {
            let mut nat = nat(NatConfig { keeps_early, ..NatConfig::home() });
            nat.outbound(NOW, inside(5000), remote(1, 1)).unwrap();
            assert_eq!(nat.inbound(NOW, remote(2, 1), 5000), None);
            let moved = nat.outbound(NOW, inside(5000), remote(2, 1)).unwrap().port();
            assert_eq!(moved != 5000, keeps_early);
            let other = nat.outbound(NOW, inside(5000), remote(2, 2)).unwrap().port();
            assert_eq!(other, 5000, "flows that nobody was early for stay");
        }
    }

    #[test]
    fn a_mapping_ends_with_its_lifetime() {
        let mut nat = nat(NatConfig::home());
        nat.outbound(NOW, inside(5000), remote(1, 1)).unwrap();
        let lifetime = NatConfig::home().lifetime;
        assert!(nat.inbound(NOW + lifetime / 2, remote(1, 1), 5000).is_some());
        assert!(nat.inbound(NOW + lifetime, remote(1, 1), 5000).is_none());
    }
}
