//! One server, spoken to message by message.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rawr_proto::{Credentials, ServerId};
use rawr_userspace::control::{
    AttemptId, Client, Command, ConnectionId, Count, Kind, Now, On, Over, Parity, PortError,
    PortKind, Server, ServerConfig, Snapshot, Source,
};
use rawr_userspace::dataplane::{Leg, RateLimits};
use stun_types::attribute::{
    AttributeStaticType, AttributeType, AttributeWrite, ErrorCode, Nonce, RawAttribute, Realm,
    Username, XorMappedAddress,
};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
    MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, Method, TransactionId,
};
use turn_types::attribute::{
    AddressErrorCode, ChannelNumber, ConnectionId as IdAttribute, Data, Lifetime,
    RequestedTransport, ReservationToken, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND};

pub(crate) const REALM: &str = "rawr";
pub(crate) const MOBILITY_TICKET: AttributeType = AttributeType::new(0x8030);

/// A datagram, or bytes for a stream, that the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) from: Source,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Direct {
    pub(crate) server: Server,
    pub(crate) now: Now,
    /// Data ports that are open.
    pub(crate) open: BTreeSet<SocketAddr>,
    /// What the data plane forwards.
    pub(crate) flows: BTreeMap<Leg, Leg>,
    /// What pairs had to keep within, in the order in which they were made.
    pub(crate) limits: Vec<RateLimits>,
    /// All other commands since they were last looked at.
    pub(crate) commands: Vec<Command>,
    /// TCP connections that are being made.
    pub(crate) attempts: Vec<(AttemptId, SocketAddr, SocketAddr)>,
    /// What opening a port fails with, by the address that it is opened on.
    pub(crate) refused: BTreeMap<IpAddr, PortError>,
    next_port: u16,
    /// Ports that were opened where they are too many to be kept an account of.
    uncounted: Option<u32>,
    transaction: u128,
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The server's STUN address.
pub(crate) fn local() -> SocketAddr {
    at("198.51.100.1:3478")
}

