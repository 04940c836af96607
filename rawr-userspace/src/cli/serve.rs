//! `rawr serve`: makes the parts of the daemon from its configuration, in the order that keeps a
//! predecessor's flows alive, and runs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use rawr_proto::ServerId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::args::ServeArgs;
use crate::admin::{AdminServer, InterfaceInfo};
use crate::config::{Config, Datapath, ServerAddress};
use crate::control::{Now, Server, ServerConfig};
use crate::dataplane::bpf::{self, Bpf, Pins, WantedMode};
use crate::dataplane::object;
use crate::dataplane::reconcile::{Reconciler, Settings};
use crate::dataplane::slow_path::{self, SlowPath};
use crate::doctor;
use crate::io::clock;
use crate::io::control_socket::ControlSocket;
use crate::io::driver::{About, Driver, Ended, Inbox, Kernel, Parts};
use crate::io::listeners::BindingAnswers;
use crate::io::neighbours::SweepConfig;
use crate::io::netlink::{self, NextHopResolver};
use crate::io::registry::NameRegistry;
use crate::io::state_file::StateFile;
use crate::io::streams::Streams;
use crate::topology::LinkKind;

/// Commands of the operator that wait for the loop.
const CALLS: usize = 16;

/// Runs the daemon until a signal, `rawr stop` or `rawr detach` ends it.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    env_logger::Builder::new()
        .filter_level(config.log)
        .parse_env("RAWR_LOG")
        .format_timestamp_millis()
        .init();
    if let Err(error) = slow_path::raise_open_files(2 * config.limits.sessions as u64) {
        log::warn!("not all {} sessions can be held: {error}", config.limits.sessions);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let admin = AdminServer::bind(&config.admin_socket)?;
    let state = StateFile::new(&config.state_dir)?;
    let sockets = listen(&config)?;
    let network = NextHopResolver::open(network_config(&config))?;
    let interfaces = interfaces(&config, &network)?;
    let (slow_path, strays) = SlowPath::start(config.slow_path())?;
    // Nothing to reload is no reason to end.
    let _hangup = signal(SignalKind::hangup()).context("cannot await SIGHUP")?;
    let (streams, stream_events) = Streams::open(&config.streams())?;
    for address in streams.bound() {
        log::info!("clients may connect to {address} over TCP");
    }
    for address in streams.bound_dtls() {
        log::info!("clients may speak DTLS to {address}");
    }
    let (kernel, fallback) = open_kernel(&config)?;
    let mut server = start_server(&config, &state).await?;
    let names = open_names(&config, &mut server)?;
    let about = About {
        instance: config.instance.as_str().to_owned(),
        interfaces: Vec::new(),
        started: clock::monotonic(),
    };
    let parts = Parts {
        server,
        kernel,
        slow_path,
        streams,
        network,
        sockets,
        state,
        names,
        table_length: config.table_length.get(),
    };
    // Restored sessions have their flows back before the program of a predecessor is replaced.
    let mut driver = Driver::new(parts, about);
    let in_kernel = driver.bpf().is_some();
    let attached = match driver.bpf() {
        Some(bpf) => attach(bpf, &config, &interfaces)?,
        None => userspace(&interfaces, fallback.as_deref()),
    };
    driver.set_interfaces(attached);
    if answers_in_kernel(&config) {
        let bytes_per_second = Some(config.turn.binding_rate.bytes_per_second());
        driver.answer_binding(BindingAnswers { bytes_per_second });
    }

    let (calls_in, calls) = mpsc::channel(CALLS);
    tokio::spawn(admin.run(calls_in));
    log::info!("{} {} is ready", config.kind, config.instance.as_str());
    // Without a service manager there is nobody to notify.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    match driver.run(Inbox { strays, streams: stream_events, calls }).await? {
        Ended::Stopped if in_kernel => log::info!("stopped; the kernel goes on forwarding"),
        Ended::Stopped => log::info!("stopped"),
        Ended::Detach => {
            let names = Pins::detach(bpf::BPFFS.as_ref(), config.instance.as_str())?;
            log::info!("stopped, and detached from {}", names.join(", "));
        }
    }
    Ok(())
}

