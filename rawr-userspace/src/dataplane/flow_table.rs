//! The flows that the control plane wants, and what has become of each.
//!
//! Nothing here touches a backend: changes mark flows as *dirty*, and the
//! [`Reconciler`](super::reconcile::Reconciler) settles those.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Bound,
    sync::Arc,
};

use super::{
    Counters, Flow, FlowKey, Leg, RateLimits,
    backend::{BackendError, Installed},
};

/// All desired flows, by their keys.
#[derive(Debug, Default)]
pub struct FlowTable {
    /// Boxed, because a tree's nodes have room for more than they hold.
    flows: BTreeMap<FlowKey, Box<Desired>>,
    /// The flows, by the address that their packets go to.
    by_destination: BTreeSet<(IpAddr, FlowKey)>,
    /// No longer desired, but not yet confirmed to be gone from the backend.
    leaving: BTreeMap<FlowKey, Tally>,
    dirty: BTreeSet<FlowKey>,
    events: Vec<Event>,
    failures: u64,
}

/// What happened to a flow.
#[derive(Clone, Debug)]
pub enum Event {
    /// The backend forwards what arrives at `key`.
    Installed { key: FlowKey },
    /// It does not, for want of a next hop in this direction or the other.
    Pending { key: FlowKey },
    /// It does not, for another reason; retried.
    Failed { key: FlowKey, why: Arc<BackendError> },
    /// No longer desired and out of the backend; `counters` is all that it ever forwarded.
    Removed { key: FlowKey, counters: Counters },
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
    pub partner: Option<FlowKey>,
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
    /// Whether the flow at `flow.to.key()` is the other direction of this one.
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
    /// Wants what arrives on either leg to leave on the other, within `limits` each way, in place of
    /// whatever was wanted of what arrives there. Both directions are installed, or neither is. Wanting again what is
    /// wanted already changes nothing and causes no event.
    pub fn pair(&mut self, a: Leg, b: Leg, limits: RateLimits) {
        assert_ne!(a.key(), b.key(), "the legs of a pair differ");
        self.want(Flow { from: b, to: a, limits }, true);
        self.want(Flow { from: a, to: b, limits }, true);
    }

    /// Wants what arrives on `from` to leave on `to`, and nothing more: for a leg that is about to
    /// be given up and whose last packets still arrive.
    pub fn drain(&mut self, from: Leg, to: Leg, limits: RateLimits) {
        self.want(Flow { from, to, limits }, false);
    }

    /// Wants nothing more of what arrives at `key`. The other direction goes on by itself.
    /// Returns whether there was such a flow.
    pub fn unpair(&mut self, key: FlowKey) -> bool {
        let Some(desired) = self.flows.remove(&key) else { return false };
        self.forget_destination(&desired.flow);
        self.leaving.insert(key, desired.tally);
        self.dirty.insert(key);
        self.part(key, desired.partner());
        true
    }

    /// Wants nothing more of what arrives at this address and port of ours, on whichever leg.
    pub fn unpair_all(&mut self, local: SocketAddr) {
        for key in self.at(local) {
            self.unpair(key);
        }
    }

    /// The flows that arrive at this address and port of ours.
    pub fn at(&self, local: SocketAddr) -> Vec<FlowKey> {
        let first = FlowKey::port(local);
        let here = self.flows.range(first..).map(|(&key, _)| key);
        here.take_while(|key| key.local() == first.local()).collect()
    }

    /// Has all flows that go to `remote` looked at again, because the way there may have changed.
    pub fn next_hop_changed(&mut self, remote: IpAddr) {
        let all = (remote, FlowKey::LEAST)..;
        let keys = self.by_destination.range(all).take_while(|(ip, _)| *ip == remote);
        self.dirty.extend(keys.map(|(_, key)| key));
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

    /// The flow of what arrives at `key`.
    pub fn get(&self, key: FlowKey) -> Option<FlowView> {
        self.flows.get(&key).map(|desired| desired.view())
    }

    /// All desired flows, in the order of their keys.
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
        let key = flow.from.key();
        let (state, tally) = match self.flows.remove(&key) {
            Some(old) if old.flow == flow && old.is_paired == is_paired => {
                self.flows.insert(key, old);
                return;
            }
            Some(old) => {
                self.forget_destination(&old.flow);
                if old.partner() != is_paired.then_some(flow.to.key()) {
                    self.part(key, old.partner());
                }
                (old.state, old.tally)
            }
            None => (State::Pending, self.leaving.remove(&key).unwrap_or_default()),
        };
        self.by_destination.insert((flow.to.remote.ip(), key));
        let desired = Desired { flow, is_paired, state, told: false, tally };
        self.flows.insert(key, Box::new(desired));
        self.dirty.insert(key);
    }

