//! Keeps two sides in step: both prepare a round, then one fires, then the other, or both at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::punch::config::Reason;
use crate::punch::message::{Message, Stage};
use crate::punch::plan::Order;

/// Pause before a message is sent again.
const REPEAT: Duration = Duration::from_millis(200);
/// How long the initiator waits for a message that tells the round-trip time.
const RTT_PATIENCE: Duration = Duration::from_millis(800);
/// Sent messages whose time is remembered.
const REMEMBERED: usize = 64;

/// One side's view of how far both are.
#[derive(Debug)]
pub(crate) struct Coordinator {
    order: Order,
    is_initiator: bool,
    endpoints: Vec<SocketAddr>,
    stage: Stage,
    round: u16,
    port: Option<u16>,
    /// What the other side said last.
    theirs: Option<Message>,
    heard_at: Instant,
    /// Number of the next message.
    number: u32,
    /// When the last messages were sent.
    sent: VecDeque<(u32, Instant)>,
    rtt: Option<Duration>,
    prepared_at: Instant,
    fire_at: Option<Instant>,
    repeat_at: Option<Instant>,
    events: VecDeque<Step>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Hand a message to the other side.
    Tell(Vec<u8>),
    /// Send the round's probes.
    Fire,
    /// Prepare this round.
    Prepare(u16),
    /// The end.
    Fail(Reason),
}

impl Coordinator {
    pub(crate) fn new(
        order: Order,
        is_initiator: bool,
        endpoints: Vec<SocketAddr>,
        now: Instant,
    ) -> Self {
        Self {
            order,
            is_initiator,
            endpoints,
            stage: Stage::Preparing,
            round: 0,
            port: None,
            theirs: None,
            heard_at: now,
            number: 1,
            sent: VecDeque::with_capacity(REMEMBERED),
            rtt: None,
            prepared_at: now,
            fire_at: None,
            repeat_at: Some(now),
            events: VecDeque::from([Step::Prepare(0)]),
        }
    }

    /// Everything is ready for this round.
    pub(crate) fn prepared(&mut self, now: Instant, port: Option<u16>) {
        (self.stage, self.port, self.prepared_at) = (Stage::Prepared, port, now);
        self.tell(now);
        self.advance(now);
    }

    /// All of this round's probes have been sent.
    pub(crate) fn fired(&mut self, now: Instant) {
        self.stage = Stage::Fired;
        self.tell(now);
    }

    /// Nothing has come of this round.
    pub(crate) fn next_round(&mut self, now: Instant) {
        self.enter(self.round + 1);
        self.tell(now);
    }

    /// We have failed.
    pub(crate) fn give_up(&mut self, now: Instant) {
        self.stage = Stage::GivenUp;
        self.tell(now);
        self.repeat_at = None;
    }

    /// There is a path: nothing more is to be said.
    pub(crate) fn finish(&mut self) {
        (self.repeat_at, self.fire_at) = (None, None);
    }

    pub(crate) fn handle_message(&mut self, now: Instant, message: Message) {
        self.learn_rtt(now, &message);
        if self.theirs.as_ref().is_some_and(|known| known.number >= message.number) {
            return;
        }
        let is_news = self
            .theirs
            .as_ref()
            .is_none_or(|known| (known.round, known.stage) != (message.round, message.stage));
        let (round, stage) = (message.round, message.stage);
        (self.theirs, self.heard_at) = (Some(message), now);
        if self.stage == Stage::GivenUp {
            return;
        }
        if stage == Stage::GivenUp {
            self.events.push_back(Step::Fail(Reason::GivenUp));
            return;
        }
        if round > self.round {
            self.enter(round);
        }
        if is_news {
            self.tell(now);
        }
        self.advance(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.repeat_at.is_some_and(|at| at <= now) {
            self.tell(now);
        }
        if self.fire_at.take_if(|at| *at <= now).is_some() {
            self.events.push_back(Step::Fire);
        }
        self.advance(now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.repeat_at.into_iter().chain(self.fire_at).min()
    }

    pub(crate) fn poll_step(&mut self) -> Option<Step> {
        self.events.pop_front()
    }

    /// Whether there is no step to be taken.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_idle(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) const fn round(&self) -> u16 {
        self.round
    }

    pub(crate) const fn has_heard(&self) -> bool {
        self.theirs.is_some()
    }

    /// Whether [`Coordinator::fired`] has been called in this round.
    pub(crate) fn has_fired(&self) -> bool {
        self.stage == Stage::Fired
    }

    /// Whether both sides have sent all of this round's probes.
    pub(crate) fn both_fired(&self) -> bool {
        self.stage == Stage::Fired && self.they_are(Stage::Fired)
    }

    /// The external port that the other side has learnt for this round.
    pub(crate) fn their_port(&self) -> Option<u16> {
        self.theirs.as_ref().filter(|theirs| theirs.round == self.round)?.port
    }

    /// The endpoints that the other side has.
    pub(crate) fn their_endpoints(&self) -> &[SocketAddr] {
        self.theirs.as_ref().map_or(&[], |theirs| &theirs.endpoints)
    }

    /// Round-trip time of messages.
    pub(crate) fn rtt(&self) -> Duration {
        self.rtt.unwrap_or(Duration::ZERO)
    }

    fn enter(&mut self, round: u16) {
        (self.round, self.stage, self.port, self.fire_at) = (round, Stage::Preparing, None, None);
        self.events.push_back(Step::Prepare(round));
    }

    /// Whether the other side is in our round, and at least so far.
    fn they_are(&self, stage: Stage) -> bool {
        let is_there = |theirs: &Message| theirs.round == self.round && theirs.stage >= stage;
        self.theirs.as_ref().is_some_and(is_there)
    }

    /// Fires once it is our turn.
    fn advance(&mut self, now: Instant) {
        if self.stage != Stage::Prepared || !self.they_are(Stage::Prepared) {
            return;
        }
        let at = match (self.order, self.is_initiator) {
            (Order::OursFirst, _) => Some(now),
            (Order::TheirsFirst, _) => self.they_are(Stage::Fired).then_some(now),
            (Order::Together, false) => self.they_are(Stage::Firing).then_some(now),
            // The other side fires once it has heard of it, which is half a round trip later.
            (Order::Together, true) => match self.rtt {
                Some(rtt) => Some(now + rtt / 2),
                None => (now >= self.prepared_at + RTT_PATIENCE).then_some(now),
            },
        };
        if let Some(at) = at {
            self.stage = Stage::Firing;
            self.fire_at = Some(at);
            self.tell(now);
        }
    }

    fn tell(&mut self, now: Instant) {
        let message = Message {
            stage: self.stage,
            round: self.round,
            number: self.number,
            last: self.theirs.as_ref().map_or(0, |theirs| theirs.number),
            held: now.saturating_duration_since(self.heard_at),
            port: self.port,
            endpoints: self.endpoints.clone(),
        };
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        self.number = self.number.saturating_add(1);
        self.repeat_at = Some(now + REPEAT);
        self.events.push_back(Step::Tell(message.encode()));
    }

    fn learn_rtt(&mut self, now: Instant, message: &Message) {
        let Some((_, sent)) = self.sent.iter().find(|(number, _)| *number == message.last) else {
            return;
        };
        let rtt = now.saturating_duration_since(*sent).saturating_sub(message.held);
        self.rtt = Some(self.rtt.map_or(rtt, |known| known.min(rtt)));
    }
}
