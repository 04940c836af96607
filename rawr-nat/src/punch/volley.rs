//! The probes of one round, at a bounded rate.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::socket_id::SocketId;

/// Probes that may be sent at once after a pause.
const BURST: u32 = 10;

/// One probe that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) socket: SocketId,
    pub(crate) to: SocketAddr,
    pub(crate) ttl: Option<u8>,
}

/// The probes of one round: the same ones in each pass.
#[derive(Debug)]
pub(crate) struct Volley {
    shots: Vec<Shot>,
    waiting: VecDeque<Shot>,
    passes_left: u16,
    pass_pause: Duration,
    next_at: Instant,
    pass_done: bool,
}

impl Volley {
    /// `opening` are sent once before all others.
    pub(crate) fn new(
        opening: Vec<Shot>,
        shots: Vec<Shot>,
        passes: u16,
        pass_pause: Duration,
        now: Instant,
    ) -> Self {
        let (waiting, passes_left) = if opening.is_empty() {
            (shots.clone().into(), passes.saturating_sub(1))
        } else {
            (opening.into(), passes)
        };
        Self { shots, waiting, passes_left, pass_pause, next_at: now, pass_done: false }
    }

    /// The next probe that is due.
    pub(crate) fn next(&mut self, now: Instant, pace: &mut Pace) -> Option<Shot> {
        if now < self.next_at {
            return None;
        }
        if self.waiting.is_empty() && self.passes_left > 0 {
            self.passes_left -= 1;
            self.waiting = self.shots.clone().into();
        }
        if self.waiting.is_empty() || !pace.take(now) {
            return None;
        }
        let shot = self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.pass_done = true;
            self.next_at = now + self.pass_pause;
        }
        shot
    }

    /// Whether each probe has been sent at least once. An opening counts as such.
    pub(crate) const fn is_fired(&self) -> bool {
        self.pass_done || self.shots.is_empty()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.waiting.is_empty() && (self.passes_left == 0 || self.shots.is_empty())
    }

    pub(crate) fn poll_timeout(&self, pace: &Pace) -> Option<Instant> {
        (!self.is_over()).then(|| self.next_at.max(pace.ready_at()))
    }
}

/// Bounds the rate of probes: the generic cell rate algorithm.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    /// When the next probe is due at the steady rate.
    due: Instant,
}

impl Pace {
    /// `rate` is in probes a second.
    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), due: now }
    }

    fn ready_at(&self) -> Instant {
        self.due.checked_sub(self.interval * BURST).unwrap_or(self.due)
    }

    fn take(&mut self, now: Instant) -> bool {
        let may = self.ready_at() <= now;
        if may {
            self.due = self.due.max(now) + self.interval;
        }
        may
    }
}
