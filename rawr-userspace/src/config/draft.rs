//! What a file or the flags say, before defaults and checks across keys.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;
use toml::de::DeValue;

use super::draft_bridge::{DraftBridge, read_bridge};
use super::draft_turn::{DraftTurn, read_turn};
use super::reader::{Mistake, Mistakes, Place, Problem, Source, Table};
use super::value::{
    Credentials, Datapath, InstanceName, PortRange, Rate, Secret, ServerAddress, TableLength,
    ValueError, opaque,
};
use super::{Config, Gateway, STUN_PORT, admin_socket_in, state_dir_of, trusted_by_default};
use crate::control::{Kind, Limits, ServerConfig};

/// A configuration in which anything may be left out. Each field is what [`Config`]'s is.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields of Config")]
pub struct Draft {
    pub instance: Option<InstanceName>,
    pub kind: Option<Kind>,
    pub listen: Option<Vec<SocketAddr>>,
    pub interfaces: Option<Vec<String>>,
    pub datapath: Option<Datapath>,
    pub table_length: Option<TableLength>,
    pub channel_table_length: Option<TableLength>,
    pub data_ports: Option<PortRange>,
    pub userspace_threads: Option<usize>,
    pub socket_buffer: Option<usize>,
    pub gateways: Option<Vec<Gateway>>,
    pub trusted: Option<Vec<IpNet>>,
    pub realm: Option<String>,
    pub users: Option<Vec<Credentials>>,
    pub secrets: Option<Vec<Secret>>,
    pub mac_lookup: Option<bool>,
    pub probe_interfaces: Option<Vec<String>>,
    pub answer_short_binding: Option<bool>,
    pub default_lifetime: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    pub hop_limit: Option<u8>,
    pub session_rate: Option<Rate>,
    pub limits: DraftLimits,
    /// The file alone says it.
    pub turn: DraftTurn,
    pub bridge: DraftBridge,
    pub state_dir: Option<PathBuf>,
    pub admin_socket: Option<PathBuf>,
    pub log: Option<LevelFilter>,
    /// Where each key stands in the file; nothing for flags.
    pub places: BTreeMap<String, Place>,
}

/// As [`Draft`], of [`Limits`].
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields of Limits")]
pub struct DraftLimits {
    pub sessions: Option<usize>,
    pub legs_per_prefix: Option<u32>,
    pub half_open: Option<u32>,
    pub half_open_per_prefix: Option<u32>,
    pub exchanges: Option<usize>,
    pub exchanges_per_prefix: Option<u32>,
    pub requests_per_second: Option<u32>,
    pub unverified_per_second: Option<u32>,
    pub neighbours: Option<usize>,
}

impl Draft {
    /// Reads the text of a file. All mistakes in it are told, not only the first.
    pub fn from_toml(text: &str) -> Result<Self, Mistakes> {
        let (draft, mistakes, _) = read(text);
        if mistakes.is_empty() { Ok(draft) } else { Err(Mistakes(mistakes)) }
    }

    /// This draft, with what `flags` say in place of what it says.
    pub fn overridden_by(self, flags: Self) -> Self {
        Self {
            instance: flags.instance.or(self.instance),
            kind: flags.kind.or(self.kind),
            listen: flags.listen.or(self.listen),
            interfaces: flags.interfaces.or(self.interfaces),
            datapath: flags.datapath.or(self.datapath),
            table_length: flags.table_length.or(self.table_length),
            channel_table_length: flags.channel_table_length.or(self.channel_table_length),
            data_ports: flags.data_ports.or(self.data_ports),
            userspace_threads: flags.userspace_threads.or(self.userspace_threads),
            socket_buffer: flags.socket_buffer.or(self.socket_buffer),
            gateways: flags.gateways.or(self.gateways),
            trusted: flags.trusted.or(self.trusted),
            realm: flags.realm.or(self.realm),
            users: flags.users.or(self.users),
            secrets: flags.secrets.or(self.secrets),
            mac_lookup: flags.mac_lookup.or(self.mac_lookup),
            probe_interfaces: flags.probe_interfaces.or(self.probe_interfaces),
            answer_short_binding: flags.answer_short_binding.or(self.answer_short_binding),
            default_lifetime: flags.default_lifetime.or(self.default_lifetime),
            max_lifetime: flags.max_lifetime.or(self.max_lifetime),
            hop_limit: flags.hop_limit.or(self.hop_limit),
            session_rate: flags.session_rate.or(self.session_rate),
            limits: self.limits.overridden_by(flags.limits),
            turn: self.turn,
            bridge: self.bridge.overridden_by(flags.bridge),
            state_dir: flags.state_dir.or(self.state_dir),
            admin_socket: flags.admin_socket.or(self.admin_socket),
            log: flags.log.or(self.log),
            places: self.places,
        }
    }

