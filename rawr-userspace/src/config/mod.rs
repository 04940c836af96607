//! What the daemon is to do, from a TOML file and from flags, checked once and for all.
//!
//! A [`Draft`] holds what was said, a [`Config`] what follows from it. `docs/rawr.example.toml`
//! explains every key.

mod bridge;
pub mod coturn;
mod draft;
mod draft_bridge;
mod draft_turn;
mod oauth;
mod reader;
mod turn;
mod value;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;
use rawr_proto::ServerId;

pub use self::bridge::Bridge;
pub use self::draft::{Draft, DraftLimits};
pub(crate) use self::draft::{interface_name, listen_address, subnet};
pub use self::draft_bridge::DraftBridge;
pub use self::draft_turn::DraftTurn;
pub use self::oauth::{OauthAlgorithm, OauthKey};
pub use self::reader::{Mistake, Mistakes, Place, Problem};
pub use self::turn::{Discovery, Peers, Relay, StreamLimits, Turn, TurnLimits};
pub use self::value::{
    Credentials, Datapath, InstanceName, PortRange, Rate, Secret, ServerAddress, TableLength,
    ValueError,
};

use crate::control::{Behaviour, Parent, ServerConfig};
pub use crate::control::{BridgeLimits, Kind, Limits, Owner};
use crate::dataplane::slow_path;
use crate::doctor;
use crate::io::streams;

/// Where the file is if no other is named.
pub const DEFAULT_PATH: &str = "/etc/rawr/rawr.toml";
/// The STUN port (RFC 8489 §8.1).
pub const STUN_PORT: u16 = 3478;

/// The whole configuration. All values have been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub instance: InstanceName,
    pub kind: Kind,
    /// Addresses of the STUN port.
    pub listen: Vec<SocketAddr>,
    /// Interfaces to forward on in XDP. None named: every Ethernet interface that is up and has an
    /// address.
    pub interfaces: Vec<String>,
    pub datapath: Datapath,
    /// Entries of each port table.
    pub table_length: TableLength,
    /// Entries of each channel table.
    pub channel_table_length: TableLength,
    /// Where data ports are chosen from.
    pub data_ports: PortRange,
    pub userspace_threads: usize,
    /// Bytes of each data socket's buffers.
    pub socket_buffer: usize,
    /// Parents, the most wanted first.
    pub gateways: Vec<Gateway>,
    /// Clients from these subnets need no credentials.
    pub trusted: Vec<IpNet>,
    pub realm: String,
    pub users: Vec<Credentials>,
    /// Secrets behind ephemeral credentials.
    pub secrets: Vec<Secret>,
    /// Whether targets are looked up by MAC address among the neighbours.
    pub mac_lookup: bool,
    /// Interfaces on whose subnets silent hosts are searched for by ARP and NDP. None named: all of
    /// `interfaces`.
    pub probe_interfaces: Vec<String>,
    /// Whether plain STUN clients get an answer longer than their request.
    pub answer_short_binding: bool,
    /// Lifetime of a leg that asks for none.
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    pub hop_limit: u8,
    /// Most that each direction of a session may carry.
    pub session_rate: Option<Rate>,
    pub limits: Limits,
    pub turn: Turn,
    pub bridge: Bridge,
    pub state_dir: PathBuf,
    pub admin_socket: PathBuf,
    pub log: LevelFilter,
}

