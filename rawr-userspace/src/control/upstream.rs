//! Escalation: a session whose other peer is not here gets a leg at the next server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_nat::{Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, Via};
use rawr_proto::{ErrorCode, Role, TransactionId};

use rand::Rng;

use super::command::{On, PortError, PortId, Source};
use super::config::Kind;
use super::counters::Count;
use super::server::{Server, seconds};
use super::session::{Ask, Avoid, Leaving, PeerLeg, Port, Session};
use super::store::Index;
use super::time::Now;
use crate::dataplane::Leg;

/// How long a hop that refused is left alone.
const REFUSED: Duration = Duration::from_secs(30);
/// How long a hop that went silent is left alone.
const SILENT: Duration = Duration::from_secs(5);
/// How long a server that was left has to confirm it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Sessions that look for a better way in one turn, and the pause between two turns.
const TURN: (usize, Duration) = (64, Duration::from_millis(10));

/// The way on from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hop {
    Parent(u8),
    Root,
}

impl Hop {
    /// Its number in [`Avoid`].
    fn way(self) -> u8 {
        match self {
            Self::Parent(number) => number,
            Self::Root => Avoid::ROOT,
        }
    }
}

/// A leg of ours at another server.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Tells it from the session's other upstream legs.
    pub(super) serial: u32,
    pub(super) hop: Hop,
    /// The server's STUN address.
    pub(super) server: SocketAddr,
    /// The peer that it stands for.
    pub(super) role: Role,
    pub(super) epoch: u64,
    attachment: Attachment,
    /// Asked for once the server has told its data address.
    pub(super) port: Option<Port>,
    /// The server's data address.
    pub(super) remote: Option<SocketAddr>,
    /// Whether the server knows our data port.
    pub(super) is_bound: bool,
    /// Whether the far end has met us there.
    pub(super) paired: bool,
    /// Whether the near peer has been told so.
    pub(super) told: bool,
    is_lost: bool,
    is_probing: bool,
    /// Whether it has been replaced.
    pub(super) is_leaving: bool,
    /// The last request, so that its answer finds here.
    transaction: Option<TransactionId>,
}

impl Upstream {
    pub(super) fn bound(&self) -> Option<Leg> {
        let leg = Leg::whole(self.port?.open()?, self.remote?);
        self.is_bound.then_some(leg)
    }

    /// Whether the server is gone, as far as we know.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.attachment.poll_timeout()
    }

    /// The peers' own Probes keep a joined leg open; answers to ours would go to them.
    fn keep_probing(&mut self, now: Instant, wanted: bool) {
        let wanted = wanted && !self.is_leaving;
        if wanted && !std::mem::replace(&mut self.is_probing, wanted) {
            self.attachment.start_probing(now);
        } else if !wanted && std::mem::replace(&mut self.is_probing, wanted) {
            self.attachment.stop_probing();
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.attachment.poll_timeout().is_some_and(|at| at <= now) {
            self.attachment.handle_timeout(now);
        }
    }
}

impl Server {
    /// Goes on to the best next server, if there is none yet, or a better one than now.
    pub(super) fn escalate(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get(index) else { return };
        if self.config.kind != Kind::Gateway || session.candidate.is_some() {
            return;
        }
        let Some(role) = session.sole() else { return };
        let Some(leg) = session.leg(role).filter(|leg| leg.port.open().is_some()) else { return };
        let Some(ask) = &leg.ask else { return };
        let Some((hop, server)) = self.best_hop(session, ask) else { return };
        let is_better = session.upstream.as_ref().is_none_or(|upstream| {
            upstream.is_lost || upstream.epoch < leg.epoch || hop < upstream.hop
        });
        if is_better {
            let config = self.attachment_config(session, role, leg, ask, (hop, server));
            self.attach(now, index, hop, config);
        }
    }

    /// The peer has told more about its target: the servers farther on are to know.
    pub(super) fn update_target(&mut self, now: Now, index: Index, ask: &Ask) {
        let Some(session) = self.store.get_mut(index) else { return };
        for upstream in session.upstreams_mut().filter(|it| it.hop != Hop::Root && !it.is_leaving) {
            let (mac, port) = (ask.target_mac, ask.target_port);
            upstream.attachment.update_target(now.monotonic, mac, port);
        }
    }

    /// Takes what came to an upstream leg's data port. What is no control is the far peer's, and goes
    /// to the near one: the leg may not be joined yet, or not any more.
    pub(super) fn upstream_data(
        &mut self,
        now: Now,
        index: Index,
        serial: u32,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(session) = self.store.get_mut(index) else { return false };
        let Some(upstream) = session.upstreams_mut().find(|it| it.serial == serial) else {
            return false;
        };
        if upstream.attachment.handle_data(now.monotonic, from, bytes) {
            self.touch(now, index);
            return true;
        }
        let (is_server, role) = (upstream.remote == Some(from), upstream.role);
        let Some(leg) = session.bound(role).filter(|_| is_server) else { return false };
        self.counters.add(Count::Carried);
        self.transmit(Source::Data(leg.local), leg.remote, bytes.to_vec());
        true
    }

