//! What one user, and one allocation, may use.

use rawr_userspace::control::{Count, TurnLimits};
use turn_types::attribute::EvenPort;

use super::direct::{Direct, User, at, config};
use super::secs;

fn limited(limits: TurnLimits) -> Direct {
    let mut config = config();
    config.turn.limits = limits;
    Direct::with(config)
}

#[test]
fn allocations_of_one_user_are_bounded_by_486() {
    let mut direct = limited(TurnLimits { allocations_per_user: 2, ..TurnLimits::default() });
    let anna = |port| User::anna(&format!("192.0.2.1:{port}"));
    let mut first = anna(1);
    direct.allocate(&mut first);
    direct.allocate(&mut anna(2));
    assert_eq!(direct.allocate_with(&mut anna(3), &[]).error(), Some(486));
    direct.allocate(&mut User::bert("192.0.2.2:4"));
    direct.refresh(&mut first, 0);
    direct.allocate(&mut anna(3));
    assert_eq!(direct.allocate_with(&mut anna(4), &[]).error(), Some(486));
    assert_eq!(direct.count(Count::TurnQuota), 2);
    direct.pass(secs(600));
    direct.allocate(&mut anna(4));
}

#[test]
fn reserved_port_counts_until_it_is_closed() {
    let mut direct = limited(TurnLimits { allocations_per_user: 2, ..TurnLimits::default() });
    let mut anna = User::anna("192.0.2.1:1");
    direct.allocate_with(&mut anna, &[&EvenPort::new(true)]);
    let mut other = User::anna("192.0.2.1:2");
    assert_eq!(direct.allocate_with(&mut other, &[]).error(), Some(486));
    direct.refresh(&mut anna, 0);
    assert_eq!(direct.allocate_with(&mut other, &[&EvenPort::new(true)]).error(), Some(486));
    direct.allocate(&mut other);
    direct.pass(secs(31));
    direct.allocate(&mut anna);
}

#[test]
fn allocations_altogether_are_bounded_by_508() {
    let mut direct = limited(TurnLimits { allocations: 3, ..TurnLimits::default() });
    let mut anna = User::anna("192.0.2.1:1");
    direct.allocate_with(&mut anna, &[&EvenPort::new(true)]);
    let mut bert = User::bert("192.0.2.2:1");
    assert_eq!(direct.allocate_with(&mut bert, &[&EvenPort::new(true)]).error(), Some(508));
    direct.allocate(&mut bert);
    assert_eq!(direct.allocate_with(&mut User::bert("192.0.2.2:2"), &[]).error(), Some(508));
    direct.pass(secs(31));
    direct.allocate(&mut User::bert("192.0.2.2:2"));
}

#[test]
fn permissions_and_channels_of_an_allocation_are_bounded_by_508() {
    let limits = TurnLimits {
        permissions_per_allocation: 3,
        channels_per_allocation: 2,
        ..TurnLimits::default()
    };
    let mut direct = limited(limits);
    let mut anna = User::anna("192.0.2.1:1");
    direct.allocate(&mut anna);
    let peer = |last: u8, port: u16| std::net::SocketAddr::from(([203, 0, 113, last], port));
    assert_eq!(direct.bind(&mut anna, 0x4000, peer(1, 1)), None);
    assert_eq!(direct.bind(&mut anna, 0x4001, peer(1, 2)), None);
    assert_eq!(direct.bind(&mut anna, 0x4002, peer(1, 3)), Some(508));
    assert_eq!(direct.bind(&mut anna, 0x4001, peer(1, 2)), None);
    // All or none, and one named twice counts once.
    let four = [1, 2, 3, 4].map(|last| peer(last, 1));
    assert_eq!(direct.permit_all(&mut anna, &four), Some(508));
    assert_eq!(direct.server.allocations(direct.now).next().unwrap().permissions, 1);
    assert_eq!(direct.permit_all(&mut anna, &[four[0], four[1], four[1], four[2]]), None);
    assert_eq!(direct.permit(&mut anna, four[3]), Some(508));
    assert_eq!(direct.permit(&mut anna, four[2]), None);
    direct.pass(secs(301));
    assert_eq!(direct.permit(&mut anna, four[3]), None);
}

