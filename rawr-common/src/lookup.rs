//! Which flow a datagram belongs to whose port legs share.

use core::hint::black_box;

use crate::arrival;
use crate::channel::{hash4, hash6, place};
use crate::flow::{Flow4, Flow6, Tuple4, Tuple6};
use crate::reason::Reason;
use crate::relay::{Frame, Tables};
use crate::shared::Shared;
use crate::sharing::Held;
use crate::wire::{ChannelHeader, Udp};

/// The flow of a datagram whose payload begins at `payload`, and the ChannelData header that it has then.
///
/// Whether a payload that looks like ChannelData is some, only the flow tells: between a peer and a
/// relayed transport address, it is the peer's own business (RFC 8656 §12). Nothing is sought that
/// [`Held`] rules out.
#[inline(always)]
pub(crate) fn shared4(
    frame: &impl Frame,
    tables: &impl Tables,
    from: &Tuple4,
    udp: &Udp,
    payload: usize,
) -> Result<(Shared<Flow4>, ChannelHeader), Reason> {
    let port = u16::from_be_bytes(udp.dst_port);
    let held = Held::at(port, false, |index| tables.shared_ports(index));
    let mut header = ChannelHeader::default();
    if held.channels {
        header = arrival::channel(frame, payload, udp).unwrap_or_default();
    }
    if !header.is_there() && !held.datagrams {
        return Err(Reason::NoFlow);
    }
    loop {
        if let Some(shared) = find4(tables, from, header.number) {
            return Ok((shared, header));
        }
        let is_last = !header.is_there() || !held.datagrams;
        // Or else the compiler would write out the search a second time.
        header = black_box(ChannelHeader::default());
        // Last, so that the loop is closed by a jump, as Linux 6.1 wants it.
        if is_last {
            return Err(Reason::NoFlow);
        }
    }
}

/// As [`shared4`].
#[inline(always)]
pub(crate) fn shared6(
    frame: &impl Frame,
    tables: &impl Tables,
    from: &Tuple6,
    udp: &Udp,
    payload: usize,
) -> Result<(Shared<Flow6>, ChannelHeader), Reason> {
    let port = u16::from_be_bytes(udp.dst_port);
    let held = Held::at(port, true, |index| tables.shared_ports(index));
    let mut header = ChannelHeader::default();
    if held.channels {
        header = arrival::channel(frame, payload, udp).unwrap_or_default();
    }
    if !header.is_there() && !held.datagrams {
        return Err(Reason::NoFlow);
    }
    loop {
        if let Some(shared) = find6(tables, from, header.number) {
            return Ok((shared, header));
        }
        let is_last = !header.is_there() || !held.datagrams;
        // Or else the compiler would write out the search a second time.
        header = black_box(ChannelHeader::default());
        // Last, so that the loop is closed by a jump, as Linux 6.1 wants it.
        if is_last {
            return Err(Reason::NoFlow);
        }
    }
}

#[inline(always)]
fn find4(tables: &impl Tables, from: &Tuple4, channel: [u8; 2]) -> Option<Shared<Flow4>> {
    let (hash, mask) = (hash4(from, channel, tables.seed()), tables.channel_mask());
    let mut probe = 0;
    while probe < tables.probes() {
        if let Some(shared) = tables.channel4(place(hash, probe, mask))
            && shared.from().is(from)
            && shared.channels().arriving == channel
        {
            return Some(shared);
        }
        probe += 1;
    }
    None
}

#[inline(always)]
fn find6(tables: &impl Tables, from: &Tuple6, channel: [u8; 2]) -> Option<Shared<Flow6>> {
    let (hash, mask) = (hash6(from, channel, tables.seed()), tables.channel_mask());
    let mut probe = 0;
    while probe < tables.probes() {
        if let Some(shared) = tables.channel6(place(hash, probe, mask))
            && shared.from().is(from)
            && shared.channels().arriving == channel
        {
            return Some(shared);
        }
        probe += 1;
    }
    None
}
