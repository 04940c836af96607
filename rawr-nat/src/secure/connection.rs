//! The tokio driver: a task that has the path, and handles that share the tunnel with it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::config::{SealError, SessionConfig, SessionError, SessionEvent};
use super::session::Session;
use super::streams::{StreamError, StreamEvent, StreamId, StreamsConfig};
use super::tunnel::{Tunnel, TunnelEvent};
use crate::driver::{Incoming, PeerSocket};
use crate::identity::{PublicKey, WeakKey};

/// Datagrams sent before others get their turn.
const BATCH: usize = 64;
/// Datagrams of the application's that wait to be received. Later ones are lost.
const MAX_WAITING: usize = 1_024;
/// How long [`Connection::close`] waits for what is on its way.
const FAREWELL: Duration = Duration::from_secs(5);
const MAX_DATAGRAM: usize = 65_535;

/// Something that carries datagrams to the other side, more or less.
pub trait Datagrams: Send + 'static {
    /// Sends one. It is lost where there is no way, or no room.
    fn send(&mut self, datagram: &[u8]);

    /// Waits for one, puts it in `buffer` (65,535 bytes hold all), and returns its length. Nothing is
    /// lost if the future is dropped.
    ///
    /// # Errors
    /// If nothing will come any more.
    fn recv(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
}

impl Datagrams for PeerSocket {
    fn send(&mut self, datagram: &[u8]) {
        Self::send(self, datagram);
    }

    async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.next(buffer).await? {
                Incoming::Data(length) => return Ok(length),
                Incoming::Event(event) => log::info!("{event:?}"),
            }
        }
    }
}

/// An encrypted connection with the holder of a key: streams and datagrams.
///
/// Dropped, it breaks off what is under way; [`Connection::close`] does not.
pub struct Connection {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// The task has something to do.
    work: Notify,
    /// Somebody may have waited for this.
    changed: Notify,
}

struct State {
    tunnel: Tunnel,
    wakers: HashMap<StreamId, Wakers>,
    /// What became of streams that were opened.
    opened: HashMap<StreamId, Result<(), StreamError>>,
    incoming: VecDeque<(StreamId, u16)>,
    datagrams: VecDeque<Vec<u8>>,
    over: Option<Over>,
    is_closing: bool,
}

#[derive(Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
}

/// Why nothing goes any more.
#[derive(Clone)]
enum Over {
    Session(SessionError),
    Path(io::ErrorKind, String),
}

