//! One request at a time to a server's STUN port: challenge, credentials, retransmission.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{
    Attributes, Class, Credentials, Decoded, ErrorCode, IntegrityKey, LongTermKey,
    MIN_FIRST_REQUEST, Message, Method, SessionKey, TransactionId,
};

/// Time until the first retransmission (RFC 8489 §6.2.1 has 500 ms, for an internet of long ago).
pub(crate) const FIRST_RTO: Duration = Duration::from_millis(50);
pub(crate) const MAX_RTO: Duration = Duration::from_millis(300);
/// Sent at 0, 50, 150, 350, 650, 950 and 1250 ms; given up at 1550 ms.
pub(crate) const MAX_TRIES: u32 = 7;
/// Challenges in a row that are answered. One is normal, a second follows from a stale nonce.
pub(crate) const MAX_CHALLENGES: u32 = 3;

/// Sends requests to one server, one at a time.
#[derive(Debug)]
pub(crate) struct Requester {
    server: SocketAddr,
    session: SessionKey,
    credentials: Option<Credentials>,
    integrity: IntegrityKey,
    user: Option<(LongTermKey, String)>,
    nonce: Option<String>,
    outstanding: Option<Outstanding>,
    rng: StdRng,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Success(Box<Attributes>),
    Error(ErrorCode),
    Unanswered,
}

#[derive(Debug)]
struct Outstanding {
    method: Method,
    /// Keys in clear.
    attributes: Attributes,
    transaction: TransactionId,
    bytes: Vec<u8>,
    tries: u32,
    challenges: u32,
    send_at: Instant,
}

impl Requester {
    pub(crate) fn new(
        server: SocketAddr,
        session: SessionKey,
        credentials: Option<Credentials>,
        seed: u64,
    ) -> Self {
        let integrity = IntegrityKey::session(&session);
        let rng = StdRng::seed_from_u64(seed);
        let (user, nonce, outstanding) = (None, None, None);
        Self { server, session, credentials, integrity, user, nonce, outstanding, rng }
    }

    /// Gives up what is outstanding, and asks this. Keys in `attributes` are in clear; they are
    /// masked where credentials are used, and left out until it is known whether they are.
    pub(crate) fn start(&mut self, now: Instant, method: Method, attributes: Attributes) {
        self.outstanding = Some(Outstanding {
            method,
            attributes,
            transaction: TransactionId([0; 12]),
            bytes: Vec::new(),
            tries: 0,
            challenges: 0,
            send_at: now,
        });
        self.rebuild(now);
    }

    pub(crate) fn cancel(&mut self) {
        self.outstanding = None;
    }

    /// The transaction of the request that waits for its answer.
    pub(crate) fn transaction(&self) -> Option<TransactionId> {
        self.outstanding.as_ref().map(|outstanding| outstanding.transaction)
    }

    /// Whether the server has answered, if only with a challenge.
    pub(crate) const fn has_nonce(&self) -> bool {
        self.nonce.is_some()
    }

    pub(crate) const fn server(&self) -> SocketAddr {
        self.server
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.rng.random()
    }

    /// Whether `message` was made by who has this session's key.
    pub(crate) fn verifies(&self, message: &Decoded<'_>) -> bool {
        message.verify(&self.integrity)
            || (self.user.is_some() && message.verify(&IntegrityKey::session(&self.session)))
    }

