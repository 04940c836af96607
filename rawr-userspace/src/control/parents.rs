//! The servers that sessions escalate to: are they alive?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{Attributes, Credentials, MIN_FIRST_REQUEST, Message, Method, TransactionId};

use super::command::Source;
use super::config::ServerConfig;
use super::counters::Count;
use super::server::Server;
use super::time::Now;

/// Pause between health checks of a parent that has sessions of ours.
const BUSY: Duration = Duration::from_millis(400);
/// The same of a parent that is down, while there are sessions that would like to go there.
const MISSED: Duration = Duration::from_secs(1);
/// The same otherwise.
const IDLE: Duration = Duration::from_secs(5);
/// Unanswered checks in a row after which a parent is down.
const MISSES: u8 = 3;

#[derive(Debug)]
pub(super) struct Parents(Vec<ParentState>);

#[derive(Debug)]
pub(super) struct ParentState {
    pub(super) address: SocketAddr,
    pub(super) credentials: Option<Credentials>,
    /// Taken to be up until it misses its checks.
    pub(super) is_up: bool,
    /// Upstream legs there.
    pub(super) legs: usize,
    misses: u8,
    asked: Option<TransactionId>,
    next_check: Instant,
}

impl Parents {
    pub(super) fn new(config: &ServerConfig, now: Instant) -> Self {
        let state = |parent: &super::config::Parent| ParentState {
            address: parent.address,
            credentials: parent.credentials.clone(),
            is_up: true,
            legs: 0,
            misses: 0,
            asked: None,
            next_check: now,
        };
        Self(config.parents.iter().take(ServerConfig::MAX_PARENTS).map(state).collect())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().map(|parent| parent.next_check).min()
    }

    pub(super) fn get(&self, number: u8) -> Option<&ParentState> {
        self.0.get(usize::from(number))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &ParentState)> {
        (0..).zip(&self.0)
    }

    /// Counts a leg at a parent; checks it soon, if it was idle.
    pub(super) fn add_leg(&mut self, number: u8, now: Instant) {
        if let Some(parent) = self.0.get_mut(usize::from(number)) {
            parent.legs += 1;
            parent.next_check = parent.next_check.min(now + BUSY);
        }
    }

    pub(super) fn remove_leg(&mut self, number: u8) {
        if let Some(parent) = self.0.get_mut(usize::from(number)) {
            parent.legs = parent.legs.saturating_sub(1);
        }
    }
}

impl Server {
    pub(super) fn check_parents(&mut self, now: Now) {
        let is_idle = self.store.len() == 0;
        for number in 0..self.parents.0.len() {
            let transaction = self.transaction();
            let parent = &mut self.parents.0[number];
            if parent.next_check > now.monotonic {
                continue;
            }
            let went_down = parent.check(now.monotonic, transaction, is_idle);
            let to = parent.address;
            let binding = Message::request(Method::Binding, transaction, Attributes::default());
            self.transmit(Source::Route, to, binding.encode_padded(None, MIN_FIRST_REQUEST));
            if went_down {
                self.counters.add(Count::ParentDown);
                self.parent_changed(now, number as u8, false);
            }
        }
    }

    pub(super) fn parent_answered(
        &mut self,
        now: Now,
        from: SocketAddr,
        transaction: TransactionId,
    ) {
        let is_it =
            |parent: &ParentState| parent.address == from && parent.asked == Some(transaction);
        let Some(number) = self.parents.0.iter().position(is_it) else {
            self.counters.add(Count::Unexpected);
            return;
        };
        let parent = &mut self.parents.0[number];
        parent.asked = None;
        parent.misses = 0;
        if !std::mem::replace(&mut parent.is_up, true) {
            self.parent_changed(now, number as u8, true);
        }
    }
}

impl ParentState {
    /// Counts the last check if it was missed, and notes the next one. Tells if that was one too many.
    fn check(&mut self, now: Instant, transaction: TransactionId, is_idle: bool) -> bool {
        if self.asked.replace(transaction).is_some() {
            self.misses = self.misses.saturating_add(1);
        }
        let went_down = self.is_up && self.misses >= MISSES;
        self.is_up &= !went_down;
        let pause = match (self.legs > 0, is_idle) {
            (true, _) => BUSY,
            (false, false) if !self.is_up => MISSED,
            (false, _) => IDLE,
        };
        // Until a miss has been made up for or confirmed, nothing is to be lost by asking soon.
        self.next_check = now + if self.is_up && self.misses > 0 { BUSY } else { pause };
        went_down
    }
}
