//! As [`super::draft`], of the table `turn`.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::draft::{
    absolute_path, boolean, integer, listen_address, parsed, seconds, subnet, text,
};
use super::oauth::{OauthKey, read_key, server_name};
use super::reader::Table;
use super::turn::{Discovery, Peers, Relay, StreamLimits, Turn, TurnLimits};
use super::value::{Rate, ValueError};
use crate::io::streams;

/// Port of STUN and TURN over TLS and DTLS (RFC 8489 §18.6).
const TLS_PORT: u16 = rawr_proto::DEFAULT_SECURE_PORT;

/// A table `turn` in which anything may be left out. Each field is what [`Turn`]'s is.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields of Turn")]
pub struct DraftTurn {
    pub listen_tcp: Option<Vec<SocketAddr>>,
    pub listen_tls: Option<Vec<SocketAddr>>,
    pub listen_dtls: Option<Vec<SocketAddr>>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub relays: Option<Vec<Relay>>,
    pub discovery: Option<Vec<Discovery>>,
    pub alternate_servers: Option<Vec<SocketAddr>>,
    pub answer_binding: Option<bool>,
    pub binding_rate: Option<Rate>,
    pub strict_expiry: Option<bool>,
    pub mobility: Option<bool>,
    pub rfc5766_channels: Option<bool>,
    pub tcp_relay: Option<bool>,
    pub default_lifetime: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    pub allocation_rate: Option<Rate>,
    pub user_rate: Option<Rate>,
    pub oauth_server_name: Option<String>,
    pub oauth_keys: Option<Vec<OauthKey>>,
    pub allow: Option<Vec<IpNet>>,
    pub deny: Option<Vec<IpNet>>,
    pub nat64: Option<Vec<Ipv6Net>>,
    pub limits: Option<TurnLimits>,
    pub streams: Option<StreamLimits>,
}

impl DraftTurn {
    /// Adds the defaults.
    pub(super) fn finish(self) -> Turn {
        let default = Turn::default();
        let files = self.certificate.zip(self.key);
        Turn {
            listen_tcp: self.listen_tcp.unwrap_or_default(),
            listen_tls: self.listen_tls.unwrap_or_default(),
            listen_dtls: self.listen_dtls.unwrap_or_default(),
            certificate: files
                .map(|(certificate, key)| streams::CertificateFiles { certificate, key }),
            relays: self.relays.unwrap_or_default(),
            discovery: self.discovery.unwrap_or_default(),
            alternate_servers: self.alternate_servers.unwrap_or_default(),
            answer_binding: self.answer_binding.unwrap_or(default.answer_binding),
            binding_rate: self.binding_rate.unwrap_or(default.binding_rate),
            strict_expiry: self.strict_expiry.unwrap_or(default.strict_expiry),
            mobility: self.mobility.unwrap_or(default.mobility),
            rfc5766_channels: self.rfc5766_channels.unwrap_or(default.rfc5766_channels),
            tcp_relay: self.tcp_relay.unwrap_or(default.tcp_relay),
            default_lifetime: self.default_lifetime.unwrap_or(default.default_lifetime),
            max_lifetime: self.max_lifetime.unwrap_or(default.max_lifetime),
            allocation_rate: self.allocation_rate,
            user_rate: self.user_rate,
            oauth_server_name: self.oauth_server_name,
            oauth_keys: self.oauth_keys.unwrap_or_default(),
            peers: Peers {
                allow: self.allow.unwrap_or_default(),
                deny: self.deny.unwrap_or_default(),
                nat64: self.nat64.unwrap_or_default(),
            },
            limits: self.limits.unwrap_or_default(),
            streams: self.streams.unwrap_or_default(),
        }
    }

