//! Peers that turnserver.conf allows and denies.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// The prefixes of an address, a range of addresses (`192.0.2.0-192.0.2.99`) or a prefix; `None` if it
/// is none of these.
pub(super) fn prefixes(text: &str) -> Option<Vec<IpNet>> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(vec![net.trunc()]);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse().ok()?, last.trim().parse().ok()?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Some(Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            Some(Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect())
        }
        _ => None,
    }
}

/// What stays of `deny`. In turnserver.conf what is allowed wins, here the longest prefix: so what lies
/// within an allowed prefix must not be denied.
pub(super) fn denied_beside(allow: &[IpNet], deny: Vec<IpNet>) -> Vec<IpNet> {
    let is_allowed = |net: &IpNet| allow.iter().any(|allowed| allowed.contains(net));
    deny.into_iter().filter(|net| !is_allowed(net)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let prefixes = prefixes(text).unwrap();
        prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ranges_become_prefixes() {
        assert_eq!(told("83.166.68.45"), "83.166.68.45/32");
        assert_eq!(told("83.166.64.0-83.166.95.255"), "83.166.64.0/19");
        assert_eq!(told("10.0.0.1-10.0.0.4"), "10.0.0.1/32 10.0.0.2/31 10.0.0.4/32");
        assert_eq!(told("2001:db8::-2001:db8::ffff"), "2001:db8::/112");
        assert_eq!(told("0.0.0.0-255.255.255.255"), "0.0.0.0/0");
        assert_eq!(told("172.16.5.9/12"), "172.16.0.0/12");
        for wrong in ["", "10.0.0.9-10.0.0.1", "10.0.0.1-2001:db8::1", "example.net"] {
            assert_eq!(prefixes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_allowed_wins() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let allow = [net("10.1.0.0/16")];
        let deny =
            vec![net("10.0.0.0/8"), net("10.1.2.0/24"), net("10.1.0.0/16"), net("11.0.0.0/8")];
        assert_eq!(denied_beside(&allow, deny), [net("10.0.0.0/8"), net("11.0.0.0/8")]);
    }
}
