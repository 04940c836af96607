//! How long mappings live.

use std::time::Duration;

use rawr_nat::classify::Lifetime;

use crate::net::{Admits, Gives, Maps, Net, Scene};
use crate::support::lifetime;

const SILENCES: [u64; 5] = [15, 30, 60, 120, 300];

fn found(keeps: u64, scene: Scene) -> (Option<Lifetime>, Duration) {
    let scene = Scene { keeps: Duration::from_secs(keeps), ..scene };
    lifetime(Net::new(scene, false, 1), &SILENCES.map(Duration::from_secs))
}

fn scene() -> Scene {
    Scene::new(Maps::PerSocket, Admits::KnownEndpoints, Gives::Any)
}

#[test]
fn it_lies_between_two_silences() {
    for (keeps, at_least, less_than) in
        [(10, 0, Some(15)), (40, 30, Some(60)), (119, 60, Some(120)), (1000, 300, None)]
    {
        let expected = Lifetime {
            at_least: Duration::from_secs(at_least),
            less_than: less_than.map(Duration::from_secs),
        };
        let (lifetime, took) = found(keeps, scene());
        assert_eq!(lifetime, Some(expected), "{keeps}");
        // The end comes with the first mapping that is gone.
        let longest = less_than.unwrap_or(300) + 2;
        assert!(took <= Duration::from_secs(longest), "{keeps}: {took:?}");
    }
}

#[test]
fn loss_does_not_shorten_it() {
    for seed in 0..20 {
        let scene = Scene { loss: 100, keeps: Duration::from_secs(70), ..scene() };
        let net = Net::new(scene, false, seed);
        let (lifetime, _) = lifetime(net, &SILENCES.map(Duration::from_secs));
        let expected = Lifetime {
            at_least: Duration::from_secs(60),
            less_than: Some(Duration::from_secs(120)),
        };
        assert_eq!(lifetime, Some(expected), "seed {seed}");
    }
}

#[test]
fn a_server_that_answers_to_no_other_port_tells_nothing() {
    let (lifetime, took) = found(60, Scene { discovery: false, ..scene() });
    assert_eq!(lifetime, None);
    assert!(took <= Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_silent_server_tells_nothing() {
    let (lifetime, _) = found(60, Scene { blocks_udp: true, ..scene() });
    assert_eq!(lifetime, None);
}
