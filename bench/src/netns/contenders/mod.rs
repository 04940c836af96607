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
mod userspace;

/// Something between generator and sink.
pub(super) trait Contender {
    fn lab(&self) -> &Lab;

    /// Packets of `frame` bytes that it forwards.
    fn shape(&self, frame: usize) -> Shape;

    /// What becomes of the packets of a flow.
    fn passage(&self, flow: u32) -> Passage;
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
}

impl Topology {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Stick => "stick",
        }
    }
}

/// Makes a contender that has `flows` flows.
type Make = fn(traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>>;

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
    /// Makes it, with at most `flows` flows.
    pub(super) fn make(&self, traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
        (self.make)(traffic, flows.min(self.flows))
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
    process("rawr userspace", userspace::userspace),
    process("coturn", coturn::coturn),
    kernel("bare XDP_TX", Topology::Stick, limits::transmit),
    kernel("rawr", Topology::Stick, rawr::on_a_stick),
];

const fn kernel(name: &'static str, topology: Topology, make: Make) -> Kind {
    Kind { name, topology, flows: FLOWS, process: false, make }
}

const fn process(name: &'static str, make: Make) -> Kind {
    Kind { name, topology: Topology::Redirect, flows: PROCESS_FLOWS, process: true, make }
}
