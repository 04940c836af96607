//! A server of the simple protocol.

use std::io;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::address::MappedSocketAddr;
use super::context::MappingContext;
use super::error::Warned;
use super::simple;
use super::udp::MappedUdpSocket;

/// RAII type for a hole punch server which speaks the
/// [simple hole punching protocol](super#the-simple-protocol): it serves until it is dropped.
///
/// It tells whoever asks where the question came from, in fewer bytes than the question had, and keeps
/// no state: nobody can use it to multiply traffic, or fill it up. It asks for no name and no password, so it is
/// open to everybody who reaches it.
///
/// It is of use where others reach it unasked: on a host with a public address, or behind a router that maps a
/// port for it. Two of them on different addresses tell a socket more than one does: whether its NAT gives
/// each destination another port.
///
/// ```no_run
/// # use rawr_nat::rendezvous::{HolePunchServerAddr, MappingContext, SimpleUdpHolePunchServer};
/// # async fn example() -> std::io::Result<()> {
/// let context = MappingContext::new().await?;
/// let socket = tokio::net::UdpSocket::bind("[::]:5000").await?;
/// let server = SimpleUdpHolePunchServer::on(socket, &context).await?;
/// for warning in &server.warnings {
///     eprintln!("{warning}");
/// }
/// for address in server.value.addresses() {
///     // What others hand to MappingContext::add_servers.
///     println!("{:?}", HolePunchServerAddr::Simple(address.addr));
/// }
/// // It serves until it is dropped.
/// std::future::pending().await
/// # }
/// ```
#[derive(Debug)]
pub struct SimpleUdpHolePunchServer<'a> {
    /// Its port mappings are held there.
    _mapping_context: &'a MappingContext,
    addresses: Vec<MappedSocketAddr>,
    task: JoinHandle<()>,
}

impl<'a> SimpleUdpHolePunchServer<'a> {
    /// Create a new server on any port. It serves in the background until it is dropped.
    ///
    /// # Errors
    /// If no socket can be opened.
    pub async fn new(mapping_context: &'a MappingContext) -> io::Result<Self> {
        Ok(Self::serve(MappedUdpSocket::new(mapping_context).await?, mapping_context))
    }

    /// The same on a socket that is bound to where the server is to be found, with what did not work
    /// while it was mapped.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn on(
        socket: UdpSocket,
        mapping_context: &'a MappingContext,
    ) -> io::Result<Warned<Self>> {
        let Warned { value, warnings } =
            MappedUdpSocket::map_with_warnings(socket, mapping_context).await?;
        Ok(Warned { value: Self::serve(value, mapping_context), warnings })
    }

    fn serve(mapped: MappedUdpSocket, context: &'a MappingContext) -> Self {
        let MappedUdpSocket { socket, endpoints: addresses } = mapped;
        let task = tokio::spawn(answer(socket));
        Self { _mapping_context: context, addresses, task }
    }

    /// Get the external addresses of this server to be shared with peers. Those that are
    /// `nat_restricted` are of no use to hosts outside: a server has to be reached unasked.
    pub fn addresses(&self) -> Vec<MappedSocketAddr> {
        self.addresses.clone()
    }
}

impl Drop for SimpleUdpHolePunchServer<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(socket: UdpSocket) {
    // One byte more than a request: what is longer is none.
    let mut buffer = [0; simple::ASK_LEN + 1];
    while socket.readable().await.is_ok() {
        loop {
            // The address as it is, to be answered as it is.
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    if let Some(answer) = simple::answer(&buffer[..length], from) {
                        // What the kernel does not take is lost, as on the way.
                        let _ = socket.try_send_to(&answer, from);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about an answer.
                Err(error) => {
                    log::debug!("the hole punch server goes on after: {error}");
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
