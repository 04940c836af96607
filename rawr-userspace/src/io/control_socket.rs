//! The server's STUN port: datagrams in with the address of ours that they came to, replies out from
//! that same address.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::dataplane::slow_path::allow_fragmentation;

/// Room for one received buffer. Control messages are short; a buffer that coalesces several (GRO)
/// holds at most 64 KiB.
const BUFFER_SIZE: usize = 1 << 16;

/// Bytes that the kernel may queue for us while the control plane is busy.
const QUEUE_SIZE: usize = 4 << 20;

/// One bound STUN port, on one address or on all of a family.
pub struct ControlSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    bound: SocketAddr,
    takes_requests: bool,
}

/// Receive buffers, shared by all control sockets of a loop.
pub struct Buffers(Vec<u8>);

impl Default for Buffers {
    fn default() -> Self {
        Self(vec![0; BATCH_SIZE * BUFFER_SIZE])
    }
}

impl ControlSocket {
    /// Binds `address`; an unspecified IPv6 address takes IPv6 only.
    ///
    /// # Errors
    /// Whatever the operating system says, typically that the address is in use or not ours.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::open(address, true)
    }

    /// A socket for requests of ours alone, where no STUN port is bound to every address: it takes
    /// whichever source the route to a server has, and hears nothing but responses.
    ///
    /// # Errors
    /// The family of `unspecified` is not there.
    pub fn outbound(unspecified: IpAddr) -> io::Result<Self> {
        Self::open(SocketAddr::new(unspecified, 0), false)
    }

    fn open(address: SocketAddr, takes_requests: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        // Without CAP_NET_ADMIN the kernel caps the size instead of granting it; both are fine.
        let _ = socket.set_recv_buffer_size(QUEUE_SIZE);
        let state = UdpSocketState::new((&socket).into())?;
        // `UdpSocketState` has just forbidden it, for QUIC's sake, and would drop without a word what is
        // longer than the MTU: padded answers (RFC 5780 §7.6), and data on its way to a TURN client.
        allow_fragmentation(&socket, address)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let bound = socket.local_addr()?;
        Ok(Self { socket, state, bound, takes_requests })
    }

    /// The address that was bound.
    pub fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Whether clients may ask here.
    pub fn takes_requests(&self) -> bool {
        self.takes_requests
    }

    /// Whether requests leave by this socket whatever address the route to a server chooses.
    pub fn suits_any_route(&self) -> bool {
        self.bound.ip().is_unspecified()
    }

    /// Whether replies of `local` leave by this socket.
    pub fn serves(&self, local: SocketAddr) -> bool {
        self.bound == local
            || (self.bound.ip().is_unspecified()
                && self.bound.port() == local.port()
                && self.bound.is_ipv4() == local.is_ipv4())
    }

    /// Waits for datagrams and hands each to `take` with the address of ours that it came to and
    /// the one that it came from.
    ///
    /// # Errors
    /// Only those of the socket itself; an ICMP error of an earlier reply is not one.
    pub async fn receive(
        &self,
        buffers: &mut Buffers,
        mut take: impl FnMut(SocketAddr, SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let received = self
            .socket
            .async_io(Interest::READABLE, || {
                let mut slices = buffers.0.chunks_mut(BUFFER_SIZE).map(IoSliceMut::new);
                let mut slices: [_; BATCH_SIZE] = std::array::from_fn(|_| {
                    slices.next().unwrap_or_else(|| IoSliceMut::new(&mut []))
                });
                match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(0),
                    other => other,
                }
            })
            .await?;
        for (meta, buffer) in metas[..received].iter().zip(buffers.0.chunks(BUFFER_SIZE)) {
            let local = self.local(meta.dst_ip);
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                if self.takes_requests || is_response(datagram) {
                    take(local, meta.addr, datagram);
                }
            }
        }
        Ok(())
    }

    /// Sends `bytes` to `to` from the address `from` of ours, or from the one that the route chooses.
    ///
    /// # Errors
    /// The queue is full, or the destination cannot be reached. Requests are retransmitted, so that
    /// is for logs alone.
    pub fn send(&self, from: Option<IpAddr>, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let src_ip = from.filter(|_| self.bound.ip().is_unspecified());
        let transmit =
            Transmit { destination: to, ecn: None, contents: bytes, segment_size: None, src_ip };
        self.socket
            .try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    fn local(&self, destination: Option<IpAddr>) -> SocketAddr {
        match destination {
            Some(ip) if self.bound.ip().is_unspecified() => SocketAddr::new(ip, self.bound.port()),
            _ => self.bound,
        }
    }
}

/// Whether a STUN message has the class of a success or an error response (RFC 8489 §5).
fn is_response(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0b1100_0001 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reply_leaves_from_the_address_that_was_asked() {
        let server = ControlSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = server.bound().port();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"hello", ("127.0.0.9", port)).await.unwrap();

        let mut received = Vec::new();
        server
            .receive(&mut Buffers::default(), |local, from, bytes| {
                received.push((local, from, bytes.to_vec()));
            })
            .await
            .unwrap();

        let (local, from, bytes) = received.pop().unwrap();
        assert_eq!(local, SocketAddr::from(([127, 0, 0, 9], port)));
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(bytes, b"hello");
        assert!(server.serves(local));
        server.send(Some(local.ip()), from, b"back").unwrap();
        let mut buffer = [0; 16];
        let (len, source) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], source), (&b"back"[..], local));
    }

    #[tokio::test]
    async fn an_outbound_socket_hears_responses_only() {
        let outbound = ControlSocket::outbound([0, 0, 0, 0].into()).unwrap();
        let port = outbound.bound().port();
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for first in [0x00, 0x01, 0x40, 0x81] {
            server.send_to(&[first, 0x01], ("127.0.0.1", port)).await.unwrap();
        }

        let mut heard = Vec::new();
        let mut buffers = Buffers::default();
        while heard.is_empty() {
            outbound.receive(&mut buffers, |_, _, bytes| heard.push(bytes[0])).await.unwrap();
        }
        assert_eq!(heard, [0x01]);
        assert!(outbound.suits_any_route());
    }

    #[tokio::test]
    async fn ipv6_wildcard_does_not_take_ipv4() {
        let server = ControlSocket::bind("[::]:0".parse().unwrap()).unwrap();
        assert!(!server.serves(SocketAddr::from(([127, 0, 0, 1], server.bound().port()))));
    }
}
