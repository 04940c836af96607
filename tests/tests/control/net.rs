//! A network in memory: servers with a data plane, clients behind NATs, and a clock that jumps.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_nat::{
    Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, Peer, PeerEvent, PeerOutput,
    Via,
};
use rawr_proto::{
    Attributes, Class, IntegrityKey, LegState, Message, Method, Role, SessionSecret, decode, peek,
};
use rawr_userspace::control::{self, Command, Now, On, PortError, Server, ServerConfig, Source};
use rawr_userspace::dataplane::Leg;

/// What one link takes.
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

pub(crate) const STUN: u16 = 3478;

/// Everything there is. Addresses are unique, whatever subnet they are of.
pub(crate) struct Net {
    pub(crate) now: Instant,
    origin: Instant,
    queue: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    /// Everything that was sent.
    pub(crate) tap: Vec<Datagram>,
    /// Whether every Status is lost.
    pub(crate) loses_status: bool,
    pub(crate) servers: Vec<Node>,
    pub(crate) clients: Vec<Client>,
}

#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// A server and what its shell would do for it.
pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) ip: IpAddr,
    pub(crate) is_up: bool,
    pub(crate) flows: HashMap<SocketAddr, (SocketAddr, Leg)>,
    pub(crate) ports: HashMap<SocketAddr, u64>,
    /// Data ports that can be opened.
    pub(crate) port_limit: usize,
    next_port: u16,
    /// Datagrams that the data plane forwarded.
    pub(crate) forwarded: u64,
    pub(crate) sweeps: u64,
}

/// A peer with one data socket and one control socket, and any number of attachments.
pub(crate) struct Client {
    pub(crate) ip: IpAddr,
    pub(crate) nat: Option<Nat>,
    pub(crate) key: rawr_proto::SessionKey,
    pub(crate) role: Role,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) events: Vec<AttachmentEvent>,
    pub(crate) received: Vec<(SocketAddr, Vec<u8>)>,
    /// Where it sends its data.
    pub(crate) path: Option<SocketAddr>,
    /// Addresses whose Probes it answers as a path that was offered to it.
    pub(crate) offers: Vec<SocketAddr>,
    pub(crate) is_up: bool,
    /// The library's own, in place of bare attachments.
    pub(crate) peer: Option<Peer>,
    pub(crate) peer_events: Vec<PeerEvent>,
}

pub(crate) const CONTROL_PORT: u16 = 5000;
pub(crate) const DATA_PORT: u16 = 6000;

/// A NAT with address- and port-dependent mapping and filtering (RFC 4787), i.e. a symmetric one.
pub(crate) struct Nat {
    outside: IpAddr,
    mappings: HashMap<(SocketAddr, SocketAddr), u16>,
    next: u16,
}

impl Nat {
    pub(crate) fn new(outside: &str) -> Self {
        Self { outside: ip(outside), mappings: HashMap::new(), next: 20_000 }
    }

    /// Forgets everything, as if it had been restarted.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.next += 500;
    }

    fn out(&mut self, inside: SocketAddr, to: SocketAddr) -> SocketAddr {
        let port = *self.mappings.entry((inside, to)).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        SocketAddr::new(self.outside, port)
    }

    fn back(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let is_it = |((_, remote), port): &(&(SocketAddr, SocketAddr), &u16)| {
            *remote == from && **port == to.port()
        };
        self.mappings.iter().find(is_it).map(|((inside, _), _)| *inside)
    }
}

