//! A path without RAWR in it: how it is proven, kept open and watched (after RFC 7675).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::socket_id::SocketId;

/// Pauses between the first Pings; the last repeats.
const TRY_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
];
/// How long a path is tried before it is forgotten.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Silence, while data is sent, after which the selected path is pinged, and pause between those Pings.
const DOUBT: Duration = Duration::from_millis(250);
/// Pings in vain after which the selected path is dead.
const DOUBT_TRIES: u32 = 4;
/// Pause between Pings on the selected path that make sure of the other side's consent (RFC 7675 §5.1).
const CONSENT: Duration = Duration::from_secs(5);
/// How long consent lasts (RFC 7675 §5.1).
const CONSENT_LIMIT: Duration = Duration::from_secs(30);
/// Pause between Pings on a path that is not selected.
const STANDBY: Duration = Duration::from_secs(12);
/// Pings in vain after which such a path is forgotten.
const STANDBY_TRIES: u32 = 4;
/// Pause between Pings on a dead path, and how long it is watched for signs of life.
const DEAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a path that died has to work before data takes it again: at first, and at most.
const PENALTY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Pings that may still be answered.
const MAX_OUTSTANDING: usize = 8;

/// How far a path has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing has been answered yet.
    Trying,
    /// It works both ways.
    Valid,
    /// It has worked.
    Dead,
}

/// One path from a socket of ours straight to an address of the other agent's.
#[derive(Debug)]
pub(super) struct DirectPath {
    pub(super) id: u32,
    pub(super) socket: SocketId,
    pub(super) remote: SocketAddr,
    pub(super) kind: super::AgentPathKind,
    pub(super) state: State,
    pub(super) rtt: Option<Duration>,
    is_selected: bool,
    since: Instant,
    heard: Instant,
    sent: Option<Instant>,
    answered: Instant,
    pinged: Option<Instant>,
    unanswered: u32,
    outstanding: Vec<(u64, Instant)>,
    penalty: Duration,
    /// Data does not take it before.
    not_before: Instant,
}

impl DirectPath {
    pub(super) fn new(
        id: u32,
        (socket, remote): (SocketId, SocketAddr),
        kind: super::AgentPathKind,
        now: Instant,
    ) -> Self {
        Self {
            id,
            socket,
            remote,
            kind,
            state: State::Trying,
            rtt: None,
            is_selected: false,
            since: now,
            heard: now,
            sent: None,
            answered: now,
            pinged: None,
            unanswered: 0,
            outstanding: Vec::new(),
            penalty: PENALTY.0,
            not_before: now,
        }
    }

    /// Another check has just shown that it works both ways.
    pub(super) fn prove(&mut self, now: Instant, rtt: Option<Duration>) {
        self.rtt = self.rtt.or(rtt);
        if self.state != State::Valid {
            self.enter(State::Valid, now);
        }
        (self.heard, self.answered, self.unanswered) = (now, now, 0);
    }

    pub(super) fn is_valid(&self) -> bool {
        self.state == State::Valid
    }

    /// Whether data may take it of our own accord.
    pub(super) fn is_eligible(&self, now: Instant) -> bool {
        self.is_valid() && now >= self.not_before
    }

    pub(super) fn set_selected(&mut self, now: Instant, is_selected: bool) {
        if self.is_selected != is_selected {
            self.is_selected = is_selected;
            (self.heard, self.sent, self.unanswered) = (now, None, 0);
        }
    }

