//! Whether what arrived is what had to arrive: a relay that is fast and wrong does not count.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use bench_ebpf::{PAYLOAD, PAYLOAD_OFFSETS};
use rawr_tests::packet::Packet;
use stun_types::attribute::XorMappedAddress;
use stun_types::message::{BINDING, Message, MessageClass};

use super::contenders::{Carried, Contender};
use super::traffic::{Load, Outcome};

const SENT_TTL: u8 = 64;
const ETHERNET: usize = 14;
/// Length of a ChannelData header (RFC 8656 §12.4).
const HEADER: usize = 4;
/// The flow's number in an answer: behind the mark, in the transaction ID.
const FLOW: Range<usize> = 12..16;

/// Checks a run: sampled frames byte by byte, checksums included, and that every flow had its share.
///
/// # Errors
///
/// What is wrong, and in which frame.
pub(super) fn check(contender: &dyn Contender, load: &Load, outcome: &Outcome) -> Result<()> {
    ensure!(outcome.arrived > 0, "nothing arrived of {} packets", outcome.offered);
    ensure!(
        outcome.arrived <= outcome.offered,
        "{} packets arrived of {} that were sent",
        outcome.arrived,
        outcome.offered
    );
    if load.cores == 1 && outcome.arrived == outcome.offered {
        let flows = outcome.offered.min(load.flows.into());
        let seen = outcome.flows;
        ensure!(u64::from(seen) == flows, "packets of {seen} flows arrived, {flows} had some");
    }
    for frame in &outcome.samples {
        check_frame(contender, load, frame).with_context(|| format!("frame {frame:02x?}"))?;
    }
    Ok(())
}

fn check_frame(contender: &dyn Contender, load: &Load, frame: &[u8]) -> Result<()> {
    let mut packet = parse(frame).context("is no whole UDP datagram over IPv4")?;
    // The same packet built anew has right checksums and lengths.
    ensure!(packet.frame() == frame, "has a wrong length or checksum");
    let carried = contender.carried();
    if let Carried::Channel(number) = carried {
        let len = (packet.payload.len() - HEADER) as u16;
        let header = [number.to_be_bytes(), len.to_be_bytes()].concat();
        let own: Vec<_> = packet.payload.drain(..HEADER).collect();
        ensure!(own == header, "is not ChannelData of channel {number:#x} with {len} bytes");
    }
    let flow = if carried == Carried::Answer {
        check_answer(&packet)?
    } else {
        let rest = load.shape.rest();
        ensure!(packet.payload.len() == PAYLOAD + rest.len(), "has a payload of another length");
        ensure!(packet.payload[PAYLOAD..] == rest, "has a changed payload");
        packet.payload[4..8].try_into().map_or(0, u32::from_ne_bytes)
    };
    let passage = contender.passage(flow);
    ensure!(packet.dst == SocketAddr::V4(passage.destination), "goes to {}", packet.dst);
    if let Some(source) = passage.source {
        ensure!(packet.src == SocketAddr::V4(source), "comes from {}", packet.src);
    }
    if let Some(hops) = passage.hops {
        ensure!(packet.ttl == SENT_TTL - hops, "has TTL {}", packet.ttl);
    }
    Ok(())
}

/// Whether a packet is the answer to a Binding request, of which flow, and tells whom it goes to.
fn check_answer(packet: &Packet) -> Result<u32> {
    let message = Message::from_bytes(&packet.payload).context("is no STUN message")?;
    let is_success = message.class() == MessageClass::Success && message.method() == BINDING;
    ensure!(is_success, "is no answer to a Binding request");
    let mapped = message.attribute::<XorMappedAddress>().context("tells no address")?;
    let mapped = mapped.addr(message.transaction_id());
    ensure!(mapped == packet.dst, "tells {} of {mapped}", packet.dst);
    let flow = packet.payload.get(FLOW).context("is short")?;
    Ok(flow.try_into().map_or(0, u32::from_ne_bytes))
}

/// The fields of a frame, to build it anew from.
pub(super) fn parse(frame: &[u8]) -> Result<Packet> {
    let half = |offset: usize| u16::from_be_bytes([frame[offset], frame[offset + 1]]);
    ensure!(frame.len() >= PAYLOAD_OFFSETS[0], "is short");
    let end = ETHERNET + usize::from(half(16));
    let payload = frame.get(PAYLOAD_OFFSETS[0]..end).context("is shorter than its header says")?;
    if frame[12..15] != [0x08, 0x00, 0x45] || frame[23] != 17 {
        bail!("other headers");
    }
    let address = |offset: usize, port| -> SocketAddr {
        let [a, b, c, d] = [0, 1, 2, 3].map(|step| frame[offset + step]);
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), half(port))
    };
    let mut packet = Packet::new(address(26, 34), address(30, 36));
    packet.dst_mac.copy_from_slice(&frame[..6]);
    packet.src_mac.copy_from_slice(&frame[6..12]);
    (packet.class, packet.ttl) = (frame[15], frame[22]);
    (packet.id, packet.fragment) = (half(18), half(20));
    (packet.payload, packet.padding) = (payload.to_vec(), frame.len() - end);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_built() {
        let mut packet =
            Packet::new(([10, 18, 0, 1], 20_000).into(), ([10, 9, 0, 3], 1_024).into());
        (packet.ttl, packet.id) = (63, 7);
        assert_eq!(parse(&packet.frame()).unwrap(), packet);
    }
}
