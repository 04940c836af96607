//! The end of allocations, permissions and channels, and of all that hangs on them.

use std::net::IpAddr;
use std::time::Instant;

use super::allocation::{Allocation, Relay};
use crate::control::client::ConnectionId;
use crate::control::command::Command;
use crate::control::counters::Count;
use crate::control::deadline::Reason;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::time::Now;

/// Allocations whose alarms ring in one call: when thousands expire at once, requests come in between.
const MOST_AT_ONCE: usize = 256;

impl Server {
    /// When [`Server::expire_turn`] is due, and why.
    pub(in crate::control) fn turn_deadline(&self) -> Option<(Instant, Reason)> {
        let allocation = self.turn.allocations.alarms.first();
        let allocation = allocation.map(|(at, _)| (at, Reason::Allocation));
        let reservation = self.turn.reservations.next_deadline();
        let reservation = reservation.map(|at| (at, Reason::Reservation));
        allocation.into_iter().chain(reservation).min()
    }

    pub(in crate::control) fn expire_turn(&mut self, now: Now) {
        let due = std::iter::from_fn(|| self.turn.allocations.alarms.pop(now.monotonic));
        let due: Vec<Index> = due.take(MOST_AT_ONCE).collect();
        for index in due {
            if let Some(allocation) = self.turn.allocations.get_mut(index) {
                allocation.armed = None;
                self.expire_allocation(now, index);
            }
        }
        self.expire_reservations(now);
    }

    fn expire_allocation(&mut self, now: Now, index: Index) {
        let is_due = |relay: &mut Relay| relay.expires <= now.monotonic;
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let due: Vec<Relay> =
            allocation.relays.iter_mut().filter_map(|relay| relay.take_if(is_due)).collect();
        if !due.is_empty() {
            self.counters.add(Count::ExpiredAllocation);
            self.close_relays(index, &due);
        }
        self.expire_permissions(now, index);
        self.expire_channels(now, index);
        self.expire_connections(now, index);
        self.end_if_over(index);
        self.turn.allocations.arm(index);
    }

    fn expire_permissions(&mut self, now: Now, index: Index) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let is_due = |_: &IpAddr, expires: &mut Instant| *expires <= now.monotonic;
        let due: Vec<IpAddr> =
            allocation.permissions.extract_if(.., is_due).map(|(peer, _)| peer).collect();
        due.into_iter().for_each(|peer| self.settle_peer(now, index, peer));
    }

    fn expire_channels(&mut self, now: Now, index: Index) {
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        let due = allocation.channels.iter().filter(|(_, it)| it.expires <= now.monotonic);
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.remove_channel(index, number);
        }
    }

    /// Lets go of relayed transport addresses that have been taken out of their allocation, and of the
    /// channels and permissions that need them.
    pub(super) fn close_relays(&mut self, index: Index, relays: &[Relay]) {
        for Relay { local, .. } in relays {
            self.drop_peers(index, local.is_ipv4());
            self.turn.allocations.remove_relay(*local);
            self.command(Command::ClosePort { local: *local });
        }
    }

    /// Forgets channels and permissions of one family.
    fn drop_peers(&mut self, index: Index, is_ipv4: bool) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        allocation.permissions.retain(|peer, _| peer.is_ipv4() != is_ipv4);
        let of_family = allocation.peers.iter().filter(|(peer, _)| peer.is_ipv4() == is_ipv4);
        for number in of_family.map(|(_, number)| *number).collect::<Vec<_>>() {
            self.remove_channel(index, number);
        }
    }

    /// Removes an allocation that has no relayed transport address left.
    pub(super) fn end_if_over(&mut self, index: Index) {
        if self.turn.allocations.get(index).is_some_and(Allocation::is_over) {
            self.remove_allocation(index);
        }
    }

    /// Removes an allocation, and all that hangs on it.
    pub(super) fn remove_allocation(&mut self, index: Index) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let opening = allocation.opening.take();
        let relays: Vec<Relay> = allocation.relays.iter_mut().filter_map(Option::take).collect();
        if let Some(opening) = opening {
            self.abandon(&opening);
        }
        self.close_relays(index, &relays);
        self.close_connections(index);
        if let Some(allocation) = self.turn.allocations.remove(index) {
            self.turn.users.credit(allocation.user);
        }
    }

    /// A stream or a DTLS association is gone, of a client or of a peer. An allocation goes with the
    /// stream that it was made over (RFC 8656 §3.1), unless its client may come back from elsewhere
    /// (RFC 8016 §3.2).
    pub fn connection_gone(&mut self, _: Now, connection: ConnectionId) {
        if self.peer_gone(connection) {
            return;
        }
        self.bridge_connection_gone(connection);
        let Some(index) = self.turn.allocations.by_stream(connection) else { return };
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        if allocation.mobility.is_none() || allocation.opening.is_some() {
            self.counters.add(Count::LostAllocation);
            self.remove_allocation(index);
        }
    }
}
