//! Which peers clients may reach through this server (RFC 8656 §21.1.4).
//!
//! What is special-purpose in IANA's registries (RFC 6890) is denied, unless a rule at least as long allows
//! it; what is this host's own, unless a rule for that address alone does. An IPv6 address that holds an
//! IPv4 address is allowed only if both are.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::special::SPECIAL;

/// What an operator decides about peers. The longest prefix that holds an address counts; of an allowed
/// and a denied prefix that are equal, the denied one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerRules {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Prefixes of NAT64 translators here, beside the well-known one (RFC 6052 §2.2): 32, 40, 48, 56, 64
    /// or 96 bits long.
    pub nat64: Vec<Ipv6Net>,
    /// Addresses that lead to this host beside those of its interfaces ([`Policy::set_host`]): public ones
    /// of a NAT in front of it, say.
    pub own: Vec<IpAddr>,
    /// Addresses that relayed transport addresses are on. Clients may reach each other there.
    pub relays: Vec<IpAddr>,
}

/// A peer's address that clients may reach. Only [`Policy::vet`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VettedPeer {
    ip: IpAddr,
    relay: bool,
}

impl VettedPeer {
    /// The address; IPv4 where IPv6 merely wraps it (RFC 4291 §2.5.5.2).
    pub const fn ip(self) -> IpAddr {
        self.ip
    }

    /// The address with a port.
    pub const fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Whether this server's own relayed transport addresses are on it. Nothing but such an address may
    /// be reached there: everything else on it is the host itself.
    pub const fn is_relay(self) -> bool {
        self.relay
    }
}

/// Why a peer may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is special-purpose, which a rule can allow.
    #[error(
        "{range} is not reachable through this server: {what}; allow it if peers are meant to be there"
    )]
    Special { range: IpNet, what: &'static str },
    /// A rule denies it.
    #[error("{0} is denied by a rule")]
    Rule(IpNet),
    /// It is an address of this host.
    #[error(
        "{0} is an address of the server itself; allow {0} by itself if peers are meant to be there"
    )]
    Own(IpAddr),
}

/// [`PeerRules`], ready to be asked.
#[derive(Clone)]
pub struct Policy {
    rules: Table<bool>,
    special: Table<Option<&'static str>>,
    nat64: Vec<Ipv6Net>,
    own: HashSet<IpAddr>,
    host: HashSet<IpAddr>,
    relays: HashSet<IpAddr>,
}

impl Policy {
    pub fn new(rules: &PeerRules) -> Self {
        let mut table = Table::default();
        rules.allow.iter().for_each(|net| table.insert(canonical_net(*net), true));
        rules.deny.iter().for_each(|net| table.insert(canonical_net(*net), false));
        let mut special = Table::default();
        for (range, what) in SPECIAL {
            special.insert(range.parse().expect("the table holds prefixes"), *what);
        }
        let mut policy = Self {
            rules: table,
            special,
            nat64: rules.nat64.iter().map(Ipv6Net::trunc).collect(),
            own: rules.own.iter().map(IpAddr::to_canonical).collect(),
            host: HashSet::new(),
            relays: HashSet::new(),
        };
        rules.relays.iter().for_each(|address| policy.add_relay(*address));
        policy
    }

    /// Denies the addresses of this host's interfaces, which are these from now on.
    pub fn set_host(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.host = addresses.into_iter().map(|address| address.to_canonical()).collect();
    }

    /// Relayed transport addresses are on this address of the host.
    pub fn add_relay(&mut self, address: IpAddr) {
        self.relays.insert(address.to_canonical());
    }

    /// Decides about a peer, in whatever form its address comes.
    ///
    /// # Errors
    /// Says what stands against it.
    pub fn vet(&self, peer: IpAddr) -> Result<VettedPeer, Denied> {
        let ip = peer.to_canonical();
        if self.relays.contains(&ip) && !self.is_named(ip) {
            return Ok(VettedPeer { ip, relay: true });
        }
        self.judge(ip)?;
        if let IpAddr::V6(v6) = ip {
            let translated = self.nat64.iter().filter(|net| net.contains(&v6));
            let translated = translated.filter_map(|net| behind_nat64(v6, net.prefix_len()));
            embedded(v6).chain(translated).try_for_each(|v4| self.judge(v4.into()))?;
        }
        Ok(VettedPeer { ip, relay: false })
    }

