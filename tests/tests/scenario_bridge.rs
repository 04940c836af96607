//! Names, as two hosts behind symmetric NATs use them, and a server that remembers them.
//!
//! ```text
//! a ── router-a ──┬── root
//! b ── router-b ──┘
//! ```

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rawr_nat::rendezvous::{HolePunchServerAddr, MappingContext};
use rawr_nat::{
    BridgeError, BridgeEvent, BridgeSocket, BridgeSocketConfig, Identity, PublicKey, StreamError,
    is_stream, session_secret,
};
use rawr_proto::BridgeName;
use rawr_tests::lab::Family;
use rawr_tests::nat::Nat;
use rawr_tests::netns::Netns;
use rawr_tests::process::binary;
use rawr_tests::rawr::{Daemon, PORT, Serve};
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{self, INTERNET};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

const LIMIT: Duration = Duration::from_secs(10);
/// From the first request to the last byte of a connection.
const PUNCH_LIMIT: Duration = Duration::from_secs(60);
/// The routers' numbers on the Internet.
const ROUTER_A: u8 = 11;
const ROUTER_B: u8 = 12;

/// A client on one of the lab's hosts. Its socket is in the host's namespace, the rest here.
struct Peer<'a> {
    runtime: &'a Runtime,
    socket: BridgeSocket,
}

impl<'a> Peer<'a> {
    fn new(
        runtime: &'a Runtime,
        scene: &Scene,
        host: &str,
        family: Family,
        identity: Identity,
    ) -> Result<Self> {
        let server = SocketAddr::new(INTERNET.address(family, 1), PORT);
        let config = BridgeSocketConfig { server, identity, credentials: None };
        let handle = runtime.handle().clone();
        let socket = scene.lab.at(host)?.run(move || {
            let _context = handle.enter();
            BridgeSocket::bind(config)
        })??;
        Ok(Self { runtime, socket })
    }

    /// The same over TCP.
    fn over_tcp(
        runtime: &'a Runtime,
        scene: &Scene,
        host: &str,
        family: Family,
        identity: Identity,
    ) -> Result<Self> {
        let server = SocketAddr::new(INTERNET.address(family, 1), PORT);
        let config = BridgeSocketConfig { server, identity, credentials: None };
        let stream = scene.lab.at(host)?.run(|| TcpStream::connect_timeout(&server, LIMIT))??;
        stream.set_nonblocking(true)?;
        let _context = runtime.enter();
        let stream = tokio::net::TcpStream::from_std(stream)?;
        Ok(Self { runtime, socket: BridgeSocket::over_stream(config, stream) })
    }

    fn next(&mut self) -> Result<BridgeEvent> {
        let next = async { tokio::time::timeout(LIMIT, self.socket.next()).await };
        Ok(self.runtime.block_on(next).context("nothing happened")??)
    }

    /// Registers a name: where the server sees us.
    fn register(&mut self, name: &BridgeName) -> Result<Result<SocketAddr, BridgeError>> {
        self.socket.register(name, Some(Duration::from_secs(3600)));
        match self.next()? {
            BridgeEvent::Registered { reflexive, .. } => Ok(Ok(reflexive)),
            BridgeEvent::NotRegistered { error, .. } => Ok(Err(error)),
            other => bail!("{other:?}"),
        }
    }

