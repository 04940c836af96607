//! A backend of plain maps that forwards nothing: for tests, and for a daemon whose own sockets do
//! all forwarding. It keeps the kernel tables' rules: places that flows share, and flows that need
//! the one of the other direction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Bound,
};

use rawr_common::flow;

use super::{
    Counters, Flow, NextHop,
    backend::{Backend, BackendError, Installed, Reasons},
};

/// No address and port comes before this one.
const LEAST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// See the [module](self).
#[derive(Debug)]
pub struct Memory {
    flows: BTreeMap<SocketAddr, (Installed, Counters)>,
    occupants: BTreeMap<(bool, u32), SocketAddr>,
    /// The translating flows behind the reverse flow that each needs.
    dependents: BTreeSet<(SocketAddr, SocketAddr)>,
    table_mask: u32,
    capacity: u32,
    writes: u64,
}

impl Memory {
    /// Tables of `table_len` places (a power of two) for each family, for `capacity` flows in all.
    pub fn new(table_len: u32, capacity: u32) -> Self {
        assert!(table_len.is_power_of_two(), "a table's length is a power of two");
        Self {
            flows: BTreeMap::new(),
            occupants: BTreeMap::new(),
            dependents: BTreeSet::new(),
            table_mask: table_len - 1,
            capacity,
            writes: 0,
        }
    }

    /// Counts packets as if the flow at `local` had forwarded them. Returns whether there is one.
    pub fn forward(&mut self, local: SocketAddr, packets: u64, bytes: u64) -> bool {
        let Some((_, counters)) = self.flows.get_mut(&local) else { return false };
        *counters += Counters { packets, bytes };
        true
    }

    /// How often a flow has been written or removed.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    fn place(&self, local: SocketAddr) -> (bool, u32) {
        let last_byte = match local.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        (local.is_ipv6(), flow::index(last_byte, local.port(), self.table_mask))
    }

    /// Whether the flow at `flow.to.local` is the other direction of `flow`, as far as a
    /// translation to IPv6 needs it.
    fn has_reverse(&self, flow: &Flow) -> bool {
        self.flows.get(&flow.to.local).is_some_and(|(reverse, _)| reverse.flow.from == flow.to)
    }

    fn take(&mut self, local: SocketAddr) -> Option<Counters> {
        let (installed, counters) = self.flows.remove(&local)?;
        self.occupants.remove(&self.place(local));
        self.dependents.remove(&(installed.flow.to.local, local));
        self.writes += 1;
        Some(counters)
    }

    /// Removes the translating flows whose reverse flow was `gone`.
    fn take_dependents(&mut self, gone: SocketAddr) {
        let all = (gone, LEAST)..;
        let dependents = self.dependents.range(all).take_while(|(reverse, _)| *reverse == gone);
        for (_, local) in dependents.copied().collect::<Vec<_>>() {
            let flow = self.flows.get(&local).map(|(installed, _)| installed.flow);
            if flow.is_some_and(|flow| !self.has_reverse(&flow)) {
                self.take(local);
            }
        }
    }
}

impl Backend for Memory {
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        let local = flow.from.local;
        for leg in [flow.from, flow.to] {
            if leg.local.is_ipv4() != leg.remote.is_ipv4() {
                return Err(BackendError::Unsuited { local: leg.local, remote: leg.remote });
            }
        }
        let place = self.place(local);
        match self.occupants.get(&place) {
            Some(&occupant) if occupant != local => {
                return Err(BackendError::IndexTaken { local, occupant });
            }
            _ => {}
        }
        if translates(flow) && !self.has_reverse(flow) {
            return Err(BackendError::NoReverse { local, reverse: flow.to.local });
        }
        let counters = match self.flows.get(&local) {
            Some((_, counters)) => *counters,
            None if self.flows.len() >= self.capacity as usize => {
                return Err(BackendError::Full { capacity: self.capacity });
            }
            None => Counters::default(),
        };
        let installed = Installed { flow: *flow, next_hop: *next_hop };
        if let Some((before, _)) = self.flows.insert(local, (installed, counters)) {
            self.dependents.remove(&(before.flow.to.local, local));
        }
        if translates(flow) {
            self.dependents.insert((flow.to.local, local));
        }
        self.occupants.insert(place, local);
        self.writes += 1;
        self.take_dependents(local);
        Ok(())
    }

    fn remove(&mut self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        let counters = self.take(local);
        self.take_dependents(local);
        Ok(counters)
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        let wanted = Installed { flow: *flow, next_hop: *next_hop };
        self.flows.get(&flow.from.local).is_some_and(|(installed, _)| *installed == wanted)
    }

    fn list_after(
        &self,
        after: Bound<SocketAddr>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError> {
        let behind = self.flows.range((after, Bound::Unbounded)).take(most);
        Ok(behind.map(|(_, (installed, _))| *installed).collect())
    }

    fn counters(&self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        Ok(self.flows.get(&local).map(|(_, counters)| *counters))
    }

    fn reasons(&self) -> Result<Reasons, BackendError> {
        Ok(Reasons::default())
    }

    fn index_free(&self, local: SocketAddr) -> bool {
        !self.occupants.contains_key(&self.place(local))
    }
}

/// Whether a flow leaves as IPv6 what arrives as IPv4.
fn translates(flow: &Flow) -> bool {
    flow.from.local.is_ipv4() && flow.to.local.is_ipv6()
}
