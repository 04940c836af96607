//! Flows of every kind, and the relay over them in this process's memory.
//!
//! There is a route for each combination of families, VLAN tags and way out. Where a frame comes in by
//! the interface [`INGRESS`], half of the routes send it back by that one, the others redirect it.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rawr_common::entry::{Account, Hop, Tags};
use rawr_common::flow::{Counters, Exit, Flow4, Flow6, Rate, Tuple4, Tuple6};
use rawr_common::memory::{Buffer, Memory};
use rawr_common::relay::{Verdict, relay};

use crate::packet::{Packet, SERVICE_VLAN, VLAN};

/// Length of the flow tables.
pub const ENTRIES: u32 = 256;
/// The interface that packets come in by.
pub const INGRESS: u32 = 1;
/// How many slots of the device map have an interface: those of the routes.
pub const EGRESS: usize = 32;
/// Largest layer 3 packet that leaves.
pub const MTU: u16 = 1500;

/// One direction of a session.
#[derive(Clone, Debug)]
pub struct Route {
    /// Index of the entry.
    pub index: u32,
    /// Source and destination of what arrives.
    pub from: (SocketAddr, SocketAddr),
    /// Source and destination of what leaves.
    pub to: (SocketAddr, SocketAddr),
    /// Slot of the exit.
    pub slot: u8,
    pub exit: Exit,
    pub dst_mac: [u8; 6],
}

impl Route {
    /// A packet that takes this route.
    pub fn packet(&self) -> Packet {
        Packet::new(self.from.0, self.from.1)
    }

    /// What that packet leaves as.
    pub fn expected(&self, packet: &Packet) -> Packet {
        let mut expected = packet.relayed(self.to.0, self.to.1);
        (expected.src_mac, expected.dst_mac) = (self.exit.src_mac, self.dst_mac);
        expected.tags = match self.exit.tags() {
            Tags::None => vec![],
            Tags::Customer(tag) => vec![(VLAN, tag)],
            Tags::Service(tag) => vec![(SERVICE_VLAN, tag)],
            Tags::Both { service, customer } => vec![(SERVICE_VLAN, service), (VLAN, customer)],
        };
        expected
    }

    /// How it leaves.
    pub fn verdict(&self) -> Verdict {
        if self.exit.transmits() {
            Verdict::Transmit
        } else {
            Verdict::Redirect { slot: self.slot }
        }
    }

    /// The table of what arrives, and the index in it.
    pub fn place(&self) -> (Family, u32) {
        (if self.from.0.is_ipv4() { Family::V4 } else { Family::V6 }, self.index)
    }

    fn hop(&self) -> Hop {
        Hop { exit: self.slot, dst_mac: self.dst_mac }
    }
}

/// Which of the two flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// All routes: families × tags × way out.
pub fn routes() -> Vec<Route> {
    let families = [(true, true), (false, false), (true, false), (false, true)];
    let tags = [
        Tags::None,
        Tags::Customer(7),
        Tags::Service(0x2fff),
        Tags::Both { service: 9, customer: 0xe123 },
    ];
    let mut routes = Vec::new();
    for (from_v4, to_v4) in families {
        for tags in tags {
            for tx in [true, false] {
                let index = routes.len() as u32;
                let src_mac = [0x02, 0, 0, 0, 1, index as u8];
                let exit = Exit::new(INGRESS, src_mac, MTU).tagged(tags).transmitting(tx);
                let dst_mac = [0x02, 0, 0, 0, 2, index as u8];
                let from = (remote(from_v4, 40_000 + index), local(from_v4, 0xc300 + index));
                let to = (local(to_v4, 0xc340 + index), remote(to_v4, 41_000 + index));
                routes.push(Route { index, from, to, slot: index as u8, exit, dst_mac });
            }
        }
    }
    routes
}

/// The first route of these families, without tags, back by the same interface.
pub fn plain(from_v4: bool, to_v4: bool) -> Route {
    let mut routes = routes().into_iter();
    routes
        .find(|route| route.from.0.is_ipv4() == from_v4 && route.to.0.is_ipv4() == to_v4)
        .expect("there is one for each combination")
}

/// An address of a peer.
fn remote(v4: bool, port: u32) -> SocketAddr {
    if v4 {
        (Ipv4Addr::new(198, 51, 100, 7), port as u16).into()
    } else {
        (Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0xface, 0xb00c, 0, 0x77), port as u16).into()
    }
}

/// An address of ours.
fn local(v4: bool, port: u32) -> SocketAddr {
    if v4 {
        (Ipv4Addr::new(192, 0, 2, 1), port as u16).into()
    } else {
        (Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), port as u16).into()
    }
}

