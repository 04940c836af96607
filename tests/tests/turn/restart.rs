//! Allocations over a restart of the daemon.

use rawr_userspace::control::Count;
use stun_types::attribute::RawAttribute;
use turn_types::message::REFRESH;

use super::direct::{Direct, MOBILITY_TICKET, User, at, only};
use super::secs;

const PEER: &str = "203.0.113.5:9000";

#[test]
fn allocations_and_what_hangs_on_them_go_on() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let mut bert = User::bert("192.0.2.2:5000");
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    let answer = direct.allocate_with(&mut anna, &[&empty]);
    let relayed = answer.relayed()[0];
    let other = direct.allocate(&mut bert);
    direct.bind(&mut anna, 0x4000, at(PEER));
    direct.bind(&mut anna, 0x4001, other);
    direct.bind(&mut bert, 0x4002, relayed);
    direct.permit(&mut bert, at(PEER));
    direct.pass(secs(100));
    let (flows, open) = (direct.flows.clone(), direct.open.clone());
    assert_eq!((flows.len(), open.len()), (4, 2));

    direct.restart();
    assert_eq!((&direct.flows, &direct.open), (&flows, &open));
    assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (2, 2));
    assert_eq!(direct.count(Count::PairedChannel), 2);
    // The nonces are still good, and the tickets.
    let transaction = direct.transaction();
    let refreshed = direct.exchange(&bert, REFRESH, transaction, &[]).unwrap();
    assert_eq!(refreshed.error(), None);
    assert!(only(direct.data(other, at(PEER), b"x")).is_some());
    let ticket = answer.ticket().unwrap();
    let mut elsewhere = User::anna("203.0.113.77:1");
    let ticket = RawAttribute::new(MOBILITY_TICKET, &ticket);
    assert_eq!(direct.ask(&mut elsewhere, REFRESH, &[&ticket]).error(), None);
    // What was not refreshed ends when it would have.
    direct.pass(secs(201));
    assert!(direct.data(other, at(PEER), b"x").is_empty());
    direct.pass(secs(600));
    assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (0, 0));
    assert!(direct.flows.is_empty() && direct.open.is_empty());
}

#[test]
fn retransmitted_allocate_finds_its_allocation_after_a_restart() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    anna.nonce = Some(direct.nonce(&anna.client));
    let transport = turn_types::attribute::RequestedTransport::new(17);
    let transaction = direct.transaction();
    let method = turn_types::message::ALLOCATE;
    let first = direct.exchange(&anna, method, transaction, &[&transport]).unwrap();
    direct.restart();
    let again = direct.exchange(&anna, method, transaction, &[&transport]).unwrap();
    assert_eq!(first.relayed(), again.relayed());
    assert_eq!(direct.server.allocation_count(), 1);
}

#[test]
fn streams_and_what_has_expired_do_not_come_back() {
    let mut direct = Direct::new();
    let mut stream = User::stream(7, "192.0.2.1:5000");
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut stream);
    direct.allocate(&mut anna);
    direct.advance(secs(700));
    direct.restart();
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.server.turn_user_count(), 0);
}

#[test]
fn peers_that_are_denied_meanwhile_are_not_taken_over() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    direct.bind(&mut anna, 0x4000, at(PEER));
    let snapshot = serde_json::to_string(&direct.server.snapshot(direct.now)).unwrap();
    let mut config = direct.server.config().clone();
    config.peers.deny.push("203.0.113.5/32".parse().unwrap());
    let snapshot = serde_json::from_str(&snapshot).unwrap();
    let now = direct.now;
    direct.server =
        rawr_userspace::control::Server::restore(config, [4; 32], now, snapshot).unwrap();
    direct.open.clear();
    direct.flows.clear();
    direct.drain();
    assert_eq!((direct.flows.len(), direct.open.len()), (0, 1));
    assert!(direct.data(relayed, at(PEER), b"x").is_empty());
}
