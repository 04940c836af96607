//! Flags that several commands share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use ipnet::IpNet;
use log::LevelFilter;

use crate::config::{
    Config, ConfigError, Credentials, DEFAULT_PATH, Datapath, Draft, DraftBridge, Gateway,
    InstanceName, PortRange, Rate, Secret, ServerAddress, TableLength, admin_socket_in,
    interface_name, listen_address, state_dir_of, subnet,
};
use crate::control::Kind;

/// Flags of `rawr serve`. They win over the file.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Configuration file [default: /etc/rawr/rawr.toml if it is there]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this daemon among others on the same host
    #[arg(long, value_name = "NAME")]
    instance: Option<InstanceName>,
    /// What the server is: gateway or root
    #[arg(long)]
    kind: Option<Kind>,
    /// Address of the STUN port; may be repeated [default: every address, port 3478]
    #[arg(short, long, value_name = "ADDRESS[:PORT]", value_parser = listen_address)]
    listen: Vec<SocketAddr>,
    /// Interface to forward on in XDP; may be repeated
    #[arg(short, long = "interface", value_name = "NAME", value_parser = interface_name)]
    interfaces: Vec<String>,
    /// What forwards: auto, native, generic or userspace
    #[arg(short, long)]
    datapath: Option<Datapath>,
    /// Parent that sessions are escalated to; may be repeated, the most wanted first
    #[arg(short, long = "gateway", value_name = "URI")]
    gateways: Vec<ServerAddress>,
    /// Credentials that all the parents are shown
    #[arg(long, value_name = "NAME:PASSWORD", requires = "gateways")]
    gateway_user: Option<Credentials>,
    /// Subnet whose clients need no credentials; may be repeated
    #[arg(short, long = "trust", value_name = "SUBNET", value_parser = subnet)]
    trusted: Vec<IpNet>,
    /// Trust no subnet: every client needs credentials
    #[arg(long, conflicts_with = "trusted")]
    trust_none: bool,
    /// Realm of users and secrets
    #[arg(long)]
    realm: Option<String>,
    /// User who may use the server; may be repeated. Other users of the host see it; prefer the file
    #[arg(short, long = "user", value_name = "NAME:PASSWORD")]
    users: Vec<Credentials>,
    /// Secret behind ephemeral credentials; may be repeated. Other users of the host see it; prefer
    /// the file
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<Secret>,
    /// Ports for legs, two for each session [default: 49152-65535]
    #[arg(long, value_name = "LOW-HIGH")]
    data_ports: Option<PortRange>,
    /// Entries of each port table, a power of two
    #[arg(long, value_name = "ENTRIES")]
    table_length: Option<TableLength>,
    /// Entries of each channel table, a power of two
    #[arg(long, value_name = "ENTRIES")]
    channel_table_length: Option<TableLength>,
    /// Threads that forward in userspace
    #[arg(long, value_name = "COUNT", value_parser = threads)]
    userspace_threads: Option<usize>,
    /// Most that each direction of a session may carry, such as 20Mbit/s
    #[arg(long, value_name = "RATE")]
    session_rate: Option<Rate>,
    /// Whether targets are looked for by MAC address among the neighbours
    #[arg(long, action = ArgAction::Set, value_name = "BOOL")]
    mac_lookup: Option<bool>,
    /// Whether rendezvous by name is offered [default: a root does]
    #[arg(long, action = ArgAction::Set, value_name = "BOOL")]
    bridge: Option<bool>,
    /// File of the names that survive a restart [default: names are kept in memory]
    #[arg(long, value_name = "FILE")]
    registry: Option<PathBuf>,
    /// Where state survives a restart [default: /run/rawr/INSTANCE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Socket of `rawr status` and its like [default: admin.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// off, error, warn, info, debug or trace; RAWR_LOG wins
    #[arg(long, value_name = "LEVEL")]
    log: Option<LevelFilter>,
}

impl ServeArgs {
    /// The configuration that the file and the flags make.
    pub fn config(self) -> Result<Config, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let path = self.config.clone().or_else(|| default.exists().then(|| default.to_owned()));
        Config::load_with(path.as_deref(), self.draft())
    }

    fn draft(self) -> Draft {
        let credentials = self.gateway_user;
        let gateway = |address| Gateway { address, credentials: credentials.clone() };
        let gateways: Vec<Gateway> = self.gateways.into_iter().map(gateway).collect();
        Draft {
            instance: self.instance,
            kind: self.kind,
            listen: some(self.listen),
            interfaces: some(self.interfaces),
            datapath: self.datapath,
            gateways: some(gateways),
            trusted: some(self.trusted).or_else(|| self.trust_none.then(Vec::new)),
            realm: self.realm,
            users: some(self.users),
            secrets: some(self.secrets),
            data_ports: self.data_ports,
            table_length: self.table_length,
            channel_table_length: self.channel_table_length,
            userspace_threads: self.userspace_threads,
            session_rate: self.session_rate,
            mac_lookup: self.mac_lookup,
            bridge: DraftBridge {
                enabled: self.bridge,
                registry: self.registry,
                ..DraftBridge::default()
            },
            state_dir: self.state_dir,
            admin_socket: self.admin_socket,
            log: self.log,
            ..Draft::default()
        }
    }
}

/// Which daemon a command is for.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    /// Name of the daemon [default: default]
    #[arg(long, value_name = "NAME")]
    instance: Option<InstanceName>,
    /// Its admin socket, where it is not in the usual place
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl DaemonArgs {
    /// The daemon's name; unknown if only its socket was named.
    pub(crate) fn instance(&self) -> Option<InstanceName> {
        match (&self.instance, &self.socket) {
            (None, Some(_)) => None,
            (name, _) => Some(name.clone().unwrap_or_default()),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        let usual = || state_dir_of(&self.instance.clone().unwrap_or_default());
        self.socket.clone().unwrap_or_else(|| admin_socket_in(&usual()))
    }
}

/// How a command writes what it has been told.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// A flag that was not given leaves what the file says.
fn some<T>(values: Vec<T>) -> Option<Vec<T>> {
    (!values.is_empty()).then_some(values)
}

fn threads(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(count @ 1..=64) => Ok(count),
        _ => Err("expected a number from 1 to 64"),
    }
}
