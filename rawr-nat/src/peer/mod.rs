//! One of a session's two peers: finds the best way to the other, keeps it, and leaves it for a
//! better one without losing a datagram.
//!
//! It has two sockets. By the control socket it talks to servers' STUN ports; by the data socket goes
//! what the application sends, and everything else that has to take the same way. Data does not pass
//! through here: whoever drives a [`Peer`] sends it to [`Peer::destination`], and hands what comes to
//! [`Peer::handle_data`], which says whether it is data.

mod choose;
mod config;
mod way;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{ErrorCode, MacKey, MacToken, Message};

use crate::attachment::{
    Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, Via, is_probe_of,
};
use crate::exchange::{Exchange, ExchangeConfig, ExchangeOutput, PeerCard};
use crate::health::Health;
use crate::path::{Control, Identity, Path, Watch};

pub use config::{Interface, PeerConfig, ServerConfig};
pub use way::PathKind;

use way::{Body, Rank, Way};

/// Servers that may be passed beyond the one asked.
const HOP_LIMIT: u8 = 8;
/// Ways that the other side, or its candidates, may make us try at once.
const MAX_PLAIN: usize = 8;

/// One of a session's two peers.
#[derive(Debug)]
pub struct Peer {
    config: PeerConfig,
    identity: Arc<Identity>,
    mac_key: MacKey,
    started: Instant,
    epoch: u64,
    exchange: Option<Exchange>,
    servers: Vec<Server>,
    ways: Vec<Way>,
    active: Option<u32>,
    destination: Option<SocketAddr>,
    /// What was last said about the path.
    told: Option<PathInfo>,
    was_ready: bool,
    told_closed: bool,
    /// When the other peer was first heard of.
    peer_known: Option<Instant>,
    peer_mac: Option<MacToken>,
    /// The other peer's addresses on own subnets.
    neighbours: Vec<SocketAddr>,
    retry_direct: Option<Instant>,
    target_port: Option<u16>,
    settle_at: Instant,
    is_closing: bool,
    is_resting: bool,
    next_id: u32,
    rng: StdRng,
    outputs: VecDeque<PeerOutput>,
}

/// What a [`Peer`] wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOutput {
    /// Send a datagram.
    Transmit {
        /// The socket.
        via: Via,
        /// The destination.
        to: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Look this address up in the neighbour table, and call [`Peer::handle_neighbour`].
    LookUp(IpAddr),
    /// Something happened.
    Event(PeerEvent),
}

/// What happened to a [`Peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Data can flow for the first time.
    Ready {
        /// The way it takes.
        path: PathInfo,
        /// From the first request to the other peer's first answer.
        connect: Duration,
    },
    /// Data takes another way from now on.
    PathChanged {
        /// The way it took; `None` where there was none for a while.
        from: Option<PathInfo>,
        /// The way it takes.
        to: PathInfo,
    },
    /// No way is left, for now.
    PathLost(PathInfo),
    /// A server does not want us.
    Refused {
        /// Its STUN port.
        server: SocketAddr,
        /// What it said.
        error: ErrorCode,
    },
    /// Everything has been released.
    Closed,
}

/// A way that data takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// What it leads through.
    pub kind: PathKind,
    /// Where data is sent to.
    pub remote: SocketAddr,
    /// Round trip time to the other peer, smoothed.
    pub rtt: Duration,
}

/// A server, and how it has behaved.
#[derive(Debug)]
struct Server {
    config: ServerConfig,
    kind: PathKind,
    rank: Rank,
    health: Health,
    down_since: Option<Instant>,
    /// Not tried before.
    rest_until: Instant,
    rest: Duration,
}

impl Peer {
    /// Starts to look for the other peer. `seed` is random.
    pub fn new(config: PeerConfig, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let key = config.secret.key();
        let servers = Server::list(&config, &mut rng, now);
        let mut peer = Self {
            identity: Identity::new(&key, config.role),
            mac_key: config.secret.mac_key(),
            started: now,
            epoch: config.epoch,
            exchange: None,
            servers,
            ways: Vec::new(),
            active: None,
            destination: None,
            told: None,
            was_ready: false,
            told_closed: false,
            peer_known: None,
            peer_mac: None,
            neighbours: Vec::new(),
            retry_direct: None,
            target_port: None,
            settle_at: now,
            is_closing: false,
            is_resting: false,
            next_id: 0,
            rng,
            outputs: VecDeque::new(),
            config,
        };
        peer.exchange = peer.start_exchange(now);
        peer.settle(now);
        peer
    }

