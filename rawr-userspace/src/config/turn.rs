//! What the daemon does as a TURN server: the table `turn`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::oauth::OauthKey;
use super::value::Rate;
use crate::control::{self, Behaviour, PeerRules};
use crate::io::streams;

/// Everything that concerns STUN and TURN clients. All values have been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Addresses for clients over TCP; may be the same as those for TLS.
    pub listen_tcp: Vec<SocketAddr>,
    /// Addresses for clients over TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// Addresses for clients over DTLS; may be the same as those of the STUN port.
    pub listen_dtls: Vec<SocketAddr>,
    /// Certificate chain and key as PEM. There where `listen_tls` or `listen_dtls` has any.
    pub certificate: Option<streams::CertificateFiles>,
    /// Addresses that relayed transport addresses are opened on, by turns. A family of which none is named:
    /// the one that the client has asked, else one of `listen`, else one of the host's interfaces.
    pub relays: Vec<Relay>,
    /// Pairs of addresses that make NAT behaviour discovery possible (RFC 5780): one for each family.
    pub discovery: Vec<Discovery>,
    /// Where clients are sent instead of getting an allocation, with 300 (RFC 8489 §10).
    pub alternate_servers: Vec<SocketAddr>,
    /// Whether Binding requests without attributes are answered in XDP.
    pub answer_binding: bool,
    /// Most of such answers at each port; userspace gets the requests beyond.
    pub binding_rate: Rate,
    /// Whether a Refresh is refused once the ephemeral credentials have expired, not only an Allocate.
    pub strict_expiry: bool,
    /// Whether an allocation may move to another address of its client (RFC 8016).
    pub mobility: bool,
    /// Whether clients may bind channels as RFC 5766 numbers them: up to 0x7fff, not only 0x4fff.
    pub rfc5766_channels: bool,
    /// Whether clients may have peers over TCP (RFC 6062).
    pub tcp_relay: bool,
    /// Lifetime of an allocation whose client asks for none, and the longest.
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    /// Most that an allocation may carry, both directions together.
    pub allocation_rate: Option<Rate>,
    /// Most that all allocations of a user may carry, both directions together.
    pub user_rate: Option<Rate>,
    /// What access tokens are made for; the realm if nothing else (RFC 7635 §6.1).
    pub oauth_server_name: Option<String>,
    /// Keys of access tokens; without any, none are taken.
    pub oauth_keys: Vec<OauthKey>,
    pub peers: Peers,
    pub limits: TurnLimits,
    pub streams: StreamLimits,
}

/// An address that peers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Address of this host, on which ports are opened.
    pub address: IpAddr,
    /// The address by which it is reached from outside, if a NAT stands before this host that leaves
    /// ports as they are. Clients are told this one.
    pub advertised: Option<IpAddr>,
}

/// Two addresses of this host with different ports (RFC 5780 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    pub primary: SocketAddr,
    pub alternate: SocketAddr,
}

impl Turn {
    /// What concerns allocations, on a host that listens there.
    pub(super) fn server(&self, listen: &[SocketAddr]) -> control::TurnConfig {
        let TurnLimits {
            allocations,
            allocations_per_user,
            permissions,
            channels,
            peer_connections,
        } = self.limits;
        let advertised = |relay: &Relay| Some((relay.address, relay.advertised?));
        control::TurnConfig {
            relay_addresses: self.relays.iter().map(|relay| relay.address).collect(),
            listen_addresses: listen
                .iter()
                .map(SocketAddr::ip)
                .filter(|ip| !ip.is_unspecified())
                .collect(),
            advertised: self.relays.iter().filter_map(advertised).collect(),
            default_lifetime: self.default_lifetime,
            max_lifetime: self.max_lifetime,
            mobility: self.mobility,
            rfc5766_channels: self.rfc5766_channels,
            tcp: self.tcp_relay,
            limits: control::TurnLimits {
                allocations: allocations as usize,
                allocations_per_user,
                permissions_per_allocation: permissions as usize,
                channels_per_allocation: channels as usize,
                connections_per_allocation: peer_connections as usize,
                allocation_rate: self.allocation_rate.map(Rate::bytes_per_second),
                user_rate: self.user_rate.map(Rate::bytes_per_second),
            },
        }
    }

