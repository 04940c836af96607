//! Which way data takes, which servers are asked for another, and which are let go.
//!
//! | way                                   | becomes                                                |
//! |---------------------------------------|--------------------------------------------------------|
//! | best of those that the peer answers on | active                                                |
//! | worse than the active one             | kept for 5 s, then released                            |
//! | active, silent for 1.25 s             | sought again; after 0.6 s the next server is asked, too |
//! | active, its server silent, too        | released; the next server is asked at once             |
//! | better than the active one, in vain   | released after 3 s, tried again after a rest           |
//! | server that never answers             | passed over after 160 ms                               |

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use super::way::{Body, Rank, Way};
use super::{PathInfo, PathKind, Peer, PeerConfig, PeerEvent, PeerOutput, Server, ServerConfig};
use crate::attachment::{AttachmentState, Via};
use crate::health::Health;
use crate::path::{PathState, Watch};

/// How long an abandoned way is kept: what is under way on it still arrives.
const ABANDONED: Duration = Duration::from_secs(5);
/// How long a gateway may be silent before the next server is asked: it is near, or not there.
const STALL: Duration = Duration::from_millis(160);
/// How long a server may fail to reach a peer that is there before the next one is asked, too.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where the way has worked before: its servers are about to find another way on.
const GRACE: Duration = Duration::from_millis(600);
/// How long a better way may take to work.
const CANDIDATE: Duration = Duration::from_secs(3);
/// How recently a server must have answered to count as alive.
const ALIVE: Duration = Duration::from_millis(700);
/// First and longest rest of a server that failed.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the straight way goes first, as long as it may work.
const DIRECT_FIRST: Duration = Duration::from_millis(150);
/// How long a straight or offered way is tried.
const PLAIN_LIMIT: Duration = Duration::from_secs(3);
/// Pause before a straight way is tried again.
const DIRECT_AGAIN: Duration = Duration::from_secs(30);
/// When to ask the neighbour table: the kernel has resolved the address by then.
const NEIGHBOUR_CHECK: Duration = Duration::from_millis(100);
/// Pauses between looks at all this, without and with a way.
const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

impl Peer {
    /// Draws the conclusions from what has happened, and sends what follows.
    pub(super) fn settle(&mut self, now: Instant) {
        self.pump(now);
        if !self.is_closing {
            self.bury(now);
            self.choose(now);
            self.seek(now);
            self.check_health(now);
            self.check_neighbours(now);
        }
        self.retire(now);
        self.pump(now);
        self.report(now);
        self.settle_at = now + if self.active.is_some() { TICK.1 } else { TICK.0 };
    }

    /// Gives up the active way if it is dead.
    fn bury(&mut self, now: Instant) {
        let Some(way) = self.active_mut() else { return };
        let server = way.server();
        let Some(path) = way.path_mut() else { return };
        let (is_dead, is_suspect) = (path.is_dead(now), path.is_suspect(now));
        if !is_dead && path.state >= PathState::Paired {
            if let Some(server) = server.filter(|_| is_suspect) {
                self.servers[server].health.hurry(now);
            }
            return;
        }
        if is_dead {
            path.restart(now);
        }
        way.since = now;
        way.set_watch(now, Watch::Standby);
        let is_plain = server.is_none();
        way.retire_at = is_plain.then_some(now);
        self.active = None;
        let Some(server) = server.filter(|_| is_dead) else { return };
        let server_alive = now
            .checked_sub(ALIVE)
            .is_some_and(|since| self.servers[server].health.is_heard_since(since));
        if !server_alive {
            self.servers[server].down_since = Some(now);
            let gone = self.ways.iter_mut().filter(|way| way.server() == Some(server));
            gone.for_each(|way| way.retire_at = Some(now));
        }
    }

    /// Makes the best way that works the active one.
    fn choose(&mut self, now: Instant) {
        let order = |way: &&Way| (way.rank, Some(way.id) != self.active);
        let Some(best) = self.ways.iter().filter(|way| way.is_confirmed()).min_by_key(order) else {
            return;
        };
        let (id, rank) = (best.id, best.rank);
        if self.active == Some(id) || (self.active.is_none() && self.awaits_direct(now, rank)) {
            return;
        }
        if let Some(old) = self.active_mut() {
            old.set_watch(now, Watch::Standby);
        }
        self.active = Some(id);
        let watch = self.active_watch();
        if let Some(new) = self.active_mut() {
            new.set_watch(now, watch);
            new.retire_at = None;
            new.has_worked = true;
            if let Some(server) = new.server() {
                self.servers[server].recover();
            }
        }
    }

