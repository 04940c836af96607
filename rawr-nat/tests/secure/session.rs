//! Handshakes, keys, replay.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use rawr_nat::PublicKey;
use rawr_nat::secure::{
    Dropped, MAX_PAYLOAD, OVERHEAD, Rekeying, SealError, Session, SessionError, SessionEvent,
};

use crate::link::{Link, Pair, Quality, config, identity, start};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn both_know_each_other_after_one_round_trip() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    let begun = pair.now;
    pair.run_until(begun + SECOND, Pair::is_established);
    assert_eq!(pair.now - begun, Duration::from_millis(30), "and the confirmation");
    for (i, other) in [(0, 2), (1, 1)] {
        let peer = identity(other).public();
        assert_eq!(pair.ends[i].peer(), Some(peer));
        assert_eq!(pair.events[i], [SessionEvent::Established { peer }]);
    }
    let lengths: Vec<_> = pair.wire.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [114, 51, 25], "initiation, response, confirmation");
    pair.send(0, b"hello");
    pair.send(1, b"");
    pair.run(SECOND);
    assert_eq!(pair.received, [vec![vec![]], vec![b"hello".to_vec()]]);
    assert_eq!(pair.wire.last().unwrap().1.len(), OVERHEAD);
}

#[test]
fn both_may_begin_at_once() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, true);
    pair.run(20 * SECOND);
    for (i, other) in [(0, 2), (1, 1)] {
        let peer = identity(other).public();
        assert_eq!(pair.events[i], [SessionEvent::Established { peer }], "one handshake is enough");
    }
    let simultaneous = pair.dropped.iter().flatten().filter(|it| **it == Dropped::Simultaneous);
    assert_eq!(simultaneous.count(), 1, "of two initiations one goes on");
    pair.send(0, b"there");
    pair.send(1, b"back");
    pair.run(SECOND);
    assert_eq!(pair.received, [[b"back".to_vec()], [b"there".to_vec()]]);
}

#[test]
fn anybody_may_come_where_nobody_is_expected() {
    let now = start();
    let caller = Session::initiate(config(1), identity(2).public(), [1; 32], now).unwrap();
    let called = Session::respond(config(2), None, [2; 32], now);
    let mut pair = Pair::new(Link::new(Quality::PERFECT, 1), now, [caller, called]);
    assert_eq!(pair.ends[1].peer(), None);
    pair.run(SECOND);
    assert_eq!(pair.ends[1].peer(), Some(identity(1).public()));
}

#[test]
fn a_wrong_key_is_told_as_such() {
    let now = start();
    let wrong = identity(9).public();
    let caller = Session::initiate(config(1), wrong, [1; 32], now).unwrap();
    let called = Session::respond(config(2), None, [2; 32], now);
    let mut pair = Pair::new(Link::new(Quality::PERFECT, 1), now, [caller, called]);
    pair.run(10 * SECOND);
    let error = SessionError::WrongPeer { peer: wrong };
    assert_eq!(pair.events[0], [SessionEvent::Failed(error)]);
    assert!(error.to_string().contains(&wrong.to_string()), "{error}");
    assert_eq!(pair.ends[0].seal(pair.now, b"x"), Err(SealError::Over(error)));
    assert!(!pair.ends[1].is_established());
    assert!(pair.dropped[1].iter().all(|it| *it == Dropped::Unreadable));
}

#[test]
fn a_stranger_is_told_and_does_not_disturb() {
    let now = start();
    let caller = Session::initiate(config(1), identity(2).public(), [1; 32], now).unwrap();
    let called = Session::respond(config(2), Some(identity(3).public()), [2; 32], now);
    let mut pair = Pair::new(Link::new(Quality::PERFECT, 1), now, [caller, called]);
    pair.run(10 * SECOND);
    let (peer, own) = (identity(2).public(), identity(1).public());
    let error = SessionError::NotExpected { peer, own };
    assert_eq!(pair.events[0], [SessionEvent::Failed(error)]);
    assert!(pair.events[1].iter().all(|it| *it == SessionEvent::Refused(own)));
    assert!(!pair.events[1].is_empty());

    let expected = Session::initiate(config(3), peer, [3; 32], pair.now).unwrap();
    let [_, called] = pair.ends;
    let mut pair = Pair::new(Link::new(Quality::PERFECT, 1), pair.now, [expected, called]);
    pair.run(SECOND);
    assert!(pair.is_established());
}