    /// Takes the answer to a request of one of the session's upstream legs.
    pub(super) fn upstream_answered(
        &mut self,
        now: Now,
        index: Index,
        from: SocketAddr,
        bytes: &[u8],
    ) {
        let Some(session) = self.store.get_mut(index) else { return };
        let mut upstreams = session.upstreams_mut().filter(|upstream| upstream.server == from);
        let taken = upstreams.any(|it| it.attachment.handle_control(now.monotonic, from, bytes));
        drop(upstreams);
        if taken {
            self.touch(now, index);
        } else {
            self.counters.add(Count::Unexpected);
        }
    }

    pub(super) fn upstream_port_opened(
        &mut self,
        now: Now,
        index: Index,
        id: PortId,
        result: Result<SocketAddr, PortError>,
    ) {
        let Some(session) = self.store.get_mut(index) else { return };
        let opening = Some(Port::Opening(id));
        let Some(upstream) = session.upstreams_mut().find(|it| it.port == opening) else { return };
        match result {
            Ok(local) => {
                upstream.port = Some(Port::Open(local));
            }
            Err(_) => {
                let serial = upstream.serial;
                self.counters.add(Count::NoPorts);
                self.lose(now, index, serial, SILENT);
            }
        }
    }

    /// Passes on what the session's upstream legs have to say. Tells whether anything has changed.
    pub(super) fn pump(&mut self, now: Now, index: Index) -> bool {
        let Some(session) = self.store.get_mut(index) else { return false };
        let pair = session.pair;
        let mut datagrams = Vec::new();
        let mut events = Vec::new();
        for upstream in session.upstreams_mut() {
            let local = upstream.port.and_then(Port::open);
            let joined = local.is_some_and(|local| pair.is_some_and(|pair| pair.holds(local)));
            upstream.keep_probing(now.monotonic, !joined && local.is_some());
            while let Some(output) = upstream.attachment.poll_output() {
                match (output, local) {
                    (AttachmentOutput::Transmit { via: Via::Control, to, bytes }, _) => {
                        remember(&mut self.transactions, upstream, index, &bytes);
                        datagrams.push((Source::Route, to, bytes));
                    }
                    (AttachmentOutput::Transmit { via: Via::Data, to, bytes }, Some(local)) => {
                        datagrams.push((Source::Data(local), to, bytes));
                    }
                    (AttachmentOutput::Transmit { via: Via::Data, .. }, None) => {}
                    (AttachmentOutput::Event(event), _) => events.push((upstream.serial, event)),
                }
            }
        }
        for (from, to, bytes) in datagrams {
            self.transmit(from, to, bytes);
        }
        let changed = !events.is_empty();
        for (serial, event) in events {
            self.upstream_event(now, index, serial, event);
        }
        changed
    }

    /// Tells an upstream leg's server that we have left, and gives it a moment to confirm.
    pub(super) fn leave(&mut self, now: Now, index: Index, mut upstream: Box<Upstream>) {
        upstream.port = None;
        upstream.is_leaving = true;
        let Some(session) = self.store.get_mut(index) else { return };
        // The server would take it for the leg that stands in its place.
        let is_same = |it: &Upstream| {
            (it.server, it.role, it.epoch) == (upstream.server, upstream.role, upstream.epoch)
        };
        if session.upstream.as_deref().is_some_and(is_same)
            || session.candidate.as_deref().is_some_and(is_same)
        {
            self.forget(&upstream);
            return;
        }
        upstream.attachment.release(now.monotonic);
        let until = now.monotonic + FAREWELL;
        session.leaving.push(Leaving { leg: None, upstream: Some(upstream), until });
    }

    /// Drops what is known of an upstream leg beside the leg itself.
    pub(super) fn forget(&mut self, upstream: &Upstream) {
        if let Some(transaction) = &upstream.transaction {
            self.transactions.remove(transaction);
        }
        if let Hop::Parent(number) = upstream.hop {
            self.parents.remove_leg(number);
        }
    }