/// An entry of one of the flow tables.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    V4(u32, Flow4),
    V6(u32, Flow6),
}

/// What makes a route: one entry or, from IPv4 to IPv6, two.
pub fn entries(route: &Route, account: Account) -> Vec<Entry> {
    let Route { index, from, to, .. } = route;
    let hop = route.hop();
    match (from.0.is_ipv4(), to.0.is_ipv4()) {
        (true, true) => {
            vec![Entry::V4(*index, Flow4::new(tuple4(from), tuple4(to), hop, account))]
        }
        (false, false) => {
            vec![Entry::V6(*index, Flow6::new(tuple6(from), tuple6(to), hop, account))]
        }
        (false, true) => {
            vec![Entry::V6(*index, Flow6::to_ipv4(tuple6(from), tuple4(to), hop, account))]
        }
        (true, false) => {
            let reverse_index = u32::from(to.0.port()) % ENTRIES;
            let back = (to.1, to.0);
            let from_back = (from.1, from.0);
            let reverse = Flow6::to_ipv4(tuple6(&back), tuple4(&from_back), hop, account);
            let flow = Flow4::to_ipv6(tuple4(from), &tuple6(to), reverse_index, hop, account);
            vec![Entry::V6(reverse_index, reverse), Entry::V4(*index, flow)]
        }
    }
}

fn tuple4((src, dst): &(SocketAddr, SocketAddr)) -> Tuple4 {
    let (SocketAddr::V4(src), SocketAddr::V4(dst)) = (src, dst) else { panic!("not IPv4") };
    Tuple4 {
        src: src.ip().octets(),
        dst: dst.ip().octets(),
        src_port: src.port().to_be_bytes(),
        dst_port: dst.port().to_be_bytes(),
    }
}

fn tuple6((src, dst): &(SocketAddr, SocketAddr)) -> Tuple6 {
    let (SocketAddr::V6(src), SocketAddr::V6(dst)) = (src, dst) else { panic!("not IPv6") };
    Tuple6 {
        src: src.ip().octets(),
        dst: dst.ip().octets(),
        src_port: src.port().to_be_bytes(),
        dst_port: dst.port().to_be_bytes(),
    }
}

/// The relay on the host, with all routes.
pub struct Host {
    pub flows4: Vec<Cell<Flow4>>,
    pub flows6: Vec<Cell<Flow6>>,
    pub exits: Vec<Exit>,
    pub rates: Vec<Cell<Rate>>,
    /// Bytes before the frame that its head may move into.
    pub headroom: usize,
    pub now: Duration,
}

impl Host {
    /// Empty tables.
    pub fn new() -> Self {
        Self {
            flows4: cells(),
            flows6: cells(),
            exits: vec![Exit::default(); ENTRIES as usize],
            rates: cells(),
            headroom: 64,
            now: Duration::ZERO,
        }
    }

    /// Sets the exit of a route.
    pub fn set_exit(&mut self, route: &Route) {
        self.exits[usize::from(route.slot)] = route.exit;
    }

    /// Sets an entry, whose counters start at zero.
    pub fn set(&mut self, entry: Entry) {
        match entry {
            Entry::V4(index, flow) => self.flows4[index as usize].set(flow),
            Entry::V6(index, flow) => self.flows6[index as usize].set(flow),
        }
    }

    /// The verdict on a frame, and what has become of it.
    pub fn run(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut bytes = [&vec![0; self.headroom], frame].concat();
        let mut buffer = Buffer::new(&mut bytes, self.headroom, INGRESS);
        let tables = Memory {
            flows4: &self.flows4,
            flows6: &self.flows6,
            exits: &self.exits,
            rates: &self.rates,
            egress: &[true; EGRESS],
            now: self.now.as_nanos() as u64,
        };
        let verdict = relay(&mut buffer, &tables);
        let head = buffer.head();
        (verdict, bytes.split_off(head))
    }

    /// The counters of all entries.
    pub fn counters(&self) -> impl Iterator<Item = ((Family, u32), Counters)> {
        let v4 = (0..).zip(&self.flows4).map(|(i, flow)| ((Family::V4, i), flow.get().counters));
        let v6 = (0..).zip(&self.flows6).map(|(i, flow)| ((Family::V6, i), flow.get().counters));
        v4.chain(v6)
    }

    /// Counters that are not 0.
    pub fn counted(&self) -> Vec<((Family, u32), Counters)> {
        self.counters().filter(|(_, counters)| *counters != Counters::default()).collect()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

fn cells<T: Default>() -> Vec<Cell<T>> {
    (0..ENTRIES).map(|_| Cell::default()).collect()
}
