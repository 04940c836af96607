//! While ports are being opened for an allocation, and what becomes of it then.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_proto::{LongTermIntegrity, StunError};
use stun_types::AddressFamily;

use super::Turn;
use super::allocation::{Relay, family_of, place};
use super::limit::UserIndex;
use crate::control::command::{Command, On, Parity, PortError, PortId, PortKind};
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::{Head, Refusal};
use crate::control::time::Now;

/// The family that no address was found of, and why.
pub(super) type Missing = Option<(AddressFamily, StunError)>;

/// An allocation whose ports are not all open yet.
#[derive(Debug)]
pub(super) struct Opening {
    /// To the Allocate; `None` for an allocation that there was before a restart.
    answer: Option<(Head, LongTermIntegrity)>,
    lifetime: Duration,
    /// Those that are not open yet.
    ports: Vec<PortId>,
    refused: Missing,
}

impl Opening {
    pub(super) fn new(
        answer: (Head, LongTermIntegrity),
        lifetime: Duration,
        refused: Missing,
    ) -> Self {
        Self { answer: Some(answer), lifetime, ports: Vec::new(), refused }
    }
}

/// A port to open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) family: AddressFamily,
    pub(super) address: IpAddr,
}

/// A port that has been asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    /// `None` once the allocation is gone.
    index: Option<Index>,
    family: AddressFamily,
    kind: PortKind,
    /// Who is charged for the next port, if that is to be reserved.
    charged: Option<UserIndex>,
    /// Of a relayed transport address from before a restart: when it expires.
    restored: Option<Instant>,
}

impl Server {
    /// Asks for an allocation's ports. Who is charged for a reserved one beside its allocation is
    /// told when that is open.
    pub(super) fn open_relays(
        &mut self,
        index: Index,
        mut opening: Opening,
        kind: PortKind,
        wants: &[Want],
    ) {
        let user = self.turn.allocations.get(index).map(|allocation| allocation.user);
        let charged = user.filter(|_| kind == PortKind::Udp(Parity::EvenAndNext));
        for Want { family, address } in wants {
            let (index, family) = (Some(index), *family);
            let awaited = Awaited { index, family, kind, charged, restored: None };
            opening.ports.push(self.open_relay(awaited, On::Address(*address)));
        }
        if let Some(allocation) = self.turn.allocations.get_mut(index) {
            allocation.opening = Some(Box::new(opening));
        }
    }

    /// Asks for the ports of relayed transport addresses that there were before a restart.
    pub(super) fn reopen_relays(&mut self, index: Index, relays: &[Relay]) {
        let kind = PortKind::Udp(Parity::Any);
        let ports = relays.iter().map(|relay| {
            let family = family_of(relay.local.ip());
            let restored = Some(relay.expires);
            let awaited = Awaited { index: Some(index), family, kind, charged: None, restored };
            self.open_relay(awaited, On::Exactly(relay.local))
        });
        let ports = ports.collect();
        let opening = Opening { answer: None, lifetime: Duration::ZERO, ports, refused: None };
        if let Some(allocation) = self.turn.allocations.get_mut(index) {
            allocation.opening = Some(Box::new(opening));
        }
    }

    fn open_relay(&mut self, awaited: Awaited, on: On) -> PortId {
        self.turn.ports_asked = (self.turn.ports_asked + 1) & !Turn::PORT;
        let id = PortId(self.turn.ports_asked | Turn::PORT);
        self.turn.awaited.insert(id, awaited);
        self.command(Command::OpenPort { id, on, kind: awaited.kind });
        id
    }

    /// The shell has opened the port of a relayed transport address, or failed to.
    pub(in crate::control) fn relay_opened(
        &mut self,
        now: Now,
        id: PortId,
        result: Result<SocketAddr, PortError>,
    ) {
        let Some(awaited) = self.turn.awaited.remove(&id) else {
            result.into_iter().for_each(|local| self.command(Command::ClosePort { local }));
            return;
        };
        let next = awaited.charged.zip(result.ok()).and_then(|(user, local)| {
            let port = local.port().checked_add(1)?;
            Some((user, SocketAddr::new(local.ip(), port)))
        });
        match (awaited.index, next) {
            (Some(index), Some((user, next))) => self.reserve(now, index, user, next),
            (None, Some((user, next))) => {
                self.turn.users.credit(user);
                self.command(Command::ClosePort { local: next });
            }
            (_, None) => awaited.charged.into_iter().for_each(|user| self.turn.users.credit(user)),
        }
        match (awaited.index, result) {
            (Some(index), Ok(local)) => self.add_relay(now, index, &awaited, local),
            (Some(index), Err(error)) => self.relay_refused(index, awaited.family, error),
            (None, result) => {
                result.into_iter().for_each(|local| self.command(Command::ClosePort { local }));
            }
        }
        let Some(index) = awaited.index else { return };
        let allocation = self.turn.allocations.get_mut(index);
        let Some(opening) = allocation.and_then(|it| it.opening.as_deref_mut()) else { return };
        opening.ports.retain(|port| *port != id);
        if opening.ports.is_empty() {
            self.finish_opening(now, index);
        }
    }

    fn add_relay(&mut self, now: Now, index: Index, awaited: &Awaited, local: SocketAddr) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let lifetime = allocation.opening.as_ref().map(|opening| opening.lifetime);
        let expires =
            awaited.restored.or_else(|| lifetime.map(|lifetime| now.monotonic + lifetime));
        let expires = expires.unwrap_or(now.monotonic);
        allocation.relays[place(awaited.family)] = Some(Relay { local, expires });
        self.turn.allocations.add_relay(local, index);
        self.policy.add_relay(local.ip());
        self.policy.add_relay(self.turn.advertise(local).ip());
    }

    fn relay_refused(&mut self, index: Index, family: AddressFamily, error: PortError) {
        self.counters.add(Count::NoPorts);
        let code = match error {
            PortError::Exhausted | PortError::System => StunError::InsufficientCapacity,
            PortError::Unreachable => StunError::AddressFamilyNotSupported,
        };
        let allocation = self.turn.allocations.get_mut(index);
        if let Some(opening) = allocation.and_then(|allocation| allocation.opening.as_mut()) {
            opening.refused = Some((family, code));
        }
    }

    fn finish_opening(&mut self, now: Now, index: Index) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let Some(opening) = allocation.opening.take() else { return };
        let Opening { answer, refused, .. } = *opening;
        let client = allocation.client;
        if allocation.is_over() {
            let code = refused.map_or(StunError::InsufficientCapacity, |(_, code)| code);
            if let Some((head, key)) = answer {
                let refusal = Refusal::new(code, Count::TurnCapacity).signed(&key);
                self.refuse_stun(now, &client, &head, refusal);
            }
            self.remove_allocation(index);
            return;
        }
        self.turn.allocations.arm(index);
        self.settle_channels(now, index);
        let Some((head, key)) = answer else { return };
        self.counters.add(Count::Allocate);
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        let mut success = self.allocated(now, index, allocation);
        success.refused = refused;
        self.send_success(&client, &head, &key, &success);
    }

    /// Lets go of the ports that are being opened for an allocation that goes: they are closed when
    /// they are open.
    pub(super) fn abandon(&mut self, opening: &Opening) {
        for id in &opening.ports {
            if let Some(awaited) = self.turn.awaited.get_mut(id) {
                awaited.index = None;
            }
        }
    }
}
