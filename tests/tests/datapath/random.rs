//! Random packets, whole and damaged, of every route.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_common::relay::Verdict;
use rawr_tests::packet::{Packet, SERVICE_VLAN, VLAN};
use rawr_tests::world::{Route, routes};

use crate::harness::{Relay, action_of};

#[test]
fn kernel_and_host_agree_on_random_packets() {
    let Some(mut relay) = Relay::new("kernel_and_host_agree_on_random_packets") else { return };
    let seed = 0x5eed;
    let mut rng = StdRng::seed_from_u64(seed);
    let routes = routes();
    let mut forwarded = 0;
    for round in 0..200_000 {
        let route = &routes[rng.random_range(0..routes.len())];
        let packet = random_packet(&mut rng, route);
        let mut frame = packet.frame();
        let damaged = rng.random_bool(0.5);
        if damaged {
            damage(&mut rng, &mut frame, packet.payload_offset());
        }
        let (verdict, expected) = relay.host.run(&frame);
        let outcome = relay.kernel.run(&frame, 1).unwrap();
        let case = || format!("round {round} of seed {seed:#x}: {packet:?} as {frame:02x?}");
        assert_eq!(outcome.action, action_of(verdict), "{}", case());
        assert_eq!(outcome.frame, expected, "{}", case());
        if !damaged && (packet.checksum || packet.src.is_ipv4() && route.to.0.is_ipv4()) {
            assert_eq!(outcome.frame, route.expected(&packet).frame(), "{}", case());
        }
        match verdict {
            Verdict::Pass(_) | Verdict::Drop(_) => assert_eq!(outcome.frame, frame, "{}", case()),
            Verdict::Transmit | Verdict::Redirect { .. } => forwarded += 1,
        }
    }
    println!("{forwarded} of 200000 forwarded");
    assert!(forwarded > 80_000, "only {forwarded} were forwarded");
    assert_eq!(relay.counts().flows, relay.host.counters().collect());
}

fn random_packet(rng: &mut StdRng, route: &Route) -> Packet {
    let mut packet = route.packet();
    let tag = |rng: &mut StdRng| ([VLAN, SERVICE_VLAN][rng.random_range(0..2)], rng.random());
    packet.tags = (0..rng.random_range(0..=2)).map(|_| tag(rng)).collect();
    packet.class = rng.random();
    packet.ttl = rng.random_range(2..=255);
    packet.id = rng.random();
    packet.fragment = [0, 0x4000][rng.random_range(0..2)];
    packet.flow_label = rng.random_range(0..1 << 20);
    let longest = if rng.random_bool(0.9) { 64 } else { 1440 };
    packet.payload = (0..rng.random_range(0..=longest)).map(|_| rng.random()).collect();
    if packet.channel.is_some() && rng.random_bool(0.5) {
        packet.fill = (0..packet.padding_of_channel()).map(|_| rng.random()).collect();
    }
    packet.checksum = rng.random_bool(0.9);
    packet.padding = rng.random_range(0..20);
    packet
}

/// Overwrites some of the headers' bytes, or cuts the frame short.
fn damage(rng: &mut StdRng, frame: &mut Vec<u8>, headers: usize) {
    for _ in 0..rng.random_range(1..=3) {
        let index = rng.random_range(12..headers);
        frame[index] = if rng.random() { rng.random() } else { frame[index] ^ 1 };
    }
    if rng.random_bool(0.2) {
        let len = rng.random_range(14..=frame.len());
        frame.truncate(len);
    }
}
