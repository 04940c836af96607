//! What TURN shows of itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::allocation::{Allocation, Way};
use crate::control::client::Client;
use crate::control::server::Server;
use crate::control::time::Now;
use crate::dataplane::{Counters, FlowKey};

/// An allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationView {
    pub client: Client,
    pub user: Arc<str>,
    /// Its relayed transport addresses, as they are bound here.
    pub relayed: Vec<SocketAddr>,
    /// Whether it is a TCP allocation (RFC 6062).
    pub is_tcp: bool,
    /// Whether its client may move (RFC 8016).
    pub is_mobile: bool,
    pub permissions: usize,
    pub channels: usize,
    /// Channels that the data plane has been asked to forward.
    pub flows: Vec<ChannelFlows>,
    /// TCP connections to peers.
    pub connections: usize,
    /// What is left of the lifetime.
    pub expires_in: Duration,
    /// What userspace has relayed to peers.
    pub to_peers: Counters,
    /// What userspace has relayed to the client.
    pub to_client: Counters,
}

/// The two flows of a channel in the data plane, by where they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelFlows {
    pub from_client: FlowKey,
    pub from_peer: FlowKey,
}

impl Server {
    /// All allocations whose ports are open.
    pub fn allocations(&self, now: Now) -> impl Iterator<Item = AllocationView> {
        let allocations = self.turn.allocations.iter().map(|(_, allocation)| allocation);
        let open = allocations.filter(|allocation| allocation.opening.is_none());
        open.map(move |allocation| self.view(now, allocation))
    }

    /// How many allocations there are.
    pub fn allocation_count(&self) -> usize {
        self.turn.allocations.len()
    }

    /// How many ports are reserved.
    pub fn reservation_count(&self) -> usize {
        self.turn.reservations.len()
    }

    /// How many users hold an allocation or a reserved port.
    pub fn turn_user_count(&self) -> usize {
        self.turn.users.len()
    }

    fn view(&self, now: Now, allocation: &Allocation) -> AllocationView {
        let expires = allocation.relays.iter().flatten().map(|relay| relay.expires).max();
        let flows = allocation.channels.iter().filter_map(|(number, channel)| {
            let from_client = allocation.client_leg(*number).key();
            Some(ChannelFlows { from_client, from_peer: channel.forwards?.key() })
        });
        AllocationView {
            client: allocation.client,
            user: self.turn.users.name(allocation.user).cloned().unwrap_or_else(|| "".into()),
            relayed: allocation.locals().collect(),
            is_tcp: allocation.connections.is_some(),
            is_mobile: allocation.mobility.is_some(),
            permissions: allocation.permissions.len(),
            channels: allocation.channels.len(),
            flows: flows.collect(),
            connections: allocation.connections.as_ref().map_or(0, |it| it.len()),
            expires_in: expires
                .map_or(Duration::ZERO, |at| at.saturating_duration_since(now.monotonic)),
            to_peers: allocation.traffic[Way::ToPeer as usize],
            to_client: allocation.traffic[Way::ToClient as usize],
        }
    }
}
