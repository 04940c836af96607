//! The rate limit of a flow.

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
        Self { full_at: 0, ns_per_kib, burst_us }
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
