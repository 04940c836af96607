//! Hole punching between two sides that have told each other all they can, and have no path for
//! messages: sans-IO.
//!
//! Both send to all endpoints of the other side's, again and again until the time is over, so they need
//! not begin at the same moment. Where one endpoint does not do, the strategy of
//! [`plan`](crate::punch::plan) comes on top, without agreement on its rounds: who is hard to find opens all
//! its sockets once and keeps them, who searches goes on where it stopped.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::address::MappedSocketAddr;
use crate::nat::{Behaviour, Ports};
use crate::punch::{
    Aim, Coordinator, Hopeless, Order, PathOutput, Paths, Plan, ProbeKeys, Shot, Sockets, Tactics,
    Target, plan,
};
use crate::socket_id::SocketId;

/// How long probes to endpoints behind NATs end on the way, so that each opens its own NAT before the
/// other side's come to it: some home routers move a flow to another port that came too late.
const OPENING: Duration = Duration::from_millis(500);
/// Hop limit (TTL) of those: past the own router.
const OPENING_TTL: u8 = 2;
/// Pause between two probes to the same endpoint, first and later.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(250)];
/// How long the probes of a hard side wait, if the easy side's are to come first.
const AFTER_THEM: Duration = Duration::from_millis(700);
/// Pause between two rounds of a search.
const ROUND: Duration = Duration::from_secs(3);
/// Pause before the same probes are sent again.
const PASS: Duration = Duration::from_secs(1);
/// Probes of a search in a burst, and the pause after it: a thousand in a second.
const BURST: usize = 10;
const BURST_PAUSE: Duration = Duration::from_millis(10);

/// What a [`Meeting`] knows.
#[derive(Clone, Debug)]
pub(super) struct MeetingConfig {
    pub(super) key: [u8; 32],
    pub(super) is_initiator: bool,
    /// What the NATs of both sides do, if that is known of both.
    pub(super) nats: Option<[Behaviour; 2]>,
    pub(super) their_endpoints: Vec<MappedSocketAddr>,
}

/// A datagram that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transmit {
    pub(super) socket: SocketId,
    pub(super) to: SocketAddr,
    pub(super) ttl: Option<u8>,
    pub(super) bytes: Vec<u8>,
}

/// Where both sides have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Met {
    pub(super) socket: SocketId,
    pub(super) remote: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Meeting {
    endpoints: Vec<MappedSocketAddr>,
    search: Option<Search>,
    hopeless: Option<Hopeless>,
    keys: ProbeKeys,
    paths: Paths,
    rng: StdRng,
    started: Instant,
    knock_at: Instant,
    met: Option<Met>,
    outputs: VecDeque<Transmit>,
}

/// What is done beyond sending to known endpoints.
#[derive(Debug)]
struct Search {
    tactics: Tactics,
    target: Target,
    sweep: Option<Sweep>,
    /// Never told anything: the rounds of a search are not agreed on here.
    coordinator: Coordinator,
    sockets: Vec<SocketId>,
    waiting: VecDeque<Shot>,
    next_at: Instant,
    round_at: Instant,
}

/// Both sides' ports come in sequence. Both send as many probes in a round, each round from a socket of its own, so
/// both know without a word which ports the other side's next round has. It does not matter who is earlier: what
/// a probe has opened stays open for the one that fits to it.
#[derive(Debug)]
struct Sweep {
    theirs: Behaviour,
    /// Probes of a round.
    window: u16,
    rounds: u16,
    /// How often probes have been laid out: twice in each round.
    passes: u16,
    shots: Vec<Shot>,
}

impl Meeting {
    pub(super) fn new(config: MeetingConfig, seed: u64, now: Instant) -> Self {
        let plan = config.nats.map(|[ours, theirs]| (plan(&ours, &theirs), ours, theirs));
        let hopeless = match plan {
            Some((Plan::Hopeless(why), ..)) => Some(why),
            Some(_) | None => None,
        };
        let search = plan.and_then(|(plan, ours, theirs)| {
            let is_more = !matches!(plan, Plan::Straight { .. });
            let tactics = Tactics::of(plan, &ours, &theirs, config.is_initiator)?;
            is_more.then(|| Search::new(plan, tactics, theirs, &config, now))
        });
        Self {
            endpoints: config.their_endpoints,
            search,
            hopeless,
            keys: ProbeKeys::new(&config.key, config.is_initiator),
            paths: Paths::new(config.is_initiator),
            rng: StdRng::seed_from_u64(seed),
            started: now,
            knock_at: now,
            met: None,
            outputs: VecDeque::new(),
        }
    }

    /// How many sockets are to be opened beside [`SocketId::MAPPED`].
    pub(super) fn sockets_wanted(&self) -> u16 {
        self.search.as_ref().map_or(0, |search| match (&search.sweep, search.tactics.sockets) {
            (Some(sweep), _) => sweep.rounds,
            (None, Sockets::Mapped | Sockets::MappedThenFresh) => 0,
            (None, Sockets::Fresh(count) | Sockets::Sampled(count)) => count,
        })
    }

    /// The sockets that were wanted, or as many as there are.
    pub(super) fn handle_opened(&mut self, sockets: Vec<SocketId>) {
        if let Some(search) = &mut self.search {
            search.sockets = sockets;
        }
    }

    /// Why there is no search, if so.
    pub(super) const fn hopeless(&self) -> Option<Hopeless> {
        self.hopeless
    }

    /// Where both have met.
    pub(super) const fn met(&self) -> Option<Met> {
        self.met
    }

