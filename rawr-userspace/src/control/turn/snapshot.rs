//! Allocations over a restart: those of clients over UDP. Streams end with the daemon that holds them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_proto::ChannelNumber;
use serde::{Deserialize, Serialize, Serializer};

use super::allocation::{Allocation, Channel, Relay};
use super::mobility::{Mobility, Tickets};
use crate::control::client::{Client, Over};
use crate::control::server::Server;
use crate::control::snapshot::Hex;
use crate::control::time::Now;

/// What is read back.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::control) struct TurnRecord {
    ticket_key: Hex<32>,
    allocations: Vec<AllocationRecord>,
}

/// The same as it is written: nothing is copied for it.
#[derive(Serialize)]
pub(in crate::control) struct TurnView<'a> {
    ticket_key: Hex<32>,
    allocations: Records<'a>,
}

struct Records<'a> {
    server: &'a Server,
    now: Now,
}

/// An allocation. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AllocationRecord {
    local: SocketAddr,
    remote: SocketAddr,
    user: String,
    transaction: Hex<16>,
    group: u64,
    relays: Vec<(SocketAddr, u64)>,
    permissions: Vec<(IpAddr, u64)>,
    channels: Vec<(u16, SocketAddr, u64)>,
    /// Of the ticket that its client holds.
    serial: Option<u64>,
}

impl TurnRecord {
    pub(in crate::control) fn len(&self) -> usize {
        self.allocations.len()
    }
}

impl Serialize for Records<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let allocations = self.server.turn.allocations.iter();
        let records = allocations.filter_map(|(_, it)| self.server.allocation_record(it, self.now));
        serializer.collect_seq(records)
    }
}

impl Server {
    pub(in crate::control) fn turn_view(&self, now: Now) -> TurnView<'_> {
        let ticket_key = Hex(*self.turn.tickets.key());
        TurnView { ticket_key, allocations: Records { server: self, now } }
    }

    fn allocation_record(&self, allocation: &Allocation, now: Now) -> Option<AllocationRecord> {
        let Client { local, remote, over: Over::Udp } = allocation.client else { return None };
        let at = |at: Instant| u64::try_from(now.unix_at(at).as_millis()).unwrap_or(u64::MAX);
        let relays = allocation.relays.iter().flatten().map(|it| (it.local, at(it.expires)));
        let relays: Vec<_> = relays.collect();
        let channels = allocation.channels.iter();
        let user = self.turn.users.name(allocation.user)?.to_string();
        (!relays.is_empty()).then(|| AllocationRecord {
            local,
            remote,
            user,
            transaction: Hex(u128::from(allocation.transaction).to_be_bytes()),
            group: allocation.group,
            relays,
            permissions: allocation.permissions.iter().map(|(it, end)| (*it, at(*end))).collect(),
            channels: channels.map(|(no, it)| (no.number(), it.peer, at(it.expires))).collect(),
            serial: allocation.mobility.as_ref().map(|mobility| mobility.serial),
        })
    }

    pub(in crate::control) fn restore_turn(&mut self, now: Now, record: TurnRecord) {
        self.turn.tickets = Tickets::new(record.ticket_key.0);
        let relays = record.allocations.iter().flat_map(|record| &record.relays);
        relays.for_each(|(local, _)| self.policy.add_relay(local.ip()));
        for record in record.allocations {
            self.restore_allocation(now, record);
        }
    }

    /// Takes up an allocation again. Its ports are asked for anew; the data plane is told of its channels
    /// when they are open.
    fn restore_allocation(&mut self, now: Now, record: AllocationRecord) {
        let client = Client::udp(record.local, record.remote);
        let at = |millis| Some(now.instant_at(Duration::from_millis(millis)));
        let left = |millis| at(millis).filter(|at: &Instant| *at > now.monotonic);
        let relays = record.relays.into_iter();
        let relays: Vec<Relay> = relays
            .filter_map(|(local, end)| left(end).map(|expires| Relay { local, expires }))
            .collect();
        if relays.is_empty() || self.turn.allocations.by_client(&client).is_some() {
            return;
        }
        let user = self.turn.users.charge_anyway(&record.user.into());
        let transaction = u128::from_be_bytes(record.transaction.0).into();
        let mut allocation = Allocation::new(client, user, transaction, record.group);
        allocation.mobility = record.serial.map(|serial| Box::new(Mobility::new(serial)));
        for (peer, end) in record.permissions {
            // The rules may be others now.
            if let (Some(expires), Ok(peer)) = (left(end), self.policy.vet(peer)) {
                allocation.permissions.insert(peer.ip(), expires);
            }
        }
        for (number, peer, end) in record.channels {
            let number = ChannelNumber::new(number);
            if let (Some(number), Some(expires), Ok(vetted)) =
                (number, left(end), self.policy.vet(peer.ip()))
            {
                let channel = Channel { peer, vetted, expires, forwards: None };
                allocation.channels.insert(number, Box::new(channel));
                allocation.peers.insert(peer, number);
            }
        }
        let index = self.turn.allocations.insert(allocation);
        self.reopen_relays(index, &relays);
    }
}
