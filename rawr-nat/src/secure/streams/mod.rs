//! Reliable streams of bytes over datagrams that get lost, doubled and overtaken: TCP by `smoltcp`.
//!
//! Every stream is a TCP connection between two hosts that exist only here, so that its congestion
//! control (CUBIC, RFC 9438), flow control and half-close are those of TCP. The port says what the
//! stream is for; either side opens streams to any port below 49,152.
//!
//! Whether the other side is still there is asked once for all streams, by a probe of nine bytes (a TCP
//! header has twenty). It names the sender's instance, so that one that has started anew is known.

mod device;
mod probes;
mod stream;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{HardwareAddress, IpCidr};

use device::{OWN_ADDRESS, PEER_ADDRESS, SegmentDevice};
use probes::Probes;
use stream::{Origin, Ports, SegmentHead, Stream};

/// The ports from which streams are opened; none is opened to them.
const FIRST_EPHEMERAL: u16 = 49_152;
/// How long a stream that nobody uses any more has for ending by itself.
const LINGER: Duration = Duration::from_secs(60);
/// `smoltcp` waits for a second at least before it sends something again, as RFC 6298 §2.4 has it.
/// For its clock this many seconds pass in one, so that it is a quarter of a second, near to what
/// other stacks do. It also makes CUBIC come back to its old window sooner.
const HASTE: u32 = 4;
/// The longest that `smoltcp` lets an acknowledgement wait, by its clock. What else is due in TIME-WAIT is later.
const ACK_DELAY: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(10);

/// The settings of [`Streams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamsConfig {
    /// The longest datagram to send, in bytes: what the path carries, less what is added to it.
    pub mtu: usize,
    /// Bytes that may be under way or unread, for each stream and direction. Throughput is at most
    /// this in a round trip time.
    pub window: usize,
    /// All streams end with an error when nothing has come from the other side for this long. It is
    /// probed at a quarter of it.
    pub timeout: Duration,
    /// Streams there may be at once. The other side's beyond them are refused.
    pub max_streams: usize,
}

impl Default for StreamsConfig {
    /// Datagrams of 1,174 bytes (1,200 sealed), 2 MiB (200 Mbit/s at 80 ms), 20 s, 1,024 streams.
    fn default() -> Self {
        let mtu = 1_200 - super::OVERHEAD - 1;
        let (window, timeout) = (2 << 20, Duration::from_secs(20));
        Self { mtu, window, timeout, max_streams: 1_024 }
    }
}

/// Names a stream on one side; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

/// What happened to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The other side has opened one, to this port.
    Incoming {
        /// The new stream.
        id: StreamId,
        /// What it is for.
        port: u16,
    },
    /// The other side has agreed to one.
    Connected(StreamId),
    /// [`Streams::read`] had nothing, and has now: bytes, the end, or an error.
    Readable(StreamId),
    /// [`Streams::write`] had no room, and has now; or there is an error.
    Writable(StreamId),
    /// It is over: both sides have finished, or there was an error. What came may still be read.
    Closed {
        /// The stream.
        id: StreamId,
        /// Why, if it did not end well.
        error: Option<StreamError>,
    },
}

/// Why a stream is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nobody wanted it.
    #[error("the other side refused the stream")]
    Refused,
    /// The other side broke it off.
    #[error("the other side reset the stream")]
    Reset,
    /// The other side is gone, or nothing gets through.
    #[error("the other side has not answered for too long")]
    TimedOut,
    /// This side broke it off.
    #[error("the stream was aborted")]
    Aborted,
    /// This side has said that it has no more to write.
    #[error("the stream was finished")]
    Finished,
    /// There is no such stream, or no longer.
    #[error("no such stream")]
    Unknown,
}

/// Why a stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many as there may be.
    #[error("there are {0} streams already, which is as many as there may be")]
    TooMany(usize),
    /// The port is 0, or from 49,152 on.
    #[error("port {0} is not one that a stream can be for: 1 to 49151")]
    Port(u16),
}

