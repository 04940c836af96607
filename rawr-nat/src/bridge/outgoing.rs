//! Introductions that we make.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use rawr_proto::{BridgeAttributes, BridgeName, IntroductionId, Method};

use super::call::Outcome;
use super::error::BridgeError;
use super::seal::{Direction, SealError, open, seal};
use super::{Bridge, BridgeEvent, Purpose};
use crate::identity::PublicKey;

/// First and longest pause between two requests while the holder has not answered.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// How long a holder may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An introduction that has not been answered.
#[derive(Debug)]
pub(super) struct Outgoing {
    name: BridgeName,
    holder: PublicKey,
    sealed: Vec<u8>,
    pause: Duration,
    next_at: Instant,
    until: Instant,
    /// Whether the server has passed it on.
    passed_on: bool,
    /// Whether somebody has answered with another key.
    wrong_holder: bool,
}

impl Outgoing {
    pub(super) fn due(&self) -> Instant {
        self.next_at.min(self.until)
    }
}

impl Bridge {
    /// Introduces us to the holder of `name`, whose key is `holder`: what it is found to be by
    /// [`Bridge::look_up`], or better what it is known to be. [`BridgeEvent::Answer`] or
    /// [`BridgeEvent::NotIntroduced`] follows.
    ///
    /// # Errors
    /// If the message is too long, or the key is none.
    pub fn introduce(
        &mut self,
        now: Instant,
        name: &BridgeName,
        holder: PublicKey,
        message: &[u8],
    ) -> Result<IntroductionId, SealError> {
        let id = IntroductionId(self.rng.random());
        let seed = self.seed();
        let identity = &self.caller.identity;
        let sealed = seal(identity, &holder, id, Direction::ToHolder, message, seed)?;
        let outgoing = Outgoing {
            name: name.clone(),
            holder,
            sealed,
            pause: PAUSE.0,
            next_at: now,
            until: now + PATIENCE,
            passed_on: false,
            wrong_holder: false,
        };
        self.outgoing.insert(id, outgoing);
        self.repeat_introductions(now);
        self.pump(now);
        Ok(id)
    }

    /// Drops an introduction whose answer is not wanted any more.
    pub fn withdraw(&mut self, id: IntroductionId) {
        self.outgoing.remove(&id);
        self.calls.retain(|(purpose, _)| *purpose != Purpose::Introduce(id));
    }

    pub(super) fn repeat_introductions(&mut self, now: Instant) {
        let due: Vec<_> = self.outgoing.iter().filter(|(_, it)| it.due() <= now).collect();
        let due: Vec<_> = due.into_iter().map(|(id, it)| (*id, it.until <= now)).collect();
        for (id, is_over) in due {
            if is_over {
                self.give_up(id);
                continue;
            }
            let Some(outgoing) = self.outgoing.get_mut(&id) else { continue };
            outgoing.next_at = now + outgoing.pause;
            outgoing.pause = (outgoing.pause * 2).min(PAUSE.1);
            let bridge = BridgeAttributes {
                name: Some(outgoing.name.clone()),
                introduction: Some(id),
                sealed: Some(outgoing.sealed.clone()),
                ..BridgeAttributes::default()
            };
            let purpose = Purpose::Introduce(id);
            if !self.is_asking(&purpose) {
                self.ask(now, purpose, Method::Introduce, bridge, None);
            }
        }
    }

    fn give_up(&mut self, id: IntroductionId) {
        let Some(outgoing) = self.outgoing.get(&id) else { return };
        let error = match (outgoing.passed_on, outgoing.wrong_holder) {
            (_, true) => BridgeError::WrongHolder,
            (true, false) => BridgeError::NoAnswer,
            (false, false) => BridgeError::Unanswered,
        };
        self.withdraw(id);
        self.event(BridgeEvent::NotIntroduced { id, error });
    }

    pub(super) fn introduce_concluded(
        &mut self,
        now: Instant,
        id: IntroductionId,
        outcome: Outcome,
    ) {
        let Some(outgoing) = self.outgoing.get_mut(&id) else { return };
        match outcome {
            Ok(attributes) => {
                outgoing.passed_on = true;
                let said = attributes.bridge;
                if let Some(sealed) = &said.sealed {
                    self.answered(id, said.peer_address, sealed);
                }
            }
            Err(BridgeError::Unanswered) => {}
            Err(BridgeError::TooManyRequests) => outgoing.next_at = now + PAUSE.1,
            Err(error) => {
                self.withdraw(id);
                self.event(BridgeEvent::NotIntroduced { id, error });
            }
        }
    }

    /// Takes the holder's answer, from wherever it comes.
    pub(super) fn answered(
        &mut self,
        id: IntroductionId,
        reflexive: Option<SocketAddr>,
        sealed: &[u8],
    ) {
        let Some(outgoing) = self.outgoing.get_mut(&id) else { return };
        let Some(reflexive) = reflexive else { return };
        match open(&self.caller.identity, id, Direction::FromHolder, sealed) {
            Some((from, message)) if from == outgoing.holder => {
                self.withdraw(id);
                self.event(BridgeEvent::Answer { id, reflexive, message });
            }
            Some(_) | None => outgoing.wrong_holder = true,
        }
    }
}
