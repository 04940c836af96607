//! A session: handshakes, and the keys that come and go while data flows.
//!
//! Either side may begin a handshake, and both may at once: then the initiation that is greater byte
//! for byte is dropped on both sides. The responder does not use the new keys before it has heard
//! something sealed with them, so that a repeated initiation of old changes nothing; the initiator
//! uses them at once. Each side repeats its message until the next one has come.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zeroize::Zeroizing;

use super::config::{
    Dropped, Rekeying, SealError, SessionConfig, SessionError, SessionEvent, SessionOutput,
};
use super::keys::{Keys, NotOpened};
use super::noise::{Initiator, Prologue, Responder};
use super::wire::{
    self, Counter, ECHO_LEN, Hello, INITIATION_LEN, Number, OVERHEAD, Packet, RESPONSE_LEN,
    Refusal, Slot,
};
use crate::identity::{PublicKey, WeakKey};

/// The longest payload: a UDP datagram over IPv4 holds it.
pub const MAX_PAYLOAD: usize = 65_507 - OVERHEAD;

/// Pause before a handshake message is sent again, doubled up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A refusal may be about a handshake that went astray: how long to wait for a better answer.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a response is repeated. Afterwards it takes a new initiation.
const OFFER: Duration = Duration::from_secs(10);
/// Handshakes computed at once: each costs four multiplications on the curve, and whoever can send to
/// us can ask for them.
const BURST: u32 = 16;
/// Until one more may be.
const REFILL: Duration = Duration::from_millis(100);

/// One side of an encrypted connection over datagrams that may be lost, doubled and overtaken.
pub struct Session {
    config: SessionConfig,
    prologue: Prologue,
    /// Whom we talk to; where anybody may come, `None` until somebody has.
    peer: Option<PublicKey>,
    /// When this side began the first handshake, if it did.
    began: Option<Instant>,
    attempt: Option<Attempt>,
    offer: Option<Offer>,
    current: Option<Keys>,
    previous: Option<Previous>,
    /// Of the initiations that were answered, the latest.
    answered: Option<Number>,
    count: u64,
    slot: Slot,
    budget: Budget,
    failed: Option<SessionError>,
    rng: StdRng,
    outputs: VecDeque<SessionOutput>,
}

/// An own initiation that is to be answered.
struct Attempt {
    initiator: Initiator,
    slot: Slot,
    message: [u8; INITIATION_LEN],
    repeat: Repeat,
    refused: Option<(Instant, Refusal)>,
}

/// A response whose keys the other side has yet to use.
struct Offer {
    keys: Keys,
    initiation: [u8; INITIATION_LEN],
    response: Vec<u8>,
    repeat: Repeat,
}

struct Previous {
    keys: Keys,
    /// Set once the other side is known to seal with newer ones.
    until: Option<Instant>,
}

struct Repeat {
    at: Instant,
    pause: Duration,
}

impl Repeat {
    fn new(now: Instant) -> Self {
        Self { at: now + FIRST_PAUSE, pause: FIRST_PAUSE }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.at <= now;
        if is_due {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.at = now + self.pause;
        }
        is_due
    }
}

