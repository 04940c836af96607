//! The flow tables: what userspace decides and the kernel applies.
//!
//! A *leg* is one end of a session at this server: packets from `remote` to `local`. Its flow says
//! how such a packet leaves again. In the *port table* the index follows from `local` alone, the address
//! and port that the relay itself handed out, so that a lookup hashes nothing. Legs that share their
//! local port, with each other or over channels (RFC 8656 §12), stand in the *channel table* (see
//! [`crate::channel`]), save that one without a channel may stand in the port table; which ports those are
//! is told by the words of [`crate::sharing`]. An IPv4 flow's key,
//! recipe and counters share one cache line, the only one of its own that a packet touches; what it
//! shares with other flows, its [`Exit`], is small enough to stay in the cache.
//! Multi-byte fields are byte arrays in network order unless their comment says otherwise.
//!
//! Userspace writes entries through shared memory while the kernel reads them. `generation` orders
//! that: a writer stores 0, the fields, then the new generation; a reader loads it before and after
//! it copies an entry, and passes the packet up if the two differ or are [`VACANT`].
//!
//! The counters are the kernel's: userspace sets them to zero before a flow takes a vacant entry, and
//! from then on only reads them. The kernel adds to them without a lock. A flow's packets come in on
//! one CPU, because receive-side scaling hashes the 5-tuple; while a flow moves to another CPU, a
//! packet may go uncounted.

use core::mem::offset_of;

/// The generation of an entry that holds no flow.
pub const VACANT: u32 = 0;

/// Version of everything in this crate that the kernel and userspace share. Pinned maps of another
/// version are not taken over but filled anew.
pub const ABI_VERSION: u32 = 4;

/// The two ends of UDP datagrams over IPv4, as they stand in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Tuple4 {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
}

/// The two ends of UDP datagrams over IPv6, as they stand in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Tuple6 {
    pub src: [u8; 16],
    pub dst: [u8; 16],
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
}

impl Tuple4 {
    /// Equality for the kernel, where comparing arrays would be a call that loops over their bytes.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        word(self.src) == word(other.src)
            && word(self.dst) == word(other.dst)
            && ports(self.src_port, self.dst_port) == ports(other.src_port, other.dst_port)
    }
}

impl Tuple6 {
    /// Equality for the kernel, as [`Tuple4::is`].
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        u128::from_ne_bytes(self.src) == u128::from_ne_bytes(other.src)
            && u128::from_ne_bytes(self.dst) == u128::from_ne_bytes(other.dst)
            && ports(self.src_port, self.dst_port) == ports(other.src_port, other.dst_port)
    }
}

#[inline(always)]
fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// Both in one word, in whatever order.
#[inline(always)]
pub(crate) fn ports(src: [u8; 2], dst: [u8; 2]) -> u32 {
    u32::from(u16::from_ne_bytes(dst)) << 16 | u32::from(u16::from_ne_bytes(src))
}

/// Packets and bytes (of layer 3, as received) that one flow forwarded. Host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
}

/// How a packet leaves, whatever its family: checksums, limit, next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Recipe {
    /// See [`VACANT`]. Host order.
    pub generation: u32,
    /// Index of the rate limit, if there is one ([`flags::RATED`]). Host order.
    pub rate: u32,
    /// If both are 0, [`flags::CHANNELS`] is not set, unless this is a [`flags::LISTENER`].
    pub channels: Channels,
    /// Ones' complement sum to add to the UDP checksum (RFC 1624, eqn. 3): all that is the same for all
    /// packets of the flow. As loaded from a packet.
    pub udp_delta: u16,
    /// The same for the IPv4 header checksum of a packet that stays IPv4: addresses, the TTL's decrement,
    /// the length of a ChannelData header that comes or goes.
    pub ip_delta: u16,
    pub dst_mac: [u8; 6],
    /// Index of the [`Exit`].
    pub exit: u8,
    /// Of [`flags`]: how the packet leaves.
    pub flags: u8,
}

