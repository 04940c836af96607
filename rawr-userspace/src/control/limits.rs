//! What keeps one client from using up the server: quotas and rates per source prefix.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::config::Limits;

/// What one customer usually has: an IPv4 /24 or an IPv6 /56.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix(u64);

impl Prefix {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits() >> 8)),
            IpAddr::V6(v6) => Self((1 << 63) | (v6.to_bits() >> 72) as u64),
        }
    }
}

/// A quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuotaReached;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    legs: u32,
    half_open: u32,
    exchanges: u32,
}

/// Who holds how much. There is an entry for a prefix only while it holds something.
#[derive(Debug)]
pub(super) struct Quotas {
    limits: Limits,
    half_open: u32,
    prefixes: HashMap<Prefix, Usage>,
}

impl Quotas {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, half_open: 0, prefixes: HashMap::new() }
    }

    /// Takes a leg that is half open.
    pub(super) fn open_leg(&mut self, prefix: Prefix) -> Result<(), QuotaReached> {
        let used = self.prefixes.get(&prefix).copied().unwrap_or_default();
        if used.legs >= self.limits.legs_per_prefix
            || used.half_open >= self.limits.half_open_per_prefix
            || self.half_open >= self.limits.half_open
        {
            return Err(QuotaReached);
        }
        self.half_open += 1;
        let usage = self.prefixes.entry(prefix).or_default();
        usage.legs += 1;
        usage.half_open += 1;
        Ok(())
    }

    /// Its client has probed.
    pub(super) fn bind_leg(&mut self, prefix: Prefix) {
        self.half_open -= 1;
        self.change(prefix, |usage| usage.half_open -= 1);
    }

    pub(super) fn close_leg(&mut self, prefix: Prefix, bound: bool) {
        if !bound {
            self.bind_leg(prefix);
        }
        self.change(prefix, |usage| usage.legs -= 1);
    }

    /// Takes a leg that was open before a restart, whatever the limits are now.
    pub(super) fn restore_leg(&mut self, prefix: Prefix, bound: bool) {
        let usage = self.prefixes.entry(prefix).or_default();
        usage.legs += 1;
        if !bound {
            usage.half_open += 1;
            self.half_open += 1;
        }
    }

    pub(super) fn open_exchange(&mut self, prefix: Prefix) -> Result<(), QuotaReached> {
        let used = self.prefixes.get(&prefix).map_or(0, |usage| usage.exchanges);
        if used >= self.limits.exchanges_per_prefix {
            return Err(QuotaReached);
        }
        self.prefixes.entry(prefix).or_default().exchanges += 1;
        Ok(())
    }

    pub(super) fn close_exchange(&mut self, prefix: Prefix) {
        self.change(prefix, |usage| usage.exchanges -= 1);
    }

    pub(super) fn half_open(&self) -> u32 {
        self.half_open
    }

    fn change(&mut self, prefix: Prefix, change: impl FnOnce(&mut Usage)) {
        let Some(usage) = self.prefixes.get_mut(&prefix) else { return };
        change(usage);
        if *usage == Usage::default() {
            self.prefixes.remove(&prefix);
        }
    }
}

/// A rate per prefix, in memory that never grows: prefixes share a fixed number of cells, at a place
/// that only this server can compute. Each cell is a token bucket of one second's burst (the generic
/// cell rate algorithm: the time at which it is full again).
#[derive(Debug)]
pub(crate) struct Rates {
    origin: Instant,
    key: u64,
    /// Nanoseconds that one event takes.
    cost: u64,
    /// Nanoseconds since `origin`.
    full_at: Box<[u64]>,
}

impl Rates {
    const CELLS_LOG2: u32 = 13;
    const BURST: u64 = Duration::from_secs(1).as_nanos() as u64;

    pub(crate) fn new(origin: Instant, key: u64, per_second: u32) -> Self {
        Self {
            origin,
            key: key | 1,
            cost: Self::BURST / u64::from(per_second.max(1)),
            full_at: vec![0; 1 << Self::CELLS_LOG2].into(),
        }
    }

    /// Whether one more event of `prefix` is within the rate; if so, it counts.
    pub(crate) fn allow(&mut self, now: Instant, prefix: Prefix) -> bool {
        let now = now.saturating_duration_since(self.origin).as_nanos() as u64;
        let hash = (prefix.0 ^ self.key).wrapping_mul(self.key) ^ (prefix.0 >> 29);
        let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let cell = &mut self.full_at[(spread >> (64 - Self::CELLS_LOG2)) as usize];
        let full_at = (*cell).max(now) + self.cost;
        if full_at > now + Self::BURST {
            return false;
        }
        *cell = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_24_and_56() {
        let of = |text: &str| Prefix::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!(of("2001:db8:1:200::1"), of("2001:db8:1:2ff::1"));
        assert_ne!(of("2001:db8:1:200::1"), of("2001:db8:1:300::1"));
    }

    #[test]
    fn quotas_count_and_forget() {
        let limits = Limits { legs_per_prefix: 2, half_open_per_prefix: 1, ..Limits::default() };
        let mut quotas = Quotas::new(limits);
        let prefix = Prefix(1);
        quotas.open_leg(prefix).unwrap();
        assert_eq!(quotas.open_leg(prefix), Err(QuotaReached));
        quotas.bind_leg(prefix);
        quotas.open_leg(prefix).unwrap();
        quotas.bind_leg(prefix);
        assert_eq!(quotas.open_leg(prefix), Err(QuotaReached));
        quotas.open_leg(Prefix(2)).unwrap();
        quotas.close_leg(prefix, true);
        quotas.close_leg(prefix, true);
        quotas.close_leg(Prefix(2), false);
        assert_eq!(quotas.half_open(), 0);
        assert!(quotas.prefixes.is_empty());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    fn rate_holds_over_time_and_per_prefix() {
        let origin = Instant::now();
        let mut rates = Rates::new(origin, 0x1234_5678_9abc_def1, 100);
        let mut passed = 0;
        for millisecond in 0..3_000 {
            let now = origin + Duration::from_millis(millisecond);
            passed += u32::from(rates.allow(now, Prefix(1)));
        }
        assert!((395..=405).contains(&passed), "{passed} of a burst of 100 and 3 s at 100/s");
        assert!(rates.allow(origin + Duration::from_secs(3), Prefix(2)));
    }
}
