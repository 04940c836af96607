//! Who holds a name, for how long, and what others are told of it.

use rawr_proto::{Attributes, ErrorCode, Method};
use rawr_userspace::control::{Client, ConnectionId, Count, Over};

use super::direct::{Direct, at, local, named, registration, result};
use super::{identity, root, secs};

const HERE: &str = "192.0.2.10:5000";
const THERE: &str = "203.0.113.20:6000";

#[test]
fn a_name_is_found_until_its_lifetime_is_over() {
    let mut direct = Direct::new(root());
    let (holder, other) = (identity(1), identity(2));
    assert_eq!(direct.look_up(THERE, &other, "alice"), Err(ErrorCode::UnknownName));
    assert_eq!(direct.register_with(HERE, &holder, "alice", 1, Some(600)), Ok(secs(600)));
    let found = (holder.public(), "192.0.2.10".to_owned(), 600);
    assert_eq!(direct.look_up(THERE, &other, "alice"), Ok(found));
    direct.pass(secs(599));
    assert!(direct.look_up(THERE, &other, "alice").is_ok());
    direct.pass(secs(2));
    assert_eq!(direct.look_up(THERE, &other, "alice"), Err(ErrorCode::UnknownName));
    assert_eq!(direct.server.counters().get(Count::ExpiredName), 1);
    assert_eq!((direct.server.name_count(), direct.server.poll_timeout()), (0, None));
}

#[test]
fn lifetimes_are_the_operators_to_bound() {
    let mut config = root();
    config.bridge.default_lifetime = secs(100);
    config.bridge.max_lifetime = secs(200);
    let mut direct = Direct::new(config);
    let holder = identity(1);
    assert_eq!(direct.register(HERE, &holder, "a"), Ok(secs(100)));
    assert_eq!(direct.register_with(HERE, &holder, "a", 1, Some(u32::MAX)), Ok(secs(200)));
    assert_eq!(direct.register_with(HERE, &holder, "a", 1, Some(5)), Ok(secs(5)));
    // The alarm moves with a lifetime that has become shorter.
    direct.pass(secs(6));
    assert_eq!(direct.server.name_count(), 0);
}

#[test]
fn somebody_elses_name_is_refused_and_becomes_free() {
    let mut direct = Direct::new(root());
    let (holder, other) = (identity(1), identity(2));
    direct.register_with(HERE, &holder, "alice", 1, Some(60)).unwrap();
    for lifetime in [None, Some(60), Some(0)] {
        let refused = direct.register_with(HERE, &other, "alice", 9, lifetime);
        assert_eq!(refused, Err(ErrorCode::NameTaken));
    }
    assert_eq!(direct.look_up(HERE, &other, "alice").unwrap().0, holder.public());
    assert_eq!(direct.server.counters().get(Count::NameTaken), 3);
    direct.pass(secs(61));
    assert!(direct.register(HERE, &other, "alice").is_ok());
    assert_eq!(direct.look_up(HERE, &holder, "alice").unwrap().0, other.public());
}

#[test]
fn the_holder_refreshes_moves_and_gives_up() {
    let mut direct = Direct::new(root());
    let holder = identity(1);
    direct.register_with(HERE, &holder, "alice", 1, Some(60)).unwrap();
    for _ in 0..5 {
        direct.pass(secs(50));
        direct.register_with(HERE, &holder, "alice", 1, Some(60)).unwrap();
    }
    direct.register_with(THERE, &holder, "alice", 1, Some(60)).unwrap();
    assert_eq!(direct.look_up(HERE, &identity(2), "alice").unwrap().1, "203.0.113.20");
    assert_eq!(direct.register_with(THERE, &holder, "alice", 1, Some(0)), Ok(secs(0)));
    assert_eq!(direct.look_up(HERE, &holder, "alice"), Err(ErrorCode::UnknownName));
    // What is given up twice, as by a retransmission, is given up.
    assert_eq!(direct.register_with(THERE, &holder, "alice", 1, Some(0)), Ok(secs(0)));
    assert_eq!((direct.server.name_count(), direct.server.poll_timeout()), (0, None));
}

