//! Hole punching over UDP.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::punch::aim::Target;
use crate::punch::config::{PunchConfig, PunchOutput, Reason};
use crate::punch::coordinator::{Coordinator, Step};
use crate::punch::message::Message;
use crate::punch::paths::{PathOutput, Paths};
use crate::punch::plan::{Order, Plan, plan};
use crate::punch::probe::ProbeKeys;
use crate::punch::tactics::{Hops, Sockets, Tactics};
use crate::punch::volley::{Pace, Shot, Volley};
use crate::socket_id::SocketId;

/// How long a STUN server has to answer to a fresh socket, and how often it is asked.
const SAMPLE_PATIENCE: Duration = Duration::from_millis(500);
const SAMPLE_TRIES: u8 = 4;
/// Routers more than usual that probes of few hops pass where it does no harm if they arrive.
const MORE_HOPS: u8 = 2;

/// Opens the NATs of two sides for each other, by the strategy of [`plan`]. Sans-IO.
///
/// Both sides run one, with the same key, and hand each other's messages over. Nothing is sent
/// before both are ready.
#[derive(Debug)]
pub struct UdpPunch {
    config: PunchConfig,
    plan: Plan,
    /// Nothing where the plan is hopeless.
    tactics: Option<Tactics>,
    keys: ProbeKeys,
    rng: StdRng,
    coordinator: Coordinator,
    paths: Paths,
    pace: Pace,
    target: Target,
    volley: Option<Volley>,
    stage: Stage,
    /// Sockets of this round.
    sockets: Vec<SocketId>,
    /// Sockets that were opened for us, and not closed.
    fresh: Vec<SocketId>,
    sample: Option<Sample>,
    started: Instant,
    settled_at: Option<Instant>,
    spent: u32,
    outputs: VecDeque<PunchOutput>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for sockets.
    Opening,
    /// Sockets are there.
    Running,
    Punched,
    Failed,
}

/// A fresh socket's external port, which a server is to tell.
#[derive(Clone, Copy, Debug)]
struct Sample {
    socket: SocketId,
    again_at: Instant,
    tries: u8,
}

impl UdpPunch {
    /// Starts. `seed` is random.
    pub fn new(config: PunchConfig, seed: u64, now: Instant) -> Self {
        let plan = plan(&config.ours, &config.theirs);
        let tactics = Tactics::of(plan, &config.ours, &config.theirs, config.is_initiator);
        let order = tactics.map_or(Order::Together, |tactics| tactics.order);
        let mut punch = Self {
            plan,
            tactics,
            keys: ProbeKeys::new(&config.key, config.is_initiator),
            rng: StdRng::seed_from_u64(seed),
            coordinator: Coordinator::new(
                order,
                config.is_initiator,
                config.our_external.clone(),
                now,
            ),
            paths: Paths::new(config.is_initiator),
            pace: Pace::new(config.tuning.rate, now),
            target: Target::new(&config.theirs, config.their_endpoints.clone()),
            volley: None,
            stage: Stage::Running,
            sockets: Vec::new(),
            fresh: Vec::new(),
            sample: None,
            started: now,
            settled_at: None,
            spent: 0,
            outputs: VecDeque::new(),
            config,
        };
        if let Plan::Hopeless(reason) = plan {
            punch.fail(now, Reason::Hopeless(reason));
        }
        punch.run(now);
        punch
    }

    /// The strategy.
    pub const fn plan(&self) -> Plan {
        self.plan
    }

    /// Probes sent in search of a path, without answers to the other side's.
    pub const fn probes_spent(&self) -> u32 {
        self.spent
    }

    /// The sockets of the last [`PunchOutput::Open`]; fewer than wanted will do.
    pub fn handle_opened(&mut self, now: Instant, sockets: Vec<SocketId>) {
        if self.stage != Stage::Opening {
            self.outputs.extend(sockets.into_iter().map(PunchOutput::Close));
            return;
        }
        self.stage = Stage::Running;
        self.fresh.extend(&sockets);
        self.sockets = sockets;
        let Some(first) = self.sockets.first().copied() else {
            self.fail(now, Reason::NoSockets);
            return self.run(now);
        };
        match self.tactics.map(|tactics| tactics.sockets) {
            Some(Sockets::Sampled(_) | Sockets::MappedThenFresh) => {
                self.sample = Some(Sample { socket: first, again_at: now, tries: 0 });
                self.ask_sample(now);
            }
            Some(Sockets::Mapped | Sockets::Fresh(_)) | None => {
                self.coordinator.prepared(now, None);
            }
        }
        self.run(now);
    }

