//! Each kind of NAT by itself, without loss.

use std::time::Duration;

use rawr_nat::classify::ClassifyConfig;
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};

use crate::net::{Admits, Gives, Maps, Net, Scene};
use crate::support::{Outcome, classify, classify_by, classify_with};

const ADMITS: [(Admits, Filtering); 3] = [
    (Admits::Everybody, Filtering::EndpointIndependent),
    (Admits::KnownAddresses, Filtering::AddressDependent),
    (Admits::KnownEndpoints, Filtering::AddressAndPortDependent),
];

const MAPS: [(Maps, Mapping); 4] = [
    (Maps::Nothing, Mapping::None),
    (Maps::PerSocket, Mapping::EndpointIndependent),
    (Maps::PerAddress, Mapping::AddressDependent),
    (Maps::PerEndpoint, Mapping::AddressAndPortDependent),
];

fn udp(outcome: &Outcome) -> Behaviour {
    outcome.family.udp.unwrap()
}

#[test]
fn every_kind_is_told_within_a_second() {
    for (maps, mapping) in MAPS {
        for (admits, filtering) in ADMITS {
            for gives in [Gives::Kept, Gives::Next(1), Gives::Within(20_000, 20_511), Gives::Any] {
                for is_ipv6 in [false, true] {
                    let outcome =
                        classify(Net::new(Scene::new(maps, admits, gives), is_ipv6, 1), 2);
                    let found = udp(&outcome);
                    let scene = format!("{maps:?} {admits:?} {gives:?}: {found:?}");
                    assert_eq!(found.mapping, mapping, "{scene}");
                    assert_eq!(found.filtering, Some(filtering), "{scene}");
                    assert!(fits(maps, gives, found.ports), "{scene}");
                    assert!(outcome.took <= Duration::from_secs(1), "{scene} {:?}", outcome.took);
                    assert_eq!(outcome.family.udp_evidence.odd, 0, "{scene}");
                    assert!(outcome.family.udp_evidence.is_measured());
                    assert_eq!(outcome.report.ipv6.is_some(), is_ipv6);
                }
            }
        }
    }
}

fn fits(maps: Maps, gives: Gives, found: Option<Ports>) -> bool {
    match (maps, gives, found) {
        (Maps::Nothing, _, found) => found == Some(Ports::Preserved),
        (Maps::PerSocket, Gives::Kept, found) => found == Some(Ports::Preserved),
        // The first mapping of a socket takes its port, the others take any.
        (_, Gives::Kept, found) => found == Some(Ports::Random),
        (_, Gives::Next(step), found) => found == Some(Ports::Sequential { step }),
        (_, Gives::Within(least, most), Some(Ports::Block { low, high })) => {
            low.abs_diff(least) < 256 && high.abs_diff(most) < 256
        }
        (_, Gives::Within(..), _) => false,
        (_, Gives::Any, found) => found == Some(Ports::Random),
    }
}

#[test]
fn tcp_is_told_for_itself() {
    for (maps, mapping) in MAPS {
        let scene = Scene::new(maps, Admits::KnownEndpoints, Gives::Any);
        let found = classify(Net::new(scene, false, 1), 2).family.tcp.unwrap();
        assert_eq!((found.mapping, found.filtering), (mapping, None));
    }
}

#[test]
fn udp_is_blocked_and_tcp_is_not() {
    let scene = Scene::new(Maps::PerSocket, Admits::KnownEndpoints, Gives::Kept);
    let outcome = classify(Net::new(Scene { blocks_udp: true, ..scene.clone() }, false, 1), 2);
    assert_eq!(outcome.family.udp, None);
    assert_eq!(outcome.family.tcp.unwrap().mapping, Mapping::EndpointIndependent);
    assert!(outcome.took <= Duration::from_secs(1), "{:?}", outcome.took);

    let nothing = Scene { blocks_udp: true, tcp: false, ..scene };
    let outcome = classify(Net::new(nothing, false, 1), 2);
    assert_eq!((outcome.family.udp, outcome.family.tcp), (None, None));
    assert!(outcome.took <= Duration::from_secs(5), "{:?}", outcome.took);
}

#[test]
fn hairpinning() {
    for (hairpins, maps, expected) in [
        (true, Maps::PerSocket, Some(true)),
        (false, Maps::PerSocket, Some(false)),
        (true, Maps::Nothing, None),
        // Each writes from a mapping that the other has not written to.
        (true, Maps::PerEndpoint, Some(false)),
    ] {
        let scene = Scene::new(maps, Admits::KnownEndpoints, Gives::Kept);
        let outcome = classify(Net::new(Scene { hairpins, ..scene }, false, 1), 2);
        assert_eq!(udp(&outcome).hairpins, expected, "{hairpins} {maps:?}");
    }
}

