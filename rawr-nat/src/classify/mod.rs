//! What the NATs and firewalls before a host do, in the terms of RFC 4787.
//!
//! [`Classifier`] asks STUN servers, of which one with two addresses (RFC 5780) tells most, and reports
//! mapping, filtering, the pattern of ports and hairpinning for each family, mapping and ports for TCP,
//! too. It asks everything at once: a report takes as long as silence takes to mean something, which is
//! 0.8 s next to the servers, and 5 s at most. [`LifetimeTest`] finds out how long a NAT remembers.
//!
//! Verdicts are majorities: one odd answer, or one server that is wrong, changes none.

mod ask;
mod binding;
mod config;
#[cfg(feature = "tokio")]
mod driver;
mod family;
mod filter;
mod judge;
mod lifetime;
mod place;
mod ports;
mod report;
#[cfg(feature = "tokio")]
mod routers;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use self::config::{ClassifyConfig, TIME_LIMIT};
#[cfg(feature = "tokio")]
pub use self::driver::run;
use self::family::{Family, IDS};
pub use self::lifetime::{LifetimeOutput, LifetimeTest};
pub use self::report::{Evidence, FamilyReport, Lifetime, Report};
use crate::socket_id::SocketId;

/// A TCP connection of a classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// What a [`Classifier`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassifyOutput {
    /// Open a UDP socket on a port that nothing has used before, and call
    /// [`Classifier::handle_opened`].
    Open {
        /// The name it goes by.
        socket: SocketId,
        /// Of which family.
        is_ipv6: bool,
    },
    /// Send a datagram.
    Transmit {
        /// From this socket.
        socket: SocketId,
        /// To this server, or to an external endpoint of our own.
        to: SocketAddr,
        /// How many hops it may live; the host's default where nothing is said.
        ttl: Option<u8>,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Connect over TCP, send `bytes`, and hand one STUN message that comes back to
    /// [`Classifier::handle_stream`]. All streams with the same `port` and family share a local port, which
    /// nothing has used before.
    Connect {
        /// The name it goes by.
        stream: StreamId,
        /// Which of the local ports.
        port: u32,
        /// The server.
        to: SocketAddr,
        /// The request.
        bytes: Vec<u8>,
    },
    /// The end: nothing is wanted any more.
    Report(Box<Report>),
}

/// Finds out how NATs behave.
#[derive(Debug)]
pub struct Classifier {
    families: Vec<Family>,
    started: Instant,
    deadline: Instant,
    is_finished: bool,
    outputs: VecDeque<ClassifyOutput>,
}

impl Classifier {
    /// Begins at once: drain [`Classifier::poll_output`].
    pub fn new(config: &ClassifyConfig, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let families = [false, true].into_iter().filter_map(|is_ipv6| {
            let rng = StdRng::from_seed(rng.random());
            Family::new(config, is_ipv6, rng, now)
        });
        let mut classifier = Self {
            families: families.collect(),
            started: now,
            deadline: now + config.timeout,
            is_finished: false,
            outputs: VecDeque::new(),
        };
        classifier.settle(now);
        classifier
    }

    /// A socket is open: `local` is its own address and port, as it would be seen without NAT. `None` if
    /// it cannot be opened.
    pub fn handle_opened(&mut self, now: Instant, socket: SocketId, local: Option<SocketAddr>) {
        if let Some(family) = self.family(socket.0) {
            family.handle_opened(now, socket, local);
        }
        self.settle(now);
    }

    /// A datagram has come.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) {
        if let Some(family) = self.family(socket.0) {
            family.handle_datagram(now, socket, from, bytes);
        }
        self.settle(now);
    }

    /// A router has told (ICMP Time Exceeded) that a datagram from `socket` has lived for too few hops.
    pub fn handle_router(&mut self, now: Instant, socket: SocketId, router: IpAddr) {
        if let Some(family) = self.family(socket.0) {
            family.handle_router(socket, router);
        }
        self.settle(now);
    }

    /// A stream has brought a STUN message, to this local address; `None` if it could not connect, or ended.
    pub fn handle_stream(
        &mut self,
        now: Instant,
        stream: StreamId,
        answer: Option<(SocketAddr, &[u8])>,
    ) {
        for family in &mut self.families {
            family.handle_stream(now, stream, answer);
        }
        self.settle(now);
    }

    /// To be called once [`Classifier::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// When [`Classifier::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_finished {
            return None;
        }
        self.families.iter().filter_map(Family::poll_timeout).chain([self.deadline]).min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<ClassifyOutput> {
        self.outputs.pop_front()
    }

    fn family(&mut self, id: u32) -> Option<&mut Family> {
        self.families.iter_mut().find(|family| family.is_ipv6() == (id >= IDS))
    }

    fn settle(&mut self, now: Instant) {
        if self.is_finished {
            return;
        }
        for family in &mut self.families {
            family.pump(now);
            self.outputs.extend(std::iter::from_fn(|| family.poll_output()));
        }
        if now >= self.deadline || self.families.iter().all(Family::is_done) {
            self.is_finished = true;
            let report = |is_ipv6| {
                let mut families = self.families.iter();
                families.find(|family| family.is_ipv6() == is_ipv6).map(Family::report)
            };
            self.outputs.push_back(ClassifyOutput::Report(Box::new(Report {
                ipv4: report(false),
                ipv6: report(true),
                nat64: None,
                elapsed: now.saturating_duration_since(self.started),
            })));
        }
    }
}
