//! The first byte of what two agents send each other, by which it is told from STUN (first byte 0 to 3) and
//! from the probes of hole punching.
//!
//! | first byte     | meaning                                                                          |
//! |----------------|----------------------------------------------------------------------------------|
//! | `0xe0`–`0xe7`  | data of the handover that the low three bits count                               |
//! | `0xe8`–`0xef`  | the same, and a [`super::control::Control::Marker`] follows on the path left      |
//! | `0xf0`         | control, sealed                                                                  |
//!
//! All are in the range that RFC 7983 §7 and RFC 9443 §3 leave to nobody on a shared socket but QUIC's long
//! header, which is the application's and travels inside.

/// Of data: handover 0, and no marker follows.
const DATA: u8 = 0xe0;
/// Of data: a marker follows.
const MARKED: u8 = 0x08;
/// Handovers are counted modulo this.
pub(super) const HANDOVERS: u8 = 8;
/// Of control.
pub(super) const CONTROL: u8 = 0xf0;
/// Bytes that this costs each datagram.
pub(super) const LENGTH: usize = 1;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The application's.
    Data(Tag),
    /// The agents' own.
    Control,
}

/// Which handover data was sent after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Counts handovers modulo [`HANDOVERS`].
    pub(super) handover: u8,
    /// The path left then was alive, and a marker on it tells where its data ended.
    pub(super) is_marked: bool,
}

impl Tag {
    pub(super) const fn to_byte(self) -> u8 {
        let marked = if self.is_marked { MARKED } else { 0 };
        DATA | marked | (self.handover % HANDOVERS)
    }
}

/// What `bytes` are; `None` where they are no agent's.
pub(super) fn parse(bytes: &[u8]) -> Option<Frame> {
    match *bytes.first()? {
        CONTROL => Some(Frame::Control),
        byte @ 0xe0..=0xef => {
            let tag = Tag { handover: byte % HANDOVERS, is_marked: byte & MARKED != 0 };
            Some(Frame::Data(tag))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_told_apart() {
        for handover in 0..HANDOVERS {
            for is_marked in [false, true] {
                let tag = Tag { handover, is_marked };
                assert_eq!(parse(&[tag.to_byte(), 1, 2]), Some(Frame::Data(tag)));
            }
        }
        assert_eq!(parse(&[CONTROL]), Some(Frame::Control));
        assert_eq!(parse(&[]), None);
        for stun in 0..4 {
            assert_eq!(parse(&[stun, 1]), None);
        }
    }
}
