//! What is chosen for whom.

use std::net::SocketAddr;

use proptest::prelude::*;
use rawr_nat::punch::{Hopeless, Order, Part, Plan, plan};
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};

use crate::kinds::Kind;

fn chosen(a: Kind, b: Kind) -> Plan {
    let of =
        |kind: Kind, host| kind.behaviour(SocketAddr::from(([203, 0, 113, host], 40_000)), None);
    plan(&of(a, 1), &of(b, 2))
}

#[test]
fn known_endpoints_meet_straight() {
    assert_eq!(chosen(Kind::Home, Kind::OpenHome), Plan::Straight { order: Order::Together });
    assert_eq!(chosen(Kind::Public, Kind::Random), Plan::Straight { order: Order::OursFirst });
    assert_eq!(
        chosen(Kind::Random, Kind::Restricted),
        Plan::Straight { order: Order::TheirsFirst }
    );
}

#[test]
fn random_ports_take_256_sockets_and_1024_probes_with_the_easy_side_first() {
    let (sockets, probes, low, high) = (256, 1024, 1024, u16::MAX);
    let of = |part, order| Plan::Birthday { part, order, sockets, probes, low, high };
    assert_eq!(chosen(Kind::Home, Kind::Random), of(Part::Easy, Order::OursFirst));
    assert_eq!(chosen(Kind::Random, Kind::Home), of(Part::Hard, Order::TheirsFirst));
    let fewer = Plan::Birthday {
        part: Part::Easy,
        order: Order::OursFirst,
        sockets: 64,
        probes: 64,
        low: 20_000,
        high: 20_511,
    };
    assert_eq!(chosen(Kind::Home, Kind::Block), fewer);
}

#[test]
fn two_hard_sides_are_tried_where_there_are_bounds() {
    assert_eq!(chosen(Kind::Sequential, Kind::Sequential), Plan::Sweep { window: 48, rounds: 6 });
    assert_eq!(chosen(Kind::Block, Kind::Block), Plan::Block { sockets: 32, targets: 32 });
    assert_eq!(chosen(Kind::Block, Kind::Sequential), Plan::Block { sockets: 32, targets: 48 });
    for hard in [Kind::Random, Kind::Sequential, Kind::Block] {
        assert_eq!(chosen(Kind::Random, hard), Plan::Hopeless(Hopeless::Random));
    }
}

#[test]
fn what_was_not_measured_is_taken_for_the_worst() {
    let of =
        |kind: Kind, host| kind.behaviour(SocketAddr::from(([203, 0, 113, host], 40_000)), None);
    let unknown = |b: Behaviour| Behaviour { filtering: None, ports: None, ..b };
    let (home, random) = (unknown(of(Kind::FullCone, 1)), unknown(of(Kind::Sequential, 2)));
    assert_eq!(plan(&home, &random), chosen(Kind::Home, Kind::Random));
}

fn behaviours() -> impl Strategy<Value = Behaviour> {
    let mapping = prop_oneof![
        Just(Mapping::None),
        Just(Mapping::EndpointIndependent),
        Just(Mapping::AddressDependent),
        Just(Mapping::AddressAndPortDependent),
    ];
    let filtering = prop::option::of(prop_oneof![
        Just(Filtering::EndpointIndependent),
        Just(Filtering::AddressDependent),
        Just(Filtering::AddressAndPortDependent),
    ]);
    let ports = prop::option::of(prop_oneof![
        Just(Ports::Preserved),
        any::<i16>().prop_map(|step| Ports::Sequential { step }),
        any::<[u16; 2]>().prop_map(|[low, high]| Ports::Block { low, high }),
        Just(Ports::Random),
    ]);
    let rest = (any::<[u8; 4]>(), any::<bool>(), any::<u16>(), any::<Option<bool>>());
    (mapping, filtering, ports, rest).prop_map(|(mapping, filtering, ports, rest)| {
        let (ip, is_v6, last_port, hairpins) = rest;
        let ip = std::net::Ipv4Addr::from(ip);
        let external = if is_v6 { ip.to_ipv6_mapped().into() } else { ip.into() };
        Behaviour { external, mapping, filtering, ports, last_port, hairpins }
    })
}

fn mirrored(order: Order) -> Order {
    match order {
        Order::Together => Order::Together,
        Order::OursFirst => Order::TheirsFirst,
        Order::TheirsFirst => Order::OursFirst,
    }
}

const fn other(part: Part) -> Part {
    match part {
        Part::Easy => Part::Hard,
        Part::Hard => Part::Easy,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Each side chooses by itself, so both must come to the same.
    #[test]
    fn plans_mirror_each_other(a in behaviours(), b in behaviours()) {
        prop_assume!((a.external, a.last_port) != (b.external, b.last_port));
        let expected = match plan(&a, &b) {
            Plan::Straight { order } => Plan::Straight { order: mirrored(order) },
            Plan::Predict { part, order, window, sockets } => {
                Plan::Predict { part: other(part), order: mirrored(order), window, sockets }
            }
            Plan::Birthday { part, order, sockets, probes, low, high } => {
                let (part, order) = (other(part), mirrored(order));
                Plan::Birthday { part, order, sockets, probes, low, high }
            }
            plan @ (Plan::Sweep { .. } | Plan::Hopeless(_)) => plan,
            Plan::Block { .. } => {
                let mirror = plan(&b, &a);
                prop_assert!(matches!(mirror, Plan::Block { .. }), "{mirror:?}");
                mirror
            }
        };
        prop_assert_eq!(plan(&b, &a), expected);
    }
}
