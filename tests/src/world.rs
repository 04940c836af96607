//! Flows of every kind, and the relay over them in this process's memory.
//!
//! There is a route for each combination of families, channels, VLAN tags and way out. Where a frame comes in by
//! the interface [`INGRESS`], half of the routes send it back by that one, the others redirect it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rawr_common::channel::{PROBES, hash4, hash6, places};
use rawr_common::entry::{Account, Hop, Tags};
use rawr_common::flow::{Channels, Counters, Exit, Flow4, Flow6, Place, Rate, Tuple4, Tuple6};
use rawr_common::memory::{Buffer, Memory};
use rawr_common::relay::{Verdict, relay};
use rawr_common::sharing::{self, Bit};

use crate::packet::{Packet, SERVICE_VLAN, VLAN};

/// Length of the port tables.
pub const ENTRIES: u32 = 512;
/// Length of the channel tables.
pub const CHANNELS: u32 = 256;
/// The interface that packets come in by.
pub const INGRESS: u32 = 1;
/// How many slots of the device map have an interface: those of the routes.
pub const EGRESS: usize = 32;
/// What keys of the channel tables are hashed with.
pub const SEED: u64 = 0x5eed_5eed_5eed_5eed;
/// Largest layer 3 packet that leaves.
pub const MTU: u16 = 1500;

/// The port that clients send ChannelData to.
pub const STUN_PORT: u16 = 3478;

/// One direction of a session.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where the entry stands.
    pub place: Place,
    /// Where that of the other direction would.
    pub reverse: Place,
    /// The channels of what arrives and of what leaves.
    pub channels: (Option<u16>, Option<u16>),
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
        Packet { channel: self.channels.0, ..Packet::new(self.from.0, self.from.1) }
    }

    /// What that packet leaves as.
    pub fn expected(&self, packet: &Packet) -> Packet {
        let mut expected = packet.relayed(self.to.0, self.to.1, self.channels.1);
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

    /// The family of what arrives, and where the entry stands.
    pub fn place(&self) -> (Family, Place) {
        (if self.from.0.is_ipv4() { Family::V4 } else { Family::V6 }, self.place)
    }

    /// Whether this is a pair of ports that are each one leg's.
    pub fn is_plain(&self) -> bool {
        self.channels == (None, None)
    }

    fn hop(&self) -> Hop {
        Hop { exit: self.slot, dst_mac: self.dst_mac }
    }
}

/// Which of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// All routes: families × channels × tags × way out. The plain ones come first.
pub fn routes() -> Vec<Route> {
    let shapes =
        [(false, false, true), (true, false, true), (false, true, true), (true, true, true)];
    // A relay port's second peer stands in the channel table, without a channel.
    let shapes = shapes.into_iter().chain([(false, true, false), (false, false, false)]);
    let mut taken = BTreeSet::new();
    let mut routes = Vec::new();
    for shape in shapes {
        for families in [(true, true), (false, false), (true, false), (false, true)] {
            for exit in 0..8 {
                let index = routes.len() as u32;
                routes.push(route(index, families, shape, exit, &mut taken));
            }
        }
    }
    routes
}

/// The route number `index`: families and channels of what arrives and leaves, whether what arrives
/// without a channel stands in the port table, and which of eight exits.
fn route(
    index: u32,
    (from_v4, to_v4): (bool, bool),
    (arriving, leaving, in_port_table): (bool, bool, bool),
    exit: u32,
    taken: &mut BTreeSet<(bool, u32)>,
) -> Route {
    let tags = [
        Tags::None,
        Tags::Customer(7),
        Tags::Service(0x2fff),
        Tags::Both { service: 9, customer: 0xe123 },
    ];
    let slot = u32::from(from_v4) << 4 | u32::from(to_v4) << 3 | exit;
    let src_mac = [0x02, 0, 0, 0, 1, slot as u8];
    let way_out = Exit::new(INGRESS, src_mac, MTU).tagged(tags[exit as usize / 2]);
    let channels =
        (arriving.then_some(0x4000 + index as u16), leaving.then_some(0x4fff - index as u16));
    let own = |channel: bool, port: u32| if channel { STUN_PORT.into() } else { port };
    let from = (remote(from_v4, 40_000 + index), local(from_v4, own(arriving, 0xc200 + index)));
    let to = (local(to_v4, own(leaving, 0xc300 + index)), remote(to_v4, 41_000 + index));
    let place = if arriving || !in_port_table {
        channel_place(&from, channels.0, index, taken)
    } else {
        Place::Port(index)
    };
    let reverse = if leaving {
        channel_place(&(to.1, to.0), channels.1, index + 1, taken)
    } else {
        Place::Port(256 + index)
    };
    let exit = way_out.transmitting(exit.is_multiple_of(2));
    let dst_mac = [0x02, 0, 0, 0, 2, index as u8];
    Route { place, reverse, channels, from, to, slot: slot as u8, exit, dst_mac }
}

