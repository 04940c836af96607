//! Whether what arrived is what had to arrive: a relay that is fast and wrong does not count.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use bench_ebpf::{PAYLOAD, PAYLOAD_OFFSETS};
use rawr_tests::packet::Packet;

use super::contenders::Contender;
use super::traffic::{Load, Outcome};

const SENT_TTL: u8 = 64;

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
    let packet = parse(frame).context("is no whole UDP datagram over IPv4")?;
    // The same packet built anew has right checksums and lengths.
    ensure!(packet.frame() == frame, "has a wrong length or checksum");
    let rest = load.shape.rest();
    ensure!(packet.payload.len() == PAYLOAD + rest.len(), "has a payload of another length");
    ensure!(packet.payload[PAYLOAD..] == rest, "has a changed payload");
    let flow = packet.payload[4..8].try_into().map_or(0, u32::from_ne_bytes);
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

/// The fields of a frame, to build it anew from.
fn parse(frame: &[u8]) -> Result<Packet> {
    let payload = frame.get(PAYLOAD_OFFSETS[0]..).context("is short")?;
    if frame[12..15] != [0x08, 0x00, 0x45] || frame[23] != 17 {
        bail!("other headers");
    }
    let half = |offset: usize| u16::from_be_bytes([frame[offset], frame[offset + 1]]);
    let address = |offset: usize, port| -> SocketAddr {
        let [a, b, c, d] = [0, 1, 2, 3].map(|step| frame[offset + step]);
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), half(port))
    };
    let mut packet = Packet::new(address(26, 34), address(30, 36));
    packet.dst_mac.copy_from_slice(&frame[..6]);
    packet.src_mac.copy_from_slice(&frame[6..12]);
    (packet.class, packet.ttl) = (frame[15], frame[22]);
    (packet.id, packet.fragment) = (half(18), half(20));
    packet.payload = payload.to_vec();
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
