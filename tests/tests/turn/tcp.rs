//! TCP allocations (RFC 6062).

use std::net::SocketAddr;

use rawr_userspace::control::{Command, ConnectError, ConnectionId, Count, TurnLimits};
use stun_types::AddressFamily;
use stun_types::message::MessageClass;
use turn_types::attribute::{
    ConnectionId as IdAttribute, DontFragment, EvenPort, RequestedAddressFamily,
    RequestedTransport, ReservationToken, XorPeerAddress,
};
use turn_types::message::{ALLOCATE, CONNECT, CONNECTION_ATTEMPT, CONNECTION_BIND, REFRESH};

use super::direct::{Answer, Direct, User, at, config, only};
use super::secs;

const PEER: &str = "203.0.113.5:9000";

/// A control connection with a TCP allocation.
fn allocated(direct: &mut Direct) -> (User, SocketAddr) {
    let mut anna = User::stream(1, "192.0.2.1:5000");
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    let answer = direct.ask(&mut anna, ALLOCATE, &[&tcp]);
    assert_eq!(answer.error(), None);
    let relayed = answer.relayed()[0];
    (anna, relayed)
}

/// Asks for a connection; the answer follows when the peer has been reached, or not at all.
fn connect(direct: &mut Direct, user: &mut User, peer: SocketAddr) -> Option<u16> {
    let peer = direct.peer(user, peer);
    direct.try_ask(user, CONNECT, &[&peer]).map(|answer| answer.error().unwrap())
}

/// What comes when the shell has tried.
fn connected(direct: &mut Direct, result: Result<ConnectionId, ConnectError>) -> Answer {
    let (attempt, _, _) = direct.attempts.remove(0);
    direct.server.peer_connected(direct.now, attempt, result);
    Answer(only(direct.drain()).unwrap().bytes)
}

fn bind(direct: &mut Direct, user: &mut User, id: u32) -> Option<u16> {
    direct.ask(user, CONNECTION_BIND, &[&IdAttribute::new(id)]).error()
}

#[test]
fn client_reaches_a_peer_and_their_streams_become_one() {
    let mut direct = Direct::new();
    let (mut anna, relayed) = allocated(&mut direct);
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), None);
    assert_eq!(direct.attempts.len(), 1);
    assert_eq!((direct.attempts[0].1, direct.attempts[0].2), (relayed, at(PEER)));
    let answer = connected(&mut direct, Ok(ConnectionId(50)));
    assert_eq!((answer.error(), answer.message().method()), (None, CONNECT));
    let id = answer.connection().unwrap();

    let mut data = User::stream(2, "192.0.2.1:5001");
    assert_eq!(bind(&mut direct, &mut data, id), None);
    let splice = Command::Splice { client: ConnectionId(2), peer: ConnectionId(50) };
    assert_eq!(direct.commands, [splice]);
    assert_eq!(direct.server.allocations(direct.now).next().unwrap().connections, 1);
    // It lasts as long as it likes, and its end is the end of both.
    direct.pass(secs(300));
    assert_eq!(direct.server.allocations(direct.now).next().unwrap().connections, 1);
    direct.server.connection_gone(direct.now, ConnectionId(2));
    assert_eq!(direct.server.allocations(direct.now).next().unwrap().connections, 0);
    assert_eq!(direct.server.allocation_count(), 1);
    // Then the peer can be connected to again.
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), None);
}

#[test]
fn permitted_peer_reaches_the_client() {
    let mut direct = Direct::new();
    let (mut anna, relayed) = allocated(&mut direct);
    direct.server.peer_accepted(direct.now, relayed, at(PEER), ConnectionId(50));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(50))]);
    assert_eq!(direct.count(Count::NoPermission), 1);
    direct.commands.clear();

    assert_eq!(direct.permit(&mut anna, at(PEER)), None);
    direct.server.peer_accepted(direct.now, relayed, at(PEER), ConnectionId(51));
    let sent = only(direct.drain()).unwrap();
    assert_eq!(sent.from, anna.source());
    let told = Answer(sent.bytes);
    let message = told.message();
    assert_eq!((message.class(), message.method()), (MessageClass::Indication, CONNECTION_ATTEMPT));
    let peer = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
    assert_eq!(peer, at(PEER));
    let mut data = User::stream(2, "192.0.2.1:5001");
    assert_eq!(bind(&mut direct, &mut data, told.connection().unwrap()), None);
    let splice = Command::Splice { client: ConnectionId(2), peer: ConnectionId(51) };
    assert_eq!(direct.commands, [splice]);
    // Another from the same address is one too many.
    direct.commands.clear();
    direct.server.peer_accepted(direct.now, relayed, at(PEER), ConnectionId(52));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(52))]);
}