    /// The external endpoint of a socket, as asked for by [`PunchOutput::Learn`].
    pub fn handle_sample(&mut self, now: Instant, socket: SocketId, external: SocketAddr) {
        if self.sample.take_if(|sample| sample.socket == socket).is_some() {
            self.coordinator.prepared(now, Some(external.port()));
            self.run(now);
        }
    }

    /// Takes a datagram. Returns whether it was a probe of the other side's.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(probe) = self.keys.open(bytes) else { return false };
        if self.stage != Stage::Failed {
            self.paths.handle(now, socket, from, &probe, &mut self.rng);
            self.run(now);
        }
        true
    }

    /// Takes a [`PunchOutput::Message`] of the other side's. Anything else is ignored.
    pub fn handle_message(&mut self, now: Instant, bytes: &[u8]) {
        if let Some(message) = Message::decode(bytes) {
            self.coordinator.handle_message(now, message);
            self.run(now);
        }
    }

    /// To be called once [`UdpPunch::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stage == Stage::Failed {
            return;
        }
        self.paths.handle_timeout(now, &mut self.rng);
        if self.stage != Stage::Punched {
            self.coordinator.handle_timeout(now);
            self.ask_sample(now);
            self.check_deadline(now);
        }
        self.run(now);
    }

    /// When [`UdpPunch::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Failed => None,
            Stage::Punched => self.paths.poll_timeout(),
            Stage::Opening | Stage::Running => {
                let may_send = self.spent < self.config.budget;
                let volley = self.volley.as_ref().filter(|_| may_send);
                let volley = volley.and_then(|volley| volley.poll_timeout(&self.pace));
                let deadline = self.started + self.config.tuning.deadline;
                let sample = self.sample.map(|sample| sample.again_at);
                let timers = [
                    self.coordinator.poll_timeout(),
                    self.paths.poll_timeout(),
                    volley,
                    sample,
                    self.settled_at,
                ];
                timers.into_iter().flatten().chain([deadline]).min()
            }
        }
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<PunchOutput> {
        self.outputs.pop_front()
    }

    /// Does everything that is due.
    fn run(&mut self, now: Instant) {
        while let Some(step) = self.coordinator.poll_step() {
            self.handle_step(now, step);
        }
        self.shoot(now);
        while let Some(step) = self.coordinator.poll_step() {
            self.handle_step(now, step);
        }
        while let Some(output) = self.paths.poll_output() {
            match output {
                PathOutput::Transmit { socket, to, probe } => {
                    let bytes = self.keys.seal(&probe);
                    self.outputs.push_back(PunchOutput::Transmit { socket, to, ttl: None, bytes });
                }
                PathOutput::Agreed { socket, remote, rtt } => self.succeed(socket, remote, rtt),
            }
        }
    }

    fn handle_step(&mut self, now: Instant, step: Step) {
        match (step, self.stage) {
            (Step::Tell(bytes), _) => self.outputs.push_back(PunchOutput::Message(bytes)),
            (_, Stage::Punched | Stage::Failed) => {}
            (Step::Prepare(round), Stage::Opening | Stage::Running) => self.prepare(now, round),
            (Step::Fire, Stage::Opening | Stage::Running) => self.fire(now),
            (Step::Fail(reason), Stage::Opening | Stage::Running) => self.fail(now, reason),
        }
    }

    fn prepare(&mut self, now: Instant, round: u16) {
        let Some(tactics) = self.tactics else { return };
        (self.volley, self.sample, self.settled_at) = (None, None, None);
        let is_broke = round > 0 && self.spent >= self.config.budget && !tactics.rests_in(round);
        if round >= tactics.rounds || is_broke {
            return self.fail(now, Reason::Exhausted);
        }
        self.close_fresh(None);
        let count = match tactics.sockets {
            Sockets::Mapped => 0,
            Sockets::MappedThenFresh => u16::from(round > 0),
            Sockets::Fresh(count) | Sockets::Sampled(count) => count,
        };
        if count == 0 {
            self.stage = Stage::Running;
            self.sockets = vec![SocketId::MAPPED];
            self.coordinator.prepared(now, None);
        } else {
            self.stage = Stage::Opening;
            self.outputs.push_back(PunchOutput::Open { count });
        }
    }

    fn ask_sample(&mut self, now: Instant) {
        let Some(sample) = self.sample.as_mut().filter(|sample| sample.again_at <= now) else {
            return;
        };
        if sample.tries == SAMPLE_TRIES {
            return self.fail(now, Reason::NoSample);
        }
        sample.tries += 1;
        sample.again_at = now + SAMPLE_PATIENCE;
        let socket = sample.socket;
        self.outputs.push_back(PunchOutput::Learn { socket });
    }

    /// Lays out this round's probes.
    fn fire(&mut self, now: Instant) {
        let Some(tactics) = self.tactics else { return };
        let Self { target, sockets, coordinator, rng, .. } = self;
        let mut shots = target.shots(&tactics, sockets, coordinator, rng);
        let few = self.config.tuning.opening_ttl;
        let mut opening = Vec::new();
        match tactics.hops {
            Hops::All => {}
            Hops::FewFirst => {
                if few.is_some() {
                    opening = shots.iter().map(|shot| Shot { ttl: few, ..*shot }).collect();
                }
            }
            Hops::FewLater => {
                if self.coordinator.round() >= tactics.rounds / 2 {
                    let ttl = few.map(|few| few.saturating_add(MORE_HOPS));
                    shots.iter_mut().for_each(|shot| shot.ttl = ttl);
                }
            }
        }
        let (passes, pause) = (tactics.passes, tactics.pass_pause);
        self.volley = Some(Volley::new(opening, shots, passes, pause, now));
    }

    /// Sends the probes that are due, and ends the round once it is over.
    fn shoot(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Running) {
            return;
        }
        let Some(volley) = &mut self.volley else { return };
        while self.spent < self.config.budget {
            let Some(Shot { socket, to, ttl }) = volley.next(now, &mut self.pace) else { break };
            self.spent += 1;
            let probe = self.paths.search(now, socket, to, &mut self.rng);
            let bytes = self.keys.seal(&probe);
            self.outputs.push_back(PunchOutput::Transmit { socket, to, ttl, bytes });
        }
        let is_broke = self.spent >= self.config.budget;
        let (is_fired, is_over) = (volley.is_fired() || is_broke, volley.is_over() || is_broke);
        if is_fired && !self.coordinator.has_fired() {
            self.coordinator.fired(now);
        }
        if !is_over || !self.coordinator.both_fired() {
            return;
        }
        let settled = *self
            .settled_at
            .get_or_insert_with(|| now + self.config.tuning.settle + 2 * self.coordinator.rtt());
        if settled > now {
            return;
        }
        if self.paths.has_hope() {
            self.settled_at = Some(now + self.config.tuning.settle);
        } else {
            self.coordinator.next_round(now);
        }
    }

    fn check_deadline(&mut self, now: Instant) {
        if now < self.started + self.config.tuning.deadline {
            return;
        }
        let reason = if self.coordinator.has_heard() { Reason::TimedOut } else { Reason::Silent };
        self.fail(now, reason);
    }

    fn succeed(&mut self, socket: SocketId, remote: SocketAddr, rtt: Duration) {
        self.stage = Stage::Punched;
        (self.volley, self.sample) = (None, None);
        self.coordinator.finish();
        self.outputs.push_back(PunchOutput::Punched { socket, remote, rtt });
        self.close_fresh(Some(socket));
    }

    fn fail(&mut self, now: Instant, reason: Reason) {
        if self.stage == Stage::Failed {
            return;
        }
        self.stage = Stage::Failed;
        (self.volley, self.sample) = (None, None);
        if reason != Reason::GivenUp {
            self.coordinator.give_up(now);
        }
        self.close_fresh(None);
        self.outputs.push_back(PunchOutput::Failed(reason));
    }

    /// Closes the sockets that were opened for us, but not those that a path may use.
    fn close_fresh(&mut self, chosen: Option<SocketId>) {
        let is_wanted = |socket: &SocketId| match (chosen, self.stage) {
            (Some(chosen), _) => *socket == chosen,
            (None, Stage::Failed) => false,
            (None, Stage::Opening | Stage::Running | Stage::Punched) => self.paths.uses(*socket),
        };
        let (kept, closed) = self.fresh.iter().copied().partition(is_wanted);
        self.fresh = kept;
        let closed: Vec<SocketId> = closed;
        self.outputs.extend(closed.into_iter().map(PunchOutput::Close));
    }
}
