//! The threads that receive and forward.

use std::array;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, UdpSocketState};
use slab::Slab;
use tokio::sync::mpsc;

use super::super::Counters;
use super::batch::Sender;
use super::path_error::{self, PathError};
use super::port::{Port, Route, is_of_the_path};
use super::{SlowPathError, Tally, Unclaimed, lock, port};
use crate::io::clock::monotonic;

/// Bytes of one receive buffer: the largest datagram, or batch of datagrams that the stack joins.
const BUFFER: usize = 1 << 16;
/// Batches that one port may receive before the others have their turn.
const TURN: usize = 4;
const WAKE: Token = Token(usize::MAX);

/// What a worker and the handle share.
#[derive(Debug)]
pub(super) struct Workplace {
    registry: Registry,
    waker: Waker,
    ports: Mutex<Slab<Arc<Port>>>,
    dissolved: AtomicBool,
}

impl Workplace {
    /// From now on the worker reads from `port`.
    pub(super) fn admit(&self, port: &Arc<Port>) -> io::Result<()> {
        let mut ports = lock(&self.ports);
        let token = ports.insert(port.clone());
        port.token.store(token, Ordering::Relaxed);
        let fd = port.socket.as_raw_fd();
        let result = self.registry.register(&mut SourceFd(&fd), Token(token), Interest::READABLE);
        if result.is_err() {
            ports.remove(token);
        }
        result
    }

    /// From now on the worker does not read from `port`.
    pub(super) fn dismiss(&self, port: &Port) {
        if let Err(error) = self.registry.deregister(&mut SourceFd(&port.socket.as_raw_fd())) {
            log::warn!("cannot stop waiting for {}: {error}", port.local);
        }
        lock(&self.ports).try_remove(port.token.load(Ordering::Relaxed));
    }

    /// Ends the worker.
    pub(super) fn dissolve(&self) {
        self.dissolved.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            log::warn!("cannot end a thread of the userspace data path: {error}");
        }
    }
}

/// Starts a worker thread.
pub(super) fn start(
    number: usize,
    to_control: ToControl,
    tally: Arc<Tally>,
) -> Result<(Arc<Workplace>, JoinHandle<()>), SlowPathError> {
    let failed = |what| move |source| SlowPathError::Start { what, source };
    let poll = Poll::new().map_err(failed("epoll"))?;
    let registry = poll.registry().try_clone().map_err(failed("epoll"))?;
    let waker = Waker::new(poll.registry(), WAKE).map_err(failed("eventfd"))?;
    let workplace = Arc::new(Workplace {
        registry,
        waker,
        ports: Mutex::new(Slab::new()),
        dissolved: AtomicBool::new(false),
    });
    let worker = Worker {
        workplace: workplace.clone(),
        poll,
        receiver: Receiver::new().map_err(failed("UDP socket"))?,
        sender: Sender::new().map_err(failed("UDP socket"))?,
        to_control,
        tally,
    };
    let thread = thread::Builder::new()
        .name(format!("rawr-slow-{number}"))
        .spawn(move || worker.run())
        .map_err(failed("thread"))?;
    Ok((workplace, thread))
}

/// Where what does not concern a flow goes.
#[derive(Clone)]
pub(super) struct ToControl {
    pub(super) unclaimed: mpsc::Sender<Unclaimed>,
    pub(super) errors: mpsc::Sender<PathError>,
}

struct Worker {
    workplace: Arc<Workplace>,
    poll: Poll,
    receiver: Receiver,
    sender: Sender,
    to_control: ToControl,
    tally: Arc<Tally>,
}

