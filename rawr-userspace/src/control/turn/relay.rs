//! Data between clients and peers, as far as userspace relays it (RFC 8656 §11, §12.4 to §12.7).

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;
use rawr_proto::{ChannelData, ChannelNumber};
use stun_types::attribute::AttributeStaticType;
use stun_types::message::MessageWrite;
use turn_types::attribute::{Data, DontFragment, Icmp as IcmpAttribute, XorPeerAddress};
use turn_types::message::DATA;

use super::allocation::{Channel, Way};
use super::message::{Request, indication, put};
use crate::control::client::{Client, Over};
use crate::control::command::Source;
use crate::control::counters::Count;
use crate::control::policy::VettedPeer;
use crate::control::server::Server;
use crate::control::store::Index;
use crate::control::time::Now;

/// Longest payload of a UDP datagram over IPv4: longer data would leave in no datagram.
const LONGEST: usize = 65_507;

/// An ICMP error that came for a datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Type of ICMP, or of ICMPv6 where the peer's address is IPv6.
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU, where the message tells one; else 0.
    pub data: u32,
}

impl Server {
    /// A client sends to a peer without a channel (RFC 8656 §11.2). There is no answer, whatever is
    /// wrong with it.
    pub(super) fn send_indication(&mut self, request: &Request<'_>) {
        if let Err(count) = self.send(request) {
            self.counters.add(count);
        }
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), Count> {
        let now = request.now.monotonic;
        let allocations = &self.turn.allocations;
        let index = allocations.by_client(&request.client).ok_or(Count::NoAllocation)?;
        let allocation = allocations.get(index).ok_or(Count::NoAllocation)?;
        if allocation.connections.is_some() || request.has_unknown() {
            return Err(Count::BadRequest);
        }
        let peer = request.peer().map_err(|_| Count::BadRequest)?;
        let data = request.message.raw_attribute(Data::TYPE).ok_or(Count::BadRequest)?;
        let vetted = self.policy.vet(peer.ip()).map_err(|_| Count::PeerDenied)?;
        if !allocation.permits(now, vetted.ip()) {
            return Err(Count::NoPermission);
        }
        let fragments = request.message.raw_attribute(DontFragment::TYPE).is_none();
        self.relay_to_peer(request.now, index, (vetted, peer.port()), &data.value, fragments)
    }

    /// ChannelData of a client (RFC 8656 §12.6).
    pub(super) fn channel_data(&mut self, now: Now, client: &Client, bytes: &[u8]) {
        if let Err(count) = self.take_channel_data(now, client, bytes) {
            self.counters.add(count);
        }
    }

    fn take_channel_data(&mut self, now: Now, client: &Client, bytes: &[u8]) -> Result<(), Count> {
        let message = ChannelData::decode(bytes).ok_or(Count::Malformed)?;
        let index = self.turn.allocations.by_client(client).ok_or(Count::NoAllocation)?;
        let allocation = self.turn.allocations.get(index).ok_or(Count::NoAllocation)?;
        let channel = allocation.bound(now.monotonic, message.channel);
        let Channel { peer, vetted, .. } = *channel.ok_or(Count::NoChannel)?;
        self.relay_to_peer(now, index, (vetted, peer.port()), message.data, true)
    }

    /// Sends to a peer that may be sent to.
    fn relay_to_peer(
        &mut self,
        now: Now,
        index: Index,
        (vetted, port): (VettedPeer, u16),
        data: &[u8],
        fragments: bool,
    ) -> Result<(), Count> {
        if data.len() > LONGEST {
            return Err(Count::Malformed);
        }
        let peer = vetted.at(port);
        let allocation = self.turn.allocations.get(index).ok_or(Count::NoAllocation)?;
        let local = allocation.relay_for(peer.ip()).ok_or(Count::NoPermission)?;
        let target = self.turn.resolve(peer);
        let other = self.turn.allocations.by_relay(target);
        // On an address of ours there is nothing to be reached but other allocations.
        if vetted.is_relay() && other.is_none() {
            return Err(Count::OwnAddress);
        }
        self.turn.admit(now.monotonic, index, Way::ToPeer, data.len())?;
        if let Some(other) = other {
            return self.relay_to_client(now, other, target, self.turn.advertise(local), data);
        }
        let from = if fragments { Source::Data(local) } else { Source::DataUnfragmented(local) };
        self.counters.add(Count::RelayedToPeer);
        self.transmit(from, peer, data.to_vec());
        Ok(())
    }

