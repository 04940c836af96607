//! The server's state machine with allocations in it, fed by clients, peers and strangers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rawr_proto::{ChannelData, Credentials, Datagram, ServerId, classify, parse_stun};
use rawr_userspace::control::{
    AttemptId, Client, Command, ConnectError, ConnectionId, Kind, Now, On, Over, Parity, PortError,
    PortKind, Server, ServerConfig, Source,
};
use rawr_userspace::dataplane::Leg;
use stun_types::attribute::{AttributeType, Nonce, RawAttribute, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
    MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, Method,
};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{
    ALLOCATE, CHANNEL_BIND, CONNECT, CONNECTION_BIND, CREATE_PERMISSION, REFRESH, SEND,
};

use crate::reader::Reader;

const REALM: &str = "rawr";
/// Longer than any allocation lasts that nobody refreshes, with what is left of it.
const LONG: Duration = Duration::from_secs(7_300);
/// Steps of one input.
const STEPS: usize = 64;
/// By how much an answer to somebody unknown may be longer than what was asked, in bytes: the realm,
/// padded, and what a first Allocate is told besides (`control/authenticate.rs`).
const CHALLENGE: usize = 76 + REALM.len();
/// XOR-PEER-ADDRESS.
const PEER: u16 = 0x0012;
/// RESERVATION-TOKEN, CONNECTION-ID and MOBILITY-TICKET, which only the server can make.
const GIVEN: [u16; 3] = [0x0022, 0x002a, 0x8030];
/// In place of a length: the last value of the attribute that the server has given.
const LAST: usize = 0xff;
/// MESSAGE-INTEGRITY, -SHA256 and FINGERPRINT, which the writer computes.
const SIGNATURES: [u16; 3] = [0x0008, 0x001c, 0x8028];
/// Of the methods that a request may have.
const METHODS: [Method; 8] = [
    ALLOCATE,
    REFRESH,
    CREATE_PERMISSION,
    CHANNEL_BIND,
    CONNECT,
    CONNECTION_BIND,
    SEND,
    Method::new(1),
];

/// An input is a sequence of steps: who does what, and with how many of the bytes that follow.
///
/// # Panics
/// The server panics, sends what is no message, forwards one way only, keeps what nobody holds any more,
/// or answers a stranger at length.
pub fn run(input: &[u8]) {
    let mut world = follow(input);
    world.pass(LONG);
    world.assert_empty();
}

fn follow(input: &[u8]) -> World {
    let mut world = World::new();
    let mut reader = Reader(input);
    for _ in 0..STEPS {
        if reader.is_empty() {
            break;
        }
        let kind = reader.byte();
        let length = usize::from(reader.byte());
        world.take(kind, Reader(reader.bytes(length)));
        world.assert_sound();
    }
    world
}

struct User {
    name: &'static str,
    client: Client,
    nonce: String,
}

struct World {
    server: Server,
    now: Now,
    users: Vec<User>,
    open: BTreeSet<SocketAddr>,
    flows: BTreeMap<Leg, Leg>,
    attempts: Vec<(AttemptId, SocketAddr)>,
    next_port: u16,
    next_stream: u64,
    transaction: u128,
    /// The last values of attributes that only the server can make.
    given: BTreeMap<u16, Vec<u8>>,
    /// What went to clients since it was last looked at.
    answers: Vec<(SocketAddr, Vec<u8>)>,
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ours() -> SocketAddr {
    at("198.51.100.1:3478")
}

/// Those that there are; the last is allowed nothing that needs a permission.
fn peers() -> [SocketAddr; 4] {
    ["203.0.113.5:1", "203.0.113.6:2", "[2001:db8:2::5]:3", "127.0.0.1:4"].map(at)
}

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    for name in ["anna", "bert"] {
        let (username, password) = (name.to_owned(), name.to_owned());
        config.users.push(Credentials { username, password });
    }
    config.turn.relay_addresses = vec![ours().ip(), "2001:db8::1".parse().unwrap()];
    config.turn.mobility = true;
    let allowed = ["203.0.113.0/24", "2001:db8:2::/48"];
    config.peers.allow = allowed.map(|net| net.parse().unwrap()).to_vec();
    config
}

