//! What comes from sources that may be forged, or makes no sense.

use proptest::prelude::*;
use rawr_proto::{
    Attributes, BridgeAttributes, BridgeName, Class, ErrorCode, IntegrityKey, IntroductionId,
    Message, Method, TransactionId, decode,
};
use rawr_userspace::control::{Client, Count};

use super::direct::{Direct, agree, at, local, registration, result};
use super::{identity, root, secs};

const HOLDER: &str = "192.0.2.10:5000";

#[test]
fn a_key_that_agrees_with_everybody_holds_nothing() {
    let mut direct = Direct::new(root());
    let client = Client::udp(local(), at(HOLDER));
    let challenge = direct.challenge(&client, Method::Register);
    let server = challenge.bridge.server_key.unwrap();
    for weak in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
        let mut attributes = registration("a", 1, None);
        attributes.nonce = challenge.nonce.clone();
        attributes.bridge.public_key = Some(weak);
        let message = direct.message(Method::Register, attributes);
        let known_to_all = rawr_proto::BridgeKey::new(&[0; 32], &weak, &server);
        let answer = direct.send(&client, &message, &IntegrityKey::bridge(&known_to_all)).unwrap();
        assert_eq!(result(answer), Err(ErrorCode::Forbidden));
    }
    assert_eq!(direct.server.name_count(), 0);
}

#[test]
fn who_does_not_hold_the_key_cannot_use_it() {
    let mut direct = Direct::new(root());
    direct.register(HOLDER, &identity(1), "alice").unwrap();
    let client = Client::udp(local(), at(HOLDER));
    let challenge = direct.challenge(&client, Method::Register);
    let thief = agree(&identity(2), challenge.bridge.server_key.unwrap());
    for lifetime in [None, Some(0)] {
        let mut attributes = registration("alice", 9, lifetime);
        attributes.nonce = challenge.nonce.clone();
        attributes.bridge.public_key = Some(*identity(1).public().as_bytes());
        let message = direct.message(Method::Register, attributes);
        let answer = direct.send(&client, &message, &IntegrityKey::bridge(&thief)).unwrap();
        assert_eq!(result(answer), Err(ErrorCode::Unauthenticated));
    }
    assert_eq!(direct.server.name_count(), 1);
    assert_eq!(direct.server.counters().get(Count::WrongIntegrity), 2);
}

#[test]
fn a_nonce_is_good_at_its_own_address_only() {
    let mut direct = Direct::new(root());
    let (client, other) =
        (Client::udp(local(), at(HOLDER)), Client::udp(local(), at("192.0.2.10:1")));
    let challenge = direct.challenge(&client, Method::Register);
    let key = IntegrityKey::bridge(&agree(&identity(1), challenge.bridge.server_key.unwrap()));
    let mut attributes = registration("alice", 1, None);
    attributes.nonce = challenge.nonce;
    attributes.bridge.public_key = Some(*identity(1).public().as_bytes());
    let message = direct.message(Method::Register, attributes);
    let answer = direct.send(&other, &message, &key).unwrap();
    assert_eq!(result(answer), Err(ErrorCode::StaleNonce));
    // The same again is the same again.
    for _ in 0..2 {
        let answer = direct.send(&client, &message, &key).unwrap();
        assert!(result(answer).is_ok());
    }
    direct.advance(secs(601));
    let answer = direct.send(&client, &message, &key).unwrap();
    assert_eq!(result(answer), Err(ErrorCode::StaleNonce));
}

