//! Messages on the wire: round trips, what is refused, what is read over.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use rawr_proto::{
    Attributes, BridgeAttributes, Class, DecodeError, ErrorCode, Head, IntegrityKey,
    IntroductionId, LegState, LongTermKey, Mac, MacToken, Message, Method, Role, ServerId,
    SessionId, SessionSecret, TransactionId, WireKey, attribute, decode, peek,
};

fn key() -> IntegrityKey {
    IntegrityKey::session(&SessionSecret::from_bytes([1; 32]).key())
}

fn other_key() -> IntegrityKey {
    IntegrityKey::session(&SessionSecret::from_bytes([2; 32]).key())
}

fn connect() -> Message {
    let attributes = Attributes {
        session: Some(SessionId([3; 16])),
        role: Some(Role::B),
        epoch: Some(7),
        ..Attributes::default()
    };
    Message::request(Method::Connect, TransactionId([4; 12]), attributes)
}

/// Appends an attribute and mends the length, as someone without the key could.
fn append(bytes: &mut Vec<u8>, number: u16, value: &[u8]) {
    bytes.extend(number.to_be_bytes());
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
}

/// Replaces the last attribute, FINGERPRINT, by `attributes` and a right FINGERPRINT.
fn with_appended(mut bytes: Vec<u8>, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    bytes.truncate(bytes.len() - 8);
    for (number, value) in attributes {
        append(&mut bytes, *number, value);
    }
    append(&mut bytes, attribute::FINGERPRINT, &[0; 4]);
    let at = bytes.len() - 8;
    let crc = crc32(&bytes[..at]) ^ 0x5354_554e;
    bytes[at + 4..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// ITU-T V.42, bit by bit: independent of the implementation under test.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn integrity_holds_under_its_key_only() {
    let bytes = connect().encode(Some(&key()));
    let decoded = decode(&bytes).unwrap();
    assert!(decoded.has_integrity());
    assert!(decoded.verify(&key()));
    assert!(!decoded.verify(&other_key()));
    let user = LongTermKey::new("cam", "example.org", "secret");
    let session = SessionSecret::from_bytes([1; 32]).key();
    assert!(!decoded.verify(&IntegrityKey::credentialed(&user, &session)));
    assert!(!decode(&connect().encode(None)).unwrap().verify(&key()));
}

#[test]
fn any_stun_library_can_check_the_integrity() {
    use stun_types::message::{IntegrityAlgorithm, Message as Stun, ShortTermCredentials};
    let session = SessionSecret::from_bytes([1; 32]).key();
    let password: String = session.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = connect().encode(Some(&key()));
    let credentials = ShortTermCredentials::new(password).into();
    let algorithm = Stun::from_bytes(&bytes).unwrap().validate_integrity(&credentials).unwrap();
    assert_eq!(algorithm, IntegrityAlgorithm::Sha256);
}

#[test]
fn attributes_behind_integrity_are_ignored() {
    let bytes = connect().encode(Some(&key()));
    let lifetime = 5_u32.to_be_bytes();
    let appended: [(u16, &[u8]); 2] = [(attribute::LIFETIME, &lifetime), (0x7fff, &[1])];
    let bytes = with_appended(bytes, &appended);
    let decoded = decode(&bytes).unwrap();
    assert!(decoded.verify(&key()));
    assert_eq!(decoded.message, connect());
    assert_eq!(decoded.unknown_required(), []);
}

#[test]
fn first_of_duplicates_counts() {
    let bytes = with_appended(
        connect().encode(None),
        &[
            (attribute::EPOCH, 9_u64.to_be_bytes().as_slice()),
            (attribute::ROLE, &[9, 9]),
            (attribute::SESSION_ID, &[9; 16]),
        ],
    );
    assert_eq!(decode(&bytes).unwrap().message, connect());
}

#[test]
fn unknown_attributes_are_listed_if_required() {
    let unknown: [(u16, &[u8]); 4] =
        [(0x7ffe, &[]), (0x8001, &[1, 2, 3]), (0x0003, &[0; 4]), (0x7ffe, &[])];
    let bytes = with_appended(connect().encode(None), &unknown);
    let decoded = decode(&bytes).unwrap();
    assert_eq!(decoded.unknown_required(), [0x7ffe, 0x0003]);
    assert_eq!(decoded.message, connect());
}

#[test]
fn malformed_attributes_are_named() {
    let role_2 = [2_u8, 0, 0, 0];
    for (number, value) in [
        (attribute::LIFETIME, [1, 2].as_slice()),
        (attribute::SESSION_KEY, &[0; 31]),
        (attribute::TARGET_MAC, &[]),
        (attribute::TARGET_MAC, &[0; 17]),
        (attribute::TARGET_MAC, &[2, 0, 0, 0, 0, 0, 0]),
        (attribute::HOP_LIST, &[0; 12]),
        (attribute::DATA_ADDRESS, &[0, 3, 0, 0, 0, 0, 0, 0]),
        (attribute::DATA_ADDRESS, &[0, 1]),
        (attribute::CANDIDATES, &[0; 257]),
        (attribute::LEG_STATE, &[4, 0, 0, 0]),
        (attribute::NAME, &[]),
        (attribute::NAME, b"Upper"),
        (attribute::NAME, &[b'x'; 65]),
        (attribute::PUBLIC_KEY, &[0; 31]),
        (attribute::SERVER_KEY, &[0; 33]),
        (attribute::INTRODUCTION, &[0; 15]),
        (attribute::SEALED, &[0; 961]),
        (attribute::HOLDER_ADDRESS, &[0, 1, 0, 0, 0, 0, 0, 0]),
        (attribute::PEER_ADDRESS, &[0, 1, 0]),
        (attribute::ERROR_CODE, &[0, 0, 2, 99]),
        (attribute::USERNAME, &[0xff]),
        (attribute::MESSAGE_INTEGRITY_SHA256, &[0; 16]),
    ] {
        let bytes = with_appended(connect().encode(None), &[(number, value)]);
        let head = connect().head();
        let expected = DecodeError::Malformed { head, attribute: number };
        assert_eq!(decode(&bytes).unwrap_err(), expected);
    }
    let lone = Message::request(Method::Probe, TransactionId([0; 12]), Attributes::default());
    let bytes = with_appended(lone.encode(None), &[(attribute::ROLE, &role_2)]);
    assert!(matches!(decode(&bytes), Err(DecodeError::Malformed { .. })));
}

#[test]
fn fingerprint_must_be_there_right_and_last() {
    let whole = connect().encode(Some(&key()));
    let mut without = whole[..whole.len() - 8].to_vec();
    let length = (without.len() - 20) as u16;
    without[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(decode(&without).unwrap_err(), DecodeError::NotStun);

    let mut behind = whole.clone();
    append(&mut behind, attribute::SOFTWARE, b"x");
    assert_eq!(decode(&behind).unwrap_err(), DecodeError::NotStun);

    for i in 0..whole.len() {
        let mut wrong = whole.clone();
        wrong[i] ^= 0x10;
        assert_eq!(decode(&wrong).unwrap_err(), DecodeError::NotStun, "byte {i}");
    }
}

#[test]
fn binding_needs_no_fingerprint() {
    let bytes = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let message = decode(&bytes).unwrap().message;
    assert_eq!((message.class, message.method), (Class::Request, Method::Binding));
}

#[test]
fn foreign_methods_are_told_from_noise() {
    // A TURN Allocate request.
    let bytes = [0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    assert_eq!(decode(&bytes).unwrap_err(), DecodeError::NotStun);
    let mut bytes = bytes.to_vec();
    bytes.extend([0; 8]);
    let bytes = with_appended(bytes, &[]);
    let transaction = TransactionId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let expected = DecodeError::UnknownMethod { class: Class::Request, number: 3, transaction };
    assert_eq!(decode(&bytes).unwrap_err(), expected);
    assert_eq!(peek(&bytes), None);
}

#[test]
fn padding_reaches_the_length_asked_for() {
    let bare = connect().encode(Some(&key())).len();
    for length in [0, bare, bare + 1, bare + 4, bare + 5, 160, 161, 400] {
        let bytes = connect().encode_padded(Some(&key()), length);
        assert!(bytes.len() >= length && bytes.len() <= length.max(bare) + 8);
        let decoded = decode(&bytes).unwrap();
        assert!(decoded.verify(&key()));
        assert_eq!(decoded.message.attributes.session, connect().attributes.session);
    }
}

#[test]
fn errors_keep_their_numbers() {
    let head = connect().head();
    for code in 300..700 {
        let error = ErrorCode::from_code(code).unwrap();
        assert_eq!(error.code(), code);
        let bytes = Message::error(head, error, Attributes::default()).encode(None);
        let message = decode(&bytes).unwrap().message;
        assert_eq!(message.attributes.error, Some(error));
        assert_eq!(message.head(), Head { class: Class::Error, ..head });
    }
    assert_eq!(ErrorCode::from_code(299), None);
    assert_eq!(ErrorCode::from_code(700), None);
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn token() -> impl Strategy<Value = MacToken> {
    let raw = any::<[u8; 6]>().prop_map(|mac| MacToken::Raw(Mac(mac)));
    prop_oneof![raw, any::<[u8; 16]>().prop_map(MacToken::Blinded)]
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::A), Just(Role::B)]
}

fn leg_state() -> impl Strategy<Value = LegState> {
    prop_oneof![Just(LegState::Waiting), Just(LegState::Paired), Just(LegState::Peer)]
}

prop_compose! {
    fn credentials()(
        username in of(".{0,40}"),
        realm in of(".{0,40}"),
        nonce in of("[0-9a-f]{40}"),
        software in of(".{0,20}"),
        padding in 0_usize..=1000,
    ) -> Attributes {
        Attributes { username, realm, nonce, software, padding, ..Attributes::default() }
    }
}

prop_compose! {
    fn session()(
        base in credentials(),
        session in of(any::<[u8; 16]>()),
        session_key in of(any::<[u8; 32]>()),
        mac_key in of(any::<[u8; 32]>()),
        role in of(role()),
        epoch in any::<Option<u64>>(),
        target_mac in of(token()),
        own_mac in of(token()),
        peer_mac in of(token()),
        target_port in any::<Option<u16>>(),
        root in of(address()),
        hops in vec(any::<[u8; 8]>(), 0..9),
    ) -> Attributes {
        let session = session.map(SessionId);
        let (session_key, mac_key) = (session_key.map(WireKey), mac_key.map(WireKey));
        let hops = hops.into_iter().map(ServerId).collect();
        Attributes {
            session, session_key, mac_key, role, epoch, target_mac, own_mac, peer_mac, target_port,
            root, hops, ..base
        }
    }
}

prop_compose! {
    fn bridge()(
        name in of("[a-z0-9äöü-]{1,32}"),
        public_key in of(any::<[u8; 32]>()),
        server_key in of(any::<[u8; 32]>()),
        introduction in of(any::<[u8; 16]>()),
        sealed in of(vec(any::<u8>(), 0..=960)),
        holder_address in of(any::<IpAddr>()),
        peer_address in of(address()),
    ) -> BridgeAttributes {
        let name = name.map(|name| name.parse().expect("a name"));
        let introduction = introduction.map(IntroductionId);
        BridgeAttributes {
            name, public_key, server_key, introduction, sealed, holder_address, peer_address,
        }
    }
}

prop_compose! {
    fn attributes()(
        base in session(),
        bridge in bridge(),
        hop_limit in any::<Option<u8>>(),
        data_address in of(address()),
        leg_state in of(leg_state()),
        candidates in of(vec(any::<u8>(), 0..=256)),
        peer_candidates in of(vec(any::<u8>(), 0..=256)),
        lifetime in any::<Option<u32>>(),
        error in of(300_u16..700),
        unknown in vec(any::<u16>(), 0..6),
        mapped in of(address()),
    ) -> Attributes {
        let error = error.and_then(ErrorCode::from_code);
        Attributes {
            hop_limit, data_address, leg_state, candidates, peer_candidates, bridge, lifetime,
            error, unknown, mapped, ..base
        }
    }
}

prop_compose! {
    fn message()(
        class in prop_oneof![
            Just(Class::Request), Just(Class::Indication), Just(Class::Success), Just(Class::Error)
        ],
        method in prop::sample::select(Method::ALL.to_vec()),
        transaction in any::<[u8; 12]>(),
        attributes in attributes(),
    ) -> Message {
        Message { class, method, transaction: TransactionId(transaction), attributes }
    }
}

proptest! {
    #[test]
    fn every_message_round_trips(message in message(), keyed in any::<bool>()) {
        let bytes = message.encode(keyed.then(key).as_ref());
        let decoded = decode(&bytes).unwrap();
        prop_assert_eq!(&decoded.message, &message);
        prop_assert_eq!(decoded.has_integrity(), keyed);
        prop_assert_eq!(decoded.verify(&key()), keyed);
        prop_assert!(!decoded.verify(&other_key()));
        prop_assert_eq!(decoded.unknown_required(), &[]);
        prop_assert_eq!(peek(&bytes), Some((message.class, message.method)));
        prop_assert_eq!(decoded.message.encode(keyed.then(key).as_ref()), bytes);
    }

    #[test]
    fn changed_bytes_never_panic_nor_verify(
        message in message(),
        changes in vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
        mend in any::<bool>(),
    ) {
        let original = message.encode(Some(&key()));
        let mut bytes = original.clone();
        for (index, change) in changes {
            let at = index.index(bytes.len());
            bytes[at] ^= change;
        }
        if mend {
            bytes = with_appended(bytes, &[]);
        }
        let before_integrity = ..original.len() - 8;
        if let Ok(decoded) = decode(&bytes) {
            let unchanged = bytes[before_integrity] == original[before_integrity];
            prop_assert!(unchanged || !decoded.verify(&key()));
        }
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..600), cookie in any::<bool>()) {
        let mut bytes = bytes;
        if cookie && bytes.len() >= 20 {
            bytes[0] &= 3;
            bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
            let length = (bytes.len() - 20) as u16;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
        }
        let _any = (decode(&bytes).is_ok(), peek(&bytes));
    }
}
