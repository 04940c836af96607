//! Whether a server is there: Binding requests, and everything else that it answers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{
    Attributes, Class, MIN_FIRST_REQUEST, Message, Method, TransactionId, decode, peek,
};

/// Pause between Binding requests.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while a path by this server is under suspicion.
const HURRY: Duration = Duration::from_millis(200);
/// The longest pause for a server that has never answered: most routers are none.
const LONELY: Duration = Duration::from_secs(30);
/// Requests that may still be answered.
const MAX_OUTSTANDING: usize = 4;

/// Asks one server whether it is there.
#[derive(Debug)]
pub(crate) struct Health {
    server: SocketAddr,
    outstanding: Vec<TransactionId>,
    ask_at: Instant,
    heard: Option<Instant>,
    lonely_pause: Duration,
    rng: StdRng,
}

impl Health {
    pub(crate) fn new(server: SocketAddr, seed: u64, now: Instant) -> Self {
        let outstanding = Vec::with_capacity(MAX_OUTSTANDING);
        let (heard, rng) = (None, StdRng::seed_from_u64(seed));
        Self { server, outstanding, ask_at: now, heard, lonely_pause: PAUSE, rng }
    }

    /// Takes an answer from the server. Returns whether it was to a Binding request of ours.
    pub(crate) fn handle_control(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        if from != self.server || peek(bytes) != Some((Class::Success, Method::Binding)) {
            return false;
        }
        let Ok(message) = decode(bytes) else { return false };
        let asked = |id: &TransactionId| *id == message.message.transaction;
        let is_ours = self.outstanding.iter().any(asked);
        if is_ours {
            self.outstanding.clear();
            self.heard(now);
        }
        is_ours
    }

    /// The server has answered something else.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    pub(crate) fn is_heard_since(&self, time: Instant) -> bool {
        self.heard.is_some_and(|heard| heard >= time)
    }

    /// An answer is wanted soon.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.ask_at = self.ask_at.min(now + HURRY);
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.ask_at > now {
            return None;
        }
        let pause = if self.heard.is_some() { PAUSE } else { self.lonely_pause };
        self.lonely_pause = (self.lonely_pause * 2).min(LONELY);
        self.ask_at = now + pause;
        let transaction = TransactionId(self.rng.random());
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push(transaction);
        let message = Message::request(Method::Binding, transaction, Attributes::default());
        // An answer with an IPv6 address in it is longer than a bare request.
        Some(message.encode_padded(None, MIN_FIRST_REQUEST))
    }
}
