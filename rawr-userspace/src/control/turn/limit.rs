//! What keeps one user from using up the server: how many allocations, and how many bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use slab::Slab;

use super::allocation::Way;
use super::{Turn, TurnLimits};
use crate::control::counters::Count;
use crate::control::store::Index;
use crate::dataplane::{Group, Limit, RateLimits};

/// A user's place in [`Users`], for as long as something is charged to it.
pub(super) type UserIndex = u32;

/// How far ahead of its rate an allocation may run. A full datagram may always pass.
const BURST: Duration = Duration::from_millis(50);
const LEAST_BURST: u64 = 2 * 65_536;
/// Bit of the number of a group in the data plane that says that it is a user's.
pub(super) const USER: u64 = 1 << 63;

/// Users that hold something.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: Slab<User>,
    names: HashMap<Arc<str>, UserIndex>,
}

#[derive(Debug)]
struct User {
    name: Arc<str>,
    /// Allocations, and ports that are reserved.
    held: u32,
    bucket: Bucket,
    /// In the data plane.
    group: u64,
}

impl User {
    fn new(name: Arc<str>) -> Self {
        // After a restart it has to be the same.
        let hash: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        let group = hash.iter().take(8).fold(0, |group, byte| group << 8 | u64::from(*byte));
        Self { name, held: 0, bucket: Bucket::default(), group: group | USER }
    }
}

impl Users {
    /// Charges one allocation or reserved port to a user; `None` if it has as many as it may have.
    pub(super) fn charge(&mut self, name: &Arc<str>, most: u32) -> Option<UserIndex> {
        let held = self.names.get(name).map_or(0, |index| self.users[*index as usize].held);
        (held < most).then(|| self.charge_anyway(name))
    }

    /// The same for what was held before a restart, whatever the limit is now.
    pub(super) fn charge_anyway(&mut self, name: &Arc<str>) -> UserIndex {
        let Self { users, names } = self;
        let index = *names
            .entry(Arc::clone(name))
            .or_insert_with(|| users.insert(User::new(Arc::clone(name))) as UserIndex);
        users[index as usize].held += 1;
        index
    }

    /// Takes back what one allocation or reserved port was charged.
    pub(super) fn credit(&mut self, index: UserIndex) {
        let Some(user) = self.users.get_mut(index as usize) else { return };
        user.held -= 1;
        if user.held == 0 {
            let user = self.users.remove(index as usize);
            self.names.remove(&user.name);
        }
    }

    pub(super) fn name(&self, index: UserIndex) -> Option<&Arc<str>> {
        self.users.get(index as usize).map(|user| &user.name)
    }

    pub(super) fn is(&self, index: UserIndex, name: &str) -> bool {
        self.name(index).is_some_and(|user| **user == *name)
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }
}

/// A token bucket (the generic cell rate algorithm): the time at which it is full again, in
/// nanoseconds since the server began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket(u64);

impl Bucket {
    /// When the bucket is full again after `bytes` more at `now`; `None` if they are too many.
    fn after(self, now: u64, bytes: usize, rate: u64) -> Option<Self> {
        let cost = |bytes: u64| bytes.saturating_mul(1_000_000_000) / rate.max(1);
        let burst = cost(LEAST_BURST).max(BURST.as_nanos() as u64);
        let full_at = self.0.max(now).saturating_add(cost(bytes as u64));
        (full_at - now <= burst).then_some(Self(full_at))
    }
}

impl Turn {
    /// What the data plane has to keep within for an allocation. Between two of them, the limits of the
    /// one that completed the pair count.
    pub(super) fn rate_limits(&self, index: Index) -> RateLimits {
        let TurnLimits { allocation_rate, user_rate, .. } = self.limits;
        let Some(allocation) = self.allocations.get(index) else { return RateLimits::default() };
        let user = self.users.users.get(allocation.user as usize);
        let limit = |group, rate: Option<u64>| {
            rate.map(|bytes_per_second| Limit { group: Group::Shared(group), bytes_per_second })
        };
        let own = limit(allocation.group, allocation_rate);
        let user = user.and_then(|user| limit(user.group, user_rate));
        if own.is_some() { [own, user] } else { [user, None] }
    }

    /// Whether the allocation may relay `bytes` more now; if so, they count. What is refused costs
    /// nothing.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        index: Index,
        way: Way,
        bytes: usize,
    ) -> Result<(), Count> {
        let since = now.saturating_duration_since(self.origin).as_nanos() as u64;
        let TurnLimits { allocation_rate, user_rate, .. } = self.limits;
        let Some(allocation) = self.allocations.get_mut(index) else { return Ok(()) };
        let user = self.users.users.get_mut(allocation.user as usize);
        let after = |bucket: Bucket, rate: Option<u64>| match rate {
            None => Ok(bucket),
            Some(rate) => bucket.after(since, bytes, rate).ok_or(Count::TurnRate),
        };
        let own = after(allocation.bucket, allocation_rate)?;
        if let Some(user) = user {
            user.bucket = after(user.bucket, user_rate)?;
        }
        allocation.bucket = own;
        let traffic = &mut allocation.traffic[way as usize];
        traffic.packets += 1;
        traffic.bytes += bytes as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_charged_until_the_last_is_gone() {
        let mut users = Users::default();
        let (anna, bert): (Arc<str>, Arc<str>) = ("anna".into(), "bert".into());
        let index = users.charge(&anna, 2).unwrap();
        assert_eq!(users.charge(&anna, 2), Some(index));
        assert_eq!(users.charge(&anna, 2), None);
        assert!(users.charge(&bert, 2).is_some());
        users.credit(index);
        assert!(users.is(index, "anna"));
        assert_eq!(users.charge(&anna, 2), Some(index));
        users.credit(index);
        users.credit(index);
        assert!(!users.is(index, "anna"));
        assert_eq!(users.len(), 1);
    }

    #[test]
    fn rate_holds_over_time_and_a_full_datagram_passes() {
        for (rate, size) in [(1_000_000, 1_200), (12_500_000, 200), (125_000_000, 9_000_u64)] {
            let (mut bucket, mut passed) = (Bucket::default(), 0);
            assert!(bucket.after(0, 65_535, rate).is_some(), "{rate}");
            // Offers ten times the rate for ten seconds.
            let packets = rate * 100 / size;
            for packet in 0..packets {
                let now = 10_000_000_000 / packets * packet;
                if let Some(after) = bucket.after(now, size as usize, rate) {
                    bucket = after;
                    passed += size;
                }
            }
            let expected = rate * 10 + (rate / 20).max(LEAST_BURST);
            let error = passed.abs_diff(expected) as f64 / expected as f64;
            assert!(error < 0.01, "{rate} B/s, {size} B: {passed} instead of {expected}");
        }
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let mut bucket = Bucket::default();
        while let Some(after) = bucket.after(0, 1_000, 1_000) {
            bucket = after;
        }
        assert_eq!(bucket.after(0, 1_000, 1_000), None);
        assert!(bucket.after(2_000_000_000, 1_000, 1_000).is_some());
    }
}
