//! TCP allocations: connections between clients and peers (RFC 6062).
//!
//! ```text
//! Connect ─▶ Attempt ─▶ Waiting ─▶ ConnectionBind ─▶ Bound: spliced by the shell, bytes both ways
//! a peer connects ────────▶ ConnectionAttempt
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use rawr_proto::{LongTermIntegrity, StunError};
use stun_types::message::{Message, MessageWrite};
use turn_types::attribute::{ConnectionId as IdAttribute, XorPeerAddress};
use turn_types::message::{CONNECTION_ATTEMPT, CONNECTION_BIND};

use super::allocate::mismatch;
use super::message::{Answer, Request, Success, bad_request, indication, put};
use crate::control::authenticate::Authenticated;
use crate::control::client::{Client, ConnectionId, Over};
use crate::control::command::{AttemptId, Command, ConnectError};
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::{Head, Refusal};
use crate::control::time::Now;

/// How long a peer may take to accept a connection, and a client to bind one (RFC 6062 §5.2, §5.4).
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections to peers, of all allocations, by each of their names.
#[derive(Debug, Default)]
pub(super) struct Peers {
    attempts: HashMap<AttemptId, Attempt>,
    /// By the number that clients know them by.
    ids: HashMap<u32, Place>,
    /// By the peer's stream, and by the client's that is bound to it.
    streams: HashMap<ConnectionId, Place>,
    attempts_made: u64,
}

/// Where a connection stands: in which allocation, and to which peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: Index,
    peer: SocketAddr,
}

/// A Connect whose answer waits for the peer.
#[derive(Debug)]
struct Attempt {
    place: Place,
    client: Client,
    head: Head,
    key: LongTermIntegrity,
}

/// The connections of one allocation: at most one to each peer.
#[derive(Debug, Default)]
pub(super) struct Connections(BTreeMap<SocketAddr, Connection>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Attempt {
        attempt: AttemptId,
        until: Instant,
    },
    /// For the client to bind it.
    Waiting {
        stream: ConnectionId,
        id: u32,
        until: Instant,
    },
    Bound {
        stream: ConnectionId,
        id: u32,
        client: ConnectionId,
    },
}

impl Connections {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|connection| connection.until()).min()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Connection {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Attempt { until, .. } | Self::Waiting { until, .. } => Some(*until),
            Self::Bound { .. } => None,
        }
    }
}

impl Peers {
    /// Whether the client's stream carries a peer's data, and no messages.
    pub(super) fn is_bound(&self, client: &Client) -> bool {
        client.connection().is_some_and(|connection| self.streams.contains_key(&connection))
    }
}

impl Server {
    /// Connect (RFC 6062 §5.2).
    pub(super) fn connect_peer(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let index = self.allocation_of(request, who)?;
        let is_tcp = self.turn.allocations.get(index).is_some_and(|it| it.connections.is_some());
        if !is_tcp {
            return Err(mismatch());
        }
        let asked = request.peer()?;
        let vetted = self.vet(index, asked)?;
        let peer = vetted.at(asked.port());
        let relay = self.turn.relay_at(peer);
        if peer.port() == 0 || vetted.is_relay() && relay.is_none() {
            return Err(Refusal::new(StunError::Forbidden, Count::PeerDenied));
        }
        let most = self.turn.limits.connections_per_allocation;
        let allocation = self.turn.allocations.get_mut(index).ok_or_else(mismatch)?;
        let local = allocation.relay_for(peer.ip()).ok_or_else(mismatch)?;
        let connections = allocation.connections.as_deref_mut().ok_or_else(mismatch)?;
        if connections.0.contains_key(&peer) {
            return Err(Refusal::new(StunError::ConnectionAlreadyExists, Count::BadRequest));
        }
        if connections.len() >= most {
            return Err(Refusal::new(StunError::InsufficientCapacity, Count::TurnCapacity));
        }
        self.turn.peers.attempts_made += 1;
        let attempt = AttemptId(self.turn.peers.attempts_made);
        let until = request.now.monotonic + PATIENCE;
        connections.0.insert(peer, Connection::Attempt { attempt, until });
        let (head, key) = (Head::of(request.message), who.key.clone());
        let waiting = Attempt { place: Place { index, peer }, client: request.client, head, key };
        self.turn.peers.attempts.insert(attempt, waiting);
        self.turn.allocations.arm_for(index, until);
        self.command(Command::Connect { attempt, local, to: relay.unwrap_or(peer) });
        Ok(Answer::Later)
    }

