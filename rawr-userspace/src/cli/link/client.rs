//! What all of these commands are told: who we are, and which server brings us together.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rawr_nat::link::{KnownPeers, LinkConfig, Survey, Trust};
use rawr_nat::{Credentials, Identity, PublicKey, ServerConfig, default_gateway};
use serde::Deserialize;
use tokio::sync::watch;

use crate::config::ServerAddress;
use crate::io::clock;

const PASSWORD_VARIABLE: &str = "RAWR_PASSWORD";
/// How long the names of servers may take to be looked up.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(10);

/// Flags that all of them have. They win over the file.
#[derive(Args, Clone, Debug)]
pub(super) struct ClientArgs {
    /// Server where names are registered, and that relays while there is no direct path
    #[arg(short, long, value_name = "rawr:HOST[:PORT]")]
    server: Option<ServerAddress>,
    /// Name to show to the server, if it asks for one
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Its password. Other users of the host see it; prefer the variable RAWR_PASSWORD or the file
    #[arg(long, value_name = "PASSWORD", requires = "username")]
    password: Option<String>,
    /// Gateway that relays nearer than the server; may be repeated, the most wanted first [default: that of
    /// the default route]
    #[arg(long = "gateway", value_name = "URI")]
    gateways: Vec<ServerAddress>,
    /// Use no gateway
    #[arg(long, conflicts_with = "gateways")]
    no_gateway: bool,
    /// Further STUN server, which tells what NATs do; may be repeated
    #[arg(long = "stun", value_name = "HOST[:PORT]")]
    stun: Vec<ServerAddress>,
    /// Punch no holes: take direct paths only where they are open already
    #[arg(long)]
    no_punching: bool,
    /// Do not ask routers to map a port. They are asked by PCP, NAT-PMP and UPnP-IGD else, and to remove it at the end
    #[arg(long)]
    no_port_mapping: bool,
    /// Configuration file [default: ~/.config/rawr/client.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Write events as lines of JSON
    #[arg(long)]
    json: bool,
}

/// Where our identity is.
#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// File with our identity, made where it is not there [default: ~/.config/rawr/identity]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// Whom to expect under a name.
#[derive(Args, Clone, Debug)]
pub(super) struct TrustArgs {
    /// Key of the other side, as `rawr identity` prints it there [default: the one that the name had before;
    /// of a new name, any]
    #[arg(long, value_name = "KEY")]
    peer_key: Option<PublicKey>,
    /// File of keys that names had before [default: ~/.config/rawr/known_peers]
    #[arg(long, value_name = "FILE", conflicts_with = "peer_key")]
    known_peers: Option<PathBuf>,
    /// Seconds to wait for the other side to come, where the name is not registered yet
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    wait: u64,
}

/// The file `client.toml`. Each key is a flag of the same name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClientFile {
    server: Option<String>,
    username: Option<String>,
    password: Option<String>,
    gateways: Vec<String>,
    stun: Vec<String>,
}

/// What a command needs to make links.
pub(super) struct Client {
    pub(super) link: LinkConfig,
    server: ServerAddress,
}

impl ClientArgs {
    pub(super) const fn is_json(&self) -> bool {
        self.json
    }

