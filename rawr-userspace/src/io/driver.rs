//! The loop that joins the pure parts to the world: what happens goes in, commands come out.
//!
//! ```text
//! STUN port ──▶ Server ──▶ Command ─┬─▶ STUN port, data ports      in this order of priority:
//! data ports ─▶   ▲                 ├─▶ streams, slow path         signals, control, strays from data
//! streams ──────▶ │                 └─▶ flow table ─▶ reconciler   ports, streams, netlink, operator,
//! netlink, time ──┘                                     └─▶ back end  timers
//! ```
//!
//! Nothing here waits but the `select!` in [`Driver::run`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::control_socket::{Buffers, ControlSocket};
use super::events::burst;
use super::listeners::BindingAnswers;
use super::netlink::{NetworkEvent, NextHopResolver};
use super::ports::Ports;
use super::registry::NameRegistry;
use super::report;
use super::state_file::StateFile;
use super::streams::{DtlsPort, StreamEvent, Streams, is_dtls};
use super::{allocations, clock};
use crate::admin::{Call, InterfaceInfo, Request, Response};
use crate::control::{Client, Command, Neighbour, Now, Server, Source};
use crate::dataplane::bpf::Bpf;
use crate::dataplane::flow_table::{Event, FlowTable};
use crate::dataplane::reconcile::Reconciler;
use crate::dataplane::slow_path::{SlowPath, Unclaimed};
use crate::dataplane::{Counters, FlowKey, Leg, NextHop, NextHops, RateLimits, Share};

/// Control datagrams and strays handled before the loop looks at anything else.
pub(super) const BURST: usize = 256;

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
    pub streams: Streams,
    pub network: NextHopResolver,
    pub sockets: Vec<ControlSocket>,
    pub state: StateFile,
    /// `None` where names are kept in memory.
    pub names: Option<NameRegistry>,
    /// Places of each flow table.
    pub table_length: u32,
}

