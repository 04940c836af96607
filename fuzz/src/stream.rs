//! A client's TCP stream, cut anywhere: where its messages end (RFC 8489 §6.2.2, RFC 8656 §12.5).

use rawr_proto::{ChannelData, Datagram, FrameError, classify, messages, padded, whole};

use crate::reader::Reader;

/// An input is a byte by which pieces are as long as that and the next, then the stream.
///
/// # Panics
/// Messages or their ends depend on how the stream was cut, or on what follows.
pub fn run(input: &[u8]) {
    let mut reader = Reader(input);
    let [first, second] = [reader.byte(), reader.byte()].map(|byte| usize::from(byte) + 1);
    let stream = reader.0;
    let (at_once, error) = read(stream, [stream.len().max(1); 2]);
    let (in_pieces, same) = read(stream, [first, second]);
    // An error may show before the messages in front of it have been looked at.
    let common = at_once.len().min(in_pieces.len());
    assert_eq!(at_once[..common], in_pieces[..common]);
    assert_eq!(error, same);
    if error.is_none() {
        assert_eq!(at_once.len(), in_pieces.len());
    }
    for message in &at_once {
        match classify(message) {
            Datagram::ChannelData => {
                let data = ChannelData::decode(message).map(|data| data.data.len());
                // Numbers from 0x8000 on do not begin like ChannelData.
                assert_eq!(data, Some(message.len() - ChannelData::HEADER));
            }
            Datagram::Stun => assert!(message.len().is_multiple_of(4)),
            Datagram::Other => panic!("{message:02x?} is no message"),
        }
    }
}

/// Reads a stream that comes in pieces of these lengths in turn, as a connection does.
fn read(stream: &[u8], lengths: [usize; 2]) -> (Vec<Vec<u8>>, Option<FrameError>) {
    let (mut received, mut held, mut rest) = (Vec::new(), Vec::new(), stream);
    for length in lengths.into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        held.extend_from_slice(piece);
        match whole(&held) {
            Ok(length) => {
                let lengths = padded(&held[..length]).map(<[u8]>::len);
                assert_eq!(lengths.sum::<usize>(), length);
                received.extend(messages(&held[..length]).map(<[u8]>::to_vec));
                held.drain(..length);
            }
            Err(error) => return (received, Some(error)),
        }
    }
    (received, None)
}

/// Streams of both kinds of messages.
pub fn seeds() -> Vec<Vec<u8>> {
    let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let allocate =
        [&[0, 3, 0, 8, 0x21, 0x12, 0xa4, 0x42][..], &[8; 12], &[0, 0x19, 0, 4, 17, 0, 0, 0]]
            .concat();
    let odd = [&[0x40, 0, 0, 5][..], b"hello", &[0; 3]].concat();
    let longest = [&[0x4f, 0xff, 0x05, 0xdc][..], &[1; 1500]].concat();
    let tls = vec![0x16, 3, 1, 0, 5];
    vec![
        [&[0, 0][..], &binding, &odd, &allocate].concat(),
        [&[2, 6][..], &odd, &odd, &odd, &[0x40]].concat(),
        [&[63, 200][..], &longest, &binding].concat(),
        [&[9, 1][..], &binding, &[0x7f, 0xff, 0, 0], &tls].concat(),
        [&[1, 1][..], &[0, 1, 0, 3, 0x21, 0x12, 0xa4, 0x42]].concat(),
        [&[255, 255][..], &[0, 1, 0, 4, 0x21, 0x12, 0xa4, 0x43], &[0; 16]].concat(),
    ]
}
