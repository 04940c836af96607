//! STUN Binding requests that the program answers, and those that it leaves to userspace.

use std::iter;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rawr_common::entry::Account;
use rawr_common::flow::{Exit, Flow4, Flow6, Place, Rate, flags};
use rawr_common::reason::Reason;
use rawr_common::relay::Verdict;
use rawr_proto::ServerId;
use rawr_tests::kernel::action;
use rawr_tests::packet::{Packet, SERVICE_VLAN, VLAN};
use rawr_tests::world::{ENTRIES, Entry, INGRESS, MTU, STUN_PORT, channel};
use rawr_userspace::control::{Client, Command, Kind, Now, Server, ServerConfig};

use crate::harness::Relay;

const TRANSACTION: [u8; 12] = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// The exit that answers leave by, and the MAC address of ours that requests come to.
const SLOT: u8 = 31;
const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, SLOT];

#[test]
fn answers_as_built_from_scratch() {
    let Some(mut relay) = listening("answers_as_built_from_scratch") else { return };
    for v4 in [true, false] {
        for tags in [vec![], vec![(VLAN, 5)], vec![(SERVICE_VLAN, 6), (VLAN, 5)]] {
            for with_fingerprint in [false, true] {
                for padding in [0, 7] {
                    let request = Packet {
                        tags: tags.clone(),
                        padding,
                        payload: message([0, 1], &[], with_fingerprint),
                        ..to_us(v4)
                    };
                    answers(&mut relay, &request, with_fingerprint);
                }
            }
        }
    }
}

/// Transaction IDs, addresses and ports of all kinds.
#[test]
fn answers_whoever_asks() {
    let Some(mut relay) = listening("answers_whoever_asks") else { return };
    for turn in 0..2000_u32 {
        let mut request = to_us(turn % 2 == 0);
        request.src.set_port(1 + (turn * 7919 % 65_535) as u16);
        request.src.set_ip(match request.src.ip() {
            IpAddr::V4(_) => (0x0a00_0000 + turn * 65_521).to_be_bytes().into(),
            IpAddr::V6(_) => {
                let word = |at: u32| (0x2000 + (turn * 40_503 + at * 9973) % 0x1fff) as u16;
                std::array::from_fn::<u16, 8, _>(|at| word(at as u32)).into()
            }
        });
        let with_fingerprint = turn % 3 == 0;
        request.payload = message([0, 1], &[], with_fingerprint);
        answers(&mut relay, &request, with_fingerprint);
    }
}

#[test]
fn all_other_requests_are_passed_up() {
    let Some(mut relay) = listening("all_other_requests_are_passed_up") else { return };
    let software = [0x80, 0x22, 0, 4, b'r', b'a', b'w', b'r'];
    for v4 in [true, false] {
        let mut broken = message([0, 1], &[], true);
        broken[27] ^= 1;
        let mut cookie = message([0, 1], &[], false);
        cookie[4] ^= 1;
        let messages = [
            // With an attribute; as long as one with FINGERPRINT; with both.
            message([0, 1], &[0x80, 0x22, 0, 0], false),
            message([0, 1], &software, false),
            message([0, 1], &software, true),
            // An indication, an answer, another method.
            message([0, 0x11], &[], false),
            message([1, 1], &[], false),
            message([0, 3], &[], false),
            broken,
            cookie,
        ];
        for payload in messages {
            relay.passes(&Packet { payload, ..to_us(v4) }.frame(), Reason::NoFlow);
        }
    }
}

