//! The relay: parse, look up, rewrite, verdict.
//!
//! One function over two small traits, compiled for the kernel, for the host's tests and for fuzzers.
//! Everything about a packet is checked and computed before its first byte is written; from then on it
//! is sent, or dropped with a reason. What is not forwarded is passed up as it came.

use core::ptr::NonNull;

use crate::checksum::{ipv4_header, sent, update};
use crate::flow::{self, Flow4, Flow6, Recipe, Tuple6, flags};
use crate::reason::Reason;
use crate::shared::Shared;
use crate::wire::{Ethernet, Header, Ipv4, Ipv6, Stack, Udp, VlanTag, ether_type, protocol};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on to the host's network stack, untouched.
    Pass(Reason),
    Drop(Reason),
    /// Leaves by the interface that it came in by.
    Transmit,
    /// Leaves by the interface in this slot of the device map.
    Redirect {
        slot: u8,
    },
}

/// A packet as the driver hands it over, from its Ethernet header on.
///
/// # Safety
/// What [`Frame::at`] returns is valid for reads and writes of `len` bytes until the head moves.
pub unsafe trait Frame {
    /// The `len` bytes at `offset`, or `None` if the frame ends before they do.
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>>;

    /// Length in bytes, padding included.
    fn len(&self) -> usize;

    /// Index of the interface that it came in by.
    fn ingress(&self) -> u32;

    /// Removes `delta` bytes at the front, or adds as many if negative. If it returns `false` nothing
    /// has changed.
    #[must_use]
    fn move_head(&mut self, delta: i32) -> bool;

    /// A copy of the header at `offset`.
    #[inline(always)]
    fn load<H: Header>(&self, offset: usize) -> Option<H> {
        let start = self.at(offset, size_of::<H>())?;
        // SAFETY: `at` has checked the bounds; `Header` admits any bytes.
        Some(unsafe { start.cast::<H>().read_unaligned() })
    }

    /// Overwrites the front; `false` if the frame ends before the headers do.
    #[inline(always)]
    #[must_use]
    fn store<H: Header, const TAGS: usize>(&mut self, headers: &Stack<H, TAGS>) -> bool {
        let Some(start) = self.at(0, Stack::<H, TAGS>::LEN) else { return false };
        // SAFETY: `at` has checked the bounds.
        unsafe { headers.write(start.as_ptr()) };
        true
    }

    /// Whether nothing is in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What userspace has set up, and what it wants counted.
pub trait Tables {
    /// Length of the flow tables minus one.
    fn mask(&self) -> u32;

    /// The flow at an index; `None` if there is none.
    fn flow4(&self, index: u32) -> Option<Shared<Flow4>>;

    /// The flow at an index; `None` if there is none.
    fn flow6(&self, index: u32) -> Option<Shared<Flow6>>;

    /// Whether the device map has an interface in this slot.
    fn has_egress(&self, slot: u8) -> bool;

    /// Whether the rate limit at `counter` lets `bytes` more through, which it then counts.
    fn admit(&self, counter: u32, bytes: u16) -> bool;

