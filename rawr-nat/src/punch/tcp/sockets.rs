//! Sockets that share a local port: one listens, the others connect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Streams that wait to be accepted.
const BACKLOG: u32 = 64;
/// The usual hop limit (RFC 1700, "IP time to live parameter").
const USUAL_HOPS: u32 = 64;

/// A listener on this address, or on any port if that is zero, which others may share.
pub(super) fn listen(local: SocketAddr) -> io::Result<TcpListener> {
    bind(local, None)?.listen(BACKLOG)
}

/// Connects from a port that other sockets have, too. A reset, if it comes, comes at once; what is
/// given up leaves nothing behind.
pub(super) async fn connect(
    local: SocketAddr,
    to: SocketAddr,
    ttl: Option<u8>,
) -> io::Result<TcpStream> {
    bind(local, ttl)?.connect(to).await
}

/// The first stream that comes.
pub(super) async fn accept(listener: TcpListener) -> io::Result<TcpStream> {
    Ok(listener.accept().await?.0)
}

/// The usual end of a stream, and the usual hop limit, for one that is kept.
pub(super) fn keep(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_linger(None)?;
    if stream.local_addr()?.is_ipv4() {
        socket.set_ttl_v4(USUAL_HOPS)
    } else {
        socket.set_unicast_hops_v6(USUAL_HOPS)
    }
}

fn bind(local: SocketAddr, ttl: Option<u8>) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Without, a port would stay taken for a minute by each stream that was not picked.
    socket.set_linger(Some(Duration::ZERO))?;
    match (ttl, local.is_ipv4()) {
        (Some(ttl), true) => socket.set_ttl_v4(ttl.into())?,
        (Some(ttl), false) => socket.set_unicast_hops_v6(ttl.into())?,
        (None, _) => {}
    }
    socket.bind(&local.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
