//! Who is refused, and how.

use std::net::SocketAddr;

use rawr_proto::{
    Attributes, Class, Credentials, ErrorCode, IntegrityKey, LegState, LongTermKey,
    MIN_FIRST_REQUEST, Message, Method, Role, ServerId, SessionSecret, WireKey, decode,
    ephemeral_password, ephemeral_username,
};
use rawr_userspace::control::{Command, Count, Kind, ServerConfig};
use rawr_userspace::dataplane::FlowKey;

use super::direct::{Direct, refingerprint, subject};
use super::net::secs;
use super::{gateway, root, secret};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn a() -> SocketAddr {
    at("192.0.2.10:5000")
}

fn b() -> SocketAddr {
    at("203.0.113.10:5000")
}

fn stranger() -> SocketAddr {
    at("198.18.0.66:5000")
}

fn key(secret: &SessionSecret) -> IntegrityKey {
    IntegrityKey::session(&secret.key())
}

/// A Connect in full, but for the nonce.
fn connect(secret: &SessionSecret, role: Role, epoch: u64) -> Attributes {
    let session_key = Some(WireKey::from(&secret.key()));
    Attributes { session_key, ..subject(secret, role, epoch) }
}

fn error_of(answer: Option<Message>) -> Option<ErrorCode> {
    answer.and_then(|answer| answer.attributes.error)
}

#[test]
fn bad_request_400() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    for attributes in [
        Attributes { session: None, ..connect(&secret, Role::A, 1) },
        Attributes { role: None, ..connect(&secret, Role::A, 1) },
        Attributes { epoch: None, ..connect(&secret, Role::A, 1) },
        Attributes { session_key: None, ..connect(&secret, Role::A, 1) },
    ] {
        for method in [Method::Connect, Method::Exchange] {
            let answer = direct.ask(a(), method, attributes.clone(), &key(&secret));
            assert_eq!(error_of(answer), Some(ErrorCode::BadRequest));
        }
    }
    let answer = direct.ask(a(), Method::Probe, subject(&secret, Role::A, 1), &key(&secret));
    assert_eq!(error_of(answer), Some(ErrorCode::BadRequest));
    assert_eq!(direct.server.counters().get(Count::BadRequest), 9);

    // ROLE 7, in a message that is well-formed otherwise.
    let mut bytes = direct.message(Method::Connect, connect(&secret, Role::B, 1)).encode(None);
    let role = bytes.windows(4).position(|it| it == [0x4e, 0x02, 0, 4]).unwrap();
    bytes[role + 4] = 7;
    refingerprint(&mut bytes);
    let sent = direct.control(a(), &bytes);
    let answer = decode(&sent[0].1).unwrap().message;
    assert_eq!(answer.attributes.error, Some(ErrorCode::BadRequest));
    assert_eq!(direct.server.session_count(), 0);
}

#[test]
fn unauthenticated_401() {
    let mut direct = Direct::new(root(1));
    let wrong = key(&secret(2));
    let answer = direct.ask(a(), Method::Connect, connect(&secret(1), Role::A, 1), &wrong);
    let answer = answer.unwrap().attributes;
    assert_eq!(answer.error, Some(ErrorCode::Unauthenticated));
    assert!(answer.nonce.is_some() && answer.realm.is_none());

    direct.connect(a(), &secret(1), Role::A, 1).unwrap();
    for method in [Method::Refresh, Method::Release] {
        let answer = direct.ask(stranger(), method, subject(&secret(1), Role::A, 1), &wrong);
        assert_eq!(error_of(answer), Some(ErrorCode::Unauthenticated));
    }
    assert_eq!(direct.server.counters().get(Count::WrongIntegrity), 3);
    assert_eq!(direct.server.session_count(), 1);
}

