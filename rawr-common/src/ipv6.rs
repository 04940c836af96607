//! What arrives over IPv6.

use crate::arrival::parse6;
use crate::binding;
use crate::carry::Carried;
use crate::checksum::{ipv4_header, sent, update};
use crate::departure::{Departure, WayOut, leave};
use crate::flow::{Flow6, Recipe, flags};
use crate::lookup;
use crate::reason::Reason;
use crate::relay::{Frame, Rewritten, Tables, Verdict, decrement, index};
use crate::shared::Shared;
use crate::wire::{
    ChannelHeader, End6, Ethernet, Ipv4, Ipv6, Message, Stack, Udp, Whole, protocol,
};

/// What of a packet its headers to come are made of.
struct Arrival {
    ip: Ipv6,
    udp: Udp,
    /// Hop limit as it leaves.
    hop_limit: u8,
}

/// Forwards a packet whose IP header is at `offset`.
#[inline(always)]
pub(crate) fn forward<'a>(
    frame: &mut impl Frame,
    tables: &'a impl Tables,
    offset: usize,
) -> Result<Rewritten<'a>, Reason> {
    let (ip, udp) = parse6(frame, offset)?;
    let from = ip.tuple(&udp);
    let headers = offset + size_of::<Whole<Ipv6>>();
    let (shared, arrived) = match tables.flow6(index(ip.dst[15], &udp, tables)) {
        Some(shared) if shared.from().is(&from) => (shared, ChannelHeader::default()),
        other => {
            if tables.answers()
                && binding::is_request(frame, headers, &udp)
                && other.is_some_and(|other| binding::listens(&other.recipe()))
            {
                return Ok(Rewritten::Asked);
            }
            lookup::shared6(frame, tables, &from, &udp, headers)?
        }
    };
    let recipe = shared.recipe();
    let hop_limit = decrement(ip.hop_limit)?;
    // Over IPv6 there has to be a checksum (RFC 8200 §8.1).
    if udp.checksum == [0, 0] {
        return Err(Reason::NoChecksum);
    }
    let arrival = Arrival { ip, udp, hop_limit };
    let way = WayOut::of(frame, tables, &recipe)?;
    let is_untagged = offset == size_of::<Ethernet>() && way.is_untagged();
    if is_untagged && recipe.flags & (flags::TO_IPV6 | flags::CHANNELS) == flags::TO_IPV6 {
        return shortest(frame, tables, &shared, &recipe, &arrival, way).map(Rewritten::Gone);
    }
    let carried = Carried::of(frame, headers, &udp, arrived, &recipe)?;
    let headers = headers + arrived.size();
    if recipe.flags & flags::TO_IPV6 == 0 {
        to_ipv4(&shared, &recipe, &arrival, &carried, headers, way).map(Rewritten::V4)
    } else {
        to_ipv6(&shared, &recipe, &arrival, &carried, headers, way).map(Rewritten::V6)
    }
}

/// Between two ports that are each one leg's, over IPv6 both, without tags.
#[inline(always)]
fn shortest(
    frame: &mut impl Frame,
    tables: &impl Tables,
    shared: &Shared<Flow6>,
    recipe: &Recipe,
    arrival: &Arrival,
    way: WayOut<'_>,
) -> Result<Verdict, Reason> {
    let Arrival { ip, udp, hop_limit } = arrival;
    let ends = shared.to6();
    shared.check().ok_or(Reason::FlowChanging)?;
    let ([v0, v1, v2, v3], [l0, l1]) = (ip.version_class_label, ip.payload_len);
    let first = u64::from_ne_bytes([v0, v1, v2, v3, l0, l1, protocol::UDP, *hop_limit]);
    let udp_checksum = sent(update(udp.checksum, recipe.udp_delta));
    let outgoing = End6 { first, ends, udp_len: udp.len, udp_checksum };
    let (bytes, len) = (bytes(udp) as u16, bytes(udp));
    let meter = shared.meter();
    let headers = Stack::<End6>::LEN;
    leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing })
}

/// Whatever arrives and leaves, it becomes IPv4.
#[inline(always)]
fn to_ipv4<'a>(
    shared: &Shared<Flow6>,
    recipe: &Recipe,
    arrival: &Arrival,
    carried: &Carried,
    headers: usize,
    way: WayOut<'a>,
) -> Result<Departure<'a, Message<Ipv4>>, Reason> {
    let Arrival { ip, udp, hop_limit } = arrival;
    let to = shared.to4();
    shared.check().ok_or(Reason::FlowChanging)?;
    if recipe.flags & flags::LISTENER != 0 {
        return Err(Reason::NoFlow);
    }
    let len = carried.udp_len();
    let mut ip = Ipv4 {
        version_ihl: Ipv4::PLAIN,
        tos: ip.traffic_class(),
        // Wraps only near 64 KiB, what exceeds any MTU.
        total_len: len.wrapping_add(size_of::<Ipv4>() as u16).to_be_bytes(),
        id: [0, 0],
        fragment: Ipv4::DONT_FRAGMENT,
        ttl: *hop_limit,
        protocol: protocol::UDP,
        checksum: [0, 0],
        src: to.src,
        dst: to.dst,
    };
    ip.checksum = ipv4_header(&ip);
    let (bytes, checksum) = (bytes(udp) as u16, carried.checksum(udp, recipe));
    let (src_port, dst_port) = (to.src_port, to.dst_port);
    let udp = Udp { src_port, dst_port, len: len.to_be_bytes(), checksum };
    let outgoing = Message { headers: Whole { ip, udp }, channel: carried.header };
    let (meter, len) = (shared.meter(), carried.layer3_len::<Ipv4>());
    Ok(Departure { way, meter, headers, bytes, len, outgoing })
}

/// ChannelData arrives or leaves, over IPv6 both.
#[inline(always)]
fn to_ipv6<'a>(
    shared: &Shared<Flow6>,
    recipe: &Recipe,
    arrival: &Arrival,
    carried: &Carried,
    headers: usize,
    way: WayOut<'a>,
) -> Result<Departure<'a, Message<Ipv6>>, Reason> {
    let Arrival { ip, udp, hop_limit } = arrival;
    let to = shared.to6();
    shared.check().ok_or(Reason::FlowChanging)?;
    let len = carried.udp_len().to_be_bytes();
    let ip = Ipv6 { payload_len: len, hop_limit: *hop_limit, src: to.src, dst: to.dst, ..*ip };
    let (bytes, checksum) = (bytes(udp) as u16, carried.checksum(udp, recipe));
    let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len, checksum };
    let outgoing = Message { headers: Whole { ip, udp }, channel: carried.header };
    let (meter, len) = (shared.meter(), carried.layer3_len::<Ipv6>());
    Ok(Departure { way, meter, headers, bytes, len, outgoing })
}

/// Length of layer 3 as it arrived. Near 64 KiB, where it would wrap in 16 bits, it exceeds any MTU.
#[inline(always)]
fn bytes(udp: &Udp) -> u32 {
    u32::from(u16::from_be_bytes(udp.len)) + size_of::<Ipv6>() as u32
}