#[test]
fn another_connections_handshake_is_not_taken() {
    let now = start();
    let mut other = config(1);
    other.context = b"another".to_vec();
    let caller = Session::initiate(other, identity(2).public(), [1; 32], now).unwrap();
    let called = Session::respond(config(2), None, [2; 32], now);
    let mut pair = Pair::new(Link::new(Quality::PERFECT, 1), now, [caller, called]);
    pair.run(10 * SECOND);
    assert!(!pair.is_established());
}

#[test]
fn a_key_that_nobody_holds_is_refused() {
    let weak = PublicKey::from_bytes([0; 32]);
    let error = Session::initiate(config(1), weak, [1; 32], start()).unwrap_err();
    assert_eq!(error.0, weak);
}

#[test]
fn nobody_there_is_said_in_time() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    pair.link.is_cut = true;
    let begun = pair.now;
    pair.run_until(begun + 60 * SECOND, |pair| !pair.events[0].is_empty());
    let after = config(1).patience;
    let peer = identity(2).public();
    let error = SessionError::Unanswered { peer, after };
    assert_eq!(pair.events[0], [SessionEvent::Failed(error)]);
    assert_eq!(pair.now - begun, after);
    assert_eq!(pair.ends[0].poll_timeout(), None);
}

#[test]
fn what_is_too_long_or_too_early_is_not_sealed() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    let error = pair.ends[0].seal(pair.now, b"early");
    assert_eq!(error, Err(SealError::NotEstablished));
    pair.run(SECOND);
    pair.send(0, &vec![7; MAX_PAYLOAD]);
    pair.run(SECOND);
    assert_eq!(pair.received[1][0].len(), MAX_PAYLOAD);
    let error = pair.ends[0].seal(pair.now, &vec![7; MAX_PAYLOAD + 1]);
    assert_eq!(error, Err(SealError::TooLong(MAX_PAYLOAD + 1)));
}

/// Every bit of every kind of datagram.
#[test]
fn a_changed_bit_is_never_accepted() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    let datagram = pair.ends[0].seal(pair.now, b"payload").unwrap();
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        pair.deliver(1, &changed);
    }
    assert_eq!(pair.received[1], Vec::<Vec<u8>>::new());
    pair.deliver(1, &datagram);
    assert_eq!(pair.received[1], [b"payload"]);

    let handshake: Vec<_> = pair.wire.clone();
    for (to, message) in &handshake[..2] {
        for bit in 8..message.len() * 8 {
            let fresh = || Pair::calling(Quality::PERFECT, 1, false);
            let mut pair = fresh();
            if *to == 0 {
                pair.deliver(1, &handshake[0].1);
            }
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            pair.deliver(*to, &changed);
            assert!(!pair.ends[*to].is_established(), "bit {bit} of the message to {to}");
            assert_eq!(pair.dropped[*to].len(), 1, "bit {bit} of the message to {to}");
        }
    }
}

#[test]
fn a_lost_confirmation_is_made_up_for() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    let begun = pair.now;
    pair.run_until(begun + SECOND, |pair| pair.ends[0].is_established());
    // On its way is the confirmation.
    while pair.link.arrive(pair.now + SECOND).is_some() {}
    assert!(!pair.ends[1].is_established());
    pair.run(SECOND);
    assert!(pair.is_established(), "the response came again, and was confirmed again");
}

fn hasty() -> Rekeying {
    Rekeying { after: 10 * SECOND, after_datagrams: 1_000, expire: 30 * SECOND, grace: 2 * SECOND }
}

