//! UDP sockets: mapped, then punched.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::address::{Findings, MappedSocketAddr};
use super::ask::ask;
use super::context::{MappingContext, Transport};
use super::error::{MapWarning, PunchError, Warned};
use super::info::{PrivRendezvousInfo, PubRendezvousInfo, behaviour};
use super::meeting::{Meeting, MeetingConfig, Transmit};
use super::socket::{fitted, own_addresses, send};
use crate::driver::{now, try_recv};
use crate::socket_id::SocketId;

/// How long both sides look for each other.
pub const PUNCH_TIME: Duration = Duration::from_secs(20);
/// Once both have met: silence after which the other side is taken to know it, too.
const QUIET: Duration = Duration::from_millis(350);
/// The longest wait for that silence.
const LINGER: Duration = Duration::from_secs(3);
/// Longest datagram that is read. Probes are shorter.
const MAX_PROBE: usize = 256;

/// A bound udp socket for which we know our external endpoints.
#[derive(Debug)]
pub struct MappedUdpSocket {
    /// The socket.
    pub socket: UdpSocket,
    /// The known endpoints of this socket, including local addresses.
    pub endpoints: Vec<MappedSocketAddr>,
}

impl MappedUdpSocket {
    /// Create a new `MappedUdpSocket`: of both families where the host has both.
    ///
    /// What did not work beside it goes to the log; [`MappedUdpSocket::new_with_warnings`] returns it.
    ///
    /// # Errors
    /// If no socket can be opened. A router or server that is of no use is no error.
    pub async fn new(mc: &MappingContext) -> io::Result<Self> {
        Ok(Self::new_with_warnings(mc).await?.logged())
    }

    /// Map an existing `UdpSocket`. The mapped addresses include all the addresses that a peer may be
    /// able to connect to the socket on, also the socket's local address for the sake of peers that
    /// are on the same local network. What comes to the socket meanwhile is lost.
    ///
    /// # Errors
    /// If the socket fails. A router or server that is of no use is no error.
    pub async fn map(socket: UdpSocket, mc: &MappingContext) -> io::Result<Self> {
        Ok(Self::map_with_warnings(socket, mc).await?.logged())
    }

    /// [`MappedUdpSocket::new`], with what did not work beside it.
    ///
    /// # Errors
    /// As that.
    pub async fn new_with_warnings(mc: &MappingContext) -> io::Result<Warned<Self>> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let socket = bind(any).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        Self::map_with_warnings(socket, mc).await
    }

    /// [`MappedUdpSocket::map`], with what did not work beside it.
    ///
    /// # Errors
    /// As that.
    pub async fn map_with_warnings(
        socket: UdpSocket,
        mc: &MappingContext,
    ) -> io::Result<Warned<Self>> {
        let local = own_addresses(&SockRef::from(&socket))?;
        let surroundings = mc.surroundings(Transport::Udp, &local).await;
        let servers = mc.udp_servers();
        // Last of all: where a NAT counts its ports, these are the latest.
        let (seen, unanswered) = ask(&socket, &servers).await?;
        let mut warnings = surroundings.warnings;
        if servers.is_empty() {
            warnings.push(MapWarning::NoServers);
        }
        warnings.extend(unanswered);
        let (mapped, reported) = (surroundings.mapped, surroundings.reported);
        let endpoints = Findings { local, seen, mapped, reported }.endpoints();
        Ok(Warned { value: Self { socket, endpoints }, warnings })
    }
}

/// A udp socket that has been hole punched.
#[derive(Debug)]
pub struct PunchedUdpSocket {
    /// The socket: the one that was punched, or another one where that alone was of no use.
    pub socket: UdpSocket,
    /// Where the other side is, as the socket takes it: on a socket of both families an IPv4 address is
    /// an IPv4-mapped one (RFC 4291 §2.5.5.2).
    pub peer_addr: SocketAddr,
}

impl PunchedUdpSocket {
    /// Punch a udp socket using a mapped socket and the peer's rendezvous info, while the peer does the
    /// same. Both are to begin within a few seconds; it takes up to [`PUNCH_TIME`].
    ///
    /// Datagrams that are no probes of the peer's and come before are lost. A probe may come a little
    /// later, too: 35 bytes, of which the first is 12.
    ///
    /// # Errors
    /// If both do not find each other in time; if what the peer has told is of no use; if a socket
    /// fails.
    pub async fn punch_hole(
        socket: UdpSocket,
        our_priv_rendezvous_info: PrivRendezvousInfo,
        their_pub_rendezvous_info: PubRendezvousInfo,
    ) -> Result<Self, PunchError> {
        let agreement = our_priv_rendezvous_info.agree(&their_pub_rendezvous_info)?;
        let local = socket.local_addr().map_err(failed("the socket has no address"))?;
        let mut endpoints = their_pub_rendezvous_info.endpoints;
        endpoints.retain(|endpoint| fitted(local, endpoint.addr).is_some());
        if endpoints.is_empty() {
            return Err(PunchError::NoEndpoints { local });
        }
        let config = MeetingConfig {
            key: *agreement.key,
            is_initiator: agreement.is_initiator,
            nats: nats(&our_priv_rendezvous_info.endpoints, &endpoints),
            their_endpoints: endpoints,
        };
        let count = config.their_endpoints.len();
        let mut punch = Punch::new(socket, local, config);
        match tokio::time::timeout(PUNCH_TIME, punch.run()).await {
            Ok(met) => met,
            Err(_) => {
                let hopeless = punch.meeting.hopeless();
                Err(PunchError::TimedOut { endpoints: count, hopeless })
            }
        }
    }
}

