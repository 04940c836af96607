//! STUN clients that know nothing of RAWR: Binding, challenges, and what they cost.

use std::net::SocketAddr;

use proptest::prelude::*;
use rawr_proto::{
    ChangeRequest, IntegrityAttribute, LongTermIntegrity, OtherAddress, Padding, ResponseOrigin,
    ResponsePort,
};
use rawr_userspace::control::{Behaviour, Client, Command, ConnectionId, Count, Over, Source};
use stun_types::attribute::{
    AttributeStaticType, AttributeType, AttributeWrite, ErrorCode, Fingerprint, RawAttribute,
    UnknownAttributes, XorMappedAddress,
};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageWrite, MessageWriteExt, MessageWriteVec, Method,
};

use super::direct::Direct;
use super::net::secs;
use super::{gateway, root};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A request with these attributes.
fn request(method: Method, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
    let mut out = Message::builder_request(method, MessageWriteVec::new());
    attributes.iter().for_each(|attribute| out.push_attribute_unchecked(*attribute));
    out.finish()
}

/// What the server sends: by which way, to where, what.
fn sent(
    direct: &mut Direct,
    client: Client,
    bytes: &[u8],
) -> Option<(Source, SocketAddr, Vec<u8>)> {
    direct.server.handle_control(direct.now, &client, bytes);
    let mut commands = std::iter::from_fn(|| direct.server.poll_command());
    let first = commands.next().map(|command| match command {
        Command::Transmit { from, to, bytes } => (from, to, bytes),
        other => panic!("{other:?}"),
    });
    assert_eq!(commands.next(), None);
    first
}

fn answer(direct: &mut Direct, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let (source, to, bytes) = sent(direct, Client::udp(Direct::local(), from), bytes)?;
    assert_eq!((source, to), (Source::Control(Direct::local()), from));
    Some(bytes)
}

fn error_of(bytes: &[u8]) -> u16 {
    let message = Message::from_bytes(bytes).unwrap();
    assert_eq!(message.class(), MessageClass::Error);
    message.attribute::<ErrorCode>().unwrap().code()
}

#[test]
fn binding_tells_the_address_and_nothing_more() {
    let mut direct = Direct::new(root(1));
    for (from, length) in [("192.0.2.9:4000", 32), ("[2001:db8::9]:4000", 44)] {
        let plain = request(BINDING, &[]);
        let bytes = answer(&mut direct, at(from), &plain).unwrap();
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!((message.class(), message.method()), (MessageClass::Success, BINDING));
        assert_eq!(message.transaction_id(), Message::from_bytes(&plain).unwrap().transaction_id());
        let mapped = message.attribute::<XorMappedAddress>().unwrap();
        assert_eq!(mapped.addr(message.transaction_id()), at(from));
        assert_eq!(bytes.len(), length, "with no other attribute");

        let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
        out.add_fingerprint().unwrap();
        let bytes = answer(&mut direct, at(from), &out.finish()).unwrap();
        assert!(Message::from_bytes(&bytes).unwrap().has_attribute(Fingerprint::TYPE));
        assert_eq!(bytes.len(), length + 8);
    }
    assert_eq!(direct.server.counters().get(Count::Binding), 4);
}

#[test]
fn binding_is_answered_over_streams_too() {
    let mut direct = Direct::new(gateway(1, &[]));
    let connection = ConnectionId(7);
    for over in [Over::Tcp(connection), Over::Tls(connection), Over::Dtls(connection)] {
        let client = Client { over, ..Client::udp(Direct::local(), at("192.0.2.9:4000")) };
        let (source, _, bytes) = sent(&mut direct, client, &request(BINDING, &[])).unwrap();
        assert_eq!(source, Source::Connection(connection));
        assert_eq!(bytes.len(), 32, "though it is longer than what came");
    }
}