fn rekeying_pair(quality: Quality, seed: u64, both: bool) -> Pair {
    let now = start();
    let [mut a, mut b] = [config(1), config(2)];
    (a.rekeying, b.rekeying) = (hasty(), hasty());
    let caller = Session::initiate(a, identity(2).public(), [1; 32], now).unwrap();
    let called = match both {
        true => Session::initiate(b, identity(1).public(), [2; 32], now).unwrap(),
        false => Session::respond(b, None, [2; 32], now),
    };
    Pair::new(Link::new(quality, seed), now, [caller, called])
}

#[test]
fn keys_are_replaced_after_a_time_without_losing_anything() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    for i in 0..600_u32 {
        pair.send(0, &i.to_be_bytes());
        pair.send(1, &i.to_be_bytes());
        pair.run(SECOND / 10);
    }
    pair.run(SECOND);
    let rekeyed = [0, 1].map(|i| pair.events[i].len() - 1);
    assert_eq!(rekeyed, [6, 6], "in {:?}", pair.events);
    for received in &pair.received {
        let expected: Vec<_> = (0..600_u32).map(|i| i.to_be_bytes().to_vec()).collect();
        assert_eq!(*received, expected);
    }
    assert_eq!(pair.dropped, [vec![], vec![]]);
}

#[test]
fn keys_are_replaced_after_a_number_of_datagrams() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    for from in [0, 1] {
        let before = pair.events[0].len();
        for _ in 0..1_001 {
            pair.send(from, b"x");
        }
        pair.run(SECOND);
        assert_eq!(pair.events[0].len(), before + 1);
    }
    assert_eq!(pair.received.each_ref().map(Vec::len), [1_001, 1_001]);
}

/// What was sealed before keys were replaced may arrive afterwards, for a while.
#[test]
fn replaced_keys_open_what_is_late_until_their_grace_is_over() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    let seal = |pair: &mut Pair| pair.ends[0].seal(pair.now, b"late").unwrap();
    let late = [seal(&mut pair), seal(&mut pair)];
    pair.run_until(pair.now + 20 * SECOND, |pair| pair.events[1].len() == 2);
    pair.deliver(1, &late[0]);
    assert_eq!(pair.received[1], [b"late"]);
    pair.run(3 * SECOND);
    pair.deliver(1, &late[1]);
    assert_eq!(pair.received[1].len(), 1);
    assert_eq!(pair.dropped[1], [Dropped::UnknownKeys]);
}

/// The new keys may be used before the last datagram with the old ones has come, and the responder's
/// data may overtake nothing that it depends on.
#[test]
fn new_keys_work_before_the_old_ones_are_done() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    pair.run_until(pair.now + 20 * SECOND, |pair| pair.events[0].len() == 2);
    assert_eq!(pair.events[1].len(), 1, "the responder has not heard of it");
    let (new, old) =
        (pair.ends[0].seal(pair.now, b"new").unwrap(), pair.ends[1].seal(pair.now, b"old"));
    pair.deliver(0, &old.unwrap());
    pair.deliver(1, &new);
    assert_eq!(pair.received, [vec![b"old".to_vec()], vec![b"new".to_vec()]]);
    assert_eq!(pair.events[1].len(), 2);
}

#[test]
fn a_session_outlives_a_gap_but_not_its_keys() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, false);
    pair.run(SECOND);
    pair.link.is_cut = true;
    pair.run(15 * SECOND);
    pair.link.is_cut = false;
    pair.run(3 * SECOND);
    assert_eq!(pair.events[0].last(), Some(&SessionEvent::Rekeyed));
    pair.link.is_cut = true;
    pair.run(31 * SECOND);
    for (i, other) in [(0, 2), (1, 1)] {
        let (peer, after) = (identity(other).public(), hasty().expire);
        let error = SessionError::Expired { peer, after };
        assert_eq!(pair.events[i].last(), Some(&SessionEvent::Failed(error)));
        assert_eq!(pair.ends[i].poll_timeout(), None);
    }
}

