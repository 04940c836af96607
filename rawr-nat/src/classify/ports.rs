//! How the external ports of new mappings follow from each other (RFC 4787 §4.2).

use crate::nat::Ports;

/// Fewer mappings tell nothing but whether ports are kept.
const LEAST: usize = 5;
/// Largest distance between ports that follow each other, with other hosts' in between.
const NEAR: u16 = 16;
/// Most ports that a subscriber's block has. So few samples of all 64,512 ports practically never lie
/// so near to each other.
const LARGEST_BLOCK: u16 = 8192;
/// Ports below are not given to anybody (RFC 4787 §4.2.1).
const FIRST_PORT: u16 = 1024;

/// A mapping that a NAT has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Port of the own socket.
    pub(super) local: u16,
    /// Port that servers see.
    pub(super) external: u16,
    /// Mappings are numbered as they were asked for.
    pub(super) order: u32,
    /// Whether it was made in that order: the first transmission was not lost.
    pub(super) is_prompt: bool,
}

/// The pattern, of mappings in their order; `None` if there are too few.
pub(super) fn pattern(mapped: &[Mapped]) -> Option<Ports> {
    let is_kept = |each: &&Mapped| each.local == each.external;
    let kept = mapped.iter().filter(is_kept).count();
    if kept * 2 > mapped.len() {
        return Some(Ports::Preserved);
    }
    // A NAT that keeps the port for the first destination chooses those of the others.
    let chosen: Vec<&Mapped> = mapped.iter().filter(|each| !is_kept(each)).collect();
    let prompt: Vec<u16> =
        chosen.iter().filter(|each| each.is_prompt).map(|each| each.external).collect();
    let all: Vec<u16> = chosen.iter().map(|each| each.external).collect();
    let in_order = if prompt.len() >= LEAST { &prompt } else { &all };
    if all.len() < LEAST {
        return None;
    }
    sequence(in_order).or_else(|| block(all)).or(Some(Ports::Random))
}

/// Each port a little above, or each a little below the one before. A third may differ: others' flows
/// and the end of the range come in between.
fn sequence(ports: &[u16]) -> Option<Ports> {
    let steps: Vec<i16> =
        ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]).cast_signed()).collect();
    let near = |step: &&i16| **step != 0 && step.unsigned_abs() <= NEAR;
    let up: Vec<i16> = steps.iter().filter(near).filter(|step| **step > 0).copied().collect();
    let down: Vec<i16> = steps.iter().filter(near).filter(|step| **step < 0).copied().collect();
    let way = if up.len() >= down.len() { up } else { down };
    if way.len() * 3 < steps.len() * 2 {
        return None;
    }
    let count = |step: i16| way.iter().filter(|each| **each == step).count();
    let most = way.iter().copied().max_by_key(|step| (count(*step), -i32::from(step.abs())));
    most.map(|step| Ports::Sequential { step })
}

/// All but one odd port at most within a block. Its bounds are as far beyond the outermost ports as
/// those are from each other on average.
fn block(mut ports: Vec<u16>) -> Option<Ports> {
    ports.sort_unstable();
    let inner = ports.len() - usize::from(ports.len() > LEAST);
    let candidates = [&ports[..], &ports[..inner], &ports[ports.len() - inner..]];
    let found = candidates.into_iter().find(|some| width(some) < LARGEST_BLOCK)?;
    let (low, high) = (*found.first()?, *found.last()?);
    let margin = (high - low).div_ceil(u16::try_from(found.len() - 1).ok()?.max(1));
    let least = if low < FIRST_PORT { 0 } else { FIRST_PORT };
    Some(Ports::Block {
        low: low.saturating_sub(margin).max(least),
        high: high.saturating_add(margin),
    })
}

fn width(sorted: &[u16]) -> u16 {
    sorted.last().zip(sorted.first()).map_or(0, |(high, low)| high - low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapped(ports: impl IntoIterator<Item = u16>) -> Vec<Mapped> {
        let mapping = |(order, external)| Mapped {
            local: 100 + order as u16,
            external,
            order,
            is_prompt: true,
        };
        (0..).zip(ports).map(mapping).collect()
    }

    #[test]
    fn kept_ports() {
        assert_eq!(pattern(&mapped([100, 101, 102])), Some(Ports::Preserved));
        assert_eq!(pattern(&mapped([100, 101, 102, 103, 999])), Some(Ports::Preserved));
        assert_eq!(pattern(&mapped([7000, 7001, 7002])), None);
    }

    #[test]
    fn sequences_with_others_in_between_and_around_the_end() {
        let sequence = |step| Some(Ports::Sequential { step });
        assert_eq!(pattern(&mapped([7000, 7001, 7002, 7003, 7004])), sequence(1));
        assert_eq!(pattern(&mapped([7009, 7007, 7005, 7003, 7001])), sequence(-2));
        assert_eq!(pattern(&mapped([7000, 7001, 7005, 7006, 7012, 7013])), sequence(1));
        assert_eq!(pattern(&mapped([65_534, 65_535, 1024, 1025, 1026, 1027])), sequence(1));
        assert_eq!(pattern(&mapped([65_534, 65_535, 0, 1, 2])), sequence(1));
    }

    #[test]
    fn a_late_mapping_does_not_hide_a_sequence() {
        let mut mappings = mapped([7000, 7031, 7001, 7002, 7032, 7003, 7004]);
        (mappings[1].is_prompt, mappings[4].is_prompt) = (false, false);
        assert_eq!(pattern(&mappings), Some(Ports::Sequential { step: 1 }));
    }

    #[test]
    fn the_ports_after_a_kept_one_tell_the_pattern() {
        let mut mappings = mapped([5000, 5001, 5002, 5003, 5004, 5005]);
        mappings[0].external = 100;
        assert_eq!(pattern(&mappings), Some(Ports::Sequential { step: 1 }));
    }

    #[test]
    fn a_block_with_an_odd_port() {
        let ports = [20_010, 20_500, 20_200, 20_100, 20_400, 20_300, 61_000];
        let Some(Ports::Block { low, high }) = pattern(&mapped(ports)) else { panic!() };
        assert!((19_900..20_000).contains(&low) && (20_511..20_620).contains(&high));
    }

    proptest! {
        #[test]
        fn random_ports_are_random(seed: [u8; 32]) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand::rngs::StdRng::from_seed(seed);
            let ports: Vec<u16> = (0..24).map(|_| rng.random_range(1024..=65_535)).collect();
            prop_assert_eq!(pattern(&mapped(ports)), Some(Ports::Random));
        }

        #[test]
        fn blocks_hold_what_they_give(seed: [u8; 32], first in 1024..60_000u16, size in 64..4096u16) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand::rngs::StdRng::from_seed(seed);
            let ports: Vec<u16> = (0..24).map(|_| first + rng.random_range(0..size)).collect();
            match pattern(&mapped(ports.clone())) {
                Some(Ports::Block { low, high }) => {
                    prop_assert!(ports.iter().all(|port| (low..=high).contains(port)));
                    prop_assert!(low >= 1024 && u32::from(high - low) <= u32::from(size) * 5 / 4);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
