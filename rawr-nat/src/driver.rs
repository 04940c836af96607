//! A [`Peer`] on tokio's sockets.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rand::Rng;
use rawr_proto::{Role, SessionSecret};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Sleep;

use crate::attachment::Via;
use crate::host::Host;
use crate::peer::{PathInfo, Peer, PeerConfig, PeerEvent, PeerOutput, ServerConfig};

/// Wanted size of socket buffers, in bytes: a tenth of a second at 100,000 small packets.
const SOCKET_BUFFER: usize = 8 << 20;
/// Longest datagram.
pub(crate) const MAX_DATAGRAM: usize = 65_535;
/// Datagrams of data after which everything else gets its turn.
pub(crate) const DATA_BATCH: u32 = 64;
/// Datagrams of control that are taken before data gets its turn.
pub(crate) const CONTROL_BATCH: usize = 32;
/// How long servers have to confirm that we leave.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

/// What a [`PeerSocket`] is to do.
#[derive(Clone, Debug)]
pub struct PeerSocketConfig {
    /// What the two peers share.
    pub secret: SessionSecret,
    /// Which of them this is.
    pub role: Role,
    /// Where they meet at the latest, and exchange their addresses.
    pub root: Option<ServerConfig>,
    /// Tried in this order before the root.
    pub gateways: Vec<ServerConfig>,
    /// Port of the data socket; 0 for any.
    pub data_port: u16,
    /// Greater than that of any earlier run (milliseconds since 1970).
    pub epoch: u64,
    /// Whether the MAC address travels in clear instead of blinded.
    pub raw_mac: bool,
}

/// Carries datagrams between two peers, by the best way there is.
///
/// It acts while [`PeerSocket::next`] is awaited, and only then: await it all the time.
pub struct PeerSocket {
    peer: Peer,
    host: Box<dyn Host>,
    control: Port,
    data: Port,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
    buffer: Vec<u8>,
    events: VecDeque<PeerEvent>,
    /// Datagrams of data since everything else last had its turn.
    burst: u32,
    traffic: Traffic,
}

/// What [`PeerSocket::next`] brings.
#[derive(Debug)]
pub enum Incoming {
    /// A datagram of the other peer's, of so many bytes, is in the buffer.
    Data(usize),
    /// Something happened.
    Event(PeerEvent),
}

/// Datagrams of the application's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent on their way.
    pub sent: u64,
    /// Come from the other peer.
    pub received: u64,
    /// Not sent, because there was no way, or the kernel had no room.
    pub dropped: u64,
}

impl PeerSocket {
    /// Opens the sockets and starts to look for the other peer.
    ///
    /// # Errors
    /// If a socket cannot be opened or the host cannot be asked for its addresses.
    pub fn bind(config: PeerSocketConfig, host: Box<dyn Host>) -> io::Result<Self> {
        let (control, data) = (Port::open(0)?, Port::open(config.data_port)?);
        let nearest = config.gateways.first().or(config.root.as_ref());
        let interfaces = host.interfaces(nearest.map(|server| server.address))?;
        let config = PeerConfig {
            secret: config.secret,
            role: config.role,
            root: config.root,
            gateways: config.gateways,
            interfaces,
            data_port: data.socket.local_addr()?.port(),
            epoch: config.epoch,
            raw_mac: config.raw_mac,
            lifetime: 120,
        };
        let now = now();
        let peer = Peer::new(config, rand::rng().random(), now);
        let timer = Box::pin(tokio::time::sleep_until(now.into()));
        let mut socket = Self {
            peer,
            host,
            control,
            data,
            timer,
            timer_at: Some(now),
            buffer: vec![0; MAX_DATAGRAM],
            events: VecDeque::new(),
            burst: 0,
            traffic: Traffic::default(),
        };
        socket.flush(now);
        Ok(socket)
    }

    /// The way that data takes now.
    pub fn path(&self) -> Option<PathInfo> {
        self.peer.path()
    }

    /// What has been carried so far.
    pub const fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Sends a datagram to the other peer. It is dropped where there is no way, or no room.
    pub fn send(&mut self, datagram: &[u8]) {
        let sent = self.peer.destination().is_some_and(|to| self.data.send(to, datagram));
        self.traffic.sent += u64::from(sent);
        self.traffic.dropped += u64::from(!sent);
    }

