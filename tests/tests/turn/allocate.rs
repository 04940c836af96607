//! Allocate (RFC 8656 §7).

use rawr_userspace::control::{Count, PortError};
use stun_types::AddressFamily;
use stun_types::attribute::{AttributeType, RawAttribute, UnknownAttributes};
use turn_types::attribute::{
    AdditionalAddressFamily, DontFragment, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};
use turn_types::message::{ALLOCATE, REFRESH};

use super::direct::{Direct, User, at, config, has, local, only};
use super::secs;

const V4: AddressFamily = AddressFamily::IPV4;
const V6: AddressFamily = AddressFamily::IPV6;

#[test]
fn client_gets_an_ipv4_address_for_ten_minutes() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let answer = direct.allocate_with(&mut anna, &[]);
    assert_eq!(answer.error(), None);
    assert_eq!(answer.relayed().len(), 1);
    assert_eq!(answer.relayed()[0].ip(), local().ip());
    assert!(direct.open.contains(&answer.relayed()[0]));
    assert_eq!(answer.mapped(), at("192.0.2.1:5000"));
    assert_eq!(answer.lifetime(), Some(600));
    assert_eq!((answer.token(), answer.ticket()), (None, None));
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!((view.client, &*view.user, view.expires_in), (anna.client, "anna", secs(600)));
    assert_eq!(view.relayed, answer.relayed());
}

#[test]
fn lifetime_is_kept_within_bounds() {
    for (asked, granted) in [(1, 600), (600, 600), (1_800, 1_800), (u32::MAX, 3_600)] {
        let mut direct = Direct::new();
        let answer =
            direct.allocate_with(&mut User::anna("192.0.2.1:5000"), &[&Lifetime::new(asked)]);
        assert_eq!(answer.lifetime(), Some(granted), "{asked}");
    }
}

#[test]
fn allocation_expires_and_its_port_is_closed() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    direct.pass(secs(599));
    assert_eq!(direct.server.allocation_count(), 1);
    direct.pass(secs(1));
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.server.turn_user_count(), 0);
    assert_eq!(direct.count(Count::ExpiredAllocation), 1);
    // The 5-tuple is free again.
    direct.allocate(&mut anna);
}

#[test]
fn retransmission_gets_the_same_answer_and_another_request_437() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    anna.nonce = Some(direct.nonce(&anna.client));
    let transport = RequestedTransport::new(RequestedTransport::UDP);
    let transaction = direct.transaction();
    let bytes = anna.sign(ALLOCATE, transaction, &[&transport, &EvenPort::new(true)]);
    let first = only(direct.control(&anna.client, &bytes)).unwrap();
    let again = only(direct.control(&anna.client, &bytes)).unwrap();
    assert_eq!(first, again);
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (1, 2));
    // The same transaction of another user is no retransmission.
    let bert = User { nonce: anna.nonce.clone(), ..User::bert("192.0.2.1:5000") };
    let answer = direct.exchange(&bert, ALLOCATE, transaction, &[&transport]).unwrap();
    assert_eq!((answer.error(), answer.token()), (Some(437), None));
    let answer = direct.allocate_with(&mut anna, &[]);
    assert_eq!(answer.error(), Some(437));
    assert_eq!(direct.count(Count::Allocate), 1);
}

#[test]
fn transports_other_than_udp_and_tcp_are_442_and_none_is_400() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let sctp = RequestedTransport::new(132);
    assert_eq!(direct.ask(&mut anna, ALLOCATE, &[&sctp]).error(), Some(442));
    assert_eq!(direct.ask(&mut anna, ALLOCATE, &[]).error(), Some(400));
    let short = RawAttribute::new(AttributeType::new(0x0019), &[17]);
    assert_eq!(direct.ask(&mut anna, ALLOCATE, &[&short]).error(), Some(400));
    // RFC 6062 §5.1: a TCP allocation needs a stream.
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    assert_eq!(direct.ask(&mut anna, ALLOCATE, &[&tcp]).error(), Some(400));
    assert_eq!(direct.server.allocation_count(), 0);

    let mut config = config();
    config.turn.tcp = false;
    let mut direct = Direct::with(config);
    let mut stream = User::stream(1, "192.0.2.1:5000");
    assert_eq!(direct.ask(&mut stream, ALLOCATE, &[&tcp]).error(), Some(442));
}

#[test]
fn unknown_attribute_is_420_and_named() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let unknown = RawAttribute::new(AttributeType::new(0x7ff0), &[1, 2, 3, 4]);
    let optional = RawAttribute::new(AttributeType::new(0xfff0), &[1, 2, 3, 4]);
    let answer = direct.allocate_with(&mut anna, &[&unknown, &optional]);
    assert_eq!(answer.error(), Some(420));
    let message = answer.message();
    let named = message.attribute::<UnknownAttributes>().unwrap();
    assert!(named.has_attribute(AttributeType::new(0x7ff0)));
    assert!(!named.has_attribute(AttributeType::new(0xfff0)));
    assert_eq!(direct.allocate_with(&mut anna, &[&optional]).error(), None);
}

