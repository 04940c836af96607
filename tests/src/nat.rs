//! What home routers and carriers do to UDP, as nftables rules. Terms are those of RFC 4787.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::conntrack;
use crate::netns::{Netns, checked};

/// First port of [`Nat::Block`].
pub const BLOCK_LOW: u16 = 20_000;
/// Last port of [`Nat::Block`].
pub const BLOCK_HIGH: u16 = 20_511;
/// First of the ports of [`Nat::Sequential`] and [`Nat::AddressDependent`].
const FIRST_PORT: u16 = 41_000;
/// How many ports [`Nat::Sequential`] gives in turn before it begins again.
const SEQUENCE: u16 = 8192;
/// How many ports [`Nat::AddressDependent`] has.
const HASHED: u16 = 256;

/// How a router translates and filters what passes between its inside and one outside interface.
///
/// What the router itself sends keeps its port, as with the usual masquerading: it is not its own
/// guest. A router that gave its own sockets random ports would translate what they send, and not
/// what an XDP program sends on their behalf.
///
/// All kinds but [`Nat::HomeOpen`], [`Nat::FullCone`] and [`Nat::Carrier`] refuse packets from outside
/// that nothing inside has asked for, to the router itself too: a router whose own outside is open lets
/// an early packet of the remote end spoil a mapping.
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
    /// As [`Nat::Home`], but its outside is open: a packet of a remote end that comes before ours has
    /// left spoils the mapping. IPv6 is neither filtered nor translated.
    HomeOpen,
    /// As [`Nat::Home`], but what comes from outside without being asked for is translated, then dropped:
    /// no early packet spoils a mapping.
    HomeMapped,
    /// Endpoint independent mapping and filtering. IPv6 is neither filtered nor translated.
    FullCone,
    /// Endpoint independent mapping, address dependent filtering. IPv6 is filtered as by [`Nat::Home`].
    AddressFiltered,
    /// Address dependent mapping, address and port dependent filtering. IPv6 as [`Nat::Home`].
    AddressDependent,
    /// As [`Nat::Symmetric`] for IPv4, by the weaker of the kernel's two ways to choose a random port.
    SymmetricRandom,
    /// Address and port dependent mapping, each port of UDP one above the last one's; filtering as
    /// [`Nat::Home`].
    Sequential,
    /// Address and port dependent mapping, UDP and TCP at random within 512 ports, as a carrier gives to one
    /// subscriber; filtering as [`Nat::Home`].
    Block,
    /// No UDP, in neither family; everything else as [`Nat::Home`].
    UdpBlocked,
    /// Nothing but TCP to port 443, in both families; otherwise as [`Nat::Home`].
    WebOnly,
    /// A carrier's NAT: endpoint independent mapping and filtering. With `hairpin`, hosts inside reach each
    /// other by their external endpoints, and see those (RFC 4787 REQ-9).
    Carrier { hairpin: bool },
}

impl Nat {
    /// Makes `router` forward, and translate towards its interface `outside`.
    pub fn apply(self, router: &Netns, outside: &str) -> Result<()> {
        forward(router)?;
        let address = address_of(router, outside)?;
        load(router, &self.rules(outside, address))
    }

