//! Cutting a TCP or TLS stream into STUN messages and ChannelData (RFC 8489 §6.2.2, RFC 8656 §12.5).

use stun_types::message::MessageHeader;

use crate::channel::{ChannelData, ChannelNumber};

/// Longest STUN message that is read, in bytes: what a UDP datagram over IPv4 can hold.
pub const MAX_STUN: usize = 65_507;

/// Longest frame, in bytes: ChannelData with its padding.
const MAX_FRAME: usize = ChannelData::HEADER + 65_536;

/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;

/// Takes a stream's bytes and gives whole messages. It holds no more than one unfinished frame and one
/// read.
///
/// ```
/// use rawr_proto::StreamDecoder;
///
/// let mut decoder = StreamDecoder::default();
/// assert_eq!(decoder.push(&[0x40, 0, 0, 3, 1, 2]), 6);
/// assert_eq!(decoder.next_message()?, None);
/// decoder.push(&[3, 0]);
/// assert_eq!(decoder.next_message()?, Some([0x40, 0, 0, 3, 1, 2, 3].as_slice()));
/// # Ok::<(), rawr_proto::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct StreamDecoder {
    buffer: Vec<u8>,
    /// The bytes in use.
    start: usize,
    end: usize,
}

impl StreamDecoder {
    /// Where the next bytes of the stream are to be put. Empty only while messages have not been taken
    /// out.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let wanted = (self.end + CHUNK).min(MAX_FRAME + CHUNK);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of [`StreamDecoder::spare`] have been filled.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Copies bytes in; returns how many there was room for.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let spare = self.spare();
            let count = spare.len().min(bytes.len() - taken);
            if count == 0 {
                break;
            }
            spare[..count].copy_from_slice(&bytes[taken..taken + count]);
            self.filled(count);
            taken += count;
        }
        taken
    }

    /// Takes out the next message, if all of it has come: a STUN message, or ChannelData without its
    /// padding.
    ///
    /// # Errors
    /// What follows is neither. There is no way to find the next message: close the stream.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let held = &self.buffer[self.start..self.end];
        let Some(Frame { message, padded }) = Frame::at(held)? else { return Ok(None) };
        if held.len() < padded {
            return Ok(None);
        }
        let start = self.start;
        self.start += padded;
        Ok(Some(&self.buffer[start..start + message]))
    }

    /// Whether a message has begun but not ended.
    pub const fn is_amid(&self) -> bool {
        self.start < self.end
    }

    /// Frees the buffer of a stream that has nothing in it.
    pub fn release(&mut self) {
        if !self.is_amid() {
            *self = Self::default();
        }
    }
}

/// Lengths of what begins a stream, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    message: usize,
    /// With what follows it up to the next message.
    padded: usize,
}

impl Frame {
    /// `None` while the header is not whole.
    fn at(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        match *bytes {
            [] => Ok(None),
            [0..=3, ..] => Self::stun(bytes),
            [64..=127, ..] => Ok(Self::channel_data(bytes)),
            [first, ..] => Err(FrameError::Neither { first }),
        }
    }

    fn stun(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some([_, _, high, low, cookie @ ..]) = bytes.first_chunk::<8>() else {
            return Ok(None);
        };
        if *cookie != [0x21, 0x12, 0xa4, 0x42] {
            return Err(FrameError::NoCookie);
        }
        let message = MessageHeader::LENGTH + usize::from(u16::from_be_bytes([*high, *low]));
        if !message.is_multiple_of(4) || message > MAX_STUN {
            return Err(FrameError::Length { bytes: message });
        }
        Ok(Some(Self { message, padded: message }))
    }

    fn channel_data(bytes: &[u8]) -> Option<Self> {
        let [number_high, number_low, high, low] = *bytes.first_chunk()?;
        ChannelNumber::new(u16::from_be_bytes([number_high, number_low]))?;
        let message = ChannelData::HEADER + usize::from(u16::from_be_bytes([high, low]));
        Some(Self { message, padded: message.next_multiple_of(4) })
    }
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the first byte of either.
    #[error("neither STUN nor ChannelData begins with {first:#04x}{}", hint(*first))]
    Neither {
        /// The byte.
        first: u8,
    },
    /// It begins like STUN, but is not.
    #[error("a STUN message without the magic cookie")]
    NoCookie,
    /// No STUN message has this length.
    #[error("a STUN message of {bytes} bytes: the length must be a multiple of 4, at most 65,504")]
    Length {
        /// With the header.
        bytes: usize,
    },
}

