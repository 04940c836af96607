//! The server's entry points, and what it does with each kind of message.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{CryptoRng, Rng, SeedableRng};
use rawr_proto::{
    Attributes, Class, Datagram, DecodeError, Decoded, ErrorCode, Head, IntegrityKey, Message,
    Method, NonceError, NonceKey, SecurityFeatures, TransactionId, classify, decode, peek,
};

use super::bridge::{Bridge, ServerKey};
use super::client::{Client, Over};
use super::command::{Command, On, Parity, PortId, PortKind, Source};
use super::config::ServerConfig;
use super::counters::{Count, Counters};
use super::deadline::Reason;
use super::exchange::Exchanges;
use super::limits::{Prefix, Quotas, Rates};
use super::neighbours::Neighbours;
use super::parents::Parents;
use super::policy::Policy;
use super::request::{Answer, ErrorResponse, Request};
use super::store::{Index, Store};
use super::time::Now;
use super::turn::{Turn, is_turn};
use super::users::Users;

/// Nonces, tickets and tokens are drawn from it: nobody may guess them.
const _: () = {
    const fn is_unpredictable<R: CryptoRng>() {}
    is_unpredictable::<StdRng>();
};

/// Answers per second to sources of one prefix that want them at another port (RFC 5780 §9).
const RESPONSE_PORTS_PER_SECOND: u32 = 16;

/// A RAWR server, root or gateway.
///
/// After each call, drain [`Server::poll_command`], then sleep until [`Server::poll_timeout`].
#[derive(Debug)]
pub struct Server {
    pub(super) config: ServerConfig,
    pub(super) store: Store,
    pub(super) users: Users,
    pub(super) policy: Policy,
    #[cfg(feature = "oauth")]
    pub(super) tokens: super::authenticate::Tokens,
    pub(super) quotas: Quotas,
    pub(super) exchanges: Exchanges,
    pub(super) bridge: Bridge,
    pub(super) neighbours: Neighbours,
    /// Sessions whose target is not among the neighbours yet.
    pub(super) seekers: BTreeSet<Index>,
    /// When the own subnets were last asked for silent hosts.
    pub(super) swept: Option<Instant>,
    pub(super) parents: Parents,
    pub(super) turn: Turn,
    /// Sessions that should see whether there is a better way on, in turn.
    pub(super) reattach: VecDeque<Index>,
    pub(super) next_reattach: Option<Instant>,
    /// Requests of upstream legs that wait for an answer.
    pub(super) transactions: HashMap<TransactionId, Index>,
    pub(super) counters: Counters,
    pub(super) rng: StdRng,
    pub(super) nonces: NonceKey,
    commands: VecDeque<Command>,
    pub(super) requests: Rates,
    unverified: Rates,
    /// Answers that go to another port than the request came from.
    pub(super) response_ports: Rates,
    ports_asked: u32,
}

