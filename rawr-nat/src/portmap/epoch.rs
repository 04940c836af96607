//! How long a gateway has had its state: it tells with every answer of NAT-PMP and PCP, and who sees
//! it go back has lost all mappings (RFC 6886 §3.6, RFC 6887 §8.5).

use std::time::Instant;

/// What a gateway last said its epoch was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    pub(super) seconds: u32,
    pub(super) at: Instant,
}

impl Epoch {
    /// Whether a gateway that says `seconds` now has lost its state since. Clocks may differ by a
    /// sixteenth and two seconds (RFC 6887 §8.5); one that runs ahead is no harm here.
    pub(super) fn has_restarted(self, seconds: u32, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs();
        let expected = u64::from(self.seconds) + elapsed - elapsed / 16;
        u64::from(seconds) + 2 < expected
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn an_epoch_that_goes_back_is_a_restart() {
        let at = Instant::now();
        let epoch = Epoch { seconds: 1_000, at };
        let later = at + Duration::from_secs(160);
        for (seconds, restarted) in [(1_160, false), (1_150, false), (1_147, true), (3, true)] {
            assert_eq!(epoch.has_restarted(seconds, later), restarted, "{seconds}");
        }
        assert!(!epoch.has_restarted(9_999, later), "ahead");
    }
}
