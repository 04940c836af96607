//! The next hops that flows depend on, and which of them a change touches.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

use super::next_hop::{Resolution, RouteAnswer};
use super::{NeighbourKey, Topology};
use crate::dataplane::NextHop;

/// The two addresses that a route depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    pub remote: IpAddr,
    /// Address of ours that the packets leave with.
    pub local: IpAddr,
}

/// A watched pair's next hop that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub pair: Pair,
    pub next_hop: Option<NextHop>,
}

/// Watched pairs with their current next hops.
#[derive(Debug, Default)]
pub struct WatchSet {
    watches: HashMap<Pair, Watch>,
    by_neighbour: HashMap<NeighbourKey, BTreeSet<Pair>>,
    /// Pairs whose routes the kernel must be asked for again, in that order.
    stale: VecDeque<Pair>,
}

#[derive(Debug, Default)]
struct Watch {
    uses: usize,
    route: Option<RouteAnswer>,
    current: Option<NextHop>,
    /// Stands in `stale`.
    stale: bool,
}

impl WatchSet {
    /// Counts one more user of the pair. `true` if it is the first: then [`Self::set_route`] must
    /// follow.
    pub fn add(&mut self, pair: Pair) -> bool {
        let watch = self.watches.entry(pair).or_default();
        watch.uses += 1;
        watch.uses == 1
    }

    /// Counts one user less; the last one ends the watch.
    pub fn remove(&mut self, pair: Pair) {
        let Some(watch) = self.watches.get_mut(&pair) else { return };
        watch.uses -= 1;
        if watch.uses == 0 {
            let neighbour = watch.route.map(|route| route.neighbour(pair.remote));
            self.watches.remove(&pair);
            self.unlink(neighbour, pair);
        }
    }

    /// The pair's next hop as last resolved; `None` if there is none or the pair is not watched.
    pub fn current(&self, pair: Pair) -> Option<NextHop> {
        self.watches.get(&pair)?.current
    }

    pub fn len(&self) -> usize {
        self.watches.len()
    }

    pub fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Neighbours that watched pairs send to, in no particular order.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourKey> {
        self.by_neighbour.keys().copied()
    }

    pub fn uses(&self, key: NeighbourKey) -> bool {
        self.by_neighbour.contains_key(&key)
    }

    /// Routes into a subnet (`None`: all) may have changed: they must be asked for again.
    pub fn mark_stale(&mut self, subnet: Option<IpNet>) {
        for (pair, watch) in &mut self.watches {
            if !watch.stale && subnet.is_none_or(|subnet| subnet.contains(&pair.remote)) {
                watch.stale = true;
                self.stale.push_back(*pair);
            }
        }
    }

    /// The next pair whose route is to be asked for; its answer goes to [`Self::set_route`].
    pub fn next_stale(&mut self) -> Option<Pair> {
        while let Some(pair) = self.stale.pop_front() {
            if let Some(watch) = self.watches.get_mut(&pair) {
                watch.stale = false;
                return Some(pair);
            }
        }
        None
    }

    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Takes in the kernel's answer about a pair's route (`None`: unreachable).
    pub fn set_route(
        &mut self,
        pair: Pair,
        route: Option<RouteAnswer>,
        topology: &Topology,
    ) -> Option<Changed> {
        let watch = self.watches.get_mut(&pair)?;
        let before = std::mem::replace(&mut watch.route, route);
        let neighbour = |route: RouteAnswer| route.neighbour(pair.remote);
        if before.map(neighbour) != route.map(neighbour) {
            self.unlink(before.map(neighbour), pair);
            if let Some(route) = route {
                self.by_neighbour.entry(neighbour(route)).or_default().insert(pair);
            }
        }
        self.evaluate(pair, topology)
    }

    /// Resolves anew what depends on a neighbour that has changed.
    pub fn neighbour_changed(&mut self, key: NeighbourKey, topology: &Topology) -> Vec<Changed> {
        let pairs = self.by_neighbour.get(&key).cloned().unwrap_or_default();
        pairs.into_iter().filter_map(|pair| self.evaluate(pair, topology)).collect()
    }

    fn evaluate(&mut self, pair: Pair, topology: &Topology) -> Option<Changed> {
        let watch = self.watches.get_mut(&pair)?;
        let resolution = watch.route.map(|route| topology.next_hop(&route, pair.remote));
        let next_hop = resolution.and_then(Resolution::next_hop);
        if watch.current == next_hop {
            return None;
        }
        watch.current = next_hop;
        Some(Changed { pair, next_hop })
    }