    /// Adds the defaults and checks what concerns several keys.
    pub fn finish(self) -> Result<Config, Mistakes> {
        let mistakes = self.contradictions();
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let default = Config::default();
        let kind = self.kind.unwrap_or(default.kind);
        let instance = self.instance.unwrap_or(default.instance);
        let state_dir = self.state_dir.unwrap_or_else(|| state_dir_of(&instance));
        Ok(Config {
            kind,
            listen: self.listen.unwrap_or(default.listen),
            interfaces: self.interfaces.unwrap_or_default(),
            datapath: self.datapath.unwrap_or(default.datapath),
            table_length: self.table_length.unwrap_or(default.table_length),
            channel_table_length: self
                .channel_table_length
                .or(self.table_length)
                .unwrap_or(default.channel_table_length),
            data_ports: self.data_ports.unwrap_or(default.data_ports),
            userspace_threads: self.userspace_threads.unwrap_or(default.userspace_threads),
            socket_buffer: self.socket_buffer.unwrap_or(default.socket_buffer),
            gateways: self.gateways.unwrap_or_default(),
            trusted: self.trusted.unwrap_or_else(|| trusted_by_default(kind)),
            realm: self.realm.unwrap_or(default.realm),
            users: self.users.unwrap_or_default(),
            secrets: self.secrets.unwrap_or_default(),
            mac_lookup: self.mac_lookup.unwrap_or(kind == Kind::Gateway),
            probe_interfaces: self.probe_interfaces.unwrap_or_default(),
            answer_short_binding: self.answer_short_binding.unwrap_or(kind == Kind::Root),
            default_lifetime: self.default_lifetime.unwrap_or(default.default_lifetime),
            max_lifetime: self.max_lifetime.unwrap_or(default.max_lifetime),
            hop_limit: self.hop_limit.unwrap_or(default.hop_limit),
            session_rate: self.session_rate,
            limits: self.limits.finish(),
            turn: self.turn.finish(),
            bridge: self.bridge.finish(kind),
            admin_socket: self.admin_socket.unwrap_or_else(|| admin_socket_in(&state_dir)),
            state_dir,
            log: self.log.unwrap_or(default.log),
            instance,
        })
    }

    /// Values that are right by themselves and wrong together.
    fn contradictions(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut claim = |key: &str, holds: bool, why: &'static str| {
            if !holds {
                let place = self.places.get(key).copied();
                let problem = Problem::Value(ValueError::Because(why));
                found.push(Mistake { place, key: key.to_owned(), problem });
            }
        };
        let default = Config::default();
        let is_root = self.kind == Some(Kind::Root);
        let has_parents = self.gateways.as_ref().is_some_and(|gateways| !gateways.is_empty());
        claim("gateways", !(is_root && has_parents), "a root escalates nowhere: leave them out");
        let parents = self.gateways.as_ref().map_or(0, Vec::len);
        let few = parents <= ServerConfig::MAX_PARENTS;
        claim("gateways", few, "are too many: at most 8 are used");
        claim("mac_lookup", !(is_root && self.mac_lookup == Some(true)), "a root looks up no MAC");
        let lifetime = self.default_lifetime.unwrap_or(default.default_lifetime);
        let longest = self.max_lifetime.unwrap_or(default.max_lifetime);
        claim("default_lifetime", lifetime <= longest, "is longer than max_lifetime");
        let listen = self.listen.as_ref().unwrap_or(&default.listen);
        let ports = self.data_ports.as_ref().unwrap_or(&default.data_ports);
        let apart = !listen.iter().any(|address| ports.0.contains(&address.port()));
        claim("data_ports", apart, "contain a port of listen: keep the two apart");
        let apart = !self.turn.ports().any(|port| ports.0.contains(&port));
        claim("data_ports", apart, "contain a port of the table turn: keep the two apart");
        let mut dtls = self.turn.listen_dtls.iter().flatten();
        claim(
            "turn.listen_dtls",
            dtls.all(|address| listen.contains(address) || !overlaps(listen, *address)),
            "has a port of listen, but not its address: write both alike, then both are served there",
        );
        let answers = self.turn.answer_binding == Some(true);
        claim(
            "turn.answer_binding",
            !answers || self.answer_short_binding.unwrap_or(is_root),
            "has no effect while answer_short_binding is false, as it is unless this is a root: set that to \
             true, or leave this out",
        );
        claim(
            "turn.answer_binding",
            !answers || self.turn.discovery.as_ref().is_none_or(Vec::is_empty),
            "has no effect with turn.discovery, where answers name the other address: leave out one of the two",
        );
        self.turn.claims(&mut claim);
        let users = self.users.as_ref().is_some_and(|users| !users.is_empty());
        let secrets = self.secrets.as_ref().is_some_and(|secrets| !secrets.is_empty());
        self.bridge.claims(users || secrets, &mut claim);
        found
    }
}

