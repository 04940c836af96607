//! ChannelBind: a client binds a channel to a peer (RFC 8656 §12).

use std::net::SocketAddr;

use rawr_proto::{ChannelNumber, StunError};
use turn_types::attribute::ChannelNumber as NumberAttribute;

use super::allocation::{CHANNEL_LIFETIME, Channel};
use super::message::{Answer, Request, Success, bad_request};
use crate::control::authenticate::Authenticated;
use crate::control::counters::Count;
use crate::control::policy::VettedPeer;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::stun::Refusal;
use crate::control::time::Now;

impl Server {
    pub(super) fn bind_channel(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let index = self.allocation_of(request, who)?;
        let number = request.required::<NumberAttribute>()?.channel();
        let number = ChannelNumber::new(number)
            .filter(|number| self.config.turn.rfc5766_channels || number.is_of_rfc8656())
            .ok_or_else(bad_request)?;
        let peer = request.peer()?;
        let vetted = self.vet(index, peer)?;
        self.may_bind(index, number, vetted.at(peer.port()))?;
        self.permit(request.now, index, &[vetted])?;
        self.bind(request.now, index, number, vetted, peer.port());
        self.counters.add(Count::ChannelBind);
        Ok(Answer::Now(Success::default()))
    }

    /// Whether neither the channel nor the peer is bound to anything else (RFC 8656 §12.2).
    fn may_bind(
        &self,
        index: Index,
        number: ChannelNumber,
        peer: SocketAddr,
    ) -> Result<(), Refusal> {
        let Some(allocation) = self.turn.allocations.get(index) else { return Err(bad_request()) };
        if allocation.connections.is_some() {
            // A TCP allocation has no channels (RFC 6062 §4).
            return Err(bad_request());
        }
        let bound = allocation.channels.get(&number).map(|channel| channel.peer);
        match (bound, allocation.peers.get(&peer)) {
            (Some(bound), Some(channel)) if (bound, *channel) == (peer, number) => Ok(()),
            (Some(_), _) | (_, Some(_)) => Err(bad_request()),
            (None, None) => {
                let most = self.turn.limits.channels_per_allocation;
                let full = || Refusal::new(StunError::InsufficientCapacity, Count::TurnCapacity);
                (allocation.channels.len() < most).then_some(()).ok_or_else(full)
            }
        }
    }

    fn bind(
        &mut self,
        now: Now,
        index: Index,
        number: ChannelNumber,
        vetted: VettedPeer,
        port: u16,
    ) {
        let expires = now.monotonic + CHANNEL_LIFETIME;
        let peer = vetted.at(port);
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let channel = Channel { peer, vetted, expires, forwards: None };
        allocation.channels.entry(number).or_insert_with(|| Box::new(channel)).expires = expires;
        allocation.peers.insert(peer, number);
        self.turn.allocations.arm_for(index, expires);
        self.settle_channel(now, index, number);
    }

    /// Forgets a channel, and stops what the data plane does for it.
    pub(super) fn remove_channel(&mut self, index: Index, number: ChannelNumber) {
        self.stop_forwarding(index, number);
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        if let Some(channel) = allocation.channels.remove(&number) {
            allocation.peers.remove(&channel.peer);
        }
    }
}
