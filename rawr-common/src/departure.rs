//! How a packet leaves: the way out is checked, then the new headers are written.

use crate::flow::{Exit, Recipe, flags};
use crate::reason::Reason;
use crate::relay::{Frame, Tables, Verdict};
use crate::shared::Meter;
use crate::wire::{Ethernet, Mac, Message, Outgoing, Stack, VlanTag, Whole, ether_type};

/// A packet on its way out.
pub(crate) struct Departure<T> {
    pub(crate) way: Way,
    pub(crate) meter: Meter,
    /// Length of the headers that it came with, from the frame's beginning.
    pub(crate) headers: usize,
    /// Length of layer 3 as it came.
    pub(crate) bytes: u16,
    /// Length of layer 3 as it leaves.
    pub(crate) len: u32,
    pub(crate) outgoing: T,
}

/// What a recipe says about the way out.
pub(crate) struct Way {
    dst: Mac,
    exit: u8,
    /// Index of the rate limit.
    rate: Option<u32>,
}

impl Way {
    #[inline(always)]
    pub(crate) fn of(recipe: &Recipe) -> Self {
        let rated = recipe.flags & flags::RATED != 0;
        Self { dst: recipe.dst_mac.into(), exit: recipe.exit, rate: rated.then_some(recipe.rate) }
    }
}

/// Checks the way out, then writes what has changed of the headers. An error leaves the frame as it was.
#[inline(always)]
pub(crate) fn leave<T: Outgoing>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure<T>,
) -> Result<Verdict, Reason> {
    let (verdict, exit) = way_out(frame, tables, departure)?;
    if !encapsulate(frame, departure, &exit)? {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    departure.meter.count(departure.bytes);
    Ok(verdict)
}

/// The same with all headers new, at one place for whatever tags there are: the longer way, and the
/// shorter program.
#[inline(always)]
pub(crate) fn leave_anew<Ip: Copy>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure<Message<Ip>>,
    ether_type: [u8; 2],
) -> Result<Verdict, Reason> {
    let (verdict, exit) = way_out(frame, tables, departure)?;
    let tags =
        usize::from(exit.flags & flags::VLAN != 0) + usize::from(exit.flags & flags::QINQ != 0);
    let link = size_of::<Ethernet>() + tags * size_of::<VlanTag>();
    let Message { headers, channel } = departure.outgoing;
    let len = link + size_of::<Whole<Ip>>() + channel.size();
    let delta = departure.headers as i32 - len as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::NoHeadroom);
    }
    let written = write_link_layer(frame, departure.way.dst, &exit, ether_type)
        .and_then(|()| frame.put(link, headers))
        .and_then(|()| match channel.is_there() {
            true => frame.put(link + size_of::<Whole<Ip>>(), channel),
            false => Some(()),
        });
    if written.is_none() {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    departure.meter.count(departure.bytes);
    Ok(verdict)
}

/// By which interface, and as what there, a packet may leave.
#[inline(always)]
fn way_out<T>(
    frame: &impl Frame,
    tables: &impl Tables,
    departure: &Departure<T>,
) -> Result<(Verdict, Exit), Reason> {
    let Departure { way, bytes, .. } = departure;
    let exit = tables.exit(way.exit).ok_or(Reason::NoEgress)?;
    if departure.len > u32::from(exit.mtu) {
        return Err(Reason::TooBig);
    }
    let verdict = verdict(frame, tables, way.exit, &exit)?;
    if let Some(rate) = way.rate
        && !tables.admit(rate, *bytes)
    {
        return Err(Reason::RateLimited);
    }
    Ok((verdict, exit))
}

/// By which interface a packet leaves.
#[inline(always)]
pub(crate) fn verdict(
    frame: &impl Frame,
    tables: &impl Tables,
    slot: u8,
    exit: &Exit,
) -> Result<Verdict, Reason> {
    if exit.flags & flags::TX != 0 && exit.ifindex == frame.ingress() {
        Ok(Verdict::Transmit)
    } else if tables.has_egress(slot) {
        Ok(Verdict::Redirect { slot })
    } else {
        Err(Reason::NoEgress)
    }
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

/// Writes Ethernet's header and the exit's tags; `None` if the frame ends before they do.
#[inline(always)]
fn write_link_layer(frame: &impl Frame, dst: Mac, exit: &Exit, kind: [u8; 2]) -> Option<()> {
    let [outer, inner] = exit.vlan;
    let one = exit.flags & flags::VLAN != 0;
    let two = exit.flags & flags::QINQ != 0;
    let service = exit.flags & (flags::QINQ | flags::SERVICE_TAG) != 0;
    let tag_type = if service { ether_type::SERVICE_VLAN } else { ether_type::VLAN };
    let macs = frame.at(0, size_of::<Ethernet>())?.as_ptr();
    // SAFETY: `at` has checked the bounds.
    unsafe {
        dst.write(macs);
        Mac::from(exit.src_mac).write(macs.add(6));
        macs.add(12).cast::<[u8; 2]>().write_unaligned(if one { tag_type } else { kind });
    }
    if one {
        let ether_type = if two { ether_type::VLAN } else { kind };
        frame.put(size_of::<Ethernet>(), VlanTag { control: outer, ether_type })?;
    }
    if two {
        let offset = size_of::<Ethernet>() + size_of::<VlanTag>();
        frame.put(offset, VlanTag { control: inner, ether_type: kind })?;
    }
    Some(())
}
