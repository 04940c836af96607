//! What the data plane asks of a packet forwarder that it does not run itself.

use std::{io, net::SocketAddr, ops::Bound};

use rawr_common::reason::Reason;

use super::{Counters, Flow, NextHop};

/// A table of flows that something else applies to packets. A flow is known by `flow.from.local`,
/// the address and port of ours that its packets arrive at: it has at most one flow.
pub trait Backend {
    /// Makes `flow` forward by way of `next_hop`. Where its local address has a flow already, that
    /// one is rewritten in place, and its counters go on; a new flow's counters start at zero.
    ///
    /// A flow from IPv4 to IPv6 needs the flow of the other direction, which must stand already.
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError>;

    /// Stops forwarding what arrives at `local`, and returns what that flow had forwarded; `None`
    /// if there was none.
    fn remove(&mut self, local: SocketAddr) -> Result<Option<Counters>, BackendError>;

    /// Whether exactly `flow` by way of `next_hop` is in force, so that installing it would change
    /// nothing.
    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool;

    /// The first `most` of the flows in force behind `after`, in the order of their local addresses.
    fn list_after(
        &self,
        after: Bound<SocketAddr>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError>;

    /// All flows in force, in the order of their local addresses.
    fn list(&self) -> Result<Vec<Installed>, BackendError> {
        self.list_after(Bound::Unbounded, usize::MAX)
    }

    /// What the flow at `local` has forwarded; `None` if there is none.
    fn counters(&self, local: SocketAddr) -> Result<Option<Counters>, BackendError>;

    /// How many packets were not forwarded, and why. Indexed by [`Reason`].
    fn reasons(&self) -> Result<Reasons, BackendError>;

    /// Whether a port may be handed out: no other flow stands where the flow of `local` would.
    fn index_free(&self, local: SocketAddr) -> bool;
}

/// One count per [`Reason`], in the order of [`Reason::ALL`].
pub type Reasons = [u64; Reason::ALL.len()];

/// A flow in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    pub flow: Flow,
    pub next_hop: NextHop,
}

/// Why a backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("all {capacity} flows are in use; start rawr with room for more")]
    Full { capacity: u32 },
    #[error(
        "the flow table's place for {local} holds the flow of {occupant}; \
         use another port, or a longer table"
    )]
    IndexTaken { local: SocketAddr, occupant: SocketAddr },
    #[error(
        "{local} forwards from IPv4 to IPv6 and needs the flow that comes back to {reverse} first"
    )]
    NoReverse { local: SocketAddr, reverse: SocketAddr },
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
    /// An error of a system call made to `what` ("write a rate limit").
    pub fn kernel(what: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privilege { what },
            _ => Self::Kernel { what, source },
        }
    }
}
