//! Inputs made of others.

use rand::Rng;
use rand::rngs::StdRng;

/// Longest input that is made, in bytes.
const LONGEST: usize = 4096;
/// Values that sit on edges.
const EDGES: [u8; 8] = [0, 1, 3, 4, 0x40, 0x7f, 0x80, 0xff];

/// An input that resembles one of `corpus`, which is not empty.
pub fn mutate(rng: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut StdRng| &corpus[rng.random_range(0..corpus.len())];
    let mut input = pick(rng).clone();
    for _ in 0..rng.random_range(1..=6) {
        let other = pick(rng);
        change(rng, &mut input, other);
    }
    input.truncate(LONGEST);
    input
}

fn change(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    if input.is_empty() {
        input.extend(other);
        return;
    }
    let at = rng.random_range(0..input.len());
    let end = rng.random_range(at..=input.len().min(at + 64));
    match rng.random_range(0..8) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => input[at] = EDGES[rng.random_range(0..EDGES.len())],
        3 => drop(input.drain(at..end)),
        4 => {
            let copied = input[at..end].to_vec();
            input.splice(at..at, copied);
        }
        5 => input.truncate(at),
        6 => {
            let piece = rng.random_range(0..=other.len());
            input.splice(at..end, other[piece..].iter().copied());
        }
        _ => {
            let value: [u8; 2] = [rng.random_range(0..2), rng.random()];
            input.splice(at..(at + 2).min(input.len()), value);
        }
    }
}
