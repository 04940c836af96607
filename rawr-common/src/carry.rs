//! What a datagram carries, taken out of ChannelData or put into it (RFC 8656 §12.4 to §12.7).

use core::hint::black_box;

use crate::channel::HEADER;
use crate::checksum::{Sum, sent};
use crate::flow::Recipe;
use crate::reason::Reason;
use crate::relay::Frame;
use crate::wire::{ChannelHeader, Udp};

/// Longer datagrams with padding are passed up, because the kernel's verifier wants a bound.
const LONGEST_PADDED: u16 = 16 * 1024;

/// The data of a datagram on their way from one header to another.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    /// Length in bytes.
    len: u16,
    /// Bytes behind the data that were part of the datagram, and are the link layer's from now on.
    padding: u16,
    /// What the UDP checksum does not cover any more, but for what is the same for all packets.
    gone: Sum,
    /// The header that the data leave behind, if one.
    pub(crate) header: ChannelHeader,
}

impl Carried {
    /// The data of the datagram with the header `udp` whose payload begins at `payload`: behind `arrived`,
    /// if that is there, and else all of it.
    #[inline(always)]
    pub(crate) fn of(
        frame: &impl Frame,
        payload: usize,
        udp: &Udp,
        arrived: ChannelHeader,
        recipe: &Recipe,
    ) -> Result<Self, Reason> {
        let whole = u16::from_be_bytes(udp.len) - size_of::<Udp>() as u16;
        let number = recipe.channels.leaving;
        if !arrived.is_there() {
            let header = ChannelHeader { number, len: whole.to_be_bytes() };
            return Ok(Self { len: whole, padding: 0, gone: Sum::default(), header });
        }
        let len = u16::from_be_bytes(arrived.len);
        let header = ChannelHeader { number, len: arrived.len };
        let mut gone = Sum::default().word(!u16::from_ne_bytes(arrived.len));
        let padding = u32::from(whole).wrapping_sub(u32::from(HEADER) + u32::from(len));
        if padding != 0 {
            if padding > 3 || whole & 3 != 0 {
                return Err(Reason::ChannelLength);
            }
            let sum = padding_sum(frame, payload, whole, padding).ok_or(Reason::TooBig)?;
            gone = gone.word(!sum).word(!(2 * padding as u16).to_be());
        }
        Ok(Self { len, padding: padding as u16, gone, header })
    }

    /// Length of the UDP datagram that leaves, its header included.
    #[inline(always)]
    pub(crate) fn udp_len(&self) -> u16 {
        let header = if self.header.is_there() { HEADER } else { 0 };
        // Wraps only near 64 KiB, what exceeds any MTU.
        (size_of::<Udp>() as u16).wrapping_add(header).wrapping_add(self.len)
    }

    /// Length of layer 3 as it leaves with the header `Ip`, what stays behind it included.
    #[inline(always)]
    pub(crate) fn layer3_len<Ip>(&self) -> u32 {
        let header = if self.header.is_there() { u32::from(HEADER) } else { 0 };
        let headers = (size_of::<Ip>() + size_of::<Udp>()) as u32 + header;
        headers + u32::from(self.len) + u32::from(self.padding)
    }

    /// The UDP checksum as it leaves.
    #[inline(always)]
    pub(crate) fn checksum(&self, udp: &Udp, recipe: &Recipe) -> [u8; 2] {
        let arrived = self.gone.word(!u16::from_ne_bytes(udp.checksum)).word(recipe.udp_delta);
        let sum = if self.header.is_there() {
            arrived.word(u16::from_ne_bytes(self.header.len))
        } else {
            arrived
        };
        sent(sum.checksum())
    }

    /// The IPv4 header checksum of a packet that had `checksum` and stays IPv4.
    #[inline(always)]
    pub(crate) fn ip_checksum(&self, checksum: [u8; 2], recipe: &Recipe) -> [u8; 2] {
        let sum = Sum::default().word(!u16::from_ne_bytes(checksum)).word(recipe.ip_delta);
        sum.word(!self.padding.to_be()).checksum()
    }
}

/// Sum of the last `padding` bytes of a payload whose length, `whole`, is a multiple of four: so is then
/// their offset in the datagram, and they are whole words of it but for a first byte of zero. `None` if the
/// datagram is too long. A function of its own, because hardly a sender pads what goes over UDP.
#[inline(never)]
fn padding_sum(frame: &impl Frame, payload: usize, whole: u16, padding: u32) -> Option<u16> {
    if whole > LONGEST_PADDED {
        return None;
    }
    // Bounded anew, so that the kernel's verifier sees the bound where it is needed.
    let last = black_box(payload + usize::from(whole) - size_of::<u32>());
    let last = last & (2 * usize::from(LONGEST_PADDED) - 1);
    let last: ChannelHeader = frame.load(last)?;
    let ([n0, n1], [l0, l1]) = (last.number, last.len);
    // The last bytes are the upper ones of a little-endian word.
    let kept = !(u32::MAX >> (8 * padding));
    let [b0, b1, b2, b3] = (u32::from_le_bytes([n0, n1, l0, l1]) & kept).to_le_bytes();
    let sum = Sum::default().word(u16::from_ne_bytes([b0, b1])).word(u16::from_ne_bytes([b2, b3]));
    Some(sum.fold())
}
