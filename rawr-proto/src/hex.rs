//! Hexadecimal text of fixed-length byte strings.

use std::fmt::{self, Write as _};

use crate::session::ParseHexError;

/// Writes `bytes` in lower case.
pub(crate) fn write(f: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// `bytes` in lower case.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Reads exactly `N` bytes, in either case.
pub(crate) fn decode<const N: usize>(text: &str) -> Result<[u8; N], ParseHexError> {
    if text.len() != N * 2 {
        return Err(ParseHexError::Length { expected: N * 2, actual: text.len() });
    }
    let mut bytes = [0; N];
    for (i, pair) in text.as_bytes().chunks_exact(2).enumerate() {
        let (high, low) = (digit(pair[0]), digit(pair[1]));
        let (Some(high), Some(low)) = (high, low) else {
            return Err(ParseHexError::Digit { position: i * 2 + usize::from(high.is_some()) });
        };
        bytes[i] = high << 4 | low;
    }
    Ok(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    // A digit of base 16 fits in a byte.
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}
