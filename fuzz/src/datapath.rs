//! The XDP program in this machine's kernel, beside the same function in this process.

use std::cell::RefCell;
use std::net::IpAddr;

use rawr_common::entry::Account;
use rawr_common::flow::{Exit, Flow4, Flow6, Place};
use rawr_common::relay::Verdict;
use rawr_tests::kernel::{Kernel, action};
use rawr_tests::packet::Packet;
use rawr_tests::world::{
    CHANNELS, EGRESS, ENTRIES, Entry, Host, INGRESS, MTU, Route, STUN_PORT, channel, entries,
    routes,
};

use crate::reader::Reader;

/// What the kernel takes for a frame, in bytes: an Ethernet header at least, and with headroom and its own
/// account no more than a page.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=3000;
/// Of an exit that no route has.
const SLOT: u8 = EGRESS as u8;
const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 9];

/// Both relays, with the same routes and listeners.
struct Pair {
    kernel: Kernel,
    host: Host,
    routes: Vec<Route>,
}

thread_local! {
    // To load the program takes longer than to run it a thousand times.
    static PAIR: RefCell<Pair> = RefCell::new(Pair::new());
}

/// An input is a frame as it is, or which of the routes' packets and what to change in it.
///
/// # Panics
/// Kernel and process disagree on verdict or bytes, or change a frame that is passed or dropped; or the
/// program cannot be loaded.
pub fn run(input: &[u8]) {
    PAIR.with_borrow_mut(|pair| pair.compare(input));
}

impl Pair {
    fn new() -> Self {
        let (mut kernel, mut host) = (Kernel::load(ENTRIES, CHANNELS).unwrap(), Host::new());
        for slot in 0..EGRESS as u32 {
            kernel.set_egress(slot, INGRESS).unwrap();
        }
        let exit = Exit::new(INGRESS, OUR_MAC, MTU).transmitting(true);
        kernel.set_exit(SLOT, &exit).unwrap();
        host.exits[usize::from(SLOT)] = exit;
        let mut pair = Self { kernel, host, routes: routes() };
        let account = Account { generation: 1, rate: None };
        for route in pair.routes.clone() {
            pair.kernel.set_exit(route.slot, &route.exit).unwrap();
            pair.host.set_exit(&route);
            entries(&route, account).into_iter().for_each(|entry| pair.set(entry));
        }
        let place = Place::Port(u32::from(STUN_PORT) % ENTRIES);
        for v4 in [true, false] {
            pair.set(match channel(v4, v4, (true, true)).from.1.ip() {
                IpAddr::V4(ip) => {
                    Entry::V4(place, Flow4::listener(ip.octets(), STUN_PORT, SLOT, account))
                }
                IpAddr::V6(ip) => {
                    Entry::V6(place, Flow6::listener(ip.octets(), STUN_PORT, SLOT, account))
                }
            });
        }
        pair
    }

    fn set(&mut self, entry: Entry) {
        match entry {
            Entry::V4(place, ref flow) => self.kernel.set_flow4(place, flow),
            Entry::V6(place, ref flow) => self.kernel.set_flow6(place, flow),
        }
        .unwrap();
        self.host.set(entry);
    }

    fn compare(&mut self, input: &[u8]) {
        let Some(frame) = frame(&self.routes, input) else { return };
        let (verdict, expected) = self.host.run(&frame);
        let outcome = self.kernel.run(&frame, 1).unwrap();
        let action = match verdict {
            Verdict::Pass(_) => action::PASS,
            Verdict::Drop(_) => action::DROP,
            Verdict::Transmit => action::TX,
            Verdict::Redirect { .. } => action::REDIRECT,
        };
        assert_eq!(outcome.action, action, "{verdict:?}: {frame:02x?}");
        assert_eq!(outcome.frame, expected, "{verdict:?}: {frame:02x?}");
        if matches!(verdict, Verdict::Pass(_) | Verdict::Drop(_)) {
            assert_eq!(outcome.frame, frame, "{verdict:?}");
        }
    }
}

/// The frame that an input stands for, if the kernel would take it.
fn frame(routes: &[Route], input: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader(input);
    let kind = reader.byte();
    if kind == 0xff {
        return Some(reader.0.to_vec()).filter(|frame| LENGTHS.contains(&frame.len()));
    }
    let route = &routes[usize::from(reader.byte()) % routes.len()];
    let changes = reader.byte() % 8;
    let changes: Vec<_> = (0..changes).map(|_| (reader.byte(), reader.byte())).collect();
    let mut packet = Packet { payload: reader.0.to_vec(), ..route.packet() };
    packet.checksum = kind & 1 == 0;
    packet.padding = usize::from(kind >> 1 & 0x1f);
    if kind & 0x40 != 0 {
        packet.channel = None;
        packet.dst.set_port(STUN_PORT);
    }
    let mut frame = packet.frame();
    let length = frame.len();
    for (at, value) in changes {
        frame[usize::from(at) % length] = value;
    }
    Some(frame).filter(|frame| LENGTHS.contains(&frame.len()))
}

/// Packets of all kinds of routes, and Binding requests.
pub fn seeds() -> Vec<Vec<u8>> {
    let binding = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    // Each combination of families and channels, in and out.
    let plain = (0..routes().len() as u8).step_by(8).map(|route| vec![0, route, 0, 1, 2, 3, 4, 5]);
    let asking = (0..2).map(|family| [&[0x40, 8 * family, 0][..], &binding].concat());
    let frames = routes().into_iter().step_by(24);
    let whole = frames.map(|route| [&[0xff][..], &route.packet().frame()].concat());
    // TTL 1, a fragment, an option of IPv4, and a length that is wrong.
    let changed = [[22, 1], [20, 0x20], [14, 0x46], [17, 9]];
    let changed = changed.map(|change| [&[0, 0, 1][..], &change, b"data"].concat());
    plain.chain(asking).chain(whole).chain(changed).collect()
}
