//! Time, as an argument.

use std::time::{Duration, Instant};

/// The two clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub monotonic: Instant,
    /// Since 1970, for nonces, ephemeral users and what outlives a restart.
    pub unix: Duration,
}

impl Now {
    /// `instant` in wall-clock terms.
    pub(super) fn unix_at(self, instant: Instant) -> Duration {
        match instant.checked_duration_since(self.monotonic) {
            Some(ahead) => self.unix + ahead,
            None => self.unix.saturating_sub(self.monotonic - instant),
        }
    }

    /// The instant at `unix`, or now where that has passed.
    pub(super) fn instant_at(self, unix: Duration) -> Instant {
        self.monotonic + unix.saturating_sub(self.unix)
    }
}