    /// Reads the files and looks names up.
    pub(super) async fn client(&self, stop: watch::Receiver<bool>) -> anyhow::Result<Client> {
        let file = self.file()?;
        let server = match (&self.server, &file.server) {
            (Some(server), _) => server.clone(),
            (None, Some(server)) => parsed(server)?,
            (None, None) => bail!(
                "no server: give --server rawr:HOST, or write server = \"rawr:HOST\" to {}",
                own_file("client.toml")?.display()
            ),
        };
        let credentials = self.credentials(&file)?;
        let found = look_up(&server).await?;
        let address = reachable(&found);
        let mut stun_servers = found;
        for server in self.stun.iter().cloned().map(Ok).chain(file.stun.iter().map(|it| parsed(it)))
        {
            stun_servers.extend(look_up(&server?).await?);
        }
        let gateways = self.gateways(&file, credentials.as_ref()).await?;
        let survey = match self.no_punching {
            true => Survey::none(),
            false => Survey::begin(stun_servers.clone()),
        };
        let link = LinkConfig {
            identity: self.identity.load()?,
            server: ServerConfig { address, credentials },
            gateways,
            stun_servers,
            survey,
            map_ports: !self.no_port_mapping,
            epoch: u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX),
            stop,
        };
        Ok(Client { link, server })
    }

    fn file(&self) -> anyhow::Result<ClientFile> {
        let path = match &self.config {
            Some(path) => path.clone(),
            None => match own_file("client.toml") {
                Ok(path) => path,
                Err(_) => return Ok(ClientFile::default()),
            },
        };
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.config.is_none() => {
                Ok(ClientFile::default())
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn credentials(&self, file: &ClientFile) -> anyhow::Result<Option<Credentials>> {
        let Some(username) = self.username.clone().or_else(|| file.username.clone()) else {
            return Ok(None);
        };
        let password = self.password.clone();
        let password = password.or_else(|| std::env::var(PASSWORD_VARIABLE).ok());
        match password.or_else(|| file.password.clone()) {
            Some(password) => Ok(Some(Credentials { username, password })),
            None => {
                bail!("user {username} needs a password: give {PASSWORD_VARIABLE} or --password")
            }
        }
    }

    async fn gateways(
        &self,
        file: &ClientFile,
        credentials: Option<&Credentials>,
    ) -> anyhow::Result<Vec<ServerConfig>> {
        if self.no_gateway {
            return Ok(Vec::new());
        }
        let mut named = self.gateways.clone();
        if named.is_empty() {
            named = file.gateways.iter().map(|it| parsed(it)).collect::<Result<_, _>>()?;
        }
        let mut addresses = Vec::new();
        for gateway in &named {
            addresses.push(reachable(&look_up(gateway).await?));
        }
        if named.is_empty() {
            let default = default_gateway().map(|ip| SocketAddr::new(ip, rawr_proto::DEFAULT_PORT));
            addresses.extend(default);
        }
        let credentials = credentials.cloned();
        let server = |address| ServerConfig { address, credentials: credentials.clone() };
        Ok(addresses.into_iter().map(server).collect())
    }
}

impl IdentityArgs {
    fn load(&self) -> anyhow::Result<Identity> {
        let path = match &self.identity {
            Some(path) => path.clone(),
            None => own_file("identity")?,
        };
        make_parent(&path)?;
        Ok(Identity::load_or_create(&path)?)
    }
}

impl TrustArgs {
    pub(super) fn trust(&self, client: &Client) -> anyhow::Result<Trust> {
        if let Some(key) = self.peer_key {
            return Ok(Trust::Key(key));
        }
        let path = match &self.known_peers {
            Some(path) => path.clone(),
            None => own_file("known_peers")?,
        };
        make_parent(&path)?;
        Ok(Trust::FirstUse(KnownPeers::new(&path, &client.server.to_string())))
    }

    pub(super) const fn wait(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

/// Prints the key that others know us by.
pub(in crate::cli) fn print_identity(args: &IdentityArgs) -> anyhow::Result<()> {
    println!("{}", args.load()?.public());
    Ok(())
}

/// A file of the user's own.
fn own_file(name: &str) -> anyhow::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let folder = variable("XDG_CONFIG_HOME").filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| variable("HOME").map(|home| home.join(".config")));
    let folder =
        folder.context("no HOME in the environment: name files by --identity and --config")?;
    Ok(folder.join("rawr").join(name))
}

/// Others need not see what is in there.
fn make_parent(path: &Path) -> anyhow::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.with_context(|| format!("cannot make {}", parent.display()))
}

fn parsed(text: &str) -> anyhow::Result<ServerAddress> {
    text.parse().with_context(|| format!("{text:?} is no server"))
}

async fn look_up(server: &ServerAddress) -> anyhow::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((server.host.as_str(), server.port));
    let found = tokio::time::timeout(LOOK_UP_LIMIT, found).await;
    let found = found.with_context(|| format!("cannot resolve {}: no answer", server.host))?;
    let found = found.with_context(|| format!("cannot resolve {}", server.host))?;
    let found: Vec<_> = found.collect();
    match found.is_empty() {
        true => bail!("{} has no address", server.host),
        false => Ok(found),
    }
}

/// The first address that there is a route to. Nothing is sent.
fn reachable(addresses: &[SocketAddr]) -> SocketAddr {
    let has_route = |address: &&SocketAddr| {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        UdpSocket::bind(any).and_then(|socket| socket.connect(**address)).is_ok()
    };
    *addresses.iter().find(has_route).unwrap_or(&addresses[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../../docs/client.example.toml");

    #[test]
    fn the_example_has_every_key_and_what_is_commented_out_is_none() {
        let all = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        });
        let file: ClientFile = toml::from_str(&all.collect::<Vec<_>>().join("\n")).unwrap();
        let server: ServerAddress = parsed(&file.server.unwrap()).unwrap();
        assert_eq!(server.to_string(), "rawr:root.example.net:3478");
        assert_eq!(file.username.as_deref(), Some("alice"));
        assert!(file.password.is_some());
        for server in file.gateways.iter().chain(&file.stun) {
            parsed(server).unwrap();
        }
        assert!(!file.gateways.is_empty() && !file.stun.is_empty());

        let file: ClientFile = toml::from_str(EXAMPLE).unwrap();
        assert!(file.username.is_none() && file.gateways.is_empty() && file.stun.is_empty());
        assert!(toml::from_str::<ClientFile>("servers = 1").is_err());
    }

    #[test]
    fn an_address_with_a_route_is_taken() {
        let addresses = ["127.0.0.1:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap()];
        assert_eq!(reachable(&addresses), addresses[0]);
    }
}
