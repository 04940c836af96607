//! What home routers and carriers do to UDP, as nftables rules. Terms are those of RFC 4787.

use anyhow::Result;

use crate::netns::Netns;

/// How a router translates and filters what passes between its inside and one outside interface.
///
/// What the router itself sends keeps its port, as with the usual masquerading: it is not its own
/// guest. A router that gave its own sockets random ports would translate what they send, and not
/// what an XDP program sends on their behalf.
///
/// All kinds refuse packets from outside that nothing inside has asked for, to the router itself
/// too: a router whose own outside is open lets an early packet of the remote end spoil a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Address and port dependent mapping (a new random port for each destination), address and
    /// port dependent filtering. IPv6 is translated in the same way.
    Symmetric,
    /// The usual home router: endpoint independent mapping, address and port dependent filtering.
    /// IPv6 is filtered but not translated.
    Home,
    /// Filters, translates nothing.
    Firewall,
}

impl Nat {
    /// Makes `router` forward, and translate towards its interface `outside`.
    pub fn apply(self, router: &Netns, outside: &str) -> Result<()> {
        forward(router)?;
        router.sh(&format!("nft -f - <<'RULES'\n{}\nRULES", self.rules(outside)))?;
        Ok(())
    }

    fn rules(self, outside: &str) -> String {
        let guests = format!("oifname \"{outside}\" fib saddr type != local");
        let translation = match self {
            Self::Symmetric => format!("{guests} masquerade fully-random"),
            Self::Home => format!("{guests} meta nfproto ipv4 masquerade"),
            Self::Firewall => String::new(),
        };
        format!(
            r#"table inet rawr_nat {{
    chain translate {{
        type nat hook postrouting priority srcnat; policy accept;
        {translation}
    }}
    chain to_router {{
        type filter hook input priority filter; policy accept;
        meta l4proto ipv6-icmp accept
        iifname "{outside}" ct state new counter drop
    }}
    chain through_router {{
        type filter hook forward priority filter; policy accept;
        meta l4proto ipv6-icmp accept
        iifname "{outside}" ct state established,related counter accept
        iifname "{outside}" counter drop
    }}
}}"#
        )
    }
}

/// Makes `router` forward both families.
pub fn forward(router: &Netns) -> Result<()> {
    router.set("net/ipv4/ip_forward", "1")?;
    router.set("net/ipv6/conf/all/forwarding", "1")
}
