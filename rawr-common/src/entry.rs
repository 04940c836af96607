//! How userspace makes entries of the flow tables and exits.

use crate::checksum::{both, channel_delta, channel_ip_delta, ip_delta, udp_delta};
use crate::flow::{Channels, Counters, Exit, Flow4, Flow6, Place, Recipe, Tuple4, Tuple6, flags};

/// The next hop of a flow's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Index of the exit that leads there.
    pub exit: u8,
    pub dst_mac: [u8; 6],
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
    /// Index of the rate limit, if there is one.
    pub rate: Option<u32>,
}

impl Exit {
    /// Packets of up to `mtu` bytes of layer 3 leave by `ifindex`, from `src_mac`, without tags.
    pub fn new(ifindex: u32, src_mac: [u8; 6], mtu: u16) -> Self {
        Self { ifindex, mtu, src_mac, ..Self::default() }
    }

    /// The same with these tags.
    #[must_use]
    pub fn tagged(self, tags: Tags) -> Self {
        let (kind, vlan) = match tags {
            Tags::None => (0, [0, 0]),
            Tags::Customer(tag) => (flags::VLAN, [tag, 0]),
            Tags::Service(tag) => (flags::VLAN | flags::SERVICE_TAG, [tag, 0]),
            Tags::Both { service, customer } => (flags::VLAN | flags::QINQ, [service, customer]),
        };
        Self { flags: self.flags & flags::TX | kind, vlan: vlan.map(u16::to_be_bytes), ..self }
    }

    /// The same with or without leave to use `XDP_TX` for packets that came in by this interface.
    #[must_use]
    pub fn transmitting(self, tx: bool) -> Self {
        let flags = if tx { self.flags | flags::TX } else { self.flags & !flags::TX };
        Self { flags, ..self }
    }

    /// The tags that packets leave with.
    pub fn tags(&self) -> Tags {
        let [outer, inner] = self.vlan.map(u16::from_be_bytes);
        if self.flags & flags::QINQ != 0 {
            Tags::Both { service: outer, customer: inner }
        } else if self.flags & flags::VLAN == 0 {
            Tags::None
        } else if self.flags & flags::SERVICE_TAG != 0 {
            Tags::Service(outer)
        } else {
            Tags::Customer(outer)
        }
    }

    /// Whether `XDP_TX` may be used for packets that came in by this interface.
    pub fn transmits(&self) -> bool {
        self.flags & flags::TX != 0
    }
}

impl Flow4 {
    /// Packets that arrive as `from` leave as `to`, over IPv4 both.
    pub fn new(from: Tuple4, to: Tuple4, hop: Hop, account: Account) -> Self {
        let ip_delta = ip_delta(&from, &to);
        let recipe = Recipe { ip_delta, ..recipe(udp_delta(&from, &to), hop, account) };
        Self { from, to, counters: Counters::default(), recipe }
    }

    /// Packets that arrive as `from` over IPv4 leave as `to` over IPv6. `reverse` is where in an IPv6 table
    /// the flow stands whose `from` is `to` mirrored; its generation has to be this one's.
    pub fn to_ipv6(from: Tuple4, to: &Tuple6, reverse: Place, hop: Hop, account: Account) -> Self {
        let mut recipe = recipe(udp_delta(&from, to), hop, account);
        recipe.flags |= flags::TO_IPV6;
        let index = match reverse {
            Place::Port(index) => index,
            Place::Channel(index) => {
                recipe.flags |= flags::REVERSE_IN_CHANNELS;
                index
            }
        };
        let to = Tuple4 { src: index.to_ne_bytes(), ..Tuple4::default() };
        Self { from, to, recipe, ..Self::default() }
    }