/// Whether a socket at `address` would be beside one of `listen`, or take datagrams from it.
fn overlaps(listen: &[SocketAddr], address: SocketAddr) -> bool {
    listen.iter().any(|it| {
        let is_everywhere = it.ip().is_unspecified() || address.ip().is_unspecified();
        is_everywhere && it.port() == address.port() && it.is_ipv4() == address.is_ipv4()
    })
}

impl DraftLimits {
    fn overridden_by(self, flags: Self) -> Self {
        Self {
            sessions: flags.sessions.or(self.sessions),
            legs_per_prefix: flags.legs_per_prefix.or(self.legs_per_prefix),
            half_open: flags.half_open.or(self.half_open),
            half_open_per_prefix: flags.half_open_per_prefix.or(self.half_open_per_prefix),
            exchanges: flags.exchanges.or(self.exchanges),
            exchanges_per_prefix: flags.exchanges_per_prefix.or(self.exchanges_per_prefix),
            requests_per_second: flags.requests_per_second.or(self.requests_per_second),
            unverified_per_second: flags.unverified_per_second.or(self.unverified_per_second),
            neighbours: flags.neighbours.or(self.neighbours),
        }
    }

    fn finish(self) -> Limits {
        let default = Limits::default();
        Limits {
            sessions: self.sessions.unwrap_or(default.sessions),
            legs_per_prefix: self.legs_per_prefix.unwrap_or(default.legs_per_prefix),
            half_open: self.half_open.unwrap_or(default.half_open),
            half_open_per_prefix: self.half_open_per_prefix.unwrap_or(default.half_open_per_prefix),
            exchanges: self.exchanges.unwrap_or(default.exchanges),
            exchanges_per_prefix: self.exchanges_per_prefix.unwrap_or(default.exchanges_per_prefix),
            requests_per_second: self.requests_per_second.unwrap_or(default.requests_per_second),
            unverified_per_second: self
                .unverified_per_second
                .unwrap_or(default.unverified_per_second),
            neighbours: self.neighbours.unwrap_or(default.neighbours),
        }
    }
}

/// What the file says, what is wrong with it, and which keys were asked for (and were there).
fn read(text: &str) -> (Draft, Vec<Mistake>, BTreeMap<String, bool>) {
    let source = Source::new(text);
    let root = source.parse();
    let mut draft = read_top(source.table("", root.get_ref()));
    drop(root);
    let (mistakes, places, asked) = source.finish();
    draft.places = places;
    (draft, mistakes, asked)
}

