//! What comes in masses, or makes no sense.

use std::net::SocketAddr;

use proptest::prelude::*;
use rawr_proto::{
    Attributes, Class, ErrorCode, IntegrityKey, LegState, Message, Method, Role, ServerId,
    SessionSecret, TransactionId, WireKey, decode,
};
use rawr_userspace::control::Count;

use super::direct::{Direct, refingerprint, subject};
use super::net::{ms, secs};
use super::{gateway, root, secret};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn numbered(number: u32) -> SessionSecret {
    let mut bytes = [0xee; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SessionSecret::from_bytes(bytes)
}

#[test]
fn half_open_legs_are_bounded_and_harm_nobody() {
    let mut config = root(1);
    config.limits.half_open = 500;
    config.limits.half_open_per_prefix = 200;
    let mut direct = Direct::new(config);
    let [local, _] = direct.pair(&secret(1), at("192.0.2.1:5000"), at("203.0.113.1:5000"));
    direct.commands.clear();
    let mut refused = 0;
    for number in 0..2_000 {
        let from = SocketAddr::from(([198, 18, (number % 4) as u8, 1], 5000));
        let result = direct.connect(from, &numbered(number), Role::A, 1);
        refused += u32::from(result == Err(ErrorCode::QuotaReached));
        assert!(direct.server.half_open_count() <= 500);
    }
    assert_eq!(refused, 1_500);
    // Beside the flood, the pair is as it was, and can refresh and rebind.
    assert!(direct.commands.is_empty());
    let a = at("192.0.2.1:5000");
    direct.tell(a, Method::Refresh, &secret(1), Role::A, 1).unwrap();
    let new = at("192.0.2.1:7000");
    assert_eq!(direct.probe(local, new, &secret(1), Role::A), Some(LegState::Paired));
    direct.pass(secs(11));
    assert_eq!((direct.server.session_count(), direct.open), (1, 2));
    assert_eq!(direct.server.counters().get(Count::ExpiredHalfOpen), 500);
    assert!(direct.connect(at("198.18.0.1:5000"), &numbered(0), Role::A, 1).is_ok());
}

#[test]
fn forged_sources_leave_nothing_behind() {
    let mut config = root(1);
    config.limits.unverified_per_second = 10;
    let mut direct = Direct::new(config);
    let request = direct.message(Method::Connect, subject(&secret(1), Role::A, 1));
    let bytes = request.encode_padded(None, 200);
    let victim = at("203.0.113.9:53");
    let answers = (0..1_000).filter(|_| !direct.control(victim, &bytes).is_empty()).count();
    assert!(answers <= 11, "{answers} answers to a source that may be forged");
    assert_eq!(direct.server.counters().get(Count::UnverifiedRate), 1_000 - answers as u64);
    assert_eq!(direct.server.session_count(), 0);
    direct.advance(secs(1));
    assert!(!direct.control(victim, &bytes).is_empty());
}

#[test]
fn requests_over_the_rate_are_dropped() {
    let mut config = root(1);
    config.limits.requests_per_second = 50;
    let mut direct = Direct::new(config);
    let from = at("192.0.2.1:5000");
    direct.connect(from, &secret(1), Role::A, 1).unwrap();
    let nonce = Some(direct.nonce(from));
    let key = IntegrityKey::session(&secret(1).key());
    let refresh = Attributes { nonce, ..subject(&secret(1), Role::A, 1) };
    let answered = (0..500)
        .filter(|_| direct.ask(from, Method::Refresh, refresh.clone(), &key).is_some())
        .count();
    assert!((49..=51).contains(&answered), "{answered}");
    // Another prefix is not concerned.
    assert!(direct.connect(at("203.0.113.1:5000"), &secret(1), Role::B, 1).is_ok());
    direct.advance(ms(100));
    assert!(direct.ask(from, Method::Refresh, refresh, &key).is_some());
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let session = (any::<bool>(), any::<bool>(), any::<Option<bool>>(), any::<Option<u64>>());
    let extra = (
        proptest::option::of("[a-z0-9:]{0,60}"),
        proptest::option::of("[a-z0-9]{0,60}"),
        any::<Option<u8>>(),
        0..40_usize,
        proptest::option::of(0..300_usize),
        any::<Option<u32>>(),
    );
    (session, extra).prop_map(|((id, with_key, role, epoch), extra)| {
        let (username, nonce, hop_limit, hops, candidates, lifetime) = extra;
        let key = secret(1).key();
        Attributes {
            session: id.then(|| key.id()),
            session_key: with_key.then(|| WireKey::from(&key)),
            role: role.map(|a| if a { Role::A } else { Role::B }),
            epoch,
            username,
            nonce,
            hop_limit,
            hops: vec![ServerId([5; 8]); hops],
            candidates: candidates.map(|length| vec![7; length]),
            lifetime,
            ..Attributes::default()
        }
    })
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let classes = [Class::Request, Class::Indication, Class::Success, Class::Error];
    let methods = [
        Method::Binding,
        Method::Exchange,
        Method::Connect,
        Method::Refresh,
        Method::Release,
        Method::Probe,
        Method::Status,
    ];
    let head =
        (proptest::sample::select(classes.to_vec()), proptest::sample::select(methods.to_vec()));
    let shape = (any::<[u8; 12]>(), any::<bool>(), 0..400_usize);
    (head, any_attributes(), shape).prop_map(|((class, method), attributes, shape)| {
        let (id, signed, length) = shape;
        let message = Message { class, method, transaction: TransactionId(id), attributes };
        let key = IntegrityKey::session(&secret(1).key());
        message.encode_padded(signed.then_some(&key), length)
    })
}

/// A message of whatever kind, with some bytes changed.
fn any_datagram() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4);
    let changed = (any_message(), changes).prop_map(|(mut bytes, changes)| {
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        refingerprint(&mut bytes);
        bytes
    });
    prop_oneof![any_message(), changed, proptest::collection::vec(any::<u8>(), 0..600),]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// A source that has shown no nonce gets at most as many bytes as came from it, and leaves no
    /// state behind.
    #[test]
    fn unverified_sources_get_no_more_than_they_sent(
        datagrams in proptest::collection::vec(any_datagram(), 1..20),
    ) {
        let mut direct = Direct::new(gateway(1, &["192.0.2.1"]));
        let [local, _] = direct.pair(&secret(1), at("192.0.2.1:5000"), at("203.0.113.1:5000"));
        direct.commands.clear();
        let from = at("198.18.0.1:5000");
        for bytes in datagrams {
            let control = direct.control(from, &bytes);
            let data = direct.data(local, from, &bytes);
            for sent in [control, data] {
                prop_assert!(sent.len() <= 1);
                for (to, answer) in sent {
                    prop_assert_eq!(to, from);
                    prop_assert!(answer.len() <= bytes.len(), "{} > {}", answer.len(), bytes.len());
                    prop_assert!(decode(&answer).unwrap().message.class != Class::Request);
                }
            }
        }
        prop_assert_eq!(direct.server.session_count(), 1);
        prop_assert!(direct.commands.is_empty());
    }

    /// Whoever holds the session's key and a nonce may send what it likes: nothing breaks, and what it
    /// opened goes again.
    #[test]
    fn members_cannot_break_it(
        requests in proptest::collection::vec((any_attributes(), 0..5_usize, 0..4_usize), 1..30),
    ) {
        let methods =
            [Method::Connect, Method::Refresh, Method::Release, Method::Exchange, Method::Probe];
        let mut direct = Direct::new(gateway(1, &["192.0.2.1"]));
        let key = IntegrityKey::session(&secret(1).key());
        for (attributes, method, source) in requests {
            let from = SocketAddr::from(([192, 0, 2, 10 + source as u8], 5000));
            let attributes = Attributes { nonce: None, username: None, ..attributes };
            direct.ask(from, methods[method], attributes, &key);
            prop_assert!(direct.open <= 4);
        }
        direct.pass(secs(30));
        prop_assert_eq!(direct.server.session_count(), 0);
        prop_assert_eq!((direct.open, direct.server.half_open_count()), (0, 0));
    }
}
