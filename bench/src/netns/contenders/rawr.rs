//! rawr's kernel path, as the daemon sets it up. A flow is one half of a session; the other half is
//! installed, too.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use bench_ebpf::FLOWS;
use rawr_userspace::dataplane::backend::Backend;
use rawr_userspace::dataplane::bpf::{BPFFS, Bpf, Config, Pins, WantedMode};
use rawr_userspace::dataplane::object::object;
use rawr_userspace::dataplane::{Flow, Leg, NextHop, VlanTags};

use super::{Contender, Passage};
use crate::netns::lab::{FAR, Lab, MACS, NEAR, index_of};
use crate::netns::traffic::Traffic;
use crate::netns::wire::{Destination, Shape, far_leg, far_peer, near_leg, near_peer};

struct Rawr {
    lab: Lab,
    instance: String,
    _listening: [OwnedFd; 2],
    bpf: Option<Bpf>,
}

/// In the driver, from one interface to the other.
pub(super) fn native(traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
    rawr(traffic, flows, "native", WantedMode::Native, false)
}

/// In the driver, back out of the interface that packets come in by.
pub(super) fn on_a_stick(traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
    rawr(traffic, flows, "stick", WantedMode::Native, true)
}

/// In the network stack, from one interface to the other.
pub(super) fn generic(traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
    rawr(traffic, flows, "generic", WantedMode::Generic, false)
}

fn rawr(
    traffic: &mut Traffic,
    flows: u32,
    label: &str,
    mode: WantedMode,
    stick: bool,
) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    let instance = lab.relay.name().to_owned();
    let config = Config {
        instance: instance.clone(),
        table_len: (2 * FLOWS).next_power_of_two(),
        flows: 2 * FLOWS,
        ..Config::default()
    };
    let mut rawr = Rawr { instance, _listening: listening, bpf: None, lab };
    let near = next_hop(&rawr.lab, NEAR, stick)?;
    let far = if stick { near } else { next_hop(&rawr.lab, FAR, stick)? };
    let bpf = rawr.lab.relay.run(|| -> Result<Bpf> {
        let mut bpf = Bpf::open(&config, object())?;
        bpf.attach(NEAR, mode)?;
        if !stick {
            bpf.attach(FAR, mode)?;
        }
        for session in 0..flows {
            pair(&mut bpf, session, &near, &far).with_context(|| format!("session {session}"))?;
        }
        Ok(bpf)
    })??;
    rawr.bpf = Some(bpf);
    Ok(Box::new(rawr))
}

fn pair(bpf: &mut Bpf, session: u32, near: &NextHop, far: &NextHop) -> Result<()> {
    let leg = |local, remote| Leg::whole(SocketAddr::V4(local), SocketAddr::V4(remote));
    let from = leg(near_leg(session), near_peer(session));
    let to = leg(far_leg(session), far_peer(session));
    bpf.install(&Flow { from: to, to: from, limits: [None; 2] }, near)?;
    bpf.install(&Flow { from, to, limits: [None; 2] }, far)?;
    Ok(())
}

fn next_hop(lab: &Lab, interface: &str, tx: bool) -> Result<NextHop> {
    let ifindex = index_of(&lab.relay, interface)?;
    let (src_mac, dst_mac) =
        if interface == NEAR { (MACS[1], MACS[0]) } else { (MACS[2], MACS[3]) };
    Ok(NextHop { ifindex, src_mac, dst_mac, vlan: VlanTags::default(), mtu: 1500, tx })
}

impl Contender for Rawr {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::OwnPort, frame, channel: false }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(far_leg(flow)), destination: far_peer(flow), hops: Some(1) }
    }
}

impl Drop for Rawr {
    fn drop(&mut self) {
        self.bpf.take();
        let instance = &self.instance;
        // The namespace goes anyway, and with it the links; only pins could be left.
        let _ = self.lab.relay.run(|| Pins::detach(BPFFS.as_ref(), instance));
    }
}
