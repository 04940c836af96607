//! The loop that joins the pure parts to the world: what happens goes in, commands come out.
//!
//! ```text
//! STUN port ──▶ Server ──▶ Command ─┬─▶ STUN port, data ports      in this order of priority:
//! data ports ─▶   ▲                 ├─▶ slow path                  signals, control, strays from data
//! netlink ──────▶ │                 └─▶ flow table ─▶ reconciler   ports, netlink, operator, timers
//! time ───────────┘                                     └─▶ back end
//! ```
//!
//! Nothing here waits but the `select!` in [`Driver::run`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::clock;
use super::control_socket::{Buffers, ControlSocket};
use super::netlink::{NetworkEvent, NextHopResolver};
use super::ports::Ports;
use super::report;
use super::state_file::StateFile;
use crate::admin::{Call, InterfaceInfo, Request, Response};
use crate::control::{Command, Neighbour, Now, PortError, Server, Source};
use crate::dataplane::backend::Backend as _;
use crate::dataplane::bpf::Bpf;
use crate::dataplane::flow_table::{Event, FlowTable};
use crate::dataplane::reconcile::Reconciler;
use crate::dataplane::slow_path::{self, SlowPath, Unclaimed};
use crate::dataplane::{Counters, Leg, NextHop, NextHops};

/// Control datagrams and strays handled before the loop looks at anything else.
const BURST: usize = 256;

/// How often the flows' counters are read for signs of life.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);

/// Datagrams of the STUN port that wait for the loop.
const CONTROL_QUEUE: usize = 4096;

/// The kernel's part of the data plane.
pub struct Kernel {
    pub bpf: Bpf,
    pub reconciler: Reconciler,
}

/// What a driver is made of.
pub struct Parts {
    pub server: Server,
    /// `None` where userspace forwards everything.
    pub kernel: Option<Kernel>,
    pub slow_path: SlowPath,
    pub network: NextHopResolver,
    pub sockets: Vec<ControlSocket>,
    pub state: StateFile,
    /// Places of each flow table.
    pub table_length: u32,
}

/// Everything the daemon consists of.
pub struct Driver {
    pub(super) server: Server,
    pub(super) flows: FlowTable,
    pub(super) kernel: Option<Kernel>,
    pub(super) slow_path: SlowPath,
    pub(super) ports: Ports,
    pub(super) network: NextHopResolver,
    pub(super) sockets: Vec<Arc<ControlSocket>>,
    pub(super) about: About,
    /// What flows that have ended had forwarded in the kernel.
    pub(super) carried: Counters,
    /// Legs that have carried packets since the server was told last.
    pub(super) active: Vec<SocketAddr>,
    state: StateFile,
    next_counters: Instant,
}

/// What does not change while the daemon runs.
pub struct About {
    pub instance: String,
    pub interfaces: Vec<InterfaceInfo>,
    pub started: Instant,
}

/// What wakes the loop, besides the network and the time.
pub struct Inbox {
    pub strays: mpsc::Receiver<Unclaimed>,
    pub calls: mpsc::Receiver<Call>,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The kernel goes on forwarding.
    Stopped,
    /// The kernel's part is to be removed as well.
    Detach,
}

struct ControlDatagram {
    local: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl Driver {
    /// Joins the parts. Sessions that `server` was restored with get their ports and flows back at
    /// once, so this comes before the program is attached.
    pub fn new(parts: Parts, about: About) -> Self {
        let mut driver = Self {
            server: parts.server,
            flows: FlowTable::default(),
            kernel: parts.kernel,
            slow_path: parts.slow_path,
            ports: Ports::new(parts.table_length),
            network: parts.network,
            sockets: parts.sockets.into_iter().map(Arc::new).collect(),
            next_counters: about.started,
            about,
            carried: Counters::default(),
            active: Vec::new(),
            state: parts.state,
        };
        driver.settle(now());
        driver
    }

    /// The kernel's part, to attach it.
    pub fn bpf(&mut self) -> Option<&mut Bpf> {
        Some(&mut self.kernel.as_mut()?.bpf)
    }

    /// Tells what the data plane does on each interface, once it is known.
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceInfo>) {
        self.about.interfaces = interfaces;
    }