    /// Whether a rule allows this very address: the operator runs something on this host that clients are
    /// meant to reach.
    fn is_named(&self, ip: IpAddr) -> bool {
        let whole = IpNet::from(ip).prefix_len();
        self.rules.longest(ip).is_some_and(|(net, allowed)| allowed && net.prefix_len() == whole)
    }

    fn judge(&self, ip: IpAddr) -> Result<(), Denied> {
        let mut ours = [&self.own, &self.host, &self.relays].into_iter();
        if ours.any(|ours| ours.contains(&ip)) && !self.is_named(ip) {
            return Err(Denied::Own(ip));
        }
        let rule = self.rules.longest(ip);
        if let Some((range, false)) = rule {
            return Err(Denied::Rule(range));
        }
        let Some((range, Some(what))) = self.special.longest(ip) else { return Ok(()) };
        match rule {
            Some((allowed, true)) if allowed.prefix_len() >= range.prefix_len() => Ok(()),
            Some(_) | None => Err(Denied::Special { range, what }),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("own", &self.own)
            .field("relays", &self.relays)
            .finish_non_exhaustive()
    }
}

/// Values of prefixes, by longest match. Asked for every datagram that is sent without a channel, so it
/// hashes nothing.
#[derive(Clone)]
struct Table<T> {
    v4: Vec<Level<T>>,
    v6: Vec<Level<T>>,
}

/// The prefixes of one length; in a table, the longest come first.
#[derive(Clone)]
struct Level<T> {
    length: u8,
    /// Network and value, in order. An IPv4 address takes the highest 32 bits.
    prefixes: Vec<(u128, T)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T: Copy> Table<T> {
    /// Replaces what stood for the prefix.
    fn insert(&mut self, net: IpNet, value: T) {
        let length = net.prefix_len();
        let levels = if net.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let at = levels.partition_point(|level| level.length > length);
        if levels.get(at).is_none_or(|level| level.length != length) {
            levels.insert(at, Level { length, prefixes: Vec::new() });
        }
        let prefixes = &mut levels[at].prefixes;
        let network = bits(net.network());
        match prefixes.binary_search_by_key(&network, |(network, _)| *network) {
            Ok(at) => prefixes[at].1 = value,
            Err(at) => prefixes.insert(at, (network, value)),
        }
    }

    fn longest(&self, ip: IpAddr) -> Option<(IpNet, T)> {
        let levels = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = bits(ip);
        levels.iter().find_map(|Level { length, prefixes }| {
            let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
            let at =
                prefixes.binary_search_by_key(&(address & mask), |(network, _)| *network).ok()?;
            Some((IpNet::new(ip, *length).ok()?.trunc(), prefixes[at].1))
        })
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// `net` in IPv4 where it only wraps that.
fn canonical_net(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let Some(v4) = v6.network().to_ipv4_mapped() else { return net };
    let length = v6.prefix_len().checked_sub(96);
    length.and_then(|length| Ipv4Net::new(v4, length).ok()).map_or(net, IpNet::V4)
}

/// The IPv4 addresses that an IPv6 address leads to, in any of the forms that hold one.
fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bytes = address.octets();
    let v4 = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let forms = match address.segments() {
        // IPv4-compatible (RFC 4291 §2.5.5.1) and IPv4-translated (RFC 2765 §2.1).
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => [Some(v4(12)), None],
        // NAT64's well-known prefix (RFC 6052 §2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => [Some(v4(12)), None],
        // 6to4 (RFC 3056 §2).
        [0x2002, ..] => [Some(v4(2)), None],
        // Teredo: its server, and the client's address with all bits inverted (RFC 4380 §4).
        [0x2001, 0, ..] => [Some(v4(4)), Some(Ipv4Addr::from_bits(!v4(12).to_bits()))],
        _ => [None, None],
    };
    // ISATAP, under any prefix (RFC 5214 §6.1).
    let isatap = matches!(address.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _]);
    forms.into_iter().flatten().chain(isatap.then(|| v4(12)))
}

/// The IPv4 address behind a NAT64 prefix of this length; byte 8 is never part of it (RFC 6052 §2.2).
fn behind_nat64(address: Ipv6Addr, prefix_length: u8) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let from = usize::from(prefix_length) / 8;
    let mut rest = (from..16).filter(|at| *at != 8).map(|at| bytes[at]);
    let mut next = || rest.next();
    Some(Ipv4Addr::new(next()?, next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        Policy::new(&PeerRules { allow: nets(allow), deny: nets(deny), ..PeerRules::default() })
    }

    /// All forms that lead to an IPv4 address.
    fn forms(v4: Ipv4Addr) -> Vec<IpAddr> {
        let [a, b, c, d] = v4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let in_64 = [0x2a00, 0x64, 0, 0, u16::from(a), u16::from_be_bytes([b, c])];
        let v6 = [
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x0801, 0x0101, 0, 0, !high, !low),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7fe, 0xfefe),
            Ipv6Addr::new(0x2a00, 1, 0, 0, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2a00, 1, 0, 0, 0x200, 0x5efe, high, low),
            Ipv6Addr::new(0x2a00, 0x96, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(in_64[0], in_64[1], 0, 0, in_64[4], in_64[5], u16::from(d) << 8, 0),
            Ipv6Addr::new(0x2a00, 0x3232, high, low, 0, 0, 0, 0),
        ];
        v6.map(IpAddr::V6).to_vec()
    }

