//! The flows that packets of each kind meet, and the tables that hold them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rawr_common::channel::{Seek, hash4, hash6, seek};
use rawr_common::entry::{Account, Hop, Tags};
use rawr_common::flow::{Channels, Exit, Flow4, Flow6, Place, Rate, Tuple4, Tuple6, index, names};
use rawr_common::sharing::Bit;
use rawr_tests::kernel::{INGRESS, Kernel};
use rawr_tests::packet::{Packet, VLAN};
use rawr_tests::world::SEED;
use rawr_userspace::dataplane::table::Table;

/// The port that STUN, RAWR and ChannelData arrive at.
pub(super) const CONTROL_PORT: u16 = 3478;
/// Slot of the exit that answers leave by.
const LISTENER_EXIT: u8 = 16;
/// The tag of [`Way::Tagged`].
const TAG: u16 = 7;

/// One end of a pair.
#[derive(Clone, Copy)]
pub(super) struct Leg {
    pub(super) family: Family,
    /// How packets that arrive on this leg leave, by the other.
    pub(super) way: Way,
    /// Whether it is of a client, with a bound channel.
    pub(super) channel: bool,
}

impl Leg {
    pub(super) const fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    pub(super) const fn over_channel(self) -> Self {
        Self { channel: true, ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By the interface that they came in by.
    Transmit,
    /// By an interface of the device map.
    Redirect,
    /// With a VLAN tag.
    Tagged,
    /// Below a rate limit that never bites.
    Limited,
}

impl Way {
    const ALL: [Self; 4] = [Self::Transmit, Self::Redirect, Self::Tagged, Self::Limited];

    fn exit(self) -> Exit {
        let tags = if self == Self::Tagged { Tags::Customer(TAG) } else { Tags::None };
        Exit::new(INGRESS, [0; 6], 1500).transmitting(self != Self::Redirect).tagged(tags)
    }
}

/// The program with tables full of flows.
pub(super) struct Tables {
    pub(super) kernel: Kernel,
    flows4: Table<Flow4>,
    flows6: Table<Flow6>,
    channels4: Table<Flow4>,
    channels6: Table<Flow6>,
    /// As many flows as are installed for each family, in random order.
    pub(super) order: Vec<u32>,
}

impl Tables {
    /// With `entries` flows over IPv4 and as many over IPv6, and with as many channels; the least that
    /// there can be are two, which make a pair. Channel tables are a quarter full.
    pub(super) fn load(entries: u32) -> Result<Self> {
        let len = entries.next_power_of_two().max(4);
        let channels = 4 * len;
        let mut kernel = Kernel::load(len, channels)?;
        for way in Way::ALL {
            kernel.set_exit(way as u8, &way.exit())?;
            kernel.set_egress(way as u32, INGRESS)?;
        }
        for counter in 0..2 {
            kernel.set_rate(counter, Rate::new(1 << 40, Duration::from_secs(1)))?;
        }
        let flows4 = kernel.table(names::FLOWS4, len)?;
        let flows6 = kernel.table(names::FLOWS6, len)?;
        let channels4 = kernel.table(names::CHANNELS4, channels)?;
        let channels6 = kernel.table(names::CHANNELS6, channels)?;
        let mut order: Vec<_> = (0..entries.max(2)).collect();
        // Any seed does; the same one makes runs alike.
        order.shuffle(&mut StdRng::seed_from_u64(1));
        let mut tables = Self { kernel, flows4, flows6, channels4, channels6, order };
        for ipv6 in [false, true] {
            tables.kernel.mark_port(Bit::new(CONTROL_PORT, ipv6, true), true)?;
        }
        for family in [Family::V4, Family::V6] {
            for channel in [true, false] {
                tables.connect_all([Leg { family, way: Way::Transmit, channel }; 2])?;
            }
        }
        Ok(tables)
    }

    /// Makes the first two flows one pair.
    pub(super) fn connect_two(&mut self, legs: [Leg; 2]) -> Result<()> {
        self.connect(&[0, 1], legs)
    }

    /// Makes all flows one ring, in which each leads to the next in `order`: what is needed next cannot
    /// be guessed.
    pub(super) fn connect_all(&mut self, legs: [Leg; 2]) -> Result<()> {
        let order = std::mem::take(&mut self.order);
        let connected = self.connect(&order, legs);
        self.order = order;
        connected
    }

    fn connect(&mut self, ring: &[u32], legs: [Leg; 2]) -> Result<()> {
        let next = ring.iter().cycle().skip(1);
        for ((from, to), turn) in ring.iter().zip(next).zip([0, 1].into_iter().cycle()) {
            self.install([*from, *to], [legs[turn], legs[1 - turn]])?;
        }
        Ok(())
    }

    /// Runs `action` while the program answers Binding requests at the control port, where Ethernet frames
    /// come to `mac`.
    pub(super) fn while_listening<T>(
        &mut self,
        mac: [u8; 6],
        action: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let exit = Exit::new(INGRESS, mac, 1500).transmitting(true);
        self.kernel.set_exit(LISTENER_EXIT, &exit)?;
        let Flow::V4(Tuple4 { dst, .. }) = Flow::at(0, Family::V4) else { bail!("not IPv4") };
        let index = index(dst[3], CONTROL_PORT, self.flows4.len() - 1);
        let before = self.flows4.occupied(index);
        let account = Account { generation: 1, rate: None };
        let listener = Flow4::listener(dst, CONTROL_PORT, LISTENER_EXIT, account);
        self.flows4.write(index, &listener);
        let outcome = action(self);
        match before {
            Some(flow) => self.flows4.write(index, &flow),
            None => self.flows4.vacate(index),
        }
        outcome
    }

    /// What arrives for one place on one leg leaves for the other place, by the other leg.
    fn install(&mut self, [from, to]: [u32; 2], [leg, other]: [Leg; 2]) -> Result<()> {
        let (hop, way) = (Hop { exit: leg.way as u8, dst_mac: [0; 6] }, leg.way);
        let account = Account { generation: 1, rate: (way == Way::Limited).then_some(from) };
        let channels = Channels::new(leg.channel_of(from), other.channel_of(to));
        let back = Channels::new(other.channel_of(to), leg.channel_of(from));
        match (leg.arrival(from), other.arrival(to)) {
            (Flow::V4(arrives), Flow::V4(leaves)) => {
                let flow = Flow4::new(arrives, leaves, hop, account).over(channels);
                self.write4(from, &flow)
            }
            (Flow::V6(arrives), Flow::V6(leaves)) => {
                let flow = Flow6::new(arrives, leaves, hop, account).over(channels);
                self.write6(from, &flow).map(drop)
            }
            (Flow::V6(arrives), Flow::V4(leaves)) => {
                let flow = Flow6::to_ipv4(arrives, leaves, hop, account).over(channels);
                self.write6(from, &flow).map(drop)
            }
            (Flow::V4(arrives), Flow::V6(leaves)) => {
                // Its addresses over IPv6 stand in the flow of the way back. In the port table that one lies
                // at the same index here, where the ring has no IPv6 flow.
                let (src, dst) = (leaves.dst, leaves.src);
                let (src_port, dst_port) = (leaves.dst_port, leaves.src_port);
                let reverse = Tuple6 { src, dst, src_port, dst_port };
                let reverse = Flow6::new(reverse, reverse, hop, account).over(back);
                let place = self.write6(from, &reverse)?;
                let flow = Flow4::to_ipv6(arrives, &leaves, place, hop, account).over(channels);
                self.write4(from, &flow)
            }
        }
    }

    fn write4(&mut self, index: u32, flow: &Flow4) -> Result<()> {
        let channel = flow.recipe.channels.arriving;
        if channel == [0, 0] {
            self.flows4.write(index, flow);
            return Ok(());
        }
        let table = &mut self.channels4;
        let occupant = |place| {
            let entry = table.occupied(place)?;
            Some((entry.from, entry.recipe.channels.arriving) == (flow.from, channel))
        };
        match seek(hash4(&flow.from, channel, SEED), table.len() - 1, occupant) {
            Seek::Held(place) | Seek::Vacant(place) => table.write(place, flow),
            Seek::Full => bail!("no place in the channel table for flow {index}"),
        }
        Ok(())
    }

    fn write6(&mut self, index: u32, flow: &Flow6) -> Result<Place> {
        let channel = flow.recipe.channels.arriving;
        if channel == [0, 0] {
            self.flows6.write(index, flow);
            return Ok(Place::Port(index));
        }
        let table = &mut self.channels6;
        let occupant = |place| {
            let entry = table.occupied(place)?;
            Some((entry.from, entry.recipe.channels.arriving) == (flow.from, channel))
        };
        match seek(hash6(&flow.from, channel, SEED), table.len() - 1, occupant) {
            Seek::Held(place) | Seek::Vacant(place) => {
                table.write(place, flow);
                Ok(Place::Channel(place))
            }
            Seek::Full => bail!("no place in the channel table for flow {index}"),
        }
    }
}

impl Leg {
    /// What arrives on this leg for one place.
    fn arrival(self, index: u32) -> Flow {
        if self.channel {
            Flow::of_client(index, self.family)
        } else {
            Flow::at(index, self.family)
        }
    }

    /// The channel that it arrives on.
    fn channel_of(self, index: u32) -> Option<u16> {
        self.channel.then_some(0x4000 + (index % 0x1000) as u16)
    }
}

/// What arrives for one entry.
#[derive(Clone, Copy)]
pub(super) enum Flow {
    V4(Tuple4),
    V6(Tuple6),
}

impl Flow {
    /// The flow that belongs at `index` of a table: each address of ours has 65,536 ports.
    pub(super) fn at(index: u32, family: Family) -> Self {
        let [_, last_byte, dst_port @ ..] = index.to_be_bytes();
        let src_port = (40_000 ^ index as u16).to_be_bytes();
        match family {
            Family::V4 => {
                let (src, dst) = ([198, 51, 100, 7], [192, 0, 2, last_byte]);
                Self::V4(Tuple4 { src, dst, src_port, dst_port })
            }
            Family::V6 => {
                let mut src = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
                let mut dst = src;
                (src[5], dst[5], dst[15]) = (1, 2, last_byte);
                Self::V6(Tuple6 { src, dst, src_port, dst_port })
            }
        }
    }

    /// The flow of a client's channel: it arrives at the one port of all clients.
    fn of_client(index: u32, family: Family) -> Self {
        let [_, client @ ..] = index.to_be_bytes();
        let dst_port = CONTROL_PORT.to_be_bytes();
        match Self::at(0, family) {
            Self::V4(tuple) => {
                let [c0, c1, c2] = client;
                Self::V4(Tuple4 { src: [10, c0, c1, c2], dst_port, ..tuple })
            }
            Self::V6(mut tuple) => {
                tuple.src[13..].copy_from_slice(&client);
                Self::V6(Tuple6 { dst_port, ..tuple })
            }
        }
    }

    pub(super) fn packet(&self) -> Packet {
        let (src, dst, src_port, dst_port) = match self {
            Self::V4(tuple) => (tuple.src.into(), tuple.dst.into(), tuple.src_port, tuple.dst_port),
            Self::V6(tuple) => (tuple.src.into(), tuple.dst.into(), tuple.src_port, tuple.dst_port),
        };
        let end = |ip: IpAddr, port| SocketAddr::new(ip, u16::from_be_bytes(port));
        let mut packet = Packet::new(end(src, src_port), end(dst, dst_port));
        packet.ttl = 255;
        packet.payload = vec![0x5a; 160];
        packet
    }
}

/// The frame that arrives on one of two legs for the flow at `index`.
pub(super) fn frame(index: u32, [leg, other]: [Leg; 2]) -> Vec<u8> {
    let mut packet = leg.arrival(index).packet();
    packet.channel = leg.channel_of(index);
    if other.way == Way::Tagged {
        packet.tags = vec![(VLAN, TAG)];
    }
    packet.frame()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_belong_where_they_lie() {
        for place in [0, 1, 65_535, 65_536, 999_999] {
            let Flow::V4(tuple) = Flow::at(place, Family::V4) else { panic!("not IPv4") };
            let port = u16::from_be_bytes(tuple.dst_port);
            assert_eq!(index(tuple.dst[3], port, (1 << 20) - 1), place);
            let Flow::V6(tuple) = Flow::at(place, Family::V6) else { panic!("not IPv6") };
            assert_eq!(index(tuple.dst[15], port, (1 << 20) - 1), place);
        }
    }
}