impl Session {
    /// Begins a handshake with the holder of `peer`. `seed` comes from a cryptographic random
    /// generator.
    ///
    /// # Errors
    /// If `peer` is no key that anybody holds.
    pub fn initiate(
        config: SessionConfig,
        peer: PublicKey,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<Self, WeakKey> {
        config.identity.agree(&peer)?;
        let mut session = Self::respond(config, Some(peer), seed, now);
        session.began = Some(now);
        session.begin(now);
        Ok(session)
    }

    /// Waits for a handshake of the holder of `peer`, or of whoever comes first. `seed` comes from a
    /// cryptographic random generator.
    pub fn respond(
        config: SessionConfig,
        peer: Option<PublicKey>,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        Self {
            prologue: Prologue::new(&config.context),
            config,
            peer,
            began: None,
            attempt: None,
            offer: None,
            current: None,
            previous: None,
            answered: None,
            count: 0,
            slot: Slot::FIRST,
            budget: Budget { tokens: BURST, refilled: now },
            failed: None,
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    /// Who the other side has proved to be; `None` until it has.
    pub fn peer(&self) -> Option<PublicKey> {
        self.peer.filter(|_| self.current.is_some())
    }

    /// Whether data can be sealed.
    pub const fn is_established(&self) -> bool {
        self.current.is_some()
    }

    /// Why the session is over, if it is.
    pub const fn failed(&self) -> Option<SessionError> {
        self.failed
    }

    /// Seals a payload, which may be empty: the datagram to send is longer by [`OVERHEAD`].
    ///
    /// # Errors
    /// If there are no keys, or the payload is longer than [`MAX_PAYLOAD`].
    pub fn seal(&mut self, now: Instant, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(SealError::TooLong(payload.len()));
        }
        self.check_age(now);
        if let Some(error) = self.failed {
            return Err(SealError::Over(error));
        }
        let keys = self.current.as_mut().ok_or(SealError::NotEstablished)?;
        let datagram = keys.seal(payload).ok_or(SealError::NotEstablished)?;
        if self.begins_at().is_some_and(|at| at <= now) {
            self.begin(now);
        }
        Ok(datagram)
    }

    /// Takes a datagram from the other side. Returns the payload if it carries one.
    ///
    /// # Errors
    /// If it is dropped; most callers just count that.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Result<Option<Vec<u8>>, Dropped> {
        self.check_age(now);
        if self.failed.is_some() {
            return Err(Dropped::Over);
        }
        match Packet::parse(datagram).ok_or(Dropped::Malformed)? {
            Packet::Data { slot, counter, sealed } => self.open(now, slot, counter, sealed),
            Packet::Initiation(noise) => self.handle_initiation(now, noise).map(|()| None),
            Packet::Response { slot, noise } => {
                self.handle_response(now, slot, noise).map(|()| None)
            }
            Packet::Refusal { reason, echo } => {
                self.handle_refusal(now, reason, echo).map(|()| None)
            }
        }
    }

    /// To be called once [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_age(now);
        if self.failed.is_some() {
            return;
        }
        self.previous.take_if(|it| it.until.is_some_and(|until| until <= now));
        if let Some(offer) = &mut self.offer
            && now < offer.keys.made + OFFER
            && offer.repeat.is_due(now)
        {
            self.outputs.push_back(SessionOutput::Transmit(offer.response.clone()));
        }
        if let Some(attempt) = &mut self.attempt
            && attempt.repeat.is_due(now)
        {
            let bytes = wire::initiation(&attempt.message);
            self.outputs.push_back(SessionOutput::Transmit(bytes));
        }
        if self.begins_at().is_some_and(|at| at <= now) {
            self.begin(now);
        }
    }

