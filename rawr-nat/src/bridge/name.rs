//! Names that we hold.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{BridgeAttributes, BridgeName, Method};

use super::call::Outcome;
use super::error::BridgeError;
use super::{Bridge, BridgeEvent, Purpose};

/// How often a name is refreshed: NATs forget a mapping after 30 s, some of them, and introductions come
/// through it.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Pause after a passing error.
const RETRY: Duration = Duration::from_secs(2);

/// A name that we want to hold.
#[derive(Debug)]
pub(super) struct Held {
    /// LIFETIME, in seconds, if not the server's choice.
    lifetime: Option<u32>,
    /// `None` while a request is under way.
    next_at: Option<Instant>,
    /// Where we were when the application was last told that the name is ours.
    told: Option<SocketAddr>,
    /// Whether it was told of an error since.
    in_trouble: bool,
}

impl Held {
    pub(super) fn due(&self) -> Option<Instant> {
        self.next_at
    }
}

impl Bridge {
    /// Takes a name, and keeps it: [`BridgeEvent::Registered`] or [`BridgeEvent::NotRegistered`] follows.
    /// `lifetime` is how long the name is to stay ours while we are away; without it the server chooses.
    pub fn register(&mut self, now: Instant, name: &BridgeName, lifetime: Option<Duration>) {
        let seconds = |lifetime: Duration| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        // Zero would give the name up.
        let lifetime = lifetime.map(|lifetime| seconds(lifetime).max(1));
        let held = Held { lifetime, next_at: Some(now), told: None, in_trouble: false };
        self.held.insert(name.clone(), held);
        self.refresh_names(now);
        self.pump(now);
    }

    /// Gives a name up: [`BridgeEvent::Deregistered`] follows.
    pub fn deregister(&mut self, now: Instant, name: &BridgeName) {
        if self.held.remove(name).is_none() {
            return;
        }
        self.calls.retain(|(purpose, _)| *purpose != Purpose::Register(name.clone()));
        self.ask_for_name(now, Purpose::Deregister(name.clone()), name.clone(), Some(0));
        self.pump(now);
    }

    pub(super) fn refresh_names(&mut self, now: Instant) {
        let due = |held: &Held| held.next_at.is_some_and(|at| at <= now);
        let due: Vec<_> = self.held.iter().filter(|(_, held)| due(held)).collect();
        let due: Vec<_> =
            due.into_iter().map(|(name, held)| (name.clone(), held.lifetime)).collect();
        for (name, lifetime) in due {
            if let Some(held) = self.held.get_mut(&name) {
                held.next_at = None;
            }
            let purpose = Purpose::Register(name.clone());
            if !self.is_asking(&purpose) {
                self.ask_for_name(now, purpose, name, lifetime);
            }
        }
    }

    fn ask_for_name(
        &mut self,
        now: Instant,
        purpose: Purpose,
        name: BridgeName,
        lifetime: Option<u32>,
    ) {
        let bridge = BridgeAttributes { name: Some(name), ..BridgeAttributes::default() };
        self.ask(now, purpose, Method::Register, bridge, lifetime);
    }

    pub(super) fn register_concluded(&mut self, now: Instant, name: BridgeName, outcome: Outcome) {
        let Some(held) = self.held.get_mut(&name) else { return };
        let granted = outcome.and_then(|attributes| {
            attributes.mapped.zip(attributes.lifetime).ok_or(BridgeError::NotOffered)
        });
        match granted {
            Ok((reflexive, seconds)) => {
                let lifetime = Duration::from_secs(seconds.into());
                // Twice within the lifetime, should that be short.
                held.next_at = Some(now + KEEPALIVE.min(lifetime / 2));
                let is_news = held.told != Some(reflexive) || held.in_trouble;
                held.told = Some(reflexive);
                held.in_trouble = false;
                if is_news {
                    self.event(BridgeEvent::Registered { name, reflexive, lifetime });
                }
            }
            Err(error) if error.is_passing() => {
                held.next_at = Some(now + RETRY);
                let is_news = !held.in_trouble;
                held.in_trouble = true;
                if is_news {
                    self.event(BridgeEvent::NotRegistered { name, error });
                }
            }
            Err(error) => {
                self.held.remove(&name);
                self.event(BridgeEvent::NotRegistered { name, error });
            }
        }
    }
}