    /// Whether a straight way may still be found, so that no server need see any data.
    fn awaits_direct(&self, now: Instant, rank: Rank) -> bool {
        let is_young = |way: &Way| way.rank == Rank::DIRECT && way.age(now) < DIRECT_FIRST;
        rank > Rank::DIRECT && self.ways.iter().any(is_young)
    }

    /// Attaches to the best server that may help, if it is better than what there is.
    fn seek(&mut self, now: Instant) {
        let limit = self.active_rank();
        for position in 0..self.servers.len() {
            if limit.is_some_and(|limit| self.servers[position].rank >= limit) {
                return;
            }
            let is_it = |way: &&Way| way.server() == Some(position) && !way.is_leaving();
            match self.ways.iter().find(is_it).map(|way| (way.id, self.outlook(now, way))) {
                Some((_, Outlook::Hopeful)) => return,
                Some((_, Outlook::Doubtful)) => {}
                Some((id, Outlook::Hopeless)) => self.give_up(now, position, id),
                None if self.servers[position].is_usable(now) => {
                    self.attach(now, position);
                    return;
                }
                None => {}
            }
        }
    }

    fn outlook(&self, now: Instant, way: &Way) -> Outlook {
        let Some((attachment, server)) = way.attachment().zip(way.server()) else {
            return Outlook::Hopeful;
        };
        let health = &self.servers[server].health;
        let is_silent =
            attachment.state() == AttachmentState::Connecting && !health.is_heard_since(way.since);
        if is_silent {
            let has_others = server + 1 < self.servers.len();
            let is_stalled = has_others && way.age(now) >= STALL;
            return if is_stalled { Outlook::Hopeless } else { Outlook::Hopeful };
        }
        let patience = if way.has_worked { GRACE } else { PATIENCE };
        let Some(known) = self.peer_known.filter(|_| !way.is_confirmed()) else {
            return Outlook::Hopeful;
        };
        let waited = now.saturating_duration_since(known.max(way.since));
        match self.active {
            _ if waited < patience => Outlook::Hopeful,
            Some(_) if waited >= CANDIDATE => Outlook::Hopeless,
            _ => Outlook::Doubtful,
        }
    }

    fn give_up(&mut self, now: Instant, position: usize, id: u32) {
        let server = &mut self.servers[position];
        server.fail(now);
        if let Some(way) = self.ways.iter_mut().find(|way| way.id == id) {
            if !server.health.is_heard_since(way.since) {
                server.down_since = Some(now);
            }
            way.retire_at = Some(now);
        }
    }

    /// Asks servers that would be better than what there is whether they are back.
    fn check_health(&mut self, now: Instant) {
        let limit = self.active_rank();
        let suspect = self
            .ways
            .iter()
            .find(|way| Some(way.id) == self.active)
            .filter(|way| way.path().is_some_and(|path| path.is_suspect(now)));
        let suspect = suspect.and_then(Way::server);
        for position in 0..self.servers.len() {
            let attached = |way: &Way| way.server() == Some(position) && !way.is_leaving();
            let is_attached = self.ways.iter().any(attached);
            let server = &mut self.servers[position];
            let would_help = limit.is_none_or(|limit| server.rank < limit) && !is_attached;
            if !would_help && suspect != Some(position) {
                continue;
            }
            if let Some(bytes) = server.health.poll_transmit(now) {
                let to = server.config.address;
                self.transmit(Via::Control, to, bytes);
            }
        }
    }

    /// Has the neighbour table checked for straight ways that nobody answers on.
    fn check_neighbours(&mut self, now: Instant) {
        for way in &mut self.ways {
            let is_due = way.kind == PathKind::Direct && way.age(now) >= NEIGHBOUR_CHECK;
            if is_due && !way.is_checked && !way.is_confirmed() {
                way.is_checked = true;
                let ip = way.remote().map(|remote| remote.ip());
                self.outputs.extend(ip.map(PeerOutput::LookUp));
            }
        }
        if self.retry_direct.is_some_and(|at| at <= now) {
            self.try_direct(now);
        }
    }