#[test]
fn ipv6_is_had_by_asking_and_both_at_once() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let answer = direct.allocate_with(&mut anna, &[&RequestedAddressFamily::new(V6)]);
    assert!(answer.relayed()[0].is_ipv6());
    assert_eq!(answer.relayed().len(), 1);

    let mut bert = User::bert("192.0.2.2:5000");
    let answer = direct.allocate_with(&mut bert, &[&AdditionalAddressFamily::new(V6)]);
    let [v4, v6] = answer.relayed()[..] else { panic!("{:?}", answer.relayed()) };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    assert_eq!(answer.family_error(), None);
    assert_eq!(direct.open.len(), 3);
    direct.pass(secs(600));
    assert!(direct.open.is_empty());
}

/// coturn's clients ask by the number that the attribute had in the draft, and then refresh one
/// family or the other.
#[test]
fn both_families_are_had_by_the_drafts_attribute() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let draft = RawAttribute::new(AttributeType::new(0x8032), &[2, 0, 0, 0]);
    let even = EvenPort::new(false);
    let answer = direct.allocate_with(&mut anna, &[&even, &draft]);
    let [v4, v6] = answer.relayed()[..] else { panic!("{:?}", answer.relayed()) };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    for family in [V4, V6] {
        let family = RequestedAddressFamily::new(family);
        assert_eq!(direct.ask(&mut anna, REFRESH, &[&family]).error(), None);
    }

    let mut bert = User::bert("192.0.2.2:5000");
    let requested = RequestedAddressFamily::new(V4);
    assert_eq!(direct.allocate_with(&mut bert, &[&requested, &draft]).error(), Some(400));
}

#[test]
fn family_without_an_address_is_440() {
    let mut config = config();
    config.turn.relay_addresses.clear();
    let mut direct = Direct::with(config);
    let mut anna = User::anna("192.0.2.1:5000");
    let v6 = RequestedAddressFamily::new(V6);
    assert_eq!(direct.allocate_with(&mut anna, &[&v6]).error(), Some(440));
    let odd = RawAttribute::new(AttributeType::new(0x0017), &[7, 0, 0, 0]);
    assert_eq!(direct.allocate_with(&mut anna, &[&odd]).error(), Some(440));
    assert_eq!(direct.server.turn_user_count(), 0);

    let answer = direct.allocate_with(&mut anna, &[&AdditionalAddressFamily::new(V6)]);
    assert_eq!((answer.error(), answer.relayed().len()), (None, 1));
    assert_eq!(answer.family_error(), Some((V6, 440)));
}

#[test]
fn a_family_that_nobody_named_is_on_the_host_s_address() {
    let mut config = config();
    config.turn.relay_addresses.clear();
    let mut direct = Direct::with(config);
    direct.server.set_host_addresses(["fe80::1", "2001:db8::7"].map(|ip| ip.parse().unwrap()));
    let mut anna = User::anna("192.0.2.1:5000");
    let answer = direct.allocate_with(&mut anna, &[&AdditionalAddressFamily::new(V6)]);
    let hosts: Vec<_> = answer.relayed().iter().map(|it| it.ip().to_string()).collect();
    assert_eq!(hosts, [local().ip().to_string(), "2001:db8::7".to_owned()]);
    assert_eq!(answer.family_error(), None);
}

#[test]
fn several_addresses_take_turns() {
    let mut config = config();
    let addresses = ["198.51.100.1", "198.51.100.2", "198.51.100.3"];
    config.turn.relay_addresses = addresses.map(|ip| ip.parse().unwrap()).to_vec();
    let mut direct = Direct::with(config);
    let mut seen = Vec::new();
    for port in 5000..5006 {
        let mut anna = User::anna(&format!("192.0.2.1:{port}"));
        seen.push(direct.allocate(&mut anna).ip().to_string());
    }
    seen.sort();
    assert_eq!(seen, addresses.iter().flat_map(|ip| [*ip; 2]).collect::<Vec<_>>());
}

#[test]
fn both_families_content_themselves_with_what_there_is() {
    let v6 = config().turn.relay_addresses[1];
    for (refused, left, told) in [(local().ip(), V6, (V4, 508)), (v6, V4, (V6, 508))] {
        let mut direct = Direct::new();
        direct.refused.insert(refused, PortError::Exhausted);
        let mut anna = User::anna("192.0.2.1:5000");
        let answer = direct.allocate_with(&mut anna, &[&AdditionalAddressFamily::new(V6)]);
        assert_eq!((answer.error(), answer.relayed().len()), (None, 1));
        assert_eq!(answer.relayed()[0].is_ipv6(), left == V6);
        assert_eq!(answer.family_error(), Some(told));
    }
    let mut direct = Direct::new();
    direct.refused.insert(local().ip(), PortError::Exhausted);
    direct.refused.insert(v6, PortError::System);
    let mut anna = User::anna("192.0.2.1:5000");
    let answer = direct.allocate_with(&mut anna, &[&AdditionalAddressFamily::new(V6)]);
    assert_eq!(answer.error(), Some(508));
    assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (0, 0));
}

