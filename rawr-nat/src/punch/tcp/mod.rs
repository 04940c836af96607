//! Hole punching over TCP: simultaneous open (RFC 5382 REQ-2), and the birthday attack with it.
//!
//! As over UDP, with the same plans and the same order. A stream that both ends open at once needs
//! no listener, and one that was early meets one: both have the same port. What the other side's
//! router resets is tried again, later from many fresh ports at once. Which of several streams is
//! used, a short exchange decides, in which both sides prove that they have the key.
//!
//! Connections of few hops, as over UDP, are not made: the next one begins with another sequence
//! number, and a router that has seen both takes it for an intruder's.

mod handshake;
mod sample;
mod sockets;

pub use sample::external;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinError, JoinSet};

use self::handshake::Proven;
use crate::nat::{Behaviour, Ports};
use crate::punch::aim::Target;
use crate::punch::config::{Reason, Tuning};
use crate::punch::coordinator::{Coordinator, Step};
use crate::punch::message::Message;
use crate::punch::plan::{Plan, plan};
use crate::punch::tactics::{Sockets, Tactics};
use crate::punch::volley::{Pace, Shot, Volley};
use crate::socket_id::SocketId;

/// Bounds of the pause before a connection that was reset is tried again, in milliseconds. It is
/// drawn anew each time, so that two sides do not stay out of step.
const RETRY: std::ops::Range<u64> = 20..250;
/// How long connections of a round have after the last one was begun: the kernel sends a SYN again
/// after one second.
const SETTLE: Duration = Duration::from_millis(2500);
/// Ports of a fan.
const FAN: u16 = 32;
/// Where it begins.
const FAN_PORTS: std::ops::Range<u16> = 10_000..60_000;
/// Rounds with fans, and how long each has to settle: two connections meet at once, or never.
const FAN_ROUNDS: u16 = 14;
const FAN_SETTLE: Duration = Duration::from_millis(300);
/// Tries to find so many free ports in a row.
const FAN_TRIES: u32 = 20;

/// What [`tcp_punch`] is to do.
#[derive(Debug)]
pub struct TcpPunchConfig {
    /// What the two sides share: authenticates streams.
    pub key: [u8; 32],
    /// One side is; the other is not. It picks the stream.
    pub is_initiator: bool,
    /// What our NATs do to TCP.
    pub ours: Behaviour,
    /// What the other side's NATs do to TCP.
    pub theirs: Behaviour,
    /// The local address that was mapped. Whoever holds it must have set `SO_REUSEADDR` and
    /// `SO_REUSEPORT`, and must not listen.
    pub local: SocketAddr,
    /// Its external endpoints; the other side is told them.
    pub our_external: Vec<SocketAddr>,
    /// External endpoints of the other side's mapped port, as far as known.
    pub their_endpoints: Vec<SocketAddr>,
    /// A STUN server with TCP, to ask for the external ports of fresh sockets. Without one, a
    /// sequence of ports is taken to go on from [`Behaviour::last_port`].
    pub server: Option<SocketAddr>,
    /// Times and rates.
    pub tuning: Tuning,
    /// To the other side, by an authenticated path. Loss and disorder do no harm.
    pub outgoing: UnboundedSender<Vec<u8>>,
    /// From the other side.
    pub incoming: UnboundedReceiver<Vec<u8>>,
}