#[test]
fn requests_to_or_from_others_are_passed_up() {
    let Some(mut relay) = listening("requests_to_or_from_others_are_passed_up") else { return };
    for v4 in [true, false] {
        let request = Packet { payload: message([0, 1], &[], false), ..to_us(v4) };
        let mut others = vec![request.clone(); 4];
        others[0].dst.set_port(STUN_PORT + 1);
        // Another address of which the entry's index is the same.
        others[1].dst.set_ip(if v4 {
            "192.0.3.1".parse().unwrap()
        } else {
            "2001:db8:2::1".parse().unwrap()
        });
        others[2].src.set_port(0);
        others[3].src.set_ip(if v4 { [0; 4].into() } else { [0; 16].into() });
        let unsound: &[&str] =
            if v4 { &["127.0.0.1", "224.0.0.1", "255.255.255.255"] } else { &["ff02::1", "::1"] };
        for address in unsound {
            let mut other = request.clone();
            other.src.set_ip(address.parse().unwrap());
            others.push(other);
        }
        for other in others {
            relay.passes(&other.frame(), Reason::NoFlow);
        }
        // By another interface's MAC address, or to all: not for us alone.
        for dst_mac in [[0xff; 6], [0x02, 0, 0, 0, 9, 9]] {
            relay.passes(&Packet { dst_mac, ..request.clone() }.frame(), Reason::NoEgress);
        }
        relay.passes(&Packet { checksum: false, ..request }.frame(), Reason::NoChecksum);
    }
}

#[test]
fn a_wrong_checksum_is_answered_with_a_wrong_one() {
    let Some(mut relay) = listening("a_wrong_checksum_is_answered_with_a_wrong_one") else {
        return;
    };
    let request = Packet { payload: message([0, 1], &[], false), ..to_us(true) };
    let mut frame = request.frame();
    let last = frame.len() - 1;
    frame[last] ^= 0xff;
    let mut expected = answer(&request, false).frame();
    expected[request.udp_offset() + 8 + 19] ^= 0xff;
    assert_eq!(relay.kernel.run(&frame, 1).unwrap().frame, expected);
    assert_eq!(relay.host.run(&frame), (Verdict::Transmit, expected));
}

#[test]
fn without_headroom_requests_are_passed_up() {
    let Some(mut relay) = listening("without_headroom_requests_are_passed_up") else { return };
    (relay.host.headroom, relay.host.tailroom) = (11, 0);
    let request = Packet { payload: message([0, 1], &[], false), ..to_us(true) };
    let (verdict, frame) = relay.host.run(&request.frame());
    assert_eq!((verdict, frame), (Verdict::Pass(Reason::NoHeadroom), request.frame()));
}

#[test]
fn beyond_the_rate_requests_are_passed_up() {
    let Some(mut relay) = listening("beyond_the_rate_requests_are_passed_up") else { return };
    // After the burst, another answer of 60 bytes fits each quarter of a second.
    relay.kernel.set_rate(5, Rate::new(256, Duration::from_secs(40))).unwrap();
    listen(&mut relay, Some(5));
    let request = Packet { payload: message([0, 1], &[], false), ..to_us(true) };
    let run = |_| relay.kernel.run(&request.frame(), 1).unwrap().action;
    let actions: Vec<u32> = (0..400).map(run).collect();
    let (burst, rest) = actions.split_at(40 * 256 / 60);
    assert!(burst.iter().all(|run| *run == action::TX), "{burst:?}");
    let passed = rest.iter().filter(|run| **run == action::PASS).count() as u64;
    let answered = rest.iter().filter(|run| **run == action::TX).count() as u64;
    assert_eq!(passed + answered, rest.len() as u64, "{rest:?}");
    assert!(passed > answered, "{passed} passed up, {answered} answered");
    assert_eq!(relay.kernel.reasons().unwrap(), [(Reason::BindingLimited, passed)]);
}

#[test]
fn a_listener_is_no_flow_and_hides_none() {
    let Some(mut relay) = listening("a_listener_is_no_flow_and_hides_none") else { return };
    for v4 in [true, false] {
        // ChannelData to the same port.
        let route = channel(v4, v4, (true, false));
        for len in [16, 20, 24, 28] {
            relay.forwards(&route, &Packet { payload: vec![1; len], ..route.packet() });
        }
        // Whose ends are those of the entry itself.
        let mut packet = to_us(v4);
        packet.src.set_ip(if v4 { [0; 4].into() } else { [0; 16].into() });
        packet.src.set_port(0);
        relay.passes(&packet.frame(), Reason::NoFlow);
    }
}

/// A datagram from a peer to the STUN port.
fn to_us(v4: bool) -> Packet {
    let mut packet = channel(v4, v4, (true, true)).packet();
    (packet.channel, packet.dst_mac) = (None, OUR_MAC);
    packet
}

