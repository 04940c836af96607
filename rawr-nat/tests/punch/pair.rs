//! Two sides that punch, over the simulated network, with a relay for their messages.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::SocketId;
use rawr_nat::punch::{PunchConfig, PunchOutput, Reason, Tuning, UdpPunch};
use rawr_sim::{Arrival, HostId, Link, NatConfig, Network};

use crate::kinds::{Kind, MILLISECOND};

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) kinds: [Kind; 2],
    pub(crate) link: Link,
    /// Delay of a message by the relay, one way.
    pub(crate) relay: Duration,
    /// The chance of a message to be lost.
    pub(crate) relay_loss: f64,
    pub(crate) budget: u32,
    pub(crate) tuning: Tuning,
    /// Both behind one more router, which hairpins or does not.
    pub(crate) carrier: Option<bool>,
    /// Routers let no UDP out, though the classification says otherwise.
    pub(crate) is_blocked: bool,
    /// How much later the second side starts.
    pub(crate) stagger: Duration,
}

impl Scenario {
    pub(crate) fn new(a: Kind, b: Kind) -> Self {
        Self {
            kinds: [a, b],
            link: Link::default(),
            relay: 30 * MILLISECOND,
            relay_loss: 0.0,
            budget: 2048,
            tuning: Tuning::default(),
            carrier: None,
            is_blocked: false,
            stagger: Duration::ZERO,
        }
    }
}

/// What has come of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Each side's path, or why there is none.
    pub(crate) ends: [Result<End, Reason>; 2],
    /// Datagrams go both ways by the path that the two sides have named.
    pub(crate) works: bool,
    /// Probes.
    pub(crate) spent: [u32; 2],
    /// Datagrams of all kinds, but for those to the STUN server.
    pub(crate) sent: u64,
    /// Sockets that were opened and not closed, but for the one in use.
    pub(crate) leaked: usize,
    pub(crate) took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) rtt: Duration,
}

impl Outcome {
    pub(crate) const fn is_direct(&self) -> bool {
        self.ends[0].is_ok() && self.ends[1].is_ok() && self.works
    }
}

/// Runs a scenario to its end.
pub(crate) fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let mut pair = Pair::new(scenario, seed);
    let start = pair.network.now();
    while pair.sides.iter().any(|side| side.end.is_none()) && pair.advance() {}
    let took = pair.network.now() - start;
    // The last datagrams of the agreement are still under way.
    let until = pair.network.now() + Duration::from_secs(3);
    while pair.network.now() < until && pair.advance() {}
    pair.finish(took)
}

struct Pair {
    network: Network,
    /// Where the simulation's time begins.
    epoch: Instant,
    server: SocketAddr,
    sides: Vec<Side>,
    relay: BinaryHeap<Reverse<Relayed>>,
    relay_delay: Duration,
    relay_loss: f64,
    messages: u64,
    /// Steps since the time last went on.
    idle: u32,
    asked: u64,
    rng: StdRng,
}

/// A message under way: when it arrives, its number, to whom.
type Relayed = (Duration, u64, usize, Vec<u8>);

#[derive(Debug)]
struct Side {
    host: HostId,
    punch: UdpPunch,
    starts_at: Duration,
    sockets: HashMap<SocketId, SocketAddr>,
    next_socket: u32,
    end: Option<Result<(SocketId, SocketAddr, Duration), Reason>>,
}

