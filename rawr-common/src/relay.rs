//! The relay: parse, look up, rewrite, verdict.
//!
//! One function over two small traits, compiled for the kernel, for the host's tests and for fuzzers.
//! Everything about a packet is checked and computed before its first byte is written; from then on it
//! is sent, or dropped with a reason. What is not forwarded is passed up as it came.

use core::ptr::NonNull;

use crate::checksum::{ipv4_header, sent, update};
use crate::flow::{self, Exit, Flow4, Flow6, Recipe, Tuple6, flags};
use crate::reason::Reason;
use crate::shared::{Meter, Shared};
use crate::wire::{
    End4, End6, Ethernet, Header, Ipv4, Ipv6, Mac, Outgoing, Stack, Udp, VlanTag, Whole,
    ether_type, protocol,
};

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
        Some(unsafe { H::load(start) })
    }

    /// Overwrites the front; `false` if the frame ends before the headers do.
    #[inline(always)]
    #[must_use]
    fn store<T: Outgoing, const TAGS: usize>(&mut self, headers: &Stack<T, TAGS>) -> bool {
        let Some(start) = self.at(0, Stack::<T, TAGS>::LEN) else { return false };
        // SAFETY: `at` has checked the bounds.
        unsafe { headers.write(start.as_ptr()) };
        true
    }

    /// Whether nothing is in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What userspace has set up.
pub trait Tables {
    /// Length of the flow tables minus one.
    fn mask(&self) -> u32;

    /// The flow at an index; `None` if there is none.
    fn flow4(&self, index: u32) -> Option<Shared<Flow4>>;

    /// The flow at an index; `None` if there is none.
    fn flow6(&self, index: u32) -> Option<Shared<Flow6>>;

    /// The exit in this slot.
    fn exit(&self, slot: u8) -> Option<Exit>;

    /// Whether the device map has an interface in this slot.
    fn has_egress(&self, slot: u8) -> bool;

    /// Whether the rate limit at this index lets `bytes` more through, which it then counts.
    fn admit(&self, rate: u32, bytes: u16) -> bool;
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
    let (kind, offset) = link_layer(frame)?;
    // Comparisons of whole words: a match would look at byte by byte.
    if kind == ether_type::IPV4 {
        forward4(frame, tables, offset)
    } else if kind == ether_type::IPV6 {
        forward6(frame, tables, offset)
    } else if kind == ether_type::VLAN || kind == ether_type::SERVICE_VLAN {
        Err(Reason::TooManyTags)
    } else {
        Err(Reason::NotIp)
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
struct Departure<T> {
    way: Way,
    meter: Meter,
    /// Length of the headers that it came with, from the frame's beginning.
    headers: usize,
    /// Length of layer 3 as it came.
    bytes: u16,
    /// Length of layer 3 as it leaves.
    len: u32,
    outgoing: T,
}

/// What a recipe says about the way out.
struct Way {
    dst: Mac,
    exit: u8,
    /// Index of the rate limit.
    rate: Option<u32>,
}

/// Forwards what arrives over IPv4.
#[inline(always)]
fn forward4(
    frame: &mut impl Frame,
    tables: &impl Tables,
    offset: usize,
) -> Result<Verdict, Reason> {
    let (ip, udp) = parse4(frame, offset)?;
    let shared = tables.flow4(index(ip.dst[3], &udp, tables)).ok_or(Reason::NoFlow)?;
    if !shared.from().is(&ip.tuple(&udp)) {
        return Err(Reason::NoFlow);
    }
    let (recipe, meter) = (shared.recipe(), shared.meter());
    let way = way(&recipe);
    let ttl = decrement(ip.ttl)?;
    let headers = offset + size_of::<Whole<Ipv4>>();
    let bytes = u16::from_be_bytes(udp.len).wrapping_add(size_of::<Ipv4>() as u16);
    if recipe.flags & flags::TO_IPV6 == 0 {
        let ends = shared.to();
        shared.check().ok_or(Reason::FlowChanging)?;
        let checksum = update(ip.checksum, recipe.ip_delta);
        let udp_checksum = match u16::from_ne_bytes(udp.checksum) {
            0 => 0,
            _ => u16::from_ne_bytes(sent(update(udp.checksum, recipe.udp_delta))),
        };
        let udp_checksum = udp_checksum.to_ne_bytes();
        let [c0, c1] = checksum;
        let ttl = u32::from_ne_bytes([ttl, protocol::UDP, c0, c1]);
        let outgoing = End4 { ttl, ends, udp_len: udp.len, udp_checksum };
        let len = u32::from(bytes);
        return leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing });
    }
    let to = mirror_of_reverse(&shared, &recipe, tables)?;
    let checksum = checksum6(&udp, &recipe)?;
    let ip = Ipv6 {
        version_class_label: (6 << 28 | u32::from(ip.tos) << 20).to_be_bytes(),
        payload_len: udp.len,
        next_header: protocol::UDP,
        hop_limit: ttl,
        src: to.src,
        dst: to.dst,
    };
    let len = layer3_len::<Ipv6>(&udp);
    let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp.len, checksum };
    let outgoing = Whole { ip, udp };
    leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing })
}

/// How a packet leaves that comes over IPv4 and goes on over IPv6: the way back, the other way round.
#[inline(always)]
fn mirror_of_reverse(
    shared: &Shared<Flow4>,
    recipe: &Recipe,
    tables: &impl Tables,
) -> Result<Tuple6, Reason> {
    let reverse = tables.flow6(recipe.reverse).ok_or(Reason::FlowChanging)?;
    let Tuple6 { src, dst, src_port, dst_port } = reverse.from();
    reverse.check().ok_or(Reason::FlowChanging)?;
    shared.check().ok_or(Reason::FlowChanging)?;
    if reverse.generation() != shared.generation() {
        return Err(Reason::FlowChanging);
    }
    Ok(Tuple6 { src: dst, dst: src, src_port: dst_port, dst_port: src_port })
}

