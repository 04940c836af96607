//! The rendezvous API between hosts behind NATs: sockets are mapped, told and punched, over UDP and TCP.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rawr_nat::punch::Hopeless;
use rawr_nat::rendezvous::{
    HolePunchServerAddr, MapWarning, MappedTcpSocket, MappedUdpSocket, MappingContext,
    PubRendezvousInfo, PunchError, PunchedUdpSocket, SimpleUdpHolePunchServer, Warned,
    gen_rendezvous_info, tcp_punch_hole,
};
use rawr_tests::lab::{Family, Lab};
use rawr_tests::nat::Nat;
use rawr_tests::nat_pmp::mapped_ports;
use rawr_tests::netns::Netns;
use rawr_tests::process::now;
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{self, INTERNET};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// For one side, from the first call to the last datagram.
const LIMIT: Duration = Duration::from_secs(60);
/// Where servers of the simple protocol are.
const SIMPLE_PORT: u16 = 5000;
/// Numbers that each side sends to the other once they have met.
const NUMBERS: std::ops::Range<u8> = 0..50;

#[test]
fn udp_between_two_home_routers() {
    let nats = [Nat::Home, Nat::Home];
    told("udp_between_two_home_routers", nats, udp, met);
}

#[test]
fn udp_between_a_home_router_with_an_open_outside_and_a_symmetric_nat() {
    let name = "udp_between_a_home_router_with_an_open_outside_and_a_symmetric_nat";
    told(name, [Nat::HomeOpen, Nat::SymmetricRandom], udp, met);
}

#[test]
fn udp_between_a_symmetric_nat_and_a_home_router() {
    let nats = [Nat::Symmetric, Nat::Home];
    told("udp_between_a_symmetric_nat_and_a_home_router", nats, udp, met);
}

#[test]
fn udp_between_a_symmetric_nat_and_a_full_cone() {
    let nats = [Nat::Symmetric, Nat::FullCone];
    told("udp_between_a_symmetric_nat_and_a_full_cone", nats, udp, met);
}

#[test]
fn udp_between_two_blocks_of_ports() {
    told("udp_between_two_blocks_of_ports", [Nat::Block, Nat::Block], udp, met);
}

#[test]
fn udp_between_two_sequences_of_ports() {
    told("udp_between_two_sequences_of_ports", [Nat::Sequential, Nat::Sequential], udp, met);
}

#[test]
fn udp_between_two_symmetric_nats_is_refused_with_the_reason() {
    let name = "udp_between_two_symmetric_nats_is_refused_with_the_reason";
    told(name, [Nat::Symmetric, Nat::Symmetric], udp, |_, outcome| match outcome {
        Outcome::Failed(PunchError::TimedOut { hopeless: Some(Hopeless::Random), .. }) => Ok(()),
        other => Err(anyhow!("{other:?}")),
    });
}

#[test]
fn tcp_between_two_home_routers() {
    let nats = [Nat::Home, Nat::Home];
    told("tcp_between_two_home_routers", nats, tcp, met);
}

#[test]
fn tcp_where_udp_is_blocked() {
    told("tcp_where_udp_is_blocked", [Nat::UdpBlocked, Nat::HomeMapped], tcp, met);
}

#[test]
fn tcp_between_a_home_router_and_a_symmetric_nat() {
    let nats = [Nat::HomeMapped, Nat::Symmetric];
    told("tcp_between_a_home_router_and_a_symmetric_nat", nats, tcp, met);
}

/// Two of them, which see a socket behind a symmetric NAT at two ports.
#[test]
fn servers_of_the_simple_protocol_are_enough() {
    for nats in [[Nat::Home, Nat::Home], [Nat::Home, Nat::Symmetric]] {
        scenario("servers_of_the_simple_protocol_are_enough", |scene| {
            topology::two_homes_behind(scene, nats)?;
            let addresses = [1, 2].map(|number| INTERNET.socket(Family::Ipv4, number, SIMPLE_PORT));
            let outcomes = serving(&*scene.lab.at("root")?, addresses, || {
                both(&scene.lab, async |peer| {
                    udp(&context(addresses.map(HolePunchServerAddr::Simple)).await?, peer).await
                })
            })?;
            check(&nats, outcomes, met)
        });
    }
}

/// Servers alone would not do here: see the two symmetric NATs above.
#[test]
fn a_port_that_a_router_maps_lets_udp_in() {
    mapped("a_port_that_a_router_maps_lets_udp_in", udp);
}

