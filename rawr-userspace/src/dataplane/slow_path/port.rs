//! One data port: its socket, and the flow of what arrives on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use mio::net::UdpSocket;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::super::Counters;
use super::limit::Limit;
use super::lock;
use crate::io::clock::monotonic;

/// A data port. The worker reads from it; any thread may send by it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) socket: UdpSocket,
    pub(super) local: SocketAddr,
    /// Number of the worker that reads from it.
    pub(super) worker: usize,
    /// Where the worker knows it.
    pub(super) token: AtomicUsize,
    /// Whether the worker has it in its queue.
    pub(super) queued: AtomicBool,
    /// Longest datagrams that may be left to the stack to cut out of a run (GSO): shorter than those
    /// that it has refused, because they exceed the MTU.
    pub(super) largest_segment: AtomicUsize,
    /// Whether the socket's queue of errors may hold some.
    pub(super) faulty: AtomicBool,
    /// Held for writing while the socket does not let its datagrams be fragmented.
    fragmenting: RwLock<()>,
    route: Mutex<Option<Arc<Route>>>,
    packets: AtomicU64,
    bytes: AtomicU64,
    reported: Mutex<Counters>,
}

impl Port {
    pub(super) fn new(socket: Socket, worker: usize) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket.into());
        Ok(Self {
            local: socket.local_addr()?,
            socket,
            worker,
            token: AtomicUsize::new(usize::MAX),
            queued: AtomicBool::new(false),
            largest_segment: AtomicUsize::new(usize::MAX),
            faulty: AtomicBool::new(false),
            fragmenting: RwLock::new(()),
            route: Mutex::new(None),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            reported: Mutex::new(Counters::default()),
        })
    }

    pub(super) fn route(&self) -> Option<Arc<Route>> {
        lock(&self.route).clone()
    }

    /// Whether there was another before.
    pub(super) fn set_route(&self, route: Option<Route>) -> bool {
        std::mem::replace(&mut *lock(&self.route), route.map(Arc::new)).is_some()
    }

    /// Keeps the socket as [`bind`] made it, for whoever sends datagrams that may be fragmented.
    pub(super) fn may_fragment(&self) -> RwLockReadGuard<'_, ()> {
        self.fragmenting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one datagram, which may be fragmented.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let _unchanged = self.may_fragment();
        despite_errors(|| self.socket.send_to(bytes, to).map(drop))
    }

    /// Sends one datagram that no router may fragment, nor this host: one larger than the MTU of its
    /// way fails here or comes back as an ICMP error. The way's MTU is not looked up in what the
    /// stack has learnt, so that the client finds out itself (RFC 8656 §14).
    pub(super) fn send_unfragmented(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let _alone = self.fragmenting.write().unwrap_or_else(PoisonError::into_inner);
        set_fragmentation(&self.socket, self.local, Fragmentation::Never)?;
        // A second try, as for others, would report a datagram that is too big twice.
        let _earlier = self.socket.take_error();
        let sent = self.socket.send_to(bytes, to).map(drop);
        set_fragmentation(&self.socket, self.local, Fragmentation::Allowed)?;
        sent
    }

    pub(super) fn count(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// What was forwarded since the last call, if anything.
    pub(super) fn take_delta(&self) -> Option<Counters> {
        let now = self.counters();
        let last = std::mem::replace(&mut *lock(&self.reported), now);
        let delta = Counters { packets: now.packets - last.packets, bytes: now.bytes - last.bytes };
        (delta.packets > 0).then_some(delta)
    }
}

/// How what arrives on a port leaves again.
#[derive(Debug)]
pub(super) struct Route {
    remote: SocketAddr,
    /// Not owned: the port ends when it is closed, whatever flows into it.
    pub(super) out: Weak<Port>,
    pub(super) to: SocketAddr,
    /// Apart, because few flows have one.
    pub(super) limit: Option<Box<Mutex<Limit>>>,
}

impl Route {
    pub(super) fn new(
        remote: SocketAddr,
        out: &Arc<Port>,
        to: SocketAddr,
        rate: Option<u64>,
    ) -> Self {
        let limit = rate.map(|rate| Box::new(Mutex::new(Limit::new(rate, monotonic()))));
        Self { remote, out: Arc::downgrade(out), to, limit }
    }

    /// Whether a datagram from `source` belongs to the flow. Flow labels and scopes, which a socket
    /// reports beside IPv6 addresses, do not matter.
    pub(super) fn takes(&self, source: SocketAddr) -> bool {
        self.remote.port() == source.port() && self.remote.ip() == source.ip()
    }
}

/// Sends again where the first try only told of an ICMP error that had come in for another datagram,
/// perhaps to somebody else: the socket reports each once, and sends nothing meanwhile.
pub(super) fn despite_errors<T>(send: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match send() {
        Err(error) if is_of_the_path(&error) => send(),
        result => result,
    }
}

/// Whether an error tells of the network (an ICMP message, say) and the socket is in order.
pub(super) fn is_of_the_path(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EMSGSIZE
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EPROTO
                | libc::EACCES
        )
    )
}

