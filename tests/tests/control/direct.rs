//! One server, spoken to message by message.

use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::{
    Attributes, Class, ErrorCode, IntegrityKey, LegState, MIN_FIRST_REQUEST, Message, Method, Role,
    SessionSecret, TransactionId, WireKey, decode,
};
use rawr_userspace::control::{Client, Command, Now, PortError, Server, ServerConfig};
use rawr_userspace::dataplane::Leg;

use super::net::{Net, STUN};

pub(crate) struct Direct {
    pub(crate) server: Server,
    pub(crate) now: Now,
    pub(crate) ports_left: usize,
    /// All commands since the last look, without what was sent.
    pub(crate) commands: Vec<Command>,
    /// Data ports that are open.
    pub(crate) open: usize,
    next_port: u32,
    transaction: u64,
}

/// What came back: where to, and what.
pub(crate) type Sent = Vec<(SocketAddr, Vec<u8>)>;

impl Direct {
    pub(crate) fn new(config: ServerConfig) -> Self {
        let now = Net::new().clock();
        let mut direct = Self {
            server: Server::new(config, [3; 32], now),
            now,
            ports_left: usize::MAX,
            commands: Vec::new(),
            open: 0,
            next_port: 0,
            transaction: 0,
        };
        direct.drain();
        direct
    }

