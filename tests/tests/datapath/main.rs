//! The XDP program in this machine's kernel: a packet in; verdict, packet and counters out.
//!
//! Every case runs through the same function in this process as well, and has to come out the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use rawr_common::entry::Account;
use rawr_common::flow::{Counters, Flow4, Flow6, Place, Rate, VACANT};
use rawr_common::reason::Reason;
use rawr_common::relay::Verdict;
use rawr_tests::instructions::{loops_without_jump, stack_depth};
use rawr_tests::kernel::{Kernel, action};
use rawr_tests::packet::{Packet, SERVICE_VLAN, VLAN};
use rawr_tests::privilege::need_root;
use rawr_tests::world::{
    CHANNELS, EGRESS, ENTRIES, Entry, INGRESS, MTU, Route, channel, entries, plain, routes,
};

use harness::Relay;

mod binding;
mod channels;
mod harness;
mod random;

/// The largest program that forwards and no more, in bytes of the kernel's instructions, and its deepest
/// stack in bytes.
const FORWARDING: (u32, u32) = (16 * 1024, 256);
/// The same with the function that answers Binding requests, which no forwarded packet enters.
const ANSWERING: (u32, u32) = (24 * 1024, 448);

#[test]
fn program_loads_and_stays_small() {
    if !need_root("program_loads_and_stays_small") {
        return;
    }
    for (answers, (largest, deepest)) in [(false, FORWARDING), (true, ANSWERING)] {
        let mut kernel = Kernel::load_with(ENTRIES, CHANNELS, answers).unwrap();
        let size = kernel.translated_size().unwrap();
        let instructions = kernel.instructions().unwrap();
        let stack = stack_depth(&instructions).unwrap();
        println!("answers: {answers}: {size} bytes translated, {stack} bytes of stack");
        assert!(size <= largest, "{size} bytes translated");
        assert!(stack <= deepest, "{stack} bytes of stack");
        let refused = loops_without_jump(&instructions);
        assert!(refused.is_empty(), "Linux 6.1 refuses instructions {refused:?}");
    }
}

#[test]
fn program_has_no_map_for_logs_or_events() {
    let Some(relay) = Relay::new("program_has_no_map_for_logs_or_events") else { return };
    let mut names = relay.kernel.map_names();
    names.sort();
    let rodata = names.iter().position(|name| name.ends_with("rodata")).unwrap();
    names.remove(rodata);
    let tables = ["CHANNELS4", "CHANNELS6", "EGRESS", "EXITS", "FLOWS4", "FLOWS6"];
    assert_eq!(names, [tables.as_slice(), &["RATES", "REASONS", "SHARED_PORTS"]].concat());
}

#[test]
fn forwards_each_route_exactly_as_built_from_scratch() {
    let Some(mut relay) = Relay::new("forwards_each_route_exactly_as_built_from_scratch") else {
        return;
    };
    for route in routes() {
        relay.forwards(&route, &route.packet());
    }
}

#[test]
fn tags_in_do_not_matter() {
    let Some(mut relay) = Relay::new("tags_in_do_not_matter") else { return };
    for tags in [vec![(VLAN, 5)], vec![(SERVICE_VLAN, 6)], vec![(SERVICE_VLAN, 6), (VLAN, 5)]] {
        for route in routes() {
            relay.forwards(&route, &Packet { tags: tags.clone(), ..route.packet() });
        }
    }
}

#[test]
fn three_tags_are_passed_up() {
    let Some(mut relay) = Relay::new("three_tags_are_passed_up") else { return };
    let packet = Packet { tags: vec![(VLAN, 5); 3], ..plain(true, true).packet() };
    relay.passes(&packet.frame(), Reason::TooManyTags);
}

#[test]
fn mutate_then_pass_cannot_happen() {
    let Some(mut relay) = Relay::new("mutate_then_pass_cannot_happen") else { return };
    for route in routes() {
        let packet = route.packet();
        relay.passes(&Packet { ttl: 1, ..packet.clone() }.frame(), Reason::TtlExpired);
        let payload = vec![0; usize::from(MTU)];
        relay.passes(&Packet { payload, ..packet }.frame(), Reason::TooBig);
    }
}

