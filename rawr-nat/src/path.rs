//! One way that data can take, and the Probes that bind it, prove it and watch over it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{
    Attributes, Class, Decoded, ErrorCode, IntegrityKey, LegState, MIN_FIRST_REQUEST, Message,
    Method, Role, SessionId, SessionKey, TransactionId, decode, peek,
};

/// Pauses between the first Probes; the last of them repeats.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(200),
];
/// The same once the server has joined both sides: the answer is near, and only a datagram that came
/// before the flows were in place is missing.
const PAIRED_PAUSES: [Duration; 9] = [
    Duration::from_millis(5),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(200),
];
/// After so long the pauses grow to [`PATIENT_PAUSE`]: nobody is in a hurry any more, and a pairing
/// is announced by Status anyway.
const IMPATIENCE: Duration = Duration::from_secs(10);
const PATIENT_PAUSE: Duration = Duration::from_secs(1);

/// Silence on the active path after which it is probed, and pause between those Probes.
const LIVENESS_PAUSE: Duration = Duration::from_millis(250);
/// Probes without an answer after which the active path is dead.
const LIVENESS_TRIES: u32 = 4;
/// Least pause between Probes that the other side's provoke.
const TRIGGER_PAUSE: Duration = Duration::from_millis(100);
/// Pause between Probes on a path that is not active: less than a NAT forgets after (RFC 4787 REQ-5
/// allows 120 s, routers in the field 30 s).
const STANDBY_PAUSE: Duration = Duration::from_secs(10);

/// Probes without an answer after which such a path counts as unproven again.
const STANDBY_TRIES: u32 = 3;

/// Probes that may still be answered.
const MAX_OUTSTANDING: usize = 8;

/// What this side calls itself in Probes, and how it knows the other side's.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) session: SessionId,
    pub(crate) role: Role,
    pub(crate) key: IntegrityKey,
}

impl Identity {
    pub(crate) fn new(key: &SessionKey, role: Role) -> Arc<Self> {
        Arc::new(Self { session: key.id(), role, key: IntegrityKey::session(key) })
    }

    /// Whether a datagram on the data path is control of this session. All else is data, the
    /// application's own STUN included.
    pub(crate) fn control(&self, bytes: &[u8]) -> Option<Control> {
        let (class, Method::Probe | Method::Status) = peek(bytes)? else {
            return None;
        };
        let message = decode(bytes).ok()?;
        if class == Class::Error && !message.has_integrity() {
            let error = message.message.attributes.error;
            let challenged = [ErrorCode::Unauthenticated, ErrorCode::StaleNonce].map(Some);
            return challenged.contains(&error).then_some(Control::Challenge(message.message));
        }
        self.owns(&message).then_some(Control::Verified(message.message))
    }

    fn owns(&self, message: &Decoded<'_>) -> bool {
        let session = message.message.attributes.session;
        session == Some(self.session) && message.verify(&self.key)
    }

    /// The answer of a peer to the Probe `request` that came from `source`.
    pub(crate) fn answer(&self, request: &Message, source: SocketAddr) -> Vec<u8> {
        let attributes = Attributes {
            session: Some(self.session),
            leg_state: Some(LegState::Peer),
            mapped: Some(source),
            ..Attributes::default()
        };
        Message::success(request.head(), attributes).encode(Some(&self.key))
    }
}

/// A datagram of the protocol's own, found among data.
#[derive(Debug)]
pub(crate) enum Control {
    /// Made with the session's key.
    Verified(Message),
    /// An error without integrity, which counts only as the answer to a Probe of ours.
    Challenge(Message),
}

/// How far a path has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathState {
    /// Nothing has come back.
    Unbound,
    /// The server knows our address on it, and waits for the other side.
    Waiting,
    /// The server has joined it to the other side's.
    Paired,
    /// The other peer has answered.
    Confirmed,
}

/// How a path that is confirmed is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Not at all: whoever forwards on it does not hear the answers.
    Off,
    /// Kept open.
    Standby,
    /// Its death must be noticed soon.
    Active,
}

