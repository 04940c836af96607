//! What arrives over IPv4.

use crate::arrival::parse4;
use crate::binding;
use crate::carry::Carried;
use crate::checksum::{sent, update};
use crate::departure::{Departure, WayOut, leave};
use crate::flow::{Flow4, Recipe, Tuple6, flags};
use crate::lookup;
use crate::reason::Reason;
use crate::relay::{Frame, Rewritten, Tables, Verdict, decrement, index};
use crate::shared::Shared;
use crate::wire::{
    ChannelHeader, End4, Ethernet, Ipv4, Ipv6, Message, Stack, Udp, Whole, protocol,
};

/// What of a packet its headers to come are made of.
struct Arrival {
    ip: Ipv4,
    udp: Udp,
    /// TTL as it leaves.
    ttl: u8,
}

/// Forwards a packet whose IP header is at `offset`.
#[inline(always)]
pub(crate) fn forward<'a>(
    frame: &mut impl Frame,
    tables: &'a impl Tables,
    offset: usize,
) -> Result<Rewritten<'a>, Reason> {
    let (ip, udp) = parse4(frame, offset)?;
    let from = ip.tuple(&udp);
    let headers = offset + size_of::<Whole<Ipv4>>();
    let (shared, arrived) = match tables.flow4(index(ip.dst[3], &udp, tables)) {
        Some(shared) if shared.from().is(&from) => (shared, ChannelHeader::default()),
        other => {
            if tables.answers()
                && binding::is_request(frame, headers, &udp)
                && other.is_some_and(|other| binding::listens(&other.recipe()))
            {
                return Ok(Rewritten::Asked);
            }
            lookup::shared4(frame, tables, &from, &udp, headers)?
        }
    };
    let recipe = shared.recipe();
    let ttl = decrement(ip.ttl)?;
    let arrival = Arrival { ip, udp, ttl };
    let way = WayOut::of(frame, tables, &recipe)?;
    let is_untagged = offset == size_of::<Ethernet>() && way.is_untagged();
    if is_untagged && recipe.flags & (flags::TO_IPV6 | flags::CHANNELS) == 0 {
        return shortest(frame, tables, &shared, &recipe, &arrival, way).map(Rewritten::Gone);
    }
    let carried = Carried::of(frame, headers, &udp, arrived, &recipe)?;
    let headers = headers + arrived.size();
    if recipe.flags & flags::TO_IPV6 == 0 {
        to_ipv4(&shared, &recipe, &arrival, &carried, headers, way).map(Rewritten::V4)
    } else {
        to_ipv6(tables, &shared, &recipe, &arrival, &carried, headers, way).map(Rewritten::V6)
    }
}

/// Between two ports that are each one leg's, over IPv4 both, without tags.
#[inline(always)]
fn shortest(
    frame: &mut impl Frame,
    tables: &impl Tables,
    shared: &Shared<Flow4>,
    recipe: &Recipe,
    arrival: &Arrival,
    way: WayOut<'_>,
) -> Result<Verdict, Reason> {
    let Arrival { ip, udp, ttl } = arrival;
    let ends = shared.to();
    shared.check().ok_or(Reason::FlowChanging)?;
    let [c0, c1] = update(ip.checksum, recipe.ip_delta);
    let udp_checksum = match u16::from_ne_bytes(udp.checksum) {
        0 => 0,
        _ => u16::from_ne_bytes(sent(update(udp.checksum, recipe.udp_delta))),
    };
    let udp_checksum = udp_checksum.to_ne_bytes();
    let ttl = u32::from_ne_bytes([*ttl, protocol::UDP, c0, c1]);
    let outgoing = End4 { ttl, ends, udp_len: udp.len, udp_checksum };
    let bytes = bytes(udp);
    let (meter, len) = (shared.meter(), u32::from(bytes));
    let headers = Stack::<End4>::LEN;
    leave(frame, tables, &Departure { way, meter, headers, bytes, len, outgoing })
}

