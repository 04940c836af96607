//! The rate limits of those flows that have one.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, MapData},
};
use rawr_common::flow::Rate;

use super::{
    super::{Group, Limit, RateLimits, backend::BackendError},
    os_error,
};

/// Time over which a rate limit is averaged.
const BURST: Duration = Duration::from_millis(50);

/// The rate limits in their map.
pub(super) struct Rates {
    values: Array<MapData, RateValue>,
    buckets: Buckets,
}

/// A rate limit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct RateValue(Rate);

// SAFETY: integers without padding.
unsafe impl Pod for RateValue {}

impl Rates {
    /// A map with whatever it holds. No flow has a limit, and none can get one: first come
    /// [`Rates::take_over`] for those that had one, and [`Rates::open`].
    pub(super) fn adopt(values: Array<MapData, RateValue>) -> Self {
        let buckets = Buckets::new(values.len());
        Self { values, buckets }
    }

    /// One flow more has the limit that a predecessor left at an index. Whether that can be.
    pub(super) fn take_over(&mut self, index: u32) -> bool {
        let read = |index: u32| self.values.get(&index, 0).ok().map(|rate| rate.0);
        self.buckets.take_over(index, &read)
    }

    /// All flows have been taken over that a predecessor left.
    pub(super) fn open(&mut self) {
        self.buckets.open();
    }

    /// Where the limits stand that one flow more is to keep within; `None` if it has none. `before` is
    /// where those stand that it has had: one of its own is changed in place.
    pub(super) fn acquire(
        &mut self,
        limits: &RateLimits,
        before: Option<u32>,
    ) -> Result<Option<u32>, BackendError> {
        let values = &mut self.values;
        self.buckets.acquire(limits, before, &mut |index, rate| {
            values
                .set(index, RateValue(rate), 0)
                .map_err(|error| BackendError::kernel("write a rate limit", os_error(&error)))
        })
    }

    /// One flow less has the limit at an index.
    pub(super) fn release(&mut self, index: u32) {
        self.buckets.release(index);
    }

    /// Whether who has the limit at this index, or none, keeps within `limits`.
    pub(super) fn agree(&self, index: Option<u32>, limits: &RateLimits) -> bool {
        self.buckets.agree(index, limits)
    }

    /// What the limit at an index amounts to, as near as its entry tells.
    pub(super) fn describe(&self, index: Option<u32>) -> RateLimits {
        self.buckets.describe(index)
    }
}

/// Writes a limit at an index.
type Write<'a> = dyn FnMut(u32, Rate) -> Result<(), BackendError> + 'a;

/// Which limit has which index, and how many flows have it.
#[derive(Debug)]
struct Buckets {
    buckets: BTreeMap<u32, Bucket>,
    shared: BTreeMap<u64, u32>,
    length: u32,
    /// Indices that nothing uses, the one to use next first: what has just become free rests for as
    /// long as possible, because a packet may still be on its way.
    free: VecDeque<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    group: Group,
    /// [`Rate::ns_per_kib`], which says less than the limit it was made from.
    ns_per_kib: u32,
    /// The second limit of whoever has this one first.
    parent: Option<u32>,
    /// Flows that have it first, and buckets that it is the parent of.
    users: u32,
}

impl Buckets {
    fn new(length: u32) -> Self {
        let (buckets, shared, free) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        Self { buckets, shared, length, free }
    }

    /// Gives all indices free that nothing has taken over.
    fn open(&mut self) {
        self.free = (0..self.length).filter(|index| !self.buckets.contains_key(index)).collect();
    }

    fn take_over(&mut self, index: u32, read: &dyn Fn(u32) -> Option<Rate>) -> bool {
        let Some(rate) = read(index) else { return false };
        let is_new = !self.buckets.contains_key(&index);
        let parent = rate.parent().filter(|_| is_new);
        let is_sound = self.join(index, &rate)
            && parent.is_none_or(|parent| {
                parent != index && read(parent).is_some_and(|rate| self.join(parent, &rate))
            });
        match self.buckets.get_mut(&index) {
            Some(bucket) if is_sound => bucket.parent = bucket.parent.or(parent),
            Some(_) if is_new => self.release(index),
            _ => {}
        }
        is_sound
    }

