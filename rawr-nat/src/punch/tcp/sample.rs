//! The external endpoint of a TCP port, from a STUN server (RFC 8489 §6.2.2).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rawr_proto::{Attributes, Message, Method, TransactionId, decode, messages, whole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::punch::tcp::sockets;

/// How long the server has.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer.
const MAX_ANSWER: usize = 1500;

/// The external endpoint of a local TCP port, as a STUN server sees it. The stream to the server ends with
/// that; the mapping does not.
///
/// # Errors
/// If the server cannot be reached from there, or its answer is of no use.
pub async fn external(local: SocketAddr, server: SocketAddr) -> io::Result<SocketAddr> {
    match tokio::time::timeout(PATIENCE, ask(local, server)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the STUN server {server} does not answer over TCP"),
        )),
    }
}

async fn ask(local: SocketAddr, server: SocketAddr) -> io::Result<SocketAddr> {
    let mut stream = sockets::connect(local, server).await?;
    let transaction = TransactionId(rand::rng().random());
    let request = Message::request(Method::Binding, transaction, Attributes::default());
    stream.write_all(&request.encode(None)).await?;
    let mut bytes = Vec::with_capacity(MAX_ANSWER);
    loop {
        let length = whole(&bytes).map_err(|error| useless(server, &error.to_string()))?;
        if let Some(answer) = messages(&bytes[..length]).next() {
            let answer = decode(answer).map_err(|error| useless(server, &error.to_string()))?;
            let is_ours = answer.message.transaction == transaction;
            let mapped = answer.message.attributes.mapped.filter(|_| is_ours);
            return mapped.ok_or_else(|| useless(server, "it tells no address"));
        }
        if bytes.len() >= MAX_ANSWER || stream.read_buf(&mut bytes).await? == 0 {
            return Err(useless(server, "it is too long, or cut off"));
        }
    }
}

fn useless(server: SocketAddr, why: &str) -> io::Error {
    let what = format!("the answer of the STUN server {server} is of no use: {why}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}
