//! How long a NAT keeps a mapping that is not used (RFC 5780 §4.6).
//!
//! One socket for each time of silence makes a mapping and keeps quiet for so long; then another socket
//! has the server write to that mapping. So each mapping is looked for once, and the whole takes as long as
//! the longest silence, or until the first mapping is gone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{ResponsePort, TransactionId};

use super::ask::{Ask, Due, Patience};
use super::binding::{self, Wish};
use super::report::Lifetime;
use crate::socket_id::SocketId;

/// The socket that asks for the others.
const ASKER: SocketId = SocketId(0);

/// What a [`LifetimeTest`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifetimeOutput {
    /// Open a UDP socket of the server's family on a port that nothing has used before.
    Open(SocketId),
    /// Send a datagram to the server.
    Transmit {
        /// From this socket.
        socket: SocketId,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// The end. `None` if the server does not answer to other ports (RFC 5780 §7.5), or not at all.
    Done(Option<Lifetime>),
}

/// Finds out how long mappings live.
#[derive(Debug)]
pub struct LifetimeTest {
    server: SocketAddr,
    mappings: Vec<Mapping>,
    asks: Vec<Ask<usize>>,
    patience: Patience,
    is_finished: bool,
    rng: StdRng,
    outputs: VecDeque<LifetimeOutput>,
}

/// A socket that keeps quiet.
#[derive(Debug)]
struct Mapping {
    socket: SocketId,
    silence: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asks where it comes from.
    Making,
    /// Silent until then.
    Quiet {
        port: u16,
        until: Instant,
    },
    /// The server has been asked to write to it.
    Sought,
    Alive,
    Gone,
}

impl LifetimeTest {
    /// Begins at once: drain [`LifetimeTest::poll_output`], and open the sockets, of which
    /// [`LifetimeTest::handle_opened`] is to be told. The server has to be one of
    /// [`super::FamilyReport::discovery`].
    pub fn new(server: SocketAddr, silences: &[Duration], seed: u64) -> Self {
        // A mapping that was just made has to be found, else nothing that is not found tells anything.
        let mut silences: Vec<_> = [Duration::ZERO].iter().chain(silences).copied().collect();
        silences.sort_unstable();
        silences.dedup();
        let mappings = (1..).zip(silences).map(|(number, silence)| Mapping {
            socket: SocketId(number),
            silence,
            state: State::Making,
        });
        let mappings: Vec<_> = mappings.collect();
        let sockets = [ASKER].into_iter().chain(mappings.iter().map(|each| each.socket));
        Self {
            server,
            outputs: sockets.map(LifetimeOutput::Open).collect(),
            mappings,
            asks: Vec::new(),
            patience: Patience::UNKNOWN,
            is_finished: false,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// A socket is open, or cannot be opened.
    pub fn handle_opened(&mut self, now: Instant, socket: SocketId, is_open: bool) {
        if !is_open {
            self.finish(None);
        } else if let Some(number) = self.mappings.iter().position(|each| each.socket == socket) {
            self.ask(now, socket, number, Wish::default());
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
        let Some(answer) = binding::read(bytes).filter(|_| from == self.server) else { return };
        let position = self.asks.iter().position(|ask| ask.transaction == answer.transaction);
        let Some(ask) = position.map(|position| self.asks.swap_remove(position)) else { return };
        let mapping = &mut self.mappings[ask.purpose];
        match (mapping.state, answer.seen) {
            (State::Making, Some(seen)) if socket == mapping.socket => {
                self.patience = Patience::of(now.saturating_duration_since(ask.first));
                let until = now + mapping.silence;
                mapping.state = State::Quiet { port: seen.port(), until };
            }
            (State::Sought, Some(_)) if socket == mapping.socket => mapping.state = State::Alive,
            // The server refuses, or writes back to who asked.
            (State::Sought, _) => self.finish(None),
            (State::Making | State::Quiet { .. } | State::Alive | State::Gone, _) => {}
        }
        self.settle(now);
    }

    /// To be called once [`LifetimeTest::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// When [`LifetimeTest::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_finished {
            return None;
        }
        let quiet = self.mappings.iter().filter_map(|mapping| match mapping.state {
            State::Quiet { until, .. } => Some(until),
            State::Making | State::Sought | State::Alive | State::Gone => None,
        });
        quiet.chain(self.asks.iter().map(|ask| ask.poll_timeout(self.patience))).min()
    }

    /// The next thing to be done; to be drained after every other call.
    pub fn poll_output(&mut self) -> Option<LifetimeOutput> {
        self.outputs.pop_front()
    }

    fn settle(&mut self, now: Instant) {
        if self.is_finished {
            return;
        }
        self.seek(now);
        self.pump(now);
        self.conclude();
    }

    /// Has the server write to the mappings whose time has come.
    fn seek(&mut self, now: Instant) {
        for number in 0..self.mappings.len() {
            let State::Quiet { port, until } = self.mappings[number].state else { continue };
            if until <= now {
                self.mappings[number].state = State::Sought;
                let wish = Wish { change: None, port: Some(ResponsePort(port)) };
                self.ask(now, ASKER, number, wish);
            }
        }
    }

    fn pump(&mut self, now: Instant) {
        let Self { asks, outputs, mappings, patience, .. } = self;
        asks.retain_mut(|ask| match ask.poll(now, *patience) {
            Due::Nothing => true,
            Due::Send(bytes) => {
                outputs.push_back(LifetimeOutput::Transmit { socket: ask.socket, bytes });
                true
            }
            Due::GiveUp => {
                mappings[ask.purpose].state = State::Gone;
                false
            }
        });
    }

    /// Ends it as soon as more would tell nothing more.
    fn conclude(&mut self) {
        let Some(gone) = self.mappings.iter().position(|each| each.state != State::Alive) else {
            let at_least = self.mappings.last().map_or(Duration::ZERO, |each| each.silence);
            return self.finish(Some(Lifetime { at_least, less_than: None }));
        };
        if self.mappings[gone].state != State::Gone {
            return;
        }
        let before = gone.checked_sub(1).and_then(|alive| self.mappings.get(alive));
        self.finish(before.map(|alive| Lifetime {
            at_least: alive.silence,
            less_than: Some(self.mappings[gone].silence),
        }));
    }

    fn finish(&mut self, lifetime: Option<Lifetime>) {
        if !self.is_finished {
            self.is_finished = true;
            self.outputs.push_back(LifetimeOutput::Done(lifetime));
        }
    }

    fn ask(&mut self, now: Instant, socket: SocketId, mapping: usize, wish: Wish) {
        let transaction = TransactionId(self.rng.random());
        let message = (transaction, binding::request(transaction, wish));
        self.asks.push(Ask::new(socket, self.server, message, mapping, now));
    }
}