/// A server with two users and an address of each family.
pub(crate) fn config() -> ServerConfig {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    for name in ["anna", "bert"] {
        let (username, password) = (name.to_owned(), format!("{name}'s secret"));
        config.users.push(Credentials { username, password });
    }
    config.turn.relay_addresses = vec![local().ip(), "2001:db8::1".parse().unwrap()];
    config.turn.mobility = true;
    // The documentation's addresses are the peers' here.
    let peers = ["203.0.113.0/24", "192.0.2.0/24", "2001:db8:2::/48"];
    config.peers.allow = peers.map(|net| net.parse().unwrap()).to_vec();
    config
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn origin() -> Now {
    let unix = Duration::from_secs(1_900_000_000);
    Now { monotonic: std::time::Instant::now(), unix }
}

impl Direct {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: ServerConfig) -> Self {
        let now = origin();
        Self::around(Server::new(config, [3; 32], now), now)
    }

    fn around(server: Server, now: Now) -> Self {
        let mut direct = Self {
            server,
            now,
            open: BTreeSet::new(),
            flows: BTreeMap::new(),
            limits: Vec::new(),
            commands: Vec::new(),
            attempts: Vec::new(),
            refused: BTreeMap::new(),
            next_port: 50_000,
            uncounted: None,
            transaction: 1,
        };
        direct.drain();
        direct
    }

    /// From now on no account is kept of ports and flows, which are of as many addresses as it takes.
    pub(crate) fn stop_counting(&mut self) {
        self.uncounted = Some(0);
    }

    /// The daemon ends and another takes over. What its data plane does is what the new server says.
    pub(crate) fn restart(&mut self) {
        let snapshot = serde_json::to_string(&self.server.snapshot(self.now)).unwrap();
        let snapshot: Snapshot = serde_json::from_str(&snapshot).unwrap();
        let config = self.server.config().clone();
        self.server = Server::restore(config, [4; 32], self.now, snapshot).unwrap();
        self.open.clear();
        self.flows.clear();
        self.drain();
    }

    /// Lets time pass, with all that happens in it.
    pub(crate) fn pass(&mut self, span: Duration) -> Vec<Sent> {
        let end = self.now.monotonic + span;
        let mut sent = Vec::new();
        while let Some((at, _)) = self.server.poll_timeout().filter(|(at, _)| *at <= end) {
            self.advance(at.max(self.now.monotonic) - self.now.monotonic);
            self.server.handle_timeout(self.now);
            sent.extend(self.drain());
        }
        self.advance(end - self.now.monotonic);
        sent
    }

    pub(crate) fn advance(&mut self, span: Duration) {
        self.now.monotonic += span;
        self.now.unix += span;
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.server.counters().get(count)
    }

    pub(crate) fn control(&mut self, client: &Client, bytes: &[u8]) -> Vec<Sent> {
        self.server.handle_control(self.now, client, bytes);
        self.drain()
    }

    /// A datagram of a peer comes to a relayed transport address.
    pub(crate) fn data(&mut self, local: SocketAddr, from: SocketAddr, bytes: &[u8]) -> Vec<Sent> {
        self.server.handle_data(self.now, local, from, bytes);
        self.drain()
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.transaction += 1;
        self.transaction.into()
    }

    /// Does what the server wants; what it sends comes back.
    pub(crate) fn drain(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { from, to, bytes } => sent.push(Sent { from, to, bytes }),
                Command::OpenPort { id, on, kind } => {
                    let result = self.open_port(on, kind);
                    self.server.port_opened(self.now, id, result);
                }
                Command::ClosePort { local } => {
                    assert!(self.open.remove(&local), "{local} is not open");
                }
                Command::Pair { .. } if self.uncounted.is_some() => {}
                Command::Pair { a, b, limits } => {
                    self.limits.push(limits);
                    assert_ne!(a, b);
                    self.flows.insert(a, b);
                    self.flows.insert(b, a);
                }
                Command::Unpair { .. } if self.uncounted.is_some() => {}
                Command::Unpair { key } => {
                    let legs = self.flows.len();
                    self.flows.retain(|leg, _| leg.key() != key);
                    assert_eq!(self.flows.len() + 1, legs, "{key:?} is not forwarded");
                }
                Command::Connect { attempt, local, to } => self.attempts.push((attempt, local, to)),
                other => self.commands.push(other),
            }
        }
        sent
    }

    fn open_port(&mut self, on: On, kind: PortKind) -> Result<SocketAddr, PortError> {
        let ip = match on {
            On::Exactly(local) => {
                self.open.insert(local);
                return Ok(local);
            }
            On::Address(ip) => ip,
            On::Toward(remote) => panic!("nothing is opened towards {remote}"),
        };
        if let Some(error) = self.refused.get(&ip) {
            return Err(*error);
        }
        let parity = match kind {
            PortKind::Udp(parity) => parity,
            PortKind::Tcp => Parity::Any,
        };
        self.next_port += 1;
        if parity != Parity::Any {
            self.next_port = self.next_port.next_multiple_of(2);
        }
        if let Some(opened) = &mut self.uncounted {
            *opened += 1;
            let [_, a, b, c] = (*opened / 8_000).to_be_bytes();
            return Ok(SocketAddr::from(([10, a, b, c], 50_000 + (*opened % 8_000) as u16)));
        }
        let local = SocketAddr::new(ip, self.next_port);
        self.open.insert(local);
        if parity == Parity::EvenAndNext {
            self.next_port += 1;
            self.open.insert(SocketAddr::new(ip, self.next_port));
        }
        Ok(local)
    }
}

/// A client of the server, message by message.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) client: Client,
    pub(crate) nonce: Option<String>,
    pub(crate) algorithm: IntegrityAlgorithm,
}

impl User {
    pub(crate) fn new(name: &str, client: Client) -> Self {
        let (name, password) = (name.to_owned(), format!("{name}'s secret"));
        Self { name, password, client, nonce: None, algorithm: IntegrityAlgorithm::Sha1 }
    }

    /// anna, over UDP.
    pub(crate) fn anna(remote: &str) -> Self {
        Self::new("anna", Client::udp(local(), at(remote)))
    }

    pub(crate) fn bert(remote: &str) -> Self {
        Self::new("bert", Client::udp(local(), at(remote)))
    }

    /// anna, over TCP.
    pub(crate) fn stream(number: u64, remote: &str) -> Self {
        let over = Over::Tcp(ConnectionId(number));
        Self::new("anna", Client { local: local(), remote: at(remote), over })
    }

    /// The bytes of a signed request.
    pub(crate) fn sign(
        &self,
        method: Method,
        transaction: TransactionId,
        attributes: &[&dyn AttributeWrite],
    ) -> Vec<u8> {
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let mut writer = Message::builder(kind, transaction, MessageWriteVec::new());
        attributes.iter().for_each(|attribute| writer.add_attribute(*attribute).unwrap());
        writer.add_attribute(&Username::new(&self.name).unwrap()).unwrap();
        writer.add_attribute(&Realm::new(REALM).unwrap()).unwrap();
        let nonce = self.nonce.as_deref().unwrap_or("none");
        writer.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
        let (name, password) = (self.name.clone(), self.password.clone());
        let credentials = LongTermKeyCredentials::new(name, password, REALM.to_owned());
        let credentials = MessageIntegrityCredentials::LongTerm(credentials);
        writer.add_message_integrity(&credentials, self.algorithm).unwrap();
        writer.finish()
    }

