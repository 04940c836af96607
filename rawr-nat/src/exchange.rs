//! The peer's side of Exchange: own MAC address and candidates against the other peer's, at the root.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{
    Attributes, Class, Credentials, ErrorCode, MacToken, Method, Role, SessionKey, WireKey, decode,
    peek,
};

use crate::request::{Answer, Requester};

/// Pause between requests until the other peer has been there. The root announces it, too.
const IMPATIENT: Duration = Duration::from_millis(500);
/// The same once nobody has come for [`PATIENCE`].
const PATIENT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between requests afterwards: the root forgets after 60 s.
const KEEP: Duration = Duration::from_secs(25);
/// Pause after an error.
const RETRY: Duration = Duration::from_secs(5);

/// What an [`Exchange`] is to do.
#[derive(Clone, Debug)]
pub struct ExchangeConfig {
    /// The root's STUN port.
    pub server: SocketAddr,
    /// The session.
    pub key: SessionKey,
    /// Which peer asks.
    pub role: Role,
    /// Greater each time the peer starts (milliseconds since 1970).
    pub epoch: u64,
    /// Used if the root asks for them.
    pub credentials: Option<Credentials>,
    /// Own MAC address, blinded or raw.
    pub own_mac: Option<MacToken>,
    /// Own candidates, sealed.
    pub candidates: Option<Vec<u8>>,
}

/// Asks the root for the other peer's MAC address and candidates, and keeps the own ones there.
#[derive(Debug)]
pub struct Exchange {
    config: ExchangeConfig,
    requester: Requester,
    started: Instant,
    next_at: Option<Instant>,
    known: Option<PeerCard>,
    outputs: VecDeque<ExchangeOutput>,
}

/// What the other peer has handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCard {
    /// Its MAC address, blinded or raw.
    pub mac: Option<MacToken>,
    /// Its candidates, sealed.
    pub candidates: Option<Vec<u8>>,
}

/// What an [`Exchange`] wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeOutput {
    /// Send to the root by the control socket.
    Transmit(Vec<u8>),
    /// The other peer has been there, or has something new to say.
    Peer(PeerCard),
    /// The root does not want us; asked again later.
    Refused(ErrorCode),
}

impl Exchange {
    /// Starts to ask. `seed` is random.
    pub fn new(config: ExchangeConfig, seed: u64, now: Instant) -> Self {
        let (server, key) = (config.server, config.key.clone());
        let requester = Requester::new(server, key, config.credentials.clone(), seed);
        let (known, outputs) = (None, VecDeque::new());
        let mut exchange = Self { config, requester, started: now, next_at: None, known, outputs };
        exchange.ask(now);
        exchange.pump(now);
        exchange
    }

    /// What is known of the other peer.
    pub const fn peer(&self) -> Option<&PeerCard> {
        self.known.as_ref()
    }

    /// Takes a datagram that came to the control socket. Returns whether it was for this exchange.
    pub fn handle_control(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        if from != self.config.server {
            return false;
        }
        let Some((class, Method::Exchange)) = peek(bytes) else { return false };
        let Ok(message) = decode(bytes) else { return false };
        if class == Class::Indication {
            let a = &message.message.attributes;
            let is_ours = a.session == Some(self.config.key.id());
            if is_ours && self.requester.verifies(&message) {
                self.take_card(a);
            }
            return is_ours;
        }
        let Some(answer) = self.requester.handle(now, &message) else { return false };
        if let Some((_, answer)) = answer {
            self.handle_answer(now, answer);
        }
        self.pump(now);
        true
    }

    /// To be called once [`Exchange::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, answer)) = self.requester.handle_timeout(now) {
            self.handle_answer(now, answer);
        }
        if self.next_at.take_if(|at| *at <= now).is_some() {
            self.ask(now);
        }
        self.pump(now);
    }

    /// When [`Exchange::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.requester.poll_timeout().into_iter().chain(self.next_at).min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<ExchangeOutput> {
        self.outputs.pop_front()
    }

    fn ask(&mut self, now: Instant) {
        let attributes = Attributes {
            session: Some(self.config.key.id()),
            session_key: Some(WireKey::from(&self.config.key)),
            role: Some(self.config.role),
            epoch: Some(self.config.epoch),
            own_mac: self.config.own_mac,
            candidates: self.config.candidates.clone(),
            ..Attributes::default()
        };
        self.requester.start(now, Method::Exchange, attributes);
    }

    fn handle_answer(&mut self, now: Instant, answer: Answer) {
        let pause = match answer {
            Answer::Success(attributes) => {
                self.take_card(&attributes);
                self.pause(now)
            }
            Answer::Error(error) => {
                self.outputs.push_back(ExchangeOutput::Refused(error));
                RETRY
            }
            Answer::Unanswered => IMPATIENT,
        };
        self.next_at = Some(now + pause);
    }

    fn take_card(&mut self, attributes: &Attributes) {
        let Attributes { peer_mac: mac, peer_candidates, .. } = attributes;
        if mac.is_none() && peer_candidates.is_none() {
            return;
        }
        let card = PeerCard { mac: *mac, candidates: peer_candidates.clone() };
        if self.known.as_ref() != Some(&card) {
            self.known = Some(card.clone());
            self.outputs.push_back(ExchangeOutput::Peer(card));
        }
    }

    fn pause(&self, now: Instant) -> Duration {
        match self.known {
            Some(_) => KEEP,
            None if now.saturating_duration_since(self.started) < PATIENCE => IMPATIENT,
            None => PATIENT,
        }
    }

    fn pump(&mut self, now: Instant) {
        if let Some(bytes) = self.requester.poll_transmit(now) {
            self.outputs.push_back(ExchangeOutput::Transmit(bytes));
        }
    }
}
