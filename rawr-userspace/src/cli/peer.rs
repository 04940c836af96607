//! `rawr peer`: joins a session and carries any UDP application's datagrams to the other peer.

mod line;
mod report;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use rawr_nat::agent::{Connection, ConnectionConfig, Signalling};
use rawr_nat::portmap::PortMapperConfig;
use rawr_nat::punch::Tuning;
use rawr_nat::{
    Credentials, LinuxHost, PeerSocket, PeerSocketConfig, ServerConfig, bind_udp, default_gateway,
};
use rawr_proto::{Role, SessionSecret};
use tokio::net::UdpSocket;
use tokio::signal::unix::{SignalKind, signal};

use self::line::{Line, News};
use self::report::Report;
use crate::config::ServerAddress;
use crate::io::clock;

/// Where the secret and the password may stand, out of sight of the host's other users.
const SESSION_VARIABLE: &str = "RAWR_SESSION";
const PASSWORD_VARIABLE: &str = "RAWR_PASSWORD";

/// Makes the secret of a session whose peers look for paths without any server.
const DIRECT: &[u8] = b"direct";

const MAX_DATAGRAM: usize = 65_535;
/// Datagrams that are taken from one side before the other gets its turn.
const BATCH: usize = 64;

/// Flags of `rawr peer`.
#[derive(Args, Clone, Debug)]
pub struct PeerArgs {
    /// Print the secret of a new session, for both peers, and end
    #[arg(long, exclusive = true)]
    new_session: bool,
    /// The session's secret, 64 hexadecimal digits. Other users of the host see it; prefer the file
    /// or the variable RAWR_SESSION
    #[arg(long, value_name = "HEX", conflicts_with = "session_file")]
    session: Option<SessionSecret>,
    /// File that holds the session's secret
    #[arg(long, value_name = "FILE")]
    session_file: Option<PathBuf>,
    /// Which of the two peers this is: a or b
    #[arg(long, value_parser = role, required_unless_present = "new_session")]
    role: Option<Role>,
    /// Root that both peers reach
    #[arg(long, value_name = "URI")]
    root: Option<ServerAddress>,
    /// Gateway to try before the root; may be repeated, the most wanted first [default: that of the
    /// default route]
    #[arg(long = "gateway", value_name = "URI")]
    gateways: Vec<ServerAddress>,
    /// Use no gateway
    #[arg(long, conflicts_with = "gateways")]
    no_gateway: bool,
    /// Name to show to servers that ask for one
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Its password. Other users of the host see it; prefer the variable RAWR_PASSWORD
    #[arg(long, value_name = "PASSWORD", requires = "username")]
    password: Option<String>,
    /// Where the local application sends to
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the other peer's datagrams go [default: to whoever sent to --listen last]
    #[arg(long, value_name = "ADDRESS:PORT")]
    forward: Option<SocketAddr>,
    /// Port of the socket towards the other peer [default: any]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    data_port: u16,
    /// Look for paths without any server, too, and take the best. The other peer has to do the same: two that
    /// do not agree on it never meet
    #[arg(long)]
    direct: bool,
    /// STUN server that is asked what the NATs before this host do; may be repeated. One with two addresses
    /// (RFC 5780) tells most, of others two are needed [default: the root]
    #[arg(long = "stun", value_name = "HOST[:PORT]", requires = "direct")]
    stun_servers: Vec<ServerAddress>,
    /// Do not ask routers to map a port. They are asked by PCP, NAT-PMP and UPnP-IGD else, and to remove it at the end
    #[arg(long, requires = "direct")]
    no_port_mapping: bool,
    /// Most probes that are sent each time that NATs are punched; 0: none are
    #[arg(long, value_name = "COUNT", requires = "direct", default_value_t = 2048)]
    probes: u32,
    /// Let the MAC address travel in clear instead of blinded
    #[arg(long)]
    raw_mac: bool,
    /// Write one line of JSON per event
    #[arg(long)]
    status_json: bool,
}

/// Carries datagrams until SIGINT or SIGTERM, then leaves the session.
pub(super) fn run(args: PeerArgs) -> anyhow::Result<()> {
    if args.new_session {
        println!("{}", new_secret()?.to_hex());
        return Ok(());
    }
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .parse_env("RAWR_LOG")
        .format_timestamp_millis()
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(carry(args))
}

async fn carry(args: PeerArgs) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut app = App::bind(args.listen, args.forward)?;
    let report = Report::new(args.status_json);
    report.listening(app.socket.local_addr()?)?;
    let mut peer = args.line()?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            incoming = peer.next(&mut buffer) => match incoming? {
                News::Data(length) => app.deliver(&mut peer, &mut buffer, length)?,
                News::Event(event) => report.event(&event)?,
            },
            ready = app.socket.readable() => {
                ready?;
                app.collect(&mut peer)?;
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    peer.close().await?;
    report.closed(peer.traffic(), app.dropped)
}