    pub(crate) fn local() -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 1], STUN))
    }

    /// Lets time pass, with all that happens in it.
    pub(crate) fn pass(&mut self, span: Duration) -> Sent {
        let end = self.now.monotonic + span;
        let mut sent = Sent::new();
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

    pub(crate) fn control(&mut self, from: SocketAddr, bytes: &[u8]) -> Sent {
        self.server.handle_control(self.now, &Client::udp(Self::local(), from), bytes);
        self.drain()
    }

    pub(crate) fn data(&mut self, local: SocketAddr, from: SocketAddr, bytes: &[u8]) -> Sent {
        self.server.handle_data(self.now, local, from, bytes);
        self.drain()
    }

    /// A nonce for this source.
    pub(crate) fn nonce(&mut self, from: SocketAddr) -> String {
        let message = self.message(Method::Connect, Attributes::default());
        let sent = self.control(from, &message.encode_padded(None, MIN_FIRST_REQUEST));
        let answer = decode(&sent[0].1).unwrap().message;
        assert_eq!(answer.attributes.error, Some(ErrorCode::Unauthenticated));
        answer.attributes.nonce.unwrap()
    }

    pub(crate) fn message(&mut self, method: Method, attributes: Attributes) -> Message {
        self.transaction += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        Message::request(method, TransactionId(id), attributes)
    }

    /// Asks with a good nonce. The answer must be the only thing that is sent to the asker.
    pub(crate) fn ask(
        &mut self,
        from: SocketAddr,
        method: Method,
        attributes: Attributes,
        key: &IntegrityKey,
    ) -> Option<Message> {
        let nonce = attributes.nonce.clone().unwrap_or_else(|| self.nonce(from));
        let message = self.message(method, Attributes { nonce: Some(nonce), ..attributes });
        let sent = self.control(from, &message.encode(Some(key)));
        // Who takes part in both roles is told what it said itself.
        let answers = sent.iter().filter(|(to, _)| *to == from);
        let answers = answers.map(|(_, bytes)| decode(bytes).unwrap());
        let mut answers = answers.filter(|answer| answer.message.class != Class::Indication);
        let answer = answers.next();
        assert!(answers.next().is_none(), "more than one answer");
        let answer = answer?;
        assert_eq!(answer.message.transaction, message.transaction);
        let signed = answer.verify(key);
        assert!(signed || answer.message.class == Class::Error, "a success without integrity");
        Some(answer.message)
    }

    pub(crate) fn connect(
        &mut self,
        from: SocketAddr,
        secret: &SessionSecret,
        role: Role,
        epoch: u64,
    ) -> Result<SocketAddr, ErrorCode> {
        self.connect_with(from, secret, Attributes { ..subject(secret, role, epoch) })
    }

    pub(crate) fn connect_with(
        &mut self,
        from: SocketAddr,
        secret: &SessionSecret,
        attributes: Attributes,
    ) -> Result<SocketAddr, ErrorCode> {
        let key = secret.key();
        let attributes = Attributes { session_key: Some(WireKey::from(&key)), ..attributes };
        let integrity = IntegrityKey::session(&key);
        let answer = self.ask(from, Method::Connect, attributes, &integrity).unwrap();
        match answer.attributes.error {
            Some(error) => Err(error),
            None => Ok(answer.attributes.data_address.unwrap()),
        }
    }

    /// Refreshes or releases.
    pub(crate) fn tell(
        &mut self,
        from: SocketAddr,
        method: Method,
        secret: &SessionSecret,
        role: Role,
        epoch: u64,
    ) -> Result<(), ErrorCode> {
        let integrity = IntegrityKey::session(&secret.key());
        let answer = self.ask(from, method, subject(secret, role, epoch), &integrity).unwrap();
        answer.attributes.error.map_or(Ok(()), Err)
    }

    pub(crate) fn probe_bytes(
        &mut self,
        secret: &SessionSecret,
        role: Role,
        nonce: Option<String>,
    ) -> Vec<u8> {
        let key = secret.key();
        let (session, role) = (Some(key.id()), Some(role));
        let attributes = Attributes { session, role, nonce, ..Attributes::default() };
        let message = self.message(Method::Probe, attributes);
        message.encode_padded(Some(&IntegrityKey::session(&key)), MIN_FIRST_REQUEST)
    }

    /// Probes, after the challenge again. `None` where nothing comes back.
    pub(crate) fn probe(
        &mut self,
        local: SocketAddr,
        from: SocketAddr,
        secret: &SessionSecret,
        role: Role,
    ) -> Option<LegState> {
        let bytes = self.probe_bytes(secret, role, None);
        let sent = self.data(local, from, &bytes);
        let first = decode(&sent.first()?.1).unwrap().message;
        if first.class == Class::Success {
            return first.attributes.leg_state;
        }
        let bytes = self.probe_bytes(secret, role, first.attributes.nonce);
        let sent = self.data(local, from, &bytes);
        let is_answer = |(to, bytes): &&(SocketAddr, Vec<u8>)| {
            *to == from && decode(bytes).is_ok_and(|it| it.message.class == Class::Success)
        };
        let answer = decode(&sent.iter().find(is_answer)?.1).unwrap();
        assert!(answer.verify(&IntegrityKey::session(&secret.key())));
        assert_eq!(answer.message.attributes.mapped, Some(from));
        answer.message.attributes.leg_state
    }

    /// Hands a datagram to a data port; returns what the server then wants, in that order.
    pub(crate) fn wanted_after(
        &mut self,
        local: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Vec<Command> {
        self.server.handle_data(self.now, local, from, bytes);
        std::iter::from_fn(|| self.server.poll_command()).collect()
    }

    /// Two legs, joined. Their data ports.
    pub(crate) fn pair(
        &mut self,
        secret: &SessionSecret,
        a: SocketAddr,
        b: SocketAddr,
    ) -> [SocketAddr; 2] {
        let legs = [(a, Role::A), (b, Role::B)].map(|(from, role)| {
            let local = self.connect(from, secret, role, 1).unwrap();
            let data = SocketAddr::new(from.ip(), from.port() + 1);
            assert!(self.probe(local, data, secret, role).is_some());
            local
        });
        let [pair_a, pair_b] = self.last_pair().expect("not paired");
        assert_eq!([pair_a.local, pair_b.local], legs);
        legs
    }

    pub(crate) fn last_pair(&self) -> Option<[Leg; 2]> {
        self.commands.iter().rev().find_map(|command| match command {
            Command::Pair { a, b, .. } => Some([*a, *b]),
            _ => None,
        })
    }

    /// Obeys all commands; returns what was sent.
    pub(crate) fn drain(&mut self) -> Sent {
        let mut sent = Sent::new();
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { to, bytes, .. } => sent.push((to, bytes)),
                Command::OpenPort { id, .. } => {
                    let result = self.ports_left.checked_sub(1).ok_or(PortError::Exhausted);
                    let result = result.map(|left| {
                        self.ports_left = left;
                        self.next_port += 1;
                        self.open += 1;
                        let [_, a, b, c] = (self.next_port >> 14).to_be_bytes();
                        let port = 1024 + (self.next_port & 0x3fff) as u16;
                        SocketAddr::from(([100 + a, b, c, 1], port))
                    });
                    self.server.port_opened(self.now, id, result);
                }
                command => {
                    self.open -= usize::from(matches!(command, Command::ClosePort { .. }));
                    self.commands.push(command);
                }
            }
        }
        sent
    }
}

/// SESSION-ID, ROLE and EPOCH.
pub(crate) fn subject(secret: &SessionSecret, role: Role, epoch: u64) -> Attributes {
    Attributes {
        session: Some(secret.key().id()),
        role: Some(role),
        epoch: Some(epoch),
        ..Attributes::default()
    }
}

/// Makes FINGERPRINT right again.
pub(crate) fn refingerprint(bytes: &mut Vec<u8>) {
    let mut crc = u32::MAX;
    let end = bytes.len() - 8;
    for byte in &bytes[..end] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bytes.truncate(end + 4);
    bytes.extend((!crc ^ 0x5354_554e).to_be_bytes());
}
