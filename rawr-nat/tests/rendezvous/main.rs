//! The API on loopback: what is asked, what is told, and what comes of it.
#![cfg(feature = "tokio")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rawr_nat::rendezvous::{
    HolePunchServerAddr, MapFuture, MapWarning, MappedTcpSocket, MappedUdpSocket, MappingContext,
    PortLease, PortMapping, PrivRendezvousInfo, PubRendezvousInfo, PunchError, PunchedUdpSocket,
    ReleaseFuture, SimpleUdpHolePunchServer, Transport, gen_rendezvous_info, tcp_punch_hole,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

async fn udp(at: &str) -> UdpSocket {
    UdpSocket::bind(at).await.unwrap()
}

/// A server on this address of loopback, and how it is told to a context.
async fn server<'a>(
    mc: &'a MappingContext,
    at: &str,
) -> (SimpleUdpHolePunchServer<'a>, HolePunchServerAddr) {
    let socket = udp(at).await;
    let address = socket.local_addr().unwrap();
    let server = SimpleUdpHolePunchServer::on(socket, mc).await.unwrap().value;
    (server, HolePunchServerAddr::Simple(address))
}

/// A router that gives the next port of its own, and counts those that have not been given back.
#[derive(Debug, Default)]
struct Router {
    asked: Mutex<Vec<(Transport, SocketAddr)>>,
    held: Arc<AtomicUsize>,
    refuses: bool,
    is_released: AtomicBool,
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the test's router")
    }
}

impl PortMapping for Router {
    fn map(&self, transport: Transport, local: SocketAddr) -> MapFuture<'_> {
        Box::pin(async move {
            self.asked.lock().unwrap().push((transport, local));
            if self.refuses {
                return Err("it is not allowed".to_owned());
            }
            self.held.fetch_add(1, Ordering::SeqCst);
            let guard: Box<dyn Any + Send + Sync> = Box::new(Held(Arc::clone(&self.held)));
            let external = SocketAddr::from(([203, 0, 113, 1], local.port()));
            Ok(PortLease { external, is_double_nat: false, guard })
        })
    }

    fn release(&self) -> ReleaseFuture<'_> {
        Box::pin(async { self.is_released.store(true, Ordering::SeqCst) })
    }
}

fn addresses(mapped: &MappedUdpSocket) -> Vec<SocketAddr> {
    mapped.endpoints.iter().map(|endpoint| endpoint.addr).collect()
}

#[tokio::test]
async fn routers_and_servers_are_both_asked() {
    let mc = MappingContext::without_gateways();
    let (_server, at) = server(&mc, "127.0.0.1:0").await;
    let router = Arc::new(Router::default());
    mc.add_servers([at.clone(), HolePunchServerAddr::IgdGateway(router.clone()), at]);
    assert_eq!(mc.servers().len(), 2, "the same server twice is one");

    let socket = udp("127.0.0.1:0").await;
    let local = socket.local_addr().unwrap();
    let mapped = MappedUdpSocket::map_with_warnings(socket, &mc).await.unwrap();
    assert_eq!(mapped.warnings, []);
    let external = SocketAddr::from(([203, 0, 113, 1], local.port()));
    assert_eq!(addresses(&mapped.value), [external, local]);
    assert!(!mapped.value.endpoints[0].nat_restricted, "a router has mapped it");
    assert_eq!(*router.asked.lock().unwrap(), [(Transport::Udp, local)]);
}

#[tokio::test]
async fn what_does_not_answer_is_told_beside_success() {
    let mc = MappingContext::without_gateways();
    let (_server, at) = server(&mc, "127.0.0.1:0").await;
    let silent = udp("127.0.0.1:0").await;
    let silent_at = silent.local_addr().unwrap();
    let router = Arc::new(Router { refuses: true, ..Router::default() });
    mc.add_servers([
        HolePunchServerAddr::Simple(silent_at),
        at,
        HolePunchServerAddr::IgdGateway(router),
    ]);
    let socket = udp("127.0.0.1:0").await;
    let local = socket.local_addr().unwrap();
    let mapped = MappedUdpSocket::map_with_warnings(socket, &mc).await.unwrap();
    assert_eq!(addresses(&mapped.value), [local], "the other server has answered");
    assert!(mapped.value.endpoints[0].nat.is_some());
    let gateway = "the test's router".to_owned();
    let refused = MapWarning::NotMapped { gateway, why: "it is not allowed".to_owned() };
    assert_eq!(mapped.warnings, [refused, MapWarning::NoAnswer(silent_at)]);
}

