//! One leg of a session at one server, seen from the client: a peer, or a gateway that escalates.
//!
//! | state      | what is known                              | what is sent                          |
//! |------------|--------------------------------------------|---------------------------------------|
//! | Connecting | nothing                                    | Connect, after a challenge again      |
//! | Connected  | DATA-ADDRESS                               | Probe, once the data socket is ready  |
//! | Bound      | our address as the server sees it          | Probe, Refresh                        |
//! | Paired     | the server has joined us to the other side | Probe, Refresh                        |
//! | Confirmed  | the other peer has answered                | Probe as watched, Refresh             |
//! | Closing    | we want to leave                           | Release                               |
//! | Closed     | lost, refused or released                  | nothing                               |

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rawr_proto::{
    Attributes, Class, Credentials, ErrorCode, MacKey, MacToken, Message, Method, Role, ServerId,
    SessionKey, TransactionId, WireKey, decode,
};

use crate::path::{Change, Control, Identity, Path, PathState, Watch};
use crate::request::{Answer, Requester};

/// Pause before a Refresh is tried again that nobody answered: the server may be restarting, while
/// its kernel forwards on.
const REFRESH_RETRY: Duration = Duration::from_secs(2);

/// What an [`Attachment`] is to do.
#[derive(Clone, Debug)]
pub struct AttachmentConfig {
    /// The server's STUN port.
    pub server: SocketAddr,
    /// The session.
    pub key: SessionKey,
    /// Lets the server match a blinded [`AttachmentConfig::target_mac`]; for gateways only.
    pub mac_key: Option<MacKey>,
    /// On whose side this leg is.
    pub role: Role,
    /// Newer attachments of the same role have greater ones (milliseconds since 1970).
    pub epoch: u64,
    /// Whether to raise the epoch where the server has forgotten the leg. Peers do, since servers
    /// farther on may remember; gateways pass on what they got.
    pub raise_epoch: bool,
    /// Used if the server asks for them.
    pub credentials: Option<Credentials>,
    /// The other peer's MAC address, if the server is to look for it.
    pub target_mac: Option<MacToken>,
    /// The port of the other peer's data socket.
    pub target_port: Option<u16>,
    /// Where the session goes if nothing nearer is found.
    pub root: Option<SocketAddr>,
    /// Servers passed so far.
    pub hops: Vec<ServerId>,
    /// Servers that may still be passed.
    pub hop_limit: u8,
    /// Seconds that the leg shall live without Refresh.
    pub lifetime: u32,
}

/// One leg of a session at one server.
#[derive(Debug)]
pub struct Attachment {
    config: AttachmentConfig,
    identity: Arc<Identity>,
    requester: Requester,
    stage: Stage,
    /// The data socket is ready, and nobody else forwards on it.
    probing: bool,
    watch: Watch,
    /// DATA-ADDRESS, as last granted.
    granted: Option<SocketAddr>,
    path: Option<Path>,
    /// The path to a new DATA-ADDRESS, which takes over once it is paired.
    next_path: Option<Path>,
    /// The server has answered 437 to a Refresh, and Connect is under way again.
    forgotten: bool,
    refresh_at: Option<Instant>,
    expires_at: Instant,
    outputs: VecDeque<AttachmentOutput>,
}

/// What an [`Attachment`] wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentOutput {
    /// Send a datagram.
    Transmit {
        /// The socket.
        via: Via,
        /// The destination.
        to: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Something happened.
    Event(AttachmentEvent),
}

/// Which socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The one for the server's STUN port.
    Control,
    /// The one for data.
    Data,
}

/// What happened to an [`Attachment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentEvent {
    /// The server has a leg for us. Told again if the server moved it.
    Connected {
        /// Where the leg's data goes.
        data_address: SocketAddr,
    },
    /// The server has learnt where our data comes from.
    Bound {
        /// Our address as the server sees it.
        mapped: SocketAddr,
    },
    /// The server has joined the leg to the other side's.
    Paired,
    /// The other peer has answered.
    Confirmed {
        /// Round trip time of the Probe that proved it.
        rtt: Duration,
    },
    /// The server says that the leg waits again.
    Unpaired,
    /// The end: the server cannot be reached, or has let the leg expire.
    Lost(LostReason),
    /// The end: the server does not want us.
    Refused(ErrorCode),
    /// The end: we have left.
    Released,
}