fn any_bridge() -> impl Strategy<Value = BridgeAttributes> {
    let who = proptest::option::of(1_u8..4);
    let name = proptest::option::of("[ab]{1,2}");
    let sealed = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400));
    (name, who, proptest::option::of(0_u8..4), sealed).prop_map(|(name, who, id, sealed)| {
        BridgeAttributes {
            name: name.map(|name| name.parse::<BridgeName>().unwrap()),
            public_key: who.map(|who| *identity(who).public().as_bytes()),
            introduction: id.map(|id| IntroductionId([id; 16])),
            sealed,
            ..BridgeAttributes::default()
        }
    })
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let username = proptest::option::of("[a-z0-9:]{0,20}");
    let nonce = proptest::option::of("[a-zA-Z0-9]{0,40}");
    let parts = (any_bridge(), any::<Option<u64>>(), any::<Option<u32>>(), username, nonce);
    parts.prop_map(|(bridge, epoch, lifetime, username, nonce)| Attributes {
        bridge,
        epoch,
        lifetime,
        username,
        nonce,
        ..Attributes::default()
    })
}

fn any_method() -> impl Strategy<Value = Method> {
    proptest::sample::select(vec![Method::Register, Method::Lookup, Method::Introduce])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// A source that has shown no nonce gets at most as many bytes as came from it, leaves no state behind,
    /// and makes nobody else hear anything.
    #[test]
    fn unverified_sources_get_no_more_than_they_sent(
        requests in proptest::collection::vec(
            (any_method(), any_attributes(), 0_usize..3, any::<bool>(), 0_usize..300),
            1..12,
        ),
    ) {
        let mut direct = Direct::new(root());
        direct.register(HOLDER, &identity(1), "a").unwrap();
        direct.commands.clear();
        let client = Client::udp(local(), at("198.18.0.1:5000"));
        let classes = [Class::Request, Class::Indication, Class::Success];
        for (method, attributes, class, signed, length) in requests {
            let head = direct.message(method, attributes);
            let message = Message { class: classes[class], ..head };
            let key = IntegrityKey::bridge(&agree(&identity(1), [9; 32]));
            let bytes = message.encode_padded(signed.then_some(&key), length);
            let sent = direct.control(&client, &bytes);
            prop_assert!(sent.len() <= 1);
            for answer in sent {
                prop_assert_eq!(answer.to, client.remote);
                prop_assert!(answer.bytes.len() <= bytes.len());
                let answer = decode(&answer.bytes).unwrap().message;
                prop_assert_eq!(answer.class, Class::Error);
            }
        }
        prop_assert_eq!(direct.server.name_count(), 1);
        prop_assert!(direct.commands.is_empty());
        prop_assert_eq!(direct.server.counters().get(Count::Introduce), 0);
    }

    /// Whoever has an identity and a nonce may say what it likes: nothing breaks, nobody takes a name that
    /// is held, and everything goes again.
    #[test]
    fn callers_cannot_break_it(
        requests in proptest::collection::vec((any_method(), any_attributes(), 2_u8..4), 1..20),
    ) {
        let mut direct = Direct::new(root());
        direct.register_with(HOLDER, &identity(1), "a", 1, Some(86_400)).unwrap();
        for (number, (method, attributes, who)) in requests.into_iter().enumerate() {
            let attributes = Attributes { username: None, nonce: None, ..attributes };
            let client = Client::udp(local(), at(&format!("198.18.0.{}:5000", number + 1)));
            let answer = direct.ask_as(&client, &identity(who), None, method, attributes);
            prop_assert!(answer.is_some());
            let held = direct.look_up(HOLDER, &identity(1), "a").unwrap();
            prop_assert_eq!(held.0, identity(1).public());
        }
        direct.pass(secs(86_401));
        prop_assert_eq!(direct.server.name_count(), 0);
        prop_assert_eq!(direct.server.poll_timeout(), None);
    }

    /// Bytes of any kind do not break the server.
    #[test]
    fn changed_bytes_never_panic(
        method in any_method(),
        attributes in any_attributes(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut direct = Direct::new(root());
        let client = Client::udp(local(), at(HOLDER));
        let mut bytes = Message::request(method, TransactionId([1; 12]), attributes).encode(None);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert!(direct.control(&client, &bytes).len() <= 1);
        prop_assert_eq!(direct.server.name_count(), 0);
    }
}