impl Pair {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // What comes before must not fail: the classification has come to its end.
        let lossless = Link { loss: 0.0, ..scenario.link };
        let mut network = Network::new(lossless, rng.random());
        let server = network.add_host(None);
        let server = network.bind(server);
        let carrier = scenario.carrier.map(|hairpins| {
            let filtering = rawr_sim::Filtering::EndpointIndependent;
            network.add_nat(NatConfig { hairpins, filtering, ..NatConfig::home() }, None)
        });
        let hosts = scenario.kinds.map(|kind| {
            let mut zone = carrier;
            for nat in kind.nats().into_iter().rev() {
                zone = Some(network.add_nat(nat, zone));
            }
            let host = network.add_host(zone);
            (host, network.bind(host))
        });
        let externals = hosts.map(|(_, local)| external(&mut network, local, server));
        let epoch = epoch();
        let now = network.now();
        let sides = (0..2)
            .map(|i| {
                let behaviour =
                    |i: usize| scenario.kinds[i].behaviour(externals[i], scenario.carrier);
                let config = PunchConfig {
                    key: [7; 32],
                    is_initiator: i == 0,
                    ours: behaviour(i),
                    theirs: behaviour(1 - i),
                    our_external: vec![externals[i]],
                    their_endpoints: vec![externals[1 - i]],
                    budget: scenario.budget,
                    tuning: scenario.tuning,
                };
                let starts_at = now + if i == 0 { Duration::ZERO } else { scenario.stagger };
                Side {
                    host: hosts[i].0,
                    punch: UdpPunch::new(config, rng.random(), epoch + starts_at),
                    starts_at,
                    sockets: HashMap::from([(SocketId::MAPPED, hosts[i].1)]),
                    next_socket: 1,
                    end: None,
                }
            })
            .collect();
        network.set_link(if scenario.is_blocked { unplugged() } else { scenario.link });
        let asked = network.sent();
        Self {
            network,
            epoch,
            server,
            sides,
            relay: BinaryHeap::new(),
            relay_delay: scenario.relay,
            relay_loss: scenario.relay_loss,
            messages: 0,
            idle: 0,
            asked,
            rng,
        }
    }

    /// Goes on to what happens next. Returns whether something will.
    fn advance(&mut self) -> bool {
        for i in 0..2 {
            self.drain(i);
        }
        let timers = (0..2).filter_map(|i| {
            let side = &self.sides[i];
            let at = side.punch.poll_timeout()?.saturating_duration_since(self.epoch);
            Some(at.max(side.starts_at))
        });
        let relayed = self.relay.peek().map(|Reverse((at, ..))| *at);
        let next = timers.chain(relayed).chain(self.network.next_at()).min();
        let Some(next) = next else { return false };
        self.idle = if next > self.network.now() { 0 } else { self.idle + 1 };
        assert!(self.idle < 10_000, "a timer is not served: {:?}", self.sides);
        if let Some(arrival) = self.network.step(next) {
            self.arrive(arrival);
            return true;
        }
        while self.relay.peek().is_some_and(|Reverse((at, ..))| *at <= next) {
            let Some(Reverse((_, _, to, bytes))) = self.relay.pop() else { break };
            if self.sides[to].starts_at <= next {
                self.sides[to].punch.handle_message(self.epoch + next, &bytes);
                self.drain(to);
            }
        }
        for i in 0..2 {
            let now = self.epoch + next;
            if self.sides[i].starts_at <= next
                && self.sides[i].punch.poll_timeout().is_some_and(|at| at <= now)
            {
                self.sides[i].punch.handle_timeout(now);
            }
        }
        true
    }

    fn arrive(&mut self, Arrival { at, local, from, bytes }: Arrival) {
        if local == self.server {
            self.asked += 1;
            return self.network.send(local, from, None, from.to_string().into_bytes());
        }
        let now = self.epoch + at;
        for side in &mut self.sides {
            let Some(socket) = side.named(local) else { continue };
            if from == self.server {
                self.asked += 1;
                let external = String::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
                let external = external.expect("the server tells an address");
                side.punch.handle_sample(now, socket, external);
            } else {
                assert!(side.punch.handle_datagram(now, socket, from, &bytes), "a probe is taken");
            }
            return;
        }
    }

    fn drain(&mut self, i: usize) {
        let now = self.network.now();
        if now < self.sides[i].starts_at {
            return;
        }
        while let Some(output) = self.sides[i].punch.poll_output() {
            let side = &mut self.sides[i];
            match output {
                PunchOutput::Open { count } => {
                    let opened = (0..count).map(|_| side.open(&mut self.network)).collect();
                    side.punch.handle_opened(self.epoch + now, opened);
                }
                PunchOutput::Transmit { socket, to, ttl, bytes } => {
                    let local = side.sockets[&socket];
                    self.network.send(local, to, ttl, bytes);
                }
                PunchOutput::Close(socket) => {
                    assert_ne!(socket, SocketId::MAPPED, "the mapped socket is not ours to close");
                    let local = side.sockets.remove(&socket).expect("an open socket is closed");
                    self.network.close(local);
                }
                PunchOutput::Message(bytes) => self.post(now, i, bytes),
                PunchOutput::Learn { socket } => {
                    let local = side.sockets[&socket];
                    self.network.send(local, self.server, None, b"?".to_vec());
                }
                PunchOutput::Punched { socket, remote, rtt } => {
                    side.end = Some(Ok((socket, remote, rtt)));
                }
                PunchOutput::Failed(reason) => side.end = Some(Err(reason)),
            }
        }
    }

    fn post(&mut self, now: Duration, from: usize, bytes: Vec<u8>) {
        if self.rng.random_bool(self.relay_loss) {
            return;
        }
        self.messages += 1;
        let jitter = self.relay_delay.mul_f64(self.rng.random::<f64>() * 0.2);
        let at = now + self.relay_delay + jitter;
        self.relay.push(Reverse((at, self.messages, 1 - from, bytes)));
    }

    /// Sends data both ways by what the two sides have named.
    fn finish(mut self, took: Duration) -> Outcome {
        let sent = self.network.sent() - self.asked;
        let ends = [0, 1].map(|i| {
            let (socket, remote, rtt) = self.sides[i].end.unwrap_or(Err(Reason::Silent))?;
            Ok(End { local: self.sides[i].sockets[&socket], remote, rtt })
        });
        self.network.set_link(Link::default());
        let works = match ends {
            [Ok(a), Ok(b)] => self.goes(a, b) && self.goes(b, a),
            _ => false,
        };
        let leaked = |side: &Side| {
            let is_kept = |id: &&SocketId| {
                **id == SocketId::MAPPED
                    || matches!(side.end, Some(Ok((socket, ..))) if socket == **id)
            };
            side.sockets.len() - side.sockets.keys().filter(is_kept).count()
        };
        let leaked = self.sides.iter().map(leaked).sum();
        let spent = [0, 1].map(|i| self.sides[i].punch.probes_spent());
        Outcome { ends, works, spent, sent, leaked, took }
    }

    fn goes(&mut self, from: End, to: End) -> bool {
        self.network.send(from.local, from.remote, None, b"data".to_vec());
        let until = self.network.now() + Duration::from_secs(1);
        while let Some(arrival) = self.network.step(until) {
            if arrival.bytes == b"data" {
                return arrival.local == to.local && arrival.from == to.remote;
            }
        }
        false
    }
}

impl Side {
    fn open(&mut self, network: &mut Network) -> SocketId {
        let id = SocketId(self.next_socket);
        self.next_socket += 1;
        self.sockets.insert(id, network.bind(self.host));
        id
    }

    fn named(&self, local: SocketAddr) -> Option<SocketId> {
        let mut names = self.sockets.iter().filter(|(_, address)| **address == local);
        names.next().map(|(id, _)| *id)
    }
}

/// The external endpoint of a socket, as the server sees it.
fn external(network: &mut Network, local: SocketAddr, server: SocketAddr) -> SocketAddr {
    network.send(local, server, None, b"?".to_vec());
    let until = network.now() + Duration::from_secs(1);
    network.step(until).expect("the server is reached").from
}

fn unplugged() -> Link {
    Link { loss: 1.0, ..Link::default() }
}

/// Any point in time will do: only differences matter.
#[expect(clippy::disallowed_methods, reason = "there is no other way to make an instant")]
fn epoch() -> Instant {
    Instant::now()
}
