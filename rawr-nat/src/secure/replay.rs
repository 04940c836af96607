//! Which datagrams have come already (RFC 4303 §3.4.3, with the ring of RFC 6479).

const WORDS: usize = 129;
const BITS: u64 = 64;

/// How far a datagram may be behind the latest one: two paths whose delays differ by 80 ms reorder
/// this much at 1 Gbit/s.
pub(super) const WINDOW: u64 = (WORDS as u64 - 1) * BITS;

/// Remembers the counters of the datagrams that came.
#[derive(Clone)]
pub(super) struct ReplayWindow {
    /// One more than the greatest counter that came.
    end: u64,
    /// The bit of `counter` is in the word `counter / 64`, modulo the number of words. There is one
    /// word more than the window has, since the last one is used only in part.
    seen: Box<[u64; WORDS]>,
}

impl ReplayWindow {
    pub(super) fn new() -> Self {
        Self { end: 0, seen: Box::new([0; WORDS]) }
    }

    /// Whether `counter` is recent and has not come before.
    pub(super) const fn admits(&self, counter: u64) -> bool {
        if counter >= self.end {
            return true;
        }
        let (word, bit) = place(counter);
        self.end - counter <= WINDOW && self.seen[word] & bit == 0
    }

    /// Remembers a counter that is admitted and proved genuine.
    pub(super) fn mark(&mut self, counter: u64) {
        if counter >= self.end {
            let newest = self.end.wrapping_sub(1) / BITS;
            let newest = if self.end == 0 { 0 } else { newest };
            let fresh = (counter / BITS - newest).min(WORDS as u64);
            for i in 1..=fresh {
                self.seen[((newest + i) % WORDS as u64) as usize] = 0;
            }
            self.end = counter + 1;
        }
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }
}

const fn place(counter: u64) -> (usize, u64) {
    (((counter / BITS) % WORDS as u64) as usize, 1 << (counter % BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What a counter is relative to those before: a step ahead, a jump, or something old.
    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => 0..4_i64,
            2 => -200..200_i64,
            1 => -9_000..9_000_i64,
            1 => -40_000..40_000_i64,
        ];
        proptest::collection::vec(step, 1..400).prop_map(|steps| {
            let mut at = 0_i64;
            steps
                .into_iter()
                .map(|step| {
                    at = (at + step).max(0);
                    at as u64
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn remembers_like_a_set(counters in counters()) {
            let mut window = ReplayWindow::new();
            let mut came = BTreeSet::new();
            for counter in counters {
                let end = came.last().map_or(0, |last| last + 1);
                let is_recent = counter >= end || end - counter <= WINDOW;
                let expected = is_recent && !came.contains(&counter);
                prop_assert_eq!(window.admits(counter), expected, "counter {}", counter);
                if expected {
                    window.mark(counter);
                    came.insert(counter);
                }
            }
        }
    }

    #[test]
    fn keeps_more_than_a_thousand() {
        const { assert!(WINDOW >= 1_024) };
        let mut window = ReplayWindow::new();
        window.mark(WINDOW);
        assert!(window.admits(1));
        assert!(!window.admits(0), "just outside");
    }
}