    /// One user more of a bucket that is there, or of one that was found; one flow alone has what is no
    /// group's.
    fn join(&mut self, index: u32, rate: &Rate) -> bool {
        let group = match rate.group() {
            Some(number) => Group::Shared(number),
            None => Group::Own,
        };
        if let Some(bucket) = self.buckets.get_mut(&index) {
            let is_shared = bucket.group != Group::Own;
            bucket.users += u32::from(is_shared);
            return is_shared;
        }
        if let Group::Shared(number) = group {
            if self.shared.contains_key(&number) {
                return false;
            }
            self.shared.insert(number, index);
        }
        let bucket = Bucket { group, ns_per_kib: rate.ns_per_kib, parent: None, users: 1 };
        self.buckets.insert(index, bucket);
        true
    }

    fn acquire(
        &mut self,
        limits: &RateLimits,
        before: Option<u32>,
        write: &mut Write<'_>,
    ) -> Result<Option<u32>, BackendError> {
        let (Some(first), second) = in_order(limits) else { return Ok(None) };
        let parent_before = before.and_then(|index| self.buckets.get(&index)?.parent);
        let parent = match second {
            Some(second) => Some(self.enter(&second, None, parent_before, write)?),
            None => None,
        };
        match self.enter(&first, parent, before, write) {
            Ok(index) => Ok(Some(index)),
            Err(error) => {
                parent.into_iter().for_each(|parent| self.release(parent));
                Err(error)
            }
        }
    }

    /// Adds a user to the bucket of a limit, which is made if it is not there and changed if it differs.
    /// A user of `parent` has been added for it.
    fn enter(
        &mut self,
        limit: &Limit,
        parent: Option<u32>,
        before: Option<u32>,
        write: &mut Write<'_>,
    ) -> Result<u32, BackendError> {
        let rate = rate(limit, parent);
        let there = match limit.group {
            Group::Shared(number) => self.shared.get(&number).copied(),
            Group::Own => before.filter(|index| {
                self.buckets.get(index).is_some_and(|bucket| bucket.group == Group::Own)
            }),
        };
        let Some(index) = there else { return self.make(limit.group, &rate, write) };
        let Some(bucket) = self.buckets.get_mut(&index) else { return Ok(index) };
        if (bucket.ns_per_kib, bucket.parent) != (rate.ns_per_kib, parent) {
            write(index, rate)?;
            bucket.ns_per_kib = rate.ns_per_kib;
        }
        bucket.users += 1;
        // It has been a user of its parent all along.
        let left = std::mem::replace(&mut bucket.parent, parent);
        left.into_iter().for_each(|left| self.release(left));
        Ok(index)
    }

    fn make(
        &mut self,
        group: Group,
        rate: &Rate,
        write: &mut Write<'_>,
    ) -> Result<u32, BackendError> {
        let index = self.free.pop_front().ok_or(BackendError::Full { capacity: self.length })?;
        if let Err(error) = write(index, *rate) {
            self.free.push_front(index);
            return Err(error);
        }
        if let Group::Shared(number) = group {
            self.shared.insert(number, index);
        }
        let (ns_per_kib, parent) = (rate.ns_per_kib, rate.parent());
        self.buckets.insert(index, Bucket { group, ns_per_kib, parent, users: 1 });
        Ok(index)
    }

    fn release(&mut self, index: u32) {
        let Some(bucket) = self.buckets.get_mut(&index) else { return };
        bucket.users -= 1;
        if bucket.users > 0 {
            return;
        }
        let Bucket { group, parent, .. } = *bucket;
        self.buckets.remove(&index);
        if let Group::Shared(number) = group {
            self.shared.remove(&number);
        }
        self.free.push_back(index);
        parent.into_iter().for_each(|parent| self.release(parent));
    }

