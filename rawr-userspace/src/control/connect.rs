//! Connect: a client asks for a leg of its session here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{Attributes, ErrorCode, IntegrityKey, Message, Method, Role};

use super::auth::Caller;
use super::command::{Command, On, PortError, PortId, Source};
use super::config::Kind;
use super::counters::Count;
use super::limits::Prefix;
use super::request::{Answer, ErrorResponse, Request};
use super::server::{Server, seconds};
use super::session::{Ask, Avoid, PeerLeg, PendingAnswer, Port, Session};
use super::store::Index;
use super::time::Now;
use super::turn::Turn;

/// How long a leg waits for its client's first Probe.
pub(super) const HALF_OPEN: Duration = Duration::from_secs(10);

/// Shortest lifetime of a leg that is granted, in seconds.
const MIN_LIFETIME: u32 = 10;

/// Longer hop lists are refused like used-up hop limits.
const MAX_HOPS: usize = 32;

impl Server {
    pub(super) fn connect(&mut self, request: &Request<'_>) -> Result<Answer, ErrorResponse> {
        let caller = self.admit(request)?;
        let sign = |refusal: ErrorResponse| refusal.signed(&caller.integrity);
        let ask = self.read_ask(request).map_err(sign)?;
        let found = self.store.find(caller.subject.session);
        let standing = found.and_then(|index| self.store.get(index)?.leg(caller.subject.role));
        let outcome = match (found, standing) {
            (Some(index), Some(leg)) if is_same(request, &caller, leg) => {
                self.connect_again(request, &caller, index, ask)
            }
            (_, Some(leg)) if !supersedes(&caller, &ask, leg) => {
                Err(ErrorResponse::new(ErrorCode::RoleTaken, Count::RoleTaken))
            }
            _ => self.connect_anew(request, &caller, found, ask),
        };
        outcome.map_err(sign)
    }

    /// The shell has opened a data port, or failed to.
    pub fn port_opened(&mut self, now: Now, id: PortId, result: Result<SocketAddr, PortError>) {
        if Turn::asked_for(id) {
            self.relay_opened(now, id, result);
            return;
        }
        let index = id.0 as Index;
        let wanted = self.store.get(index).is_some_and(|session| session.waits_for(id));
        if let Ok(local) = result {
            if !wanted {
                self.command(Command::ClosePort { local });
                return;
            }
            self.store.add_port(local, index);
        }
        if !wanted {
            return;
        }
        if !self.peer_port_opened(index, id, result)
            && !self.target_port_opened(now, index, id, result)
        {
            self.upstream_port_opened(now, index, id, result);
        }
        self.touch(now, index);
    }

