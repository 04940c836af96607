//! Forwarding in userspace: what the kernel passes up, and everything where there is no XDP.
//!
//! Every data port is one UDP socket. Worker threads wait for the sockets with epoll, receive in
//! batches (`recvmmsg`, GRO) and send in batches (GSO). What arrives on a port from the remote
//! address of its flow leaves by the flow's other leg; all else goes up to control.
//!
//! The handle and the workers share the ports, each behind its own lock, which a worker takes once
//! per batch. So [`SlowPath::forward`] and [`SlowPath::stop_forwarding`] are in force when they
//! return, and no queue between the threads can be late or full. Only what goes up to control is
//! queued; that queue is bounded, and what does not fit is dropped and counted.
//!
//! **Fragmentation.** The sockets do not set "don't fragment": a datagram that does not fit the
//! MTU leaves in fragments. Over IPv4 the path MTU is left to the routers (`IP_PMTUDISC_OMIT`, so
//! that forged ICMP messages change nothing); over IPv6, where only the sender may fragment, the
//! stack's path MTU holds (`IPV6_PMTUDISC_DONT`). [`SlowPath::send_unfragmented`] sends the datagrams for
//! which a TURN client wants it otherwise.
//!
//! **ICMP errors** of data ports go up to control, too ([`SlowPath::take_errors`]).

mod batch;
mod limit;
mod path_error;
mod port;
mod worker;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::{CryptoRng, Rng};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::path_error::PathError;
pub use self::port::allow_fragmentation;
use self::port::{Port, Route};
use self::worker::{ToControl, Workplace};
use super::{Counters, Leg};

/// Files that the process needs besides its data ports: sockets, maps, logs.
const SPARE_FILES: u64 = 512;
/// Ports tried at random, before all of the range are tried in turn.
const RANDOM_TRIES: u32 = 32;

/// How the slow path works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ports to choose data ports from.
    pub ports: RangeInclusive<u16>,
    /// Worker threads; at least one runs.
    pub threads: usize,
    /// Size in bytes that each socket's receive and send buffer is given, as far as the system lets.
    pub socket_buffer: usize,
    /// Most datagrams that wait for control.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ports: 49152..=65535, threads: 1, socket_buffer: 1 << 20, queue: 4096 }
    }
}

/// Where a data port is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On this address of ours, at a port of the range.
    Address(IpAddr),
    /// On the address of ours from which packets to this one leave, at a port of the range.
    Toward(SocketAddr),
    /// At this address and port of ours: a port that an earlier run had.
    Exactly(SocketAddr),
}

/// What is asked of a data port's number (RFC 8656 §7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parity {
    Any,
    Even,
    /// Even, and the port above it is opened as well.
    EvenAndNext,
}

/// Why no data port could be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("{ip} has no free data port in {}-{}: widen data_ports or add an address", .range.start(), .range.end())]
    NoFreePort { ip: IpAddr, range: RangeInclusive<u16> },
    #[error(
        "no more than {limit} files may be open: raise the limit (LimitNOFILE= of the unit, ulimit -n)"
    )]
    TooManyOpenFiles { limit: u64 },
    #[error("no route to {to}: {source}")]
    NoRoute { to: SocketAddr, source: io::Error },
    #[error("cannot open UDP port {at}: {source}")]
    Bind { at: SocketAddr, source: io::Error },
}

/// Why the slow path, or an operation on one port of it, failed.
#[derive(Debug, thiserror::Error)]
pub enum SlowPathError {
    #[error("cannot start the userspace data path ({what}): {source}")]
    Start { what: &'static str, source: io::Error },
    #[error("no data port is open at {0}")]
    NoSuchPort(SocketAddr),
    #[error("cannot send from {local} to {to}: {source}")]
    Send { local: SocketAddr, to: SocketAddr, source: io::Error },
}

/// A datagram that arrived on a data port and has no flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclaimed {
    /// The data port.
    pub local: SocketAddr,
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// What the slow path has done since it was started, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub forwarded: u64,
    /// Bytes forwarded, layer 3 headers included.
    pub forwarded_bytes: u64,
    /// Handed up to control.
    pub to_control: u64,
    /// Dropped because control did not keep up.
    pub control_overrun: u64,
    /// Dropped because the flow was over its rate limit.
    pub rate_limited: u64,
    /// Dropped because the other leg's port was closed.
    pub no_way_out: u64,
    /// Not sent: the remote host refused (ICMP port or host unreachable).
    pub refused: u64,
    /// Not sent: the stack had no buffer.
    pub no_buffer: u64,
    /// Not sent: larger than a datagram may be there.
    pub too_big: u64,
    /// Not sent, for another reason.
    pub send_failed: u64,
    /// Errors on receiving.
    pub receive_failed: u64,
    /// ICMP errors handed up to control.
    #[serde(default)]
    pub path_errors: u64,
}