#[test]
fn forbidden_403() {
    let mut closed = Direct::new(ServerConfig::new(Kind::Root, ServerId([1; 8])));
    assert_eq!(closed.connect(a(), &secret(1), Role::A, 1), Err(ErrorCode::Forbidden));

    let mut direct = Direct::new(gateway(1, &[]));
    for root in [
        "127.0.0.1:3478",
        "0.0.0.0:3478",
        "224.0.0.1:3478",
        "[::1]:3478",
        "[ff02::1]:1",
        "255.255.255.255:3478",
        "192.0.2.1:0",
        "[::ffff:127.0.0.1]:3478",
    ] {
        let attributes = Attributes { root: Some(at(root)), ..subject(&secret(1), Role::A, 1) };
        let result = direct.connect_with(a(), &secret(1), attributes);
        assert_eq!(result, Err(ErrorCode::Forbidden), "{root}");
    }
    // Who is on this host may name a root on this host.
    let local = Attributes { root: Some(at("127.0.0.2:3478")), ..subject(&secret(1), Role::A, 1) };
    assert!(direct.connect_with(at("127.0.0.1:5000"), &secret(1), local).is_ok());
}

#[test]
fn unknown_attribute_420() {
    let mut direct = Direct::new(root(1));
    let nonce = direct.nonce(a());
    let message = direct.message(
        Method::Connect,
        Attributes { nonce: Some(nonce), ..connect(&secret(1), Role::A, 1) },
    );
    let mut bytes = message.encode(None);
    let end = bytes.len() - 8;
    bytes.truncate(end);
    bytes.extend([0x4e, 0x7f, 0, 4, 1, 2, 3, 4, 0x80, 0x28, 0, 4, 0, 0, 0, 0]);
    let length = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    refingerprint(&mut bytes);
    let sent = direct.control(a(), &bytes);
    let answer = decode(&sent[0].1).unwrap().message.attributes;
    assert_eq!(answer.error, Some(ErrorCode::UnknownAttribute));
    assert_eq!(answer.unknown, [0x4e7f]);
}

#[test]
fn unknown_session_437() {
    let mut direct = Direct::new(root(1));
    let (one, two) = (secret(1), secret(2));
    direct.connect(a(), &one, Role::A, 5).unwrap();
    for method in [Method::Refresh, Method::Release] {
        let mut tell = |from, secret, role, epoch| direct.tell(from, method, secret, role, epoch);
        assert_eq!(tell(a(), &two, Role::A, 5), Err(ErrorCode::UnknownSession));
        assert_eq!(tell(a(), &one, Role::B, 5), Err(ErrorCode::UnknownSession));
        assert_eq!(tell(a(), &one, Role::A, 4), Err(ErrorCode::UnknownSession));
        // Another server that stood for this leg before.
        assert_eq!(tell(b(), &one, Role::A, 5), Err(ErrorCode::UnknownSession));
    }
    assert_eq!(direct.tell(a(), Method::Refresh, &one, Role::A, 5), Ok(()));
    assert_eq!(direct.tell(at("192.0.2.10:7"), Method::Release, &one, Role::A, 5), Ok(()));
    assert_eq!(direct.tell(a(), Method::Refresh, &one, Role::A, 5), Err(ErrorCode::UnknownSession));
    assert_eq!((direct.server.session_count(), direct.open), (0, 0));
}

#[test]
fn stale_nonce_438() {
    let mut direct = Direct::new(root(1));
    let nonce = direct.nonce(a());
    let attributes = Attributes { nonce: Some(nonce), ..connect(&secret(1), Role::A, 1) };
    // Somebody else's.
    let answer = direct.ask(stranger(), Method::Connect, attributes.clone(), &key(&secret(1)));
    assert_eq!(error_of(answer), Some(ErrorCode::StaleNonce));
    direct.advance(secs(700));
    let answer = direct.ask(a(), Method::Connect, attributes.clone(), &key(&secret(1))).unwrap();
    assert_eq!(answer.attributes.error, Some(ErrorCode::StaleNonce));
    let attributes = Attributes { nonce: answer.attributes.nonce, ..attributes };
    let answer = direct.ask(a(), Method::Connect, attributes, &key(&secret(1))).unwrap();
    assert_eq!(answer.class, Class::Success);
}