/// ChannelData arrives or leaves, over IPv4 both.
#[inline(always)]
fn to_ipv4<'a>(
    shared: &Shared<Flow4>,
    recipe: &Recipe,
    arrival: &Arrival,
    carried: &Carried,
    headers: usize,
    way: WayOut<'a>,
) -> Result<Departure<'a, Message<Ipv4>>, Reason> {
    let Arrival { ip, udp, ttl } = arrival;
    let to = shared.to();
    shared.check().ok_or(Reason::FlowChanging)?;
    if recipe.flags & flags::LISTENER != 0 {
        return Err(Reason::NoFlow);
    }
    let len = carried.udp_len();
    let checksum = match u16::from_ne_bytes(udp.checksum) {
        0 => [0, 0],
        _ => carried.checksum(udp, recipe),
    };
    let ip = Ipv4 {
        // Wraps only near 64 KiB, what exceeds any MTU.
        total_len: len.wrapping_add(size_of::<Ipv4>() as u16).to_be_bytes(),
        ttl: *ttl,
        checksum: carried.ip_checksum(ip.checksum, recipe),
        src: to.src,
        dst: to.dst,
        ..*ip
    };
    let bytes = bytes(&arrival.udp);
    let (src_port, dst_port) = (to.src_port, to.dst_port);
    let udp = Udp { src_port, dst_port, len: len.to_be_bytes(), checksum };
    let outgoing = Message { headers: Whole { ip, udp }, channel: carried.header };
    let (meter, len) = (shared.meter(), carried.layer3_len::<Ipv4>());
    Ok(Departure { way, meter, headers, bytes, len, outgoing })
}

/// Whatever arrives and leaves, it becomes IPv6.
#[inline(always)]
fn to_ipv6<'a>(
    tables: &impl Tables,
    shared: &Shared<Flow4>,
    recipe: &Recipe,
    arrival: &Arrival,
    carried: &Carried,
    headers: usize,
    way: WayOut<'a>,
) -> Result<Departure<'a, Message<Ipv6>>, Reason> {
    let Arrival { ip, udp, ttl } = arrival;
    let to = mirror_of_reverse(shared, recipe, tables)?;
    if udp.checksum == [0, 0] {
        return Err(Reason::NoChecksum);
    }
    let udp_len = carried.udp_len().to_be_bytes();
    let ip = Ipv6 {
        version_class_label: (6 << 28 | u32::from(ip.tos) << 20).to_be_bytes(),
        payload_len: udp_len,
        next_header: protocol::UDP,
        hop_limit: *ttl,
        src: to.src,
        dst: to.dst,
    };
    let (bytes, checksum) = (bytes(udp), carried.checksum(udp, recipe));
    let udp = Udp { src_port: to.src_port, dst_port: to.dst_port, len: udp_len, checksum };
    let outgoing = Message { headers: Whole { ip, udp }, channel: carried.header };
    let (meter, len) = (shared.meter(), carried.layer3_len::<Ipv6>());
    Ok(Departure { way, meter, headers, bytes, len, outgoing })
}

/// How a packet leaves that comes over IPv4 and goes on over IPv6: the way back, the other way round.
#[inline(always)]
fn mirror_of_reverse(
    shared: &Shared<Flow4>,
    recipe: &Recipe,
    tables: &impl Tables,
) -> Result<Tuple6, Reason> {
    let index = shared.reverse();
    let reverse = if recipe.flags & flags::REVERSE_IN_CHANNELS == 0 {
        tables.flow6(index)
    } else {
        tables.channel6(index)
    };
    let reverse = reverse.ok_or(Reason::FlowChanging)?;
    let Tuple6 { src, dst, src_port, dst_port } = reverse.from();
    reverse.check().ok_or(Reason::FlowChanging)?;
    shared.check().ok_or(Reason::FlowChanging)?;
    if reverse.generation() != shared.generation() {
        return Err(Reason::FlowChanging);
    }
    Ok(Tuple6 { src: dst, dst: src, src_port: dst_port, dst_port: src_port })
}

/// Length of layer 3 as it arrived.
#[inline(always)]
fn bytes(udp: &Udp) -> u16 {
    u16::from_be_bytes(udp.len).wrapping_add(size_of::<Ipv4>() as u16)
}
