//! Which ports are tried, in which order.

use std::collections::HashMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Ports that no NAT gives (RFC 4787 REQ-3).
const LOWEST: i32 = 1024;
const COUNT: i32 = 65_536 - LOWEST;

/// The ports from a lowest to a highest one in random order, each once before any comes again:
/// that is what the birthday formula assumes.
#[derive(Clone, Debug)]
pub(crate) struct Deck {
    low: u16,
    count: u32,
    drawn: u32,
    /// Where a shuffled list (Fisher and Yates) differs from one in order.
    moved: HashMap<u32, u32>,
}

impl Deck {
    pub(crate) fn new(low: u16, high: u16) -> Self {
        let count = u32::from(high.saturating_sub(low)) + 1;
        Self { low, count, drawn: 0, moved: HashMap::new() }
    }

    pub(crate) fn draw(&mut self, rng: &mut StdRng) -> u16 {
        if self.drawn == self.count {
            (self.drawn, self.moved) = (0, HashMap::new());
        }
        let at = rng.random_range(self.drawn..self.count);
        let first = self.moved.remove(&self.drawn).unwrap_or(self.drawn);
        let picked =
            if at == self.drawn { first } else { self.moved.insert(at, first).unwrap_or(at) };
        self.drawn += 1;
        self.low.saturating_add(u16::try_from(picked).unwrap_or(u16::MAX))
    }
}

/// The `count` ports that follow `last` in steps of `step`.
pub(crate) fn window(last: u16, step: i16, count: u16) -> Vec<u16> {
    let nth = |n: u16| {
        let port = i32::from(last) + i32::from(step) * i32::from(n);
        let port = LOWEST + (port - LOWEST).rem_euclid(COUNT);
        u16::try_from(port).unwrap_or(u16::MAX)
    };
    (1..=count).map(nth).collect()
}

/// The same in random order.
pub(crate) fn permuted(mut ports: Vec<u16>, rng: &mut StdRng) -> Vec<u16> {
    ports.shuffle(rng);
    ports
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_deck_gives_each_port_once_before_any_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut deck = Deck::new(20_000, 20_511);
        for _ in 0..3 {
            let drawn: Vec<u16> = (0..512).map(|_| deck.draw(&mut rng)).collect();
            assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 512);
            assert!(drawn.iter().all(|port| (20_000..=20_511).contains(port)));
            assert!(!drawn.is_sorted());
        }
    }

    #[test]
    fn a_deck_of_all_ports_ends_at_the_last() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut deck = Deck::new(1024, u16::MAX);
        let drawn: HashSet<u16> = (0..64_512).map(|_| deck.draw(&mut rng)).collect();
        assert_eq!(drawn.len(), 64_512);
        assert!(drawn.contains(&u16::MAX) && drawn.contains(&1024));
    }

    #[test]
    fn a_window_goes_on_at_the_other_end() {
        assert_eq!(window(65_533, 1, 4), [65_534, 65_535, 1024, 1025]);
        assert_eq!(window(1025, -2, 3), [65_535, 65_533, 65_531]);
        assert_eq!(window(5000, 4, 3), [5004, 5008, 5012]);
    }
}
