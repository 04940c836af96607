//! The flows that the control plane wants, and what has become of each.
//!
//! Nothing here touches a backend: changes mark flows as *dirty*, and the
//! [`Reconciler`](super::reconcile::Reconciler) settles those.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Counters, Flow, Leg,
    backend::{BackendError, Installed},
};

/// All desired flows, by the address and port of ours that their packets arrive at.
#[derive(Debug, Default)]
pub struct FlowTable {
    flows: BTreeMap<SocketAddr, Desired>,
    /// The flows whose packets go to an address.
    by_destination: BTreeMap<IpAddr, BTreeSet<SocketAddr>>,
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
    partner: Option<SocketAddr>,
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
        self.want(Flow { from: b, to: a, rate }, Some(a.local));
        self.want(Flow { from: a, to: b, rate }, Some(b.local));
    }

    /// Wants what arrives on `from` to leave on `to`, and nothing more: for a leg that is about to
    /// be given up and whose last packets still arrive.
    pub fn drain(&mut self, from: Leg, to: Leg, rate: Option<u64>) {
        self.want(Flow { from, to, rate }, None);
    }

    /// Wants nothing more of what arrives at `local`. The other direction goes on by itself.
    /// Returns whether there was such a flow.
    pub fn unpair(&mut self, local: SocketAddr) -> bool {
        let Some(desired) = self.flows.remove(&local) else { return false };
        self.forget_destination(&desired.flow);
        self.leaving.insert(local, desired.tally);
        self.dirty.insert(local);
        self.part(local, desired.partner);
        true
    }

    /// Has all flows that go to `remote` looked at again, because the way there may have changed.
    pub fn next_hop_changed(&mut self, remote: IpAddr) {
        if let Some(locals) = self.by_destination.get(&remote) {
            self.dirty.extend(locals);
        }
    }

    /// Has all flows looked at again, because routes have changed.
    pub fn next_hops_changed(&mut self) {
        self.dirty.extend(self.flows.keys());
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
        self.flows.get(&local).map(Desired::view)
    }

    /// All desired flows, in the order of their local addresses.
    pub fn iter(&self) -> impl Iterator<Item = FlowView> {
        self.flows.values().map(Desired::view)
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

    fn want(&mut self, flow: Flow, partner: Option<SocketAddr>) {
        let local = flow.from.local;
        let (state, tally) = match self.flows.remove(&local) {
            Some(old) if old.flow == flow && old.partner == partner => {
                self.flows.insert(local, old);
                return;
            }
            Some(old) => {
                self.forget_destination(&old.flow);
                if old.partner != partner {
                    self.part(local, old.partner);
                }
                (old.state, old.tally)
            }
            None => (State::Pending, self.leaving.remove(&local).unwrap_or_default()),
        };
        self.by_destination.entry(flow.to.remote.ip()).or_default().insert(local);
        self.flows.insert(local, Desired { flow, partner, state, told: false, tally });
        self.dirty.insert(local);
    }

    /// Makes `partner` a one-way flow, if it is the other direction of the flow at `local`.
    fn part(&mut self, local: SocketAddr, partner: Option<SocketAddr>) {
        let Some(partner) = partner else { return };
        if let Some(other) = self.flows.get_mut(&partner)
            && other.partner == Some(local)
        {
            other.partner = None;
            self.dirty.insert(partner);
        }
    }

    fn forget_destination(&mut self, flow: &Flow) {
        let destination = flow.to.remote.ip();
        if let Some(locals) = self.by_destination.get_mut(&destination) {
            locals.remove(&flow.from.local);
            if locals.is_empty() {
                self.by_destination.remove(&destination);
            }
        }
    }
}

/// What the reconciler needs.
impl FlowTable {
    pub(super) fn take_dirty(&mut self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.dirty)
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        self.flows.keys().copied()
    }

    pub(super) fn installed_locals(&self) -> Vec<SocketAddr> {
        self.flows.iter().filter(|(_, d)| d.state.is_installed()).map(|(&local, _)| local).collect()
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
        let partner = desired.partner.and_then(|partner| self.flows.get(&partner));
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

    /// Notes what the backend has counted for `local`. Returns whether that is more than before.
    pub(super) fn counted(&mut self, local: SocketAddr, counters: Counters) -> bool {
        let Some(desired) = self.flows.get_mut(&local) else { return false };
        let moved = desired.tally.present != counters;
        desired.tally.present = counters;
        moved
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl Desired {
    fn view(&self) -> FlowView {
        FlowView {
            flow: self.flow,
            partner: self.partner,
            state: self.state.clone(),
            counters: self.tally.total(),
        }
    }
}