    /// Who may be a peer. Relayed transport addresses are, by whichever address clients know them.
    pub(super) fn peer_rules(&self) -> PeerRules {
        let relays = self.relays.iter().flat_map(|relay| [Some(relay.address), relay.advertised]);
        PeerRules {
            allow: self.peers.allow.clone(),
            deny: self.peers.deny.clone(),
            nat64: self.peers.nat64.clone(),
            own: Vec::new(),
            relays: relays.flatten().collect(),
        }
    }

    /// Who takes access tokens, if any are taken.
    #[cfg(feature = "oauth")]
    pub(super) fn token_server(&self, realm: &str) -> Option<control::TokenServer> {
        let name = self.oauth_server_name.as_deref().unwrap_or(realm).to_owned();
        let keys: Vec<_> = self.oauth_keys.iter().filter_map(OauthKey::to_proto).collect();
        (!keys.is_empty()).then_some(control::TokenServer { name, keys })
    }

    /// What NAT behaviour discovery is answered from over streams, where these addresses are listened to: pairs
    /// of which all four are.
    pub(super) fn stream_behaviours(&self, listen: &[SocketAddr]) -> Vec<Behaviour> {
        let is_served = |address: &SocketAddr| {
            listen.iter().any(|it| {
                it == address
                    || it.ip().is_unspecified()
                        && it.is_ipv4() == address.is_ipv4()
                        && it.port() == address.port()
            })
        };
        let all = self.behaviours().into_iter();
        all.filter(|behaviour| behaviour.sockets().iter().all(is_served)).collect()
    }

    /// What NAT behaviour discovery is answered from.
    pub(super) fn behaviours(&self) -> Vec<Behaviour> {
        let pairs = self.discovery.iter();
        pairs.filter_map(|pair| Behaviour::new(pair.primary, pair.alternate)).collect()
    }
}

/// Whom may be relayed to, besides what is denied by default. The longest prefix that holds an
/// address decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Prefixes of NAT64 translators besides 64:ff9b::/96 (RFC 6052): their addresses are judged as
    /// the IPv4 addresses in them.
    pub nat64: Vec<Ipv6Net>,
}

/// How much clients may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// Allocations altogether (508).
    pub allocations: u32,
    /// Of one user (486).
    pub allocations_per_user: u32,
    /// Permissions of one allocation (508).
    pub permissions: u32,
    /// Channels of one allocation (508).
    pub channels: u32,
    /// TCP connections to peers of one allocation.
    pub peer_connections: u32,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self {
            allocations: 100_000,
            allocations_per_user: 1_000,
            permissions: 100,
            channels: 100,
            peer_connections: 16,
        }
    }
}

/// How much streams of clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Streams altogether.
    pub connections: u32,
    /// Of one prefix.
    pub connections_per_prefix: u32,
    /// Bytes that wait to be written to one stream.
    pub send_queue: usize,
    pub handshake_timeout: Duration,
    pub idle_timeout: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        let default = streams::Settings::default();
        Self {
            connections: default.connections,
            connections_per_prefix: default.connections_per_prefix,
            send_queue: default.send_queue,
            handshake_timeout: default.timeouts.handshake,
            idle_timeout: default.timeouts.idle,
        }
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            listen_tcp: Vec::new(),
            listen_tls: Vec::new(),
            listen_dtls: Vec::new(),
            certificate: None,
            relays: Vec::new(),
            discovery: Vec::new(),
            alternate_servers: Vec::new(),
            answer_binding: false,
            binding_rate: Rate::of_bytes(12_500_000),
            strict_expiry: false,
            mobility: false,
            rfc5766_channels: false,
            tcp_relay: true,
            default_lifetime: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3600),
            allocation_rate: None,
            user_rate: None,
            oauth_server_name: None,
            oauth_keys: Vec::new(),
            peers: Peers::default(),
            limits: TurnLimits::default(),
            streams: StreamLimits::default(),
        }
    }
}