#[test]
fn loops_482_and_hops_483() {
    let mut direct = Direct::new(gateway(7, &[]));
    let always = subject(&secret(1), Role::A, 1);
    let hops = vec![ServerId([3; 8]), ServerId([7; 8])];
    let looped = Attributes { hops, ..always.clone() };
    assert_eq!(direct.connect_with(a(), &secret(1), looped), Err(ErrorCode::LoopDetected));
    let used_up = Attributes { hop_limit: Some(0), ..always.clone() };
    assert_eq!(direct.connect_with(a(), &secret(1), used_up), Err(ErrorCode::TooManyHops));
    let endless = Attributes { hops: vec![ServerId([9; 8]); 33], ..always.clone() };
    assert_eq!(direct.connect_with(a(), &secret(1), endless), Err(ErrorCode::TooManyHops));
    assert_eq!(direct.server.session_count(), 0);

    // The last hop that is left gets a leg, but does not go on.
    let last = Attributes { hop_limit: Some(1), root: Some(at("192.0.2.99:3478")), ..always };
    direct.connect_with(a(), &secret(1), last).unwrap();
    assert_eq!(direct.server.counters().get(Count::Escalated), 0);
}

#[test]
fn own_address_is_no_root() {
    let mut direct = Direct::new(gateway(7, &[]));
    let own = Attributes { root: Some(Direct::local()), ..subject(&secret(1), Role::A, 1) };
    direct.connect_with(a(), &secret(1), own).unwrap();
    assert_eq!(direct.server.counters().get(Count::Escalated), 0);
}

#[test]
fn quota_486() {
    let mut config = root(1);
    config.limits.sessions = 3;
    config.limits.legs_per_prefix = 4;
    config.limits.half_open_per_prefix = 2;
    let mut direct = Direct::new(config);
    let refused = Err(ErrorCode::QuotaReached);
    direct.connect(a(), &secret(1), Role::A, 1).unwrap();
    direct.connect(a(), &secret(2), Role::A, 1).unwrap();
    assert_eq!(direct.connect(a(), &secret(3), Role::A, 1), refused, "half-open of one prefix");
    direct.connect(b(), &secret(3), Role::A, 1).unwrap();
    assert_eq!(direct.connect(b(), &secret(4), Role::A, 1), refused, "sessions");
    // The second leg of a session that is there is no new session.
    direct.connect(b(), &secret(3), Role::B, 1).unwrap();
    direct.pass(secs(11));
    assert_eq!((direct.server.session_count(), direct.server.half_open_count()), (0, 0));

    for (number, role) in [(1, Role::A), (1, Role::B), (2, Role::A), (2, Role::B)] {
        let local = direct.connect(a(), &secret(number), role, 1).unwrap();
        direct.probe(local, at("192.0.2.10:6000"), &secret(number), role).unwrap();
    }
    assert_eq!(direct.connect(a(), &secret(3), Role::A, 1), refused, "legs of one prefix");
    assert_eq!(direct.server.counters().get(Count::Quota), 3);
    direct.tell(a(), Method::Release, &secret(2), Role::B, 1).unwrap();
    assert!(direct.connect(a(), &secret(3), Role::A, 1).is_ok());
}

#[test]
fn third_leg_487() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let legs = direct.pair(&secret, a(), b());
    for (role, epoch) in [(Role::A, 1), (Role::B, 1), (Role::A, 0)] {
        let result = direct.connect(stranger(), &secret, role, epoch);
        assert_eq!(result, Err(ErrorCode::RoleTaken));
    }
    // A retransmission gets the same answer.
    assert_eq!(direct.connect(a(), &secret, Role::A, 1), Ok(legs[0]));
    assert_eq!(direct.open, 2);
}

