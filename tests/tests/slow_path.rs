//! Forwarding in userspace, over loopback.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_userspace::dataplane::Leg;
use rawr_userspace::dataplane::slow_path::{
    On, Options, PortError, SlowPath, SlowPathError, Unclaimed, raise_open_files,
};
use tokio::sync::mpsc::Receiver;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn forwards_both_ways_with_every_payload_intact() {
    for (a, b) in [(V4, V4), (V6, V6), (V4, V6)] {
        let (relay, _unclaimed) = start(Options::default());
        let session = Session::pair(&relay, a, b, None);
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..200 {
            let burst: Vec<Vec<u8>> =
                (0..rng.random_range(1..20)).map(|_| payload(&mut rng, round % 3 == 0)).collect();
            session.a.send_all(&burst, session.leg_a.local);
            session.b.send_all(&burst, session.leg_b.local);
            session.b.expect(&burst, session.leg_b.local);
            session.a.expect(&burst, session.leg_a.local);
        }
        let totals = relay.totals();
        assert_eq!(
            (totals.to_control, totals.send_failed, totals.too_big),
            (0, 0, 0),
            "{totals:?}"
        );
        let forwarded = relay.counters(session.leg_a.local).unwrap();
        assert_eq!(forwarded.packets * 2, totals.forwarded);
        assert_eq!(relay.take_deltas().len(), 2);
        assert!(relay.take_deltas().is_empty());
    }
}

#[test]
fn segments_of_any_run_arrive_as_they_were_sent() {
    let (relay, _unclaimed) = start(Options::default());
    let session = Session::pair(&relay, V4, V4, None);
    let mut rng = StdRng::seed_from_u64(2);
    for (segment, count, tail) in [
        (1200, 40, 0),
        (1200, 40, 1),
        (100, 64, 99),
        (8, 64, 0),
        (1, 64, 0),
        (32_000, 2, 5),
        (1400, 1, 0),
    ] {
        let mut bytes = vec![0; segment * count + tail];
        rng.fill(&mut bytes[..]);
        session.a.send_segments(&bytes, segment, session.leg_a.local);
        let expected: Vec<Vec<u8>> = bytes.chunks(segment).map(<[u8]>::to_vec).collect();
        session.b.expect(&expected, session.leg_b.local);
    }
}

#[test]
fn datagrams_larger_than_the_mtu_leave_in_fragments() {
    if !in_namespace_with_mtu(1400) {
        println!("skipped: a network namespace needs root");
        return;
    }
    let (relay, _unclaimed) = start(Options::default());
    // Runs of 1360 bytes fit over IPv4 and do not over IPv6, so they leave singly, in fragments.
    for (a, b, segment) in [(V4, V6, 1360), (V4, V4, 1360), (V6, V4, 1352), (V6, V6, 1352)] {
        let session = Session::pair(&relay, a, b, None);
        session.a.send_segments(&vec![3; segment * 10], segment, session.leg_a.local);
        session.b.expect(&vec![vec![3; segment]; 10], session.leg_b.local);
        let large = [vec![7; 1500], vec![8; 9000], vec![9; 65_507], vec![10; 100]];
        session.a.send_all(&large, session.leg_a.local);
        session.b.expect(&large, session.leg_b.local);
    }
    assert_eq!((relay.totals().too_big, relay.totals().send_failed), (0, 0));
}

#[test]
fn the_congestion_mark_is_carried_over() {
    let (relay, _unclaimed) = start(Options::default());
    for (a, b) in [(V4, V4), (V6, V6), (V6, V4)] {
        let session = Session::pair(&relay, a, b, None);
        for mark in [0b01, 0b10, 0b11, 0b00] {
            session.a.set_mark(mark);
            session.a.send_all(&[vec![mark; 10]], session.leg_a.local);
            let (bytes, found) = session.b.receive_with_mark();
            assert_eq!((bytes, found), (vec![mark; 10], mark));
        }
    }
}

