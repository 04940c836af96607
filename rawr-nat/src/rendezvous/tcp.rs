//! TCP sockets: mapped, then punched by simultaneous open.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::unbounded_channel;

use super::address::{Findings, MappedSocketAddr};
use super::context::{MappingContext, Transport};
use super::echo;
use super::error::{MapWarning, PunchError, Warned};
use super::info::{PrivRendezvousInfo, PubRendezvousInfo};
use super::socket::{fitted, own_addresses};
use super::udp::{PUNCH_TIME, failed, nats};
use crate::host::{Host, LinuxHost};
use crate::nat::{Behaviour, Mapping};
use crate::punch::{Hopeless, Order, Plan, TcpPunchConfig, Tuning, plan, tcp_external, tcp_punch};

/// A tcp socket for which we know our external endpoints.
#[derive(Debug)]
pub struct MappedTcpSocket {
    /// A bound, but neither listening nor connected tcp socket. It is bound to be reusable
    /// (`SO_REUSEADDR` and `SO_REUSEPORT`), and has one family of addresses.
    pub socket: TcpSocket,
    /// The known endpoints of this socket, including local addresses.
    pub endpoints: Vec<MappedSocketAddr>,
}

impl MappedTcpSocket {
    /// Create a new `MappedTcpSocket`: of IPv4 where the host has an address of it, else of IPv6.
    ///
    /// What did not work beside it goes to the log; [`MappedTcpSocket::new_with_warnings`] returns it.
    ///
    /// # Errors
    /// If no socket can be opened. A router or server that is of no use is no error.
    pub async fn new(mc: &MappingContext) -> io::Result<Self> {
        Ok(Self::new_with_warnings(mc).await?.logged())
    }

    /// Map an existing tcp socket. It must be neither connected nor listening; if it is bound, then with
    /// `SO_REUSEADDR` and `SO_REUSEPORT`. If it is not, it is made reusable and bound to a free port.
    ///
    /// # Errors
    /// If the socket fails. A router or server that is of no use is no error.
    pub async fn map(socket: TcpSocket, mc: &MappingContext) -> io::Result<Self> {
        Ok(Self::map_with_warnings(socket, mc).await?.logged())
    }

