//! Channels and ChannelData (RFC 8656 §12).

use std::fmt;

/// Number of a channel: 0x4000 to 0x4fff, to which RFC 8656 §12 has narrowed the 0x4000 to 0x7fff of
/// RFC 5766 §11. The first byte tells all of them from whatever else shares a port with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// The channel with this number; `None` outside of 0x4000 to 0x7fff.
    pub const fn new(number: u16) -> Option<Self> {
        if number >> 14 == 1 { Some(Self(number)) } else { None }
    }

    /// Whether it is one that RFC 8656 allows, and not only RFC 5766.
    pub const fn is_of_rfc8656(self) -> bool {
        self.0 >> 12 == 4
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ChannelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

/// A ChannelData message (RFC 8656 §12.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelData<'a> {
    /// The channel.
    pub channel: ChannelNumber,
    /// What the peer is sent, or has sent.
    pub data: &'a [u8],
}

impl<'a> ChannelData<'a> {
    /// Bytes before the data.
    pub const HEADER: usize = 4;

    /// Reads a datagram, or what [`crate::messages`] gives. Up to three bytes after the data are
    /// padding, which senders may leave out over UDP (RFC 8656 §12.5).
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<4>()?;
        let channel = ChannelNumber::new(u16::from_be_bytes([header[0], header[1]]))?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (data, padding) = rest.split_at_checked(length)?;
        (padding.len() < 4).then_some(Self { channel, data })
    }

    /// The message for a datagram; `None` if the data is longer than 65,535 bytes.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let length = u16::try_from(self.data.len()).ok()?.to_be_bytes();
        Some([&self.channel.0.to_be_bytes(), &length, self.data].concat())
    }

    /// The message for a stream, where it is padded with zeros to a multiple of four bytes
    /// (RFC 8656 §12.5).
    pub fn encode_padded(&self) -> Option<Vec<u8>> {
        let mut bytes = self.encode()?;
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> ChannelNumber {
        ChannelNumber::new(0x4001).unwrap()
    }

    #[test]
    fn channel_data_is_written_and_read() {
        let message = ChannelData { channel: channel(), data: &[1, 2, 3, 4, 5] };
        let bytes = message.encode().unwrap();
        assert_eq!(bytes, [0x40, 1, 0, 5, 1, 2, 3, 4, 5]);
        assert_eq!(ChannelData::decode(&bytes), Some(message));
        let padded = message.encode_padded().unwrap();
        assert_eq!(padded, [0x40, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0]);
        assert_eq!(ChannelData::decode(&padded), Some(message));
        let empty = ChannelData { channel: channel(), data: &[] };
        assert_eq!(ChannelData::decode(&empty.encode().unwrap()), Some(empty));
        let longest = [7; 65_535];
        let message = ChannelData { channel: channel(), data: &longest };
        assert_eq!(message.encode_padded().unwrap().len(), 65_540);
        assert_eq!(ChannelData { channel: channel(), data: &[7; 65_536] }.encode(), None);
    }

    #[test]
    fn a_length_that_does_not_fit_the_datagram_is_refused() {
        for wrong in [&[0x40, 1, 0][..], &[0x40, 1, 0, 1], &[0x40, 1, 0, 0, 1, 2, 3, 4]] {
            assert_eq!(ChannelData::decode(wrong), None);
        }
        assert_eq!(ChannelData::decode(&[0x80, 0, 0, 0]), None);
        assert_eq!(ChannelData::decode(&[0x40, 1, 0xff, 0xff, 1, 2, 3, 4]), None);
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(ChannelNumber::new(0x3fff), None);
        assert_eq!(ChannelNumber::new(0x4000).unwrap().number(), 0x4000);
        assert_eq!(ChannelNumber::new(0x4fff).unwrap().to_string(), "0x4fff");
        assert!(ChannelNumber::new(0x4fff).unwrap().is_of_rfc8656());
        assert!(!ChannelNumber::new(0x5000).unwrap().is_of_rfc8656());
        assert!(ChannelNumber::new(0x7fff).is_some());
        assert_eq!(ChannelNumber::new(0x8000), None);
    }
}
