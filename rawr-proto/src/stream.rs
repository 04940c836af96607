//! Where messages end in a TCP or TLS stream (RFC 8489 §6.2.2, RFC 8656 §12.5).
//!
//! A STUN message says how long it is, ChannelData too; the latter is padded to four bytes. A stream is cut
//! in place: what [`whole`] has counted is read with [`messages`], and what is left waits for more.

use stun_types::message::MessageHeader;

use crate::channel::ChannelData;

/// Longest STUN message that is read, in bytes: what a UDP datagram over IPv4 can hold.
pub const MAX_STUN: usize = 65_507;

/// Lengths of what begins a stream, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    message: usize,
    /// With what follows it up to the next message.
    padded: usize,
}

/// How many of the first bytes of `stream` are whole messages.
///
/// ```
/// let stream = [0x40, 0, 0, 3, 1, 2, 3, 0, 0x40, 0, 0];
/// let length = rawr_proto::whole(&stream)?;
/// let messages: Vec<_> = rawr_proto::messages(&stream[..length]).collect();
/// assert_eq!(messages, [[0x40, 0, 0, 3, 1, 2, 3]]);
/// # Ok::<(), rawr_proto::FrameError>(())
/// ```
///
/// # Errors
/// What follows the last whole message is not the beginning of one. There is no way to find the next
/// message: close the stream.
pub fn whole(stream: &[u8]) -> Result<usize, FrameError> {
    let mut at = 0;
    while let Some(frame) = Frame::at(&stream[at..])? {
        if stream.len() - at < frame.padded {
            break;
        }
        at += frame.padded;
    }
    Ok(at)
}

/// The messages of bytes that [`whole`] has counted, without padding.
pub fn messages(whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    frames(whole).map(|(frame, bytes)| &bytes[..frame.message])
}

/// The same, with padding.
pub fn padded(whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    frames(whole).map(|(_, bytes)| bytes)
}

fn frames(mut whole: &[u8]) -> impl Iterator<Item = (Frame, &[u8])> {
    std::iter::from_fn(move || {
        let frame = Frame::at(whole).ok().flatten()?;
        let bytes = whole.get(..frame.padded)?;
        whole = &whole[frame.padded..];
        Some((frame, bytes))
    })
}

impl Frame {
    /// `None` while too little is there to tell.
    fn at(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        match *bytes {
            [] => Ok(None),
            [0..=3, _, high, low, ..] => {
                Self::stun(u16::from_be_bytes([high, low]), bytes.get(4..8))
            }
            [64..=127, _, high, low, ..] => {
                let message = ChannelData::HEADER + usize::from(u16::from_be_bytes([high, low]));
                Ok(Some(Self { message, padded: message.next_multiple_of(4) }))
            }
            [0..=3 | 64..=127, ..] => Ok(None),
            [first, ..] => Err(FrameError::Neither { first }),
        }
    }

    /// `length` is that of the attributes.
    fn stun(length: u16, cookie: Option<&[u8]>) -> Result<Option<Self>, FrameError> {
        let message = MessageHeader::LENGTH + usize::from(length);
        if !message.is_multiple_of(4) || message > MAX_STUN {
            return Err(FrameError::Length { bytes: message });
        }
        match cookie {
            None => Ok(None),
            Some([0x21, 0x12, 0xa4, 0x42]) => Ok(Some(Self { message, padded: message })),
            Some(_) => Err(FrameError::NoCookie),
        }
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
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::ChannelNumber;

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

    /// What a stream consists of, and what it should be read as.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let stun = (0_u16..300).prop_map(|words| (stun(words * 4), stun(words * 4)));
        let data = proptest::collection::vec(any::<u8>(), 0..1500).prop_map(|data| {
            let message = channel_data(&data);
            (message.encode_padded().unwrap(), message.encode().unwrap())
        });
        prop_oneof![stun, data]
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_messages(
            sent in proptest::collection::vec(message(), 1..12),
            cuts in proptest::collection::vec(1_usize..4000, 1..40),
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(|(wire, _)| wire.clone()).collect();
            let (mut received, mut held, mut rest) = (Vec::new(), Vec::new(), stream.as_slice());
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                held.extend_from_slice(piece);
                let length = whole(&held).unwrap();
                prop_assert_eq!(padded(&held[..length]).map(<[u8]>::len).sum::<usize>(), length);
                received.extend(messages(&held[..length]).map(<[u8]>::to_vec));
                held.drain(..length);
            }
            prop_assert!(held.is_empty());
            let sent: Vec<Vec<u8>> = sent.into_iter().map(|(_, message)| message).collect();
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn any_bytes_are_read_within_their_bounds(
            bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            if let Ok(length) = whole(&bytes) {
                prop_assert!(length <= bytes.len());
                prop_assert_eq!(padded(&bytes[..length]).map(<[u8]>::len).sum::<usize>(), length);
            }
        }
    }

    #[test]
    fn the_longest_messages_have_bounds() {
        let data = vec![5; 65_535];
        for longest in [channel_data(&data).encode_padded().unwrap(), stun(65_484)] {
            assert_eq!(whole(&longest), Ok(longest.len()));
            assert_eq!(whole(&longest[..longest.len() - 1]), Ok(0));
        }
    }

    #[test]
    fn garbage_is_named_at_the_first_byte_that_shows_it() {
        let error = |bytes: &[u8]| whole(bytes).unwrap_err();
        assert_eq!(error(&[0x16, 3, 1]), FrameError::Neither { first: 0x16 });
        assert!(error(&[0x16]).to_string().ends_with("which has a port of its own"));
        assert_eq!(error(&[0x80]), FrameError::Neither { first: 0x80 });
        assert_eq!(error(&[0xff]), FrameError::Neither { first: 0xff });
        assert_eq!(error(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43]), FrameError::NoCookie);
        assert_eq!(error(&[0, 1, 0, 3]), FrameError::Length { bytes: 23 });
        assert_eq!(error(&[0, 1, 0xff, 0xfc]), FrameError::Length { bytes: 65_552 });
        assert_eq!(whole(&[0, 1, 0, 0, 0x21]), Ok(0));
        assert_eq!(whole(&[]), Ok(0));
    }
}
