//! Who is measured. Each contender sits in a lab of its own, and all stay there during the whole run,
//! so that they can be measured in turn.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use bench_ebpf::FLOWS;

use super::lab::Lab;
use super::traffic::Traffic;
use super::wire::Shape;

mod coturn;
mod limits;
mod rawr;
mod stack;
mod turn;
mod userspace;

/// Something between generator and sink.
pub(super) trait Contender {
    fn lab(&self) -> &Lab;

    /// Packets of `frame` bytes that it forwards.
    fn shape(&self, frame: usize) -> Shape;

    /// What becomes of the packets of a flow.
    fn passage(&self, flow: u32) -> Passage;

    /// What it puts the generator's own bytes into.
    fn carried(&self) -> Carried {
        Carried::Plain
    }
}

/// What the generator's own bytes come out in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// A datagram by itself.
    Plain,
    /// ChannelData of this channel.
    Channel(u16),
    /// The answer to a Binding request.
    Answer,
}

/// How a packet comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    /// `None` if the contender chooses by itself.
    pub(super) source: Option<SocketAddrV4>,
    pub(super) destination: SocketAddrV4,
    /// How much is taken off the TTL; `None` if the packet is made anew.
    pub(super) hops: Option<u8>,
}

/// How packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology {
    /// In by one interface, out by the other.
    Redirect,
    /// Back out of the interface that they came in by.
    Stick,
    /// As [`Self::Redirect`]: ChannelData of a TURN client goes in, datagrams to its peer come out.
    ToPeer,
    /// As [`Self::Redirect`]: datagrams of a peer go in, ChannelData to a TURN client comes out.
    ToClient,
    /// As [`Self::Stick`]: Binding requests go in, their answers come out.
    Binding,
}

impl Topology {
    pub(super) const ALL: [Self; 5] =
        [Self::Redirect, Self::Stick, Self::ToPeer, Self::ToClient, Self::Binding];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Stick => "stick",
            Self::ToPeer => "ChannelData to UDP",
            Self::ToClient => "UDP to ChannelData",
            Self::Binding => "Binding requests",
        }
    }
}

/// Makes a contender that has `flows` flows. No other one's lab has its label.
type Make = fn(traffic: &mut Traffic, label: &str, flows: u32) -> Result<Box<dyn Contender>>;

/// A contender that can be made.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) topology: Topology,
    /// Most flows that it can have here.
    pub(super) flows: u32,
    /// Whether it is a process: it then has a core besides the generator's, and more is offered to it
    /// than it can take only if that does not make it slower.
    pub(super) process: bool,
    make: Make,
}

impl Kind {
    /// What its namespaces are called by.
    fn label(&self) -> String {
        let name = format!("{} {}", self.topology.name(), self.name).to_lowercase();
        name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
    }

    /// Makes it, with at most `flows` flows.
    pub(super) fn make(&self, traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
        (self.make)(traffic, &self.label(), flows.min(self.flows))
            .with_context(|| format!("cannot set up {} ({})", self.name, self.topology.name()))
    }
}

/// Most flows of a process: each takes one or two sockets.
pub(super) const PROCESS_FLOWS: u32 = 1_000;

/// All of them, one row each; the first of each topology is its limit.
pub(super) const KINDS: &[Kind] = &[
    kernel("bare XDP redirect", Topology::Redirect, limits::redirect),
    kernel("rawr", Topology::Redirect, rawr::native),
    kernel("rawr generic", Topology::Redirect, rawr::generic),
    kernel("IP forwarding", Topology::Redirect, stack::forwarding),
    kernel("nftables NAT", Topology::Redirect, stack::nat),
    process("rawr userspace", Topology::Redirect, userspace::userspace),
    process("coturn", Topology::Redirect, coturn::to_peer),
    kernel("bare XDP_TX", Topology::Stick, limits::transmit),
    kernel("rawr", Topology::Stick, rawr::on_a_stick),
    kernel("bare XDP redirect", Topology::ToPeer, limits::redirect),
    kernel("rawr", Topology::ToPeer, turn::to_peer),
    process("coturn", Topology::ToPeer, coturn::to_peer),
    kernel("bare XDP redirect", Topology::ToClient, limits::redirect),
    kernel("rawr", Topology::ToClient, turn::to_client),
    process("coturn", Topology::ToClient, coturn::to_client),
    kernel("bare XDP_TX", Topology::Binding, limits::transmit),
    kernel("rawr", Topology::Binding, turn::binding),
    process("coturn", Topology::Binding, coturn::binding),
];

const fn kernel(name: &'static str, topology: Topology, make: Make) -> Kind {
    Kind { name, topology, flows: FLOWS, process: false, make }
}

const fn process(name: &'static str, topology: Topology, make: Make) -> Kind {
    Kind { name, topology, flows: PROCESS_FLOWS, process: true, make }
}
