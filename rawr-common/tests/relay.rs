//! The relay over random packets on the host, against packets built from scratch.

#[path = "../../tests/src/packet.rs"]
#[allow(unreachable_pub, reason = "the file is also a module of a library")]
mod packet;
#[path = "../../tests/src/world.rs"]
#[allow(unreachable_pub, dead_code, reason = "the file is also a module of a library")]
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rawr_common::entry::Account;
use rawr_common::flow::Counters;
use rawr_common::reason::Reason;
use rawr_common::relay::Verdict;

use packet::{Packet, SERVICE_VLAN, VLAN};
use world::{Host, Route, entries, routes};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// All family pairs, all tags in and out, odd and even lengths, padding.
    #[test]
    fn forwards_exactly_as_built_from_scratch((route, packet) in traffic()) {
        let host = host();
        let (verdict, frame) = host.run(&packet.frame());
        prop_assert_eq!(verdict, route.verdict());
        prop_assert_eq!(frame, route.expected(&packet).frame());
        let bytes = packet.ip_len() as u64;
        prop_assert_eq!(host.counted(), vec![(route.place(), Counters { packets: 1, bytes })]);
    }

    /// Damaged packets either go up as they came or leave with their payload as it was.
    #[test]
    fn whatever_is_not_forwarded_is_untouched(
        (_, packet) in traffic(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in 0_usize..40,
    ) {
        let mut frame = packet.frame();
        let headers = packet.payload_offset();
        for (index, byte) in damage {
            frame[index.index(headers)] = byte;
        }
        frame.truncate(frame.len().saturating_sub(cut));
        let host = host();
        let (verdict, after) = host.run(&frame);
        match verdict {
            Verdict::Pass(_) | Verdict::Drop(_) => {
                prop_assert_eq!(after, frame);
                prop_assert_eq!(host.counted(), vec![]);
            }
            Verdict::Transmit | Verdict::Redirect { .. } => {
                let payload = frame.len() - headers;
                prop_assert_eq!(&after[after.len() - payload..], &frame[headers..]);
            }
        }
    }

    /// Any bytes at all.
    #[test]
    fn noise_is_untouched(frame in vec(any::<u8>(), 0..200)) {
        let host = host();
        let (verdict, after) = host.run(&frame);
        prop_assert!(matches!(verdict, Verdict::Pass(_)), "{verdict:?}");
        prop_assert_eq!(after, frame);
    }

    /// A checksum that was wrong stays wrong by as much: the receiver notices what happened before us.
    #[test]
    fn a_wrong_checksum_stays_wrong((route, packet) in traffic(), damage in 1_u8..) {
        let mut packet = packet;
        packet.checksum = true;
        packet.payload.push(0);
        if !packet.fill.is_empty() {
            packet.fill = vec![packet.ttl; packet.padding_of_channel()];
        }
        // Of the payload: what pads ChannelData does not arrive.
        let behind = packet.fill.len() + packet.padding;
        let mut frame = packet.frame();
        let last = frame.len() - behind - 1;
        frame[last] ^= damage;
        let (verdict, after) = host().run(&frame);
        prop_assert_eq!(verdict, route.verdict());
        let mut expected = route.expected(&packet).frame();
        let last = expected.len() - behind - 1;
        expected[last] ^= damage;
        prop_assert_eq!(after, expected);
    }
}

/// Without room before the frame it cannot grow; where it need not, it is forwarded all the same.
#[test]
fn without_headroom_what_grows_is_passed_up() {
    for route in routes() {
        let mut host = host();
        host.headroom = 0;
        let frame = route.packet().frame();
        let (verdict, after) = host.run(&frame);
        let expected = route.expected(&route.packet()).frame();
        if expected.len() > frame.len() {
            assert_eq!(verdict, Verdict::Pass(Reason::NoHeadroom));
            assert_eq!(after, frame);
        } else {
            assert_eq!((verdict, after), (route.verdict(), expected));
        }
    }
}

/// A route and a packet that takes it.
fn traffic() -> impl Strategy<Value = (Route, Packet)> {
    let tags = vec((select(vec![VLAN, SERVICE_VLAN]), any::<u16>()), 0..=2);
    let ip = (any::<u8>(), 2_u8.., any::<u16>(), any::<bool>(), 0_u32..1 << 20);
    let payload = prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..1440)];
    (select(routes()), tags, ip, payload, any::<bool>(), 0_usize..30).prop_map(
        |(route, tags, (class, ttl, id, dont_fragment, flow_label), payload, checksum, padding)| {
            let mut packet = route.packet();
            let all_ipv4 = route.from.0.is_ipv4() && route.to.0.is_ipv4();
            packet.checksum = checksum || !all_ipv4;
            packet.fragment = if dont_fragment { 0x4000 } else { 0 };
            (packet.tags, packet.class, packet.ttl, packet.id) = (tags, class, ttl, id);
            (packet.flow_label, packet.payload, packet.padding) = (flow_label, payload, padding);
            if packet.channel.is_some() && id % 2 == 1 {
                packet.fill = vec![ttl; packet.padding_of_channel()];
            }
            (route, packet)
        },
    )
}

fn host() -> Host {
    let mut host = Host::new();
    for route in routes() {
        let account = Account { generation: 1, rate: None };
        host.set_exit(&route);
        for entry in entries(&route, account) {
            host.set(entry);
        }
    }
    host
}
