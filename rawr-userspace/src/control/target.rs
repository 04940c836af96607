//! A target that has not asked: found by its MAC among the neighbours, and probed from here.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_proto::{Attributes, Class, Mac, MacToken, Message, Method, Role, TransactionId, decode};

use super::command::{Command, On, PortError, PortId, Source};
use super::counters::Count;
use super::neighbours::Neighbour;
use super::probe;
use super::server::Server;
use super::session::{Avoid, PairKind, Port, Session};
use super::store::Index;
use super::time::Now;
use crate::dataplane::Leg;

/// How long a target is probed before it is given up.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How long a target that was given up is left alone.
const LEAVE_ALONE: Duration = Duration::from_secs(30);
/// How long a target that was joined may be silent: four keepalives.
const SILENCE: Duration = Duration::from_secs(60);
/// First and longest pause between two Probes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How often, at most, the own subnets are asked for silent hosts.
const SWEEP: Duration = Duration::from_secs(1);
/// One host's addresses that are tried.
const MAX_ADDRESSES: usize = 4;

/// An outbound leg.
#[derive(Debug)]
pub(super) struct Target {
    /// The role that the target has.
    pub(super) role: Role,
    pub(super) port: Port,
    /// Where it may be; all of one family.
    addresses: Vec<SocketAddr>,
    remote: Option<SocketAddr>,
    transaction: TransactionId,
    pause: Duration,
    next_probe: Instant,
    /// When it is given up, or lost.
    until: Instant,
}

impl Target {
    pub(super) fn bound(&self) -> Option<Leg> {
        Some(Leg::whole(self.port.open()?, self.remote?))
    }

    pub(super) fn learn(&mut self, now: Instant, remote: SocketAddr) {
        self.remote = Some(remote);
        self.until = now + SILENCE;
    }

    pub(super) fn next_deadline(&self) -> Instant {
        let probes = self.remote.is_none() && self.port.open().is_some();
        if probes { self.next_probe.min(self.until) } else { self.until }
    }
}

impl Server {
    /// Takes in a change in the kernel's neighbour table.
    pub fn neighbour(&mut self, now: Now, neighbour: Neighbour) {
        let Some(mac) = self.neighbours.update(neighbour) else { return };
        let found = self.seekers.iter().copied().filter(|index| self.seeks(*index, mac));
        for index in found.collect::<Vec<_>>() {
            self.seekers.remove(&index);
            self.touch(now, index);
        }
    }

    /// Takes note that datagrams have come to these data ports since the last call. The shell calls
    /// it every 15 s or more often: a target whose port is not among them for 60 s counts as lost.
    pub fn legs_active(&mut self, now: Now, locals: &[SocketAddr]) {
        for local in locals {
            let index = self.store.by_port(*local);
            let session = index.and_then(|index| self.store.get_mut(index));
            let target = session.and_then(|session| session.target.as_deref_mut());
            if let Some(target) = target.filter(|it| it.port.open() == Some(*local)) {
                target.until = now.monotonic + SILENCE;
            }
        }
    }

    /// Looks for what the sole peer here wants to reach: the target itself, or a way on.
    pub(super) fn seek(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get(index) else { return };
        let met = session.pair.is_some_and(|pair| pair.kind != PairKind::Upstream);
        let asks = session.sole().and_then(|role| session.leg(role)?.ask.as_ref()).is_some();
        if met || !asks {
            self.seekers.remove(&index);
            return;
        }
        self.seek_target(now, index);
        self.escalate(now, index);
    }

    /// Whether this host is what the session waits for.
    fn seeks(&self, index: Index, mac: Mac) -> bool {
        let Some(session) = self.store.get(index) else { return false };
        let leg = session.sole().and_then(|role| session.leg(role));
        let token = leg.and_then(|leg| leg.ask.as_ref()?.target_mac);
        match (token, &session.mac_key) {
            (Some(MacToken::Raw(wanted)), _) => wanted == mac,
            (Some(token), Some(key)) => key.matches(&token, mac),
            (Some(MacToken::Blinded(_)), None) | (None, _) => false,
        }
    }

    fn seek_target(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get(index) else { return };
        let Some(role) = session.sole() else { return };
        let Some(leg) = session.leg(role).filter(|leg| leg.port.open().is_some()) else { return };
        let wish = leg.ask.as_ref().and_then(|ask| ask.target_mac.zip(ask.target_port));
        let Some((token, port)) = wish.filter(|_| self.config.looks_up_mac()) else { return };
        let tried = session.target.is_some() || session.avoid.contains(Avoid::TARGET);
        if tried || self.seekers.contains(&index) {
            return;
        }
        let near = leg.port.open().is_some_and(|local| local.is_ipv4());
        let found = self.neighbours.find(&token, session.mac_key.as_deref());
        let addresses = of_one_family(found, near, port);
        let Some(first) = addresses.first().copied() else {
            self.seekers.insert(index);
            self.sweep(now);
            return;
        };
        let target = Target {
            role: role.other(),
            port: Port::Opening(self.open_port(index, On::Toward(first))),
            addresses,
            remote: None,
            transaction: self.transaction(),
            pause: PAUSE.0,
            next_probe: now.monotonic,
            until: now.monotonic + GIVE_UP,
        };
        if let Some(session) = self.store.get_mut(index) {
            session.target = Some(Box::new(target));
        }
    }

