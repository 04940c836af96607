//! All allocations: by 5-tuple, by relayed transport address, and by deadline.

use std::collections::HashMap;
use std::net::SocketAddr;

use slab::Slab;

use super::allocation::Allocation;
use crate::control::client::{Client, ConnectionId};
use crate::control::deadline::Alarms;
use crate::control::store::Index;

#[derive(Debug, Default)]
pub(super) struct Allocations {
    slab: Slab<Box<Allocation>>,
    clients: HashMap<Client, Index>,
    /// Of those clients that speak over a stream or a DTLS association.
    streams: HashMap<ConnectionId, Index>,
    relays: HashMap<SocketAddr, Index>,
    pub(super) alarms: Alarms,
}

impl Allocations {
    /// Takes in an allocation whose 5-tuple has none.
    pub(super) fn insert(&mut self, allocation: Allocation) -> Index {
        let client = allocation.client;
        let index = self.slab.insert(Box::new(allocation)) as Index;
        self.add_client(client, index);
        index
    }

    /// Takes out an allocation whose relayed transport addresses have been taken out.
    pub(super) fn remove(&mut self, index: Index) -> Option<Box<Allocation>> {
        let mut allocation = self.slab.try_remove(index as usize)?;
        self.remove_client(&allocation.client);
        self.alarms.disarm(index, &mut allocation.armed);
        Some(allocation)
    }

    /// Gives the allocation another 5-tuple, which has none; returns the one that it had.
    pub(super) fn rename(&mut self, index: Index, client: Client) -> Option<Client> {
        let allocation = self.slab.get_mut(index as usize)?;
        let before = std::mem::replace(&mut allocation.client, client);
        self.remove_client(&before);
        self.add_client(client, index);
        Some(before)
    }

    pub(super) fn add_relay(&mut self, local: SocketAddr, index: Index) {
        self.relays.insert(local, index);
    }

    pub(super) fn remove_relay(&mut self, local: SocketAddr) {
        self.relays.remove(&local);
    }

    pub(super) fn get(&self, index: Index) -> Option<&Allocation> {
        self.slab.get(index as usize).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, index: Index) -> Option<&mut Allocation> {
        self.slab.get_mut(index as usize).map(Box::as_mut)
    }

    pub(super) fn by_client(&self, client: &Client) -> Option<Index> {
        self.clients.get(client).copied()
    }

    pub(super) fn by_stream(&self, connection: ConnectionId) -> Option<Index> {
        self.streams.get(&connection).copied()
    }

    pub(super) fn by_relay(&self, local: SocketAddr) -> Option<Index> {
        self.relays.get(&local).copied()
    }

    /// Makes sure that the allocation's alarm rings at its next deadline or earlier.
    pub(super) fn arm(&mut self, index: Index) {
        let Some(allocation) = self.slab.get_mut(index as usize) else { return };
        let due = allocation.next_deadline();
        self.alarms.arm(index, &mut allocation.armed, due);
    }

    /// The same for a deadline that has just been set.
    pub(super) fn arm_for(&mut self, index: Index, due: std::time::Instant) {
        let Some(allocation) = self.slab.get_mut(index as usize) else { return };
        self.alarms.arm(index, &mut allocation.armed, Some(due));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &Allocation)> {
        self.slab.iter().map(|(index, allocation)| (index as Index, allocation.as_ref()))
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    fn add_client(&mut self, client: Client, index: Index) {
        self.clients.insert(client, index);
        if let Some(connection) = client.connection() {
            self.streams.insert(connection, index);
        }
    }

    fn remove_client(&mut self, client: &Client) {
        self.clients.remove(client);
        if let Some(connection) = client.connection() {
            self.streams.remove(&connection);
        }
    }
}
