//! The only place in the daemon that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Time since 1970 by the wall clock; zero should that lie before it.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
