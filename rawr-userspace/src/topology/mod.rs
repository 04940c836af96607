//! What this host knows of the network around it: links, own addresses, neighbours.
//!
//! Pure: tables that are fed with [`Event`]s (the kernel's notifications, decoded elsewhere) and
//! that answer questions. [`next_hop`] turns the kernel's answer about a route into what the data
//! plane needs, [`watch`] keeps the set of next hops that flows depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub mod next_hop;
pub mod watch;

/// A layer 2 address.
pub type Mac = [u8; 6];

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub kind: LinkKind,
    /// `None` for interfaces without Ethernet addresses.
    pub mac: Option<Mac>,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Administratively up, and with a carrier.
    pub up: bool,
    /// Whether neighbours on it are resolved by ARP and NDP.
    pub arp: bool,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
}

/// What an interface is, as far as forwarding depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A network card, or anything else that carries Ethernet frames.
    Ethernet,
    Veth,
    Bridge,
    /// A VLAN on top of another link.
    Vlan {
        /// `None` if the link below lies in another network namespace.
        parent: Option<u32>,
        /// VLAN identifier, 12 bits.
        id: u16,
        /// Tag protocol identifier: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
        protocol: u16,
    },
    Loopback,
    /// No Ethernet: tunnels, WireGuard, point-to-point links.
    NotEthernet,
}

/// An address of this host and the subnet that it makes reachable on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    pub ifindex: u32,
    pub address: IpNet,
}

/// Names one entry of the neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    pub ifindex: u32,
    pub ip: IpAddr,
}

/// A host on one of our links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub key: NeighbourKey,
    /// Known while the entry is valid (RFC 4861 §7.3.2: not `Resolving`, not `Failed`).
    pub mac: Option<Mac>,
    pub state: NeighbourState,
}

/// Where neighbour unreachability detection stands (RFC 4861 §7.3.2; ARP uses the same machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    Resolving,
    Reachable,
    /// Valid, not confirmed of late.
    Stale,
    /// Being asked whether it is still there.
    Probing,
    Failed,
    /// Set by the administrator, or needs no resolution.
    Permanent,
}

/// News from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Link(Link),
    LinkGone(u32),
    Address(Address),
    AddressGone(Address),
    Neighbour(Neighbour),
    NeighbourGone(NeighbourKey),
    /// A route to this subnet came, went or changed; `None` for a policy rule.
    Routes(Option<IpNet>),
}

/// What an [`Event`] means to those who depend on the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// A neighbour's MAC address came, went or changed, or an attempt to resolve it failed.
    Neighbour {
        key: NeighbourKey,
        mac_changed: bool,
    },
    /// Own addresses changed, and routes with them.
    Addresses,
    /// This link came, went or changed, and routes with it.
    Link(u32),
    /// The kernel may now answer otherwise when asked for routes into this subnet; `None`: for any.
    Routes(Option<IpNet>),
}

/// The tables.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Address>,
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
}

impl Topology {
    /// Takes in one event and says what it changed.
    pub fn apply(&mut self, event: Event) -> Change {
        match event {
            Event::Link(link) => self.apply_link(link),
            Event::LinkGone(ifindex) => self.remove_link(ifindex),
            Event::Address(address) => addresses_if(self.addresses.insert(address)),
            Event::AddressGone(address) => addresses_if(self.addresses.remove(&address)),
            Event::Neighbour(neighbour) => self.apply_neighbour(neighbour),
            Event::NeighbourGone(key) => match self.neighbours.remove(&key) {
                Some(gone) => Change::Neighbour { key, mac_changed: gone.mac.is_some() },
                None => Change::Nothing,
            },
            Event::Routes(subnet) => Change::Routes(subnet),
        }
    }

    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// In the order of their indices.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Own addresses, each with the length of its subnet's prefix.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter()
    }

    /// Whether `ip` is an address of this host.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address.addr() == ip)
    }

    /// The subnets whose hosts are neighbours: of links that are up and resolve addresses.
    pub fn on_link_subnets(&self) -> impl Iterator<Item = Address> {
        self.addresses
            .iter()
            .filter(|own| self.link(own.ifindex).is_some_and(|link| link.up && link.arp))
            .filter(|own| own.address.prefix_len() < own.address.max_prefix_len())
            .map(|own| Address { ifindex: own.ifindex, address: own.address.trunc() })
    }

    /// The link that `ip` is on, if it lies in one of our own subnets. The longest prefix wins.
    pub fn on_link(&self, ip: IpAddr) -> Option<u32> {
        self.on_link_subnets()
            .filter(|subnet| subnet.address.contains(&ip))
            .max_by_key(|subnet| subnet.address.prefix_len())
            .map(|subnet| subnet.ifindex)
    }

    pub fn neighbour(&self, key: NeighbourKey) -> Option<&Neighbour> {
        self.neighbours.get(&key)
    }

    /// The neighbour with this address, whatever link it is on; one with a MAC address first.
    pub fn neighbour_of(&self, ip: IpAddr) -> Option<&Neighbour> {
        self.neighbours
            .values()
            .filter(|neighbour| neighbour.key.ip == ip)
            .max_by_key(|neighbour| neighbour.mac.is_some())
    }

    pub fn neighbours(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.values()
    }

    fn apply_link(&mut self, link: Link) -> Change {
        let ifindex = link.ifindex;
        match self.links.insert(ifindex, link) {
            Some(before) if before == self.links[&ifindex] => Change::Nothing,
            _ => Change::Link(ifindex),
        }
    }

    fn remove_link(&mut self, ifindex: u32) -> Change {
        self.addresses.retain(|own| own.ifindex != ifindex);
        match self.links.remove(&ifindex) {
            Some(_) => Change::Link(ifindex),
            None => Change::Nothing,
        }
    }

    fn apply_neighbour(&mut self, neighbour: Neighbour) -> Change {
        let key = neighbour.key;
        let before = self.neighbours.insert(key, neighbour);
        let mac_changed = before.and_then(|before| before.mac) != neighbour.mac;
        let failed = neighbour.state == NeighbourState::Failed
            && before.is_none_or(|before| before.state != NeighbourState::Failed);
        if mac_changed || failed { Change::Neighbour { key, mac_changed } } else { Change::Nothing }
    }
}