#[test]
fn a_port_that_a_router_maps_lets_tcp_in() {
    mapped("a_port_that_a_router_maps_lets_tcp_in", tcp);
}

/// Router and server are both asked, and the mapping is removed in the end.
fn mapped(name: &str, side: impl AsyncFn(&MappingContext, OutOfBand) -> Result<Outcome> + Sync) {
    scenario(name, |scene| {
        let nats = [Nat::Symmetric; 2];
        let _nat_pmp = topology::two_homes_with_port_mapping(scene, nats)?;
        let server = HolePunchServerAddr::Stun(INTERNET.socket(Family::Ipv4, 1, 3478));
        let router = scene.lab.at("router-a")?;
        let outcomes = both(&scene.lab, async |peer| {
            let context = context([server.clone()]).await?;
            let outcome = side(&context, peer).await?;
            context.close().await;
            Ok(outcome)
        })?;
        let left = mapped_ports(&router)?;
        ensure!(left == 0, "{left} mappings are left at the router");
        check(&nats, outcomes, met)
    });
}

/// What one side has come to.
#[derive(Debug)]
enum Outcome {
    /// Where the other side is, and how long the calls took.
    Met {
        peer: SocketAddr,
        mapped: Duration,
        punched: Duration,
    },
    Failed(PunchError),
}

/// Both sides know a server that speaks STUN over UDP and TCP, and tells what NATs do.
fn told(
    name: &str,
    nats: [Nat; 2],
    side: impl AsyncFn(&MappingContext, OutOfBand) -> Result<Outcome> + Sync,
    expected: fn(SocketAddr, Outcome) -> Result<()>,
) {
    scenario(name, |scene: &mut Scene| {
        topology::two_homes_behind(scene, nats)?;
        let server = HolePunchServerAddr::Stun(INTERNET.socket(Family::Ipv4, 1, 3478));
        let outcomes =
            both(&scene.lab, async |peer| side(&context([server.clone()]).await?, peer).await)?;
        check(&nats, outcomes, expected)
    });
}

/// Nothing but these servers.
async fn context<const N: usize>(servers: [HolePunchServerAddr; N]) -> Result<MappingContext> {
    let context = MappingContext::new().await?;
    context.add_servers(servers);
    Ok(context)
}

/// `expected` is told where the other side's router is.
fn check(
    nats: &[Nat; 2],
    outcomes: [Outcome; 2],
    expected: impl Fn(SocketAddr, Outcome) -> Result<()>,
) -> Result<()> {
    for ((outcome, nat), router) in outcomes.into_iter().zip(nats).zip([12, 11]) {
        if let Outcome::Met { mapped, punched, .. } = &outcome {
            eprintln!("{nats:?}, {nat:?}: mapped after {mapped:?}, punched after {punched:?}");
        }
        expected(INTERNET.socket(Family::Ipv4, router, 0), outcome)
            .with_context(|| format!("{nat:?} of {nats:?}"))?;
    }
    Ok(())
}

fn met(router: SocketAddr, outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Met { peer, .. } if peer.ip().to_canonical() == router.ip() => Ok(()),
        other => Err(anyhow!("{other:?}, and not at {router}")),
    }
}

async fn udp(context: &MappingContext, mut peer: OutOfBand) -> Result<Outcome> {
    let begun = now();
    let MappedUdpSocket { socket, endpoints } =
        only_harmless(MappedUdpSocket::new_with_warnings(context).await?)?;
    let mapped = since(begun);
    let (ours, told) = gen_rendezvous_info(endpoints);
    let theirs = peer.exchange(&told).await?;
    let begun = now();
    match PunchedUdpSocket::punch_hole(socket, ours, theirs).await {
        Ok(PunchedUdpSocket { socket, peer_addr }) => {
            let punched = since(begun);
            talk(&socket, peer_addr).await?;
            peer.meet().await?;
            Ok(Outcome::Met { peer: peer_addr, mapped, punched })
        }
        Err(error) => Ok(Outcome::Failed(error)),
    }
}

