//! Permissions and channels, and what of them the data plane does (RFC 8656 §9, §10, §12).

use rawr_proto::ChannelNumber;
use rawr_userspace::control::{Count, Source};
use rawr_userspace::dataplane::Leg;
use stun_types::AddressFamily;
use turn_types::attribute::{AdditionalAddressFamily, ChannelNumber as Number};
use turn_types::message::{CHANNEL_BIND, CREATE_PERMISSION};

use super::direct::{Answer, Direct, User, at, local, only};
use super::secs;

const PEER: &str = "203.0.113.5:9000";

fn number(number: u16) -> Option<ChannelNumber> {
    ChannelNumber::new(number)
}

#[test]
fn permission_lets_a_peer_in_for_five_minutes() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    assert!(direct.data(relayed, at(PEER), b"early").is_empty());
    assert_eq!(direct.count(Count::NoPermission), 1);
    assert_eq!(direct.permit(&mut anna, at(PEER)), None);
    // Of any port of the peer.
    for peer in [at(PEER), at("203.0.113.5:1")] {
        let sent = only(direct.data(relayed, peer, b"hello")).unwrap();
        assert_eq!((sent.from, sent.to), (Source::Control(local()), anna.client.remote));
        assert_eq!(Answer(sent.bytes).data(), Some((peer, b"hello".to_vec())));
    }
    assert!(direct.data(relayed, at("203.0.113.6:9000"), b"other").is_empty());
    direct.pass(secs(299));
    assert!(only(direct.data(relayed, at(PEER), b"late")).is_some());
    direct.pass(secs(1));
    assert!(direct.data(relayed, at(PEER), b"too late").is_empty());
    // A request starts it anew, data does not.
    direct.refresh(&mut anna, 3_600);
    direct.permit(&mut anna, at(PEER));
    direct.pass(secs(200));
    direct.permit(&mut anna, at(PEER));
    direct.pass(secs(299));
    assert!(only(direct.data(relayed, at(PEER), b"again")).is_some());
    direct.pass(secs(1));
    assert!(direct.data(relayed, at(PEER), b"over").is_empty());
}

#[test]
fn permissions_come_all_together_or_not_at_all() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    assert_eq!(direct.ask(&mut anna, CREATE_PERMISSION, &[]).error(), Some(400));
    let bad = at("127.0.0.1:9000");
    assert_eq!(direct.permit_all(&mut anna, &[at(PEER), bad]), Some(403));
    assert!(direct.data(relayed, at(PEER), b"x").is_empty());
    let other = at("[2001:db8:2::5]:9000");
    assert_eq!(direct.permit_all(&mut anna, &[at(PEER), other]), Some(443));
    assert!(direct.data(relayed, at(PEER), b"x").is_empty());
    let two = [at(PEER), at("203.0.113.6:1")];
    assert_eq!(direct.permit_all(&mut anna, &two), None);
    assert!(two.iter().all(|peer| only(direct.data(relayed, *peer, b"x")).is_some()));
}

#[test]
fn without_an_allocation_everything_is_437() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    assert_eq!(direct.permit(&mut anna, at(PEER)), Some(437));
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), Some(437));
    assert!(direct.send(&anna, at(PEER), b"x").is_empty());
    assert!(direct.channel(&anna, 0x4000, b"x").is_empty());
    assert_eq!(direct.count(Count::NoAllocation), 2);
}

#[test]
fn bound_channel_is_forwarded_and_refreshed_silently() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), None);
    let a = Leg::shared(local(), anna.client.remote, number(0x4000));
    let b = Leg::shared(relayed, at(PEER), None);
    assert_eq!(direct.flows, [(a, b), (b, a)].into());
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), None);
    assert_eq!(direct.count(Count::PairedChannel), 1);
    assert_eq!(direct.count(Count::ChannelBind), 2);
    // What the data plane leaves to userspace goes the same way.
    let sent = only(direct.channel(&anna, 0x4000, b"to peer")).unwrap();
    assert_eq!((sent.from, sent.to), (Source::Data(relayed), at(PEER)));
    assert_eq!(sent.bytes, b"to peer");
    let sent = only(direct.data(relayed, at(PEER), b"to client")).unwrap();
    assert_eq!(sent.bytes, b"\x40\x00\x00\x09to client");
    // Padded, as over a stream, and with a length that is not there.
    let padded = b"\x40\x00\x00\x03abc\0";
    assert_eq!(only(direct.control(&anna.client, padded)).unwrap().bytes, b"abc");
    assert!(direct.control(&anna.client, b"\x40\x00\x00\x05abc\0").is_empty());
    let empty = only(direct.control(&anna.client, b"\x40\x00\x00\x00")).unwrap();
    assert_eq!(empty.bytes, b"");
}