/// Forwards what arrives over IPv6.
#[inline(always)]
fn forward6(
    frame: &mut impl Frame,
    tables: &impl Tables,
    offset: usize,
) -> Result<Verdict, Reason> {
    let (ip, udp) = parse6(frame, offset)?;
    let shared = tables.flow6(index(ip.dst[15], &udp, tables)).ok_or(Reason::NoFlow)?;
    if !shared.from().is(&ip.tuple(&udp)) {
        return Err(Reason::NoFlow);
    }
    let (recipe, meter) = (shared.recipe(), shared.meter());
    let way = way(&recipe);
    let hop_limit = decrement(ip.hop_limit)?;
    let checksum = checksum6(&udp, &recipe)?;
    let headers = offset + size_of::<Whole<Ipv6>>();
    // A length near 64 KiB, where this would wrap, exceeds any MTU in `leave`.
    let bytes = layer3_len::<Ipv6>(&udp) as u16;
    if recipe.flags & flags::TO_IPV6 != 0 {
        let ends = shared.to6();
        shared.check().ok_or(Reason::FlowChanging)?;
        let ([v0, v1, v2, v3], [l0, l1]) = (ip.version_class_label, ip.payload_len);
        let first = u64::from_ne_bytes([v0, v1, v2, v3, l0, l1, protocol::UDP, hop_limit]);
        let outgoing = End6 { first, ends, udp_len: udp.len, udp_checksum: checksum };
        let len = layer3_len::<Ipv6>(&udp);
        return leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing });
    }
    let to = shared.to4();
    shared.check().ok_or(Reason::FlowChanging)?;
    let len = layer3_len::<Ipv4>(&udp);
    let mut ip = Ipv4 {
        version_ihl: Ipv4::PLAIN,
        tos: ip.traffic_class(),
        total_len: (len as u16).to_be_bytes(),
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
    let outgoing = Whole { ip, udp };
    leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing })
}

#[inline(always)]
fn way(recipe: &Recipe) -> Way {
    let rated = recipe.flags & flags::RATED != 0;
    Way { dst: recipe.dst_mac.into(), exit: recipe.exit, rate: rated.then_some(recipe.rate) }
}

/// Length of a datagram with the header `Ip`.
#[inline(always)]
fn layer3_len<Ip>(udp: &Udp) -> u32 {
    u32::from(u16::from_be_bytes(udp.len)) + size_of::<Ip>() as u32
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
    if udp.checksum == [0, 0] {
        return Err(Reason::NoChecksum);
    }
    Ok(sent(update(udp.checksum, recipe.udp_delta)))
}

/// Checks the way out, then writes the new headers. An error leaves the frame as it was.
#[inline(always)]
fn leave<T: Outgoing>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure<T>,
) -> Result<Verdict, Reason> {
    let Departure { way, bytes, .. } = departure;
    let exit = tables.exit(way.exit).ok_or(Reason::NoEgress)?;
    if departure.len > u32::from(exit.mtu) {
        return Err(Reason::TooBig);
    }
    let verdict = if exit.flags & flags::TX != 0 && exit.ifindex == frame.ingress() {
        Verdict::Transmit
    } else if tables.has_egress(way.exit) {
        Verdict::Redirect { slot: way.exit }
    } else {
        return Err(Reason::NoEgress);
    };
    if let Some(rate) = way.rate
        && !tables.admit(rate, *bytes)
    {
        return Err(Reason::RateLimited);
    }
    if !encapsulate(frame, departure, &exit)? {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    departure.meter.count(*bytes);
    Ok(verdict)
}

/// Writes the headers with the tags of the way out. Returns as [`write`].
#[inline(always)]
fn encapsulate<T: Outgoing>(
    frame: &mut impl Frame,
    departure: &Departure<T>,
    exit: &Exit,
) -> Result<bool, Reason> {
    let [outer, inner] = exit.vlan;
    let (dst, src) = (departure.way.dst, exit.src_mac.into());
    let outgoing = departure.outgoing;
    if exit.flags & flags::VLAN == 0 {
        let ether_type = T::ETHER_TYPE;
        return write(frame, departure, &Stack { dst, src, ether_type, tags: [], outgoing });
    }
    if exit.flags & flags::QINQ == 0 {
        let service = exit.flags & flags::SERVICE_TAG != 0;
        let ether_type = if service { ether_type::SERVICE_VLAN } else { ether_type::VLAN };
        let tags = [VlanTag { control: outer, ether_type: T::ETHER_TYPE }];
        return write(frame, departure, &Stack { dst, src, ether_type, tags, outgoing });
    }
    let tags = [
        VlanTag { control: outer, ether_type: ether_type::VLAN },
        VlanTag { control: inner, ether_type: T::ETHER_TYPE },
    ];
    let ether_type = ether_type::SERVICE_VLAN;
    write(frame, departure, &Stack { dst, src, ether_type, tags, outgoing })
}

/// Replaces all headers. An error leaves the frame as it was; after `false` it is of no use any more.
#[inline(always)]
fn write<T: Outgoing, const TAGS: usize>(
    frame: &mut impl Frame,
    departure: &Departure<T>,
    stack: &Stack<T, TAGS>,
) -> Result<bool, Reason> {
    let delta = departure.headers as i32 - Stack::<T, TAGS>::LEN as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::NoHeadroom);
    }
    Ok(frame.store(stack))
}
