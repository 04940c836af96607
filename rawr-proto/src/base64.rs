//! Base64 (RFC 4648 §4), and reading base64url (§5).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// With padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = encode_unpadded(bytes);
    text.extend(std::iter::repeat_n('=', text.len().next_multiple_of(4) - text.len()));
    text
}

/// Without padding.
pub(crate) fn encode_unpadded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity((bytes.len() * 4).div_ceil(3) + 3);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]));
        }
    }
    text
}

/// Fills `bytes` from text without padding; `None` unless the text is exactly as long as they need.
pub(crate) fn decode_unpadded<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != (N * 4).div_ceil(3) {
        return None;
    }
    let mut bytes = [0; N];
    let (mut bits, mut held, mut filled) = (0_u32, 0, 0);
    for digit in text {
        bits = bits << 6 | u32::from(value(*digit)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            *bytes.get_mut(filled)? = (bits >> held) as u8;
            filled += 1;
        }
    }
    Some(bytes)
}

/// Bytes of text in either alphabet, with or without padding; `None` if it is neither.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let is_padded = padding == 0 || padding < 3 && text.len().is_multiple_of(4);
    if !is_padded || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for digit in digits.bytes() {
        let digit = match digit {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
        bits = bits << 6 | u32::from(value(digit)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_both_alphabets_with_and_without_padding() {
        for text in ["+/8=", "-_8=", "+/8", "-_8"] {
            assert_eq!(decode(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(decode(""), Some(vec![]));
        for text in ["A", "AAAAA", "AA=", "AAA==", "A===", "====", "AA A", "AA\n"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn pads_as_rfc_4648_section_10_shows() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(encode(plain.as_bytes()), encoded);
            assert_eq!(encode_unpadded(plain.as_bytes()), encoded.trim_end_matches('='));
        }
    }

    #[test]
    fn only_the_alphabet_and_the_right_length_are_read() {
        assert_eq!(decode_unpadded(b"Zm8"), Some(*b"fo"));
        assert_eq!(decode_unpadded::<2>(b"Zm8="), None);
        assert_eq!(decode_unpadded::<2>(b"Zm"), None);
        assert_eq!(decode_unpadded::<2>(b"Zm-"), None);
    }

    #[test]
    fn every_digit_has_its_place_in_the_alphabet() {
        for digit in 0..=255 {
            let place = ALPHABET.iter().position(|known| *known == digit);
            assert_eq!(value(digit).map(usize::from), place);
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(bytes: [u8; 14]) {
            prop_assert_eq!(decode_unpadded(encode_unpadded(&bytes).as_bytes()), Some(bytes));
        }
    }
}
