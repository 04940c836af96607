//! Refresh (RFC 8656 §8).

use rawr_userspace::control::Count;
use stun_types::AddressFamily;
use turn_types::attribute::{AdditionalAddressFamily, Lifetime, RequestedAddressFamily};
use turn_types::message::REFRESH;

use super::direct::{Direct, User, at};
use super::secs;

#[test]
fn refresh_keeps_it_and_says_for_how_long() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    for _ in 0..20 {
        direct.pass(secs(500));
        let answer = direct.refresh(&mut anna, 700);
        assert_eq!((answer.error(), answer.lifetime()), (None, Some(700)));
    }
    let answer = direct.ask(&mut anna, REFRESH, &[]);
    assert_eq!(answer.lifetime(), Some(600));
    direct.pass(secs(599));
    assert_eq!(direct.server.allocation_count(), 1);
    direct.pass(secs(2));
    assert_eq!(direct.server.allocation_count(), 0);
}

#[test]
fn lifetime_zero_ends_it_at_once() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    let answer = direct.refresh(&mut anna, 0);
    assert_eq!((answer.error(), answer.lifetime()), (None, Some(0)));
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.server.turn_user_count(), 0);
    // The client takes 437 for a success that was lost (RFC 8656 §8.1).
    assert_eq!(direct.refresh(&mut anna, 0).error(), Some(437));
    assert_eq!(direct.refresh(&mut anna, 600).error(), Some(437));
    assert_eq!(direct.count(Count::TurnMismatch), 2);
}

#[test]
fn other_users_are_441() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    let mut bert = User::bert("192.0.2.1:5000");
    assert_eq!(direct.refresh(&mut bert, 0).error(), Some(441));
    assert_eq!(direct.permit(&mut bert, at("203.0.113.5:1")), Some(441));
    assert_eq!(direct.bind(&mut bert, 0x4000, at("203.0.113.5:1")), Some(441));
    assert_eq!(direct.server.allocation_count(), 1);
    assert_eq!(direct.count(Count::WrongUser), 3);
}

#[test]
fn families_are_refreshed_by_themselves() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let v6 = AdditionalAddressFamily::new(AddressFamily::IPV6);
    direct.allocate_with(&mut anna, &[&v6]);
    let only_v6 = RequestedAddressFamily::new(AddressFamily::IPV6);
    let answer = direct.ask(&mut anna, REFRESH, &[&Lifetime::new(1_200), &only_v6]);
    assert_eq!(answer.lifetime(), Some(1_200));
    direct.pass(secs(601));
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!(view.relayed.len(), 1);
    assert!(view.relayed[0].is_ipv6());
    let only_v4 = RequestedAddressFamily::new(AddressFamily::IPV4);
    assert_eq!(direct.ask(&mut anna, REFRESH, &[&only_v4]).error(), Some(443));
    let answer = direct.ask(&mut anna, REFRESH, &[&Lifetime::new(0), &only_v6]);
    assert_eq!(answer.error(), None);
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
}

#[test]
fn one_family_can_be_let_go() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let v6 = AdditionalAddressFamily::new(AddressFamily::IPV6);
    direct.allocate_with(&mut anna, &[&v6]);
    direct.permit(&mut anna, at("203.0.113.5:1"));
    direct.permit(&mut anna, at("[2001:db8:2::5]:1"));
    let only_v4 = RequestedAddressFamily::new(AddressFamily::IPV4);
    assert_eq!(direct.ask(&mut anna, REFRESH, &[&Lifetime::new(0), &only_v4]).error(), None);
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!((view.relayed.len(), view.permissions), (1, 1));
    assert_eq!(direct.permit(&mut anna, at("203.0.113.5:1")), Some(443));
}

#[test]
fn stale_nonce_is_438_and_the_new_one_does() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    direct.refresh(&mut anna, 3_600);
    direct.pass(rawr_nonce_lifetime());
    let transaction = direct.transaction();
    let answer = direct.exchange(&anna, REFRESH, transaction, &[]).unwrap();
    assert_eq!(answer.error(), Some(438));
    anna.nonce = answer.nonce();
    let transaction = direct.transaction();
    let answer = direct.exchange(&anna, REFRESH, transaction, &[]).unwrap();
    assert_eq!(answer.error(), None);
}

fn rawr_nonce_lifetime() -> std::time::Duration {
    secs(rawr_proto::NONCE_LIFETIME + 1)
}

#[test]
fn wrong_password_is_401_and_changes_nothing() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    let mut guess = User { password: "guess".to_owned(), ..anna.clone() };
    assert_eq!(direct.refresh(&mut guess, 0).error(), Some(401));
    assert_eq!(direct.server.allocation_count(), 1);
}
