//! One host's part: a program that connects to another of its kind as often as it is told to.

use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rawr_nat::agent::{
    AgentEvent, AgentPath, Connection, ConnectionConfig, ConnectionIncoming, Signalling,
};
use rawr_nat::classify::{ClassifyConfig, Report, run as classify};
use rawr_nat::nat64::Prefix;
use rawr_nat::punch::Tuning;
use rawr_nat::{Behaviour, LinuxHost, PeerSocketConfig};
use rawr_proto::{Role, SessionSecret};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::MissedTickBehavior;

use super::account::Ledger;
use super::tcp;
use super::words::{Classified, News, Order, Over, Start, line};
use crate::process::now;

/// Pause between two datagrams of data.
const PACE: Duration = Duration::from_millis(20);
const MAX_DATAGRAM: usize = 65_535;
/// Bytes of a datagram's number.
const NUMBER: usize = 8;

/// How a node is run.
#[derive(clap::Args, Clone, Debug)]
pub struct NodeArgs {
    /// Where it meets the other node, and asks for its own addresses
    #[arg(long)]
    server: SocketAddr,
    /// Prefix of 96 bits by which IPv4 hosts are reached
    #[arg(long)]
    nat64: Option<std::net::Ipv6Addr>,
}

/// Does what standard input says, until it ends. Punching takes a socket for each of many ports, so as many
/// files may be open as the system allows.
pub fn run(arguments: &NodeArgs) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(arguments));
    // A thread waits for standard input.
    runtime.shutdown_background();
    result
}

/// What a node knows.
struct Node {
    server: SocketAddr,
    nat64: Option<Prefix>,
    report: Report,
    orders: UnboundedReceiver<Order>,
}

async fn serve(arguments: &NodeArgs) -> Result<()> {
    let mut node = Node {
        server: arguments.server,
        nat64: arguments.nat64.and_then(|address| Prefix::new(address, 96)),
        report: Report::default(),
        orders: orders(),
    };
    while let Some(order) = node.orders.recv().await {
        match order {
            Order::Classify => node.classify().await?,
            Order::Start(start) => node.connect(&start).await?,
            // Of a connection that has ended by itself.
            Order::Signal(_) | Order::Mark | Order::Stop => {}
        }
    }
    Ok(())
}

fn orders() -> UnboundedReceiver<Order> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(order) => {
                    if sender.send(order).is_err() {
                        return;
                    }
                }
                Err(error) => log::error!("no order: {line}: {error}"),
            }
        }
    });
    receiver
}

/// Tells the matrix.
pub(super) fn say(news: &News) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line(news)?.as_bytes())?;
    Ok(out.flush()?)
}

impl Node {
    async fn classify(&mut self) -> Result<()> {
        self.report = classify(ClassifyConfig::new(vec![self.server])).await?;
        let milliseconds = u64::try_from(self.report.elapsed.as_millis())?;
        let udp = self.udp().as_ref().map(describe);
        let tcp = self.tcp().as_ref().map(describe);
        say(&News::Classified(Classified { udp, tcp, milliseconds }))
    }

    /// Punching is a matter of IPv4.
    fn udp(&self) -> Option<Behaviour> {
        self.report.ipv4.as_ref()?.udp
    }

    fn tcp(&self) -> Option<Behaviour> {
        self.report.ipv4.as_ref()?.tcp
    }

    async fn connect(&mut self, start: &Start) -> Result<()> {
        let mut ledger = Ledger::new(now());
        match start.over {
            Over::Udp { probes } => self.connect_udp(start, probes, &mut ledger).await?,
            Over::Tcp => {
                let ours = self.tcp();
                let local = self.report.ipv4.as_ref().and_then(|family| family.local);
                tcp::connect(start, ours, local, self.server, &mut self.orders, &mut ledger)
                    .await?;
            }
        }
        say(&News::Done(ledger.account(now())))
    }