impl From<Over> for io::Error {
    fn from(over: Over) -> Self {
        match over {
            Over::Session(error) => Self::new(io::ErrorKind::ConnectionAborted, error),
            Over::Path(kind, text) => Self::new(kind, text),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Refused => io::ErrorKind::ConnectionRefused,
            StreamError::Reset => io::ErrorKind::ConnectionReset,
            StreamError::TimedOut => io::ErrorKind::TimedOut,
            StreamError::Aborted => io::ErrorKind::ConnectionAborted,
            StreamError::Finished => io::ErrorKind::BrokenPipe,
            StreamError::Unknown => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl Connection {
    /// Begins a handshake with the holder of `peer` over `path`.
    ///
    /// # Errors
    /// If `peer` is no key that anybody holds.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or if the system has no randomness to give.
    pub fn initiate(
        path: impl Datagrams,
        config: SessionConfig,
        peer: PublicKey,
        streams: StreamsConfig,
    ) -> Result<Self, WeakKey> {
        let session = Session::initiate(config, peer, random(), now())?;
        Ok(Self::start(path, session, streams))
    }

    /// Waits for a handshake of the holder of `peer`, or of whoever comes first, over `path`.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or if the system has no randomness to give.
    pub fn respond(
        path: impl Datagrams,
        config: SessionConfig,
        peer: Option<PublicKey>,
        streams: StreamsConfig,
    ) -> Self {
        let session = Session::respond(config, peer, random(), now());
        Self::start(path, session, streams)
    }

    fn start(path: impl Datagrams, session: Session, streams: StreamsConfig) -> Self {
        let seed = u64::from_ne_bytes(random());
        let state = State {
            tunnel: Tunnel::new(session, streams, seed, now()),
            wakers: HashMap::new(),
            opened: HashMap::new(),
            incoming: VecDeque::new(),
            datagrams: VecDeque::new(),
            over: None,
            is_closing: false,
        };
        let (work, changed) = (Notify::new(), Notify::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), work, changed });
        let task = tokio::spawn(drive(path, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Waits until both sides have proved who they are, and returns who the other one is.
    ///
    /// # Errors
    /// If they have not: the error says who was asked for, and what was wrong.
    pub async fn established(&self) -> io::Result<PublicKey> {
        let peer = |state: &mut State| state.tunnel.session().peer();
        self.shared.wait(peer).await
    }

    /// Opens a stream, and waits for the other side to agree.
    ///
    /// # Errors
    /// If it does not, or the port is none, or there are too many streams.
    pub async fn open(&self, port: u16) -> io::Result<SecureStream> {
        let opened = self.shared.lock().tunnel.streams().open(now(), port);
        let id = opened.map_err(io::Error::other)?;
        let stream = SecureStream { shared: Arc::clone(&self.shared), id };
        self.shared.work.notify_one();
        self.shared.wait(|state| state.opened.remove(&id)).await??;
        Ok(stream)
    }

    /// Waits for the other side to open a stream; also returns the port that it is for.
    ///
    /// # Errors
    /// If the connection is over.
    pub async fn accept(&self) -> io::Result<(SecureStream, u16)> {
        let (id, port) = self.shared.wait(|state| state.incoming.pop_front()).await?;
        Ok((SecureStream { shared: Arc::clone(&self.shared), id }, port))
    }

    /// Sends a datagram, which may get lost.
    ///
    /// # Errors
    /// If the session is not established, or over, or the datagram too long.
    pub fn send(&self, datagram: &[u8]) -> Result<(), SealError> {
        let sent = self.shared.lock().tunnel.send(now(), datagram);
        self.shared.work.notify_one();
        sent
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// If the connection is over.
    pub async fn recv(&self) -> io::Result<Vec<u8>> {
        self.shared.wait(|state| state.datagrams.pop_front()).await
    }

    /// Lets streams that were finished come to their end, for up to 5 s, then ends the others.
    pub async fn close(mut self) {
        self.shared.lock().is_closing = true;
        self.shared.work.notify_one();
        let empty = |state: &mut State| state.tunnel.streams().is_empty().then_some(());
        let _ended = tokio::time::timeout(FAREWELL, self.shared.wait(empty)).await;
        self.end();
        let _finished = (&mut self.task).await;
    }

    /// The task says goodbye and ends.
    fn end(&self) {
        let mut state = self.shared.lock();
        state.tunnel.streams().fail_all(now(), StreamError::Aborted);
        state.over.get_or_insert_with(|| {
            Over::Path(io::ErrorKind::NotConnected, "the connection was closed".into())
        });
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("tunnel", &self.shared.lock().tunnel).finish()
    }
}

/// A stream of bytes. Dropped, it is finished: what was written still arrives, and what the other
/// side writes from then on breaks it off.
///
/// Flushing does nothing; shutting down ends the own direction.
pub struct SecureStream {
    shared: Arc<Shared>,
    id: StreamId,
}

impl AsyncRead for SecureStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let read = state.tunnel.streams().read(now(), self.id, buffer.initialize_unfilled())?;
        let Some(length) = read else {
            state.wakers.entry(self.id).or_default().read = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        buffer.advance(length);
        // The other side may have waited for room.
        self.shared.work.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let written = state.tunnel.streams().write(now(), self.id, bytes)?;
        if written == 0 && !bytes.is_empty() {
            state.wakers.entry(self.id).or_default().write = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.shared.work.notify_one();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().tunnel.streams().finish(now(), self.id);
        self.shared.work.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl SecureStream {
    /// Breaks the stream off: the other side gets an error.
    pub fn abort(self) {
        self.shared.lock().tunnel.streams().abort(now(), self.id);
    }
}

impl Drop for SecureStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.wakers.remove(&self.id);
        state.opened.remove(&self.id);
        state.tunnel.streams().release(now(), self.id);
        drop(state);
        self.shared.work.notify_one();
    }
}

impl fmt::Debug for SecureStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecureStream").field(&self.id).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock held")
    }

    /// Until there is what `take` looks for, or the connection is over.
    async fn wait<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> io::Result<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(found) = take(&mut state) {
                    return Ok(found);
                }
                if let Some(over) = &state.over {
                    return Err(over.clone().into());
                }
            }
            changed.await;
        }
    }

    fn fail(&self, over: Over) {
        let mut state = self.lock();
        state.over.get_or_insert(over);
        state.tunnel.streams().fail_all(now(), StreamError::TimedOut);
        state.drain_events();
        drop(state);
        self.changed.notify_waiters();
    }
}