#[tokio::test]
async fn without_servers_there_is_a_warning_and_the_own_address() {
    let mc = MappingContext::without_gateways();
    let mapped = MappedUdpSocket::new_with_warnings(&mc).await.unwrap();
    assert_eq!(mapped.warnings, [MapWarning::NoServers]);
    assert!(!mapped.value.endpoints.is_empty());
}

#[tokio::test]
async fn a_mapping_is_given_back_once_its_socket_is_closed() {
    let mc = MappingContext::without_gateways();
    let router = Arc::new(Router::default());
    mc.add_servers([HolePunchServerAddr::IgdGateway(router.clone())]);
    let held = || router.held.load(Ordering::SeqCst);
    let first = MappedUdpSocket::map(udp("127.0.0.1:0").await, &mc).await.unwrap();
    let second = MappedUdpSocket::map(udp("127.0.0.1:0").await, &mc).await.unwrap();
    assert_eq!(held(), 2);
    drop(first);
    let third = MappedUdpSocket::map(udp("127.0.0.1:0").await, &mc).await.unwrap();
    assert_eq!(held(), 2);
    drop((second, third, mc));
    assert_eq!(held(), 0);
}

#[tokio::test]
async fn routers_have_removed_all_once_the_context_is_closed() {
    let mc = MappingContext::without_gateways();
    let router = Arc::new(Router::default());
    mc.add_servers([HolePunchServerAddr::IgdGateway(router.clone())]);
    let mapped = MappedUdpSocket::map(udp("127.0.0.1:0").await, &mc).await.unwrap();
    assert_eq!(router.held.load(Ordering::SeqCst), 1);
    mc.close().await;
    assert_eq!(router.held.load(Ordering::SeqCst), 0, "though the socket is open");
    assert!(router.is_released.load(Ordering::SeqCst));
    drop(mapped);
}

#[tokio::test]
async fn a_server_answers_no_more_once_it_is_dropped_and_never_with_more_than_it_got() {
    let mc = MappingContext::without_gateways();
    let (server, at) = server(&mc, "127.0.0.1:0").await;
    assert_eq!(server.addresses().len(), 1);
    let HolePunchServerAddr::Simple(at) = at else { panic!("{at:?}") };
    let socket = udp("127.0.0.1:0").await;
    let mut request = vec![0; 64];
    request[..8].copy_from_slice(b"where?\x00\x01");
    // The first is too short, the second too long, the third is none.
    let long = [request.clone(), vec![0]].concat();
    for wrong in [&request[..63], &long[..], &[0; 64]] {
        socket.send_to(wrong, at).await.unwrap();
    }
    socket.send_to(&request, at).await.unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
    assert_eq!((length, from), (60, at));
    assert_eq!(&buffer[..8], b"there!\x00\x01");
    drop(server);
    // The port is free again once the task has ended.
    while UdpSocket::bind(at).await.is_err() {
        tokio::task::yield_now().await;
    }
}

/// Maps and tells, the rest is up to the test.
async fn prepare(at: &str) -> (UdpSocket, PrivRendezvousInfo, PubRendezvousInfo) {
    let mc = MappingContext::without_gateways();
    let mapped = MappedUdpSocket::map(udp(at).await, &mc).await.unwrap();
    let (private, public) = gen_rendezvous_info(mapped.endpoints);
    // As over the wire.
    (mapped.socket, private, public.to_string().parse().unwrap())
}

#[tokio::test]
async fn both_find_each_other_and_nothing_is_left_of_the_probes() {
    for (a, b) in [("127.0.0.1:0", "127.0.0.2:0"), ("[::1]:0", "[::1]:0")] {
        let (a, a_private, a_public) = prepare(a).await;
        let (b, b_private, b_public) = prepare(b).await;
        let (a, b) = tokio::join!(
            PunchedUdpSocket::punch_hole(a, a_private, b_public),
            PunchedUdpSocket::punch_hole(b, b_private, a_public),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.peer_addr, b.socket.local_addr().unwrap());
        assert_eq!(b.peer_addr, a.socket.local_addr().unwrap());
        a.socket.send_to(b"data", a.peer_addr).await.unwrap();
        let mut buffer = [0; 100];
        let (length, from) = b.socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"data"[..], b.peer_addr));
    }
}