    /// Whether an answer is signed for this user.
    fn trusts(&self, answer: &Answer) -> bool {
        let (name, password) = (self.name.clone(), self.password.clone());
        let credentials = LongTermKeyCredentials::new(name, password, REALM.to_owned());
        let credentials = MessageIntegrityCredentials::LongTerm(credentials);
        answer.message().validate_integrity(&credentials).is_ok()
    }

    pub(crate) fn source(&self) -> Source {
        match self.client.connection() {
            None => Source::Control(self.client.local),
            Some(connection) => Source::Connection(connection),
        }
    }
}

/// A STUN message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    pub(crate) fn message(&self) -> Message<'_> {
        Message::from_bytes(&self.0).unwrap()
    }

    /// The number of ERROR-CODE; `None` for a success.
    pub(crate) fn error(&self) -> Option<u16> {
        match self.message().class() {
            MessageClass::Error => Some(self.message().attribute::<ErrorCode>().unwrap().code()),
            _ => None,
        }
    }

    pub(crate) fn relayed(&self) -> Vec<SocketAddr> {
        let message = self.message();
        let transaction = message.transaction_id();
        let relayed = (0..2).map_while(|n| message.nth_attribute::<XorRelayedAddress>(n).ok());
        relayed.map(|relayed| relayed.addr(transaction)).collect()
    }

    pub(crate) fn mapped(&self) -> SocketAddr {
        let message = self.message();
        message.attribute::<XorMappedAddress>().unwrap().addr(message.transaction_id())
    }

    pub(crate) fn lifetime(&self) -> Option<u32> {
        self.message().attribute::<Lifetime>().ok().map(|it| it.seconds())
    }

    pub(crate) fn token(&self) -> Option<u64> {
        self.message().attribute::<ReservationToken>().ok().map(|it| it.token())
    }

    pub(crate) fn connection(&self) -> Option<u32> {
        self.message().attribute::<IdAttribute>().ok().map(|it| it.id())
    }

    pub(crate) fn ticket(&self) -> Option<Vec<u8>> {
        self.message().raw_attribute(MOBILITY_TICKET).map(|raw| raw.value.to_vec())
    }

    pub(crate) fn nonce(&self) -> Option<String> {
        self.message().attribute::<Nonce>().ok().map(|it| it.nonce().to_owned())
    }

    pub(crate) fn family_error(&self) -> Option<(stun_types::AddressFamily, u16)> {
        let error = self.message().attribute::<AddressErrorCode>().ok()?;
        Some((error.family(), error.error().code()))
    }

    /// Peer and data of a Data indication.
    pub(crate) fn data(&self) -> Option<(SocketAddr, Vec<u8>)> {
        let message = self.message();
        let is_data = message.class() == MessageClass::Indication && message.method() == DATA;
        let peer = message.attribute::<XorPeerAddress>().ok().filter(|_| is_data)?;
        let data = message.attribute::<Data<'_>>().ok()?;
        Some((peer.addr(message.transaction_id()), data.data().to_vec()))
    }
}

/// The only thing that was sent, if anything was.
pub(crate) fn only(sent: Vec<Sent>) -> Option<Sent> {
    assert!(sent.len() <= 1, "{sent:?}");
    sent.into_iter().next()
}