    /// Allows every prefix that forms lie in, so that nothing but the IPv4 address decides.
    fn through_everything(deny: &[&str]) -> Policy {
        let allow = ["::/96", "::ffff:0:0:0/96", "2001::/32", "2002::/16"];
        let nat64 = ["2a00:96::/96", "2a00:64::/64", "2a00:3232::/32"];
        let nat64 = nat64.iter().map(|net| net.parse().unwrap()).collect();
        let (allow, deny) = (nets(&allow), nets(deny));
        Policy::new(&PeerRules { allow, deny, nat64, ..PeerRules::default() })
    }

    fn any_in(net: Ipv4Net) -> impl Strategy<Value = Ipv4Addr> {
        any::<u32>().prop_map(move |bits| {
            let host = bits & !u32::from(net.netmask());
            Ipv4Addr::from(u32::from(net.network()) | host)
        })
    }

    fn special_v4() -> impl Strategy<Value = Ipv4Addr> {
        let nets: Vec<Ipv4Net> = SPECIAL
            .iter()
            .filter(|(_, what)| what.is_some())
            .filter_map(|(net, _)| net.parse().ok())
            .collect();
        let reachable = [Ipv4Addr::new(192, 0, 0, 9), Ipv4Addr::new(192, 0, 0, 10)];
        proptest::sample::select(nets)
            .prop_flat_map(any_in)
            .prop_filter("the part of 192.0.0.0/24 that is reachable", move |it| {
                !reachable.contains(it)
            })
    }

    fn special_v6() -> impl Strategy<Value = Ipv6Addr> {
        let nets: Vec<Ipv6Net> = SPECIAL
            .iter()
            .filter(|(_, what)| what.is_some())
            .filter_map(|(net, _)| net.parse().ok())
            .collect();
        let address = (proptest::sample::select(nets), any::<u128>());
        let reachable: Vec<Ipv6Net> = SPECIAL
            .iter()
            .filter(|(_, what)| what.is_none())
            .filter_map(|(net, _)| net.parse().ok())
            .collect();
        address
            .prop_map(|(net, bits)| {
                Ipv6Addr::from(u128::from(net.network()) | bits & !u128::from(net.netmask()))
            })
            .prop_filter("a reachable part, or IPv4", move |it| {
                it.to_ipv4_mapped().is_none() && !reachable.iter().any(|net| net.contains(it))
            })
    }