/// Opens two NATs for each other, and returns a stream whose other end has proven that it has the
/// key. Both sides run it at the same time.
///
/// A birthday attack takes a file descriptor for each of up to 1,024 connections; where the limit
/// (`RLIMIT_NOFILE`) is lower, fewer are tried.
///
/// # Errors
/// The [`Reason`] for which there is no stream, as the inner error; or an error of the operating
/// system's, if the local address cannot be bound.
pub async fn tcp_punch(config: TcpPunchConfig) -> io::Result<TcpStream> {
    let plan = plan(&config.ours, &config.theirs);
    if let Plan::Hopeless(reason) = plan {
        return Err(failed(Reason::Hopeless(reason)));
    }
    let Some(tactics) = Tactics::of(plan, &config.ours, &config.theirs, config.is_initiator) else {
        return Err(failed(Reason::Exhausted));
    };
    let deadline = config.tuning.deadline;
    let mut punch = TcpPunch::new(config, tactics, now())?;
    let stream = match tokio::time::timeout(deadline, punch.run()).await {
        Ok(result) => result?,
        Err(_) if punch.coordinator.has_heard() => return Err(failed(Reason::TimedOut)),
        Err(_) => return Err(failed(Reason::Silent)),
    };
    sockets::keep(&stream)?;
    Ok(stream)
}

fn failed(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::TimedOut | Reason::Silent => io::ErrorKind::TimedOut,
        Reason::Hopeless(_)
        | Reason::Exhausted
        | Reason::GivenUp
        | Reason::NoSockets
        | Reason::NoSample => io::ErrorKind::HostUnreachable,
    };
    io::Error::new(kind, reason)
}

/// What a task has come to; the outer error is that of one that was aborted.
type Task<T> = Result<io::Result<T>, JoinError>;

struct TcpPunch {
    config: TcpPunchConfig,
    tactics: Tactics,
    coordinator: Coordinator,
    target: Target,
    rng: StdRng,
    pace: Pace,
    volley: Option<Volley>,
    /// This round's local addresses.
    ports: HashMap<SocketId, SocketAddr>,
    sockets: Vec<SocketId>,
    /// Ports in a row, or none.
    fan: Vec<SocketAddr>,
    /// Holds the mapped port.
    listener: TcpListener,
    /// Hold this round's fresh ports.
    accepts: JoinSet<io::Result<TcpStream>>,
    connects: JoinSet<io::Result<TcpStream>>,
    samples: JoinSet<io::Result<SocketAddr>>,
    proofs: JoinSet<io::Result<Proven>>,
    /// Proven streams, one of which the initiator picks.
    agreements: JoinSet<io::Result<TcpStream>>,
    settled_at: Option<Instant>,
}

impl TcpPunch {
    fn new(config: TcpPunchConfig, mut tactics: Tactics, now: Instant) -> io::Result<Self> {
        if tactics.sockets == Sockets::MappedThenFresh {
            tactics.rounds = FAN_ROUNDS;
        }
        let external = config.our_external.clone();
        Ok(Self {
            coordinator: Coordinator::new(tactics.order, config.is_initiator, external, now),
            target: Target::new(&config.theirs, config.their_endpoints.clone()),
            rng: StdRng::seed_from_u64(rand::rng().random()),
            pace: Pace::new(config.tuning.rate, now),
            volley: None,
            ports: HashMap::new(),
            sockets: Vec::new(),
            fan: Vec::new(),
            listener: sockets::listen(config.local)?,
            accepts: JoinSet::new(),
            connects: JoinSet::new(),
            samples: JoinSet::new(),
            proofs: JoinSet::new(),
            agreements: JoinSet::new(),
            settled_at: None,
            tactics,
            config,
        })
    }

    /// Runs until there is a stream, or no hope.
    async fn run(&mut self) -> io::Result<TcpStream> {
        loop {
            while let Some(step) = self.coordinator.poll_step() {
                self.handle_step(step)?;
            }
            self.shoot(now());
            if !self.coordinator.is_idle() {
                continue;
            }
            let timer = sleep_until(self.poll_timeout());
            tokio::select! {
                Some(bytes) = self.config.incoming.recv() => {
                    if let Some(message) = Message::decode(&bytes) {
                        self.coordinator.handle_message(now(), message);
                    }
                }
                Some(stream) = self.agreements.join_next() => {
                    // An error is a stream that was not picked, or has died.
                    if let Ok(Ok(stream)) = stream {
                        return Ok(stream);
                    }
                }
                Some(proven) = self.proofs.join_next() => self.choose(proven),
                Some(stream) = self.connects.join_next() => self.examine(stream),
                Some(stream) = self.accepts.join_next() => self.examine(stream),
                Some(sample) = self.samples.join_next() => self.take_sample(sample),
                Ok((stream, _)) = self.listener.accept() => self.examine(Ok(Ok(stream))),
                () = timer => self.coordinator.handle_timeout(now()),
            }
        }
    }