    /// Takes a datagram. Returns whether it was a probe of the other side's.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Some(probe) = self.keys.open(bytes) else { return false };
        self.paths.handle(now, socket, from, &probe, &mut self.rng);
        self.collect();
        true
    }

    /// To be called once [`Meeting::poll_timeout`] has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.paths.handle_timeout(now, &mut self.rng);
        self.collect();
        if self.met.is_some() {
            return;
        }
        if self.knock_at <= now {
            self.knock(now);
        }
        if let Some(search) = &mut self.search {
            search.pump(now, &mut self.rng);
            let shots: Vec<_> = std::iter::from_fn(|| search.take(now)).collect();
            for shot in shots {
                self.shoot(now, shot);
            }
        }
    }

    /// When [`Meeting::handle_timeout`] is to be called next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let paths = self.paths.poll_timeout();
        if self.met.is_some() {
            return paths;
        }
        let search = self.search.as_ref().map(Search::due);
        paths.into_iter().chain(search).chain([self.knock_at]).min()
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outputs.pop_front()
    }

    /// Sends to all endpoints.
    fn knock(&mut self, now: Instant) {
        let is_opening = now < self.started + OPENING;
        for endpoint in self.endpoints.clone() {
            let ttl = (is_opening && endpoint.nat_restricted).then_some(OPENING_TTL);
            self.shoot(now, Shot { socket: SocketId::MAPPED, to: endpoint.addr, ttl });
        }
        self.knock_at = now + PAUSES[usize::from(!is_opening)];
    }

    fn shoot(&mut self, now: Instant, Shot { socket, to, ttl }: Shot) {
        let probe = self.paths.search(now, socket, to, &mut self.rng);
        let bytes = self.keys.seal(&probe);
        self.outputs.push_back(Transmit { socket, to, ttl, bytes });
    }

    fn collect(&mut self) {
        while let Some(output) = self.paths.poll_output() {
            match output {
                PathOutput::Transmit { socket, to, probe } => {
                    let bytes = self.keys.seal(&probe);
                    self.outputs.push_back(Transmit { socket, to, ttl: None, bytes });
                }
                PathOutput::Agreed { socket, remote, .. } => {
                    self.met = Some(Met { socket, remote });
                }
            }
        }
    }
}

impl Search {
    fn new(
        plan: Plan,
        tactics: Tactics,
        theirs: Behaviour,
        config: &MeetingConfig,
        now: Instant,
    ) -> Self {
        // Each endpoint is a mapping of its own, so those inside their network are left out.
        let external = config.their_endpoints.iter().map(|endpoint| endpoint.addr);
        let external = external.filter(|addr| addr.ip() == theirs.external).collect();
        let begin = match tactics.order {
            Order::TheirsFirst => now + AFTER_THEM,
            Order::OursFirst | Order::Together => now,
        };
        let sweep = match plan {
            Plan::Sweep { window, rounds } => {
                Some(Sweep { theirs, window, rounds, passes: 0, shots: Vec::new() })
            }
            _ => None,
        };
        Self {
            target: Target::new(&theirs, external),
            sweep,
            coordinator: Coordinator::new(tactics.order, config.is_initiator, Vec::new(), now),
            tactics,
            sockets: vec![SocketId::MAPPED],
            waiting: VecDeque::new(),
            next_at: begin,
            round_at: begin,
        }
    }

    /// Lays out the next round's probes.
    fn pump(&mut self, now: Instant, rng: &mut StdRng) {
        if self.round_at > now {
            return;
        }
        let Self { target, tactics, sockets, coordinator, sweep, .. } = self;
        if let Some(sweep) = sweep {
            self.waiting = sweep.next(tactics, sockets, coordinator, rng).into();
            self.round_at = now + PASS;
            return;
        }
        self.waiting = target.shots(tactics, sockets, coordinator, rng).into();
        if matches!(tactics.aim, Aim::Range { .. }) {
            self.round_at = now + ROUND;
        } else {
            // The same ports again: they stand for lost datagrams, and for a side that was late.
            self.round_at = now + PASS;
        }
    }

    fn take(&mut self, now: Instant) -> Option<Shot> {
        if self.next_at > now {
            return None;
        }
        let shot = self.waiting.pop_front()?;
        if self.waiting.len().is_multiple_of(BURST) {
            self.next_at = now + BURST_PAUSE;
        }
        Some(shot)
    }

    fn due(&self) -> Instant {
        match self.waiting.is_empty() {
            true => self.round_at,
            false => self.next_at.min(self.round_at),
        }
    }
}

impl Sweep {
    /// The next pass's probes; none once all rounds are over.
    fn next(
        &mut self,
        tactics: &Tactics,
        sockets: &[SocketId],
        coordinator: &Coordinator,
        rng: &mut StdRng,
    ) -> Vec<Shot> {
        let (round, is_again) = (self.passes / 2, self.passes % 2 == 1);
        let Some(socket) = sockets.get(usize::from(round)) else { return Vec::new() };
        self.passes += 1;
        if !is_again {
            let theirs = Behaviour { last_port: self.last_port(round), ..self.theirs };
            let mut target = Target::new(&theirs, Vec::new());
            self.shots = target.shots(tactics, &[*socket], coordinator, rng);
        }
        self.shots.clone()
    }

    /// The other side's last port before this round.
    fn last_port(&self, round: u16) -> u16 {
        let step = match self.theirs.ports {
            Some(Ports::Sequential { step }) => step,
            _ => 1,
        };
        let steps = step.wrapping_mul(self.window.wrapping_mul(round).cast_signed());
        self.theirs.last_port.wrapping_add_signed(steps)
    }
}
