//! What goes over the wire. The first byte tells what a datagram is:
//!
//! | first byte | what | then |
//! |---|---|---|
//! | 0xC0–0xDF | data for the keys in slot 0–31 | counter (8), sealed payload, tag (16) |
//! | 0xE0 | initiation | the first message of Noise IK (113) |
//! | 0xE1 | response | slot (1), the second message of Noise IK (49) |
//! | 0xE2 | refusal | reason (1), the first 16 bytes of the initiation's ephemeral key |
//!
//! No STUN message, DTLS record, ChannelData or RTP packet begins with such a byte (RFC 7983 §7), so
//! that they can share a socket. The slot is the receiver's name for the keys. A counter with its
//! highest bit set belongs to a datagram without payload, which only shows that its sender has the keys.

/// What a sealed datagram is longer than its payload, in bytes: first byte, counter and tag.
pub const OVERHEAD: usize = 1 + 8 + TAG_LEN;

pub(super) const TAG_LEN: usize = 16;
/// Ephemeral key, static key, payload, and two tags.
pub(super) const INITIATION_LEN: usize = 32 + (32 + TAG_LEN) + (Hello::LEN + TAG_LEN);
/// Ephemeral key, payload, tag.
pub(super) const RESPONSE_LEN: usize = 32 + (1 + TAG_LEN);
/// How much of an initiation its refusal repeats.
pub(super) const ECHO_LEN: usize = 16;

const DATA: u8 = 0xC0;
const INITIATION: u8 = 0xE0;
const RESPONSE: u8 = 0xE1;
const REFUSAL: u8 = 0xE2;
const SLOTS: u8 = 32;
const WITHOUT_PAYLOAD: u64 = 1 << 63;

/// The name that a receiver gave to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u8);

impl Slot {
    pub(super) const FIRST: Self = Self(0);

    pub(super) const fn new(byte: u8) -> Option<Self> {
        if byte < SLOTS { Some(Self(byte)) } else { None }
    }

    pub(super) const fn next(self) -> Self {
        Self((self.0 + 1) % SLOTS)
    }

    pub(super) const fn byte(self) -> u8 {
        self.0
    }
}

/// The nonce of a datagram: how many its sender has sealed before with these keys, and whether it
/// carries a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter(u64);

impl Counter {
    /// No sender counts further.
    pub(super) const MAX: u64 = 1 << 62;

    pub(super) const fn new(number: u64, has_payload: bool) -> Self {
        Self(if has_payload { number } else { number | WITHOUT_PAYLOAD })
    }

    pub(super) const fn number(self) -> u64 {
        self.0 & !WITHOUT_PAYLOAD
    }

    pub(super) const fn has_payload(self) -> bool {
        self.0 & WITHOUT_PAYLOAD == 0
    }

    pub(super) const fn nonce(self) -> u64 {
        self.0
    }
}

/// Why an initiation is refused. Not authenticated: a hint for whoever reads the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot be read: it was written for another key, or for another session.
    Unreadable,
    /// It comes from somebody else than was expected.
    Stranger,
}

impl Refusal {
    const fn byte(self) -> u8 {
        match self {
            Self::Unreadable => 1,
            Self::Stranger => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Unreadable),
            2 => Some(Self::Stranger),
            _ => None,
        }
    }
}

/// When an initiation was made, as far as one peer's initiations are concerned: a later one is
/// greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number {
    /// Greater each time the peer starts.
    pub(super) epoch: u64,
    /// From the start on.
    pub(super) count: u64,
}

/// The payload of an initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Where the initiator will look for the new keys.
    pub(super) slot: Slot,
    pub(super) number: Number,
}

impl Hello {
    pub(super) const LEN: usize = 1 + 8 + 8;

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.slot.byte();
        bytes[1..9].copy_from_slice(&self.number.epoch.to_be_bytes());
        bytes[9..].copy_from_slice(&self.number.count.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [slot, rest @ ..] = bytes;
        let (epoch, count) = rest.split_first_chunk()?;
        let count = u64::from_be_bytes(count.try_into().ok()?);
        let number = Number { epoch: u64::from_be_bytes(*epoch), count };
        Some(Self { slot: Slot::new(*slot)?, number })
    }
}