/// A place in the channel table for what arrives with these ends: routes take turns between all places
/// that a key can have.
fn channel_place(
    from: &(SocketAddr, SocketAddr),
    channel: Option<u16>,
    turn: u32,
    taken: &mut BTreeSet<(bool, u32)>,
) -> Place {
    let (v4, number) = (from.0.is_ipv4(), channel.unwrap_or_default().to_be_bytes());
    let hash = match v4 {
        true => hash4(&tuple4(from), number, SEED),
        false => hash6(&tuple6(from), number, SEED),
    };
    let places: Vec<_> = places(hash, CHANNELS - 1).collect();
    let mut turns = places.iter().cycle().skip((turn % PROBES) as usize).take(places.len());
    let place = turns.find(|place| taken.insert((v4, **place)));
    Place::Channel(*place.expect("the table is not nearly full"))
}

/// The first route of these families, without tags, back by the same interface.
pub fn plain(from_v4: bool, to_v4: bool) -> Route {
    channel(from_v4, to_v4, (false, false))
}

/// The same with ChannelData arriving or leaving.
pub fn channel(from_v4: bool, to_v4: bool, channels: (bool, bool)) -> Route {
    let mut routes = routes().into_iter();
    routes
        .find(|route| {
            let families = (route.from.0.is_ipv4(), route.to.0.is_ipv4());
            let over = (route.channels.0.is_some(), route.channels.1.is_some());
            (families, over) == ((from_v4, to_v4), channels)
        })
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

/// An entry of one of the tables.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    V4(Place, Flow4),
    V6(Place, Flow6),
}

impl Entry {
    /// The family of what arrives, and where the entry stands.
    pub fn place(&self) -> (Family, Place) {
        match self {
            Self::V4(place, _) => (Family::V4, *place),
            Self::V6(place, _) => (Family::V6, *place),
        }
    }

    /// What marks its port, if it stands in a channel table.
    pub fn bit(&self) -> Option<Bit> {
        match self {
            Self::V4(Place::Channel(_), flow) => Some(bit4(flow)),
            Self::V6(Place::Channel(_), flow) => Some(bit6(flow)),
            Self::V4(Place::Port(_), _) | Self::V6(Place::Port(_), _) => None,
        }
    }
}

/// What marks the port that a flow arrives at.
pub fn bit4(flow: &Flow4) -> Bit {
    let is_channel = flow.recipe.channels.arriving().is_some();
    Bit::new(u16::from_be_bytes(flow.from.dst_port), false, is_channel)
}

/// The same over IPv6.
pub fn bit6(flow: &Flow6) -> Bit {
    let is_channel = flow.recipe.channels.arriving().is_some();
    Bit::new(u16::from_be_bytes(flow.from.dst_port), true, is_channel)
}