#[test]
fn unknown_attributes_are_listed_once_each_and_optional_ones_are_not() {
    let mut direct = Direct::new(root(1));
    let raw = |number: u16| RawAttribute::new(number.into(), &[1, 2, 3, 4]);
    let attributes = [raw(0x7abc), raw(0x0003), raw(0x7abc), raw(0x0027), raw(0xc123), raw(0x0006)];
    let attributes: Vec<&dyn AttributeWrite> =
        attributes.iter().map(|it| it as &dyn AttributeWrite).collect();
    let bytes = answer(&mut direct, at("192.0.2.9:4000"), &request(BINDING, &attributes)).unwrap();
    assert_eq!(error_of(&bytes), 420);
    let message = Message::from_bytes(&bytes).unwrap();
    let list = message.attribute::<UnknownAttributes>().unwrap();
    let has = |number: u16| list.has_attribute(AttributeType::new(number));
    assert!(has(0x0003) && has(0x7abc) && has(0x0027), "no behaviour discovery here");
    assert!(!has(0xc123) && !has(0x0006));
    assert_eq!(bytes.len(), 20 + 8 + 4 + 8);
}

#[test]
fn what_stands_behind_integrity_is_not_there() {
    let mut direct = Direct::new(root(1));
    let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
    LongTermIntegrity::from_key(IntegrityAttribute::Sha1, b"any").sign(&mut out);
    out.push_attribute_unchecked(&RawAttribute::new(0x7abc.into(), &[1]));
    let bytes = answer(&mut direct, at("192.0.2.9:4000"), &out.finish()).unwrap();
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(message.class(), MessageClass::Success, "420 for what nobody may look at");
}

#[test]
fn no_message_no_answer() {
    let mut direct = Direct::new(root(1));
    let good = request(BINDING, &[&Padding { length: 8 }]);
    let mut wrong_length = good.clone();
    wrong_length[3] -= 4;
    let mut beyond_the_end = good.clone();
    beyond_the_end[23] = 200;
    let mut no_cookie = good.clone();
    no_cookie[4] = 0;
    let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
    out.add_fingerprint().unwrap();
    let mut wrong_crc = out.finish();
    *wrong_crc.last_mut().unwrap() ^= 1;
    let trailing = [good.as_slice(), &[0; 4]].concat();
    for bytes in [wrong_length, beyond_the_end, no_cookie, wrong_crc, trailing, good[..19].into()] {
        assert_eq!(answer(&mut direct, at("192.0.2.9:4000"), &bytes), None, "{bytes:02x?}");
    }
    assert!(answer(&mut direct, at("192.0.2.9:4000"), &good).is_some());
}

fn two_addresses() -> Direct {
    let mut config = root(1);
    let other = at("198.51.100.2:3479");
    config.behaviours = vec![Behaviour::new(Direct::local(), other).unwrap()];
    Direct::new(config)
}

#[test]
fn behaviour_discovery_answers_from_where_it_is_asked() {
    let mut direct = two_addresses();
    let from = at("192.0.2.9:4000");
    for (ip, port, origin) in [
        (false, false, "198.51.100.1:3478"),
        (false, true, "198.51.100.1:3479"),
        (true, false, "198.51.100.2:3478"),
        (true, true, "198.51.100.2:3479"),
    ] {
        let bytes = request(BINDING, &[&ChangeRequest { ip, port }]);
        let client = Client::udp(Direct::local(), from);
        let (source, to, bytes) = sent(&mut direct, client, &bytes).unwrap();
        assert_eq!((source, to), (Source::Control(at(origin)), from));
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.attribute::<ResponseOrigin>().unwrap().0, at(origin));
        assert_eq!(message.attribute::<OtherAddress>().unwrap().0, at("198.51.100.2:3479"));
    }
    // Asked at the alternate, the primary is the other.
    let client = Client::udp(at("198.51.100.2:3479"), from);
    let change = ChangeRequest { ip: true, port: true };
    let (source, _, bytes) = sent(&mut direct, client, &request(BINDING, &[&change])).unwrap();
    assert_eq!(source, Source::Control(Direct::local()));
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(message.attribute::<OtherAddress>().unwrap().0, Direct::local());
    // Over a stream there is no other way back (RFC 5780 §7.2).
    let over = Over::Tcp(ConnectionId(1));
    let client = Client { over, ..Client::udp(Direct::local(), from) };
    let (_, _, bytes) = sent(&mut direct, client, &request(BINDING, &[&change])).unwrap();
    assert_eq!(error_of(&bytes), 420);
}