/// What else clients are known to send.
const fn hint(first: u8) -> &'static str {
    match first {
        0x16 => "; it looks like TLS, which has a port of its own",
        b'G' | b'P' | b'H' => "; it looks like HTTP",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stun(length: u16) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0x21, 0x12, 0xa4, 0x42]);
        bytes.resize(MessageHeader::LENGTH + usize::from(length), 9);
        bytes
    }

    fn channel_data(data: &[u8]) -> ChannelData<'_> {
        ChannelData { channel: ChannelNumber::new(0x4fff).unwrap(), data }
    }

    /// What a stream consists of, and what the decoder should make of it.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let stun = (0_u16..300).prop_map(|words| (stun(words * 4), stun(words * 4)));
        let data = proptest::collection::vec(any::<u8>(), 0..1500).prop_map(|data| {
            let message = channel_data(&data);
            (message.encode_padded().unwrap(), message.encode().unwrap())
        });
        prop_oneof![stun, data]
    }

    fn drain(decoder: &mut StreamDecoder, out: &mut Vec<Vec<u8>>) {
        while let Some(message) = decoder.next_message().unwrap() {
            out.push(message.to_vec());
        }
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_messages(
            messages in proptest::collection::vec(message(), 1..12),
            cuts in proptest::collection::vec(1_usize..4000, 1..40),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|(wire, _)| wire.clone()).collect();
            let mut decoder = StreamDecoder::default();
            let (mut out, mut rest) = (Vec::new(), stream.as_slice());
            for cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                prop_assert_eq!(decoder.push(piece), piece.len());
                drain(&mut decoder, &mut out);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let expected: Vec<Vec<u8>> = messages.into_iter().map(|(_, message)| message).collect();
            prop_assert_eq!(out, expected);
            prop_assert!(!decoder.is_amid());
        }

        #[test]
        fn anything_is_read_within_bounds(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..300), 0..20,
        )) {
            let mut decoder = StreamDecoder::default();
            'stream: for piece in pieces {
                decoder.push(&piece);
                prop_assert!(decoder.buffer.len() <= MAX_FRAME + CHUNK);
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => prop_assert!(message.len() >= 4),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }
    }

    #[test]
    fn the_longest_frames_pass() {
        let data = vec![5; 65_535];
        let wire = channel_data(&data).encode_padded().unwrap();
        let mut decoder = StreamDecoder::default();
        assert_eq!(decoder.push(&wire), wire.len());
        assert_eq!(decoder.next_message().unwrap().unwrap().len(), 65_539);
        assert_eq!(decoder.push(&stun(65_484)), 65_504);
        assert_eq!(decoder.next_message().unwrap().unwrap().len(), 65_504);
        decoder.release();
        assert_eq!(decoder.buffer.capacity(), 0);
    }

    #[test]
    fn what_is_not_taken_out_leaves_no_room() {
        let mut decoder = StreamDecoder::default();
        let flood = vec![0x40; 1 << 20];
        let taken = decoder.push(&flood);
        assert_eq!(taken, MAX_FRAME + CHUNK);
        assert_eq!(decoder.push(&flood), 0);
    }

    #[test]
    fn garbage_is_named() {
        let error = |bytes: &[u8]| {
            let mut decoder = StreamDecoder::default();
            decoder.push(bytes);
            decoder.next_message().map(|_| ()).unwrap_err()
        };
        assert_eq!(error(&[0x16, 3, 1]), FrameError::Neither { first: 0x16 });
        assert!(error(&[0x16]).to_string().ends_with("which has a port of its own"));
        assert_eq!(error(&[0x80]), FrameError::Neither { first: 0x80 });
        assert_eq!(error(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43]), FrameError::NoCookie);
        let odd = [0, 1, 0, 2, 0x21, 0x12, 0xa4, 0x42];
        assert_eq!(error(&odd), FrameError::Length { bytes: 22 });
        let long = [0, 1, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42];
        assert_eq!(error(&long), FrameError::Length { bytes: 65_552 });
    }
}
