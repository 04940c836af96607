//! What the data plane forwards by itself: channels of clients that speak over UDP.
//!
//! A channel to a peer is a pair of the client's leg, whose datagrams are ChannelData, and the peer's.
//! Where the peer is another allocation's relayed transport address, both legs are clients', so that a
//! datagram passes once and not twice; that needs a channel and a permission on either side. All else
//! userspace relays.

use std::net::{IpAddr, SocketAddr};

use rawr_proto::ChannelNumber;

use super::allocation::{Allocation, Channel};
use crate::control::client::Over;
use crate::control::command::Command;
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::time::Now;
use crate::dataplane::{Leg, Share};

impl Server {
    /// Settles all channels of an allocation.
    pub(super) fn settle_channels(&mut self, now: Now, index: Index) {
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        for number in allocation.channels.keys().copied().collect::<Vec<_>>() {
            self.settle_channel(now, index, number);
        }
    }

    /// Settles the channels to the ports of one peer.
    pub(super) fn settle_peer(&mut self, now: Now, index: Index, peer: IpAddr) {
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        let ports = SocketAddr::new(peer, 0)..=SocketAddr::new(peer, u16::MAX);
        let channels = allocation.peers.range(ports).map(|(_, number)| *number);
        for number in channels.collect::<Vec<_>>() {
            self.settle_channel(now, index, number);
        }
    }

    /// Has the data plane do for a channel what is possible now. Whatever changes an allocation's client,
    /// permissions or channels settles those that are concerned.
    pub(super) fn settle_channel(&mut self, now: Now, index: Index, number: ChannelNumber) {
        let wanted = self.wanted_leg(now, index, number);
        let channel = self.channel(index, number);
        if channel.is_none_or(|channel| channel.forwards == wanted) {
            return;
        }
        self.stop_forwarding(index, number);
        if let Some(leg) = wanted {
            self.start_forwarding(index, number, leg);
        }
    }

    /// The leg that what comes in on a channel ought to leave on, and the other way round.
    fn wanted_leg(&self, now: Now, index: Index, number: ChannelNumber) -> Option<Leg> {
        let allocation = self.turn.allocations.get(index)?;
        let channel = allocation.channels.get(&number)?;
        let relay = allocation.open_to(now, channel)?;
        let target = self.turn.resolve(channel.peer);
        if let Some(other) = self.turn.allocations.by_relay(target) {
            return self.wanted_hairpin(now, index, relay, other);
        }
        // Only relayed transport addresses are reached on an address of ours.
        (!channel.vetted.is_relay()).then(|| Leg::shared(relay, channel.peer, None))
    }

    /// The client's leg of the allocation `other`, if that has a channel back to `relay`.
    fn wanted_hairpin(
        &self,
        now: Now,
        index: Index,
        relay: SocketAddr,
        other: Index,
    ) -> Option<Leg> {
        if other == index {
            return None;
        }
        let allocation = self.turn.allocations.get(other)?;
        let number = allocation.channel_of(now.monotonic, self.turn.advertise(relay))?;
        allocation.open_to(now, allocation.channels.get(&number)?)?;
        Some(allocation.client_leg(number))
    }

    fn start_forwarding(&mut self, index: Index, number: ChannelNumber, leg: Leg) {
        let Some(a) = self.channel_leg(index, number) else { return };
        if let Some((other, back)) = self.client_of(leg) {
            self.set_forwards(other, back, Some(a));
        }
        self.set_forwards(index, number, Some(leg));
        self.counters.add(Count::PairedChannel);
        let limits = self.turn.rate_limits(index);
        self.command(Command::Pair { a, b: leg, limits });
    }

    /// Stops both directions of what the data plane does for a channel.
    pub(super) fn stop_forwarding(&mut self, index: Index, number: ChannelNumber) {
        let Some(leg) = self.channel(index, number).and_then(|channel| channel.forwards) else {
            return;
        };
        let Some(own) = self.channel_leg(index, number) else { return };
        self.set_forwards(index, number, None);
        if let Some((other, back)) = self.client_of(leg) {
            self.set_forwards(other, back, None);
        }
        self.command(Command::Unpair { key: own.key() });
        self.command(Command::Unpair { key: leg.key() });
    }

    /// Stops what the data plane does for all channels of an allocation.
    pub(super) fn stop_all(&mut self, index: Index) {
        let Some(allocation) = self.turn.allocations.get(index) else { return };
        for number in allocation.channels.keys().copied().collect::<Vec<_>>() {
            self.stop_forwarding(index, number);
        }
    }

    /// The allocation and the channel whose client's leg this is.
    fn client_of(&self, leg: Leg) -> Option<(Index, ChannelNumber)> {
        let Share::Shared { channel: Some(number) } = leg.share else { return None };
        let client = crate::control::Client::udp(leg.local, leg.remote);
        Some((self.turn.allocations.by_client(&client)?, number))
    }

    fn channel_leg(&self, index: Index, number: ChannelNumber) -> Option<Leg> {
        Some(self.turn.allocations.get(index)?.client_leg(number))
    }

    fn channel(&self, index: Index, number: ChannelNumber) -> Option<&Channel> {
        self.turn.allocations.get(index)?.channels.get(&number).map(Box::as_ref)
    }

    fn set_forwards(&mut self, index: Index, number: ChannelNumber, leg: Option<Leg>) {
        let allocation = self.turn.allocations.get_mut(index);
        if let Some(channel) = allocation.and_then(|it| it.channels.get_mut(&number)) {
            channel.forwards = leg;
        }
    }
}

impl Allocation {
    /// The relayed transport address that the data plane may use for a channel, if it may do so.
    fn open_to(&self, now: Now, channel: &Channel) -> Option<SocketAddr> {
        let may = self.client.over == Over::Udp
            && channel.expires > now.monotonic
            && self.permits(now.monotonic, channel.peer.ip());
        self.relay_for(channel.peer.ip()).filter(|_| may)
    }
}