fn read_top(top: Table<'_>) -> Draft {
    let draft = Draft {
        instance: top.read("instance", parsed),
        kind: top.read("kind", parsed),
        listen: top.list("listen", |value| listen_address(text(value)?)),
        interfaces: top.list("interfaces", interface),
        datapath: top.read("datapath", parsed),
        table_length: top.read("table_length", |value| integer_text(value)?.parse()),
        channel_table_length: top
            .read("channel_table_length", |value| integer_text(value)?.parse()),
        data_ports: top.read("data_ports", parsed),
        userspace_threads: top.read("userspace_threads", |value| integer(value, 1..=64)),
        socket_buffer: top.read("socket_buffer", |value| integer(value, 4096..=1 << 30)),
        gateways: top.tables("gateways").map(|tables| {
            tables.into_iter().filter_map(|(table, span)| read_gateway(table, span)).collect()
        }),
        trusted: top.list("trusted", |value| subnet(text(value)?)),
        realm: top.read("realm", realm),
        users: top.tables("users").map(|tables| {
            tables.into_iter().filter_map(|(table, span)| read_user(table, span)).collect()
        }),
        secrets: top.list("secrets", parsed),
        mac_lookup: top.read("mac_lookup", boolean),
        probe_interfaces: top.list("probe_interfaces", interface),
        answer_short_binding: top.read("answer_short_binding", boolean),
        default_lifetime: top.read("default_lifetime", seconds),
        max_lifetime: top.read("max_lifetime", seconds),
        hop_limit: top.read("hop_limit", |value| integer(value, 1..=64)),
        session_rate: top.read("session_rate", parsed),
        limits: top.table("limits").map(read_limits).unwrap_or_default(),
        turn: top.table("turn").map(read_turn).unwrap_or_default(),
        bridge: top.table("bridge").map(read_bridge).unwrap_or_default(),
        state_dir: top.read("state_dir", absolute_path),
        admin_socket: top.read("admin_socket", absolute_path),
        log: top.read("log", log_level),
        places: BTreeMap::new(),
    };
    top.finish();
    draft
}

fn read_limits(table: Table<'_>) -> DraftLimits {
    let count = |value: &DeValue<'_>| integer(value, 1..=u32::MAX);
    let size = |value: &DeValue<'_>| integer(value, 1..=u32::MAX as usize);
    let limits = DraftLimits {
        sessions: table.read("sessions", size),
        legs_per_prefix: table.read("legs_per_prefix", count),
        half_open: table.read("half_open", count),
        half_open_per_prefix: table.read("half_open_per_prefix", count),
        exchanges: table.read("exchanges", size),
        exchanges_per_prefix: table.read("exchanges_per_prefix", count),
        requests_per_second: table.read("requests_per_second", count),
        unverified_per_second: table.read("unverified_per_second", count),
        neighbours: table.read("neighbours", size),
    };
    table.finish();
    limits
}

fn read_gateway(table: Table<'_>, span: Range<usize>) -> Option<Gateway> {
    let address: Option<ServerAddress> = table.require("address", span.clone(), parsed);
    let named = table.has("username") || table.has("password");
    let credentials = named.then(|| read_credentials(&table, "username", span));
    table.finish();
    Some(Gateway {
        address: address?,
        credentials: match credentials {
            Some(found) => Some(found?),
            None => None,
        },
    })
}

fn read_user(table: Table<'_>, span: Range<usize>) -> Option<Credentials> {
    let credentials = read_credentials(&table, "name", span);
    table.finish();
    credentials
}

fn read_credentials(
    table: &Table<'_>,
    name_key: &'static str,
    span: Range<usize>,
) -> Option<Credentials> {
    let username = table.require(name_key, span.clone(), |value| match text(value)? {
        name if name.contains(':') => Err(ValueError::Because("must not contain a colon")),
        name => opaque(name),
    });
    let password = table.require("password", span, |value| Ok(Secret::new(opaque(text(value)?)?)));
    Some(Credentials { username: username?, password: password? })
}

pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, ValueError> {
    value.as_str().ok_or(ValueError::Expected("text in quotes"))
}

pub(super) fn parsed<T: FromStr<Err = ValueError>>(value: &DeValue<'_>) -> Result<T, ValueError> {
    text(value)?.parse()
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, ValueError> {
    value.as_bool().ok_or(ValueError::Expected("true or false"))
}

fn integer_text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, ValueError> {
    match value.as_integer() {
        Some(integer) if integer.radix() == 10 => Ok(integer.as_str()),
        _ => Err(ValueError::Expected("a whole number, without quotes")),
    }
}

pub(super) fn integer<T: FromStr + PartialOrd + std::fmt::Display>(
    value: &DeValue<'_>,
    range: RangeInclusive<T>,
) -> Result<T, ValueError> {
    match integer_text(value)?.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => {
            let (least, most) = range.into_inner();
            Err(ValueError::Other(format!("expected a number from {least} to {most}")))
        }
    }
}

pub(super) fn seconds(value: &DeValue<'_>) -> Result<Duration, ValueError> {
    integer(value, 10..=86_400).map(Duration::from_secs)
}

fn interface(value: &DeValue<'_>) -> Result<String, ValueError> {
    interface_name(text(value)?)
}

