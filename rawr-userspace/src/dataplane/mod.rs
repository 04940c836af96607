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
//!     Leg, NextHop, NextHops, RateLimits, VlanTags, backend::Backend, flow_table::{Event, FlowTable},
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
//! # #[allow(clippy::disallowed_methods, reason = "examples have no clock of their own")]
//! # let now = Instant::now();
//! let mut backend: Box<dyn Backend> = Box::new(Memory::new(1 << 16, 1024));
//! let mut table = FlowTable::default();
//! let mut reconciler = Reconciler::new(Settings::default());
//!
//! let a = Leg::whole("192.0.2.1:50000".parse()?, "198.51.100.7:4000".parse()?);
//! let b = Leg::whole("192.0.2.1:50001".parse()?, "203.0.113.9:4000".parse()?);
//! table.pair(a, b, RateLimits::default());
//! reconciler.step(now, &mut table, &mut *backend, &OneRouter);
//! assert!(matches!(table.take_events()[..], [Event::Installed { .. }, Event::Installed { .. }]));
//!
//! table.next_hop_changed(a.remote.ip()); // from the kernel's notifications
//! table.unpair(a.key());
//! table.unpair(b.key());
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

use rawr_proto::ChannelNumber;

pub use self::key::FlowKey;

pub mod backend;
pub mod bpf;
pub mod chaos;
pub mod flow_table;
mod key;
mod mapping;
pub mod memory;
pub mod object;
mod place;
pub mod reconcile;
mod retry;
pub mod slow_path;
pub mod table;
mod tuple;

/// One end of a session at this server: datagrams from `remote` to `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leg {
    /// Address and port of ours.
    pub local: SocketAddr,
    /// Where its datagrams come from and go to.
    pub remote: SocketAddr,
    /// Whether others have the same `local`.
    pub share: Share,
}

/// How a leg is told from others at the same port of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Share {
    /// The port is this leg's alone: a data port of RAWR.
    #[default]
    Whole,
    /// Others have it as well: the STUN port, or a relayed transport address. They differ in
    /// `remote` and channel.
    Shared {
        /// Datagrams of this leg are ChannelData of this channel, both ways (RFC 8656 §12.4);
        /// `None` where they are plain.
        channel: Option<ChannelNumber>,
    },
}

impl Leg {
    /// A leg that has its port for itself.
    pub fn whole(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, share: Share::Whole }
    }

    /// A leg that shares its port.
    pub fn shared(local: SocketAddr, remote: SocketAddr, channel: Option<ChannelNumber>) -> Self {
        Self { local, remote, share: Share::Shared { channel } }
    }

    /// The channel whose ChannelData this leg carries, if it does.
    pub fn channel(&self) -> Option<ChannelNumber> {
        match self.share {
            Share::Whole => None,
            Share::Shared { channel } => channel,
        }
    }

    /// Names the flow of what arrives on this leg.
    pub fn key(&self) -> FlowKey {
        match self.share {
            Share::Whole => FlowKey::port(self.local),
            Share::Shared { channel } => FlowKey::tuple(self.local, self.remote, channel),
        }
    }
}

/// Datagrams that arrive on `from` leave on `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub from: Leg,
    pub to: Leg,
    pub limits: RateLimits,
}

/// What a flow has to keep within: its first limit and then the second, which is the same for all
/// flows that have the same shared group first.
pub type RateLimits = [Option<Limit>; 2];

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    pub group: Group,
    /// Most bytes (of layer 3) per second that the whole group may carry.
    pub bytes_per_second: u64,
}

/// Who keeps within a rate limit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// This flow alone.
    Own,
    /// All flows of this number: of an allocation, or of a user. It means the same after a restart.
    Shared(u64),
}

impl Limit {
    /// At most so many bytes per second for one flow alone; no limit at all for `None`.
    pub fn own(bytes_per_second: Option<u64>) -> RateLimits {
        [
            bytes_per_second.map(|bytes_per_second| Self { group: Group::Own, bytes_per_second }),
            None,
        ]
    }
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
