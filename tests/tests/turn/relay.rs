//! Send and Data indications, hairpins, ICMP (RFC 8656 §11, §14).

use rawr_proto::ChannelNumber;
use rawr_userspace::control::{Count, Icmp, Source};
use rawr_userspace::dataplane::Leg;
use stun_types::attribute::{AttributeType, RawAttribute};
use stun_types::message::MessageClass;
use turn_types::attribute::{DontFragment, Icmp as IcmpAttribute, XorPeerAddress};

use super::direct::{Answer, Direct, User, at, config, local, only};

const PEER: &str = "203.0.113.5:9000";

#[test]
fn send_indication_needs_a_permission() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    assert!(direct.send(&anna, at(PEER), b"x").is_empty());
    assert_eq!(direct.count(Count::NoPermission), 1);
    direct.permit(&mut anna, at(PEER));
    let sent = only(direct.send(&anna, at(PEER), b"hello")).unwrap();
    assert_eq!(
        (sent.from, sent.to, &sent.bytes[..]),
        (Source::Data(relayed), at(PEER), &b"hello"[..])
    );
    assert_eq!(only(direct.send(&anna, at(PEER), b"")).unwrap().bytes, b"");
    // A permission is for this client alone.
    let bert = User::bert("192.0.2.2:5000");
    assert!(direct.send(&bert, at(PEER), b"x").is_empty());
    let view = direct.server.allocations(direct.now).next().unwrap();
    assert_eq!((view.to_peers.packets, view.to_peers.bytes), (2, 5));
}

#[test]
fn dont_fragment_is_taken_over_for_each_datagram() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    direct.permit(&mut anna, at(PEER));
    let sent = only(direct.send_with(&anna, at(PEER), b"x", &[&DontFragment::new()])).unwrap();
    assert_eq!(sent.from, Source::DataUnfragmented(relayed));
    assert_eq!(only(direct.send(&anna, at(PEER), b"x")).unwrap().from, Source::Data(relayed));
}

#[test]
fn indications_with_what_is_not_understood_are_dropped() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    direct.permit(&mut anna, at(PEER));
    let unknown = RawAttribute::new(AttributeType::new(0x7ff0), &[0; 4]);
    assert!(direct.send_with(&anna, at(PEER), b"x", &[&unknown]).is_empty());
    let optional = RawAttribute::new(AttributeType::new(0xfff0), &[0; 4]);
    assert!(only(direct.send_with(&anna, at(PEER), b"x", &[&optional])).is_some());
}

#[test]
fn hairpin_with_channels_is_one_pair_of_the_two_clients() {
    let mut direct = Direct::new();
    let (mut anna, mut bert) = (User::anna("192.0.2.1:5000"), User::bert("192.0.2.2:6000"));
    let (a, b) = (direct.allocate(&mut anna), direct.allocate(&mut bert));
    assert_eq!(direct.bind(&mut anna, 0x4000, b), None);
    // As long as one has no channel, nothing is forwarded, and nothing leaves by a relay socket.
    assert!(direct.flows.is_empty());
    assert!(direct.channel(&anna, 0x4000, b"x").is_empty());
    direct.permit(&mut bert, a);
    let sent = only(direct.channel(&anna, 0x4000, b"hello")).unwrap();
    assert_eq!((sent.from, sent.to), (Source::Control(local()), bert.client.remote));
    assert_eq!(Answer(sent.bytes).data(), Some((a, b"hello".to_vec())));

    assert_eq!(direct.bind(&mut bert, 0x4abc, a), None);
    let leg =
        |user: &User, number| Leg::shared(local(), user.client.remote, ChannelNumber::new(number));
    let (near, far) = (leg(&anna, 0x4000), leg(&bert, 0x4abc));
    assert_eq!(direct.flows, [(near, far), (far, near)].into());
    let sent = only(direct.channel(&bert, 0x4abc, b"back")).unwrap();
    assert_eq!((sent.to, &sent.bytes[..]), (anna.client.remote, &b"\x40\x00\x00\x04back"[..]));

    // When one goes, so does the pair, and comes again with it.
    direct.refresh(&mut bert, 0);
    assert!(direct.flows.is_empty());
    assert!(direct.channel(&anna, 0x4000, b"x").is_empty());
    assert_eq!(direct.count(Count::OwnAddress), 1);
}

#[test]
fn hairpin_reaches_the_advertised_address_too() {
    let mut config = config();
    config.turn.advertised = vec![(local().ip(), at("203.0.113.99:0").ip())];
    let mut direct = Direct::with(config);
    let (mut anna, mut bert) = (User::anna("192.0.2.1:5000"), User::bert("192.0.2.2:6000"));
    let (a, b) = (direct.allocate(&mut anna), direct.allocate(&mut bert));
    direct.bind(&mut anna, 0x4000, b);
    direct.bind(&mut bert, 0x4000, a);
    assert_eq!(direct.flows.len(), 2);
    let sent = only(direct.channel(&anna, 0x4000, b"hello")).unwrap();
    assert_eq!((sent.to, &sent.bytes[..]), (bert.client.remote, &b"\x40\x00\x00\x05hello"[..]));
    // Bound or advertised: to a peer outside it is the socket's.
    direct.permit(&mut anna, at(PEER));
    let sent = only(direct.send(&anna, at(PEER), b"x")).unwrap();
    assert_eq!(sent.from, Source::Data(std::net::SocketAddr::new(local().ip(), a.port())));
}

#[test]
fn channel_to_oneself_is_relayed_by_userspace() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    direct.bind(&mut anna, 0x4000, relayed);
    assert!(direct.flows.is_empty());
    let sent = only(direct.channel(&anna, 0x4000, b"echo")).unwrap();
    assert_eq!((sent.to, &sent.bytes[..]), (anna.client.remote, &b"\x40\x00\x00\x04echo"[..]));
}

#[test]
fn clients_are_told_of_icmp_errors_of_permitted_peers() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    let unreachable = Icmp { kind: 3, code: 4, data: 1_400 };
    direct.server.icmp(direct.now, relayed, at(PEER), unreachable);
    assert!(direct.drain().is_empty());
    direct.permit(&mut anna, at(PEER));
    direct.server.icmp(direct.now, relayed, at(PEER), unreachable);
    let sent = only(direct.drain()).unwrap();
    assert_eq!(sent.to, anna.client.remote);
    let answer = Answer(sent.bytes);
    let message = answer.message();
    assert_eq!(message.class(), MessageClass::Indication);
    let icmp = message.attribute::<IcmpAttribute>().unwrap();
    assert_eq!((icmp.icmp_type(), icmp.code(), icmp.data()), (3, 4, 1_400));
    let peer = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
    assert_eq!(peer, at(PEER));
    assert_eq!(answer.data(), None);
    // RFC 8656 §11.5 names the types.
    for kind in [0, 5, 8, 12] {
        direct.server.icmp(direct.now, relayed, at(PEER), Icmp { kind, code: 0, data: 0 });
        assert!(direct.drain().is_empty(), "{kind}");
    }
    direct.server.icmp(direct.now, relayed, at(PEER), Icmp { kind: 11, code: 0, data: 0 });
    assert_eq!(direct.drain().len(), 1);
}

#[test]
fn data_to_a_port_that_nobody_has_is_counted_and_dropped() {
    let mut direct = Direct::new();
    assert!(direct.data(at("198.51.100.1:50000"), at(PEER), b"x").is_empty());
    assert_eq!(direct.count(Count::UnknownPort), 1);
}