#[test]
fn what_has_no_flow_goes_up_to_control() {
    let (relay, mut unclaimed) = start(Options::default());
    let session = Session::pair(&relay, V4, V4, None);
    let stranger = Peer::new(V4);
    let burst = [b"first".to_vec(), vec![], b"third".to_vec()];
    stranger.send_all(&burst, session.leg_a.local);
    for bytes in burst {
        let (local, from) = (session.leg_a.local, stranger.address());
        assert_eq!(next(&mut unclaimed), Unclaimed { local, from, bytes });
    }
    session.a.send_all(&[b"data".to_vec()], session.leg_a.local);
    session.b.expect(&[b"data".to_vec()], session.leg_b.local);
    assert!(unclaimed.try_recv().is_err());
    assert_eq!(relay.totals().to_control, 3);
}

#[test]
fn a_flow_follows_its_rebound_peer_and_ends_when_told() {
    let (relay, mut unclaimed) = start(Options::default());
    let session = Session::pair(&relay, V4, V4, None);
    let moved = Peer::new(V4);
    moved.send_all(&[b"moved".to_vec()], session.leg_a.local);
    assert_eq!(next(&mut unclaimed).from, moved.address());

    let leg_a = Leg { remote: moved.address(), ..session.leg_a };
    relay.forward(leg_a, session.leg_b, None).unwrap();
    relay.forward(session.leg_b, leg_a, None).unwrap();
    moved.send_all(&[b"again".to_vec()], leg_a.local);
    session.b.expect(&[b"again".to_vec()], session.leg_b.local);
    session.b.send_all(&[b"back".to_vec()], session.leg_b.local);
    moved.expect(&[b"back".to_vec()], leg_a.local);
    session.a.send_all(&[b"old".to_vec()], leg_a.local);
    assert_eq!(next(&mut unclaimed).bytes, b"old");

    assert!(relay.stop_forwarding(leg_a.local));
    assert!(!relay.stop_forwarding(leg_a.local));
    moved.send_all(&[b"unpaired".to_vec()], leg_a.local);
    assert_eq!(next(&mut unclaimed).bytes, b"unpaired");
}

#[test]
fn a_closed_port_ends_its_flows_and_can_be_opened_again() {
    let (relay, mut unclaimed) = start(Options::default());
    let session = Session::pair(&relay, V4, V4, None);
    assert!(relay.close(session.leg_b.local));
    assert!(!relay.close(session.leg_b.local));
    session.a.send_all(&[b"nowhere".to_vec()], session.leg_a.local);
    wait_until(|| relay.totals().no_way_out == 1);
    let error = relay.forward(session.leg_a, session.leg_b, None).unwrap_err();
    assert!(matches!(error, SlowPathError::NoSuchPort(at) if at == session.leg_b.local));
    let error = relay.send(session.leg_b.local, session.b.address(), b"x").unwrap_err();
    assert!(matches!(error, SlowPathError::NoSuchPort(_)));

    let again = relay.open(On::Exactly(session.leg_b.local), &|_| true).unwrap();
    assert_eq!(again, session.leg_b.local);
    session.b.send_all(&[b"hello".to_vec()], again);
    assert_eq!(next(&mut unclaimed).local, again);
    assert_eq!(relay.locals().len(), 2);
}

#[test]
fn control_sends_from_a_data_port() {
    let (relay, _unclaimed) = start(Options::default());
    let peer = Peer::new(V6);
    let local = relay.open(On::Toward(peer.address()), &|_| true).unwrap();
    assert_eq!(local.ip(), V6);
    relay.send(local, peer.address(), b"probe").unwrap();
    peer.expect(&[b"probe".to_vec()], local);
}

