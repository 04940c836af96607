//! Whose NATs stand in the way.

use std::net::{IpAddr, Ipv4Addr};

/// Whether more than the own router translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) carrier_grade: bool,
    pub(super) double_nat: Option<bool>,
}

/// What there is to judge by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clues<'a> {
    /// The host's own address.
    pub(super) local: Option<IpAddr>,
    /// What servers see.
    pub(super) external: Option<IpAddr>,
    /// The outside of the next router, as it says itself.
    pub(super) router_external: Option<IpAddr>,
    /// Routers, by distance.
    pub(super) routers: &'a [(u8, IpAddr)],
    /// Whether anything is translated at all.
    pub(super) is_translated: bool,
}

impl Clues<'_> {
    pub(super) fn judge(&self) -> Place {
        if !self.is_translated {
            return Place { carrier_grade: false, double_nat: Some(false) };
        }
        let near = [self.local, self.router_external].into_iter().flatten();
        let carrier_grade =
            near.chain(self.routers.iter().map(|(_, router)| *router)).any(is_shared);
        Place { carrier_grade, double_nat: self.double_nat() }
    }

    fn double_nat(&self) -> Option<bool> {
        if let Some((router, external)) = self.router_external.zip(self.external) {
            return Some(router != external);
        }
        // From a private network into the shared addresses of a carrier, and on from there.
        let beyond = self.routers.iter().any(|(hops, router)| *hops > 1 && is_shared(*router));
        (beyond && self.local.is_some_and(is_private)).then_some(true)
    }
}

/// 100.64.0.0/10, between subscribers and a carrier's NAT (RFC 6598).
fn is_shared(ip: IpAddr) -> bool {
    let IpAddr::V4(ip) = ip else { return false };
    ip.to_bits() >> 22 == Ipv4Addr::new(100, 64, 0, 0).to_bits() >> 22
}

/// RFC 1918.
const fn is_private(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_private())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(local: &str, router: Option<&str>, routers: &[(u8, &str)]) -> (bool, Option<bool>) {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let routers: Vec<_> = routers.iter().map(|(hops, router)| (*hops, ip(router))).collect();
        let clues = Clues {
            local: Some(ip(local)),
            external: Some(ip("203.0.113.11")),
            router_external: router.map(ip),
            routers: &routers,
            is_translated: true,
        };
        let Place { carrier_grade, double_nat } = clues.judge();
        (carrier_grade, double_nat)
    }

    #[test]
    fn a_home_router_alone() {
        assert_eq!(judge("10.0.1.2", Some("203.0.113.11"), &[]), (false, Some(false)));
        assert_eq!(judge("10.0.1.2", None, &[(1, "10.0.1.1")]), (false, None));
        // Several private networks behind one NAT, as in offices.
        assert_eq!(judge("10.0.1.2", None, &[(1, "10.0.1.1"), (2, "10.9.0.1")]), (false, None));
    }

    #[test]
    fn a_carriers_nat() {
        assert_eq!(judge("100.64.3.4", None, &[]), (true, None));
        assert_eq!(judge("100.127.255.255", None, &[]), (true, None));
        assert_eq!(judge("100.128.0.1", None, &[]), (false, None));
        let behind_home = [(1, "10.0.1.1"), (2, "100.64.0.1")];
        assert_eq!(judge("10.0.1.2", None, &behind_home), (true, Some(true)));
        assert_eq!(judge("10.0.1.2", Some("100.64.0.11"), &[]), (true, Some(true)));
        assert_eq!(judge("10.0.1.2", Some("192.168.7.2"), &[]), (false, Some(true)));
    }

    #[test]
    fn without_nat_there_is_none_of_it() {
        let local = Some([203, 0, 113, 11].into());
        let routers = [(2, [100, 64, 0, 1].into())];
        let clues = Clues {
            local,
            external: local,
            router_external: None,
            routers: &routers,
            is_translated: false,
        };
        assert_eq!(clues.judge(), Place { carrier_grade: false, double_nat: Some(false) });
    }
}
