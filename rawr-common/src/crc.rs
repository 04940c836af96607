//! CRC-32 as in STUN's FINGERPRINT (ITU-T V.42, reflected), four bytes at a time by four tables.

use core::hint::black_box;

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// What a byte of the register becomes after it has been shifted through by one to four bytes.
static TABLES: [[u32; 256]; 4] = tables();

/// More words are not checksummed at once: the kernel's verifier wants a bound.
const MOST: usize = 8;

/// The register before the first byte.
pub(crate) const INITIAL: u32 = u32::MAX;

/// The register after four more bytes, as they load.
#[inline(always)]
pub(crate) fn word(state: u32, bytes: u32) -> u32 {
    let [b0, b1, b2, b3] = (state ^ u32::from_le(bytes)).to_le_bytes();
    let [t0, t1, t2, t3] = &TABLES;
    t3[usize::from(b0)] ^ t2[usize::from(b1)] ^ t1[usize::from(b2)] ^ t0[usize::from(b3)]
}

/// The register after more bytes, bit by bit: for constants. It is linear in what it is fed with; so from
/// a `state` of 0, this is by how much two registers differ that were fed with bytes that differ by
/// `bytes`.
pub(crate) const fn register(state: u32, bytes: &[u8]) -> u32 {
    let (mut state, mut index) = (state, 0);
    while index < bytes.len() {
        state = shift(state ^ bytes[index] as u32);
        index += 1;
    }
    state
}

/// The register after the first `len` of up to eight words, as they load; `None` if there is one that
/// `next` does not know. In the kernel's program this is one loop, whatever the compiler knows of `len`.
#[inline(always)]
pub(crate) fn words(state: u32, len: usize, next: impl Fn(usize) -> Option<u32>) -> Option<u32> {
    let (mut state, mut at, len) = (state, 0, black_box(len));
    while at < MOST && at < len {
        state = word(state, next(at)?);
        at += 1;
    }
    Some(state)
}

/// The register after one more byte of 0.
const fn shift(state: u32) -> u32 {
    let (mut state, mut bit) = (state, 0);
    while bit < 8 {
        let carry = if state & 1 == 0 { 0 } else { POLYNOMIAL };
        state = state >> 1 ^ carry;
        bit += 1;
    }
    state
}

const fn tables() -> [[u32; 256]; 4] {
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        let (mut state, mut table) = (byte as u32, 0);
        while table < 4 {
            state = shift(state);
            tables[table][byte] = state;
            table += 1;
        }
        byte += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    /// The check value that catalogues of CRCs give for this one.
    #[test]
    fn has_the_check_value() {
        assert_eq!(!register(INITIAL, b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn words_are_four_bytes(state: u32, bytes: [u8; 4]) {
            prop_assert_eq!(word(state, u32::from_ne_bytes(bytes)), register(state, &bytes));
        }

        #[test]
        fn is_linear(state: u32, one: [u8; 20], other: [u8; 20]) {
            let difference: [u8; 20] = std::array::from_fn(|at| one[at] ^ other[at]);
            let differs = register(state, &one) ^ register(0, &difference);
            prop_assert_eq!(differs, register(state, &other));
        }
    }
}