    /// Waits for data, which is put in `buffer` (65,535 bytes hold all), or for news. Nothing is lost
    /// if the future is dropped.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Incoming> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Incoming::Event(event));
            }
            if let Some(length) = self.try_recv(buffer)? {
                return Ok(Incoming::Data(length));
            }
            self.set_timer();
            tokio::select! {
                ready = self.data.socket.readable() => ready?,
                ready = self.control.socket.readable() => {
                    ready?;
                    self.handle_control(now())?;
                }
                () = self.timer.as_mut(), if self.timer_at.is_some() => {
                    self.timer_at = None;
                    let now = now();
                    self.peer.handle_timeout(now);
                    self.flush(now);
                }
            }
        }
    }

    /// Takes a datagram that has come already. For use in a loop after [`PeerSocket::next`] brought
    /// one.
    ///
    /// # Errors
    /// If the socket fails for good.
    pub fn try_recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        while let Some((length, from)) = self.data.try_recv(buffer)? {
            let now = now();
            let Some(datagram) = buffer.get(..length) else { continue };
            let is_data = self.peer.handle_data(now, from, datagram);
            self.burst += 1;
            if self.burst >= DATA_BATCH {
                self.burst = 0;
                self.serve_others(now)?;
            }
            if is_data {
                self.traffic.received += 1;
                return Ok(Some(length));
            }
            self.flush(now);
        }
        Ok(None)
    }

    /// Releases everything, and waits until the servers have confirmed it or had their time.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn close(&mut self) -> io::Result<()> {
        let now = now();
        self.peer.close(now);
        self.flush(now);
        let farewell = async {
            let mut buffer = vec![0; MAX_DATAGRAM];
            while !self.peer.is_closed() {
                self.next(&mut buffer).await?;
            }
            Ok(())
        };
        tokio::time::timeout(FAREWELL, farewell).await.unwrap_or(Ok(()))
    }

    /// Control and timers get their turn, however much data there is.
    fn serve_others(&mut self, now: Instant) -> io::Result<()> {
        self.handle_control(now)?;
        if self.peer.poll_timeout().is_some_and(|at| at <= now) {
            self.peer.handle_timeout(now);
            self.flush(now);
        }
        Ok(())
    }

    fn handle_control(&mut self, now: Instant) -> io::Result<()> {
        for _ in 0..CONTROL_BATCH {
            let Some((length, from)) = self.control.try_recv(&mut self.buffer)? else { break };
            self.peer.handle_control(now, from, &self.buffer[..length]);
            self.flush(now);
        }
        Ok(())
    }

    /// Does what the peer wants done.
    fn flush(&mut self, now: Instant) {
        while let Some(output) = self.peer.poll_output() {
            match output {
                PeerOutput::Transmit { via: Via::Control, to, bytes } => {
                    self.control.send(to, &bytes);
                }
                PeerOutput::Transmit { via: Via::Data, to, bytes } => {
                    self.data.send(to, &bytes);
                }
                PeerOutput::LookUp(ip) => {
                    let mac = self.host.neighbour(ip);
                    self.peer.handle_neighbour(now, ip, mac);
                }
                PeerOutput::Event(event) => self.events.push_back(event),
            }
        }
    }

    /// Moves the timer only where it would be late: one that is early costs less than one that is
    /// moved for each datagram.
    fn set_timer(&mut self) {
        let wanted = self.peer.poll_timeout();
        if let Some(at) = wanted
            && self.timer_at.is_none_or(|set| at < set)
        {
            self.timer.as_mut().reset(at.into());
            self.timer_at = Some(at);
        }
    }
}

/// A UDP socket for one address, with buffers for a fast stream.
///
/// # Errors
/// If it cannot be opened.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    open_socket(Domain::for_address(address), address)
}

/// A UDP socket for both families where the host has both.
pub(crate) struct Port {
    pub(crate) socket: UdpSocket,
    is_ipv6: bool,
}

impl Port {
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        match open_socket(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(socket) => Ok(Self { socket, is_ipv6: true }),
            Err(_) => {
                let socket = open_socket(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())?;
                Ok(Self { socket, is_ipv6: false })
            }
        }
    }

    /// Returns whether the kernel took it. What it does not take is lost, as on the way.
    pub(crate) fn send(&self, to: SocketAddr, bytes: &[u8]) -> bool {
        let to = match to.ip() {
            IpAddr::V4(ip) if self.is_ipv6 => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), to.port())
            }
            _ => to,
        };
        // Not by tokio, which takes a socket for busy until it has first polled it.
        let result = SockRef::from(&self.socket).send_to(bytes, &to.into());
        if let Err(error) = &result {
            log::trace!("{} bytes to {to} not sent: {error}", bytes.len());
        }
        result.is_ok()
    }

    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        try_recv(&self.socket, buffer)
    }
}

/// Takes a datagram that has come already.
pub(crate) fn try_recv(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, SocketAddr)>> {
    loop {
        match socket.try_recv_from(buffer) {
            Ok((length, from)) => {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                return Ok(Some((length, from)));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // An ICMP error about something sent before: the next datagram may be good.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn open_socket(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    enlarge_buffers(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// As large as we may: root is not bound to the host's limit.
pub(crate) fn enlarge_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _limited = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _limited = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable)
}

#[expect(clippy::disallowed_methods, reason = "this is the driver")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
