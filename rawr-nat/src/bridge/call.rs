//! Requests to a Bridge: challenge, key agreement, credentials, retransmission.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rawr_proto::{
    Attributes, BridgeKey, Class, Credentials, Decoded, ErrorCode, IntegrityKey, LongTermKey,
    MIN_FIRST_BRIDGE_REQUEST, Message, Method, TransactionId,
};

use super::error::BridgeError;
use crate::identity::{Identity, PublicKey};
use crate::request::{FIRST_RTO, MAX_CHALLENGES, MAX_RTO, MAX_TRIES};

/// How long an answer may take over a stream.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a server, and of oneself there.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) identity: Identity,
    credentials: Option<Credentials>,
    /// Whether nothing is lost on the way to the server.
    reliable: bool,
    nonce: Option<String>,
    agreement: Option<Agreement>,
    user: Option<(LongTermKey, String)>,
}

#[derive(Clone, Debug)]
struct Agreement {
    server: [u8; 32],
    key: BridgeKey,
}

/// One request, until it is answered.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    /// Without credentials.
    attributes: Attributes,
    transaction: TransactionId,
    bytes: Vec<u8>,
    /// How often it may be sent.
    most_tries: u32,
    tries: u32,
    challenges: u32,
    send_at: Instant,
}

/// How a request ended.
pub(super) type Outcome = Result<Box<Attributes>, BridgeError>;

impl Caller {
    pub(super) fn new(
        identity: Identity,
        credentials: Option<Credentials>,
        reliable: bool,
    ) -> Self {
        Self { identity, credentials, reliable, nonce: None, agreement: None, user: None }
    }

    /// A request that is to be sent now.
    pub(super) fn call(
        &self,
        now: Instant,
        method: Method,
        attributes: Attributes,
        rng: &mut StdRng,
    ) -> Call {
        let (transaction, bytes) = (TransactionId([0; 12]), Vec::new());
        let mut call = Call {
            method,
            attributes,
            transaction,
            bytes,
            most_tries: if self.reliable { 1 } else { MAX_TRIES },
            tries: 0,
            challenges: 0,
            send_at: now,
        };
        self.build(&mut call, now, rng);
        call
    }

    /// The next request asks for a challenge again: the server may have been silent because that would
    /// have been longer than what came.
    pub(super) fn forget_nonce(&mut self) {
        self.nonce = None;
    }

    /// Whether an indication is from the server.
    pub(super) fn verifies(&self, message: &Decoded<'_>) -> bool {
        let agreement = self.agreement.as_ref();
        agreement.is_some_and(|it| message.verify(&IntegrityKey::bridge(&it.key)))
    }

    /// Takes a response to `call`; `None` if the request goes on.
    pub(super) fn take(
        &mut self,
        call: &mut Call,
        now: Instant,
        message: &Decoded<'_>,
        rng: &mut StdRng,
    ) -> Option<Outcome> {
        let attributes = &message.message.attributes;
        let verifies = self.integrity().is_some_and(|key| message.verify(&key));
        match (message.message.class, attributes.error) {
            (Class::Success, _) if verifies => Some(Ok(Box::new(attributes.clone()))),
            (Class::Error, Some(error)) => {
                let challenged =
                    matches!(error, ErrorCode::Unauthenticated | ErrorCode::StaleNonce);
                if challenged && attributes.nonce.is_some() {
                    return match self.take_challenge(call, error, attributes) {
                        Ok(()) => {
                            self.build(call, now, rng);
                            None
                        }
                        Err(error) => Some(Err(error)),
                    };
                }
                // An error made with another key is not the server's.
                let foreign = message.has_integrity() && !verifies;
                (!foreign).then(|| Err(BridgeError::of(error)))
            }
            (Class::Success | Class::Error | Class::Request | Class::Indication, _) => None,
        }
    }

    fn take_challenge(
        &mut self,
        call: &mut Call,
        error: ErrorCode,
        attributes: &Attributes,
    ) -> Result<(), BridgeError> {
        call.challenges += 1;
        let server = attributes.bridge.server_key.ok_or(BridgeError::NotOffered)?;
        let same_server = self.agreement.as_ref().is_some_and(|it| it.server == server);
        let same_realm = self.user.as_ref().map(|(_, realm)| realm) == attributes.realm.as_ref();
        let repeated = call.challenges > 1 && same_server && same_realm;
        let refused = error == ErrorCode::Unauthenticated && repeated;
        if refused || call.challenges > MAX_CHALLENGES {
            return Err(BridgeError::Credentials);
        }
        self.nonce.clone_from(&attributes.nonce);
        if !same_server {
            let theirs = PublicKey::from_bytes(server);
            let agreed = self.identity.agree(&theirs).map_err(|_| BridgeError::NotOffered)?;
            let own = self.identity.public();
            let key = BridgeKey::new(&agreed, own.as_bytes(), &server);
            self.agreement = Some(Agreement { server, key });
        }
        if let Some(realm) = &attributes.realm {
            let credentials = self.credentials.as_ref().ok_or(BridgeError::Credentials)?;
            self.user = Some((credentials.key(realm), realm.clone()));
        }
        Ok(())
    }

    /// Makes the bytes of a request, under a new transaction, to be sent now.
    fn build(&self, call: &mut Call, now: Instant, rng: &mut StdRng) {
        call.transaction = TransactionId(rng.random());
        call.tries = 0;
        call.send_at = now;
        let request = |attributes| Message::request(call.method, call.transaction, attributes);
        let (Some(nonce), Some(key)) = (&self.nonce, self.integrity()) else {
            // Nothing but a challenge can come of this.
            let padded = request(Attributes::default());
            call.bytes = padded.encode_padded(None, MIN_FIRST_BRIDGE_REQUEST);
            return;
        };
        let mut attributes = call.attributes.clone();
        attributes.nonce = Some(nonce.clone());
        attributes.bridge.public_key = Some(*self.identity.public().as_bytes());
        if let (Some((_, realm)), Some(credentials)) = (&self.user, &self.credentials) {
            attributes.username = Some(credentials.username.clone());
            attributes.realm = Some(realm.clone());
        }
        call.bytes = request(attributes).encode(Some(&key));
    }

    fn integrity(&self) -> Option<IntegrityKey> {
        let agreement = self.agreement.as_ref()?;
        Some(match &self.user {
            Some((user, _)) => IntegrityKey::bridge_credentialed(user, &agreement.key),
            None => IntegrityKey::bridge(&agreement.key),
        })
    }
}

impl Call {
    pub(super) const fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// When [`Call::poll_transmit`] or [`Call::is_over`] has something to say.
    pub(super) const fn due(&self) -> Instant {
        self.send_at
    }

    /// Whether nobody has answered in time.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.tries >= self.most_tries && self.send_at <= now
    }

    /// Bytes to send now.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.send_at > now || self.tries >= self.most_tries {
            return None;
        }
        let rto = FIRST_RTO.saturating_mul(1 << self.tries).min(MAX_RTO);
        self.send_at = now + if self.most_tries == 1 { PATIENCE } else { rto };
        self.tries += 1;
        Some(self.bytes.clone())
    }
}

/// Whether `from` is the server, whichever form of its address the socket tells.
pub(super) fn is_same(from: SocketAddr, server: SocketAddr) -> bool {
    (from.ip().to_canonical(), from.port()) == (server.ip().to_canonical(), server.port())
}