    fn agree(&self, index: Option<u32>, limits: &RateLimits) -> bool {
        let bucket = |index: Option<u32>| self.buckets.get(&index?);
        let is = |bucket: Option<&Bucket>, limit: Option<Limit>| {
            let limit = limit.map(|limit| (limit.group, rate(&limit, None).ns_per_kib));
            bucket.map(|bucket| (bucket.group, bucket.ns_per_kib)) == limit
        };
        let (first, second) = in_order(limits);
        let has = bucket(index);
        is(has, first) && is(bucket(has.and_then(|has| has.parent)), second)
    }

    fn describe(&self, index: Option<u32>) -> RateLimits {
        let bucket = |index: Option<u32>| self.buckets.get(&index?);
        let limit = |bucket: &Bucket| {
            let bytes_per_second = 1024 * 1_000_000_000 / u64::from(bucket.ns_per_kib.max(1));
            Limit { group: bucket.group, bytes_per_second }
        };
        let first = bucket(index);
        let second = bucket(first.and_then(|first| first.parent));
        [first.map(limit), second.map(limit)]
    }
}

/// The limits with none before one.
fn in_order(limits: &RateLimits) -> (Option<Limit>, Option<Limit>) {
    match *limits {
        [None, second] => (second, None),
        [first, second] => (first, second),
    }
}