/// What makes a route: one entry or, from IPv4 to IPv6, two.
pub fn entries(route: &Route, account: Account) -> Vec<Entry> {
    let Route { place, reverse, from, to, .. } = route;
    let (arriving, leaving) = route.channels;
    let (channels, back) = (Channels::new(arriving, leaving), Channels::new(leaving, arriving));
    let hop = route.hop();
    match (from.0.is_ipv4(), to.0.is_ipv4()) {
        (true, true) => {
            let flow = Flow4::new(tuple4(from), tuple4(to), hop, account);
            vec![Entry::V4(*place, flow.over(channels))]
        }
        (false, false) => {
            let flow = Flow6::new(tuple6(from), tuple6(to), hop, account);
            vec![Entry::V6(*place, flow.over(channels))]
        }
        (false, true) => {
            let flow = Flow6::to_ipv4(tuple6(from), tuple4(to), hop, account);
            vec![Entry::V6(*place, flow.over(channels))]
        }
        (true, false) => {
            let (from_back, to_back) = ((to.1, to.0), (from.1, from.0));
            let other = Flow6::to_ipv4(tuple6(&from_back), tuple4(&to_back), hop, account);
            let flow = Flow4::to_ipv6(tuple4(from), &tuple6(to), *reverse, hop, account);
            vec![Entry::V6(*reverse, other.over(back)), Entry::V4(*place, flow.over(channels))]
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
    pub channels4: Vec<Cell<Flow4>>,
    pub channels6: Vec<Cell<Flow6>>,
    pub shared_ports: Vec<Cell<u64>>,
    pub exits: Vec<Exit>,
    pub rates: Vec<Cell<Rate>>,
    /// Bytes before the frame that its head may move into.
    pub headroom: usize,
    /// Bytes behind the frame that its tail may move into.
    pub tailroom: usize,
    pub now: Duration,
}

impl Host {
    /// Empty tables.
    pub fn new() -> Self {
        Self {
            flows4: cells(ENTRIES),
            flows6: cells(ENTRIES),
            channels4: cells(CHANNELS),
            channels6: cells(CHANNELS),
            shared_ports: cells(sharing::WORDS),
            exits: vec![Exit::default(); ENTRIES as usize],
            rates: cells(ENTRIES),
            headroom: 64,
            tailroom: 64,
            now: Duration::ZERO,
        }
    }

    /// Sets the exit of a route.
    pub fn set_exit(&mut self, route: &Route) {
        self.exits[usize::from(route.slot)] = route.exit;
    }

    /// Sets an entry, whose counters start at zero. The port of one in a channel table is marked from then
    /// on.
    pub fn set(&mut self, entry: Entry) {
        if let Some(bit) = entry.bit() {
            self.mark_port(bit, true);
        }
        match entry {
            Entry::V4(Place::Port(index), flow) => self.flows4[index as usize].set(flow),
            Entry::V4(Place::Channel(index), flow) => self.channels4[index as usize].set(flow),
            Entry::V6(Place::Port(index), flow) => self.flows6[index as usize].set(flow),
            Entry::V6(Place::Channel(index), flow) => self.channels6[index as usize].set(flow),
        }
    }

    /// Says whether a channel table holds flows of a port.
    pub fn mark_port(&mut self, bit: Bit, is_held: bool) {
        let word = &self.shared_ports[bit.word() as usize];
        let others = word.get() & !bit.mask();
        word.set(if is_held { others | bit.mask() } else { others });
    }

    /// The verdict on a frame, and what has become of it.
    pub fn run(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut bytes = [&vec![0; self.headroom], frame, &vec![0; self.tailroom]].concat();
        let range = self.headroom..self.headroom + frame.len();
        let mut buffer = Buffer::new(&mut bytes, range, INGRESS);
        let tables = Memory {
            flows4: &self.flows4,
            flows6: &self.flows6,
            channels4: &self.channels4,
            channels6: &self.channels6,
            shared_ports: &self.shared_ports,
            seed: SEED,
            exits: &self.exits,
            rates: &self.rates,
            egress: &[true; EGRESS],
            now: self.now.as_nanos() as u64,
        };
        let verdict = relay(&mut buffer, &tables);
        let range = buffer.range();
        (verdict, bytes[range].to_vec())
    }

    /// The counters of all entries.
    pub fn counters(&self) -> impl Iterator<Item = ((Family, Place), Counters)> {
        let v4 = |table: &[Cell<Flow4>]| -> Vec<_> {
            table.iter().map(|flow| flow.get().counters).collect()
        };
        let v6 = |table: &[Cell<Flow6>]| -> Vec<_> {
            table.iter().map(|flow| flow.get().counters).collect()
        };
        numbered(Family::V4, Place::Port, v4(&self.flows4))
            .chain(numbered(Family::V4, Place::Channel, v4(&self.channels4)))
            .chain(numbered(Family::V6, Place::Port, v6(&self.flows6)))
            .chain(numbered(Family::V6, Place::Channel, v6(&self.channels6)))
    }

    /// Counters that are not 0.
    pub fn counted(&self) -> Vec<((Family, Place), Counters)> {
        self.counters().filter(|(_, counters)| *counters != Counters::default()).collect()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// The counters of a table, by where they stand.
pub fn numbered(
    family: Family,
    place: fn(u32) -> Place,
    table: Vec<Counters>,
) -> impl Iterator<Item = ((Family, Place), Counters)> {
    (0..).zip(table).map(move |(index, counters)| ((family, place(index)), counters))
}

fn cells<T: Default>(len: u32) -> Vec<Cell<T>> {
    (0..len).map(|_| Cell::default()).collect()
}
