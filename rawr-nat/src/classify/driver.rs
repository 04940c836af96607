//! A [`Classifier`] on tokio's sockets.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rawr_proto::{MAX_STUN, messages, whole};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::routers;
use super::{
    Classifier, ClassifyConfig, ClassifyOutput, FamilyReport, Lifetime, LifetimeOutput,
    LifetimeTest, Report, StreamId,
};
use crate::driver::now;
use crate::host::{Host, LinuxHost, local_address_towards};
use crate::socket_id::SocketId;

/// Longest datagram that is read. Answers are shorter.
const MAX_DATAGRAM: usize = 2048;
/// Pause after an error.
const AFTER_ERROR: Duration = Duration::from_millis(1);
/// What has come and waits.
const QUEUE: usize = 256;

/// Finds out how the NATs before this host behave.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use rawr_nat::classify::{ClassifyConfig, run};
///
/// let servers = ["192.0.2.1:3478", "198.51.100.1:3478"].map(|server| server.parse().unwrap());
/// let report = run(ClassifyConfig::new(servers.into())).await?;
/// if let Some(udp) = report.ipv4.and_then(|family| family.udp) {
///     println!("{:?}, seen as {}", udp.mapping, udp.external);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the host cannot be asked for its addresses. A socket that cannot be opened, or a server that cannot
/// be reached, is no error: the report says what could be found out.
pub async fn run(mut config: ClassifyConfig) -> io::Result<Report> {
    if config.local.is_empty() {
        let interfaces = LinuxHost.interfaces(config.servers.first().copied())?;
        let addresses = interfaces.into_iter().map(|interface| interface.address);
        // A server on this host has it use an address that others cannot reach.
        let towards = config.servers.iter().copied().filter_map(local_address_towards);
        config.local = addresses.chain(towards).collect();
    }
    let mut report = classify(&config).await;
    if !config.silences.is_empty() {
        let (ipv4, ipv6) = (test_of(&report.ipv4), test_of(&report.ipv6));
        let silences = &config.silences;
        let (lifetime4, lifetime6) =
            tokio::join!(lifetime(ipv4, silences), lifetime(ipv6, silences));
        for (family, lifetime) in [(&mut report.ipv4, lifetime4), (&mut report.ipv6, lifetime6)] {
            if let Some(family) = family {
                family.mapping_lifetime = lifetime;
            }
        }
    }
    Ok(report)
}

async fn classify(config: &ClassifyConfig) -> Report {
    let mut machine = Classifier::new(config, rand::rng().random(), now());
    let towards = |is_ipv6| {
        let server = config.servers.iter().find(|server| server.is_ipv6() == is_ipv6);
        server.copied().and_then(local_address_towards)
    };
    let mut sockets = Sockets::new([towards(false), towards(true)]);
    loop {
        while let Some(output) = machine.poll_output() {
            match output {
                ClassifyOutput::Open { socket, is_ipv6 } => {
                    let local = sockets.open(socket, is_ipv6).ok();
                    machine.handle_opened(now(), socket, local);
                }
                ClassifyOutput::Transmit { socket, to, ttl, bytes } => {
                    sockets.send(socket, to, ttl, &bytes);
                }
                ClassifyOutput::Connect { stream, port, to, bytes } => {
                    sockets.connect(stream, port, to, bytes);
                }
                ClassifyOutput::Report(report) => return *report,
            }
        }
        let event = sockets.next(machine.poll_timeout()).await;
        for (socket, router) in sockets.routers() {
            machine.handle_router(now(), socket, router);
        }
        match event {
            Some(Event::Datagram { socket, from, bytes }) => {
                machine.handle_datagram(now(), socket, from, &bytes);
            }
            Some(Event::Stream { stream, answer }) => {
                let answer = answer.as_ref().map(|(local, bytes)| (*local, bytes.as_slice()));
                machine.handle_stream(now(), stream, answer);
            }
            None => machine.handle_timeout(now()),
        }
    }
}

/// The server to test lifetimes with.
fn test_of(family: &Option<FamilyReport>) -> Option<SocketAddr> {
    family.as_ref()?.discovery.first().copied()
}

async fn lifetime(server: Option<SocketAddr>, silences: &[Duration]) -> Option<Lifetime> {
    let server = server?;
    let mut machine = LifetimeTest::new(server, silences, rand::rng().random());
    let mut sockets = Sockets::new([None, None]);
    loop {
        while let Some(output) = machine.poll_output() {
            match output {
                LifetimeOutput::Open(socket) => {
                    let is_open = sockets.open(socket, server.is_ipv6()).is_ok();
                    machine.handle_opened(now(), socket, is_open);
                }
                LifetimeOutput::Transmit { socket, bytes } => {
                    sockets.send(socket, server, None, &bytes);
                }
                LifetimeOutput::Done(lifetime) => return lifetime,
            }
        }
        match sockets.next(machine.poll_timeout()).await {
            Some(Event::Datagram { socket, from, bytes }) => {
                machine.handle_datagram(now(), socket, from, &bytes);
            }
            Some(Event::Stream { .. }) | None => machine.handle_timeout(now()),
        }
    }
}

/// What has come.
enum Event {
    Datagram { socket: SocketId, from: SocketAddr, bytes: Vec<u8> },
    Stream { stream: StreamId, answer: Option<(SocketAddr, Vec<u8>)> },
}

