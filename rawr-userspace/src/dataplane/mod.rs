//! The data plane: what forwards packets once the control plane has decided.
//!
//! The desired state is a [`flow_table::FlowTable`]. Two things make it true: a [`backend::Backend`]
//! (the kernel's maps, or a stand-in), and the [`slow_path`], which can forward everything by itself
//! and always holds all flows, so that a flow the kernel does not hold is slower, never dead.
//!
//! The table says what is wanted and never touches a backend; the [`reconcile::Reconciler`] makes
//! the backend agree, at once for what has changed and from time to time for everything. A driver
//! tells the table what happens, takes one step, and reads the outcome:
//!
//! ```
//! use std::{net::IpAddr, time::{Duration, Instant}};
//! use rawr_userspace::dataplane::{
//!     Leg, NextHop, NextHops, VlanTags, backend::Backend, flow_table::{Event, FlowTable},
//!     memory::Memory, reconcile::{Reconciler, Settings},
//! };
//!
//! struct OneRouter;
//! impl NextHops for OneRouter {
//!     fn next_hop(&self, _remote: IpAddr, _local: IpAddr) -> Option<NextHop> {
//!         let (src_mac, dst_mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
//!         let vlan = VlanTags::default();
//!         Some(NextHop { ifindex: 2, src_mac, dst_mac, vlan, mtu: 1500, tx: true })
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let now = { #[allow(clippy::disallowed_methods)] Instant::now() };
//! let mut backend: Box<dyn Backend> = Box::new(Memory::new(1 << 16, 1024));
//! let mut table = FlowTable::default();
//! let mut reconciler = Reconciler::new(Settings::default());
//!
//! let a = Leg { local: "192.0.2.1:50000".parse()?, remote: "198.51.100.7:4000".parse()? };
//! let b = Leg { local: "192.0.2.1:50001".parse()?, remote: "203.0.113.9:4000".parse()? };
//! table.pair(a, b, None);
//! reconciler.step(now, &mut table, &mut *backend, &OneRouter);
//! assert!(matches!(table.take_events()[..], [Event::Installed { .. }, Event::Installed { .. }]));
//!
//! table.next_hop_changed(a.remote.ip()); // from the kernel's notifications
//! table.unpair(a.local);
//! table.unpair(b.local);
//! reconciler.step(now, &mut table, &mut *backend, &OneRouter);
//! assert!(backend.list()?.is_empty());
//! // Without events, step again at the latest at this time; counters about once a second.
//! assert!(reconciler.poll_timeout().unwrap() <= now + Duration::from_secs(5));
//! let moved = reconciler.poll_counters(&mut table, &*backend)?;
//! assert!(moved.is_empty());
//! # Ok(())
//! # }
//! ```

use std::net::{IpAddr, SocketAddr};

pub mod backend;
pub mod bpf;
pub mod chaos;
pub mod flow_table;
pub mod memory;
pub mod object;
pub mod reconcile;
mod retry;
pub mod slow_path;
pub mod table;

/// One end of a session at this server: datagrams from `remote` to `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leg {
    /// Address and port of ours.
    pub local: SocketAddr,
    /// Where its datagrams come from and go to.
    pub remote: SocketAddr,
}

/// Datagrams that arrive on `from` leave on `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub from: Leg,
    pub to: Leg,
    /// Most bytes (of layer 3) per second; `None` for no limit.
    pub rate: Option<u64>,
}

/// How packets to one remote address leave this host, resolved from routes and neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Interface that XDP sends by: for a VLAN interface the one below it.
    pub ifindex: u32,
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub vlan: VlanTags,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u16,
    /// Whether `XDP_TX` may be used on this interface (not on veth).
    pub tx: bool,
}

/// Tags of packets that leave, outermost first: (TPID, tag control information), host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VlanTags(pub [Option<(u16, u16)>; 2]);

/// What one flow has forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
}

impl Counters {
    /// Whether nothing has been forwarded.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl std::ops::Add for Counters {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

/// Routes and neighbours, as far as flows need them.
pub trait NextHops {
    /// How packets from `local` to `remote` leave; `None` while that is unknown, for example while
    /// the neighbour has not been resolved.
    fn next_hop(&self, remote: IpAddr, local: IpAddr) -> Option<NextHop>;
}