#[test]
fn server_that_goes_around_a_dead_one_takes_its_leg() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let by = |hops: &[u8]| {
        let hops = hops.iter().map(|id| ServerId([*id; 8])).collect();
        Attributes { hops, ..subject(&secret, Role::A, 1) }
    };
    direct.connect_with(a(), &secret, by(&[3, 2])).unwrap();
    let longer = direct.connect_with(b(), &secret, by(&[3, 4, 5]));
    assert_eq!(longer, Err(ErrorCode::RoleTaken));
    direct.connect_with(b(), &secret, by(&[3])).unwrap();
    // The one that was passed by can neither keep nor drop it.
    let refused = Err(ErrorCode::UnknownSession);
    assert_eq!(direct.tell(a(), Method::Refresh, &secret, Role::A, 1), refused);
    assert_eq!(direct.tell(a(), Method::Release, &secret, Role::A, 1), refused);
    assert_eq!(direct.connect_with(a(), &secret, by(&[3, 2])), Err(ErrorCode::RoleTaken));
}

#[test]
fn no_ports_508() {
    let mut direct = Direct::new(root(1));
    direct.ports_left = 1;
    direct.connect(a(), &secret(1), Role::A, 1).unwrap();
    let refused = Err(ErrorCode::InsufficientCapacity);
    assert_eq!(direct.connect(b(), &secret(1), Role::B, 1), refused);
    assert_eq!(direct.connect(b(), &secret(2), Role::B, 1), refused);
    assert_eq!((direct.server.session_count(), direct.server.half_open_count()), (1, 1));
}

/// Asks as a user; what comes back.
fn connect_as(direct: &mut Direct, username: &str, password: &str) -> Option<Message> {
    let (secret, nonce) = (secret(1), direct.nonce(a()));
    let user = LongTermKey::new(username, "example.net", password);
    let template = connect(&secret, Role::A, 1);
    let mut message = direct.message(Method::Connect, template);
    let wire = WireKey::from(&secret.key());
    let masked = user.mask_session_key(wire, &nonce, message.transaction);
    message.attributes.session_key = Some(masked);
    message.attributes.username = Some(username.to_owned());
    message.attributes.realm = Some("example.net".to_owned());
    message.attributes.nonce = Some(nonce);
    let integrity = IntegrityKey::credentialed(&user, &secret.key());
    let sent = direct.control(a(), &message.encode(Some(&integrity)));
    let answer = decode(&sent.first()?.1).unwrap();
    assert!(answer.message.class == Class::Error || answer.verify(&integrity));
    Some(answer.message)
}

#[test]
fn credentials() {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    config.realm = "example.net".to_owned();
    let alice = Credentials { username: "alice".to_owned(), password: "sesame".to_owned() };
    config.users = vec![alice];
    config.secrets = vec!["new secret".to_owned(), "old secret".to_owned()];
    let mut direct = Direct::new(config);
    let now = direct.now.unix.as_secs();
    let unauthenticated = Some(ErrorCode::Unauthenticated);

    // Without credentials: the realm is told.
    let answer =
        direct.ask(a(), Method::Connect, connect(&secret(1), Role::A, 1), &key(&secret(1)));
    let answer = answer.unwrap().attributes;
    assert_eq!((answer.error, answer.realm.as_deref()), (unauthenticated, Some("example.net")));

    assert_eq!(error_of(connect_as(&mut direct, "alice", "wrong")), unauthenticated);
    assert_eq!(error_of(connect_as(&mut direct, "bob", "sesame")), unauthenticated);
    let expired = ephemeral_username(now - 1, "carol");
    let password = ephemeral_password("new secret", &expired);
    assert_eq!(error_of(connect_as(&mut direct, &expired, &password)), unauthenticated);
    let name = ephemeral_username(now + 60, "carol");
    let forged = ephemeral_password("no secret of ours", &name);
    assert_eq!(error_of(connect_as(&mut direct, &name, &forged)), unauthenticated);
    assert_eq!(direct.server.session_count(), 0);

    assert_eq!(connect_as(&mut direct, "alice", "sesame").unwrap().class, Class::Success);
    for secret in ["new secret", "old secret"] {
        direct.tell(a(), Method::Release, &super::secret(1), Role::A, 1).unwrap();
        let password = ephemeral_password(secret, &name);
        assert_eq!(connect_as(&mut direct, &name, &password).unwrap().class, Class::Success);
    }
}