/// What the NATs of both sides do, of the family where both know it. IPv4 first: there it matters.
pub(super) fn nats(
    ours: &[MappedSocketAddr],
    theirs: &[MappedSocketAddr],
) -> Option<[crate::nat::Behaviour; 2]> {
    let mut families = [false, true].into_iter();
    families.find_map(|is_ipv6| Some([behaviour(ours, is_ipv6)?, behaviour(theirs, is_ipv6)?]))
}

pub(super) fn failed(what: &'static str) -> impl Fn(io::Error) -> PunchError {
    move |source| PunchError::Socket { what, source }
}

/// A socket for both families, if it is bound to the unspecified address of IPv6.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A [`Meeting`] on sockets.
struct Punch {
    meeting: Meeting,
    local: SocketAddr,
    sockets: HashMap<SocketId, UdpSocket>,
}

impl Punch {
    fn new(socket: UdpSocket, local: SocketAddr, config: MeetingConfig) -> Self {
        let mut meeting = Meeting::new(config, rand::rng().random(), now());
        let mut sockets = HashMap::from([(SocketId::MAPPED, socket)]);
        let any = SocketAddr::new(local.ip(), 0);
        for number in 1..=u32::from(meeting.sockets_wanted()) {
            match bind(any) {
                Ok(socket) => drop(sockets.insert(SocketId(number), socket)),
                Err(error) => {
                    log::warn!("only {} sockets to punch with: {error}", sockets.len());
                    break;
                }
            }
        }
        let mut opened: Vec<_> =
            sockets.keys().copied().filter(|id| *id != SocketId::MAPPED).collect();
        opened.sort();
        if !opened.is_empty() {
            meeting.handle_opened(opened);
        }
        Self { meeting, local, sockets }
    }

    async fn run(&mut self) -> Result<PunchedUdpSocket, PunchError> {
        while self.meeting.met().is_none() {
            self.meeting.handle_timeout(now());
            self.flush();
            let due = self.meeting.poll_timeout();
            tokio::select! {
                ready = readable(&self.sockets) => {
                    ready.map_err(failed("the socket cannot be read"))?;
                    self.receive()?;
                }
                () = sleep_until(due) => {}
            }
        }
        self.settle().await
    }

    fn flush(&mut self) {
        while let Some(Transmit { socket, to, ttl, bytes }) = self.meeting.poll_transmit() {
            let Some(socket) = self.sockets.get(&socket) else { continue };
            let Some(to) = fitted(self.local, to) else { continue };
            // What the kernel does not take is lost, as on the way.
            if let Err(error) = send(&SockRef::from(socket), to, ttl, &bytes) {
                log::trace!("a probe to {to} was not sent: {error}");
            }
        }
    }

    fn receive(&mut self) -> Result<(), PunchError> {
        let mut buffer = [0; MAX_PROBE];
        for (id, socket) in &self.sockets {
            while let Some((length, from)) =
                try_recv(socket, &mut buffer).map_err(failed("the socket cannot be read"))?
            {
                self.meeting.handle_datagram(now(), *id, from, &buffer[..length]);
                if self.meeting.met().is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Answers until the other side knows, too. What is no probe stays for the application: it says
    /// that the other side has begun to send.
    async fn settle(&mut self) -> Result<PunchedUdpSocket, PunchError> {
        let end = Instant::from_std(now()) + LINGER;
        let mut quiet = Instant::from_std(now()) + QUIET;
        loop {
            self.meeting.handle_timeout(now());
            self.flush();
            let Some(met) = self.meeting.met() else { break };
            let Some(socket) = self.sockets.get(&met.socket) else { break };
            let mut buffer = [0; MAX_PROBE];
            let (length, from) = match tokio::time::timeout_at(
                quiet.min(end),
                socket.peek_from(&mut buffer),
            )
            .await
            {
                Ok(Ok(it)) => it,
                Ok(Err(error)) => return Err(failed("the socket cannot be read")(error)),
                Err(_quiet) => break,
            };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let taken = self.meeting.handle_datagram(now(), met.socket, from, &buffer[..length]);
            if !taken && from == met.remote {
                break;
            }
            // It has been looked at.
            let _ = socket.try_recv_from(&mut buffer);
            if taken {
                quiet = Instant::from_std(now()) + QUIET;
            }
        }
        let lost = || failed("the socket is gone")(io::ErrorKind::NotConnected.into());
        let met = self.meeting.met().ok_or_else(lost)?;
        let socket = self.sockets.remove(&met.socket).ok_or_else(lost)?;
        let peer_addr = fitted(self.local, met.remote).ok_or_else(lost)?;
        Ok(PunchedUdpSocket { socket, peer_addr })
    }
}

/// Once something has come to one of them.
async fn readable(sockets: &HashMap<SocketId, UdpSocket>) -> io::Result<()> {
    std::future::poll_fn(|context| {
        // All are asked, so that each wakes us.
        let mut ready = std::task::Poll::Pending;
        for socket in sockets.values() {
            if let std::task::Poll::Ready(result) = socket.poll_recv_ready(context) {
                ready = std::task::Poll::Ready(result);
            }
        }
        ready
    })
    .await
}

async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
