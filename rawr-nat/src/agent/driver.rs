//! An [`Agent`] on tokio's sockets.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Instant;

use rand::Rng;
use tokio::time::Sleep;

use super::mappings::Mappings;
use super::sockets::OwnSockets;
use super::survey::Survey;
use super::{
    Agent, AgentConfig, AgentEvent, AgentOutput, AgentPath, AgentSocket, LocalSocket, Signalling,
};
use crate::attachment::Via;
use crate::driver::{CONTROL_BATCH, DATA_BATCH, FAREWELL, MAX_DATAGRAM, Port, now};
use crate::nat::Behaviour;
use crate::nat64::Prefix;
use crate::peer::PeerConfig;
#[cfg(feature = "portmap")]
use crate::portmap::PortMapperConfig;
use crate::punch::Tuning;
use crate::socket_id::SocketId;
use crate::{Host, PeerSocketConfig, Traffic};

/// Seconds that a server shall keep a leg without hearing from us.
const LIFETIME: u32 = 120;

/// What a [`Connection`] is to do.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// The session, and the path over RAWR.
    pub rawr: PeerSocketConfig,
    /// Where own external addresses are asked for.
    pub stun_servers: Vec<SocketAddr>,
    /// How the two sides tell each other their candidates.
    pub signalling: Signalling,
    /// Reaches the other side's IPv4 addresses from IPv6-only hosts.
    pub nat64: Option<Prefix>,
    /// How a path is punched where ICE alone finds none; `None` if not at all.
    pub punching: Option<Tuning>,
    /// What own NATs do to UDP over IPv4, if that is known already.
    pub behaviour: Option<Behaviour>,
    /// Probes that may be sent each time that a path is punched.
    pub probe_budget: u32,
}

/// Carries datagrams between two agents by the best path there is.
///
/// It acts while [`Connection::next`] is awaited, and only then: await it all the time.
pub struct Connection {
    agent: Agent,
    host: Box<dyn Host>,
    /// The nearest one.
    server: Option<SocketAddr>,
    control: Port,
    data: Port,
    own: OwnSockets,
    survey: Survey,
    mappings: Mappings,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    /// Data that was held back, in order.
    released: VecDeque<Vec<u8>>,
    news: VecDeque<ConnectionIncoming>,
    /// Datagrams of data since everything else last had its turn.
    burst: u32,
    traffic: Traffic,
}

/// What [`Connection::next`] brings.
#[derive(Debug)]
pub enum ConnectionIncoming {
    /// A datagram of the other side's, of so many bytes, is in the buffer.
    Data(usize),
    /// Bring this to the other side's [`Connection::handle_signal`] ([`Signalling::Application`]).
    Signal(Vec<u8>),
    /// Something happened.
    Event(AgentEvent),
}

impl Connection {
    /// Opens the sockets and starts to look for the other side.
    ///
    /// # Errors
    /// If a socket cannot be opened or the host cannot be asked for its addresses.
    pub fn bind(config: ConnectionConfig, host: Box<dyn Host>) -> io::Result<Self> {
        let (control, data) = (Port::open(0)?, Port::open(config.rawr.data_port)?);
        let rawr = config.rawr;
        let nearest = rawr.gateways.first().or(rawr.root.as_ref());
        let interfaces = host.interfaces(nearest.map(|server| server.address))?;
        let mut own = OwnSockets::new();
        own.refresh(interfaces.iter().map(|interface| interface.address));
        let server = nearest.map(|server| server.address);
        let config = AgentConfig {
            rawr: PeerConfig {
                secret: rawr.secret,
                role: rawr.role,
                root: rawr.root,
                gateways: rawr.gateways,
                interfaces,
                data_port: data.socket.local_addr()?.port(),
                epoch: rawr.epoch,
                raw_mac: rawr.raw_mac,
                lifetime: LIFETIME,
            },
            sockets: own.named().collect(),
            stun_servers: config.stun_servers,
            signalling: config.signalling,
            nat64: config.nat64,
            punching: config.punching,
            behaviour: config.behaviour,
            probe_budget: config.probe_budget,
        };
        let now = now();
        let mut connection = Self {
            agent: Agent::new(config, rand::rng().random(), now),
            host,
            server,
            control,
            data,
            own,
            survey: Survey::default(),
            mappings: Mappings::none(),
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            timer_at: Some(now),
            buffer: vec![0; MAX_DATAGRAM],
            scratch: Vec::with_capacity(MAX_DATAGRAM),
            released: VecDeque::new(),
            news: VecDeque::new(),
            burst: 0,
            traffic: Traffic::default(),
        };
        connection.flush(now);
        Ok(connection)
    }

    /// The path that data takes now.
    pub fn path(&self) -> Option<AgentPath> {
        self.agent.path()
    }