/// Everything the daemon consists of.
pub struct Driver {
    pub(super) server: Server,
    pub(super) flows: FlowTable,
    pub(super) kernel: Option<Kernel>,
    pub(super) slow_path: SlowPath,
    pub(super) streams: Streams,
    pub(super) ports: Ports,
    pub(super) network: NextHopResolver,
    pub(super) sockets: Vec<Arc<ControlSocket>>,
    pub(super) about: About,
    /// What flows that have ended had forwarded in the kernel.
    pub(super) carried: Counters,
    /// Legs that have carried packets since the server was told last.
    pub(super) active: Vec<FlowKey>,
    /// Whether the kernel answers Binding requests.
    pub(super) binding: Option<BindingAnswers>,
    state: StateFile,
    names: Option<NameRegistry>,
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
    pub streams: mpsc::Receiver<StreamEvent>,
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
            streams: parts.streams,
            ports: Ports::new(parts.table_length),
            network: parts.network,
            sockets: parts.sockets.into_iter().map(Arc::new).collect(),
            next_counters: about.started,
            about,
            carried: Counters::default(),
            active: Vec::new(),
            binding: None,
            state: parts.state,
            names: parts.names,
        };
        driver.tell_addresses();
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
        let mut errors = self.slow_path.take_errors();
        loop {
            let wake = tokio::time::Instant::from_std(self.poll_timeout());
            tokio::select! {
                biased;
                () = ended(&mut terminate, &mut interrupt) => break,
                Some(datagram) = control.recv() => self.on_control(datagram, &mut control),
                Some(stray) = inbox.strays.recv() => self.on_stray(stray, &mut inbox.strays),
                Some(event) = inbox.streams.recv() => self.on_stream(event, &mut inbox.streams),
                Some(error) = async { errors.as_mut()?.recv().await } => self.on_path_error(error),
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
            if self.streams.take_touched() {
                tokio::task::yield_now().await;
            }
        }
        self.save();
        Ok(Ended::Stopped)
    }

    /// One task per STUN port moves datagrams to the loop.
    fn listen(&self) -> mpsc::Receiver<ControlDatagram> {
        let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
        for socket in &self.sockets {
            let dtls = self.streams.dtls_at(socket.bound());
            tokio::spawn(receive(Arc::clone(socket), dtls, sender.clone()));
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
        for ControlDatagram { local, from, bytes } in burst(first, more, BURST) {
            self.server.handle_control(now, &Client::udp(local, from), &bytes);
            self.obey(now);
        }
    }

    fn on_stray(&mut self, first: Unclaimed, more: &mut mpsc::Receiver<Unclaimed>) {
        let now = now();
        for Unclaimed { local, from, bytes } in burst(first, more, BURST) {
            self.server.handle_data(now, local, from, &bytes);
            self.obey(now);
        }
    }

    fn on_network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::NextHop { remote, .. } => self.flows.next_hop_changed(remote),
            NetworkEvent::Neighbour { ip, mac, ifindex } => {
                let mac = mac.map(rawr_proto::Mac);
                self.server.neighbour(now(), Neighbour { ip, mac, ifindex });
            }
            NetworkEvent::Addresses => {
                self.tell_addresses();
                self.update_listeners();
            }
            NetworkEvent::Link { .. } => self.update_listeners(),
        }
    }

    fn tell_addresses(&mut self) {
        let own = self.network.topology().addresses().map(|own| own.address.addr());
        self.server.set_host_addresses(own);
    }

    fn on_call(&mut self, call: Call) -> Option<Ended> {
        let (response, ended) = match call.request {
            Request::Status => (report::status(self), None),
            Request::Sessions => (report::sessions(self), None),
            Request::Allocations => (allocations::allocations(self), None),
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
        report::read_counters(self);
        let moved = std::mem::take(&mut self.active);
        // A permission and a channel end in time whether they are used or not (RFC 8656 §9, §12).
        let whole = moved.iter().filter(|key| !key.is_shared()).map(FlowKey::local);
        let slow = self.slow_path.take_deltas().into_iter().map(|(local, _)| local);
        let active: Vec<_> = slow.chain(whole).collect();
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

    pub(super) fn obey(&mut self, now: Now) {
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
            Command::OpenPort { id, on, kind } => {
                let result = self.open_port(on, kind);
                self.server.port_opened(now, id, result);
            }
            Command::ClosePort { local } => {
                for key in self.flows.at(local) {
                    self.forget(key);
                }
                self.close_port(local);
                self.state.touch(now.monotonic);
            }
            Command::Pair { a, b, limits } => {
                self.forward(a, b, &limits);
                self.forward(b, a, &limits);
                self.flows.pair(a, b, limits);
                self.state.touch(now.monotonic);
            }
            Command::Drain { from, to, limits } => {
                self.forward(from, to, &limits);
                self.flows.drain(from, to, limits);
            }
            Command::Unpair { key } => {
                self.forget(key);
                self.state.touch(now.monotonic);
            }
            Command::Connect { attempt, local, to } => self.streams.connect(attempt, local, to),
            Command::Splice { client, peer } => self.splice(now, client, peer),
            Command::Close(connection) => self.close_connection(now, connection),
            Command::ProbeNeighbours => self.network.probe_neighbours(),
            Command::Remember(record) => {
                self.names.iter_mut().for_each(|names| names.remember(&record));
            }
            Command::Forget(name) => self.names.iter_mut().for_each(|names| names.forget(&name)),
        }
    }

    fn transmit(&self, from: Source, to: SocketAddr, bytes: &[u8]) {
        let sent = match from {
            Source::Data(local) => self.slow_path.send(local, to, bytes).map_err(Into::into),
            Source::DataUnfragmented(local) => {
                self.slow_path.send_unfragmented(local, to, bytes).map_err(Into::into)
            }
            // What does not fit is counted there; it may be many a second.
            Source::Connection(connection) => {
                self.streams.send(connection, bytes);
                Ok(())
            }
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

    /// Has the resolver watch one way out and, where the port is the leg's alone, the slow path forward
    /// to it. What comes up from a port that legs share is the server's to forward.
    fn forward(&mut self, from: Leg, to: Leg, limits: &RateLimits) {
        self.unwatch(from.key());
        self.network.watch(to.remote.ip(), to.local.ip());
        if from.share != Share::Whole {
            return;
        }
        let rate = limits[0].map(|limit| limit.bytes_per_second);
        if let Err(error) = self.slow_path.forward(from, to, rate) {
            log::warn!("userspace cannot forward from {}: {error}", from.local);
        }
    }

    fn forget(&mut self, key: FlowKey) {
        self.unwatch(key);
        if !key.is_shared() {
            self.slow_path.stop_forwarding(key.local());
        }
        self.flows.unpair(key);
    }

    /// The flow of this key, if there is one, does not need its next hop any more.
    fn unwatch(&mut self, key: FlowKey) {
        if let Some(view) = self.flows.get(key) {
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

async fn receive(
    socket: Arc<ControlSocket>,
    dtls: Option<Arc<DtlsPort>>,
    sender: mpsc::Sender<ControlDatagram>,
) {
    let mut buffers = Buffers::default();
    loop {
        let received = socket
            .receive(&mut buffers, |local, from, bytes| {
                if let Some(dtls) = dtls.as_ref().filter(|_| is_dtls(bytes)) {
                    return dtls.take(&socket, local, from, bytes);
                }
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
        Event::Installed { key } => log::debug!("{key} is forwarded by the kernel"),
        Event::Pending { key } => log::debug!("{key} waits for its next hop"),
        Event::Failed { key, why } => {
            log::warn!("{key} is forwarded by userspace: {why}");
        }
        Event::Removed { key, counters } => {
            log::debug!("{key} ended after {} packets", counters.packets);
        }
        Event::OrphanRemoved { orphan } => {
            log::info!("removed an idle flow of nobody's at {}", orphan.flow.from.key());
        }
        Event::ListFailed { why } => log::warn!("cannot list the kernel's flows: {why}"),
    }
}
