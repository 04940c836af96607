//! Asks servers where a UDP socket is seen, by STUN (RFC 8489) and by the simple protocol.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rawr_proto::{Attributes, Message, Method, TransactionId, decode};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::error::MapWarning;
use super::simple;
use super::socket::fitted;
use crate::driver::{now, try_recv};

/// When a request is sent again, counted from the first one, and when the server is given up.
const AGAIN: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(600), Duration::from_millis(1200)];
const PATIENCE: Duration = Duration::from_millis(1800);
/// Longest answer that is read.
const MAX_ANSWER: usize = 1500;

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Simple,
    Stun,
}

/// One server, asked.
#[derive(Debug)]
struct Question {
    server: SocketAddr,
    speaks: Speaks,
    /// The transaction of STUN is the beginning of it.
    nonce: simple::Nonce,
    outcome: Option<Result<SocketAddr, MapWarning>>,
}

impl Question {
    fn new(speaks: Speaks, server: SocketAddr) -> Self {
        Self { server, speaks, nonce: rand::rng().random(), outcome: None }
    }

    fn transaction(&self) -> TransactionId {
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&self.nonce[..12]);
        TransactionId(transaction)
    }

    fn request(&self) -> Vec<u8> {
        match self.speaks {
            Speaks::Simple => simple::ask(&self.nonce).to_vec(),
            Speaks::Stun => {
                Message::request(Method::Binding, self.transaction(), Attributes::default())
                    .encode(None)
            }
        }
    }

    /// What a datagram from the server says; `None` if it has nothing to do with the request.
    fn read(&self, bytes: &[u8]) -> Option<Result<SocketAddr, MapWarning>> {
        match self.speaks {
            Speaks::Simple => simple::read(bytes, &self.nonce).map(Ok),
            Speaks::Stun => {
                let answer = decode(bytes).ok()?.message;
                let is_ours = answer.transaction == self.transaction();
                let why = || "its answer tells no address".into();
                let useless = || MapWarning::Useless { server: self.server, why: why() };
                is_ours.then(|| answer.attributes.mapped.ok_or_else(useless))
            }
        }
    }
}

/// Where each server sees the socket, in the order of the servers. Datagrams of others that come
/// meanwhile are lost. Servers of a family that the socket does not have are left out.
///
/// # Errors
/// If the socket fails.
pub(super) async fn ask(
    socket: &UdpSocket,
    servers: &[(Speaks, SocketAddr)],
) -> io::Result<(Vec<(SocketAddr, SocketAddr)>, Vec<MapWarning>)> {
    let local = socket.local_addr()?;
    let fits = |(_, server): &&(Speaks, SocketAddr)| fitted(local, *server).is_some();
    let mut questions: Vec<_> =
        servers.iter().filter(fits).map(|(speaks, at)| Question::new(*speaks, *at)).collect();
    let begun = Instant::from_std(now());
    let times = AGAIN.into_iter().chain([PATIENCE]);
    for until in times {
        for question in questions.iter_mut().filter(|question| question.outcome.is_none()) {
            send(socket, local, question);
        }
        let listening = listen(socket, &mut questions);
        match tokio::time::timeout_at(begun + until, listening).await {
            Ok(result) => {
                result?;
                break;
            }
            Err(_later) => {}
        }
    }
    let (mut seen, mut warnings) = (Vec::new(), Vec::new());
    for question in questions {
        match question.outcome {
            Some(Ok(address)) => seen.push((question.server, address)),
            Some(Err(warning)) => warnings.push(warning),
            None => warnings.push(MapWarning::NoAnswer(question.server)),
        }
    }
    Ok((seen, warnings))
}

fn send(socket: &UdpSocket, local: SocketAddr, question: &mut Question) {
    let Some(to) = fitted(local, question.server) else { return };
    // Not by tokio, which takes a socket for busy until it has first polled it.
    if let Err(error) = SockRef::from(socket).send_to(&question.request(), &to.into())
        && error.kind() != io::ErrorKind::WouldBlock
    {
        let (server, why) = (question.server, error.to_string());
        question.outcome = Some(Err(MapWarning::Useless { server, why }));
    }
}

/// Until all have answered.
async fn listen(socket: &UdpSocket, questions: &mut [Question]) -> io::Result<()> {
    let mut buffer = [0; MAX_ANSWER];
    while questions.iter().any(|question| question.outcome.is_none()) {
        socket.readable().await?;
        while let Some((length, from)) = try_recv(socket, &mut buffer)? {
            let is_from = |it: &&mut Question| {
                it.server.ip().to_canonical() == from.ip() && it.server.port() == from.port()
            };
            for question in questions.iter_mut().filter(is_from) {
                if let Some(outcome) = question.read(&buffer[..length]) {
                    question.outcome = Some(outcome);
                }
            }
        }
    }
    Ok(())
}
