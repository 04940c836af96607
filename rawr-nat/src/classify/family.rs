//! The classification of one family of addresses: everything at once, as soon as it can be asked.
//!
//! Six fresh sockets ask every server where they come from; the answers tell mapping and ports. Where
//! a server has another address (RFC 5780), they ask at its other three endpoints, too, and one more
//! socket, which has sent to the server alone, has it answer from there: that tells filtering. The first
//! two fresh sockets also write to each other's external endpoints: hairpinning. Local TCP ports do
//! as the fresh sockets. Datagrams that live for a few hops only find the next routers.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rawr_proto::{ChangeRequest, TransactionId};

use super::ask::{Ask, Due, Patience};
use super::binding::{self, Wish};
use super::config::ClassifyConfig;
use super::filter::Discovery;
use super::judge::{Observation, judge, majority};
use super::place::{Clues, Place};
use super::report::FamilyReport;
use super::{ClassifyOutput, StreamId};
use crate::nat::{Behaviour, Filtering, Mapping};
use crate::socket_id::SocketId;

/// Fresh sockets: enough for a majority, and for a pattern of ports where each has one mapping.
const FRESH: u32 = 6;
/// Local TCP ports.
const TCP_PORTS: u32 = 5;
const MAX_SERVERS: usize = 4;
/// Servers whose other addresses are used.
const MAX_DISCOVERIES: usize = 2;
/// How far routers are asked for. A carrier's NAT stands nearer.
const MAX_HOPS: u8 = 4;
/// External endpoints of a socket that hairpinning is tried with.
const MAX_AIMS: usize = 3;
/// Each family has so many ids of sockets, and of streams.
pub(super) const IDS: u32 = 64;

#[derive(Debug)]
pub(super) struct Family {
    is_ipv6: bool,
    own: Vec<IpAddr>,
    router_external: Option<IpAddr>,
    wants_tcp: bool,
    /// Servers, and what they have as other addresses.
    destinations: Vec<SocketAddr>,
    sockets: BTreeMap<SocketId, Socket>,
    asks: Vec<Ask<Purpose>>,
    streams: BTreeMap<StreamId, Stream>,
    next_socket: u32,
    next_stream: u32,
    discoveries: Vec<Discovery>,
    udp: Vec<Observation>,
    tcp: Vec<Observation>,
    /// External endpoints that hairpinning is tried with, and whose they are.
    aims: Vec<(SocketId, SocketAddr)>,
    hairpins: bool,
    routers: Vec<(u8, IpAddr)>,
    times: Times,
    order: u32,
    rng: StdRng,
    outputs: VecDeque<ClassifyOutput>,
}

#[derive(Debug)]
struct Socket {
    role: Role,
    /// Known once it is open.
    local: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Fresh,
    /// Hears from the other addresses of the discovery with this number.
    Filter(usize),
    /// Sends so far only.
    Router(u8),
}

/// What a request is to tell.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Map { order: u32 },
    Filter { discovery: usize, change: ChangeRequest },
    Hairpin { to: SocketId },
    Router,
}

#[derive(Debug)]
struct Stream {
    port: u32,
    to: SocketAddr,
    transaction: TransactionId,
    started: Instant,
    order: u32,
}

/// The least time that each server has taken to answer.
#[derive(Clone, Debug, Default)]
struct Times(BTreeMap<SocketAddr, Duration>);

impl Times {
    fn add(&mut self, server: SocketAddr, time: Duration) {
        let least = self.0.entry(server).or_insert(time);
        *least = time.min(*least);
    }

    fn least(&self) -> Option<Duration> {
        self.0.values().min().copied()
    }

    /// What the farthest server needs.
    fn patience(&self) -> Patience {
        self.0.values().max().map_or(Patience::UNKNOWN, |longest| Patience::of(*longest))
    }
}

