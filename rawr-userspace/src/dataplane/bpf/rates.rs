//! The rate limits of those flows that have one.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, MapData},
};
use rawr_common::flow::Rate;

use super::{super::backend::BackendError, os_error};

/// Time over which a rate limit is averaged.
const BURST: Duration = Duration::from_millis(50);

/// The rate limits in their map.
pub(super) struct Rates {
    values: Array<MapData, RateValue>,
    /// Indices that no flow uses, the one to use next first: what has just become free rests for as
    /// long as possible, because a packet may still be on its way.
    free: VecDeque<u32>,
}

/// A rate limit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct RateValue(Rate);

// SAFETY: integers without padding.
unsafe impl Pod for RateValue {}

/// A rate limit of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Where it is in the map.
    pub index: u32,
    /// Its [`Rate::ns_per_kib`], which says less than the limit it was made from.
    pub ns_per_kib: u32,
}

impl Rates {
    /// A map with whatever it holds, of which the indices in `used` are in use.
    pub(super) fn adopt(values: Array<MapData, RateValue>, used: &BTreeSet<u32>) -> Self {
        let free = (0..values.len()).filter(|index| !used.contains(index)).collect();
        Self { values, free }
    }

    /// Makes a flow's limit of so many bytes per second, of which `before` is the one it has had.
    pub(super) fn acquire(
        &mut self,
        bytes_per_second: u64,
        before: Option<Limit>,
    ) -> Result<Limit, BackendError> {
        let rate = full(bytes_per_second);
        let ns_per_kib = rate.ns_per_kib;
        if let Some(before) = before.filter(|before| before.ns_per_kib == ns_per_kib) {
            return Ok(before);
        }
        let index = match before {
            Some(before) => before.index,
            None => {
                let full = BackendError::Full { capacity: self.values.len() };
                self.free.pop_front().ok_or(full)?
            }
        };
        if let Err(error) = self.values.set(index, RateValue(rate), 0) {
            if before.is_none() {
                self.free.push_front(index);
            }
            return Err(BackendError::kernel("write a rate limit", os_error(&error)));
        }
        Ok(Limit { index, ns_per_kib })
    }

    /// No flow uses this limit any more.
    pub(super) fn release(&mut self, limit: Limit) {
        self.free.push_back(limit.index);
    }
}

/// The rate limit at an index of the map, if there is such an index.
pub(super) fn read(values: &Array<MapData, RateValue>, index: u32) -> Option<Rate> {
    values.get(&index, 0).ok().map(|rate| rate.0)
}

/// A limit of so many bytes per second, its bucket full.
pub(super) fn full(bytes_per_second: u64) -> Rate {
    Rate::new(bytes_per_second, BURST)
}
