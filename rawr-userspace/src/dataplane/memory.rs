//! A backend of plain maps that forwards nothing: for tests, and for a daemon whose own sockets do
//! all forwarding. It keeps the kernel tables' rules: places that flows share, and flows that need
//! the one of the other direction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
};

use rawr_common::{channel::PROBES, flow::Place};

use super::{
    Counters, Flow, FlowKey, NextHop, Share,
    backend::{Backend, BackendError, Installed, Reasons, Usage},
    place::Places,
};

/// See the [module](self).
#[derive(Debug)]
pub struct Memory {
    flows: BTreeMap<FlowKey, Record>,
    /// Whose flow stands in a place of IPv6 or IPv4.
    occupants: BTreeMap<(bool, Place), FlowKey>,
    /// The translating flows behind the reverse flow that each needs.
    dependents: BTreeSet<(FlowKey, FlowKey)>,
    places: Places,
    capacity: u32,
    writes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    installed: Installed,
    counters: Counters,
    place: Place,
}

impl Memory {
    /// Tables of `table_len` places (a power of two) for each family, by port and by channel, for
    /// `capacity` flows in all.
    pub fn new(table_len: u32, capacity: u32) -> Self {
        Self::in_places(Places::new(table_len, table_len, 0), capacity)
    }

    pub(super) fn in_places(places: Places, capacity: u32) -> Self {
        Self {
            flows: BTreeMap::new(),
            occupants: BTreeMap::new(),
            dependents: BTreeSet::new(),
            places,
            capacity,
            writes: 0,
        }
    }

    /// Counts packets as if a flow had forwarded them. Returns whether there is one.
    pub fn forward(&mut self, key: FlowKey, packets: u64, bytes: u64) -> bool {
        let Some(record) = self.flows.get_mut(&key) else { return false };
        record.counters += Counters { packets, bytes };
        true
    }

    /// How often a flow has been written or removed.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// The first vacant place for the flow of a leg, or the one that it has.
    fn place(&self, flow: &Flow) -> Result<Place, BackendError> {
        let key = flow.from.key();
        if let Some(record) = self.flows.get(&key) {
            return Ok(record.place);
        }
        let occupant = |place: Place| self.occupants.get(&(key.is_ipv6(), place)).copied();
        let vacant = self.places.of(flow.from).find(|&place| occupant(place).is_none());
        vacant.ok_or_else(|| {
            let taken = occupant(Place::Port(self.places.index(flow.from.local)));
            match (flow.from.share, taken) {
                (Share::Whole, Some(occupant)) => BackendError::IndexTaken { key, occupant },
                _ => BackendError::NoPlace { key, probes: PROBES },
            }
        })
    }

    /// Whether the other direction of `flow` is there, as far as a translation to IPv6 needs it.
    fn has_reverse(&self, flow: &Flow) -> bool {
        let reverse = self.flows.get(&flow.to.key());
        reverse.is_some_and(|reverse| reverse.installed.flow.from == flow.to)
    }

    fn take(&mut self, key: FlowKey) -> Option<Counters> {
        let Record { installed, counters, place } = self.flows.remove(&key)?;
        self.occupants.remove(&(key.is_ipv6(), place));
        self.dependents.remove(&(installed.flow.to.key(), key));
        self.writes += 1;
        Some(counters)
    }

    /// Removes the translating flows whose reverse flow was `gone`.
    fn take_dependents(&mut self, gone: FlowKey) {
        let all = (gone, FlowKey::LEAST)..;
        let dependents = self.dependents.range(all).take_while(|(reverse, _)| *reverse == gone);
        for (_, key) in dependents.copied().collect::<Vec<_>>() {
            let flow = self.flows.get(&key).map(|record| record.installed.flow);
            if flow.is_some_and(|flow| !self.has_reverse(&flow)) {
                self.take(key);
            }
        }
    }
}

impl Backend for Memory {
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        let key = flow.from.key();
        for leg in [flow.from, flow.to] {
            if leg.local.is_ipv4() != leg.remote.is_ipv4() {
                return Err(BackendError::Unsuited { local: leg.local, remote: leg.remote });
            }
        }
        let place = self.place(flow)?;
        if translates(flow) && !self.has_reverse(flow) {
            return Err(BackendError::NoReverse { key, reverse: flow.to.key() });
        }
        let counters = match self.flows.get(&key) {
            Some(record) => record.counters,
            None if self.flows.len() >= self.capacity as usize => {
                return Err(BackendError::Full { capacity: self.capacity });
            }
            None => Counters::default(),
        };
        let installed = Installed { flow: *flow, next_hop: *next_hop };
        if let Some(before) = self.flows.insert(key, Record { installed, counters, place }) {
            self.dependents.remove(&(before.installed.flow.to.key(), key));
        }
        if translates(flow) {
            self.dependents.insert((flow.to.key(), key));
        }
        self.occupants.insert((key.is_ipv6(), place), key);
        self.writes += 1;
        self.take_dependents(key);
        Ok(())
    }

    fn remove(&mut self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        let counters = self.take(key);
        self.take_dependents(key);
        Ok(counters)
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        let wanted = Installed { flow: *flow, next_hop: *next_hop };
        self.flows.get(&flow.from.key()).is_some_and(|record| record.installed == wanted)
    }

    fn list_after(
        &self,
        after: Bound<FlowKey>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError> {
        let behind = self.flows.range((after, Bound::Unbounded)).take(most);
        Ok(behind.map(|(_, record)| record.installed).collect())
    }

    fn counters(&self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        Ok(self.flows.get(&key).map(|record| record.counters))
    }

    fn reasons(&self) -> Result<Reasons, BackendError> {
        Ok(Reasons::default())
    }

    fn index_free(&self, local: SocketAddr) -> bool {
        let key = FlowKey::port(local);
        let next = self.flows.range(key..).next();
        let index = Place::Port(self.places.index(local));
        !self.occupants.contains_key(&(key.is_ipv6(), index))
            && next.is_none_or(|(next, _)| next.local() != key.local())
    }

    fn usage(&self) -> Usage {
        Usage::of(self.places.lengths(), self.occupants.keys().copied())
    }
}

/// Whether a flow leaves as IPv6 what arrives as IPv4.
fn translates(flow: &Flow) -> bool {
    flow.from.local.is_ipv4() && flow.to.local.is_ipv6()
}