impl Family {
    /// `None` where there is nobody to ask, or no address to ask from.
    pub(super) fn new(
        config: &ClassifyConfig,
        is_ipv6: bool,
        rng: StdRng,
        now: Instant,
    ) -> Option<Self> {
        let is_of_family = |ip: IpAddr| ip.is_ipv6() == is_ipv6;
        let own: Vec<_> = config.local.iter().copied().filter(|ip| is_of_family(*ip)).collect();
        let mut destinations = Vec::new();
        for server in config.servers.iter().filter(|server| is_of_family(server.ip())) {
            if !destinations.contains(server) && destinations.len() < MAX_SERVERS {
                destinations.push(*server);
            }
        }
        if own.is_empty() || destinations.is_empty() {
            return None;
        }
        let base = if is_ipv6 { IDS } else { 0 };
        let mut family = Self {
            is_ipv6,
            own,
            router_external: config.router_external.filter(|ip| is_of_family(*ip)),
            wants_tcp: config.tcp,
            destinations: destinations.clone(),
            sockets: BTreeMap::new(),
            asks: Vec::new(),
            streams: BTreeMap::new(),
            next_socket: base,
            next_stream: base,
            discoveries: Vec::new(),
            udp: Vec::new(),
            tcp: Vec::new(),
            aims: Vec::new(),
            hairpins: false,
            routers: Vec::new(),
            times: Times::default(),
            order: 0,
            rng,
            outputs: VecDeque::new(),
        };
        (0..FRESH).for_each(|_| family.open(Role::Fresh));
        // IPv6 is not shared among subscribers.
        let hops = if config.routers && !is_ipv6 { MAX_HOPS } else { 0 };
        (1..=hops).for_each(|hop| family.open(Role::Router(hop)));
        family.connect(now, &destinations);
        Some(family)
    }

