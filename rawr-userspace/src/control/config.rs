//! What an operator decides about a server.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use rawr_proto::{Credentials, ServerId};

use super::bridge::BridgeConfig;
use super::policy::PeerRules;
use super::stun::Behaviour;
use super::turn::TurnConfig;

/// What a server does beyond relaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Looks up target MACs among its neighbours, and escalates.
    Gateway,
    /// Relays and exchanges, nothing else.
    Root,
}

/// A server that sessions escalate to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its STUN address.
    pub address: SocketAddr,
    /// Ours there; `None` where the parent trusts our subnet.
    pub credentials: Option<Credentials>,
}

/// Configuration of a [`super::Server`].
#[derive(Clone)]
pub struct ServerConfig {
    /// Gateway or root.
    pub kind: Kind,
    /// This server's name in hop lists.
    pub id: ServerId,
    /// Parents, nearest first. At most [`ServerConfig::MAX_PARENTS`] count.
    pub parents: Vec<Parent>,
    /// Clients that need no credentials.
    pub trusted: Vec<IpNet>,
    /// REALM, and part of every user's key.
    pub realm: String,
    /// Users with a password of their own.
    pub users: Vec<Credentials>,
    /// Secrets that ephemeral users are made from. Several, so that they can be rotated.
    pub secrets: Vec<String>,
    /// Takes access tokens where `Some` (RFC 7635).
    #[cfg(feature = "oauth")]
    pub tokens: Option<super::authenticate::TokenServer>,
    /// Whether an ephemeral user's time must not be over when it refreshes what it has; if not, only when
    /// it makes an allocation.
    pub strict_expiry: bool,
    /// Which peers TURN clients may reach.
    pub peers: PeerRules,
    /// Servers that clients are sent to instead of getting an allocation here (RFC 8489 §10).
    pub alternates: Vec<SocketAddr>,
    /// Addresses for NAT behaviour discovery (RFC 5780), at most one pair of each family.
    pub behaviours: Vec<Behaviour>,
    /// Those of them whose four addresses clients may connect to over TCP, and over TLS.
    pub behaviours_tcp: Vec<Behaviour>,
    pub behaviours_tls: Vec<Behaviour>,
    /// Whether target MACs are looked up among the neighbours; `None` for what [`Kind`] says.
    pub look_up_mac: Option<bool>,
    /// Whether STUN and TURN requests that are shorter than their answer are answered nevertheless, though
    /// their source may be forged. All clients but RAWR's send such; the longest answer, a challenge, is
    /// about three times as long. A root does so unless told otherwise.
    pub answer_short_binding: bool,
    /// Lifetime of a leg that asks for none.
    pub default_lifetime: Duration,
    /// Longest lifetime of a leg.
    pub max_lifetime: Duration,
    /// HOP-LIMIT where a client sends none.
    pub hop_limit: u8,
    /// Most bytes per second of a session, each way.
    pub rate: Option<u64>,
    pub limits: Limits,
    /// Allocations.
    pub turn: TurnConfig,
    /// Names. Off unless it is said to be on.
    pub bridge: BridgeConfig,
}

impl ServerConfig {
    /// Parents beyond this number are not used.
    pub const MAX_PARENTS: usize = 8;

    /// A server that trusts nobody yet.
    pub fn new(kind: Kind, id: ServerId) -> Self {
        Self {
            kind,
            id,
            parents: Vec::new(),
            trusted: Vec::new(),
            realm: "rawr".to_owned(),
            users: Vec::new(),
            secrets: Vec::new(),
            #[cfg(feature = "oauth")]
            tokens: None,
            strict_expiry: false,
            peers: PeerRules::default(),
            alternates: Vec::new(),
            behaviours: Vec::new(),
            behaviours_tcp: Vec::new(),
            behaviours_tls: Vec::new(),
            look_up_mac: None,
            answer_short_binding: kind == Kind::Root,
            default_lifetime: Duration::from_secs(120),
            max_lifetime: Duration::from_secs(3600),
            hop_limit: 8,
            rate: None,
            limits: Limits::default(),
            turn: TurnConfig::default(),
            bridge: BridgeConfig::default(),
        }
    }

    pub(super) fn looks_up_mac(&self) -> bool {
        self.look_up_mac.unwrap_or(self.kind == Kind::Gateway)
    }

    /// Whether anybody can prove to be a user here.
    pub(super) fn has_users(&self) -> bool {
        !self.users.is_empty() || !self.secrets.is_empty() || self.takes_tokens()
    }

    fn takes_tokens(&self) -> bool {
        #[cfg(feature = "oauth")]
        return self.tokens.is_some();
        #[cfg(not(feature = "oauth"))]
        return false;
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("parents", &self.parents)
            .field("trusted", &self.trusted)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// How much one server, and one source prefix (/24 or /56), may use. A gateway counts as one source
/// at its parent, with all its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions altogether.
    pub sessions: usize,
    /// Downstream legs of one prefix.
    pub legs_per_prefix: u32,
    /// Downstream legs whose client has not probed yet, altogether.
    pub half_open: u32,
    /// The same of one prefix.
    pub half_open_per_prefix: u32,
    /// Sessions of which an exchange is held.
    pub exchanges: usize,
    /// The same of one prefix.
    pub exchanges_per_prefix: u32,
    /// Requests with a valid nonce per second from one prefix.
    pub requests_per_second: u32,
    /// Answers per second to sources of one prefix that have shown no valid nonce. A client needs one or two
    /// when it begins, and repeats its request with growing intervals if one is missing (RFC 8489 §6.2.1).
    pub unverified_per_second: u32,
    /// Neighbours remembered.
    pub neighbours: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 100_000,
            legs_per_prefix: 100_000,
            half_open: 20_000,
            half_open_per_prefix: 10_000,
            exchanges: 20_000,
            exchanges_per_prefix: 10_000,
            requests_per_second: 20_000,
            unverified_per_second: 1_000,
            neighbours: 16_384,
        }
    }
}