#[test]
fn servers_without_other_addresses_leave_filtering_unknown() {
    for (maps, mapping) in [
        (Maps::PerSocket, Mapping::EndpointIndependent),
        // Address and port change together.
        (Maps::PerAddress, Mapping::AddressAndPortDependent),
        (Maps::PerEndpoint, Mapping::AddressAndPortDependent),
    ] {
        let scene = Scene::new(maps, Admits::Everybody, Gives::Any);
        let net = Net::new(Scene { discovery: false, ..scene }, false, 1);
        let servers = net.two_servers();
        let outcome = classify_by(net, servers, 2);
        assert_eq!((udp(&outcome).mapping, udp(&outcome).filtering), (mapping, None));
        assert!(outcome.family.udp_evidence.is_measured() && outcome.family.discovery.is_empty());
    }
}

#[test]
fn one_server_with_one_address_tells_the_external_address() {
    let scene = Scene::new(Maps::PerEndpoint, Admits::Everybody, Gives::Any);
    let net = Net::new(Scene { discovery: false, ..scene }, false, 1);
    let external = net.external;
    let outcome = classify(net, 2);
    assert_eq!(udp(&outcome).external, external);
    assert_eq!(udp(&outcome).mapping, Mapping::AddressAndPortDependent);
    assert!(!outcome.family.udp_evidence.is_measured());
}

#[test]
fn a_silent_server_delays_the_report_little() {
    let scene = Scene::new(Maps::PerSocket, Admits::KnownEndpoints, Gives::Kept);
    let net = Net::new(scene, false, 1);
    let servers = vec!["192.0.2.99:3478".parse().unwrap(), net.server()];
    let outcome = classify_by(net, servers, 2);
    assert_eq!(udp(&outcome).filtering, Some(Filtering::AddressAndPortDependent));
    assert!(outcome.took <= Duration::from_secs(1), "{:?}", outcome.took);
}

#[test]
fn what_the_end_cuts_short_is_unknown() {
    for admits in [Admits::Everybody, Admits::KnownAddresses, Admits::KnownEndpoints] {
        let net = Net::new(Scene::new(Maps::PerSocket, admits, Gives::Kept), false, 1);
        let mut config = ClassifyConfig::new(vec![net.server()]);
        config.timeout = Duration::from_millis(300);
        let outcome = classify_with(net, config, 2);
        assert_eq!(outcome.took, Duration::from_millis(300));
        let expected = (admits == Admits::Everybody).then_some(Filtering::EndpointIndependent);
        assert_eq!((udp(&outcome).filtering, udp(&outcome).hairpins), (expected, None));
        assert_eq!(udp(&outcome).mapping, Mapping::EndpointIndependent);
    }
}

#[test]
fn a_carriers_nat_shows_by_its_routers() {
    let scene = Scene::new(Maps::PerSocket, Admits::KnownEndpoints, Gives::Kept);
    let family = classify(Net::new(scene, false, 1), 2).family;
    let routers = [(1, [10, 0, 1, 1].into()), (2, [100, 64, 0, 1].into())];
    assert_eq!(family.routers, routers);
    assert!(family.carrier_grade);
    assert_eq!(family.double_nat, Some(true));
}

#[test]
fn where_everything_is_answered_nobody_waits() {
    for maps in [Maps::Nothing, Maps::PerSocket] {
        let scene = Scene::new(maps, Admits::Everybody, Gives::Kept);
        let outcome = classify(Net::new(Scene { hairpins: true, ..scene }, false, 1), 2);
        assert!(outcome.took <= Duration::from_millis(110), "{maps:?} {:?}", outcome.took);
    }
}

#[test]
fn nobody_to_ask_is_a_report_without_families() {
    use rawr_nat::classify::{Classifier, ClassifyConfig, ClassifyOutput};
    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    let now = std::time::Instant::now();
    let mut machine = Classifier::new(&ClassifyConfig::new(Vec::new()), 1, now);
    let Some(ClassifyOutput::Report(report)) = machine.poll_output() else { panic!() };
    assert_eq!((&report.ipv4, &report.ipv6), (&None, &None));
}

#[test]
fn it_costs_little_traffic() {
    let scene = Scene::new(Maps::PerEndpoint, Admits::KnownEndpoints, Gives::Any);
    let outcome = classify(Net::new(scene, false, 1), 2);
    assert!(outcome.datagrams <= 120, "{} datagrams", outcome.datagrams);
}