    /// A connection to a peer stands, or could not be made.
    pub fn peer_connected(
        &mut self,
        now: Now,
        attempt: AttemptId,
        result: Result<ConnectionId, ConnectError>,
    ) {
        let Some(waiting) = self.turn.peers.attempts.remove(&attempt) else {
            result.into_iter().for_each(|stream| self.command(Command::Close(stream)));
            return;
        };
        let Attempt { place, client, head, key } = waiting;
        match result {
            Ok(stream) => {
                let id = self.add_connection(now, place, stream);
                self.counters.add(Count::Connected);
                let success = Success { connection: Some(id), ..Success::default() };
                self.send_success(&client, &head, &key, &success);
            }
            Err(error) => {
                let code = match error {
                    ConnectError::Failed => StunError::ConnectionTimeoutOrFailure,
                    ConnectError::Exists => StunError::ConnectionAlreadyExists,
                };
                self.forget_connection(place);
                let refusal = Refusal::new(code, Count::NotConnected).signed(&key);
                self.refuse_stun(now, &client, &head, refusal);
            }
        }
    }

    /// A peer has connected to the relayed transport address `local` (RFC 6062 §5.3).
    pub fn peer_accepted(
        &mut self,
        now: Now,
        local: SocketAddr,
        peer: SocketAddr,
        stream: ConnectionId,
    ) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let is_relay = self.turn.allocations.by_relay(peer).is_some();
        let peer = if is_relay { self.turn.advertise(peer) } else { peer };
        let Some(index) = self.may_accept(now, local, peer) else {
            self.counters.add(Count::NoPermission);
            self.command(Command::Close(stream));
            return;
        };
        let place = Place { index, peer };
        self.give_way(now, place);
        let id = self.add_connection(now, place, stream);
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        let client = allocation.client;
        let transaction = self.rng.random::<u128>().into();
        let mut writer = indication(CONNECTION_ATTEMPT, transaction);
        put(&mut writer, &IdAttribute::new(id));
        put(&mut writer, &XorPeerAddress::new(peer, transaction));
        self.counters.add(Count::Connected);
        self.answer(&client, writer.finish());
    }

    /// The allocation that takes a connection from `peer`, if any does.
    fn may_accept(&self, now: Now, local: SocketAddr, peer: SocketAddr) -> Option<Index> {
        let index = self.turn.allocations.by_relay(local)?;
        let allocation = self.turn.allocations.get(index)?;
        let connections = allocation.connections.as_ref()?;
        let vetted = self.policy.vet(peer.ip()).ok()?;
        let has_place = match connections.0.get(&peer) {
            Some(Connection::Attempt { .. }) => true,
            Some(Connection::Waiting { .. } | Connection::Bound { .. }) => false,
            None => connections.len() < self.turn.limits.connections_per_allocation,
        };
        let may = has_place && allocation.permits(now.monotonic, vetted.ip());
        may.then_some(index)
    }

    /// Ends the attempt to reach a peer that has come by itself, from the same address: there is one
    /// connection between two addresses, and this one stands. Closing it would leave neither.
    fn give_way(&mut self, now: Now, place: Place) {
        let allocation = self.turn.allocations.get(place.index);
        let connections = allocation.and_then(|allocation| allocation.connections.as_ref());
        let connection = connections.and_then(|it| it.0.get(&place.peer)).copied();
        if let Some(Connection::Attempt { attempt, .. }) = connection {
            self.peer_connected(now, attempt, Err(ConnectError::Exists));
        }
    }

    fn add_connection(&mut self, now: Now, place: Place, stream: ConnectionId) -> u32 {
        let id = loop {
            let id = self.rng.random();
            if !self.turn.peers.ids.contains_key(&id) {
                break id;
            }
        };
        self.turn.peers.ids.insert(id, place);
        self.turn.peers.streams.insert(stream, place);
        let until = now.monotonic + PATIENCE;
        self.set_connection(place, Connection::Waiting { stream, id, until });
        self.turn.allocations.arm_for(place.index, until);
        id
    }

    /// The control connection of the allocation whose connection a ConnectionBind is about, where both
    /// come from the same host.
    pub(in crate::control) fn control_connection(
        &self,
        client: &Client,
        message: &Message<'_>,
    ) -> Option<Client> {
        let is_bind = message.has_method(CONNECTION_BIND);
        let id = is_bind.then(|| message.attribute::<IdAttribute>().ok())??.id();
        let place = self.turn.peers.ids.get(&id)?;
        let control = self.turn.allocations.get(place.index)?.client;
        (control.remote.ip() == client.remote.ip()).then_some(control)
    }

    /// ConnectionBind: a stream of the client becomes one with a peer's (RFC 6062 §5.4).
    pub(super) fn bind_connection(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let id = request.required::<IdAttribute>()?.id();
        let client = match request.client.over {
            Over::Tcp(client) | Over::Tls(client) => client,
            Over::Udp | Over::Dtls(_) => return Err(bad_request()),
        };
        let has_allocation = self.turn.allocations.by_client(&request.client).is_some();
        if has_allocation || self.turn.peers.is_bound(&request.client) {
            return Err(bad_request());
        }
        let place = *self.turn.peers.ids.get(&id).ok_or_else(bad_request)?;
        let allocation = self.turn.allocations.get(place.index).ok_or_else(bad_request)?;
        if !self.turn.users.is(allocation.user, &who.user) {
            return Err(Refusal::new(StunError::WrongCredentials, Count::WrongUser));
        }
        let connections = allocation.connections.as_ref();
        let Some(Connection::Waiting { stream, .. }) =
            connections.and_then(|it| it.0.get(&place.peer)).copied()
        else {
            return Err(bad_request());
        };
        self.set_connection(place, Connection::Bound { stream, id, client });
        self.turn.peers.streams.insert(client, place);
        self.counters.add(Count::ConnectionBind);
        // The answer is the last message on this stream: what follows is the peer's.
        let head = Head::of(request.message);
        self.send_success(&request.client, &head, &who.key, &Success::default());
        self.command(Command::Splice { client, peer: stream });
        Ok(Answer::Later)
    }

    /// Whether a stream that is gone was one of a connection to a peer, which goes with it.
    pub(super) fn peer_gone(&mut self, stream: ConnectionId) -> bool {
        let Some(place) = self.turn.peers.streams.get(&stream).copied() else { return false };
        self.forget_connection(place);
        true
    }

    /// Ends what has taken too long.
    pub(super) fn expire_connections(&mut self, now: Now, index: Index) {
        let allocation = self.turn.allocations.get(index);
        let connections = allocation.and_then(|allocation| allocation.connections.as_ref());
        let Some(connections) = connections else { return };
        let is_due = |it: &Connection| it.until().is_some_and(|until| until <= now.monotonic);
        let due = connections.0.iter().filter(|(_, it)| is_due(it));
        for (peer, connection) in due.map(|(peer, it)| (*peer, *it)).collect::<Vec<_>>() {
            self.counters.add(Count::ExpiredConnection);
            self.end_connection(Place { index, peer });
            if let Connection::Attempt { attempt, .. } = connection {
                self.peer_connected(now, attempt, Err(ConnectError::Failed));
            }
        }
    }

    /// Ends all connections of an allocation. Nobody is told of those that were being made.
    pub(super) fn close_connections(&mut self, index: Index) {
        let allocation = self.turn.allocations.get(index);
        let connections = allocation.and_then(|allocation| allocation.connections.as_ref());
        let Some(connections) = connections else { return };
        for (peer, connection) in connections.0.clone() {
            self.end_connection(Place { index, peer });
            if let Connection::Attempt { attempt, .. } = connection {
                self.turn.peers.attempts.remove(&attempt);
            }
        }
    }

    /// Closes a connection's stream, and forgets it.
    fn end_connection(&mut self, place: Place) {
        match self.forget_connection(place) {
            Some(Connection::Waiting { stream, .. } | Connection::Bound { stream, .. }) => {
                self.command(Command::Close(stream));
            }
            Some(Connection::Attempt { .. }) | None => {}
        }
    }

    fn forget_connection(&mut self, place: Place) -> Option<Connection> {
        let allocation = self.turn.allocations.get_mut(place.index)?;
        let connection = allocation.connections.as_deref_mut()?.0.remove(&place.peer)?;
        let peers = &mut self.turn.peers;
        match connection {
            Connection::Attempt { .. } => {}
            Connection::Waiting { stream, id, .. } => {
                peers.streams.remove(&stream);
                peers.ids.remove(&id);
            }
            Connection::Bound { stream, id, client } => {
                peers.streams.remove(&stream);
                peers.streams.remove(&client);
                peers.ids.remove(&id);
            }
        }
        Some(connection)
    }

    fn set_connection(&mut self, place: Place, connection: Connection) {
        let allocation = self.turn.allocations.get_mut(place.index);
        if let Some(connections) = allocation.and_then(|it| it.connections.as_deref_mut()) {
            connections.0.insert(place.peer, connection);
        }
    }
}