/// The userspace data path: ports, flows between them, and the threads that forward. All methods may
/// be called from any thread and none blocks on the network. Dropping it ends the threads.
#[derive(Debug)]
pub struct SlowPath {
    options: Options,
    ports: Mutex<HashMap<SocketAddr, Arc<Port>>>,
    workplaces: Vec<Arc<Workplace>>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
    next: AtomicUsize,
    errors: Mutex<Option<mpsc::Receiver<PathError>>>,
}

impl SlowPath {
    /// Starts the worker threads. What has no flow comes out of the receiver.
    pub fn start(options: Options) -> Result<(Self, mpsc::Receiver<Unclaimed>), SlowPathError> {
        let (to_control, unclaimed) = mpsc::channel(options.queue.max(1));
        let (to_errors, errors) = mpsc::channel(options.queue.max(1));
        let to_control = ToControl { unclaimed: to_control, errors: to_errors };
        let tally = Arc::new(Tally::default());
        let mut workplaces = Vec::new();
        let mut threads = Vec::new();
        for number in 0..options.threads.max(1) {
            let (workplace, thread) = worker::start(number, to_control.clone(), tally.clone())?;
            workplaces.push(workplace);
            threads.push(thread);
        }
        let (ports, next) = (Mutex::new(HashMap::new()), AtomicUsize::new(0));
        let errors = Mutex::new(Some(errors));
        Ok((Self { options, ports, workplaces, threads, tally, next, errors }, unclaimed))
    }

    /// Where the ICMP errors of data ports come out; `None` after the first call.
    pub fn take_errors(&self) -> Option<mpsc::Receiver<PathError>> {
        lock(&self.errors).take()
    }