#[test]
fn streams_learn_the_other_address_and_cannot_be_answered_from_it() {
    let mut config = root(1);
    let behaviour = Behaviour::new(Direct::local(), at("198.51.100.2:3479"));
    config.behaviours_tcp = behaviour.into_iter().collect();
    let mut direct = Direct::new(config);
    let [tcp, tls, dtls] = [1, 2, 3].map(ConnectionId);
    let streams = [(Over::Tcp(tcp), true), (Over::Tls(tls), false), (Over::Dtls(dtls), false)];
    for (over, knows) in streams {
        let client = Client { over, ..Client::udp(Direct::local(), at("192.0.2.9:4000")) };
        let connection = client.connection().unwrap();
        let (source, _, bytes) = sent(&mut direct, client, &request(BINDING, &[])).unwrap();
        assert_eq!(source, Source::Connection(connection));
        let message = Message::from_bytes(&bytes).unwrap();
        let other = message.attribute::<OtherAddress>().ok().map(|it| it.0);
        assert_eq!(other, knows.then(|| at("198.51.100.2:3479")));
        let origin = message.attribute::<ResponseOrigin>().ok().map(|it| it.0);
        assert_eq!(origin, knows.then(Direct::local));
        for wish in
            [&ChangeRequest { ip: true, port: false } as &dyn AttributeWrite, &ResponsePort(9)]
        {
            let (source, _, bytes) = sent(&mut direct, client, &request(BINDING, &[wish])).unwrap();
            assert_eq!((source, error_of(&bytes)), (Source::Connection(connection), 420));
        }
    }
}

#[test]
fn streams_are_not_held_to_the_rate_of_sources_that_may_be_forged() {
    let mut config = root(1);
    config.limits.unverified_per_second = 10;
    config.limits.requests_per_second = 100;
    let mut direct = Direct::new(config);
    let udp = Client::udp(Direct::local(), at("192.0.2.9:4000"));
    let stream = Client { over: Over::Tcp(ConnectionId(1)), ..udp };
    let answered = |direct: &mut Direct, client| {
        (0..200).filter(|_| sent(direct, client, &request(BINDING, &[])).is_some()).count()
    };
    assert_eq!(answered(&mut direct, udp), 10);
    assert_eq!(answered(&mut direct, stream), 100);
}

#[test]
fn response_port_goes_to_the_same_host_and_not_often() {
    let mut direct = two_addresses();
    let client = Client::udp(Direct::local(), at("192.0.2.9:4000"));
    let asked = request(BINDING, &[&ResponsePort(5000)]);
    let (_, to, bytes) = sent(&mut direct, client, &asked).unwrap();
    assert_eq!(to, at("192.0.2.9:5000"));
    let message = Message::from_bytes(&bytes).unwrap();
    let mapped = message.attribute::<XorMappedAddress>().unwrap();
    assert_eq!(mapped.addr(message.transaction_id()), at("192.0.2.9:4000"));
    let answers = (0..1000).filter(|_| sent(&mut direct, client, &asked).is_some()).count();
    assert!((14..=16).contains(&answers), "{answers} a second");
    assert!(answer(&mut direct, at("192.0.2.9:4000"), &request(BINDING, &[])).is_some());
    direct.advance(secs(1));
    assert!(sent(&mut direct, client, &asked).is_some());
    for wrong in [
        request(BINDING, &[&ResponsePort(0)]),
        request(BINDING, &[&ResponsePort(5000), &Padding { length: 64 }]),
        request(BINDING, &[&RawAttribute::new(ChangeRequest::TYPE, &[0; 8])]),
    ] {
        direct.advance(secs(1));
        let (_, to, bytes) = sent(&mut direct, client, &wrong).unwrap();
        assert_eq!((to, error_of(&bytes)), (at("192.0.2.9:4000"), 400));
    }
}

