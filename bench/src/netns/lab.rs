//! Three namespaces in a row: generator, relay, sink. Everything is known beforehand: addresses,
//! neighbours, routes; so nothing is asked or learnt while packets flow.

use std::rc::Rc;

use anyhow::{Context, Result};
use rawr_tests::netns::Netns;

/// The generator's interface, and its peer at the relay.
pub(super) const GENERATOR: &str = "g0";
pub(super) const NEAR: &str = "d0";
/// The relay's other interface, and its peer, where the sink is.
pub(super) const FAR: &str = "d1";
pub(super) const SINK: &str = "s0";

/// MAC addresses of [`GENERATOR`], [`NEAR`], [`FAR`] and [`SINK`].
pub(super) const MACS: [[u8; 6]; 4] =
    [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]];

/// The relay's own addresses begin so.
pub(super) const RELAY_NET: [u8; 2] = [10, 9];
/// Addresses of near and far peers begin so.
pub(super) const NEAR_NET: [u8; 2] = [10, 18];
pub(super) const FAR_NET: [u8; 2] = [10, 19];

/// The CPU of a contender that is a process; the generator runs on the first.
pub(super) const PROCESS_CPU: usize = 1;

/// The namespaces of one contender.
pub(super) struct Lab {
    pub(super) generator: Rc<Netns>,
    pub(super) relay: Rc<Netns>,
    pub(super) sink: Rc<Netns>,
}

impl Lab {
    pub(super) fn new(label: &str) -> Result<Self> {
        let netns = |role| Netns::new(&format!("{label}-{role}")).map(Rc::new);
        let lab = Self { generator: netns("gen")?, relay: netns("relay")?, sink: netns("sink")? };
        lab.join(&lab.generator, GENERATOR, NEAR)?;
        lab.join(&lab.sink, SINK, FAR)?;
        for (netns, interface, [.., last]) in [
            (&lab.generator, GENERATOR, MACS[0]),
            (&lab.relay, NEAR, MACS[1]),
            (&lab.relay, FAR, MACS[2]),
            (&lab.sink, SINK, MACS[3]),
        ] {
            netns.sh(&format!("ip link set {interface} address 02:00:00:00:00:0{last} up"))?;
            netns.set(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        lab.address()?;
        Ok(lab)
    }

    /// One queue for each CPU, so that packets stay on the CPU that they were sent on.
    fn join(&self, host: &Netns, interface: &str, relay_end: &str) -> Result<()> {
        let queues = cpus();
        host.sh(&format!(
            "ip link add {interface} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name {relay_end} numrxqueues {queues} numtxqueues {queues} netns {}",
            self.relay.name()
        ))?;
        Ok(())
    }

    fn address(&self) -> Result<()> {
        self.relay.set("net/ipv4/conf/all/rp_filter", "0")?;
        self.relay.sh(&format!(
            "ip address add 10.0.0.1/24 dev {NEAR}
             ip address add 10.0.1.1/24 dev {FAR}
             ip route add local 10.9.0.0/16 dev lo
             ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 nud permanent dev {NEAR}
             ip neigh add 10.0.1.2 lladdr 02:00:00:00:00:04 nud permanent dev {FAR}
             ip route add 10.18.0.0/16 via 10.0.0.2
             ip route add 10.19.0.0/16 via 10.0.1.2
             ethtool -K {NEAR} tx off
             ethtool -K {FAR} tx off"
        ))?;
        self.generator.sh(&format!(
            "ip address add 10.0.0.2/24 dev {GENERATOR}
             ip route add local 10.18.0.0/16 dev lo
             ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:02 nud permanent dev {GENERATOR}
             ip route add 10.9.0.0/16 via 10.0.0.1
             ethtool -K {GENERATOR} tx off"
        ))?;
        self.sink.sh(&format!(
            "ip address add 10.0.1.2/24 dev {SINK}
             ip route add local 10.19.0.0/16 dev lo
             ip neigh add 10.0.1.1 lladdr 02:00:00:00:00:03 nud permanent dev {SINK}
             ip route add 10.9.0.0/16 via 10.0.1.1
             ethtool -K {SINK} tx off"
        ))?;
        Ok(())
    }

    /// Lets the relay's interfaces take frames without a program of their own: a veth polls only if
    /// it has a program or GRO.
    pub(super) fn poll_without_program(&self) -> Result<()> {
        self.relay.sh(&format!("ethtool -K {NEAR} gro on\nethtool -K {FAR} gro on"))?;
        Ok(())
    }
}

/// Number of an interface of a namespace.
pub(super) fn index_of(netns: &Netns, interface: &str) -> Result<u32> {
    netns
        .run(|| nix::net::if_::if_nametoindex(interface))?
        .with_context(|| format!("no interface {interface} in {}", netns.name()))
}

/// CPUs of this machine.
pub(super) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}
