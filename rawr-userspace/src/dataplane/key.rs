//! Names of flows.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use rawr_proto::ChannelNumber;

/// Names a flow by where its packets arrive: a port of ours and, where several legs have that port,
/// what tells this one from the others. Keys with the same port follow each other in their order.
///
/// There are millions of these, several for each flow, so they take less than two socket addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    local: Local,
    /// `None` where the port is one leg's alone.
    sender: Option<Sender>,
}

/// An address and port of ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Local {
    ip: IpAddr,
    port: u16,
    /// Of a link-local address; that of the remote end is the same.
    scope: u32,
}

/// Whose datagrams, and which of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Sender {
    ip: IpAddr,
    port: u16,
    channel: Option<ChannelNumber>,
}

impl FlowKey {
    /// No key comes before this one.
    pub(super) const LEAST: Self = {
        let ip = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self { local: Local { ip, port: 0, scope: 0 }, sender: None }
    };

    /// What arrives at a port that one leg has for itself.
    pub fn port(local: SocketAddr) -> Self {
        let scope = match local {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        Self { local: Local { ip: local.ip(), port: local.port(), scope }, sender: None }
    }

    /// What arrives at a port that several legs have, from `remote`: ChannelData of this channel, or
    /// all else.
    pub fn tuple(local: SocketAddr, remote: SocketAddr, channel: Option<ChannelNumber>) -> Self {
        let sender = Sender { ip: remote.ip(), port: remote.port(), channel };
        Self { sender: Some(sender), ..Self::port(local) }
    }

    /// The address and port of ours that packets arrive at.
    pub fn local(&self) -> SocketAddr {
        let Local { ip, port, scope } = self.local;
        match ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        }
    }

    /// Whether packets arrive over IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.local.ip.is_ipv6()
    }

    /// Whether others may arrive at the same port.
    pub fn is_shared(&self) -> bool {
        self.sender.is_some()
    }

    /// The channel whose ChannelData this is about, if it is.
    pub fn channel(&self) -> Option<ChannelNumber> {
        self.sender?.channel
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.local())?;
        let Some(Sender { ip, port, channel }) = self.sender else { return Ok(()) };
        write!(f, " from {}", SocketAddr::new(ip, port))?;
        match channel {
            Some(channel) => write!(f, " in channel {channel}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn keys_of_one_port_follow_each_other() {
        let (one, next) = (at("192.0.2.1:3478"), at("192.0.2.1:3479"));
        let channel = ChannelNumber::new(0x4001);
        let mut keys = vec![
            FlowKey::LEAST,
            FlowKey::port(one),
            FlowKey::tuple(one, at("198.51.100.7:4000"), None),
            FlowKey::tuple(one, at("198.51.100.7:4000"), channel),
            FlowKey::tuple(one, at("198.51.100.8:4000"), None),
            FlowKey::port(next),
            FlowKey::port(at("[2001:db8::1]:1")),
        ];
        let ordered = keys.clone();
        keys.reverse();
        keys.sort();
        assert_eq!(keys, ordered);
    }

    #[test]
    fn keys_say_what_they_name() {
        let key = FlowKey::tuple(
            at("[2001:db8::1]:3478"),
            at("[2001:db8::7]:4000"),
            ChannelNumber::new(0x4abc),
        );
        assert_eq!(key.to_string(), "[2001:db8::1]:3478 from [2001:db8::7]:4000 in channel 0x4abc");
        assert_eq!((key.local(), key.is_ipv6()), (at("[2001:db8::1]:3478"), true));
        let scoped = at("[fe80::1%3]:5000");
        assert_eq!(FlowKey::port(scoped).local(), scoped);
        assert_ne!(FlowKey::port(scoped), FlowKey::port(at("[fe80::1%4]:5000")));
    }

    #[test]
    fn keys_are_small() {
        assert!(size_of::<FlowKey>() <= 48);
    }
}
