//! How userspace makes entries of the flow tables.

use crate::checksum::{ip_delta, udp_delta};
use crate::flow::{Flow4, Flow6, Recipe, Tuple4, Tuple6, flags};

/// How packets leave towards one next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Interface that they leave by.
    pub ifindex: u32,
    /// Slot of that interface in the device map.
    pub egress: u8,
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub tags: Tags,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u16,
    /// Whether `XDP_TX` may be used for packets that came in by the same interface.
    pub tx: bool,
}

/// VLAN tags of packets that leave, by their tag control information (host order).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tags {
    #[default]
    None,
    /// 802.1Q.
    Customer(u16),
    /// 802.1ad alone.
    Service(u16),
    /// 802.1ad outside, 802.1Q inside.
    Both { service: u16, customer: u16 },
}

/// What of an entry is not about addresses or next hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Anything but [`VACANT`](crate::flow::VACANT); another one each time an entry is written.
    pub generation: u32,
    /// Index of the counters and of the rate limit.
    pub counter: u32,
    /// Whether the rate limit is looked at.
    pub rated: bool,
}

impl Flow4 {
    /// Packets that arrive as `from` leave as `to`, over IPv4 both.
    pub fn new(from: Tuple4, to: Tuple4, exit: &Exit, account: Account) -> Self {
        let ip_delta = ip_delta(&from, &to);
        let recipe = Recipe { ip_delta, ..recipe(udp_delta(&from, &to), exit, account) };
        Self { from, to, recipe, reverse: 0 }
    }

    /// Packets that arrive as `from` over IPv4 leave as `to` over IPv6. `reverse` is the index in the
    /// IPv6 table of the flow whose `from` is `to` mirrored; its generation has to be this one's.
    pub fn to_ipv6(from: Tuple4, to: &Tuple6, reverse: u32, exit: &Exit, account: Account) -> Self {
        let mut recipe = recipe(udp_delta(&from, to), exit, account);
        recipe.flags |= flags::TO_IPV6;
        Self { from, to: Tuple4::default(), recipe, reverse }
    }
}

impl Flow6 {
    /// Packets that arrive as `from` leave as `to`, over IPv6 both.
    pub fn new(from: Tuple6, to: Tuple6, exit: &Exit, account: Account) -> Self {
        let mut recipe = recipe(udp_delta(&from, &to), exit, account);
        recipe.flags |= flags::TO_IPV6;
        Self { from, recipe, to4: Tuple4::default(), to6: to }
    }

    /// Packets that arrive as `from` over IPv6 leave as `to` over IPv4.
    pub fn to_ipv4(from: Tuple6, to: Tuple4, exit: &Exit, account: Account) -> Self {
        let recipe = recipe(udp_delta(&from, &to), exit, account);
        Self { from, recipe, to4: to, to6: Tuple6::default() }
    }
}

fn recipe(udp_delta: u16, exit: &Exit, account: Account) -> Recipe {
    let (tags, vlan) = match exit.tags {
        Tags::None => (0, [0, 0]),
        Tags::Customer(tag) => (flags::VLAN, [tag, 0]),
        Tags::Service(tag) => (flags::VLAN | flags::SERVICE_TAG, [tag, 0]),
        Tags::Both { service, customer } => (flags::VLAN | flags::QINQ, [service, customer]),
    };
    let tx = if exit.tx { flags::TX } else { 0 };
    let rated = if account.rated { flags::RATED } else { 0 };
    Recipe {
        generation: account.generation,
        ifindex: exit.ifindex,
        counter: account.counter,
        mtu: exit.mtu,
        udp_delta,
        ip_delta: 0,
        egress: exit.egress,
        flags: tags | tx | rated,
        dst_mac: exit.dst_mac,
        src_mac: exit.src_mac,
        vlan: vlan.map(u16::to_be_bytes),
    }
}
