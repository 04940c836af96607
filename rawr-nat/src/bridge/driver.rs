//! A [`Bridge`] over UDP, driven by tokio.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::Rng as _;
use rawr_proto::{BridgeName, Credentials, IntroductionId};
use socket2::SockRef;
use tokio::net::UdpSocket;

use super::{Bridge, BridgeConfig, BridgeEvent, BridgeOutput, SealError};
use crate::driver::bind_udp;
use crate::identity::{Identity, PublicKey};

/// How long giving names up may take.
const FAREWELL: Duration = Duration::from_secs(2);
const MAX_DATAGRAM: usize = 65_535;

/// What a [`BridgeSocket`] is to do.
#[derive(Clone, Debug)]
pub struct BridgeSocketConfig {
    /// The server's STUN port.
    pub server: SocketAddr,
    /// Who holds the names, and who introduces itself.
    pub identity: Identity,
    /// Used if the server asks for them.
    pub credentials: Option<Credentials>,
}

/// A [`Bridge`] with a socket of its own.
///
/// It acts while [`BridgeSocket::next`] is awaited, and only then: await it all the time.
pub struct BridgeSocket {
    bridge: Bridge,
    socket: UdpSocket,
    server: SocketAddr,
    buffer: Vec<u8>,
    events: VecDeque<BridgeEvent>,
}

impl BridgeSocket {
    /// Opens the socket. Nothing is asked yet.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn bind(config: BridgeSocketConfig) -> io::Result<Self> {
        let BridgeSocketConfig { server, identity, credentials } = config;
        let socket = bind_udp(match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        })?;
        let config = BridgeConfig { server, identity, credentials, epoch: epoch() };
        Ok(Self {
            bridge: Bridge::new(config, rand::rng().random()),
            socket,
            server,
            buffer: vec![0; MAX_DATAGRAM],
            events: VecDeque::new(),
        })
    }

    /// As [`Bridge::register`].
    pub fn register(&mut self, name: &BridgeName, lifetime: Option<Duration>) {
        self.bridge.register(now(), name, lifetime);
        self.flush();
    }

    /// As [`Bridge::deregister`].
    pub fn deregister(&mut self, name: &BridgeName) {
        self.bridge.deregister(now(), name);
        self.flush();
    }

    /// As [`Bridge::look_up`].
    pub fn look_up(&mut self, name: &BridgeName) {
        self.bridge.look_up(now(), name);
        self.flush();
    }

    /// As [`Bridge::introduce`].
    ///
    /// # Errors
    /// If the message is too long, or the key is none.
    pub fn introduce(
        &mut self,
        name: &BridgeName,
        holder: PublicKey,
        message: &[u8],
    ) -> Result<IntroductionId, SealError> {
        let id = self.bridge.introduce(now(), name, holder, message);
        self.flush();
        id
    }

    /// As [`Bridge::answer`].
    ///
    /// # Errors
    /// If the message is too long.
    pub fn answer(&mut self, id: IntroductionId, message: &[u8]) -> Result<(), SealError> {
        let answered = self.bridge.answer(now(), id, message);
        self.flush();
        answered
    }

    /// Waits for news. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// If the socket fails for good.
    pub async fn next(&mut self) -> io::Result<BridgeEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.step().await?;
        }
    }

    /// Gives all names up, and waits until the server has confirmed it or had its time.
    ///
    /// # Errors
    /// If the socket fails for good.
    pub async fn close(mut self) -> io::Result<()> {
        self.bridge.close(now());
        self.flush();
        let farewell = async {
            while !self.bridge.is_idle() {
                self.step().await?;
            }
            Ok(())
        };
        tokio::time::timeout(FAREWELL, farewell).await.unwrap_or(Ok(()))
    }

    async fn step(&mut self) -> io::Result<()> {
        let wake = self.bridge.poll_timeout();
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = self.socket.recv_from(&mut self.buffer) => match received {
                Ok((length, from)) => {
                    self.bridge.handle_datagram(now(), from, &self.buffer[..length]);
                }
                // An ICMP error about something sent before: the next datagram may be good.
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            },
            () = timer => self.bridge.handle_timeout(now()),
        }
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        while let Some(output) = self.bridge.poll_output() {
            match output {
                BridgeOutput::Transmit(bytes) => {
                    // What the kernel does not take is lost, as on the way.
                    // Not by tokio, which takes a socket for busy until it has first polled it.
                    let sent = SockRef::from(&self.socket).send_to(&bytes, &self.server.into());
                    if let Err(error) = sent {
                        log::trace!("{} bytes to {} not sent: {error}", bytes.len(), self.server);
                    }
                }
                BridgeOutput::Event(event) => self.events.push_back(event),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable)
}

#[expect(clippy::disallowed_methods, reason = "this is the driver")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the driver")]
fn epoch() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
