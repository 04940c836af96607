//! Which ports of ours have flows in the channel tables.
//!
//! Hardly a packet that has no flow goes to a port that has one there, so one word says whether a search is
//! worth while. Two bits for each port and family tell ChannelData from plain datagrams: where all flows
//! are channels, what cannot be ChannelData (RFC 8656 §12.4), such as any STUN message, is not sought
//! either.
//!
//! Userspace sets a bit before it writes the first entry that the bit is about, and clears it after the
//! last one has become vacant: an entry never stands without its bit.

/// How many ports one word is about.
const PORTS: u32 = u64::BITS / KINDS;
/// Bits for each port.
const KINDS: u32 = 4;

/// How many words are about all ports.
pub const WORDS: u32 = (1 << u16::BITS) / PORTS;

/// Whether a channel table holds a flow of one kind that arrives at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bit(u32);

/// What the channel table of one family holds of flows that arrive at one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Some are ChannelData.
    pub channels: bool,
    /// Some are plain datagrams.
    pub datagrams: bool,
}

impl Bit {
    /// The bit of flows to `port` (host order) over IPv6 or IPv4 that are ChannelData or plain datagrams.
    #[inline(always)]
    pub const fn new(port: u16, ipv6: bool, channel: bool) -> Self {
        Self(port as u32 * KINDS + (ipv6 as u32 * 2) + channel as u32)
    }

    /// Index of the word that it stands in.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 / u64::BITS
    }

    /// The bit in that word.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        1 << (self.0 % u64::BITS)
    }
}

impl Held {
    /// What is held for `port` (host order). `word` returns the word at an index, below [`WORDS`].
    #[inline(always)]
    pub fn at(port: u16, ipv6: bool, word: impl FnOnce(u32) -> u64) -> Self {
        let datagrams = Bit::new(port, ipv6, false);
        // The other one stands beside it.
        let bits = word(datagrams.word()) >> (datagrams.0 % u64::BITS);
        Self { channels: bits & 2 != 0, datagrams: bits & 1 != 0 }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn each_bit_is_its_own_and_says_what_is_held() {
        let mut words = vec![0_u64; WORDS as usize];
        for port in 0..=u16::MAX {
            for (ipv6, channel) in [(false, false), (false, true), (true, false), (true, true)] {
                let bit = Bit::new(port, ipv6, channel);
                let word = bit.word() as usize;
                assert_eq!(words[word] & bit.mask(), 0, "{port} {ipv6} {channel}");
                let held = |words: &[u64], ipv6| Held::at(port, ipv6, |at| words[at as usize]);
                let (before, other) = (held(&words, ipv6), held(&words, !ipv6));
                words[word] |= bit.mask();
                let expected = match channel {
                    true => Held { channels: true, ..before },
                    false => Held { datagrams: true, ..before },
                };
                assert_eq!((held(&words, ipv6), held(&words, !ipv6)), (expected, other));
            }
        }
        assert!(words.iter().all(|word| *word == u64::MAX));
    }
}