    fn handle_step(&mut self, step: Step) -> io::Result<()> {
        match step {
            // Nobody listens any more: the deadline will tell.
            Step::Tell(bytes) => drop(self.config.outgoing.send(bytes)),
            Step::Prepare(round) => self.prepare(round)?,
            Step::Fire => self.fire(now()),
            Step::Fail(reason) => return Err(failed(reason)),
        }
        Ok(())
    }

    fn prepare(&mut self, round: u16) -> io::Result<()> {
        (self.volley, self.settled_at) = (None, None);
        self.fan.clear();
        if round >= self.tactics.rounds {
            self.coordinator.give_up(now());
            while let Some(Step::Tell(bytes)) = self.coordinator.poll_step() {
                drop(self.config.outgoing.send(bytes));
            }
            return Err(failed(Reason::Exhausted));
        }
        if !self.tactics.rests_in(round) {
            self.connects = JoinSet::new();
        }
        let count = match self.tactics.sockets {
            Sockets::Mapped | Sockets::MappedThenFresh => {
                self.sockets = vec![SocketId::MAPPED];
                self.ports = HashMap::from([(SocketId::MAPPED, self.config.local)]);
                let is_later = round > 0 && self.tactics.sockets == Sockets::MappedThenFresh;
                if is_later && self.config.ours.ports == Some(Ports::Preserved) {
                    self.spread();
                }
                let port = self.fan.first().map(SocketAddr::port);
                self.coordinator.prepared(now(), port);
                return Ok(());
            }
            Sockets::Fresh(count) | Sockets::Sampled(count) => count,
        };
        self.open(count)?;
        match (self.tactics.sockets, self.config.server, self.sockets.first()) {
            (Sockets::Sampled(_), Some(server), Some(first)) => {
                let local = self.ports[first];
                self.samples = JoinSet::new();
                self.samples.spawn(external(local, server));
            }
            _ => self.coordinator.prepared(now(), None),
        }
        Ok(())
    }