#[test]
fn who_has_only_seen_the_id_can_do_nothing() {
    let mut direct = Direct::new(root(1));
    let (victim, own) = (secret(1), secret(66));
    let [port_a, _] = direct.pair(&victim, a(), b());
    let id = Some(victim.key().id());
    let before = direct.commands.len();

    // An own key for the victim's id.
    let forged = Attributes { session: id, ..connect(&own, Role::A, 99) };
    let answer = direct.ask(stranger(), Method::Connect, forged.clone(), &key(&own));
    assert_eq!(error_of(answer), Some(ErrorCode::Forbidden));
    let answer = direct.ask(stranger(), Method::Exchange, forged, &key(&own));
    assert_eq!(error_of(answer), Some(ErrorCode::Forbidden));
    for method in [Method::Refresh, Method::Release] {
        let forged = Attributes { session: id, ..subject(&own, Role::A, 1) };
        let answer = direct.ask(stranger(), method, forged, &key(&own));
        assert_eq!(error_of(answer), Some(ErrorCode::Unauthenticated));
    }
    // On the data port: silence.
    let attributes = Attributes { session: id, role: Some(Role::A), ..Attributes::default() };
    let bytes = direct.message(Method::Probe, attributes).encode_padded(Some(&key(&own)), 200);
    assert!(direct.data(port_a, stranger(), &bytes).is_empty());
    assert!(direct.data(port_a, stranger(), b"application data").is_empty());
    assert_eq!(direct.commands.len(), before, "the pair was touched");
}

#[test]
fn replays_from_elsewhere_do_nothing() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let local = direct.connect(a(), &secret, Role::A, 1).unwrap();
    let data = at("192.0.2.10:6000");
    let first = direct.probe_bytes(&secret, Role::A, None);
    let challenge = direct.data(local, data, &first);
    let nonce = decode(&challenge[0].1).unwrap().message.attributes.nonce;
    let seen = direct.probe_bytes(&secret, Role::A, nonce);
    direct.data(local, data, &seen);

    // The eavesdropper sends what it saw, from its own address: a challenge that it cannot meet.
    for _ in 0..3 {
        let sent = direct.data(local, stranger(), &seen);
        let answer = decode(&sent[0].1).unwrap().message;
        assert_eq!(answer.attributes.error, Some(ErrorCode::StaleNonce));
        assert!(sent[0].1.len() <= seen.len());
    }
    // Connect: the nonce is the victim's.
    let nonce = direct.nonce(a());
    let attributes = Attributes { nonce: Some(nonce), ..connect(&secret, Role::B, 1) };
    let message = direct.message(Method::Connect, attributes).encode(Some(&key(&secret)));
    let sent = direct.control(stranger(), &message);
    let error = decode(&sent[0].1).unwrap().message.attributes.error;
    assert_eq!(error, Some(ErrorCode::StaleNonce));
    assert_eq!(direct.server.counters().get(Count::Rebound), 0);
    assert_eq!(direct.open, 1);
}

#[test]
fn wrong_role_or_session_on_a_data_port_is_silence() {
    let mut direct = Direct::new(root(1));
    let local = direct.connect(a(), &secret(1), Role::A, 1).unwrap();
    direct.connect(a(), &secret(2), Role::A, 1).unwrap();
    assert_eq!(direct.probe(local, a(), &secret(1), Role::B), None);
    assert_eq!(direct.probe(local, a(), &secret(2), Role::A), None);
    assert_eq!(direct.probe(at("198.51.100.1:9"), a(), &secret(1), Role::A), None);
    assert_eq!(direct.server.counters().get(Count::UnknownPort), 1);
    assert_eq!(direct.probe(local, a(), &secret(1), Role::A), Some(LegState::Waiting));
}