impl Net {
    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let (servers, clients) = (Vec::new(), Vec::new());
        Self {
            now,
            origin: now,
            queue: BTreeMap::new(),
            sent: 0,
            tap: Vec::new(),
            loses_status: false,
            servers,
            clients,
        }
    }

    pub(crate) fn clock(&self) -> Now {
        let unix = Duration::from_secs(1_700_000_000) + (self.now - self.origin);
        Now { monotonic: self.now, unix }
    }

    pub(crate) fn add_server(&mut self, address: &str, config: ServerConfig) -> usize {
        let server = Server::new(config, [self.servers.len() as u8; 32], self.clock());
        self.servers.push(Node {
            server,
            ip: ip(address),
            is_up: true,
            flows: HashMap::new(),
            ports: HashMap::new(),
            port_limit: usize::MAX,
            next_port: 40_000,
            forwarded: 0,
            sweeps: 0,
        });
        self.servers.len() - 1
    }

    pub(crate) fn add_client(
        &mut self,
        address: &str,
        secret: &SessionSecret,
        role: Role,
    ) -> usize {
        self.clients.push(Client {
            ip: ip(address),
            nat: None,
            key: secret.key(),
            role,
            attachments: Vec::new(),
            events: Vec::new(),
            received: Vec::new(),
            path: None,
            offers: Vec::new(),
            is_up: true,
            peer: None,
            peer_events: Vec::new(),
        });
        self.clients.len() - 1
    }

    pub(crate) fn stun(&self, server: usize) -> SocketAddr {
        SocketAddr::new(self.servers[server].ip, STUN)
    }

    /// What a client's Connect to `server` says at least.
    pub(crate) fn config(&self, client: usize, server: usize, epoch: u64) -> AttachmentConfig {
        AttachmentConfig {
            server: self.stun(server),
            key: self.clients[client].key.clone(),
            mac_key: None,
            role: self.clients[client].role,
            epoch,
            raise_epoch: true,
            credentials: None,
            target_mac: None,
            target_port: None,
            root: None,
            hops: Vec::new(),
            hop_limit: 8,
            lifetime: 120,
        }
    }

    pub(crate) fn attach(&mut self, client: usize, config: AttachmentConfig) -> usize {
        let mut attachment = Attachment::new(config, self.sent + client as u64, self.now);
        attachment.start_probing(self.now);
        self.clients[client].attachments.push(attachment);
        self.drain_client(client);
        self.clients[client].attachments.len() - 1
    }

    /// Sends application data over the client's path.
    pub(crate) fn send(&mut self, client: usize, bytes: &[u8]) {
        let Client { peer, path, .. } = &self.clients[client];
        let Some(to) = peer.as_ref().map_or(*path, Peer::destination) else { return };
        let from = SocketAddr::new(self.clients[client].ip, DATA_PORT);
        self.post_from_client(client, from, to, bytes.to_vec());
    }

    pub(crate) fn post(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.sent += 1;
        let datagram = Datagram { from, to, bytes };
        self.tap.push(datagram.clone());
        if self.loses_status && is_status(&datagram) {
            return;
        }
        self.queue.insert((self.now + LATENCY, self.sent), datagram);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..1_000_000 {
            let Some(next) = self.next_event().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.step();
        }
        panic!("the network does not come to rest");
    }

    fn next_event(&self) -> Option<Instant> {
        let queue = self.queue.first_key_value().map(|((at, _), _)| *at);
        let servers = self.servers.iter().filter(|node| node.is_up);
        let servers = servers.filter_map(|node| node.server.poll_timeout().map(|(at, _)| at));
        let clients = self.clients.iter().filter(|client| client.is_up);
        let peers = clients.clone().filter_map(|client| client.peer.as_ref()?.poll_timeout());
        let attachments = clients.flat_map(|client| &client.attachments);
        let attachments = attachments.filter_map(Attachment::poll_timeout);
        queue.into_iter().chain(servers).chain(peers).chain(attachments).min()
    }

    fn step(&mut self) {
        while let Some(entry) = self.queue.first_entry().filter(|it| it.key().0 <= self.now) {
            let datagram = entry.remove();
            self.deliver(datagram);
        }
        let clock = self.clock();
        for number in 0..self.servers.len() {
            let node = &mut self.servers[number];
            if node.is_up && node.server.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                node.server.handle_timeout(clock);
                self.drain_server(number);
            }
        }
        for number in 0..self.clients.len() {
            if !self.clients[number].is_up {
                continue;
            }
            if let Some(peer) = &mut self.clients[number].peer
                && peer.poll_timeout().is_some_and(|at| at <= self.now)
            {
                peer.handle_timeout(self.now);
            }
            for attachment in &mut self.clients[number].attachments {
                if attachment.poll_timeout().is_some_and(|at| at <= self.now) {
                    attachment.handle_timeout(self.now);
                }
            }
            self.drain_client(number);
        }
    }

    fn deliver(&mut self, datagram: Datagram) {
        let Datagram { from, mut to, bytes } = datagram;
        if let Some(number) = self.servers.iter().position(|node| node.ip == to.ip()) {
            if self.servers[number].is_up {
                self.deliver_to_server(number, from, to, &bytes);
            }
            return;
        }
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            if let Some(nat) = client.nat.as_ref().filter(|nat| nat.outside == to.ip()) {
                let Some(inside) = nat.back(from, to) else { continue };
                to = inside;
            }
            if self.clients[number].ip == to.ip() && self.clients[number].is_up {
                self.deliver_to_client(number, from, to, &bytes);
                return;
            }
        }
    }

    pub(crate) fn deliver_to_server(
        &mut self,
        number: usize,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) {
        let clock = self.clock();
        let node = &mut self.servers[number];
        if to.port() == STUN {
            node.server.handle_control(clock, &control::Client::udp(to, from), bytes);
        } else if let Some((remote, out)) =
            node.flows.get(&to).filter(|(remote, _)| *remote == from)
        {
            assert_eq!(*remote, from);
            let out = *out;
            node.forwarded += 1;
            self.post(out.local, out.remote, bytes.to_vec());
            return;
        } else if node.ports.contains_key(&to) {
            node.server.handle_data(clock, to, from, bytes);
        }
        self.drain_server(number);
    }

    pub(crate) fn drain_server(&mut self, number: usize) {
        while let Some(command) = self.servers[number].server.poll_command() {
            self.obey(number, command);
        }
    }

    fn obey(&mut self, number: usize, command: Command) {
        let clock = self.clock();
        let node = &mut self.servers[number];
        match command {
            Command::Transmit { from, to, bytes } => {
                let from = match from {
                    Source::Control(local)
                    | Source::Data(local)
                    | Source::DataUnfragmented(local) => local,
                    Source::Route => SocketAddr::new(node.ip, STUN),
                    Source::Connection(_) => panic!("no streams here"),
                };
                assert!(from.port() == STUN || node.ports.contains_key(&from), "closed: {from}");
                self.post(from, to, bytes);
            }
            Command::OpenPort { id, on, .. } => {
                let result = node.open(on);
                node.server.port_opened(clock, id, result);
            }
            Command::ClosePort { local } => {
                assert!(node.ports.remove(&local).is_some(), "closed twice: {local}");
                node.flows.remove(&local);
                node.flows.retain(|_, (_, out)| out.local != local);
            }
            Command::Pair { a, b, .. } => {
                for (from, to) in [(a, b), (b, a)] {
                    assert!(node.ports.contains_key(&from.local), "pair of a closed port");
                    node.flows.insert(from.local, (from.remote, to));
                }
            }
            Command::Drain { from, to, .. } => {
                assert!(node.ports.contains_key(&from.local) && node.ports.contains_key(&to.local));
                node.flows.insert(from.local, (from.remote, to));
            }
            Command::Unpair { key } => {
                node.flows.remove(&key.local());
            }
            Command::ProbeNeighbours => node.sweeps += 1,
            Command::Connect { .. } | Command::Splice { .. } | Command::Close(_) => {
                panic!("no streams here")
            }
            Command::Remember(_) | Command::Forget(_) => panic!("no names here"),
        }
    }

    fn deliver_to_client(&mut self, number: usize, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        let client = &mut self.clients[number];
        let is_control = to.port() == CONTROL_PORT;
        if let Some(peer) = &mut client.peer {
            if is_control {
                peer.handle_control(now, from, bytes);
            } else if peer.handle_data(now, from, bytes) {
                client.received.push((from, bytes.to_vec()));
            }
            self.drain_client(number);
            return;
        }
        let taken = client.attachments.iter_mut().any(|attachment| match is_control {
            true => attachment.handle_control(now, from, bytes),
            false => attachment.handle_data(now, from, bytes),
        });
        if !is_control && !taken {
            match client.answer(from, bytes) {
                Some(answer) => self.post_from_client(number, to, from, answer),
                None if decode(bytes).is_ok() => {}
                None => client.received.push((from, bytes.to_vec())),
            }
        }
        self.drain_client(number);
    }

    pub(crate) fn drain_client(&mut self, number: usize) {
        while let Some(peer) = &mut self.clients[number].peer
            && let Some(output) = peer.poll_output()
        {
            match output {
                PeerOutput::Transmit { via, to, bytes } => {
                    self.post_from_client(number, socket(&self.clients[number], via), to, bytes);
                }
                PeerOutput::Event(event) => self.clients[number].peer_events.push(event),
                PeerOutput::LookUp(_) => {}
            }
        }
        for at in 0..self.clients[number].attachments.len() {
            while let Some(output) = self.clients[number].attachments[at].poll_output() {
                match output {
                    AttachmentOutput::Transmit { via, to, bytes } => {
                        let from = socket(&self.clients[number], via);
                        self.post_from_client(number, from, to, bytes);
                    }
                    AttachmentOutput::Event(event) => self.clients[number].events.push(event),
                }
            }
        }
    }

    fn post_from_client(
        &mut self,
        number: usize,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) {
        let client = &mut self.clients[number];
        if !client.is_up {
            return;
        }
        let from = client.nat.as_mut().map_or(from, |nat| nat.out(from, to));
        self.post(from, to, bytes);
    }
}

