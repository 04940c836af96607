//! An allocation: the relayed transport addresses of one client, and whom it may exchange data with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rawr_proto::ChannelNumber;
use stun_types::AddressFamily;
use stun_types::message::TransactionId;

use super::limit::{Bucket, USER, UserIndex};
use super::mobility::Mobility;
use super::opening::Opening;
use super::tcp::Connections;
use crate::control::client::Client;
use crate::control::policy::VettedPeer;
use crate::dataplane::{Counters, Leg};

/// How long a permission lasts after it was asked for (RFC 8656 §9).
pub(super) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// How long a channel lasts after it was asked for (RFC 8656 §12).
pub(super) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// What one client has here (RFC 8656 §3.2).
#[derive(Debug)]
pub(super) struct Allocation {
    /// The 5-tuple.
    pub(super) client: Client,
    pub(super) user: UserIndex,
    /// Of the Allocate request that made it: a retransmission has the same.
    pub(super) transaction: TransactionId,
    /// The IPv4 and the IPv6 relayed transport address.
    pub(super) relays: [Option<Relay>; 2],
    /// Peers by their address alone: a permission holds for all their ports.
    pub(super) permissions: BTreeMap<IpAddr, Instant>,
    /// Boxed, since a map's node has room for eleven, and most clients have one.
    pub(super) channels: BTreeMap<ChannelNumber, Box<Channel>>,
    /// The channel of each peer that has one.
    pub(super) peers: BTreeMap<SocketAddr, ChannelNumber>,
    /// TCP connections to peers; `None` for a UDP allocation.
    pub(super) connections: Option<Box<Connections>>,
    /// While ports are being opened.
    pub(super) opening: Option<Box<Opening>>,
    /// The port that was reserved with it, as its client knows it.
    pub(super) reservation: Option<u64>,
    /// `None` where its client does not want to move.
    pub(super) mobility: Option<Box<Mobility>>,
    /// What userspace has relayed to peers, and to the client.
    pub(super) traffic: [Counters; 2],
    pub(super) bucket: Bucket,
    /// Its group in the data plane, which has to be the same after a restart.
    pub(super) group: u64,
    /// Where its alarm stands.
    pub(super) armed: Option<Instant>,
}

/// A relayed transport address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relay {
    pub(super) local: SocketAddr,
    pub(super) expires: Instant,
}

/// A channel that is bound to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channel {
    pub(super) peer: SocketAddr,
    /// The proof that the peer may be spoken to: without it, nothing enters the data plane.
    pub(super) vetted: VettedPeer,
    pub(super) expires: Instant,
    /// The leg that the data plane forwards this channel to and from, if it does.
    pub(super) forwards: Option<Leg>,
}

/// The way that data takes, as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToPeer = 0,
    ToClient = 1,
}

impl Allocation {
    pub(super) fn new(
        client: Client,
        user: UserIndex,
        transaction: TransactionId,
        group: u64,
    ) -> Self {
        Self {
            client,
            user,
            transaction,
            relays: [None, None],
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            peers: BTreeMap::new(),
            connections: None,
            opening: None,
            reservation: None,
            mobility: None,
            traffic: [Counters::default(); 2],
            bucket: Bucket::default(),
            group: group & !USER,
            armed: None,
        }
    }

    pub(super) fn relay(&self, family: AddressFamily) -> Option<Relay> {
        self.relays[place(family)]
    }

    /// The relayed transport address that reaches `peer`.
    pub(super) fn relay_for(&self, peer: IpAddr) -> Option<SocketAddr> {
        self.relay(family_of(peer)).map(|relay| relay.local)
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        self.relays.iter().flatten().map(|relay| relay.local)
    }

    /// Whether there is a permission for this peer.
    pub(super) fn permits(&self, now: Instant, peer: IpAddr) -> bool {
        self.permissions.get(&peer).is_some_and(|expires| *expires > now)
    }

    /// A channel that is bound.
    pub(super) fn bound(&self, now: Instant, number: ChannelNumber) -> Option<&Channel> {
        self.channels.get(&number).map(Box::as_ref).filter(|channel| channel.expires > now)
    }

    /// The channel that is bound to a peer.
    pub(super) fn channel_of(&self, now: Instant, peer: SocketAddr) -> Option<ChannelNumber> {
        let number = *self.peers.get(&peer)?;
        self.bound(now, number).map(|_| number)
    }

    /// The client's side of a channel, as the data plane sees it.
    pub(super) fn client_leg(&self, number: ChannelNumber) -> Leg {
        Leg::shared(self.client.local, self.client.remote, Some(number))
    }

    /// When something of it expires next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let relays = self.relays.iter().flatten().map(|relay| relay.expires);
        let permissions = self.permissions.values().copied();
        let channels = self.channels.values().map(|channel| channel.expires);
        let connections = self.connections.iter().filter_map(|it| it.next_deadline());
        relays.chain(permissions).chain(channels).chain(connections).min()
    }

    /// Whether there is nothing left to keep it for.
    pub(super) fn is_over(&self) -> bool {
        self.opening.is_none() && self.relays.iter().all(Option::is_none)
    }
}

/// Where a family stands in [`Allocation::relays`].
pub(super) fn place(family: AddressFamily) -> usize {
    match family {
        AddressFamily::IPV4 => 0,
        AddressFamily::IPV6 => 1,
    }
}

pub(super) fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::IPV4,
        IpAddr::V6(_) => AddressFamily::IPV6,
    }
}