#[test]
fn padding_comes_back_no_longer_than_it_came() {
    let mut direct = two_addresses();
    for length in [0, 1, 3, 4, 40, 64, 500, 1400] {
        for fingerprint in [false, true] {
            let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
            out.push_attribute_unchecked(&Padding { length });
            if fingerprint {
                out.add_fingerprint().unwrap();
            }
            let asked = out.finish();
            let bytes = answer(&mut direct, at("192.0.2.9:4000"), &asked).unwrap();
            let has = Message::from_bytes(&bytes).unwrap().has_attribute(Padding::TYPE);
            assert!(bytes.len() <= asked.len().max(if fingerprint { 64 } else { 56 }));
            assert_eq!(has, length >= 40, "{length}");
            assert!(!has || asked.len() - bytes.len() < 4);
        }
    }
}

/// What Binding costs who answers it, and who is answered in a victim's place.
#[test]
fn bytes_that_an_unverified_source_gets() {
    let mut direct = Direct::new(root(1));
    let from = at("192.0.2.9:4000");
    let v6 = at("[2001:db8::9]:4000");
    let binding = request(BINDING, &[]);
    let mut rows = Vec::new();
    let mut row = |what, from, asked: &[u8], expected| {
        let length = answer(&mut direct, from, asked).unwrap().len();
        let factor = length as f64 / asked.len() as f64;
        println!("{what:24} {:4} B -> {length:4} B, {factor:.2} times", asked.len());
        assert_eq!((asked.len(), length), expected, "{what}");
        rows.push(factor);
    };
    row("Binding, IPv4", from, &binding, (20, 32));
    row("Binding, IPv6", v6, &binding, (20, 44));
    let padded = request(BINDING, &[&Padding { length: 16 }]);
    row("Binding, padded", from, &padded, (40, 32));
    let unknown = request(BINDING, &[&ChangeRequest::default()]);
    row("420", from, &unknown, (28, 36));
    assert!(rows.iter().all(|factor| *factor <= 2.2));
}

fn any_attribute() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let numbers = [0x0003, 0x0006, 0x0008, 0x0014, 0x0015, 0x001c, 0x0020, 0x0026, 0x0027, 0x8022];
    let number = prop_oneof![proptest::sample::select(numbers.to_vec()), any::<u16>()];
    (number, proptest::collection::vec(any::<u8>(), 0..24))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// A root answers short requests of plain STUN clients; that is the only way to get more bytes out of
    /// it than went in, and there are at most 52 of them.
    #[test]
    fn a_root_multiplies_nothing_but_short_requests(
        attributes in proptest::collection::vec(any_attribute(), 0..12),
        fingerprint: bool,
    ) {
        let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
        for (number, value) in &attributes {
            out.push_attribute_unchecked(&RawAttribute::new((*number).into(), value));
        }
        if fingerprint && !out.has_attribute(Fingerprint::TYPE) {
            out.add_fingerprint().unwrap();
        }
        let asked = out.finish();
        let mut direct = Direct::new(root(1));
        if let Some(bytes) = answer(&mut direct, at("[2001:db8::9]:4000"), &asked) {
            prop_assert!(bytes.len() <= asked.len().max(52), "{} > {}", bytes.len(), asked.len());
        }
        prop_assert_eq!(direct.server.session_count(), 0);
    }
}
