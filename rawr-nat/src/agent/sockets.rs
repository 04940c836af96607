//! Sockets for paths without RAWR: one on each of the host's addresses, and as many more as punching needs for
//! a while.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::net::UdpSocket;

use super::LocalSocket;
use crate::driver::{bind_udp, enlarge_buffers, try_recv};
use crate::socket_id::SocketId;

/// Own addresses that get a socket.
const MAX_ADDRESSES: usize = 8;
/// Receive buffer of a socket that only probes come to, in bytes: there may be a thousand of them.
const PROBE_BUFFER: usize = 16 << 10;

pub(super) struct OwnSockets {
    sockets: Vec<Own>,
    next_id: u32,
    /// Where to look for a datagram next: each gets its turn.
    turn: usize,
}

struct Own {
    id: SocketId,
    address: SocketAddr,
    socket: UdpSocket,
    /// For as long as the host has the address.
    is_lasting: bool,
    /// Its buffers are those of a socket that only probes come to.
    is_small: bool,
}

/// What [`OwnSockets::refresh`] has done.
pub(super) struct Change {
    pub(super) closed: Vec<SocketId>,
    pub(super) opened: Vec<LocalSocket>,
}

impl OwnSockets {
    pub(super) const fn new() -> Self {
        Self { sockets: Vec::new(), next_id: SocketId::MAPPED.0 + 1, turn: 0 }
    }

    /// Opens a socket on each of the host's addresses that has none, and closes those on addresses that it
    /// has no more. On random ports: several hosts behind one NAT that use the same one get in each other's
    /// way. What cannot be opened is left out.
    pub(super) fn refresh(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Change {
        let mut addresses: Vec<_> = addresses.collect();
        // NATs, which are there to be punched, are a matter of IPv4.
        addresses.sort_by_key(|address| !address.is_ipv4());
        addresses.truncate(MAX_ADDRESSES);
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|own| !own.is_lasting || addresses.contains(&own.address.ip()));
        self.sockets = kept;
        let mut opened = Vec::new();
        for address in addresses {
            if self.named().any(|known| known.address.ip() == address) {
                continue;
            }
            match self.add(address, true) {
                Ok(own) => opened.push(LocalSocket { id: own.id, address: own.address }),
                Err(error) => log::debug!("no socket on {address}: {error}"),
            }
        }
        Change { closed: gone.into_iter().map(|own| own.id).collect(), opened }
    }

    /// Names and addresses of those on the host's addresses.
    pub(super) fn named(&self) -> impl Iterator<Item = LocalSocket> {
        let lasting = self.sockets.iter().filter(|own| own.is_lasting);
        lasting.map(|own| LocalSocket { id: own.id, address: own.address })
    }

    /// The address that punching begins from.
    fn mapped(&self) -> Option<IpAddr> {
        let mut named = self.named();
        named.find(|socket| socket.id == SocketId::MAPPED).map(|socket| socket.address.ip())
    }

    /// Opens so many on the address that punching begins from, or as many as there are to be had.
    pub(super) fn open_more(&mut self, count: u16) -> Vec<SocketId> {
        let Some(address) = self.mapped() else { return Vec::new() };
        let mut opened = Vec::new();
        for _ in 0..count {
            match self.add(address, false) {
                Ok(own) => {
                    let _limited = SockRef::from(&own.socket).set_recv_buffer_size(PROBE_BUFFER);
                    own.is_small = true;
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

    /// Whether only probes are expected to come to it.
    pub(super) fn is_small(&self, id: SocketId) -> bool {
        self.sockets.iter().any(|own| own.id == id && own.is_small)
    }

    /// Data comes to it from now on.
    pub(super) fn enlarge(&mut self, id: SocketId) {
        if let Some(own) = self.sockets.iter_mut().find(|own| own.id == id) {
            own.is_small = false;
            enlarge_buffers(&SockRef::from(&own.socket));
        }
    }

    fn add(&mut self, address: IpAddr, is_lasting: bool) -> io::Result<&mut Own> {
        let socket = bind_udp(SocketAddr::new(address, 0))?;
        let address = socket.local_addr()?;
        let id = match self.mapped() {
            None if is_lasting => SocketId::MAPPED,
            _ => {
                self.next_id += 1;
                SocketId(self.next_id - 1)
            }
        };
        self.sockets.push(Own { id, address, socket, is_lasting, is_small: false });
        let last = self.sockets.len() - 1;
        Ok(&mut self.sockets[last])
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    const LIMIT: Duration = Duration::from_secs(10);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.unwrap() });
    }

    #[test]
    fn many_sockets_for_a_while() {
        run(async {
            let mut own = OwnSockets::new();
            own.refresh([ADDRESS].into_iter());
            let opened = own.open_more(300);
            assert_eq!(opened.len(), 300);
            let mapped = own.named().next().unwrap();
            assert_eq!((mapped.id, own.named().count()), (SocketId::MAPPED, 1));
            for (i, id) in (0_u16..).zip(&opened) {
                let ttl = (i % 2 == 0).then_some(2);
                assert!(own.send(*id, mapped.address, ttl, &i.to_be_bytes()));
            }
            let (mut buffer, mut seen) = ([0; 16], vec![false; opened.len()]);
            while seen.contains(&false) {
                std::future::poll_fn(|context| own.poll_readable(context)).await.unwrap();
                while let Some((id, length, _)) = own.try_recv(&mut buffer).unwrap() {
                    assert_eq!((id, length), (SocketId::MAPPED, 2));
                    seen[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))] = true;
                }
            }
            opened.into_iter().for_each(|id| own.close(id));
            assert_eq!(own.sockets.len(), 1);
        });
    }

    #[test]
    fn a_socket_that_data_comes_to_has_room_for_it() {
        run(async {
            let mut own = OwnSockets::new();
            own.refresh([ADDRESS].into_iter());
            let opened = own.open_more(2);
            let mapped = own.named().next().unwrap();
            let room = |own: &OwnSockets, id| {
                let socket = own.sockets.iter().find(|own| own.id == id).unwrap();
                SockRef::from(&socket.socket).recv_buffer_size().unwrap()
            };
            assert!(!own.is_small(mapped.id) && own.is_small(opened[0]));
            own.enlarge(opened[0]);
            assert!(!own.is_small(opened[0]) && own.is_small(opened[1]));
            assert_eq!(room(&own, opened[0]), room(&own, mapped.id));
            assert!(room(&own, opened[1]) < room(&own, opened[0]));
        });
    }

    #[test]
    fn sockets_follow_the_addresses_of_the_host() {
        run(async {
            let mut own = OwnSockets::new();
            let first = own.refresh([ADDRESS, ADDRESS].into_iter());
            assert_eq!((first.opened.len(), first.closed.len()), (1, 0));
            let both = own.refresh([ADDRESS, OTHER].into_iter());
            assert_eq!((both.opened.len(), both.closed.len()), (1, 0));
            let second = both.opened[0];
            assert_ne!(second.id, SocketId::MAPPED);
            let less = own.refresh([OTHER].into_iter());
            assert_eq!((less.opened, less.closed), (Vec::new(), vec![SocketId::MAPPED]));
            assert!(own.open_more(1).is_empty(), "nothing to punch from");
            let back = own.refresh([ADDRESS, OTHER].into_iter());
            assert_eq!(back.opened[0].id, SocketId::MAPPED);
            assert_eq!(own.named().count(), 2);
        });
    }
}