async fn tcp(context: &MappingContext, mut peer: OutOfBand) -> Result<Outcome> {
    let begun = now();
    let MappedTcpSocket { socket, endpoints } =
        only_harmless(MappedTcpSocket::new_with_warnings(context).await?)?;
    let mapped = since(begun);
    let (ours, told) = gen_rendezvous_info(endpoints);
    let theirs = peer.exchange(&told).await?;
    let begun = now();
    match tcp_punch_hole(socket, ours, theirs).await {
        Ok(stream) => {
            let punched = since(begun);
            let peer_addr = stream.peer_addr()?;
            converse(stream).await?;
            peer.meet().await?;
            Ok(Outcome::Met { peer: peer_addr, mapped, punched })
        }
        Err(error) => Ok(Outcome::Failed(error)),
    }
}

/// No router maps ports here, and that is said. Servers are all to answer.
fn only_harmless<T>(mapped: Warned<T>) -> Result<T> {
    let is_harmless = |warning: &MapWarning| matches!(warning, MapWarning::NotMapped { .. });
    ensure!(mapped.warnings.iter().all(is_harmless), "warnings: {:?}", mapped.warnings);
    Ok(mapped.value)
}

/// All numbers come, from the other side and in order; nothing is lost in these networks.
async fn talk(socket: &UdpSocket, peer: SocketAddr) -> Result<()> {
    for number in NUMBERS {
        socket.send_to(&[number], peer).await?;
    }
    let (mut buffer, mut got) = ([0; 100], Vec::new());
    while got.len() < NUMBERS.len() {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        // A late probe is longer.
        if length == 1 {
            ensure!(from == peer, "from {from}, and not from {peer}");
            got.push(buffer[0]);
        }
    }
    ensure!(got.iter().copied().eq(NUMBERS), "{got:?}");
    Ok(())
}

async fn converse(mut stream: TcpStream) -> Result<()> {
    let numbers: Vec<_> = NUMBERS.collect();
    stream.write_all(&numbers).await?;
    let mut got = vec![0; numbers.len()];
    stream.read_exact(&mut got).await?;
    ensure!(got == numbers, "{got:?}");
    Ok(())
}

/// The way of the message to the other side: here, not through the network.
struct OutOfBand {
    to: UnboundedSender<String>,
    from: UnboundedReceiver<String>,
}

impl OutOfBand {
    async fn exchange(&mut self, ours: &PubRendezvousInfo) -> Result<PubRendezvousInfo> {
        self.to.send(ours.to_string())?;
        Ok(self.from.recv().await.context("the other side is gone")?.parse()?)
    }

    /// Waits until the other side is as far.
    async fn meet(&mut self) -> Result<()> {
        self.to.send(String::new())?;
        self.from.recv().await.context("the other side has failed")?;
        Ok(())
    }
}

/// Runs both sides, each on its host.
fn both<T: Send>(lab: &Lab, side: impl AsyncFn(OutOfBand) -> Result<T> + Sync) -> Result<[T; 2]> {
    let hosts = [lab.at("a")?, lab.at("b")?];
    let [a, b] = hosts.each_ref().map(|host| &**host);
    let ((to_b, from_a), (to_a, from_b)) = (unbounded_channel(), unbounded_channel());
    let side = &side;
    std::thread::scope(|scope| {
        let (of_a, of_b) =
            (OutOfBand { to: to_b, from: from_b }, OutOfBand { to: to_a, from: from_a });
        let a = scope.spawn(move || run(a, async move || side(of_a).await));
        let b = run(b, async move || side(of_b).await);
        let a = a.join().map_err(|_| anyhow!("host a has panicked"))?;
        Ok([a.context("host a")?, b.context("host b")?])
    })
}

/// Runs servers of the simple protocol on a host meanwhile.
fn serving<T>(
    host: &Netns,
    addresses: [SocketAddr; 2],
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let servers = scope.spawn(move || {
            run(host, async move || {
                let context = MappingContext::without_gateways();
                let mut servers = Vec::new();
                for address in addresses {
                    let socket = UdpSocket::bind(address).await?;
                    servers.push(SimpleUdpHolePunchServer::on(socket, &context).await?.value);
                }
                // Until the other end is dropped.
                let _ = stopped.await;
                Ok(())
            })
        });
        let outcome = meanwhile();
        drop(stop);
        servers.join().map_err(|_| anyhow!("the servers have panicked"))??;
        outcome
    })
}

/// Runs asynchronous work on a host.
fn run<T: Send>(host: &Netns, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(LIMIT, work()).await.context("too slow")? })
    })?
}

fn since(begun: Instant) -> Duration {
    now().saturating_duration_since(begun)
}