/// A limit as the kernel keeps it, its bucket full.
fn rate(limit: &Limit, parent: Option<u32>) -> Rate {
    let rate = Rate::new(limit.bytes_per_second, BURST);
    let rate = parent.map_or(rate, |parent| rate.under(parent));
    match limit.group {
        Group::Own => rate,
        Group::Shared(number) => rate.of_group(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u32 = 4;

    /// Buckets, and what would be in their map.
    struct Bench {
        buckets: Buckets,
        map: [Rate; LENGTH as usize],
        writes: usize,
    }

    impl Bench {
        fn new() -> Self {
            let mut buckets = Buckets::new(LENGTH);
            buckets.open();
            Self { buckets, map: Default::default(), writes: 0 }
        }

        fn acquire(&mut self, limits: RateLimits, before: Option<u32>) -> Option<u32> {
            let acquired = self.buckets.acquire(&limits, before, &mut |index, rate| {
                self.map[index as usize] = rate;
                self.writes += 1;
                Ok(())
            });
            let index = acquired.ok()?;
            assert!(self.buckets.agree(index, &limits));
            index
        }

        /// The same map, in the hands of a successor.
        fn restart(&mut self, used: &[u32]) -> Vec<bool> {
            let map = self.map;
            self.buckets = Buckets::new(LENGTH);
            let read = |index: u32| map.get(index as usize).copied();
            let taken = used.iter().map(|&index| self.buckets.take_over(index, &read)).collect();
            self.buckets.open();
            taken
        }

        fn used(&self) -> usize {
            self.buckets.buckets.len()
        }
    }

    fn own(bytes_per_second: u64) -> Option<Limit> {
        Some(Limit { group: Group::Own, bytes_per_second })
    }

    fn shared(number: u64, bytes_per_second: u64) -> Option<Limit> {
        Some(Limit { group: Group::Shared(number), bytes_per_second })
    }

    #[test]
    fn a_limit_of_its_own_changes_in_place() {
        let mut bench = Bench::new();
        let first = bench.acquire([own(1000), None], None).unwrap();
        let again = bench.acquire([own(2000), None], Some(first)).unwrap();
        bench.buckets.release(first);
        assert_eq!((again, bench.used()), (first, 1));
        assert_ne!(bench.acquire([own(2000), None], None), Some(first), "another flow");
        bench.buckets.release(first);
        assert_eq!(bench.used(), 1);
    }

    #[test]
    fn a_group_has_one_bucket_until_the_last_flow_goes() {
        let mut bench = Bench::new();
        let limits = [shared(7, 1000), shared(9, 5000)];
        let first = bench.acquire(limits, None).unwrap();
        assert_eq!(bench.acquire(limits, None), Some(first));
        assert_eq!((bench.used(), bench.writes), (2, 2));
        let user = bench.map[first as usize].parent().unwrap();
        assert_eq!(bench.buckets.describe(Some(first)), limits);
        // Another allocation of the same user.
        let other = bench.acquire([shared(8, 1000), shared(9, 5000)], None).unwrap();
        assert_eq!(bench.map[other as usize].parent(), Some(user));
        bench.buckets.release(first);
        bench.buckets.release(first);
        assert_eq!(bench.used(), 2);
        bench.buckets.release(other);
        assert_eq!(bench.used(), 0);
    }

    #[test]
    fn a_group_whose_limit_changes_keeps_its_bucket() {
        let mut bench = Bench::new();
        let first = bench.acquire([shared(7, 1000), shared(9, 5000)], None).unwrap();
        let again = bench.acquire([shared(7, 3000), shared(11, 5000)], Some(first)).unwrap();
        assert_eq!(again, first);
        assert_eq!(bench.used(), 2, "nobody has group 9 any more");
        let last = bench.acquire([shared(7, 3000), None], None).unwrap();
        assert_eq!((last, bench.used()), (first, 1));
        assert_eq!(bench.map[first as usize].parent(), None);
    }

    #[test]
    fn what_cannot_be_written_is_not_held() {
        let mut bench = Bench::new();
        let limits = [shared(7, 1000), shared(9, 5000)];
        let refused = bench.buckets.acquire(&limits, None, &mut |_, rate| match rate.parent() {
            None => Ok(()),
            Some(_) => Err(BackendError::Chaos),
        });
        assert!(refused.is_err());
        assert_eq!(bench.used(), 0);
        for number in 0..u64::from(LENGTH) {
            assert!(bench.acquire([shared(number, 1), None], None).is_some());
        }
        assert_eq!(bench.acquire([own(1), None], None), None, "all are taken");
        assert_eq!(bench.used(), LENGTH as usize);
    }

    #[test]
    fn what_has_just_become_free_is_used_last() {
        let mut bench = Bench::new();
        let first = bench.acquire([own(1), None], None).unwrap();
        bench.buckets.release(first);
        let later: Vec<_> = (0..4).map(|_| bench.acquire([own(1), None], None)).collect();
        assert_eq!(later, [Some(1), Some(2), Some(3), Some(first)]);
    }

    #[test]
    fn limits_are_recognized_after_a_restart() {
        let mut bench = Bench::new();
        let limits = [shared(7, 777_777_777), shared(9, 12_345)];
        let (group, alone) = (bench.acquire(limits, None), bench.acquire([own(300), None], None));
        let used = [group.unwrap(), alone.unwrap(), group.unwrap()];
        assert_eq!(bench.restart(&used), [true; 3]);
        assert!(bench.buckets.agree(group, &limits));
        assert!(bench.buckets.agree(alone, &[own(300), None]));
        assert!(!bench.buckets.agree(alone, &[own(600), None]));
        assert!(!bench.buckets.agree(group, &[shared(7, 777_777_777), None]));
        assert_eq!(bench.acquire([shared(7, 777_777_777), shared(9, 12_345)], None), group);
        for index in [group, group, group, alone] {
            bench.buckets.release(index.unwrap());
        }
        assert_eq!(bench.used(), 0);
        assert!(
            (0..4).all(|_| bench.acquire([own(1), None], None).is_some()),
            "all are free again"
        );
    }

    #[test]
    fn garbage_is_not_taken_over() {
        let mut bench = Bench::new();
        let alone = bench.acquire([own(300), None], None).unwrap();
        assert_eq!(bench.restart(&[alone, alone, 99]), [true, false, false], "one flow's alone");
        bench.map[1] = Rate::new(1, BURST).under(1);
        bench.map[2] = Rate::new(1, BURST).under(77);
        assert_eq!(bench.restart(&[1, 2]), [false; 2], "under itself, and under nothing");
        assert_eq!(bench.used(), 0);
        bench.map[1] = Rate::new(1, BURST).of_group(5);
        bench.map[2] = Rate::new(1, BURST).of_group(5);
        assert_eq!(bench.restart(&[1, 2]), [true, false], "two of one group");
    }
}