#[tokio::test]
async fn what_the_faster_side_sends_at_once_is_not_lost() {
    let (a, a_private, a_public) = prepare("127.0.0.1:0").await;
    let (b, b_private, b_public) = prepare("127.0.0.2:0").await;
    let talk = |punched: PunchedUdpSocket| async move {
        for number in 0..20_u8 {
            punched.socket.send_to(&[number], punched.peer_addr).await.unwrap();
        }
        let (mut buffer, mut got) = ([0; 100], Vec::new());
        while got.len() < 20 {
            let (length, _) = punched.socket.recv_from(&mut buffer).await.unwrap();
            // A late probe is longer.
            if length == 1 {
                got.push(buffer[0]);
            }
        }
        got
    };
    let (a, b) = tokio::join!(
        async { talk(PunchedUdpSocket::punch_hole(a, a_private, b_public).await.unwrap()).await },
        async { talk(PunchedUdpSocket::punch_hole(b, b_private, a_public).await.unwrap()).await },
    );
    assert_eq!(a, (0..20).collect::<Vec<_>>());
    assert_eq!(b, a);
}

#[tokio::test]
async fn a_stranger_is_not_taken_for_the_other_side() {
    let (a, a_private, a_public) = prepare("127.0.0.1:0").await;
    let (_, _, b_public) = prepare("127.0.0.2:0").await;
    // It knows all that was told, and has another key.
    let (c, c_private, _) = prepare("127.0.0.3:0").await;
    let (a, c) = tokio::join!(
        PunchedUdpSocket::punch_hole(a, a_private, b_public),
        PunchedUdpSocket::punch_hole(c, c_private, a_public),
    );
    assert!(matches!(a, Err(PunchError::TimedOut { endpoints: 1, hopeless: None })), "{a:?}");
    assert!(matches!(c, Err(PunchError::TimedOut { .. })), "{c:?}");
}

#[tokio::test]
async fn what_is_of_no_use_is_told_at_once() {
    let (a, a_private, a_public) = prepare("127.0.0.1:0").await;
    let own = PunchedUdpSocket::punch_hole(a, a_private, a_public).await;
    assert!(matches!(own, Err(PunchError::OwnInfo)), "{own:?}");
    let (b, b_private, _) = prepare("127.0.0.1:0").await;
    let (_, _, ipv6) = prepare("[::1]:0").await;
    let other = PunchedUdpSocket::punch_hole(b, b_private, ipv6).await;
    assert!(matches!(other, Err(PunchError::NoEndpoints { .. })), "{other:?}");
}

async fn prepare_tcp(at: &str) -> (TcpSocket, PrivRendezvousInfo, PubRendezvousInfo) {
    let mc = MappingContext::without_gateways();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(at.parse().unwrap()).unwrap();
    let mapped = MappedTcpSocket::map(socket, &mc).await.unwrap();
    let (private, public) = gen_rendezvous_info(mapped.endpoints);
    (mapped.socket, private, public)
}

#[tokio::test]
async fn tcp_streams_meet_without_messages() {
    let (a, a_private, a_public) = prepare_tcp("127.0.0.1:0").await;
    let (b, b_private, b_public) = prepare_tcp("127.0.0.2:0").await;
    let (a, b) = tokio::join!(
        tcp_punch_hole(a, a_private, b_public),
        tcp_punch_hole(b, b_private, a_public),
    );
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.peer_addr().unwrap(), b.local_addr().unwrap());
    a.write_all(b"data").await.unwrap();
    let mut got = [0; 4];
    b.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"data");
}

#[tokio::test]
async fn a_new_tcp_socket_is_bound_and_reusable() {
    let mc = MappingContext::without_gateways();
    let mapped = MappedTcpSocket::new_with_warnings(&mc).await.unwrap();
    assert_eq!(mapped.warnings, [MapWarning::NoServers]);
    let local = mapped.value.socket.local_addr().unwrap();
    assert_ne!(local.port(), 0);
    assert!(mapped.value.socket.reuseaddr().unwrap() && mapped.value.socket.reuseport().unwrap());
    assert!(mapped.value.endpoints.iter().all(|endpoint| endpoint.addr.port() == local.port()));
}