    /// What the client wants beyond a leg here. Refuses what has been here before, or too far.
    fn read_ask(&self, request: &Request<'_>) -> Result<Ask, ErrorResponse> {
        let a = request.attributes();
        if a.hops.contains(&self.config.id) {
            return Err(ErrorResponse::new(ErrorCode::LoopDetected, Count::Loop));
        }
        let limit = a.hop_limit.unwrap_or(self.config.hop_limit);
        let Some(hops_left) = limit.checked_sub(1).filter(|_| a.hops.len() <= MAX_HOPS) else {
            return Err(ErrorResponse::new(ErrorCode::TooManyHops, Count::TooManyHops));
        };
        if a.root.is_some_and(|root| !may_be_root(root, request.from())) {
            return Err(ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden));
        }
        Ok(Ask {
            target_mac: a.target_mac,
            target_port: a.target_port.filter(|port| *port != 0),
            root: a.root,
            hops: a.hops.clone(),
            hops_left,
            arrived_at: request.local(),
        })
    }

    /// A retransmission, or a client that has learnt more about its target since.
    fn connect_again(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
        index: Index,
        ask: Ask,
    ) -> Result<Answer, ErrorResponse> {
        let is_gateway = self.config.kind == Kind::Gateway;
        let lifetime = self.lifetime(request.attributes().lifetime);
        let Some(session) = self.store.get_mut(index) else { return Ok(Answer::Later) };
        if session.mac_key.is_none() {
            session.mac_key = caller.mac_key.clone().map(Box::new);
        }
        let Some(leg) = session.leg_mut(caller.subject.role) else { return Ok(Answer::Later) };
        let news = is_gateway && leg.ask.as_deref() != Some(&ask);
        if news {
            leg.ask = Some(Box::new(ask.clone()));
        }
        leg.lifetime = lifetime;
        if leg.remote.is_some() {
            leg.expires = request.now.monotonic + Duration::from_secs(u64::from(lifetime));
        }
        let Some(local) = leg.port.open() else {
            leg.answer = Some(pending(request, &caller.integrity));
            return Ok(Answer::Later);
        };
        let attributes = connected(session, caller.subject.role, local, request.from());
        self.counters.add(Count::Connect);
        if news {
            self.seekers.remove(&index);
            self.update_target(request.now, index, &ask);
        }
        self.touch(request.now, index);
        Ok(Answer::now(attributes, Some(caller.integrity.clone())))
    }

    fn connect_anew(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
        found: Option<Index>,
        ask: Ask,
    ) -> Result<Answer, ErrorResponse> {
        let quota = || ErrorResponse::new(ErrorCode::QuotaReached, Count::Quota);
        if found.is_none() && self.store.len() >= self.config.limits.sessions {
            return Err(quota());
        }
        let prefix = Prefix::of(request.from().ip());
        self.quotas.open_leg(prefix).map_err(|_| quota())?;
        let index = found.unwrap_or_else(|| self.store.insert(Session::new(caller.key.clone())));
        let port = Port::Opening(self.open_port(index, On::Address(request.local().ip())));
        let leg = PeerLeg {
            epoch: caller.subject.epoch,
            source: request.from(),
            prefix,
            port,
            remote: None,
            lifetime: self.lifetime(request.attributes().lifetime),
            expires: request.now.monotonic + HALF_OPEN,
            depth: ask.hops.len() as u8,
            ask: (self.config.kind == Kind::Gateway).then(|| Box::new(ask)),
            answer: Some(pending(request, &caller.integrity)),
        };
        self.place(request.now, index, caller, leg);
        Ok(Answer::Later)
    }

    /// Puts a new leg in its place. One that stood there goes on until the new one has been probed on.
    fn place(&mut self, now: Now, index: Index, caller: &Caller, leg: PeerLeg) {
        let role = caller.subject.role;
        let Some(session) = self.store.get_mut(index) else { return };
        if caller.mac_key.is_some() {
            session.mac_key = caller.mac_key.clone().map(Box::new);
        }
        session.avoid = Avoid::default();
        self.seekers.remove(&index);
        let before = session.legs[role as usize].replace(leg);
        let dropped = match before {
            Some(before) if before.remote.is_some() => {
                session.retiring[role as usize].replace(Box::new(before)).map(|leg| *leg)
            }
            other => other,
        };
        if let Some(leg) = dropped {
            self.close_leg(&leg);
        }
        self.touch(now, index);
    }

    fn peer_port_opened(
        &mut self,
        index: Index,
        id: PortId,
        result: Result<SocketAddr, PortError>,
    ) -> bool {
        let Some(session) = self.store.get_mut(index) else { return false };
        let is_awaited = |role: &Role| session.leg(*role).is_some_and(|leg| leg.awaits(id));
        let Some(role) = [Role::A, Role::B].into_iter().find(is_awaited) else { return false };
        let Some(leg) = session.leg_mut(role) else { return false };
        let answer = leg.answer.take();
        match result {
            Ok(local) => {
                leg.port = Port::Open(local);
                if let Some(answer) = answer {
                    let attributes = connected(session, role, local, answer.from);
                    self.counters.add(Count::Connect);
                    self.send_answer(&answer, Ok(attributes));
                }
            }
            Err(_) => {
                self.counters.add(Count::NoPorts);
                if let Some(answer) = answer {
                    self.send_answer(&answer, Err(ErrorCode::InsufficientCapacity));
                }
                self.drop_leg(index, role);
            }
        }
        true
    }

    fn send_answer(&mut self, answer: &PendingAnswer, result: Result<Attributes, ErrorCode>) {
        let request =
            Message::request(Method::Connect, answer.transaction, Attributes::default()).head();
        let message = match result {
            Ok(attributes) => Message::success(request, attributes),
            Err(code) => Message::error(request, code, Attributes::default()),
        };
        let bytes = message.encode(Some(&answer.key));
        self.transmit(Source::Control(answer.local), answer.from, bytes);
    }

    /// The lifetime that is granted to who asks for `wanted`, in seconds.
    pub(super) fn lifetime(&self, wanted: Option<u32>) -> u32 {
        let longest = seconds(self.config.max_lifetime).max(MIN_LIFETIME);
        wanted.unwrap_or_else(|| seconds(self.config.default_lifetime)).clamp(MIN_LIFETIME, longest)
    }
}