/// What the task is to do next.
struct Next {
    timeout: Option<Instant>,
    has_more: bool,
    is_over: bool,
}

async fn drive(mut path: impl Datagrams, shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut timer = Timer::new();
    loop {
        let next = pump(&mut path, &shared);
        if next.is_over {
            return;
        }
        timer.set(next.timeout);
        tokio::select! {
            received = path.recv(&mut buffer) => match received {
                Ok(length) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    shared.lock().tunnel.handle_datagram(now(), datagram);
                }
                Err(error) => {
                    shared.fail(Over::Path(error.kind(), error.to_string()));
                    return;
                }
            },
            () = shared.work.notified() => {}
            () = tokio::task::yield_now(), if next.has_more => {}
            () = timer.sleep.as_mut(), if timer.at.is_some() => {
                timer.at = None;
                shared.lock().tunnel.handle_timeout(now());
            }
        }
    }
}

/// Sends what is to be sent, and tells who waits for it what has happened.
fn pump(path: &mut impl Datagrams, shared: &Shared) -> Next {
    let mut state = shared.lock();
    let mut sent = 0;
    let mut has_changed = false;
    let has_more = loop {
        let now = now();
        while sent < BATCH
            && let Some(datagram) = state.tunnel.poll_transmit(now)
        {
            path.send(&datagram);
            sent += 1;
        }
        let had_events = state.drain_events();
        has_changed |= had_events;
        if sent >= BATCH || !had_events {
            break sent >= BATCH;
        }
    };
    has_changed |= state.is_closing && state.tunnel.streams().is_empty();
    let timeout = state.tunnel.poll_timeout();
    let is_over = state.over.is_some() && !has_more;
    drop(state);
    if has_changed || is_over {
        shared.changed.notify_waiters();
    }
    Next { timeout, has_more, is_over }
}

impl State {
    /// Whether there were any.
    fn drain_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.tunnel.poll_event() {
            any = true;
            match event {
                TunnelEvent::Session(SessionEvent::Failed(error)) => {
                    self.over.get_or_insert(Over::Session(error));
                }
                TunnelEvent::Session(event) => log::debug!("{event:?}"),
                TunnelEvent::Datagram(datagram) => {
                    if self.datagrams.len() < MAX_WAITING {
                        self.datagrams.push_back(datagram);
                    }
                }
                TunnelEvent::Stream(event) => self.handle_stream(event),
            }
        }
        any
    }

    fn handle_stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Incoming { id, port } => self.incoming.push_back((id, port)),
            StreamEvent::Connected(id) => {
                self.opened.insert(id, Ok(()));
            }
            StreamEvent::Readable(id) => wake(self.wakers.get_mut(&id).map(|it| &mut it.read)),
            StreamEvent::Writable(id) => wake(self.wakers.get_mut(&id).map(|it| &mut it.write)),
            StreamEvent::Closed { id, error } => {
                if let Some(error) = error {
                    self.opened.insert(id, Err(error));
                }
                wake(self.wakers.get_mut(&id).map(|it| &mut it.read));
                wake(self.wakers.get_mut(&id).map(|it| &mut it.write));
            }
        }
    }
}

fn wake(waker: Option<&mut Option<Waker>>) {
    if let Some(waker) = waker.and_then(Option::take) {
        waker.wake();
    }
}

/// Moved only where it would be late: one that is early costs less than one that is moved for each
/// datagram.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Option<Instant>,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: None }
    }

    fn set(&mut self, wanted: Option<Instant>) {
        if let Some(at) = wanted
            && self.at.is_none_or(|set| at < set)
        {
            self.sleep.as_mut().reset(at.into());
            self.at = Some(at);
        }
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).expect("the system has randomness");
    bytes
}

#[expect(clippy::disallowed_methods, reason = "this is the driver")]
fn now() -> Instant {
    Instant::now()
}