    proptest! {
        /// Against the obvious way to do it.
        #[test]
        fn the_longest_of_all_that_contain_an_address_is_found(
            nets in proptest::collection::vec((any::<u32>(), 0..=32_u8, any::<bool>()), 0..40),
            near: prop::sample::Index,
            other: u32,
        ) {
            let mut table = Table::default();
            let nets: Vec<(IpNet, bool)> = nets
                .into_iter()
                .map(|(bits, length, value)| {
                    // Few different networks, so that they overlap.
                    let address = IpAddr::V4(Ipv4Addr::from(bits & 0x8181_8181));
                    (IpNet::new(address, length).unwrap().trunc(), value)
                })
                .collect();
            nets.iter().for_each(|(net, value)| table.insert(*net, *value));
            let inside = (!nets.is_empty()).then(|| nets[near.index(nets.len())].0.addr());
            for address in inside.into_iter().chain([IpAddr::V4(Ipv4Addr::from(other))]) {
                let longest = nets
                    .iter()
                    .enumerate()
                    .filter(|(_, (net, _))| net.contains(&address))
                    .max_by_key(|(order, (net, _))| (net.prefix_len(), *order));
                prop_assert_eq!(table.longest(address), longest.map(|(_, found)| *found));
            }
            prop_assert_eq!(table.longest(IpAddr::V6(Ipv6Addr::from_bits(u128::from(other) << 96))), None);
        }

        #[test]
        fn special_addresses_are_denied_in_every_form(v4 in special_v4()) {
            let (plain, through) = (policy(&[], &[]), through_everything(&[]));
            prop_assert!(plain.vet(v4.into()).is_err());
            for form in forms(v4) {
                prop_assert!(through.vet(form).is_err(), "{form} leads to {v4}");
            }
        }

        #[test]
        fn denied_addresses_are_denied_in_every_form(host: u8) {
            let v4 = Ipv4Addr::new(8, 8, 4, host);
            let (open, closed) = (through_everything(&[]), through_everything(&["8.8.4.0/24"]));
            prop_assert!(open.vet(v4.into()).is_ok());
            prop_assert!(closed.vet(v4.into()).is_err());
            for form in forms(v4) {
                prop_assert!(open.vet(form).is_ok(), "{form}: only the rule is against it");
                prop_assert!(closed.vet(form).is_err(), "{form} leads to {v4}");
            }
        }

        #[test]
        fn own_addresses_are_denied_in_every_form(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let mut through = through_everything(&[]);
            through.set_host([v4.into()]);
            prop_assert!(through.vet(v4.into()).is_err());
            for form in forms(v4) {
                prop_assert!(through.vet(form).is_err(), "{form} leads to {v4}");
            }
        }

        #[test]
        fn special_ipv6_addresses_are_denied(v6 in special_v6()) {
            prop_assert!(policy(&[], &[]).vet(v6.into()).is_err());
            prop_assert!(policy(&["2000::/3"], &[]).vet(v6.into()).is_err(), "a shorter rule");
        }

        #[test]
        fn a_mapped_address_is_its_ipv4_address(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let policy = policy(&[], &[]);
            let mapped = policy.vet(v4.to_ipv6_mapped().into());
            prop_assert_eq!(policy.vet(v4.into()), mapped);
        }
    }

    #[test]
    fn global_addresses_are_allowed() {
        let policy = policy(&[], &[]);
        for allowed in
            ["8.8.8.8", "192.0.0.9", "192.31.196.1", "2606:4700::1111", "2001:4860::8888"]
        {
            let peer = policy.vet(ip(allowed)).unwrap();
            assert_eq!((peer.ip(), peer.is_relay()), (ip(allowed), false));
        }
        assert_eq!(policy.vet(ip("::ffff:8.8.8.8")).unwrap().at(53), "8.8.8.8:53".parse().unwrap());
        assert!(policy.vet(ip("64:ff9b::808:808")).is_ok());
        assert!(policy.vet(ip("64:ff9b::a00:1")).is_err());
    }

