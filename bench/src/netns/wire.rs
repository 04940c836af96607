//! What the generator sends, and what has to come out of a relay for it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use bench_ebpf::{
    FRONT, PAYLOAD, PAYLOAD_OFFSETS, Plan, TRANSACTION_OFFSET, far, far_port, near, near_port,
};
use rawr_tests::packet::Packet;

use super::lab::{FAR_NET, MACS, NEAR_NET, RELAY_NET};

/// Where the generator's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// Each flow to its own port of the relay.
    OwnPort,
    /// All to one address.
    One(SocketAddrV4),
}

/// A kind of packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) destination: Destination,
    /// Length of the Ethernet frame.
    pub(super) frame: usize,
    pub(super) carrier: Carrier,
}

/// What the generator's own bytes travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// Nothing but UDP.
    Plain,
    /// A ChannelData message (RFC 8656 §12.4) of the first channel.
    Channel,
    /// A Binding request without attributes (RFC 8489 §2): they are its transaction ID, and what follows
    /// it in the frame is padding.
    Binding,
}

/// The first channel number.
pub(super) const CHANNEL: u16 = 0x4000;

/// The header of a Binding request: type, length and magic cookie; the transaction ID follows.
const BINDING: [u8; 8] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
/// Length of a STUN header (RFC 8489 §5).
const STUN_HEADER: usize = 20;

fn address(net: [u8; 2], (low, port): (u16, u16)) -> SocketAddrV4 {
    let [third, fourth] = low.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(net[0], net[1], third, fourth), port)
}

/// The near peer of a flow.
pub(super) fn near_peer(flow: u32) -> SocketAddrV4 {
    address(NEAR_NET, near(flow))
}

/// The far peer of a flow.
pub(super) fn far_peer(flow: u32) -> SocketAddrV4 {
    address(FAR_NET, far(flow))
}

/// The port of the relay that a flow's near peer sends to.
pub(super) fn near_leg(flow: u32) -> SocketAddrV4 {
    address(RELAY_NET, near_port(flow))
}

/// The port of the relay that a flow's far peer gets datagrams from.
pub(super) fn far_leg(flow: u32) -> SocketAddrV4 {
    address(RELAY_NET, far_port(flow))
}

impl Shape {
    /// Where the generator's own bytes begin.
    fn payload_offset(&self) -> usize {
        match self.carrier {
            Carrier::Plain => PAYLOAD_OFFSETS[0],
            Carrier::Channel => PAYLOAD_OFFSETS[1],
            Carrier::Binding => TRANSACTION_OFFSET,
        }
    }

    /// Addresses as they stand in the plan: zeros where a flow's own bytes go.
    fn template(&self) -> Packet {
        let source = address(NEAR_NET, (0, 0));
        let destination = match self.destination {
            Destination::OwnPort => address(RELAY_NET, (0, 0)),
            Destination::One(to) => to,
        };
        let mut packet = Packet::new(SocketAddr::V4(source), SocketAddr::V4(destination));
        (packet.src_mac, packet.dst_mac) = (MACS[0], MACS[1]);
        packet.payload = vec![0; self.frame - PAYLOAD_OFFSETS[0]];
        match self.carrier {
            Carrier::Plain => {}
            Carrier::Channel => {
                let len = (self.frame - self.payload_offset()) as u16;
                packet.payload[..2].copy_from_slice(&CHANNEL.to_be_bytes());
                packet.payload[2..4].copy_from_slice(&len.to_be_bytes());
            }
            Carrier::Binding => {
                packet.payload.truncate(STUN_HEADER);
                packet.payload[..BINDING.len()].copy_from_slice(&BINDING);
                packet.padding = self.frame - PAYLOAD_OFFSETS[0] - STUN_HEADER;
            }
        }
        packet
    }

    /// The whole frame, its flow's own bytes aside.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut frame = self.template().frame();
        for checksum in [24, 40] {
            frame[checksum..checksum + 2].fill(0);
        }
        frame
    }

    /// What follows in the payload behind the packet's own bytes.
    pub(super) fn rest(&self) -> Vec<u8> {
        self.bytes()[self.payload_offset() + PAYLOAD..].to_vec()
    }

    /// A plan for `flows` flows from `first` on, neighbours far apart, without time stamps and as fast
    /// as can be.
    pub(super) fn plan(&self, mark: u32, first: u32, flows: u32) -> Plan {
        let frame = self.bytes();
        let mut front = [0; FRONT];
        front.copy_from_slice(&frame[..FRONT]);
        let udp_len = u16::from_be_bytes([frame[38], frame[39]]);
        let pseudo = words(&frame[26..34]) + u32::from(udp_len.to_be()) + u32::from(17u16.to_be());
        Plan {
            front,
            mark,
            payload: self.payload_offset() as u32,
            first,
            flows,
            step: step(flows),
            ip_sum: words(&frame[14..34]),
            udp_sum: pseudo + words(&frame[34..]) + words(&mark.to_ne_bytes()),
            own_port: u32::from(self.destination == Destination::OwnPort),
            stamped: 0,
            interval: 0,
        }
    }
}

/// Sum of the 16-bit words as loaded.
fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

/// A number coprime to `flows`, near its golden section: a walk by it touches neighbours far apart.
fn step(flows: u32) -> u32 {
    let start = (f64::from(flows) * 0.618_034) as u32;
    (start.max(1)..=flows).find(|&step| gcd(step, flows) == 1).unwrap_or(1) % flows
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_its_turn() {
        for flows in [1u32, 2, 500, 1_000, 100_000] {
            let step = step(flows);
            let mut seen = vec![false; flows as usize];
            let mut flow = 0;
            for _ in 0..flows {
                seen[flow as usize] = true;
                flow = (flow + step) % flows;
            }
            assert!(seen.iter().all(|&seen| seen), "{flows}");
        }
    }
}