#[test]
fn a_port_is_of_the_range_accepted_and_free() {
    let ports = 20_100..=20_103;
    let (relay, _unclaimed) = start(Options { ports: ports.clone(), ..Options::default() });
    let taken = UdpSocket::bind((V4, 20_101)).unwrap();
    let accept = |at: SocketAddr| at.port() != 20_102;
    let opened: BTreeSet<u16> =
        (0..2).map(|_| relay.open(On::Address(V4), &accept).unwrap().port()).collect();
    assert_eq!(opened, BTreeSet::from([20_100, 20_103]));
    let error = relay.open(On::Address(V4), &accept).unwrap_err();
    assert!(matches!(&error, PortError::NoFreePort { range, .. } if *range == ports), "{error}");
    drop(taken);
    assert_eq!(relay.open(On::Address(V4), &accept).unwrap().port(), 20_101);

    let documentation = IpAddr::from([192, 0, 2, 1]);
    let error = relay.open(On::Address(documentation), &|_| true).unwrap_err();
    assert!(matches!(error, PortError::Bind { .. }), "{error}");
}

#[test]
fn a_rate_limit_holds() {
    let (relay, _unclaimed) = start(Options::default());
    let rate = 500_000;
    let session = Session::pair(&relay, V4, V4, Some(rate));
    let (mut sent, start) = (0, clock());
    while start.elapsed() < Duration::from_secs(1) {
        session.a.send_segments(&[1; 20 * 972], 972, session.leg_a.local);
        sent += 20;
        std::thread::sleep(Duration::from_millis(2));
    }
    wait_until(|| relay.totals().forwarded + relay.totals().rate_limited == sent);
    let allowed = rate as f64 * start.elapsed().as_secs_f64() + 131_072.0;
    let forwarded = relay.counters(session.leg_a.local).unwrap().bytes as f64;
    assert!(sent as f64 * 1000.0 > 1.5 * allowed, "the machine is too slow to exceed the limit");
    // Less where the machine paused for longer than the burst.
    assert!((0.5..1.05).contains(&(forwarded / allowed)), "{forwarded} of {allowed} bytes");
}

#[test]
fn slow_control_costs_datagrams_and_nothing_else() {
    let (relay, mut unclaimed) = start(Options { queue: 10, ..Options::default() });
    let session = Session::pair(&relay, V4, V4, None);
    let stranger = Peer::new(V4);
    stranger.send_all(&vec![vec![0; 20]; 100], session.leg_a.local);
    wait_until(|| relay.totals().to_control + relay.totals().control_overrun == 100);
    assert_eq!(relay.totals().to_control, 10);
    session.a.send_all(&[b"data".to_vec()], session.leg_a.local);
    session.b.expect(&[b"data".to_vec()], session.leg_b.local);
    assert_eq!(std::iter::from_fn(|| unclaimed.try_recv().ok()).count(), 10);
}

#[test]
fn errors_of_sending_are_counted_and_disturb_nothing() {
    let (relay, _unclaimed) = start(Options::default());
    let session = Session::pair(&relay, V6, V4, None);
    // Fits a datagram over IPv6 only.
    session.a.send_all(&[vec![0; 65_520]], session.leg_a.local);
    wait_until(|| relay.totals().too_big == 1);
    // Port 0 is no destination.
    let nowhere = Leg { remote: SocketAddr::new(V4, 0), ..session.leg_b };
    relay.forward(session.leg_a, nowhere, None).unwrap();
    session.a.send_segments(&[0; 4000], 1000, session.leg_a.local);
    wait_until(|| relay.totals().send_failed == 4);
    relay.forward(session.leg_a, session.leg_b, None).unwrap();
    session.a.set_mark(0b10);
    session.a.send_all(&[b"data".to_vec()], session.leg_a.local);
    assert_eq!(session.b.receive_with_mark(), (b"data".to_vec(), 0b10));
}

