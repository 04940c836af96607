//! The data plane that obeys a server in memory, as much of it as a measurement asks for.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rawr_tests::load;
use rawr_userspace::control::Command;
use rawr_userspace::dataplane::backend::{Backend, Installed};
use rawr_userspace::dataplane::bpf::{BPFFS, Bpf, Config, Pins};
use rawr_userspace::dataplane::flow_table::{Event, FlowTable};
use rawr_userspace::dataplane::memory::Memory;
use rawr_userspace::dataplane::object::object;
use rawr_userspace::dataplane::reconcile::{Reconciler, Settings};
use rawr_userspace::dataplane::{NextHop, NextHops, VlanTags};

/// Places of each flow table: sixteen addresses' ports.
const TABLE: u32 = 1 << 20;
/// Room for both flows of 100,000 sessions.
const FLOWS: u32 = 1 << 18;
/// `lo`, which every network namespace has. Nothing is sent.
const INTERFACE: u32 = 1;

/// How far the data plane goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// There is none: the server alone.
    Server,
    /// The flow table, without a back end.
    Table,
    /// With the reconciler, and the back end in memory.
    Memory,
    /// With the reconciler, and the kernel's maps.
    Kernel,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Server, Self::Table, Self::Memory, Self::Kernel];

    /// As rows are labelled.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Table => "server, flow table",
            Self::Memory => "server, flow table, back end in memory",
            Self::Kernel => "server, flow table, kernel",
        }
    }

    /// As the command line calls it.
    pub(super) fn argument(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Pins of this name, which are removed with the value.
pub(super) struct Instance(pub(super) String);

impl Instance {
    /// Removes them now.
    pub(super) fn clear(&self) -> Result<()> {
        Pins::detach(Path::new(BPFFS), &self.0)?;
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // What is left is swept away by the next run.
        let _ = self.clear();
    }
}

/// See the [module](self).
pub(super) struct Plane {
    pub(super) flows: FlowTable,
    reconciler: Reconciler,
    backend: Option<Box<dyn Backend>>,
    is_there: bool,
    router: Router,
    /// Flows that the reconciler could not install.
    pub(super) failed: u64,
    /// Flows that have been installed.
    pub(super) installed: u64,
}

/// The next hop of everything: its MAC address ends so.
#[derive(Clone, Copy)]
pub(super) struct Router(pub(super) u8);

impl NextHops for Router {
    fn next_hop(&self, _remote: IpAddr, _local: IpAddr) -> Option<NextHop> {
        Some(NextHop {
            ifindex: INTERFACE,
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 1, self.0],
            vlan: VlanTags::default(),
            mtu: 1500,
            tx: true,
        })
    }
}

impl Plane {
    /// Over maps that are pinned as `instance`, if they are needed. Those of a predecessor are
    /// taken over.
    pub(super) fn open(kind: Kind, instance: &str, router: Router) -> Result<Self> {
        let backend: Option<Box<dyn Backend>> = match kind {
            Kind::Server | Kind::Table => None,
            Kind::Memory => Some(Box::new(Memory::new(TABLE, FLOWS))),
            Kind::Kernel => {
                let config = Config {
                    instance: instance.to_owned(),
                    table_len: TABLE,
                    flows: FLOWS,
                    ..Config::default()
                };
                Some(Box::new(Bpf::open(&config, object())?))
            }
        };
        Ok(Self {
            flows: FlowTable::default(),
            reconciler: Reconciler::new(Settings::default()),
            backend,
            is_there: kind != Kind::Server,
            router,
            failed: 0,
            installed: 0,
        })
    }

    /// Whether something applies the flows to packets.
    pub(super) fn has_backend(&self) -> bool {
        self.backend.is_some()
    }

    /// All flows in force.
    pub(super) fn list(&self) -> Result<Vec<Installed>> {
        Ok(self.backend.as_deref().context("no back end")?.list()?)
    }

    /// Reads all counters once.
    pub(super) fn poll_counters(&mut self) -> Result<()> {
        let backend = self.backend.as_deref().context("no back end")?;
        self.reconciler.poll_counters(&mut self.flows, backend)?;
        Ok(())
    }

    /// When the reconciler has something to do next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.backend.as_ref()?;
        self.reconciler.poll_timeout()
    }

    /// One step of the reconciler.
    pub(super) fn step(&mut self, now: Instant) {
        let Some(backend) = self.backend.as_deref_mut() else {
            return self.flows.settle_alone();
        };
        self.reconciler.step(now, &mut self.flows, backend, &self.router);
        for event in self.flows.take_events() {
            match event {
                Event::Installed { .. } => self.installed += 1,
                Event::Failed { .. } | Event::ListFailed { .. } => self.failed += 1,
                Event::Pending { .. } | Event::Removed { .. } | Event::OrphanRemoved { .. } => {}
            }
        }
    }
}

impl load::DataPlane for Plane {
    fn obey(&mut self, command: &Command) {
        if !self.is_there {
            return;
        }
        match *command {
            Command::Pair { a, b, limits } => self.flows.pair(a, b, limits),
            Command::Drain { from, to, limits } => self.flows.drain(from, to, limits),
            Command::ClosePort { local } => self.flows.unpair_all(local),
            Command::Unpair { key } => {
                self.flows.unpair(key);
            }
            Command::Transmit { .. }
            | Command::OpenPort { .. }
            | Command::Connect { .. }
            | Command::Splice { .. }
            | Command::Close(_)
            | Command::ProbeNeighbours
            | Command::Remember(_)
            | Command::Forget(_) => {}
        }
    }

    fn settle(&mut self, now: Instant) {
        if self.flows.has_changed() {
            self.step(now);
        }
    }
}