    /// What has been carried so far.
    pub const fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Probes that have been sent so far to punch paths.
    pub fn probes_spent(&self) -> u64 {
        self.agent.probes_spent()
    }

    /// Has routers let in what comes to own sockets, in the background: those of
    /// [`PortMapperConfig::of_this_host`], for example. `settings` is called now and after each
    /// [`Connection::refresh`]. A mapped address is one more candidate, which even a peer behind a symmetric NAT
    /// reaches. Mappings are renewed, and removed by [`Connection::close`].
    #[cfg(feature = "portmap")]
    pub fn map_ports(&mut self, settings: impl Fn() -> PortMapperConfig + Send + 'static) {
        self.mappings.ask(Box::new(settings), self.own.named());
    }

    /// Own sockets, for [`Connection::add_mapped`]: those that others could reach.
    pub fn sockets(&self) -> Vec<LocalSocket> {
        self.own.named().collect()
    }

    /// An external address that a router has mapped to one of [`Connection::sockets`], by whatever means.
    pub fn add_mapped(&mut self, socket: SocketId, external: SocketAddr) {
        let now = now();
        self.agent.add_mapped(now, socket, external);
        self.flush(now);
    }

    /// Finds out what own NATs do to UDP over IPv4 in the background, by asking these STUN servers now and after
    /// each [`Connection::refresh`]. One with two addresses (RFC 5780) tells most, of others two are needed.
    /// Without it, and without [`Connection::set_behaviour`], nothing is punched.
    pub fn classify(&mut self, servers: Vec<SocketAddr>) {
        self.survey.ask(servers, self.local());
    }

    /// Says what own NATs do to UDP over IPv4, once that has been found out.
    pub fn set_behaviour(&mut self, behaviour: Behaviour) {
        let now = now();
        self.agent.set_behaviour(now, behaviour);
        self.flush(now);
    }

    /// What own NATs do to UDP over IPv4, as far as it is known.
    pub const fn behaviour(&self) -> Option<Behaviour> {
        self.agent.behaviour()
    }

    /// To be called when the host may have got or lost addresses: another uplink, another network.
    ///
    /// # Errors
    /// If the host cannot be asked.
    pub fn refresh(&mut self) -> io::Result<()> {
        let now = now();
        let interfaces = self.host.interfaces(self.server)?;
        let change = self.own.refresh(interfaces.iter().map(|interface| interface.address));
        change.closed.into_iter().for_each(|id| self.agent.remove_socket(now, id));
        change.opened.into_iter().for_each(|socket| self.agent.add_socket(now, socket));
        self.survey.begin(self.local());
        self.mappings.begin(self.own.named());
        self.flush(now);
        Ok(())
    }

    /// Takes what the other side's [`ConnectionIncoming::Signal`] had.
    pub fn handle_signal(&mut self, signal: &[u8]) {
        let now = now();
        self.agent.handle_signal(now, signal);
        self.flush(now);
    }

    /// Sends a datagram to the other side. It is dropped where there is no path, or no room.
    pub fn send(&mut self, datagram: &[u8]) {
        let sent = self.agent.route(now()).is_some_and(|route| {
            self.scratch.clear();
            self.scratch.push(route.frame);
            self.scratch.extend_from_slice(datagram);
            match route.socket {
                AgentSocket::Rawr(Via::Control) => self.control.send(route.to, &self.scratch),
                AgentSocket::Rawr(Via::Data) => self.data.send(route.to, &self.scratch),
                AgentSocket::Own(id) => self.own.send(id, route.to, None, &self.scratch),
            }
        });
        self.traffic.sent += u64::from(sent);
        self.traffic.dropped += u64::from(!sent);
    }

