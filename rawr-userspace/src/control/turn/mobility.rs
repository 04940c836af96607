//! Mobility: a client takes its allocation along to another address (RFC 8016).
//!
//! A ticket names an allocation and says nothing else. It is sealed for the user that owns the
//! allocation, and good for one move: each one is answered with a new ticket. The one before stays good
//! for a while, in case that answer was lost. Nothing is kept for moves that are under way, and a moved
//! allocation is the same as before, to its user's quota too.

use std::time::{Duration, Instant};

use hmac::{Hmac, Mac as _};
use rand::Rng;
use rawr_proto::StunError;
use sha2::Sha256;

use super::Turn;
use super::allocate::mismatch;
use super::allocation::Allocation;
use super::message::{Request, bad_request};
use crate::control::authenticate::Authenticated;
use crate::control::client::Client;
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::Refusal;
use crate::control::time::Now;

/// How long a ticket that has been replaced is good for a retransmission (RFC 8016 §3.2.2).
const GRACE: Duration = Duration::from_secs(30);
/// Bytes of the seal.
const SEAL: usize = 16;

/// Seals tickets.
#[derive(Clone)]
pub(super) struct Tickets {
    key: [u8; 32],
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets(..)")
    }
}

/// Which tickets of an allocation are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mobility {
    pub(super) serial: u64,
    /// The one before, and until when it is good.
    previous: Option<(u64, Instant)>,
}

impl Mobility {
    pub(super) fn new(serial: u64) -> Self {
        Self { serial, previous: None }
    }
}

impl Tickets {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    pub(super) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    fn make(&self, index: Index, serial: u64, user: &str, realm: &str) -> Vec<u8> {
        let mut ticket = [&index.to_be_bytes()[..], &serial.to_be_bytes()].concat();
        let seal = self.seal(&ticket, user, realm).finalize().into_bytes();
        ticket.extend_from_slice(&seal[..SEAL]);
        ticket
    }

    /// The allocation and the serial that a ticket names, not yet checked.
    fn read(ticket: &[u8]) -> Option<(Index, u64)> {
        let (index, rest) = ticket.split_first_chunk::<4>()?;
        let (serial, seal) = rest.split_first_chunk::<8>()?;
        let is_whole = seal.len() == SEAL;
        is_whole.then(|| (u32::from_be_bytes(*index), u64::from_be_bytes(*serial)))
    }

    fn is_ours(&self, ticket: &[u8], user: &str, realm: &str) -> bool {
        let Some((named, seal)) = ticket.split_last_chunk::<SEAL>() else { return false };
        self.seal(named, user, realm).verify_truncated_left(seal).is_ok()
    }

    fn seal(&self, named: &[u8], user: &str, realm: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        // With the lengths, no two owners give the same bytes.
        for part in [named, user.as_bytes(), realm.as_bytes()] {
            mac.update(&(part.len() as u32).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl Turn {
    /// The ticket that an allocation's client holds; `None` if it does not want to move.
    pub(super) fn ticket(
        &self,
        realm: &str,
        index: Index,
        allocation: &Allocation,
    ) -> Option<Vec<u8>> {
        let serial = allocation.mobility.as_ref()?.serial;
        let user = self.users.name(allocation.user)?;
        Some(self.tickets.make(index, serial, user, realm))
    }
}

impl Server {
    pub(super) fn new_mobility(&mut self) -> Box<Mobility> {
        Box::new(Mobility::new(self.rng.random()))
    }

    /// The allocation that the ticket in a Refresh stands for.
    ///
    /// # Errors
    /// 405 where allocations do not move, 437 where there is none (any more), 441 for another user's,
    /// 400 for what is no ticket or has been replaced.
    pub(super) fn allocation_of_ticket(
        &self,
        request: &Request<'_>,
        who: &Authenticated,
        ticket: &[u8],
    ) -> Result<Index, Refusal> {
        if !self.config.turn.mobility {
            return Err(Refusal::new(StunError::MobilityForbidden, Count::Forbidden));
        }
        let wrong = || Refusal::new(StunError::BadRequest, Count::WrongTicket);
        let (index, serial) = Tickets::read(ticket).ok_or_else(wrong)?;
        let allocation = self.turn.allocations.get(index).ok_or_else(mismatch)?;
        let owner = self.turn.users.name(allocation.user).ok_or_else(mismatch)?;
        if !self.turn.tickets.is_ours(ticket, owner, &self.config.realm) {
            return Err(wrong());
        }
        if **owner != *who.user {
            return Err(Refusal::new(StunError::WrongCredentials, Count::WrongUser));
        }
        let mobility = allocation.mobility.as_ref().ok_or_else(wrong)?;
        let is_previous =
            |(previous, until): (u64, Instant)| previous == serial && until > request.now.monotonic;
        if mobility.serial != serial && !mobility.previous.is_some_and(is_previous) {
            return Err(wrong());
        }
        let there = self.turn.allocations.by_client(&request.client);
        if there.is_some_and(|there| there != index) {
            return Err(mismatch());
        }
        if allocation.opening.is_some() {
            return Err(Refusal::silent(StunError::ServerError, Count::NotReady));
        }
        if self.turn.peers.is_bound(&request.client) {
            return Err(bad_request());
        }
        Ok(index)
    }

    /// Lets an allocation's client be where its ticket came from, and gives it a new one.
    pub(super) fn move_allocation(
        &mut self,
        now: Now,
        index: Index,
        ticket: &[u8],
        client: &Client,
    ) {
        let fresh = self.rng.random();
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let Some(mobility) = allocation.mobility.as_deref_mut() else { return };
        // A retransmission, whose answer was lost, gets the ticket of that answer again.
        if Tickets::read(ticket).is_some_and(|(_, serial)| serial == mobility.serial) {
            let before = std::mem::replace(&mut mobility.serial, fresh);
            mobility.previous = Some((before, now.monotonic + GRACE));
        }
        if allocation.client == *client {
            return;
        }
        self.stop_all(index);
        self.turn.allocations.rename(index, *client);
        self.counters.add(Count::MovedAllocation);
        self.settle_channels(now, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_its_owners_alone() {
        let tickets = Tickets::new([7; 32]);
        let ticket = tickets.make(5, 0x1234_5678_9abc_def0, "anna", "realm");
        assert_eq!(Tickets::read(&ticket), Some((5, 0x1234_5678_9abc_def0)));
        assert!(tickets.is_ours(&ticket, "anna", "realm"));
        assert!(!tickets.is_ours(&ticket, "annar", "ealm"));
        assert!(!tickets.is_ours(&ticket, "bert", "realm"));
        assert!(!Tickets::new([8; 32]).is_ours(&ticket, "anna", "realm"));
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert!(!tickets.is_ours(&forged, "anna", "realm"), "byte {at}");
        }
        for length in 0..ticket.len() {
            assert!(Tickets::read(&ticket[..length]).is_none());
            assert!(!tickets.is_ours(&ticket[..length], "anna", "realm"));
        }
    }
}
