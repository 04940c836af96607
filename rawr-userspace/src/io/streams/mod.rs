//! Streams: clients over TCP, TLS and DTLS, and peers of TCP allocations (RFC 6062).
//!
//! ```text
//! accept ─▶ admission ─▶ (TLS) ─▶ one task per stream ─▶ StreamEvent ─▶ loop ─▶ Server
//!                                   ▲     whole messages                         │
//!                                   └──────── Outbox ◀──── Streams::send ◀───────┘
//! ```
//!
//! The tasks run on the loop's own thread: while the loop handles a burst none of them does, so what the
//! burst writes to a stream leaves in one piece. The loop yields to them after each burst.

mod admission;
mod certificate;
mod connection;
#[cfg(feature = "dtls")]
mod dtls;
#[cfg(not(feature = "dtls"))]
#[path = "no_dtls.rs"]
mod dtls;
mod frame;
mod listener;
mod outbox;
mod peers;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use self::admission::Admission;
pub use self::certificate::{Certificate, CertificateError, CertificateFiles, PROTOCOLS};
pub use self::dtls::DtlsPort;
pub(crate) use self::dtls::is_dtls;
use self::outbox::{Order, Outbox};
use self::peers::Ports;
use crate::control::{AttemptId, Client, ConnectError, ConnectionId};

/// Pieces of streams that wait for the loop.
const EVENTS: usize = 256;

/// What is offered to clients, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses for plain TCP.
    pub tcp: Vec<SocketAddr>,
    /// Addresses for TLS. One that is among `tcp` as well serves both: the first byte tells (RFC 7983).
    pub tls: Vec<SocketAddr>,
    /// Addresses for DTLS, over UDP. What comes to one that is among `udp` is handed to [`DtlsPort::take`];
    /// the others are bound here.
    pub dtls: Vec<SocketAddr>,
    /// Addresses of the STUN port over UDP.
    pub udp: Vec<SocketAddr>,
    /// Needed where `tls` or `dtls` has any.
    pub certificate: Option<CertificateFiles>,
    /// Streams of clients altogether, and of one prefix (/24 or /56).
    pub connections: u32,
    pub connections_per_prefix: u32,
    /// Bytes that may wait to be written to one stream.
    pub send_queue: usize,
    pub timeouts: Timeouts,
    /// Answers per second to ClientHellos of one prefix that show no cookie.
    pub unverified_per_second: u32,
    /// Where ports of TCP allocations are chosen from.
    pub relay_ports: RangeInclusive<u16>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tcp: Vec::new(),
            tls: Vec::new(),
            dtls: Vec::new(),
            udp: Vec::new(),
            certificate: None,
            connections: 10_000,
            connections_per_prefix: 1_000,
            send_queue: 1 << 20,
            timeouts: Timeouts::default(),
            unverified_per_second: crate::control::Limits::default().unverified_per_second,
            relay_ports: 49152..=65535,
        }
    }
}

/// How long a client may say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to the first whole message, TLS included.
    pub handshake: Duration,
    /// Between two messages. Longer than the longest lifetime of an allocation, which a client that only
    /// listens refreshes.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(10), idle: Duration::from_secs(3900) }
    }
}

/// What happens on streams.
#[derive(Debug)]
pub enum StreamEvent {
    /// Whole messages of a client, one behind the other; [`messages`] tells them apart.
    Messages { client: Client, bytes: Bytes },
    /// One message of a client over DTLS.
    Message { client: Client, bytes: Bytes },
    /// A stream has ended. Call [`Streams::ended`].
    Gone(ConnectionId),
    /// What has become of [`Streams::connect`].
    PeerConnected { attempt: AttemptId, result: Result<ConnectionId, ConnectError> },
    /// A peer has connected to the TCP port `local`.
    PeerAccepted { local: SocketAddr, remote: SocketAddr, peer: ConnectionId },
}

/// Why no streams can be offered.
#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    #[error("cannot listen on TCP {address}: {source}; see turn.listen_tcp and turn.listen_tls")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "TLS and DTLS need a certificate: set turn.certificate and turn.key, or leave out \
         turn.listen_tls and turn.listen_dtls"
    )]
    NoCertificate,
    #[error("cannot listen on UDP {address} for DTLS: {source}; see turn.listen_dtls")]
    ListenDtls { address: SocketAddr, source: std::io::Error },
    #[error("cannot offer DTLS: {0}")]
    Dtls(String),
    #[error(
        "this rawr cannot do DTLS: build it with the Cargo feature dtls, or leave out turn.listen_dtls"
    )]
    WithoutDtls,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot offer TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// What streams have done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTotals {
    /// Streams of clients now.
    pub open: u32,
    /// Accepted from clients.
    pub accepted: u64,
    /// Refused: there were too many.
    pub refused: u64,
    /// Ended before they spoke: no TLS, or too slow.
    pub failed: u64,
    /// Messages that were dropped because a client did not read.
    pub dropped: u64,
}

/// All streams. None of the methods waits.
#[derive(Debug)]
pub struct Streams {
    shared: Arc<Shared>,
    ports: Ports,
    bound: Vec<SocketAddr>,
    bound_dtls: Vec<SocketAddr>,
    dtls: Option<Arc<DtlsPort>>,
}