#[test]
fn unknown_udp_is_passed_up() {
    let Some(mut relay) = Relay::new("unknown_udp_is_passed_up") else { return };
    for route in [plain(true, true), plain(false, false)] {
        // Each part of the 5-tuple counts, our own address included.
        let packet = route.packet();
        let mut others = vec![packet.clone(); 4];
        others[0].src.set_port(9);
        others[1].dst.set_port(9);
        others[2].src.set_ip(packet.dst.ip());
        others[3].dst.set_ip(packet.src.ip());
        for other in others {
            relay.passes(&other.frame(), Reason::NoFlow);
        }
    }
}

#[test]
fn the_hosts_own_dns_quic_and_ntp_are_passed_up() {
    let Some(mut relay) = Relay::new("the_hosts_own_dns_quic_and_ntp_are_passed_up") else {
        return;
    };
    for route in all_over(true, true).into_iter().chain(all_over(false, false)) {
        for service in [53, 123, 443] {
            // An answer to a port that the relay uses, too; it may begin like ChannelData.
            let mut answer = route.packet();
            answer.src.set_port(service);
            relay.passes(&answer.frame(), Reason::NoFlow);
            relay.passes(&Packet { channel: None, ..answer }.frame(), Reason::NoFlow);
        }
    }
}

#[test]
fn zero_udp_checksum_stays_zero_over_ipv4() {
    let Some(mut relay) = Relay::new("zero_udp_checksum_stays_zero_over_ipv4") else { return };
    for route in all_over(true, true) {
        relay.forwards(&route, &Packet { checksum: false, ..route.packet() });
    }
}

#[test]
fn zero_udp_checksum_never_leaves_over_ipv6() {
    let Some(mut relay) = Relay::new("zero_udp_checksum_never_leaves_over_ipv6") else { return };
    let families = [(true, false), (false, false), (false, true)];
    for route in families.into_iter().flat_map(|(from_v4, to_v4)| all_over(from_v4, to_v4)) {
        let packet = Packet { checksum: false, ..route.packet() };
        relay.passes(&packet.frame(), Reason::NoChecksum);
    }
}

#[test]
fn udp_checksum_that_becomes_0_leaves_as_ffff() {
    let Some(mut relay) = Relay::new("udp_checksum_that_becomes_0_leaves_as_ffff") else { return };
    let families = [(true, true), (false, false), (true, false), (false, true)];
    for route in families.into_iter().flat_map(|(from_v4, to_v4)| all_over(from_v4, to_v4)) {
        // Of all payloads of two bytes, one makes the outgoing checksum 0, and one the incoming.
        let (mut becomes, mut was) = (0, 0);
        for payload in 0..=u16::MAX {
            let packet = Packet { payload: payload.to_be_bytes().to_vec(), ..route.packet() };
            let ends = [udp_checksum(&packet), udp_checksum(&route.expected(&packet))];
            if ends.contains(&[0xff, 0xff]) {
                becomes += u32::from(ends[1] == [0xff, 0xff]);
                was += u32::from(ends[0] == [0xff, 0xff]);
                relay.forwards(&route, &packet);
            }
        }
        assert!(becomes > 0 && was > 0, "{route:?}: {becomes} and {was}");
    }
}

#[test]
fn odd_lengths_come_out_right() {
    let Some(mut relay) = Relay::new("odd_lengths_come_out_right") else { return };
    for route in routes() {
        for len in [0, 1, 2, 3, 17, 159, 1200, 1447] {
            let payload = (0..len).map(|byte| byte as u8 ^ 0xa5).collect();
            relay.forwards(&route, &Packet { payload, ..route.packet() });
        }
    }
}