    /// Data was sent.
    pub(super) fn note_sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// Something came from the other agent.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = now;
        if self.is_selected {
            self.unanswered = 0;
        }
    }

    /// Takes a Pong. Returns whether it answers a Ping sent on this path.
    pub(super) fn handle_pong(&mut self, now: Instant, id: u64) -> bool {
        let Some(at) = self.outstanding.iter().position(|(ping, _)| *ping == id) else {
            return false;
        };
        let (_, sent_at) = self.outstanding.remove(at);
        let rtt = now.saturating_duration_since(sent_at);
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        self.prove(now, None);
        true
    }

    /// The other agent says that what it sends by this path does not arrive, or we have noticed the same.
    pub(super) fn die(&mut self, now: Instant) {
        if self.state == State::Valid {
            self.enter(State::Dead, now);
            self.penalty = (self.penalty * 2).min(PENALTY.1);
            self.not_before = now + self.penalty;
        }
    }

    /// The other agent says that it works.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.state == State::Dead {
            self.enter(State::Trying, now);
            self.pinged = None;
        }
    }

    /// Nobody wants it although it works: it is not offered again soon.
    pub(super) fn rest(&mut self, now: Instant) {
        self.penalty = (self.penalty * 2).min(PENALTY.1);
        self.not_before = now + self.penalty;
    }

    /// Draws the conclusions from silence.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.state != State::Valid {
            return;
        }
        let patience = DOUBT.max(self.rtt.unwrap_or_default() * 2);
        let silent = now.saturating_duration_since(self.heard) >= DOUBT * DOUBT_TRIES + patience;
        let in_vain = self.is_selected && self.unanswered >= DOUBT_TRIES && silent;
        let consent_over = now.saturating_duration_since(self.answered) >= CONSENT_LIMIT;
        let forgotten = !self.is_selected && self.unanswered >= STANDBY_TRIES && silent;
        if in_vain || forgotten || (self.is_selected && consent_over) {
            self.die(now);
        }
    }

    /// Whether it is to be forgotten.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        match self.state {
            State::Trying => age >= TRY_LIMIT,
            State::Dead => age >= DEAD.1,
            State::Valid => false,
        }
    }

    /// Whether a Ping with this number is to be sent now.
    pub(super) fn poll_ping(&mut self, now: Instant, id: u64) -> bool {
        if self.due() > now {
            return false;
        }
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((id, now));
        self.pinged = Some(now);
        self.unanswered += 1;
        true
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let end = match self.state {
            State::Trying => self.since + TRY_LIMIT,
            State::Dead => self.since + DEAD.1,
            State::Valid => self.due() + DOUBT,
        };
        self.due().min(end)
    }

    fn due(&self) -> Instant {
        let Some(pinged) = self.pinged else { return self.since };
        match self.state {
            State::Trying => {
                let tries = (self.unanswered as usize).saturating_sub(1);
                pinged + TRY_PAUSES[tries.min(TRY_PAUSES.len() - 1)]
            }
            State::Dead => pinged + DEAD.0,
            State::Valid if self.is_selected => {
                let consent = (self.answered + CONSENT).max(pinged + DOUBT);
                let is_doubtful = self.sent.is_some_and(|sent| sent > self.heard);
                let doubt = (self.heard + DOUBT).max(pinged + DOUBT);
                if is_doubtful || self.unanswered > 0 { consent.min(doubt) } else { consent }
            }
            State::Valid if self.unanswered > 0 => pinged + DEAD.0,
            State::Valid => pinged.max(self.answered) + STANDBY,
        }
    }

    const fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = now;
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::AgentPathKind;
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn path(now: Instant) -> DirectPath {
        let remote = "192.0.2.1:7".parse().unwrap();
        DirectPath::new(1, (SocketId(0), remote), AgentPathKind::Host, now)
    }

    /// Runs the path in silence until `end`, answering each Ping if it `lives`. Returns the Pings.
    fn run(path: &mut DirectPath, now: &mut Instant, end: Instant, lives: bool) -> u32 {
        let mut pings = 0;
        while path.poll_timeout() <= end && !path.is_over(*now) {
            *now = (*now).max(path.poll_timeout());
            path.handle_timeout(*now);
            if path.poll_ping(*now, pings.into()) {
                if lives {
                    assert!(path.handle_pong(*now, pings.into()));
                }
                pings += 1;
            }
        }
        *now = end;
        pings
    }

    #[test]
    fn a_path_that_nobody_answers_on_is_forgotten() {
        let start = origin();
        let (mut now, mut path) = (start, path(start));
        let pings = run(&mut path, &mut now, start + TRY_LIMIT, false);
        assert!((10..30).contains(&pings), "{pings} Pings");
        assert!(path.is_over(start + TRY_LIMIT));
    }

    #[test]
    fn an_idle_path_is_pinged_seldom_and_its_death_is_noticed() {
        let start = origin();
        let (mut now, mut path) = (start, path(start));
        path.prove(now, None);
        path.set_selected(now, true);
        let end = start + Duration::from_secs(60);
        let pings = run(&mut path, &mut now, end, true);
        assert!((11..=14).contains(&pings), "{pings} Pings");
        run(&mut path, &mut now, end + CONSENT + Duration::from_secs(2), false);
        assert_eq!(path.state, State::Dead);
    }

    #[test]
    fn the_death_of_a_busy_path_is_noticed_soon() {
        let start = origin();
        let (mut now, mut path) = (start, path(start));
        path.prove(now, Some(Duration::from_millis(40)));
        path.set_selected(now, true);
        now += Duration::from_secs(1);
        path.note_heard(now);
        path.note_sent(now + Duration::from_millis(10));
        let end = now + Duration::from_millis(1_500);
        run(&mut path, &mut now, end, false);
        assert_eq!(path.state, State::Dead);
        assert!(!path.is_eligible(now));
        path.prove(now, None);
        assert!(path.is_valid() && !path.is_eligible(now));
        assert!(path.is_eligible(now + PENALTY.1));
    }
}