    /// When [`Session::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let offer = self.offer.as_ref();
        let repeated =
            offer.filter(|it| it.repeat.at < it.keys.made + OFFER).map(|it| it.repeat.at);
        [
            repeated,
            self.offer.as_ref().map(|it| it.keys.made + self.config.rekeying.expire),
            self.attempt.as_ref().map(|it| it.repeat.at),
            self.previous.as_ref().and_then(|it| it.until),
            self.begins_at(),
            self.over_at().map(|(at, _)| at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<SessionOutput> {
        self.outputs.pop_front()
    }

    /// When this side is to begin a handshake.
    fn begins_at(&self) -> Option<Instant> {
        if self.attempt.is_some() {
            return None;
        }
        let Rekeying { after, after_datagrams, .. } = self.config.rekeying;
        let due = match &self.current {
            None => self.began?,
            Some(keys) if keys.sealed() >= after_datagrams => keys.made,
            Some(keys) if keys.is_initiator => keys.made + after,
            Some(keys) => keys.made + after + after / 4,
        };
        // The other side was faster, and its handshake has some time to come to an end.
        Some(self.offer.as_ref().map_or(due, |offer| due.max(offer.keys.made + OFFER)))
    }

    /// When the session is over unless something comes, and why.
    fn over_at(&self) -> Option<(Instant, SessionError)> {
        let peer = self.peer?;
        if let Some(keys) = &self.current {
            let after = self.config.rekeying.expire;
            return Some((keys.made + after, SessionError::Expired { peer, after }));
        }
        let after = self.config.patience;
        let unanswered = (self.began? + after, SessionError::Unanswered { peer, after });
        let own = self.config.identity.public();
        let refused = self.attempt.as_ref().and_then(|it| it.refused);
        let refused = refused.map(|(at, reason)| match reason {
            Refusal::Unreadable => (at + REFUSED, SessionError::WrongPeer { peer }),
            Refusal::Stranger => (at + REFUSED, SessionError::NotExpected { peer, own }),
        });
        Some(refused.into_iter().fold(unanswered, |a, b| if b.0 < a.0 { b } else { a }))
    }

    fn check_age(&mut self, now: Instant) {
        if self.failed.is_some() {
            return;
        }
        let expire = self.config.rekeying.expire;
        self.previous.take_if(|it| it.keys.made + expire <= now);
        self.offer.take_if(|it| it.keys.made + expire <= now);
        if let Some((at, error)) = self.over_at()
            && at <= now
        {
            self.failed = Some(error);
            (self.attempt, self.offer, self.current, self.previous) = (None, None, None, None);
            self.say(SessionEvent::Failed(error));
        }
    }

    /// Begins a handshake, unless one is on its way.
    fn begin(&mut self, now: Instant) {
        let Some(peer) = self.peer.filter(|_| self.attempt.is_none()) else { return };
        let slot = self.free_slot();
        let number = Number { epoch: self.config.epoch, count: self.count };
        self.count += 1;
        let seed = self.fresh_seed();
        let (identity, hello) = (&self.config.identity, Hello { slot, number });
        let made = Initiator::new(identity, &peer, &self.prologue, hello, *seed);
        // A weak key has been refused before.
        let Some((initiator, message)) = made else { return };
        let repeat = Repeat::new(now);
        self.attempt = Some(Attempt { initiator, slot, message, repeat, refused: None });
        self.outputs.push_back(SessionOutput::Transmit(wire::initiation(&message)));
    }

    fn open(
        &mut self,
        now: Instant,
        slot: Slot,
        counter: Counter,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>, Dropped> {
        let refused = |why| match why {
            NotOpened::Forged => Dropped::Forged,
            NotOpened::Replayed => Dropped::Replayed,
        };
        if let Some(mut offer) = self.offer.take_if(|it| it.keys.slot == slot) {
            let opened = offer.keys.open(counter, sealed);
            match opened.is_ok() {
                true => self.adopt(now, offer.keys),
                false => self.offer = Some(offer),
            }
            return opened.map_err(refused);
        }
        if let Some(keys) = self.current.as_mut().filter(|keys| keys.slot == slot) {
            let opened = keys.open(counter, sealed).map_err(refused)?;
            self.retire(now);
            return Ok(opened);
        }
        let previous = self.previous.as_mut().filter(|it| it.keys.slot == slot);
        let previous = previous.filter(|it| it.until.is_none_or(|until| now < until));
        previous.ok_or(Dropped::UnknownKeys)?.keys.open(counter, sealed).map_err(refused)
    }

    /// The other side seals with the current keys: those before them have had their time.
    fn retire(&mut self, now: Instant) {
        let grace = self.config.rekeying.grace;
        if let Some(previous) = &mut self.previous {
            previous.until.get_or_insert(now + grace);
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        noise: &[u8; INITIATION_LEN],
    ) -> Result<(), Dropped> {
        if let Some(offer) = self.offer.as_ref().filter(|it| it.initiation == *noise) {
            self.outputs.push_back(SessionOutput::Transmit(offer.response.clone()));
            return Ok(());
        }
        if !self.budget.take(now) {
            return Err(Dropped::TooMany);
        }
        let seed = self.fresh_seed();
        let Some(responder) = Responder::read(&self.config.identity, &self.prologue, noise, *seed)
        else {
            self.refuse(Refusal::Unreadable, noise);
            return Err(Dropped::Unreadable);
        };
        let from = responder.peer;
        if self.peer.is_some_and(|peer| peer != from) {
            self.refuse(Refusal::Stranger, noise);
            self.say(SessionEvent::Refused(from));
            return Err(Dropped::Stranger(from));
        }
        let number = responder.hello.number;
        if self.answered.is_some_and(|answered| number <= answered) {
            return Err(Dropped::Replayed);
        }
        if self.attempt.as_ref().is_some_and(|attempt| attempt.message <= *noise) {
            return Err(Dropped::Simultaneous);
        }
        self.answer(now, responder, noise)
    }

    fn answer(
        &mut self,
        now: Instant,
        responder: Responder,
        noise: &[u8; INITIATION_LEN],
    ) -> Result<(), Dropped> {
        let (theirs, number, from) = (responder.hello.slot, responder.hello.number, responder.peer);
        let slot = self.free_slot();
        let (message, transport) = responder.respond(slot).ok_or(Dropped::Unreadable)?;
        let response = wire::response(theirs, &message);
        self.outputs.push_back(SessionOutput::Transmit(response.clone()));
        let keys = Keys::new(transport, slot, theirs, now, false);
        let repeat = Repeat::new(now);
        self.offer = Some(Offer { keys, initiation: *noise, response, repeat });
        self.answered = Some(number);
        self.attempt = None;
        self.peer = Some(from);
        Ok(())
    }

    fn handle_response(
        &mut self,
        now: Instant,
        slot: Slot,
        noise: &[u8; RESPONSE_LEN],
    ) -> Result<(), Dropped> {
        let Some(mut attempt) = self.attempt.take_if(|it| it.slot == slot) else {
            return self.handle_late_response(slot);
        };
        let Some(theirs) = attempt.initiator.read(noise) else {
            self.attempt = Some(attempt);
            return Err(Dropped::Forged);
        };
        let transport = attempt.initiator.into_transport().ok_or(Dropped::Forged)?;
        self.offer = None;
        self.adopt(now, Keys::new(transport, slot, theirs, now, true));
        self.confirm();
        Ok(())
    }

    /// The other side repeats its response: what showed it that the keys are in use was lost.
    fn handle_late_response(&mut self, slot: Slot) -> Result<(), Dropped> {
        let keys = self.current.as_ref().filter(|it| it.slot == slot && it.is_initiator);
        if keys.ok_or(Dropped::UnknownKeys)?.heard {
            return Err(Dropped::Replayed);
        }
        self.confirm();
        Ok(())
    }

    fn confirm(&mut self) {
        if let Some(datagram) = self.current.as_mut().and_then(Keys::seal_nothing) {
            self.outputs.push_back(SessionOutput::Transmit(datagram));
        }
    }

    fn handle_refusal(
        &mut self,
        now: Instant,
        reason: Refusal,
        echo: &[u8; ECHO_LEN],
    ) -> Result<(), Dropped> {
        let attempt = self.attempt.as_mut().filter(|it| it.message.starts_with(echo));
        attempt.ok_or(Dropped::Forged)?.refused.get_or_insert((now, reason));
        Ok(())
    }

    fn refuse(&mut self, reason: Refusal, noise: &[u8; INITIATION_LEN]) {
        self.outputs.push_back(SessionOutput::Transmit(wire::refusal(reason, noise)));
    }

    /// Data goes by these keys from now on.
    fn adopt(&mut self, now: Instant, keys: Keys) {
        let heard = keys.heard;
        let event = match (self.current.replace(keys), self.peer) {
            (Some(keys), _) => {
                self.previous = Some(Previous { keys, until: None });
                Some(SessionEvent::Rekeyed)
            }
            (None, peer) => peer.map(|peer| SessionEvent::Established { peer }),
        };
        if heard {
            self.retire(now);
        }
        event.into_iter().for_each(|event| self.say(event));
    }

    fn say(&mut self, event: SessionEvent) {
        self.outputs.push_back(SessionOutput::Event(event));
    }

    /// A slot that nothing has: at most four are taken.
    fn free_slot(&mut self) -> Slot {
        loop {
            let slot = self.slot;
            self.slot = slot.next();
            let keys = [
                self.offer.as_ref().map(|it| &it.keys),
                self.current.as_ref(),
                self.previous.as_ref().map(|it| &it.keys),
            ];
            let is_taken = keys.into_iter().flatten().any(|keys| keys.slot == slot)
                || self.attempt.as_ref().is_some_and(|it| it.slot == slot);
            if !is_taken {
                return slot;
            }
        }
    }

    /// Whoever learns this session's memory learns nothing of the ephemeral keys that it had: the
    /// generator is replaced each time by what it yields.
    fn fresh_seed(&mut self) -> Zeroizing<[u8; 32]> {
        let next = Zeroizing::new(self.rng.random::<[u8; 32]>());
        let seed = Zeroizing::new(self.rng.random());
        self.rng = StdRng::from_seed(*next);
        seed
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("own", &self.config.identity.public())
            .field("peer", &self.peer)
            .field("established", &self.is_established())
            .finish_non_exhaustive()
    }
}

/// Handshakes that may be computed now.
struct Budget {
    tokens: u32,
    refilled: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.refilled).as_nanos() / REFILL.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.refilled = now;
        }
        self.tokens.checked_sub(1).map(|left| self.tokens = left).is_some()
    }
}
