//! From what a server's other addresses get through to how a NAT filters (RFC 4787 §5, RFC 5780 §4.4).

use std::net::SocketAddr;

use rawr_proto::ChangeRequest;

use crate::nat::Filtering;

/// A server with another address (RFC 5780), and what came from there to a socket that had sent to
/// `server` alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discovery {
    pub(super) server: SocketAddr,
    other: SocketAddr,
    from_other_address: bool,
    from_other_port: bool,
    /// It has answered from where it was not to.
    is_deaf: bool,
    /// Whether it has been asked to answer from elsewhere.
    pub(super) is_asked: bool,
}

impl Discovery {
    /// What the server is asked to change in two requests (tests II and III of RFC 5780 §4.4).
    pub(super) const CHANGES: [ChangeRequest; 2] =
        [ChangeRequest { ip: true, port: true }, ChangeRequest { ip: false, port: true }];

    /// `None` if `other` is no use: address and port have to differ.
    pub(super) fn new(server: SocketAddr, other: SocketAddr) -> Option<Self> {
        let is_of_use = server.is_ipv4() == other.is_ipv4()
            && server.ip() != other.ip()
            && server.port() != other.port()
            && other.port() != 0
            && !other.ip().is_unspecified()
            && !other.ip().is_multicast()
            && other.ip().is_loopback() == server.ip().is_loopback();
        is_of_use.then_some(Self {
            server,
            other,
            from_other_address: false,
            from_other_port: false,
            is_deaf: false,
            is_asked: false,
        })
    }

    /// The four endpoints, the known one first.
    pub(super) fn endpoints(&self) -> [SocketAddr; 4] {
        let Self { server, other, .. } = *self;
        let same_address = SocketAddr::new(server.ip(), other.port());
        let same_port = SocketAddr::new(other.ip(), server.port());
        [server, same_address, same_port, other]
    }

    /// An answer came from there to a request to change something.
    pub(super) fn answered(&mut self, change: ChangeRequest, from: SocketAddr, success: bool) {
        let [_, same_address, _, other] = self.endpoints();
        let expected = if change.ip { other } else { same_address };
        match (success && from == expected, change.ip) {
            (true, true) => self.from_other_address = true,
            (true, false) => self.from_other_port = true,
            (false, _) => self.is_deaf = true,
        }
    }

    /// The verdict; `None` where silence may be the server's fault, because an endpoint has not answered
    /// what it was asked itself either.
    pub(super) fn filtering(&self, has_answered: impl Fn(SocketAddr) -> bool) -> Option<Filtering> {
        let [_, same_address, _, other] = self.endpoints();
        if self.from_other_address {
            return Some(Filtering::EndpointIndependent);
        }
        if !self.is_asked || self.is_deaf || !has_answered(other) {
            return None;
        }
        if self.from_other_port {
            return Some(Filtering::AddressDependent);
        }
        has_answered(same_address).then_some(Filtering::AddressAndPortDependent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn discovery() -> Discovery {
        let found = Discovery::new(at("203.0.113.1:3478"), at("203.0.113.2:3479")).unwrap();
        Discovery { is_asked: true, ..found }
    }

    #[test]
    fn what_comes_through_tells_filtering() {
        let [both, port] = Discovery::CHANGES;
        let mut open = discovery();
        open.answered(both, at("203.0.113.2:3479"), true);
        assert_eq!(open.filtering(|_| false), Some(Filtering::EndpointIndependent));
        let mut by_address = discovery();
        by_address.answered(port, at("203.0.113.1:3479"), true);
        assert_eq!(by_address.filtering(|_| true), Some(Filtering::AddressDependent));
        let closed = discovery();
        assert_eq!(closed.filtering(|_| true), Some(Filtering::AddressAndPortDependent));
    }

    #[test]
    fn a_server_that_cannot_change_tells_nothing() {
        let [both, _] = Discovery::CHANGES;
        assert_eq!(discovery().filtering(|address| address == at("203.0.113.2:3479")), None);
        assert_eq!(discovery().filtering(|address| address == at("203.0.113.1:3479")), None);
        let mut ignores = discovery();
        ignores.answered(both, at("203.0.113.1:3478"), true);
        assert_eq!(ignores.filtering(|_| true), None);
        let mut refuses = discovery();
        refuses.answered(both, at("203.0.113.1:3478"), false);
        assert_eq!(refuses.filtering(|_| true), None);
        let unasked = Discovery { is_asked: false, ..discovery() };
        assert_eq!(unasked.filtering(|_| true), None);
    }

    #[test]
    fn other_addresses_have_to_be_other_addresses() {
        let server = at("203.0.113.1:3478");
        for other in [
            "203.0.113.1:3479",
            "203.0.113.2:3478",
            "203.0.113.2:0",
            "0.0.0.0:3479",
            "224.0.0.1:3479",
            "127.0.0.1:3479",
            "[2001:db8::2]:3479",
        ] {
            assert!(Discovery::new(server, at(other)).is_none(), "{other}");
        }
    }
}
