//! Forwarded UDP: each local sender gets a flow of its own, and at the other side a socket of its own, so
//! that answers find back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rawr_nat::link::Link;
use rawr_nat::secure::SecureStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Service;
use super::hub::{Flow, Hub};
use super::target::Target;
use super::wire::{Reply, shown, write_text};

/// Silence after which a flow ends. NATs keep theirs for two minutes at least (RFC 4787 REQ-5).
const IDLE: Duration = Duration::from_secs(120);
/// How long a sender is ignored after the other side has refused it.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
/// Datagrams of a sender that wait until the other side has agreed.
const MAX_WAITING: usize = 64;
const MAX_DATAGRAM: usize = 65_535;

/// Takes what comes to `socket` to `target` at the other side, and answers back, until this is dropped.
/// What the other side refuses is told to `refused`.
///
/// # Errors
/// If the socket fails for good.
pub async fn forward(
    hub: Arc<Hub>,
    socket: UdpSocket,
    target: Target,
    refused: impl Fn(&str),
) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut senders: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = match received {
                    Ok(received) => received,
                    Err(error) if is_passing(&error) => continue,
                    Err(error) => return Err(error),
                };
                let sender = match senders.entry(from) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => {
                        let Some(flow) = hub.open_flow() else { continue };
                        let (sender, datagrams) = mpsc::channel(MAX_WAITING);
                        let application =
                            Application { socket: Arc::clone(&socket), from, datagrams };
                        let carried = carry(Arc::clone(&hub), flow, application, target.clone());
                        flows.spawn(async move { (from, carried.await) });
                        place.insert(sender)
                    }
                };
                // As on any way: what finds no room is lost.
                let _full = sender.try_send(buffer[..length].to_vec());
            }
            Some(ended) = flows.join_next() => {
                if let Ok((from, why)) = ended {
                    senders.remove(&from);
                    why.iter().for_each(|why| refused(why));
                }
            }
        }
    }
}

/// A local sender.
struct Application {
    socket: Arc<UdpSocket>,
    from: SocketAddr,
    datagrams: mpsc::Receiver<Vec<u8>>,
}

/// Carries one sender's datagrams until there are none for a while. Returns why not, if the other side
/// refused.
async fn carry(
    hub: Arc<Hub>,
    mut flow: Flow,
    mut application: Application,
    target: Target,
) -> Option<String> {
    match open(hub.link(), flow.id(), &target).await {
        Ok(mut stream) => {
            loop {
                tokio::select! {
                    datagram = application.datagrams.recv() => match datagram {
                        Some(datagram) => flow.send(&datagram),
                        None => break,
                    },
                    answer = flow.recv() => {
                        // The application may have gone; it is not ours to mend.
                        let _gone = application.socket.try_send_to(&answer, application.from);
                    }
                    // The other side ends it, or the link is over.
                    _ = stream.read_u8() => break,
                    () = tokio::time::sleep(IDLE) => break,
                }
            }
            None
        }
        Err(why) => {
            let ignore = async { while application.datagrams.recv().await.is_some() {} };
            let _over = tokio::time::timeout(AFTER_REFUSAL, ignore).await;
            Some(why)
        }
    }
}

/// The stream that lasts as long as the flow.
async fn open(link: &Link, flow: u32, target: &Target) -> Result<SecureStream, String> {
    let opened = async {
        let mut stream = link.open(Service::Udp.port()).await?;
        stream.write_u32(flow).await?;
        write_text(&mut stream, &target.to_string()).await?;
        let reply = Reply::read(&mut stream).await?;
        io::Result::Ok((stream, reply))
    };
    match opened.await {
        Ok((stream, Reply::Agreed)) => Ok(stream),
        Ok((_, Reply::Refused(why))) => Err(shown(&why)),
        Err(error) => Err(error.to_string()),
    }
}

/// A socket that sends to a target, for the other side.
///
/// # Errors
/// If there is no way to any of its addresses.
pub(super) async fn connect(target: &Target) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in target.resolve().await? {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        match socket.connect(address).await {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Carries a flow of the other side's to `socket` and back, until the other side ends it.
pub(super) async fn serve(mut stream: SecureStream, mut flow: Flow, socket: UdpSocket) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            datagram = flow.recv() => {
                // Nobody may listen there, now; that is for the applications to find out.
                let _unheard = socket.try_send(&datagram);
            }
            answer = socket.recv(&mut buffer) => match answer {
                Ok(length) => flow.send(&buffer[..length]),
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    log::debug!("a forwarded flow ended: {error}");
                    return;
                }
            },
            _ = stream.read_u8() => return,
        }
    }
}

/// An ICMP error about something sent before: the next datagram may be good.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable)
}