impl World {
    /// With an allocation over UDP and one over TCP, each with a channel; the third user has none yet.
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
        let monotonic = std::time::Instant::now();
        let now = Now { monotonic, unix: Duration::from_secs(1_900_000_000) };
        let mut world = Self {
            server: Server::new(config(), [3; 32], now),
            now,
            users: Vec::new(),
            open: BTreeSet::new(),
            flows: BTreeMap::new(),
            attempts: Vec::new(),
            next_port: 50_000,
            next_stream: 1_000,
            transaction: 1,
            given: BTreeMap::new(),
            answers: Vec::new(),
        };
        world.drain();
        let streams = Over::Tcp(ConnectionId(1));
        let clients = [("anna", Over::Udp, 1), ("bert", streams, 2), ("anna", Over::Udp, 3)];
        for (name, over, host) in clients {
            let remote = SocketAddr::from(([192, 0, 2, host], 5_000));
            world.enter(name, Client { local: ours(), remote, over });
        }
        for number in 0..2 {
            let udp = RequestedTransport::new(RequestedTransport::UDP);
            world.signed(number, ALLOCATE, |writer| writer.add_attribute(&udp).unwrap());
            world.signed(number, CHANNEL_BIND, |writer| {
                let peer = XorPeerAddress::new(peers()[0], writer.transaction_id());
                writer.add_attribute(&ChannelNumber::new(0x4000)).unwrap();
                writer.add_attribute(&peer).unwrap();
            });
        }
        assert_eq!(world.server.allocation_count(), 2);
        world
    }

    /// Asks for a nonce.
    fn enter(&mut self, name: &'static str, client: Client) {
        let kind = MessageType::from_class_method(MessageClass::Request, ALLOCATE);
        let mut writer = Message::builder(kind, 1.into(), MessageWriteVec::new());
        let udp = RequestedTransport::new(RequestedTransport::UDP);
        writer.add_attribute(&udp).unwrap();
        let filler = RawAttribute::new(AttributeType::new(0x8022), &[0; 200]);
        writer.add_attribute(&filler).unwrap();
        self.control(&client, &writer.finish());
        let (_, answer) = self.answers.pop().unwrap();
        let answer = Message::from_bytes(&answer).unwrap();
        let nonce = answer.attribute::<Nonce>().unwrap().nonce().to_owned();
        self.users.push(User { name, client, nonce });
    }

    fn take(&mut self, kind: u8, mut reader: Reader<'_>) {
        let number = usize::from(kind >> 4) % self.users.len();
        let client = self.users[number].client;
        match kind & 0x0f {
            0..=3 => self.request(number, reader),
            4 | 5 => self.control(&client, reader.0),
            6 | 7 => self.stranger(reader.0),
            8 | 9 => {
                let relays: Vec<_> = self.open.iter().copied().collect();
                if let Some(relay) = relays.get(usize::from(reader.byte()) % relays.len().max(1)) {
                    let from = reader.pick(&peers());
                    self.server.handle_data(self.now, *relay, from, reader.0);
                    self.drain();
                }
            }
            10 => {
                let data = ChannelData::HEADER;
                let number = 0x4000 + u16::from(reader.byte() % 4);
                let length = reader.0.len() as u16;
                let head = [number.to_be_bytes(), length.to_be_bytes()].concat();
                assert_eq!(head.len(), data);
                self.control(&client, &[&head, reader.0].concat());
            }
            11 => self.pass(Duration::from_secs(reader.word().into())),
            12 => self.connected(reader.byte()),
            13 => self.accepted(&mut reader),
            14 => self.gone(client),
            _ => self.moved(number, reader.byte()),
        }
    }

    /// A request with good credentials and any attributes.
    fn request(&mut self, number: usize, mut reader: Reader<'_>) {
        let method = reader.pick(&METHODS);
        let given = self.given.clone();
        self.signed(number, method, |writer| {
            let transaction = writer.transaction_id();
            while !reader.is_empty() {
                let (kind, length) = (reader.word(), usize::from(reader.byte()));
                // An address takes knowledge of the transaction: it is one of those there are.
                let peer = XorPeerAddress::new(peers()[length % 4], transaction);
                let value = match given.get(&kind) {
                    Some(value) if length == LAST => value,
                    _ if kind == PEER => &[][..],
                    _ => reader.bytes(length),
                };
                // What stands twice, or where it must not, the writer refuses.
                let _ = match kind {
                    PEER => writer.add_attribute(&peer),
                    kind if SIGNATURES.contains(&kind) => continue,
                    _ => writer.add_attribute(&RawAttribute::new(AttributeType::new(kind), value)),
                };
            }
        });
    }

    fn signed(
        &mut self,
        number: usize,
        method: Method,
        attributes: impl FnOnce(&mut MessageWriteVec),
    ) {
        self.transaction += 1;
        let class = if method == SEND { MessageClass::Indication } else { MessageClass::Request };
        let kind = MessageType::from_class_method(class, method);
        let mut writer = Message::builder(kind, self.transaction.into(), MessageWriteVec::new());
        attributes(&mut writer);
        let User { name, client, nonce } = &self.users[number];
        let credentials =
            LongTermKeyCredentials::new((*name).to_owned(), (*name).to_owned(), REALM.to_owned());
        let credentials = MessageIntegrityCredentials::LongTerm(credentials);
        // What the input has brought already is not brought again.
        let _ = writer.add_attribute(&Username::new(name).unwrap());
        let _ = writer.add_attribute(&Realm::new(REALM).unwrap());
        let _ = writer.add_attribute(&Nonce::new(nonce).unwrap());
        if class == MessageClass::Request {
            let _ = writer.add_message_integrity(&credentials, IntegrityAlgorithm::Sha1);
        }
        let client = *client;
        self.control(&client, &writer.finish());
    }

    /// Somebody who has nothing here gets nothing, and no more back than the rules say.
    fn stranger(&mut self, bytes: &[u8]) {
        let client = Client::udp(ours(), at("192.0.2.99:9"));
        let held = (self.server.allocation_count(), self.open.clone());
        self.answers.clear();
        self.control(&client, bytes);
        assert_eq!((self.server.allocation_count(), self.open.clone()), held);
        let answered: usize = self.answers.iter().map(|(_, answer)| answer.len()).sum();
        assert!(self.answers.iter().all(|(to, _)| *to == client.remote), "{:?}", self.answers);
        assert!(answered <= bytes.len() + CHALLENGE, "{answered} bytes for {}", bytes.len());
    }

    fn connected(&mut self, result: u8) {
        let Some((attempt, _)) = self.attempts.pop() else { return };
        self.next_stream += 1;
        let failed = [ConnectError::Failed, ConnectError::Exists];
        let result = match result % 3 {
            0 => Ok(ConnectionId(self.next_stream)),
            other => Err(failed[usize::from(other) - 1]),
        };
        self.server.peer_connected(self.now, attempt, result);
        self.drain();
    }

    fn accepted(&mut self, reader: &mut Reader<'_>) {
        let relays: Vec<_> = self.open.iter().copied().collect();
        let Some(relay) = relays.get(usize::from(reader.byte()) % relays.len().max(1)) else {
            return;
        };
        self.next_stream += 1;
        let (peer, stream) = (reader.pick(&peers()), ConnectionId(self.next_stream));
        self.server.peer_accepted(self.now, *relay, peer, stream);
        self.drain();
    }

    fn gone(&mut self, client: Client) {
        if let Some(connection) = client.connection() {
            self.server.connection_gone(self.now, connection);
            self.drain();
        }
    }

    /// A user goes on from another address, or over another stream.
    fn moved(&mut self, number: usize, host: u8) {
        self.next_stream += 1;
        let name = self.users[number].name;
        let remote = SocketAddr::from(([192, 0, 2, 100 + host % 100], 5_000));
        let over = match host % 2 {
            0 => Over::Udp,
            _ => Over::Tls(ConnectionId(self.next_stream)),
        };
        self.answers.clear();
        self.enter(name, Client { local: ours(), remote, over });
        let user = self.users.pop().unwrap();
        self.users[number] = user;
    }

    fn control(&mut self, client: &Client, bytes: &[u8]) {
        self.server.handle_control(self.now, client, bytes);
        self.drain();
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now.monotonic + span;
        while let Some((at, _)) = self.server.poll_timeout().filter(|(at, _)| *at <= end) {
            self.advance(at.saturating_duration_since(self.now.monotonic));
            self.server.handle_timeout(self.now);
            self.drain();
        }
        self.advance(end - self.now.monotonic);
    }

    fn advance(&mut self, span: Duration) {
        self.now.monotonic += span;
        self.now.unix += span;
    }

    /// Does what the server wants.
    fn drain(&mut self) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { from, to, bytes } => self.transmitted(from, to, bytes),
                Command::OpenPort { id, on, kind } => {
                    let result = self.open_port(on, kind);
                    self.server.port_opened(self.now, id, result);
                }
                Command::ClosePort { local } => {
                    assert!(self.open.remove(&local), "{local} is not open");
                }
                Command::Pair { a, b, .. } => {
                    assert_ne!(a, b);
                    assert!(self.open.contains(&b.local) || b.local == ours(), "{b:?}");
                    self.flows.insert(a, b);
                    self.flows.insert(b, a);
                }
                Command::Unpair { key } => {
                    let legs = self.flows.len();
                    self.flows.retain(|leg, _| leg.key() != key);
                    assert_eq!(self.flows.len() + 1, legs, "{key:?} is not forwarded");
                }
                Command::Connect { attempt, to, .. } => self.attempts.push((attempt, to)),
                Command::Drain { .. }
                | Command::Splice { .. }
                | Command::Close(_)
                | Command::ProbeNeighbours
                | Command::Remember(_)
                | Command::Forget(_) => {}
            }
        }
    }

    /// To clients go messages, to peers anything.
    fn transmitted(&mut self, from: Source, to: SocketAddr, bytes: Vec<u8>) {
        match from {
            Source::Data(local) | Source::DataUnfragmented(local) => {
                assert!(self.open.contains(&local), "{local} is not open");
                assert_ne!(to, peers()[3], "a denied peer");
            }
            Source::Control(_) | Source::Connection(_) | Source::Route => {
                match classify(&bytes) {
                    Datagram::Stun => self.learn(&parse_stun(&bytes).expect("a STUN message")),
                    Datagram::ChannelData => assert!(ChannelData::decode(&bytes).is_some()),
                    Datagram::Other => panic!("{bytes:02x?} is no message"),
                }
                self.answers.push((to, bytes));
            }
        }
    }

    fn learn(&mut self, answer: &Message<'_>) {
        for kind in GIVEN {
            let value = answer.raw_attribute(AttributeType::new(kind));
            if let Some(value) = value.filter(|value| !value.value.is_empty()) {
                self.given.insert(kind, value.value.to_vec());
            }
        }
    }

    fn open_port(&mut self, on: On, kind: PortKind) -> Result<SocketAddr, PortError> {
        let On::Address(ip) = on else { return Err(PortError::Unreachable) };
        let parity = match kind {
            PortKind::Udp(parity) => parity,
            PortKind::Tcp => Parity::Any,
        };
        self.next_port = match parity {
            Parity::Any => self.next_port + 1,
            Parity::Even | Parity::EvenAndNext => (self.next_port + 1).next_multiple_of(2),
        };
        let local = SocketAddr::new(ip, self.next_port);
        self.open.insert(local);
        if parity == Parity::EvenAndNext {
            self.next_port += 1;
            self.open.insert(SocketAddr::new(ip, self.next_port));
        }
        Ok(local)
    }

    fn assert_sound(&self) {
        for (from, to) in &self.flows {
            assert_eq!(self.flows.get(to), Some(from), "one way only");
        }
        let views: Vec<_> = self.server.allocations(self.now).collect();
        let relayed: usize = views.iter().map(|view| view.relayed.len()).sum();
        assert_eq!(self.open.len(), relayed + self.server.reservation_count());
        let known: BTreeSet<IpAddr> = self.open.iter().map(SocketAddr::ip).collect();
        assert!(known.len() <= 2, "{known:?}");
    }

    fn assert_empty(&self) {
        let left = (self.server.allocation_count(), self.server.turn_user_count());
        assert_eq!(left, (0, 0));
        assert!(self.open.is_empty() && self.flows.is_empty(), "{:?}, {:?}", self.open, self.flows);
        assert_eq!(self.server.poll_timeout(), None);
    }
}