    /// No flow: STUN Binding requests to this address and port (host order) are answered by the program.
    /// Answers leave by the interface that requests come in by, where that is the one of `exit`.
    pub fn listener(address: [u8; 4], port: u16, exit: u8, account: Account) -> Self {
        let dst_port = port.to_be_bytes();
        let from = Tuple4 { dst: address, dst_port, ..Tuple4::default() };
        Self { from, recipe: listener(exit, account), ..Self::default() }
    }

    /// The same for ChannelData of these channels.
    #[must_use]
    pub fn over(mut self, channels: Channels) -> Self {
        self.recipe = self.recipe.over(channels);
        self
    }

    /// Where the flow stands that this one takes its addresses over IPv6 from, if it does.
    pub fn reverse(&self) -> Option<Place> {
        let index = u32::from_ne_bytes(self.to.src);
        match self.recipe.flags & (flags::TO_IPV6 | flags::REVERSE_IN_CHANNELS) {
            flags::TO_IPV6 => Some(Place::Port(index)),
            0 | flags::REVERSE_IN_CHANNELS => None,
            _ => Some(Place::Channel(index)),
        }
    }
}

impl Flow6 {
    /// Packets that arrive as `from` leave as `to`, over IPv6 both.
    pub fn new(from: Tuple6, to: Tuple6, hop: Hop, account: Account) -> Self {
        let mut recipe = recipe(udp_delta(&from, &to), hop, account);
        recipe.flags |= flags::TO_IPV6;
        Self { from, recipe, to6: to, ..Self::default() }
    }

    /// Packets that arrive as `from` over IPv6 leave as `to` over IPv4.
    pub fn to_ipv4(from: Tuple6, to: Tuple4, hop: Hop, account: Account) -> Self {
        let recipe = recipe(udp_delta(&from, &to), hop, account);
        Self { from, recipe, to4: to, ..Self::default() }
    }

    /// See [`Flow4::listener`].
    pub fn listener(address: [u8; 16], port: u16, exit: u8, account: Account) -> Self {
        let dst_port = port.to_be_bytes();
        let from = Tuple6 { dst: address, dst_port, ..Tuple6::default() };
        Self { from, recipe: listener(exit, account), ..Self::default() }
    }

    /// The same for ChannelData of these channels.
    #[must_use]
    pub fn over(mut self, channels: Channels) -> Self {
        self.recipe = self.recipe.over(channels);
        self
    }
}

impl Channels {
    /// Channel numbers in host order; `None` where datagrams are plain.
    pub fn new(arriving: Option<u16>, leaving: Option<u16>) -> Self {
        let number = |number: Option<u16>| number.unwrap_or_default().to_be_bytes();
        Self { arriving: number(arriving), leaving: number(leaving) }
    }

    /// The number of what arrives (host order), if that is ChannelData.
    pub fn arriving(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.arriving)).filter(|number| *number != 0)
    }

    /// The number of what leaves (host order), if that is ChannelData.
    pub fn leaving(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.leaving)).filter(|number| *number != 0)
    }
}

impl Recipe {
    /// The recipe of a flow of plain datagrams, for ChannelData.
    fn over(mut self, channels: Channels) -> Self {
        if channels != Channels::default() {
            self.channels = channels;
            self.udp_delta = both(self.udp_delta, channel_delta(channels));
            self.ip_delta = both(self.ip_delta, channel_ip_delta(channels));
            self.flags |= flags::CHANNELS;
        }
        self
    }
}

fn listener(exit: u8, account: Account) -> Recipe {
    let mut recipe = recipe(0, Hop { exit, ..Hop::default() }, account);
    recipe.flags |= flags::LISTENER | flags::CHANNELS;
    recipe
}

fn recipe(udp_delta: u16, hop: Hop, account: Account) -> Recipe {
    Recipe {
        generation: account.generation,
        rate: account.rate.unwrap_or_default(),
        channels: Channels::default(),
        udp_delta,
        ip_delta: 0,
        dst_mac: hop.dst_mac,
        exit: hop.exit,
        flags: if account.rate.is_some() { flags::RATED } else { 0 },
    }
}
