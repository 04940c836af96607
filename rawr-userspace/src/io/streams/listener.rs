//! Accepting clients: TCP and TLS, on ports of their own or on the same one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::Ticket;
use super::connection::Connection;
use super::outbox::Outbox;
use super::{Certificate, ClientStream, Settings, Shared, StreamsError};
use crate::control::{Client, ConnectionId, Over};
use crate::io::clock::monotonic;

/// Clients whose connection the stack has made and the loop has not seen yet.
const BACKLOG: i32 = 1024;
/// How long to wait after a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a client may leave sent bytes unacknowledged before its connection counts as dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Bytes of TLS records that one system call may write.
const COLLECTED: usize = 16 << 10;
/// First byte of a TLS connection: a handshake record (RFC 8446 §5.1, RFC 7983 §7).
const TLS_HANDSHAKE: u8 = 22;

/// What an address offers.
#[derive(Clone)]
enum Offer {
    Tcp,
    Tls(TlsAcceptor),
    /// As the first byte tells.
    Either(TlsAcceptor),
}

/// A connection that is ready for messages.
enum Begun {
    Tcp(TcpStream),
    Tls(Box<TlsStream<BufWriter<TcpStream>>>),
}

/// Listens on all addresses and begins to accept. The addresses.
pub(super) fn listen(
    settings: &Settings,
    certificate: Option<&Arc<Certificate>>,
    shared: &Arc<Shared>,
) -> Result<Vec<SocketAddr>, StreamsError> {
    let acceptor = match certificate {
        Some(certificate) if !settings.tls.is_empty() => {
            Some(TlsAcceptor::from(certificate.server_config()?))
        }
        _ => None,
    };
    let mut addresses = settings.tcp.clone();
    addresses.extend(settings.tls.iter().filter(|address| !settings.tcp.contains(address)));
    let mut bound = Vec::new();
    for &address in &addresses {
        let offer = match (&acceptor, settings.tcp.contains(&address)) {
            (Some(tls), true) if settings.tls.contains(&address) => Offer::Either(tls.clone()),
            (Some(tls), false) => Offer::Tls(tls.clone()),
            (_, true) => Offer::Tcp,
            (None, false) => return Err(StreamsError::NoCertificate),
        };
        match bind(address) {
            Ok(listener) => {
                bound.push(listener.local_addr().unwrap_or(address));
                tokio::spawn(accept(listener, offer, Arc::clone(shared)));
            }
            // A host without IPv6 still serves IPv4.
            Err(source) if address.ip().is_unspecified() && addresses.len() > 1 => {
                log::warn!("not listening on TCP {address}: {source}");
            }
            Err(source) => return Err(StreamsError::Listen { address, source }),
        }
    }
    Ok(bound)
}

/// What TLS and DTLS are secured with, if either is offered.
pub(super) fn certificate(settings: &Settings) -> Result<Option<Arc<Certificate>>, StreamsError> {
    if settings.tls.is_empty() && settings.dtls.is_empty() {
        return Ok(None);
    }
    let files = settings.certificate.clone().ok_or(StreamsError::NoCertificate)?;
    let certificate = match settings.dtls.is_empty() {
        true => Certificate::load(files)?,
        false => Certificate::load_for_dtls(files)?,
    };
    Ok(Some(certificate))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a predecessor that are still being closed do not keep us from starting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, offer: Offer, shared: Arc<Shared>) {
    while !shared.events.is_closed() {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!("cannot accept a TCP connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(ticket) = shared.admission.admit(remote.ip()) else {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            // A reset leaves nothing behind here, where closing would for a minute.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(stream, remote, offer.clone(), Arc::clone(&shared), ticket));
    }
}

/// Serves one client from its first byte to its last. `_ticket` counts it meanwhile.
async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    offer: Offer,
    shared: Arc<Shared>,
    _ticket: Ticket,
) {
    let first_by = Instant::from_std(monotonic()) + shared.timeouts.handshake;
    let prepared = prepare(&stream);
    let begun = match (timeout_at(first_by, offer.begin(stream)).await, prepared) {
        (Ok(Ok(begun)), Ok(local)) => Ok((begun, local)),
        (Ok(Err(error)), _) | (_, Err(error)) => Err(error),
        (Err(_), _) => Err(io::ErrorKind::TimedOut.into()),
    };
    match begun {
        Ok((Begun::Tcp(stream), local)) => {
            open(&shared, local, remote, Over::Tcp, stream, first_by).run().await;
        }
        Ok((Begun::Tls(stream), local)) => {
            open(&shared, local, remote, Over::Tls, *stream, first_by).run().await;
        }
        Err(error) => {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            log::debug!("stream of {remote}: {error}");
        }
    }
}

/// Sets what streams of clients need. The address of ours.
fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED))?;
    stream.local_addr()
}

/// Enters the stream into the registry.
fn open<S>(
    shared: &Shared,
    local: SocketAddr,
    remote: SocketAddr,
    over: fn(ConnectionId) -> Over,
    stream: S,
    first_by: Instant,
) -> Connection<S> {
    let (id, outbox) = (shared.next_id(), Arc::new(Outbox::new(shared.send_queue)));
    let entry = ClientStream { outbox: Arc::clone(&outbox), bound_to: None };
    shared.registry().clients.insert(id, entry);
    Connection {
        stream,
        client: Client { local, remote, over: over(id) },
        outbox,
        events: shared.events.clone(),
        timeouts: shared.timeouts,
        first_by,
    }
}

impl Offer {
    /// Agrees on TLS where that is to be.
    async fn begin(&self, stream: TcpStream) -> io::Result<Begun> {
        let tls = match self {
            Self::Tcp => return Ok(Begun::Tcp(stream)),
            Self::Tls(tls) => tls,
            Self::Either(tls) => {
                let mut first = [0];
                if stream.peek(&mut first).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if first != [TLS_HANDSHAKE] {
                    return Ok(Begun::Tcp(stream));
                }
                tls
            }
        };
        let collected = BufWriter::with_capacity(COLLECTED, stream);
        match tls.accept(collected).into_fallible().await {
            Ok(stream) => Ok(Begun::Tls(Box::new(stream))),
            Err((error, mut collected)) => {
                // The alert tells the client why.
                let _ = collected.flush().await;
                Err(error)
            }
        }
    }
}