    #[test]
    fn longest_prefix_wins_and_of_equals_the_denial() {
        let policy = policy(
            &["10.1.0.0/16", "10.1.2.3/32", "192.168.0.0/16", "0.0.0.0/0", "fd00:1::/32"],
            &["10.1.2.0/24", "8.0.0.0/8", "9.9.9.9/32"],
        );
        for (address, allowed) in [
            ("10.1.1.1", true),
            ("10.1.2.1", false),
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("192.168.7.7", true),
            ("172.16.0.1", false),
            ("8.8.8.8", false),
            ("9.9.9.9", false),
            ("9.9.9.8", true),
            ("fd00:1::1", true),
            ("fd00:2::1", false),
            ("::ffff:10.1.2.1", false),
        ] {
            assert_eq!(policy.vet(ip(address)).is_ok(), allowed, "{address}");
        }
        let equal = Policy::new(&PeerRules {
            allow: nets(&["9.0.0.0/8"]),
            deny: nets(&["::ffff:9.0.0.0/104"]),
            ..PeerRules::default()
        });
        assert_eq!(equal.vet(ip("9.1.1.1")), Err(Denied::Rule(nets(&["9.0.0.0/8"])[0])));
    }

    #[test]
    fn the_host_may_change_its_addresses() {
        let mut policy = policy(&[], &[]);
        policy.set_host([ip("8.8.8.8"), ip("2606:4700::1111")]);
        assert_eq!(policy.vet(ip("8.8.8.8")), Err(Denied::Own(ip("8.8.8.8"))));
        assert!(policy.vet(ip("64:ff9b::808:808")).is_err());
        policy.set_host([ip("8.8.4.4")]);
        assert!(policy.vet(ip("8.8.8.8")).is_ok() && policy.vet(ip("8.8.4.4")).is_err());
    }

    #[test]
    fn relay_addresses_are_reached_directly_only() {
        let relays = vec![ip("10.0.0.1")];
        let own = vec![ip("10.0.0.1"), ip("10.0.0.2"), ip("8.8.8.8")];
        let deny = nets(&["0.0.0.0/0"]);
        let policy = Policy::new(&PeerRules { own, relays, deny, ..PeerRules::default() });
        assert!(policy.vet(ip("10.0.0.1")).unwrap().is_relay(), "no rule locks allocations apart");
        assert!(policy.vet(ip("::ffff:10.0.0.1")).unwrap().is_relay());
        for denied in ["10.0.0.2", "8.8.8.8", "64:ff9b::a00:1", "64:ff9b::808:808"] {
            assert!(policy.vet(ip(denied)).is_err(), "{denied}");
        }
        assert_eq!(policy.vet(ip("8.8.8.8")), Err(Denied::Own(ip("8.8.8.8"))));
    }

    #[test]
    fn an_own_address_is_allowed_by_a_rule_for_it_alone() {
        let host = [ip("203.0.113.5"), ip("2001:db8::5")];
        for (allow, allowed) in [
            (["203.0.113.0/24", "2001:db8::/32"], false),
            (["203.0.113.5/32", "2001:db8::5/128"], true),
        ] {
            let mut policy = policy(&allow, &[]);
            policy.set_host(host);
            policy.add_relay(host[0]);
            let named = host.map(|address| policy.vet(address));
            assert_eq!(named[1].is_ok(), allowed);
            assert_eq!(named[0].unwrap().is_relay(), !allowed, "all of it, or relays only");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = policy(&[], &[]).vet(ip("::ffff:169.254.169.254")).unwrap_err();
        let text = "169.254.0.0/16 is not reachable through this server: link-local (RFC 3927); \
                    allow it if peers are meant to be there";
        assert_eq!(error.to_string(), text);
    }
}