/// Everything that was ever sent, sent again to both sides.
#[test]
fn repeating_the_past_changes_nothing() {
    let mut pair = rekeying_pair(Quality::PERFECT, 1, true);
    for i in 0..40_u8 {
        pair.run(SECOND);
        pair.send(usize::from(i % 2), &[i]);
    }
    pair.run(SECOND);
    let received = pair.received.clone();
    let events = pair.events.clone();
    for (to, bytes) in pair.wire.clone() {
        pair.deliver(to, &bytes);
        pair.deliver(1 - to, &bytes);
    }
    pair.run(SECOND);
    assert_eq!(pair.received, received);
    assert_eq!(pair.events, events);
    pair.send(0, b"still");
    pair.send(1, b"there");
    pair.run(SECOND);
    assert_eq!(pair.received[1].last().unwrap(), b"still");
    assert_eq!(pair.received[0].last().unwrap(), b"there");
}

/// Handshakes cost something to whoever reads them, so there is a bound.
#[test]
fn a_flood_of_handshakes_is_not_computed() {
    let mut pair = Pair::calling(Quality::PERFECT, 1, false);
    let mut forged = pair.wire[0].1.clone();
    for i in 0..100 {
        forged[50] = i;
        pair.deliver(1, &forged);
    }
    let computed = pair.dropped[1].iter().filter(|it| **it == Dropped::Unreadable).count();
    assert_eq!(computed, 16);
    pair.run(5 * SECOND);
    assert!(pair.is_established(), "later there is room again");
}

fn qualities() -> impl Strategy<Value = Quality> {
    (0..40_u32, 0..30_u32, 0..30_u32, 1..150_u64, 0..300_u64).prop_map(
        |(loss, doubled, corrupted, delay, jitter)| Quality {
            loss,
            doubled,
            corrupted,
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            rate: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the link does, both sides get keys, and hold the same ones in the end.
    #[test]
    fn handshakes_come_to_an_end(quality in qualities(), seed: u64, both: bool) {
        let mut pair = rekeying_pair(quality, seed, both);
        let begun = pair.now;
        pair.run_until(begun + 28 * SECOND, Pair::is_established);
        prop_assert!(pair.is_established(), "after {:?}: {:?}", pair.now - begun, pair.events);
        pair.link.quality = Quality::PERFECT;
        pair.run(2 * SECOND);
        for from in [0, 1] {
            let before = pair.received[1 - from].len();
            pair.send(from, b"x");
            pair.run(SECOND);
            prop_assert_eq!(pair.received[1 - from].len(), before + 1);
        }
    }

    /// Nothing comes that was not sent, and nothing twice, through many changes of keys.
    #[test]
    fn datagrams_come_intact_and_at_most_once(quality in qualities(), seed: u64, both: bool) {
        let mut pair = rekeying_pair(quality, seed, both);
        pair.run_until(pair.now + 28 * SECOND, Pair::is_established);
        let sent = 400_u32;
        let mut sealed = [0; 2];
        for i in 0..sent {
            for (from, sealed) in sealed.iter_mut().enumerate() {
                if pair.ends[from].is_established() {
                    pair.send(from, &i.to_be_bytes());
                    *sealed += 1;
                }
            }
            pair.run(SECOND / 8);
        }
        pair.run(SECOND);
        for (to, received) in pair.received.iter().enumerate() {
            let distinct: HashSet<_> = received.iter().collect();
            prop_assert_eq!(distinct.len(), received.len(), "one came twice");
            for payload in received {
                let number = u32::from_be_bytes(payload.as_slice().try_into().unwrap());
                prop_assert!(number < sent);
            }
            prop_assert!(received.len() <= sealed[1 - to]);
            let share = received.len() * 100 / sealed[1 - to].max(1);
            prop_assert!(share + 20 >= (100 - quality.loss) as usize, "only {}% came", share);
        }
        prop_assert!(pair.events.iter().all(|it| it.len() > 3), "keys were replaced");
    }
}
