//! A [`Bridge`] over UDP or a stream, driven by tokio.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::Rng as _;
use rawr_proto::{BridgeName, Credentials, IntroductionId, messages, whole};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::call::is_same;
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
    link: Link,
    server: SocketAddr,
    buffer: Vec<u8>,
    events: VecDeque<BridgeEvent>,
}

/// The way to the server.
enum Link {
    Udp(UdpSocket),
    Stream(Stream),
}

struct Stream {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Not yet written.
    outbox: Vec<u8>,
    /// Whether something was written that may not have left.
    unflushed: bool,
}

impl BridgeSocket {
    /// Opens a UDP socket. Nothing is asked yet.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn bind(config: BridgeSocketConfig) -> io::Result<Self> {
        let socket = bind_udp(match config.server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        })?;
        Ok(Self::over(config, Link::Udp(socket), vec![0; MAX_DATAGRAM]))
    }

    /// Uses a connection to the server, by TCP, or by TLS on top of it: where UDP does not get through.
    /// When it ends, [`BridgeSocket::next`] fails: connect anew, and register anew.
    pub fn over_stream(
        config: BridgeSocketConfig,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let stream = Stream {
            reader: Box::new(reader),
            writer: Box::new(writer),
            outbox: Vec::new(),
            unflushed: false,
        };
        Self::over(config, Link::Stream(stream), Vec::new())
    }

    fn over(config: BridgeSocketConfig, link: Link, buffer: Vec<u8>) -> Self {
        let BridgeSocketConfig { server, identity, credentials } = config;
        let reliable = matches!(link, Link::Stream(_));
        let config = BridgeConfig { server, identity, credentials, epoch: epoch(), reliable };
        let bridge = Bridge::new(config, rand::rng().random());
        Self { bridge, link, server, buffer, events: VecDeque::new() }
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

    /// As [`Bridge::withdraw`].
    pub fn withdraw(&mut self, id: IntroductionId) {
        self.bridge.withdraw(id);
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
    /// If the socket fails for good, or the connection has ended.
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
    /// If the socket fails for good, or the connection has ended.
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

    /// Takes the first event that is `wanted` and has not been told yet.
    pub(super) fn take_event(
        &mut self,
        wanted: impl Fn(&BridgeEvent) -> bool,
    ) -> Option<BridgeEvent> {
        let at = self.events.iter().position(wanted)?;
        self.events.remove(at)
    }

    pub(super) async fn step(&mut self) -> io::Result<()> {
        let wake = self.bridge.poll_timeout();
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let received = tokio::select! {
            received = self.link.receive(self.server, &mut self.buffer) => received?,
            () = timer => {
                self.bridge.handle_timeout(now());
                0
            }
        };
        match self.link {
            Link::Udp(_) if received == 0 => {}
            Link::Udp(_) => {
                let datagram = &self.buffer[..received];
                self.bridge.handle_datagram(now(), self.server, datagram);
            }
            Link::Stream(_) => self.read_messages()?,
        }
        self.flush();
        Ok(())
    }

    fn read_messages(&mut self) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let length = whole(&self.buffer).map_err(invalid)?;
        for message in messages(&self.buffer[..length]) {
            self.bridge.handle_datagram(now(), self.server, message);
        }
        self.buffer.drain(..length);
        Ok(())
    }

    fn flush(&mut self) {
        while let Some(output) = self.bridge.poll_output() {
            match output {
                BridgeOutput::Transmit(bytes) => self.link.send(self.server, &bytes),
                BridgeOutput::Event(event) => self.events.push_back(event),
            }
        }
    }
}

impl Link {
    /// Waits until something has come, or something that waited has gone. Of UDP, returns the length of a
    /// datagram of the server's in `buffer`; of a stream, what comes is appended to `buffer`.
    async fn receive(&mut self, server: SocketAddr, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => match socket.recv_from(buffer).await {
                Ok((length, from)) if is_same(from, server) => Ok(length),
                Ok(_) => Ok(0),
                Err(error) if is_passing(&error) => Ok(0),
                Err(error) => Err(error),
            },
            Self::Stream(stream) => stream.receive(buffer).await,
        }
    }

    fn send(&mut self, server: SocketAddr, bytes: &[u8]) {
        match self {
            Self::Udp(socket) => {
                // Not by tokio, which takes a socket for busy until it has first polled it. What the
                // kernel does not take is lost, as on the way.
                if let Err(error) = SockRef::from(&*socket).send_to(bytes, &server.into()) {
                    log::trace!("{} bytes to {server} not sent: {error}", bytes.len());
                }
            }
            Self::Stream(stream) => stream.outbox.extend_from_slice(bytes),
        }
    }
}

impl Stream {
    async fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let Self { reader, writer, outbox, unflushed } = self;
        let has_work = !outbox.is_empty() || *unflushed;
        tokio::select! {
            read = reader.read_buf(buffer) => match read? {
                0 => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server has closed the connection",
                )),
                length => Ok(length),
            },
            pushed = push(writer, outbox, unflushed), if has_work => pushed.map(|()| 0),
        }
    }
}

/// Writes some of what waits, or flushes where nothing does. Either is done or not if this is dropped.
async fn push(
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    outbox: &mut Vec<u8>,
    unflushed: &mut bool,
) -> io::Result<()> {
    if outbox.is_empty() {
        writer.flush().await?;
        *unflushed = false;
        return Ok(());
    }
    let written = writer.write(outbox).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    outbox.drain(..written);
    *unflushed = true;
    Ok(())
}

/// An ICMP error about something sent before: the next datagram may be good.
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