/// Why an [`Attachment`] was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// Nobody answered Connect.
    #[error("the server does not answer")]
    Unreachable,
    /// Nobody answered Refresh, until the leg's lifetime was over.
    #[error("the server has not answered for the leg's lifetime")]
    Expired,
}

/// How far an [`Attachment`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachmentState {
    /// Connect is under way.
    Connecting,
    /// The server has a leg for us, and has not heard from our data socket.
    Connected,
    /// It has.
    Bound,
    /// It has joined the leg to the other side's.
    Paired,
    /// The other peer has answered.
    Confirmed,
    /// Release is under way.
    Closing,
    /// Lost, refused or released.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Connecting,
    Connected,
    Closing,
    Closed,
}

impl Attachment {
    /// Starts to connect. `seed` is random.
    pub fn new(config: AttachmentConfig, seed: u64, now: Instant) -> Self {
        let (server, key) = (config.server, config.key.clone());
        let requester = Requester::new(server, key, config.credentials.clone(), seed);
        let mut attachment = Self {
            identity: Identity::new(&config.key, config.role),
            requester,
            config,
            stage: Stage::Connecting,
            probing: false,
            watch: Watch::Off,
            granted: None,
            path: None,
            next_path: None,
            forgotten: false,
            refresh_at: None,
            expires_at: now,
            outputs: VecDeque::new(),
        };
        attachment.connect(now);
        attachment.pump(now);
        attachment
    }

    /// Takes a datagram that came to the control socket. Returns whether it was for this attachment.
    pub fn handle_control(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        // Whoever holds many attachments offers each datagram to all: look twice before decoding.
        let transaction = bytes.get(8..20).and_then(|id| id.try_into().ok()).map(TransactionId);
        if from != self.config.server || !transaction.is_some_and(|id| self.awaits(id)) {
            return false;
        }
        let answer = decode(bytes).ok().and_then(|message| self.requester.handle(now, &message));
        let Some(answer) = answer else {
            return false;
        };
        if let Some(answer) = answer {
            self.handle_answer(now, answer);
        }
        self.pump(now);
        true
    }

    /// Whether the answer with this transaction would be for this attachment.
    pub fn awaits(&self, transaction: TransactionId) -> bool {
        self.requester.transaction() == Some(transaction)
    }

    /// The data socket is ready: Probes may go out by it.
    pub fn start_probing(&mut self, now: Instant) {
        self.probing = true;
        if self.path.is_none() {
            self.path = self.granted.map(|remote| self.new_path(now, remote));
        }
        self.pump(now);
    }

    /// Somebody forwards on the data socket: answers would not come back to us. Refresh goes on.
    pub fn stop_probing(&mut self) {
        self.probing = false;
    }

    /// Takes a datagram that came to the data socket. Returns whether it was control for this
    /// attachment; else it is data, or a Probe request of the other peer's.
    pub fn handle_data(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        if !self.paths().any(|path| path.remote == from) {
            return false;
        }
        match self.identity.control(bytes) {
            Some(control) => self.handle_data_control(now, from, &control),
            None => false,
        }
    }

