//! What an operator decides about TURN.

use std::net::IpAddr;
use std::time::Duration;

/// How allocations are made, and how much they may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnConfig {
    /// Addresses of ours that relayed transport addresses are on; of several of one family, allocations take
    /// one after the other. A family that is not among them has the address that the client speaks to, if
    /// that is of it, else one of `listen_addresses`, else one of the host's interfaces.
    pub relay_addresses: Vec<IpAddr>,
    /// Addresses of ours that clients are listened to on, where that is not all.
    pub listen_addresses: Vec<IpAddr>,
    /// Addresses of ours, and the public addresses that stand for them where a NAT lies between.
    pub advertised: Vec<(IpAddr, IpAddr)>,
    /// Lifetime of an allocation whose client asks for less, or for none (RFC 8656 §7.2).
    pub default_lifetime: Duration,
    /// The longest lifetime that is granted.
    pub max_lifetime: Duration,
    /// Whether a client may take its allocation along to another address (RFC 8016).
    pub mobility: bool,
    /// Whether channels may have numbers from 0x5000 to 0x7fff, too (RFC 5766 §11).
    pub rfc5766_channels: bool,
    /// Whether there are TCP allocations (RFC 6062).
    pub tcp: bool,
    pub limits: TurnLimits,
}

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            relay_addresses: Vec::new(),
            listen_addresses: Vec::new(),
            advertised: Vec::new(),
            default_lifetime: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3600),
            mobility: false,
            rfc5766_channels: false,
            tcp: true,
            limits: TurnLimits::default(),
        }
    }
}

/// How much TURN may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// Allocations and reserved ports altogether; beyond, 508.
    pub allocations: usize,
    /// The same of one user; beyond, 486.
    pub allocations_per_user: u32,
    /// Peer addresses that one allocation may hold permissions for; beyond, 508.
    pub permissions_per_allocation: usize,
    /// Channels of one allocation; beyond, 508.
    pub channels_per_allocation: usize,
    /// TCP connections to peers of one allocation, those that are being made included; beyond, 508.
    pub connections_per_allocation: usize,
    /// Most bytes per second that one allocation relays, both ways together.
    pub allocation_rate: Option<u64>,
    /// The same of all allocations of one user.
    pub user_rate: Option<u64>,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self {
            allocations: 1_000_000,
            allocations_per_user: 100_000,
            permissions_per_allocation: 1_024,
            channels_per_allocation: 1_024,
            connections_per_allocation: 64,
            allocation_rate: None,
            user_rate: None,
        }
    }
}
