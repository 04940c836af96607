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
use crate::netns::wire::{Carrier, Destination, Shape, far_leg, far_peer, near_leg, near_peer};

/// The program on a lab's relay, with its maps.
pub(super) struct Kernel {
    pub(super) lab: Lab,
    instance: String,
    _listening: [OwnedFd; 2],
    bpf: Option<Bpf>,
}

/// How packets leave by the interfaces of the relay.
pub(super) struct Hops {
    pub(super) near: NextHop,
    pub(super) far: NextHop,
}

/// Where the program is attached.
#[derive(Clone, Copy)]
pub(super) struct Attach {
    pub(super) mode: WantedMode,
    /// Packets leave by the interface that they came in by, and the program is on that one alone.
    pub(super) stick: bool,
}

impl Kernel {
    /// Loads and attaches it, and has `fill` do what the daemon would.
    pub(super) fn open(
        traffic: &mut Traffic,
        label: &str,
        config: Config,
        attach: Attach,
        fill: impl FnOnce(&mut Bpf, &Hops) -> Result<()> + Send,
    ) -> Result<Self> {
        let lab = Lab::new(label)?;
        let listening = traffic.listen(&lab)?;
        lab.poll_without_program()?;
        let near = next_hop(&lab, NEAR, attach.stick)?;
        let far = if attach.stick { near } else { next_hop(&lab, FAR, false)? };
        let hops = Hops { near, far };
        let instance = lab.relay.name().to_owned();
        let config = Config { instance: instance.clone(), ..config };
        // What is pinned goes with the value, also if it cannot be filled.
        let mut kernel = Self { instance, _listening: listening, bpf: None, lab };
        let interfaces: &[&str] = if attach.stick { &[NEAR] } else { &[NEAR, FAR] };
        kernel.bpf = Some(kernel.lab.relay.run(|| -> Result<Bpf> {
            let mut bpf = Bpf::open(&config, object())?;
            for interface in interfaces {
                bpf.attach(interface, attach.mode)?;
            }
            fill(&mut bpf, &hops)?;
            Ok(bpf)
        })??);
        Ok(kernel)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.bpf.take();
        let instance = &self.instance;
        // The namespace goes anyway, and with it the links; only pins could be left.
        let _ = self.lab.relay.run(|| Pins::detach(BPFFS.as_ref(), instance));
    }
}

struct Rawr(Kernel);

/// In the driver, from one interface to the other.
pub(super) fn native(traffic: &mut Traffic, label: &str, flows: u32) -> Result<Box<dyn Contender>> {
    rawr(traffic, label, flows, WantedMode::Native, false)
}

/// In the driver, back out of the interface that packets come in by.
pub(super) fn on_a_stick(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    rawr(traffic, label, flows, WantedMode::Native, true)
}

/// In the network stack, from one interface to the other.
pub(super) fn generic(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    rawr(traffic, label, flows, WantedMode::Generic, false)
}

fn rawr(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
    mode: WantedMode,
    stick: bool,
) -> Result<Box<dyn Contender>> {
    let config = Config {
        table_len: (2 * FLOWS).next_power_of_two(),
        flows: 2 * FLOWS,
        ..Config::default()
    };
    let kernel = Kernel::open(traffic, label, config, Attach { mode, stick }, |bpf, hops| {
        (0..flows).try_for_each(|session| {
            pair(bpf, session, hops).with_context(|| format!("session {session}"))
        })
    })?;
    Ok(Box::new(Rawr(kernel)))
}

fn pair(bpf: &mut Bpf, session: u32, hops: &Hops) -> Result<()> {
    let leg = |local, remote| Leg::whole(SocketAddr::V4(local), SocketAddr::V4(remote));
    let from = leg(near_leg(session), near_peer(session));
    let to = leg(far_leg(session), far_peer(session));
    bpf.install(&Flow { from: to, to: from, limits: [None; 2] }, &hops.near)?;
    bpf.install(&Flow { from, to, limits: [None; 2] }, &hops.far)?;
    Ok(())
}

/// How packets leave by an interface of the relay; `tx` if they came in by it.
fn next_hop(lab: &Lab, interface: &str, tx: bool) -> Result<NextHop> {
    let ifindex = index_of(&lab.relay, interface)?;
    let (src_mac, dst_mac) =
        if interface == NEAR { (MACS[1], MACS[0]) } else { (MACS[2], MACS[3]) };
    Ok(NextHop { ifindex, src_mac, dst_mac, vlan: VlanTags::default(), mtu: 1500, tx })
}

impl Contender for Rawr {
    fn lab(&self) -> &Lab {
        &self.0.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::OwnPort, frame, carrier: Carrier::Plain }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(far_leg(flow)), destination: far_peer(flow), hops: Some(1) }
    }
}