impl Node {
    fn open(&mut self, on: On) -> Result<SocketAddr, PortError> {
        if self.ports.len() >= self.port_limit {
            return Err(PortError::Exhausted);
        }
        let local = match on {
            On::Address(address) => {
                assert_eq!(address, self.ip);
                self.next()
            }
            On::Toward(_) => self.next(),
            On::Exactly(local) => local,
        };
        self.ports.insert(local, 0);
        Ok(local)
    }

    fn next(&mut self) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::new(self.ip, self.next_port)
    }
}

impl Client {
    /// The answer to the other peer's Probe.
    fn answer(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let key = IntegrityKey::session(&self.key);
        let decoded = decode(bytes).ok().filter(|decoded| decoded.verify(&key))?;
        let a = &decoded.message.attributes;
        let is_probe = (decoded.message.class, decoded.message.method)
            == (Class::Request, Method::Probe)
            && a.session == Some(self.key.id())
            && a.role == Some(self.role.other());
        if !is_probe {
            return None;
        }
        self.offers.push(from);
        let attributes = Attributes {
            session: Some(self.key.id()),
            leg_state: Some(LegState::Peer),
            mapped: Some(from),
            ..Attributes::default()
        };
        Some(Message::success(decoded.message.head(), attributes).encode(Some(&key)))
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.events.iter().any(|event| matches!(event, AttachmentEvent::Confirmed { .. }))
    }

    /// Sends over an attachment from now on.
    pub(crate) fn use_attachment(&mut self, number: usize) {
        self.path = self.attachments[number].data_address();
        assert!(self.path.is_some(), "no data address");
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.received.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into()).collect()
    }
}

pub(crate) fn is_status(datagram: &Datagram) -> bool {
    peek(&datagram.bytes) == Some((Class::Indication, Method::Status))
}

fn socket(client: &Client, via: Via) -> SocketAddr {
    SocketAddr::new(client.ip, if via == Via::Control { CONTROL_PORT } else { DATA_PORT })
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