    /// Takes a message from the server. The outer `None` says that it answers nothing of ours, the
    /// inner one that the request goes on.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        message: &Decoded<'_>,
    ) -> Option<Option<(Method, Answer)>> {
        let Message { class, transaction, ref attributes, .. } = message.message;
        let outstanding = self.outstanding.as_ref()?;
        if transaction != outstanding.transaction {
            return None;
        }
        let method = outstanding.method;
        let answer = match (class, attributes.error) {
            (Class::Success, _) if message.verify(&self.integrity) => {
                Some(Answer::Success(Box::new(attributes.clone())))
            }
            (Class::Error, Some(error)) => self.handle_error(now, error, message),
            (Class::Success | Class::Error | Class::Request | Class::Indication, _) => None,
        };
        if answer.is_some() {
            self.outstanding = None;
        }
        Some(answer.map(|answer| (method, answer)))
    }

    /// Returns [`Answer::Unanswered`] once.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<(Method, Answer)> {
        self.outstanding
            .take_if(|outstanding| outstanding.tries >= MAX_TRIES && outstanding.send_at <= now)
            .map(|outstanding| (outstanding.method, Answer::Unanswered))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|outstanding| outstanding.send_at)
    }

    /// Bytes to send to the server now.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let outstanding = self.outstanding.as_mut()?;
        if outstanding.send_at > now || outstanding.tries >= MAX_TRIES {
            return None;
        }
        let rto = FIRST_RTO.saturating_mul(1 << outstanding.tries).min(MAX_RTO);
        outstanding.send_at = now + rto;
        outstanding.tries += 1;
        Some(outstanding.bytes.clone())
    }

    fn handle_error(
        &mut self,
        now: Instant,
        error: ErrorCode,
        message: &Decoded<'_>,
    ) -> Option<Answer> {
        let challenged = matches!(error, ErrorCode::Unauthenticated | ErrorCode::StaleNonce);
        let Attributes { nonce, realm, .. } = &message.message.attributes;
        if let Some(nonce) = nonce.as_ref().filter(|_| challenged) {
            if self.take_challenge(error, nonce, realm.as_deref()) {
                self.rebuild(now);
                return None;
            }
        } else if message.has_integrity() && !self.verifies(message) {
            // An error made with another key is not the server's.
            return None;
        }
        Some(Answer::Error(error))
    }

    /// Returns whether asking again may help.
    fn take_challenge(&mut self, error: ErrorCode, nonce: &str, realm: Option<&str>) -> bool {
        let Some(outstanding) = &mut self.outstanding else { return false };
        outstanding.challenges += 1;
        if outstanding.challenges > MAX_CHALLENGES {
            return false;
        }
        // A 401 to a request that carried a nonce of the server's own: the rest of it was wrong,
        // unless the server has just told us a realm that we did not know.
        let same_realm = self.user.as_ref().map(|(_, realm)| realm.as_str()) == realm;
        let had_nonce = self.nonce.replace(nonce.to_owned()).is_some();
        let repeated = outstanding.challenges > 1 && had_nonce;
        if error == ErrorCode::Unauthenticated && repeated && same_realm {
            return false;
        }
        let Some(realm) = realm else {
            return true;
        };
        let Some(credentials) = &self.credentials else {
            return false;
        };
        let key = credentials.key(realm);
        self.integrity = IntegrityKey::credentialed(&key, &self.session);
        self.user = Some((key, realm.to_owned()));
        true
    }

    /// Makes the bytes of the outstanding request, under a new transaction, to be sent now.
    fn rebuild(&mut self, now: Instant) {
        let Some(outstanding) = &mut self.outstanding else { return };
        let transaction = TransactionId(self.rng.random());
        let Some(nonce) = &self.nonce else {
            // Nothing but a challenge can come of this: it shows no key.
            let Attributes { session, role, .. } = outstanding.attributes;
            let attributes = Attributes { session, role, ..Attributes::default() };
            let message = Message::request(outstanding.method, transaction, attributes);
            outstanding.bytes = message.encode_padded(None, MIN_FIRST_REQUEST);
            outstanding.restart(now, transaction);
            return;
        };
        let mut attributes = outstanding.attributes.clone();
        attributes.nonce = Some(nonce.clone());
        if let (Some((key, realm)), Some(credentials)) = (&self.user, &self.credentials) {
            let mask_session = |wire| key.mask_session_key(wire, nonce, transaction);
            attributes.session_key = attributes.session_key.map(mask_session);
            let mask_mac = |wire| key.mask_mac_key(wire, nonce, transaction);
            attributes.mac_key = attributes.mac_key.map(mask_mac);
            attributes.username = Some(credentials.username.clone());
            attributes.realm = Some(realm.clone());
        }
        let message = Message::request(outstanding.method, transaction, attributes);
        outstanding.bytes = message.encode(Some(&self.integrity));
        outstanding.restart(now, transaction);
    }
}

impl Outstanding {
    fn restart(&mut self, now: Instant, transaction: TransactionId) {
        self.transaction = transaction;
        self.tries = 0;
        self.send_at = now;
    }
}
