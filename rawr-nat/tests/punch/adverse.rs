//! Networks that lose, delay and reorder, sides that start late, and routers that lie.

use std::time::Duration;

use rawr_nat::punch::{Hopeless, Reason};
use rawr_sim::Link;

use crate::kinds::{Kind, MILLISECOND};
use crate::pair::{Outcome, Scenario, run};

fn direct(scenario: &Scenario, seeds: u64) -> Vec<Outcome> {
    let outcomes: Vec<Outcome> = (0..seeds).map(|seed| run(scenario, seed)).collect();
    let direct = outcomes.iter().filter(|outcome| outcome.is_direct()).count();
    println!("{:?}: {direct} of {seeds}", scenario.kinds);
    outcomes
}

/// Cells that succeed without any luck.
const SURE: [[Kind; 2]; 6] = [
    [Kind::Home, Kind::Home],
    [Kind::OpenHome, Kind::OpenHome],
    [Kind::Home, Kind::OpenHome],
    [Kind::Carrier, Kind::Home],
    [Kind::Restricted, Kind::Random],
    [Kind::Public, Kind::Sequential],
];

#[test]
fn loss_and_reordering_do_not_keep_sure_cells_apart() {
    let link = Link { loss: 0.05, jitter: 40 * MILLISECOND, ..Link::default() };
    for [a, b] in SURE {
        let scenario = Scenario { link, relay_loss: 0.05, ..Scenario::new(a, b) };
        for (seed, outcome) in direct(&scenario, 100).iter().enumerate() {
            assert!(outcome.is_direct(), "{a:?}, {b:?}, seed {seed}: {outcome:?}");
        }
    }
}

#[test]
fn a_quarter_of_everything_lost_still_leaves_most() {
    let link = Link { loss: 0.25, ..Link::default() };
    for [a, b] in SURE {
        let scenario = Scenario { link, relay_loss: 0.25, ..Scenario::new(a, b) };
        let outcomes = direct(&scenario, 50);
        let count = outcomes.iter().filter(|outcome| outcome.is_direct()).count();
        assert!(count >= 49, "{a:?}, {b:?}: {count}");
    }
}

#[test]
fn hard_cells_stand_some_loss() {
    let link = Link { loss: 0.05, ..Link::default() };
    let cells = [
        [Kind::Home, Kind::Random],
        [Kind::OpenHome, Kind::Random],
        [Kind::Sequential, Kind::Sequential],
        [Kind::Block, Kind::Block],
        [Kind::Home, Kind::Sequential],
    ];
    for [a, b] in cells {
        let scenario = Scenario { link, relay_loss: 0.05, ..Scenario::new(a, b) };
        let outcomes = direct(&scenario, 60);
        let count = outcomes.iter().filter(|outcome| outcome.is_direct()).count();
        assert!(count >= 57, "{a:?}, {b:?}: {count}");
    }
}

#[test]
fn distances_do_not_matter() {
    for delay in [MILLISECOND, 40 * MILLISECOND, 150 * MILLISECOND] {
        for relay in [2 * MILLISECOND, 200 * MILLISECOND] {
            let link = Link { delay, ..Link::default() };
            for [a, b] in SURE {
                let scenario = Scenario { link, relay, ..Scenario::new(a, b) };
                for seed in 0..5 {
                    let outcome = run(&scenario, seed);
                    assert!(outcome.is_direct(), "{delay:?}, {relay:?}, {a:?}, {b:?}: {outcome:?}");
                }
            }
        }
    }
}

#[test]
fn a_side_may_start_late() {
    for stagger in [200 * MILLISECOND, Duration::from_secs(2)] {
        for [a, b] in [[Kind::OpenHome, Kind::Home], [Kind::Home, Kind::Random]] {
            for kinds in [[a, b], [b, a]] {
                let scenario = Scenario { stagger, ..Scenario::new(kinds[0], kinds[1]) };
                let outcome = run(&scenario, 3);
                assert!(outcome.is_direct(), "{stagger:?}, {kinds:?}: {outcome:?}");
            }
        }
    }
}

#[test]
fn nobody_is_probed_who_does_not_take_part() {
    let scenario = Scenario { relay_loss: 1.0, ..Scenario::new(Kind::Home, Kind::Random) };
    let outcome = run(&scenario, 1);
    assert_eq!(outcome.ends, [Err(Reason::Silent), Err(Reason::Silent)]);
    assert_eq!((outcome.sent, outcome.leaked), (0, 0));
}

#[test]
fn blocked_udp_ends_in_time_and_within_the_budget() {
    for [a, b] in [[Kind::Home, Kind::Home], [Kind::Home, Kind::Random]] {
        let scenario = Scenario { is_blocked: true, ..Scenario::new(a, b) };
        let outcome = run(&scenario, 1);
        assert!(outcome.ends.iter().all(Result::is_err), "{outcome:?}");
        assert!(outcome.took <= scenario.tuning.deadline + MILLISECOND, "{outcome:?}");
        assert!(outcome.spent.iter().all(|spent| *spent <= scenario.budget), "{outcome:?}");
        assert_eq!(outcome.leaked, 0);
    }
}

#[test]
fn budgets_hold() {
    for budget in [1, 10, 100, 700] {
        for [a, b] in [[Kind::Home, Kind::Random], [Kind::Block, Kind::Block]] {
            let outcome = run(&Scenario { budget, ..Scenario::new(a, b) }, 5);
            assert!(outcome.spent.iter().all(|spent| *spent <= budget), "{budget}: {outcome:?}");
            assert!(outcome.ends[0].is_ok() == outcome.ends[1].is_ok(), "{budget}: {outcome:?}");
        }
    }
}

#[test]
fn a_thousand_probes_take_a_second() {
    let scenario = Scenario { is_blocked: true, ..Scenario::new(Kind::Home, Kind::Random) };
    let outcome = run(&scenario, 1);
    let probes = outcome.spent[0];
    assert!(probes > 1000 && outcome.took >= MILLISECOND * (probes - 10), "{outcome:?}");
}

#[test]
fn one_carrier_for_both_decides_by_hairpinning() {
    for [a, b] in [[Kind::Home, Kind::Home], [Kind::OpenHome, Kind::Random]] {
        let scenario = Scenario { carrier: Some(true), ..Scenario::new(a, b) };
        let outcome = run(&scenario, 2);
        assert!(outcome.is_direct(), "{a:?}, {b:?}: {outcome:?}");
        let scenario = Scenario { carrier: Some(false), ..Scenario::new(a, b) };
        let outcome = run(&scenario, 2);
        let hopeless = Err(Reason::Hopeless(Hopeless::NoHairpin));
        assert_eq!((outcome.ends, outcome.sent), ([hopeless; 2], 0));
    }
}