#[test]
fn thousands_of_ports_forward() {
    const PAIRS: usize = 2_500;
    raise_open_files(2 * PAIRS as u64 + 1_000).unwrap();
    let (relay, _unclaimed) = start(Options { threads: 2, ..Options::default() });
    let (a, b) = (Peer::new(V4), Peer::new(V4));
    let start = clock();
    let legs: Vec<(Leg, Leg)> =
        (0..PAIRS).map(|_| pair(&relay, (&a, V4), (&b, V4), None)).collect();
    let opened = start.elapsed();
    for chunk in legs.chunks(100) {
        for (index, (leg, _)) in chunk.iter().enumerate() {
            a.send_all(&[index.to_be_bytes().to_vec()], leg.local);
        }
        let arrived: BTreeSet<(SocketAddr, Vec<u8>)> = chunk.iter().map(|_| b.receive()).collect();
        let expected = chunk.iter().enumerate();
        let expected: BTreeSet<_> =
            expected.map(|(index, (_, leg))| (leg.local, index.to_be_bytes().to_vec())).collect();
        assert_eq!(arrived, expected);
    }
    println!("{} ports opened in {opened:.0?}", 2 * PAIRS);
    let start = clock();
    for (one, other) in legs {
        assert!(relay.close(one.local) && relay.close(other.local));
    }
    println!("closed in {:.0?}", start.elapsed());
    assert!(relay.locals().is_empty());
}

#[test]
fn throughput() {
    for (name, run) in [("one datagram per call", 1), ("runs of 40", 40)] {
        let (relay, _unclaimed) = start(Options { socket_buffer: 1 << 22, ..Options::default() });
        let session = Session::pair(&relay, V4, V4, None);
        let bytes = vec![0x5a; 1200 * run];
        let (mut sent, start) = (0u64, clock());
        while start.elapsed() < Duration::from_secs(1) {
            session.a.send_segments(&bytes, 1200, session.leg_a.local);
            sent += run as u64;
        }
        wait_until(|| {
            let before = relay.totals().forwarded;
            std::thread::sleep(Duration::from_millis(20));
            relay.totals().forwarded == before
        });
        let forwarded = relay.totals().forwarded;
        let per_second = forwarded as f64 / start.elapsed().as_secs_f64();
        println!(
            "{name}, 1200 B: {sent} sent, {forwarded} forwarded, {:.0} kpps, {:.2} Gbit/s",
            per_second / 1e3,
            per_second * 1200.0 * 8.0 / 1e9
        );
        assert!(forwarded > 0 && forwarded <= sent);
    }
}

/// Two peers whose legs are paired at the relay.
struct Session {
    a: Peer,
    b: Peer,
    leg_a: Leg,
    leg_b: Leg,
}

impl Session {
    fn pair(relay: &SlowPath, ip_a: IpAddr, ip_b: IpAddr, rate: Option<u64>) -> Self {
        let (a, b) = (Peer::new(ip_a), Peer::new(ip_b));
        let (leg_a, leg_b) = pair(relay, (&a, ip_a), (&b, ip_b), rate);
        Self { a, b, leg_a, leg_b }
    }
}

fn pair(
    relay: &SlowPath,
    (a, ip_a): (&Peer, IpAddr),
    (b, ip_b): (&Peer, IpAddr),
    rate: Option<u64>,
) -> (Leg, Leg) {
    let open = |ip, remote| Leg::whole(relay.open(On::Address(ip), &|_| true).unwrap(), remote);
    let (leg_a, leg_b) = (open(ip_a, a.address()), open(ip_b, b.address()));
    relay.forward(leg_a, leg_b, rate).unwrap();
    relay.forward(leg_b, leg_a, rate).unwrap();
    (leg_a, leg_b)
}

/// A host's UDP socket.
struct Peer(UdpSocket);

