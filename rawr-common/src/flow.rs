//! The flow tables: what userspace decides and the kernel applies.
//!
//! A *leg* is one end of a session at this server: packets from `remote` to `local`. Its flow says
//! how such a packet leaves again. The table index follows from `local` alone, the address and port
//! that the relay itself handed out, so that a lookup hashes nothing and touches one cache line.
//! Multi-byte fields are byte arrays in network order unless their comment says otherwise.
//!
//! Userspace writes entries through shared memory while the kernel reads them. `generation` orders
//! that: a writer stores 0, the fields, then the new generation; a reader loads it before and after
//! it copies an entry, and passes the packet up if the two differ or are [`VACANT`].

use core::mem::offset_of;

/// The generation of an entry that holds no flow.
pub const VACANT: u32 = 0;

/// Version of everything in this crate that the kernel and userspace share. Pinned maps of another
/// version are not taken over but filled anew.
pub const ABI_VERSION: u32 = 1;

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

#[inline(always)]
fn ports([s0, s1]: [u8; 2], [d0, d1]: [u8; 2]) -> u32 {
    word([s0, s1, d0, d1])
}

/// How a packet leaves, whatever its family: layer 2, checksums, limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Recipe {
    /// See [`VACANT`]. Host order.
    pub generation: u32,
    /// Interface that the packet leaves by. Host order.
    pub ifindex: u32,
    /// Index of the per-CPU counters and of the rate limit. Host order.
    pub counter: u32,
    /// Largest layer 3 packet that may leave, in bytes. Host order.
    pub mtu: u16,
    /// Ones' complement sum to add to the UDP checksum (RFC 1624, eqn. 3). As loaded from a packet.
    pub udp_delta: u16,
    /// The same for the IPv4 header checksum of a packet that stays IPv4, its TTL's decrement included.
    pub ip_delta: u16,
    /// Slot of the egress interface in the device map.
    pub egress: u8,
    /// [`flags`].
    pub flags: u8,
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// 802.1Q tag control information, outer tag first; see [`flags::VLAN`].
    pub vlan: [[u8; 2]; 2],
}

/// Bits of [`Recipe::flags`].
pub mod flags {
    /// The packet leaves as IPv6. An IPv4 flow then takes its addresses from its reverse flow.
    pub const TO_IPV6: u8 = 1 << 0;
    /// `XDP_TX` may be used where the packet leaves by the interface that it came in by.
    pub const TX: u8 = 1 << 1;
    /// A rate limit stands at [`super::Recipe::counter`].
    pub const RATED: u8 = 1 << 2;
    /// One VLAN tag.
    pub const VLAN: u8 = 1 << 3;
    /// Two VLAN tags (802.1ad outside, 802.1Q inside). Implies [`VLAN`].
    pub const QINQ: u8 = 1 << 4;
    /// The only tag is an 802.1ad one.
    pub const SERVICE_TAG: u8 = 1 << 5;
}

/// A flow that arrives over IPv4: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow4 {
    /// The packet as it arrives.
    pub from: Tuple4,
    /// The packet as it leaves, over IPv4.
    pub to: Tuple4,
    pub recipe: Recipe,
    /// Index in the IPv6 table of the reverse flow, whose `from`, mirrored, is how the packet leaves
    /// over IPv6 ([`flags::TO_IPV6`]; its generation equals this one's). Host order.
    pub reverse: u32,
}

/// A flow that arrives over IPv6: two cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow6 {
    /// The packet as it arrives.
    pub from: Tuple6,
    pub recipe: Recipe,
    /// The packet as it leaves over IPv4, if [`flags::TO_IPV6`] is not set.
    pub to4: Tuple4,
    /// The packet as it leaves over IPv6, if it is.
    pub to6: Tuple6,
}

/// Packets and bytes (of layer 3, as received) that one flow forwarded on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
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
}

/// Names of the maps and of the load-time constant, as both sides use them.
pub mod names {
    pub const PROGRAM: &str = "rawr_relay";
    /// `Array<Flow4>`, `BPF_F_MMAPABLE`; its length is a power of two.
    pub const FLOWS4: &str = "FLOWS4";
    /// `Array<Flow6>`, `BPF_F_MMAPABLE`, as long as [`FLOWS4`].
    pub const FLOWS6: &str = "FLOWS6";
    /// `PerCpuArray<Counters>`, indexed by [`super::Recipe::counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// `Array<Rate>`, indexed like [`COUNTERS`].
    pub const RATES: &str = "RATES";
    /// `PerCpuArray<u64>`, indexed by [`crate::reason::Reason`].
    pub const REASONS: &str = "REASONS";
    /// `DevMap`, indexed by [`super::Recipe::egress`].
    pub const EGRESS: &str = "EGRESS";
    /// `u32` global: length of the flow tables minus one.
    pub const TABLE_MASK: &str = "TABLE_MASK";
}

/// Index in the flow table of datagrams to port `port` (host order) of an address of ours whose last
/// byte is `last_byte`. Addresses that differ in their last byte have 64k ports each, as far as the
/// table is long; others share them, so the relay hands out a port only where its index is free.
#[inline(always)]
pub const fn index(last_byte: u8, port: u16, table_mask: u32) -> u32 {
    (((last_byte as u32) << 16) | port as u32) & table_mask
}

const _: () = {
    assert!(size_of::<Recipe>() == 36);
    assert!(size_of::<Flow4>() == 64 && align_of::<Flow4>() == 64);
    assert!(size_of::<Flow6>() == 128);
    assert!(size_of::<Counters>() == 16);
    assert!(size_of::<Rate>() == 16);
    assert!(offset_of!(Flow4, reverse) == 60);
    assert!(offset_of!(Flow6, to6) % 4 == 0);
};
