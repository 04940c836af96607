//! Signals to the other agent, each once and in order, over a channel that loses, repeats and reorders.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::control::Control;

/// Signals under way at once.
const WINDOW: u32 = 8;
/// Pause before what is under way is sent again, the first and the longest time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(2));

/// Both directions of one agent's signals.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// What the other agent has not confirmed.
    unconfirmed: VecDeque<Vec<u8>>,
    /// Number of the first of them.
    first: u32,
    /// Number of the first that has never been sent.
    unsent: u32,
    resend_at: Instant,
    pause: Duration,
    /// Number of the next signal to come.
    expected: u32,
    /// The other agent is to be told so.
    owes_ack: bool,
}

impl Mailbox {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            unconfirmed: VecDeque::new(),
            first: 0,
            unsent: 0,
            resend_at: now,
            pause: PAUSE.0,
            expected: 0,
            owes_ack: false,
        }
    }

    pub(super) fn post(&mut self, body: Vec<u8>) {
        self.unconfirmed.push_back(body);
    }

    /// Takes a signal. Returns its body if it is the next one.
    pub(super) fn handle_signal(&mut self, sequence: u32, body: Vec<u8>) -> Option<Vec<u8>> {
        self.owes_ack = true;
        (sequence == self.expected).then(|| {
            self.expected += 1;
            body
        })
    }

    pub(super) fn handle_ack(&mut self, now: Instant, next: u32) {
        if next <= self.first || next > self.unsent {
            return;
        }
        while self.first < next && self.unconfirmed.pop_front().is_some() {
            self.first += 1;
        }
        self.pause = PAUSE.0;
        self.resend_at = now + self.pause;
    }

    /// Whether the other agent has all that was posted so far.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// To be called once there is a way to the other agent, or another one.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pause = PAUSE.0;
        self.resend_at = now;
    }

    /// What is to be sent now.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Control>> {
        let mut controls = Vec::new();
        if std::mem::take(&mut self.owes_ack) {
            controls.push(Control::Ack(self.expected));
        }
        if self.unsent > self.first && self.resend_at <= now {
            self.unsent = self.first;
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        let posted = u32::try_from(self.unconfirmed.len()).unwrap_or(u32::MAX);
        let end = self.first + posted.min(WINDOW);
        if self.unsent < end {
            self.resend_at = now + self.pause;
        }
        for sequence in self.unsent..end {
            if let Some(body) = self.unconfirmed.get((sequence - self.first) as usize) {
                controls.push(Control::Signal { sequence, body: body.clone() });
            }
        }
        self.unsent = self.unsent.max(end);
        (!controls.is_empty()).then_some(controls)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.unconfirmed.is_empty()).then_some(self.resend_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    /// Passes on what one side sends: lost, doubled and shuffled.
    fn carry(
        rng: &mut StdRng,
        now: Instant,
        from: &mut Mailbox,
        to: &mut Mailbox,
        into: &mut Vec<Vec<u8>>,
    ) {
        let mut controls = from.poll_transmit(now).unwrap_or_default();
        if rng.random_bool(0.2) {
            controls.extend(controls.clone());
        }
        controls.retain(|_| rng.random_bool(0.6));
        controls.shuffle(rng);
        for control in controls {
            match control {
                Control::Ack(next) => to.handle_ack(now, next),
                Control::Signal { sequence, body } => into.extend(to.handle_signal(sequence, body)),
                other => panic!("{other:?} is not a mailbox's"),
            }
        }
    }

    proptest! {
        #[test]
        fn all_arrive_once_and_in_order(seed: u64, count in 1_usize..40) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = origin();
            let (mut a, mut b) = (Mailbox::new(now), Mailbox::new(now));
            let sent: Vec<Vec<u8>> = (0..count).map(|i| i.to_be_bytes().to_vec()).collect();
            sent.iter().for_each(|body| a.post(body.clone()));
            let (mut received, mut none) = (Vec::new(), Vec::new());
            for _ in 0..1_000 {
                carry(&mut rng, now, &mut a, &mut b, &mut received);
                carry(&mut rng, now, &mut b, &mut a, &mut none);
                now += Duration::from_millis(100);
            }
            prop_assert_eq!(received, sent);
            prop_assert!(none.is_empty());
            prop_assert_eq!(a.poll_timeout(), None);
        }
    }
}
