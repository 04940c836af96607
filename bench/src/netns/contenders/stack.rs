//! The kernel's network stack as a relay: routing alone, and nftables' NAT.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use bench_ebpf::FLOWS;

use super::{Contender, Passage};
use crate::netns::lab::Lab;
use crate::netns::traffic::Traffic;
use crate::netns::wire::{Carrier, Destination, Shape, near_leg, near_peer};

/// The far peer of all flows: a stack that routes or translates sends to one place.
const FAR_PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 19, 0, 1), 30_000);

struct Forwarding {
    lab: Lab,
    _listening: [OwnedFd; 2],
}

/// IP forwarding: a look at the routes, nothing rewritten but the TTL.
pub(super) fn forwarding(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    lab.relay.set("net/ipv4/ip_forward", "1")?;
    Ok(Box::new(Forwarding { lab, _listening: listening }))
}

impl Contender for Forwarding {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::One(FAR_PEER), frame, carrier: Carrier::Plain }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(near_peer(flow)), destination: FAR_PEER, hops: Some(1) }
    }
}

struct Nat {
    forwarding: Forwarding,
    _limit: ConntrackLimit,
}

/// Source and destination NAT with connection tracking, as a router would relay by itself.
pub(super) fn nat(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    lab.relay.set("net/ipv4/ip_forward", "1")?;
    lab.relay.sh(&format!(
        "nft add table ip nat
         nft 'add chain ip nat pre {{ type nat hook prerouting priority -100; }}'
         nft 'add chain ip nat post {{ type nat hook postrouting priority 100; }}'
         nft add rule ip nat pre ip daddr 10.9.0.0/16 meta l4proto udp dnat to {}
         nft add rule ip nat post ip daddr 10.19.0.0/16 masquerade",
        FAR_PEER.ip()
    ))?;
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        lab.relay.set(&format!("net/netfilter/nf_conntrack_{timeout}"), "86400")?;
    }
    let limit = ConntrackLimit::raise()?;
    let forwarding = Forwarding { lab, _listening: listening };
    Ok(Box::new(Nat { forwarding, _limit: limit }))
}

impl Contender for Nat {
    fn lab(&self) -> &Lab {
        &self.forwarding.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::OwnPort, frame, carrier: Carrier::Plain }
    }

    fn passage(&self, flow: u32) -> Passage {
        let destination = SocketAddrV4::new(*FAR_PEER.ip(), near_leg(flow).port());
        Passage { source: None, destination, hops: Some(1) }
    }
}

/// Connections that the kernel tracks at most, which is one setting for all namespaces: raised, and
/// put back in the end.
struct ConntrackLimit {
    before: String,
    raised: bool,
}

impl ConntrackLimit {
    const FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

    fn raise() -> Result<Self> {
        let before = fs::read_to_string(Self::FILE).context(Self::FILE)?;
        let enough = 2 * FLOWS;
        let raised = before.trim().parse::<u32>().is_ok_and(|most| most < enough);
        if raised {
            fs::write(Self::FILE, enough.to_string()).context(Self::FILE)?;
        }
        Ok(Self { before, raised })
    }
}

impl Drop for ConntrackLimit {
    fn drop(&mut self) {
        if self.raised {
            let _ = fs::write(Self::FILE, self.before.trim());
        }
    }
}