    /// Counts a forwarded packet.
    fn count(&self, counter: u32, bytes: u16);
}

/// Forwards one packet if there is a flow for it.
#[inline(always)]
pub fn relay(frame: &mut impl Frame, tables: &impl Tables) -> Verdict {
    match forward(frame, tables) {
        Ok(verdict) => verdict,
        Err(reason @ Reason::RateLimited) => Verdict::Drop(reason),
        Err(
            reason @ (Reason::NotIp
            | Reason::NotUdp
            | Reason::Malformed
            | Reason::Fragment
            | Reason::Options
            | Reason::ExtensionHeader
            | Reason::TtlExpired
            | Reason::TooManyTags
            | Reason::NoFlow
            | Reason::FlowChanging
            | Reason::TooBig
            | Reason::NoChecksum
            | Reason::NoHeadroom
            | Reason::NoEgress),
        ) => Verdict::Pass(reason),
    }
}

/// An error leaves the frame as it was.
#[inline(always)]
fn forward(frame: &mut impl Frame, tables: &impl Tables) -> Result<Verdict, Reason> {
    let departure = match link_layer(frame)? {
        (ether_type::IPV4, offset) => rewrite4(frame, tables, offset)?,
        (ether_type::IPV6, offset) => rewrite6(frame, tables, offset)?,
        (ether_type::VLAN | ether_type::SERVICE_VLAN, _) => return Err(Reason::TooManyTags),
        _ => return Err(Reason::NotIp),
    };
    match departure.ip {
        Ip::V4(ip) => leave(frame, tables, &departure, ip),
        Ip::V6(ip) => leave(frame, tables, &departure, ip),
    }
}

/// The EtherType behind up to two tags, and where what it announces begins.
#[inline(always)]
fn link_layer(frame: &impl Frame) -> Result<([u8; 2], usize), Reason> {
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

/// A packet on its way out.
struct Departure {
    recipe: Recipe,
    /// Length of the headers that it came with, from the frame's beginning.
    headers: usize,
    /// Length of layer 3 as it came.
    bytes: u16,
    ip: Ip,
    udp: Udp,
}

enum Ip {
    V4(Ipv4),
    V6(Ipv6),
}

/// What an IPv4 packet leaves as.
#[inline(always)]
fn rewrite4(frame: &impl Frame, tables: &impl Tables, offset: usize) -> Result<Departure, Reason> {
    let (ip, udp) = parse4(frame, offset)?;
    let shared = tables.flow4(index(ip.dst[3], &udp, tables)).ok_or(Reason::NoFlow)?;
    if !shared.from().is(&ip.tuple(&udp)) {
        return Err(Reason::NoFlow);
    }
    let recipe = shared.recipe();
    let ttl = decrement(ip.ttl)?;
    let (ip, udp) = if recipe.flags & flags::TO_IPV6 == 0 {
        let to = shared.to();
        shared.check().ok_or(Reason::FlowChanging)?;
        let checksum = update(ip.checksum, recipe.ip_delta);
        let ip = Ipv4 { ttl, checksum, src: to.src, dst: to.dst, ..ip };
        let checksum = match udp.checksum {
            [0, 0] => [0, 0],
            checksum => sent(update(checksum, recipe.udp_delta)),
        };
        let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp.len, checksum };
        (Ip::V4(ip), udp)
    } else {
        let to = mirror_of_reverse(&shared, tables)?;
        let checksum = checksum6(&udp, &recipe)?;
        let ip = Ipv6 {
            version_class_label: (6 << 28 | u32::from(ip.tos) << 20).to_be_bytes(),
            payload_len: udp.len,
            next_header: protocol::UDP,
            hop_limit: ttl,
            src: to.src,
            dst: to.dst,
        };
        let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp.len, checksum };
        (Ip::V6(ip), udp)
    };
    let headers = offset + size_of::<Ipv4>() + size_of::<Udp>();
    let bytes = u16::from_be_bytes(udp.len).wrapping_add(size_of::<Ipv4>() as u16);
    Ok(Departure { recipe, headers, bytes, ip, udp })
}

/// How a packet leaves that comes over IPv4 and goes on over IPv6: the way back, the other way round.
#[inline(always)]
fn mirror_of_reverse(shared: &Shared<Flow4>, tables: &impl Tables) -> Result<Tuple6, Reason> {
    let reverse = tables.flow6(shared.reverse()).ok_or(Reason::FlowChanging)?;
    let Tuple6 { src, dst, src_port, dst_port } = reverse.from();
    reverse.check().ok_or(Reason::FlowChanging)?;
    shared.check().ok_or(Reason::FlowChanging)?;
    if reverse.generation() != shared.generation() {
        return Err(Reason::FlowChanging);
    }
    Ok(Tuple6 { src: dst, dst: src, src_port: dst_port, dst_port: src_port })
}

/// What an IPv6 packet leaves as.
#[inline(always)]
fn rewrite6(frame: &impl Frame, tables: &impl Tables, offset: usize) -> Result<Departure, Reason> {
    let (ip, udp) = parse6(frame, offset)?;
    let shared = tables.flow6(index(ip.dst[15], &udp, tables)).ok_or(Reason::NoFlow)?;
    if !shared.from().is(&ip.tuple(&udp)) {
        return Err(Reason::NoFlow);
    }
    let recipe = shared.recipe();
    let hop_limit = decrement(ip.hop_limit)?;
    let checksum = checksum6(&udp, &recipe)?;
    // Lengths near 64 KiB, where this would wrap, exceed any MTU in `leave`.
    let total_len = |header: usize| u16::from_be_bytes(udp.len).wrapping_add(header as u16);
    let (ip, udp) = if recipe.flags & flags::TO_IPV6 != 0 {
        let to = shared.to6();
        shared.check().ok_or(Reason::FlowChanging)?;
        let ip = Ipv6 { hop_limit, src: to.src, dst: to.dst, ..ip };
        let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp.len, checksum };
        (Ip::V6(ip), udp)
    } else {
        let to = shared.to4();
        shared.check().ok_or(Reason::FlowChanging)?;
        let mut ip = Ipv4 {
            version_ihl: Ipv4::PLAIN,
            tos: ip.traffic_class(),
            total_len: total_len(size_of::<Ipv4>()).to_be_bytes(),
            id: [0, 0],
            fragment: Ipv4::DONT_FRAGMENT,
            ttl: hop_limit,
            protocol: protocol::UDP,
            checksum: [0, 0],
            src: to.src,
            dst: to.dst,
        };
        ip.checksum = ipv4_header(&ip);
        let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp.len, checksum };
        (Ip::V4(ip), udp)
    };
    let headers = offset + size_of::<Ipv6>() + size_of::<Udp>();
    Ok(Departure { recipe, headers, bytes: total_len(size_of::<Ipv6>()), ip, udp })
}