/// A step of an input.
fn step(user: u8, kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[user << 4 | kind, bytes.len() as u8][..], bytes].concat()
}

/// Requests of every method, data of every way, and what else happens to clients.
pub fn seeds() -> Vec<Vec<u8>> {
    let udp = [0, 0x00, 0x19, 4, 17, 0, 0, 0];
    let tcp = [0, 0x00, 0x19, 4, 6, 0, 0, 0];
    let even = [&udp[..], &[0x00, 0x18, 1, 0x80]].concat();
    let both = [&udp[..], &[0x80, 0x00, 4, 2, 0, 0, 0]].concat();
    let mobile = [&udp[..], &[0x80, 0x30, 0]].concat();
    let token = [&udp[..], &[0x00, 0x22, 0xff]].concat();
    let ticket = [1, 0x80, 0x30, 0xff];
    let refresh = |seconds: u8| [1, 0x00, 0x0d, 4, 0, 0, 0, seconds];
    let family = [1, 0x00, 0x17, 4, 2, 0, 0, 0];
    let permit = |peer: u8| [2, 0x00, 0x12, peer];
    let bind = |number: u8, peer: u8| [3, 0x00, 0x0c, 4, 0x40, number, 0, 0, 0x00, 0x12, peer];
    let send = [6, 0x00, 0x12, 0, 0x00, 0x13, 4, 1, 2, 3, 4, 0x00, 0x1a, 0];
    let icmp = [&[0, 0][..], b"data for a client"].concat();
    let allocate =
        [&[0, 3, 0, 8, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12], &[0x00, 0x19, 0, 4, 17, 0, 0, 0]]
            .concat();
    let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    vec![
        [step(2, 0, &udp), step(2, 0, &permit(0)), step(2, 0, &send), step(2, 10, b"\0data")]
            .concat(),
        [step(2, 0, &even), step(2, 0, &bind(1, 0)), step(0, 0, &refresh(0)), step(0, 0, &token)]
            .concat(),
        [step(2, 0, &both), step(2, 0, &family), step(2, 0, &bind(2, 2)), step(0, 8, &icmp)]
            .concat(),
        [step(2, 0, &mobile), step(2, 15, &[4]), step(2, 0, &ticket), step(2, 0, &refresh(0))]
            .concat(),
        [step(0, 0, &refresh(0)), step(0, 0, &udp), step(0, 0, &bind(0, 1)), step(0, 8, &icmp)]
            .concat(),
        [step(1, 14, &[]), step(1, 15, &[1]), step(1, 0, &tcp), step(1, 0, &permit(0))].concat(),
        [
            step(1, 15, &[3]),
            step(1, 0, &tcp),
            step(1, 0, &[4, 0x00, 0x12, 0]),
            step(1, 12, &[0]),
            step(1, 13, &[0, 1]),
            step(1, 15, &[1]),
            step(1, 0, &[5, 0x00, 0x2a, 0xff]),
        ]
        .concat(),
        [step(0, 6, &allocate), step(0, 6, &binding), step(0, 4, &binding)].concat(),
        [step(1, 10, b"\0data"), step(1, 4, &[0x40, 0, 0, 9, 1]), step(1, 11, &[2, 88])].concat(),
        [step(0, 0, &bind(0, 3)), step(0, 0, &permit(3)), step(0, 11, &[1, 44])].concat(),
        [step(0, 0, &[7]), step(2, 0, &[7, 0x00, 0x03, 4, 0, 0, 0, 6])].concat(),
    ]
}

#[cfg(test)]
mod tests {
    use rawr_userspace::control::Count;

    use super::*;

    /// A target that is refused everything would find nothing.
    #[test]
    fn seeds_are_granted_what_they_ask_for() {
        let granted = [
            Count::Allocate,
            Count::RefreshAllocation,
            Count::CreatePermission,
            Count::ChannelBind,
            Count::ConnectionBind,
            Count::Connected,
            Count::MovedAllocation,
            Count::RelayedToPeer,
            Count::RelayedToClient,
            Count::Binding,
            Count::PeerDenied,
            Count::NoNonce,
        ];
        let empty = World::new();
        let worlds: Vec<_> = seeds().iter().map(|seed| follow(seed)).collect();
        for count in granted {
            let before = empty.server.counters().get(count);
            let reached = worlds.iter().any(|world| world.server.counters().get(count) > before);
            assert!(reached, "no seed gets as far as {count:?}");
        }
    }
}
