//! Finds the best path to another agent, and keeps data on it.
//!
//! Data flows over RAWR ([`crate::Peer`]) at once. Meanwhile the two agents tell each other their candidates,
//! check them by ICE (RFC 8445), and where that is not enough punch one ([`crate::punch`]). Data moves
//! to the better path without loss or disorder, and back when that dies.
//!
//! | what                                   | how                                                          |
//! |----------------------------------------|--------------------------------------------------------------|
//! | path over RAWR works                   | data takes it                                                |
//! | another is found                       | proven both ways, then offered by the controlling agent      |
//! | both have agreed on it                 | data takes it; what is under way on the old one comes first  |
//! | data is sent, and nothing comes back   | pinged after 250 ms; dead after 1.25 s, or two round trips   |
//! |                                        | more; then data takes the next best at once                  |
//! | nothing is sent                        | pinged every 5 s (RFC 7675)                                  |
//! | no path without a relay                | all candidates checked again after 5 s, 15 s, 30 s, 60 s …   |
//!
//! Data does not pass through here on its way out: whoever drives an [`Agent`] asks for [`Agent::route`], and
//! sends the datagram there behind one byte of framing. What comes in goes to [`Agent::handle_datagram`],
//! which says where in it the data is. Data is neither sealed nor authenticated here; control between the
//! agents is.

mod config;
mod control;
mod direct;
#[cfg(feature = "tokio")]
mod driver;
mod frame;
mod gather;
mod handover;
mod ice;
mod incoming;
mod mailbox;
#[cfg(feature = "portmap")]
mod mappings;
#[cfg(all(feature = "tokio", not(feature = "portmap")))]
#[path = "no_mappings.rs"]
mod mappings;
mod opening;
mod punching;
mod seal;
mod select;
mod signal;
#[cfg(feature = "tokio")]
mod sockets;
#[cfg(feature = "tokio")]
mod survey;
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{Mac, Role};

pub use config::{
    AgentConfig, AgentEvent, AgentOutput, AgentPath, AgentPathKind, AgentSocket, LocalSocket,
    Route, Signalling,
};
#[cfg(feature = "tokio")]
pub use driver::{Connection, ConnectionConfig, ConnectionIncoming};

use crate::attachment::Via;
use crate::peer::{Peer, PeerEvent, PeerOutput};
use crate::socket_id::SocketId;
use control::Control;
use direct::DirectPath;
use gather::Gather;
use handover::{Inbox, Outbox};
use ice::{Ice, IceOutput};
use mailbox::Mailbox;
use opening::Opening;
use punching::Punch;
use seal::Sealer;
use select::{Choice, Selection};
use signal::Signal;

/// Paths without RAWR that are watched at once.
const MAX_PATHS: usize = 8;
/// Pauses before all candidates are checked again while no path without a relay is left; the last repeats.
const RECHECK: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// One of the two ends of a path that is looked for.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    started: Instant,
    rawr: Peer,
    sealer: Sealer,
    punch_key: [u8; 32],
    mailbox: Mailbox,
    opening: Opening,
    ice: Ice,
    gather: Gather,
    punch: Punch,
    paths: Vec<DirectPath>,
    selection: Selection,
    inbox: Inbox,
    outbox: Outbox<Choice>,
    /// Since when candidates have been checked, or checked again.
    open_since: Option<Instant>,
    recheck_at: Option<Instant>,
    rechecks: usize,
    /// Sockets, and external addresses that routers have mapped to them.
    mapped: Vec<(SocketId, SocketAddr)>,
    told: Option<AgentPath>,
    was_ready: bool,
    is_closing: bool,
    next_path: u32,
    rng: StdRng,
    outputs: VecDeque<AgentOutput>,
}