/// Headers of a whole UDP datagram over IPv4, whose lengths agree and lie within the frame.
#[inline(always)]
fn parse4(frame: &impl Frame, offset: usize) -> Result<(Ipv4, Udp), Reason> {
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
fn parse6(frame: &impl Frame, offset: usize) -> Result<(Ipv6, Udp), Reason> {
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
        kind if protocol::IPV6_EXTENSIONS.contains(&kind) => Reason::ExtensionHeader,
        _ => Reason::NotUdp,
    }
}

/// Checks that a datagram of `len` bytes at `offset` has a header and does not end behind the frame.
#[inline(always)]
fn fits(frame: &impl Frame, offset: usize, len: u16) -> Result<(), Reason> {
    if usize::from(len) < size_of::<Udp>() || offset + usize::from(len) > frame.len() {
        return Err(Reason::Malformed);
    }
    Ok(())
}

#[inline(always)]
fn index(last_byte: u8, udp: &Udp, tables: &impl Tables) -> u32 {
    flow::index(last_byte, u16::from_be_bytes(udp.dst_port), tables.mask())
}

#[inline(always)]
fn decrement(ttl: u8) -> Result<u8, Reason> {
    if ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    Ok(ttl - 1)
}

/// The checksum of a datagram that comes or leaves over IPv6, which has to have one (RFC 8200 §8.1).
#[inline(always)]
fn checksum6(udp: &Udp, recipe: &Recipe) -> Result<[u8; 2], Reason> {
    match udp.checksum {
        [0, 0] => Err(Reason::NoChecksum),
        checksum => Ok(sent(update(checksum, recipe.udp_delta))),
    }
}

/// Checks the way out, then writes the new headers. An error leaves the frame as it was.
#[inline(always)]
fn leave<H: Header>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure,
    ip: H,
) -> Result<Verdict, Reason> {
    let Departure { recipe, bytes, udp, .. } = departure;
    let len = size_of::<H>() as u32 + u32::from(u16::from_be_bytes(udp.len));
    if len > u32::from(recipe.mtu) {
        return Err(Reason::TooBig);
    }
    let verdict = if recipe.flags & flags::TX != 0 && recipe.ifindex == frame.ingress() {
        Verdict::Transmit
    } else if tables.has_egress(recipe.egress) {
        Verdict::Redirect { slot: recipe.egress }
    } else {
        return Err(Reason::NoEgress);
    };
    if recipe.flags & flags::RATED != 0 && !tables.admit(recipe.counter, *bytes) {
        return Err(Reason::RateLimited);
    }

    let [outer, inner] = recipe.vlan;
    let network =
        if size_of::<H>() == size_of::<Ipv4>() { ether_type::IPV4 } else { ether_type::IPV6 };
    let written = if recipe.flags & flags::VLAN == 0 {
        write(frame, departure, network, [], ip)?
    } else if recipe.flags & flags::QINQ == 0 {
        let service = recipe.flags & flags::SERVICE_TAG != 0;
        let first = if service { ether_type::SERVICE_VLAN } else { ether_type::VLAN };
        write(frame, departure, first, [VlanTag { control: outer, ether_type: network }], ip)?
    } else {
        let tags = [
            VlanTag { control: outer, ether_type: ether_type::VLAN },
            VlanTag { control: inner, ether_type: network },
        ];
        write(frame, departure, ether_type::SERVICE_VLAN, tags, ip)?
    };
    if !written {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    tables.count(recipe.counter, *bytes);
    Ok(verdict)
}

/// Replaces all headers. An error leaves the frame as it was; after `false` it is of no use any more.
#[inline(always)]
fn write<H: Header, const TAGS: usize>(
    frame: &mut impl Frame,
    departure: &Departure,
    ether_type: [u8; 2],
    tags: [VlanTag; TAGS],
    ip: H,
) -> Result<bool, Reason> {
    let Departure { recipe, headers, udp, .. } = *departure;
    let (dst, src) = (recipe.dst_mac, recipe.src_mac);
    let stack = Stack { ethernet: Ethernet { dst, src, ether_type }, tags, ip, udp };
    let delta = headers as i32 - Stack::<H, TAGS>::LEN as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::NoHeadroom);
    }
    Ok(frame.store(&stack))
}
