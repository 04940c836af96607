//! Mobility (RFC 8016).

use rawr_userspace::control::{Client, Count, Source};
use stun_types::attribute::RawAttribute;
use turn_types::attribute::{Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};

use super::direct::{Answer, Direct, MOBILITY_TICKET, User, at, config, local, only};
use super::secs;

const PEER: &str = "203.0.113.5:9000";

fn mobile(direct: &mut Direct, user: &mut User) -> (std::net::SocketAddr, Vec<u8>) {
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    let answer = direct.allocate_with(user, &[&empty]);
    assert_eq!(answer.error(), None);
    (answer.relayed()[0], answer.ticket().unwrap())
}

fn come_back(direct: &mut Direct, user: &mut User, ticket: &[u8]) -> Answer {
    direct.ask(user, REFRESH, &[&RawAttribute::new(MOBILITY_TICKET, ticket)])
}

fn moved(user: &User, remote: &str) -> User {
    User { client: Client::udp(local(), at(remote)), nonce: None, ..user.clone() }
}

#[test]
fn allocation_moves_with_its_channels_and_its_ticket_is_replaced() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (relayed, ticket) = mobile(&mut direct, &mut anna);
    direct.bind(&mut anna, 0x4000, at(PEER));
    let mut elsewhere = moved(&anna, "203.0.113.77:7000");
    let answer = come_back(&mut direct, &mut elsewhere, &ticket);
    assert_eq!((answer.error(), answer.lifetime()), (None, Some(600)));
    let next = answer.ticket().unwrap();
    assert_ne!(next, ticket);
    assert_eq!(direct.count(Count::MovedAllocation), 1);

    assert_eq!(direct.flows.len(), 2);
    assert!(direct.flows.keys().any(|leg| leg.remote == elsewhere.client.remote));
    assert!(direct.flows.keys().all(|leg| leg.remote != anna.client.remote));
    let sent = only(direct.data(relayed, at(PEER), b"x")).unwrap();
    assert_eq!((sent.from, sent.to), (Source::Control(local()), elsewhere.client.remote));
    // Where it was, it is no more.
    assert_eq!(direct.refresh(&mut anna, 600).error(), Some(437));
    assert!(direct.channel(&anna, 0x4000, b"x").is_empty());
    assert_eq!(direct.server.allocation_count(), 1);
}

#[test]
fn ticket_that_was_replaced_is_good_for_a_retransmission_only() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (_, ticket) = mobile(&mut direct, &mut anna);
    let mut elsewhere = moved(&anna, "203.0.113.77:7000");
    let first = come_back(&mut direct, &mut elsewhere, &ticket).ticket();
    let again = come_back(&mut direct, &mut elsewhere, &ticket).ticket();
    assert_eq!(first, again);
    direct.pass(secs(31));
    assert_eq!(come_back(&mut direct, &mut elsewhere, &ticket).error(), Some(400));
    assert_eq!(come_back(&mut direct, &mut elsewhere, &first.unwrap()).error(), None);
}

#[test]
fn ticket_is_good_for_its_owner_alone() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (relayed, ticket) = mobile(&mut direct, &mut anna);
    let mut bert = User::bert("203.0.113.77:7000");
    assert_eq!(come_back(&mut direct, &mut bert, &ticket).error(), Some(441));
    for forged in [&ticket[1..], &[], &[0; 28], &[ticket.clone(), vec![0]].concat()] {
        let mut elsewhere = moved(&anna, "203.0.113.78:7000");
        let answer = come_back(&mut direct, &mut elsewhere, forged);
        assert!(matches!(answer.error(), Some(400 | 437)), "{:?}", answer.error());
    }
    direct.permit(&mut anna, at(PEER));
    let sent = only(direct.data(relayed, at(PEER), b"x")).unwrap();
    assert_eq!(sent.to, anna.client.remote);
    assert_eq!(direct.count(Count::MovedAllocation), 0);
}

#[test]
fn ticket_ends_with_its_allocation() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (_, ticket) = mobile(&mut direct, &mut anna);
    direct.pass(secs(600));
    assert_eq!(come_back(&mut direct, &mut anna, &ticket).error(), Some(437));
    // Whoever has its place now is not taken for it.
    let mut bert = User::bert("192.0.2.2:5000");
    mobile(&mut direct, &mut bert);
    assert_eq!(come_back(&mut direct, &mut anna, &ticket).error(), Some(400));
}

#[test]
fn five_tuple_that_has_an_allocation_takes_no_other() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (_, ticket) = mobile(&mut direct, &mut anna);
    let mut second = User::anna("192.0.2.1:5001");
    direct.allocate(&mut second);
    assert_eq!(come_back(&mut direct, &mut second, &ticket).error(), Some(437));
    assert_eq!(direct.server.allocation_count(), 2);
}

#[test]
fn stream_may_be_lost_and_its_allocation_found_again() {
    let mut direct = Direct::new();
    let mut anna = User::stream(7, "192.0.2.1:5000");
    let (relayed, ticket) = mobile(&mut direct, &mut anna);
    direct.bind(&mut anna, 0x4000, at(PEER));
    direct.server.connection_gone(direct.now, anna.client.connection().unwrap());
    direct.drain();
    assert_eq!(direct.server.allocation_count(), 1);
    let mut elsewhere = moved(&anna, "203.0.113.77:7000");
    assert_eq!(come_back(&mut direct, &mut elsewhere, &ticket).error(), None);
    // Over UDP the data plane can do it.
    assert_eq!(direct.flows.len(), 2);
    let sent = only(direct.data(relayed, at(PEER), b"x")).unwrap();
    assert_eq!(sent.to, elsewhere.client.remote);
    // And what the old stream's end says later is no concern of it.
    direct.server.connection_gone(direct.now, anna.client.connection().unwrap());
    assert_eq!(direct.server.allocation_count(), 1);
}

#[test]
fn where_it_is_not_offered_it_is_405() {
    let mut config = config();
    config.turn.mobility = false;
    let mut direct = Direct::with(config);
    let mut anna = User::anna("192.0.2.1:5000");
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    assert_eq!(direct.allocate_with(&mut anna, &[&empty]).error(), Some(405));
    direct.allocate(&mut anna);
    assert_eq!(come_back(&mut direct, &mut anna, &[0; 28]).error(), Some(405));
    let mut direct = Direct::new();
    let mut stream = User::stream(7, "192.0.2.1:5000");
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    assert_eq!(direct.ask(&mut stream, ALLOCATE, &[&tcp, &empty]).error(), Some(405));
}

#[test]
fn moved_allocation_can_be_ended_from_where_it_is() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (_, ticket) = mobile(&mut direct, &mut anna);
    let mut elsewhere = moved(&anna, "203.0.113.77:7000");
    let ticket = RawAttribute::new(MOBILITY_TICKET, &ticket);
    let answer = direct.ask(&mut elsewhere, REFRESH, &[&Lifetime::new(0), &ticket]);
    assert_eq!((answer.error(), answer.lifetime(), answer.ticket()), (None, Some(0), None));
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.server.turn_user_count(), 0);
}
