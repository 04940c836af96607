//! What no relay can be faster than: XDP programs that do nothing but send packets on.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Result;
use bench_ebpf::names;
use rawr_tests::kernel::attach;

use super::{Contender, Passage};
use crate::netns::lab::{FAR, Lab, NEAR, index_of};
use crate::netns::traffic::{Limit, Traffic};
use crate::netns::wire::{Carrier, Destination, Shape, near_leg, near_peer};

struct Bare {
    lab: Lab,
    _listening: [OwnedFd; 2],
    _limit: Limit,
    _attached: OwnedFd,
}

/// Everything leaves by the other interface.
pub(super) fn redirect(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    bare(traffic, label, names::BARE_REDIRECT)
}

/// Everything leaves by the interface that it came in by.
pub(super) fn transmit(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    bare(traffic, label, names::BARE_TRANSMIT)
}

fn bare(traffic: &mut Traffic, label: &str, program: &str) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    let limit = Limit::load(program, &lab.relay, index_of(&lab.relay, FAR)?)?;
    let near = index_of(&lab.relay, NEAR)?;
    let attached = lab.relay.run(|| attach(limit.program.as_fd(), near))??;
    Ok(Box::new(Bare { lab, _listening: listening, _limit: limit, _attached: attached }))
}

impl Contender for Bare {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::OwnPort, frame, carrier: Carrier::Plain }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(near_peer(flow)), destination: near_leg(flow), hops: Some(0) }
    }
}
