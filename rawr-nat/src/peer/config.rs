//! What a peer is told from outside.

use std::net::{IpAddr, SocketAddr};

use rawr_proto::{Credentials, Mac, Role, SessionSecret};

/// What a [`super::Peer`] is to do.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// What the two peers share.
    pub secret: SessionSecret,
    /// Which of them this is.
    pub role: Role,
    /// Where they meet at the latest, and exchange their addresses.
    pub root: Option<ServerConfig>,
    /// Tried in this order before the root.
    pub gateways: Vec<ServerConfig>,
    /// Own addresses. The first one's MAC is handed to the other peer.
    pub interfaces: Vec<Interface>,
    /// Port of the data socket.
    pub data_port: u16,
    /// Greater than that of any earlier run (milliseconds since 1970).
    pub epoch: u64,
    /// Whether the MAC address travels in clear instead of blinded.
    pub raw_mac: bool,
    /// Seconds that a server shall keep a leg without hearing from us.
    pub lifetime: u32,
}

/// A server, as a peer knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its STUN port.
    pub address: SocketAddr,
    /// Used if it asks for them.
    pub credentials: Option<Credentials>,
}

impl From<SocketAddr> for ServerConfig {
    fn from(address: SocketAddr) -> Self {
        Self { address, credentials: None }
    }
}

/// An own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The address. Loopback and link-local ones are of no use to another host.
    pub address: IpAddr,
    /// Length of its subnet's prefix, in bits.
    pub prefix_len: u8,
    /// Of the interface that has the address.
    pub mac: Option<Mac>,
}

impl Interface {
    /// Whether `other` lies on this address's subnet.
    pub fn shares_subnet_with(&self, other: IpAddr) -> bool {
        let (own, other, width) = match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u128::from(own.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let host_bits = width - u32::from(self.prefix_len).min(width);
        (own ^ other).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets() {
        let on = |address: &str, prefix_len, other: &str| {
            let interface = Interface { address: address.parse().unwrap(), prefix_len, mac: None };
            interface.shares_subnet_with(other.parse().unwrap())
        };
        assert!(on("192.0.2.1", 24, "192.0.2.200"));
        assert!(!on("192.0.2.1", 24, "192.0.3.1"));
        assert!(on("192.0.2.1", 0, "198.51.100.1"));
        assert!(!on("192.0.2.1", 32, "192.0.2.2"));
        assert!(on("2001:db8::1", 64, "2001:db8::ffff"));
        assert!(!on("2001:db8::1", 64, "2001:db8:0:1::1"));
        assert!(on("2001:db8::1", 0, "2001:dead::1"));
        assert!(!on("192.0.2.1", 0, "2001:db8::1"));
    }
}