/// Bytes that userspace relays of 1,000-byte datagrams, offered at ten times the rate for ten seconds.
fn relayed(direct: &mut Direct, users: &[&User]) -> u64 {
    let mut passed = 0;
    for step in 0..10_000 {
        let user = users[step % users.len()];
        passed += direct.channel(user, 0x4000, &[0; 1_000]).len() as u64 * 1_000;
        direct.advance(std::time::Duration::from_millis(1));
    }
    passed
}

#[test]
fn rate_of_an_allocation_holds_in_userspace() {
    let rate = 100_000;
    let mut direct = limited(TurnLimits { allocation_rate: Some(rate), ..TurnLimits::default() });
    let mut anna = User::anna("192.0.2.1:1");
    direct.allocate(&mut anna);
    direct.bind(&mut anna, 0x4000, at("203.0.113.5:1"));
    let passed = relayed(&mut direct, &[&anna]);
    // Ten seconds, and a burst of two of the longest datagrams.
    let expected = 10 * rate + 2 * 65_536;
    assert!(passed.abs_diff(expected) < expected / 50, "{passed} of {expected}");
    assert!(direct.count(Count::TurnRate) > 8_000);
}

#[test]
fn rate_of_a_user_holds_for_all_its_allocations_and_for_nobody_else() {
    let rate = 100_000;
    let mut direct = limited(TurnLimits { user_rate: Some(rate), ..TurnLimits::default() });
    let mut users =
        [User::anna("192.0.2.1:1"), User::anna("192.0.2.1:2"), User::bert("192.0.2.2:1")];
    for user in &mut users {
        direct.allocate(user);
        direct.bind(user, 0x4000, at("203.0.113.5:1"));
    }
    let [first, second, other] = &users;
    let passed = relayed(&mut direct, &[first, second]);
    let expected = 10 * rate + 2 * 65_536;
    assert!(passed.abs_diff(expected) < expected / 50, "{passed} of {expected}");
    assert_eq!(direct.channel(other, 0x4000, &[0; 1_000]).len(), 1);
}

#[test]
fn data_plane_keeps_within_the_same_limits_before_and_after_a_restart() {
    let limits = TurnLimits {
        allocation_rate: Some(100_000),
        user_rate: Some(150_000),
        ..TurnLimits::default()
    };
    let mut direct = limited(limits);
    let mut users =
        [User::anna("192.0.2.1:1"), User::anna("192.0.2.1:2"), User::bert("192.0.2.2:1")];
    for user in &mut users {
        direct.allocate(user);
        direct.bind(user, 0x4000, at("203.0.113.5:1"));
    }
    direct.bind(&mut users[0], 0x4001, at("203.0.113.5:2"));
    let told: Vec<_> = direct.limits.iter().map(|limits| limits.map(Option::unwrap)).collect();
    let [first, second, other, first_again] = told[..] else { panic!("{told:?}") };
    assert_eq!([first[0].bytes_per_second, first[1].bytes_per_second], [100_000, 150_000]);
    assert_eq!(first, first_again);
    assert_ne!(first[0].group, second[0].group);
    assert_eq!(first[1].group, second[1].group);
    assert_ne!(first[1].group, other[1].group);
    let mut before: Vec<_> = direct.limits.drain(..).collect();
    direct.restart();
    let mut after: Vec<_> = direct.limits.drain(..).collect();
    let group = |limits: &rawr_userspace::dataplane::RateLimits| limits[0].map(|it| it.group);
    before.sort_by_key(group);
    after.sort_by_key(group);
    assert_eq!(before, after);
}
