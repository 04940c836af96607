//! What the data plane asks of a packet forwarder that it does not run itself.

use std::{io, net::SocketAddr, ops::Bound};

use rawr_common::{flow::Place, reason::Reason};

use super::{Counters, Flow, FlowKey, NextHop};

/// A table of flows that something else applies to packets. A flow is known by the [key](FlowKey) of
/// the leg that its packets arrive on.
pub trait Backend {
    /// Makes `flow` forward by way of `next_hop`. Where its key has a flow already, that one is
    /// rewritten in place, and its counters go on; a new flow's counters start at zero.
    ///
    /// A flow from IPv4 to IPv6 needs the flow of the other direction, which must stand already.
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError>;

    /// Takes a flow out, and returns what it had forwarded; `None` if there was none.
    fn remove(&mut self, key: FlowKey) -> Result<Option<Counters>, BackendError>;

    /// Whether exactly `flow` by way of `next_hop` is in force, so that installing it would change
    /// nothing.
    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool;

    /// The first `most` of the flows in force behind `after`, in the order of their keys.
    fn list_after(
        &self,
        after: Bound<FlowKey>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError>;

    /// All flows in force, in the order of their keys.
    fn list(&self) -> Result<Vec<Installed>, BackendError> {
        self.list_after(Bound::Unbounded, usize::MAX)
    }

    /// What a flow has forwarded; `None` if there is none.
    fn counters(&self, key: FlowKey) -> Result<Option<Counters>, BackendError>;

    /// How many packets were not forwarded, and why. Indexed by [`Reason`].
    fn reasons(&self) -> Result<Reasons, BackendError>;

    /// Whether a port may be handed out: no flow arrives there, and none stands where that of a leg
    /// that has the port for itself would.
    fn index_free(&self, local: SocketAddr) -> bool;

    /// How much of its tables is in use.
    fn usage(&self) -> Usage;
}

/// One count per [`Reason`], in the order of [`Reason::ALL`].
pub type Reasons = [u64; Reason::ALL.len()];

/// A flow in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    pub flow: Flow,
    pub next_hop: NextHop,
}

/// How many places of the tables are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The table that is indexed by our ports, for what arrives over IPv4.
    pub ports4: Filling,
    /// The same over IPv6.
    pub ports6: Filling,
    /// The table of what shares a port with others, for what arrives over IPv4.
    pub channels4: Filling,
    /// The same over IPv6.
    pub channels6: Filling,
}

impl Usage {
    /// Of port tables and channel tables of these lengths, in which the places of IPv6 (or else IPv4)
    /// that are given are taken.
    pub(super) fn of(
        (ports, channels): (u32, u32),
        taken: impl Iterator<Item = (bool, Place)>,
    ) -> Self {
        let [ports, channels] = [ports, channels].map(|length| Filling { used: 0, length });
        let mut usage =
            Self { ports4: ports, ports6: ports, channels4: channels, channels6: channels };
        for (is_ipv6, place) in taken {
            let table = match (is_ipv6, place) {
                (false, Place::Port(_)) => &mut usage.ports4,
                (true, Place::Port(_)) => &mut usage.ports6,
                (false, Place::Channel(_)) => &mut usage.channels4,
                (true, Place::Channel(_)) => &mut usage.channels6,
            };
            table.used += 1;
        }
        usage
    }
}

/// How much of one table is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    pub used: u32,
    pub length: u32,
}

/// Why a backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("all {capacity} flows are in use; start rawr with room for more")]
    Full { capacity: u32 },
    #[error(
        "the flow table's place for {key} holds the flow of {occupant}; use another port, or a longer \
         table (table_length)"
    )]
    IndexTaken { key: FlowKey, occupant: FlowKey },
    #[error(
        "the channel table has no place for {key}: the {probes} where the kernel looks are in use; a \
         longer table (channel_table_length) makes that rarer"
    )]
    NoPlace { key: FlowKey, probes: u32 },
    #[error(
        "{key} forwards from IPv4 to IPv6 and needs the flow that comes back, {reverse}, first"
    )]
    NoReverse { key: FlowKey, reverse: FlowKey },
    #[error("the two ends of leg {local} – {remote} differ in family, or one is link-local")]
    Unsuited { local: SocketAddr, remote: SocketAddr },
    #[error("these VLAN tags cannot be written: {0:x?} (one tag, or 802.1ad outside of 802.1Q)")]
    VlanTags(super::VlanTags),
    #[error(
        "XDP cannot send by interface {ifindex}: {source}; it must exist in this network \
         namespace, be up, and have a driver that supports XDP"
    )]
    Egress { ifindex: u32, source: io::Error },
    #[error(
        "interface {ifindex} takes no frames from XDP; on a veth, `ethtool -K PEER gro on` at its other \
         end mends that, else use --datapath generic"
    )]
    NoRedirect { ifindex: u32 },
    #[error(
        "flows leave by {most} exits already, each an interface with its source MAC, VLAN tags and MTU; \
         more stay in userspace until one of those is not used any more"
    )]
    TooManyExits { most: u32 },
    #[error("not allowed to {what}; rawr needs CAP_BPF and CAP_NET_ADMIN, or root")]
    Privilege { what: &'static str },
    #[error("the kernel would not {what}: {source}")]
    Kernel { what: &'static str, source: io::Error },
    #[error("failed on purpose")]
    Chaos,
}

impl BackendError {
    /// What went wrong, without what it went wrong with: the same for all flows that fail alike.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Full { .. } => "all flows are in use",
            Self::IndexTaken { .. } => "place in the port table taken (table_length)",
            Self::NoPlace { .. } => "no place in the channel table (channel_table_length)",
            Self::NoReverse { .. } => "no flow of the other direction",
            Self::Unsuited { .. } => "ends of two families, or link-local",
            Self::VlanTags(_) => "VLAN tags that cannot be written",
            Self::Egress { .. } => "XDP cannot send by the interface",
            Self::NoRedirect { .. } => "the interface takes no frames from XDP",
            Self::TooManyExits { .. } => "all exits are in use",
            Self::Privilege { .. } => "not allowed",
            Self::Kernel { .. } => "refused by the kernel",
            Self::Chaos => "failed on purpose",
        }
    }

    /// An error of a system call made to `what` ("write a rate limit").
    pub fn kernel(what: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privilege { what },
            _ => Self::Kernel { what, source },
        }
    }
}