/// The channel numbers (RFC 8656 §12) of the ChannelData messages that a flow consists of; 0 where it is
/// plain datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Channels {
    /// Part of the key: of the messages that arrive.
    pub arriving: [u8; 2],
    /// Of the messages that leave.
    pub leaving: [u8; 2],
}

/// Where a flow stands: an index in one of the two tables of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In [`names::FLOWS4`] or [`names::FLOWS6`].
    Port(u32),
    /// In [`names::CHANNELS4`] or [`names::CHANNELS6`].
    Channel(u32),
}

/// One way out of this host, shared by any number of flows. It does not change while one names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Exit {
    /// Interface that packets leave by; 0 where there is no exit. Host order.
    pub ifindex: u32,
    /// Largest layer 3 packet that may leave, in bytes. Host order.
    pub mtu: u16,
    /// Of [`flags`]: tags, and `XDP_TX`.
    pub flags: u8,
    pub reserved: u8,
    pub src_mac: [u8; 6],
    /// 802.1Q tag control information, outer tag first; see [`flags::VLAN`].
    pub vlan: [[u8; 2]; 2],
    /// Makes an index a shift.
    pub unused: [u8; 14],
}

/// Bits of [`Recipe::flags`] and [`Exit::flags`].
pub mod flags {
    /// The packet leaves as IPv6. An IPv4 flow then takes its addresses from its reverse flow.
    pub const TO_IPV6: u8 = 1 << 0;
    /// A rate limit stands at [`super::Recipe::rate`].
    pub const RATED: u8 = 1 << 1;
    /// ChannelData arrives or leaves, or this is no flow ([`LISTENER`]): nothing for the shortest way.
    pub const CHANNELS: u8 = 1 << 2;
    /// The reverse flow of an IPv4 flow that leaves as IPv6 stands in the channel table.
    pub const REVERSE_IN_CHANNELS: u8 = 1 << 3;
    /// No flow: the program itself answers STUN Binding requests to `from.dst` and `from.dst_port`, by
    /// the exit of this entry. Stands in the port table. Implies [`CHANNELS`].
    pub const LISTENER: u8 = 1 << 4;
    /// Others have the port that the packet arrives at. The kernel looks at neither this bit nor the next:
    /// they tell a restarted daemon what an entry of the port table was made from.
    pub const SHARES_FROM: u8 = 1 << 6;
    /// Others have the port that it leaves by.
    pub const SHARES_TO: u8 = 1 << 7;

    /// `XDP_TX` may be used where the packet leaves by the interface that it came in by.
    pub const TX: u8 = 1 << 0;
    /// One VLAN tag.
    pub const VLAN: u8 = 1 << 1;
    /// Two VLAN tags (802.1ad outside, 802.1Q inside). Implies [`VLAN`].
    pub const QINQ: u8 = 1 << 2;
    /// The only tag is an 802.1ad one.
    pub const SERVICE_TAG: u8 = 1 << 3;
}

/// A flow that arrives over IPv4: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow4 {
    /// The packet as it arrives.
    pub from: Tuple4,
    /// The packet as it leaves, over IPv4. If it leaves over IPv6: in place of `src`, the index of the
    /// reverse flow (host order; see [`flags::REVERSE_IN_CHANNELS`]), whose `from`, mirrored, is how the
    /// packet leaves, and whose generation equals this one's.
    pub to: Tuple4,
    pub counters: Counters,
    pub recipe: Recipe,
}

/// A flow that arrives over IPv6: two cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow6 {
    /// The packet as it arrives.
    pub from: Tuple6,
    /// The packet as it leaves over IPv4, if [`flags::TO_IPV6`] is not set.
    pub to4: Tuple4,
    pub counters: Counters,
    pub recipe: Recipe,
    /// The packet as it leaves over IPv6, if it is.
    pub to6: Tuple6,
    pub reserved: [u8; 4],
}

