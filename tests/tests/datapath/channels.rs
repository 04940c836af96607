//! ChannelData (RFC 8656 §12): what is special about it.

use std::time::Duration;

use rawr_common::channel::{PROBES, hash4, places};
use rawr_common::entry::Account;
use rawr_common::flow::{Place, Rate, Tuple4};
use rawr_common::reason::Reason;
use rawr_tests::kernel::action;
use rawr_tests::packet::Packet;
use rawr_tests::world::{CHANNELS, Entry, Route, SEED, channel, entries, plain, routes};

use crate::harness::Relay;

/// Routes that ChannelData arrives on.
fn arriving() -> Vec<Route> {
    routes().into_iter().filter(|route| route.channels.0.is_some()).collect()
}

#[test]
fn padded_channel_data_is_accepted_and_trimmed() {
    let Some(mut relay) = Relay::new("padded_channel_data_is_accepted_and_trimmed") else { return };
    for route in arriving() {
        for len in (0..9).chain([157, 158, 159]) {
            let payload = (0..len).map(|byte| byte as u8 ^ 0x5a).collect();
            let packet = Packet { payload, ..route.packet() };
            for byte in [0, 0xa7] {
                let fill = vec![byte; packet.padding_of_channel()];
                relay.forwards(&route, &Packet { fill, ..packet.clone() });
            }
        }
    }
}

#[test]
fn a_wrong_channel_length_is_passed_up() {
    let Some(mut relay) = Relay::new("a_wrong_channel_length_is_passed_up") else { return };
    for route in arriving() {
        let packet = Packet { payload: vec![7; 10], ..route.packet() };
        let frame = packet.frame();
        let offset = packet.payload_offset() - 2;
        // Too long; so short that it is not padding to a multiple of four that follows.
        for wrong in [0_u16, 1, 5, 6, 7, 8, 9, 11, 12, 0x8000, 0xffff] {
            let mut frame = frame.clone();
            frame[offset..offset + 2].copy_from_slice(&wrong.to_be_bytes());
            relay.passes(&frame, Reason::ChannelLength);
        }
        // More than three bytes behind the data.
        let fill = vec![0; 6];
        relay.passes(&Packet { fill, ..packet }.frame(), Reason::ChannelLength);
    }
}

#[test]
fn empty_channel_data_is_an_empty_datagram() {
    let Some(mut relay) = Relay::new("empty_channel_data_is_an_empty_datagram") else { return };
    for route in routes() {
        relay.forwards(&route, &Packet { payload: vec![], ..route.packet() });
    }
}

#[test]
fn a_channel_is_known_by_its_whole_key() {
    let Some(mut relay) = Relay::new("a_channel_is_known_by_its_whole_key") else { return };
    for route in arriving() {
        let packet = route.packet();
        let mut others = vec![packet.clone(); 5];
        others[0].src.set_port(9);
        others[1].dst.set_port(9);
        others[2].src.set_ip(packet.dst.ip());
        others[3].dst.set_ip(packet.src.ip());
        others[4].channel = Some(0x4ff0);
        // What is no channel number at all, and no channel's data.
        for number in [0x0001, 0x3fff, 0x5000, 0x7fff, 0x8000, 0xffff] {
            others.push(Packet { channel: Some(number), ..packet.clone() });
        }
        for payload in [vec![], vec![0x40], vec![0x40, 0], vec![0x40, 0, 0]] {
            others.push(Packet { channel: None, payload, ..packet.clone() });
        }
        for other in others {
            relay.passes(&other.frame(), Reason::NoFlow);
        }
    }
}

#[test]
fn a_peers_payload_that_looks_like_channel_data_is_payload() {
    let Some(mut relay) = Relay::new("a_peers_payload_that_looks_like_channel_data_is_payload")
    else {
        return;
    };
    for route in routes().into_iter().filter(|route| route.channels.0.is_none()) {
        // Bound or not, of a right length or not.
        for number in [0x4000, 0x4020, 0x4fff] {
            let looks = Packet { channel: Some(number), ..route.packet() };
            let frame = looks.frame();
            let payload = frame[looks.udp_offset() + 8..].to_vec();
            relay.forwards(&route, &Packet { payload, ..route.packet() });
        }
        relay.forwards(&route, &Packet { payload: vec![0x40, 0, 0xff, 0xff], ..route.packet() });
    }
}

