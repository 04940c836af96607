//! Forwarded TCP: each connection that one side accepts is one that the other side makes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rawr_nat::secure::SecureStream;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Service;
use super::hub::Hub;
use super::target::Target;
use super::wire::{Reply, shown, write_text};

/// How long a target may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 * 1024;
/// Pause after an error of the listening socket's, such as too many open files.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Takes every connection of `listener` to `target` at the other side, until this is dropped. What the
/// other side refuses is told to `refused`.
pub async fn forward(hub: Arc<Hub>, listener: TcpListener, target: Target, refused: impl Fn(&str)) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(carry(Arc::clone(&hub), socket, target.clone()));
                }
                Err(error) => {
                    log::warn!("a connection for {target} was not accepted: {error}");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            },
            Some(carried) = connections.join_next() => {
                if let Ok(Some(why)) = carried {
                    refused(&why);
                }
            }
        }
    }
}

/// Carries one connection. Returns why not, if the other side refused.
async fn carry(hub: Arc<Hub>, socket: TcpStream, target: Target) -> Option<String> {
    let opened = async {
        let mut stream = hub.link().open(Service::Tcp.port()).await?;
        write_text(&mut stream, &target.to_string()).await?;
        let reply = Reply::read(&mut stream).await?;
        io::Result::Ok((stream, reply))
    };
    match opened.await {
        Ok((stream, Reply::Agreed)) => {
            join(stream, socket).await;
            None
        }
        Ok((_, Reply::Refused(why))) => {
            reset(&socket);
            Some(shown(&why))
        }
        Err(error) => {
            reset(&socket);
            Some(error.to_string())
        }
    }
}

/// Connects to a target, for the other side.
///
/// # Errors
/// If none of its addresses accepts.
pub(super) async fn connect(target: &Target) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in target.resolve().await? {
        match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Copies both ways until both are at their end. What breaks on one side is broken off on the other, so
/// that nobody takes it for an end.
pub(super) async fn join(mut stream: SecureStream, mut socket: TcpStream) {
    // Small messages do not wait for more.
    let _unsupported = socket.set_nodelay(true);
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut socket, &mut stream, BUFFER, BUFFER).await;
    if let Err(error) = copied {
        log::debug!("a forwarded connection broke: {error}");
        stream.abort();
        reset(&socket);
    }
}

/// Has the socket break off, and not end, when it is closed.
fn reset(socket: &TcpStream) {
    let _gone = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