/// What may become of a datagram that does not fit the MTU.
#[derive(Clone, Copy)]
enum Fragmentation {
    /// It leaves in fragments.
    Allowed,
    /// It is refused.
    Never,
}

/// Over IPv4 "never" sets "don't fragment" and ignores the path MTU that the stack knows; over IPv6 the
/// same, and the stack does not fragment.
fn set_fragmentation(
    socket: &impl AsRawFd,
    local: SocketAddr,
    fragmentation: Fragmentation,
) -> io::Result<()> {
    use Fragmentation::{Allowed, Never};
    match (local.ip(), fragmentation) {
        (IpAddr::V4(_), Allowed) => {
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
        }
        (IpAddr::V4(_), Never) => {
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        }
        (IpAddr::V6(_), Allowed) => {
            let discovery = libc::IPV6_PMTUDISC_DONT;
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discovery)?;
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
        }
        (IpAddr::V6(_), Never) => {
            let discovery = libc::IPV6_PMTUDISC_PROBE;
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discovery)?;
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
        }
    }
}

/// Lets the stack fragment what a UDP socket of the family of `local` sends.
pub fn allow_fragmentation(socket: &impl AsRawFd, local: SocketAddr) -> io::Result<()> {
    set_fragmentation(socket, local, Fragmentation::Allowed)
}

/// A UDP socket at `at`, ready for workers: does not block, reports and sets ECN, receives GRO
/// batches, keeps ICMP errors, lets the stack fragment.
pub(super) fn bind(at: SocketAddr, buffer: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    match at.ip() {
        IpAddr::V4(_) => {
            socket.set_recv_tos_v4(true)?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        }
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_recv_tclass_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
    }
    allow_fragmentation(&socket, at)?;
    // Absent before Linux 5.0, where batches are only smaller.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    enlarge_buffers(&socket, buffer)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Past the system's limits where we may (CAP_NET_ADMIN), else up to them.
fn enlarge_buffers(socket: &Socket, bytes: usize) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and the size are those of an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(socket: &impl AsRawFd, level: i32, name: i32) -> i32 {
        let mut value = -1i32;
        let mut size = size_of::<i32>() as libc::socklen_t;
        // SAFETY: value and size are valid for writing for the length of the call.
        let result = unsafe {
            let value = (&raw mut value).cast();
            libc::getsockopt(socket.as_raw_fd(), level, name, value, &raw mut size)
        };
        assert_eq!(result, 0);
        value
    }

    #[test]
    fn sockets_let_the_stack_fragment() {
        let v4 = bind("127.0.0.1:0".parse().unwrap(), 65536).unwrap();
        let found = option(&v4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        assert_eq!(found, libc::IP_PMTUDISC_OMIT);
        let v6 = bind("[::1]:0".parse().unwrap(), 65536).unwrap();
        let found = option(&v6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
        assert_eq!(found, libc::IPV6_PMTUDISC_DONT);
        assert_eq!(option(&v6, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG), 0);
        assert!(v6.only_v6().unwrap());
    }

    #[test]
    fn dont_fragment_holds_for_one_datagram() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let at: SocketAddr = address.parse().unwrap();
            let port = Port::new(bind(at, 1 << 20).unwrap(), 0).unwrap();
            let peer = std::net::UdpSocket::bind(at).unwrap();
            let to = peer.local_addr().unwrap();
            let bytes = vec![1; 60_000];
            port.send_unfragmented(to, &bytes).unwrap();
            port.send(to, &bytes).unwrap();
            let mut buffer = vec![0; 65_536];
            for _ in 0..2 {
                assert_eq!(peer.recv(&mut buffer).unwrap(), bytes.len());
            }
            let (level, name, allowed) = match at {
                SocketAddr::V4(_) => {
                    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
                }
                SocketAddr::V6(_) => {
                    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
                }
            };
            assert_eq!(option(&port.socket, level, name), allowed);
        }
    }

    #[test]
    fn an_error_of_one_peer_does_not_lose_the_datagram_to_another() {
        let port = Port::new(bind("127.0.0.1:0".parse().unwrap(), 65536).unwrap(), 0).unwrap();
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let nobody = gone.local_addr().unwrap();
        drop(gone);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..10u8 {
            port.send(nobody, &[number]).unwrap();
            port.send(peer.local_addr().unwrap(), &[number]).unwrap();
            let mut buffer = [0; 8];
            assert_eq!(peer.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], number);
        }
    }

    #[test]
    fn a_flow_ignores_scope_and_flow_label() {
        let socket = bind("127.0.0.1:0".parse().unwrap(), 65536).unwrap();
        let port = Arc::new(Port::new(socket, 0).unwrap());
        let route =
            Route::new("[fe80::1]:9".parse().unwrap(), &port, "[::1]:1".parse().unwrap(), None);
        assert!(route.takes("[fe80::1%3]:9".parse().unwrap()));
        assert!(!route.takes("[fe80::1]:10".parse().unwrap()));
        assert!(!route.takes("[fe80::2]:9".parse().unwrap()));
    }
}
