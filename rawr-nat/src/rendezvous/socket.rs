//! What mapped sockets have in common: own addresses, and which others they can send to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::context::Transport;
use crate::host::{Host, LinuxHost, local_address_towards};

/// An address as a socket with this local one has to be told it; `None` if it cannot send there.
pub(super) fn fitted(local: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    match (local.ip(), to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => Some(to),
        (IpAddr::V4(_), IpAddr::V6(_)) => None,
        (IpAddr::V6(own), IpAddr::V4(ip)) => (own.is_unspecified()
            || own.to_ipv4_mapped().is_some())
        .then(|| SocketAddr::new(ip.to_ipv6_mapped().into(), to.port())),
        (IpAddr::V6(own), IpAddr::V6(_)) => own.to_ipv4_mapped().is_none().then_some(to),
    }
}

/// The addresses by which hosts of the own network reach a socket: all of the host's if it is bound to
/// none. A host with no other address than that of loopback has that.
pub(super) fn own_addresses(socket: &SockRef<'_>) -> io::Result<Vec<SocketAddr>> {
    let bound = socket.local_addr()?.as_socket();
    let bound = bound.ok_or_else(|| io::Error::other("the socket has no IP address"))?;
    let (ip, port) = (bound.ip().to_canonical(), bound.port());
    if !ip.is_unspecified() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let has_ipv4 = ip.is_ipv4() || !socket.only_v6()?;
    let has_ipv6 = ip.is_ipv6();
    let is_ours = |ip: &IpAddr| if ip.is_ipv4() { has_ipv4 } else { has_ipv6 };
    let interfaces = LinuxHost.interfaces(None)?.into_iter();
    let mut own: Vec<_> = interfaces.map(|interface| interface.address).filter(is_ours).collect();
    own.dedup();
    if own.is_empty() {
        let loopback =
            if has_ipv4 { Ipv4Addr::LOCALHOST.into() } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
        own.push(loopback);
    }
    Ok(own.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Of a socket's own addresses those that a router is asked to map: the one of each family that leads
/// to the Internet.
pub(super) fn to_map(own: &[SocketAddr]) -> Vec<SocketAddr> {
    // Documentation prefixes (RFC 5737, RFC 3849): nothing is sent there, only the route is looked up.
    let somewhere: [SocketAddr; 2] = [
        (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
    ];
    let mut chosen = Vec::new();
    for towards in somewhere {
        let mut of_family = own.iter().filter(|own| own.is_ipv4() == towards.is_ipv4());
        let source = local_address_towards(towards);
        let fitting = of_family.clone().find(|own| Some(own.ip()) == source);
        chosen.extend(fitting.or_else(|| of_family.next()));
    }
    chosen
}

/// Whether some socket still has this address.
pub(super) fn is_in_use(transport: Transport, local: SocketAddr) -> bool {
    let (kind, protocol) = match transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
    };
    let bind =
        || Socket::new(Domain::for_address(local), kind, Some(protocol))?.bind(&local.into());
    bind().is_err()
}

/// Sends one datagram with so many hops to live. Linux has no way to say it for one datagram without
/// `unsafe`; nobody else sends meanwhile.
pub(super) fn send(
    socket: &SockRef<'_>,
    to: SocketAddr,
    ttl: Option<u8>,
    bytes: &[u8],
) -> io::Result<usize> {
    let Some(ttl) = ttl else { return socket.send_to(bytes, &to.into()) };
    let is_ipv4 = to.ip().to_canonical().is_ipv4();
    if is_ipv4 {
        let usual = socket.ttl_v4()?;
        socket.set_ttl_v4(ttl.into())?;
        let sent = socket.send_to(bytes, &to.into());
        socket.set_ttl_v4(usual)?;
        sent
    } else {
        let usual = socket.unicast_hops_v6()?;
        socket.set_unicast_hops_v6(ttl.into())?;
        let sent = socket.send_to(bytes, &to.into());
        socket.set_unicast_hops_v6(usual)?;
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_put_as_the_socket_takes_them() {
        let v4 = at("192.0.2.1:5");
        let (v6, mapped) = (at("[2001:db8::1]:5"), at("[::ffff:192.0.2.1]:5"));
        assert_eq!(fitted(at("0.0.0.0:1"), v4), Some(v4));
        assert_eq!(fitted(at("0.0.0.0:1"), mapped), Some(v4));
        assert_eq!(fitted(at("10.0.0.1:1"), v6), None);
        assert_eq!(fitted(at("[::]:1"), v4), Some(mapped));
        assert_eq!(fitted(at("[::]:1"), v6), Some(v6));
        assert_eq!(fitted(at("[2001:db8::2]:1"), v4), None);
    }

    #[test]
    fn a_port_is_in_use_until_its_socket_is_closed() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        assert!(is_in_use(Transport::Udp, local));
        assert!(!is_in_use(Transport::Tcp, local));
        drop(socket);
        assert!(!is_in_use(Transport::Udp, local));
    }

    #[test]
    fn a_socket_bound_to_one_address_has_that_alone() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = own_addresses(&SockRef::from(&socket)).unwrap();
        assert_eq!(own, [socket.local_addr().unwrap()]);
        let any = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = own_addresses(&SockRef::from(&any)).unwrap();
        assert!(!own.is_empty() && own.iter().all(SocketAddr::is_ipv4), "{own:?}");
    }
}
