//! What an agent does where ICE alone finds no path: it has one punched.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::config::{AgentEvent, AgentOutput, AgentSocket};
use super::control::Control;
use super::signal::Signal;
use super::{Agent, AgentPathKind};
use crate::nat::Behaviour;
use crate::punch::{Plan, PunchConfig, PunchOutput, UdpPunch, plan};
use crate::socket_id::SocketId;

/// How long ICE is alone: it opens NATs whose mappings hold for all by itself, and needs a moment to.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same where one side's mappings do not: its checks can hardly succeed.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// How long punching goes on once it has a path: the other side may have to be told again.
const LINGER: Duration = Duration::from_secs(5);
/// Messages that are kept until the order to begin comes, too.
const MAX_EARLY: usize = 16;
/// Pauses after the first, second, … time that nothing was punched; the last repeats.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(300)];

/// What an agent has to do with punching.
#[derive(Debug, Default)]
pub(super) struct Punch {
    pub(super) ours: Option<Behaviour>,
    pub(super) theirs: Option<Behaviour>,
    running: Option<UdpPunch>,
    /// Counts the times; both sides agree on it.
    attempt: u32,
    failures: usize,
    /// Not before this.
    rest_until: Option<Instant>,
    /// When it is over, once it has a path.
    linger_until: Option<Instant>,
    /// Numbers of the times that sockets have been asked for, in this order.
    wanted: VecDeque<u32>,
    /// All that were opened, and have not been closed.
    opened: Vec<SocketId>,
    /// Messages that overtook the order to begin.
    early: Vec<(u32, Vec<u8>)>,
    /// Probes of the times that are over.
    spent: u64,
}

impl Punch {
    pub(super) fn new(ours: Option<Behaviour>) -> Self {
        Self { ours, ..Self::default() }
    }

    /// Nothing that was agreed with the other side counts any more.
    pub(super) fn begin_again(&mut self) {
        *self = Self { spent: self.spent, ..Self::new(self.ours) };
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let running = self.running.as_ref().and_then(UdpPunch::poll_timeout);
        running.into_iter().chain(self.linger_until).min()
    }

    /// Takes a datagram. Returns whether it was a probe.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let running = self.running.as_mut();
        running.is_some_and(|running| running.handle_datagram(now, socket, from, bytes))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(running) = &mut self.running
            && running.poll_timeout().is_some_and(|at| at <= now)
        {
            running.handle_timeout(now);
        }
    }

    /// What was learnt of an external endpoint.
    pub(super) fn handle_sample(&mut self, now: Instant, socket: SocketId, external: SocketAddr) {
        if let Some(running) = &mut self.running {
            running.handle_sample(now, socket, external);
        }
    }

    /// Whether it can succeed at all: else both sides are spared the probes.
    fn is_hopeful(&self, config: &super::AgentConfig) -> bool {
        let both = self.ours.zip(self.theirs).filter(|_| config.punching.is_some());
        both.is_some_and(|(ours, theirs)| !matches!(plan(&ours, &theirs), Plan::Hopeless(_)))
    }

    fn patience(&self) -> Duration {
        let all_easy = [self.ours, self.theirs].iter().flatten().all(Behaviour::is_easy);
        if all_easy { PATIENCE } else { SHORT_PATIENCE }
    }
}

impl Agent {
    /// Says what own NATs do to UDP over IPv4, or that they do something else by now.
    pub fn set_behaviour(&mut self, now: Instant, behaviour: Behaviour) {
        if self.punch.ours.replace(behaviour) != Some(behaviour) {
            self.post(&Signal::Behaviour(behaviour));
            self.settle(now);
        }
    }

    /// What own NATs do to UDP over IPv4, as far as it is known.
    pub const fn behaviour(&self) -> Option<Behaviour> {
        self.punch.ours
    }

    /// Probes that have been sent so far to punch paths.
    pub fn probes_spent(&self) -> u64 {
        let running = self.punch.running.as_ref().map_or(0, UdpPunch::probes_spent);
        self.punch.spent + u64::from(running)
    }

    /// Takes sockets, after [`AgentOutput::Open`].
    pub fn handle_opened(&mut self, now: Instant, sockets: Vec<SocketId>) {
        self.punch.opened.extend(&sockets);
        match (self.punch.wanted.pop_front(), &mut self.punch.running) {
            (Some(attempt), Some(running)) if attempt == self.punch.attempt => {
                running.handle_opened(now, sockets);
            }
            _ => sockets.into_iter().for_each(|socket| self.close_socket(socket)),
        }
        self.settle(now);
    }

