//! The rate limits of flows.

use core::ptr::NonNull;
use core::time::Duration;

use crate::flow::Rate;

const NANOS: u64 = 1_000_000_000;

/// Steps of the coarse clock come up to 10 ms apart; a shorter burst would starve between two.
const SHORTEST_BURST: Duration = Duration::from_millis(20);

/// A burst lets through a packet of this size at least, however low the limit.
const LARGEST_PACKET: u64 = 9216;

impl Rate {
    /// A limit of so many bytes of layer 3 per second, averaged over `burst` or, where that is too
    /// short to be kept, a little longer. Rates below 239 bytes per second count as that.
    pub fn new(bytes_per_second: u64, burst: Duration) -> Self {
        let ns_per_kib = (1024 * NANOS).checked_div(bytes_per_second).unwrap_or(u64::MAX);
        let ns_per_kib = u32::try_from(ns_per_kib).unwrap_or(u32::MAX);
        let packet = Duration::from_nanos((LARGEST_PACKET * u64::from(ns_per_kib)) >> 10);
        let burst = burst.max(SHORTEST_BURST).max(packet);
        let burst_us = u32::try_from(burst.as_micros()).unwrap_or(u32::MAX);
        Self { ns_per_kib, burst_us, ..Self::default() }
    }

    /// The same for packets that have to keep the limit at index `parent` as well.
    #[must_use]
    pub fn under(self, parent: u32) -> Self {
        Self { parent: parent + 1, ..self }
    }

    /// The same, known as that of all flows of this group.
    #[must_use]
    pub fn of_group(self, group: u64) -> Self {
        Self { shared: 1, group, ..self }
    }

    /// The group whose limit this is, if it is not one flow's alone.
    pub fn group(&self) -> Option<u64> {
        (self.shared != 0).then_some(self.group)
    }

    /// Index of the other limit that packets have to keep, if there is one.
    #[inline(always)]
    pub fn parent(&self) -> Option<u32> {
        self.parent.checked_sub(1)
    }

    /// The new [`Rate::full_at`] after a packet of `bytes` at `now` (nanoseconds), or `None` if it is
    /// over the limit.
    #[inline(always)]
    pub fn admit(&self, now: u64, bytes: u16) -> Option<u64> {
        let cost = (u64::from(bytes) * u64::from(self.ns_per_kib)) >> 10;
        let full_at = self.full_at.max(now) + cost;
        if full_at - now > u64::from(self.burst_us) * 1000 {
            return None;
        }
        Some(full_at)
    }
}

/// Whether the limit at `index`, and the one that it is under, let through a packet of `bytes` at `now`
/// (nanoseconds), which both then count. `at` gives the limit at an index; where there is none, there is
/// nothing to keep.
///
/// A flow's packets come in on one CPU, so that plain loads and stores suffice; where flows of several
/// CPUs share a limit, or one moves to another CPU, a packet may go uncounted.
///
/// # Safety
/// What `at` returns is aligned, readable and writable, and only written by this function meanwhile.
#[inline(always)]
pub unsafe fn admit(
    at: impl Fn(u32) -> Option<NonNull<Rate>>,
    index: u32,
    now: u64,
    bytes: u16,
) -> bool {
    let Some(own) = at(index) else { return true };
    // SAFETY: the caller vouches for `at`.
    let rate = unsafe { own.read_volatile() };
    let Some(full_at) = rate.admit(now, bytes) else { return false };
    if let Some(parent) = rate.parent().and_then(at) {
        // SAFETY: as above.
        let Some(full_at) = unsafe { parent.read_volatile() }.admit(now, bytes) else {
            return false;
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*parent.as_ptr()).full_at).write_volatile(full_at) };
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*own.as_ptr()).full_at).write_volatile(full_at) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers 1,000-byte packets back to back at twice the limit for ten seconds.
    #[test]
    fn admits_the_limit_and_one_burst() {
        let mut rate = Rate::new(1_000_000, Duration::from_millis(50));
        let mut admitted = 0;
        for step in 0..20_000_u64 {
            if let Some(full_at) = rate.admit(7 * NANOS + step * NANOS / 2000, 1000) {
                rate.full_at = full_at;
                admitted += 1;
            }
        }
        assert!((10_000..=10_051).contains(&admitted), "admitted {admitted}");
    }

    #[test]
    fn admits_everything_below_the_limit() {
        let mut rate = Rate::new(1_000_000, Duration::ZERO);
        for step in 0..10_000_u64 {
            let full_at = rate.admit(step * NANOS / 999, 1000);
            rate.full_at = full_at.expect("999 kB/s are below 1 MB/s");
        }
    }

    #[test]
    fn a_coarse_clock_starves_nothing() {
        let mut rate = Rate::new(1_000_000, Duration::ZERO);
        for step in 0..10_000_u64 {
            let coarse = step / 10 * (NANOS / 100);
            let full_at = rate.admit(coarse, 999);
            rate.full_at = full_at.expect("ten packets per 10 ms step fit");
        }
    }

    #[test]
    fn lets_a_packet_through_however_low_the_limit() {
        for bytes_per_second in [0, 1, 1000] {
            let rate = Rate::new(bytes_per_second, Duration::ZERO);
            let full_at = rate.admit(NANOS, 1500).expect("the bucket is full");
            let emptied = Rate { full_at, ..rate };
            assert_eq!(emptied.admit(NANOS, 9000), None, "at {bytes_per_second} B/s");
        }
    }
}