/// What the tasks share with the loop.
#[derive(Debug)]
struct Shared {
    events: mpsc::Sender<StreamEvent>,
    registry: Mutex<Registry>,
    admission: Arc<Admission>,
    send_queue: usize,
    timeouts: Timeouts,
    ids: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    /// Something has been handed to the tasks since the loop last yielded to them.
    touched: AtomicBool,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Registry {
    clients: HashMap<ConnectionId, ClientStream>,
    peers: HashMap<ConnectionId, PeerStream>,
}

#[derive(Debug)]
struct ClientStream {
    outbox: Arc<Outbox>,
    bound_to: Option<ConnectionId>,
}

#[derive(Debug)]
enum PeerStream {
    /// Nothing is read from it until a client's stream is bound to it: the stack makes the peer wait.
    Waiting(TcpStream),
    /// To this client's stream, whose task has it.
    BoundTo(ConnectionId),
}

impl Streams {
    /// Listens, and reads the certificate. Must be called within the runtime of the loop.
    pub fn open(settings: &Settings) -> Result<(Self, mpsc::Receiver<StreamEvent>), StreamsError> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            events,
            registry: Mutex::default(),
            admission: Admission::new(settings.connections, settings.connections_per_prefix),
            send_queue: settings.send_queue,
            timeouts: settings.timeouts,
            ids: AtomicU64::new(1),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            touched: AtomicBool::new(false),
        });
        let certificate = listener::certificate(settings)?;
        let bound = listener::listen(settings, certificate.as_ref(), &shared)?;
        let mut bound_dtls = Vec::new();
        let dtls = dtls::listen(settings, certificate.as_ref(), &shared, &mut bound_dtls)?;
        if let Some(certificate) = certificate {
            tokio::spawn(certificate.keep_up());
        }
        let ports = Ports::new(settings.relay_ports.clone());
        Ok((Self { shared, ports, bound, bound_dtls, dtls }, receiver))
    }

    /// The addresses that clients may connect to.
    pub fn bound(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// The addresses that were bound for DTLS alone.
    pub fn bound_dtls(&self) -> &[SocketAddr] {
        &self.bound_dtls
    }

    /// Who takes DTLS datagrams that come to the STUN port `bound`, if anybody does.
    pub fn dtls_at(&self, bound: SocketAddr) -> Option<Arc<DtlsPort>> {
        self.dtls.as_ref().filter(|port| port.serves(bound)).map(Arc::clone)
    }

    /// Queues one message for a client. Whether there is such a stream, with room for it.
    pub fn send(&self, connection: ConnectionId, message: &[u8]) -> bool {
        let registry = self.shared.registry();
        let Some(client) = registry.clients.get(&connection) else { return false };
        let queued = client.outbox.push(message);
        if !queued {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.touched.store(true, Ordering::Relaxed);
        queued
    }

    /// Closes a stream of a client or of a peer, once what waits has been written. The stream that ends
    /// with it, if there is one.
    pub fn close(&self, connection: ConnectionId) -> Option<ConnectionId> {
        self.shared.touched.store(true, Ordering::Relaxed);
        self.shared.registry().remove(connection)
    }

    /// Forgets a stream that has ended. The stream that ends with it, if there is one.
    pub fn ended(&self, connection: ConnectionId) -> Option<ConnectionId> {
        self.close(connection)
    }

    /// From now on, what comes in on either stream goes out on the other. Whether both are there.
    pub fn splice(&self, client: ConnectionId, peer: ConnectionId) -> bool {
        self.shared.touched.store(true, Ordering::Relaxed);
        self.shared.registry().splice(client, peer)
    }

    /// What has happened so far.
    pub fn totals(&self) -> StreamTotals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StreamTotals {
            open: self.shared.admission.count(),
            accepted: read(&self.shared.accepted),
            refused: read(&self.shared.refused),
            failed: read(&self.shared.failed),
            dropped: read(&self.shared.dropped),
        }
    }

    /// Whether the tasks have had something to do since the last call: the loop is to yield to them.
    pub fn take_touched(&self) -> bool {
        self.shared.touched.swap(false, Ordering::Relaxed)
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> ConnectionId {
        ConnectionId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Holds a peer's stream until it is bound or closed.
    fn hold(&self, stream: TcpStream) -> ConnectionId {
        let id = self.next_id();
        self.registry().peers.insert(id, PeerStream::Waiting(stream));
        id
    }
}

impl Registry {
    fn remove(&mut self, connection: ConnectionId) -> Option<ConnectionId> {
        if let Some(client) = self.clients.remove(&connection) {
            client.outbox.order(Order::Close);
            return client.bound_to.filter(|peer| self.peers.remove(peer).is_some());
        }
        match self.peers.remove(&connection)? {
            PeerStream::Waiting(_) => None,
            PeerStream::BoundTo(client) => {
                self.clients.remove(&client)?.outbox.order(Order::Close);
                Some(client)
            }
        }
    }

    fn splice(&mut self, client: ConnectionId, peer: ConnectionId) -> bool {
        let Some(entry) = self.clients.get_mut(&client) else { return false };
        match self.peers.insert(peer, PeerStream::BoundTo(client)) {
            Some(PeerStream::Waiting(stream)) => {
                entry.bound_to = Some(peer);
                entry.outbox.order(Order::Splice(stream));
                true
            }
            Some(bound @ PeerStream::BoundTo(_)) => {
                self.peers.insert(peer, bound);
                false
            }
            None => {
                self.peers.remove(&peer);
                false
            }
        }
    }
}
