//! What a peer wants to know of the host it runs on.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use rawr_proto::Mac;

use crate::peer::Interface;

/// Addresses and neighbours of a host. [`LinuxHost`] asks the kernel; who knows better brings its own.
pub trait Host: Send {
    /// Own addresses that other hosts can reach, the one towards `server` first.
    ///
    /// # Errors
    /// If the host cannot be asked.
    fn interfaces(&self, server: Option<SocketAddr>) -> io::Result<Vec<Interface>>;

    /// The MAC address of a host on an own subnet, if it is known.
    fn neighbour(&self, ip: IpAddr) -> Option<Mac>;
}

/// The Linux host that the process runs on, as its network namespace shows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxHost;

impl Host for LinuxHost {
    fn interfaces(&self, server: Option<SocketAddr>) -> io::Result<Vec<Interface>> {
        let mut macs = Vec::new();
        let mut found = Vec::new();
        for entry in getifaddrs()? {
            let unusable = !entry.flags.contains(InterfaceFlags::IFF_UP)
                || entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            let Some(address) = entry.address.filter(|_| !unusable) else { continue };
            if let Some(mac) = address.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr) {
                macs.push((entry.interface_name.clone(), Mac(mac)));
            }
            let prefix_len = entry.netmask.as_ref().and_then(ip_of).map_or(0, ones);
            if let Some(ip) = ip_of(&address).filter(|ip| is_reachable(*ip)) {
                found.push((entry.interface_name, ip, prefix_len));
            }
        }
        let towards = server.and_then(local_address_towards);
        let mac_of = |name: &str| macs.iter().find(|(of, _)| of == name).map(|(_, mac)| *mac);
        let mut interfaces: Vec<_> = found
            .iter()
            .map(|(name, address, prefix_len)| Interface {
                address: *address,
                prefix_len: *prefix_len,
                mac: mac_of(name).filter(|mac| mac.0 != [0; 6]),
            })
            .collect();
        interfaces.sort_by_key(|interface| Some(interface.address) != towards);
        Ok(interfaces)
    }

    /// IPv4 only: the kernel shows IPv6 neighbours over netlink alone.
    fn neighbour(&self, ip: IpAddr) -> Option<Mac> {
        let table = fs::read_to_string("/proc/net/arp").ok()?;
        table.lines().skip(1).find_map(|line| {
            let mut fields = line.split_whitespace();
            let address: IpAddr = fields.next()?.parse().ok()?;
            let mac: Mac = fields.nth(2)?.parse().ok()?;
            (address == ip && mac.0 != [0; 6]).then_some(mac)
        })
    }
}

/// The gateway of the default route, from the kernel's IPv4 table, else from its IPv6 table, as the
/// calling thread's network namespace has them.
pub fn default_gateway() -> Option<IpAddr> {
    let table = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok();
    let gateway4 = table("route").and_then(|table| default_gateway4(&table));
    let gateway6 = || table("ipv6_route").and_then(|table| default_gateway6(&table));
    gateway4.map(IpAddr::V4).or_else(|| gateway6().map(IpAddr::V6))
}

/// The source address that the kernel would choose. Nothing is sent.
pub(crate) fn local_address_towards(server: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
}

fn ones(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    ones as u8
}

/// Link-local addresses mean nothing without a scope, which does not travel.
const fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

/// Of several default routes the one with the least metric.
fn default_gateway4(table: &str) -> Option<Ipv4Addr> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, destination, gateway, _, _, _, metric, mask, ..] = fields[..] else { return None };
        let is_default = destination == "00000000" && mask == "00000000";
        // Written as the kernel has it in memory: network order, read as a native number.
        let gateway = u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes();
        let metric: u32 = metric.parse().ok()?;
        (is_default && gateway != [0; 4]).then_some((metric, Ipv4Addr::from(gateway)))
    });
    routes.min().map(|(_, gateway)| gateway)
}

fn default_gateway6(table: &str) -> Option<Ipv6Addr> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, prefix, _, _, gateway, metric, ..] = fields[..] else { return None };
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let metric = u32::from_str_radix(metric, 16).ok()?;
        let is_usable = !gateway.is_unspecified() && !gateway.is_unicast_link_local();
        (prefix == "00" && is_usable).then_some((metric, gateway))
    });
    routes.min().map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_gateways_are_read_from_the_kernels_tables() {
        let gateway = u32::from_ne_bytes([192, 0, 2, 1]);
        let other = u32::from_ne_bytes([192, 0, 2, 2]);
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t{other:08X}\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{gateway:08X}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        );
        assert_eq!(default_gateway4(&table), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(default_gateway4("Iface\n"), None);

        let none = "0".repeat(32);
        let table = format!(
            "20010db8000000000000000000000000 40 {none} 00 {none} 00000100 1 0 1 eth0\n\
             {none} 00 {none} 00 20010db8000000000000000000000001 00000400 1 0 3 eth0\n\
             {none} 00 {none} 00 fe800000000000000000000000000001 00000001 1 0 3 eth0\n"
        );
        assert_eq!(default_gateway6(&table), Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn own_loopback_is_no_interface() {
        let interfaces = LinuxHost.interfaces(None).unwrap();
        assert!(interfaces.iter().all(|it| !it.address.is_loopback() && it.prefix_len > 0));
    }

    #[test]
    fn masks() {
        assert_eq!(ones(Ipv4Addr::new(255, 255, 254, 0).into()), 23);
        assert_eq!(ones("ffff:ffff:ffff:ffff::".parse().unwrap()), 64);
    }
}