#[test]
fn padding_counts_as_part_of_the_frame_that_leaves() {
    let Some(mut relay) = Relay::new("padding_counts_as_part_of_the_frame_that_leaves") else {
        return;
    };
    // To a channel over IPv4: 28 bytes and 4, then 1,465 of data make 1,497, and their padding 1,500.
    let route = channel(true, true, (true, true));
    let packet =
        |len, fill| Packet { payload: vec![1; len], fill: vec![0; fill], ..route.packet() };
    relay.forwards(&route, &packet(1465, 3));
    relay.forwards(&route, &packet(1468, 0));
    relay.passes(&packet(1469, 3).frame(), Reason::TooBig);
}

#[test]
fn an_entry_is_found_in_each_of_its_places_and_in_no_other() {
    let Some(mut relay) = Relay::new("an_entry_is_found_in_each_of_its_places_and_in_no_other")
    else {
        return;
    };
    let mut route = channel(true, true, (true, false));
    relay.install(&route, rawr_common::flow::VACANT);
    let number = route.channels.0.unwrap().to_be_bytes();
    let (src, dst) = (route.from.0, route.from.1);
    let octets = |ip| match ip {
        std::net::IpAddr::V4(ip) => std::net::Ipv4Addr::octets(&ip),
        std::net::IpAddr::V6(_) => panic!("not IPv4"),
    };
    let from = Tuple4 {
        src: octets(src.ip()),
        dst: octets(dst.ip()),
        src_port: src.port().to_be_bytes(),
        dst_port: dst.port().to_be_bytes(),
    };
    let all: Vec<_> = places(hash4(&from, number, SEED), CHANNELS - 1).collect();
    assert_eq!(all.len(), PROBES as usize);
    for index in 0..CHANNELS {
        route.place = Place::Channel(index);
        relay.install(&route, 7);
        if all.contains(&index) {
            relay.forwards(&route, &route.packet());
        } else {
            relay.passes(&route.packet().frame(), Reason::NoFlow);
        }
        relay.install(&route, rawr_common::flow::VACANT);
    }
}

#[test]
fn a_channel_bound_anew_leads_to_its_new_peer_alone() {
    let Some(mut relay) = Relay::new("a_channel_bound_anew_leads_to_its_new_peer_alone") else {
        return;
    };
    for mut route in arriving() {
        relay.forwards(&route, &route.packet());
        relay.install(&route, rawr_common::flow::VACANT);
        relay.passes(&route.packet().frame(), Reason::NoFlow);
        // The same key in the same place, as after the channel has expired and was bound again.
        route.to.1.set_port(route.to.1.port() + 1_000);
        relay.install(&route, 2);
        relay.forwards(&route, &route.packet());
        assert_eq!(relay.counters(&route).packets, 1, "a new flow has counters of its own");
    }
}

#[test]
fn half_of_a_replaced_translation_between_channels_is_not_used() {
    let Some(mut relay) = Relay::new("half_of_a_replaced_translation_between_channels_is_not_used")
    else {
        return;
    };
    for over in [(true, false), (false, true), (true, true)] {
        let route = channel(true, false, over);
        relay.install(&route, 5);
        relay.forwards(&route, &route.packet());
        let newer = Account { generation: 6, rate: None };
        let reverse = entries(&route, newer).into_iter().find(|e| matches!(e, Entry::V6(..)));
        relay.set(reverse.unwrap());
        relay.passes(&route.packet().frame(), Reason::FlowChanging);
    }
}

#[test]
fn a_limit_under_another_keeps_both() {
    let Some(mut relay) = Relay::new("a_limit_under_another_keeps_both") else { return };
    // One KiB per second: after the burst, no other packet fits for seconds. The parent's burst is what
    // two flows share.
    let slow = |seconds| Rate::new(1024, Duration::from_secs(seconds));
    relay.kernel.set_rate(3, slow(15)).unwrap();
    relay.kernel.set_rate(7, slow(10).under(3)).unwrap();
    relay.kernel.set_rate(8, slow(10).under(3)).unwrap();
    let routes = [channel(true, true, (true, false)), plain(true, true)];
    let mut actions = Vec::new();
    for (route, rate) in routes.iter().zip([7, 8]) {
        for entry in entries(route, Account { generation: 2, rate: Some(rate) }) {
            relay.set(entry);
        }
        let mut packet = route.packet();
        packet.payload = vec![0; 996 - (packet.ip_len() - 28 - packet.payload.len())];
        let run = |_| relay.kernel.run(&packet.frame(), 1).unwrap().action;
        actions.push((0..20).map(run).filter(|run| *run == action::TX).count());
    }
    assert_eq!(
        actions,
        [10, 5],
        "as many as its own limit lets through; as are left of the parent's"
    );
    assert_eq!(relay.kernel.reasons().unwrap(), [(Reason::RateLimited, 25)]);
}