#[test]
fn the_newest_run_of_a_holder_has_the_name() {
    let mut direct = Direct::new(root());
    let holder = identity(1);
    direct.register_with(HERE, &holder, "alice", 5, None).unwrap();
    let older = direct.register_with(THERE, &holder, "alice", 4, None);
    assert_eq!(older, Err(ErrorCode::RoleTaken));
    assert_eq!(direct.look_up(HERE, &holder, "alice").unwrap().1, "192.0.2.10");
    direct.register_with(THERE, &holder, "alice", 6, None).unwrap();
    assert_eq!(direct.look_up(HERE, &holder, "alice").unwrap().1, "203.0.113.20");
}

#[test]
fn one_name_in_all_its_spellings() {
    let mut direct = Direct::new(root());
    let (holder, other) = (identity(1), identity(2));
    direct.register(HERE, &holder, "Büro").unwrap();
    for text in ["büro", "BU\u{308}RO"] {
        assert!(direct.look_up(THERE, &other, text).is_ok(), "{text}");
        assert_eq!(direct.register(THERE, &other, text), Err(ErrorCode::NameTaken));
    }
}

#[test]
fn both_families_hold_names() {
    let mut direct = Direct::new(root());
    direct.register("[2001:db8::7]:5000", &identity(1), "six").unwrap();
    assert_eq!(direct.look_up(HERE, &identity(2), "six").unwrap().1, "2001:db8::7");
}

#[test]
fn requests_that_lack_something_are_bad() {
    let mut direct = Direct::new(root());
    let who = identity(1);
    let complete = registration("a", 1, None);
    let nameless = Attributes { bridge: Default::default(), ..complete.clone() };
    let timeless = Attributes { epoch: None, ..complete };
    let mut empty_handed = named("a");
    empty_handed.bridge.sealed = Some(vec![1]);
    for (method, attributes) in [
        (Method::Register, nameless),
        (Method::Register, timeless),
        (Method::Lookup, Attributes::default()),
        (Method::Introduce, named("a")),
        (Method::Introduce, empty_handed),
    ] {
        let refused = direct.ask(HERE, &who, method, attributes);
        assert_eq!(refused, Err(ErrorCode::BadRequest), "{method:?}");
    }
    assert_eq!(direct.server.name_count(), 0);
}

#[test]
fn where_it_is_not_offered_nobody_is_served() {
    let mut config = root();
    config.bridge.enabled = false;
    let mut direct = Direct::new(config);
    let client = Client::udp(local(), at(HERE));
    let challenge = direct.challenge(&client, Method::Register);
    assert_eq!(challenge.bridge.server_key, None);
    let attributes = Attributes { nonce: challenge.nonce, ..registration("a", 1, None) };
    let message = direct.message(Method::Register, attributes);
    let sent = direct.control(&client, &message.encode(None));
    let answer = rawr_proto::decode(&sent[0].bytes).unwrap().message;
    assert_eq!(result(answer), Err(ErrorCode::Forbidden));
}

#[test]
fn a_holder_over_a_stream_is_found_but_not_reached_once_that_has_ended() {
    let mut direct = Direct::new(root());
    let (holder, other) = (identity(1), identity(2));
    let connection = ConnectionId(7);
    let client = Client { over: Over::Tls(connection), ..Client::udp(local(), at(HERE)) };
    let attributes = registration("alice", 1, None);
    let answer = direct.ask_as(&client, &holder, None, Method::Register, attributes).unwrap();
    assert!(result(answer).is_ok());
    assert_eq!(direct.introduce(THERE, &other, "alice", 1, b"x"), Ok(None));
    let (sent, _) = direct.indication(&holder);
    assert_eq!(sent.from, rawr_userspace::control::Source::Connection(connection));
    direct.server.connection_gone(direct.now, connection);
    assert!(direct.look_up(THERE, &other, "alice").is_ok());
    let unreachable = direct.introduce(THERE, &other, "alice", 2, b"x");
    assert_eq!(unreachable, Err(ErrorCode::HolderUnreachable));
    direct.register(HERE, &holder, "alice").unwrap();
    assert_eq!(direct.introduce(THERE, &other, "alice", 3, b"x"), Ok(None));
    // The stream that is gone is not the way any more.
    direct.server.connection_gone(direct.now, connection);
    assert_eq!(direct.introduce(THERE, &other, "alice", 4, b"x"), Ok(None));
}