    /// Runs until a signal or the operator ends it.
    ///
    /// # Errors
    /// Signals cannot be received.
    pub async fn run(mut self, mut inbox: Inbox) -> anyhow::Result<Ended> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
        let mut control = self.listen();
        loop {
            let wake = tokio::time::Instant::from_std(self.poll_timeout());
            tokio::select! {
                biased;
                () = ended(&mut terminate, &mut interrupt) => break,
                Some(datagram) = control.recv() => self.on_control(datagram, &mut control),
                Some(stray) = inbox.strays.recv() => self.on_stray(stray, &mut inbox.strays),
                event = self.network.next() => self.on_network(event),
                Some(call) = inbox.calls.recv() => {
                    if let Some(ended) = self.on_call(call) {
                        self.save();
                        return Ok(ended);
                    }
                }
                () = tokio::time::sleep_until(wake) => self.on_time(),
            }
            self.settle(now());
        }
        self.save();
        Ok(Ended::Stopped)
    }

    /// One task per STUN port moves datagrams to the loop.
    fn listen(&self) -> mpsc::Receiver<ControlDatagram> {
        let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
        for socket in &self.sockets {
            tokio::spawn(receive(Arc::clone(socket), sender.clone()));
        }
        receiver
    }

    fn poll_timeout(&self) -> Instant {
        let server = self.server.poll_timeout().map(|(at, _reason)| at);
        let kernel = self.kernel.as_ref().and_then(|kernel| kernel.reconciler.poll_timeout());
        let state = self.state.poll_timeout();
        [server, kernel, state].into_iter().flatten().fold(self.next_counters, Instant::min)
    }

    fn on_control(&mut self, first: ControlDatagram, more: &mut mpsc::Receiver<ControlDatagram>) {
        let now = now();
        let mut next = Some(first);
        for _ in 0..BURST {
            let Some(ControlDatagram { local, from, bytes }) = next else { break };
            self.server.handle_control(now, local, from, &bytes);
            self.obey(now);
            next = more.try_recv().ok();
        }
    }

    fn on_stray(&mut self, first: Unclaimed, more: &mut mpsc::Receiver<Unclaimed>) {
        let now = now();
        let mut next = Some(first);
        for _ in 0..BURST {
            let Some(Unclaimed { local, from, bytes }) = next else { break };
            self.server.handle_data(now, local, from, &bytes);
            self.obey(now);
            next = more.try_recv().ok();
        }
    }

    fn on_network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::NextHop { remote, .. } => self.flows.next_hop_changed(remote),
            NetworkEvent::Neighbour { ip, mac, ifindex } => {
                let mac = mac.map(rawr_proto::Mac);
                self.server.neighbour(now(), Neighbour { ip, mac, ifindex });
            }
            NetworkEvent::Link { .. } | NetworkEvent::Addresses => {}
        }
    }

    fn on_call(&mut self, call: Call) -> Option<Ended> {
        let (response, ended) = match call.request {
            Request::Status => (report::status(self), None),
            Request::Sessions => (report::sessions(self), None),
            Request::Flows => (report::flows(self), None),
            Request::Detach => (Response::Done, Some(Ended::Detach)),
            Request::Stop => (Response::Done, Some(Ended::Stopped)),
        };
        // A client that did not wait for its answer needs none.
        let _ = call.reply.send(response);
        ended
    }

    fn on_time(&mut self) {
        let now = now();
        self.server.handle_timeout(now);
        if now.monotonic >= self.next_counters {
            self.next_counters = now.monotonic + COUNTER_INTERVAL;
            self.look_for_life(now);
        }
        if self.state.poll_timeout().is_some_and(|due| due <= now.monotonic) {
            self.save();
        }
    }

    /// Tells the server which legs have carried packets.
    fn look_for_life(&mut self, now: Now) {
        let mut active = std::mem::take(&mut self.active);
        active.extend(self.slow_path.take_deltas().into_iter().map(|(local, _)| local));
        if let Some(kernel) = &mut self.kernel {
            match kernel.reconciler.poll_counters(&mut self.flows, &kernel.bpf) {
                Ok(moved) => active.extend(moved),
                Err(error) => log::warn!("cannot read the kernel's counters: {error}"),
            }
        }
        self.server.legs_active(now, &active);
    }

    /// Does what the server wants, then makes the kernel agree with what is desired.
    fn settle(&mut self, now: Now) {
        self.obey(now);
        self.reconcile(now);
    }

    fn reconcile(&mut self, now: Now) {
        let Some(kernel) = &mut self.kernel else { return self.flows.settle_alone() };
        let hops = Hops(&self.network);
        kernel.reconciler.step(now.monotonic, &mut self.flows, &mut kernel.bpf, &hops);
        for event in self.flows.take_events() {
            if let Event::Removed { counters, .. } = &event {
                self.carried += *counters;
            }
            tell(&event);
        }
    }

    fn obey(&mut self, now: Now) {
        while let Some(command) = self.server.poll_command() {
            // Who is told of a pair sends at once: by then the kernel has to have it, and not only
            // after whatever else came in the same burst.
            if matches!(command, Command::Transmit { .. }) && self.flows.has_changed() {
                self.reconcile(now);
            }
            self.execute(now, command);
        }
    }

    fn execute(&mut self, now: Now, command: Command) {
        match command {
            Command::Transmit { from, to, bytes } => self.transmit(from, to, &bytes),
            Command::OpenPort { id, on } => {
                let result = self.open(on);
                self.server.port_opened(now, id, result);
            }
            Command::ClosePort { local } => {
                self.forget(local);
                self.slow_path.close(local);
                self.ports.release(local);
                self.state.touch(now.monotonic);
            }
            Command::Pair { a, b, rate } => {
                self.forward(a, b, rate);
                self.forward(b, a, rate);
                self.flows.pair(a, b, rate);
                self.state.touch(now.monotonic);
            }
            Command::Drain { from, to, rate } => {
                self.forward(from, to, rate);
                self.flows.drain(from, to, rate);
            }
            Command::Unpair { local } => {
                self.forget(local);
                self.state.touch(now.monotonic);
            }
            Command::ProbeNeighbours => self.network.probe_neighbours(),
        }
    }

    fn transmit(&self, from: Source, to: SocketAddr, bytes: &[u8]) {
        let sent = match from {
            Source::Data(local) => self.slow_path.send(local, to, bytes).map_err(Into::into),
            Source::Control(local) => self
                .sockets
                .iter()
                .find(|socket| socket.serves(local))
                .with_context(|| format!("no STUN port at {local} any more"))
                .and_then(|socket| Ok(socket.send(Some(local.ip()), to, bytes)?)),
            Source::Route => self
                .sockets
                .iter()
                .filter(|socket| socket.bound().is_ipv4() == to.is_ipv4())
                .max_by_key(|socket| socket.suits_any_route())
                .with_context(|| format!("no STUN port of the family of {to}"))
                .and_then(|socket| Ok(socket.send(None, to, bytes)?)),
        };
        if let Err(error) = sent {
            log::debug!("datagram to {to} not sent: {error:#}");
        }
    }

    fn open(&mut self, on: crate::control::On) -> Result<SocketAddr, PortError> {
        let bpf = self.kernel.as_ref().map(|kernel| &kernel.bpf);
        let accept = |local: SocketAddr| {
            self.ports.is_free(local) && bpf.is_none_or(|bpf| bpf.index_free(local))
        };
        // A port of before a restart has its place in the kernel's table still.
        let opened = match on {
            crate::control::On::Address(ip) => {
                self.slow_path.open(slow_path::On::Address(ip), &accept)
            }
            crate::control::On::Toward(to) => {
                self.slow_path.open(slow_path::On::Toward(to), &accept)
            }
            crate::control::On::Exactly(at) => {
                self.slow_path.open(slow_path::On::Exactly(at), &|local| self.ports.is_free(local))
            }
        };
        match opened {
            Ok(local) => {
                self.ports.reserve(local);
                Ok(local)
            }
            Err(error) => {
                log::warn!("no data port: {error}");
                Err(match error {
                    slow_path::PortError::NoFreePort { .. } => PortError::Exhausted,
                    slow_path::PortError::NoRoute { .. } => PortError::Unreachable,
                    slow_path::PortError::TooManyOpenFiles { .. }
                    | slow_path::PortError::Bind { .. } => PortError::System,
                })
            }
        }
    }

    /// Lets the slow path forward one way, and the resolver watch the way out.
    fn forward(&mut self, from: Leg, to: Leg, rate: Option<u64>) {
        self.unwatch(from.local);
        self.network.watch(to.remote.ip(), to.local.ip());
        if let Err(error) = self.slow_path.forward(from, to, rate) {
            log::warn!("userspace cannot forward from {}: {error}", from.local);
        }
    }

    fn forget(&mut self, local: SocketAddr) {
        self.unwatch(local);
        self.slow_path.stop_forwarding(local);
        self.flows.unpair(local);
    }

    /// The flow from `local`, if there is one, does not need its next hop any more.
    fn unwatch(&mut self, local: SocketAddr) {
        if let Some(view) = self.flows.get(local) {
            self.network.unwatch(view.flow.to.remote.ip(), view.flow.to.local.ip());
        }
    }

    fn save(&mut self) {
        let sessions = self.server.snapshot(now());
        if let Err(error) = self.state.save(&sessions, clock::monotonic) {
            log::warn!("sessions would not survive a restart: {error:#}");
        }
    }
}