    pub(super) const fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// A socket is open, at this address, or cannot be opened.
    pub(super) fn handle_opened(&mut self, now: Instant, id: SocketId, local: Option<SocketAddr>) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let role = socket.role;
        socket.local = local;
        if local.is_none() {
            self.sockets.remove(&id);
            return;
        }
        match role {
            Role::Fresh => self.map(now, id, &self.destinations.clone()),
            Role::Filter(discovery) => self.filter(now, id, discovery),
            Role::Router(hops) => {
                let server = self.destinations[0];
                self.ask(now, (id, server), Wish::default(), Purpose::Router);
                if let Some(ask) = self.asks.last_mut() {
                    ask.ttl = Some(hops);
                }
            }
        }
    }

    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        id: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) {
        if let Some(transaction) = binding::read_indication(bytes) {
            self.take_hairpin(id, transaction);
            return;
        }
        let Some(answer) = binding::read(bytes) else { return };
        let is_answered =
            |ask: &Ask<Purpose>| ask.socket == id && ask.transaction == answer.transaction;
        let Some(position) = self.asks.iter().position(is_answered) else { return };
        match self.asks[position].purpose {
            Purpose::Map { order } => {
                if from == self.asks[position].to {
                    let ask = self.asks.swap_remove(position);
                    self.take_mapping(now, &ask, order, answer);
                }
            }
            Purpose::Filter { discovery, change } => {
                self.asks.swap_remove(position);
                if let Some(discovery) = self.discoveries.get_mut(discovery) {
                    discovery.answered(change, from, answer.seen.is_some());
                }
            }
            Purpose::Router => {
                self.asks.swap_remove(position);
            }
            Purpose::Hairpin { .. } => {}
        }
    }

    /// A router has told that a datagram of this socket's lived too short to pass it.
    pub(super) fn handle_router(&mut self, id: SocketId, router: IpAddr) {
        let Some(Socket { role: Role::Router(hops), .. }) = self.sockets.get(&id) else { return };
        if !self.routers.contains(&(*hops, router)) {
            self.routers.push((*hops, router));
            self.routers.sort_unstable();
        }
        self.asks.retain(|ask| ask.socket != id);
    }

    /// A stream has brought its answer, or none.
    pub(super) fn handle_stream(
        &mut self,
        now: Instant,
        id: StreamId,
        answer: Option<(SocketAddr, &[u8])>,
    ) {
        let Some(stream) = self.streams.remove(&id) else { return };
        let Some((local, bytes)) = answer else { return };
        let answer = binding::read(bytes);
        let answer = answer.filter(|answer| answer.transaction == stream.transaction);
        let Some(seen) = answer.and_then(|answer| answer.seen) else { return };
        // A connection takes a round trip, too.
        let took = now.saturating_duration_since(stream.started);
        self.times.add(stream.to, took / 2);
        self.tcp.push(Observation {
            source: stream.port,
            local,
            to: stream.to,
            seen,
            order: stream.order,
            took,
        });
    }

    /// Sends what is due, and gives up what is overdue.
    pub(super) fn pump(&mut self, now: Instant) {
        let patience = self.times.patience();
        let outputs = &mut self.outputs;
        self.asks.retain_mut(|ask| match ask.poll(now, patience) {
            Due::Nothing => true,
            Due::GiveUp => false,
            Due::Send(bytes) => {
                let Ask { socket, to, ttl, .. } = *ask;
                outputs.push_back(ClassifyOutput::Transmit { socket, to, ttl, bytes });
                true
            }
        });
        self.streams.retain(|_, stream| now < stream.started + patience.whole());
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let patience = self.times.patience();
        let asks = self.asks.iter().map(|ask| ask.poll_timeout(patience));
        asks.chain(self.streams.values().map(|stream| stream.started + patience.whole())).min()
    }

    pub(super) fn poll_output(&mut self) -> Option<ClassifyOutput> {
        self.outputs.pop_front()
    }

    /// Whether nothing more can come but addresses of routers that keep silent, as many do.
    pub(super) fn is_done(&self) -> bool {
        let is_awaited =
            |ask: &Ask<Purpose>| !matches!(ask.purpose, Purpose::Router) || !ask.is_repeated();
        self.streams.is_empty()
            && !self.asks.iter().any(is_awaited)
            && self.sockets.values().all(|socket| socket.local.is_some())
    }

    pub(super) fn report(&self) -> FamilyReport {
        let (udp, udp_evidence) = judge(&self.udp, &self.own).unzip();
        let (tcp, tcp_evidence) = judge(&self.tcp, &self.own).unzip();
        let udp = udp.map(|behaviour| self.completed(behaviour));
        let fresh = self.sockets.values().filter(|socket| socket.role == Role::Fresh);
        let local = majority(fresh.filter_map(|socket| Some(socket.local?.ip())));
        let seen: Option<Behaviour> = udp.or(tcp);
        let clues = Clues {
            local,
            external: seen.map(|behaviour| behaviour.external),
            router_external: self.router_external,
            routers: &self.routers,
            is_translated: seen.is_some_and(|behaviour| behaviour.mapping != Mapping::None),
        };
        let Place { carrier_grade, double_nat } = clues.judge();
        FamilyReport {
            udp,
            udp_evidence: udp_evidence.unwrap_or_default(),
            tcp,
            tcp_evidence: tcp_evidence.unwrap_or_default(),
            local,
            routers: self.routers.clone(),
            carrier_grade,
            double_nat: double_nat.filter(|_| seen.is_some()),
            discovery: self.discoveries.iter().map(|discovery| discovery.server).collect(),
            mapping_lifetime: None,
            round_trip: self.times.least(),
        }
    }

    /// With what the other tests tell. One that the end of the report has cut short tells nothing.
    fn completed(&self, behaviour: Behaviour) -> Behaviour {
        let has_answered = |address| self.udp.iter().any(|each| each.to == address);
        let cut_short =
            |is_of_test: fn(&Purpose) -> bool| self.asks.iter().any(|ask| is_of_test(&ask.purpose));
        let no_filter = cut_short(|purpose| matches!(purpose, Purpose::Filter { .. }));
        let known = self.discoveries.iter().filter_map(|each| each.filtering(has_answered));
        // An answer that came through is proof, one that did not may have been lost.
        let filtering = known.min_by_key(|filtering| *filtering as u8);
        let is_open = filtering == Some(Filtering::EndpointIndependent);
        let no_hairpin = cut_short(|purpose| matches!(purpose, Purpose::Hairpin { .. }))
            || self.aims.is_empty()
            || behaviour.mapping == Mapping::None;
        Behaviour {
            filtering: filtering.filter(|_| is_open || !no_filter),
            hairpins: (!no_hairpin).then_some(self.hairpins),
            ..behaviour
        }
    }

    fn take_mapping(
        &mut self,
        now: Instant,
        ask: &Ask<Purpose>,
        order: u32,
        answer: binding::Answer,
    ) {
        let took = now.saturating_duration_since(ask.first);
        self.times.add(ask.to, took);
        let local = self.sockets.get(&ask.socket).and_then(|socket| socket.local);
        let Some((local, seen)) = local.zip(answer.seen) else { return };
        let source = ask.socket.0;
        self.udp.push(Observation { source, local, to: ask.to, seen, order, took });
        if let Some(discovery) = answer.other.and_then(|other| Discovery::new(ask.to, other)) {
            self.discover(now, discovery);
        }
        self.aim(now, ask.socket, local, seen);
    }

    /// Uses a server's other addresses.
    fn discover(&mut self, now: Instant, discovery: Discovery) {
        let is_known =
            self.discoveries.iter().any(|known| known.endpoints().contains(&discovery.server));
        if is_known || self.discoveries.len() >= MAX_DISCOVERIES {
            return;
        }
        let mut further = discovery.endpoints().to_vec();
        further.retain(|endpoint| !self.destinations.contains(endpoint));
        self.destinations.extend(&further);
        let fresh: Vec<_> = self.fresh().collect();
        for socket in fresh {
            self.map(now, socket, &further);
        }
        self.connect(now, &further);
        self.discoveries.push(discovery);
        self.open(Role::Filter(self.discoveries.len() - 1));
    }

    /// Fresh sockets that are open.
    fn fresh(&self) -> impl Iterator<Item = SocketId> {
        let open = self.sockets.iter().filter(|(_, socket)| socket.local.is_some());
        open.filter(|(_, socket)| socket.role == Role::Fresh).map(|(id, _)| *id)
    }

    fn map(&mut self, now: Instant, socket: SocketId, destinations: &[SocketAddr]) {
        for to in destinations {
            let order = self.next_order();
            self.ask(now, (socket, *to), Wish::default(), Purpose::Map { order });
        }
    }

    fn filter(&mut self, now: Instant, socket: SocketId, number: usize) {
        let Some(discovery) = self.discoveries.get_mut(number) else { return };
        discovery.is_asked = true;
        let server = discovery.server;
        for change in Discovery::CHANGES {
            let wish = Wish { change: Some(change), port: None };
            self.ask(now, (socket, server), wish, Purpose::Filter { discovery: number, change });
        }
    }

    /// Has the other of the first two fresh sockets write to where `of` seems to be.
    fn aim(&mut self, now: Instant, of: SocketId, local: SocketAddr, seen: SocketAddr) {
        let pair: Vec<_> = self.fresh().take(2).collect();
        let Some(other) = pair.iter().copied().find(|id| *id != of) else { return };
        let aims = self.aims.iter().filter(|(id, _)| *id == of).count();
        let is_known = self.aims.contains(&(of, seen));
        if !pair.contains(&of) || local == seen || is_known || aims >= MAX_AIMS {
            return;
        }
        self.aims.push((of, seen));
        let transaction = TransactionId(self.rng.random());
        let message = (transaction, binding::indication(transaction));
        self.asks.push(Ask::new(other, seen, message, Purpose::Hairpin { to: of }, now));
    }

    fn take_hairpin(&mut self, id: SocketId, transaction: TransactionId) {
        let is_ours = self.asks.iter().any(|ask| {
            matches!(ask.purpose, Purpose::Hairpin { to } if to == id)
                && ask.transaction == transaction
        });
        if is_ours {
            self.hairpins = true;
            self.asks.retain(|ask| !matches!(ask.purpose, Purpose::Hairpin { .. }));
        }
    }

    fn connect(&mut self, now: Instant, destinations: &[SocketAddr]) {
        let ports = if self.wants_tcp { TCP_PORTS } else { 0 };
        for port in 0..ports {
            for to in destinations.iter().copied() {
                let id = StreamId(self.next_stream);
                self.next_stream += 1;
                let transaction = TransactionId(self.rng.random());
                let bytes = binding::request(transaction, Wish::default());
                let order = self.next_order();
                let stream = Stream { port, to, transaction, started: now, order };
                self.streams.insert(id, stream);
                self.outputs.push_back(ClassifyOutput::Connect { stream: id, port, to, bytes });
            }
        }
    }

    fn open(&mut self, role: Role) {
        let id = SocketId(self.next_socket);
        self.next_socket += 1;
        self.sockets.insert(id, Socket { role, local: None });
        self.outputs.push_back(ClassifyOutput::Open { socket: id, is_ipv6: self.is_ipv6 });
    }

    fn ask(
        &mut self,
        now: Instant,
        (socket, to): (SocketId, SocketAddr),
        wish: Wish,
        purpose: Purpose,
    ) {
        let transaction = TransactionId(self.rng.random());
        let message = (transaction, binding::request(transaction, wish));
        self.asks.push(Ask::new(socket, to, message, purpose, now));
    }

    fn next_order(&mut self) -> u32 {
        self.order += 1;
        self.order
    }
}
