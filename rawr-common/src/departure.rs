//! How a packet leaves: the way out is checked, then the new headers are written.

use crate::flow::{Exit, Recipe, flags};
use crate::reason::Reason;
use crate::relay::{Frame, Tables, Verdict};
use crate::shared::Meter;
use crate::wire::{Ethernet, Ipv4, Mac, Message, Outgoing, Stack, VlanTag, Whole, ether_type};

/// Length of Ethernet's header and two tags.
const LINK_LAYER: usize = size_of::<Ethernet>() + 2 * size_of::<VlanTag>();

/// A packet on its way out.
pub(crate) struct Departure<'a, T> {
    pub(crate) way: WayOut<'a>,
    pub(crate) meter: Meter,
    /// Length of the headers that it came with, from the frame's beginning.
    pub(crate) headers: usize,
    /// Length of layer 3 as it came.
    pub(crate) bytes: u16,
    /// Length of layer 3 as it leaves.
    pub(crate) len: u32,
    pub(crate) outgoing: T,
}

/// By which exit, and as what there, a packet may leave.
#[derive(Clone, Copy)]
pub(crate) struct WayOut<'a> {
    pub(crate) exit: &'a Exit,
    slot: u8,
    /// By the interface that it came in by.
    transmits: bool,
    dst: Mac,
    /// Index of the rate limit.
    rate: Option<u32>,
}

impl<'a> WayOut<'a> {
    /// The way that a recipe says.
    #[inline(always)]
    pub(crate) fn of(
        frame: &impl Frame,
        tables: &'a impl Tables,
        recipe: &Recipe,
    ) -> Result<Self, Reason> {
        let slot = recipe.exit;
        let exit = tables.exit(slot).ok_or(Reason::NoEgress)?;
        let transmits = exit.flags & flags::TX != 0 && exit.ifindex == frame.ingress();
        if !transmits && !tables.has_egress(slot) {
            return Err(Reason::NoEgress);
        }
        let rated = recipe.flags & flags::RATED != 0;
        let (dst, rate) = (recipe.dst_mac.into(), rated.then_some(recipe.rate));
        Ok(Self { exit, slot, transmits, dst, rate })
    }

    /// Whether the rate limit, if there is one, lets `bytes` more through.
    #[inline(always)]
    pub(crate) fn admits(&self, tables: &impl Tables, bytes: u16) -> bool {
        self.rate.is_none_or(|rate| tables.admit(rate, bytes))
    }

    /// Whether packets leave without a VLAN tag.
    #[inline(always)]
    pub(crate) fn is_untagged(&self) -> bool {
        self.exit.flags & flags::VLAN == 0
    }

    #[inline(always)]
    pub(crate) fn verdict(&self) -> Verdict {
        if self.transmits { Verdict::Transmit } else { Verdict::Redirect { slot: self.slot } }
    }
}

/// Writes what has changed of the headers, once the way out has been checked. Neither has the packet come
/// with tags nor does it leave with any, so that its headers stay where they are. An error leaves the frame
/// as it was.
#[inline(always)]
pub(crate) fn leave<T: Outgoing>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure<'_, T>,
) -> Result<Verdict, Reason> {
    may_leave(tables, departure)?;
    let WayOut { exit, dst, .. } = departure.way;
    let src = exit.src_mac.into();
    let headers = Stack { dst, src, ether_type: T::ETHER_TYPE, outgoing: departure.outgoing };
    if !frame.store(&headers) {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    departure.meter.count(departure.bytes);
    Ok(departure.way.verdict())
}

/// The same with all headers new, at one place for whatever tags there are: the longer way, and the shorter
/// program.
#[inline(always)]
pub(crate) fn leave_anew<Ip: Copy>(
    frame: &mut impl Frame,
    tables: &impl Tables,
    departure: &Departure<'_, Message<Ip>>,
    ether_type: [u8; 2],
) -> Result<Verdict, Reason> {
    may_leave(tables, departure)?;
    let WayOut { exit, dst, .. } = departure.way;
    let tags =
        usize::from(exit.flags & flags::VLAN != 0) + usize::from(exit.flags & flags::QINQ != 0);
    let link = size_of::<Ethernet>() + tags * size_of::<VlanTag>();
    let Message { headers, channel } = departure.outgoing;
    let payload = link + size_of::<Whole<Ip>>();
    let delta = departure.headers as i32 - (payload + channel.size()) as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::NoHeadroom);
    }
    let written = write_link_layer(frame, dst, exit, ether_type)
        .and_then(|()| frame.put(link, headers))
        .and_then(|()| match channel.is_there() {
            true => frame.put(payload, channel),
            false => Some(()),
        });
    if written.is_none() {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    departure.meter.count(departure.bytes);
    Ok(departure.way.verdict())
}

/// Whether a packet may leave as it will be.
#[inline(always)]
fn may_leave<T>(tables: &impl Tables, departure: &Departure<'_, T>) -> Result<(), Reason> {
    let Departure { way, bytes, len, .. } = departure;
    if *len > u32::from(way.exit.mtu) {
        return Err(Reason::TooBig);
    }
    if !way.admits(tables, *bytes) {
        return Err(Reason::RateLimited);
    }
    Ok(())
}

/// Writes Ethernet's header and the exit's tags; `None` if the frame ends before they could. Where there are
/// fewer than two tags, what is written behind them is of no account: the other headers come there.
#[inline(always)]
fn write_link_layer(frame: &impl Frame, dst: Mac, exit: &Exit, kind: [u8; 2]) -> Option<()> {
    const { assert!(LINK_LAYER <= size_of::<Ethernet>() + size_of::<Whole<Ipv4>>()) };
    let [outer, inner] = exit.vlan;
    let one = exit.flags & flags::VLAN != 0;
    let two = exit.flags & flags::QINQ != 0;
    let service = exit.flags & (flags::QINQ | flags::SERVICE_TAG) != 0;
    let tag_type = if service { ether_type::SERVICE_VLAN } else { ether_type::VLAN };
    let first = VlanTag { control: outer, ether_type: if two { ether_type::VLAN } else { kind } };
    let second = VlanTag { control: inner, ether_type: kind };
    let start = frame.at(0, LINK_LAYER)?.as_ptr();
    // SAFETY: `at` has checked the bounds.
    unsafe {
        dst.write(start);
        Mac::from(exit.src_mac).write(start.add(6));
        start.add(12).cast::<[u8; 2]>().write_unaligned(if one { tag_type } else { kind });
        let tags = start.add(size_of::<Ethernet>()).cast::<VlanTag>();
        tags.write_unaligned(first);
        tags.add(1).write_unaligned(second);
    }
    Some(())
}
