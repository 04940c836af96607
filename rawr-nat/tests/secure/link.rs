//! A link in virtual time, and two sessions at its ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::Identity;
use rawr_nat::secure::{Dropped, Session, SessionConfig, SessionEvent, SessionOutput};

/// How a link treats datagrams. Probabilities are in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    pub(crate) loss: u32,
    pub(crate) doubled: u32,
    /// Datagrams with one bit changed: an additional copy, so that it is not loss as well.
    pub(crate) corrupted: u32,
    pub(crate) delay: Duration,
    /// Up to this much is added, independently for each datagram.
    pub(crate) jitter: Duration,
    /// Bytes per second in each direction, with room for 100 ms in its queue.
    pub(crate) rate: Option<u32>,
}

impl Quality {
    pub(crate) const PERFECT: Self = Self {
        loss: 0,
        doubled: 0,
        corrupted: 0,
        delay: Duration::from_millis(10),
        jitter: Duration::ZERO,
        rate: None,
    };
}

/// Datagrams on their way, in both directions.
pub(crate) struct Link {
    pub(crate) quality: Quality,
    pub(crate) rng: StdRng,
    pub(crate) is_cut: bool,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    sent: u64,
    /// Until when each direction is busy with what was sent before.
    busy: [Option<Instant>; 2],
}

/// What a link's queue holds.
const QUEUE: Duration = Duration::from_millis(100);

impl Link {
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { quality, rng, is_cut: false, flying: BTreeMap::new(), sent: 0, busy: [None; 2] }
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub(crate) fn send(&mut self, now: Instant, to: usize, bytes: Vec<u8>) {
        if self.is_cut {
            return;
        }
        if self.happens(self.quality.corrupted) {
            let mut changed = bytes.clone();
            let bit = self.rng.random_range(0..changed.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            self.fly(now, to, changed);
        }
        if self.happens(self.quality.doubled) {
            self.fly(now, to, bytes.clone());
        }
        if !self.happens(self.quality.loss) {
            self.fly(now, to, bytes);
        }
    }

    fn fly(&mut self, now: Instant, to: usize, bytes: Vec<u8>) {
        let jitter = self.quality.jitter.mul_f64(self.rng.random::<f64>());
        let mut leaves = now;
        if let Some(rate) = self.quality.rate {
            leaves = self.busy[to].map_or(now, |busy| busy.max(now));
            if leaves - now > QUEUE {
                return;
            }
            // IPv4 and UDP headers take their share.
            leaves += Duration::from_secs(1) * (bytes.len() as u32 + 28) / rate;
            self.busy[to] = Some(leaves);
        }
        self.sent += 1;
        self.flying.insert((leaves + self.quality.delay + jitter, self.sent), (to, bytes));
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.flying.keys().next().map(|key| key.0)
    }

    /// What has arrived by `now`: to whom, and what.
    pub(crate) fn arrive(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        let entry = self.flying.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity::from_bytes(&[number; 32])
}

pub(crate) fn config(number: u8) -> SessionConfig {
    SessionConfig::new(identity(number), b"test".to_vec(), 1)
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

/// Two sessions and what came of them.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) link: Link,
    pub(crate) ends: [Session; 2],
    pub(crate) events: [Vec<SessionEvent>; 2],
    pub(crate) received: [Vec<Vec<u8>>; 2],
    pub(crate) dropped: [Vec<Dropped>; 2],
    /// Everything that was ever sent, and to whom.
    pub(crate) wire: Vec<(usize, Vec<u8>)>,
}

impl Pair {
    pub(crate) fn new(link: Link, now: Instant, ends: [Session; 2]) -> Self {
        let (events, received, dropped) = Default::default();
        let mut pair = Self { now, link, ends, events, received, dropped, wire: Vec::new() };
        pair.drain();
        pair
    }

    /// 1 calls 2, or both each other.
    pub(crate) fn calling(quality: Quality, seed: u64, both: bool) -> Self {
        let now = start();
        let caller = Session::initiate(config(1), identity(2).public(), [1; 32], now).unwrap();
        let called = match both {
            true => Session::initiate(config(2), identity(1).public(), [2; 32], now).unwrap(),
            false => Session::respond(config(2), Some(identity(1).public()), [2; 32], now),
        };
        Self::new(Link::new(quality, seed), now, [caller, called])
    }

    pub(crate) fn is_established(&self) -> bool {
        self.ends.iter().all(Session::is_established)
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    pub(crate) fn run_until(&mut self, end: Instant, is_done: impl Fn(&Self) -> bool) {
        while !is_done(self) {
            let timers = self.ends.iter().filter_map(Session::poll_timeout);
            let next = timers.chain(self.link.next_at()).min().filter(|at| *at <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.step();
        }
    }

    fn step(&mut self) {
        while let Some((to, bytes)) = self.link.arrive(self.now) {
            self.deliver(to, &bytes);
        }
        for end in &mut self.ends {
            if end.poll_timeout().is_some_and(|at| at <= self.now) {
                end.handle_timeout(self.now);
            }
        }
        self.drain();
    }

    pub(crate) fn deliver(&mut self, to: usize, bytes: &[u8]) {
        match self.ends[to].handle_datagram(self.now, bytes) {
            Ok(Some(payload)) => self.received[to].push(payload),
            Ok(None) => {}
            Err(why) => self.dropped[to].push(why),
        }
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        for (i, end) in self.ends.iter_mut().enumerate() {
            while let Some(output) = end.poll_output() {
                match output {
                    SessionOutput::Transmit(bytes) => {
                        self.wire.push((1 - i, bytes.clone()));
                        self.link.send(self.now, 1 - i, bytes);
                    }
                    SessionOutput::Event(event) => self.events[i].push(event),
                }
            }
        }
    }

    pub(crate) fn send(&mut self, from: usize, payload: &[u8]) {
        let bytes = self.ends[from].seal(self.now, payload).unwrap();
        self.wire.push((1 - from, bytes.clone()));
        self.link.send(self.now, 1 - from, bytes);
        self.drain();
    }
}