    /// A parent went down, or came back: its sessions, or those that it would suit, look around.
    pub(super) fn parent_changed(&mut self, now: Now, number: u8, is_up: bool) {
        let hop = Hop::Parent(number);
        let concerned = |session: &Session| match (&session.upstream, &session.candidate) {
            (Some(upstream), _) if upstream.hop == hop => true,
            (_, Some(candidate)) if candidate.hop == hop => true,
            (upstream, _) => is_up && upstream.as_ref().is_none_or(|it| it.hop > hop),
        };
        let indices: Vec<Index> = self
            .store
            .iter()
            .filter(|(_, session)| session.sole().is_some() && concerned(session))
            .map(|(index, _)| index)
            .collect();
        for index in indices {
            let Some(session) = self.store.get_mut(index) else { continue };
            if is_up {
                session.avoid.forgive(hop.way());
            }
            for upstream in session.upstreams_mut().filter(|upstream| upstream.hop == hop) {
                upstream.is_lost = !is_up;
            }
            self.reattach.push_back(index);
        }
        if !self.reattach.is_empty() {
            self.next_reattach = self.next_reattach.or(Some(now.monotonic));
        }
        self.reattach_some(now);
    }

    /// Lets some of the sessions in the queue look for a better way on.
    pub(super) fn reattach_some(&mut self, now: Now) {
        if self.next_reattach.is_none_or(|at| at > now.monotonic) {
            return;
        }
        for _ in 0..TURN.0 {
            let Some(index) = self.reattach.pop_front() else { break };
            self.drop_lost(now, index);
            self.touch(now, index);
        }
        let more = !self.reattach.is_empty();
        self.next_reattach = more.then_some(now.monotonic + TURN.1);
    }

    /// Gives up upstream legs that are lost and carry nothing. A joined one stays until another works.
    fn drop_lost(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let pair = session.pair;
        let idle = |upstream: &Upstream| {
            let bound = upstream.bound();
            !bound.is_some_and(|leg| pair.is_some_and(|pair| pair.holds(leg.local)))
        };
        let upstream = session.upstream.take_if(|it| it.is_lost && idle(it));
        let candidate = session.candidate.take_if(|it| it.is_lost);
        for upstream in upstream.into_iter().chain(candidate) {
            self.retire_upstream(now, index, upstream);
        }
    }

    /// The nearest server that may be tried.
    fn best_hop(&self, session: &Session, ask: &Ask) -> Option<(Hop, SocketAddr)> {
        if ask.hops_left == 0 {
            return None;
        }
        let parents = self.parents.iter().filter(|(_, parent)| parent.is_up);
        let parents = parents.map(|(number, parent)| (Hop::Parent(number), parent.address));
        let root = ask.root.filter(|root| *root != ask.arrived_at).map(|root| (Hop::Root, root));
        parents.chain(root).find(|(hop, _)| !session.avoid.contains(hop.way()))
    }

    /// A parent gets what it needs to go on. A root only relays: it gets nothing else.
    fn attachment_config(
        &self,
        session: &Session,
        role: Role,
        leg: &PeerLeg,
        ask: &Ask,
        (hop, server): (Hop, SocketAddr),
    ) -> AttachmentConfig {
        let parent = match hop {
            Hop::Parent(number) => self.parents.get(number),
            Hop::Root => None,
        };
        let for_parent = parent.is_some();
        AttachmentConfig {
            server,
            key: session.key.clone(),
            mac_key: session.mac_key.as_deref().filter(|_| for_parent).cloned(),
            role,
            epoch: leg.epoch,
            raise_epoch: false,
            credentials: parent.and_then(|parent| parent.credentials.clone()),
            target_mac: ask.target_mac.filter(|_| for_parent),
            target_port: ask.target_port.filter(|_| for_parent),
            root: ask.root.filter(|_| for_parent),
            hops: ask.hops.iter().copied().chain([self.config.id]).collect(),
            hop_limit: ask.hops_left,
            lifetime: seconds(self.config.default_lifetime),
        }
    }

    fn attach(&mut self, now: Now, index: Index, hop: Hop, config: AttachmentConfig) {
        self.counters.add(Count::Escalated);
        let upstream = self.upstream(now, hop, config);
        let Some(session) = self.store.get_mut(index) else { return };
        let slot = match session.upstream {
            None => &mut session.upstream,
            Some(_) => &mut session.candidate,
        };
        *slot = Some(upstream);
    }

    /// Opens an upstream leg again, as it was before a restart, and asks its server whether it still
    /// stands there.
    pub(super) fn restore_upstream(
        &mut self,
        now: Now,
        index: Index,
        (server, epoch): (SocketAddr, u64),
        (local, remote): (SocketAddr, SocketAddr),
        paired: bool,
    ) {
        let Some(session) = self.store.get(index) else { return };
        let Some(role) = session.sole() else { return };
        let Some(leg) = session.leg(role).filter(|leg| leg.epoch == epoch) else { return };
        let Some(ask) = &leg.ask else { return };
        let parent = self.parents.iter().find(|(_, parent)| parent.address == server);
        let hop = parent.map_or(Hop::Root, |(number, _)| Hop::Parent(number));
        if hop == Hop::Root && ask.root != Some(server) {
            return;
        }
        let config = self.attachment_config(session, role, leg, ask, (hop, server));
        let port = self.open_port(index, On::Exactly(local));
        let upstream = Upstream {
            port: Some(Port::Opening(port)),
            remote: Some(remote),
            is_bound: true,
            paired,
            told: paired,
            ..*self.upstream(now, hop, config)
        };
        if let Some(session) = self.store.get_mut(index) {
            session.upstream = Some(Box::new(upstream));
        }
    }