impl Direct {
    /// Asks with a good nonce. `None` where nothing comes back at once.
    pub(crate) fn try_ask(
        &mut self,
        user: &mut User,
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> Option<Answer> {
        if user.nonce.is_none() {
            user.nonce = Some(self.nonce(&user.client));
        }
        let transaction = self.transaction();
        let answer = self.exchange(user, method, transaction, attributes)?;
        if answer.error() != Some(438) {
            return Some(answer);
        }
        user.nonce = answer.nonce();
        self.exchange(user, method, transaction, attributes)
    }

    /// Asks once, with the nonce that is there.
    pub(crate) fn exchange(
        &mut self,
        user: &User,
        method: Method,
        transaction: TransactionId,
        attributes: &[&dyn AttributeWrite],
    ) -> Option<Answer> {
        let bytes = user.sign(method, transaction, attributes);
        let mut sent = self.control(&user.client, &bytes);
        sent.retain(|sent| sent.to == user.client.remote && sent.from == user.source());
        let answer = Answer(only(sent)?.bytes);
        assert_eq!(answer.message().transaction_id(), transaction);
        assert_eq!(answer.message().method(), method);
        if !matches!(answer.error(), Some(401 | 438)) {
            assert!(user.trusts(&answer), "an answer without integrity");
        }
        Some(answer)
    }

    pub(crate) fn ask(
        &mut self,
        user: &mut User,
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> Answer {
        self.try_ask(user, method, attributes).expect("an answer")
    }

    /// A nonce for this client.
    pub(crate) fn nonce(&mut self, client: &Client) -> String {
        let kind = MessageType::from_class_method(MessageClass::Request, ALLOCATE);
        let mut writer = Message::builder(kind, self.transaction(), MessageWriteVec::new());
        writer.add_attribute(&RequestedTransport::new(RequestedTransport::UDP)).unwrap();
        // As long as the answer, so that it gets one whatever the rules of the server are.
        writer.add_attribute(&RawAttribute::new(AttributeType::new(0x8022), &[b'x'; 200])).unwrap();
        let sent = self.control(client, &writer.finish());
        let answer = Answer(only(sent).expect("a challenge").bytes);
        assert_eq!(answer.error(), Some(401));
        answer.nonce().unwrap()
    }

    /// Allocates; attributes beside REQUESTED-TRANSPORT are the caller's.
    pub(crate) fn allocate_with(
        &mut self,
        user: &mut User,
        attributes: &[&dyn AttributeWrite],
    ) -> Answer {
        let transport = RequestedTransport::new(RequestedTransport::UDP);
        let mut all: Vec<&dyn AttributeWrite> = vec![&transport];
        all.extend_from_slice(attributes);
        self.ask(user, ALLOCATE, &all)
    }

    /// Allocates; returns the relayed transport address.
    pub(crate) fn allocate(&mut self, user: &mut User) -> SocketAddr {
        let answer = self.allocate_with(user, &[]);
        assert_eq!(answer.error(), None);
        answer.relayed()[0]
    }

    pub(crate) fn refresh(&mut self, user: &mut User, seconds: u32) -> Answer {
        self.ask(user, REFRESH, &[&Lifetime::new(seconds)])
    }

    /// Asks for a permission; returns the error.
    pub(crate) fn permit(&mut self, user: &mut User, peer: SocketAddr) -> Option<u16> {
        self.permit_all(user, &[peer])
    }

    pub(crate) fn permit_all(&mut self, user: &mut User, peers: &[SocketAddr]) -> Option<u16> {
        self.permit_answer(user, peers).error()
    }

    pub(crate) fn permit_answer(&mut self, user: &mut User, peers: &[SocketAddr]) -> Answer {
        // The peers' form depends on the transaction, which is the next.
        let transaction = (self.transaction + 1 + u128::from(user.nonce.is_none())).into();
        let peers: Vec<_> =
            peers.iter().map(|peer| XorPeerAddress::new(*peer, transaction)).collect();
        let peers: Vec<&dyn AttributeWrite> = peers.iter().map(|it| it as _).collect();
        self.ask(user, CREATE_PERMISSION, &peers)
    }

    /// Binds a channel; returns the error.
    pub(crate) fn bind(&mut self, user: &mut User, number: u16, peer: SocketAddr) -> Option<u16> {
        let transaction = (self.transaction + 1 + u128::from(user.nonce.is_none())).into();
        let peer = XorPeerAddress::new(peer, transaction);
        self.ask(user, CHANNEL_BIND, &[&ChannelNumber::new(number), &peer]).error()
    }

    /// Names a peer in a request that is made next.
    pub(crate) fn peer(&self, user: &User, peer: SocketAddr) -> XorPeerAddress {
        let transaction = self.transaction + 1 + u128::from(user.nonce.is_none());
        XorPeerAddress::new(peer, transaction.into())
    }

    /// A Send indication.
    pub(crate) fn send(&mut self, user: &User, peer: SocketAddr, data: &[u8]) -> Vec<Sent> {
        self.send_with(user, peer, data, &[])
    }

    pub(crate) fn send_with(
        &mut self,
        user: &User,
        peer: SocketAddr,
        data: &[u8],
        attributes: &[&dyn AttributeWrite],
    ) -> Vec<Sent> {
        let kind = MessageType::from_class_method(MessageClass::Indication, SEND);
        let transaction = self.transaction();
        let mut writer = Message::builder(kind, transaction, MessageWriteVec::new());
        writer.add_attribute(&XorPeerAddress::new(peer, transaction)).unwrap();
        writer.add_attribute(&Data::new(data)).unwrap();
        attributes.iter().for_each(|attribute| writer.add_attribute(*attribute).unwrap());
        self.control(&user.client, &writer.finish())
    }

    /// Data on a channel.
    pub(crate) fn channel(&mut self, user: &User, number: u16, data: &[u8]) -> Vec<Sent> {
        self.control(&user.client, &channel_data(number, data))
    }
}

pub(crate) fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    [&number.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// Whether `attribute` is of this type, to make sure that a test asks for what it says.
pub(crate) fn has<A: AttributeStaticType>(answer: &Answer) -> bool {
    answer.message().has_attribute(A::TYPE)
}
