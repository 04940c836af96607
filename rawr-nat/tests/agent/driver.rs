//! The tokio driver on loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rawr_nat::agent::{
    AgentEvent, AgentPath, AgentPathKind, Connection, ConnectionConfig, ConnectionIncoming,
    Signalling,
};
use rawr_nat::{Host, Interface, Mapping, PathKind, PeerSocketConfig, Traffic};
use rawr_proto::{Mac, Role, SessionSecret};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::support::{Datagram, FakeServer};

const DATAGRAMS: u32 = 10_000;
/// Not that of any other test's.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A host with one address, on a subnet of so many bits.
struct Loopback(u8);

impl Host for Loopback {
    fn interfaces(&self, _: Option<SocketAddr>) -> io::Result<Vec<Interface>> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Ok(vec![Interface { address, prefix_len: self.0, mac: None }])
    }

    fn neighbour(&self, _: IpAddr) -> Option<Mac> {
        None
    }
}

/// A host that has an address only once it is online.
struct Late(Arc<AtomicBool>);

impl Host for Late {
    fn interfaces(&self, server: Option<SocketAddr>) -> io::Result<Vec<Interface>> {
        match self.0.load(Ordering::Relaxed) {
            true => Loopback(32).interfaces(server),
            false => Ok(Vec::new()),
        }
    }

    fn neighbour(&self, _: IpAddr) -> Option<Mac> {
        None
    }
}

/// Serves Exchange and Connect, and no data, until the test ends.
fn root() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut server = FakeServer::new(&address.to_string());
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let datagram = Datagram { from, to: address, bytes: buffer[..length].to_vec() };
            for reply in server.handle(&datagram) {
                socket.send_to(&reply.bytes, reply.to).unwrap();
            }
        }
    });
    address
}

pub(crate) fn bind(
    role: Role,
    root: Option<SocketAddr>,
    signalling: Signalling,
    prefix: u8,
) -> Connection {
    bind_on(Box::new(Loopback(prefix)), role, root, signalling)
}

fn bind_on(
    host: Box<dyn Host>,
    role: Role,
    root: Option<SocketAddr>,
    signalling: Signalling,
) -> Connection {
    let rawr = PeerSocketConfig {
        secret: SessionSecret::from_bytes([6; 32]),
        role,
        root: root.map(Into::into),
        gateways: Vec::new(),
        data_port: 0,
        epoch: 1,
        raw_mac: false,
    };
    let config = ConnectionConfig {
        rawr,
        stun_servers: Vec::new(),
        signalling,
        nat64: None,
        punching: None,
        behaviour: None,
        probe_budget: 0,
    };
    Connection::bind(config, host).unwrap()
}

/// The application's own channel between the two.
struct Channel {
    out: UnboundedSender<Vec<u8>>,
    incoming: UnboundedReceiver<Vec<u8>>,
}

fn channels() -> [Channel; 2] {
    let ((a_out, a_in), (b_out, b_in)) = (unbounded_channel(), unbounded_channel());
    [Channel { out: a_out, incoming: b_in }, Channel { out: b_out, incoming: a_in }]
}

/// What happens next, signals aside.
async fn next(
    connection: &mut Connection,
    channel: &mut Channel,
    buffer: &mut [u8],
) -> ConnectionIncoming {
    loop {
        tokio::select! {
            Some(signal) = channel.incoming.recv() => connection.handle_signal(&signal),
            incoming = connection.next(buffer) => match incoming.unwrap() {
                // The other side may be gone already.
                ConnectionIncoming::Signal(signal) => drop(channel.out.send(signal)),
                incoming => return incoming,
            }
        }
    }
}

async fn ready(connection: &mut Connection, channel: &mut Channel, buffer: &mut [u8]) -> AgentPath {
    loop {
        let incoming = next(connection, channel, buffer).await;
        if let ConnectionIncoming::Event(AgentEvent::Ready { path, .. }) = incoming {
            return path;
        }
    }
}

/// Sends numbered datagrams, 20 in flight at most, and expects each to come back.
async fn ping(mut connection: Connection, mut channel: Channel) -> (AgentPath, Traffic) {
    let mut buffer = vec![0; 65_535];
    let first = ready(&mut connection, &mut channel, &mut buffer).await;
    let (mut sent, mut returned) = (0_u32, 0_u32);
    while returned < DATAGRAMS {
        while sent < DATAGRAMS && sent - returned < 20 {
            connection.send(&sent.to_be_bytes());
            sent += 1;
        }
        let incoming = next(&mut connection, &mut channel, &mut buffer).await;
        if let ConnectionIncoming::Data(length) = incoming {
            assert_eq!(buffer[..length], returned.to_be_bytes());
            returned += 1;
        }
    }
    let traffic = connection.traffic();
    connection.close().await.unwrap();
    (first, traffic)
}

/// The other side may be ready first: what it has sent meanwhile goes back once we are.
async fn echo(mut connection: Connection, mut channel: Channel) {
    let mut buffer = vec![0; 65_535];
    let mut early = Vec::new();
    loop {
        let incoming = next(&mut connection, &mut channel, &mut buffer).await;
        if let ConnectionIncoming::Data(length) = incoming {
            early.push(buffer[..length].to_vec());
        }
        if connection.path().is_some() {
            early.drain(..).for_each(|datagram| connection.send(&datagram));
        }
    }
}

fn there_and_back(with_root: bool, signalling: Signalling, prefix: u8) -> AgentPath {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (first, traffic) = runtime.block_on(async {
        let root = with_root.then(root);
        let [to_b, to_a] = channels();
        let a = bind(Role::A, root, signalling, prefix);
        let b = bind(Role::B, root, signalling, prefix);
        let echo = tokio::spawn(echo(b, to_a));
        let result = tokio::time::timeout(LIMIT, tokio::spawn(ping(a, to_b))).await;
        echo.abort();
        result.unwrap().unwrap()
    });
    let all = u64::from(DATAGRAMS);
    assert_eq!(traffic, Traffic { sent: all, received: all, dropped: 0 });
    first
}

#[test]
fn over_rawr_between_neighbours() {
    let path = there_and_back(true, Signalling::InBand, 8);
    let direct = [PathKind::Direct, PathKind::Offered].map(AgentPathKind::Rawr);
    assert!(direct.contains(&path.kind), "{path:?}");
}

#[test]
fn by_ice_alone_with_signals_of_the_application() {
    let path = there_and_back(false, Signalling::Application, 32);
    assert_eq!(path.kind, AgentPathKind::Host);
}

#[test]
fn it_finds_out_what_its_nats_do_once_there_is_a_network() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = root();
        let is_online = Arc::new(AtomicBool::new(false));
        let host = Box::new(Late(Arc::clone(&is_online)));
        let mut connection = bind_on(host, Role::A, Some(root), Signalling::InBand);
        connection.classify(vec!["[::1]:9".parse().unwrap(), root]);
        is_online.store(true, Ordering::Relaxed);
        connection.refresh().unwrap();
        let mut buffer = vec![0; 65_535];
        let found = async {
            while connection.behaviour().is_none() {
                let turn = Duration::from_millis(50);
                let _no_news = tokio::time::timeout(turn, connection.next(&mut buffer)).await;
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap();
        let behaviour = connection.behaviour().unwrap();
        assert_eq!((behaviour.mapping, behaviour.external), (Mapping::None, root.ip()));
    });
}