    /// Makes `partner` a one-way flow, if it is the other direction of the flow at `key`.
    fn part(&mut self, key: FlowKey, partner: Option<FlowKey>) {
        let Some(partner) = partner else { return };
        if let Some(other) = self.flows.get_mut(&partner)
            && other.partner() == Some(key)
        {
            other.is_paired = false;
            self.dirty.insert(partner);
        }
    }

    fn forget_destination(&mut self, flow: &Flow) {
        self.by_destination.remove(&(flow.to.remote.ip(), flow.from.key()));
    }
}

/// What the reconciler needs.
impl FlowTable {
    pub(super) fn take_dirty(&mut self) -> BTreeSet<FlowKey> {
        std::mem::take(&mut self.dirty)
    }

    /// The flows behind `after`, in the order of their keys.
    pub(super) fn keys_after(&self, after: Bound<FlowKey>) -> impl Iterator<Item = FlowKey> {
        self.flows.range((after, Bound::Unbounded)).map(|(&key, _)| key)
    }

    /// Whether the flow at `key` is said to be in the backend.
    pub(super) fn is_installed(&self, key: FlowKey) -> bool {
        self.flows.get(&key).is_some_and(|desired| desired.state.is_installed())
    }

    /// Where the other direction of the flow at `key` arrives, if it has one.
    pub(super) fn partner(&self, key: FlowKey) -> Option<FlowKey> {
        self.flows.get(&key)?.partner()
    }

    pub(super) fn is_desired(&self, key: FlowKey) -> bool {
        self.flows.contains_key(&key)
    }

    pub(super) fn is_leaving(&self, key: FlowKey) -> bool {
        self.leaving.contains_key(&key)
    }

    /// The flows that stand and fall with that at `key`, in the order in which they are to be
    /// installed: what arrives over IPv6 first, because a translation to IPv6 builds on it.
    pub(super) fn unit(&self, key: FlowKey) -> Vec<Flow> {
        let Some(desired) = self.flows.get(&key) else { return Vec::new() };
        let partner = desired.partner().and_then(|partner| self.flows.get(&partner));
        let mut unit: Vec<_> = std::iter::once(desired).chain(partner).map(|d| d.flow).collect();
        unit.sort_by_key(|flow| (!flow.from.key().is_ipv6(), flow.from.key()));
        unit
    }

    pub(super) fn set_state(&mut self, key: FlowKey, state: State) {
        let Some(desired) = self.flows.get_mut(&key) else { return };
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
            State::Installed => Event::Installed { key },
            State::Pending => Event::Pending { key },
            State::Failed(why) => Event::Failed { key, why },
        });
    }

    /// The backend does not hold the flow at `key` any more; `last` is what it had forwarded.
    pub(super) fn closed(&mut self, key: FlowKey, last: Option<Counters>) {
        if let Some(desired) = self.flows.get_mut(&key) {
            desired.tally.close(last);
        } else if let Some(mut tally) = self.leaving.remove(&key) {
            tally.close(last);
            self.events.push(Event::Removed { key, counters: tally.total() });
        }
    }

    /// Notes what `read` says that the backend has counted for each flow that is said to be in it.
    /// Returns those for which that is more than before.
    pub(super) fn count<E>(
        &mut self,
        read: impl Fn(FlowKey) -> Result<Option<Counters>, E>,
    ) -> Result<Vec<FlowKey>, E> {
        let mut moved = Vec::new();
        let installed = self.flows.iter_mut().filter(|(_, desired)| desired.state.is_installed());
        for (&key, desired) in installed {
            let Some(counters) = read(key)? else { continue };
            if std::mem::replace(&mut desired.tally.present, counters) != counters {
                moved.push(key);
            }
        }
        Ok(moved)
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl Desired {
    fn partner(&self) -> Option<FlowKey> {
        self.is_paired.then_some(self.flow.to.key())
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