/// A datagram taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Data { slot: Slot, counter: Counter, sealed: &'a [u8] },
    Initiation(&'a [u8; INITIATION_LEN]),
    Response { slot: Slot, noise: &'a [u8; RESPONSE_LEN] },
    Refusal { reason: Refusal, echo: &'a [u8; ECHO_LEN] },
}

impl<'a> Packet<'a> {
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (&first, rest) = datagram.split_first()?;
        match first {
            INITIATION => Some(Self::Initiation(rest.try_into().ok()?)),
            RESPONSE => {
                let (&slot, noise) = rest.split_first()?;
                Some(Self::Response { slot: Slot::new(slot)?, noise: noise.try_into().ok()? })
            }
            REFUSAL => {
                let (&reason, echo) = rest.split_first()?;
                let reason = Refusal::from_byte(reason)?;
                Some(Self::Refusal { reason, echo: echo.try_into().ok()? })
            }
            _ => {
                let slot = Slot::new(first.checked_sub(DATA)?)?;
                let (counter, sealed) = rest.split_first_chunk()?;
                let counter = Counter(u64::from_be_bytes(*counter));
                (sealed.len() >= TAG_LEN).then_some(Self::Data { slot, counter, sealed })
            }
        }
    }
}

/// The head of a datagram with data; the sealed payload follows.
pub(super) fn data_head(slot: Slot, counter: Counter) -> [u8; OVERHEAD - TAG_LEN] {
    let mut head = [0; OVERHEAD - TAG_LEN];
    head[0] = DATA + slot.byte();
    head[1..].copy_from_slice(&counter.0.to_be_bytes());
    head
}

pub(super) fn initiation(noise: &[u8]) -> Vec<u8> {
    [&[INITIATION], noise].concat()
}

pub(super) fn response(slot: Slot, noise: &[u8]) -> Vec<u8> {
    [&[RESPONSE, slot.byte()], noise].concat()
}

pub(super) fn refusal(reason: Refusal, initiation: &[u8; INITIATION_LEN]) -> Vec<u8> {
    [&[REFUSAL, reason.byte()], &initiation[..ECHO_LEN]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let slot = Slot(31);
        for has_payload in [true, false] {
            let counter = Counter::new(7, has_payload);
            let datagram = [&data_head(slot, counter)[..], &[9; 16]].concat();
            let sealed = &[9; 16][..];
            assert_eq!(Packet::parse(&datagram), Some(Packet::Data { slot, counter, sealed }));
            assert_eq!((counter.number(), counter.has_payload()), (7, has_payload));
        }
        let noise = [5; INITIATION_LEN];
        assert_eq!(Packet::parse(&initiation(&noise)), Some(Packet::Initiation(&noise)));
        let echo = &[5; ECHO_LEN];
        for reason in [Refusal::Unreadable, Refusal::Stranger] {
            let expected = Packet::Refusal { reason, echo };
            assert_eq!(Packet::parse(&refusal(reason, &noise)), Some(expected));
        }
        let noise = &[6; RESPONSE_LEN];
        let expected = Packet::Response { slot, noise };
        assert_eq!(Packet::parse(&response(slot, noise)), Some(expected));
        let hello = Hello { slot, number: Number { epoch: 1 << 40, count: 3 } };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    }

    #[test]
    fn refuses_what_is_too_short_or_too_long() {
        let whole = [&data_head(Slot(0), Counter::new(0, true))[..], &[0; 16]].concat();
        assert_eq!(whole.len(), OVERHEAD);
        assert_eq!(Packet::parse(&whole[..OVERHEAD - 1]), None);
        assert_eq!(Packet::parse(&initiation(&[0; INITIATION_LEN + 1])), None);
        assert_eq!(Packet::parse(&response(Slot(0), &[0; RESPONSE_LEN - 1])), None);
        assert_eq!(Packet::parse(&[]), None);
        // STUN, ChannelData, RTP.
        for first in [0x00, 0x01, 0x40, 0x80, 0xBF] {
            assert_eq!(Packet::parse(&[first; 100]), None);
        }
    }
}