    /// Begins to punch if there is nothing better, and something to be gained.
    pub(super) fn consider_punching(&mut self, now: Instant) {
        match (self.punch.linger_until, self.has_direct_path()) {
            (Some(at), _) if at > now => return,
            (_, true) => return self.stop_punching(),
            (Some(_), false) => return self.end_punching(now),
            (None, false) => {}
        }
        let Some(open_since) = self.open_since.filter(|_| self.is_controlling()) else { return };
        let rested = self.punch.rest_until.is_none_or(|at| at <= now);
        let waited = now.saturating_duration_since(open_since) >= self.punch.patience();
        let is_idle = self.punch.running.is_none();
        if is_idle && rested && waited && self.punch.is_hopeful(&self.config) {
            let attempt = self.punch.attempt + 1;
            self.post(&Signal::Punch(attempt));
            self.start_punching(now, attempt);
        }
    }

    /// When [`Agent::consider_punching`] may come to another conclusion.
    pub(super) fn punching_due(&self) -> Option<Instant> {
        let open_since = self.open_since.filter(|_| self.is_controlling())?;
        let is_waiting = self.punch.running.is_none() && !self.has_direct_path();
        let due = open_since + self.punch.patience();
        let due = self.punch.rest_until.map_or(due, |at| at.max(due));
        (is_waiting && self.punch.is_hopeful(&self.config)).then_some(due)
    }

    /// The controlling agent has begun, or we are it.
    pub(super) fn start_punching(&mut self, now: Instant, attempt: u32) {
        self.stop_punching();
        self.punch.attempt = attempt;
        let Some(tuning) = self.config.punching else { return };
        let Some((ours, theirs)) = self.punch.ours.zip(self.punch.theirs) else { return };
        let config = PunchConfig {
            key: self.punch_key,
            is_initiator: self.is_controlling(),
            ours,
            theirs,
            our_external: self.ice.reflexive(),
            their_endpoints: self.ice.remote_reflexive(),
            budget: self.config.probe_budget,
            tuning,
        };
        let mut running = UdpPunch::new(config, self.rng.random(), now);
        for (of, message) in std::mem::take(&mut self.punch.early) {
            if of == attempt {
                running.handle_message(now, &message);
            }
        }
        self.punch.running = Some(running);
    }

    pub(super) fn handle_punch_message(&mut self, now: Instant, attempt: u32, message: Vec<u8>) {
        match &mut self.punch.running {
            Some(running) if attempt == self.punch.attempt => running.handle_message(now, &message),
            _ if attempt > self.punch.attempt && self.punch.early.len() < MAX_EARLY => {
                self.punch.early.push((attempt, message));
            }
            _ => {}
        }
    }

    /// Passes on what punching wants.
    pub(super) fn pump_punching(&mut self, now: Instant) {
        while let Some(output) = self.punch.running.as_mut().and_then(UdpPunch::poll_output) {
            match output {
                PunchOutput::Open { count } => {
                    self.punch.wanted.push_back(self.punch.attempt);
                    self.outputs.push_back(AgentOutput::Open(count));
                }
                PunchOutput::Learn { socket } => {
                    let server = self.config.stun_servers.iter().find(|it| it.is_ipv4());
                    if let Some(server) = server.copied() {
                        self.gather.ask(now, socket, server);
                    }
                }
                PunchOutput::Transmit { socket, to, ttl, bytes } => {
                    let socket = AgentSocket::Own(socket);
                    self.outputs.push_back(AgentOutput::Transmit { socket, to, ttl, bytes });
                }
                PunchOutput::Close(socket) => self.close_socket(socket),
                PunchOutput::Message(message) => {
                    let attempt = self.punch.attempt;
                    self.say(&Control::Punching { attempt, message });
                }
                PunchOutput::Punched { socket, remote, rtt } => {
                    self.add_path(now, socket, remote, AgentPathKind::Punched);
                    self.prove_path(now, socket, remote, Some(rtt));
                    self.punch.failures = 0;
                    self.punch.linger_until = Some(now + LINGER);
                }
                PunchOutput::Failed(reason) => {
                    let probes = self.punch.running.as_ref().map_or(0, UdpPunch::probes_spent);
                    self.tell(AgentEvent::NotPunched { reason, probes });
                    self.end_punching(now);
                }
            }
        }
    }

    fn end_punching(&mut self, now: Instant) {
        let pause = PAUSES[self.punch.failures.min(PAUSES.len() - 1)];
        self.punch.failures += 1;
        self.punch.rest_until = Some(now + pause);
        self.stop_punching();
    }

    /// Sockets that a path needs stay open.
    pub(super) fn stop_punching(&mut self) {
        self.punch.spent = self.probes_spent();
        (self.punch.running, self.punch.linger_until) = (None, None);
        for socket in std::mem::take(&mut self.punch.opened) {
            if self.paths.iter().any(|path| path.socket == socket) {
                self.punch.opened.push(socket);
            } else {
                self.outputs.push_back(AgentOutput::Close(socket));
            }
        }
    }

    pub(super) fn close_socket(&mut self, socket: SocketId) {
        if let Some(at) = self.punch.opened.iter().position(|it| *it == socket) {
            self.punch.opened.remove(at);
            self.outputs.push_back(AgentOutput::Close(socket));
        }
    }
}
