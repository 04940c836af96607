//! Causes of vulnerabilities that TURN servers have had, each as a test of its own.

use std::net::SocketAddr;

use rawr_userspace::control::{Command, Count, TurnLimits};
use stun_types::AddressFamily;
use stun_types::attribute::{AttributeType, RawAttribute};
use stun_types::message::MessageHeader;
use turn_types::attribute::{
    AdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
};
use turn_types::message::{ALLOCATE, CONNECT, REFRESH};

use super::direct::{Direct, MOBILITY_TICKET, User, at, config, only};
use super::secs;

/// Asks for each of these peers in every way there is. Nothing may be granted, or leave.
fn assert_denied(peers: &[&str]) {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let both = AdditionalAddressFamily::new(AddressFamily::IPV6);
    direct.allocate_with(&mut anna, &[&both]);
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    let mut streams = [AddressFamily::IPV4, AddressFamily::IPV6].map(|family| {
        let mut stream = User::stream(u64::from(family == AddressFamily::IPV6), "192.0.2.1:5001");
        let family = RequestedAddressFamily::new(family);
        assert_eq!(direct.ask(&mut stream, ALLOCATE, &[&tcp, &family]).error(), None);
        stream
    });
    for peer in peers {
        let peer: SocketAddr = SocketAddr::new(peer.parse().unwrap(), 80);
        assert_eq!(direct.permit(&mut anna, peer), Some(403), "{peer}");
        assert_eq!(direct.bind(&mut anna, 0x4000, peer), Some(403), "{peer}");
        assert!(direct.send(&anna, peer, b"x").is_empty(), "{peer}");
        let stream = &mut streams[usize::from(peer.is_ipv6())];
        let attribute = direct.peer(stream, peer);
        let error = direct.ask(stream, CONNECT, &[&attribute]).error();
        assert_eq!(error, Some(403), "{peer}");
    }
    assert!(direct.flows.is_empty() && direct.attempts.is_empty());
    assert_eq!(direct.count(Count::PeerDenied), 4 * peers.len() as u64);
}

#[test]
fn peer_on_loopback_is_denied_by_default() {
    assert_denied(&["127.0.0.1", "127.1.2.3", "::1"]);
}

#[test]
fn unspecified_peer_is_denied() {
    assert_denied(&["0.0.0.0", "0.1.2.3", "::"]);
}

#[test]
fn peer_as_ipv4_mapped_loopback_is_denied() {
    assert_denied(&[
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
    ]);
}

#[test]
fn peer_as_ipv4_compatible_address_is_denied() {
    assert_denied(&["::127.0.0.1", "::10.0.0.1", "::169.254.169.254"]);
}

#[test]
fn peer_behind_6to4_nat64_and_teredo_is_denied() {
    assert_denied(&["2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2001:0:a00:1::1"]);
}

#[test]
fn internal_multicast_and_metadata_peers_are_denied() {
    assert_denied(&["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"]);
    assert_denied(&["224.0.0.1", "255.255.255.255", "fe80::1", "fc00::1", "ff02::1"]);
}

#[test]
fn server_itself_is_no_peer() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    // The address is allowed, because other clients' relayed transport addresses are on it.
    for port in [22, 80, 3478, 5349] {
        let own = SocketAddr::new(relayed.ip(), port);
        direct.bind(&mut anna, 0x4000 + port, own);
        assert!(direct.send(&anna, own, b"x").is_empty());
        assert!(direct.channel(&anna, 0x4000 + port, b"x").is_empty());
    }
    assert!(direct.flows.is_empty());
    assert!(direct.count(Count::OwnAddress) >= 4);
}

#[test]
fn attributes_behind_the_integrity_change_nothing() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    let transaction = direct.transaction();
    let mut bytes = anna.sign(REFRESH, transaction, &[]);
    // LIFETIME 0, which nobody has signed.
    bytes.extend_from_slice(&[0x00, 0x0d, 0x00, 0x04, 0, 0, 0, 0]);
    let length = (bytes.len() - MessageHeader::LENGTH) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let sent = only(direct.control(&anna.client, &bytes)).unwrap();
    assert_eq!(super::direct::Answer(sent.bytes).lifetime(), Some(600));
    assert_eq!(direct.server.allocation_count(), 1);
}

#[test]
fn message_with_something_behind_it_is_dropped() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    let transaction = direct.transaction();
    let bytes = anna.sign(REFRESH, transaction, &[&Lifetime::new(0)]);
    for wrong in [[&bytes[..], &[0; 4]].concat(), bytes[..bytes.len() - 4].to_vec()] {
        assert!(direct.control(&anna.client, &wrong).is_empty());
    }
    assert_eq!(direct.server.allocation_count(), 1);
    assert_eq!(direct.count(Count::Malformed), 2);
}