    /// Lets go what is not needed any more.
    fn retire(&mut self, now: Instant) {
        self.abandon(now);
        for way in self.ways.iter_mut().filter(|way| way.retire_at.is_some_and(|at| at <= now)) {
            if let Some(attachment) = way.attachment_mut() {
                attachment.release(now);
            }
        }
        let (active, mut lost_direct) = (self.active, false);
        self.ways.retain(|way| {
            let is_over = match &way.body {
                // What it has to say has been passed on before.
                Body::Attached(..) => way.is_closed(),
                Body::Plain(_) => {
                    let in_vain = !way.is_confirmed() && way.age(now) >= PLAIN_LIMIT;
                    let is_active = Some(way.id) == active;
                    (in_vain && !is_active) || way.retire_at.is_some_and(|at| at <= now)
                }
            };
            lost_direct |= is_over && way.kind == PathKind::Direct;
            !is_over
        });
        if !self.ways.iter().any(|way| Some(way.id) == active) {
            self.active = None;
        }
        if lost_direct {
            self.retry_direct = Some(now + DIRECT_AGAIN);
        }
    }

    /// Marks the ways that are worse than another that will do.
    fn abandon(&mut self, now: Instant) {
        let newest_bound = |way: &&Way| way.is_bound() && way.server().is_some();
        let limit = self.active_rank().or_else(|| {
            // Without a way that works, the best server that knows us will do while nobody is there.
            let unmet = self.peer_known.is_none();
            let ways = self.ways.iter().filter(|way| !way.is_leaving()).filter(newest_bound);
            ways.map(|way| way.rank).min().filter(|_| unmet)
        });
        let Some(limit) = limit else { return };
        for way in self.ways.iter_mut().filter(|way| way.rank > limit && !way.is_leaving()) {
            way.retire_at = Some(now + ABANDONED);
        }
    }

    /// Says what has become of the active way.
    fn report(&mut self, now: Instant) {
        if self.is_closed() && !std::mem::replace(&mut self.told_closed, true) {
            self.tell(PeerEvent::Closed);
        }
        let path = if self.is_closing { None } else { self.path() };
        self.destination = path.map(|path| path.remote);
        let is_same = |a: PathInfo, b: PathInfo| (a.kind, a.remote) == (b.kind, b.remote);
        match (self.told, path) {
            (Some(told), Some(path)) if is_same(told, path) => {}
            (_, Some(path)) if !self.was_ready => {
                self.was_ready = true;
                let connect = now.saturating_duration_since(self.started);
                self.tell(PeerEvent::Ready { path, connect });
            }
            (from, Some(to)) => self.tell(PeerEvent::PathChanged { from, to }),
            (Some(from), None) if !self.is_closing => self.tell(PeerEvent::PathLost(from)),
            (_, None) => {}
        }
        self.told = path;
    }

    fn active_rank(&self) -> Option<Rank> {
        let active = self.ways.iter().find(|way| Some(way.id) == self.active);
        active.map(|way| way.rank)
    }
}

/// What is to be expected of an attachment that does not work yet.
enum Outlook {
    /// It may work any moment.
    Hopeful,
    /// It may work, but another server is to be asked, too.
    Doubtful,
    /// It only stands in the way.
    Hopeless,
}

impl Server {
    /// Gateways in their order, and the root last.
    pub(super) fn list(config: &PeerConfig, rng: &mut StdRng, now: Instant) -> Vec<Self> {
        let gateways = config.gateways.iter().enumerate();
        let gateways = gateways.map(|(i, it)| (it, PathKind::Gateway, Rank::gateway(i)));
        let root = config.root.iter().map(|root| (root, PathKind::Root, Rank::ROOT));
        let new = |(config, kind, rank): (&ServerConfig, _, _)| Self {
            health: Health::new(config.address, rng.random(), now),
            config: config.clone(),
            kind,
            rank,
            down_since: None,
            rest_until: now,
            rest: REST.0,
        };
        gateways.chain(root).map(new).collect()
    }

    fn is_usable(&self, now: Instant) -> bool {
        let is_back = self.down_since.is_none_or(|since| self.health.is_heard_since(since));
        now >= self.rest_until && (is_back || self.kind == PathKind::Root)
    }

    pub(super) fn fail(&mut self, now: Instant) {
        self.rest_until = now + self.rest;
        self.rest = (self.rest * 2).min(REST.1);
    }

    fn recover(&mut self) {
        self.rest = REST.0;
        self.down_since = None;
    }
}