    /// Takes as many fresh ports as there are descriptors for.
    fn open(&mut self, count: u16) -> io::Result<()> {
        (self.sockets, self.ports) = (Vec::new(), HashMap::new());
        self.accepts = JoinSet::new();
        let any = SocketAddr::new(self.config.local.ip(), 0);
        for id in 1..=count {
            match sockets::listen(any) {
                Ok(listener) => {
                    let id = SocketId(id.into());
                    self.ports.insert(id, listener.local_addr()?);
                    self.sockets.push(id);
                    self.accepts.spawn(sockets::accept(listener));
                }
                Err(_) if !self.sockets.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes ports in a row, of which a NAT that preserves ports makes the same ones outside. A
    /// router that resets an early connection spoils its port for some seconds: these are new.
    fn spread(&mut self) {
        self.accepts = JoinSet::new();
        self.fan.clear();
        for _ in 0..FAN_TRIES {
            let first = self.rng.random_range(FAN_PORTS);
            let at = |port| SocketAddr::new(self.config.local.ip(), port);
            let listeners: io::Result<Vec<_>> =
                (first..first + FAN).map(|port| sockets::claim(at(port))).collect();
            if let Ok(listeners) = listeners {
                self.fan = (first..first + FAN).map(at).collect();
                for listener in listeners {
                    self.accepts.spawn(sockets::accept(listener));
                }
                return;
            }
        }
    }

    fn take_sample(&mut self, sample: Task<SocketAddr>) {
        let port = sample.ok().and_then(Result::ok).map(|external| external.port());
        self.coordinator.prepared(now(), port);
    }

    fn fire(&mut self, now: Instant) {
        let Self { target, sockets, coordinator, rng, tactics, .. } = self;
        let shots = match coordinator.their_port() {
            Some(their_port) if !self.fan.is_empty() => {
                self.unfold(their_port);
                Vec::new()
            }
            Some(_) | None => target.shots(tactics, sockets, coordinator, rng),
        };
        self.volley = Some(Volley::new(Vec::new(), shots, 1, Duration::ZERO, now));
    }

    /// Connects from each port of our fan to the same one of theirs, one side in order and the
    /// other in reverse, without any pause: wherever they are in time, some two meet on the way.
    fn unfold(&mut self, their_port: u16) {
        let mut pairs: Vec<(SocketAddr, u16)> =
            self.fan.iter().copied().zip(their_port..).collect();
        if !self.config.is_initiator {
            pairs.reverse();
        }
        for (local, port) in pairs {
            let to = SocketAddr::new(self.config.theirs.external, port);
            self.connects.spawn(sockets::connect(local, to));
        }
    }

    /// Begins the connections that are due, and ends the round once it is over.
    fn shoot(&mut self, now: Instant) {
        let Some(volley) = &mut self.volley else { return };
        while let Some(Shot { socket, to, .. }) = volley.next(now, &mut self.pace) {
            let local = self.ports[&socket];
            self.connects.spawn(persist(local, to, self.rng.random()));
        }
        if volley.is_fired() && !self.coordinator.has_fired() {
            self.coordinator.fired(now);
        }
        if !volley.is_over() || !self.coordinator.both_fired() {
            return;
        }
        let settle = if self.fan.is_empty() { SETTLE } else { FAN_SETTLE };
        let settle = settle + 2 * self.coordinator.rtt();
        let settled = *self.settled_at.get_or_insert_with(|| now + settle);
        if settled <= now && self.proofs.is_empty() && self.agreements.is_empty() {
            self.coordinator.next_round(now);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let volley = self.volley.as_ref().and_then(|volley| volley.poll_timeout(&self.pace));
        // Past once a proof is awaited: that wakes us, too.
        let settled = self.settled_at.filter(|_| self.proofs.is_empty());
        let settled = settled.filter(|_| self.agreements.is_empty());
        self.coordinator.poll_timeout().into_iter().chain(volley).chain(settled).min()
    }

    /// A stream is there: is the other end who it should be?
    fn examine(&mut self, stream: Task<TcpStream>) {
        let Ok(Ok(stream)) = stream else { return };
        let (key, is_initiator) = (self.config.key, self.config.is_initiator);
        self.proofs.spawn(handshake::prove(stream, key, is_initiator));
    }

    /// The initiator picks one stream at a time; the other side waits on all of them.
    fn choose(&mut self, proven: Task<Proven>) {
        let Ok(Ok(proven)) = proven else { return };
        if !self.config.is_initiator {
            self.agreements.spawn(proven.agree());
        } else if self.agreements.is_empty() {
            self.agreements.spawn(proven.pick());
        }
    }
}

/// Connects, and tries again where it is reset.
async fn persist(local: SocketAddr, to: SocketAddr, seed: u64) -> io::Result<TcpStream> {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        match sockets::connect(local, to).await {
            Ok(stream) => return Ok(stream),
            Err(error) if is_final(&error) => return Err(error),
            Err(_) => {
                let pause = Duration::from_millis(rng.random_range(RETRY));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Whether another try would end like this one: no descriptors, no route, no permission.
fn is_final(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let Some(code) = error.raw_os_error() else { return false };
    matches!(
        Errno::from_raw(code),
        Errno::EMFILE | Errno::ENFILE | Errno::EACCES | Errno::EPERM | Errno::EAFNOSUPPORT
    )
}

/// Never, if there is no time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a driver")]
fn now() -> Instant {
    Instant::now()
}
