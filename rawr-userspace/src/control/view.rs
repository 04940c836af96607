//! What the server shows of itself.

use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::{Role, SessionId};

use super::server::Server;
use super::session::{Pair, PairKind, PeerLeg, Session};
use super::time::Now;
use super::upstream::Upstream;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    pub id: SessionId,
    /// How its two legs came together; `None` while it waits.
    pub paired: Option<LegKind>,
    pub legs: Vec<LegView>,
}

/// One leg of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegView {
    pub kind: LegKind,
    /// The peer that is behind it.
    pub role: Role,
    /// `None` until the data port is open.
    pub local: Option<SocketAddr>,
    /// `None` until it has been learnt.
    pub remote: Option<SocketAddr>,
    /// Whether it is one of the two that are joined.
    pub is_paired: bool,
    /// The server that an upstream leg is at.
    pub server: Option<SocketAddr>,
    /// What is left of a downstream leg's lifetime.
    pub expires_in: Option<Duration>,
}

/// What a leg is, and how it makes a pair with a downstream leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegKind {
    /// A peer, or a gateway for it, asked for it.
    Downstream,
    /// To a target found by its MAC.
    Target,
    /// At the next server.
    Upstream,
    /// At a better next server, not in use yet.
    Candidate,
}

/// A parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentView {
    pub address: SocketAddr,
    pub is_up: bool,
    /// Upstream legs there.
    pub legs: usize,
}

impl Server {
    /// All sessions.
    pub fn sessions(&self, now: Now) -> impl Iterator<Item = SessionView> {
        self.store.iter().map(move |(_, session)| session_view(session, now))
    }

    /// How many sessions there are.
    pub fn session_count(&self) -> usize {
        self.store.len()
    }

    /// How many downstream legs wait for their first Probe.
    pub fn half_open_count(&self) -> usize {
        self.quotas.half_open() as usize
    }

    /// The configured parents, nearest first.
    pub fn parents(&self) -> impl Iterator<Item = ParentView> {
        self.parents.iter().map(|(_, parent)| {
            let super::parents::ParentState { address, is_up, legs, .. } = *parent;
            ParentView { address, is_up, legs }
        })
    }
}

fn session_view(session: &Session, now: Now) -> SessionView {
    let pair = session.pair.as_ref();
    let peers = [Role::A, Role::B].into_iter().flat_map(|role| {
        let retiring = session.retiring[role as usize].as_deref();
        session.leg(role).into_iter().chain(retiring).map(move |leg| (role, leg))
    });
    let mut legs: Vec<LegView> = peers.map(|(role, leg)| peer_view(role, leg, pair, now)).collect();
    legs.extend(session.target.as_ref().map(|target| {
        let (local, remote) = (target.port.open(), target.bound().map(|leg| leg.remote));
        leg_view(LegKind::Target, target.role, local, remote, pair)
    }));
    let upstream = session.upstream.as_deref();
    legs.extend(upstream.map(|upstream| upstream_view(LegKind::Upstream, upstream, pair)));
    let candidate = session.candidate.as_deref();
    legs.extend(candidate.map(|upstream| upstream_view(LegKind::Candidate, upstream, pair)));
    let paired = pair.map(|pair| match pair.kind {
        PairKind::Peers => LegKind::Downstream,
        PairKind::Target => LegKind::Target,
        PairKind::Upstream => LegKind::Upstream,
    });
    SessionView { id: session.id, paired, legs }
}

fn peer_view(role: Role, leg: &PeerLeg, pair: Option<&Pair>, now: Now) -> LegView {
    let expires_in = Some(leg.expires.saturating_duration_since(now.monotonic));
    let view = leg_view(LegKind::Downstream, role, leg.port.open(), leg.remote, pair);
    LegView { expires_in, ..view }
}

fn upstream_view(kind: LegKind, upstream: &Upstream, pair: Option<&Pair>) -> LegView {
    let local = upstream.port.and_then(|port| port.open());
    let view = leg_view(kind, upstream.role.other(), local, upstream.remote, pair);
    LegView { server: Some(upstream.server), ..view }
}

fn leg_view(
    kind: LegKind,
    role: Role,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    pair: Option<&Pair>,
) -> LegView {
    let is_paired = local.is_some_and(|local| pair.is_some_and(|pair| pair.holds(local)));
    LegView { kind, role, local, remote, is_paired, server: None, expires_in: None }
}