#[test]
fn second_connect_to_a_peer_is_446() {
    let mut direct = Direct::new();
    let (mut anna, _) = allocated(&mut direct);
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), None);
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), Some(446));
    connected(&mut direct, Ok(ConnectionId(50)));
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), Some(446));
    assert_eq!(connect(&mut direct, &mut anna, at("203.0.113.5:9001")), None);
    let answer = connected(&mut direct, Err(ConnectError::Exists));
    assert_eq!(answer.error(), Some(446));
}

#[test]
fn peer_that_connects_while_it_is_connected_to_has_the_connection() {
    let mut direct = Direct::new();
    let (mut anna, relayed) = allocated(&mut direct);
    assert_eq!(connect(&mut direct, &mut anna, at(PEER)), None);
    // Without a permission it changes nothing.
    direct.server.peer_accepted(direct.now, relayed, at(PEER), ConnectionId(50));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(50))]);
    direct.commands.clear();

    assert_eq!(direct.permit(&mut anna, at(PEER)), None);
    direct.server.peer_accepted(direct.now, relayed, at(PEER), ConnectionId(51));
    let sent = direct.drain().into_iter().map(|sent| Answer(sent.bytes)).collect::<Vec<_>>();
    let [refused, told] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((refused.error(), refused.message().method()), (Some(446), CONNECT));
    assert_eq!(told.message().method(), CONNECTION_ATTEMPT);
    // That two addresses have one connection is what the stack has found, too.
    let (attempt, _, _) = direct.attempts.remove(0);
    direct.server.peer_connected(direct.now, attempt, Err(ConnectError::Exists));
    assert!(direct.drain().is_empty());
    assert!(direct.commands.is_empty(), "{:?}", direct.commands);
    let mut data = User::stream(2, "192.0.2.1:5001");
    assert_eq!(bind(&mut direct, &mut data, told.connection().unwrap()), None);
    let splice = Command::Splice { client: ConnectionId(2), peer: ConnectionId(51) };
    assert_eq!(direct.commands, [splice]);
}

#[test]
fn data_connection_may_show_the_nonce_of_its_control_connection() {
    let mut direct = Direct::new();
    let (mut anna, _) = allocated(&mut direct);
    connect(&mut direct, &mut anna, at(PEER));
    let id = connected(&mut direct, Ok(ConnectionId(50))).connection().unwrap();
    let with_nonce = |remote| User { nonce: anna.nonce.clone(), ..User::stream(2, remote) };
    let (data, elsewhere) = (with_nonce("192.0.2.1:5001"), with_nonce("192.0.2.9:5001"));
    let mut error = |user: &User, method, id| {
        let transaction = direct.transaction();
        let answer = direct.exchange(user, method, transaction, &[&IdAttribute::new(id)]);
        answer.unwrap().error()
    };
    assert_eq!(error(&elsewhere, CONNECTION_BIND, id), Some(438));
    assert_eq!(error(&data, CONNECTION_BIND, id.wrapping_add(1)), Some(438));
    assert_eq!(error(&data, REFRESH, id), Some(438));
    assert_eq!(error(&data, CONNECTION_BIND, id), None);
    // What the client has is still good where it got it.
    let transaction = direct.transaction();
    let answer = direct.exchange(&anna, REFRESH, transaction, &[]).unwrap();
    assert_eq!(answer.error(), None);
}

#[test]
fn peer_that_refuses_is_447_and_so_is_one_that_is_silent() {
    let mut direct = Direct::new();
    let (mut anna, _) = allocated(&mut direct);
    connect(&mut direct, &mut anna, at(PEER));
    assert_eq!(connected(&mut direct, Err(ConnectError::Failed)).error(), Some(447));

    connect(&mut direct, &mut anna, at(PEER));
    assert!(direct.pass(secs(29)).is_empty());
    let sent = only(direct.pass(secs(1))).unwrap();
    assert_eq!(Answer(sent.bytes).error(), Some(447));
    // If it comes about after all, nobody wants it.
    let (attempt, _, _) = direct.attempts.remove(0);
    direct.server.peer_connected(direct.now, attempt, Ok(ConnectionId(50)));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(50))]);
}

#[test]
fn connection_that_is_not_bound_for_thirty_seconds_is_closed() {
    let mut direct = Direct::new();
    let (mut anna, _) = allocated(&mut direct);
    connect(&mut direct, &mut anna, at(PEER));
    let id = connected(&mut direct, Ok(ConnectionId(50))).connection().unwrap();
    direct.pass(secs(30));
    assert_eq!(direct.commands, [Command::Close(ConnectionId(50))]);
    assert_eq!(direct.count(Count::ExpiredConnection), 1);
    let mut data = User::stream(2, "192.0.2.1:5001");
    assert_eq!(bind(&mut direct, &mut data, id), Some(400));
}

