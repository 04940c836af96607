//! Introductions: passed on, answered, repeated, and nobody else's.

use rawr_proto::{ErrorCode, IntroductionId, MAX_SEALED};
use rawr_userspace::control::Count;

use super::direct::{Direct, at};
use super::{identity, name, root, secs};

const HOLDER: &str = "192.0.2.10:5000";
const INTRODUCER: &str = "203.0.113.20:6000";

fn registered() -> Direct {
    let mut direct = Direct::new(root());
    direct.register(HOLDER, &identity(1), "alice").unwrap();
    direct
}

#[test]
fn both_sides_hear_each_other() {
    let mut direct = registered();
    let (holder, introducer) = (identity(1), identity(2));
    assert_eq!(direct.introduce(INTRODUCER, &introducer, "alice", 7, b"hello"), Ok(None));
    let (sent, said) = direct.indication(&holder);
    assert_eq!(sent.to, at(HOLDER));
    assert_eq!(said.name, Some(name("alice")));
    assert_eq!(said.introduction, Some(IntroductionId([7; 16])));
    assert_eq!(said.sealed.as_deref(), Some(&b"hello"[..]));
    assert_eq!(said.peer_address, Some(at(INTRODUCER)));

    direct.answer(HOLDER, &holder, 7, b"welcome").unwrap();
    let (sent, said) = direct.indication(&introducer);
    assert_eq!(sent.to, at(INTRODUCER));
    assert_eq!(said.name, None);
    assert_eq!(said.sealed.as_deref(), Some(&b"welcome"[..]));
    assert_eq!(said.peer_address, Some(at(HOLDER)));
    let counters = direct.server.counters();
    assert_eq!((counters.get(Count::Introduce), counters.get(Count::Introduced)), (1, 1));
}

#[test]
fn repetitions_make_up_for_what_was_lost() {
    let mut direct = registered();
    let (holder, introducer) = (identity(1), identity(2));
    for _ in 0..3 {
        assert_eq!(direct.introduce(INTRODUCER, &introducer, "alice", 7, b"hello"), Ok(None));
        assert_eq!(direct.indication(&holder).1.sealed.as_deref(), Some(&b"hello"[..]));
    }
    for _ in 0..2 {
        direct.answer(HOLDER, &holder, 7, b"welcome").unwrap();
        direct.indication(&introducer);
    }
    // The answer comes with the success, and the holder is left alone. From a new address, too.
    for from in [INTRODUCER, "203.0.113.20:7000"] {
        let answer = direct.introduce(from, &introducer, "alice", 7, b"hello");
        assert_eq!(answer, Ok(Some(b"welcome".to_vec())));
    }
    assert!(direct.told.is_empty());
    direct.answer(HOLDER, &holder, 7, b"welcome again").unwrap();
    assert_eq!(direct.indication(&introducer).0.to, at("203.0.113.20:7000"));
    assert_eq!(direct.server.counters().get(Count::Introduce), 1);
}

#[test]
fn nobody_else_takes_part() {
    let mut direct = registered();
    let (holder, introducer, stranger) = (identity(1), identity(2), identity(3));
    direct.register(INTRODUCER, &stranger, "mallory").unwrap();
    direct.introduce(INTRODUCER, &introducer, "alice", 7, b"hello").unwrap();
    direct.told.clear();
    let forbidden = Err(ErrorCode::Forbidden);
    assert_eq!(direct.answer(INTRODUCER, &stranger, 7, b"me"), forbidden);
    assert_eq!(direct.answer(INTRODUCER, &introducer, 7, b"me"), forbidden);
    assert_eq!(direct.introduce(INTRODUCER, &stranger, "alice", 7, b"me").map(drop), forbidden);
    let other_name = direct.introduce(INTRODUCER, &introducer, "mallory", 7, b"me");
    assert_eq!(other_name.map(drop), forbidden);
    assert!(direct.told.is_empty());
    assert_eq!(direct.answer(HOLDER, &holder, 8, b"?"), Err(ErrorCode::UnknownName));
}

#[test]
fn nobody_and_somebody_who_has_gone_are_told_apart() {
    let mut direct = registered();
    let introducer = identity(2);
    let unknown = direct.introduce(INTRODUCER, &introducer, "bob", 1, b"x");
    assert_eq!(unknown, Err(ErrorCode::UnknownName));
    direct.pass(secs(119));
    assert_eq!(direct.introduce(INTRODUCER, &introducer, "alice", 2, b"x"), Ok(None));
    direct.pass(secs(2));
    let gone = direct.introduce(INTRODUCER, &introducer, "alice", 3, b"x");
    assert_eq!(gone, Err(ErrorCode::HolderUnreachable));
    direct.register(HOLDER, &identity(1), "alice").unwrap();
    assert_eq!(direct.introduce(INTRODUCER, &introducer, "alice", 3, b"x"), Ok(None));
}

#[test]
fn an_introduction_is_forgotten_after_a_minute() {
    let mut direct = registered();
    let holder = identity(1);
    direct.introduce(INTRODUCER, &identity(2), "alice", 7, b"hello").unwrap();
    direct.pass(secs(61));
    assert_eq!(direct.server.counters().get(Count::ExpiredIntroduction), 1);
    assert_eq!(direct.answer(HOLDER, &holder, 7, b"late"), Err(ErrorCode::UnknownName));
}

#[test]
fn a_holder_that_moves_is_reached_where_it_is() {
    let mut direct = registered();
    let holder = identity(1);
    direct.register("198.51.100.77:1234", &holder, "alice").unwrap();
    direct.introduce(INTRODUCER, &identity(2), "alice", 7, b"hello").unwrap();
    assert_eq!(direct.indication(&holder).0.to, at("198.51.100.77:1234"));
}

#[test]
fn nobody_is_told_more_bytes_than_were_sent() {
    let mut direct = registered();
    let (holder, introducer) = (identity(1), identity(2));
    let long = "n".repeat(64);
    direct.register("[2001:db8::1]:5000", &holder, &long).unwrap();
    for (number, length) in [0, 1, 500, MAX_SEALED].into_iter().enumerate() {
        let (id, sealed) = (number as u8, vec![1; length]);
        for (name, from) in [("alice", HOLDER), (long.as_str(), "[2001:db8::1]:5000")] {
            let id = id * 2 + u8::from(name == "alice");
            direct.introduce("[2001:db8::2]:6000", &introducer, name, id, &sealed).unwrap();
            let request = direct.asked;
            assert!(direct.indication(&holder).0.bytes.len() <= request);
            direct.answer(from, &holder, id, &sealed).unwrap();
            let request = direct.asked;
            assert!(direct.indication(&introducer).0.bytes.len() <= request);
        }
    }
}