    /// Calls `claim` with what must hold among these values: key, whether it does, and why it should.
    pub(super) fn claims(&self, claim: &mut dyn FnMut(&str, bool, &'static str)) {
        let default = Turn::default();
        let is_any = |addresses: &Option<Vec<_>>| addresses.iter().any(|it| !it.is_empty());
        let has_tls = is_any(&self.listen_tls);
        let has_dtls = is_any(&self.listen_dtls);
        let (certificate, key) = (self.certificate.is_some(), self.key.is_some());
        claim(
            "turn.listen_tls",
            !has_tls || certificate && key,
            "needs a certificate: set turn.certificate and turn.key",
        );
        claim(
            "turn.listen_dtls",
            !has_dtls || certificate && key,
            "needs a certificate: set turn.certificate and turn.key",
        );
        claim(
            "turn.listen_dtls",
            !has_dtls || cfg!(feature = "dtls"),
            "is not in this build: build rawr with the Cargo feature dtls",
        );
        claim("turn.certificate", !certificate || key, "needs turn.key as well");
        claim("turn.key", !key || certificate, "needs turn.certificate as well");
        let oauth = self.oauth_keys.as_deref().unwrap_or_default();
        claim(
            "turn.oauth_keys",
            oauth.is_empty() || cfg!(feature = "oauth"),
            "are not in this build: build rawr with the Cargo feature oauth",
        );
        let is_repeated =
            |(at, key): (usize, &OauthKey)| oauth[..at].iter().any(|it| it.kid == key.kid);
        let repeated = oauth.iter().enumerate().any(is_repeated);
        claim("turn.oauth_keys", !repeated, "hold one kid twice: clients name a key by it");
        let lifetime = self.default_lifetime.unwrap_or(default.default_lifetime);
        let longest = self.max_lifetime.unwrap_or(default.max_lifetime);
        claim("turn.default_lifetime", lifetime <= longest, "is longer than turn.max_lifetime");
        let idle = self.streams.unwrap_or_default().idle_timeout;
        claim(
            "turn.streams",
            idle > longest,
            "idle_timeout must be longer than turn.max_lifetime: a client that only receives says \
             nothing else than its refreshes",
        );
        let (allow, deny) = (self.allow.as_deref(), self.deny.as_deref());
        let deny = deny.unwrap_or_default();
        let both = allow.unwrap_or_default().iter().any(|net| deny.contains(net));
        claim("turn.deny_peers", !both, "hold a prefix that turn.allow_peers has, too: decide");
        let discovery = self.discovery.as_deref().unwrap_or_default();
        let v4 = discovery.iter().filter(|pair| pair.primary.is_ipv4()).count();
        let once = v4 <= 1 && discovery.len() - v4 <= 1;
        claim("turn.discovery", once, "is there twice for one family: leave one pair for each");
    }

    /// The ports that clients connect to.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        let listen =
            [&self.listen_tcp, &self.listen_tls, &self.listen_dtls].into_iter().flatten().flatten();
        let discovery = self.discovery.iter().flatten();
        let discovery = discovery.flat_map(|pair| [pair.primary, pair.alternate]);
        listen.copied().chain(discovery).map(|address| address.port())
    }
}

pub(super) fn read_turn(table: Table<'_>) -> DraftTurn {
    let rate = parsed::<Rate>;
    let draft = DraftTurn {
        listen_tcp: table.list("listen_tcp", |value| listen_address(text(value)?)),
        listen_tls: table.list("listen_tls", |value| secure_address(text(value)?)),
        listen_dtls: table.list("listen_dtls", |value| secure_address(text(value)?)),
        certificate: table.read("certificate", absolute_path),
        key: table.read("key", absolute_path),
        relays: table.tables("relays").map(|tables| {
            tables.into_iter().filter_map(|(table, span)| read_relay(table, span)).collect()
        }),
        discovery: table.tables("discovery").map(|tables| {
            tables.into_iter().filter_map(|(table, span)| read_discovery(table, span)).collect()
        }),
        alternate_servers: table.list("alternate_servers", |value| concrete(text(value)?)),
        answer_binding: table.read("answer_binding", boolean),
        binding_rate: table.read("binding_rate", rate),
        strict_expiry: table.read("strict_expiry", boolean),
        mobility: table.read("mobility", boolean),
        rfc5766_channels: table.read("rfc5766_channels", boolean),
        tcp_relay: table.read("tcp_relay", boolean),
        default_lifetime: table.read("default_lifetime", seconds),
        max_lifetime: table.read("max_lifetime", seconds),
        allocation_rate: table.read("allocation_rate", rate),
        user_rate: table.read("user_rate", rate),
        oauth_server_name: table.read("oauth_server_name", |value| server_name(text(value)?)),
        oauth_keys: table.tables("oauth_keys").map(|tables| {
            tables.into_iter().filter_map(|(table, span)| read_key(table, span)).collect()
        }),
        allow: table.list("allow_peers", |value| subnet(text(value)?)),
        deny: table.list("deny_peers", |value| subnet(text(value)?)),
        nat64: table.list("nat64_prefixes", |value| nat64_prefix(text(value)?)),
        limits: table.table("limits").map(read_limits),
        streams: table.table("streams").map(read_streams),
    };
    table.finish();
    draft
}