/// Binds the STUN ports. That a family is missing altogether is no reason not to serve the other.
/// Requests of ours need a socket that any route may use: where no STUN port is one, another is.
fn listen(config: &Config) -> anyhow::Result<Vec<ControlSocket>> {
    let mut sockets = Vec::new();
    for address in &config.udp_addresses() {
        match ControlSocket::bind(*address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if address.ip().is_unspecified() && config.listen.len() > 1 => {
                log::warn!("not listening on {address}: {error}");
            }
            Err(error) => bail!("cannot listen on {address}: {error}; see `listen`"),
        }
    }
    if sockets.is_empty() {
        bail!("cannot listen on any address; is UDP port {} in use?", config.listen[0].port());
    }
    for unspecified in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let is_family =
            |socket: &&ControlSocket| socket.bound().is_ipv4() == IpAddr::is_ipv4(&unspecified);
        if !sockets.iter().filter(is_family).any(ControlSocket::suits_any_route) {
            // A host without the family has no server to ask over it.
            sockets.extend(ControlSocket::outbound(unspecified));
        }
    }
    Ok(sockets)
}

fn network_config(config: &Config) -> netlink::Config {
    let probed = &config.probe_interfaces;
    let interfaces = if probed.is_empty() { &config.interfaces } else { probed };
    let sweep = SweepConfig { interfaces: interfaces.clone(), ..SweepConfig::default() };
    netlink::Config { sweep, ..netlink::Config::default() }
}

/// The interfaces named, or every Ethernet interface that is up and has an address.
fn interfaces(config: &Config, network: &NextHopResolver) -> anyhow::Result<Vec<String>> {
    let topology = network.topology();
    if let Some(unknown) =
        config.interfaces.iter().find(|name| topology.link_by_name(name).is_none())
    {
        let known: Vec<_> = topology.links().map(|link| link.name.as_str()).collect();
        bail!("there is no interface {unknown}; there are {}", known.join(", "));
    }
    if !config.interfaces.is_empty() {
        return Ok(config.interfaces.clone());
    }
    let has_address = |ifindex| topology.addresses().any(|own| own.ifindex == ifindex);
    Ok(topology
        .links()
        .filter(|link| link.up && link.mac.is_some() && has_address(link.ifindex))
        .filter(|link| matches!(link.kind, LinkKind::Ethernet | LinkKind::Veth | LinkKind::Bridge))
        .map(|link| link.name.clone())
        .collect())
}

/// Whether the kernel is to answer Binding requests: it would have to say what userspace says.
fn answers_in_kernel(config: &Config) -> bool {
    let turn = &config.turn;
    turn.answer_binding && config.answer_short_binding && turn.discovery.is_empty()
}

/// The kernel's part, or why there is none although there should be.
fn open_kernel(config: &Config) -> anyhow::Result<(Option<Kernel>, Option<String>)> {
    if config.datapath == Datapath::Userspace {
        return Ok((None, None));
    }
    let settings = bpf::Config {
        instance: config.instance.as_str().to_owned(),
        table_len: config.table_length.get(),
        channel_len: config.channel_table_length.get(),
        flows: most_flows(config),
        answers: answers_in_kernel(config),
        ..bpf::Config::default()
    };
    match Bpf::open(&settings, object::object()) {
        Ok(bpf) => {
            let reconciler = Reconciler::new(Settings::default());
            Ok((Some(Kernel { bpf, reconciler }), None))
        }
        Err(error) if config.datapath == Datapath::Auto => {
            log::warn!("userspace forwards everything: {error}");
            Ok((None, Some(error.to_string())))
        }
        Err(error) => Err(error).context("no XDP; `rawr doctor` may know why"),
    }
}

/// Each session has two legs, each leg a flow; moves take a third for a while. Of the channels' flows, one
/// half arrives from clients, and the table where those stand has places for nearly all up to half of it.
fn most_flows(config: &Config) -> u32 {
    let channels = config.channel_table_length.get();
    let flows = config.limits.sessions.saturating_mul(3).saturating_add(channels as usize);
    let most = 2 * (config.table_length.get() + channels);
    u32::try_from(flows).unwrap_or(u32::MAX).clamp(1024, most)
}