/// A parent of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub address: ServerAddress,
    /// What this server shows the parent. None where the parent trusts its address.
    pub credentials: Option<Credentials>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}", Report { path, mistakes })]
    Mistaken { path: PathBuf, mistakes: Mistakes },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(Some(path), Draft::default())
    }

    /// Reads a file, if there is one, lets `flags` override it, and checks the whole.
    pub fn load_with(path: Option<&Path>, flags: Draft) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return flags.finish().map_err(|mistakes| ConfigError::Mistaken {
                path: PathBuf::from("command line"),
                mistakes,
            });
        };
        let mistaken = |mistakes| ConfigError::Mistaken { path: path.to_owned(), mistakes };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let draft = Draft::from_toml(&text).map_err(mistaken)?;
        draft.overridden_by(flags).finish().map_err(mistaken)
    }

    /// Checks the text of a file.
    pub fn from_toml(text: &str) -> Result<Self, Mistakes> {
        Draft::from_toml(text)?.finish()
    }

    /// What concerns the control plane. `id` is this server's, `parents` are the gateways with their
    /// addresses resolved.
    pub fn server(&self, id: ServerId, parents: Vec<Parent>) -> ServerConfig {
        ServerConfig {
            kind: self.kind,
            id,
            parents,
            trusted: self.trusted.clone(),
            realm: self.realm.clone(),
            users: self.users.iter().map(Credentials::to_proto).collect(),
            secrets: self.secrets.iter().map(|secret| secret.expose().to_owned()).collect(),
            look_up_mac: Some(self.mac_lookup),
            answer_short_binding: self.answer_short_binding,
            default_lifetime: self.default_lifetime,
            max_lifetime: self.max_lifetime,
            hop_limit: self.hop_limit,
            rate: self.session_rate.map(Rate::bytes_per_second),
            limits: self.limits,
            strict_expiry: self.turn.strict_expiry,
            peers: self.turn.peer_rules(),
            alternates: self.turn.alternate_servers.clone(),
            behaviours: self.turn.behaviours(),
            behaviours_tcp: self.turn.stream_behaviours(&self.turn.listen_tcp),
            behaviours_tls: self.turn.stream_behaviours(&self.turn.listen_tls),
            turn: self.turn.server(&self.listen),
            bridge: self.bridge.server(),
            #[cfg(feature = "oauth")]
            tokens: self.turn.token_server(&self.realm),
        }
    }

    /// What concerns forwarding in userspace.
    pub fn slow_path(&self) -> slow_path::Options {
        slow_path::Options {
            ports: self.data_ports.0.clone(),
            threads: self.userspace_threads,
            socket_buffer: self.socket_buffer,
            ..slow_path::Options::default()
        }
    }

    /// What concerns streams of clients.
    pub fn streams(&self) -> streams::Settings {
        let limits = &self.turn.streams;
        streams::Settings {
            tcp: self.turn.listen_tcp.clone(),
            tls: self.turn.listen_tls.clone(),
            dtls: self.turn.listen_dtls.clone(),
            udp: self.udp_addresses(),
            certificate: self.turn.certificate.clone(),
            connections: limits.connections,
            connections_per_prefix: limits.connections_per_prefix,
            send_queue: limits.send_queue,
            timeouts: streams::Timeouts {
                handshake: limits.handshake_timeout,
                idle: limits.idle_timeout,
            },
            unverified_per_second: self.limits.unverified_per_second,
            relay_ports: self.data_ports.0.clone(),
        }
    }

    /// Every address of the STUN port over UDP: those that were named, and what behaviour discovery
    /// needs besides.
    pub fn udp_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.listen.clone();
        for address in self.turn.behaviours().iter().flat_map(Behaviour::sockets) {
            let is_served = |other: &SocketAddr| {
                let everywhere = SocketAddr::new(other.ip(), address.port());
                *other == address
                    || (other.ip().is_unspecified()
                        && *other == everywhere
                        && other.is_ipv4() == address.is_ipv4())
            };
            if !addresses.iter().any(is_served) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// What concerns the judgement of this host, which is to hold so many sessions.
    pub fn doctor(&self, sessions: u64) -> doctor::Options {
        let named = self.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
        let everywhere = self.listen.iter().any(|address| address.ip().is_unspecified());
        doctor::Options {
            interfaces: self.interfaces.clone(),
            sessions,
            data_addresses: if everywhere { Vec::new() } else { named.collect() },
            data_ports: self.data_ports.0.clone(),
            control_port: self.listen.first().map_or(STUN_PORT, SocketAddr::port),
            table_length: self.table_length.get(),
            channel_table_length: self.channel_table_length.get(),
        }
    }
}

impl Gateway {
    /// The parent as the control plane knows it, at one of the addresses of its name.
    pub fn parent(&self, address: SocketAddr) -> Parent {
        Parent { address, credentials: self.credentials.as_ref().map(Credentials::to_proto) }
    }
}

impl Default for Config {
    fn default() -> Self {
        let instance = InstanceName::default();
        let state_dir = state_dir_of(&instance);
        Self {
            instance,
            kind: Kind::Gateway,
            listen: vec![
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), STUN_PORT),
                SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), STUN_PORT),
            ],
            interfaces: Vec::new(),
            datapath: Datapath::Auto,
            table_length: TableLength::default(),
            channel_table_length: TableLength::default(),
            data_ports: PortRange(49152..=65535),
            userspace_threads: 1,
            socket_buffer: 1 << 20,
            gateways: Vec::new(),
            trusted: trusted_by_default(Kind::Gateway),
            realm: "rawr".to_owned(),
            users: Vec::new(),
            secrets: Vec::new(),
            mac_lookup: true,
            probe_interfaces: Vec::new(),
            answer_short_binding: false,
            default_lifetime: Duration::from_secs(120),
            max_lifetime: Duration::from_secs(3600),
            hop_limit: 8,
            session_rate: None,
            limits: Limits::default(),
            turn: Turn::default(),
            bridge: Bridge::default(),
            admin_socket: admin_socket_in(&state_dir),
            state_dir,
            log: LevelFilter::Info,
        }
    }
}

/// Where an instance keeps its state.
pub fn state_dir_of(instance: &InstanceName) -> PathBuf {
    Path::new("/run/rawr").join(instance.as_str())
}

/// The admin socket of the instance whose state is in `state_dir`.
pub fn admin_socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.sock")
}

/// Whom a server trusts if it is not told: a gateway whoever is on a private network (RFC 1918,
/// RFC 4193), link-local or this host, as those are its own clients; a root, which faces the
/// Internet, nobody. Subnets with public addresses must be named, since the one towards the
/// provider is among those that a gateway is connected to.
fn trusted_by_default(kind: Kind) -> Vec<IpNet> {
    let private = [
        (Ipv4Addr::new(10, 0, 0, 0).into(), 8),
        (Ipv4Addr::new(172, 16, 0, 0).into(), 12),
        (Ipv4Addr::new(192, 168, 0, 0).into(), 16),
        (Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0).into(), 7),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        (Ipv6Addr::LOCALHOST.into(), 128),
    ];
    match kind {
        Kind::Gateway => {
            private.iter().map(|&(ip, length)| IpNet::new_assert(ip, length)).collect()
        }
        Kind::Root => Vec::new(),
    }
}

/// Mistakes with the name of the file before each.
struct Report<'a> {
    path: &'a Path,
    mistakes: &'a Mistakes,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{mistake}", self.path.display())?;
        }
        Ok(())
    }
}
