//! TCP ports of allocations and the streams of peers (RFC 6062).
//!
//! A relayed transport address is a listening socket; connections to peers leave from the same address
//! and port. That takes SO_REUSEPORT on all of them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Shared, StreamEvent, Streams};
use crate::control::{AttemptId, ConnectError};
use crate::dataplane::slow_path::{On, PortError, candidates, source_toward};

/// Peers whose connection the stack has made and the loop has not seen yet.
const BACKLOG: i32 = 64;
/// How long a peer has to accept: the least that RFC 6062 §5.2 recommends.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// The TCP ports that are open.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    /// Dropping a sender ends the tasks of its port.
    open: HashMap<SocketAddr, watch::Sender<()>>,
}

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, open: HashMap::new() }
    }
}

impl Streams {
    /// Opens a TCP port that peers may connect to. Only addresses that `accept` agrees to are taken.
    pub fn open_port(
        &mut self,
        on: On,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<SocketAddr, PortError> {
        let (local, listener) = match on {
            On::Address(ip) => self.listen_on_some(SocketAddr::new(ip, 0), accept)?,
            On::Toward(to) => self.listen_on_some(source_toward(to)?, accept)?,
            On::Exactly(at) => (at, listen(at).map_err(|source| PortError::Bind { at, source })?),
        };
        let (keep, ended) = watch::channel(());
        self.ports.open.insert(local, keep);
        tokio::spawn(accept_peers(listener, local, Arc::clone(&self.shared), ended));
        Ok(local)
    }

    /// Closes a TCP port. Streams of its peers stay. Whether there was one.
    pub fn close_port(&mut self, local: SocketAddr) -> bool {
        self.ports.open.remove(&local).is_some()
    }

    /// Connects from the TCP port `local`. What becomes of it is told by an event.
    pub fn connect(&self, attempt: AttemptId, local: SocketAddr, to: SocketAddr) {
        let ended = self.ports.open.get(&local).map(watch::Sender::subscribe);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let result = match ended {
                Some(mut ended) => tokio::select! {
                    result = connect(local, to) => result,
                    _ = ended.changed() => Err(ConnectError::Failed),
                },
                None => Err(ConnectError::Failed),
            };
            let result = result.map(|stream| shared.hold(stream));
            // Without a loop there is nobody to tell.
            let _ = shared.events.send(StreamEvent::PeerConnected { attempt, result }).await;
        });
    }

    fn listen_on_some(
        &self,
        address: SocketAddr,
        accept: &dyn Fn(SocketAddr) -> bool,
    ) -> Result<(SocketAddr, TcpListener), PortError> {
        for port in candidates(&self.ports.range) {
            let at = SocketAddr::new(address.ip(), port);
            if self.ports.open.contains_key(&at) || !accept(at) {
                continue;
            }
            match claim(at).and_then(|()| listen(at)) {
                Ok(listener) => return Ok((at, listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(PortError::Bind { at, source }),
            }
        }
        Err(PortError::NoFreePort { ip: address.ip(), range: self.ports.range.clone() })
    }
}

/// Makes sure that nobody has `at`. A socket with SO_REUSEPORT does not tell: it would share the address with
/// those of other processes, and their connections.
fn claim(at: SocketAddr) -> io::Result<()> {
    let probe = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        probe.set_only_v6(true)?;
    }
    probe.bind(&at.into())
}

/// A socket at `at` beside which others may have the same address.
fn socket(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn connect(local: SocketAddr, to: SocketAddr) -> Result<TcpStream, ConnectError> {
    let connecting = async {
        let stream = TcpSocket::from_std_stream(socket(local)?.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            log::debug!("cannot connect from {local} to {to}: {error}");
            Err(match error.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => ConnectError::Exists,
                _ => ConnectError::Failed,
            })
        }
        Err(_) => Err(ConnectError::Failed),
    }
}

/// Hands peers to the loop, until the port is closed.
async fn accept_peers(
    listener: TcpListener,
    local: SocketAddr,
    shared: Arc<Shared>,
    mut ended: watch::Receiver<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.changed() => return,
        };
        match accepted {
            Ok((stream, remote)) => {
                // Some peers would only be slower.
                let _ = stream.set_nodelay(true);
                let peer = shared.hold(stream);
                let event = StreamEvent::PeerAccepted { local, remote, peer };
                // While the loop is busy, further peers wait in the stack.
                if shared.events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                log::debug!("cannot accept a peer on {local}: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