/// What a message changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Bound(SocketAddr),
    Paired,
    Confirmed(Duration),
    /// It was paired or confirmed, and the server says that it waits again.
    Unpaired,
}

/// A way that data can take: to an address, and from it.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) remote: SocketAddr,
    pub(crate) state: PathState,
    pub(crate) rtt: Option<Duration>,
    pub(crate) watch: Watch,
    identity: Arc<Identity>,
    nonce: Option<String>,
    /// A challenge came since the last answer.
    challenged: bool,
    mapped: Option<SocketAddr>,
    outstanding: Vec<(TransactionId, Instant)>,
    last_received: Instant,
    /// When the present series of Probes began.
    since: Instant,
    /// Probes sent in it, or on a confirmed path since something was received.
    sent: u32,
    probe_at: Instant,
    is_triggered: bool,
    /// When the last Probe was sent.
    probed: Option<Instant>,
    rng: StdRng,
}

impl Path {
    /// A path to `remote`, which is probed at once.
    pub(crate) fn new(
        identity: Arc<Identity>,
        remote: SocketAddr,
        watch: Watch,
        seed: u64,
        now: Instant,
    ) -> Self {
        Self {
            remote,
            state: PathState::Unbound,
            rtt: None,
            watch,
            identity,
            nonce: None,
            challenged: false,
            mapped: None,
            outstanding: Vec::with_capacity(MAX_OUTSTANDING),
            last_received: now,
            since: now,
            sent: 0,
            probe_at: now,
            is_triggered: false,
            probed: None,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Begins again: the other end may have forgotten us.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.state = PathState::Unbound;
        self.hurry(now);
    }

    /// Something came from the other peer over this path.
    pub(crate) fn received(&mut self, now: Instant) {
        self.last_received = now;
    }

    pub(crate) fn set_watch(&mut self, watch: Watch, now: Instant) {
        if self.watch != watch {
            self.watch = watch;
            self.sent = 0;
            self.last_received = now;
            self.probe_at = self.probe_at.min(now + self.watch_pause());
        }
    }

    /// How long this path has been silent, and probed in vain, if it is active.
    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        let limit = LIVENESS_PAUSE * (LIVENESS_TRIES + 1);
        self.watch == Watch::Active
            && self.sent >= LIVENESS_TRIES
            && now.saturating_duration_since(self.last_received) >= limit
    }

