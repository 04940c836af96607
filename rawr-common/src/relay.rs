//! The relay: parse, look up, rewrite, verdict.
//!
//! One function over two small traits, compiled for the kernel, for the host's tests and for fuzzers.
//! Everything about a packet is checked and computed before its first byte is written; from then on it
//! is sent, or dropped with a reason. What is not forwarded is passed up as it came.

use core::ptr::NonNull;

use crate::arrival::link_layer;
use crate::channel;
use crate::departure::{Departure, leave_anew};
use crate::flow::{self, Exit, Flow4, Flow6};
use crate::reason::Reason;
use crate::shared::Shared;
use crate::wire::{Header, Ipv4, Ipv6, Message, Outgoing, Stack, Udp, ether_type};
use crate::{binding, ipv4, ipv6};

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

    /// Adds `delta` bytes at the end, or removes as many if negative. If it returns `false` nothing has
    /// changed.
    #[must_use]
    fn move_tail(&mut self, delta: i32) -> bool;

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
    fn store<T: Outgoing>(&mut self, headers: &Stack<T>) -> bool {
        let Some(start) = self.at(0, Stack::<T>::LEN) else { return false };
        // SAFETY: `at` has checked the bounds.
        unsafe { headers.write(start.as_ptr()) };
        true
    }

    /// Overwrites what is at `offset`; `None` if the frame ends before.
    #[inline(always)]
    #[must_use]
    fn put<T: Copy>(&self, offset: usize, value: T) -> Option<()> {
        let target = self.at(offset, size_of::<T>())?;
        // SAFETY: `at` has checked the bounds.
        unsafe { target.cast::<T>().write_unaligned(value) };
        Some(())
    }

    /// Whether nothing is in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What userspace has set up.
pub trait Tables {
    /// Length of the port tables minus one.
    fn mask(&self) -> u32;

    /// Length of the channel tables minus one.
    fn channel_mask(&self) -> u32;

    /// What keys of the channel tables are hashed with.
    fn seed(&self) -> u64;

    /// Whether questions to listeners are answered.
    #[inline(always)]
    fn answers(&self) -> bool {
        true
    }

    /// [`channel::PROBES`]. The compiler may not know it where a loop over it had better stay one.
    #[inline(always)]
    fn probes(&self) -> u32 {
        channel::PROBES
    }

    /// The flow at an index of the port table; `None` if there is none.
    fn flow4(&self, index: u32) -> Option<Shared<Flow4>>;

    /// The flow at an index of the port table; `None` if there is none.
    fn flow6(&self, index: u32) -> Option<Shared<Flow6>>;

    /// A word of what tells which ports have flows in the channel tables ([`crate::sharing`]).
    fn shared_ports(&self, index: u32) -> u64;

    /// The flow at an index of the channel table; `None` if there is none.
    fn channel4(&self, index: u32) -> Option<Shared<Flow4>>;

    /// The flow at an index of the channel table; `None` if there is none.
    fn channel6(&self, index: u32) -> Option<Shared<Flow6>>;

    /// The exit in this slot.
    fn exit(&self, slot: u8) -> Option<&Exit>;

    /// Whether the device map has an interface in this slot.
    fn has_egress(&self, slot: u8) -> bool;

    /// Whether the rate limit at this index lets `bytes` more through, which it then counts.
    fn admit(&self, rate: u32, bytes: u16) -> bool;
}

/// A packet, looked at.
#[derive(Clone, Copy, Debug)]
pub enum Glance {
    Decided(Verdict),
    /// Nothing has been decided or written: [`binding::answer`] does.
    Asked {
        /// Where the IP header is.
        offset: usize,
        v4: bool,
    },
}

/// Forwards one packet if there is a flow for it, or answers it if it is a question to us.
#[inline(always)]
pub fn relay(frame: &mut impl Frame, tables: &impl Tables) -> Verdict {
    match glance(frame, tables) {
        Glance::Decided(verdict) => verdict,
        Glance::Asked { offset, v4 } => binding::answer(frame, tables, offset, v4),
    }
}

/// Forwards one packet if there is a flow for it. That questions are left over lets the kernel's program
/// answer them in a function of its own.
#[inline(always)]
pub fn glance(frame: &mut impl Frame, tables: &impl Tables) -> Glance {
    match forward(frame, tables) {
        Ok(glance) => glance,
        Err(reason) => Glance::Decided(refused(reason)),
    }
}

/// What becomes of a packet that is not forwarded.
#[inline(always)]
pub(crate) fn refused(reason: Reason) -> Verdict {
    match reason {
        Reason::RateLimited => Verdict::Drop(reason),
        Reason::NotIp
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
        | Reason::NoEgress
        | Reason::ChannelLength
        | Reason::BindingLimited => Verdict::Pass(reason),
    }
}

/// What has become of a packet.
pub(crate) enum Rewritten<'a> {
    Gone(Verdict),
    /// It is a question to a listener.
    Asked,
    /// It leaves over IPv4, with all headers new.
    V4(Departure<'a, Message<Ipv4>>),
    /// It leaves over IPv6, with all headers new.
    V6(Departure<'a, Message<Ipv6>>),
}

/// An error leaves the frame as it was.
#[inline(always)]
fn forward(frame: &mut impl Frame, tables: &impl Tables) -> Result<Glance, Reason> {
    let (kind, offset) = link_layer(frame)?;
    // Comparisons of whole words: a match would look at byte by byte.
    let rewritten = if kind == ether_type::IPV4 {
        ipv4::forward(frame, tables, offset)?
    } else if kind == ether_type::IPV6 {
        ipv6::forward(frame, tables, offset)?
    } else if kind == ether_type::VLAN || kind == ether_type::SERVICE_VLAN {
        return Err(Reason::TooManyTags);
    } else {
        return Err(Reason::NotIp);
    };
    let verdict = match rewritten {
        Rewritten::Gone(verdict) => verdict,
        Rewritten::Asked => return Ok(Glance::Asked { offset, v4: kind == ether_type::IPV4 }),
        Rewritten::V4(departure) => leave_anew(frame, tables, &departure, ether_type::IPV4)?,
        Rewritten::V6(departure) => leave_anew(frame, tables, &departure, ether_type::IPV6)?,
    };
    Ok(Glance::Decided(verdict))
}

#[inline(always)]
pub(crate) fn index(last_byte: u8, udp: &Udp, tables: &impl Tables) -> u32 {
    flow::index(last_byte, u16::from_be_bytes(udp.dst_port), tables.mask())
}

#[inline(always)]
pub(crate) fn decrement(ttl: u8) -> Result<u8, Reason> {
    if ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    Ok(ttl - 1)
}