    /// To be called once [`Attachment::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(answer) = self.requester.handle_timeout(now) {
            self.handle_answer(now, answer);
        }
        if self.stage == Stage::Connected
            && self.requester.transaction().is_none()
            && self.refresh_at.is_some_and(|at| at <= now)
        {
            self.refresh_at = None;
            self.request(now, Method::Refresh);
        }
        self.pump(now);
    }

    /// When [`Attachment::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stage == Stage::Closed {
            return None;
        }
        let probes = self.paths().filter_map(Path::poll_timeout).filter(|_| self.probing).min();
        [self.requester.poll_timeout(), self.refresh_at, probes].into_iter().flatten().min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<AttachmentOutput> {
        self.outputs.pop_front()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Leaves.
    pub fn release(&mut self, now: Instant) {
        if self.stage >= Stage::Closing {
            return;
        }
        self.stage = Stage::Closing;
        self.probing = false;
        if self.requester.has_nonce() {
            self.request(now, Method::Release);
        } else {
            // The server keeps no state before it has seen a nonce of its own.
            self.close(AttachmentEvent::Released);
        }
        self.pump(now);
    }

    /// The other peer has become known: lets the server look for it. The leg stays as it is.
    pub fn update_target(&mut self, now: Instant, mac: Option<MacToken>, port: Option<u16>) {
        let unchanged = self.config.target_mac == mac && self.config.target_port == port;
        if unchanged || self.stage >= Stage::Closing {
            return;
        }
        self.config.target_mac = mac;
        self.config.target_port = port;
        self.connect(now);
        self.pump(now);
    }

    /// Where data goes: the leg's address at the server, once there is one.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.path.as_ref().map(|path| path.remote).or(self.granted)
    }

    /// The server's STUN port.
    pub const fn server(&self) -> SocketAddr {
        self.config.server
    }

    /// As last sent to the server.
    pub const fn epoch(&self) -> u64 {
        self.config.epoch
    }

    /// How far it has come.
    pub fn state(&self) -> AttachmentState {
        let path = self.path.as_ref().map(|path| path.state);
        match (self.stage, path) {
            (Stage::Connecting, _) => AttachmentState::Connecting,
            (Stage::Connected, None | Some(PathState::Unbound)) => AttachmentState::Connected,
            (Stage::Connected, Some(PathState::Waiting)) => AttachmentState::Bound,
            (Stage::Connected, Some(PathState::Paired)) => AttachmentState::Paired,
            (Stage::Connected, Some(PathState::Confirmed)) => AttachmentState::Confirmed,
            (Stage::Closing, _) => AttachmentState::Closing,
            (Stage::Closed, _) => AttachmentState::Closed,
        }
    }

    /// The way that data takes, once there is one.
    pub(crate) const fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    pub(crate) const fn path_mut(&mut self) -> Option<&mut Path> {
        self.path.as_mut()
    }

    /// How the path is watched from now on, once it is confirmed.
    pub(crate) fn set_watch(&mut self, now: Instant, watch: Watch) {
        self.watch = watch;
        for path in self.path.iter_mut().chain(&mut self.next_path) {
            path.set_watch(watch, now);
        }
    }

    fn connect(&mut self, now: Instant) {
        self.request(now, Method::Connect);
    }

    fn request(&mut self, now: Instant, method: Method) {
        let config = &self.config;
        let always = Attributes {
            session: Some(self.identity.session),
            role: Some(config.role),
            epoch: Some(config.epoch),
            ..Attributes::default()
        };
        let lifetime = Some(config.lifetime);
        let attributes = match method {
            Method::Connect => Attributes {
                session_key: Some(WireKey::from(&config.key)),
                // Without something to match there is no use for it.
                mac_key: config
                    .mac_key
                    .as_ref()
                    .filter(|_| config.target_mac.is_some())
                    .map(WireKey::from),
                target_mac: config.target_mac,
                target_port: config.target_port,
                root: config.root,
                hops: config.hops.clone(),
                hop_limit: Some(config.hop_limit),
                lifetime,
                ..always
            },
            Method::Refresh => Attributes { lifetime, ..always },
            _ => always,
        };
        self.requester.start(now, method, attributes);
    }

    fn handle_answer(&mut self, now: Instant, answer: (Method, Answer)) {
        match answer {
            (Method::Connect, Answer::Success(attributes)) => self.connected(now, &attributes),
            (Method::Refresh, Answer::Success(attributes)) => self.refreshed(now, &attributes),
            (Method::Release, _) => self.close(AttachmentEvent::Released),
            (Method::Refresh, Answer::Error(ErrorCode::UnknownSession)) => {
                self.forgotten = true;
                self.config.epoch += u64::from(self.config.raise_epoch);
                self.connect(now);
            }
            (_, answer) if self.stage == Stage::Connected && !self.forgotten => {
                self.keep_trying(now, answer);
            }
            (_, Answer::Error(error)) => self.close(AttachmentEvent::Refused(error)),
            (_, Answer::Unanswered) => {
                self.close(AttachmentEvent::Lost(LostReason::Unreachable));
            }
            (_, Answer::Success(_)) => {}
        }
    }

    fn connected(&mut self, now: Instant, attributes: &Attributes) {
        let Some(data_address) = attributes.data_address else {
            // No server that speaks this protocol leaves it out.
            return self.close(AttachmentEvent::Refused(ErrorCode::ServerError));
        };
        let is_news = self.granted != Some(data_address) || self.forgotten;
        let path_stands = self.path.as_ref().is_some_and(|path| path.remote == data_address);
        self.granted = Some(data_address);
        self.refreshed(now, attributes);
        self.stage = Stage::Connected;
        if path_stands {
            self.next_path = None;
            if let Some(path) = self.path.as_mut().filter(|_| self.forgotten) {
                path.restart(now);
            }
        } else if self.probing && is_news {
            let path = self.new_path(now, data_address);
            let slot = if self.path.is_some() { &mut self.next_path } else { &mut self.path };
            *slot = Some(path);
        }
        self.forgotten = false;
        if is_news {
            self.tell(AttachmentEvent::Connected { data_address });
        }
    }

    fn refreshed(&mut self, now: Instant, attributes: &Attributes) {
        let seconds = attributes.lifetime.unwrap_or(self.config.lifetime);
        let lifetime = Duration::from_secs(seconds.into());
        self.expires_at = now + lifetime;
        self.refresh_at = Some(now + lifetime / 4);
    }

    /// The leg stands as far as we know, but the server gave no good answer about it.
    fn keep_trying(&mut self, now: Instant, answer: Answer) {
        let passing = [ErrorCode::ServerError, ErrorCode::InsufficientCapacity];
        match answer {
            Answer::Error(error) if !passing.contains(&error) => {
                self.close(AttachmentEvent::Refused(error));
            }
            _ if now >= self.expires_at => {
                self.close(AttachmentEvent::Lost(LostReason::Expired));
            }
            _ => self.refresh_at = Some(now + REFRESH_RETRY),
        }
    }

    fn handle_data_control(&mut self, now: Instant, from: SocketAddr, control: &Control) -> bool {
        let other = self.config.role.other();
        let on_next = self.next_path.as_ref().is_some_and(|path| path.remote == from);
        let slot = if on_next { &mut self.next_path } else { &mut self.path };
        let Some(path) = slot else { return false };
        let (consumed, change) = match control {
            Control::Challenge(message) => (path.handle_challenge(now, message), None),
            Control::Verified(message) if is_probe_of(message, other) => {
                (false, path.handle_peers_probe(now))
            }
            Control::Verified(message) => (true, path.handle(now, message)),
        };
        if let Some(change) = change {
            if on_next && matches!(change, Change::Paired | Change::Confirmed(_)) {
                self.path = self.next_path.take();
            }
            self.tell(change.into());
        }
        self.pump(now);
        consumed
    }

    fn new_path(&mut self, now: Instant, remote: SocketAddr) -> Path {
        let seed = self.requester.random();
        Path::new(Arc::clone(&self.identity), remote, self.watch, seed, now)
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.path.iter().chain(&self.next_path)
    }

    fn pump(&mut self, now: Instant) {
        if let Some(bytes) = self.requester.poll_transmit(now) {
            let to = self.requester.server();
            self.outputs.push_back(AttachmentOutput::Transmit { via: Via::Control, to, bytes });
        }
        if !self.probing {
            return;
        }
        for path in self.path.iter_mut().chain(&mut self.next_path) {
            if let Some(bytes) = path.poll_transmit(now) {
                let to = path.remote;
                self.outputs.push_back(AttachmentOutput::Transmit { via: Via::Data, to, bytes });
            }
        }
    }

    fn tell(&mut self, event: AttachmentEvent) {
        self.outputs.push_back(AttachmentOutput::Event(event));
    }

    fn close(&mut self, event: AttachmentEvent) {
        self.stage = Stage::Closed;
        self.probing = false;
        self.requester.cancel();
        self.tell(event);
    }
}

impl From<Change> for AttachmentEvent {
    fn from(change: Change) -> Self {
        match change {
            Change::Bound(mapped) => Self::Bound { mapped },
            Change::Paired => Self::Paired,
            Change::Confirmed(rtt) => Self::Confirmed { rtt },
            Change::Unpaired => Self::Unpaired,
        }
    }
}

/// Whether this is a Probe that asks, from the peer in role `other`.
pub(crate) fn is_probe_of(message: &Message, other: Role) -> bool {
    let is_probe = message.method == Method::Probe && message.class == Class::Request;
    is_probe && message.attributes.role == Some(other)
}