    /// Whether at least one Probe of the liveness check has not been answered in time.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        let limit = LIVENESS_PAUSE * 2;
        self.watch == Watch::Active && now.saturating_duration_since(self.last_received) >= limit
    }

    /// Takes an error without integrity. Returns whether it answers a Probe of ours.
    pub(crate) fn handle_challenge(&mut self, now: Instant, message: &Message) -> bool {
        if self.answered(now, message).is_none() {
            return false;
        }
        if let Some(nonce) = &message.attributes.nonce {
            self.nonce = Some(nonce.clone());
            // At once, but once only: a server that never is content must not be hammered.
            if !self.challenged {
                self.trigger(now);
            }
            self.challenged = true;
        }
        true
    }

    /// Takes a verified Probe response or Status that came from [`Path::remote`].
    pub(crate) fn handle(&mut self, now: Instant, message: &Message) -> Option<Change> {
        match (message.method, message.class) {
            (Method::Status, Class::Indication) => {
                let paired = message.attributes.leg_state == Some(LegState::Paired);
                let is_news = paired && self.state < PathState::Paired;
                is_news.then(|| self.paired(now))
            }
            (Method::Probe, Class::Success) => self.handle_answer(now, message),
            _ => None,
        }
    }

    /// The other side's Probe came through: the path is paired, even if Status was lost. It shows that
    /// we can be reached, not that we reach the other side; so it is no sign of life, but makes us
    /// probe, too. Our mapping may have changed, and only a Probe of ours tells the server.
    pub(crate) fn handle_peers_probe(&mut self, now: Instant) -> Option<Change> {
        if self.state < PathState::Paired {
            return Some(self.paired(now));
        }
        // Longer than a round trip, or each would answer the other's for ever.
        let pause = TRIGGER_PAUSE.max(self.rtt.unwrap_or_default() * 4);
        let is_due = self.probed.is_none_or(|at| now.duration_since(at) >= pause);
        if self.watch != Watch::Off && is_due {
            self.trigger(now);
        }
        None
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let quiet = self.state == PathState::Confirmed && self.watch == Watch::Off;
        (!quiet).then_some(self.probe_at)
    }

    /// The Probe that is due now.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.poll_timeout()? > now {
            return None;
        }
        let confirmed = self.state == PathState::Confirmed;
        if confirmed && self.watch == Watch::Standby && self.sent >= STANDBY_TRIES {
            self.restart(now);
        }
        if self.state == PathState::Confirmed {
            let due = self.last_received + self.watch_pause();
            if self.watch == Watch::Active && due > now && !self.is_triggered {
                self.sent = 0;
                self.probe_at = due;
                return None;
            }
            self.probe_at = now + self.watch_pause();
        } else {
            self.probe_at = now + self.search_pause(now);
        }
        self.sent = self.sent.saturating_add(1);
        self.is_triggered = false;
        Some(self.probe(now))
    }

    fn probe(&mut self, now: Instant) -> Vec<u8> {
        self.probed = Some(now);
        let transaction = TransactionId(self.rng.random());
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((transaction, now));
        let attributes = Attributes {
            session: Some(self.identity.session),
            role: Some(self.identity.role),
            nonce: self.nonce.clone(),
            ..Attributes::default()
        };
        let message = Message::request(Method::Probe, transaction, attributes);
        message.encode_padded(Some(&self.identity.key), MIN_FIRST_REQUEST)
    }

    fn handle_answer(&mut self, now: Instant, message: &Message) -> Option<Change> {
        let rtt = self.answered(now, message)?;
        self.received(now);
        self.challenged = false;
        let mapped = message.attributes.mapped;
        match message.attributes.leg_state? {
            // It was asked before the sides were joined, and has been overtaken.
            LegState::Waiting if self.state > PathState::Waiting && now - rtt < self.since => None,
            LegState::Waiting if self.state > PathState::Waiting => {
                self.state = PathState::Waiting;
                self.hurry(now);
                Some(Change::Unpaired)
            }
            LegState::Waiting => {
                let is_news = self.state < PathState::Waiting || self.mapped != mapped;
                self.state = PathState::Waiting;
                self.mapped = mapped;
                is_news.then_some(mapped).flatten().map(Change::Bound)
            }
            LegState::Paired => {
                self.mapped = mapped.or(self.mapped);
                if self.state == PathState::Confirmed {
                    // The server, not the peer, answered: it has learnt our address anew.
                    self.state = PathState::Paired;
                    self.probe_at = now;
                }
                (self.state < PathState::Paired).then(|| self.paired(now))
            }
            LegState::Peer => {
                self.sent = 0;
                self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
                let is_news = self.state != PathState::Confirmed;
                self.state = PathState::Confirmed;
                if is_news {
                    self.probe_at = now + self.watch_pause();
                }
                is_news.then_some(Change::Confirmed(rtt))
            }
        }
    }

    fn paired(&mut self, now: Instant) -> Change {
        self.state = PathState::Paired;
        self.hurry(now);
        Change::Paired
    }

    /// A Probe is wanted at once, however alive the path is.
    fn trigger(&mut self, now: Instant) {
        self.is_triggered = true;
        self.probe_at = now;
    }

    fn hurry(&mut self, now: Instant) {
        self.since = now;
        self.sent = 0;
        self.probe_at = now;
    }

    /// Round trip time of the Probe that `message` answers.
    fn answered(&mut self, now: Instant, message: &Message) -> Option<Duration> {
        let asked = |(id, _): &(TransactionId, Instant)| *id == message.transaction;
        let at = self.outstanding.iter().position(asked)?;
        let (_, sent_at) = self.outstanding.remove(at);
        Some(now.saturating_duration_since(sent_at))
    }

    fn search_pause(&self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.since) > IMPATIENCE {
            return PATIENT_PAUSE;
        }
        let pauses: &[Duration] =
            if self.state == PathState::Paired { &PAIRED_PAUSES } else { &PAUSES };
        pauses[(self.sent as usize).min(pauses.len() - 1)]
    }

    const fn watch_pause(&self) -> Duration {
        match self.watch {
            Watch::Active => LIVENESS_PAUSE,
            Watch::Standby | Watch::Off => STANDBY_PAUSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use rawr_proto::SessionSecret;

    use super::*;

    struct Bench {
        now: Instant,
        path: Path,
    }

    impl Bench {
        /// A confirmed path that carries data.
        fn active() -> Self {
            #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
            let now = Instant::now();
            let identity = Identity::new(&SessionSecret::from_bytes([1; 32]).key(), Role::A);
            let remote = "192.0.2.1:1000".parse().unwrap();
            let path = Path::new(identity, remote, Watch::Standby, 1, now);
            let mut bench = Self { now, path };
            let probe = bench.probe().unwrap();
            bench.answer(&probe, LegState::Peer);
            assert_eq!(bench.path.state, PathState::Confirmed);
            bench.path.set_watch(Watch::Active, now);
            bench
        }

        fn probe(&mut self) -> Option<Message> {
            let bytes = self.path.poll_transmit(self.now)?;
            Some(decode(&bytes).unwrap().message)
        }

        fn answer(&mut self, probe: &Message, state: LegState) -> Option<Change> {
            let attributes = Attributes { leg_state: Some(state), ..Attributes::default() };
            self.path.handle(self.now, &Message::success(probe.head(), attributes))
        }

        fn wait(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }
    }

    #[test]
    fn dies_after_four_probes_in_vain() {
        let mut bench = Bench::active();
        let mut sent = Vec::new();
        for at in (0..2_000).step_by(10) {
            assert_eq!(bench.path.is_dead(bench.now), at >= 1_250, "at {at} ms");
            if bench.probe().is_some() {
                sent.push(at);
            }
            bench.wait(10);
        }
        assert_eq!(sent[..4], [250, 500, 750, 1_000]);
    }

    #[test]
    fn data_keeps_it_alive_without_probes() {
        let mut bench = Bench::active();
        for _ in 0..100 {
            bench.wait(100);
            bench.path.received(bench.now);
            assert!(bench.probe().is_none());
            assert!(!bench.path.is_dead(bench.now));
        }
    }

    #[test]
    fn the_other_sides_probes_provoke_own_ones_and_are_no_sign_of_life() {
        let mut bench = Bench::active();
        let mut probes = 0;
        for _ in 0..20 {
            bench.wait(90);
            bench.path.received(bench.now);
            bench.path.handle_peers_probe(bench.now);
            probes += usize::from(bench.probe().is_some());
        }
        assert_eq!(probes, 10, "every 100 ms at most");
        for _ in 0..14 {
            bench.wait(90);
            bench.path.handle_peers_probe(bench.now);
            bench.probe();
        }
        assert!(bench.path.is_dead(bench.now));
    }

    #[test]
    fn overtaken_answer_does_not_undo_the_pairing() {
        let mut bench = Bench::active();
        bench.path.restart(bench.now);
        let early = bench.probe().unwrap();
        bench.wait(5);
        bench.path.handle_peers_probe(bench.now);
        assert_eq!(bench.answer(&early, LegState::Waiting), None);
        assert_eq!(bench.path.state, PathState::Paired);
        let late = bench.probe().unwrap();
        assert_eq!(bench.answer(&late, LegState::Waiting), Some(Change::Unpaired));
    }
}
