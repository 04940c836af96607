//! The channel table: where flows stand that share their local port with others.
//!
//! Such a flow's key is its 5-tuple and the channel that arrives, 0 for plain datagrams. The table is
//! filled by userspace alone, so that a lookup needs no lock. A key has [`PROBES`] places in it: two
//! groups of [`GROUP`] neighbouring entries (one page at most each), named by the two halves of the
//! key's hash. A lookup looks at all of them until it finds the key, whatever is vacant in between; so
//! an entry goes by becoming vacant, without a trace. A key whose places are all taken has none: the
//! two groups make that rare (below one in a thousand new keys in a table that is half full).

use crate::flow::{Tuple4, Tuple6, ports};

/// How many neighbouring entries make a group.
pub const GROUP: u32 = 8;

/// How many places a key has.
pub const PROBES: u32 = 2 * GROUP;

/// Length of a ChannelData header in bytes (RFC 8656 §12.4).
pub const HEADER: u16 = 4;

/// An odd number without structure: the golden ratio's fraction.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// What becomes of a key that is to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// It stands at this index.
    Held(u32),
    /// It does not, and this is the best index for it.
    Vacant(u32),
    /// It does not, and all its places are taken by others.
    Full,
}

/// The hash of a key over IPv4. `channel` is as it stands in a header; the local address, which hardly
/// ever tells two keys apart, is left out. Whoever does not know `seed` cannot tell which keys collide.
#[inline(always)]
pub fn hash4(from: &Tuple4, channel: [u8; 2], seed: u64) -> u64 {
    let ports = ports(from.src_port, from.dst_port);
    let ends = u64::from(u32::from_ne_bytes(from.src)) << 32 | u64::from(ports);
    finish(mix(seed, ends), channel, seed)
}

/// The hash of a key over IPv6; see [`hash4`].
#[inline(always)]
pub fn hash6(from: &Tuple6, channel: [u8; 2], seed: u64) -> u64 {
    let address = u128::from_ne_bytes(from.src);
    let ports = u64::from(ports(from.src_port, from.dst_port));
    let hash = mix(mix(mix(seed, address as u64), (address >> 64) as u64), ports);
    finish(hash, channel, seed)
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(MULTIPLIER);
    product ^ product >> 32
}

/// The last multiplier is nobody's to know.
#[inline(always)]
fn finish(hash: u64, channel: [u8; 2], seed: u64) -> u64 {
    let channel = u64::from(u16::from_ne_bytes(channel));
    let product = (hash ^ channel << 24).wrapping_mul(seed | 1);
    (product ^ product >> 32).wrapping_mul(MULTIPLIER)
}

/// The index of the place number `probe` (below [`PROBES`]) of a key in a table of `mask` + 1 entries.
/// Keys of one group begin at different entries of it, so that most stand where they are sought first.
#[inline(always)]
pub const fn place(hash: u64, probe: u32, mask: u32) -> u32 {
    let home = if probe < GROUP { (hash >> 32) as u32 } else { hash as u32 };
    (home & !(GROUP - 1) | home.wrapping_add(probe) & (GROUP - 1)) & mask
}

/// All places of a key, in the order in which they are looked at.
pub fn places(hash: u64, mask: u32) -> impl Iterator<Item = u32> {
    (0..PROBES).map(move |probe| place(hash, probe, mask))
}

