//! The kernel as a backend: an XDP program and its maps.
//!
//! Everything is pinned and outlives the process: the kernel goes on forwarding while the daemon
//! restarts or is upgraded. A start therefore goes: [`Bpf::open`], which finds the flows of a
//! predecessor; then the desired flows, for a reconciler to settle; then [`Bpf::attach`] for each
//! interface, which replaces the program of a predecessor at once; then
//! [`Bpf::remove_leftovers`]. To end the forwarding as well, there is [`Pins::detach`].

use std::{error::Error, io, net::SocketAddr, ops::Bound};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};

use self::{
    entries::{Entries, Held},
    exits::Exits,
    pin::Lock,
    rates::Rates,
};
use super::{
    Counters, Flow, FlowKey, NextHop,
    backend::{Backend, BackendError, Installed, Reasons, Usage},
};

pub use self::{
    attach::{AttachError, Attachment, Mode, WantedMode},
    listeners::Listener,
    load::{Config, LoadError},
    pin::{BPFFS, PinError, Pins},
};

mod attach;
mod entries;
mod exits;
pub(crate) mod features;
mod listeners;
mod load;
mod pin;
mod ports;
mod rates;
mod sys;
mod tables;

/// The loaded program. Dropping it leaves the kernel forwarding.
pub struct Bpf {
    ebpf: Ebpf,
    pins: Pins,
    /// Nobody else writes these maps.
    _lock: Lock,
    flows: Flows,
    reasons: PerCpuArray<MapData, u64>,
    capacity: u32,
    taken_over: bool,
    attached: Vec<Attachment>,
}

/// The flow tables and what flows build on.
struct Flows {
    entries: Entries,
    exits: Exits,
    rates: Rates,
}

impl Bpf {
    /// Whether the maps, with the flows in them, are those of a predecessor.
    pub fn has_taken_over(&self) -> bool {
        self.taken_over
    }

    /// The interfaces that have the program.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attached
    }

    /// Whether packets to `next_hop` are handed from one driver to another, which not every driver
    /// takes part in. What it does not take is lost without an error.
    fn redirects_in_driver(&self, next_hop: &NextHop) -> bool {
        let on_a_stick = next_hop.tx && self.attached.len() == 1;
        !on_a_stick && self.attached.iter().any(|attached| attached.mode == Mode::Native)
    }
}

impl Flows {
    /// Gives back what a flow that is gone has held.
    fn release(&mut self, held: Held) {
        self.exits.release(held.exit);
        if let Some(limit) = held.limit {
            self.rates.release(limit);
        }
    }
}

impl Backend for Bpf {
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        let place = self.flows.entries.check(flow)?;
        let (redirects, capacity) = (self.redirects_in_driver(next_hop), self.capacity);
        let Flows { entries, exits, rates } = &mut self.flows;
        if redirects && !exits.takes_frames(next_hop.ifindex) {
            return Err(BackendError::NoRedirect { ifindex: next_hop.ifindex });
        }
        let before = entries.get(flow.from.key());
        if before.is_none() && entries.len() >= capacity as usize {
            return Err(BackendError::Full { capacity });
        }
        let exit = exits.acquire(&entries::exit(next_hop)?)?;
        let limit = match rates.acquire(&flow.limits, before.and_then(|before| before.limit)) {
            Ok(limit) => limit,
            Err(error) => {
                exits.release(exit);
                return Err(error);
            }
        };
        let gone = entries.write(flow, next_hop.dst_mac, Held { place, exit, limit });
        before.into_iter().chain(gone).for_each(|held| self.flows.release(held));
        Ok(())
    }

    fn remove(&mut self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        let gone = self.flows.entries.vacate(key);
        let last = gone.last().map(|held| self.flows.entries.counters(key, held.place));
        gone.into_iter().for_each(|held| self.flows.release(held));
        Ok(last)
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        let Flows { entries, exits, rates } = &self.flows;
        let Some(held) = entries.get(flow.from.key()) else { return false };
        let exit = entries::exit(next_hop).ok().and_then(|exit| exits.find(&exit));
        rates.agree(held.limit, &flow.limits)
            && exit.is_some_and(|exit| entries.holds(flow, exit, next_hop.dst_mac))
    }

    fn list_after(
        &self,
        after: Bound<FlowKey>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError> {
        let Flows { entries, exits, rates } = &self.flows;
        let exit = |slot| exits.get(slot).unwrap_or_default();
        Ok(entries.list_after(after, most, exit, |limit| rates.describe(limit)))
    }

    fn counters(&self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        let entries = &self.flows.entries;
        Ok(entries.get(key).map(|held| entries.counters(key, held.place)))
    }

    fn reasons(&self) -> Result<Reasons, BackendError> {
        let mut reasons = Reasons::default();
        for (index, sum) in (0..).zip(&mut reasons) {
            let cpus = self
                .reasons
                .get(&index, 0)
                .map_err(|error| BackendError::kernel("read the reasons", os_error(&error)))?;
            *sum = cpus.iter().sum();
        }
        Ok(reasons)
    }

    fn index_free(&self, local: SocketAddr) -> bool {
        self.flows.entries.index_free(local)
    }

    fn usage(&self) -> Usage {
        self.flows.entries.usage()
    }
}

/// The error of the system that another error comes from.
fn os_error(error: &(dyn Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(code);
        }
        cause = error.source();
    }
    io::Error::other(error.to_string())
}