#[test]
fn forwarding_ends_with_the_permission_the_channel_and_the_allocation() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    direct.refresh(&mut anna, 3_600);
    direct.bind(&mut anna, 0x4000, at(PEER));
    // The permission lasts five minutes, the channel ten.
    direct.pass(secs(301));
    assert!(direct.flows.is_empty());
    assert!(direct.data(relayed, at(PEER), b"x").is_empty());
    direct.permit(&mut anna, at(PEER));
    assert_eq!(direct.flows.len(), 2);
    direct.pass(secs(298));
    assert_eq!(direct.flows.len(), 2);
    direct.pass(secs(2));
    assert!(direct.flows.is_empty());
    assert!(direct.channel(&anna, 0x4000, b"x").is_empty());
    assert_eq!(direct.count(Count::NoChannel), 1);

    direct.bind(&mut anna, 0x4001, at(PEER));
    assert_eq!(direct.flows.len(), 2);
    direct.refresh(&mut anna, 0);
    assert!(direct.flows.is_empty() && direct.open.is_empty());

    direct.allocate(&mut anna);
    direct.bind(&mut anna, 0x4000, at(PEER));
    direct.pass(secs(600));
    assert!(direct.flows.is_empty() && direct.open.is_empty());
}

#[test]
fn refreshed_channel_is_forwarded_without_a_gap() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    direct.refresh(&mut anna, 3_600);
    for _ in 0..10 {
        direct.bind(&mut anna, 0x4000, at(PEER));
        direct.pass(secs(299));
        assert_eq!(direct.flows.len(), 2);
    }
    assert_eq!(direct.count(Count::PairedChannel), 1);
}

#[test]
fn channel_numbers_have_bounds_and_one_peer_each() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    direct.allocate(&mut anna);
    for number in [0, 0x3fff, 0x5000, 0x7fff, 0xffff] {
        assert_eq!(direct.bind(&mut anna, number, at(PEER)), Some(400), "{number:#x}");
    }
    for number in [0x4000, 0x4fff] {
        let peer = at(&format!("203.0.113.5:{number}"));
        assert_eq!(direct.bind(&mut anna, number, peer), None);
    }
    // RFC 8656 §12.2: neither another peer for the channel, nor another channel for the peer.
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), Some(400));
    assert_eq!(direct.bind(&mut anna, 0x4001, at("203.0.113.5:16384")), Some(400));
    let peer = direct.peer(&anna, at(PEER));
    assert_eq!(direct.ask(&mut anna, CHANNEL_BIND, &[&peer]).error(), Some(400));
    assert_eq!(direct.ask(&mut anna, CHANNEL_BIND, &[&Number::new(0x4002)]).error(), Some(400));
    assert_eq!(direct.bind(&mut anna, 0x4002, at("[2001:db8:2::5]:1")), Some(443));
    assert_eq!(direct.bind(&mut anna, 0x4002, at("10.0.0.1:1")), Some(403));
    assert_eq!(direct.server.allocations(direct.now).next().unwrap().channels, 2);
    // Once it has expired, it may be bound to another peer.
    direct.refresh(&mut anna, 3_600);
    direct.pass(secs(601));
    assert_eq!(direct.bind(&mut anna, 0x4000, at(PEER)), None);
}

#[test]
fn channels_reach_both_families() {
    let mut direct = Direct::new();
    let mut anna = User::anna("192.0.2.1:5000");
    let both = AdditionalAddressFamily::new(AddressFamily::IPV6);
    let relayed = direct.allocate_with(&mut anna, &[&both]).relayed();
    let peers = [at(PEER), at("[2001:db8:2::5]:9000")];
    for (at, peer) in peers.into_iter().enumerate() {
        assert_eq!(direct.bind(&mut anna, 0x4000 + at as u16, peer), None);
        let leg = Leg::shared(relayed[at], peer, None);
        assert!(direct.flows.contains_key(&leg));
    }
    assert_eq!(direct.flows.len(), 4);
}

#[test]
fn streams_are_not_forwarded_but_relayed_and_padded() {
    let mut direct = Direct::new();
    let mut anna = User::stream(7, "192.0.2.1:5000");
    let relayed = direct.allocate(&mut anna);
    direct.bind(&mut anna, 0x4000, at(PEER));
    assert!(direct.flows.is_empty());
    let sent = only(direct.channel(&anna, 0x4000, b"abc")).unwrap();
    assert_eq!((sent.from, sent.to), (Source::Data(relayed), at(PEER)));
    let sent = only(direct.data(relayed, at(PEER), b"abc")).unwrap();
    assert_eq!(sent.from, anna.source());
    assert_eq!(sent.bytes, b"\x40\x00\x00\x03abc\0");
}

#[test]
fn stream_takes_its_allocation_along() {
    let mut direct = Direct::new();
    let mut anna = User::stream(7, "192.0.2.1:5000");
    direct.allocate(&mut anna);
    direct.server.connection_gone(direct.now, anna.client.connection().unwrap());
    direct.drain();
    assert_eq!((direct.server.allocation_count(), direct.open.len()), (0, 0));
    assert_eq!(direct.count(Count::LostAllocation), 1);
}