/// All streams with one other side.
///
/// After every other call, [`Streams::poll_transmit`] has to be drained, and then
/// [`Streams::poll_event`].
pub struct Streams {
    config: StreamsConfig,
    interface: Interface,
    device: SegmentDevice,
    /// `smoltcp` counts from here.
    epoch: Instant,
    streams: HashMap<StreamId, Stream>,
    by_ports: HashMap<Ports, StreamId>,
    /// Those that may have something to send, each in its turn.
    queue: VecDeque<StreamId>,
    probes: Probes,
    timers: BTreeSet<(Instant, StreamId)>,
    next_id: u64,
    next_port: u16,
    events: VecDeque<StreamEvent>,
}

impl Streams {
    /// None yet. `seed` is random.
    pub fn new(config: StreamsConfig, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut device = SegmentDevice::new(config.mtu);
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = rng.random();
        let mut interface =
            Interface::new(settings, &mut device, smoltcp::time::Instant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            let added = addresses.push(IpCidr::new(OWN_ADDRESS, 64));
            debug_assert!(added.is_ok(), "the only address");
        });
        Self {
            config,
            interface,
            device,
            epoch: now,
            streams: HashMap::new(),
            by_ports: HashMap::new(),
            queue: VecDeque::new(),
            probes: Probes::new(config.timeout, rng.random(), now),
            timers: BTreeSet::new(),
            next_id: 0,
            next_port: rng.random_range(FIRST_EPHEMERAL..=u16::MAX),
            events: VecDeque::new(),
        }
    }

    /// Opens a stream. It may be written to once it is [connected](StreamEvent::Connected).
    ///
    /// # Errors
    /// If the port is none, or there are too many streams.
    pub fn open(&mut self, now: Instant, port: u16) -> Result<StreamId, OpenError> {
        if !(1..FIRST_EPHEMERAL).contains(&port) {
            return Err(OpenError::Port(port));
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::TooMany(self.config.max_streams));
        }
        let ports = Ports { own: self.free_port(port), peers: port };
        let mut stream = Stream::new(&self.config, ports, Origin::Own);
        stream
            .socket_mut()
            .connect(self.interface.context(), (PEER_ADDRESS, port), (OWN_ADDRESS, ports.own))
            .expect("a fresh socket, and addresses and ports that are not zero");
        let id = self.insert(now, stream);
        self.settle(now, id, false);
        Ok(id)
    }

    /// Writes as much as there is room for, and returns how much that was. If it was less than all,
    /// [`StreamEvent::Writable`] tells when to go on.
    ///
    /// # Errors
    /// If nothing can be written any more.
    pub fn write(
        &mut self,
        now: Instant,
        id: StreamId,
        bytes: &[u8],
    ) -> Result<usize, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Unknown)?;
        let written = stream.write(bytes)?;
        self.settle(now, id, false);
        Ok(written)
    }

    /// Reads what has come: `None` where nothing has, and [`StreamEvent::Readable`] will tell; 0 where
    /// the other side has finished.
    ///
    /// # Errors
    /// If nothing will come any more, other than by the other side's finishing.
    pub fn read(
        &mut self,
        now: Instant,
        id: StreamId,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Unknown)?;
        let read = stream.read(buffer)?;
        if read.is_some() {
            self.settle(now, id, false);
        }
        Ok(read)
    }

    /// Bytes that were written and that the other side has not confirmed yet.
    pub fn unconfirmed(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |stream| stream.socket().send_queue())
    }

    /// Nothing more will be written. What was written still arrives, and the other direction stays.
    pub fn finish(&mut self, now: Instant, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.finishes = true;
        if stream.is_open {
            stream.socket_mut().close();
        }
        self.settle(now, id, false);
    }

    /// Ends a stream in both directions at once; the other side gets an error.
    pub fn abort(&mut self, now: Instant, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.error.get_or_insert(StreamError::Aborted);
        stream.socket_mut().abort();
        self.settle(now, id, false);
    }

    /// Nobody uses this stream any more: it is finished, and forgotten once the other side has
    /// finished as well. What the other side still writes breaks it off.
    pub fn release(&mut self, now: Instant, id: StreamId) {
        self.finish(now, id);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.released = Some(now + LINGER);
        stream.unconfirmed = stream.socket().send_queue();
        if stream.socket().can_recv() || !stream.is_open {
            stream.error.get_or_insert(StreamError::Aborted);
            stream.socket_mut().abort();
        }
        self.settle(now, id, false);
    }

    /// Takes a datagram that the other side's `poll_transmit` gave out.
    pub fn handle_datagram(&mut self, now: Instant, segment: &[u8]) {
        self.probes.heard(now);
        let Some(head) = SegmentHead::read(segment) else {
            if self.probes.handle(segment) {
                self.fail_all(now, StreamError::Reset);
            }
            return;
        };
        if head.opens && !self.by_ports.contains_key(&head.ports) {
            self.listen(now, head.ports);
        }
        let at = self.time(now);
        let id = self.by_ports.get(&head.ports).copied();
        match id.and_then(|id| self.streams.get_mut(&id).map(|stream| (id, stream))) {
            Some((id, stream)) => {
                for segment in stream.admit(&head, segment) {
                    self.device.put(&segment);
                    self.interface.poll_ingress_single(at, &mut self.device, &mut stream.sockets);
                }
                self.settle(now, id, head.resets);
            }
            None => {
                self.device.put(segment);
                let mut nothing = SocketSet::new(Vec::new());
                self.interface.poll_ingress_single(at, &mut self.device, &mut nothing);
            }
        }
    }

    /// To be called once [`Streams::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.streams.is_empty() && self.probes.is_silent(now) {
            self.fail_all(now, StreamError::TimedOut);
        }
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.deadline = None;
            if stream.linger_is_over(now) {
                stream.error.get_or_insert(StreamError::TimedOut);
                stream.socket_mut().abort();
            }
            self.enqueue(id);
        }
    }

    /// When [`Streams::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let probe = (!self.streams.is_empty()).then(|| self.probes.next_at());
        self.timers.first().map(|(at, _)| *at).into_iter().chain(probe).min()
    }

    /// The next datagram for the other side. May be left for later while the path is busy, and must
    /// be where there is none.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let at = self.time(now);
        let is_used = !self.streams.is_empty();
        if let Some(probe) = self.probes.poll_transmit(now, is_used) {
            return Some(probe);
        }
        loop {
            if let Some(segment) = self.device.take() {
                return Some(segment);
            }
            let id = self.queue.pop_front()?;
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.is_queued = false;
            self.interface.poll_egress(at, &mut self.device, &mut stream.sockets);
            let has_sent = !self.device.is_empty();
            self.settle(now, id, false);
            if !has_sent && self.queue.back() == Some(&id) {
                self.postpone(now, id);
            }
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    /// How many streams there are, those included that are about to end.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Ends all streams at once: the other side is gone.
    pub fn fail_all(&mut self, now: Instant, error: StreamError) {
        let mut ids: Vec<_> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.error.get_or_insert(error);
            stream.socket_mut().abort();
            self.settle(now, id, false);
        }
        self.probes.heard(now);
    }

    /// The other side is there: silence counts from now on.
    pub(super) const fn heard(&mut self, now: Instant) {
        self.probes.heard(now);
    }

    fn listen(&mut self, now: Instant, ports: Ports) {
        let is_full = self.streams.len() >= self.config.max_streams;
        if is_full || !(1..FIRST_EPHEMERAL).contains(&ports.own) {
            return;
        }
        let mut stream = Stream::new(&self.config, ports, Origin::Peer);
        let listening = stream.socket_mut().listen((OWN_ADDRESS, ports.own));
        debug_assert!(listening.is_ok(), "a fresh socket, and a port that is not zero");
        self.insert(now, stream);
    }

    fn insert(&mut self, now: Instant, stream: Stream) -> StreamId {
        if self.streams.is_empty() {
            self.probes.heard(now);
        }
        let id = StreamId(self.next_id);
        self.next_id += 1;
        self.by_ports.insert(stream.ports, id);
        self.streams.insert(id, stream);
        id
    }

    /// There is one: there are more ports than streams.
    fn free_port(&mut self, peers: u16) -> u16 {
        loop {
            let own = self.next_port;
            self.next_port = own.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            if !self.by_ports.contains_key(&Ports { own, peers }) {
                return own;
            }
        }
    }

    /// After anything was done with a stream: tells what happened, and sees to it that the stream gets
    /// its turn to send.
    fn settle(&mut self, now: Instant, id: StreamId, was_reset: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.update(was_reset);
        if stream.released.is_some() && stream.socket().can_recv() {
            stream.error.get_or_insert(StreamError::Aborted);
            stream.socket_mut().abort();
        }
        self.tell(id);
        let at = self.time(now);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let due = self.interface.poll_at(at, &stream.sockets);
        // An acknowledgement that waits is not forgotten with the stream: the other side would wait for it.
        let is_gone = stream.is_closed() && due.is_none_or(|due| due > at + ACK_DELAY);
        let is_unused = stream.released.is_some() || !was_told(stream);
        if is_gone && is_unused {
            self.forget(id);
        } else if due.is_some_and(|due| due <= at) {
            self.enqueue(id);
        } else {
            let real = |due: smoltcp::time::Instant| {
                self.epoch
                    + Duration::from_micros((due.total_micros() as u64).div_ceil(HASTE.into()))
            };
            self.set_timer(id, due.map(real));
        }
    }

    fn tell(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let is_ours = stream.released.is_none();
        let mut say = |event| {
            if is_ours {
                self.events.push_back(event);
            }
        };
        let (was_known, port) = (stream.was_told, stream.ports.own);
        if stream.is_open && !was_known {
            stream.was_told = true;
            say(match stream.origin {
                Origin::Own => StreamEvent::Connected(id),
                Origin::Peer => StreamEvent::Incoming { id, port },
            });
        }
        if stream.awaits_read && stream.is_readable() {
            stream.awaits_read = false;
            say(StreamEvent::Readable(id));
        }
        if stream.awaits_write && stream.is_writable() {
            stream.awaits_write = false;
            say(StreamEvent::Writable(id));
        }
        if !stream.is_over && stream.is_closed() && was_told(stream) {
            stream.is_over = true;
            say(StreamEvent::Closed { id, error: stream.error });
        }
    }

    fn enqueue(&mut self, id: StreamId) {
        self.set_timer(id, None);
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.is_queued
        {
            stream.is_queued = true;
            self.queue.push_back(id);
        }
    }

    /// A stream that wanted its turn and had nothing to send must not get the next one at once.
    fn postpone(&mut self, now: Instant, id: StreamId) {
        self.queue.pop_back();
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_queued = false;
        }
        self.set_timer(id, Some(now + Duration::from_millis(1)));
    }

    fn set_timer(&mut self, id: StreamId, at: Option<Instant>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let at = [at, stream.released].into_iter().flatten().min();
        if stream.deadline == at {
            return;
        }
        if let Some(old) = stream.deadline {
            self.timers.remove(&(old, id));
        }
        stream.deadline = at;
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.by_ports.remove(&stream.ports);
            if let Some(at) = stream.deadline {
                self.timers.remove(&(at, id));
            }
        }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        let hasty = micros.saturating_mul(HASTE.into());
        smoltcp::time::Instant::from_micros(i64::try_from(hasty).unwrap_or(i64::MAX))
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut streams: Vec<_> = self.streams.iter().collect();
        streams.sort_unstable_by_key(|(id, _)| **id);
        let streams = streams.into_iter().map(|(id, stream)| {
            let socket = stream.socket();
            let queues = (socket.send_queue(), socket.recv_queue());
            (id, stream.ports, socket.state(), queues, stream.deadline)
        });
        f.debug_list().entries(streams).finish()
    }
}

/// Whether the application knows of it: the other side's are shown once they are open.
fn was_told(stream: &Stream) -> bool {
    stream.origin == Origin::Own || stream.was_told
}