impl Agent {
    /// Starts to look for the other agent. `seed` is random.
    pub fn new(config: AgentConfig, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (secret, role, epoch) = (&config.rawr.secret, config.rawr.role, config.rawr.epoch);
        let mut agent = Self {
            started: now,
            rawr: Peer::new(config.rawr.clone(), rng.random(), now),
            sealer: Sealer::new(secret, role, epoch),
            punch_key: secret.derive(b"punching"),
            mailbox: Mailbox::new(now),
            opening: Opening::default(),
            ice: Ice::new(role == Role::A, config.nat64, &mut rng, now),
            gather: Gather::new(rng.random()),
            punch: Punch::new(config.behaviour),
            paths: Vec::new(),
            selection: Selection::new(),
            inbox: Inbox::default(),
            outbox: Outbox::new(),
            open_since: None,
            recheck_at: None,
            rechecks: 0,
            mapped: Vec::new(),
            told: None,
            was_ready: false,
            is_closing: false,
            next_path: 0,
            rng,
            outputs: VecDeque::new(),
            config,
        };
        for socket in agent.config.sockets.clone() {
            agent.watch_servers(now, socket);
        }
        agent.introduce();
        agent.settle(now);
        agent
    }

    /// Where the next datagram of data is to be sent; to be called for each.
    pub fn route(&mut self, now: Instant) -> Option<Route> {
        let (socket, to) = self.address(self.selection.current?)?;
        if let Some(Choice::Direct(id)) = self.selection.current
            && let Some(path) = self.path_mut(id)
        {
            path.note_sent(now);
        }
        Some(Route { socket, to, frame: self.outbox.tag().to_byte() })
    }

    /// The path that data takes now.
    pub fn path(&self) -> Option<AgentPath> {
        self.selection.current.and_then(|choice| self.describe(choice))
    }

    /// Whether one of the paths that data takes, or may take, leads through this socket.
    pub fn has_path(&self, socket: SocketId) -> bool {
        self.paths.iter().any(|path| path.socket == socket)
    }

    /// Whether everything has been released, after [`Agent::close`].
    pub fn is_closed(&self) -> bool {
        self.is_closing && self.rawr.is_closed()
    }

    /// An external address that a router has mapped to this socket. It takes the place of the one before.
    pub fn add_mapped(&mut self, now: Instant, socket: SocketId, external: SocketAddr) {
        if let Some(base) = self.local_address(socket)
            && !self.mapped.contains(&(socket, external))
        {
            self.mapped.retain(|(other, _)| *other != socket);
            self.mapped.push((socket, external));
            self.add_reflexive(external, base);
            self.settle(now);
        }
    }

    /// A socket more: the host has a new address. One that is called [`SocketId::MAPPED`] is punched from.
    pub fn add_socket(&mut self, now: Instant, socket: LocalSocket) {
        self.config.sockets.push(socket);
        self.watch_servers(now, socket);
        if let Some(sdp) = self.ice.add_host(socket.address) {
            self.post(&Signal::Candidate(sdp));
        }
        self.settle(now);
    }

    /// A socket less: the host has lost its address. What leads through it is left at once.
    pub fn remove_socket(&mut self, now: Instant, id: SocketId) {
        let Some(address) = self.local_address(id) else { return };
        self.config.sockets.retain(|socket| socket.id != id);
        self.gather.forget(id);
        self.ice.remove(address);
        self.paths.retain(|path| path.socket != id);
        self.mapped.retain(|(socket, _)| *socket != id);
        self.settle(now);
    }

    /// Takes what the neighbour table has on an address, after [`AgentOutput::LookUp`].
    pub fn handle_neighbour(&mut self, now: Instant, ip: IpAddr, mac: Option<Mac>) {
        self.rawr.handle_neighbour(now, ip, mac);
        self.settle(now);
    }

