//! Who has introduced itself to whom lately.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{BridgeKey, BridgeName, IntroductionId};

use super::config::BridgeLimits;
use crate::control::client::Client;
use crate::control::limits::QuotaReached;

/// How long a holder may take for its answer, and how long that is kept for who asks again.
const LIFETIME: Duration = Duration::from_secs(60);

/// One introduction.
#[derive(Debug)]
pub(super) struct Introduction {
    pub(super) name: BridgeName,
    /// The key of who introduced itself.
    pub(super) introducer: [u8; 32],
    /// Keys what it is told.
    pub(super) key: BridgeKey,
    /// Where its last request came from.
    pub(super) way: Client,
    /// The key of who held the name then: nobody else may answer.
    pub(super) holder: [u8; 32],
    /// What the holder has answered, and from where.
    pub(super) answer: Option<(Vec<u8>, SocketAddr)>,
}

/// Those of the last minute.
#[derive(Debug, Default)]
pub(super) struct Introductions {
    all: HashMap<IntroductionId, Introduction>,
    queue: VecDeque<(Instant, IntroductionId)>,
    holders: HashMap<[u8; 32], u32>,
}

impl Introductions {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }

    pub(super) fn get(&self, id: IntroductionId) -> Option<&Introduction> {
        self.all.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: IntroductionId) -> Option<&mut Introduction> {
        self.all.get_mut(&id)
    }

    pub(super) fn insert(
        &mut self,
        now: Instant,
        limits: &BridgeLimits,
        id: IntroductionId,
        introduction: Introduction,
    ) -> Result<(), QuotaReached> {
        let to_holder = self.holders.get(&introduction.holder).copied().unwrap_or_default();
        let full = self.all.len() >= limits.introductions;
        if full || to_holder >= limits.introductions_per_holder {
            return Err(QuotaReached);
        }
        *self.holders.entry(introduction.holder).or_default() += 1;
        self.all.insert(id, introduction);
        self.queue.push_back((now + LIFETIME, id));
        Ok(())
    }

    /// Forgets one whose time is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<IntroductionId> {
        let (_, id) = self.queue.pop_front_if(|(at, _)| *at <= now)?;
        let introduction = self.all.remove(&id)?;
        if let Entry::Occupied(mut count) = self.holders.entry(introduction.holder) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(id)
    }
}