impl Worker {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        // Ports that may hold more: epoll tells only of what arrives anew.
        let mut ready: VecDeque<Arc<Port>> = VecDeque::new();
        while !self.workplace.dissolved.load(Ordering::Acquire) {
            let wait = (!ready.is_empty()).then_some(Duration::ZERO);
            if let Err(error) = self.poll.poll(&mut events, wait) {
                if error.kind() != io::ErrorKind::Interrupted {
                    log::error!(
                        "the userspace data path stopped: cannot wait for sockets: {error}"
                    );
                    return;
                }
                continue;
            }
            let ports = lock(&self.workplace.ports);
            let known = events.iter().filter_map(|event| {
                let port = ports.get(event.token().0)?;
                port.faulty.fetch_or(event.is_error(), Ordering::Relaxed);
                Some(port.clone())
            });
            ready.extend(known.filter(|port| !port.queued.swap(true, Ordering::Relaxed)));
            drop(ports);
            let now = monotonic();
            for _ in 0..ready.len() {
                let Some(port) = ready.pop_front() else { break };
                if self.serve(&port, now) {
                    ready.push_back(port);
                } else {
                    port.queued.store(false, Ordering::Relaxed);
                }
            }
        }
    }

    /// Forwards what waits at `port`. Whether its turn ended before that did.
    fn serve(&mut self, port: &Port, now: Instant) -> bool {
        if port.faulty.swap(false, Ordering::Relaxed) {
            path_error::report(port, &self.to_control.errors, &self.tally);
        }
        for _ in 0..TURN {
            match self.receiver.receive(port) {
                Ok(count) => self.forward(port, count, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    log::trace!("receiving on {}: {error}", port.local);
                    self.tally.receive_failed.fetch_add(1, Ordering::Relaxed);
                    // Errors that the socket holds are reported once each; others would never end.
                    return is_of_the_path(&error);
                }
            }
        }
        true
    }

    /// Forwards the first `count` messages that were received.
    fn forward(&mut self, port: &Port, count: usize, now: Instant) {
        let route = port.route();
        let way = route.as_ref().map(|route| (route, route.out.upgrade()));
        let mut taken = Counters::default();
        for message in self.receiver.messages(count) {
            match &way {
                Some((route, Some(out))) if route.takes(message.from) => {
                    let sent = send_on(&mut self.sender, route, out, &message, now, &self.tally);
                    taken.packets += sent.packets;
                    taken.bytes += sent.bytes;
                }
                Some((route, None)) if route.takes(message.from) => {
                    let datagrams = message.datagrams().count() as u64;
                    self.tally.no_way_out.fetch_add(datagrams, Ordering::Relaxed);
                }
                _ => hand_up(&self.to_control.unclaimed, port, &message, &self.tally),
            }
        }
        if let Some((route, Some(out))) = &way {
            self.sender.flush(out, route.to, &self.tally);
        }
        if taken.packets > 0 {
            port.count(taken.packets, taken.bytes);
            self.tally.forwarded.fetch_add(taken.packets, Ordering::Relaxed);
            self.tally.forwarded_bytes.fetch_add(taken.bytes, Ordering::Relaxed);
        }
    }
}

/// Hands a message to the sender, as far as the flow's rate lets. What that was.
fn send_on(
    sender: &mut Sender,
    route: &Route,
    out: &Port,
    message: &Message<'_>,
    now: Instant,
    tally: &Tally,
) -> Counters {
    let header = if message.from.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let whole = message.datagrams().count() as u64;
    let Some(limit) = &route.limit else {
        sender.push(out, route.to, (message.bytes, message.stride), message.ecn, tally);
        return Counters { packets: whole, bytes: message.bytes.len() as u64 + whole * header };
    };
    let mut limit = lock(limit);
    let mut sent = Counters::default();
    for datagram in message.datagrams() {
        let bytes = datagram.len() as u64 + header;
        if limit.admits(now, bytes) {
            sender.push(out, route.to, (datagram, datagram.len()), message.ecn, tally);
            sent.packets += 1;
            sent.bytes += bytes;
        }
    }
    tally.rate_limited.fetch_add(whole - sent.packets, Ordering::Relaxed);
    sent
}

/// Queues each datagram of a message for control, as far as there is room.
fn hand_up(
    to_control: &mpsc::Sender<Unclaimed>,
    port: &Port,
    message: &Message<'_>,
    tally: &Tally,
) {
    for datagram in message.datagrams() {
        // Room is taken first, so that a flood costs no copies.
        let counter = match to_control.try_reserve() {
            Ok(room) => {
                let bytes = datagram.to_vec();
                room.send(Unclaimed { local: port.local, from: message.from, bytes });
                &tally.to_control
            }
            Err(_) => &tally.control_overrun,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The buffers that all sockets of one worker are read into.
struct Receiver {
    /// How to receive. Not of a socket that is read from: those have their options from
    /// [`port::bind`].
    state: UdpSocketState,
    buffers: Vec<u8>,
    meta: [RecvMeta; BATCH_SIZE],
}

/// One received buffer: a datagram, or several that the stack has joined.
struct Message<'a> {
    from: SocketAddr,
    bytes: &'a [u8],
    /// Length of each datagram but the last.
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

impl Receiver {
    fn new() -> io::Result<Self> {
        let scratch = port::bind(SocketAddr::new([127, 0, 0, 1].into(), 0), 4096)?;
        Ok(Self {
            state: UdpSocketState::new((&scratch).into())?,
            buffers: vec![0; BATCH_SIZE * BUFFER],
            meta: [RecvMeta::default(); BATCH_SIZE],
        })
    }

    /// Receives one batch and returns how many messages it has.
    fn receive(&mut self, port: &Port) -> io::Result<usize> {
        let mut rest = self.buffers.chunks_mut(BUFFER);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            array::from_fn(|_| IoSliceMut::new(rest.next().unwrap_or_default()));
        self.state.recv((&port.socket).into(), &mut slices, &mut self.meta)
    }

    fn messages(&self, count: usize) -> impl Iterator<Item = Message<'_>> {
        self.meta.iter().zip(self.buffers.chunks(BUFFER)).take(count).map(|(meta, buffer)| {
            Message {
                from: meta.addr,
                bytes: &buffer[..meta.len],
                stride: meta.stride,
                ecn: meta.ecn,
            }
        })
    }
}

impl<'a> Message<'a> {
    fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        self.bytes.chunks(self.stride.max(1)).chain(empty)
    }
}