#[test]
fn padding_of_answers_is_zero() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let unknown: Vec<_> = (0..3)
        .map(|number| RawAttribute::new(AttributeType::new(0x7f00 + number), &[0xff; 3]))
        .collect();
    let unknown: Vec<&dyn stun_types::attribute::AttributeWrite> =
        unknown.iter().map(|it| it as _).collect();
    let mut answers = vec![direct.allocate_with(&mut anna, &unknown)];
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    answers.push(direct.allocate_with(&mut anna, &[&empty]));
    answers.push(direct.permit_answer(&mut anna, &[at("127.0.0.1:1")]));
    let peer = at("203.0.113.5:1");
    direct.permit(&mut anna, peer);
    let relayed = direct.server.allocations(direct.now).next().unwrap().relayed[0];
    for data in [&b"a"[..], b"ab", b"abc", b"abcd"] {
        let sent = only(direct.data(relayed, peer, data)).unwrap();
        answers.push(super::direct::Answer(sent.bytes));
    }
    let mut padded = 0;
    for answer in &answers {
        let mut at = MessageHeader::LENGTH;
        while at < answer.0.len() {
            let length = usize::from(u16::from_be_bytes([answer.0[at + 2], answer.0[at + 3]]));
            let (end, next) = (at + 4 + length, at + 4 + length.next_multiple_of(4));
            assert!(answer.0[end..next].iter().all(|byte| *byte == 0));
            padded += next - end;
            at = next;
        }
    }
    assert!(padded > 6, "there is padding to look at");
}

