//! Ports that are reserved for a later Allocate (RFC 8656 §7.2, EVEN-PORT and RESERVATION-TOKEN).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rawr_proto::StunError;

use super::Turn;
use super::limit::UserIndex;
use crate::control::command::Command;
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::Refusal;
use crate::control::time::Now;

/// How long a port is reserved (RFC 8656 §7.2 asks for 30 seconds or more).
const LIFETIME: Duration = Duration::from_secs(30);

/// Reserved ports by their tokens. Each is charged to its user like an allocation.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    ports: HashMap<u64, Reserved>,
    /// In the order of their time.
    queue: VecDeque<(Instant, u64)>,
}

#[derive(Debug)]
struct Reserved {
    local: SocketAddr,
    user: UserIndex,
}

impl Reservations {
    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }
}

impl Turn {
    /// Takes a reserved port, and with it the charge for it.
    pub(super) fn take_reservation(
        &mut self,
        token: u64,
        user: &Arc<str>,
    ) -> Result<(SocketAddr, UserIndex), Refusal> {
        self.forget_taken();
        let Self { reservations, users, .. } = self;
        let refusal = || Refusal::new(StunError::InsufficientCapacity, Count::TurnToken);
        let reserved = reservations.ports.get(&token).ok_or_else(refusal)?;
        // Who learns of another user's token cannot take its port.
        if !users.is(reserved.user, user) {
            return Err(refusal());
        }
        let Reserved { local, user } = reservations.ports.remove(&token).ok_or_else(refusal)?;
        Ok((local, user))
    }

    /// Drops what has been taken from the front of the queue, so that it stays as short as it can.
    fn forget_taken(&mut self) {
        let Reservations { ports, queue } = &mut self.reservations;
        while queue.pop_front_if(|(_, token)| !ports.contains_key(token)).is_some() {}
    }
}

impl Server {
    /// Keeps the port `next` for another Allocate of the user.
    pub(super) fn reserve(&mut self, now: Now, index: Index, user: UserIndex, next: SocketAddr) {
        let token = loop {
            let token = self.rng.random();
            if !self.turn.reservations.ports.contains_key(&token) {
                break token;
            }
        };
        let Reservations { ports, queue } = &mut self.turn.reservations;
        ports.insert(token, Reserved { local: next, user });
        queue.push_back((now.monotonic + LIFETIME, token));
        if let Some(allocation) = self.turn.allocations.get_mut(index) {
            allocation.reservation = Some(token);
        }
    }

    pub(super) fn expire_reservations(&mut self, now: Now) {
        let is_due = |(at, _): &mut (Instant, u64)| *at <= now.monotonic;
        while let Some((_, token)) = self.turn.reservations.queue.pop_front_if(is_due) {
            let Some(Reserved { local, user }) = self.turn.reservations.ports.remove(&token) else {
                continue;
            };
            self.counters.add(Count::ExpiredReservation);
            self.turn.users.credit(user);
            self.command(Command::ClosePort { local });
        }
    }
}
