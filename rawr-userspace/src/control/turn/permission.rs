//! CreatePermission: a client allows peers to send to it (RFC 8656 §9, §10).

use std::net::{IpAddr, SocketAddr};

use rawr_proto::StunError;

use super::allocate::mismatch;
use super::allocation::PERMISSION_LIFETIME;
use super::message::{Answer, Request, Success, bad_request};
use crate::control::authenticate::Authenticated;
use crate::control::counters::Count;
use crate::control::policy::VettedPeer;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::Refusal;
use crate::control::time::Now;

impl Server {
    pub(super) fn create_permission(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let index = self.allocation_of(request, who)?;
        // All of them, or none (RFC 8656 §10.2).
        let peers = request.peers().map(|peer| self.vet(index, peer?));
        let peers = peers.collect::<Result<Vec<VettedPeer>, Refusal>>()?;
        if peers.is_empty() {
            return Err(bad_request());
        }
        self.permit(request.now, index, &peers)?;
        self.counters.add(Count::CreatePermission);
        peers.iter().for_each(|peer| self.settle_peer(request.now, index, peer.ip()));
        Ok(Answer::Now(Success::default()))
    }

    /// The allocation that a request is about. It must be its user's (RFC 8656 §5).
    pub(super) fn allocation_of(
        &self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Index, Refusal> {
        let index = self.turn.allocations.by_client(&request.client).ok_or_else(mismatch)?;
        let allocation = self.turn.allocations.get(index).ok_or_else(mismatch)?;
        if !self.turn.users.is(allocation.user, &who.user) {
            return Err(Refusal::new(StunError::WrongCredentials, Count::WrongUser));
        }
        if allocation.opening.is_some() {
            // Its ports are being opened, again after a restart: the client asks once more.
            return Err(Refusal::silent(StunError::ServerError, Count::NotReady));
        }
        Ok(index)
    }

    /// Checks that an allocation may speak to a peer.
    ///
    /// # Errors
    /// 443 if none of its relayed transport addresses is of the peer's family, 403 if the operator
    /// denies the peer.
    pub(super) fn vet(&self, index: Index, peer: SocketAddr) -> Result<VettedPeer, Refusal> {
        let allocation = self.turn.allocations.get(index).ok_or_else(mismatch)?;
        let vetted = self.policy.vet(peer.ip()).map_err(|_| denied())?;
        let relay = allocation.relay_for(peer.ip()).and_then(|_| allocation.relay_for(vetted.ip()));
        if relay.is_none() {
            return Err(Refusal::new(StunError::PeerAddressFamilyMismatch, Count::TurnFamily));
        }
        Ok(vetted)
    }

    /// Installs permissions, or refreshes them.
    ///
    /// # Errors
    /// There would be more than one allocation may have: 508, and nothing has changed.
    pub(super) fn permit(
        &mut self,
        now: Now,
        index: Index,
        peers: &[VettedPeer],
    ) -> Result<(), Refusal> {
        let most = self.turn.limits.permissions_per_allocation;
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return Ok(()) };
        let is_new = |peer: &IpAddr| !allocation.permissions.contains_key(peer);
        let mut new: Vec<IpAddr> = peers.iter().map(|peer| peer.ip()).filter(is_new).collect();
        new.sort_unstable();
        new.dedup();
        if allocation.permissions.len() + new.len() > most {
            return Err(Refusal::new(StunError::InsufficientCapacity, Count::TurnCapacity));
        }
        let expires = now.monotonic + PERMISSION_LIFETIME;
        allocation.permissions.extend(peers.iter().map(|peer| (peer.ip(), expires)));
        self.turn.allocations.arm_for(index, expires);
        Ok(())
    }
}

fn denied() -> Refusal {
    Refusal::new(StunError::Forbidden, Count::PeerDenied)
}