    /// Where data is to be sent now.
    pub const fn destination(&self) -> Option<SocketAddr> {
        self.destination
    }

    /// The way that data takes now.
    pub fn path(&self) -> Option<PathInfo> {
        let way = self.ways.iter().find(|way| Some(way.id) == self.active)?;
        let path = way.path()?;
        Some(PathInfo { kind: way.kind, remote: path.remote, rtt: path.rtt.unwrap_or_default() })
    }

    /// Whether everything has been released, after [`Peer::close`].
    pub fn is_closed(&self) -> bool {
        self.is_closing && self.ways.is_empty()
    }

    /// Takes a datagram that came to the control socket.
    pub fn handle_control(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if let Some(exchange) = &mut self.exchange
            && exchange.handle_control(now, from, bytes)
        {
            self.settle(now);
            return;
        }
        for server in &mut self.servers {
            if server.health.handle_control(now, from, bytes) {
                self.settle(now);
                return;
            }
        }
        for way in &mut self.ways {
            if let Body::Attached(server, attachment) = &mut way.body
                && attachment.handle_control(now, from, bytes)
            {
                self.servers[*server].health.heard(now);
                self.settle(now);
                return;
            }
        }
    }

    /// Takes a datagram that came to the data socket. Returns whether it is the other peer's data.
    pub fn handle_data(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        let Some(control) = self.identity.control(bytes) else {
            return self.is_data(now, from);
        };
        match &control {
            Control::Verified(message) if is_probe_of(message, self.config.role.other()) => {
                self.handle_probe(now, from, message);
            }
            Control::Verified(_) => {
                self.handle_path_control(now, from, bytes, &control);
            }
            Control::Challenge(_) => {
                if !self.handle_path_control(now, from, bytes, &control) {
                    return self.is_data(now, from);
                }
            }
        }
        self.settle(now);
        false
    }

    /// Takes what the neighbour table has on an address, after [`PeerOutput::LookUp`].
    pub fn handle_neighbour(&mut self, now: Instant, ip: IpAddr, mac: Option<rawr_proto::Mac>) {
        let (Some(mac), Some(token)) = (mac, self.peer_mac) else { return };
        if self.mac_key.matches(&token, mac) {
            return;
        }
        // Another subnet with the same numbers: that host is a stranger.
        self.ways.retain(|way| {
            let is_stranger = way.kind == PathKind::Direct
                && !way.is_confirmed()
                && way.remote().is_some_and(|remote| remote.ip() == ip);
            !is_stranger
        });
        self.neighbours.retain(|address| address.ip() != ip);
        self.settle(now);
    }

