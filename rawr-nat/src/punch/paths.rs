//! Paths that something has come by: proof that they work both ways, and the choice of one.
//!
//! Whoever hears a probe answers with its nonce, and asks in turn until its own nonce has come
//! back. The initiator picks the first path that is proven, and says so until the other side
//! agrees.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use crate::punch::probe::Probe;
use crate::socket_id::SocketId;

/// Pause before a path is probed again.
const RETRY: Duration = Duration::from_millis(100);
/// Probes in vain after which a path is given up.
const TRIES: u8 = 20;
/// Paths at most: more have only been seen where somebody plays datagrams back.
const MAX_PATHS: usize = 64;

/// The paths of one hole punching.
#[derive(Debug)]
pub(crate) struct Paths {
    is_initiator: bool,
    paths: Vec<Path>,
    /// Probes that may still be answered.
    sent: HashMap<u64, Sent>,
    /// How often the initiator has picked a path.
    choice: u8,
    /// The picked path, by its place in `paths`.
    picked: Option<usize>,
    /// The one that was announced.
    announced: Option<usize>,
    outputs: VecDeque<PathOutput>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathOutput {
    Transmit { socket: SocketId, to: SocketAddr, probe: Probe },
    Agreed { socket: SocketId, remote: SocketAddr, rtt: Duration },
}

#[derive(Debug)]
struct Path {
    socket: SocketId,
    remote: SocketAddr,
    /// The last nonce that came.
    heard: u64,
    /// A probe of ours has come back: it works both ways.
    rtt: Option<Duration>,
    retry_at: Option<Instant>,
    tries: u8,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    socket: SocketId,
    to: SocketAddr,
    at: Instant,
}

impl Paths {
    pub(crate) fn new(is_initiator: bool) -> Self {
        Self {
            is_initiator,
            paths: Vec::new(),
            sent: HashMap::new(),
            choice: 0,
            picked: None,
            announced: None,
            outputs: VecDeque::new(),
        }
    }

    /// A probe in search of a path.
    pub(crate) fn search(
        &mut self,
        now: Instant,
        socket: SocketId,
        to: SocketAddr,
        rng: &mut StdRng,
    ) -> Probe {
        let nonce = self.remember(now, socket, to, rng);
        Probe { nonce, echo: None, wants: true, picks: false, agrees: false, choice: self.choice }
    }

    /// Takes the other side's probe.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        probe: &Probe,
        rng: &mut StdRng,
    ) {
        let Some(at) = self.find(now, socket, from) else { return };
        self.paths[at].heard = probe.nonce;
        if let Some(rtt) = probe.echo.and_then(|echo| self.answered(now, socket, from, echo)) {
            let path = &mut self.paths[at];
            path.rtt = Some(path.rtt.map_or(rtt, |known| known.min(rtt)));
        }
        if self.is_initiator {
            self.pick(now);
        } else if probe.picks && probe.choice >= self.choice {
            (self.choice, self.picked) = (probe.choice, Some(at));
        }
        let agrees = self.is_initiator && probe.agrees && probe.choice == self.choice;
        if (agrees || !self.is_initiator) && self.picked == Some(at) {
            self.announce(at);
        }
        if probe.wants || probe.picks {
            self.send(now, at, rng);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, rng: &mut StdRng) {
        for at in 0..self.paths.len() {
            if self.paths[at].retry_at.take_if(|time| *time <= now).is_none() {
                continue;
            }
            if self.paths[at].tries < TRIES {
                self.send(now, at, rng);
            } else {
                self.lose(now, at);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.paths.iter().filter_map(|path| path.retry_at).min()
    }

    pub(crate) fn poll_output(&mut self) -> Option<PathOutput> {
        self.outputs.pop_front()
    }

    /// Whether some path may still turn out to work.
    pub(crate) fn has_hope(&self) -> bool {
        self.paths.iter().any(|path| path.retry_at.is_some())
            || self.paths.iter().any(|path| path.rtt.is_some() && path.tries < TRIES)
    }

    /// Whether something has come by this socket.
    pub(crate) fn uses(&self, socket: SocketId) -> bool {
        self.paths.iter().any(|path| path.socket == socket)
    }

    /// The place of a path, which may be new.
    fn find(&mut self, now: Instant, socket: SocketId, remote: SocketAddr) -> Option<usize> {
        let is_it = |path: &Path| path.socket == socket && path.remote == remote;
        if let Some(at) = self.paths.iter().position(is_it) {
            return Some(at);
        }
        if self.paths.len() == MAX_PATHS {
            return None;
        }
        let retry_at = Some(now + RETRY);
        self.paths.push(Path { socket, remote, heard: 0, rtt: None, retry_at, tries: 0 });
        Some(self.paths.len() - 1)
    }

    /// The round-trip time, if the probe with this nonce went where its answer came from.
    fn answered(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        nonce: u64,
    ) -> Option<Duration> {
        let sent = self.sent.get(&nonce).filter(|sent| sent.socket == socket && sent.to == from)?;
        Some(now.saturating_duration_since(sent.at))
    }

    /// Picks the first proven path where none is picked.
    fn pick(&mut self, now: Instant) {
        if self.picked.is_some() {
            return;
        }
        let is_fit = |path: &Path| path.rtt.is_some() && path.tries < TRIES;
        let Some(at) = self.paths.iter().position(is_fit) else { return };
        self.choice = self.choice.saturating_add(1);
        self.picked = Some(at);
        let path = &mut self.paths[at];
        (path.tries, path.retry_at) = (0, Some(now));
    }

    fn announce(&mut self, at: usize) {
        let path = &self.paths[at];
        let (socket, remote) = (path.socket, path.remote);
        let Some(rtt) = path.rtt else { return };
        if self.announced == Some(at) {
            return;
        }
        self.announced = Some(at);
        for path in &mut self.paths {
            path.retry_at = None;
        }
        self.outputs.push_back(PathOutput::Agreed { socket, remote, rtt });
    }

    /// The path has not answered for long.
    fn lose(&mut self, now: Instant, at: usize) {
        if self.is_initiator && self.picked == Some(at) {
            self.picked = None;
            self.pick(now);
        }
    }

    /// Answers what came last by a path, and says what is to be said there.
    fn send(&mut self, now: Instant, at: usize, rng: &mut StdRng) {
        let (socket, remote) = (self.paths[at].socket, self.paths[at].remote);
        let nonce = self.remember(now, socket, remote, rng);
        let is_picked = self.picked == Some(at);
        let is_settled = self.announced == Some(at);
        let path = &mut self.paths[at];
        let wants = path.rtt.is_none();
        let picks = self.is_initiator && is_picked;
        let agrees = !self.is_initiator && is_picked;
        let needs_more = wants || (picks && !is_settled);
        path.retry_at = needs_more.then_some(now + RETRY);
        path.tries = path.tries.saturating_add(u8::from(needs_more));
        let echo = Some(path.heard);
        let probe = Probe { nonce, echo, wants, picks, agrees, choice: self.choice };
        self.outputs.push_back(PathOutput::Transmit { socket, to: remote, probe });
    }

    fn remember(
        &mut self,
        now: Instant,
        socket: SocketId,
        to: SocketAddr,
        rng: &mut StdRng,
    ) -> u64 {
        // Zero means none.
        let nonce = rng.random_range(1..=u64::MAX);
        self.sent.insert(nonce, Sent { socket, to, at: now });
        nonce
    }
}