    fn rules(self, outside: &str, address: Ipv4Addr) -> String {
        let translation = self.translation(outside, address);
        let mapped = match self {
            Self::FullCone | Self::HomeMapped | Self::AddressFiltered => {
                format!("iifname \"{outside}\" meta l4proto udp dnat ip to udp dport map @mapped")
            }
            Self::Carrier { hairpin: false } => format!(
                "iifname \"{outside}\" ip daddr {address} meta l4proto udp \
                 dnat ip to udp dport map @mapped"
            ),
            Self::Carrier { hairpin: true } => {
                format!("ip daddr {address} meta l4proto udp dnat ip to udp dport map @mapped")
            }
            _ => String::new(),
        };
        let (to_router, through_router) = self.filters(outside);
        format!(
            r#"table inet rawr_nat {{
    map mapped {{
        type inet_service : ipv4_addr . inet_service
        flags dynamic,timeout; timeout 300s; size 65536;
    }}
    set seen {{
        type ipv4_addr . inet_service . ipv4_addr
        flags dynamic,timeout; timeout 300s; size 65536;
    }}
    chain arrive {{
        type nat hook prerouting priority dstnat; policy accept;
        {mapped}
    }}
    chain translate {{
        type nat hook postrouting priority srcnat; policy accept;
        {translation}
    }}
    chain to_router {{
        type filter hook input priority filter; policy accept;
        meta l4proto ipv6-icmp accept
        {to_router}
    }}
    chain through_router {{
        type filter hook forward priority filter; policy accept;
        meta l4proto ipv6-icmp accept
        {through_router}
    }}
}}"#
        )
    }

    /// What leaves by `outside`.
    fn translation(self, outside: &str, address: Ipv4Addr) -> String {
        let guests = format!("oifname \"{outside}\" fib saddr type != local");
        let ipv4 = format!("{guests} meta nfproto ipv4");
        let udp = format!("{ipv4} meta l4proto udp");
        let remembered = format!(
            "{udp} update @mapped {{ udp sport timeout 300s : ip saddr . udp sport }}\n\
             {ipv4} snat ip to {address}"
        );
        match self {
            Self::Symmetric => format!("{guests} masquerade fully-random"),
            Self::SymmetricRandom => format!("{ipv4} masquerade random"),
            Self::Home | Self::HomeOpen | Self::UdpBlocked | Self::WebOnly => {
                format!("{ipv4} masquerade")
            }
            Self::Firewall => String::new(),
            Self::FullCone
            | Self::HomeMapped
            | Self::AddressFiltered
            | Self::Carrier { hairpin: false } => remembered,
            Self::Carrier { hairpin: true } => format!(
                "{remembered}\niifname != \"{outside}\" oifname != \"{outside}\" meta nfproto ipv4 \
                 ct status dnat snat ip to {address}"
            ),
            Self::AddressDependent => format!(
                "{udp} snat ip to {address} : jhash ip daddr . udp sport mod {HASHED} map {{ {} }}\n\
                 {ipv4} masquerade",
                ports(HASHED)
            ),
            Self::Sequential => format!(
                "{udp} snat ip to {address} : numgen inc mod {SEQUENCE} map {{ {} }}\n\
                 {ipv4} masquerade",
                ports(SEQUENCE)
            ),
            Self::Block => format!(
                "{ipv4} meta l4proto {{ tcp, udp }} \
                 snat ip to {address}:{BLOCK_LOW}-{BLOCK_HIGH} fully-random\n\
                 {ipv4} masquerade"
            ),
        }
    }

    /// What comes from outside: for the router itself, and for those behind it.
    fn filters(self, outside: &str) -> (String, String) {
        let refused = format!("iifname \"{outside}\" ct state new counter drop");
        let asked_for = format!(
            "iifname \"{outside}\" ct state established,related counter accept\n\
             iifname \"{outside}\" counter drop"
        );
        match self {
            Self::HomeOpen | Self::FullCone | Self::Carrier { .. } => {
                (String::new(), String::new())
            }
            Self::AddressFiltered => {
                let remembered = format!(
                    "iifname != \"{outside}\" meta l4proto udp \
                     update @seen {{ ip saddr . udp sport . ip daddr timeout 300s }}\n\
                     iifname \"{outside}\" meta l4proto udp \
                     ip daddr . udp dport . ip saddr @seen counter accept"
                );
                (refused, format!("{remembered}\n{asked_for}"))
            }
            Self::UdpBlocked => (refused, format!("meta l4proto udp counter drop\n{asked_for}")),
            Self::WebOnly => {
                let others = format!("iifname != \"{outside}\" meta l4proto != tcp counter drop");
                let web = format!("iifname != \"{outside}\" tcp dport != 443 counter drop");
                (refused, format!("{others}\n{web}\n{asked_for}"))
            }
            Self::Symmetric
            | Self::SymmetricRandom
            | Self::Home
            | Self::HomeMapped
            | Self::Firewall
            | Self::AddressDependent
            | Self::Sequential
            | Self::Block => (refused, asked_for),
        }
    }
}

/// The elements of a map from numbers to ports.
fn ports(count: u16) -> String {
    let pairs: Vec<_> =
        (0..count).map(|number| format!("{number} : {}", FIRST_PORT + number)).collect();
    pairs.join(", ")
}

/// The IPv4 address of an interface.
fn address_of(router: &Netns, interface: &str) -> Result<Ipv4Addr> {
    let shown = router.sh(&format!("ip -4 -oneline address show dev {interface}"))?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "inet").skip(1);
    let address = words.next().and_then(|word| word.split('/').next());
    let address = address.and_then(|address| address.parse().ok());
    address.with_context(|| format!("{interface} of {} has no IPv4 address", router.name()))
}

/// Loads a ruleset. It may be longer than what a command line holds.
fn load(router: &Netns, rules: &str) -> Result<()> {
    let mut command = router.command("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = command.spawn().context("nft cannot be run; is nftables installed?")?;
    let mut stdin = nft.stdin.take().context("nft has no standard input")?;
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.chars().take(600).collect();
        bail!("nft refuses the rules of {}: {}", router.name(), said.trim());
    }
    Ok(())
}

/// Makes a router forget what it has translated, as if it had just been started. It translates on.
pub fn forget(router: &Netns) -> Result<()> {
    let mut command = router.command("nft");
    checked(command.arg("flush map inet rawr_nat mapped; flush set inet rawr_nat seen"))?;
    router
        .run(conntrack::flush)?
        .with_context(|| format!("{} does not forget its connections", router.name()))
}

/// Makes `router` forward both families.
pub fn forward(router: &Netns) -> Result<()> {
    router.set("net/ipv4/ip_forward", "1")?;
    router.set("net/ipv6/conf/all/forwarding", "1")
}
