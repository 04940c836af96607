//! Where flows may stand in the tables that the program looks them up in.
//!
//! There are two tables for each family. The port table is indexed by the address and port of ours
//! that a packet arrives at: a leg that has its port for itself stands there or nowhere. In the channel
//! table, which is hashed, stand the legs that share a port: ChannelData of a channel and, if its index
//! in the port table is taken, what a peer sends to a relayed transport address.

use std::net::{IpAddr, SocketAddr};

use rawr_common::channel;
use rawr_common::flow::{self, Place};

use super::tuple::{Tuple, arriving};
use super::{Leg, Share};

/// What tells where a flow may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// Length of each port table minus one.
    port_mask: u32,
    /// Length of each channel table minus one.
    channel_mask: u32,
    /// Key of the hash: nobody who chooses addresses and channels can make them collide.
    seed: u64,
}

impl Places {
    /// For tables of these lengths.
    ///
    /// # Panics
    ///
    /// If one is no power of two, or the channel tables' has no room for a group.
    pub(super) fn new(ports: u32, channels: u32, seed: u64) -> Self {
        assert!(ports.is_power_of_two() && channels.is_power_of_two(), "powers of two");
        assert!(channels >= channel::GROUP, "room for a group");
        Self { port_mask: ports - 1, channel_mask: channels - 1, seed }
    }

    /// How many places there are in a port table and in a channel table.
    pub(super) fn lengths(&self) -> (u32, u32) {
        (self.port_mask + 1, self.channel_mask + 1)
    }

    /// The index of an address and port of ours in the port table.
    pub(super) fn index(&self, local: SocketAddr) -> u32 {
        let last_byte = match local.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        flow::index(last_byte, local.port(), self.port_mask)
    }

    /// Where the flow of `leg` may stand, the best place first.
    pub(super) fn of(&self, leg: Leg) -> impl Iterator<Item = Place> {
        let (in_ports, in_channels) = match leg.share {
            Share::Whole => (true, false),
            Share::Shared { channel: None } => (true, true),
            Share::Shared { channel: Some(_) } => (false, true),
        };
        let index = self.index(leg.local);
        let places = in_channels.then(|| channel::places(self.hash(leg), self.channel_mask));
        let port = in_ports.then_some(Place::Port(index));
        port.into_iter().chain(places.into_iter().flatten().map(Place::Channel))
    }

    fn hash(&self, leg: Leg) -> u64 {
        let channel = leg.channel().map_or([0, 0], |channel| channel.number().to_be_bytes());
        match arriving(leg) {
            Tuple::V4(from) => channel::hash4(&from, channel, self.seed),
            Tuple::V6(from) => channel::hash6(&from, channel, self.seed),
        }
    }
}