    /// Waits for data, which is put in `buffer` (65,535 bytes hold all), or for news. Nothing is lost
    /// if the future is dropped.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn next(&mut self, buffer: &mut [u8]) -> io::Result<ConnectionIncoming> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            if let Some(length) = self.try_recv(buffer)? {
                return Ok(ConnectionIncoming::Data(length));
            }
            if !self.news.is_empty() {
                continue;
            }
            self.set_timer();
            tokio::select! {
                ready = self.data.socket.readable() => ready?,
                ready = poll_fn(|context| self.own.poll_readable(context)) => ready?,
                ready = self.control.socket.readable() => {
                    ready?;
                    self.handle_control(now())?;
                }
                behaviour = self.survey.next() => self.set_behaviour(behaviour),
                (socket, external) = self.mappings.next() => {
                    // It may have come too late for its socket.
                    if self.own.named().any(|named| named == socket) {
                        self.add_mapped(socket.id, external);
                    }
                }
                () = self.timer.as_mut(), if self.timer_at.is_some() => {
                    self.timer_at = None;
                    self.handle_timeout(now());
                }
            }
        }
    }

    /// Takes a datagram that has come already. For use in a loop after [`Connection::next`] brought one.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub fn try_recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(data) = self.released.pop_front() {
                self.traffic.received += 1;
                return Ok(Some(copy(&data, buffer)));
            }
            let Some((socket, length, from)) = self.receive()? else { return Ok(None) };
            let now = now();
            let datagram = &self.buffer[..length];
            let data = self.agent.handle_datagram(now, socket, from, datagram);
            if let AgentSocket::Own(id) = socket
                && self.own.is_small(id)
                && self.agent.has_path(id)
            {
                self.own.enlarge(id);
            }
            self.burst += 1;
            if self.burst >= DATA_BATCH {
                self.burst = 0;
                self.serve_others(now)?;
            }
            // Data held back until now comes before what has just come.
            if let Some(range) = data {
                self.flush(now);
                if self.released.is_empty() {
                    self.traffic.received += 1;
                    return Ok(Some(copy(&self.buffer[range], buffer)));
                }
                let data = self.buffer[range].to_vec();
                self.released.push_back(data);
            } else {
                self.flush(now);
            }
        }
    }

    /// Releases everything, and waits until servers and routers have confirmed it or had their time.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn close(&mut self) -> io::Result<()> {
        let now = now();
        self.agent.close(now);
        self.flush(now);
        let mappings = std::mem::replace(&mut self.mappings, Mappings::none());
        let farewell = async {
            let mut buffer = vec![0; MAX_DATAGRAM];
            while !self.agent.is_closed() {
                self.next(&mut buffer).await?;
            }
            Ok(())
        };
        let farewell = tokio::time::timeout(FAREWELL, farewell);
        let (left, ()) = tokio::join!(farewell, mappings.close());
        left.unwrap_or(Ok(()))
    }

    /// Own addresses that others could reach.
    fn local(&self) -> Vec<IpAddr> {
        self.own.named().map(|socket| socket.address.ip()).collect()
    }

    fn receive(&mut self) -> io::Result<Option<(AgentSocket, usize, SocketAddr)>> {
        if let Some((id, length, from)) = self.own.try_recv(&mut self.buffer)? {
            return Ok(Some((AgentSocket::Own(id), length, from)));
        }
        let received = self.data.try_recv(&mut self.buffer)?;
        Ok(received.map(|(length, from)| (AgentSocket::Rawr(Via::Data), length, from)))
    }

    /// Control and timers get their turn, however much data there is.
    fn serve_others(&mut self, now: Instant) -> io::Result<()> {
        self.handle_control(now)?;
        if self.agent.poll_timeout().is_some_and(|at| at <= now) {
            self.handle_timeout(now);
        }
        Ok(())
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
        self.flush(now);
    }

    fn handle_control(&mut self, now: Instant) -> io::Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..CONTROL_BATCH {
            let Some((length, from)) = self.control.try_recv(&mut buffer)? else { break };
            let socket = AgentSocket::Rawr(Via::Control);
            self.agent.handle_datagram(now, socket, from, &buffer[..length]);
            self.flush(now);
        }
        Ok(())
    }

    /// Does what the agent wants done.
    fn flush(&mut self, now: Instant) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                AgentOutput::Transmit { socket, to, ttl, bytes } => {
                    match socket {
                        AgentSocket::Rawr(Via::Control) => self.control.send(to, &bytes),
                        AgentSocket::Rawr(Via::Data) => self.data.send(to, &bytes),
                        AgentSocket::Own(id) => self.own.send(id, to, ttl, &bytes),
                    };
                }
                AgentOutput::Data(data) => self.released.push_back(data),
                AgentOutput::Open(count) => {
                    let opened = self.own.open_more(count);
                    self.agent.handle_opened(now, opened);
                }
                AgentOutput::Close(id) => self.own.close(id),
                AgentOutput::Signal(bytes) => {
                    self.news.push_back(ConnectionIncoming::Signal(bytes))
                }
                AgentOutput::LookUp(ip) => {
                    let mac = self.host.neighbour(ip);
                    self.agent.handle_neighbour(now, ip, mac);
                }
                AgentOutput::Event(event) => self.news.push_back(ConnectionIncoming::Event(event)),
            }
        }
    }

    /// Moves the timer only where it would be late: one that is early costs less than one that is
    /// moved for each datagram.
    fn set_timer(&mut self) {
        let wanted = self.agent.poll_timeout();
        if let Some(at) = wanted
            && self.timer_at.is_none_or(|set| at < set)
        {
            self.timer.as_mut().reset(at.into());
            self.timer_at = Some(at);
        }
    }
}

/// What does not fit is cut off.
fn copy(data: &[u8], buffer: &mut [u8]) -> usize {
    let length = data.len().min(buffer.len());
    buffer[..length].copy_from_slice(&data[..length]);
    length
}
