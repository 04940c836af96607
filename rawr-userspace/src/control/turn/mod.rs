//! TURN (RFC 8656), its TCP allocations (RFC 6062) and its mobility (RFC 8016).
//!
//! ```text
//! handle_control ─▶ message ─▶ authenticate ─▶ allocate │ refresh │ permission │ channel │ tcp
//!                      │                          └─▶ opening    ports are opened meanwhile
//!                      └─▶ relay: Send, ChannelData ─▶ peer
//! handle_data ────────────▶ relay: Data, ChannelData ─▶ client
//! every change of a channel ─▶ forward: what the data plane forwards by itself
//! ```
//!
//! An allocation is found by its 5-tuple or by its relayed transport address, each with one look-up;
//! within it, permissions and channels are ordered maps. Nothing is kept for a request before it has
//! been authenticated.

mod address;
mod allocate;
mod allocation;
mod channel;
mod config;
mod expire;
mod forward;
mod limit;
mod message;
mod mobility;
mod opening;
mod permission;
mod refresh;
mod relay;
mod reservation;
mod snapshot;
mod store;
mod tcp;
mod view;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::Rng;
use rand::rngs::StdRng;

pub use config::{TurnConfig, TurnLimits};
pub(super) use message::is_turn;
pub use relay::Icmp;
pub(super) use snapshot::{TurnRecord, TurnView};
pub use view::{AllocationView, ChannelFlows};

use super::command::PortId;
use super::config::ServerConfig;
use address::Addresses;
use limit::Users;
use mobility::Tickets;
use opening::Awaited;
use reservation::Reservations;
use store::Allocations;
use tcp::Peers;

/// All that the server keeps for TURN.
#[derive(Debug)]
pub(super) struct Turn {
    allocations: Allocations,
    users: Users,
    reservations: Reservations,
    tickets: Tickets,
    peers: Peers,
    /// Ports that have been asked for.
    awaited: HashMap<PortId, Awaited>,
    ports_asked: u64,
    addresses: Addresses,
    /// Our addresses, and what peers see in their place.
    advertised: Vec<(IpAddr, IpAddr)>,
    limits: TurnLimits,
    /// What the buckets' time counts from.
    origin: Instant,
}

impl Turn {
    /// Bit of a [`PortId`] that says that it is ours and not a session's.
    const PORT: u64 = 1 << 63;

    pub(super) fn new(config: &ServerConfig, rng: &mut StdRng, origin: Instant) -> Self {
        Self {
            allocations: Allocations::default(),
            users: Users::default(),
            reservations: Reservations::default(),
            tickets: Tickets::new(rng.random()),
            peers: Peers::default(),
            awaited: HashMap::new(),
            ports_asked: 0,
            addresses: Addresses::new(&config.turn),
            advertised: config.turn.advertised.clone(),
            limits: config.turn.limits,
            origin,
        }
    }

    /// The addresses of this host's interfaces.
    pub(super) fn set_host(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.set_host(addresses);
    }

    /// Whether TURN asked for the port `id`.
    pub(super) fn asked_for(id: PortId) -> bool {
        id.0 & Self::PORT != 0
    }

    /// What peers see of the relayed transport address `local`.
    fn advertise(&self, local: SocketAddr) -> SocketAddr {
        let seen = self.advertised.iter().find(|(bound, _)| *bound == local.ip());
        seen.map_or(local, |(_, seen)| SocketAddr::new(*seen, local.port()))
    }

    /// Where a datagram to `peer` really goes, if one of our addresses is advertised as that.
    fn resolve(&self, peer: SocketAddr) -> SocketAddr {
        let bound = self.advertised.iter().find(|(_, seen)| *seen == peer.ip());
        bound.map_or(peer, |(bound, _)| SocketAddr::new(*bound, peer.port()))
    }

    /// The relayed transport address that peers see as `peer`, if it is one.
    fn relay_at(&self, peer: SocketAddr) -> Option<SocketAddr> {
        Some(self.resolve(peer)).filter(|target| self.allocations.by_relay(*target).is_some())
    }
}

#[cfg(test)]
mod tests {
    use rand::CryptoRng;

    use crate::control::server::Server;

    /// Tokens, tickets, connection numbers and transactions must not be guessed.
    #[test]
    fn random_numbers_come_from_a_generator_for_secrets() {
        fn assert_for_secrets<R: CryptoRng>(_: fn(&Server) -> &R) {}
        assert_for_secrets(|server| &server.rng);
    }
}