fn listening(test: &str) -> Option<Relay> {
    let mut relay = Relay::new(test)?;
    let exit = Exit::new(INGRESS, OUR_MAC, MTU).transmitting(true);
    relay.kernel.set_exit(SLOT, &exit).unwrap();
    relay.host.exits[usize::from(SLOT)] = exit;
    listen(&mut relay, None);
    Some(relay)
}

fn listen(relay: &mut Relay, rate: Option<u32>) {
    let account = Account { generation: 3, rate };
    let place = Place::Port(u32::from(STUN_PORT) % ENTRIES);
    for v4 in [true, false] {
        relay.set(match to_us(v4).dst.ip() {
            IpAddr::V4(ip) => {
                Entry::V4(place, Flow4::listener(ip.octets(), STUN_PORT, SLOT, account))
            }
            IpAddr::V6(ip) => {
                Entry::V6(place, Flow6::listener(ip.octets(), STUN_PORT, SLOT, account))
            }
        });
    }
    const { assert!(flags::LISTENER & flags::TO_IPV6 == 0) };
}

/// Asserts that a request is answered, by kernel and host alike.
fn answers(relay: &mut Relay, request: &Packet, with_fingerprint: bool) {
    let expected = answer(request, with_fingerprint).frame();
    let outcome = relay.kernel.run(&request.frame(), 1).unwrap();
    assert_eq!(outcome.action, action::TX, "{request:?}");
    assert_eq!(outcome.frame, expected, "{request:?}");
    assert_eq!(relay.host.run(&request.frame()), (Verdict::Transmit, expected), "{request:?}");
    assert_eq!(answer(request, with_fingerprint).payload, of_userspace(request), "{request:?}");
}

/// What userspace answers.
#[expect(clippy::disallowed_methods, reason = "which time it is does not matter")]
fn of_userspace(request: &Packet) -> Vec<u8> {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    config.answer_short_binding = true;
    let now = Now { monotonic: Instant::now(), unix: Duration::from_secs(1 << 31) };
    let mut server = Server::new(config, [3; 32], now);
    server.handle_control(now, &Client::udp(request.dst, request.src), &request.payload);
    let sent = iter::from_fn(|| server.poll_command()).find_map(|command| match command {
        Command::Transmit { to, bytes, .. } if to == request.src => Some(bytes),
        _ => None,
    });
    sent.unwrap()
}

/// What a server answers (RFC 8489 §6.3.1.1), from this host's stack, by way of the neighbour that the
/// request came from.
fn answer(request: &Packet, with_fingerprint: bool) -> Packet {
    Packet {
        src: request.dst,
        dst: request.src,
        src_mac: request.dst_mac,
        dst_mac: request.src_mac,
        payload: message([1, 1], &mapped_address(request), with_fingerprint),
        padding: 0,
        ..request.clone()
    }
}

/// XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
fn mapped_address(request: &Packet) -> Vec<u8> {
    let (family, address) = match request.src.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut attribute = vec![0x00, 0x20, 0, 4 + address.len() as u8, 0, family];
    attribute.extend((request.src.port() ^ 0x2112).to_be_bytes());
    let mask = COOKIE.into_iter().chain(TRANSACTION);
    attribute.extend(address.into_iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    attribute
}

/// A STUN message, FINGERPRINT by the book (RFC 8489 §14.7) at its end.
fn message(kind: [u8; 2], attributes: &[u8], with_fingerprint: bool) -> Vec<u8> {
    let len = attributes.len() + if with_fingerprint { 8 } else { 0 };
    let mut message = kind.to_vec();
    message.extend((len as u16).to_be_bytes());
    message.extend(COOKIE);
    message.extend(TRANSACTION);
    message.extend(attributes);
    if with_fingerprint {
        let mut register = u32::MAX;
        for byte in &message {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                let carry = if register & 1 == 1 { 0xedb8_8320 } else { 0 };
                register = register >> 1 ^ carry;
            }
        }
        message.extend([0x80, 0x28, 0, 4]);
        message.extend((!register ^ 0x5354_554e).to_be_bytes());
    }
    message
}
