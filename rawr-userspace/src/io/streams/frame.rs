//! Where messages end in a stream (RFC 8489 §6.2.2, RFC 8656 §12.5).
//!
//! A STUN message says how long it is, ChannelData too; the latter is padded to four bytes. What is
//! read from a stream is cut in place, so that nothing is copied on the way to the state machine.

use rawr_proto::{Datagram, classify};

/// Bytes of a STUN header.
const STUN_HEADER: usize = 20;
/// Bytes of a ChannelData header.
const CHANNEL_HEADER: usize = 4;
/// Bytes by which the next message's kind and length are known.
const LOOK: usize = 8;

/// The stream holds what is neither STUN nor ChannelData: where its next message begins cannot be
/// known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither STUN nor ChannelData (first bytes {0:02x?})")]
pub struct NotFramed(pub [u8; 4]);

/// One message at the beginning of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    /// Bytes of the message.
    length: usize,
    /// The same with the padding behind it.
    padded: usize,
}

/// How many of the first bytes of `stream` are whole messages.
///
/// # Errors
/// What follows the last whole message is not the beginning of one.
pub fn whole(stream: &[u8]) -> Result<usize, NotFramed> {
    let mut at = 0;
    while let Some(frame) = first(&stream[at..])? {
        if stream.len() - at < frame.padded {
            break;
        }
        at += frame.padded;
    }
    Ok(at)
}

/// The messages of bytes that [`whole`] has counted, without padding.
pub fn messages(whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    frames(whole).map(|(frame, bytes)| &bytes[..frame.length])
}

/// The same, with padding.
pub(super) fn padded(whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    frames(whole).map(|(_, bytes)| bytes)
}

fn frames(mut whole: &[u8]) -> impl Iterator<Item = (Frame, &[u8])> {
    std::iter::from_fn(move || {
        let frame = first(whole).ok().flatten()?;
        let bytes = whole.get(..frame.padded)?;
        whole = &whole[frame.padded..];
        Some((frame, bytes))
    })
}

/// The message that `stream` begins with; `None` while too little of it is there to tell.
fn first(stream: &[u8]) -> Result<Option<Frame>, NotFramed> {
    let Some(&[kind, second, high, low]) = stream.first_chunk() else {
        return match stream.first() {
            // What cannot become a message is told at the first byte already.
            Some(4..=63 | 128..) => Err(NotFramed(start_of(stream))),
            _ => Ok(None),
        };
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    match kind {
        64..=127 => {
            let length = CHANNEL_HEADER + length;
            Ok(Some(Frame { length, padded: length.next_multiple_of(4) }))
        }
        0..=3 if length % 4 == 0 && stream.len() < LOOK => Ok(None),
        0..=3 if length % 4 == 0 && stream[4..LOOK] == [0x21, 0x12, 0xa4, 0x42] => {
            Ok(Some(Frame { length: STUN_HEADER + length, padded: STUN_HEADER + length }))
        }
        _ => Err(NotFramed([kind, second, high, low])),
    }
}

fn start_of(stream: &[u8]) -> [u8; 4] {
    std::array::from_fn(|index| stream.get(index).copied().unwrap_or_default())
}

/// Whether a message to a client carries a peer's data, so that those that do not go first:
/// ChannelData, or a Data indication (RFC 8656 §11.3).
pub(super) fn is_data(message: &[u8]) -> bool {
    message.starts_with(&[0x00, 0x17]) || classify(message) == Datagram::ChannelData
}

/// Bytes that ChannelData lacks to a multiple of four, as streams need it (RFC 8656 §12.5).
pub(super) fn padding(message: &[u8]) -> &'static [u8] {
    const ZEROS: [u8; 3] = [0; 3];
    match classify(message) {
        Datagram::ChannelData => &ZEROS[..message.len().next_multiple_of(4) - message.len()],
        Datagram::Stun | Datagram::Other => &[],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stun(length: u16) -> Vec<u8> {
        let mut bytes = vec![0x00, 0x01];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0x21, 0x12, 0xa4, 0x42]);
        bytes.resize(STUN_HEADER + usize::from(length), 7);
        bytes
    }

    fn channel_data(length: u16) -> Vec<u8> {
        let mut bytes = vec![0x40, 0x00];
        bytes.extend(length.to_be_bytes());
        bytes.resize(CHANNEL_HEADER + usize::from(length), 9);
        bytes
    }

    #[test]
    fn garbage_is_told_at_the_first_byte_that_shows_it() {
        for garbage in [&[0x16, 3, 1][..], &[0x80, 0, 0, 0], &[0xff]] {
            assert!(whole(garbage).is_err(), "{garbage:02x?}");
        }
        assert!(whole(&[0, 1, 0, 3]).is_err(), "no multiple of four");
        assert!(whole(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43]).is_err(), "no magic cookie");
        assert_eq!(whole(&[0, 1, 0, 0, 0x21]), Ok(0));
        assert_eq!(whole(&[]), Ok(0));
    }

    #[test]
    fn the_longest_messages_have_bounds() {
        for longest in [stun(u16::MAX - 3), channel_data(u16::MAX)] {
            let mut stream = longest.clone();
            stream.extend(padding(&longest));
            assert_eq!(whole(&stream), Ok(stream.len()));
            assert_eq!(whole(&stream[..stream.len() - 1]), Ok(0));
        }
    }

    #[test]
    fn data_is_told_from_answers() {
        assert!(is_data(&channel_data(3)));
        assert!(is_data(&[0x00, 0x17, 0, 0]));
        assert!(!is_data(&stun(8)));
        assert!(!is_data(&[0x01, 0x03, 0, 0]));
    }

    proptest! {
        /// However a stream is split, the same messages come out, without padding.
        #[test]
        fn any_split_gives_the_same_messages(
            lengths in prop::collection::vec((any::<bool>(), 0u16..200), 1..20),
            cuts in prop::collection::vec(1usize..100, 1..50),
        ) {
            let sent: Vec<Vec<u8>> = lengths
                .iter()
                .map(|&(is_stun, length)| {
                    if is_stun { stun(length / 4 * 4) } else { channel_data(length) }
                })
                .collect();
            let stream: Vec<u8> =
                sent.iter().flat_map(|message| [message, padding(message)].concat()).collect();
            let (mut received, mut held, mut rest) = (Vec::new(), Vec::new(), &stream[..]);
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                held.extend_from_slice(now);
                let complete = whole(&held).unwrap();
                received.extend(messages(&held[..complete]).map(<[u8]>::to_vec));
                held.drain(..complete);
            }
            prop_assert!(held.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(complete) = whole(&bytes) {
                let cut: usize = messages(&bytes[..complete]).map(|m| m.len() + padding(m).len()).sum();
                prop_assert_eq!(cut, complete);
            }
        }
    }
}
