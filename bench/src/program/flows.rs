//! The flows that packets of each kind meet, and the tables that hold them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rawr_common::entry::{Account, Hop, Tags};
use rawr_common::flow::{Exit, Flow4, Flow6, Rate, Tuple4, Tuple6};
use rawr_tests::kernel::{INGRESS, Kernel};
use rawr_tests::packet::{Packet, VLAN};
use rawr_userspace::dataplane::table::Table;

/// The tag of [`Way::Tagged`].
const TAG: u16 = 7;

/// One end of a pair.
#[derive(Clone, Copy)]
pub(super) struct Leg {
    pub(super) family: Family,
    /// How packets that arrive on this leg leave, by the other.
    pub(super) way: Way,
}

impl Leg {
    pub(super) const fn by(self, way: Way) -> Self {
        Self { way, ..self }
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
    /// As many flows as are installed for each family, in random order.
    pub(super) order: Vec<u32>,
}

impl Tables {
    /// With `entries` flows over IPv4 and as many over IPv6; the least that there can be are two, which
    /// make a pair.
    pub(super) fn load(entries: u32) -> Result<Self> {
        let len = entries.next_power_of_two().max(4);
        let mut kernel = Kernel::load(len)?;
        for way in Way::ALL {
            kernel.set_exit(way as u8, &way.exit())?;
            kernel.set_egress(way as u32, INGRESS)?;
        }
        for counter in 0..2 {
            kernel.set_rate(counter, Rate::new(1 << 40, Duration::from_secs(1)))?;
        }
        let (flows4, flows6) = (kernel.flows4(len)?, kernel.flows6(len)?);
        let mut order: Vec<_> = (0..entries.max(2)).collect();
        // Any seed does; the same one makes runs alike.
        order.shuffle(&mut StdRng::seed_from_u64(1));
        let mut tables = Self { kernel, flows4, flows6, order };
        for family in [Family::V4, Family::V6] {
            tables.connect_all([Leg { family, way: Way::Transmit }; 2]);
        }
        Ok(tables)
    }

    /// Makes the first two flows one pair.
    pub(super) fn connect_two(&mut self, legs: [Leg; 2]) {
        self.connect(&[0, 1], legs);
    }

    /// Makes all flows one ring, in which each leads to the next in `order`: what is needed next cannot
    /// be guessed.
    pub(super) fn connect_all(&mut self, legs: [Leg; 2]) {
        let order = std::mem::take(&mut self.order);
        self.connect(&order, legs);
        self.order = order;
    }

    fn connect(&mut self, ring: &[u32], legs: [Leg; 2]) {
        let next = ring.iter().cycle().skip(1);
        for ((from, to), turn) in ring.iter().zip(next).zip([0, 1].into_iter().cycle()) {
            let (leg, other): (Leg, Leg) = (legs[turn], legs[1 - turn]);
            let (arriving, leaving) = (Flow::at(*from, leg.family), Flow::at(*to, other.family));
            self.install(*from, &arriving, &leaving, leg.way);
        }
    }

    fn install(&mut self, index: u32, from: &Flow, to: &Flow, way: Way) {
        let hop = Hop { exit: way as u8, dst_mac: [0; 6] };
        let account = Account { generation: 1, rate: (way == Way::Limited).then_some(index) };
        match (*from, *to) {
            (Flow::V4(from), Flow::V4(to)) => {
                self.flows4.write(index, &Flow4::new(from, to, hop, account));
            }
            (Flow::V6(from), Flow::V6(to)) => {
                self.flows6.write(index, &Flow6::new(from, to, hop, account));
            }
            (Flow::V6(from), Flow::V4(to)) => {
                self.flows6.write(index, &Flow6::to_ipv4(from, to, hop, account));
            }
            (Flow::V4(from), Flow::V6(to)) => {
                // Its addresses over IPv6 stand in the flow of the way back. That one lies at the same
                // index here, where the ring has no IPv6 flow.
                let back = Tuple6 {
                    src: to.dst,
                    dst: to.src,
                    src_port: to.dst_port,
                    dst_port: to.src_port,
                };
                self.flows6.write(index, &Flow6::new(back, back, hop, account));
                self.flows4.write(index, &Flow4::to_ipv6(from, &to, index, hop, account));
            }
        }
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
    let mut packet = Flow::at(index, leg.family).packet();
    if other.way == Way::Tagged {
        packet.tags = vec![(VLAN, TAG)];
    }
    packet.frame()
}

#[cfg(test)]
mod tests {
    use rawr_common::flow::index;

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
