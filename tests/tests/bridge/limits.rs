//! What one holder, one prefix and the whole may have and ask.

use rawr_proto::ErrorCode;
use rawr_userspace::control::Count;

use super::direct::Direct;
use super::{identity, root, secs};

const HERE: &str = "192.0.2.10:5000";
const NEAR: &str = "192.0.2.99:5000";
const FAR: &str = "203.0.113.20:6000";

#[test]
fn names_are_bounded_for_each_holder_each_prefix_and_altogether() {
    let mut config = root();
    config.bridge.limits.names_per_holder = 2;
    config.bridge.limits.names_per_prefix = 3;
    config.bridge.limits.names = 4;
    let mut direct = Direct::new(config);
    let quota = Err(ErrorCode::QuotaReached);
    let first = identity(1);
    direct.register(HERE, &first, "a").unwrap();
    direct.register(HERE, &first, "b").unwrap();
    assert_eq!(direct.register(FAR, &first, "c"), quota, "of one holder");
    direct.register(NEAR, &identity(2), "c").unwrap();
    assert_eq!(direct.register(NEAR, &identity(3), "d"), quota, "of one prefix");
    direct.register(FAR, &identity(3), "d").unwrap();
    assert_eq!(direct.register("198.18.0.1:5000", &identity(4), "e"), quota, "altogether");
    // Refreshing takes no more room, and what is given up or expires makes some.
    direct.register(HERE, &first, "a").unwrap();
    direct.register_with(HERE, &first, "a", 1, Some(0)).unwrap();
    direct.register(HERE, &first, "e").unwrap();
    direct.pass(secs(3601));
    assert_eq!(direct.server.name_count(), 0);
    for (from, who, name) in [(HERE, 5, "a"), (HERE, 5, "b"), (NEAR, 6, "c"), (FAR, 7, "d")] {
        direct.register(from, &identity(who), name).unwrap();
    }
}

#[test]
fn a_holder_that_moves_counts_where_it_is() {
    let mut config = root();
    config.bridge.limits.names_per_prefix = 1;
    let mut direct = Direct::new(config);
    direct.register(HERE, &identity(1), "a").unwrap();
    direct.register(FAR, &identity(2), "b").unwrap();
    // A name is not lost by moving to where there are many.
    direct.register(FAR, &identity(1), "a").unwrap();
    direct.register(HERE, &identity(3), "c").unwrap();
    assert_eq!(direct.register(FAR, &identity(4), "d"), Err(ErrorCode::QuotaReached));
}

#[test]
fn lookups_are_bounded_for_each_prefix_and_second() {
    let mut config = root();
    config.bridge.limits.lookups_per_second = 10;
    let mut direct = Direct::new(config);
    let (holder, other) = (identity(1), identity(2));
    direct.register(HERE, &holder, "a").unwrap();
    let asked: Vec<_> = (0..50).map(|_| direct.look_up(NEAR, &other, "a").map(drop)).collect();
    let granted = asked.iter().filter(|answer| answer.is_ok()).count();
    assert!((10..=11).contains(&granted), "{granted}");
    assert_eq!(asked.last(), Some(&Err(ErrorCode::TooManyRequests)));
    assert!(direct.look_up(FAR, &other, "a").is_ok(), "another prefix is not concerned");
    direct.register(HERE, &holder, "a").unwrap();
    direct.advance(secs(1));
    assert!(direct.look_up(NEAR, &other, "a").is_ok());
}

#[test]
fn refreshes_are_not_among_the_registrations_of_a_second() {
    let mut config = root();
    config.bridge.limits.registrations_per_second = 2;
    let mut direct = Direct::new(config);
    let holder = identity(1);
    direct.register(HERE, &holder, "a").unwrap();
    direct.register(HERE, &holder, "b").unwrap();
    assert_eq!(direct.register(HERE, &holder, "c"), Err(ErrorCode::TooManyRequests));
    for _ in 0..20 {
        direct.register(HERE, &holder, "a").unwrap();
    }
    assert_eq!(direct.server.counters().get(Count::BridgeRate), 1);
}

#[test]
fn introductions_are_bounded_for_each_prefix_each_holder_and_altogether() {
    let mut config = root();
    config.bridge.limits.introductions_per_second = 3;
    config.bridge.limits.introductions_per_holder = 4;
    config.bridge.limits.introductions = 5;
    let mut direct = Direct::new(config);
    direct.register(HERE, &identity(1), "a").unwrap();
    direct.register(HERE, &identity(2), "b").unwrap();
    let mut introduce =
        |from: &str, name: &str, id| direct.introduce(from, &identity(9), name, id, b"x").map(drop);
    for id in 0..3 {
        introduce(FAR, "a", id).unwrap();
    }
    assert_eq!(introduce(FAR, "a", 3), Err(ErrorCode::TooManyRequests));
    introduce("198.18.0.1:5000", "a", 4).unwrap();
    let full = introduce("198.18.0.1:5000", "a", 5);
    assert_eq!(full, Err(ErrorCode::QuotaReached), "to one holder");
    introduce("198.18.1.1:5000", "b", 6).unwrap();
    let full = introduce("198.18.1.1:5000", "b", 7);
    assert_eq!(full, Err(ErrorCode::QuotaReached), "altogether");
    direct.pass(secs(61));
    assert_eq!(direct.introduce(FAR, &identity(9), "a", 8, b"x"), Ok(None));
}

#[test]
fn names_that_come_and_go_leave_nothing() {
    let mut direct = Direct::new(root());
    for round in 0..200_u64 {
        let who = identity(round as u8);
        let text = format!("name-{}", round % 7);
        direct.register_with(HERE, &who, &text, 1, Some(3600)).unwrap();
        direct.register_with(HERE, &who, &text, 1, Some(0)).unwrap();
        direct.advance(secs(1));
    }
    assert_eq!((direct.server.name_count(), direct.server.poll_timeout()), (0, None));
}
