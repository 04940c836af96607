//! After every change to a session: who is joined with whom, what is given up, what is sought.
//!
//! Moves are make-before-break. The new pair is told to the data plane first; then what it replaces
//! drains, one way, for [`DRAIN`], because its far end may still be sending there.

use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::{Attributes, LegState, Message, Method, Role};

use super::command::{Command, Source};
use super::counters::Count;
use super::server::Server;
use super::session::{Leaving, Pair, PairKind, PeerLeg, Session};
use super::store::Index;
use super::time::Now;
use super::upstream::Upstream;
use crate::dataplane::{Leg, Limit, RateLimits};

/// How long a replaced leg is still accepted.
pub(super) const DRAIN: Duration = Duration::from_secs(5);

impl Server {
    /// Brings a session that has changed in order.
    pub(super) fn touch(&mut self, now: Now, index: Index) {
        loop {
            self.settle(now, index);
            if !self.pump(now, index) {
                break;
            }
        }
        let Some(session) = self.store.get(index) else { return };
        if session.is_over() {
            self.seekers.remove(&index);
            self.store.remove(index);
        } else {
            self.store.arm(index);
        }
    }

    fn settle(&mut self, now: Now, index: Index) {
        self.succeed(now, index);
        self.give_up_surplus(now, index);
        self.join(index);
        self.notify_through(index);
        self.seek(now, index);
    }

    /// Lets a newer leg that has been probed on, or an upstream leg that works, take its place.
    fn succeed(&mut self, now: Now, index: Index) {
        for role in [Role::A, Role::B] {
            let Some(session) = self.store.get_mut(index) else { return };
            if session.leg(role).is_some_and(|leg| leg.remote.is_some())
                && let Some(leg) = session.retiring[role as usize].take()
            {
                self.retire_leg(now, index, role, &leg);
            }
        }
        let Some(session) = self.store.get_mut(index) else { return };
        if session.candidate_is_ready() {
            let before = session.upstream.take();
            session.upstream = session.candidate.take();
            if let Some(before) = before {
                self.counters.add(Count::Moved);
                self.retire_upstream(now, index, before);
            }
        }
    }

    /// Lets go of what is farther away than what works, and of what nobody here needs any more.
    fn give_up_surplus(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let kind = session.wanted().map(|pair| pair.kind);
        let is_stale = |role: Role| session.legs[role as usize].is_none();
        let peers = kind == Some(PairKind::Peers);
        let nearer = peers || kind == Some(PairKind::Target);
        let upstream = session.upstream.take_if(|it| nearer || is_stale(it.role));
        let candidate = session.candidate.take_if(|it| nearer || is_stale(it.role));
        let target = session.target.take_if(|it| peers || is_stale(it.role.other()));
        for upstream in upstream.into_iter().chain(candidate) {
            self.retire_upstream(now, index, upstream);
        }
        if let Some(target) = target
            && let Some(local) = target.port.open()
        {
            let leg = target.bound().map(|leg| (leg, target.role));
            self.retire(now, index, local, leg, None);
        }
    }

    /// Tells the data plane what has changed, and the peers when they have met.
    fn join(&mut self, index: Index) {
        let limits = Limit::own(self.config.rate);
        let Some(session) = self.store.get_mut(index) else { return };
        let wanted = session.wanted();
        if wanted == session.pair {
            return;
        }
        let before = std::mem::replace(&mut session.pair, wanted);
        let commands = transition(session, before, wanted, limits);
        commands.into_iter().for_each(|command| self.command(command));
        let Some(pair) = wanted else { return };
        let count = match pair.kind {
            PairKind::Peers => Count::PairedPeers,
            PairKind::Target => Count::PairedTarget,
            PairKind::Upstream => Count::PairedUpstream,
        };
        if before.is_none_or(|before| before.kind != pair.kind) {
            self.counters.add(count);
        }
        if pair.kind != PairKind::Upstream {
            pair.legs.into_iter().for_each(|leg| self.send_status(index, leg));
        }
    }

    /// Where the far end had met before the near one was joined to it, its Status was not passed on.
    fn notify_through(&mut self, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let Some(pair) = session.pair.filter(|pair| pair.kind == PairKind::Upstream) else {
            return;
        };
        let Some(upstream) = &mut session.upstream else { return };
        if upstream.paired && !std::mem::replace(&mut upstream.told, true) {
            let leg = pair.legs[upstream.role as usize];
            self.send_status(index, leg);
        }
    }