    /// Opens a data port and returns its address. Only addresses that `accept` agrees to are taken.
    pub fn open(
        &self,
        on: On,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<SocketAddr, PortError> {
        self.open_as(on, Parity::Any, accept)
    }

    /// As [`Self::open`], at an even port; with `and_next` the port above it is opened as well, as a
    /// data port of its own. The even one's address.
    pub fn open_even(
        &self,
        on: On,
        and_next: bool,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<SocketAddr, PortError> {
        self.open_as(on, if and_next { Parity::EvenAndNext } else { Parity::Even }, accept)
    }

    fn open_as(
        &self,
        on: On,
        parity: Parity,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<SocketAddr, PortError> {
        let ports = match on {
            On::Address(ip) => self.bind_some(SocketAddr::new(ip, 0), parity, accept)?,
            On::Toward(to) => self.bind_some(source_toward(to)?, parity, accept)?,
            On::Exactly(at) if accept(at) => vec![self.bind(at)?],
            On::Exactly(at) => {
                return Err(PortError::NoFreePort { ip: at.ip(), range: at.port()..=at.port() });
            }
        };
        let local = ports[0].local;
        for port in ports {
            if let Err(source) = self.admit(port) {
                self.close(local);
                return Err(PortError::Bind { at: local, source });
            }
        }
        Ok(local)
    }

    fn admit(&self, port: Port) -> io::Result<()> {
        let port = Arc::new(port);
        self.workplaces[port.worker].admit(&port)?;
        lock(&self.ports).insert(port.local, port);
        Ok(())
    }

    /// Closes a data port. Flows into it end, too. Whether there was one.
    pub fn close(&self, local: SocketAddr) -> bool {
        let Some(port) = lock(&self.ports).remove(&local) else { return false };
        port.set_route(None);
        self.workplaces[port.worker].dismiss(&port);
        true
    }

    /// From now on, what arrives on `from` leaves by `to`, at most `rate` bytes of layer 3 per
    /// second. Replaces the flow that there was from `from.local`.
    pub fn forward(&self, from: Leg, to: Leg, rate: Option<u64>) -> Result<(), SlowPathError> {
        let ports = lock(&self.ports);
        let out = ports.get(&to.local).ok_or(SlowPathError::NoSuchPort(to.local))?;
        let port = ports.get(&from.local).ok_or(SlowPathError::NoSuchPort(from.local))?;
        port.set_route(Some(Route::new(from.remote, out, to.remote, rate)));
        Ok(())
    }

    /// From now on, everything that arrives on `local` goes up to control. Whether it did not before.
    pub fn stop_forwarding(&self, local: SocketAddr) -> bool {
        lock(&self.ports).get(&local).is_some_and(|port| port.set_route(None))
    }

    /// Sends one datagram from a data port.
    pub fn send(
        &self,
        local: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), SlowPathError> {
        let sent = self.port(local)?.send(to, bytes);
        self.told(local, to, sent)
    }

    /// Sends one datagram from a data port, which is not to be fragmented on its way. Should it be too
    /// big for that, control hears of it as of other ICMP errors.
    pub fn send_unfragmented(
        &self,
        local: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), SlowPathError> {
        let sent = self.port(local)?.send_unfragmented(to, bytes);
        self.told(local, to, sent)
    }

    fn port(&self, local: SocketAddr) -> Result<Arc<Port>, SlowPathError> {
        lock(&self.ports).get(&local).cloned().ok_or(SlowPathError::NoSuchPort(local))
    }

    fn told(
        &self,
        local: SocketAddr,
        to: SocketAddr,
        sent: io::Result<()>,
    ) -> Result<(), SlowPathError> {
        sent.map_err(|source| {
            self.tally.send_error(&source, 1);
            SlowPathError::Send { local, to, source }
        })
    }

    /// What has been forwarded from `local` since it was opened.
    pub fn counters(&self, local: SocketAddr) -> Option<Counters> {
        lock(&self.ports).get(&local).map(|port| port.counters())
    }

    /// What has been forwarded from each port since the last call, for ports where that is anything.
    pub fn take_deltas(&self) -> Vec<(SocketAddr, Counters)> {
        let moved = |(local, port): (&SocketAddr, &Arc<Port>)| Some((*local, port.take_delta()?));
        lock(&self.ports).iter().filter_map(moved).collect()
    }

    /// The data ports that are open, in no order.
    pub fn locals(&self) -> Vec<SocketAddr> {
        lock(&self.ports).keys().copied().collect()
    }

    pub fn totals(&self) -> Totals {
        self.tally.totals()
    }

    /// Binds a port of the range that is free and accepted, chosen at random; the next one, too, if
    /// that is asked for.
    fn bind_some(
        &self,
        address: SocketAddr,
        parity: Parity,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<Vec<Port>, PortError> {
        let range = &self.options.ports;
        for port in candidates(range) {
            let next = match parity {
                Parity::Any => None,
                Parity::Even | Parity::EvenAndNext if port % 2 == 1 => continue,
                Parity::Even => None,
                // An even port is below the last one, which is odd.
                Parity::EvenAndNext if !range.contains(&(port + 1)) => continue,
                Parity::EvenAndNext => Some(with_port(address, port + 1)),
            };
            let wanted = [Some(with_port(address, port)), next];
            let free = |at: &SocketAddr| !lock(&self.ports).contains_key(at) && accept(*at);
            if !wanted.iter().flatten().all(free) {
                continue;
            }
            let bound: Result<_, _> =
                wanted.into_iter().flatten().map(|at| self.bind(at)).collect();
            match bound {
                Err(PortError::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
        Err(PortError::NoFreePort { ip: address.ip(), range: range.clone() })
    }

    fn bind(&self, at: SocketAddr) -> Result<Port, PortError> {
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.workplaces.len();
        port::bind(at, self.options.socket_buffer)
            .and_then(|socket| Port::new(socket, worker))
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EMFILE) => PortError::TooManyOpenFiles { limit: open_files() },
                _ => PortError::Bind { at, source },
            })
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        for workplace in &self.workplaces {
            workplace.dissolve();
        }
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Raises the limit of open files so that `ports` data ports can be open, or else as far as the
/// system lets. The limit that then holds, as an error if it is too low.
pub fn raise_open_files(ports: u64) -> Result<u64, PortError> {
    let wanted = ports.saturating_add(SPARE_FILES);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    if soft < wanted {
        // Above the hard limit only with CAP_SYS_RESOURCE.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    }
    match open_files() {
        limit if limit < wanted => Err(PortError::TooManyOpenFiles { limit }),
        limit => Ok(limit),
    }
}

fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// The address from which packets to `to` leave, found by the routing table; its port is 0.
pub(crate) fn source_toward(to: SocketAddr) -> Result<SocketAddr, PortError> {
    let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
    let probe = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.local_addr()
    };
    match probe() {
        Ok(address) => Ok(with_port(address, 0)),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            Err(PortError::TooManyOpenFiles { limit: open_files() })
        }
        Err(source) => Err(PortError::NoRoute { to, source }),
    }
}

/// Ports of `range` to try: some at random, then all from a random one on.
///
/// Who can guess a port before it is handed out can send to it first, so they come from a generator
/// that cannot be predicted.
pub(crate) fn candidates(range: &RangeInclusive<u16>) -> impl Iterator<Item = u16> + use<> {
    let (low, high) = (u32::from(*range.start()), u32::from(*range.end()));
    let count = (high + 1).saturating_sub(low);
    let start = unpredictable().random_range(0..count.max(1));
    let random = move |_| unpredictable().random_range(0..count.max(1));
    let tries = if count == 0 { 0 } else { RANDOM_TRIES };
    (0..tries)
        .map(random)
        .chain((0..count).map(move |step| (start + step) % count))
        .filter_map(move |offset| u16::try_from(low + offset).ok())
}

fn unpredictable() -> impl CryptoRng {
    rand::rng()
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// The lock of data that stays whole even where a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The counters behind [`Totals`], which all threads add to.
#[derive(Debug, Default)]
struct Tally {
    forwarded: AtomicU64,
    forwarded_bytes: AtomicU64,
    to_control: AtomicU64,
    control_overrun: AtomicU64,
    rate_limited: AtomicU64,
    no_way_out: AtomicU64,
    refused: AtomicU64,
    no_buffer: AtomicU64,
    too_big: AtomicU64,
    send_failed: AtomicU64,
    receive_failed: AtomicU64,
    path_errors: AtomicU64,
}

impl Tally {
    fn send_error(&self, error: &io::Error, datagrams: u64) {
        let counter = match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => &self.refused,
            Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => &self.no_buffer,
            Some(libc::EMSGSIZE) => &self.too_big,
            _ => &self.send_failed,
        };
        counter.fetch_add(datagrams, Ordering::Relaxed);
    }

    fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            forwarded: read(&self.forwarded),
            forwarded_bytes: read(&self.forwarded_bytes),
            to_control: read(&self.to_control),
            control_overrun: read(&self.control_overrun),
            rate_limited: read(&self.rate_limited),
            no_way_out: read(&self.no_way_out),
            refused: read(&self.refused),
            no_buffer: read(&self.no_buffer),
            too_big: read(&self.too_big),
            send_failed: read(&self.send_failed),
            receive_failed: read(&self.receive_failed),
            path_errors: read(&self.path_errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_a_generator_for_secrets() {
        fn for_secrets<R: CryptoRng>(_: R) {}
        // Whatever else stands there one day, this has to hold.
        for_secrets(unpredictable());
    }

    #[test]
    fn even_ports_and_their_neighbours() {
        let options = Options { ports: 20_301..=20_304, ..Options::default() };
        let (path, _unclaimed) = SlowPath::start(options).unwrap();
        let open = |and_next| {
            path.open_even(On::Address([127, 0, 0, 1].into()), and_next, &|_| true)
                .map(|local| local.port())
        };
        assert_eq!(open(true).unwrap(), 20_302);
        let mut locals: Vec<u16> = path.locals().iter().map(SocketAddr::port).collect();
        locals.sort_unstable();
        assert_eq!(locals, [20_302, 20_303]);
        assert!(matches!(open(true), Err(PortError::NoFreePort { .. })), "20305 is outside");
        assert_eq!(open(false).unwrap(), 20_304);
        assert!(matches!(open(false), Err(PortError::NoFreePort { .. })));
        assert!(path.close(SocketAddr::from(([127, 0, 0, 1], 20_303))), "a port of its own");
    }

    #[test]
    fn candidates_cover_the_range_and_stay_in_it() {
        for range in [1..=1, 40000..=40100, 65000..=65535, 0..=u16::MAX] {
            let tried: std::collections::BTreeSet<u16> = candidates(&range).collect();
            assert!(tried.iter().copied().eq(range.clone()), "{range:?}");
        }
        let (low, high) = (9, 8);
        assert_eq!(candidates(&(low..=high)).count(), 0);
    }
}