    /// [`MappedTcpSocket::new`], with what did not work beside it.
    ///
    /// # Errors
    /// As that.
    pub async fn new_with_warnings(mc: &MappingContext) -> io::Result<Warned<Self>> {
        let interfaces = LinuxHost.interfaces(None)?;
        let is_ipv6_only =
            !interfaces.is_empty() && interfaces.iter().all(|it| it.address.is_ipv6());
        let domain = if is_ipv6_only { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        Self::map_with_warnings(TcpSocket::from_std_stream(socket.into()), mc).await
    }

    /// [`MappedTcpSocket::map`], with what did not work beside it.
    ///
    /// # Errors
    /// As that.
    pub async fn map_with_warnings(
        socket: TcpSocket,
        mc: &MappingContext,
    ) -> io::Result<Warned<Self>> {
        let local = bound(&socket)?;
        let own = own_addresses(&SockRef::from(&socket))?;
        let surroundings = mc.surroundings(Transport::Tcp, &own).await;
        let mut warnings = surroundings.warnings;
        let servers = mc.stun_servers();
        if servers.is_empty() {
            warnings.push(MapWarning::NoServers);
        }
        let mut asked = Vec::new();
        for server in servers {
            if server.is_ipv4() == local.is_ipv4() {
                let answer = tokio::spawn(async move { tcp_external(local, server).await });
                asked.push((server, answer));
            }
        }
        let mut seen = Vec::new();
        for (server, answer) in asked {
            match answer.await {
                Ok(Ok(address)) => seen.push((server, address)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    warnings.push(MapWarning::NoAnswer(server));
                }
                Ok(Err(error)) => {
                    warnings.push(MapWarning::Useless { server, why: error.to_string() });
                }
                Err(error) => warnings.push(MapWarning::Useless { server, why: error.to_string() }),
            }
        }
        let (mapped, reported) = (surroundings.mapped, surroundings.reported);
        let endpoints = Findings { local: own, seen, mapped, reported }.endpoints();
        Ok(Warned { value: Self { socket, endpoints }, warnings })
    }
}

/// The address that a socket is bound to, or is bound to now.
fn bound(socket: &TcpSocket) -> io::Result<SocketAddr> {
    let local = socket.local_addr()?;
    if local.port() != 0 {
        return Ok(local);
    }
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    let any: IpAddr = match local {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    socket.bind(SocketAddr::new(any, 0))?;
    socket.local_addr()
}

/// Perform a tcp rendezvous connect, while the peer does the same. `socket` should have been obtained
/// from a [`MappedTcpSocket`]. Both are to begin within a few seconds; it takes up to [`PUNCH_TIME`].
/// Both ends have proven to each other that they have the keys of this rendezvous when it returns.
///
/// # Errors
/// If both do not find each other in time; if what the peer has told is of no use; if a socket fails.
pub async fn tcp_punch_hole(
    socket: TcpSocket,
    our_priv_rendezvous_info: PrivRendezvousInfo,
    their_pub_rendezvous_info: PubRendezvousInfo,
) -> Result<TcpStream, PunchError> {
    let agreement = our_priv_rendezvous_info.agree(&their_pub_rendezvous_info)?;
    let local = socket.local_addr().map_err(failed("the socket has no address"))?;
    let ours = our_priv_rendezvous_info.endpoints;
    let mut theirs = their_pub_rendezvous_info.endpoints;
    theirs.retain(|endpoint| fitted(local, endpoint.addr) == Some(endpoint.addr));
    let Some(first) = theirs.first().copied() else {
        return Err(PunchError::NoEndpoints { local });
    };
    let (nats, hopeless) = strategy(&ours, &theirs, local, first.addr);
    let ((outgoing, to_echo), (from_echo, incoming)) = (unbounded_channel(), unbounded_channel());
    let order = order(&nats[0], &nats[1]);
    let told = |endpoints: &[MappedSocketAddr]| endpoints.iter().map(|it| it.addr).collect();
    let config = TcpPunchConfig {
        key: *agreement.key,
        is_initiator: agreement.is_initiator,
        ours: nats[0],
        theirs: nats[1],
        local,
        our_external: told(&ours),
        their_endpoints: told(&theirs),
        server: None,
        tuning: Tuning { deadline: PUNCH_TIME, ..Tuning::default() },
        outgoing,
        incoming,
    };
    let punching = tcp_punch(config);
    tokio::pin!(punching);
    // The socket holds the port until it is punched.
    let punched = tokio::select! {
        punched = &mut punching => punched,
        () = echo::run(to_echo, from_echo, order) => punching.await,
    };
    drop(socket);
    punched.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => {
            PunchError::TimedOut { endpoints: theirs.len(), hopeless }
        }
        _ => failed("the socket cannot be used")(error),
    })
}

/// What is taken for true of both sides' NATs. Where an endpoint of either needs no punching, or where
/// nothing but known endpoints is of use, all of them are tried, and no others.
fn strategy(
    ours: &[MappedSocketAddr],
    theirs: &[MappedSocketAddr],
    local: SocketAddr,
    first: SocketAddr,
) -> ([Behaviour; 2], Option<Hopeless>) {
    let is_open = ours.iter().chain(theirs).any(MappedSocketAddr::is_public);
    let known = nats(ours, theirs).filter(|[ours, _]| ours.external.is_ipv4() == local.is_ipv4());
    let straight = [straight(local), straight(first)];
    match known {
        Some([ours, theirs]) => match plan(&ours, &theirs) {
            Plan::Hopeless(why) => (straight, Some(why)),
            _ if is_open => (straight, None),
            Plan::Straight { .. } => (straight, None),
            Plan::Predict { .. }
            | Plan::Birthday { .. }
            | Plan::Sweep { .. }
            | Plan::Block { .. } => ([ours, theirs], None),
        },
        None => (straight, None),
    }
}

/// A side that is found by the endpoints that it has told. Its ports are not said to be preserved: fans
/// of ports take messages between the sides.
const fn straight(address: SocketAddr) -> Behaviour {
    Behaviour {
        external: address.ip(),
        mapping: Mapping::EndpointIndependent,
        filtering: None,
        ports: None,
        last_port: address.port(),
        hairpins: None,
    }
}

/// Whose connections go first.
fn order(ours: &Behaviour, theirs: &Behaviour) -> Order {
    match plan(ours, theirs) {
        Plan::Straight { order } | Plan::Predict { order, .. } | Plan::Birthday { order, .. } => {
            order
        }
        Plan::Sweep { .. } | Plan::Block { .. } | Plan::Hopeless(_) => Order::Together,
    }
}
