//! The hosts on this server's own subnets, and which of them a MAC address stands for.

use std::collections::HashMap;
use std::net::IpAddr;

use rawr_proto::{Mac, MacKey, MacToken};

/// A change in the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ip: IpAddr,
    /// `None` where the neighbour is gone.
    pub mac: Option<Mac>,
    pub ifindex: u32,
}

/// Neighbours by address and by MAC.
#[derive(Debug)]
pub(super) struct Neighbours {
    limit: usize,
    by_ip: HashMap<IpAddr, Mac>,
    by_mac: HashMap<Mac, Vec<IpAddr>>,
}

impl Neighbours {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, by_ip: HashMap::new(), by_mac: HashMap::new() }
    }

    /// Takes in a change; tells the MAC if its host got an address that was not known.
    pub(super) fn update(&mut self, neighbour: Neighbour) -> Option<Mac> {
        let Neighbour { ip, mac, .. } = neighbour;
        if self.by_ip.get(&ip).copied() == mac {
            return None;
        }
        self.forget(ip);
        let mac = mac.filter(|_| usable(ip) && self.by_ip.len() < self.limit)?;
        self.by_ip.insert(ip, mac);
        self.by_mac.entry(mac).or_default().push(ip);
        Some(mac)
    }

    /// The addresses of the host that `token` stands for. A blinded token needs the key, and one
    /// comparison per host.
    pub(super) fn find(&self, token: &MacToken, key: Option<&MacKey>) -> &[IpAddr] {
        let mac = match token {
            MacToken::Raw(mac) => Some(*mac),
            MacToken::Blinded(_) => {
                key.and_then(|key| self.by_mac.keys().copied().find(|mac| key.matches(token, *mac)))
            }
        };
        mac.and_then(|mac| self.by_mac.get(&mac)).map_or(&[], Vec::as_slice)
    }

    fn forget(&mut self, ip: IpAddr) {
        let Some(mac) = self.by_ip.remove(&ip) else { return };
        if let Some(addresses) = self.by_mac.get_mut(&mac) {
            addresses.retain(|known| *known != ip);
            if addresses.is_empty() {
                self.by_mac.remove(&mac);
            }
        }
    }
}

/// Link-local IPv6 addresses need a scope, which an address on the wire does not have.
fn usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use rawr_proto::SessionSecret;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn neighbour(ip: &str, mac: Option<Mac>) -> Neighbour {
        Neighbour { ip: ip.parse().unwrap(), mac, ifindex: 1 }
    }

    #[test]
    fn found_raw_and_blinded() {
        let mut neighbours = Neighbours::new(10);
        assert_eq!(neighbours.update(neighbour("192.0.2.1", Some(MAC))), Some(MAC));
        assert_eq!(neighbours.update(neighbour("192.0.2.1", Some(MAC))), None);
        neighbours.update(neighbour("2001:db8::1", Some(MAC)));
        neighbours.update(neighbour("fe80::1", Some(MAC)));
        neighbours.update(neighbour("192.0.2.2", Some(OTHER)));
        assert_eq!(neighbours.find(&MacToken::Raw(MAC), None).len(), 2);

        let key = SessionSecret::from_bytes([1; 32]).mac_key();
        let other = SessionSecret::from_bytes([2; 32]).mac_key();
        assert_eq!(neighbours.find(&key.blind(MAC), Some(&key)).len(), 2);
        assert!(neighbours.find(&key.blind(MAC), Some(&other)).is_empty());
        assert!(neighbours.find(&key.blind(MAC), None).is_empty());
    }

    #[test]
    fn changes_and_limit() {
        let mut neighbours = Neighbours::new(1);
        neighbours.update(neighbour("192.0.2.1", Some(MAC)));
        assert_eq!(neighbours.update(neighbour("192.0.2.1", Some(OTHER))), Some(OTHER));
        assert!(neighbours.find(&MacToken::Raw(MAC), None).is_empty());
        assert_eq!(neighbours.update(neighbour("192.0.2.2", Some(MAC))), None);
        neighbours.update(neighbour("192.0.2.1", None));
        assert!(neighbours.find(&MacToken::Raw(OTHER), None).is_empty());
        assert_eq!(neighbours.update(neighbour("192.0.2.2", Some(MAC))), Some(MAC));
    }
}