    fn unlink(&mut self, neighbour: Option<NeighbourKey>, pair: Pair) {
        let Some(key) = neighbour else { return };
        if let Some(pairs) = self.by_neighbour.get_mut(&key) {
            pairs.remove(&pair);
            if pairs.is_empty() {
                self.by_neighbour.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Event;
    use crate::topology::tests::{ethernet, neighbour};

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn pair(remote: &str) -> Pair {
        Pair { remote: remote.parse().unwrap(), local: "192.0.2.1".parse().unwrap() }
    }

    fn via(oif: u32, gateway: &str) -> Option<RouteAnswer> {
        let gateway = Some(gateway.parse().unwrap());
        Some(RouteAnswer { oif, gateway, source: None, mtu: None })
    }

    fn two_routers() -> Topology {
        let mut topology = Topology::default();
        topology.apply(Event::Link(ethernet(2, "eth0")));
        topology.apply(Event::Link(ethernet(3, "eth1")));
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.254", A)));
        topology.apply(Event::Neighbour(neighbour(3, "198.51.100.254", B)));
        topology
    }

    #[test]
    fn a_changed_neighbour_touches_only_those_behind_it() {
        let mut topology = two_routers();
        let mut watches = WatchSet::default();
        for (remote, route) in [
            ("203.0.113.1", via(2, "192.0.2.254")),
            ("203.0.113.2", via(2, "192.0.2.254")),
            ("203.0.113.3", via(3, "198.51.100.254")),
        ] {
            assert!(watches.add(pair(remote)));
            assert!(watches.set_route(pair(remote), route, &topology).is_some());
        }
        let moved = neighbour(2, "192.0.2.254", B);
        topology.apply(Event::Neighbour(moved));
        let changed = watches.neighbour_changed(moved.key, &topology);
        let remotes: Vec<_> = changed.iter().map(|changed| changed.pair).collect();
        assert_eq!(remotes, [pair("203.0.113.1"), pair("203.0.113.2")]);
        assert!(changed.iter().all(|changed| changed.next_hop.unwrap().dst_mac == B));
        assert!(watches.neighbour_changed(moved.key, &topology).is_empty());
    }

    #[test]
    fn a_moved_route_leaves_the_old_neighbour() {
        let topology = two_routers();
        let mut watches = WatchSet::default();
        let pair = pair("203.0.113.1");
        watches.add(pair);
        watches.set_route(pair, via(2, "192.0.2.254"), &topology);
        let changed = watches.set_route(pair, via(3, "198.51.100.254"), &topology).unwrap();
        assert_eq!(changed.next_hop.unwrap().ifindex, 3);
        assert_eq!(watches.current(pair), changed.next_hop);
        let used: Vec<_> = watches.neighbours().collect();
        assert_eq!(used, [NeighbourKey { ifindex: 3, ip: "198.51.100.254".parse().unwrap() }]);
        let gone = watches.set_route(pair, None, &topology).unwrap();
        assert_eq!(gone.next_hop, None);
        assert_eq!(watches.neighbours().count(), 0);
    }

    #[test]
    fn the_last_user_ends_the_watch() {
        let topology = two_routers();
        let mut watches = WatchSet::default();
        let pair = pair("203.0.113.1");
        assert!(watches.add(pair));
        watches.set_route(pair, via(2, "192.0.2.254"), &topology);
        assert!(!watches.add(pair));
        watches.remove(pair);
        assert!(watches.current(pair).is_some());
        watches.remove(pair);
        assert!(watches.current(pair).is_none() && watches.is_empty());
        assert_eq!(watches.neighbours().count(), 0);
        watches.remove(pair);
    }

    #[test]
    fn a_route_touches_only_the_pairs_that_it_leads_to() {
        let mut watches = WatchSet::default();
        watches.add(pair("203.0.113.1"));
        watches.add(pair("198.51.100.1"));
        watches.mark_stale(Some("198.51.100.0/24".parse().unwrap()));
        assert_eq!(watches.next_stale(), Some(pair("198.51.100.1")));
        assert_eq!(watches.next_stale(), None);
        watches.mark_stale(Some("::/0".parse().unwrap()));
        assert!(!watches.has_stale());
        watches.mark_stale(Some("0.0.0.0/0".parse().unwrap()));
        assert_eq!(watches.stale.len(), 2);
    }

    #[test]
    fn every_pair_is_asked_for_once_however_often_routes_change() {
        let mut watches = WatchSet::default();
        watches.add(pair("203.0.113.1"));
        watches.add(pair("203.0.113.2"));
        watches.mark_stale(None);
        watches.mark_stale(None);
        watches.remove(pair("203.0.113.2"));
        assert_eq!(watches.next_stale(), Some(pair("203.0.113.1")));
        assert_eq!(watches.next_stale(), None);
        watches.mark_stale(None);
        assert!(watches.has_stale());
    }
}