    /// To be called once [`Agent::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.rawr.poll_timeout().is_some_and(|at| at <= now) {
            self.rawr.handle_timeout(now);
        }
        if self.ice.poll_timeout().is_some_and(|at| at <= now) {
            self.ice.handle_timeout(now);
        }
        self.punch.handle_timeout(now);
        self.inbox.handle_timeout(now);
        self.paths.iter_mut().for_each(|path| path.handle_timeout(now));
        self.paths.retain(|path| !path.is_over(now));
        self.settle(now);
    }

    /// When [`Agent::handle_timeout`] is to be called next. To be asked again after [`Agent::route`].
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let rawr = self.rawr.poll_timeout();
        if self.is_closing {
            return rawr;
        }
        let has_way = self.signal_way().is_some();
        let times = [
            rawr,
            self.ice.poll_timeout(),
            self.gather.poll_timeout(),
            self.punch.poll_timeout(),
            self.opening.poll_timeout(),
            self.punching_due(),
            self.inbox.poll_timeout(),
            self.outbox.poll_timeout(),
            self.mailbox.poll_timeout().filter(|_| has_way),
            self.selection.poll_timeout(),
            self.recheck_at,
        ];
        let paths = self.paths.iter().map(DirectPath::poll_timeout);
        times.into_iter().flatten().chain(paths).min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<AgentOutput> {
        self.outputs.pop_front()
    }

    /// Releases everything.
    pub fn close(&mut self, now: Instant) {
        self.is_closing = true;
        self.paths.clear();
        self.stop_punching();
        self.selection = Selection::new();
        self.rawr.close(now);
        self.settle(now);
    }

    const fn is_controlling(&self) -> bool {
        matches!(self.config.rawr.role, Role::A)
    }

    fn watch_servers(&mut self, now: Instant, socket: LocalSocket) {
        let is_ipv4 = socket.address.is_ipv4();
        for server in self.config.stun_servers.iter().filter(|it| it.is_ipv4() == is_ipv4) {
            self.gather.watch(now, socket.id, *server);
        }
    }

    /// Tells the other agent what it needs to know, from the beginning.
    fn introduce(&mut self) {
        let (fragment, password) = self.ice.credentials();
        self.post(&Signal::Credentials { fragment, password });
        let hosts: Vec<_> = self.config.sockets.iter().map(|socket| socket.address).collect();
        for address in hosts {
            if let Some(sdp) = self.ice.add_host(address) {
                self.post(&Signal::Candidate(sdp));
            }
        }
        for (socket, external) in self.mapped.clone() {
            if let Some(base) = self.local_address(socket) {
                self.add_reflexive(external, base);
            }
        }
        if let Some(behaviour) = self.punch.ours {
            self.post(&Signal::Behaviour(behaviour));
        }
    }

    fn add_reflexive(&mut self, external: SocketAddr, base: SocketAddr) {
        if let Some(sdp) = self.ice.add_reflexive(external, base) {
            self.post(&Signal::Candidate(sdp));
        }
    }

    /// The other agent has started again: what was agreed with it is void.
    fn begin_again(&mut self, now: Instant) {
        self.paths.clear();
        self.stop_punching();
        self.mailbox = Mailbox::new(now);
        self.opening = Opening::default();
        self.ice = Ice::new(self.is_controlling(), self.config.nat64, &mut self.rng, now);
        self.punch.begin_again();
        self.selection = Selection::new();
        (self.inbox, self.outbox) = (Inbox::default(), Outbox::new());
        (self.open_since, self.recheck_at, self.rechecks) = (None, None, 0);
        self.introduce();
        self.gather.refresh(now);
    }

    fn post(&mut self, signal: &Signal) {
        self.mailbox.post(signal.encode());
    }

    /// Draws the conclusions from what has happened, and sends what follows.
    fn settle(&mut self, now: Instant) {
        self.pump_rawr();
        if !self.is_closing {
            self.pump_opening(now);
            self.pump_ice(now);
            self.pump_punching(now);
            self.select(now);
            self.recheck(now);
            self.consider_punching(now);
            self.pump_punching(now);
            self.pump_gather(now);
            self.pump_paths(now);
            self.pump_mailbox(now);
            self.release();
        }
        self.report(now);
    }

    /// Passes on data that has been held back for long enough.
    fn release(&mut self) {
        while let Some(data) = self.inbox.poll() {
            self.outputs.push_back(AgentOutput::Data(data));
        }
    }

    fn pump_rawr(&mut self) {
        while let Some(output) = self.rawr.poll_output() {
            match output {
                PeerOutput::Transmit { via, to, bytes } => {
                    self.transmit(AgentSocket::Rawr(via), to, bytes);
                }
                PeerOutput::LookUp(ip) => self.outputs.push_back(AgentOutput::LookUp(ip)),
                PeerOutput::Event(PeerEvent::Refused { server, error }) => {
                    self.tell(AgentEvent::Refused { server, error });
                }
                PeerOutput::Event(PeerEvent::Closed) => self.tell(AgentEvent::Closed),
                PeerOutput::Event(
                    PeerEvent::Ready { .. }
                    | PeerEvent::PathChanged { .. }
                    | PeerEvent::PathLost(_),
                ) => {}
            }
        }
    }

    fn pump_ice(&mut self, now: Instant) {
        while let Some(output) = self.ice.poll_output() {
            match output {
                IceOutput::Transmit { from, to, bytes } => {
                    if let Some(socket) = self.socket_at(from) {
                        self.transmit(AgentSocket::Own(socket), to, bytes);
                    }
                }
                IceOutput::Found { local, remote, is_host, rtt } => {
                    let kind = if is_host { AgentPathKind::Host } else { AgentPathKind::Reflexive };
                    if let Some(socket) = self.socket_at(local) {
                        self.add_path(now, socket, remote, kind);
                        self.prove_path(now, socket, remote, rtt);
                    }
                }
            }
        }
    }

    fn pump_gather(&mut self, now: Instant) {
        while let Some((socket, to, bytes)) = self.gather.poll_transmit(now) {
            self.transmit(AgentSocket::Own(socket), to, bytes);
        }
    }

    fn pump_paths(&mut self, now: Instant) {
        for i in 0..self.paths.len() {
            let id = self.rng.random();
            let path = &mut self.paths[i];
            if path.poll_ping(now, id) {
                let (socket, to) = (AgentSocket::Own(path.socket), path.remote);
                self.send_control(socket, to, &Control::Ping(id));
            }
        }
        while let Some((choice, handover)) = self.outbox.poll_marker(now) {
            self.send_on(choice, &Control::Marker(handover));
        }
    }

    fn pump_mailbox(&mut self, now: Instant) {
        if self.signal_way().is_some() {
            let controls = self.mailbox.poll_transmit(now).unwrap_or_default();
            controls.iter().for_each(|control| self.say(control));
        }
    }

    /// Brings this to the other agent, if there is a way.
    fn say(&mut self, control: &Control) {
        match self.signal_way() {
            Some(Some(choice)) => self.send_on(choice, control),
            Some(None) => {
                let bytes = self.sealer.seal(&control.encode());
                self.outputs.push_back(AgentOutput::Signal(bytes));
            }
            None => {}
        }
    }

    /// Where signals go: a path, or (`Some(None)`) the application. `None` for nowhere, for now.
    fn signal_way(&self) -> Option<Option<Choice>> {
        match self.config.signalling {
            Signalling::Application => Some(None),
            Signalling::InBand if self.rawr.destination().is_some() => Some(Some(Choice::Rawr)),
            Signalling::InBand => self.selection.current.map(Some),
        }
    }

    /// Checks all candidates again if there has been no path without a relay for a while.
    fn recheck(&mut self, now: Instant) {
        if self.has_direct_path() {
            (self.recheck_at, self.rechecks) = (None, 0);
            return;
        }
        if self.open_since.is_none() || !self.is_controlling() {
            return;
        }
        let pause = RECHECK[self.rechecks.min(RECHECK.len() - 1)];
        let at = *self.recheck_at.get_or_insert(now + pause);
        if at <= now {
            self.recheck_at = None;
            self.rechecks += 1;
            self.post(&Signal::Recheck);
            self.check_again(now);
        }
    }

    fn check_again(&mut self, now: Instant) {
        self.ice.recheck();
        self.ice.handle_timeout(now);
        self.gather.refresh(now);
    }

    /// Says what has become of the path that data takes.
    fn report(&mut self, now: Instant) {
        let path = if self.is_closing { None } else { self.path() };
        let is_named =
            |path: AgentPath| matches!(path.kind, AgentPathKind::Host | AgentPathKind::Reflexive);
        // That the other agent has named an address by now is no news.
        let is_same = |a: AgentPath, b: AgentPath| {
            a.remote == b.remote && (a.kind == b.kind || is_named(a) && is_named(b))
        };
        match (self.told, path) {
            (Some(told), Some(path)) if is_same(told, path) => {}
            (_, Some(path)) if !self.was_ready => {
                self.was_ready = true;
                let after = now.saturating_duration_since(self.started);
                self.tell(AgentEvent::Ready { path, after });
            }
            (from, Some(to)) => self.tell(AgentEvent::PathChanged { from, to }),
            (Some(from), None) if !self.is_closing => self.tell(AgentEvent::PathLost(from)),
            (_, None) => {}
        }
        self.told = path;
    }

    fn add_path(
        &mut self,
        now: Instant,
        socket: SocketId,
        remote: SocketAddr,
        kind: AgentPathKind,
    ) {
        if let Some(path) =
            self.paths.iter_mut().find(|it| (it.socket, it.remote) == (socket, remote))
        {
            // What the other agent's datagrams alone tell is no more than a guess.
            if path.kind == AgentPathKind::Reflexive {
                path.kind = kind;
            }
            return;
        }
        if self.paths.len() >= MAX_PATHS {
            let current = self.selection.current;
            let spare = |it: &DirectPath| Some(Choice::Direct(it.id)) != current && !it.is_valid();
            match self.paths.iter().position(spare) {
                Some(at) => drop(self.paths.remove(at)),
                None => return,
            }
        }
        self.paths.push(DirectPath::new(self.next_path, (socket, remote), kind, now));
        self.next_path += 1;
    }

    fn prove_path(
        &mut self,
        now: Instant,
        socket: SocketId,
        remote: SocketAddr,
        rtt: Option<Duration>,
    ) {
        if let Some(path) =
            self.paths.iter_mut().find(|it| (it.socket, it.remote) == (socket, remote))
        {
            path.prove(now, rtt);
        }
    }

    /// Whether there is a path without a relay, so that none need be looked for.
    fn has_direct_path(&self) -> bool {
        let is_rawr_direct =
            self.rawr.path().is_some_and(|path| AgentPathKind::Rawr(path.kind).is_direct());
        is_rawr_direct || self.paths.iter().any(DirectPath::is_valid)
    }

    fn path_mut(&mut self, id: u32) -> Option<&mut DirectPath> {
        self.paths.iter_mut().find(|path| path.id == id)
    }

    fn socket_at(&self, address: SocketAddr) -> Option<SocketId> {
        self.config.sockets.iter().find(|socket| socket.address == address).map(|socket| socket.id)
    }

    fn local_address(&self, socket: SocketId) -> Option<SocketAddr> {
        self.config.sockets.iter().find(|it| it.id == socket).map(|it| it.address)
    }

    /// Where what takes this path is sent from and to.
    fn address(&self, choice: Choice) -> Option<(AgentSocket, SocketAddr)> {
        match choice {
            Choice::Rawr => Some((AgentSocket::Rawr(Via::Data), self.rawr.destination()?)),
            Choice::Direct(id) => {
                let path = self.paths.iter().find(|path| path.id == id)?;
                Some((AgentSocket::Own(path.socket), path.remote))
            }
        }
    }

    fn describe(&self, choice: Choice) -> Option<AgentPath> {
        match choice {
            Choice::Rawr => {
                let path = self.rawr.path()?;
                let kind = AgentPathKind::Rawr(path.kind);
                Some(AgentPath { kind, remote: path.remote, rtt: path.rtt })
            }
            Choice::Direct(id) => {
                let path = self.paths.iter().find(|path| path.id == id)?;
                let rtt = path.rtt.unwrap_or_default();
                Some(AgentPath { kind: path.kind, remote: path.remote, rtt })
            }
        }
    }

    fn send_on(&mut self, choice: Choice, control: &Control) {
        if let Some((socket, to)) = self.address(choice) {
            self.send_control(socket, to, control);
        }
    }

    fn send_control(&mut self, socket: AgentSocket, to: SocketAddr, control: &Control) {
        let bytes = self.sealer.seal(&control.encode());
        self.transmit(socket, to, bytes);
    }

    fn transmit(&mut self, socket: AgentSocket, to: SocketAddr, bytes: Vec<u8>) {
        self.outputs.push_back(AgentOutput::Transmit { socket, to, ttl: None, bytes });
    }

    fn tell(&mut self, event: AgentEvent) {
        self.outputs.push_back(AgentOutput::Event(event));
    }
}