#[test]
fn what_is_marked_as_absent_is_not_sought() {
    let Some(mut relay) = Relay::new("what_is_marked_as_absent_is_not_sought") else { return };
    for route in routes().into_iter().filter(|route| matches!(route.place, Place::Channel(_))) {
        let Some(bit) = entries(&route, Account { generation: 1, rate: None })
            .into_iter()
            .filter(|entry| entry.place() == route.place())
            .find_map(|entry| entry.bit())
        else {
            panic!("{route:?}");
        };
        relay.mark(bit, false);
        relay.passes(&route.packet().frame(), Reason::NoFlow);
        relay.mark(bit, true);
        relay.forwards(&route, &route.packet());
    }
}

#[test]
fn fragments_are_passed_up() {
    let Some(mut relay) = Relay::new("fragments_are_passed_up") else { return };
    for route in all_over(true, true) {
        // The first (more follow), one in the middle, the last; a later one may hold anything.
        for fragment in [0x2000, 0x2001, 0x0001, 0x1fff] {
            relay.passes(&Packet { fragment, ..route.packet() }.frame(), Reason::Fragment);
        }
        relay.forwards(&route, &Packet { fragment: 0, ..route.packet() });
    }
    for route in all_over(false, false) {
        relay.passes(&with_next_header(&route.packet(), 44), Reason::Fragment);
    }
}

#[test]
fn ipv4_options_are_passed_up() {
    let Some(mut relay) = Relay::new("ipv4_options_are_passed_up") else { return };
    for packet in all_over(true, true).map(|route| route.packet()) {
        for words in 6..=15_u8 {
            let mut frame = packet.frame();
            frame[packet.ip_offset()] = 0x40 | words;
            relay.passes(&frame, Reason::Options);
        }
    }
}

#[test]
fn ipv6_extension_headers_are_passed_up() {
    let Some(mut relay) = Relay::new("ipv6_extension_headers_are_passed_up") else { return };
    for packet in all_over(false, false).map(|route| route.packet()) {
        for header in [0, 43, 50, 51, 60, 135] {
            relay.passes(&with_next_header(&packet, header), Reason::ExtensionHeader);
        }
    }
}

#[test]
fn what_is_not_udp_is_passed_up() {
    let Some(mut relay) = Relay::new("what_is_not_udp_is_passed_up") else { return };
    for protocol in [1, 6, 47, 132] {
        let packet = plain(true, true).packet();
        let mut frame = packet.frame();
        frame[packet.ip_offset() + 9] = protocol;
        relay.passes(&frame, Reason::NotUdp);
        relay.passes(&with_next_header(&plain(false, false).packet(), protocol), Reason::NotUdp);
    }
    let mut arp = plain(true, true).packet().frame();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    relay.passes(&arp, Reason::NotIp);
}

#[test]
fn ethernet_padding_is_no_payload() {
    let Some(mut relay) = Relay::new("ethernet_padding_is_no_payload") else { return };
    for route in routes() {
        for payload in [vec![], vec![7], vec![7; 5]] {
            let mut packet = Packet { payload, ..route.packet() };
            packet.padding = 60_usize.saturating_sub(packet.frame().len()).max(3);
            relay.forwards(&route, &packet);
        }
    }
}

#[test]
fn lengths_that_disagree_are_passed_up() {
    let Some(mut relay) = Relay::new("lengths_that_disagree_are_passed_up") else { return };
    let v4 = all_over(true, true).map(|route| (route, 2));
    for (route, ip_len) in v4.into_iter().chain(all_over(false, false).map(|route| (route, 4))) {
        let packet = route.packet();
        for (offset, name) in
            [(packet.ip_offset() + ip_len, "IP"), (packet.udp_offset() + 4, "UDP")]
        {
            let right = packet.frame();
            let len = u16::from_be_bytes([right[offset], right[offset + 1]]);
            for wrong in [0, 7, len - 1, len + 1, 0xffff] {
                let mut frame = right.clone();
                frame[offset..offset + 2].copy_from_slice(&wrong.to_be_bytes());
                println!("{name} length {wrong} instead of {len}");
                relay.passes(&frame, Reason::Malformed);
            }
        }
    }
}

