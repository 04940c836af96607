//! What failed, and when it is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Flows to try again, by name and by time.
#[derive(Debug, Default)]
pub(super) struct Retries {
    flows: BTreeMap<SocketAddr, Retry>,
    times: BTreeSet<(Instant, SocketAddr)>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    attempts: u32,
    at: Instant,
}

impl Retries {
    /// The flow at `local` has failed, perhaps again: after a pause of `first`, doubled for each
    /// time that it failed before, but of no more than `longest`, it is due.
    pub(super) fn add(
        &mut self,
        now: Instant,
        local: SocketAddr,
        first: Duration,
        longest: Duration,
    ) {
        let attempts = self.remove(local);
        let at = now + first.saturating_mul(1 << attempts.min(16)).min(longest);
        self.flows.insert(local, Retry { attempts: attempts + 1, at });
        self.times.insert((at, local));
    }

    /// The flow at `local` needs no retry any more. How often it had failed.
    pub(super) fn remove(&mut self, local: SocketAddr) -> u32 {
        let Some(Retry { attempts, at }) = self.flows.remove(&local) else { return 0 };
        self.times.remove(&(at, local));
        attempts
    }

    /// The flows that are due. They stay until they are removed.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = SocketAddr> {
        self.times.iter().take_while(move |(at, _)| *at <= now).map(|(_, local)| *local)
    }

    /// When the next one is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.times.first().map(|(at, _)| *at)
    }
}