impl Session {
    /// Whether a leg of this session asked for the port `id`.
    fn waits_for(&self, id: PortId) -> bool {
        let opening = Some(Port::Opening(id));
        self.legs.iter().flatten().any(|leg| leg.awaits(id))
            || self.target.as_ref().map(|target| target.port) == opening
            || self.upstreams().any(|upstream| upstream.port == opening)
    }
}

impl PeerLeg {
    pub(super) fn awaits(&self, id: PortId) -> bool {
        self.port == Port::Opening(id)
    }

    /// Whether the leg, refreshed at `now`, belongs to this source: a gateway that went around
    /// another has the same epoch, but not the same address.
    pub(super) fn is_of(&self, epoch: u64, source: SocketAddr) -> bool {
        self.epoch == epoch && self.source.ip() == source.ip()
    }

    pub(super) fn refresh(&mut self, now: Instant, source: SocketAddr, lifetime: u32) {
        self.source = source;
        self.lifetime = lifetime;
        if self.remote.is_some() {
            self.expires = now + Duration::from_secs(u64::from(lifetime));
        }
    }
}

/// The success response's attributes.
fn connected(session: &Session, role: Role, local: SocketAddr, from: SocketAddr) -> Attributes {
    Attributes {
        data_address: Some(local),
        lifetime: session.leg(role).map(|leg| leg.lifetime),
        leg_state: Some(session.state_of(local)),
        mapped: Some(from),
        ..Attributes::default()
    }
}

fn pending(request: &Request<'_>, key: &IntegrityKey) -> Box<PendingAnswer> {
    Box::new(PendingAnswer {
        transaction: request.decoded.message.transaction,
        from: request.from(),
        local: request.local(),
        key: key.clone(),
    })
}

fn is_same(request: &Request<'_>, caller: &Caller, leg: &PeerLeg) -> bool {
    leg.epoch == caller.subject.epoch && leg.source == request.from()
}

/// Whether a Connect takes the place of a leg of its role: the peer attached anew, or a server on
/// the way went around the one that held the leg, which shows in fewer hops.
fn supersedes(caller: &Caller, ask: &Ask, leg: &PeerLeg) -> bool {
    let epoch = caller.subject.epoch;
    epoch > leg.epoch || (epoch == leg.epoch && ask.hops.len() < usize::from(leg.depth))
}

/// Keeps a client from pointing this server at what only this host can reach.
fn may_be_root(root: SocketAddr, client: SocketAddr) -> bool {
    let ip = root.ip().to_canonical();
    let broadcast = std::net::IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    let odd = ip.is_unspecified() || ip.is_multicast() || ip == broadcast || root.port() == 0;
    !odd && (!ip.is_loopback() || client.ip().to_canonical().is_loopback())
}