/// The name of a network interface that can be forwarded on.
pub(crate) fn interface_name(name: &str) -> Result<String, ValueError> {
    match name {
        "lo" => Err(ValueError::Because("the loopback interface cannot be forwarded on")),
        "" => Err(ValueError::Because("must not be empty")),
        // IFNAMSIZ, with the final zero.
        name if name.len() > 15 || name.contains(['/', ' ']) => {
            Err(ValueError::Expected("an interface's name, as `ip link` shows it"))
        }
        name => Ok(name.to_owned()),
    }
}

/// An address and a port, or either alone: every address, or port 3478.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, ValueError> {
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, STUN_PORT)));
    match address {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(ValueError::Expected(
            "an address with or without port, as \"0.0.0.0:3478\" or \"[::]:3478\"",
        )),
    }
}

/// A subnet, or one address.
pub(crate) fn subnet(text: &str) -> Result<IpNet, ValueError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| ValueError::Expected("a subnet such as \"192.168.0.0/16\" or \"fd00::/8\""))
        .and_then(|net| {
            let whole = [
                IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
                IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            ];
            if whole.contains(&net) {
                return Err(ValueError::Because("no host has this address; for every host add /0"));
            }
            Ok(net.trunc())
        })
}

fn realm(value: &DeValue<'_>) -> Result<String, ValueError> {
    match text(value)? {
        // RFC 8489 §14.9: fewer than 128 characters.
        realm if (1..128).contains(&realm.chars().count()) && !realm.contains([':', '"']) => {
            opaque(realm)
        }
        _ => Err(ValueError::Expected("1 to 127 characters without colon and quote")),
    }
}

pub(super) fn absolute_path(value: &DeValue<'_>) -> Result<PathBuf, ValueError> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ValueError::Expected("a path that begins with /"))
    }
}

fn log_level(value: &DeValue<'_>) -> Result<LevelFilter, ValueError> {
    let levels = ValueError::Choice(&["off", "error", "warn", "info", "debug", "trace"]);
    text(value)?.parse().map_err(|_| levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(feature = "dtls", feature = "oauth"))]
    use crate::config::{Bridge, Peers, Turn};

    const EXAMPLE: &str = include_str!("../../../docs/rawr.example.toml");

    /// The example with every key that is commented out put in force.
    fn example_in_force() -> String {
        let in_force = |line: &'static str| {
            let rest = line.strip_prefix('#').unwrap_or(line);
            if rest.starts_with(' ') || rest.starts_with('#') { "" } else { rest }
        };
        EXAMPLE.lines().map(in_force).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_holds_every_key() {
        let (_, mistakes, asked) = read(&example_in_force());
        assert_eq!(mistakes, []);
        assert!(asked.len() > 35, "{asked:?}");
        let missing: Vec<_> = asked.iter().filter(|(_, there)| !**there).collect();
        assert!(missing.is_empty(), "not in the example: {missing:?}");
    }

    // A build without a feature refuses its keys.
    #[cfg(all(feature = "dtls", feature = "oauth"))]
    #[test]
    fn the_example_shows_the_defaults() {
        let default = Config::default();
        assert_eq!(Config::from_toml(EXAMPLE).unwrap(), default);
        let shown = Config::from_toml(&example_in_force()).unwrap();
        assert!(!shown.gateways.is_empty() && !shown.users.is_empty() && !shown.secrets.is_empty());
        assert!(shown.session_rate.is_some());
        assert!(!shown.turn.relays.is_empty() && shown.turn.certificate.is_some());
        assert!(shown.bridge.registry.is_some());
        // What is empty by default is shown by an example instead.
        let shown = Config {
            gateways: Vec::new(),
            users: Vec::new(),
            secrets: Vec::new(),
            interfaces: Vec::new(),
            probe_interfaces: Vec::new(),
            session_rate: None,
            turn: Turn {
                listen_tcp: Vec::new(),
                listen_tls: Vec::new(),
                listen_dtls: Vec::new(),
                certificate: None,
                relays: Vec::new(),
                discovery: Vec::new(),
                alternate_servers: Vec::new(),
                allocation_rate: None,
                user_rate: None,
                oauth_server_name: None,
                oauth_keys: Vec::new(),
                peers: Peers::default(),
                ..shown.turn
            },
            bridge: Bridge { registry: None, ..shown.bridge },
            ..shown
        };
        assert_eq!(shown, default);
    }
}