    async fn connect_udp(&mut self, start: &Start, probes: u32, ledger: &mut Ledger) -> Result<()> {
        let mut connection = Connection::bind(self.config(start, probes)?, Box::new(LinuxHost))?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number: u64 = 0;
        loop {
            tokio::select! {
                incoming = connection.next(&mut buffer) => match incoming? {
                    ConnectionIncoming::Data(length) => take(ledger, &buffer[..length])?,
                    ConnectionIncoming::Event(event) => note(ledger, &event)?,
                    ConnectionIncoming::Signal(bytes) => say(&News::Signal(bytes))?,
                },
                _ = pace.tick() => {
                    connection.send(&number.to_be_bytes());
                    number += 1;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Signal(bytes)) => connection.handle_signal(&bytes),
                    Some(Order::Mark) => ledger.mark(now()),
                    Some(Order::Stop) | None => break,
                    Some(other) => bail!("{other:?} while a connection is there"),
                }
            }
        }
        ledger.end(connection.path().map(|path| named(&path)), connection.probes_spent());
        Ok(connection.close().await?)
    }

    /// The server, and its second address by NAT64: so a host without IPv4 learns what others of IPv4 see.
    fn stun_servers(&self) -> Vec<SocketAddr> {
        let through = self.nat64.map(|prefix| prefix.synthesize(Ipv4Addr::new(203, 0, 113, 1)));
        let through = through.map(|address| SocketAddr::new(address.into(), self.server.port()));
        std::iter::once(self.server).chain(through).collect()
    }

    fn config(&self, start: &Start, probes: u32) -> Result<ConnectionConfig> {
        let secret: SessionSecret = start.secret.parse().context("no secret")?;
        let rawr = PeerSocketConfig {
            secret,
            role: if start.is_a { Role::A } else { Role::B },
            root: Some(self.server.into()),
            gateways: Vec::new(),
            data_port: 0,
            epoch: start.epoch,
            raw_mac: false,
        };
        Ok(ConnectionConfig {
            rawr,
            stun_servers: self.stun_servers(),
            signalling: Signalling::InBand,
            nat64: self.nat64,
            punching: Some(Tuning::default()),
            behaviour: self.udp(),
            probe_budget: probes,
        })
    }
}

fn take(ledger: &mut Ledger, datagram: &[u8]) -> Result<()> {
    let number = datagram.first_chunk::<NUMBER>().context("a datagram without a number")?;
    if ledger.take(now(), u64::from_be_bytes(*number)) {
        say(&News::FirstByte)?;
    }
    Ok(())
}

fn note(ledger: &mut Ledger, event: &AgentEvent) -> Result<()> {
    match event {
        AgentEvent::Ready { path: to, .. } | AgentEvent::PathChanged { to, .. } => {
            let (kind, is_direct) = named(to);
            if is_direct {
                ledger.direct(now());
            }
            say(&News::Path { kind, is_direct })
        }
        AgentEvent::NotPunched { reason, probes } => {
            ledger.reason(format!("{reason} ({probes} probes)"));
            Ok(())
        }
        AgentEvent::Refused { server, error } => {
            ledger.reason(format!("{server} refuses: {error:?}"));
            Ok(())
        }
        AgentEvent::PathLost(path) => {
            ledger.reason(format!("{} to {} lost", path.kind.as_str(), path.remote));
            Ok(())
        }
        AgentEvent::Closed => Ok(()),
    }
}

fn named(path: &AgentPath) -> (String, bool) {
    (path.kind.as_str().to_owned(), path.kind.is_direct())
}

/// For people.
fn describe(behaviour: &Behaviour) -> String {
    let Behaviour { mapping, filtering, ports, .. } = behaviour;
    let filtering =
        filtering.map_or_else(|| "unknown".to_owned(), |filtering| format!("{filtering:?}"));
    let ports = ports.map_or_else(|| "unknown".to_owned(), |ports| format!("{ports:?}"));
    format!("mapping {mapping:?}, filtering {filtering}, ports {ports}")
}

/// Milliseconds from one moment to another.
pub(super) fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}