fn addresses_if(changed: bool) -> Change {
    if changed { Change::Addresses } else { Change::Nothing }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn ethernet(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            kind: LinkKind::Ethernet,
            mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
            mtu: 1500,
            up: true,
            arp: true,
            master: None,
        }
    }

    pub(crate) fn neighbour(ifindex: u32, ip: &str, mac: Mac) -> Neighbour {
        Neighbour {
            key: NeighbourKey { ifindex, ip: ip.parse().unwrap() },
            mac: Some(mac),
            state: NeighbourState::Reachable,
        }
    }

    fn own(ifindex: u32, address: &str) -> Address {
        Address { ifindex, address: address.parse().unwrap() }
    }

    #[test]
    fn a_link_said_twice_changes_nothing() {
        let mut topology = Topology::default();
        assert_eq!(topology.apply(Event::Link(ethernet(2, "eth0"))), Change::Link(2));
        assert_eq!(topology.apply(Event::Link(ethernet(2, "eth0"))), Change::Nothing);
        let down = Link { up: false, ..ethernet(2, "eth0") };
        assert_eq!(topology.apply(Event::Link(down)), Change::Link(2));
        assert_eq!(topology.apply(Event::LinkGone(2)), Change::Link(2));
        assert_eq!(topology.apply(Event::LinkGone(2)), Change::Nothing);
    }

    #[test]
    fn only_a_neighbours_mac_or_failure_is_news() {
        let mut topology = Topology::default();
        let first = neighbour(2, "192.0.2.1", [1; 6]);
        let key = first.key;
        let news = |mac_changed| Change::Neighbour { key, mac_changed };
        assert_eq!(topology.apply(Event::Neighbour(first)), news(true));
        let stale = Neighbour { state: NeighbourState::Stale, ..first };
        assert_eq!(topology.apply(Event::Neighbour(stale)), Change::Nothing);
        let moved = Neighbour { mac: Some([3; 6]), ..first };
        assert_eq!(topology.apply(Event::Neighbour(moved)), news(true));
        let failed = Neighbour { mac: None, state: NeighbourState::Failed, ..first };
        assert_eq!(topology.apply(Event::Neighbour(failed)), news(true));
        assert_eq!(topology.apply(Event::Neighbour(failed)), Change::Nothing);
        let resolving = Neighbour { mac: None, state: NeighbourState::Resolving, ..first };
        assert_eq!(topology.apply(Event::Neighbour(resolving)), Change::Nothing);
        assert_eq!(topology.apply(Event::Neighbour(failed)), news(false));
        assert_eq!(topology.apply(Event::NeighbourGone(key)), news(false));
    }

    #[test]
    fn subnets_of_links_that_are_down_or_resolve_nothing_are_not_on_link() {
        let mut topology = Topology::default();
        topology.apply(Event::Link(ethernet(2, "eth0")));
        topology.apply(Event::Link(Link { up: false, ..ethernet(3, "eth1") }));
        topology.apply(Event::Link(Link { arp: false, ..ethernet(4, "wg0") }));
        for (ifindex, address) in [
            (2, "192.0.2.17/28"),
            (2, "198.51.100.1/32"),
            (3, "203.0.113.1/24"),
            (4, "10.0.0.1/24"),
        ] {
            topology.apply(Event::Address(own(ifindex, address)));
        }
        let subnets: Vec<_> = topology.on_link_subnets().collect();
        assert_eq!(subnets, [own(2, "192.0.2.16/28")]);
        assert!(topology.is_own("198.51.100.1".parse().unwrap()));
        assert!(!topology.is_own("192.0.2.18".parse().unwrap()));
    }

    #[test]
    fn the_longest_prefix_says_which_link_a_host_is_on() {
        let mut topology = Topology::default();
        topology.apply(Event::Link(ethernet(2, "eth0")));
        topology.apply(Event::Link(ethernet(3, "eth1")));
        topology.apply(Event::Address(own(2, "10.1.0.1/16")));
        topology.apply(Event::Address(own(3, "10.1.2.1/24")));
        assert_eq!(topology.on_link("10.1.2.7".parse().unwrap()), Some(3));
        assert_eq!(topology.on_link("10.1.3.7".parse().unwrap()), Some(2));
        assert_eq!(topology.on_link("10.2.3.7".parse().unwrap()), None);
    }

    #[test]
    fn a_neighbour_with_a_mac_is_preferred_to_one_without() {
        let mut topology = Topology::default();
        let there = neighbour(2, "fe80::1", [1; 6]);
        topology.apply(Event::Neighbour(there));
        topology.apply(Event::Neighbour(Neighbour {
            key: NeighbourKey { ifindex: 9, ..there.key },
            mac: None,
            state: NeighbourState::Failed,
        }));
        assert_eq!(topology.neighbour_of(there.key.ip), Some(&there));
    }
}
