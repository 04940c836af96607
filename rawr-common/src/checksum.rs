//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
//!
//! A ones' complement sum comes out right in either byte order as long as its summands and the result
//! share it (RFC 1071 §2 B), so everything here is in the order in which a packet's 16-bit words load
//! on this machine, and nothing is swapped.
//!
//! What a flow changes in a packet is constant but for TTL and lengths. So userspace adds up the
//! difference once ([`udp_delta`], [`ip_delta`]), and each packet costs one addition per checksum
//! ([`update`]).

use crate::channel::HEADER;
use crate::flow::{Channels, Tuple4, Tuple6};
use crate::wire::Ipv4;

/// A ones' complement sum in the making. It holds 2^16 words at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u32);

/// The ends of a datagram as its UDP checksum covers them.
pub trait Ends {
    /// Sum of addresses and ports. Length and protocol, the rest of the pseudo-header (RFC 768,
    /// RFC 8200 §8.1), count the same over IPv4 and IPv6.
    fn sum(&self) -> Sum;
}

/// What to [`update`] the UDP checksum by when a datagram's ends change from `from` to `to`.
pub fn udp_delta(from: &impl Ends, to: &impl Ends) -> u16 {
    to.sum().minus(from.sum()).fold()
}

/// What to [`update`] the header checksum of an IPv4 packet by when its addresses change from those of
/// `from` to those of `to` and its TTL becomes less by one.
pub fn ip_delta(from: &Tuple4, to: &Tuple4) -> u16 {
    let old = Sum::default().bytes(&from.src).bytes(&from.dst).bytes(&[1, 0]);
    Sum::default().bytes(&to.src).bytes(&to.dst).minus(old).fold()
}

/// What to [`update`] the UDP checksum by when ChannelData becomes a plain datagram, the other way round,
/// or takes another number; the length of the data, which the header repeats, is not in it. The datagram's
/// own length counts twice, in its header and in the pseudo-header.
pub fn channel_delta(channels: Channels) -> u16 {
    let header = |number: [u8; 2]| match number {
        [0, 0] => Sum::default(),
        number => Sum::default().bytes(&number).bytes(&(2 * HEADER).to_be_bytes()),
    };
    header(channels.leaving).minus(header(channels.arriving)).fold()
}

/// What to [`update`] the header checksum of an IPv4 packet by for the same reason.
pub fn channel_ip_delta(channels: Channels) -> u16 {
    let header = |number: [u8; 2]| match number {
        [0, 0] => Sum::default(),
        _ => Sum::default().bytes(&HEADER.to_be_bytes()),
    };
    header(channels.leaving).minus(header(channels.arriving)).fold()
}

/// The sum of two [`udp_delta`]s or [`ip_delta`]s.
#[inline(always)]
pub fn both(delta: u16, other: u16) -> u16 {
    Sum::default().word(delta).word(other).fold()
}

/// The checksum of something that had `checksum` and of which the words' sum has changed by `delta`.
#[inline(always)]
pub fn update(checksum: [u8; 2], delta: u16) -> [u8; 2] {
    let sum = u32::from(!u16::from_ne_bytes(checksum)) + u32::from(delta);
    // Two words carry once, and not again when the carry is added.
    (!((sum + (sum >> 16)) as u16)).to_ne_bytes()
}

/// The header checksum of `ip`, whatever its checksum field says.
#[inline(always)]
pub fn ipv4_header(ip: &Ipv4) -> [u8; 2] {
    let [s0, s1, s2, s3] = ip.src;
    let [d0, d1, d2, d3] = ip.dst;
    [
        [ip.version_ihl, ip.tos],
        ip.total_len,
        ip.id,
        ip.fragment,
        [ip.ttl, ip.protocol],
        [s0, s1],
        [s2, s3],
        [d0, d1],
        [d2, d3],
    ]
    .into_iter()
    .fold(Sum::default(), |sum, word| sum.word(u16::from_ne_bytes(word)))
    .checksum()
}

/// The UDP checksum as it is sent: 0 means "none", so a computed 0 goes out as its other form
/// (RFC 768).
#[inline(always)]
pub fn sent(checksum: [u8; 2]) -> [u8; 2] {
    match u16::from_ne_bytes(checksum) {
        0 => u16::MAX,
        checksum => checksum,
    }
    .to_ne_bytes()
}

impl Sum {
    /// Adds one word, in the order in which it loads.
    #[inline(always)]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u32::from(word))
    }

    /// Adds two words, as they load together.
    #[inline(always)]
    pub fn words(self, words: u32) -> Self {
        self.word(words as u16).word((words >> 16) as u16)
    }

    /// Adds bytes that begin at an even offset; an odd one at the end is followed by a zero.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (pairs, rest) = bytes.as_chunks();
        let sum = pairs.iter().fold(self, |sum, pair| sum.word(u16::from_ne_bytes(*pair)));
        rest.iter().fold(sum, |sum, last| sum.word(u16::from_ne_bytes([*last, 0])))
    }

    fn minus(self, other: Self) -> Self {
        self.word(!other.fold())
    }

    /// The sum in 16 bits, carries added back in.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        let once = (self.0 >> 16) + (self.0 & 0xffff);
        ((once >> 16) + once) as u16
    }

    /// The checksum over what was added.
    #[inline(always)]
    pub fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }
}

impl Ends for Tuple4 {
    fn sum(&self) -> Sum {
        Sum::default().bytes(&self.src).bytes(&self.dst).bytes(&self.src_port).bytes(&self.dst_port)
    }
}

impl Ends for Tuple6 {
    fn sum(&self) -> Sum {
        Sum::default().bytes(&self.src).bytes(&self.dst).bytes(&self.src_port).bytes(&self.dst_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §3: the bytes 00 01 f2 03 f4 f5 f6 f7 sum up to ddf2.
    #[test]
    fn sums_as_in_rfc_1071() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold().to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [0x22, 0x0d]);
    }

    /// RFC 1624 §4: a word of 5555 becomes 3285 under the checksum dd2f, which becomes 0000.
    #[test]
    fn updates_as_in_rfc_1624() {
        let old = Sum::default().bytes(&[0x55, 0x55]);
        let delta = Sum::default().bytes(&[0x32, 0x85]).minus(old).fold();
        assert_eq!(update([0xdd, 0x2f], delta), [0x00, 0x00]);
    }

    #[test]
    fn an_odd_last_byte_is_padded() {
        let padded = Sum::default().bytes(&[1, 2, 3, 0]).fold();
        assert_eq!(Sum::default().bytes(&[1, 2, 3]).fold(), padded);
    }

    proptest! {
        #[test]
        fn header_checksum_makes_the_header_sum_up_to_all_ones(bytes: [u8; 20]) {
            let [version_ihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, address @ ..] = bytes;
            let [s0, s1, s2, s3, d0, d1, d2, d3] = address;
            let mut ip = Ipv4 {
                version_ihl, tos, total_len: [l0, l1], id: [i0, i1], fragment: [f0, f1], ttl, protocol,
                checksum: [0, 0], src: [s0, s1, s2, s3], dst: [d0, d1, d2, d3],
            };
            ip.checksum = ipv4_header(&ip);
            let rest = [tos, l0, l1, i0, i1, f0, f1, ttl, protocol];
            let sum = Sum::default()
                .bytes(&[version_ihl, rest[0]]).bytes(&rest[1..7]).bytes(&rest[7..])
                .bytes(&ip.checksum).bytes(&address);
            prop_assume!(bytes[..10] != [0; 10] || address != [0; 8]);
            prop_assert_eq!(sum.fold(), 0xffff);
        }
    }
}
