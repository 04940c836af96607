//! Legs as the headers of their packets.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use rawr_common::flow::{Tuple4, Tuple6};

use super::Leg;

/// The two ends of datagrams of either family.
pub(super) enum Tuple {
    V4(Tuple4),
    V6(Tuple6),
}

/// How packets arrive on `leg`, which is of one family.
pub(super) fn arriving(leg: Leg) -> Tuple {
    tuple(leg.remote, leg.local)
}

/// How packets leave on it.
pub(super) fn leaving(leg: Leg) -> Tuple {
    tuple(leg.local, leg.remote)
}

/// Source and destination of what has these addresses, over IPv4.
pub(super) fn ends4(tuple: &Tuple4) -> (SocketAddr, SocketAddr) {
    let addr = |ip: [u8; 4], port| SocketAddrV4::new(ip.into(), u16::from_be_bytes(port)).into();
    (addr(tuple.src, tuple.src_port), addr(tuple.dst, tuple.dst_port))
}

/// Source and destination of what has these addresses, over IPv6.
pub(super) fn ends6(tuple: &Tuple6) -> (SocketAddr, SocketAddr) {
    let addr =
        |ip: [u8; 16], port| SocketAddrV6::new(ip.into(), u16::from_be_bytes(port), 0, 0).into();
    (addr(tuple.src, tuple.src_port), addr(tuple.dst, tuple.dst_port))
}

fn tuple(src: SocketAddr, dst: SocketAddr) -> Tuple {
    let (src_port, dst_port) = (src.port().to_be_bytes(), dst.port().to_be_bytes());
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Tuple::V4(Tuple4 { src: src.octets(), dst: dst.octets(), src_port, dst_port })
        }
        (src, dst) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            Tuple::V6(Tuple6 { src: octets(src), dst: octets(dst), src_port, dst_port })
        }
    }
}
