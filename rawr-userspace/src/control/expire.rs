//! What happens by itself when its time has come.

use rawr_proto::Role;

use super::counters::Count;
use super::server::Server;
use super::session::Avoid;
use super::store::Index;
use super::time::Now;

/// Sessions whose alarms ring in one call: when thousands expire at once, requests come in between.
const MOST_AT_ONCE: usize = 256;

impl Server {
    /// Does what is due at `now`. Where that is much, [`Server::poll_timeout`] still says so
    /// afterwards.
    pub fn handle_timeout(&mut self, now: Now) {
        // Each once: one that is due again at once must not keep the others waiting.
        let due = std::iter::from_fn(|| self.store.alarms.pop(now.monotonic));
        let due: Vec<Index> = due.take(MOST_AT_ONCE).collect();
        for index in due {
            if let Some(session) = self.store.get_mut(index) {
                session.armed = None;
                self.expire(now, index);
            }
        }
        self.expire_turn(now);
        self.expire_exchanges(now);
        self.expire_bridge(now.monotonic);
        self.check_parents(now);
        self.reattach_some(now);
    }

    fn expire(&mut self, now: Now, index: Index) {
        self.expire_legs(now, index);
        self.expire_target(now, index);
        self.expire_leaving(now, index);
        let Some(session) = self.store.get_mut(index) else { return };
        if session.avoid.until.is_some_and(|until| until <= now.monotonic) {
            session.avoid = Avoid::default();
        }
        for upstream in session.upstreams_mut() {
            upstream.handle_timeout(now.monotonic);
        }
        self.touch(now, index);
    }

    fn expire_legs(&mut self, now: Now, index: Index) {
        for role in [Role::A, Role::B] {
            let Some(session) = self.store.get_mut(index) else { return };
            if let Some(leg) =
                session.retiring[role as usize].take_if(|leg| leg.expires <= now.monotonic)
            {
                self.counters.add(Count::ExpiredLeg);
                self.close_leg(&leg);
            }
            let Some(session) = self.store.get(index) else { return };
            let newest = session.leg(role).filter(|leg| leg.expires <= now.monotonic);
            if let Some(is_bound) = newest.map(|leg| leg.remote.is_some()) {
                let count = if is_bound { Count::ExpiredLeg } else { Count::ExpiredHalfOpen };
                self.counters.add(count);
                self.drop_leg(index, role);
            }
        }
    }

    /// Ends the drain of what has drained, and forgets servers that have been told.
    fn expire_leaving(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let due = session.leaving.extract_if(.., |it| it.until <= now.monotonic);
        for leaving in due.collect::<Vec<_>>() {
            let Some((leg, _)) = leaving.leg else {
                leaving.upstream.into_iter().for_each(|upstream| self.forget(&upstream));
                continue;
            };
            self.close_port(leg.local);
            if let Some(upstream) = leaving.upstream {
                self.leave(now, index, upstream);
            }
        }
    }
}
