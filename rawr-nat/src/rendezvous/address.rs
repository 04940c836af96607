//! The endpoints of a mapped socket: which there are, and what is known of each.

use std::net::{IpAddr, SocketAddr};

use crate::nat::{Behaviour, Filtering, Mapping};

/// A socket address obtained through some mapping technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MappedSocketAddr {
    /// The mapped address. Among those of a socket are its local addresses, for peers on the same
    /// network, and several external ones where it is behind several NATs.
    pub addr: SocketAddr,
    /// Whether hole punching is needed to get here from outside. It is not for an address that a
    /// router has mapped on request, for a NAT that lets in everybody (RFC 4787 §5), and within the
    /// own network.
    pub nat_restricted: bool,
    /// What the NATs before an external address do, where that is known.
    pub nat: Option<Behaviour>,
}

impl MappedSocketAddr {
    /// An address that others reach without further ado.
    pub const fn open(addr: SocketAddr) -> Self {
        Self { addr, nat_restricted: false, nat: None }
    }

    /// An address behind a NAT or firewall, which has to be punched; `nat`: what it does, if known.
    pub const fn restricted(addr: SocketAddr, nat: Option<Behaviour>) -> Self {
        Self { addr, nat_restricted: true, nat }
    }

    /// Whether hosts all over the Internet reach it without hole punching.
    pub(super) const fn is_public(&self) -> bool {
        !self.nat_restricted && !is_internal(self.addr.ip())
    }
}

/// All that was found out of one socket.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Its own addresses.
    pub(super) local: Vec<SocketAddr>,
    /// What servers have seen it as: the server, and the address.
    pub(super) seen: Vec<(SocketAddr, SocketAddr)>,
    /// What routers have mapped: the address, and whether there is another NAT behind.
    pub(super) mapped: Vec<(SocketAddr, bool)>,
    /// What is known of the NATs for this transport, by family: IPv4, IPv6.
    pub(super) reported: [Option<Behaviour>; 2],
}

impl Findings {
    /// The endpoints that others are told, each once: those that a router has mapped first.
    pub(super) fn endpoints(&self) -> Vec<MappedSocketAddr> {
        let behaviours = [false, true].map(|is_ipv6| self.behaviour(is_ipv6));
        let of = |addr: SocketAddr| behaviours[usize::from(addr.is_ipv6())];
        let mut endpoints: Vec<MappedSocketAddr> = Vec::new();
        let mut add = |new: MappedSocketAddr| {
            if !endpoints.iter().any(|known| known.addr == new.addr) {
                endpoints.push(new);
            }
        };
        for (addr, is_double) in &self.mapped {
            add(MappedSocketAddr { addr: *addr, nat_restricted: *is_double, nat: of(*addr) });
        }
        for (_, addr) in &self.seen {
            let lets_in_all = of(*addr).is_some_and(|nat| {
                nat.is_easy() && nat.filtering == Some(Filtering::EndpointIndependent)
            });
            add(MappedSocketAddr { addr: *addr, nat_restricted: !lets_in_all, nat: of(*addr) });
        }
        for addr in &self.local {
            let nat_restricted = !is_internal(addr.ip());
            add(MappedSocketAddr { addr: *addr, nat_restricted, nat: None });
        }
        endpoints
    }

    /// What the NATs do to this socket. What was found out with other sockets is only of use with
    /// the ports of this one.
    fn behaviour(&self, is_ipv6: bool) -> Option<Behaviour> {
        let seen: Vec<_> =
            self.seen.iter().filter(|(_, seen)| seen.is_ipv6() == is_ipv6).copied().collect();
        let (_, first) = *seen.first()?;
        let reported = self.reported[usize::from(is_ipv6)];
        let reported = reported.filter(|it| it.external == first.ip());
        let guess = || self.guess(&seen, first);
        let behaviour = reported.unwrap_or_else(guess);
        Some(Behaviour { last_port: furthest(&behaviour, &seen, first.port()), ..behaviour })
    }

    /// What the answers to this socket alone show. One answer shows nothing but whether the port was
    /// kept, which NATs with one mapping for all destinations mostly do.
    fn guess(&self, seen: &[(SocketAddr, SocketAddr)], first: SocketAddr) -> Behaviour {
        let is_kept = self.local.iter().any(|local| local.port() == first.port());
        let is_one = seen.iter().all(|(_, other)| *other == first);
        let servers = seen.iter().any(|(server, _)| server.ip() != seen[0].0.ip());
        let mapping = if self.local.contains(&first) {
            Mapping::None
        } else if is_one && (servers || is_kept) {
            Mapping::EndpointIndependent
        } else {
            Mapping::AddressAndPortDependent
        };
        Behaviour {
            external: first.ip(),
            mapping,
            filtering: None,
            ports: is_kept.then_some(crate::nat::Ports::Preserved),
            last_port: first.port(),
            hairpins: None,
        }
    }
}