#[test]
fn own_data_port_is_no_remote() {
    let mut direct = Direct::new(root(1));
    let [_, other] = direct.pair(&secret(2), a(), b());
    let local = direct.connect(a(), &secret(1), Role::A, 1).unwrap();
    assert_eq!(direct.probe(local, other, &secret(1), Role::A), None);
    assert_eq!(direct.server.counters().get(Count::OwnAddress), 1);
}

#[test]
fn rebinding_joins_the_new_remote() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let [local, _] = direct.pair(&secret, a(), b());
    let new = at("192.0.2.10:7777");
    assert_eq!(direct.probe(local, new, &secret, Role::A), Some(LegState::Paired));
    let [leg, _] = direct.last_pair().unwrap();
    assert_eq!((leg.local, leg.remote), (local, new));
    assert_eq!(direct.server.counters().get(Count::Rebound), 1);
}

#[test]
fn joined_legs_are_told_by_status() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let [one, two] = [(a(), Role::A), (b(), Role::B)]
        .map(|(from, role)| direct.connect(from, &secret, role, 1).unwrap());
    direct.probe(one, a(), &secret, Role::A).unwrap();
    let bytes = direct.probe_bytes(&secret, Role::B, None);
    let challenge = direct.data(two, b(), &bytes);
    let nonce = decode(&challenge[0].1).unwrap().message.attributes.nonce;
    let bytes = direct.probe_bytes(&secret, Role::B, nonce);
    let sent = direct.data(two, b(), &bytes);
    for to in [a(), b()] {
        let status = sent.iter().map(|(to, bytes)| (*to, decode(bytes).unwrap()));
        let mut status = status.filter(|(_, it)| it.message.method == Method::Status);
        let (_, status) = status.find(|(at, _)| *at == to).expect("no Status");
        assert_eq!(status.message.class, Class::Indication);
        assert_eq!(status.message.attributes.leg_state, Some(LegState::Paired));
        assert!(status.verify(&key(&secret)));
    }
}

#[test]
fn legs_expire_unless_refreshed() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let [_, port_b] = direct.pair(&secret, a(), b());
    for _ in 0..10 {
        direct.pass(secs(100));
        direct.tell(a(), Method::Refresh, &secret, Role::A, 1).unwrap();
        direct.tell(b(), Method::Refresh, &secret, Role::B, 1).ok();
    }
    assert_eq!(direct.open, 2);
    // A does not come back; B does, and waits.
    direct.pass(secs(110));
    direct.tell(b(), Method::Refresh, &secret, Role::B, 1).unwrap();
    direct.commands.clear();
    direct.pass(secs(20));
    assert_eq!(direct.open, 1);
    assert!(direct.commands.contains(&Command::Unpair { key: FlowKey::port(port_b) }));
    let data = SocketAddr::new(b().ip(), b().port() + 1);
    assert_eq!(direct.probe(port_b, data, &secret, Role::B), Some(LegState::Waiting));
    direct.pass(secs(130));
    assert_eq!((direct.open, direct.server.session_count()), (0, 0));
    assert_eq!(direct.server.counters().get(Count::ExpiredLeg), 2);
    assert_eq!(direct.server.poll_timeout(), None);
}

#[test]
fn binding_is_answered_without_state_and_without_amplification() {
    let mut direct = Direct::new(gateway(1, &[]));
    let binding = direct.message(Method::Binding, Attributes::default());
    let sent = direct.control(a(), &binding.encode_padded(None, MIN_FIRST_REQUEST));
    assert_eq!(decode(&sent[0].1).unwrap().message.attributes.mapped, Some(a()));
    assert!(direct.control(a(), &binding.encode(None)).is_empty());
    assert_eq!(direct.server.counters().get(Count::TooLong), 1);

    // A root serves clients that know nothing of padding.
    let mut plain = Direct::new(root(1));
    assert_eq!(plain.control(a(), &binding.encode(None)).len(), 1);
}