#[test]
fn nothing_of_a_stranger_comes_back_in_an_error() {
    let mut direct = Direct::new();
    let name = "%s%n${jndi}<script>\r\n";
    for nonce in [None, Some("%n%n%n%n".to_owned())] {
        let mut stranger = User { nonce, ..User::anna("192.0.2.1:5000") };
        stranger.name = name.to_owned();
        let transaction = direct.transaction();
        let udp = RequestedTransport::new(RequestedTransport::UDP);
        let bytes = stranger.sign(ALLOCATE, transaction, &[&udp]);
        let answer = only(direct.control(&stranger.client, &bytes)).unwrap().bytes;
        assert!(matches!(super::direct::Answer(answer.clone()).error(), Some(401 | 438)));
        let has = |needle: &[u8]| answer.windows(needle.len()).any(|window| window == needle);
        assert!(!has(b"%n") && !has(b"script"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn messages_are_read_at_any_alignment() {
    let mut direct = Direct::new();
    for offset in 0..8 {
        let mut anna = User::anna(&format!("192.0.2.1:{}", 5_000 + offset));
        anna.nonce = Some(direct.nonce(&anna.client));
        let transaction = direct.transaction();
        let udp = RequestedTransport::new(RequestedTransport::UDP);
        let signed = anna.sign(ALLOCATE, transaction, &[&udp]);
        let shifted = [&[0; 8][..offset], &signed].concat();
        let sent = only(direct.control(&anna.client, &shifted[offset..])).unwrap();
        assert_eq!(super::direct::Answer(sent.bytes).error(), None);
    }
    assert_eq!(direct.server.allocation_count(), 8);
}

#[test]
fn ipv6_prefixes_are_compared_as_numbers() {
    let mut config = config();
    config.peers.allow = vec!["2001:db8::/32".parse().unwrap()];
    config.peers.deny = vec!["2001:db8:10:ff00::/56".parse().unwrap()];
    let mut direct = Direct::with(config);
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate_with(&mut anna, &[&RequestedAddressFamily::new(AddressFamily::IPV6)]);
    // Each byte of those outside is also one of the range's first or last address.
    for (peer, error) in [
        ("2001:db8:10:ff00::", Some(403)),
        ("2001:db8:10:ff00:ffff::1", Some(403)),
        ("2001:db8:10:ffff:ffff:ffff:ffff:ffff", Some(403)),
        ("2001:db8:10:feff:ffff:ffff:ffff:ffff", None),
        ("2001:db8:11::", None),
        ("2001:db8:f:ffff::", None),
        ("2001:db9:10:ff00::", None),
    ] {
        let peer = SocketAddr::new(peer.parse().unwrap(), 1);
        assert_eq!(direct.permit(&mut anna, peer), error, "{peer}");
    }
}

#[test]
fn even_port_without_reservation_opens_one_port() {
    let mut direct = Direct::new();
    for port in 0..50 {
        let mut anna = User::anna(&format!("192.0.2.1:{}", 5_000 + port));
        let answer = direct.allocate_with(&mut anna, &[&EvenPort::new(false)]);
        assert_eq!(answer.relayed()[0].port() % 2, 0);
        assert_eq!(direct.open.len(), 1);
        direct.refresh(&mut anna, 0);
        assert!(direct.open.is_empty());
    }
}

#[test]
fn reserved_ports_are_bounded_by_their_user_quota() {
    let mut config = config();
    config.turn.limits = TurnLimits { allocations_per_user: 10, ..TurnLimits::default() };
    let mut direct = Direct::with(config);
    let mut refused = 0;
    for port in 0..100 {
        let mut anna = User::anna(&format!("192.0.2.1:{}", 5_000 + port));
        let answer = direct.allocate_with(&mut anna, &[&EvenPort::new(true)]);
        refused += u32::from(answer.error() == Some(486));
        if answer.error().is_none() {
            direct.refresh(&mut anna, 0);
        }
        assert!(direct.open.len() <= 10);
    }
    assert!(refused > 80);
    direct.pass(secs(31));
    assert!(direct.open.is_empty());
}

#[test]
fn ticket_of_another_user_takes_nothing_over() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    let ticket = direct.allocate_with(&mut anna, &[&empty]).ticket().unwrap();
    let mut bert = User::bert("203.0.113.77:1");
    for lifetime in [600, 0] {
        let ticket = RawAttribute::new(MOBILITY_TICKET, &ticket);
        let answer = direct.ask(&mut bert, REFRESH, &[&ticket, &Lifetime::new(lifetime)]);
        assert_eq!((answer.error(), answer.ticket()), (Some(441), None));
    }
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!((view.client, &*view.user), (anna.client, "anna"));
    assert_eq!(direct.refresh(&mut anna, 600).error(), None);
}

#[test]
fn moving_does_not_release_the_quota() {
    let mut config = config();
    config.turn.limits = TurnLimits { allocations_per_user: 1, ..TurnLimits::default() };
    config.turn.mobility = true;
    let mut direct = Direct::with(config);
    let mut anna = User::stream(1, "192.0.2.1:5000");
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    let ticket = direct.allocate_with(&mut anna, &[&empty]).ticket().unwrap();
    // Neither the lost stream nor the move gives back what the allocation was charged.
    direct.server.connection_gone(direct.now, anna.client.connection().unwrap());
    direct.drain();
    let mut other = User::anna("192.0.2.1:6000");
    assert_eq!(direct.allocate_with(&mut other, &[]).error(), Some(486));
    let mut elsewhere = User::anna("203.0.113.77:1");
    let ticket = RawAttribute::new(MOBILITY_TICKET, &ticket);
    assert_eq!(direct.ask(&mut elsewhere, REFRESH, &[&ticket]).error(), None);
    assert_eq!(direct.allocate_with(&mut other, &[]).error(), Some(486));
    direct.refresh(&mut elsewhere, 0);
    assert_eq!(direct.allocate_with(&mut other, &[]).error(), None);
}

#[test]
fn failed_moves_leave_nothing_behind() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let empty = RawAttribute::new(MOBILITY_TICKET, &[]);
    let ticket = direct.allocate_with(&mut anna, &[&empty]).ticket().unwrap();
    let before = direct.server.poll_timeout();
    for number in 0..1_000_u16 {
        let mut forged = ticket.clone();
        forged[4..6].copy_from_slice(&number.to_be_bytes());
        let mut elsewhere = User::anna(&format!("203.0.113.77:{}", 1_000 + number));
        let forged = RawAttribute::new(MOBILITY_TICKET, &forged);
        assert_eq!(direct.ask(&mut elsewhere, REFRESH, &[&forged]).error(), Some(400));
    }
    assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (1, 1));
    assert_eq!(direct.server.poll_timeout(), before);
}

#[test]
fn unauthenticated_requests_leave_nothing_behind() {
    let mut direct = Direct::new();
    let before = direct.server.poll_timeout();
    for number in 0..1_000_u16 {
        let from = SocketAddr::from(([203, 0, (number >> 8) as u8, number as u8], 5_000));
        let stranger = User { nonce: Some("guess".into()), ..User::anna(&from.to_string()) };
        let transaction = direct.transaction();
        let udp = RequestedTransport::new(RequestedTransport::UDP);
        let bytes = stranger.sign(ALLOCATE, transaction, &[&udp, &EvenPort::new(true)]);
        for sent in direct.control(&stranger.client, &bytes) {
            assert_eq!(super::direct::Answer(sent.bytes).error(), Some(438));
        }
        direct.send(&stranger, at("203.0.113.5:1"), b"x");
        direct.channel(&stranger, 0x4000, b"x");
    }
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.server.poll_timeout(), before);
    assert!(direct.commands.iter().all(|it| !matches!(it, Command::Pair { .. })));
}

#[test]
fn authenticated_client_cannot_grow_tables_without_bound() {
    let limits = TurnLimits::default();
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    for number in 0..=0xfff_u16 {
        let peer = SocketAddr::from(([203, 0, 113, number as u8], 1 + number));
        direct.bind(&mut anna, 0x4000 + number, peer);
        let peer = SocketAddr::from(([192, 0, 2, number as u8], 1));
        direct.permit(&mut anna, peer);
    }
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!(view.channels, limits.channels_per_allocation);
    assert!(view.permissions <= limits.permissions_per_allocation);
    assert_eq!(direct.flows.len(), 2 * view.channels);
    direct.refresh(&mut anna, 0);
    assert!(direct.flows.is_empty());
}
