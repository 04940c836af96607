//! Sockets for paths without RAWR: one on each own address, and as many more as punching needs for a while.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::net::UdpSocket;

use super::LocalSocket;
use crate::driver::{bind_udp, try_recv};
use crate::socket_id::SocketId;

/// Own addresses that get a socket.
const MAX_ADDRESSES: usize = 8;
/// Receive buffer of a socket that only probes come to, in bytes: there may be a thousand of them.
const PROBE_BUFFER: usize = 16 << 10;

pub(super) struct OwnSockets {
    sockets: Vec<Own>,
    /// Of these, the first are there for good.
    lasting: usize,
    next_id: u32,
    /// Where to look for a datagram next: each gets its turn.
    turn: usize,
}

struct Own {
    id: SocketId,
    address: SocketAddr,
    socket: UdpSocket,
}

impl OwnSockets {
    /// On random ports: several hosts behind one NAT that use the same one get in each other's way. What
    /// cannot be opened is left out.
    pub(super) fn open(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let mut addresses: Vec<_> = addresses.collect();
        // NATs, which are there to be punched, are a matter of IPv4.
        addresses.sort_by_key(|address| !address.is_ipv4());
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        let mut own = Self { sockets: Vec::new(), lasting: 0, next_id: 0, turn: 0 };
        for address in addresses {
            if let Err(error) = own.add(address) {
                log::debug!("no socket on {address}: {error}");
            }
        }
        own.lasting = own.sockets.len();
        own
    }

    /// Names and addresses of those that are there for good.
    pub(super) fn named(&self) -> impl Iterator<Item = LocalSocket> {
        let lasting = self.sockets.iter().take(self.lasting);
        lasting.map(|own| LocalSocket { id: own.id, address: own.address })
    }

    /// Opens so many on the first one's address, or as many as there are to be had.
    pub(super) fn open_more(&mut self, count: u16) -> Vec<SocketId> {
        let Some(address) = self.sockets.first().map(|own| own.address.ip()) else {
            return Vec::new();
        };
        let mut opened = Vec::new();
        for _ in 0..count {
            match self.add(address) {
                Ok(own) => {
                    let _limited = SockRef::from(&own.socket).set_recv_buffer_size(PROBE_BUFFER);
                    opened.push(own.id);
                }
                Err(error) => {
                    log::warn!("{} of {count} sockets on {address}: {error}", opened.len());
                    break;
                }
            }
        }
        opened
    }

    pub(super) fn close(&mut self, id: SocketId) {
        self.sockets.retain(|own| own.id != id);
    }

    /// Returns whether the kernel took it. What it does not take is lost, as on the way.
    pub(super) fn send(&self, id: SocketId, to: SocketAddr, ttl: Option<u8>, bytes: &[u8]) -> bool {
        let Some(own) = self.sockets.iter().find(|own| own.id == id) else { return false };
        // Not by tokio, which takes a socket for busy until it has first polled it.
        let socket = SockRef::from(&own.socket);
        let result = match ttl {
            None => socket.send_to(bytes, &to.into()),
            Some(ttl) => send_with_ttl(&socket, to, ttl, bytes),
        };
        if let Err(error) = &result {
            log::trace!("{} bytes to {to} not sent: {error}", bytes.len());
        }
        result.is_ok()
    }

    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All are asked, so that each wakes us.
        let mut ready = Poll::Pending;
        for own in &self.sockets {
            if let Poll::Ready(result) = own.socket.poll_recv_ready(context) {
                ready = Poll::Ready(result);
            }
        }
        ready
    }

    /// A datagram that has come already.
    pub(super) fn try_recv(
        &mut self,
        buffer: &mut [u8],
    ) -> io::Result<Option<(SocketId, usize, SocketAddr)>> {
        let count = self.sockets.len();
        for i in 0..count {
            let own = &self.sockets[(self.turn + i) % count];
            if let Some((length, from)) = try_recv(&own.socket, buffer)? {
                self.turn = (self.turn + i + 1) % count;
                return Ok(Some((own.id, length, from)));
            }
        }
        Ok(None)
    }

    fn add(&mut self, address: IpAddr) -> io::Result<&Own> {
        let socket = bind_udp(SocketAddr::new(address, 0))?;
        let (id, address) = (SocketId(self.next_id), socket.local_addr()?);
        self.next_id += 1;
        self.sockets.push(Own { id, address, socket });
        Ok(&self.sockets[self.sockets.len() - 1])
    }
}

/// Linux has no way to say it for one datagram without `unsafe`; nobody else sends meanwhile.
fn send_with_ttl(socket: &SockRef<'_>, to: SocketAddr, ttl: u8, bytes: &[u8]) -> io::Result<usize> {
    if to.is_ipv4() {
        let usual = socket.ttl_v4()?;
        socket.set_ttl_v4(ttl.into())?;
        let sent = socket.send_to(bytes, &to.into());
        socket.set_ttl_v4(usual)?;
        sent
    } else {
        let usual = socket.unicast_hops_v6()?;
        socket.set_unicast_hops_v6(ttl.into())?;
        let sent = socket.send_to(bytes, &to.into());
        socket.set_unicast_hops_v6(usual)?;
        sent
    }
}
