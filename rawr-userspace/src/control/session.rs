//! A session at this server: its legs, and which two of them belong together.

use std::net::SocketAddr;
use std::time::Instant;

use rawr_proto::{
    IntegrityKey, LegState, MacKey, MacToken, Role, ServerId, SessionId, SessionKey, TransactionId,
};

use super::command::PortId;
use super::deadline::Reason;
use super::limits::Prefix;
use super::target::Target;
use super::upstream::Upstream;
use crate::dataplane::Leg;

/// What one server knows of one session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) key: SessionKey,
    /// What matches blinded MACs; only where a peer handed it over.
    pub(super) mac_key: Option<Box<MacKey>>,
    /// The newest downstream leg of each role.
    pub(super) legs: [Option<PeerLeg>; 2],
    /// The one before it, for as long as the newest has not been probed on.
    pub(super) retiring: [Option<Box<PeerLeg>>; 2],
    /// A leg to a peer that has not asked.
    pub(super) target: Option<Box<Target>>,
    /// The leg to the next server, where the sole peer here asked for more.
    pub(super) upstream: Option<Box<Upstream>>,
    /// A leg to a better next server, until it works.
    pub(super) candidate: Option<Box<Upstream>>,
    /// Legs that were replaced.
    pub(super) leaving: Vec<Leaving>,
    /// Hops that failed lately.
    pub(super) avoid: Avoid,
    /// What the data plane has been told.
    pub(super) pair: Option<Pair>,
    /// Where this session's alarm stands.
    pub(super) armed: Option<Instant>,
}

impl Session {
    pub(super) fn new(key: SessionKey) -> Self {
        Self {
            id: key.id(),
            key,
            mac_key: None,
            legs: [None, None],
            retiring: [None, None],
            target: None,
            upstream: None,
            candidate: None,
            leaving: Vec::new(),
            avoid: Avoid::default(),
            pair: None,
            armed: None,
        }
    }

    /// The key of messages between this server and the session's peers.
    pub(super) fn integrity(&self) -> IntegrityKey {
        IntegrityKey::session(&self.key)
    }

    pub(super) fn leg(&self, role: Role) -> Option<&PeerLeg> {
        self.legs[role as usize].as_ref()
    }

    pub(super) fn leg_mut(&mut self, role: Role) -> Option<&mut PeerLeg> {
        self.legs[role as usize].as_mut()
    }

    /// The leg of `role` that data can go to.
    pub(super) fn bound(&self, role: Role) -> Option<Leg> {
        let newest = self.leg(role).and_then(PeerLeg::bound);
        newest.or_else(|| self.retiring[role as usize].as_ref().and_then(|leg| leg.bound()))
    }

    /// The role whose peer is here, if the other one's is not.
    pub(super) fn sole(&self) -> Option<Role> {
        match &self.legs {
            [Some(_), None] => Some(Role::A),
            [None, Some(_)] => Some(Role::B),
            [None, None] | [Some(_), Some(_)] => None,
        }
    }

    /// The two legs that ought to be joined, as things stand: nearest first.
    pub(super) fn wanted(&self) -> Option<Pair> {
        let (role, leg) = match (self.bound(Role::A), self.bound(Role::B)) {
            (Some(a), Some(b)) => return Some(Pair { legs: [a, b], kind: PairKind::Peers }),
            (Some(a), None) => (Role::A, a),
            (None, Some(b)) => (Role::B, b),
            (None, None) => return None,
        };
        let target = self.target.as_ref().filter(|target| target.role == role.other());
        let upstream = self.upstream.as_ref().filter(|upstream| upstream.role == role);
        let (kind, other) = match target.and_then(|target| target.bound()) {
            Some(bound) => (PairKind::Target, bound),
            None => (PairKind::Upstream, upstream.and_then(|upstream| upstream.bound())?),
        };
        let legs = if role == Role::A { [leg, other] } else { [other, leg] };
        Some(Pair { legs, kind })
    }

    /// How far the leg with this address has come, as its client is told.
    pub(super) fn state_of(&self, local: SocketAddr) -> LegState {
        let paired = self.pair.as_ref().is_some_and(|pair| {
            let through = pair.kind != PairKind::Upstream
                || self.upstream.as_ref().is_some_and(|upstream| upstream.paired);
            pair.holds(local) && through
        });
        if paired { LegState::Paired } else { LegState::Waiting }
    }

    /// What the data port `local` is to this session.
    pub(super) fn use_of(&self, local: SocketAddr) -> Option<Use> {
        let is = |port: Option<Port>| port == Some(Port::Open(local));
        for role in [Role::A, Role::B] {
            if is(self.leg(role).map(|leg| leg.port)) {
                return Some(Use::Peer(role));
            }
            if is(self.retiring[role as usize].as_ref().map(|leg| leg.port)) {
                return Some(Use::Retiring(role));
            }
        }
        if is(self.target.as_ref().map(|target| target.port)) {
            return Some(Use::Target);
        }
        let upstream = self.upstreams().find(|upstream| is(upstream.port));
        upstream.map(|upstream| Use::Upstream(upstream.serial)).or_else(|| {
            let leaves = |leaving: &Leaving| leaving.leg.is_some_and(|(leg, _)| leg.local == local);
            self.leaving.iter().any(leaves).then_some(Use::Leaving)
        })
    }