    /// Takes what came to a relayed transport address (RFC 8656 §11.3, §12.7).
    pub(in crate::control) fn relay_data(
        &mut self,
        now: Now,
        local: SocketAddr,
        from: SocketAddr,
        data: &[u8],
    ) {
        let result = match self.turn.allocations.by_relay(local) {
            Some(index) => self.relay_to_client(now, index, local, from, data),
            None => Err(Count::UnknownPort),
        };
        if let Err(count) = result {
            self.counters.add(count);
        }
    }

    fn relay_to_client(
        &mut self,
        now: Now,
        index: Index,
        local: SocketAddr,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<(), Count> {
        let allocation = self.turn.allocations.get(index).ok_or(Count::UnknownPort)?;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if !allocation.permits(now.monotonic, from.ip())
            || !allocation.locals().any(|it| it == local)
        {
            return Err(Count::NoPermission);
        }
        self.turn.admit(now.monotonic, index, Way::ToClient, data.len())?;
        let Some(allocation) = self.turn.allocations.get(index) else { return Ok(()) };
        let client = allocation.client;
        let bytes = self.wrap(now.monotonic, index, from, data);
        self.counters.add(Count::RelayedToClient);
        self.answer(&client, bytes);
        Ok(())
    }

    /// ChannelData where the peer has a channel, else a Data indication.
    fn wrap(&mut self, now: Instant, index: Index, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let allocation = self.turn.allocations.get(index);
        let channel = allocation.and_then(|it| Some((it.client.over, it.channel_of(now, peer)?)));
        if let Some((over, number)) = channel {
            return channel_data(over, number, data).unwrap_or_default();
        }
        let transaction = self.rng.random::<u128>().into();
        let mut writer = indication(DATA, transaction);
        put(&mut writer, &XorPeerAddress::new(peer, transaction));
        put(&mut writer, &Data::new(data));
        writer.finish()
    }

    /// An ICMP error came for a datagram from the relayed transport address `local` to `peer`
    /// (RFC 8656 §11.5).
    pub fn icmp(&mut self, now: Now, local: SocketAddr, peer: SocketAddr, icmp: Icmp) {
        let told = match peer {
            SocketAddr::V4(_) => matches!(icmp.kind, 3 | 11),
            SocketAddr::V6(_) => matches!(icmp.kind, 1..=3),
        };
        let index = self.turn.allocations.by_relay(local).filter(|_| told);
        let allocation = index.and_then(|index| self.turn.allocations.get(index));
        let Some(allocation) = allocation.filter(|it| it.permits(now.monotonic, peer.ip())) else {
            return;
        };
        let client = allocation.client;
        let transaction = self.rng.random::<u128>().into();
        let mut writer = indication(DATA, transaction);
        put(&mut writer, &XorPeerAddress::new(peer, transaction));
        put(&mut writer, &IcmpAttribute::new(icmp.kind, icmp.code, icmp.data));
        self.counters.add(Count::Icmp);
        self.answer(&client, writer.finish());
    }
}

/// Data on a channel, as the client's transport wants it (RFC 8656 §12.5).
fn channel_data(over: Over, channel: ChannelNumber, data: &[u8]) -> Option<Vec<u8>> {
    let message = ChannelData { channel, data };
    match over {
        Over::Tcp(_) | Over::Tls(_) => message.encode_padded(),
        Over::Udp | Over::Dtls(_) => message.encode(),
    }
}
