//! How often the hard cells must succeed, over many seeds.

use std::time::Duration;

use crate::kinds::Kind;
use crate::pair::{Outcome, Scenario, run};

/// Outcomes of as many seeds; the figures are printed.
fn outcomes(scenario: &Scenario, seeds: u64) -> Vec<Outcome> {
    let outcomes: Vec<Outcome> = (0..seeds).map(|seed| run(scenario, 1_000_000 + seed)).collect();
    let failed: Vec<usize> = (0..outcomes.len()).filter(|i| !outcomes[*i].is_direct()).collect();
    let mut times: Vec<Duration> =
        outcomes.iter().filter(|o| o.is_direct()).map(|o| o.took).collect();
    times.sort();
    let probes = outcomes.iter().map(|o| u64::from(o.spent[0] + o.spent[1])).sum::<u64>();
    println!(
        "{:?}, {} probes: {} of {seeds} direct, median {:?}, p95 {:?}, {} probes each run; \
         failed seeds {failed:?}",
        scenario.kinds,
        scenario.budget,
        outcomes.len() - failed.len(),
        times.get(times.len() / 2),
        times.get(times.len() * 95 / 100),
        probes / seeds,
    );
    outcomes
}

/// Parts in a thousand that are direct.
fn per_mille(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_direct()).count() * 1000 / outcomes.len()
}

#[test]
fn easy_against_random_within_1024_probes() {
    for easy in [Kind::Home, Kind::OpenHome] {
        let scenario = Scenario { budget: 1024, ..Scenario::new(easy, Kind::Random) };
        let outcomes = outcomes(&scenario, 500);
        assert!(per_mille(&outcomes) >= 980, "{easy:?}: {}", per_mille(&outcomes));
        assert!(outcomes.iter().all(|outcome| outcome.spent[0] <= 1024));
    }
}

#[test]
fn easy_against_random_within_2048_probes() {
    for easy in [Kind::Home, Kind::OpenHome] {
        let outcomes = outcomes(&Scenario::new(Kind::Random, easy), 1000);
        assert!(per_mille(&outcomes) >= 999, "{easy:?}: {}", per_mille(&outcomes));
        assert!(outcomes.iter().all(|outcome| outcome.spent[1] <= 2048));
    }
}

#[test]
fn two_sequences() {
    let outcomes = outcomes(&Scenario::new(Kind::Sequential, Kind::Sequential), 500);
    assert!(per_mille(&outcomes) >= 950, "{}", per_mille(&outcomes));
}

#[test]
fn two_blocks() {
    let outcomes = outcomes(&Scenario::new(Kind::Block, Kind::Block), 300);
    assert!(per_mille(&outcomes) >= 950, "{}", per_mille(&outcomes));
}

#[test]
fn a_block_and_a_sequence() {
    let outcomes = outcomes(&Scenario::new(Kind::Block, Kind::Sequential), 300);
    assert!(per_mille(&outcomes) >= 950, "{}", per_mille(&outcomes));
}

#[test]
fn an_easy_side_and_a_sequence_or_a_block() {
    for easy in [Kind::Home, Kind::OpenHome] {
        for hard in [Kind::Sequential, Kind::Block] {
            let outcomes = outcomes(&Scenario::new(easy, hard), 300);
            assert!(per_mille(&outcomes) >= 990, "{easy:?}, {hard:?}: {}", per_mille(&outcomes));
        }
    }
}
