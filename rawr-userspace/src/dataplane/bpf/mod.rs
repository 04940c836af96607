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
    Counters, Flow, NextHop,
    backend::{Backend, BackendError, Installed, Reasons},
};

pub use self::{
    attach::{AttachError, Attachment, Mode, WantedMode},
    load::{Config, LoadError},
    pin::{BPFFS, PinError, Pins},
};

mod attach;
mod entries;
mod exits;
pub(crate) mod features;
mod load;
mod pin;
mod rates;
mod sys;

/// The loaded program. Dropping it leaves the kernel forwarding.
pub struct Bpf {
    ebpf: Ebpf,
    pins: Pins,
    /// Nobody else writes these maps.
    _lock: Lock,
    entries: Entries,
    exits: Exits,
    rates: Rates,
    reasons: PerCpuArray<MapData, u64>,
    capacity: u32,
    taken_over: bool,
    attached: Vec<Attachment>,
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
        self.entries.check(flow)?;
        if self.redirects_in_driver(next_hop) && !self.exits.takes_frames(next_hop.ifindex) {
            return Err(BackendError::NoRedirect { ifindex: next_hop.ifindex });
        }
        let before = self.entries.get(flow.from.local);
        if before.is_none() && self.entries.len() >= self.capacity as usize {
            return Err(BackendError::Full { capacity: self.capacity });
        }
        let exit = self.exits.acquire(&entries::exit(next_hop)?)?;
        let had = before.and_then(|before| before.limit);
        let limit = match flow.rate.map(|rate| self.rates.acquire(rate, had)).transpose() {
            Ok(limit) => limit,
            Err(error) => {
                self.exits.release(exit);
                return Err(error);
            }
        };
        let gone = self.entries.write(flow, next_hop.dst_mac, Held { exit, limit });
        if let Some(before) = before {
            // A flow that is still limited is so by the same index.
            let limit = before.limit.filter(|_| limit.is_none());
            self.release(Held { limit, ..before });
        }
        gone.into_iter().for_each(|held| self.release(held));
        Ok(())
    }

    fn remove(&mut self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        if self.entries.get(local).is_none() {
            return Ok(None);
        }
        let gone = self.entries.vacate(local);
        gone.into_iter().for_each(|held| self.release(held));
        Ok(Some(self.entries.counters(local)))
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        let exit = entries::exit(next_hop).ok().and_then(|exit| self.exits.find(&exit));
        exit.is_some_and(|exit| self.entries.holds(flow, exit, next_hop.dst_mac))
    }

    fn list_after(
        &self,
        after: Bound<SocketAddr>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError> {
        let exit = |slot| self.exits.get(slot).unwrap_or_default();
        Ok(self.entries.list_after(after, most, exit))
    }

    fn counters(&self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        Ok(self.entries.get(local).map(|_| self.entries.counters(local)))
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
        self.entries.occupant(local).is_none()
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
