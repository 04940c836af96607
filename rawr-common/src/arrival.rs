//! How a packet arrives: its headers, checked against each other and against the frame.

use crate::reason::Reason;
use crate::relay::Frame;
use crate::wire::{ChannelHeader, Ethernet, Ipv4, Ipv6, Udp, VlanTag, ether_type, protocol};

/// The EtherType behind up to two tags, and where what it announces begins.
#[inline(always)]
pub(crate) fn link_layer(frame: &impl Frame) -> Result<([u8; 2], usize), Reason> {
    let ethernet: Ethernet = frame.load(0).ok_or(Reason::NotIp)?;
    let (mut kind, mut offset) = (ethernet.ether_type, size_of::<Ethernet>());
    for _ in 0..2 {
        if kind != ether_type::VLAN && kind != ether_type::SERVICE_VLAN {
            break;
        }
        let tag: VlanTag = frame.load(offset).ok_or(Reason::NotIp)?;
        (kind, offset) = (tag.ether_type, offset + size_of::<VlanTag>());
    }
    Ok((kind, offset))
}

/// Headers of a whole UDP datagram over IPv4, whose lengths agree and lie within the frame.
#[inline(always)]
pub(crate) fn parse4(frame: &impl Frame, offset: usize) -> Result<(Ipv4, Udp), Reason> {
    let ip: Ipv4 = frame.load(offset).ok_or(Reason::NotIp)?;
    if ip.version_ihl != Ipv4::PLAIN {
        return Err(unusual_ipv4(&ip));
    }
    if ip.protocol != protocol::UDP {
        return Err(Reason::NotUdp);
    }
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let payload = offset + size_of::<Ipv4>();
    let udp: Udp = frame.load(payload).ok_or(Reason::Malformed)?;
    let len = u16::from_be_bytes(udp.len);
    let total_len = u32::from(u16::from_be_bytes(ip.total_len));
    if total_len != u32::from(len) + size_of::<Ipv4>() as u32 {
        return Err(Reason::Malformed);
    }
    fits(frame, payload, len)?;
    Ok((ip, udp))
}

/// Why an IPv4 header that does not begin with [`Ipv4::PLAIN`] is passed up.
#[inline(always)]
fn unusual_ipv4(ip: &Ipv4) -> Reason {
    if ip.version() != 4 || ip.version_ihl < Ipv4::PLAIN {
        return Reason::Malformed;
    }
    if ip.protocol == protocol::UDP { Reason::Options } else { Reason::NotUdp }
}

/// Headers of a whole UDP datagram over IPv6, whose lengths agree and lie within the frame.
#[inline(always)]
pub(crate) fn parse6(frame: &impl Frame, offset: usize) -> Result<(Ipv6, Udp), Reason> {
    let ip: Ipv6 = frame.load(offset).ok_or(Reason::NotIp)?;
    if ip.version() != 6 {
        return Err(Reason::Malformed);
    }
    if ip.next_header != protocol::UDP {
        return Err(unusual_ipv6(&ip));
    }
    let payload = offset + size_of::<Ipv6>();
    let udp: Udp = frame.load(payload).ok_or(Reason::Malformed)?;
    if udp.len != ip.payload_len {
        return Err(Reason::Malformed);
    }
    fits(frame, payload, u16::from_be_bytes(udp.len))?;
    Ok((ip, udp))
}

/// Why an IPv6 packet whose next header is not UDP is passed up.
#[inline(always)]
fn unusual_ipv6(ip: &Ipv6) -> Reason {
    match ip.next_header {
        protocol::IPV6_FRAGMENT => Reason::Fragment,
        kind if is_extension(kind) => Reason::ExtensionHeader,
        _ => Reason::NotUdp,
    }
}

/// Whether this is one of [`protocol::IPV6_EXTENSIONS`]: a bit for each, because comparisons with each would
/// take the program several times the room.
#[inline(always)]
fn is_extension(kind: u8) -> bool {
    // One word more than there are: constants of 32 bytes would become a map of their own.
    static EXTENSIONS: [u64; 5] = {
        let (mut bits, mut index) = ([0; 5], 0);
        while index < protocol::IPV6_EXTENSIONS.len() {
            let kind = protocol::IPV6_EXTENSIONS[index];
            bits[kind as usize / 64] |= 1 << (kind % 64);
            index += 1;
        }
        bits
    };
    EXTENSIONS[usize::from(kind / 64)] >> (kind % 64) & 1 != 0
}

/// Checks that a datagram of `len` bytes at `offset` has a header and does not end behind the frame.
#[inline(always)]
fn fits(frame: &impl Frame, offset: usize, len: u16) -> Result<(), Reason> {
    if usize::from(len) < size_of::<Udp>() || offset + usize::from(len) > frame.len() {
        return Err(Reason::Malformed);
    }
    Ok(())
}

/// What stands where the header of ChannelData would, if it could be one: the first byte tells it from
/// STUN (RFC 8656 §12.4).
#[inline(always)]
pub(crate) fn channel(frame: &impl Frame, payload: usize, udp: &Udp) -> Option<ChannelHeader> {
    let least = size_of::<Udp>() + size_of::<ChannelHeader>();
    if usize::from(u16::from_be_bytes(udp.len)) < least {
        return None;
    }
    let header: ChannelHeader = frame.load(payload)?;
    (header.number[0] & 0xc0 == 0x40).then_some(header)
}
