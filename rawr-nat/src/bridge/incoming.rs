//! Introductions that others make to us.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{BridgeAttributes, BridgeName, IntroductionId, Method};

use super::seal::{Direction, SealError, open, seal};
use super::{Bridge, BridgeEvent, Purpose};
use crate::identity::PublicKey;

/// How long an introduction is known: longer than its sender repeats it.
const LIFETIME: Duration = Duration::from_secs(120);

/// Introductions that are known at the same time. Beyond them the oldest is forgotten.
const MOST: usize = 1024;

/// Introductions of the last while, each of which is told once.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    known: HashMap<IntroductionId, Known>,
    queue: VecDeque<(Instant, IntroductionId)>,
}

#[derive(Debug)]
struct Known {
    from: PublicKey,
    /// Sealed.
    answer: Option<Vec<u8>>,
}

impl Incoming {
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }

    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((_, id)) = self.queue.pop_front_if(|(at, _)| *at <= now) {
            self.known.remove(&id);
        }
    }

    fn insert(&mut self, now: Instant, id: IntroductionId, from: PublicKey) {
        if self.queue.len() >= MOST
            && let Some((_, oldest)) = self.queue.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.insert(id, Known { from, answer: None });
        self.queue.push_back((now + LIFETIME, id));
    }
}

impl Bridge {
    /// Answers an introduction. An answer that is lost on its way is sent again when the introducer
    /// repeats itself.
    ///
    /// # Errors
    /// If the message is too long. An introduction that is two minutes old is answered in vain.
    pub fn answer(
        &mut self,
        now: Instant,
        id: IntroductionId,
        message: &[u8],
    ) -> Result<(), SealError> {
        let seed = self.seed();
        let Some(known) = self.incoming.known.get_mut(&id) else { return Ok(()) };
        let identity = &self.caller.identity;
        let sealed = seal(identity, &known.from, id, Direction::FromHolder, message, seed)?;
        known.answer = Some(sealed.clone());
        self.send_answer(now, id, sealed);
        self.pump(now);
        Ok(())
    }

    /// Takes an introduction that the server has passed on.
    pub(super) fn introduced(
        &mut self,
        now: Instant,
        id: IntroductionId,
        name: &BridgeName,
        reflexive: Option<SocketAddr>,
        sealed: &[u8],
    ) {
        if let Some(known) = self.incoming.known.get(&id) {
            if let Some(answer) = known.answer.clone() {
                self.send_answer(now, id, answer);
            }
            return;
        }
        let opened = open(&self.caller.identity, id, Direction::ToHolder, sealed);
        let (Some((from, message)), Some(reflexive)) = (opened, reflexive) else { return };
        if !self.held.contains_key(name) {
            return;
        }
        self.incoming.insert(now, id, from);
        let name = name.clone();
        self.event(BridgeEvent::Introduction { id, name, from, reflexive, message });
    }

    fn send_answer(&mut self, now: Instant, id: IntroductionId, sealed: Vec<u8>) {
        let bridge = BridgeAttributes {
            introduction: Some(id),
            sealed: Some(sealed),
            ..BridgeAttributes::default()
        };
        let purpose = Purpose::Answer(id);
        if !self.is_asking(&purpose) {
            self.ask(now, purpose, Method::Introduce, bridge, None);
        }
    }
}