impl Server {
    /// A server without sessions. `seed` comes from the system's random generator: keys follow from it.
    pub fn new(config: ServerConfig, seed: [u8; 32], now: Now) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let limits = config.limits;
        let rates = |key, rate| Rates::new(now.monotonic, key, rate);
        let nonces = nonce_key(rng.random(), &config);
        let names = config.bridge.limits;
        Self {
            users: Users::new(&config),
            policy: Policy::new(&config.peers),
            #[cfg(feature = "oauth")]
            tokens: super::authenticate::Tokens::new(&config),
            store: Store::default(),
            quotas: Quotas::new(limits),
            exchanges: Exchanges::default(),
            neighbours: Neighbours::new(limits.neighbours),
            seekers: BTreeSet::new(),
            swept: None,
            parents: Parents::new(&config, now.monotonic),
            turn: Turn::new(&config, &mut rng, now.monotonic),
            reattach: VecDeque::new(),
            next_reattach: None,
            transactions: HashMap::new(),
            counters: Counters::default(),
            bridge: Bridge::new(names, nonces.as_bytes(), &mut rng, now.monotonic),
            nonces,
            commands: VecDeque::new(),
            requests: rates(rng.random(), limits.requests_per_second),
            unverified: rates(rng.random(), limits.unverified_per_second),
            response_ports: rates(rng.random(), RESPONSE_PORTS_PER_SECOND),
            ports_asked: 0,
            config,
            rng,
        }
    }

    /// Takes a message of a client: a datagram, or what a stream holds from one frame to the next.
    pub fn handle_control(&mut self, now: Now, client: &Client, bytes: &[u8]) {
        match (classify(bytes), peek(bytes)) {
            (Datagram::Stun, Some((Class::Request, Method::Binding))) => {
                self.binding(now, client, bytes);
            }
            (Datagram::Stun | Datagram::ChannelData, _) if is_turn(bytes) => {
                self.handle_turn(now, client, bytes);
            }
            (Datagram::Stun, peeked)
                if client.over == Over::Udp
                    || peeked.is_some_and(|(_, method)| method.is_bridge()) =>
            {
                self.handle_rawr(now, client, bytes);
            }
            (Datagram::Stun, _) => self.counters.add(Count::Unexpected),
            (Datagram::ChannelData | Datagram::Other, _) => self.counters.add(Count::NotStun),
        }
    }

    /// Takes a message of one of RAWR's methods (over streams, those of Bridge), or an answer to a Binding request of ours.
    fn handle_rawr(&mut self, now: Now, client: &Client, bytes: &[u8]) {
        match decode(bytes) {
            Ok(decoded) => match decoded.message.class {
                Class::Request => {
                    let length = bytes.len();
                    self.handle_request(&Request { now, client, decoded: &decoded, length });
                }
                Class::Success | Class::Error => {
                    self.handle_response(now, client.remote, &decoded, bytes);
                }
                Class::Indication => self.counters.add(Count::Unexpected),
            },
            Err(DecodeError::NotStun) => self.counters.add(Count::NotStun),
            Err(DecodeError::UnknownMethod { .. }) => self.counters.add(Count::Malformed),
            Err(DecodeError::Malformed { head, .. }) => {
                self.counters.add(Count::Malformed);
                if head.class == Class::Request {
                    let error = Message::error(head, ErrorCode::BadRequest, Attributes::default());
                    self.answer_unverified(now, client, bytes.len(), &error);
                }
            }
        }
    }

    /// When [`Server::handle_timeout`] is due, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Reason)> {
        let session = self.store.alarms.first().map(|(at, index)| {
            let session = self.store.get(index);
            let reason = session.and_then(|session| session.next_deadline());
            (at, reason.map_or(Reason::LegLifetime, |(_, reason)| reason))
        });
        let exchange = self.exchanges.next_deadline().map(|at| (at, Reason::Exchange));
        let parent = self.parents.next_deadline().map(|at| (at, Reason::Parent));
        let reattach = self.next_reattach.map(|at| (at, Reason::Reattach));
        let turn = self.turn_deadline();
        let bridge = self.bridge.next_deadline();
        [session, exchange, parent, reattach, turn, bridge].into_iter().flatten().min()
    }

    /// What to do next, until `None`.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The addresses of this host's interfaces: no client may reach them as a peer, and relayed transport
    /// addresses are on them where no others are named.
    pub fn set_host_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<_> = addresses.into_iter().collect();
        self.turn.set_host(addresses.iter().copied());
        self.policy.set_host(addresses);
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What it was made with.
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// Decides about a request, and answers it.
    fn handle_request(&mut self, request: &Request<'_>) {
        let verified = self.check_source(request);
        let is_verified = verified.is_ok();
        if is_verified && !self.requests.allow(request.now.monotonic, prefix(request)) {
            self.counters.add(Count::RequestRate);
            return;
        }
        let outcome = self.dispatch(request, verified);
        let head = request.decoded.message.head();
        let (message, key) = match outcome {
            Ok(Answer::Later) => return,
            Ok(Answer::Now(success)) => (Message::success(head, success.attributes), success.key),
            Err(refusal) => self.refuse(request, head, refusal),
        };
        if is_verified {
            let bytes = message.encode(key.as_ref());
            self.answer(request.client, bytes);
        } else {
            self.answer_unverified(request.now, request.client, request.length, &message);
        }
    }

    fn dispatch(
        &mut self,
        request: &Request<'_>,
        verified: Result<(), ErrorResponse>,
    ) -> Result<Answer, ErrorResponse> {
        verified?;
        let unknown = request.decoded.unknown_required();
        if !unknown.is_empty() {
            let error = ErrorResponse::new(ErrorCode::UnknownAttribute, Count::UnknownAttribute);
            return Err(ErrorResponse { unknown: unknown.to_vec(), ..error });
        }
        match request.decoded.message.method {
            Method::Exchange => self.exchange(request),
            Method::Connect => self.connect(request),
            Method::Refresh => self.refresh(request),
            Method::Release => self.release(request),
            Method::Register | Method::Lookup | Method::Introduce => self.bridge_request(request),
            Method::Binding | Method::Probe | Method::Status => {
                Err(ErrorResponse::new(ErrorCode::BadRequest, Count::BadRequest))
            }
        }
    }

    /// Whether the request shows that its sender receives at the address it comes from.
    fn check_source(&self, request: &Request<'_>) -> Result<(), ErrorResponse> {
        let nonce = request.attributes().nonce.as_deref();
        self.check_nonce(request.now, request.from(), nonce)
            .map_err(|(code, count)| ErrorResponse::challenge(code, count))
    }

    pub(super) fn check_nonce(
        &self,
        now: Now,
        from: SocketAddr,
        nonce: Option<&str>,
    ) -> Result<(), (ErrorCode, Count)> {
        let nonce = nonce.ok_or((ErrorCode::Unauthenticated, Count::NoNonce))?;
        match self.nonces.check(now.unix.as_secs(), from, nonce) {
            Ok(_) => Ok(()),
            Err(NonceError::Stale | NonceError::Forged) => {
                Err((ErrorCode::StaleNonce, Count::StaleNonce))
            }
        }
    }

    /// Makes the error response of a refusal.
    fn refuse(
        &mut self,
        request: &Request<'_>,
        head: Head,
        refusal: ErrorResponse,
    ) -> (Message, Option<IntegrityKey>) {
        self.counters.add(refusal.count);
        let mut attributes = Attributes { unknown: refusal.unknown, ..Attributes::default() };
        if refusal.challenge {
            self.counters.add(Count::Challenged);
            let secs = request.now.unix.as_secs();
            attributes.nonce = Some(self.nonces.make(secs, request.from()));
            let needs_user = refusal.needs_user || !self.trusts(request.from().ip());
            let needs_user = needs_user && self.config.has_users();
            attributes.realm = needs_user.then(|| self.config.realm.clone());
            let calls_bridge = head.method.is_bridge() && self.config.bridge.enabled;
            attributes.bridge.server_key = calls_bridge.then(|| self.bridge.key.public());
        }
        (Message::error(head, refusal.code, attributes), refusal.key.map(|key| *key))
    }

    /// Answers a source that may be forged: never with more bytes than came, and not too often.
    fn answer_unverified(&mut self, now: Now, client: &Client, length: usize, message: &Message) {
        let bytes = message.encode(None);
        if bytes.len() > length {
            self.counters.add(Count::TooLong);
        } else if self.allow_unverified(now, client.remote) {
            self.answer(client, bytes);
        }
    }

    pub(super) fn allow_unverified(&mut self, now: Now, from: SocketAddr) -> bool {
        let allowed = self.unverified.allow(now.monotonic, Prefix::of(from.ip()));
        if !allowed {
            self.counters.add(Count::UnverifiedRate);
        }
        allowed
    }

    /// An answer to a request of ours: of a parent's health, or of an upstream leg.
    fn handle_response(&mut self, now: Now, from: SocketAddr, decoded: &Decoded<'_>, bytes: &[u8]) {
        let transaction = decoded.message.transaction;
        if decoded.message.method == Method::Binding {
            self.parent_answered(now, from, transaction);
        } else if let Some(index) = self.transactions.get(&transaction).copied() {
            self.upstream_answered(now, index, from, bytes);
        } else {
            self.counters.add(Count::Unexpected);
        }
    }

    /// Goes on with the nonces, and the key for Bridge, of a predecessor.
    pub(super) fn set_nonce_key(&mut self, key: [u8; 32]) {
        self.nonces = nonce_key(key, &self.config);
        self.bridge.key = ServerKey::of(&key);
    }

    pub(super) fn transmit(&mut self, from: Source, to: SocketAddr, bytes: Vec<u8>) {
        self.commands.push_back(Command::Transmit { from, to, bytes });
    }

    pub(super) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    /// Asks for a data port for the session at `index`.
    pub(super) fn open_port(&mut self, index: Index, on: On) -> PortId {
        self.ports_asked = self.ports_asked.wrapping_add(1);
        let id = PortId(u64::from(self.ports_asked) << 32 | u64::from(index));
        self.command(Command::OpenPort { id, on, kind: PortKind::Udp(Parity::Any) });
        id
    }

    pub(super) fn transaction(&mut self) -> TransactionId {
        TransactionId(self.rng.random())
    }
}

/// `seconds` as they stand in LIFETIME.
pub(super) fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// The key of this server's nonces, which tell clients what it can do. Whether USERHASH is of use only
/// static users decide: an ephemeral user's name is known to nobody before it comes.
fn nonce_key(key: [u8; 32], config: &ServerConfig) -> NonceKey {
    let username_anonymity = !config.users.is_empty() && config.secrets.is_empty();
    let password_algorithms = config.has_users();
    let features = SecurityFeatures { password_algorithms, username_anonymity };
    NonceKey::from_bytes(key).with_features(features)
}

fn prefix(request: &Request<'_>) -> Prefix {
    Prefix::of(request.from().ip())
}