/// The resolver, as the reconciler asks it.
struct Hops<'a>(&'a NextHopResolver);

impl NextHops for Hops<'_> {
    fn next_hop(&self, remote: IpAddr, local: IpAddr) -> Option<NextHop> {
        self.0.next_hop(remote, local)
    }
}

pub(super) fn now() -> Now {
    Now { monotonic: clock::monotonic(), unix: clock::unix() }
}

async fn ended(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn receive(socket: Arc<ControlSocket>, sender: mpsc::Sender<ControlDatagram>) {
    let mut buffers = Buffers::default();
    loop {
        let received = socket
            .receive(&mut buffers, |local, from, bytes| {
                // A full queue drops, as the network would; clients retransmit.
                let _ = sender.try_send(ControlDatagram { local, from, bytes: bytes.to_vec() });
            })
            .await;
        if let Err(error) = received {
            log::warn!("cannot receive on {}: {error}", socket.bound());
            tokio::time::sleep(COUNTER_INTERVAL).await;
        }
        if sender.is_closed() {
            return;
        }
    }
}

fn tell(event: &Event) {
    match event {
        Event::Installed { local } => log::debug!("{local} is forwarded by the kernel"),
        Event::Pending { local } => log::debug!("{local} waits for its next hop"),
        Event::Failed { local, why } => {
            log::warn!("{local} is forwarded by userspace: {why}");
        }
        Event::Removed { local, counters } => {
            log::debug!("{local} ended after {} packets", counters.packets);
        }
        Event::OrphanRemoved { orphan } => {
            log::info!("removed an idle flow of nobody's at {}", orphan.flow.from.local);
        }
        Event::ListFailed { why } => log::warn!("cannot list the kernel's flows: {why}"),
    }
}
