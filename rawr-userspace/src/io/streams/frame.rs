//! What a message to a client needs in a stream: its place among others, and padding.

use rawr_proto::{Datagram, classify};

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
    use super::*;

    #[test]
    fn data_is_told_from_answers() {
        assert!(is_data(&[0x40, 0, 0, 3, 1, 2, 3]));
        assert!(is_data(&[0x00, 0x17, 0, 0]));
        assert!(!is_data(&[0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42]));
        assert!(!is_data(&[0x01, 0x03, 0, 0]));
    }

    #[test]
    fn channel_data_alone_is_padded() {
        assert_eq!(padding(&[0x40, 0, 0, 3, 1, 2, 3]), [0]);
        assert!(padding(&[0x40, 0, 0, 0]).is_empty());
        assert!(padding(&[0x01, 0x03, 0, 0]).is_empty());
    }
}
