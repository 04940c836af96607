//! The flows that the control plane wants, and what has become of each.
//!
//! Nothing here touches a backend: changes mark flows as *dirty*, and the
//! [`Reconciler`](super::reconcile::Reconciler) settles those.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Bound,
    sync::Arc,
};

use super::{
    Counters, Flow, Leg,
    backend::{BackendError, Installed},
};

/// No address and port of ours comes before this one.
const LEAST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// All desired flows, by the address and port of ours that their packets arrive at.
#[derive(Debug, Default)]
pub struct FlowTable {
    /// Boxed, because a tree's nodes have room for more than they hold.
    flows: BTreeMap<SocketAddr, Box<Desired>>,
    /// The flows, by the address that their packets go to.
    by_destination: BTreeSet<(IpAddr, SocketAddr)>,
    /// No longer desired, but not yet confirmed to be gone from the backend.
    leaving: BTreeMap<SocketAddr, Tally>,
    dirty: BTreeSet<SocketAddr>,
    events: Vec<Event>,
    failures: u64,
}

/// What happened to a flow.
#[derive(Clone, Debug)]
pub enum Event {
    /// The backend forwards what arrives at `local`.
    Installed { local: SocketAddr },
    /// It does not, for want of a next hop in this direction or the other.
    Pending { local: SocketAddr },
    /// It does not, for another reason; retried.
    Failed { local: SocketAddr, why: Arc<BackendError> },
    /// No longer desired and out of the backend; `counters` is all that it ever forwarded.
    Removed { local: SocketAddr, counters: Counters },
    /// A flow that nobody desired was idle and has been taken out of the backend.
    OrphanRemoved { orphan: Installed },
    /// The backend could not be compared with the table; retried.
    ListFailed { why: Arc<BackendError> },
}

/// Whether the backend forwards a flow.
#[derive(Clone, Debug)]
pub enum State {
    Installed,
    /// Not settled yet, or without a next hop in this direction or the other.
    Pending,
    /// The reconciler tries again.
    Failed(Arc<BackendError>),
}

impl State {
    /// Whether the backend forwards the flow.
    pub fn is_installed(&self) -> bool {
        matches!(self, Self::Installed)
    }

    fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// A desired flow as others see it.
#[derive(Clone, Debug)]
pub struct FlowView {
    pub flow: Flow,
    /// Where the flow of the other direction arrives; `None` for a one-way flow.
    pub partner: Option<SocketAddr>,
    pub state: State,
    /// What the backend forwarded, as of the last poll, over all installations.
    pub counters: Counters,
}

/// How many flows are in each [`State`], and how often one has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub installed: usize,
    pub pending: usize,
    pub failed: usize,
    pub failures: u64,
}

#[derive(Debug)]
struct Desired {
    flow: Flow,
    /// Whether the flow at `flow.to.local` is the other direction of this one.
    is_paired: bool,
    state: State,
    /// Whether an event has told the state since the flow was last changed.
    told: bool,
    tally: Tally,
}

/// What was forwarded, across re-installations.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// By installations that are gone.
    past: Counters,
    /// By the present one, when last read.
    present: Counters,
}

impl Tally {
    fn total(&self) -> Counters {
        self.past + self.present
    }

    /// The present installation is gone, with `last` if that could still be read.
    fn close(&mut self, last: Option<Counters>) {
        self.past += last.unwrap_or(self.present);
        self.present = Counters::default();
    }
}

impl FlowTable {
    /// Wants what arrives on either leg to leave on the other, in place of whatever was wanted of
    /// what arrives there. Both directions are installed, or neither is. Wanting again what is
    /// wanted already changes nothing and causes no event.
    pub fn pair(&mut self, a: Leg, b: Leg, rate: Option<u64>) {
        assert_ne!(a.local, b.local, "the legs of a pair have addresses of their own");
        self.want(Flow { from: b, to: a, rate }, true);
        self.want(Flow { from: a, to: b, rate }, true);
    }

    /// Wants what arrives on `from` to leave on `to`, and nothing more: for a leg that is about to
    /// be given up and whose last packets still arrive.
    pub fn drain(&mut self, from: Leg, to: Leg, rate: Option<u64>) {
        self.want(Flow { from, to, rate }, false);
    }

    /// Wants nothing more of what arrives at `local`. The other direction goes on by itself.
    /// Returns whether there was such a flow.
    pub fn unpair(&mut self, local: SocketAddr) -> bool {
        let Some(desired) = self.flows.remove(&local) else { return false };
        self.forget_destination(&desired.flow);
        self.leaving.insert(local, desired.tally);
        self.dirty.insert(local);
        self.part(local, desired.partner());
        true
    }

    /// Has all flows that go to `remote` looked at again, because the way there may have changed.
    pub fn next_hop_changed(&mut self, remote: IpAddr) {
        let all = (remote, LEAST)..;
        let locals = self.by_destination.range(all).take_while(|(ip, _)| *ip == remote);
        self.dirty.extend(locals.map(|(_, local)| local));
    }

