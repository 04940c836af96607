//! The kernel as a backend: an XDP program and its maps.
//!
//! Everything is pinned and outlives the process: the kernel goes on forwarding while the daemon
//! restarts or is upgraded. A start therefore goes: [`Bpf::open`], which finds the flows of a
//! predecessor; then the desired flows, for a reconciler to settle; then [`Bpf::attach`] for each
//! interface, which replaces the program of a predecessor at once; then
//! [`Bpf::remove_leftovers`]. To end the forwarding as well, there is [`Pins::detach`].

use std::{collections::VecDeque, error::Error, io, net::SocketAddr};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use rawr_common::flow::Rate;

use self::{
    egress::Egress,
    entries::{Entries, Held},
    pin::Lock,
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
mod egress;
mod entries;
pub(crate) mod features;
mod load;
mod pin;
mod sys;

/// The loaded program. Dropping it leaves the kernel forwarding.
pub struct Bpf {
    ebpf: Ebpf,
    pins: Pins,
    /// Nobody else writes these maps.
    _lock: Lock,
    entries: Entries,
    counters: PerCpuArray<MapData, [u64; 2]>,
    rates: Array<MapData, RateValue>,
    reasons: PerCpuArray<MapData, u64>,
    egress: Egress,
    /// Counters that no flow uses, the one to use next first: what has just become free rests for
    /// as long as possible, because a packet may still be on its way.
    free: VecDeque<u32>,
    capacity: u32,
    taken_over: bool,
    attached: Vec<Attachment>,
}

/// A rate limit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct RateValue(Rate);

// SAFETY: integers without padding.
unsafe impl Pod for RateValue {}

impl Bpf {
    /// Whether the maps, with the flows in them, are those of a predecessor.
    pub fn has_taken_over(&self) -> bool {
        self.taken_over
    }

    /// The interfaces that have the program.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attached
    }

    /// The counter for a flow that has had none, at zero.
    fn new_counter(&mut self) -> Result<u32, BackendError> {
        let index = self.free.pop_front().ok_or(BackendError::Full { capacity: self.capacity })?;
        let zeroed = nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| PerCpuValues::try_from(vec![[0; 2]; cpus]))
            .and_then(|zeros| self.counters.set(index, zeros, 0).map_err(|error| os_error(&error)));
        if let Err(error) = zeroed {
            self.free.push_front(index);
            return Err(BackendError::kernel("reset a counter", error));
        }
        Ok(index)
    }

    fn read_counter(&self, index: u32) -> Result<Counters, BackendError> {
        let cpus = self
            .counters
            .get(&index, 0)
            .map_err(|error| BackendError::kernel("read a counter", os_error(&error)))?;
        let mut sum = Counters::default();
        for &[packets, bytes] in cpus.iter() {
            sum += Counters { packets, bytes };
        }
        Ok(sum)
    }

    fn write_rate(&mut self, index: u32, rate: Rate) -> Result<(), BackendError> {
        self.rates
            .set(index, RateValue(rate), 0)
            .map_err(|error| BackendError::kernel("write a rate limit", os_error(&error)))
    }

    /// Whether packets to `next_hop` are handed from one driver to another, which not every driver
    /// takes part in. What it does not take is lost without an error.
    fn redirects_in_driver(&self, next_hop: &NextHop) -> bool {
        let on_a_stick = next_hop.tx && self.attached.len() == 1;
        !on_a_stick && self.attached.iter().any(|attached| attached.mode == Mode::Native)
    }

    /// Gives back the counters of flows that are gone.
    fn release(&mut self, gone: Vec<(SocketAddr, Held)>) {
        self.free.extend(gone.iter().map(|(_, held)| held.counter));
    }
}

impl Backend for Bpf {
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        self.entries.check(flow)?;
        if self.redirects_in_driver(next_hop) && !self.egress.takes_frames(next_hop.ifindex) {
            return Err(BackendError::NoRedirect { ifindex: next_hop.ifindex });
        }
        let slot = self.egress.slot(next_hop.ifindex)?;
        let exit = entries::exit(next_hop, slot)?;
        let before = self.entries.get(flow.from.local);
        let counter = match before {
            Some(before) => before.counter,
            None => self.new_counter()?,
        };
        let rate = entries::rate(flow);
        let limit = rate.map(|rate| rate.ns_per_kib);
        if let Some(rate) = rate
            && before.is_none_or(|before| before.limit != limit)
            && let Err(error) = self.write_rate(counter, rate)
        {
            if before.is_none() {
                self.free.push_back(counter);
            }
            return Err(error);
        }
        let gone = self.entries.write(flow, &exit, Held { counter, limit });
        self.release(gone);
        Ok(())
    }

    fn remove(&mut self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        let Some(held) = self.entries.get(local) else { return Ok(None) };
        let gone = self.entries.vacate(local);
        let counters = self.read_counter(held.counter);
        self.release(gone);
        // The flow is gone all the same; whoever polls the counters knows nearly as much.
        Ok(counters.ok())
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        let Some(slot) = self.egress.known(next_hop.ifindex) else { return false };
        entries::exit(next_hop, slot).is_ok_and(|exit| self.entries.holds(flow, &exit))
    }

    fn list(&self) -> Result<Vec<Installed>, BackendError> {
        Ok(self.entries.list())
    }

    fn counters(&self, local: SocketAddr) -> Result<Option<Counters>, BackendError> {
        self.entries.get(local).map(|held| self.read_counter(held.counter)).transpose()
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