    fn upstream(&mut self, now: Now, hop: Hop, config: AttachmentConfig) -> Box<Upstream> {
        if let Hop::Parent(number) = hop {
            self.parents.add_leg(number, now.monotonic);
        }
        Box::new(Upstream {
            serial: self.rng.random(),
            hop,
            server: config.server,
            role: config.role,
            epoch: config.epoch,
            attachment: Attachment::new(config, self.rng.random(), now.monotonic),
            port: None,
            remote: None,
            is_bound: false,
            paired: false,
            told: false,
            is_lost: false,
            is_probing: false,
            is_leaving: false,
            transaction: None,
        })
    }

    fn upstream_event(&mut self, now: Now, index: Index, serial: u32, event: AttachmentEvent) {
        let Some(session) = self.store.get_mut(index) else { return };
        let Some(upstream) = session.upstreams_mut().find(|it| it.serial == serial) else { return };
        match event {
            AttachmentEvent::Connected { data_address } => {
                self.upstream_connected(now, index, serial, data_address);
            }
            AttachmentEvent::Bound { .. } => upstream.is_bound = true,
            AttachmentEvent::Paired | AttachmentEvent::Confirmed { .. } => {
                upstream.is_bound = true;
                upstream.paired = true;
            }
            AttachmentEvent::Unpaired => {
                upstream.paired = false;
                upstream.told = false;
            }
            AttachmentEvent::Lost(_) => {
                self.counters.add(Count::UpstreamLost);
                self.lose(now, index, serial, SILENT);
            }
            AttachmentEvent::Refused(code) => {
                self.counters.add(Count::UpstreamRefused);
                let pause = if code == ErrorCode::ServerError { SILENT } else { REFUSED };
                self.lose(now, index, serial, pause);
            }
            AttachmentEvent::Released => {
                let is_it = |it: &mut Leaving| {
                    it.leg.is_none() && it.upstream.as_ref().is_some_and(|it| it.serial == serial)
                };
                let left: Vec<Leaving> = session.leaving.extract_if(.., is_it).collect();
                let left = left.into_iter().filter_map(|leaving| leaving.upstream);
                left.for_each(|upstream| self.forget(&upstream));
            }
        }
    }

    /// The next server has told where its end of the leg is: it must be its own address.
    fn upstream_connected(&mut self, now: Now, index: Index, serial: u32, data: SocketAddr) {
        let Some(session) = self.store.get_mut(index) else { return };
        let Some(upstream) = session.upstreams_mut().find(|it| it.serial == serial) else { return };
        if data.ip() != upstream.server.ip() || data.port() == 0 {
            self.counters.add(Count::UpstreamRefused);
            self.lose(now, index, serial, REFUSED);
            return;
        }
        match upstream.remote {
            // The server has made the leg anew. What forwards goes on until the new one does.
            Some(before) if before != data => {
                upstream.is_lost = true;
                self.drop_lost(now, index);
            }
            Some(_) => upstream.is_lost = false,
            None => {
                upstream.remote = Some(data);
                let port = Port::Opening(self.open_port(index, On::Toward(data)));
                let upstreams = self.store.get_mut(index).map(Session::upstreams_mut);
                let it = upstreams.into_iter().flatten().find(|it| it.serial == serial);
                it.into_iter().for_each(|upstream| upstream.port = Some(port));
            }
        }
    }

    /// An upstream leg has no future. If data flows over it, it stays until another one works.
    fn lose(&mut self, now: Now, index: Index, serial: u32, pause: Duration) {
        let Some(session) = self.store.get_mut(index) else { return };
        let Some(upstream) = session.upstreams_mut().find(|it| it.serial == serial) else { return };
        upstream.is_lost = true;
        let way = upstream.hop.way();
        session.avoid.add(way, now.monotonic + pause);
        self.drop_lost(now, index);
    }
}

/// Notes which request the bytes are, so that its answer finds the session.
fn remember(
    transactions: &mut HashMap<TransactionId, Index>,
    upstream: &mut Upstream,
    index: Index,
    bytes: &[u8],
) {
    let id = bytes.get(8..20).and_then(|id| id.try_into().ok()).map(TransactionId);
    if let Some(id) = id.filter(|id| upstream.transaction != Some(*id)) {
        if let Some(before) = upstream.transaction.replace(id) {
            transactions.remove(&before);
        }
        transactions.insert(id, index);
    }
}
