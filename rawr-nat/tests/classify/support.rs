//! A classifier, or a test of lifetimes, in a simulated network.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::classify::{
    Classifier, ClassifyConfig, ClassifyOutput, FamilyReport, Lifetime, LifetimeOutput,
    LifetimeTest, Report, StreamId,
};

use crate::net::{Arrival, Net};

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: Report,
    /// Of the family that the network has.
    pub(crate) family: FamilyReport,
    pub(crate) took: Duration,
    pub(crate) datagrams: u32,
}

/// Classifies a network by its one server with two addresses.
pub(crate) fn classify(net: Net, seed: u64) -> Outcome {
    let servers = vec![net.server()];
    classify_by(net, servers, seed)
}

/// Classifies a network by these servers.
pub(crate) fn classify_by(net: Net, servers: Vec<SocketAddr>, seed: u64) -> Outcome {
    classify_with(net, ClassifyConfig::new(servers), seed)
}

/// Classifies a network from its host's address.
pub(crate) fn classify_with(mut net: Net, mut config: ClassifyConfig, seed: u64) -> Outcome {
    config.local = vec![net.own];
    let start = start();
    let mut machine = Classifier::new(&config, seed, start);
    let mut ports = Ports::new(seed);
    let mut now = start;
    loop {
        while let Some(output) = machine.poll_output() {
            match output {
                ClassifyOutput::Open { socket, .. } => {
                    let local = SocketAddr::new(net.own, ports.of(socket.0));
                    machine.handle_opened(now, socket, Some(local));
                }
                ClassifyOutput::Transmit { socket, to, ttl, bytes } => {
                    let local = SocketAddr::new(net.own, ports.of(socket.0));
                    net.send(now, (socket, local), to, ttl, &bytes);
                }
                ClassifyOutput::Connect { stream, port, to, bytes } => {
                    let local = SocketAddr::new(net.own, ports.of(10_000 + port));
                    net.connect(now, stream.0, local, to, &bytes);
                }
                ClassifyOutput::Report(report) => {
                    let took = now - start;
                    assert_eq!(report.elapsed, took);
                    let family = report.ipv4.clone().or_else(|| report.ipv6.clone()).unwrap();
                    assert_eq!(machine.poll_timeout(), None);
                    return Outcome { report: *report, family, took, datagrams: net.datagrams };
                }
            }
        }
        let due = machine.poll_timeout().unwrap();
        assert!(due >= now, "a timeout in the past");
        now = due.min(net.next_arrival().unwrap_or(due));
        while let Some(arrival) = net.arrival(now) {
            match arrival {
                Arrival::Datagram { socket, from, bytes } => {
                    machine.handle_datagram(now, socket, from, &bytes);
                }
                Arrival::Stream { stream, answer } => {
                    let answer = answer.as_ref().map(|(local, bytes)| (*local, bytes.as_slice()));
                    machine.handle_stream(now, StreamId(stream), answer);
                }
                Arrival::Router { socket, router } => machine.handle_router(now, socket, router),
            }
        }
        if due <= now {
            machine.handle_timeout(now);
        }
    }
}

/// Looks for mappings after these silences. Returns what was found and what it took.
pub(crate) fn lifetime(mut net: Net, silences: &[Duration]) -> (Option<Lifetime>, Duration) {
    let start = start();
    let mut machine = LifetimeTest::new(net.server(), silences, 7);
    let mut ports = Ports::new(7);
    let mut now = start;
    loop {
        while let Some(output) = machine.poll_output() {
            match output {
                LifetimeOutput::Open(socket) => machine.handle_opened(now, socket, true),
                LifetimeOutput::Transmit { socket, bytes } => {
                    let local = SocketAddr::new(net.own, ports.of(socket.0));
                    let server = net.server();
                    net.send(now, (socket, local), server, None, &bytes);
                }
                LifetimeOutput::Done(lifetime) => return (lifetime, now - start),
            }
        }
        let due = machine.poll_timeout().unwrap();
        now = due.min(net.next_arrival().unwrap_or(due));
        while let Some(arrival) = net.arrival(now) {
            if let Arrival::Datagram { socket, from, bytes } = arrival {
                machine.handle_datagram(now, socket, from, &bytes);
            }
        }
        if due <= now {
            machine.handle_timeout(now);
        }
    }
}

/// Random local ports, all different.
struct Ports {
    rng: StdRng,
    given: HashMap<u32, u16>,
}

impl Ports {
    fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed ^ 0x5eed), given: HashMap::new() }
    }

    fn of(&mut self, number: u32) -> u16 {
        if let Some(port) = self.given.get(&number) {
            return *port;
        }
        loop {
            let port = self.rng.random_range(32_768..61_000);
            if !self.given.values().any(|given| *given == port) {
                self.given.insert(number, port);
                return port;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
fn start() -> Instant {
    Instant::now()
}
