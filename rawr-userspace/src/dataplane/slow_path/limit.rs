//! The rate limit of a flow: the kernel's ([`rawr_common::flow::Rate`]), with a finer clock.

use std::time::{Duration, Instant};

use rawr_common::flow::Rate;

/// How far ahead of its rate a flow may run.
const BURST: Duration = Duration::from_millis(50);
/// At least this many bytes may come at once, however low the rate: here, unlike in the kernel,
/// fragments have been joined to datagrams of up to 64 KiB.
const LEAST_BURST: u64 = 2 * 65_536;

/// A rate limit and its state.
#[derive(Debug)]
pub(super) struct Limit {
    rate: Rate,
    /// What the rate's time stamp counts from.
    epoch: Instant,
}

impl Limit {
    /// `rate` in bytes of layer 3 per second.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let least = Duration::from_nanos(LEAST_BURST * (1_000_000_000 / rate.max(1)));
        Self { rate: Rate::new(rate, BURST.max(least)), epoch: now }
    }

    /// Whether a packet of `bytes` bytes may pass now. One that may not costs nothing.
    pub(super) fn admits(&mut self, now: Instant, bytes: u64) -> bool {
        let since = now.saturating_duration_since(self.epoch).as_nanos();
        let now = u64::try_from(since).unwrap_or(u64::MAX);
        match self.rate.admit(now, u16::try_from(bytes).unwrap_or(u16::MAX)) {
            Some(full_at) => {
                self.rate.full_at = full_at;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::clock::monotonic;

    /// Bytes admitted of packets of `size` bytes that are offered evenly over `seconds` at ten times
    /// the rate.
    fn admitted(rate: u64, size: u64, seconds: u64) -> u64 {
        let start = monotonic();
        let mut limit = Limit::new(rate, start);
        let packets = rate * 10 * seconds / size;
        let arrival =
            |packet| start + Duration::from_nanos(seconds * 1_000_000_000 / packets * packet);
        let passed = (0..packets).filter(|&packet| limit.admits(arrival(packet), size)).count();
        passed as u64 * size
    }

    #[test]
    fn the_rate_holds_and_a_burst_passes() {
        for (rate, size) in [(1_000_000, 1200), (12_500_000, 200), (125_000_000, 9000)] {
            let burst = (rate / 20).max(LEAST_BURST);
            let (expected, passed) = (rate * 10 + burst, admitted(rate, size, 10));
            let error = passed.abs_diff(expected) as f64 / expected as f64;
            assert!(error < 0.01, "{rate} B/s, {size} B: {passed} instead of {expected}");
        }
    }

    #[test]
    fn a_refused_packet_costs_nothing() {
        let now = monotonic();
        let mut limit = Limit::new(1000, now);
        while limit.admits(now, 1024) {}
        let later = now + Duration::from_millis(1030);
        assert!(!limit.admits(now, 1024));
        assert!(limit.admits(later, 1024));
        assert!(!limit.admits(later, 1024));
    }

    #[test]
    fn any_full_datagram_passes_at_any_rate() {
        let now = monotonic();
        for rate in [0, 1, 1000, u64::MAX] {
            assert!(Limit::new(rate, now).admits(now, 65_535), "{rate}");
        }
    }
}
