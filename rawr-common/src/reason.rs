//! Why a packet was not forwarded. Each reason has one counter.

/// Why the program did not forward a packet. The numbers are indices of the `REASONS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Neither IPv4 nor IPv6, or cut short before the addresses.
    NotIp = 0,
    /// IP, but not UDP.
    NotUdp,
    /// Lengths in the headers that contradict each other or the frame.
    Malformed,
    /// A fragment, first or later.
    Fragment,
    /// IPv4 options.
    Options,
    /// IPv6 extension header.
    ExtensionHeader,
    /// TTL or hop limit of 1 or less.
    TtlExpired,
    /// More than two VLAN tags.
    TooManyTags,
    /// No flow for this 5-tuple.
    NoFlow,
    /// The flow changed while it was read.
    FlowChanging,
    /// Would not fit the egress MTU.
    TooBig,
    /// UDP over IPv6 without a checksum, or an IPv4 one that would become so.
    NoChecksum,
    /// Over the flow's rate limit; dropped.
    RateLimited,
    /// The driver refused to move the packet's head; dropped if already changed, else passed up.
    NoHeadroom,
    /// No interface in the flow's slot of the device map: it is gone or not there yet.
    NoEgress,
    /// ChannelData of a bound channel whose length contradicts the datagram's (RFC 8656 §12.6), or that is
    /// followed by more than padding to a multiple of four.
    ChannelLength,
    /// A STUN Binding request beyond the rate at which the program answers; userspace may.
    BindingLimited,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::NotIp,
        Self::NotUdp,
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::ExtensionHeader,
        Self::TtlExpired,
        Self::TooManyTags,
        Self::NoFlow,
        Self::FlowChanging,
        Self::TooBig,
        Self::NoChecksum,
        Self::RateLimited,
        Self::NoHeadroom,
        Self::NoEgress,
        Self::ChannelLength,
        Self::BindingLimited,
    ];

    /// The name in metrics and in `rawr status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NotUdp => "not_udp",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::Options => "ip_options",
            Self::ExtensionHeader => "extension_header",
            Self::TtlExpired => "ttl_expired",
            Self::TooManyTags => "too_many_tags",
            Self::NoFlow => "no_flow",
            Self::FlowChanging => "flow_changing",
            Self::TooBig => "too_big",
            Self::NoChecksum => "no_checksum",
            Self::RateLimited => "rate_limited",
            Self::NoHeadroom => "no_headroom",
            Self::NoEgress => "no_egress",
            Self::ChannelLength => "channel_length",
            Self::BindingLimited => "binding_limited",
        }
    }
}