#[test]
fn udp_length_below_8_is_passed_up() {
    let Some(mut relay) = Relay::new("udp_length_below_8_is_passed_up") else { return };
    let v4 = all_over(true, true).map(|route| (route, 2, 20));
    let v6 = all_over(false, false).map(|route| (route, 4, 0));
    for (route, ip_len, header) in v4.into_iter().chain(v6) {
        let packet = route.packet();
        for len in 0..8_u16 {
            let mut frame = packet.frame();
            let (ip, udp) = (packet.ip_offset() + ip_len, packet.udp_offset() + 4);
            frame[ip..ip + 2].copy_from_slice(&(header + len).to_be_bytes());
            frame[udp..udp + 2].copy_from_slice(&len.to_be_bytes());
            relay.passes(&frame, Reason::Malformed);
        }
    }
}

#[test]
fn a_frame_cut_short_is_passed_up() {
    let Some(mut relay) = Relay::new("a_frame_cut_short_is_passed_up") else { return };
    for route in all_over(true, true).into_iter().chain(all_over(false, false)) {
        let packet = route.packet();
        let frame = packet.frame();
        for len in 14..frame.len() {
            let reason = if len < packet.udp_offset() { Reason::NotIp } else { Reason::Malformed };
            relay.passes(&frame[..len], reason);
        }
    }
}

#[test]
fn ttl_is_decremented_and_never_becomes_0() {
    let Some(mut relay) = Relay::new("ttl_is_decremented_and_never_becomes_0") else { return };
    for route in routes() {
        for ttl in [0, 1] {
            relay.passes(&Packet { ttl, ..route.packet() }.frame(), Reason::TtlExpired);
        }
        for ttl in [2, 3, 128, 255] {
            relay.forwards(&route, &Packet { ttl, ..route.packet() });
        }
    }
}

#[test]
fn what_exceeds_the_egress_mtu_is_passed_up() {
    let Some(mut relay) = Relay::new("what_exceeds_the_egress_mtu_is_passed_up") else { return };
    for route in routes() {
        let channel = if route.channels.1.is_some() { 4 } else { 0 };
        let headers = channel + if route.to.0.is_ipv4() { 28 } else { 48 };
        let fits = usize::from(MTU) - headers;
        relay.forwards(&route, &Packet { payload: vec![1; fits], ..route.packet() });
        let packet = Packet { payload: vec![1; fits + 1], ..route.packet() };
        relay.passes(&packet.frame(), Reason::TooBig);
    }
}

#[test]
fn hairpin_between_two_flows_of_this_relay() {
    let Some(mut relay) = Relay::new("hairpin_between_two_flows_of_this_relay") else { return };
    for (arriving, leaving) in OVER {
        // What leaves by the first is addressed to us again, for the second.
        let (first, mut back) = (channel(true, true, (arriving, leaving)), plain(true, true));
        let second = plain(false, true);
        back.place = Place::Port(u32::from(back.from.1.port() + 200) % ENTRIES);
        back.from.1.set_port(back.from.1.port() + 200);
        back.to = second.to;
        relay.install(&back, 1);
        let mut first = Route { to: back.from, ..first };
        // A relay port is sent plain datagrams, even by ourselves.
        first.channels.1 = None;
        relay.install(&first, 1);
        relay.forwards(&first, &first.packet());
        relay.forwards(&back, &first.expected(&first.packet()));
    }
}

#[test]
fn next_hop_changes_take_effect_on_the_next_packet() {
    let Some(mut relay) = Relay::new("next_hop_changes_take_effect_on_the_next_packet") else {
        return;
    };
    for mut route in routes() {
        relay.forwards(&route, &route.packet());
        route.dst_mac = [0x02, 0, 0, 0, 9, 9];
        relay.install(&route, 2);
        relay.forwards(&route, &route.packet());
    }
}

#[test]
fn an_entry_that_changes_is_not_used() {
    let Some(mut relay) = Relay::new("an_entry_that_changes_is_not_used") else { return };
    for route in routes() {
        relay.install(&route, VACANT);
        relay.passes(&route.packet().frame(), Reason::NoFlow);
    }
    // Half of a translated flow has been replaced: the two generations differ.
    let route = plain(true, false);
    relay.install(&route, 5);
    let newer = Account { generation: 6, rate: None };
    let reverse = entries(&route, newer).into_iter().find(|entry| matches!(entry, Entry::V6(..)));
    relay.set(reverse.unwrap());
    relay.passes(&route.packet().frame(), Reason::FlowChanging);
}

