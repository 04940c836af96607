//! A host that means harm: requests made by hand, right in form or not.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rawr_proto::{
    Attributes, Class, ErrorCode, IntegrityKey, Message, Method, Role, SessionKey, SessionSecret,
    TransactionId, WireKey, decode,
};

use crate::netns::Netns;

const ANSWER_LIMIT: Duration = Duration::from_millis(400);
/// Length of first requests: servers answer none with more than it was.
const PADDED: usize = 200;

/// What a server made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted,
    Refused(ErrorCode),
    Silence,
}

/// One socket of a host, and the server that it molests.
#[derive(Debug)]
pub struct Forger {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Forger {
    /// A socket on any port of `address`.
    pub fn new(host: &Netns, address: SocketAddr, server: SocketAddr) -> Result<Self> {
        let socket = host.run(|| UdpSocket::bind(SocketAddr::new(address.ip(), 0)))??;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { socket, server })
    }

    /// The nonce that the server makes for this socket.
    pub fn nonce(&self) -> Result<String> {
        let request = Message::request(Method::Connect, transaction(), attributes_of(&new_key()));
        let answer = self.ask(&request.encode_padded(None, PADDED))?;
        let answer = answer.context("the server does not answer a first request")?;
        let message = decode(&answer).context("the answer is no message")?.message;
        message.attributes.nonce.context("the answer to a first request holds no nonce")
    }

    /// Sends a request, with integrity by `key`.
    pub fn request(
        &self,
        method: Method,
        attributes: Attributes,
        key: &SessionKey,
    ) -> Result<Verdict> {
        let request = Message::request(method, transaction(), attributes);
        self.judge(&request.encode(Some(&IntegrityKey::session(key))))
    }

    /// Sends bytes, and tells what the server made of them.
    pub fn judge(&self, bytes: &[u8]) -> Result<Verdict> {
        let Some(answer) = self.ask(bytes)? else { return Ok(Verdict::Silence) };
        let message = decode(&answer).context("the answer is no message")?.message;
        match (message.class, message.attributes.error) {
            (Class::Success, _) => Ok(Verdict::Granted),
            (Class::Error, Some(code)) => Ok(Verdict::Refused(code)),
            _ => bail!("a strange answer: {message:?}"),
        }
    }

    /// Sends bytes and returns the answer, if there is one soon.
    pub fn ask(&self, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 2048];
        self.socket.send_to(bytes, self.server)?;
        match self.socket.recv_from(&mut buffer) {
            Ok((length, _)) => Ok(Some(buffer[..length].to_vec())),
            Err(_) => Ok(None),
        }
    }

    /// Sends bytes anywhere, and waits for no answer.
    pub fn throw(&self, bytes: &[u8], to: SocketAddr) -> Result<()> {
        self.socket.send_to(bytes, to)?;
        Ok(())
    }
}

/// The key of a session that nobody has.
pub fn new_key() -> SessionKey {
    SessionSecret::from_bytes(rand::rng().random()).key()
}

/// A random transaction id.
pub fn transaction() -> TransactionId {
    TransactionId(rand::rng().random())
}

/// What a right Connect to a session says, but for the nonce.
pub fn attributes_of(key: &SessionKey) -> Attributes {
    Attributes {
        session: Some(key.id()),
        session_key: Some(WireKey(*key.as_bytes())),
        role: Some(Role::A),
        epoch: Some(1),
        hop_limit: Some(8),
        lifetime: Some(60),
        ..Attributes::default()
    }
}