#[test]
fn no_port_left_is_508_and_leaves_nothing_behind() {
    let mut direct = Direct::new();
    direct.refused.insert(local().ip(), PortError::Exhausted);
    let mut anna = User::anna("192.0.2.1:5000");
    for attributes in [None, Some(EvenPort::new(true))] {
        let attributes: Vec<&dyn stun_types::attribute::AttributeWrite> =
            attributes.iter().map(|it| it as _).collect();
        let answer = direct.allocate_with(&mut anna, &attributes);
        assert_eq!(answer.error(), Some(508));
        assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (0, 0));
    }
    direct.refused.clear();
    direct.allocate(&mut anna);
}

#[test]
fn reserved_port_is_the_next_one_and_had_by_its_token() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let rtp = direct.allocate_with(&mut anna, &[&EvenPort::new(true)]);
    let token = rtp.token().unwrap();
    assert_eq!(rtp.relayed()[0].port() % 2, 0);
    assert_eq!(direct.server.reservation_count(), 1);

    // Not even who learns of a token may use it.
    let mut bert = User::bert("192.0.2.2:5000");
    let token_of = ReservationToken::new(token);
    assert_eq!(direct.allocate_with(&mut bert, &[&token_of]).error(), Some(508));

    let mut second = User::anna("192.0.2.1:5001");
    let rtcp = direct.allocate_with(&mut second, &[&token_of]);
    assert_eq!(rtcp.error(), None);
    assert_eq!(rtcp.relayed()[0].port(), rtp.relayed()[0].port() + 1);
    assert_eq!((direct.server.reservation_count(), direct.open.len()), (0, 2));
    let mut third = User::anna("192.0.2.1:5002");
    assert_eq!(direct.allocate_with(&mut third, &[&token_of]).error(), Some(508));
    direct.pass(secs(600));
    assert_eq!((direct.open.len(), direct.server.turn_user_count()), (0, 0));
}

#[test]
fn reserved_port_is_closed_after_thirty_seconds() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let answer = direct.allocate_with(&mut anna, &[&EvenPort::new(true)]);
    assert_eq!(direct.refresh(&mut anna, 0).error(), None);
    // Its allocation is gone, the port is still charged.
    assert_eq!((direct.open.len(), direct.server.turn_user_count()), (1, 1));
    direct.pass(secs(31));
    assert_eq!((direct.open.len(), direct.server.turn_user_count()), (0, 0));
    let token = ReservationToken::new(answer.token().unwrap());
    assert_eq!(direct.allocate_with(&mut anna, &[&token]).error(), Some(508));
    assert_eq!(direct.count(Count::ExpiredReservation), 1);
}

#[test]
fn contradictions_are_400() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let (token, even) = (ReservationToken::new(1), EvenPort::new(true));
    let (v4, v6) = (RequestedAddressFamily::new(V4), AdditionalAddressFamily::new(V6));
    let also_v4 = RawAttribute::new(AttributeType::new(0x8000), &[1, 0, 0, 0]);
    let wrong: [&[&dyn stun_types::attribute::AttributeWrite]; 6] =
        [&[&token, &even], &[&token, &v4], &[&token, &v6], &[&v4, &v6], &[&also_v4], &[&v6, &even]];
    for attributes in wrong {
        assert_eq!(
            direct.allocate_with(&mut anna, attributes).error(),
            Some(400),
            "{attributes:?}"
        );
    }
    assert_eq!(direct.server.turn_user_count(), 0);
    let answer =
        direct.allocate_with(&mut anna, &[&v6, &EvenPort::new(false), &DontFragment::new()]);
    assert_eq!(answer.error(), None);
    assert!(!has::<ReservationToken>(&answer));
    assert!(answer.relayed().iter().all(|relayed| relayed.port() % 2 == 0));
}

#[test]
fn advertised_address_is_what_the_client_is_told() {
    let mut config = config();
    config.turn.advertised = vec![(local().ip(), at("203.0.113.99:0").ip())];
    let mut direct = Direct::with(config);
    let relayed = direct.allocate(&mut User::anna("192.0.2.1:5000"));
    assert_eq!(relayed.ip(), at("203.0.113.99:0").ip());
    assert!(direct.open.contains(&std::net::SocketAddr::new(local().ip(), relayed.port())));
}

#[test]
fn port_that_opens_too_late_is_closed() {
    let mut direct = Direct::new();
    let mut stream = User::stream(7, "192.0.2.1:5000");
    stream.nonce = Some(direct.nonce(&stream.client));
    let transaction = direct.transaction();
    let transport = RequestedTransport::new(RequestedTransport::UDP);
    let bytes = stream.sign(ALLOCATE, transaction, &[&transport, &EvenPort::new(true)]);
    direct.server.handle_control(direct.now, &stream.client, &bytes);
    // The stream goes before the shell has done what it was told.
    direct.server.connection_gone(direct.now, stream.client.connection().unwrap());
    assert!(direct.drain().is_empty());
    assert_eq!((direct.open.len(), direct.server.turn_user_count()), (0, 0));
}