/// Finds a key's place in a table of `mask` + 1 entries. `occupant` tells whether the entry at an index
/// is this key's; `None` if it is vacant.
pub fn seek(hash: u64, mask: u32, occupant: impl Fn(u32) -> Option<bool>) -> Seek {
    let mut vacant = None;
    for index in places(hash, mask) {
        match occupant(index) {
            Some(true) => return Seek::Held(index),
            Some(false) => {}
            None => vacant = vacant.or(Some(index)),
        }
    }
    vacant.map_or(Seek::Full, Seek::Vacant)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    const SEED: u64 = 0x0123_4567_89ab_cdef;

    fn key(client: u32) -> Tuple4 {
        Tuple4 {
            src: (0x0a00_0000 + client / 60_000).to_be_bytes(),
            dst: [192, 0, 2, 1],
            src_port: ((client % 60_000) as u16).to_be_bytes(),
            dst_port: 3478_u16.to_be_bytes(),
        }
    }

    #[test]
    fn places_of_a_key_are_two_whole_groups() {
        let hash = hash4(&key(7), [0x40, 0x00], SEED);
        let places: Vec<u32> = places(hash, (1 << 16) - 1).collect();
        for group in places.chunks(GROUP as usize) {
            let base = group[0] & !(GROUP - 1);
            let expected: BTreeSet<u32> = (base..base + GROUP).collect();
            assert_eq!(group.iter().copied().collect::<BTreeSet<_>>(), expected);
        }
        assert_ne!(places[0] / GROUP, places[GROUP as usize] / GROUP);
    }

    #[test]
    fn no_place_is_outside_the_smallest_table() {
        for client in 0..1000 {
            let hash = hash4(&key(client), [0x40, 0x01], SEED);
            assert!(places(hash, GROUP - 1).all(|place| place < GROUP));
        }
    }

    #[test]
    fn keys_are_held_where_they_were_put_and_only_there() {
        let mask = 63;
        let mut table: Vec<Option<u32>> = vec![None; 64];
        let hash = |client| hash4(&key(client), [0, 0], SEED);
        let find = |table: &[Option<u32>], client| {
            seek(hash(client), mask, |index| table[index as usize].map(|held| held == client))
        };
        for client in 0..32 {
            let Seek::Vacant(index) = find(&table, client) else { panic!("client {client}") };
            table[index as usize] = Some(client);
        }
        // What goes leaves no trace that would hide what stands behind it.
        for gone in 0..16 {
            let Seek::Held(index) = find(&table, gone) else { panic!("client {gone}") };
            table[index as usize] = None;
        }
        assert!((16..32).all(|client| matches!(find(&table, client), Seek::Held(_))));
        assert!((0..16).all(|client| matches!(find(&table, client), Seek::Vacant(_))));
        let full = seek(hash(7), mask, |_| Some(false));
        assert_eq!(full, Seek::Full);
    }

    /// Clients with consecutive addresses, ports and channels, as they come, up to half the table.
    #[test]
    fn a_table_half_full_has_places_for_nearly_all() {
        let len = 1_u32 << 16;
        for (name, ipv6) in [("IPv4", false), ("IPv6", true)] {
            let mut taken = vec![false; len as usize];
            let (mut refused, mut looked_at) = (0_u32, 0_u64);
            for number in 0..len / 2 {
                let (from, channel) = (key(number / 4), 0x4000 + (number % 4) as u16);
                let mut src = [0; 16];
                src[..4].copy_from_slice(&from.src);
                let from6 = Tuple6 { src, ..Tuple6::default() };
                let Tuple4 { src_port, dst_port, .. } = from;
                let from6 = Tuple6 { src_port, dst_port, ..from6 };
                let channel = channel.to_be_bytes();
                let v6 = || hash6(&from6, channel, SEED);
                let hash = if ipv6 { v6() } else { hash4(&from, channel, SEED) };
                let place = places(hash, len - 1).zip(1..).find(|(at, _)| !taken[*at as usize]);
                match place {
                    Some((at, looks)) => {
                        (taken[at as usize], looked_at) = (true, looked_at + looks)
                    }
                    None => refused += 1,
                }
            }
            let mean = looked_at as f64 / f64::from(len / 2);
            std::println!("{name}: {refused} of {} refused, {mean:.2} looks", len / 2);
            assert!(refused < len / 2 / 1000, "{refused} refused");
            assert!(mean < 1.6, "{mean} looks on average");
        }
    }
}
