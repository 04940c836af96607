//! A TURN client over a stream, which sends as fast as it is let.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bench_ebpf::PAYLOAD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::server::NAME;
use crate::netns::wire::{CHANNEL, far_peer};
use crate::turn::{Client, succeeded};

/// Bytes of payload in each ChannelData message: a multiple of four, so that no padding follows.
pub(super) const MESSAGE: usize = 1_000;
/// Messages that are written at once: about as many as fill a TLS record.
const AT_ONCE: usize = 16;
/// A server that takes nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// Length of a STUN header (RFC 8489 §5).
const HEADER: usize = 20;

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Tcp,
    Tls,
}

impl Over {
    pub(super) const ALL: [Self; 2] = [Self::Tcp, Self::Tls];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        }
    }
}

/// A client with a channel to a peer of its own.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// Of the peer, and what its payloads say.
    pub(super) number: u32,
}

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

impl Connection {
    /// Connects, allocates and binds a channel.
    pub(super) fn open(
        over: Over,
        to: SocketAddr,
        trusted: &RootCertStore,
        number: u32,
    ) -> Result<Self> {
        let tcp = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let stream: Box<dyn Stream> = match over {
            Over::Tcp => Box::new(tcp),
            Over::Tls => {
                let config = ClientConfig::builder()
                    .with_root_certificates(trusted.clone())
                    .with_no_client_auth();
                let name = ServerName::try_from(NAME)?;
                let session = ClientConnection::new(Arc::new(config), name)?;
                Box::new(StreamOwned::new(session, tcp))
            }
        };
        let mut connection = Self { stream, number };
        let mut client = Client::new();
        client.challenged(&connection.ask(&client.first())?)?;
        succeeded(&connection.ask(&client.allocate()?)?)?;
        succeeded(&connection.ask(&client.bind(SocketAddr::V4(far_peer(number)))?)?)?;
        Ok(connection)
    }

    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request)?;
        self.stream.flush()?;
        let mut answer = vec![0; HEADER];
        self.stream.read_exact(&mut answer).context("no answer")?;
        let rest = usize::from(u16::from_be_bytes([answer[2], answer[3]]));
        answer.resize(HEADER + rest, 0);
        self.stream.read_exact(&mut answer[HEADER..]).context("half an answer")?;
        Ok(answer)
    }

    /// Sends until it is told that it is over.
    pub(super) fn send_until(&mut self, mark: u32, is_over: &AtomicBool) -> Result<()> {
        let header = [CHANNEL.to_be_bytes(), (MESSAGE as u16).to_be_bytes()].concat();
        let begin = [mark.to_ne_bytes(), self.number.to_ne_bytes(), [0; 4], [0; 4]].concat();
        let message = [header, begin, self.rest()].concat();
        let messages = message.repeat(AT_ONCE);
        while !is_over.load(Ordering::Relaxed) {
            self.stream.write_all(&messages).context("the server takes no more")?;
        }
        self.stream.flush()?;
        Ok(())
    }

    /// Whether this client has sent such a payload.
    pub(super) fn is_sender_of(&self, payload: &[u8]) -> bool {
        payload.len() == MESSAGE
            && payload[4..8] == self.number.to_ne_bytes()
            && payload[PAYLOAD..] == self.rest()
    }

    /// What follows the mark, the number and no time of sending.
    fn rest(&self) -> Vec<u8> {
        let first = self.number as u8;
        (0..MESSAGE - PAYLOAD).map(|index| first.wrapping_add(index as u8)).collect()
    }
}

const _: () = assert!(MESSAGE.is_multiple_of(4) && MESSAGE > PAYLOAD);