fn attach(
    bpf: &mut Bpf,
    config: &Config,
    interfaces: &[String],
) -> anyhow::Result<Vec<InterfaceInfo>> {
    let wanted = match config.datapath {
        Datapath::Native => WantedMode::Native,
        Datapath::Generic => WantedMode::Generic,
        Datapath::Auto | Datapath::Userspace => WantedMode::Auto,
    };
    let mut infos = Vec::new();
    for name in interfaces {
        if let Some(warning) = doctor::veth_checksum_warning(name) {
            log::warn!("{warning}");
        }
        let info = match bpf.attach(name, wanted) {
            Ok(attachment) => {
                let (mode, fallback) = (attachment.mode.to_string(), attachment.fallback.clone());
                InterfaceInfo { name: name.clone(), mode, fallback }
            }
            Err(bpf::AttachError::Loopback(_)) if config.interfaces.is_empty() => continue,
            Err(error @ bpf::AttachError::Loopback(_)) => return Err(error.into()),
            Err(error) if config.datapath == Datapath::Auto => {
                let (mode, fallback) = ("userspace".to_owned(), Some(error.to_string()));
                InterfaceInfo { name: name.clone(), mode, fallback }
            }
            Err(error) => return Err(error.into()),
        };
        match &info.fallback {
            Some(why) => log::warn!("{name}: {} mode, because {why}", info.mode),
            None => log::info!("{name}: {} mode", info.mode),
        }
        infos.push(info);
    }
    for name in bpf.remove_leftovers()? {
        log::info!("{name}: not named any more, detached");
    }
    Ok(infos)
}

fn userspace(interfaces: &[String], fallback: Option<&str>) -> Vec<InterfaceInfo> {
    let info = |name: &String| InterfaceInfo {
        name: name.clone(),
        mode: "userspace".to_owned(),
        fallback: fallback.map(ToOwned::to_owned),
    };
    interfaces.iter().map(info).collect()
}

/// The names that are remembered, where they are to be.
fn open_names(config: &Config, server: &mut Server) -> anyhow::Result<Option<NameRegistry>> {
    let path = config.bridge.registry.as_deref().filter(|_| config.bridge.enabled);
    let Some(path) = path else { return Ok(None) };
    let (names, records) = NameRegistry::open(path)?;
    server.restore_names(now(), records);
    log::info!("took over {} names from {}", server.name_count(), path.display());
    Ok(Some(names))
}

/// The control plane, with the sessions that a predecessor left.
async fn start_server(config: &Config, state: &StateFile) -> anyhow::Result<Server> {
    let now = now();
    let seed = random()?;
    let settings = server_config(config).await?;
    let snapshot = state.load().unwrap_or_else(|error| {
        log::warn!("{error:#}");
        None
    });
    let Some(snapshot) = snapshot else { return Ok(Server::new(settings, seed, now)) };
    match Server::restore(settings.clone(), seed, now, snapshot) {
        Ok(server) => {
            log::info!("took over {} sessions", server.session_count());
            Ok(server)
        }
        Err(error) => {
            log::warn!("{error}");
            Ok(Server::new(settings, seed, now))
        }
    }
}

async fn server_config(config: &Config) -> anyhow::Result<ServerConfig> {
    let mut parents = Vec::new();
    for gateway in &config.gateways {
        let address = resolve(&gateway.address, config).await?;
        parents.push(gateway.parent(address));
    }
    Ok(config.server(ServerId(random()?), parents))
}

/// The first address of a parent whose family we listen on.
async fn resolve(server: &ServerAddress, config: &Config) -> anyhow::Result<SocketAddr> {
    let serves = |ip: IpAddr| config.listen.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    tokio::net::lookup_host((server.host.as_str(), server.port))
        .await
        .with_context(|| format!("cannot resolve the gateway {server}"))?
        .find(|address| serves(address.ip()))
        .with_context(|| format!("the gateway {server} has no address of a family we listen on"))
}

fn now() -> Now {
    Now { monotonic: clock::monotonic(), unix: clock::unix() }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(bytes)
}
