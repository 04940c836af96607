//! Whether the other side is still there, and still the same.

use std::time::{Duration, Instant};

const PROBE: u8 = 0;
const ANSWER: u8 = 1;

pub(super) struct Probes {
    timeout: Duration,
    /// Who we are, until we start anew.
    own: [u8; 8],
    peers: Option<[u8; 8]>,
    heard: Instant,
    probe_at: Instant,
    answers: bool,
}

impl Probes {
    pub(super) fn new(timeout: Duration, own: [u8; 8], now: Instant) -> Self {
        let probe_at = now + timeout / 4;
        Self { timeout, own, peers: None, heard: now, probe_at, answers: false }
    }

    /// Something came.
    pub(super) const fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Takes what is no segment. Returns whether the other side has started anew.
    pub(super) fn handle(&mut self, bytes: &[u8]) -> bool {
        let Some((kind, instance)) = bytes.split_first() else { return false };
        let Ok(instance) = <[u8; 8]>::try_from(instance) else { return false };
        self.answers |= *kind == PROBE;
        self.peers.replace(instance).is_some_and(|before| before != instance)
    }

    /// Whether nothing has come for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now >= self.heard + self.timeout
    }

    pub(super) fn next_at(&self) -> Instant {
        self.due().min(self.heard + self.timeout)
    }

    fn due(&self) -> Instant {
        self.probe_at.max(self.heard + self.timeout / 4)
    }

    pub(super) fn poll_transmit(&mut self, now: Instant, is_used: bool) -> Option<Vec<u8>> {
        let kind = match (std::mem::take(&mut self.answers), is_used && self.due() <= now) {
            (true, _) => ANSWER,
            (false, true) => {
                self.probe_at = now + self.timeout / 4;
                PROBE
            }
            (false, false) => return None,
        };
        Some([&[kind], &self.own[..]].concat())
    }
}
