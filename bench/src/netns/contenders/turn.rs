//! rawr's kernel path as a TURN server has it: bound channels, and answers to Binding requests. Both
//! directions of a channel are installed.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result};
use bench_ebpf::FLOWS;
use rawr_proto::ChannelNumber;
use rawr_userspace::dataplane::backend::Backend;
use rawr_userspace::dataplane::bpf::{Bpf, Config, Listener, WantedMode};
use rawr_userspace::dataplane::{Flow, Leg};

use super::rawr::{Attach, Hops, Kernel};
use super::{Carried, Contender, Passage};
use crate::netns::lab::Lab;
use crate::netns::traffic::Traffic;
use crate::netns::wire::{CHANNEL, Carrier, Destination, Shape, far_peer, near_leg, near_peer};

/// Where clients send to. None of [`near_leg`]'s addresses.
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 31), 3478);
/// An eighth is full, so that no channel lacks a place.
const CHANNEL_TABLE: u32 = (8 * FLOWS).next_power_of_two();

/// On which side of the relay the clients are. The relayed transport addresses are always those of
/// [`near_leg`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clients {
    /// Where the generator is.
    Near,
    /// Where the sink is.
    Far,
}

struct Channels {
    kernel: Kernel,
    clients: Clients,
}

/// Clients send ChannelData, their peers get plain datagrams.
pub(super) fn to_peer(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    channels(traffic, label, flows, Clients::Near)
}

/// Peers send plain datagrams, the clients get ChannelData.
pub(super) fn to_client(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    channels(traffic, label, flows, Clients::Far)
}

fn channels(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
    clients: Clients,
) -> Result<Box<dyn Contender>> {
    let config = Config {
        table_len: (2 * FLOWS).next_power_of_two(),
        channel_len: CHANNEL_TABLE,
        flows: 2 * FLOWS,
        ..Config::default()
    };
    let attach = Attach { mode: WantedMode::Native, stick: false };
    let kernel = Kernel::open(traffic, label, config, attach, |bpf, hops| {
        (0..flows).try_for_each(|flow| {
            bind(bpf, clients, flow, hops).with_context(|| format!("channel {flow}"))
        })
    })?;
    Ok(Box::new(Channels { kernel, clients }))
}

/// Installs both directions of a flow's channel.
fn bind(bpf: &mut Bpf, clients: Clients, flow: u32, hops: &Hops) -> Result<()> {
    let channel = ChannelNumber::new(CHANNEL);
    let leg = |local, remote, channel| {
        Leg::shared(SocketAddr::V4(local), SocketAddr::V4(remote), channel)
    };
    let (client, peer, to_client, to_peer) = match clients {
        Clients::Near => (near_peer(flow), far_peer(flow), &hops.near, &hops.far),
        Clients::Far => (far_peer(flow), near_peer(flow), &hops.far, &hops.near),
    };
    let (client, peer) = (leg(SERVER, client, channel), leg(near_leg(flow), peer, None));
    bpf.install(&Flow { from: client, to: peer, limits: [None; 2] }, to_peer)?;
    bpf.install(&Flow { from: peer, to: client, limits: [None; 2] }, to_client)?;
    Ok(())
}

impl Contender for Channels {
    fn lab(&self) -> &Lab {
        &self.kernel.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        let (destination, carrier) = match self.clients {
            Clients::Near => (Destination::One(SERVER), Carrier::Channel),
            Clients::Far => (Destination::OwnPort, Carrier::Plain),
        };
        Shape { destination, frame, carrier }
    }

    fn passage(&self, flow: u32) -> Passage {
        let source = match self.clients {
            Clients::Near => near_leg(flow),
            Clients::Far => SERVER,
        };
        Passage { source: Some(source), destination: far_peer(flow), hops: Some(1) }
    }

    fn carried(&self) -> Carried {
        match self.clients {
            Clients::Near => Carried::Plain,
            Clients::Far => Carried::Channel(CHANNEL),
        }
    }
}

struct Binding(Kernel);

/// Answers Binding requests in the program.
pub(super) fn binding(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    let config = Config { answers: true, ..Config::default() };
    let attach = Attach { mode: WantedMode::Native, stick: true };
    let kernel = Kernel::open(traffic, label, config, attach, |bpf, hops| {
        let local = SocketAddr::V4(SERVER);
        let listener = Listener { local, exit: hops.near, bytes_per_second: None };
        match bpf.answer_binding(&[listener]).pop() {
            Some((local, error)) => Err(error).with_context(|| format!("no answers at {local}")),
            None => Ok(()),
        }
    })?;
    Ok(Box::new(Binding(kernel)))
}

impl Contender for Binding {
    fn lab(&self) -> &Lab {
        &self.0.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::One(SERVER), frame, carrier: Carrier::Binding }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(SERVER), destination: near_peer(flow), hops: None }
    }

    fn carried(&self) -> Carried {
        Carried::Answer
    }
}
