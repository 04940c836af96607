//! One server, spoken to message by message.

use std::net::SocketAddr;
use std::time::Duration;

use rawr_nat::{Identity, PublicKey};
use rawr_proto::{
    Attributes, BridgeAttributes, BridgeKey, Class, Credentials, ErrorCode, IntegrityKey,
    IntroductionId, MIN_FIRST_BRIDGE_REQUEST, Message, Method, TransactionId, decode,
};
use rawr_userspace::control::{Client, Command, Now, Server, ServerConfig, Source};

use super::name;

pub(crate) struct Direct {
    pub(crate) server: Server,
    pub(crate) now: Now,
    /// What was sent to others than who asked.
    pub(crate) told: Vec<Sent>,
    /// All other commands.
    pub(crate) commands: Vec<Command>,
    /// Length of the last request.
    pub(crate) asked: usize,
    transaction: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) from: Source,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn local() -> SocketAddr {
    at("198.51.100.1:3478")
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
pub(crate) fn origin() -> Now {
    let unix = Duration::from_secs(1_900_000_000);
    Now { monotonic: std::time::Instant::now(), unix }
}

impl Direct {
    pub(crate) fn new(config: ServerConfig) -> Self {
        let now = origin();
        let server = Server::new(config, [3; 32], now);
        let (told, commands) = (Vec::new(), Vec::new());
        let mut direct = Self { server, now, told, commands, asked: 0, transaction: 0 };
        direct.drain();
        direct
    }

    pub(crate) fn advance(&mut self, span: Duration) {
        self.now.monotonic += span;
        self.now.unix += span;
    }

    /// Lets time pass, with all that happens in it.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now.monotonic + span;
        while let Some((at, _)) = self.server.poll_timeout().filter(|(at, _)| *at <= end) {
            self.advance(at.saturating_duration_since(self.now.monotonic));
            self.server.handle_timeout(self.now);
            let sent = self.drain();
            self.told.extend(sent);
        }
        self.advance(end - self.now.monotonic);
    }

    pub(crate) fn control(&mut self, client: &Client, bytes: &[u8]) -> Vec<Sent> {
        self.asked = bytes.len();
        self.server.handle_control(self.now, client, bytes);
        self.drain()
    }

    pub(crate) fn message(&mut self, method: Method, attributes: Attributes) -> Message {
        self.transaction += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        Message::request(method, TransactionId(id), attributes)
    }

    /// What a client without a nonce is answered.
    pub(crate) fn challenge(&mut self, client: &Client, method: Method) -> Attributes {
        let message = self.message(method, Attributes::default());
        let sent = self.control(client, &message.encode_padded(None, MIN_FIRST_BRIDGE_REQUEST));
        let answer = decode(&sent[0].bytes).unwrap().message;
        assert_eq!(answer.attributes.error, Some(ErrorCode::Unauthenticated));
        answer.attributes
    }

    /// Asks as the library does; the answer, if there is one.
    pub(crate) fn ask_as(
        &mut self,
        client: &Client,
        who: &Identity,
        credentials: Option<&Credentials>,
        method: Method,
        mut attributes: Attributes,
    ) -> Option<Message> {
        let challenge = self.challenge(client, method);
        let server = challenge.bridge.server_key.expect("a server that offers Bridge");
        let key = agree(who, server);
        attributes.nonce = challenge.nonce;
        attributes.bridge.public_key = Some(*who.public().as_bytes());
        let mut integrity = IntegrityKey::bridge(&key);
        if let Some(credentials) = credentials {
            let realm = challenge.realm.unwrap_or_else(|| "rawr".to_owned());
            integrity = IntegrityKey::bridge_credentialed(&credentials.key(&realm), &key);
            attributes.username = Some(credentials.username.clone());
            attributes.realm = Some(realm);
        }
        let message = self.message(method, attributes);
        self.send(client, &message, &integrity)
    }

    /// Sends a request. Its answer has to be signed unless it is an error.
    pub(crate) fn send(
        &mut self,
        client: &Client,
        message: &Message,
        integrity: &IntegrityKey,
    ) -> Option<Message> {
        let sent = self.control(client, &message.encode(Some(integrity)));
        let is_answer = |sent: &Sent| {
            let decoded = decode(&sent.bytes).unwrap().message;
            decoded.transaction == message.transaction && decoded.class != Class::Indication
        };
        let (mut answers, told): (Vec<_>, Vec<_>) = sent.into_iter().partition(is_answer);
        self.told.extend(told);
        assert!(answers.len() <= 1);
        let answer = answers.pop()?;
        assert_eq!(answer.to, client.remote);
        let decoded = decode(&answer.bytes).unwrap();
        let signed = decoded.verify(integrity);
        assert!(signed || decoded.message.class == Class::Error, "a success without integrity");
        Some(decoded.message)
    }

    pub(crate) fn ask(
        &mut self,
        from: &str,
        who: &Identity,
        method: Method,
        attributes: Attributes,
    ) -> Result<Attributes, ErrorCode> {
        let client = Client::udp(local(), at(from));
        let answer = self.ask_as(&client, who, None, method, attributes).expect("an answer");
        result(answer)
    }

    /// Registers a name; the lifetime that it gets.
    pub(crate) fn register(
        &mut self,
        from: &str,
        who: &Identity,
        text: &str,
    ) -> Result<Duration, ErrorCode> {
        self.register_with(from, who, text, 1, None)
    }

    pub(crate) fn register_with(
        &mut self,
        from: &str,
        who: &Identity,
        text: &str,
        epoch: u64,
        lifetime: Option<u32>,
    ) -> Result<Duration, ErrorCode> {
        let granted = self.ask(from, who, Method::Register, registration(text, epoch, lifetime))?;
        assert_eq!(granted.mapped, Some(at(from)));
        Ok(Duration::from_secs(granted.lifetime.unwrap().into()))
    }

    /// Looks a name up: its holder's key, address and lifetime.
    pub(crate) fn look_up(
        &mut self,
        from: &str,
        who: &Identity,
        text: &str,
    ) -> Result<(PublicKey, String, u32), ErrorCode> {
        let found = self.ask(from, who, Method::Lookup, named(text))?;
        assert_eq!(found.mapped, None);
        assert_eq!(found.bridge.peer_address, None);
        let key = PublicKey::from_bytes(found.bridge.public_key.unwrap());
        let address = found.bridge.holder_address.unwrap().to_string();
        Ok((key, address, found.lifetime.unwrap()))
    }

    /// Introduces: what the holder has answered so far.
    pub(crate) fn introduce(
        &mut self,
        from: &str,
        who: &Identity,
        text: &str,
        id: u8,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>, ErrorCode> {
        let mut attributes = introduction(id, sealed);
        attributes.bridge.name = Some(name(text));
        let answer = self.ask(from, who, Method::Introduce, attributes)?;
        assert_eq!(answer.mapped, Some(at(from)));
        Ok(answer.bridge.sealed)
    }

    /// Answers an introduction.
    pub(crate) fn answer(
        &mut self,
        from: &str,
        who: &Identity,
        id: u8,
        sealed: &[u8],
    ) -> Result<(), ErrorCode> {
        self.ask(from, who, Method::Introduce, introduction(id, sealed)).map(drop)
    }

    /// The only indication since the last look, which has to be signed for `to`.
    pub(crate) fn indication(&mut self, to: &Identity) -> (Sent, BridgeAttributes) {
        let told = std::mem::take(&mut self.told);
        assert_eq!(told.len(), 1, "{told:?}");
        let decoded = decode(&told[0].bytes).unwrap();
        let head = (decoded.message.class, decoded.message.method);
        assert_eq!(head, (Class::Indication, Method::Introduce));
        let client = Client::udp(local(), at("192.0.2.250:9"));
        let server = self.challenge(&client, Method::Lookup).bridge.server_key.unwrap();
        assert!(decoded.verify(&IntegrityKey::bridge(&agree(to, server))));
        let bridge = decoded.message.attributes.bridge.clone();
        (told[0].clone(), bridge)
    }

    pub(crate) fn drain(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { from, to, bytes } => all.push(Sent { from, to, bytes }),
                command => self.commands.push(command),
            }
        }
        all
    }
}

pub(crate) fn agree(who: &Identity, server: [u8; 32]) -> BridgeKey {
    let agreed = who.agree(&PublicKey::from_bytes(server)).unwrap();
    BridgeKey::new(&agreed, who.public().as_bytes(), &server)
}

pub(crate) fn result(answer: Message) -> Result<Attributes, ErrorCode> {
    match answer.attributes.error {
        Some(error) => Err(error),
        None => Ok(answer.attributes),
    }
}

pub(crate) fn named(text: &str) -> Attributes {
    let bridge = BridgeAttributes { name: Some(name(text)), ..BridgeAttributes::default() };
    Attributes { bridge, ..Attributes::default() }
}

pub(crate) fn registration(text: &str, epoch: u64, lifetime: Option<u32>) -> Attributes {
    Attributes { epoch: Some(epoch), lifetime, ..named(text) }
}

fn introduction(id: u8, sealed: &[u8]) -> Attributes {
    let bridge = BridgeAttributes {
        introduction: Some(IntroductionId([id; 16])),
        sealed: Some(sealed.to_vec()),
        ..BridgeAttributes::default()
    };
    Attributes { bridge, ..Attributes::default() }
}