    /// Looks a name up: who holds it, and where.
    fn look_up(&mut self, name: &BridgeName) -> Result<rawr_nat::Holder> {
        self.socket.look_up(name);
        match self.next()? {
            BridgeEvent::Found { holder, .. } => Ok(holder),
            other => bail!("{other:?}"),
        }
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn identity(number: u8) -> Identity {
    Identity::from_bytes(&[number; 32])
}

#[test]
fn names_lead_through_symmetric_nats_ipv4() {
    names_lead_through_symmetric_nats(Family::Ipv4);
}

#[test]
fn names_lead_through_symmetric_nats_ipv6() {
    names_lead_through_symmetric_nats(Family::Ipv6);
}

fn names_lead_through_symmetric_nats(family: Family) {
    scenario("names_lead_through_symmetric_nats", |scene| {
        topology::two_homes(scene)?;
        let (runtime, name) = (runtime()?, "alice".parse()?);
        let mut a = Peer::new(&runtime, scene, "a", family, identity(1))?;
        let mut b = Peer::new(&runtime, scene, "b", family, identity(2))?;
        let outside = |router| -> IpAddr { INTERNET.address(family, router) };

        let reflexive = a.register(&name)?.context("a registers")?;
        ensure!(reflexive.ip() == outside(ROUTER_A), "a is seen at {reflexive}");
        let holder = b.look_up(&name)?;
        ensure!(holder.key == identity(1).public() && holder.address == outside(ROUTER_A));

        let id = b.socket.introduce(&name, holder.key, b"from b")?;
        let (heard, answered) = met(&mut a, &mut b)?;
        let BridgeEvent::Introduction { id: heard_id, from, reflexive, message, .. } = heard else {
            bail!("{heard:?}")
        };
        ensure!((heard_id, from) == (id, identity(2).public()) && message == b"from b");
        ensure!(reflexive.ip() == outside(ROUTER_B), "b is seen at {reflexive}");
        let BridgeEvent::Answer { reflexive, message, .. } = answered else {
            bail!("{answered:?}")
        };
        ensure!(reflexive.ip() == outside(ROUTER_A) && message == b"from a");
        // What both now have is all that a session needs, or a punch through both NATs.
        let secrets = [
            session_secret(&identity(1), &from, id)?,
            session_secret(&identity(2), &holder.key, id)?,
        ];
        ensure!(secrets[0] == secrets[1], "both know the same secret");

        runtime.block_on(a.socket.close())?;
        b.socket.look_up(&name);
        let gone = b.next()?;
        ensure!(matches!(gone, BridgeEvent::NotFound { error: BridgeError::UnknownName, .. }));
        Ok(())
    });
}

#[test]
fn a_holder_without_udp_is_reached_over_tcp() {
    scenario("a_holder_without_udp_is_reached_over_tcp", |scene| {
        let config = "[turn]\nlisten_tcp = [\"0.0.0.0:3478\", \"[::]:3478\"]\n";
        let site = topology::two_homes_at(scene, Serve::root(&["wan"]).configured(config))?;
        let drop_udp = "nft insert rule inet rawr_nat through_router meta l4proto udp drop";
        scene.lab.at("router-a")?.sh(drop_udp)?;
        let (runtime, name) = (runtime()?, "alice".parse()?);
        for family in [Family::Ipv4, Family::Ipv6] {
            let mut deaf = Peer::new(&runtime, scene, "a", family, identity(1))?;
            let unanswered = deaf.register(&name)?;
            ensure!(unanswered == Err(BridgeError::Unanswered), "{unanswered:?}");

            let mut a = Peer::over_tcp(&runtime, scene, "a", family, identity(1))?;
            let reflexive = a.register(&name)?.context("a registers")?;
            ensure!(reflexive.ip() == INTERNET.address(family, ROUTER_A));
            let mut b = Peer::new(&runtime, scene, "b", family, identity(2))?;
            let holder = b.look_up(&name)?;
            let id = b.socket.introduce(&name, holder.key, b"from b")?;
            let (heard, answered) = met(&mut a, &mut b)?;
            ensure!(matches!(heard, BridgeEvent::Introduction { id: it, .. } if it == id));
            ensure!(matches!(answered, BridgeEvent::Answer { id: it, .. } if it == id));

            // The connection ends with its holder, and the name stays.
            drop(a);
            b.socket.introduce(&name, holder.key, b"from b")?;
            let gone = b.next()?;
            let error = BridgeError::Unreachable;
            ensure!(matches!(gone, BridgeEvent::NotIntroduced { error: it, .. } if it == error));
            ensure!(b.look_up(&name).is_ok());
            let mut again = Peer::over_tcp(&runtime, scene, "a", family, identity(1))?;
            again.register(&name)?.context("a registers again")?;
            runtime.block_on(again.socket.close())?;
        }
        ensure!(site.root.is_running());
        Ok(())
    });
}

/// Lets `a` answer the first introduction that it hears: that, and what its sender, `b`, hears.
fn met(a: &mut Peer<'_>, b: &mut Peer<'_>) -> Result<(BridgeEvent, BridgeEvent)> {
    let meeting = async { tokio::time::timeout(LIMIT, meet(&mut a.socket, &mut b.socket)).await };
    a.runtime.block_on(meeting).context("they do not meet")?
}

/// Lets `holder` answer the first introduction that it hears: that, and what its sender hears.
async fn meet(
    holder: &mut BridgeSocket,
    introducer: &mut BridgeSocket,
) -> Result<(BridgeEvent, BridgeEvent)> {
    let mut heard = None;
    loop {
        tokio::select! {
            event = holder.next() => {
                let event = event?;
                if let BridgeEvent::Introduction { id, .. } = event {
                    holder.answer(id, b"from a")?;
                }
                heard = Some(event);
            }
            event = introducer.next() => {
                return Ok((heard.context("an answer to nothing")?, event?));
            }
        }
    }
}

/// Two that know each other's names end with a TCP connection, and no relay in it.
fn names_lead_to_a_connection(nats: [Nat; 2]) {
    scenario("names_lead_to_a_connection", |scene| {
        let site = topology::two_homes_behind(scene, nats)?;
        let hosts = [scene.lab.at("a")?, scene.lab.at("b")?];
        let [a, b] = hosts.each_ref().map(|host| &**host);
        let [from_a, from_b] = std::thread::scope(|scope| {
            let holder = scope.spawn(|| on(a, hold));
            let caller = on(b, call);
            let holder = holder.join().map_err(|_| anyhow!("the holder has panicked"))?;
            anyhow::Ok([holder.context("the holder")?, caller.context("the caller")?])
        })?;
        ensure!(from_a.peer == identity(2).public() && from_b.peer == identity(1).public());
        ensure!(from_a.remote.ip() == INTERNET.address(Family::Ipv4, ROUTER_B), "{from_a:?}");
        ensure!(from_b.remote.ip() == INTERNET.address(Family::Ipv4, ROUTER_A), "{from_b:?}");
        ensure!(&from_a.bytes == SAID[1] && &from_b.bytes == SAID[0]);
        ensure!(site.root.is_running());
        Ok(())
    });
}

#[test]
fn names_lead_to_a_connection_through_a_symmetric_nat() {
    names_lead_to_a_connection([Nat::HomeMapped, Nat::SymmetricRandom]);
}

#[test]
fn names_lead_to_a_connection_through_two_symmetric_nats_with_blocks_of_ports() {
    names_lead_to_a_connection([Nat::Block, Nat::Block]);
}

/// What the holder says, and the caller.
const SAID: [&[u8; 11]; 2] = [b"from holder", b"from caller"];

/// How one side's connection turned out.
#[derive(Debug)]
struct Connected {
    peer: PublicKey,
    remote: SocketAddr,
    bytes: [u8; 11],
}

async fn hold() -> Result<Connected> {
    let (mut bridge, mapping) = at_the_server(identity(1)).await?;
    bridge.register(&"alice".parse()?, None);
    loop {
        if let BridgeEvent::Introduction { id, from, message, .. } = bridge.next().await? {
            ensure!(is_stream(&message), "{message:?}");
            let stream = bridge.accept_stream(id, &message, &mapping).await?;
            return talk(stream, from, SAID[0]).await;
        }
    }
}

async fn call() -> Result<Connected> {
    let (mut bridge, mapping) = at_the_server(identity(2)).await?;
    let name = "alice".parse()?;
    loop {
        match bridge.connect_stream(&name, &mapping).await {
            Ok((stream, holder)) => return talk(stream, holder, SAID[1]).await,
            // The holder is not as far.
            Err(StreamError::NotFound { error: BridgeError::UnknownName, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn at_the_server(identity: Identity) -> Result<(BridgeSocket, MappingContext)> {
    let server = INTERNET.socket(Family::Ipv4, 1, PORT);
    let mapping = MappingContext::without_gateways();
    mapping.add_servers([HolePunchServerAddr::Stun(server)]);
    let config = BridgeSocketConfig { server, identity, credentials: None };
    Ok((BridgeSocket::bind(config)?, mapping))
}

async fn talk(mut stream: tokio::net::TcpStream, peer: PublicKey, say: &[u8]) -> Result<Connected> {
    stream.write_all(say).await?;
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).await?;
    Ok(Connected { peer, remote: stream.peer_addr()?, bytes })
}

/// Runs asynchronous work on a host.
fn on<T: Send>(host: &Netns, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    host.run(|| {
        let limited =
            async { tokio::time::timeout(PUNCH_LIMIT, work()).await.context("too slow")? };
        runtime()?.block_on(limited)
    })?
}

#[test]
fn names_survive_a_restart_where_they_are_written_down() {
    scenario("names_survive_a_restart_where_they_are_written_down", |scene| {
        let file = scene.lab.directory().join("names.redb");
        let config = format!("[bridge]\nregistry = \"{}\"\n", file.display());
        let site = topology::two_homes_at(scene, Serve::root(&["wan"]).configured(&config))?;
        let (runtime, name) = (runtime()?, "büro".parse()?);
        let family = Family::Ipv4;
        let mut a = Peer::new(&runtime, scene, "a", family, identity(1))?;
        let before = a.register(&name)?.context("a registers")?;
        for end in [Daemon::stop, Daemon::crash] {
            end(&site.root)?;
            restart(&site.root)?;
            let mut b = Peer::new(&runtime, scene, "b", family, identity(2))?;
            let holder = b.look_up(&name)?;
            ensure!((holder.key, holder.address) == (identity(1).public(), before.ip()));
            let taken = b.register(&name)?;
            ensure!(taken == Err(BridgeError::NameTaken), "{taken:?}");
        }
        // The holder notices nothing but a new challenge, and can give the name up.
        runtime.block_on(a.socket.close())?;
        site.root.stop()?;
        restart(&site.root)?;
        let mut b = Peer::new(&runtime, scene, "b", family, identity(2))?;
        ensure!(b.register(&name)?.is_ok(), "the name is free after its holder gave it up");
        Ok(())
    });
}

fn restart(daemon: &Rc<Daemon>) -> Result<()> {
    daemon.launch(&binary("rawr")?)
}