fn read_limits(table: Table<'_>) -> TurnLimits {
    let default = TurnLimits::default();
    let read =
        |key, default| table.read(key, |value| integer(value, 1..=u32::MAX)).unwrap_or(default);
    let limits = TurnLimits {
        allocations: read("allocations", default.allocations),
        allocations_per_user: read("allocations_per_user", default.allocations_per_user),
        permissions: read("permissions", default.permissions),
        channels: table
            .read("channels", |value| integer(value, 1..=4096))
            .unwrap_or(default.channels),
        peer_connections: read("peer_connections", default.peer_connections),
    };
    table.finish();
    limits
}

fn read_streams(table: Table<'_>) -> StreamLimits {
    let default = StreamLimits::default();
    let count =
        |key, default| table.read(key, |value| integer(value, 1..=u32::MAX)).unwrap_or(default);
    let streams = StreamLimits {
        connections: count("connections", default.connections),
        connections_per_prefix: count("connections_per_prefix", default.connections_per_prefix),
        // At least one ChannelData of the longest length has to fit.
        send_queue: table
            .read("send_queue", |value| integer(value, 1 << 17..=1 << 28))
            .unwrap_or(default.send_queue),
        handshake_timeout: table
            .read("handshake_timeout", |value| integer(value, 1..=600).map(Duration::from_secs))
            .unwrap_or(default.handshake_timeout),
        idle_timeout: table.read("idle_timeout", seconds).unwrap_or(default.idle_timeout),
    };
    table.finish();
    streams
}

fn read_relay(table: Table<'_>, span: Range<usize>) -> Option<Relay> {
    let address: Option<IpAddr> = table.require("address", span, |value| ip(text(value)?));
    let advertised = table.read("advertised", |value| {
        let advertised = ip(text(value)?)?;
        match address {
            Some(address) if address.is_ipv4() != advertised.is_ipv4() => Err(ValueError::Because(
                "is of the other family than address: name one of the same",
            )),
            _ => Ok(advertised),
        }
    });
    table.finish();
    Some(Relay { address: address?, advertised })
}

fn read_discovery(table: Table<'_>, span: Range<usize>) -> Option<Discovery> {
    let primary = table.require("primary", span.clone(), |value| concrete(text(value)?));
    let alternate = table.require("alternate", span, |value| {
        let alternate: SocketAddr = concrete(text(value)?)?;
        match primary {
            Some(primary) if primary.is_ipv4() != alternate.is_ipv4() => Err(ValueError::Because(
                "is of the other family than primary: pair each family alone",
            )),
            Some(primary)
                if primary.ip() == alternate.ip() || primary.port() == alternate.port() =>
            {
                Err(ValueError::Because(
                    "must differ from primary in address and port (RFC 5780, section 6)",
                ))
            }
            _ => Ok(alternate),
        }
    });
    table.finish();
    Some(Discovery { primary: primary?, alternate: alternate? })
}

/// An address to listen on, whose port may be left out.
fn secure_address(text: &str) -> Result<SocketAddr, ValueError> {
    text.parse().map_or_else(|_| listen_address(text), |ip| Ok(SocketAddr::new(ip, TLS_PORT)))
}

/// One address of a host.
fn ip(text: &str) -> Result<IpAddr, ValueError> {
    match text.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => {
            Err(ValueError::Expected("an address of one host, as \"192.0.2.1\" or \"2001:db8::1\""))
        }
    }
}

/// One address of a host, with port.
fn concrete(text: &str) -> Result<SocketAddr, ValueError> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(address),
        _ => Err(ValueError::Expected(
            "an address of one host with port, as \"192.0.2.1:3478\" or \"[2001:db8::1]:3478\"",
        )),
    }
}

/// RFC 6052 §2.2 knows these lengths.
fn nat64_prefix(text: &str) -> Result<Ipv6Net, ValueError> {
    match text.parse::<Ipv6Net>() {
        Ok(net) if matches!(net.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96) => Ok(net.trunc()),
        _ => Err(ValueError::Expected(
            "an IPv6 prefix of length 32, 40, 48, 56, 64 or 96, as \"2001:db8:64::/96\"",
        )),
    }
}