    /// All upstream legs, those that are leaving included.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let leaving = self.leaving.iter().filter_map(|leaving| leaving.upstream.as_deref());
        self.upstream.as_deref().into_iter().chain(self.candidate.as_deref()).chain(leaving)
    }

    /// As [`Session::upstreams`].
    pub(super) fn upstreams_mut(&mut self) -> impl Iterator<Item = &mut Upstream> {
        let leaving = self.leaving.iter_mut().filter_map(|leaving| leaving.upstream.as_deref_mut());
        let upstream = self.upstream.as_deref_mut().into_iter();
        upstream.chain(self.candidate.as_deref_mut()).chain(leaving)
    }

    /// When something happens by itself next, and what.
    pub(super) fn next_deadline(&self) -> Option<(Instant, Reason)> {
        let legs = self.legs.iter().flatten().map(PeerLeg::deadline);
        let retiring = self.retiring.iter().flatten().map(|leg| leg.deadline());
        let upstreams = self.upstreams().filter_map(Upstream::poll_timeout);
        let leaving = self.leaving.iter().map(|leaving| (leaving.until, Reason::Drain));
        let target = self.target.iter().map(|target| (target.next_deadline(), Reason::Target));
        let avoid = self.avoid.until.filter(|_| self.sole().is_some());
        legs.chain(retiring)
            .chain(upstreams.map(|at| (at, Reason::Upstream)))
            .chain(leaving)
            .chain(target)
            .chain(avoid.map(|at| (at, Reason::Escalation)))
            .min()
    }

    /// Whether there is nothing left to keep it for.
    pub(super) fn is_over(&self) -> bool {
        self.legs.iter().all(Option::is_none) && self.leaving.is_empty()
    }
}

/// A downstream leg: what a Connect made.
#[derive(Debug)]
pub(super) struct PeerLeg {
    pub(super) epoch: u64,
    /// Where its requests come from.
    pub(super) source: SocketAddr,
    /// Whose quota it counts in: where it was made from.
    pub(super) prefix: Prefix,
    pub(super) port: Port,
    /// Where its data comes from, once its client has probed.
    pub(super) remote: Option<SocketAddr>,
    /// Seconds.
    pub(super) lifetime: u32,
    pub(super) expires: Instant,
    /// Servers between the peer and here.
    pub(super) depth: u8,
    /// How to go on from here; gateways only.
    pub(super) ask: Option<Box<Ask>>,
    /// The Connect that waits for the port.
    pub(super) answer: Option<Box<PendingAnswer>>,
}

impl PeerLeg {
    pub(super) fn bound(&self) -> Option<Leg> {
        Some(Leg::whole(self.port.open()?, self.remote?))
    }

    fn deadline(&self) -> (Instant, Reason) {
        let reason = match self.remote {
            Some(_) => Reason::LegLifetime,
            None => Reason::LegHalfOpen,
        };
        (self.expires, reason)
    }
}

/// What a peer wants beyond a leg here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) target_mac: Option<MacToken>,
    pub(super) target_port: Option<u16>,
    pub(super) root: Option<SocketAddr>,
    pub(super) hops: Vec<ServerId>,
    /// Servers that may still follow this one.
    pub(super) hops_left: u8,
    /// Address of ours that the Connect came to: no use as a root.
    pub(super) arrived_at: SocketAddr,
}

/// A Connect whose answer needs the data port first.
#[derive(Debug)]
pub(super) struct PendingAnswer {
    pub(super) transaction: TransactionId,
    pub(super) from: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) key: IntegrityKey,
}

/// A data port, before and after it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Opening(PortId),
    Open(SocketAddr),
}

impl Port {
    pub(super) fn open(self) -> Option<SocketAddr> {
        match self {
            Self::Opening(_) => None,
            Self::Open(local) => Some(local),
        }
    }
}

/// What a data port is to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Peer(Role),
    Retiring(Role),
    Target,
    /// Active, candidate or leaving; see [`Upstream::serial`].
    Upstream(u32),
    /// A downstream or target leg that drains.
    Leaving,
}

/// A leg that was replaced. First it drains, if it was forwarding; then its upstream server is told.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The leg, and whose data it carries, while its port is open.
    pub(super) leg: Option<(Leg, Role)>,
    pub(super) upstream: Option<Box<Upstream>>,
    /// When this stage ends.
    pub(super) until: Instant,
}

/// Two joined legs, the one that A's data arrives on first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) legs: [Leg; 2],
    pub(super) kind: PairKind,
}

impl Pair {
    pub(super) fn holds(&self, local: SocketAddr) -> bool {
        self.legs.iter().any(|leg| leg.local == local)
    }
}

/// How a pair came about, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PairKind {
    /// Both peers asked here: this is the meeting point.
    Peers,
    /// One asked, the other was found among the neighbours.
    Target,
    /// One asked; the rest of the way is the next server's.
    Upstream,
}

/// Ways on that failed, not to be tried again for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Avoid {
    ways: u16,
    pub(super) until: Option<Instant>,
}

impl Avoid {
    /// Number of the way to the root. Smaller numbers are parents.
    pub(super) const ROOT: u8 = 14;
    /// Number of the way to the target.
    pub(super) const TARGET: u8 = 15;

    pub(super) fn add(&mut self, way: u8, until: Instant) {
        self.ways |= 1 << way;
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    pub(super) fn contains(self, way: u8) -> bool {
        self.ways & (1 << way) != 0
    }

    pub(super) fn forgive(&mut self, way: u8) {
        self.ways &= !(1 << way);
    }
}