    /// Whether there is something that the reconciler has not seen yet.
    pub fn has_changed(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Settles all changes as they are, where there is no backend that could follow them.
    pub fn settle_alone(&mut self) {
        self.dirty.clear();
        self.leaving.clear();
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The flow of what arrives at `local`.
    pub fn get(&self, local: SocketAddr) -> Option<FlowView> {
        self.flows.get(&local).map(|desired| desired.view())
    }

    /// All desired flows, in the order of their local addresses.
    pub fn iter(&self) -> impl Iterator<Item = FlowView> {
        self.flows.values().map(|desired| desired.view())
    }

    /// How many flows are desired.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is desired.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The flows by state.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { failures: self.failures, ..Totals::default() };
        for desired in self.flows.values() {
            match desired.state {
                State::Installed => totals.installed += 1,
                State::Pending => totals.pending += 1,
                State::Failed(_) => totals.failed += 1,
            }
        }
        totals
    }

    fn want(&mut self, flow: Flow, is_paired: bool) {
        let local = flow.from.local;
        let (state, tally) = match self.flows.remove(&local) {
            Some(old) if old.flow == flow && old.is_paired == is_paired => {
                self.flows.insert(local, old);
                return;
            }
            Some(old) => {
                self.forget_destination(&old.flow);
                if old.partner() != is_paired.then_some(flow.to.local) {
                    self.part(local, old.partner());
                }
                (old.state, old.tally)
            }
            None => (State::Pending, self.leaving.remove(&local).unwrap_or_default()),
        };
        self.by_destination.insert((flow.to.remote.ip(), local));
        let desired = Desired { flow, is_paired, state, told: false, tally };
        self.flows.insert(local, Box::new(desired));
        self.dirty.insert(local);
    }

    /// Makes `partner` a one-way flow, if it is the other direction of the flow at `local`.
    fn part(&mut self, local: SocketAddr, partner: Option<SocketAddr>) {
        let Some(partner) = partner else { return };
        if let Some(other) = self.flows.get_mut(&partner)
            && other.partner() == Some(local)
        {
            other.is_paired = false;
            self.dirty.insert(partner);
        }
    }

    fn forget_destination(&mut self, flow: &Flow) {
        self.by_destination.remove(&(flow.to.remote.ip(), flow.from.local));
    }
}

/// What the reconciler needs.
impl FlowTable {
    pub(super) fn take_dirty(&mut self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.dirty)
    }

    /// The flows behind `after`, in the order of their local addresses.
    pub(super) fn locals_after(
        &self,
        after: Bound<SocketAddr>,
    ) -> impl Iterator<Item = SocketAddr> {
        self.flows.range((after, Bound::Unbounded)).map(|(&local, _)| local)
    }

    /// Whether the flow at `local` is said to be in the backend.
    pub(super) fn is_installed(&self, local: SocketAddr) -> bool {
        self.flows.get(&local).is_some_and(|desired| desired.state.is_installed())
    }

    /// Where the other direction of the flow at `local` arrives, if it has one.
    pub(super) fn partner(&self, local: SocketAddr) -> Option<SocketAddr> {
        self.flows.get(&local)?.partner()
    }

    pub(super) fn is_desired(&self, local: SocketAddr) -> bool {
        self.flows.contains_key(&local)
    }

    pub(super) fn is_leaving(&self, local: SocketAddr) -> bool {
        self.leaving.contains_key(&local)
    }

    /// The flows that stand and fall with that at `local`, in the order in which they are to be
    /// installed: what arrives over IPv6 first, because a translation to IPv6 builds on it.
    pub(super) fn unit(&self, local: SocketAddr) -> Vec<Flow> {
        let Some(desired) = self.flows.get(&local) else { return Vec::new() };
        let partner = desired.partner().and_then(|partner| self.flows.get(&partner));
        let mut unit: Vec<_> = std::iter::once(desired).chain(partner).map(|d| d.flow).collect();
        unit.sort_by_key(|flow| (flow.from.local.is_ipv4(), flow.from.local));
        unit
    }

    pub(super) fn set_state(&mut self, local: SocketAddr, state: State) {
        let Some(desired) = self.flows.get_mut(&local) else { return };
        if let State::Failed(_) = state {
            self.failures += 1;
        }
        let told = desired.told && desired.state.same_kind(&state);
        desired.state = state.clone();
        desired.told = true;
        if told {
            return;
        }
        self.events.push(match state {
            State::Installed => Event::Installed { local },
            State::Pending => Event::Pending { local },
            State::Failed(why) => Event::Failed { local, why },
        });
    }

    /// The backend does not hold the flow at `local` any more; `last` is what it had forwarded.
    pub(super) fn closed(&mut self, local: SocketAddr, last: Option<Counters>) {
        if let Some(desired) = self.flows.get_mut(&local) {
            desired.tally.close(last);
        } else if let Some(mut tally) = self.leaving.remove(&local) {
            tally.close(last);
            self.events.push(Event::Removed { local, counters: tally.total() });
        }
    }

    /// Notes what `read` says that the backend has counted for each flow that is said to be in it.
    /// Returns those for which that is more than before.
    pub(super) fn count<E>(
        &mut self,
        read: impl Fn(SocketAddr) -> Result<Option<Counters>, E>,
    ) -> Result<Vec<SocketAddr>, E> {
        let mut moved = Vec::new();
        let installed = self.flows.iter_mut().filter(|(_, desired)| desired.state.is_installed());
        for (&local, desired) in installed {
            let Some(counters) = read(local)? else { continue };
            if std::mem::replace(&mut desired.tally.present, counters) != counters {
                moved.push(local);
            }
        }
        Ok(moved)
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl Desired {
    fn partner(&self) -> Option<SocketAddr> {
        self.is_paired.then_some(self.flow.to.local)
    }

    fn view(&self) -> FlowView {
        FlowView {
            flow: self.flow,
            partner: self.partner(),
            state: self.state.clone(),
            counters: self.tally.total(),
        }
    }
}