#[test]
fn connections_are_bound_once_by_their_user_over_a_stream_of_its_own() {
    let mut direct = Direct::new();
    let (mut anna, _) = allocated(&mut direct);
    connect(&mut direct, &mut anna, at(PEER));
    let id = connected(&mut direct, Ok(ConnectionId(50))).connection().unwrap();
    assert_eq!(bind(&mut direct, &mut anna, id), Some(400));
    assert_eq!(bind(&mut direct, &mut User::anna("192.0.2.1:5001"), id), Some(400));
    let mut bert = User {
        name: "bert".into(),
        password: "bert's secret".into(),
        ..User::stream(3, "192.0.2.2:1")
    };
    assert_eq!(bind(&mut direct, &mut bert, id), Some(441));
    let mut data = User::stream(2, "192.0.2.1:5001");
    assert_eq!(bind(&mut direct, &mut data, id.wrapping_add(1)), Some(400));
    assert_eq!(direct.ask(&mut data, CONNECTION_BIND, &[]).error(), Some(400));
    assert_eq!(bind(&mut direct, &mut data, id), None);
    let mut again = User::stream(4, "192.0.2.1:5002");
    assert_eq!(bind(&mut direct, &mut again, id), Some(400));
    // A bound stream carries data; it makes no allocation.
    assert_eq!(direct.allocate_with(&mut data, &[]).error(), Some(437));
}

#[test]
fn connect_needs_a_tcp_allocation_and_an_allowed_peer() {
    let mut direct = Direct::new();
    let mut stream = User::stream(9, "192.0.2.1:4999");
    assert_eq!(connect(&mut direct, &mut stream, at(PEER)), Some(437));
    direct.allocate(&mut stream);
    assert_eq!(connect(&mut direct, &mut stream, at(PEER)), Some(437));
    let (mut anna, relayed) = allocated(&mut direct);
    assert_eq!(direct.ask(&mut anna, CONNECT, &[]).error(), Some(400));
    for denied in ["127.0.0.1:80", "10.1.2.3:80", "169.254.169.254:80", "203.0.113.5:0"] {
        assert_eq!(connect(&mut direct, &mut anna, at(denied)), Some(403), "{denied}");
    }
    assert_eq!(connect(&mut direct, &mut anna, at("[2001:db8:2::5]:80")), Some(443));
    // On the server itself there is nothing but relayed transport addresses.
    assert_eq!(connect(&mut direct, &mut anna, SocketAddr::new(relayed.ip(), 22)), Some(403));
    assert!(direct.attempts.is_empty());
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), Some(400));
    assert!(direct.send(&anna, at(PEER), b"x").is_empty());
}

#[test]
fn connections_of_an_allocation_are_bounded_by_508() {
    let mut config = config();
    config.turn.limits = TurnLimits { connections_per_allocation: 2, ..TurnLimits::default() };
    let mut direct = Direct::with(config);
    let (mut anna, relayed) = allocated(&mut direct);
    direct.permit(&mut anna, at(PEER));
    assert_eq!(connect(&mut direct, &mut anna, at("203.0.113.5:1")), None);
    direct.server.peer_accepted(direct.now, relayed, at("203.0.113.5:2"), ConnectionId(50));
    assert_eq!(direct.drain().len(), 1);
    assert_eq!(connect(&mut direct, &mut anna, at("203.0.113.5:3")), Some(508));
    direct.server.peer_accepted(direct.now, relayed, at("203.0.113.5:4"), ConnectionId(51));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(51))]);
}

#[test]
fn everything_goes_with_the_control_connection() {
    let mut direct = Direct::new();
    let (mut anna, relayed) = allocated(&mut direct);
    direct.permit(&mut anna, at(PEER));
    connect(&mut direct, &mut anna, at("203.0.113.5:1"));
    direct.server.peer_accepted(direct.now, relayed, at("203.0.113.5:2"), ConnectionId(50));
    direct.drain();
    direct.server.connection_gone(direct.now, ConnectionId(1));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(50))]);
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    direct.commands.clear();
    let (attempt, _, _) = direct.attempts.remove(0);
    direct.server.peer_connected(direct.now, attempt, Ok(ConnectionId(51)));
    assert!(direct.drain().is_empty());
    assert_eq!(direct.commands, [Command::Close(ConnectionId(51))]);
}

#[test]
fn what_only_datagrams_have_is_400() {
    let mut direct = Direct::new();
    let mut anna = User::stream(1, "192.0.2.1:5000");
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    let (even, token) = (EvenPort::new(false), ReservationToken::new(1));
    let fragment = DontFragment::new();
    let wrong: [&dyn stun_types::attribute::AttributeWrite; 3] = [&even, &token, &fragment];
    for attribute in wrong {
        assert_eq!(direct.ask(&mut anna, ALLOCATE, &[&tcp, attribute]).error(), Some(400));
    }
    let v6 = RequestedAddressFamily::new(AddressFamily::IPV6);
    let answer = direct.ask(&mut anna, ALLOCATE, &[&tcp, &v6]);
    assert!(answer.relayed()[0].is_ipv6());
}
