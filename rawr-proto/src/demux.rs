//! Telling apart what shares a port, by its first bytes.

use stun_types::message::{Message, MessageHeader};

use crate::message::Class;
use crate::method::Method;
use crate::stream::MAX_STUN;

/// What a datagram is, as far as its first byte tells (RFC 7983 §7, RFC 8656 §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// First byte 0 to 3, and the magic cookie.
    Stun,
    /// First byte 64 to 127: TURN ChannelData (beyond 79, of RFC 5766).
    ChannelData,
    /// Anything else.
    Other,
}

/// Classifies a datagram.
pub fn classify(bytes: &[u8]) -> Datagram {
    match bytes {
        [0..=3, _, _, _, 0x21, 0x12, 0xa4, 0x42, ..] if bytes.len() >= MessageHeader::LENGTH => {
            Datagram::Stun
        }
        [64..=127, _, _, _, ..] => Datagram::ChannelData,
        _ => Datagram::Other,
    }
}

/// Class and method of a datagram whose header is one of RAWR's and whose length is right, without a
/// look at the rest. What the header does not tell, [`crate::decode`] does.
pub fn peek(bytes: &[u8]) -> Option<(Class, Method)> {
    if classify(bytes) != Datagram::Stun {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    if MessageHeader::LENGTH + length != bytes.len() || length % 4 != 0 {
        return None;
    }
    let header = MessageHeader::from_bytes(bytes).ok()?;
    let method = Method::from_number(header.get_type().method().value())?;
    Some((header.get_type().class().into(), method))
}

/// Reads a STUN message of any method, without taking its attributes apart. `None` for what is none, or has
/// a wrong length or a wrong FINGERPRINT: leave it unanswered (RFC 8489 §6.3).
pub fn parse_stun(bytes: &[u8]) -> Option<Message<'_>> {
    if classify(bytes) != Datagram::Stun || bytes.len() > MAX_STUN {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let whole = MessageHeader::LENGTH + length == bytes.len() && length % 4 == 0;
    whole.then(|| Message::from_bytes(bytes).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Attributes, Message, TransactionId};

    #[test]
    fn first_byte_decides() {
        let probe = Message::request(Method::Probe, TransactionId([0; 12]), Attributes::default());
        let bytes = probe.encode(None);
        assert_eq!(classify(&bytes), Datagram::Stun);
        assert_eq!(peek(&bytes), Some((Class::Request, Method::Probe)));
        assert_eq!(peek(&bytes[..bytes.len() - 4]), None);
        assert!(parse_stun(&bytes).is_some());
        assert!(parse_stun(&bytes[..bytes.len() - 4]).is_none());
        assert!(parse_stun(&[bytes.as_slice(), &[0; 4]].concat()).is_none());
        assert_eq!(classify(&bytes[..19]), Datagram::Other);
        assert_eq!(classify(&[0x40, 0, 0, 0]), Datagram::ChannelData);
        assert_eq!(classify(&[0x4f, 0xff, 0, 4, 1, 2, 3, 4]), Datagram::ChannelData);
        assert_eq!(classify(&[0x7f, 0, 0, 0]), Datagram::ChannelData);
        assert_eq!(classify(&[0x80, 0, 0, 0]), Datagram::Other);
        assert_eq!(classify(&[0x16, 0xfe, 0xfd, 0]), Datagram::Other);
        assert_eq!(classify(&[]), Datagram::Other);
        let mut no_cookie = bytes;
        no_cookie[4] ^= 1;
        assert_eq!(classify(&no_cookie), Datagram::Other);
    }
}
