//! The addresses that NAT behaviour discovery is answered from (RFC 5780 §6).

use std::net::SocketAddr;

use rawr_proto::ChangeRequest;

/// Two addresses of one family, on each of which both ports are open: clients learn by four combinations
/// how the NATs on their way map and filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    primary: SocketAddr,
    alternate: SocketAddr,
}

impl Behaviour {
    /// `None` unless the addresses are of one family and differ, and the ports differ.
    pub fn new(primary: SocketAddr, alternate: SocketAddr) -> Option<Self> {
        let one_family = primary.is_ipv4() == alternate.is_ipv4();
        let differ = primary.ip() != alternate.ip() && primary.port() != alternate.port();
        (one_family && differ).then_some(Self { primary, alternate })
    }

    /// All that must be open, the primary first.
    pub fn sockets(&self) -> [SocketAddr; 4] {
        let Self { primary, alternate } = *self;
        let mixed = SocketAddr::new(primary.ip(), alternate.port());
        [primary, mixed, SocketAddr::new(alternate.ip(), primary.port()), alternate]
    }

    /// What differs as asked for from where the request came to; `None` if that is none of
    /// [`Behaviour::sockets`].
    pub(super) fn changed(&self, local: SocketAddr, change: ChangeRequest) -> Option<SocketAddr> {
        let Self { primary, alternate } = *self;
        let ip = if (local.ip() == primary.ip()) == change.ip { alternate } else { primary };
        let port =
            if (local.port() == primary.port()) == change.port { alternate } else { primary };
        let known = self.sockets().contains(&local);
        known.then(|| SocketAddr::new(ip.ip(), port.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn changes_are_relative_to_where_the_request_came() {
        let behaviour = Behaviour::new(at("192.0.2.1:3478"), at("192.0.2.2:3479")).unwrap();
        let changed =
            |local: &str, ip, port| behaviour.changed(at(local), ChangeRequest { ip, port });
        let all = ["192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"].map(at);
        assert_eq!(behaviour.sockets(), all);
        for local in all {
            let other = |ip, port| changed(&local.to_string(), ip, port).unwrap();
            assert_eq!(other(false, false), local);
            assert!(
                other(true, false).ip() != local.ip() && other(true, false).port() == local.port()
            );
            assert!(
                other(false, true).ip() == local.ip() && other(false, true).port() != local.port()
            );
            assert!(
                other(true, true).ip() != local.ip() && other(true, true).port() != local.port()
            );
            assert!(all.contains(&other(true, true)));
        }
        assert_eq!(changed("192.0.2.1:3480", false, false), None);
        assert_eq!(changed("192.0.2.3:3478", true, true), None);
    }

    #[test]
    fn two_addresses_and_two_ports_of_one_family_are_needed() {
        let primary = at("192.0.2.1:3478");
        for other in ["192.0.2.1:3479", "192.0.2.2:3478", "[2001:db8::1]:3479"] {
            assert_eq!(Behaviour::new(primary, at(other)), None);
        }
    }
}
