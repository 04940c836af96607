//! What failed, and when it is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::FlowKey;

/// Flows to try again, by name and by time.
#[derive(Debug, Default)]
pub(super) struct Retries {
    flows: BTreeMap<FlowKey, Retry>,
    times: BTreeSet<(Instant, FlowKey)>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    attempts: u32,
    at: Instant,
}

impl Retries {
    /// The flow at `key` has failed, perhaps again: after a pause of `first`, doubled for each
    /// time that it failed before, but of no more than `longest`, it is due.
    pub(super) fn add(&mut self, now: Instant, key: FlowKey, first: Duration, longest: Duration) {
        let attempts = self.remove(key);
        let at = now + first.saturating_mul(1 << attempts.min(16)).min(longest);
        self.flows.insert(key, Retry { attempts: attempts + 1, at });
        self.times.insert((at, key));
    }

    /// The flow at `key` needs no retry any more. How often it had failed.
    pub(super) fn remove(&mut self, key: FlowKey) -> u32 {
        let Some(Retry { attempts, at }) = self.flows.remove(&key) else { return 0 };
        self.times.remove(&(at, key));
        attempts
    }

    /// The flows that are due. They stay until they are removed.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = FlowKey> {
        self.times.iter().take_while(move |(at, _)| *at <= now).map(|(_, key)| *key)
    }

    /// When the next one is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.times.first().map(|(at, _)| *at)
    }
}
