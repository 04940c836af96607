//! Sockets that share a local port: one listens, the others connect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Streams that wait to be accepted.
const BACKLOG: u32 = 64;

/// A listener on this address, or on any port if that is zero, which others may share.
pub(super) fn listen(local: SocketAddr) -> io::Result<TcpListener> {
    bind(local, true)?.listen(BACKLOG)
}

/// The same on a port that nobody has yet.
pub(super) fn claim(local: SocketAddr) -> io::Result<TcpListener> {
    drop(bind(local, false)?);
    listen(local)
}

/// Connects from a port that other sockets have, too. A reset, if it comes, comes at once; what is
/// given up leaves nothing behind.
pub(super) async fn connect(local: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    bind(local, true)?.connect(to).await
}

/// The first stream that comes.
pub(super) async fn accept(listener: TcpListener) -> io::Result<TcpStream> {
    Ok(listener.accept().await?.0)
}

/// The usual end of a stream, for one that is kept.
pub(super) fn keep(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

fn bind(local: SocketAddr, shares: bool) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(shares)?;
    socket.set_reuse_port(shares)?;
    // Without, a port would stay taken for a minute by each stream that was not picked.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&local.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
