//! Any kind of NAT, with loss, delay, other hosts' flows and one odd answer.

use std::time::Duration;

use proptest::prelude::*;
use rawr_nat::{Filtering, Mapping, Ports};

use crate::net::{Admits, Gives, Maps, Net, Scene};
use crate::support::classify;

fn maps() -> impl Strategy<Value = Maps> {
    prop_oneof![
        Just(Maps::Nothing),
        Just(Maps::PerSocket),
        Just(Maps::PerAddress),
        Just(Maps::PerEndpoint)
    ]
}

fn admits() -> impl Strategy<Value = Admits> {
    prop_oneof![Just(Admits::Everybody), Just(Admits::KnownAddresses), Just(Admits::KnownEndpoints)]
}

fn gives() -> impl Strategy<Value = Gives> {
    prop_oneof![
        Just(Gives::Kept),
        (prop_oneof![-2..=-1i16, 1..=2i16]).prop_map(Gives::Next),
        (2000..60_000u16, 256..4096u16).prop_map(|(low, size)| Gives::Within(low, low + size)),
        Just(Gives::Any),
    ]
}

prop_compose! {
    fn scene()(
        maps in maps(),
        admits in admits(),
        gives in gives(),
        hairpins: bool,
        loss in 0..80u32,
        rtt in 1..400u64,
        odd in proptest::option::of(0..60u32),
        foreign in 0..4u16,
    ) -> Scene {
        let rtt = Duration::from_millis(rtt);
        Scene { hairpins, loss, rtt, odd, foreign, ..Scene::new(maps, admits, gives) }
    }
}

const fn mapping(maps: Maps) -> Mapping {
    match maps {
        Maps::Nothing => Mapping::None,
        Maps::PerSocket => Mapping::EndpointIndependent,
        Maps::PerAddress => Mapping::AddressDependent,
        Maps::PerEndpoint => Mapping::AddressAndPortDependent,
    }
}

const fn filtering(admits: Admits) -> Filtering {
    match admits {
        Admits::Everybody => Filtering::EndpointIndependent,
        Admits::KnownAddresses => Filtering::AddressDependent,
        Admits::KnownEndpoints => Filtering::AddressAndPortDependent,
    }
}

proptest! {
    #[test]
    fn verdicts_hold_whatever_the_network_does(scene in scene(), is_ipv6: bool, seed: u64) {
        let outcome = classify(Net::new(scene.clone(), is_ipv6, seed), seed.rotate_left(32));
        let found = outcome.family.udp.unwrap();
        prop_assert_eq!(found.mapping, mapping(scene.maps));
        prop_assert_eq!(found.filtering, Some(filtering(scene.admits)));
        prop_assert!(outcome.took <= Duration::from_secs(5), "{:?}", outcome.took);
        let near = scene.loss == 0 && scene.rtt <= Duration::from_millis(30);
        prop_assert!(!near || outcome.took <= Duration::from_secs(1), "{:?}", outcome.took);
        if scene.maps == Maps::PerEndpoint {
            let sequential = matches!(found.ports, Some(Ports::Sequential { .. }));
            prop_assert_eq!(sequential, matches!(scene.gives, Gives::Next(_)), "{:?}", found.ports);
        }
    }
}