    /// To be called once [`Peer::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(exchange) = &mut self.exchange
            && exchange.poll_timeout().is_some_and(|at| at <= now)
        {
            exchange.handle_timeout(now);
        }
        self.ways.iter_mut().for_each(|way| way.handle_timeout(now));
        self.settle(now);
    }

    /// When [`Peer::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let exchange = self.exchange.as_ref().and_then(Exchange::poll_timeout);
        let ways = self.ways.iter().filter_map(Way::poll_timeout);
        ways.chain(exchange).chain([self.settle_at]).min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<PeerOutput> {
        self.outputs.pop_front()
    }

    /// Says whether data takes a path that the peer knows nothing of. Its own is kept open meanwhile, but
    /// not watched closely.
    pub fn rest(&mut self, now: Instant, is_resting: bool) {
        if self.is_resting != is_resting {
            self.is_resting = is_resting;
            let watch = self.active_watch();
            if let Some(way) = self.active_mut() {
                way.set_watch(now, watch);
            }
            self.settle(now);
        }
    }

    /// Releases everything.
    pub fn close(&mut self, now: Instant) {
        self.is_closing = true;
        self.exchange = None;
        self.active = None;
        self.destination = None;
        self.ways.retain(|way| way.attachment().is_some());
        for way in &mut self.ways {
            if let Some(attachment) = way.attachment_mut() {
                attachment.release(now);
            }
        }
        self.settle(now);
    }

    fn start_exchange(&mut self, now: Instant) -> Option<Exchange> {
        let root = self.config.root.clone()?;
        let mac = self.config.interfaces.iter().find_map(|interface| interface.mac);
        let raw_mac = self.config.raw_mac;
        let own_mac = mac.map(|mac| match raw_mac {
            true => MacToken::Raw(mac),
            false => self.mac_key.blind(mac),
        });
        let port = self.config.data_port;
        let addresses: Vec<_> = self
            .config
            .interfaces
            .iter()
            .map(|interface| SocketAddr::new(interface.address, port))
            .collect();
        let sealed = self.config.secret.candidate_key().seal(self.rng.random(), &addresses);
        let config = ExchangeConfig {
            server: root.address,
            key: self.config.secret.key(),
            role: self.config.role,
            epoch: self.config.epoch,
            credentials: root.credentials,
            own_mac,
            candidates: Some(sealed).filter(|_| !addresses.is_empty()),
        };
        Some(Exchange::new(config, self.rng.random(), now))
    }

    /// Anything that comes by a known way is data, and shows that the way is alive.
    fn is_data(&mut self, now: Instant, from: SocketAddr) -> bool {
        if self.destination == Some(from) {
            if let Some(path) = self.active_mut().and_then(Way::path_mut) {
                path.received(now);
            }
            return true;
        }
        self.ways.iter().any(|way| way.remote() == Some(from))
    }

    /// The other peer's Probe, or that of a server on its behalf: answered at once.
    fn handle_probe(&mut self, now: Instant, from: SocketAddr, message: &Message) {
        self.meet(now);
        let bytes = self.identity.answer(message, from);
        self.outputs.push_back(PeerOutput::Transmit { via: Via::Data, to: from, bytes });
        match self.ways.iter_mut().find(|way| way.remote() == Some(from)) {
            Some(way) => {
                if let Some(path) = way.path_mut() {
                    path.handle_peers_probe(now);
                }
            }
            None => self.add_plain(now, from, PathKind::Offered),
        }
    }

    fn handle_path_control(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        control: &Control,
    ) -> bool {
        let mut consumed = false;
        for way in &mut self.ways {
            consumed |= match (&mut way.body, control) {
                (Body::Attached(_, attachment), _) => attachment.handle_data(now, from, bytes),
                (Body::Plain(path), _) if path.remote != from => false,
                (Body::Plain(path), Control::Challenge(message)) => {
                    path.handle_challenge(now, message)
                }
                (Body::Plain(path), Control::Verified(message)) => {
                    path.handle(now, message);
                    true
                }
            };
        }
        consumed
    }

    /// The other peer is there.
    fn meet(&mut self, now: Instant) {
        self.peer_known.get_or_insert(now);
    }

    fn take_card(&mut self, now: Instant, card: &PeerCard) {
        self.meet(now);
        self.peer_mac = card.mac;
        let key = self.config.secret.candidate_key();
        let opened = card.candidates.as_deref().and_then(|sealed| key.open(sealed));
        let addresses = opened.unwrap_or_default();
        self.target_port = addresses.first().map(SocketAddr::port);
        self.neighbours = addresses.into_iter().filter(|it| self.is_neighbour(*it)).collect();
        self.neighbours.truncate(MAX_PLAIN);
        self.try_direct(now);
        let (mac, port) = (self.peer_mac, self.target_port);
        for way in self.ways.iter_mut().filter(|way| way.kind == PathKind::Gateway) {
            if let Some(attachment) = way.attachment_mut() {
                attachment.update_target(now, mac, port);
            }
        }
    }

    fn is_neighbour(&self, address: SocketAddr) -> bool {
        let is_own = |own: &Interface| {
            own.address == address.ip() && address.port() == self.config.data_port
        };
        let interfaces = &self.config.interfaces;
        !interfaces.iter().any(is_own)
            && interfaces.iter().any(|own| own.shares_subnet_with(address.ip()))
    }

    fn try_direct(&mut self, now: Instant) {
        self.retry_direct = None;
        for address in self.neighbours.clone() {
            // The other peer may have been faster: its Probe came before its candidates.
            let offered =
                |way: &&mut Way| way.kind == PathKind::Offered && way.remote() == Some(address);
            match self.ways.iter_mut().find(offered) {
                Some(way) => (way.kind, way.rank) = (PathKind::Direct, Rank::DIRECT),
                None => self.add_plain(now, address, PathKind::Direct),
            }
        }
    }

    fn add_plain(&mut self, now: Instant, remote: SocketAddr, kind: PathKind) {
        let plain = self.ways.iter().filter(|way| way.attachment().is_none());
        let is_known = self.ways.iter().any(|way| way.remote() == Some(remote));
        if self.is_closing || is_known || plain.count() >= MAX_PLAIN {
            return;
        }
        let kind = if self.neighbours.contains(&remote) { PathKind::Direct } else { kind };
        let rank = if kind == PathKind::Direct { Rank::DIRECT } else { Rank::OFFERED };
        let identity = Arc::clone(&self.identity);
        let path = Path::new(identity, remote, Watch::Standby, self.rng.random(), now);
        self.add_way(now, kind, rank, Body::Plain(Box::new(path)));
    }

    fn attach(&mut self, now: Instant, position: usize) {
        let Server { config: server, kind, rank, .. } = &self.servers[position];
        let (kind, rank) = (*kind, *rank);
        let for_gateway = kind == PathKind::Gateway;
        let root = self.config.root.as_ref().map(|root| root.address);
        let config = AttachmentConfig {
            server: server.address,
            key: self.config.secret.key(),
            mac_key: for_gateway.then(|| self.mac_key.clone()),
            role: self.config.role,
            epoch: self.epoch,
            raise_epoch: true,
            credentials: server.credentials.clone(),
            target_mac: self.peer_mac.filter(|_| for_gateway),
            target_port: self.target_port.filter(|_| for_gateway),
            root: root.filter(|_| for_gateway),
            hops: Vec::new(),
            hop_limit: HOP_LIMIT,
            lifetime: self.config.lifetime,
        };
        self.epoch += 1;
        let mut attachment = Attachment::new(config, self.rng.random(), now);
        attachment.set_watch(now, Watch::Standby);
        attachment.start_probing(now);
        self.add_way(now, kind, rank, Body::Attached(position, Box::new(attachment)));
    }

    fn add_way(&mut self, now: Instant, kind: PathKind, rank: Rank, body: Body) {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let (has_worked, retire_at, is_checked) = (false, None, false);
        self.ways.push(Way { id, kind, rank, body, since: now, has_worked, retire_at, is_checked });
    }

    const fn active_watch(&self) -> Watch {
        if self.is_resting { Watch::Standby } else { Watch::Active }
    }

    fn active_mut(&mut self) -> Option<&mut Way> {
        let active = self.active?;
        self.ways.iter_mut().find(|way| way.id == active)
    }

    /// Passes on what exchange, health checks and ways want to have sent or known.
    fn pump(&mut self, now: Instant) {
        let mut cards = Vec::new();
        while let Some(output) = self.exchange.as_mut().and_then(Exchange::poll_output) {
            let root = self.config.root.as_ref().map(|root| root.address);
            match (output, root) {
                (ExchangeOutput::Transmit(bytes), Some(to)) => {
                    self.transmit(Via::Control, to, bytes)
                }
                (ExchangeOutput::Refused(error), Some(server)) => {
                    self.tell(PeerEvent::Refused { server, error });
                }
                (ExchangeOutput::Peer(card), _) => cards.push(card),
                (_, None) => {}
            }
        }
        for card in cards {
            self.take_card(now, &card);
        }
        for i in 0..self.ways.len() {
            self.pump_way(now, i);
        }
    }

    fn pump_way(&mut self, now: Instant, i: usize) {
        let Some(way) = self.ways.get_mut(i) else { return };
        let (position, attachment) = match &mut way.body {
            Body::Attached(position, attachment) => (*position, attachment),
            Body::Plain(path) => {
                if let Some(bytes) = path.poll_transmit(now) {
                    let to = path.remote;
                    self.transmit(Via::Data, to, bytes);
                }
                return;
            }
        };
        let outputs: Vec<_> = std::iter::from_fn(|| attachment.poll_output()).collect();
        self.epoch = self.epoch.max(attachment.epoch() + 1);
        for output in outputs {
            match output {
                AttachmentOutput::Transmit { via, to, bytes } => self.transmit(via, to, bytes),
                AttachmentOutput::Event(AttachmentEvent::Lost(_)) => {
                    self.servers[position].fail(now);
                }
                AttachmentOutput::Event(AttachmentEvent::Refused(error)) => {
                    self.servers[position].fail(now);
                    let server = self.servers[position].config.address;
                    self.tell(PeerEvent::Refused { server, error });
                }
                AttachmentOutput::Event(_) => {}
            }
        }
    }

    fn transmit(&mut self, via: Via, to: SocketAddr, bytes: Vec<u8>) {
        self.outputs.push_back(PeerOutput::Transmit { via, to, bytes });
    }

    fn tell(&mut self, event: PeerEvent) {
        self.outputs.push_back(PeerOutput::Event(event));
    }
}