/// Sockets and streams, each with a task that ends with this.
struct Sockets {
    /// The host's addresses towards the servers: IPv4, IPv6.
    addresses: [Option<IpAddr>; 2],
    udp: HashMap<SocketId, Arc<UdpSocket>>,
    /// Those of `udp` whose datagrams live for some hops only.
    short_lived: Vec<SocketId>,
    /// By family and number. They hold their ports for the streams.
    tcp: HashMap<(bool, u32), (Socket, u16)>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Event>,
    receiver: mpsc::Receiver<Event>,
}

impl Sockets {
    fn new(addresses: [Option<IpAddr>; 2]) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self {
            addresses,
            udp: HashMap::new(),
            short_lived: Vec::new(),
            tcp: HashMap::new(),
            tasks: JoinSet::new(),
            sender,
            receiver,
        }
    }

    /// Waits for something, until then.
    async fn next(&mut self, until: Option<Instant>) -> Option<Event> {
        let Some(until) = until else { return self.receiver.recv().await };
        tokio::time::timeout_at(until.into(), self.receiver.recv()).await.ok().flatten()
    }

    /// Opens a socket on any port, and returns where it would be seen without NAT.
    fn open(&mut self, id: SocketId, is_ipv6: bool) -> io::Result<SocketAddr> {
        let (domain, address) = unspecified(is_ipv6);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if is_ipv6 {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let mut local = socket.local_addr()?;
        if let Some(ip) = self.addresses[usize::from(is_ipv6)] {
            local.set_ip(ip);
        }
        self.tasks.spawn(receive(id, Arc::clone(&socket), self.sender.clone()));
        self.udp.insert(id, socket);
        Ok(local)
    }

    fn send(&mut self, id: SocketId, to: SocketAddr, ttl: Option<u8>, bytes: &[u8]) {
        let Some(socket) = self.udp.get(&id) else { return };
        // Not by tokio, which takes a socket for busy until it has first polled it.
        let raw = SockRef::from(&**socket);
        if let Some(hops) = ttl {
            if raw.set_ttl_v4(hops.into()).is_err() || routers::listen(&**socket).is_err() {
                return;
            }
            if !self.short_lived.contains(&id) {
                self.short_lived.push(id);
            }
        }
        if let Err(error) = raw.send_to(bytes, &to.into()) {
            log::debug!("{} bytes to {to} not sent: {error}", bytes.len());
        }
    }

    /// Who has told that a datagram lived too short.
    fn routers(&self) -> Vec<(SocketId, IpAddr)> {
        let sockets = self.short_lived.iter().filter_map(|id| Some((*id, self.udp.get(id)?)));
        sockets.filter_map(|(id, socket)| Some((id, routers::next(&**socket)?))).collect()
    }

    fn connect(&mut self, stream: StreamId, port: u32, to: SocketAddr, bytes: Vec<u8>) {
        let sender = self.sender.clone();
        match self.tcp_socket(port, to.is_ipv6()) {
            Ok(socket) => self.tasks.spawn(async move {
                let answer = ask(socket, to, &bytes).await;
                if let Err(error) = &answer {
                    log::debug!("{to} over TCP: {error}");
                }
                // The receiver goes with the tasks.
                let _ended = sender.send(Event::Stream { stream, answer: answer.ok() }).await;
            }),
            Err(error) => self.tasks.spawn(async move {
                log::debug!("no socket towards {to}: {error}");
                let _ended = sender.send(Event::Stream { stream, answer: None }).await;
            }),
        };
    }

    /// A further socket on the local TCP port with this number.
    fn tcp_socket(&mut self, port: u32, is_ipv6: bool) -> io::Result<TcpSocket> {
        let (_, mut address) = unspecified(is_ipv6);
        if let Some((_, number)) = self.tcp.get(&(is_ipv6, port)) {
            address.set_port(*number);
        }
        let socket = bind_tcp(address)?;
        if address.port() == 0 {
            let number = socket.local_addr()?.as_socket().map_or(0, |local| local.port());
            self.tcp.insert((is_ipv6, port), (socket, number));
            address.set_port(number);
            return Ok(TcpSocket::from_std_stream(bind_tcp(address)?.into()));
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn unspecified(is_ipv6: bool) -> (Domain, SocketAddr) {
    match is_ipv6 {
        true => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        false => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into()),
    }
}

/// Hands on what comes, until its task is ended.
async fn receive(id: SocketId, socket: Arc<UdpSocket>, sender: mpsc::Sender<Event>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error about something sent before: the next datagram may be good. Whatever else
            // it is must not take all the time.
            tokio::time::sleep(AFTER_ERROR).await;
            continue;
        };
        let bytes = buffer[..length].to_vec();
        if sender.send(Event::Datagram { socket: id, from, bytes }).await.is_err() {
            return;
        }
    }
}

/// One request over TCP, and its answer.
async fn ask(socket: TcpSocket, to: SocketAddr, bytes: &[u8]) -> io::Result<(SocketAddr, Vec<u8>)> {
    let mut stream = socket.connect(to).await?;
    let answer = exchange(&mut stream, bytes).await;
    // Gone at once: the port is wanted for nothing else, and waits for nobody.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok((stream.local_addr()?, answer?))
}

async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = whole(&read).map_err(io::Error::other)?;
        if let Some(message) = messages(&read[..length]).next() {
            return Ok(message.to_vec());
        }
        if read.len() > MAX_STUN {
            return Err(io::Error::other("no STUN message in what came"));
        }
    }
}