    /// Opens the leg to a target again, as it was before a restart.
    pub(super) fn restore_target(
        &mut self,
        now: Now,
        index: Index,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let Some(role) = self.store.get(index).and_then(Session::sole) else { return };
        let target = Target {
            role: role.other(),
            port: Port::Opening(self.open_port(index, On::Exactly(local))),
            addresses: vec![remote],
            remote: Some(remote),
            transaction: self.transaction(),
            pause: PAUSE.0,
            next_probe: now.monotonic,
            until: now.monotonic + SILENCE,
        };
        if let Some(session) = self.store.get_mut(index) {
            session.target = Some(Box::new(target));
        }
    }

    pub(super) fn target_port_opened(
        &mut self,
        now: Now,
        index: Index,
        id: PortId,
        result: Result<SocketAddr, PortError>,
    ) -> bool {
        let Some(session) = self.store.get_mut(index) else { return false };
        let Some(target) = session.target.as_deref_mut() else { return false };
        if target.port != Port::Opening(id) {
            return false;
        }
        match result {
            Ok(local) => {
                target.port = Port::Open(local);
                if target.remote.is_none() {
                    self.probe_target(now, index);
                }
            }
            Err(_) => {
                session.target = None;
                session.avoid.add(Avoid::TARGET, now.monotonic + LEAVE_ALONE);
                self.counters.add(Count::NoPorts);
            }
        }
        true
    }

    /// Takes what came to a target's leg: its answer to our Probe, or its own Probe.
    pub(super) fn target_data(
        &mut self,
        now: Now,
        index: Index,
        local: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(session) = self.store.get_mut(index) else { return false };
        let integrity = session.integrity();
        let Some(target) = session.target.as_deref_mut() else { return false };
        let (role, transaction) = (target.role, target.transaction);
        let answer = decode(bytes).ok().filter(|decoded| {
            let message = &decoded.message;
            (message.class, message.method) == (Class::Success, Method::Probe)
                && message.transaction == transaction
                && target.addresses.contains(&from)
                && decoded.verify(&integrity)
        });
        if answer.is_none() {
            return self.probed(now, probe::Port { index, local, role }, from, bytes);
        }
        if target.remote.is_none() {
            target.learn(now.monotonic, from);
            self.touch(now, index);
        }
        true
    }

    pub(super) fn expire_target(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let Some(target) = session.target.as_deref() else { return };
        if target.until > now.monotonic {
            if target.next_deadline() <= now.monotonic {
                self.probe_target(now, index);
            }
            return;
        }
        let (was_bound, local) = (target.remote.is_some(), target.port.open());
        session.target = None;
        if !was_bound {
            session.avoid.add(Avoid::TARGET, now.monotonic + LEAVE_ALONE);
        }
        self.counters.add(Count::ExpiredTarget);
        if let Some(local) = local {
            self.close_port(local);
        }
    }

    fn probe_target(&mut self, now: Now, index: Index) {
        let Some(session) = self.store.get_mut(index) else { return };
        let (id, key) = (session.id, session.integrity());
        let Some(target) = session.target.as_deref_mut() else { return };
        let Some(local) = target.port.open() else { return };
        target.next_probe = now.monotonic + target.pause;
        target.pause = (target.pause * 2).min(PAUSE.1);
        let attributes = Attributes {
            session: Some(id),
            role: Some(target.role.other()),
            ..Attributes::default()
        };
        let bytes = Message::request(Method::Probe, target.transaction, attributes)
            .encode_padded(Some(&key), rawr_proto::MIN_FIRST_REQUEST);
        for to in target.addresses.clone() {
            self.transmit(Source::Data(local), to, bytes.clone());
        }
    }

    /// Has the own subnets asked for silent hosts, if that has not just been done.
    fn sweep(&mut self, now: Now) {
        if self.swept.is_none_or(|at| now.monotonic >= at + SWEEP) {
            self.swept = Some(now.monotonic);
            self.command(Command::ProbeNeighbours);
        }
    }
}

/// Where a host with the addresses `found` may listen: of the asking leg's family if it has such.
fn of_one_family(found: &[IpAddr], is_ipv4: bool, port: u16) -> Vec<SocketAddr> {
    let of = |is_ipv4| found.iter().filter(move |ip| ip.is_ipv4() == is_ipv4);
    let family = if of(is_ipv4).next().is_some() { is_ipv4 } else { !is_ipv4 };
    of(family).take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port)).collect()
}