impl Peer {
    fn new(ip: IpAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let reference = socket2::SockRef::from(&socket);
        reference.set_recv_buffer_size(1 << 22).unwrap();
        match ip {
            IpAddr::V4(_) => reference.set_recv_tos_v4(true).unwrap(),
            IpAddr::V6(_) => reference.set_recv_tclass_v6(true).unwrap(),
        }
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn send_all(&self, datagrams: &[Vec<u8>], to: SocketAddr) {
        for datagram in datagrams {
            assert_eq!(self.0.send_to(datagram, to).unwrap(), datagram.len());
        }
    }

    /// Sends `bytes` as datagrams of `segment` bytes that the stack cuts.
    fn send_segments(&self, bytes: &[u8], segment: usize, to: SocketAddr) {
        use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
        let segment = u16::try_from(segment).unwrap();
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if bytes.len() > usize::from(segment) { &control[..] } else { &[] };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        let to = SockaddrStorage::from(to);
        let parts = [std::io::IoSlice::new(bytes)];
        sendmsg(fd, &parts, control, MsgFlags::empty(), Some(&to)).unwrap();
    }

    fn receive(&self) -> (SocketAddr, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.0.recv_from(&mut buffer).expect("a datagram in time");
        buffer.truncate(length);
        (from, buffer)
    }

    /// The next datagrams are these, in this order, all from `from`.
    fn expect(&self, datagrams: &[Vec<u8>], from: SocketAddr) {
        for (index, datagram) in datagrams.iter().enumerate() {
            let (source, bytes) = self.receive();
            assert_eq!(source, from);
            assert!(
                bytes == *datagram,
                "datagram {index} of {}: {} B",
                datagrams.len(),
                bytes.len()
            );
        }
    }

    fn set_mark(&self, mark: u8) {
        let reference = socket2::SockRef::from(&self.0);
        match self.address() {
            SocketAddr::V4(_) => reference.set_tos_v4(mark.into()).unwrap(),
            SocketAddr::V6(_) => reference.set_tclass_v6(mark.into()).unwrap(),
        }
    }

    /// The next datagram and its ECN bits.
    fn receive_with_mark(&self) -> (Vec<u8>, u8) {
        let mut buffer = [0; 2048];
        let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
        let mut meta = [quinn_udp::RecvMeta::default()];
        let state = receive_state();
        let received = state.recv((&self.0).into(), &mut slices, &mut meta).expect("in time");
        assert_eq!(received, 1);
        (buffer[..meta[0].len].to_vec(), meta[0].ecn.map_or(0, |mark| mark as u8))
    }
}

/// Moves this thread to a network namespace of its own, with a loopback of this MTU.
fn in_namespace_with_mtu(mtu: u16) -> bool {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI");
        return false;
    }
    let mut ip = std::process::Command::new("ip");
    let status = ip.args(["link", "set", "lo", "mtu", &mtu.to_string(), "up"]).status().unwrap();
    assert!(status.success());
    true
}

/// Of a socket of its own, as it would make the peer's non-blocking.
fn receive_state() -> quinn_udp::UdpSocketState {
    let scratch = UdpSocket::bind((V4, 0)).unwrap();
    quinn_udp::UdpSocketState::new((&scratch).into()).unwrap()
}

fn start(options: Options) -> (SlowPath, Receiver<Unclaimed>) {
    SlowPath::start(options).unwrap()
}

fn payload(rng: &mut StdRng, uniform: bool) -> Vec<u8> {
    let length = match rng.random_range(0..10) {
        _ if uniform => 1200,
        0 => 0,
        1 => rng.random_range(1472..9000),
        2 => rng.random_range(9000..60_000),
        _ => rng.random_range(1..1472),
    };
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes[..]);
    bytes
}

fn next(unclaimed: &mut Receiver<Unclaimed>) -> Unclaimed {
    let mut datagram = None;
    wait_until(|| {
        datagram = unclaimed.try_recv().ok();
        datagram.is_some()
    });
    datagram.unwrap()
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = clock();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
fn clock() -> Instant {
    Instant::now()
}
