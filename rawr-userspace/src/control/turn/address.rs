//! Which addresses of ours relayed transport addresses are on.

use std::net::IpAddr;

use stun_types::AddressFamily;

use super::allocation::{family_of, place};
use super::config::TurnConfig;

/// Addresses for each family, IPv4 first.
#[derive(Debug)]
pub(super) struct Addresses {
    configured: [Vec<IpAddr>; 2],
    /// Where clients are listened to, if not everywhere.
    listening: [Option<IpAddr>; 2],
    /// Of the host's interfaces.
    host: [Option<IpAddr>; 2],
    /// Allocations that have been given an address.
    given: usize,
}

impl Addresses {
    pub(super) fn new(config: &TurnConfig) -> Self {
        let mut configured = [Vec::new(), Vec::new()];
        for address in &config.relay_addresses {
            configured[place(family_of(*address))].push(*address);
        }
        let listening = config.listen_addresses.iter().copied();
        Self { configured, listening: best(listening), host: [None; 2], given: 0 }
    }

    pub(super) fn set_host(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.host = best(addresses);
    }

    /// The next allocation takes the next of several addresses.
    pub(super) fn advance(&mut self) {
        self.given = self.given.wrapping_add(1);
    }

    /// The address of a family for the client that speaks to `local`: one that the operator named; else that
    /// same one; else one that clients are listened to on; else the host's.
    pub(super) fn of(&self, family: AddressFamily, local: IpAddr) -> Option<IpAddr> {
        let at = place(family);
        match &self.configured[at][..] {
            [] => {
                let same = Some(local).filter(|local| family_of(*local) == family);
                same.or(self.listening[at]).or(self.host[at])
            }
            several => Some(several[self.given % several.len()]),
        }
    }
}

/// The best address of each family: rather a public one than one of a private network, the lowest of
/// several.
fn best(addresses: impl IntoIterator<Item = IpAddr>) -> [Option<IpAddr>; 2] {
    let mut best = [None; 2];
    for address in addresses {
        let slot = &mut best[place(family_of(address))];
        if let Some(rank) = rank(address)
            && slot.is_none_or(|taken| (rank, address) < taken)
        {
            *slot = Some((rank, address));
        }
    }
    best.map(|slot| slot.map(|(_, address)| address))
}

/// How little an address suits peers; `None` for one that is good on a link or on this host alone.
fn rank(address: IpAddr) -> Option<u8> {
    let (is_local, is_private) = match address {
        IpAddr::V4(v4) => (v4.is_loopback() || v4.is_link_local(), v4.is_private()),
        IpAddr::V6(v6) => (v6.is_loopback() || v6.is_unicast_link_local(), v6.is_unique_local()),
    };
    let is_host = !is_local && !address.is_unspecified() && !address.is_multicast();
    is_host.then_some(u8::from(is_private))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn the_host_s_best_address_is_public() {
        let shown =
            |text| best(ips(text)).map(|ip| ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string()));
        assert_eq!(shown("127.0.0.1 ::1 fe80::1 169.254.0.1 0.0.0.0 ff02::1"), ["-", "-"]);
        assert_eq!(shown("10.0.0.1 fd00::1 192.168.0.1"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(
            shown("10.0.0.1 192.0.2.2 192.0.2.1 fd00::1 2001:db8::1"),
            ["192.0.2.1", "2001:db8::1"]
        );
    }

    #[test]
    fn what_is_named_comes_first_then_what_the_client_speaks_to() {
        let mut addresses = Addresses::new(&TurnConfig {
            relay_addresses: ips("192.0.2.1 192.0.2.2"),
            listen_addresses: ips("2001:db8::5 192.0.2.9"),
            ..TurnConfig::default()
        });
        addresses.set_host(ips("192.0.2.8 2001:db8::8"));
        let [v4, v6] = [AddressFamily::IPV4, AddressFamily::IPV6];
        let of = |addresses: &Addresses, family, local: &str| {
            addresses.of(family, local.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(of(&addresses, v4, "192.0.2.7"), "192.0.2.1");
        addresses.advance();
        assert_eq!(of(&addresses, v4, "192.0.2.7"), "192.0.2.2");
        addresses.advance();
        assert_eq!(of(&addresses, v4, "2001:db8::7"), "192.0.2.1");
        assert_eq!(of(&addresses, v6, "2001:db8::7"), "2001:db8::7");
        assert_eq!(of(&addresses, v6, "192.0.2.7"), "2001:db8::5");
    }
}
