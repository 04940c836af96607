//! rawr's userspace path: the same flows, forwarded by sockets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rawr_userspace::dataplane::Leg;
use rawr_userspace::dataplane::slow_path::{On, Options, SlowPath, raise_open_files};

use super::{Contender, Passage};
use crate::affinity::pin_to;
use crate::netns::lab::{Lab, PROCESS_CPU};
use crate::netns::traffic::Traffic;
use crate::netns::wire::{Carrier, Destination, Shape, far_leg, far_peer, near_leg, near_peer};

struct Userspace {
    lab: Lab,
    _listening: [OwnedFd; 2],
    _path: SlowPath,
}

/// One worker thread on a CPU of its own.
pub(super) fn userspace(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    raise_open_files(u64::from(2 * flows))?;
    let path = lab.relay.run(|| start(flows))??;
    Ok(Box::new(Userspace { lab, _listening: listening, _path: path }))
}

/// The thread that this starts inherits CPU and namespace.
fn start(flows: u32) -> Result<SlowPath> {
    pin_to(PROCESS_CPU)?;
    // What no flow is for is of no interest.
    let (path, _) = SlowPath::start(Options::default())?;
    let leg = |local, remote| Leg::whole(SocketAddr::V4(local), SocketAddr::V4(remote));
    for flow in 0..flows {
        let from = leg(near_leg(flow), near_peer(flow));
        let to = leg(far_leg(flow), far_peer(flow));
        for leg in [from, to] {
            path.open(On::Exactly(leg.local), &|_| true)
                .with_context(|| format!("port {}", leg.local))?;
        }
        path.forward(from, to, None)?;
        path.forward(to, from, None)?;
    }
    Ok(path)
}

impl Contender for Userspace {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::OwnPort, frame, carrier: Carrier::Plain }
    }

    fn passage(&self, flow: u32) -> Passage {
        Passage { source: Some(far_leg(flow)), destination: far_peer(flow), hops: None }
    }
}