/// Where a sequence of ports has come to.
fn furthest(nat: &Behaviour, seen: &[(SocketAddr, SocketAddr)], first: u16) -> u16 {
    let ports = seen.iter().map(|(_, seen)| seen.port());
    match nat.ports {
        Some(crate::nat::Ports::Sequential { step }) if step < 0 => ports.min().unwrap_or(first),
        Some(crate::nat::Ports::Sequential { .. }) => ports.max().unwrap_or(first),
        Some(_) | None => first,
    }
}

/// Whether an address means something within one network alone (RFC 1918, RFC 4193, RFC 6598).
pub(super) const fn is_internal(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_shared = a == 100 && b & 0xC0 == 64;
            ip.is_private() || ip.is_link_local() || ip.is_loopback() || is_shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// Whether a peer may have us send there at all.
pub(super) const fn is_usable(addr: SocketAddr) -> bool {
    let is_someone = match addr.ip() {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        IpAddr::V6(_) => true,
    };
    let ip = addr.ip();
    addr.port() != 0 && is_someone && !ip.is_multicast() && !ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Ports;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn seen(pairs: &[(&str, &str)]) -> Vec<(SocketAddr, SocketAddr)> {
        pairs.iter().map(|(server, seen)| (at(server), at(seen))).collect()
    }

    const LOCAL: &str = "10.0.0.2:4000";
    const ONE: &str = "192.0.2.1:3478";
    const TWO: &str = "192.0.2.2:3478";

    fn findings(pairs: &[(&str, &str)]) -> Findings {
        Findings { local: vec![at(LOCAL)], seen: seen(pairs), ..Findings::default() }
    }

    #[test]
    fn one_mapping_for_two_servers_is_told_once() {
        let found = findings(&[(ONE, "203.0.113.9:4000"), (TWO, "203.0.113.9:4000")]);
        let endpoints = found.endpoints();
        let [external, local] = endpoints[..] else { panic!("{endpoints:?}") };
        assert_eq!(external.addr, at("203.0.113.9:4000"));
        assert!(external.nat_restricted, "nobody knows what it lets in");
        let nat = external.nat.unwrap();
        assert_eq!((nat.mapping, nat.last_port), (Mapping::EndpointIndependent, 4000));
        assert_eq!(local, MappedSocketAddr::open(at(LOCAL)));
    }

    #[test]
    fn a_mapping_for_each_server_is_a_hard_one() {
        let found = findings(&[(ONE, "203.0.113.9:6001"), (TWO, "203.0.113.9:7005")]);
        let nat = found.endpoints()[0].nat.unwrap();
        assert_eq!(nat.mapping, Mapping::AddressAndPortDependent);
        let found = findings(&[(ONE, "203.0.113.9:6001")]);
        let nat = found.endpoints()[0].nat.unwrap();
        assert!(!nat.is_easy(), "one server cannot tell");
        let found = findings(&[(ONE, "203.0.113.9:4000")]);
        assert!(found.endpoints()[0].nat.unwrap().is_easy(), "the port was kept");
    }

    #[test]
    fn what_needs_no_punching_is_told_so() {
        let mut found = findings(&[(ONE, "203.0.113.9:4000")]);
        found.mapped = vec![(at("203.0.113.9:5000"), false), (at("100.64.0.1:5000"), true)];
        found.reported[0] = Some(Behaviour {
            external: at(ONE).ip(),
            mapping: Mapping::EndpointIndependent,
            filtering: Some(Filtering::EndpointIndependent),
            ports: None,
            last_port: 1,
            hairpins: None,
        });
        let restricted = |found: &Findings| {
            found.endpoints().iter().map(|it| it.nat_restricted).collect::<Vec<_>>()
        };
        assert_eq!(restricted(&found), [false, true, true, false], "the report is of another NAT");
        found.reported[0].as_mut().unwrap().external = at("203.0.113.9:1").ip();
        assert_eq!(restricted(&found), [false, true, false, false], "a full cone");
    }

    #[test]
    fn without_a_nat_the_own_address_is_the_external_one() {
        let found = Findings {
            local: vec![at("203.0.113.9:4000")],
            seen: seen(&[(ONE, "203.0.113.9:4000")]),
            ..Findings::default()
        };
        let endpoints = found.endpoints();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].nat.unwrap().mapping, Mapping::None);
        assert!(endpoints[0].nat_restricted, "there may be a firewall");
    }

    #[test]
    fn a_sequence_goes_on_from_its_last_port() {
        let mut found = findings(&[(ONE, "203.0.113.9:6003"), (TWO, "203.0.113.9:6001")]);
        found.reported[0] = Some(Behaviour {
            external: at("203.0.113.9:1").ip(),
            mapping: Mapping::AddressAndPortDependent,
            filtering: None,
            ports: Some(Ports::Sequential { step: 1 }),
            last_port: 5990,
            hairpins: None,
        });
        assert_eq!(found.endpoints()[0].nat.unwrap().last_port, 6003);
    }
}