#[test]
fn redirects_unless_transmission_back_is_possible() {
    let Some(mut relay) = Relay::new("redirects_unless_transmission_back_is_possible") else {
        return;
    };
    for mut route in routes() {
        // `forwards` knows the expected action by the route's flag; another interface forbids it.
        if route.exit.transmits() {
            route.exit.ifindex = INGRESS + 1;
            relay.install(&route, 2);
            let (verdict, _) = relay.host.run(&route.packet().frame());
            assert_eq!(verdict, Verdict::Redirect { slot: route.slot });
            let outcome = relay.kernel.run(&route.packet().frame(), 1).unwrap();
            assert_eq!(outcome.action, action::REDIRECT);
            assert_eq!(outcome.frame, route.expected(&route.packet()).frame());
        }
    }
}

#[test]
fn without_an_egress_interface_packets_are_passed_up() {
    let Some(mut relay) = Relay::new("without_an_egress_interface_packets_are_passed_up") else {
        return;
    };
    for mut route in routes() {
        route.slot += EGRESS as u8;
        route.exit = route.exit.transmitting(false);
        relay.install(&route, 2);
        relay.passes(&route.packet().frame(), Reason::NoEgress);
    }
}

#[test]
fn counters_count_per_flow_and_only_what_is_forwarded() {
    let Some(mut relay) = Relay::new("counters_count_per_flow_and_only_what_is_forwarded") else {
        return;
    };
    // What is counted is the IP packet that arrives, with the header of ChannelData.
    for (route, header) in all_over(true, true).into_iter().zip([28, 32, 28, 32]) {
        for len in 0..100 {
            relay.forwards(&route, &Packet { payload: vec![0; len], ..route.packet() });
        }
        let bytes = (0..100).map(|len| len + header).sum();
        assert_eq!(relay.counters(&route), Counters { packets: 100, bytes });
    }
}

#[test]
fn rate_limit_drops_what_exceeds_it() {
    let Some(mut relay) = Relay::new("rate_limit_drops_what_exceeds_it") else { return };
    let route = plain(true, true);
    let account = Account { generation: 2, rate: Some(7) };
    for entry in entries(&route, account) {
        relay.set(entry);
    }
    // One KiB per second: after the burst, no other packet fits for seconds.
    let rate = Rate::new(1024, Duration::from_secs(10));
    relay.kernel.set_rate(7, rate).unwrap();
    let packet = Packet { payload: vec![0; 996], ..route.packet() };
    let actions = (0..20).map(|_| relay.kernel.run(&packet.frame(), 1).unwrap().action);
    let actions: Vec<u32> = actions.collect();
    assert_eq!(actions, [[action::TX; 10], [action::DROP; 10]].concat());
    assert_eq!(relay.kernel.reasons().unwrap(), [(Reason::RateLimited, 10)]);
    let counters = relay.counters(&route);
    assert_eq!(counters, Counters { packets: 10, bytes: 10 * 1024 });
}

/// Whether ChannelData arrives and leaves: all that there is.
const OVER: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// One route of these families for plain datagrams and for each use of channels.
fn all_over(from_v4: bool, to_v4: bool) -> [Route; 4] {
    OVER.map(|over| channel(from_v4, to_v4, over))
}

fn udp_checksum(packet: &Packet) -> [u8; 2] {
    let (frame, offset) = (packet.frame(), packet.udp_offset() + 6);
    [frame[offset], frame[offset + 1]]
}

/// An IPv6 packet's frame with another next header.
fn with_next_header(packet: &Packet, header: u8) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[packet.ip_offset() + 6] = header;
    frame
}

/// The layout that both sides rely on.
#[test]
fn entries_are_whole_cache_lines() {
    assert_eq!((size_of::<Flow4>(), size_of::<Flow6>()), (64, 128));
}