/// A rate limit and its state: the generic cell rate algorithm (ITU-T I.371), a token bucket that
/// needs one time stamp. All in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Time at which the bucket is full again, in nanoseconds of the coarse monotonic clock.
    pub full_at: u64,
    /// Nanoseconds that one KiB (1,024 bytes of layer 3) takes at the limit.
    pub ns_per_kib: u32,
    /// How far `full_at` may lie ahead of now, in microseconds.
    pub burst_us: u32,
    /// Another limit that a packet has to keep as well: its index plus one; 0 if there is none. That one's
    /// parent is of no account.
    pub parent: u32,
    /// Whether `group` means something. The kernel looks at neither.
    pub shared: u32,
    /// What flows that share this limit have in common, so that a restarted daemon knows it again.
    pub group: u64,
}

/// Names of the maps and of the load-time constant, as both sides use them.
pub mod names {
    pub const PROGRAM: &str = "rawr_relay";
    /// `Array<Flow4>`, `BPF_F_MMAPABLE`; its length is a power of two.
    pub const FLOWS4: &str = "FLOWS4";
    /// `Array<Flow6>`, `BPF_F_MMAPABLE`, as long as [`FLOWS4`].
    pub const FLOWS6: &str = "FLOWS6";
    /// `Array<Flow4>`, `BPF_F_MMAPABLE`: the channel table; its length is a power of two, at least
    /// [`crate::channel::GROUP`].
    pub const CHANNELS4: &str = "CHANNELS4";
    /// `Array<Flow6>`, `BPF_F_MMAPABLE`, as long as [`CHANNELS4`].
    pub const CHANNELS6: &str = "CHANNELS6";
    /// `Array<u64>`, `BPF_F_MMAPABLE`, of [`crate::sharing::WORDS`]: the ports that have flows in
    /// [`CHANNELS4`] and [`CHANNELS6`].
    pub const SHARED_PORTS: &str = "SHARED_PORTS";
    /// `Array<Exit>`, indexed by [`super::Recipe::exit`].
    pub const EXITS: &str = "EXITS";
    /// `Array<Rate>`, indexed by [`super::Recipe::rate`].
    pub const RATES: &str = "RATES";
    /// `PerCpuArray<u64>`, indexed by [`crate::reason::Reason`].
    pub const REASONS: &str = "REASONS";
    /// `DevMap`, indexed like [`EXITS`].
    pub const EGRESS: &str = "EGRESS";
    /// `u32` global: length of the port tables minus one.
    pub const TABLE_MASK: &str = "TABLE_MASK";
    /// `u32` global: length of the channel tables minus one.
    pub const CHANNEL_MASK: &str = "CHANNEL_MASK";
    /// `u32` global: not 0 where the program answers STUN Binding requests. Where it does not, the kernel
    /// leaves out what would.
    pub const ANSWERS: &str = "ANSWERS";
    /// `u64` global: random, so that nobody can choose addresses that collide; see
    /// [`crate::channel::hash4`]. It stays the same as long as what is in the channel tables.
    pub const HASH_SEED: &str = "HASH_SEED";
}

/// How many exits there may be: as many as [`Recipe::exit`] can name.
pub const EXITS: u32 = 1 << 8;

/// Index in the flow table of datagrams to port `port` (host order) of an address of ours whose last
/// byte is `last_byte`. Addresses that differ in their last byte have 64k ports each, as far as the
/// table is long; others share them, so the relay hands out a port only where its index is free.
#[inline(always)]
pub const fn index(last_byte: u8, port: u16, table_mask: u32) -> u32 {
    (((last_byte as u32) << 16) | port as u32) & table_mask
}

const _: () = {
    assert!(size_of::<Recipe>() == 24);
    assert!(size_of::<Exit>() == 32);
    assert!(size_of::<Flow4>() == 64 && align_of::<Flow4>() == 64);
    assert!(size_of::<Flow6>() == 128 && align_of::<Flow6>() == 64);
    assert!(size_of::<Counters>() == 16);
    assert!(size_of::<Rate>() == 32);
    assert!(size_of::<Channels>() == 4);
    assert!(offset_of!(Flow4, recipe) + size_of::<Recipe>() == 64);
    assert!(offset_of!(Flow6, to6) % 8 == 0 && offset_of!(Flow6, reserved) == 124);
};