impl PeerArgs {
    /// Opens the sockets and starts to look for the other peer.
    fn line(self) -> anyhow::Result<Line> {
        let cannot_open = "cannot open the sockets towards servers and the other peer";
        if !self.direct {
            let peer = PeerSocket::bind(self.config()?, Box::new(LinuxHost));
            return Ok(Line::Rawr(Box::new(peer.context(cannot_open)?)));
        }
        let stun_servers = self.stun_servers()?;
        let punching = (self.probes > 0).then(Tuning::default);
        let (probe_budget, has_ports_mapped) = (self.probes, !self.no_port_mapping);
        let mut rawr = self.config()?;
        // Data is framed. Peers that do not do that would take it for something else.
        rawr.secret = SessionSecret::from_bytes(rawr.secret.derive(DIRECT));
        let config = ConnectionConfig {
            rawr,
            stun_servers: stun_servers.clone(),
            signalling: Signalling::InBand,
            nat64: None,
            punching,
            behaviour: None,
            probe_budget,
        };
        let connection = Connection::bind(config, Box::new(LinuxHost));
        let mut connection = connection.context(cannot_open)?;
        if punching.is_some() {
            connection.classify(stun_servers);
        }
        if has_ports_mapped {
            connection.map_ports(PortMapperConfig::of_this_host);
        }
        Ok(Line::Direct(Box::new(connection)))
    }

    /// All addresses of all of them. A gateway is none: it is on this side of the NATs.
    fn stun_servers(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let named = self.stun_servers.iter();
        let root = self.root.iter().filter(|_| self.stun_servers.is_empty());
        let found = named.chain(root).map(resolve_all).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn config(self) -> anyhow::Result<PeerSocketConfig> {
        let secret = self.secret()?;
        let role = self.role.context("--role is missing")?;
        let password = self.password.or_else(|| std::env::var(PASSWORD_VARIABLE).ok());
        let credentials = match (self.username, password) {
            (Some(username), Some(password)) => Some(Credentials { username, password }),
            (Some(_), None) => bail!("--username needs --password or {PASSWORD_VARIABLE}"),
            (None, _) => None,
        };
        let server = |address: &ServerAddress| {
            let address = resolve(address)?;
            anyhow::Ok(ServerConfig { address, credentials: credentials.clone() })
        };
        let root = self.root.as_ref().map(server).transpose()?;
        let mut gateways: Vec<_> = self.gateways.iter().map(server).collect::<Result<_, _>>()?;
        if gateways.is_empty() && !self.no_gateway {
            let default = default_gateway().map(|ip| SocketAddr::new(ip, rawr_proto::DEFAULT_PORT));
            let credentials = credentials.clone();
            gateways.extend(default.map(|address| ServerConfig { address, credentials }));
        }
        if root.is_none() && gateways.is_empty() {
            bail!("no server to meet at: give --root, or --gateway");
        }
        Ok(PeerSocketConfig {
            secret,
            role,
            root,
            gateways,
            data_port: self.data_port,
            epoch: u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX),
            raw_mac: self.raw_mac,
        })
    }

    fn secret(&self) -> anyhow::Result<SessionSecret> {
        if let Some(secret) = &self.session {
            return Ok(secret.clone());
        }
        let (text, place) = match &self.session_file {
            Some(path) => {
                let text = fs::read_to_string(path);
                (
                    text.with_context(|| format!("cannot read {}", path.display()))?,
                    path.display().to_string(),
                )
            }
            None => {
                let text = std::env::var(SESSION_VARIABLE);
                let missing = || {
                    format!(
                        "no session: give --session-file or {SESSION_VARIABLE}; `rawr peer --new-session` makes one"
                    )
                };
                (text.with_context(missing)?, SESSION_VARIABLE.to_owned())
            }
        };
        text.trim().parse().with_context(|| format!("no session secret in {place}"))
    }
}

/// The application's side.
struct App {
    socket: UdpSocket,
    forward: Option<SocketAddr>,
    last_seen: Option<SocketAddr>,
    buffer: Vec<u8>,
    /// Datagrams that nobody could be given.
    dropped: u64,
}

impl App {
    fn bind(listen: SocketAddr, forward: Option<SocketAddr>) -> anyhow::Result<Self> {
        let socket = bind_udp(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let buffer = vec![0; MAX_DATAGRAM];
        Ok(Self { socket, forward, last_seen: None, buffer, dropped: 0 })
    }

    /// Hands over what came from the other peer: the first `length` bytes of `buffer`, and what
    /// else is there already.
    fn deliver(&mut self, peer: &mut Line, buffer: &mut [u8], mut length: usize) -> io::Result<()> {
        for _ in 0..BATCH {
            self.hand_over(&buffer[..length]);
            match peer.try_recv(buffer)? {
                Some(next) => length = next,
                None => return Ok(()),
            }
        }
        self.hand_over(&buffer[..length]);
        Ok(())
    }

    fn hand_over(&mut self, datagram: &[u8]) {
        let to = self.forward.or(self.last_seen);
        let sent = to.is_some_and(|to| self.socket.try_send_to(datagram, to).is_ok());
        self.dropped += u64::from(!sent);
    }

    /// Sends what the application has for the other peer.
    fn collect(&mut self, peer: &mut Line) -> io::Result<()> {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    self.last_seen = Some(from);
                    peer.send(&self.buffer[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The application was not there when it was sent something before.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn new_secret() -> anyhow::Result<SessionSecret> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("the kernel gives no random numbers")?;
    Ok(SessionSecret::from_bytes(bytes))
}

fn resolve(server: &ServerAddress) -> anyhow::Result<SocketAddr> {
    let found = resolve_all(server)?.into_iter().next();
    found.with_context(|| format!("{} has no address", server.host))
}

fn resolve_all(server: &ServerAddress) -> anyhow::Result<Vec<SocketAddr>> {
    let found = (server.host.as_str(), server.port).to_socket_addrs();
    Ok(found.with_context(|| format!("cannot resolve {}", server.host))?.collect())
}

fn role(text: &str) -> Result<Role, &'static str> {
    match text {
        "a" | "A" => Ok(Role::A),
        "b" | "B" => Ok(Role::B),
        _ => Err("expected a or b"),
    }
}