    fn send_status(&mut self, index: Index, leg: Leg) {
        let transaction = self.transaction();
        let Some(session) = self.store.get(index) else { return };
        let attributes = Attributes {
            session: Some(session.id),
            leg_state: Some(LegState::Paired),
            ..Attributes::default()
        };
        let status = Message::indication(Method::Status, transaction, attributes);
        let bytes = status.encode(Some(&session.integrity()));
        self.transmit(Source::Data(leg.local), leg.remote, bytes);
    }

    /// Drops the newest leg of `role` at once. The one that it was about to replace stands again.
    pub(super) fn drop_leg(&mut self, index: Index, role: Role) {
        let Some(session) = self.store.get_mut(index) else { return };
        let before = session.retiring[role as usize].take().map(|leg| *leg);
        let dropped = std::mem::replace(&mut session.legs[role as usize], before);
        if let Some(leg) = dropped {
            self.close_leg(&leg);
        }
    }

    /// Closes a leg that has left its session.
    pub(super) fn close_leg(&mut self, leg: &PeerLeg) {
        self.quotas.close_leg(leg.prefix, leg.remote.is_some());
        if let Some(local) = leg.port.open() {
            self.close_port(local);
        }
    }

    pub(super) fn close_port(&mut self, local: SocketAddr) {
        self.store.remove_port(local);
        self.command(Command::ClosePort { local });
    }

    fn retire_leg(&mut self, now: Now, index: Index, role: Role, leg: &PeerLeg) {
        self.quotas.close_leg(leg.prefix, leg.remote.is_some());
        if let Some(local) = leg.port.open() {
            self.retire(now, index, local, leg.bound().map(|leg| (leg, role)), None);
        }
    }

    pub(super) fn retire_upstream(&mut self, now: Now, index: Index, mut upstream: Box<Upstream>) {
        upstream.is_leaving = true;
        let leg = upstream.bound().map(|leg| (leg, upstream.role.other()));
        match upstream.port.and_then(|port| port.open()) {
            Some(local) => self.retire(now, index, local, leg, Some(upstream)),
            None => self.leave(now, index, upstream),
        }
    }

    /// Puts away a leg that was replaced: to drain if it was forwarding, else at once.
    fn retire(
        &mut self,
        now: Now,
        index: Index,
        local: SocketAddr,
        leg: Option<(Leg, Role)>,
        upstream: Option<Box<Upstream>>,
    ) {
        let Some(session) = self.store.get_mut(index) else { return };
        let forwards = session.pair.is_some_and(|pair| pair.holds(local));
        let still_heard = session.wanted().is_some();
        match leg.filter(|_| forwards && still_heard) {
            Some(leg) => {
                let until = now.monotonic + DRAIN;
                session.leaving.push(Leaving { leg: Some(leg), upstream, until });
            }
            None => {
                self.close_port(local);
                if let Some(upstream) = upstream {
                    self.leave(now, index, upstream);
                }
            }
        }
    }
}

/// What the data plane has to be told for `before` to become `after`.
fn transition(
    session: &Session,
    before: Option<Pair>,
    after: Option<Pair>,
    limits: RateLimits,
) -> Vec<Command> {
    let mut commands = Vec::new();
    if let Some(Pair { legs: [a, b], .. }) = after {
        commands.push(Command::Pair { a, b, limits });
    }
    // What has left without a trace has been closed already.
    let freed = before.into_iter().flat_map(|pair| pair.legs).filter(|leg| {
        !after.is_some_and(|pair| pair.holds(leg.local)) && session.use_of(leg.local).is_some()
    });
    let drains = |leg: &Leg| session.leaving.iter().any(|it| it.drains(leg.local));
    commands.extend(freed.filter(|leg| !drains(leg)).map(|leg| Command::Unpair { key: leg.key() }));
    for (from, side) in session.leaving.iter().filter_map(|leaving| leaving.leg) {
        commands.push(match after {
            Some(pair) => Command::Drain { from, to: pair.legs[side.other() as usize], limits },
            None => Command::Unpair { key: from.key() },
        });
    }
    commands
}

impl Leaving {
    fn drains(&self, local: SocketAddr) -> bool {
        self.leg.is_some_and(|(leg, _)| leg.local == local)
    }
}

impl Session {
    /// Whether the candidate serves at least as well as the upstream leg that there is.
    fn candidate_is_ready(&self) -> bool {
        let Some(candidate) = self.candidate.as_deref().filter(|it| it.bound().is_some()) else {
            return false;
        };
        self.upstream.as_deref().is_none_or(|active| {
            candidate.paired
                || active.is_lost()
                || active.bound().is_none()
                || candidate.epoch > active.epoch
        })
    }
}
