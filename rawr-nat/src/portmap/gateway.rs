//! Who is asked for mappings, and from where.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};

use super::exchange::PORT;

/// The router of the default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway6 {
    /// Its address, mostly link-local.
    pub address: Ipv6Addr,
    /// The index of the interface that leads to it.
    pub scope: u32,
}

/// The gateways that mappings are asked of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    /// For IPv4: a NAT, as a rule.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6: a firewall.
    pub ipv6: Option<Gateway6>,
}

impl Gateways {
    /// Those of the default routes, as the calling thread's network namespace has them.
    pub fn of_this_host() -> Self {
        let ipv4 = match crate::default_gateway() {
            Some(IpAddr::V4(gateway)) => Some(gateway),
            Some(IpAddr::V6(_)) | None => None,
        };
        let table = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
        let ipv6 = default_route6(&table).and_then(|(address, interface)| {
            let scope = nix::net::if_::if_nametoindex(interface).ok()?;
            Some(Gateway6 { address, scope })
        });
        Self { ipv4, ipv6 }
    }

    /// Who is asked for a mapping to `local`.
    pub(super) fn server_of(&self, local: SocketAddr) -> Option<SocketAddr> {
        if local.is_ipv4() { self.server4() } else { self.server6() }
    }

    pub(super) fn server4(&self) -> Option<SocketAddr> {
        self.ipv4.map(|gateway| SocketAddrV4::new(gateway, PORT).into())
    }

    pub(super) fn server6(&self) -> Option<SocketAddr> {
        self.ipv6.map(|it| SocketAddrV6::new(it.address, PORT, 0, it.scope).into())
    }
}

/// The address that the kernel would send from. Nothing is sent.
pub(super) fn source_towards(server: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Gateway and interface of the default route with the least metric.
fn default_route6(table: &str) -> Option<(Ipv6Addr, &str)> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [destination, prefix, _, _, gateway, metric, .., interface] = fields[..] else {
            return None;
        };
        let is_default = prefix == "00" && destination.bytes().all(|digit| digit == b'0');
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let metric = u32::from_str_radix(metric, 16).ok()?;
        (is_default && !gateway.is_unspecified()).then_some((metric, gateway, interface))
    });
    routes.min().map(|(_, gateway, interface)| (gateway, interface))
}

/// Whether an address that a gateway calls external is not seen by the Internet: there is another NAT
/// behind it, the provider's (RFC 6598) or one's own.
pub(super) const fn is_behind_another_nat(external: IpAddr) -> bool {
    match external {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let is_shared = a == 100 && b & 0xC0 == 64;
            // DS-Lite (RFC 6333 §5.7).
            let is_protocol_assignment = a == 192 && b == 0 && c == 0;
            ip.is_private()
                || ip.is_link_local()
                || ip.is_loopback()
                || ip.is_unspecified()
                || is_shared
                || is_protocol_assignment
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_read_from_the_kernels_table() {
        let none = "0".repeat(32);
        let router = "fe800000000000000000000000000001";
        let other = "fe800000000000000000000000000002";
        let table = format!(
            "20010db8000000000000000000000000 40 {none} 00 {none} 00000100 1 0 1 eth0\n\
             {none} 00 {none} 00 {other} 00000400 1 0 3 eth1\n\
             {none} 00 {none} 00 {router} 00000100 1 0 3 eth0\n\
             {none} 00 {none} 00 {none} ffffffff 1 0 200200 lo\n"
        );
        let router = "fe80::1".parse().unwrap();
        assert_eq!(default_route6(&table), Some((router, "eth0")));
        assert_eq!(default_route6(""), None);
    }

    #[test]
    fn addresses_that_the_internet_does_not_see() {
        for hidden in ["10.1.2.3", "192.168.1.1", "100.64.0.1", "100.127.255.1", "192.0.0.2"] {
            assert!(is_behind_another_nat(hidden.parse().unwrap()), "{hidden}");
        }
        for public in ["100.63.0.1", "100.128.0.1", "8.8.8.8", "192.0.1.1", "2001:db8::1"] {
            assert!(!is_behind_another_nat(public.parse().unwrap()), "{public}");
        }
    }
}
