//! What an agent does where ICE finds no path.

use std::time::Duration;

use rawr_nat::agent::AgentPathKind;
use rawr_sim::Link;

use crate::kinds::Kind;
use crate::wild::Wild;

const SECOND: Duration = Duration::from_secs(1);

fn wild(a: Kind, b: Kind, seed: u64) -> Wild {
    Wild::new([a, b], Link::default(), seed)
}

#[test]
fn nothing_is_punched_where_ice_does() {
    for (a, b) in [(Kind::Home, Kind::Home), (Kind::Public, Kind::Random)] {
        let mut wild = wild(a, b, 1);
        wild.run(10 * SECOND);
        assert!(wild.is_direct());
        assert_eq!(wild.sockets_ever(), [1, 1]);
        assert!(wild.paths().iter().all(|path| path.kind != AgentPathKind::Punched));
        assert!(wild.is_intact());
    }
}

#[test]
fn two_routers_with_an_open_outside_are_opened_before_they_are_checked() {
    for seed in 0..10 {
        let mut wild = wild(Kind::OpenHome, Kind::OpenHome, seed);
        wild.run(10 * SECOND);
        assert!(wild.is_direct(), "seed {seed}");
        assert!(
            wild.paths().iter().all(|path| path.kind == AgentPathKind::Reflexive),
            "seed {seed}"
        );
        assert_eq!(wild.sockets_ever(), [1, 1], "seed {seed}");
        assert!(wild.is_intact(), "seed {seed}");
    }
}

#[test]
fn nothing_is_tried_where_it_is_hopeless() {
    let mut wild = wild(Kind::Random, Kind::Random, 2);
    wild.run(60 * SECOND);
    assert!(!wild.is_direct());
    assert_eq!(wild.sockets_ever(), [1, 1]);
    assert_eq!(wild.events().count(), 2, "ready, and nothing else");
    assert!(wild.is_intact());
}

#[test]
fn sockets_that_no_path_needs_are_closed() {
    let mut wild = wild(Kind::Home, Kind::Random, 3);
    wild.run(20 * SECOND);
    assert!(wild.is_direct());
    assert!(wild.sockets_ever()[1] > 64);
    let open = wild.sockets();
    assert!(open[0] <= 2 && open[1] <= 2, "{open:?}");
    assert!(wild.is_intact());
}

#[test]
fn loss_does_not_keep_an_easy_side_and_a_random_one_apart() {
    let link = Link { loss: 0.05, ..Link::default() };
    let is_direct = |seed| {
        let mut wild = Wild::new([Kind::OpenHome, Kind::Random], link, seed);
        wild.run(30 * SECOND);
        wild.is_direct()
    };
    let direct = (0..10).filter(|seed| is_direct(*seed)).count();
    assert!(direct >= 9, "{direct} of 10");
}
