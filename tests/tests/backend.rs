//! The kernel back end: loading, attaching, pinning, taking over. All interfaces are veth pairs in
//! network namespaces that end with the thread of their test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    sys::socket::{setsockopt, sockopt::RcvBufForce},
    unistd::Pid,
};
use rawr_proto::ChannelNumber;
use rawr_userspace::dataplane::{
    Flow, Group, Leg, Limit, NextHop, NextHops, RateLimits, VlanTags,
    backend::{Backend, BackendError, Installed},
    bpf::{AttachError, BPFFS, Bpf, Config, Listener, LoadError, Mode, PinError, Pins, WantedMode},
    flow_table::{Event, FlowTable},
    object::object,
    reconcile::{Reconciler, Settings},
};
use socket2::{Domain, Socket, Type};

/// One test's network namespace and pins.
struct Lab {
    instance: String,
}

impl Lab {
    /// `None`, and a word why, where the machine does not allow this test.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            let why = format!("{name} needs root, for network namespaces and BPF");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            eprintln!("skipped: {why}");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Some(Self { instance: format!("rawr-test-{}-{name}", std::process::id()) })
    }

    fn config(&self) -> Config {
        let instance = self.instance.clone();
        let (table_len, channel_len) = (1 << 10, 1 << 8);
        Config { instance, table_len, channel_len, flows: 64, answers: true, ..Config::default() }
    }

    fn open(&self) -> Bpf {
        Bpf::open(&self.config(), object()).unwrap()
    }

    fn dir(&self) -> std::path::PathBuf {
        Path::new(BPFFS).join("rawr").join(&self.instance)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let detached = Pins::detach(Path::new(BPFFS), &self.instance);
        if !thread::panicking() {
            detached.unwrap();
        }
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A veth pair that is up: a remote end, `name`0, and ours, `name`1.
fn veth(name: &str) {
    run(&format!("ip link add {name}0 numrxqueues 4 type veth peer name {name}1 numrxqueues 4"));
    for end in ["0", "1"] {
        run(&format!("ip link set {name}{end} up"));
        run(&format!("sysctl -q net.ipv6.conf.{name}{end}.disable_ipv6=1"));
    }
    // A veth end takes redirected frames only if it polls.
    run(&format!("ethtool -K {name}0 gro on"));
}

fn has_program(interface: &str) -> bool {
    run(&format!("ip -o link show dev {interface}")).contains("prog/xdp")
}

const RELAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A session between a peer behind interface a1 and one behind b1.
#[derive(Clone, Copy)]
struct Session {
    a: Leg,
    b: Leg,
    limits: RateLimits,
}

impl Session {
    fn new() -> Self {
        let leg = |port, remote: [u8; 4]| {
            Leg::whole(SocketAddrV4::new(RELAY, port).into(), (remote, 4000).into())
        };
        let (a, b) = (leg(50_000, [198, 51, 100, 7]), leg(50_001, [203, 0, 113, 9]));
        Self { a, b, limits: Limit::own(Some(1 << 30)) }
    }

    /// A client in a channel, and a peer at the client's relayed transport address.
    fn channel() -> Self {
        let Self { a, b, .. } = Self::new();
        let allocation = Limit { group: Group::Shared(7), bytes_per_second: 1 << 30 };
        let user = Limit { group: Group::Shared(u64::MAX), bytes_per_second: 1 << 31 };
        Self { a: in_channel(a, 0x4001), b: shared(b), limits: [Some(allocation), Some(user)] }
    }

    /// Peer B speaks IPv6.
    fn translated() -> Self {
        let (local, remote) = ("[2001:db8::1]:50001", "[2001:db8:b::9]:4000");
        let b = Leg::whole(local.parse().unwrap(), remote.parse().unwrap());
        Self { b, ..Self::new() }
    }

    fn install(&self, bpf: &mut Bpf) -> Vec<Event> {
        let mut table = FlowTable::default();
        table.pair(self.a, self.b, self.limits);
        let mut reconciler = Reconciler::new(Settings::default());
        reconciler.step(now(), &mut table, bpf, self);
        table.take_events()
    }

    fn is_installed(&self, bpf: &Bpf) -> bool {
        [(self.a, self.b), (self.b, self.a)].iter().all(|&(from, to)| {
            let flow = Flow { from, to, limits: self.limits };
            bpf.holds(&flow, &self.next_hop(to.remote.ip(), to.local.ip()).unwrap())
        })
    }
}

/// The leg at the STUN port whose datagrams are ChannelData.
fn in_channel(leg: Leg, number: u16) -> Leg {
    let local = SocketAddr::new(leg.local.ip(), 3478);
    Leg::shared(local, leg.remote, Some(ChannelNumber::new(number).unwrap()))
}

/// The leg with others at its port.
fn shared(leg: Leg) -> Leg {
    Leg::shared(leg.local, leg.remote, None)
}

impl NextHops for Session {
    fn next_hop(&self, remote: IpAddr, _local: IpAddr) -> Option<NextHop> {
        let interface = if remote == self.a.remote.ip() { "a1" } else { "b1" };
        let ifindex = if_nametoindex(interface).ok()?;
        let (src_mac, dst_mac) = ([2, 0, 0, 0, 0, 1], [0xff; 6]);
        Some(NextHop { ifindex, src_mac, dst_mac, vlan: VlanTags::default(), mtu: 1500, tx: false })
    }
}

#[expect(clippy::disallowed_methods, reason = "tests of the kernel take real time")]
fn now() -> Instant {
    Instant::now()
}

/// Raw frames on an interface.
struct Port(Socket);

impl Port {
    fn new(interface: &str) -> Self {
        let ethertype = (libc::ETH_P_ALL as u16).to_be();
        let protocol = i32::from(ethertype);
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol.into())).unwrap();
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype,
            sll_ifindex: if_nametoindex(interface).unwrap() as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: an address of the length that is told with it.
        let bound = unsafe {
            let len = size_of_val(&address) as u32;
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        setsockopt(&socket, RcvBufForce, &(256 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        Self(socket)
    }

    /// The numbers of the datagrams that have arrived from the relay for `leg`.
    fn arrived(&self, leg: Leg) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut frame = [0; 2048];
        loop {
            // SAFETY: the buffer is as long as told.
            let len = unsafe {
                libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0)
            };
            let Ok(len) = usize::try_from(len) else { return numbers };
            if let Some(number) = parse(&frame[..len], leg) {
                numbers.push(number);
            }
        }
    }
}

/// A datagram that arrives on `leg`, with a number in it.
fn frame(leg: Leg, number: u32) -> Vec<u8> {
    let data = [number.to_be_bytes(); 25].concat();
    let payload = match leg.channel() {
        Some(channel) => [&channel.number().to_be_bytes(), &[0, 100], &*data].concat(),
        None => data,
    };
    datagram(leg, &payload, [0xff; 6])
}

fn datagram(leg: Leg, payload: &[u8], dst_mac: [u8; 6]) -> Vec<u8> {
    let (SocketAddr::V4(src), SocketAddr::V4(dst)) = (leg.remote, leg.local) else {
        unreachable!("IPv4 legs");
    };
    let mut ip = vec![0x45, 0];
    ip.extend((28 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(src.ip().octets());
    ip.extend(dst.ip().octets());
    let sum = !sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    // A checksum of zero would say that there is none (RFC 768).
    let sum = match !pseudo_sum(&ip, &udp) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    [&dst_mac[..], &[2, 0, 0, 0, 0, 9, 8, 0], &ip, &udp].concat()
}

/// The number in a frame that leaves on `leg`; its checksums are right, or the test fails.
fn parse(frame: &[u8], leg: Leg) -> Option<u32> {
    let v6 = frame.get(12..14)? == [0x86, 0xdd];
    let (ip, udp) = frame.get(14..)?.split_at_checked(if v6 { 40 } else { 20 })?;
    let addr = |ip: &[u8], port: &[u8]| {
        let ip: IpAddr = match <[u8; 4]>::try_from(ip) {
            Ok(ip) => ip.into(),
            Err(_) => <[u8; 16]>::try_from(ip).unwrap().into(),
        };
        SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))
    };
    let (src, dst) = addresses(ip).split_at(if v6 { 16 } else { 4 });
    if (addr(src, udp.get(..2)?), addr(dst, udp.get(2..4)?)) != (leg.local, leg.remote) {
        return None;
    }
    assert!(v6 || sum(ip) == 0xffff, "IPv4 header checksum");
    assert_eq!(pseudo_sum(ip, udp), 0xffff, "UDP checksum");
    let data = match leg.channel() {
        Some(channel) => {
            assert_eq!(udp.get(8..12)?, [channel.number().to_be_bytes(), [0, 100]].concat());
            &udp[12..]
        }
        None => &udp[8..],
    };
    assert_eq!(data.len(), 100);
    Some(u32::from_be_bytes(data[..4].try_into().unwrap()))
}

/// The two addresses of an IP header.
fn addresses(ip: &[u8]) -> &[u8] {
    if ip.len() == 40 { &ip[8..40] } else { &ip[12..20] }
}

fn pseudo_sum(ip: &[u8], udp: &[u8]) -> u16 {
    let len = (udp.len() as u16).to_be_bytes();
    sum(&[addresses(ip), &[0, 17], &len, udp].concat())
}

/// RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Datagrams from one peer to the other, one every 50 µs or so, until stopped.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    sender: JoinHandle<()>,
    receiver: Port,
    to: Leg,
}

impl Stream {
    /// From A to B.
    fn start(session: &Session) -> Self {
        Self::between((session.a, "a0"), (session.b, "b0"))
    }

    /// From B to A.
    fn back(session: &Session) -> Self {
        Self::between((session.b, "b0"), (session.a, "a0"))
    }

    fn between((from, sender): (Leg, &str), (to, receiver): (Leg, &str)) -> Self {
        let (receiver, sender) = (Port::new(receiver), Port::new(sender));
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, number) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            stay_on_one_cpu();
            while !stopped.load(Ordering::Relaxed) {
                sender.0.send(&frame(from, number.load(Ordering::Relaxed))).unwrap();
                number.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(50));
            }
        });
        Self { stop, sent, sender, receiver, to }
    }

    /// Lets a hundred datagrams through.
    fn flow(&self) {
        let enough = self.sent.load(Ordering::Relaxed) + 100;
        while self.sent.load(Ordering::Relaxed) < enough {
            assert!(!self.sender.is_finished(), "the sender has failed");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops, and expects all datagrams to have arrived, once and in order. Returns how many.
    fn finish(self) -> u32 {
        self.flow();
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        let sent = self.sent.load(Ordering::Relaxed);
        let arrived = self.receiver.arrived(self.to);
        let missing: Vec<_> = (0..sent).filter(|n| !arrived.contains(n)).take(20).collect();
        let in_order = arrived.is_sorted_by(|one, next| one < next);
        assert!(in_order, "of {sent}: {} arrived, not in order or twice", arrived.len());
        assert!(missing.is_empty(), "of {sent}, {} arrived; missing: {missing:?}…", arrived.len());
        sent
    }
}

/// A network card has all packets of a flow on one CPU (receive-side scaling); veth takes the sender's, and
/// packets of a sender that moves overtake each other.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

#[test]
fn forwards_natively_on_veth_and_counts() {
    let Some(lab) = Lab::new("forwards") else { return };
    veth("a");
    veth("b");
    let mut bpf = lab.open();
    assert!(!bpf.has_taken_over());
    for interface in ["a1", "b1"] {
        let attached = bpf.attach(interface, WantedMode::Auto).unwrap();
        assert_eq!((attached.mode, attached.taken_over), (Mode::Native, false));
        assert_eq!(attached.fallback, None);
        assert!(has_program(interface));
    }
    let session = Session::new();
    assert!(bpf.index_free(session.a.local));
    let events = session.install(&mut bpf);
    assert!(matches!(events[..], [Event::Installed { .. }, Event::Installed { .. }]), "{events:?}");
    assert!(session.is_installed(&bpf));
    assert!(!bpf.index_free(session.a.local));

    let sent = Stream::start(&session).finish();
    let counters = bpf.counters(session.a.key()).unwrap().unwrap();
    assert_eq!((counters.packets, counters.bytes), (u64::from(sent), u64::from(sent) * 128));
    assert_eq!(bpf.remove(session.a.key()).unwrap(), Some(counters));
    assert_eq!(bpf.counters(session.a.key()).unwrap(), None);
    bpf.remove(session.b.key()).unwrap();
    session.install(&mut bpf);
    assert!(bpf.counters(session.a.key()).unwrap().unwrap().is_zero(), "a new flow starts at zero");

    let port = Port::new("a0");
    let stranger = Leg { remote: "198.51.100.99:1".parse().unwrap(), ..session.a };
    let before: u64 = bpf.reasons().unwrap().iter().sum();
    port.0.send(&frame(stranger, 0)).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(bpf.reasons().unwrap().iter().sum::<u64>() > before, "a packet passed up is counted");
}

#[test]
fn forwards_channels_both_ways_and_counts() {
    let Some(lab) = Lab::new("channels") else { return };
    veth("a");
    veth("b");
    let mut bpf = lab.open();
    for interface in ["a1", "b1"] {
        bpf.attach(interface, WantedMode::Auto).unwrap();
    }
    let one = Session::channel();
    let hairpin = Session { b: in_channel(one.b, 0x4abc), ..one };
    let translated = Session { b: shared(Session::translated().b), ..one };
    for session in [one, hairpin, translated] {
        let events = session.install(&mut bpf);
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(session.is_installed(&bpf), "{events:?}");
        let packets = u64::from(Stream::start(&session).finish());
        let header = |leg: Leg| u64::from(leg.channel().is_some()) * 4;
        let counters = bpf.counters(session.a.key()).unwrap().unwrap();
        let bytes = packets * (128 + header(session.a));
        assert_eq!((counters.packets, counters.bytes), (packets, bytes));
        if session.b.local.is_ipv4() {
            let packets = u64::from(Stream::back(&session).finish());
            let counters = bpf.counters(session.b.key()).unwrap().unwrap();
            let bytes = packets * (128 + header(session.b));
            assert_eq!((counters.packets, counters.bytes), (packets, bytes));
        }
        bpf.remove(session.a.key()).unwrap();
        bpf.remove(session.b.key()).unwrap();
        assert!(bpf.list().unwrap().is_empty());
    }
}

#[test]
fn several_channels_of_one_port_are_forwarded_each_by_itself() {
    let Some(lab) = Lab::new("ports") else { return };
    veth("a");
    veth("b");
    let mut bpf = lab.open();
    for interface in ["a1", "b1"] {
        bpf.attach(interface, WantedMode::Auto).unwrap();
    }
    let sessions: Vec<_> = (0..4)
        .map(|number| {
            let Session { a, b, limits } = Session::new();
            let remote = (Ipv4Addr::new(203, 0, 113, 9), 4000 + number);
            let b = Leg { remote: remote.into(), ..shared(b) };
            Session { a: in_channel(a, 0x4000 + number), b, limits }
        })
        .collect();
    for session in &sessions {
        session.install(&mut bpf);
        assert!(session.is_installed(&bpf));
    }
    let used = bpf.usage();
    assert_eq!((used.ports4.used, used.channels4.used), (1, 7), "one peer is in the port table");
    for session in &sessions {
        Stream::start(session).finish();
        Stream::back(session).finish();
    }
    // The peer in the port table goes; the others of that port stay.
    bpf.remove(sessions[0].b.key()).unwrap();
    Stream::back(&sessions[3]).finish();
}

#[test]
fn a_full_channel_table_is_told_and_has_room_again_later() {
    let Some(lab) = Lab::new("full") else { return };
    veth("a");
    veth("b");
    let config = Config { channel_len: 8, ..lab.config() };
    let mut bpf = Bpf::open(&config, object()).unwrap();
    for interface in ["a1", "b1"] {
        bpf.attach(interface, WantedMode::Auto).unwrap();
    }
    let session = |number: u16| {
        let Session { a, b, limits } = Session::new();
        let local = SocketAddr::new(b.local.ip(), 50_001 + number);
        let b = shared(Leg { local, ..b });
        Session { a: in_channel(a, 0x4000 + number), b, limits }
    };
    for number in 0..8 {
        assert!(matches!(session(number).install(&mut bpf)[0], Event::Installed { .. }));
    }
    let late = session(8);
    for event in late.install(&mut bpf) {
        let Event::Failed { why, .. } = event else { panic!("{event:?}") };
        assert!(matches!(*why, BackendError::NoPlace { .. }), "{why}");
    }
    let is_late = |held: &Installed| [late.a, late.b].contains(&held.flow.from);
    assert!(!bpf.list().unwrap().iter().any(is_late), "in neither direction");
    Stream::start(&session(7)).finish();
    bpf.remove(session(3).a.key()).unwrap();
    late.install(&mut bpf);
    Stream::start(&late).finish();
}

#[test]
fn translates_and_goes_on_after_a_rewrite() {
    let Some(lab) = Lab::new("translates") else { return };
    veth("a");
    veth("b");
    let mut bpf = lab.open();
    let session = Session::translated();
    session.install(&mut bpf);
    for interface in ["a1", "b1"] {
        bpf.attach(interface, WantedMode::Auto).unwrap();
    }
    let sent = Stream::start(&session).finish();
    // Writing either direction anew gives both another generation.
    for (from, to) in [(session.b, session.a), (session.a, session.b)] {
        let next_hop = session.next_hop(to.remote.ip(), to.local.ip()).unwrap();
        let next_hop = NextHop { mtu: 1400, ..next_hop };
        bpf.install(&Flow { from, to, limits: [None; 2] }, &next_hop).unwrap();
    }
    let sent = sent + Stream::start(&session).finish();
    let counters = bpf.counters(session.a.key()).unwrap().unwrap();
    assert_eq!(counters.packets, u64::from(sent), "all by the kernel");

    drop(bpf);
    let mut next = lab.open();
    assert_eq!(next.list().unwrap().len(), 2);
    next.remove(session.b.key()).unwrap();
    assert!(next.list().unwrap().is_empty(), "what translates goes with what it builds on");
}

#[test]
fn a_restart_loses_no_packet() {
    restart("restart", &Session::new());
}

#[test]
fn a_restart_loses_no_packet_of_a_channel() {
    restart("restart-channel", &Session::channel());
}

fn restart(name: &str, session: &Session) {
    let Some(lab) = Lab::new(name) else { return };
    veth("a");
    veth("b");
    let mut first = lab.open();
    session.install(&mut first);
    for interface in ["a1", "b1"] {
        first.attach(interface, WantedMode::Auto).unwrap();
    }
    let stream = Stream::start(session);
    stream.flow();
    drop(first);
    stream.flow();
    for _ in 0..3 {
        let mut next = lab.open();
        assert!(next.has_taken_over());
        assert!(session.is_installed(&next), "{:?}", next.list());
        session.install(&mut next);
        for interface in ["a1", "b1"] {
            let attached = next.attach(interface, WantedMode::Auto).unwrap();
            assert_eq!((attached.mode, attached.taken_over), (Mode::Native, true));
        }
        assert!(next.remove_leftovers().unwrap().is_empty());
        stream.flow();
    }
    let sent = stream.finish();
    let bpf = lab.open();
    let counters = bpf.counters(session.a.key()).unwrap().unwrap();
    assert_eq!(counters.packets, u64::from(sent), "counters go on");
}

#[test]
fn an_upgrade_to_other_maps_loses_no_packet() {
    let Some(lab) = Lab::new("upgrade") else { return };
    veth("a");
    veth("b");
    let session = Session::new();
    let mut first = lab.open();
    session.install(&mut first);
    for interface in ["a1", "b1"] {
        first.attach(interface, WantedMode::Auto).unwrap();
    }
    let stream = Stream::start(&session);
    stream.flow();
    drop(first);

    let larger = Config { table_len: 1 << 12, ..lab.config() };
    let mut next = Bpf::open(&larger, object()).unwrap();
    assert!(!next.has_taken_over());
    assert!(next.list().unwrap().is_empty());
    stream.flow();
    session.install(&mut next);
    for interface in ["a1", "b1"] {
        assert!(next.attach(interface, WantedMode::Auto).unwrap().taken_over);
    }
    stream.flow();
    next.remove_leftovers().unwrap();
    let sent = stream.finish();
    let counted = next.counters(session.a.key()).unwrap().unwrap().packets;
    assert!((100..u64::from(sent)).contains(&counted), "{counted} of {sent} by the new program");
}

#[test]
fn a_link_of_another_version_goes_on() {
    let Some(lab) = Lab::new("version") else { return };
    veth("a");
    drop({
        let mut bpf = lab.open();
        bpf.attach("a1", WantedMode::Auto).unwrap();
        bpf
    });
    let version = std::fs::read_dir(lab.dir()).unwrap().next().unwrap().unwrap().path();
    let other = version.with_file_name("abi999");
    std::fs::rename(&version, &other).unwrap();
    let mut bpf = lab.open();
    assert!(!bpf.has_taken_over());
    assert!(has_program("a1"));
    assert!(bpf.attach("a1", WantedMode::Auto).unwrap().taken_over);
    assert!(bpf.remove_leftovers().unwrap().is_empty());
    assert!(!other.exists());
    assert!(has_program("a1"));
}

#[test]
fn leftovers_lose_their_program() {
    let Some(lab) = Lab::new("leftovers") else { return };
    veth("a");
    veth("b");
    let mut first = lab.open();
    for interface in ["a1", "b1"] {
        first.attach(interface, WantedMode::Auto).unwrap();
    }
    drop(first);
    let mut next = lab.open();
    next.attach("b1", WantedMode::Auto).unwrap();
    assert_eq!(next.remove_leftovers().unwrap(), ["a1"]);
    assert!(!has_program("a1") && has_program("b1"));
    next.detach("b1").unwrap();
    assert!(!has_program("b1"));
}

#[test]
fn detach_removes_everything_and_garbage_too() {
    let Some(lab) = Lab::new("detach") else { return };
    veth("a");
    let mut bpf = lab.open();
    bpf.attach("a1", WantedMode::Auto).unwrap();
    drop(bpf);
    let version = std::fs::read_dir(lab.dir()).unwrap().next().unwrap().unwrap().path();
    std::fs::create_dir_all(version.join("link-dir/deep")).unwrap();
    std::fs::create_dir_all(lab.dir().join("abi7/maps")).unwrap();
    std::os::unix::fs::symlink("/nowhere", version.join("link-nothing")).unwrap();
    std::fs::rename(version.join("maps/REASONS"), version.join("link-map")).unwrap();
    let detached = Pins::detach(Path::new(BPFFS), &lab.instance).unwrap();
    assert_eq!(detached, ["a1", "dir", "map", "nothing"]);
    assert!(!has_program("a1"));
    assert!(!lab.dir().exists());
    assert!(Pins::detach(Path::new(BPFFS), &lab.instance).unwrap().is_empty());
}

#[test]
fn broken_pins_do_not_stop_a_start() {
    let Some(lab) = Lab::new("broken") else { return };
    veth("a");
    drop(lab.open());
    let version = std::fs::read_dir(lab.dir()).unwrap().next().unwrap().unwrap().path();
    // Without its seed nobody finds anything in the channel tables.
    std::fs::remove_file(version.join("maps/seed")).unwrap();
    drop({
        let next = lab.open();
        assert!(!next.has_taken_over());
        next
    });
    assert!(lab.open().has_taken_over());
    std::fs::remove_file(version.join("maps/RATES")).unwrap();
    std::fs::rename(version.join("maps/REASONS"), version.join("link-a1")).unwrap();
    let mut bpf = lab.open();
    assert!(!bpf.has_taken_over());
    assert!(!bpf.attach("a1", WantedMode::Auto).unwrap().taken_over);
    assert!(has_program("a1"));
}

#[test]
fn refuses_loopback_and_unknown_interfaces() {
    let Some(lab) = Lab::new("refuses") else { return };
    let mut bpf = lab.open();
    let error = bpf.attach("lo", WantedMode::Auto).unwrap_err();
    assert!(matches!(error, AttachError::Loopback(_)), "{error}");
    let error = bpf.attach("nosuch0", WantedMode::Auto).unwrap_err();
    assert!(matches!(error, AttachError::NoInterface { .. }), "{error}");
    let error = Bpf::open(&Config { table_len: 1000, ..lab.config() }, object()).err().unwrap();
    assert!(matches!(error, LoadError::TableLength(1000)), "{error}");
    for channel_len in [4, 1000, 1 << 25] {
        let error = Bpf::open(&Config { channel_len, ..lab.config() }, object()).err().unwrap();
        assert!(matches!(error, LoadError::ChannelTableLength(_)), "{error}");
    }
}

#[test]
fn falls_back_to_generic_where_the_driver_refuses() {
    let Some(lab) = Lab::new("generic") else { return };
    veth("a");
    run("ip link set a1 mtu 9000");
    run("ip link set a0 mtu 9000");
    let mut bpf = lab.open();
    let error = bpf.attach("a1", WantedMode::Native).unwrap_err().to_string();
    assert!(error.contains("an MTU of 9000 may be too large"), "{error}");
    assert!(!has_program("a1"));
    let attached = bpf.attach("a1", WantedMode::Auto).unwrap().clone();
    assert_eq!((attached.mode, attached.taken_over), (Mode::Generic, false));
    assert!(attached.fallback.unwrap().contains("an MTU of 9000"));
    drop(bpf);

    let mut next = lab.open();
    let attached = next.attach("a1", WantedMode::Auto).unwrap();
    assert_eq!((attached.mode, attached.taken_over), (Mode::Generic, true));
    run("ip link set a1 mtu 1500");
    run("ip link set a0 mtu 1500");
    let attached = next.attach("a1", WantedMode::Native).unwrap();
    assert_eq!((attached.mode, attached.taken_over), (Mode::Native, false));
}

#[test]
fn refuses_an_interface_with_another_program() {
    let Some(lab) = Lab::new("foreign") else { return };
    let other = Lab { instance: format!("{}-other", lab.instance) };
    veth("a");
    let mut first = other.open();
    first.attach("a1", WantedMode::Auto).unwrap();
    let mut second = lab.open();
    match second.attach("a1", WantedMode::Auto).unwrap_err() {
        AttachError::Foreign { interface, program, name } => {
            assert_eq!((interface.as_str(), name.as_str()), ("a1", "rawr_relay"));
            assert!(run("ip -d link show dev a1").contains(&format!("id {program} ")));
        }
        error => panic!("{error}"),
    }
    assert!(second.attachments().is_empty());
    first.detach("a1").unwrap();
    second.attach("a1", WantedMode::Auto).unwrap();
}

#[test]
fn an_instance_has_one_writer() {
    let Some(lab) = Lab::new("writer") else { return };
    let first = lab.open();
    let error = Bpf::open(&lab.config(), object()).err().unwrap();
    assert!(matches!(error, LoadError::Pin(PinError::InUse(_))), "{error}");
    drop(first);
    lab.open();
}

/// Two namespaces may have an interface of the same name and number.
#[test]
fn a_link_in_another_namespace_is_not_taken_over() {
    let Some(lab) = Lab::new("namespace") else { return };
    veth("a");
    let ifindex = if_nametoindex("a1").unwrap();
    let mut first = lab.open();
    first.attach("a1", WantedMode::Auto).unwrap();
    drop(first);
    let config = lab.config();
    let (done, wait) = mpsc::channel::<()>();
    let elsewhere = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        veth("a");
        assert_eq!(if_nametoindex("a1").unwrap(), ifindex);
        let mut second = Bpf::open(&config, object()).unwrap();
        assert!(second.has_taken_over());
        assert!(!second.attach("a1", WantedMode::Auto).unwrap().taken_over);
        assert!(has_program("a1"));
        done.send(()).unwrap();
    });
    wait.recv().unwrap();
    assert!(!has_program("a1"), "the link has moved");
    elsewhere.join().unwrap();
}

#[test]
fn an_interface_that_comes_back_is_used_again() {
    let Some(lab) = Lab::new("comes-back") else { return };
    veth("a");
    veth("b");
    let session = Session::new();
    let mut bpf = lab.open();
    session.install(&mut bpf);
    for interface in ["a1", "b1"] {
        bpf.attach(interface, WantedMode::Auto).unwrap();
    }
    run("ip link del b1");
    let error = bpf.install(
        &Flow { from: session.a, to: session.b, limits: [None; 2] },
        &NextHop {
            ifindex: 9999,
            ..session.next_hop(session.a.remote.ip(), RELAY.into()).unwrap()
        },
    );
    assert!(matches!(error, Err(BackendError::Egress { ifindex: 9999, .. })), "{error:?}");
    veth("b");
    assert!(!session.is_installed(&bpf));
    session.install(&mut bpf);
    assert!(!bpf.attach("b1", WantedMode::Auto).unwrap().taken_over);
    Stream::start(&session).finish();
}

/// A next hop by interface a1 whose exit differs from others by its MTU.
fn way(mtu: u16) -> NextHop {
    let ifindex = if_nametoindex("a1").unwrap();
    let (src_mac, dst_mac) = ([2, 0, 0, 0, 0, 1], [0xff; 6]);
    NextHop { ifindex, src_mac, dst_mac, vlan: VlanTags::default(), mtu, tx: false }
}

/// The flow from one port of ours to the next.
fn flow_of(number: u16, rate: Option<u64>) -> Flow {
    let leg =
        |port| Leg::whole(SocketAddrV4::new(RELAY, port).into(), ([198, 51, 100, 7], 4000).into());
    let (from, to) = (leg(50_000 + number), leg(50_001 + number));
    Flow { from, to, limits: Limit::own(rate) }
}

#[test]
fn exits_are_shared_run_out_and_are_taken_over() {
    let Some(lab) = Lab::new("exits") else { return };
    veth("a");
    let config = Config { flows: 300, ..lab.config() };
    let mut bpf = Bpf::open(&config, object()).unwrap();
    for number in 0..256 {
        bpf.install(&flow_of(number, None), &way(1000 + number)).unwrap();
    }
    let too_many = |outcome| matches!(outcome, Err(BackendError::TooManyExits { most: 256 }));
    assert!(too_many(bpf.install(&flow_of(256, None), &way(999))));
    bpf.install(&flow_of(256, None), &way(1000)).unwrap();
    assert!(!bpf.holds(&flow_of(256, None), &way(999)));

    let before = bpf.list().unwrap();
    drop(bpf);
    let mut bpf = Bpf::open(&config, object()).unwrap();
    assert!(bpf.has_taken_over());
    assert_eq!(bpf.list().unwrap(), before);
    assert!((0..256).all(|number| bpf.holds(&flow_of(number, None), &way(1000 + number))));
    bpf.remove(flow_of(0, None).from.key()).unwrap();
    assert!(too_many(bpf.install(&flow_of(0, None), &way(999))), "another flow has that exit");
    bpf.remove(flow_of(256, None).from.key()).unwrap();
    bpf.install(&flow_of(0, None), &way(999)).unwrap();
    // A flow that moves leaves its exit to others.
    bpf.install(&flow_of(0, None), &way(1001)).unwrap();
    bpf.install(&flow_of(256, None), &way(998)).unwrap();
    for number in 257..300 {
        bpf.install(&flow_of(number, None), &way(998)).unwrap();
    }
    let outcome = bpf.install(&flow_of(300, None), &way(998));
    assert!(matches!(outcome, Err(BackendError::Full { capacity: 300 })), "{outcome:?}");
}

#[test]
fn limits_are_kept_changed_lifted_and_taken_over() {
    let Some(lab) = Lab::new("limits") else { return };
    veth("a");
    let mut bpf = lab.open();
    // Of 64 limits, each flow takes one as often as it gets one.
    for round in 0..3 {
        for number in 0..64 {
            let limited = flow_of(number, Some(1000 + round));
            bpf.install(&limited, &way(1500)).unwrap();
            assert!(bpf.holds(&limited, &way(1500)));
            assert!(!bpf.holds(&flow_of(number, Some(7)), &way(1500)));
        }
        for number in (0..64).filter(|_| round == 1) {
            bpf.install(&flow_of(number, None), &way(1500)).unwrap();
        }
    }
    drop(bpf);
    let mut bpf = lab.open();
    for number in 0..64 {
        assert!(bpf.holds(&flow_of(number, Some(1002)), &way(1500)));
        bpf.remove(flow_of(number, None).from.key()).unwrap();
    }
    for number in 100..164 {
        bpf.install(&flow_of(number, Some(9)), &way(1500)).unwrap();
    }
}

/// A Binding request without attributes (RFC 8489 §5).
const BINDING: [u8; 20] =
    [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// Sends a Binding request to the STUN port; returns whether the answer comes, which says where from.
fn asks_for_binding(port: &Port, session: &Session) -> bool {
    let leg = in_channel(session.a, 0x4000);
    port.0.send(&datagram(leg, &BINDING, way(1500).src_mac)).unwrap();
    let mut frame = [0; 2048];
    loop {
        // SAFETY: the buffer is as long as told.
        let len =
            unsafe { libc::recv(port.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        let Ok(len) = usize::try_from(len) else { return false };
        let Some((ip, udp)) = frame[14..len.max(14)].split_at_checked(20) else { continue };
        if udp.get(8..10) == Some(&[1, 1]) {
            let (SocketAddr::V4(us), SocketAddr::V4(client)) = (leg.local, leg.remote) else {
                unreachable!("IPv4 legs");
            };
            let ends = [us.ip().octets(), client.ip().octets()].concat();
            assert_eq!((addresses(ip), pseudo_sum(ip, udp)), (&*ends, 0xffff));
            let masked = u32::from_be_bytes(udp[36..40].try_into().unwrap()) ^ 0x2112_a442;
            assert_eq!(Ipv4Addr::from(masked), *client.ip());
            return true;
        }
    }
}

#[test]
fn stun_ports_answer_by_themselves_while_they_are_told_to() {
    let Some(lab) = Lab::new("binding") else { return };
    veth("a");
    let mut bpf = lab.open();
    bpf.attach("a1", WantedMode::Auto).unwrap();
    let (session, port) = (Session::new(), Port::new("a0"));
    let stun: SocketAddr = SocketAddrV4::new(RELAY, 3478).into();
    let listener = Listener { local: stun, exit: way(1500), bytes_per_second: Some(1 << 20) };
    assert!(!asks_for_binding(&port, &session));
    for _ in 0..2 {
        assert!(bpf.answer_binding(&[listener]).is_empty());
        let is_answered = asks_for_binding(&port, &session);
        assert!(is_answered, "passed up, by reason: {:?}", bpf.reasons());
        assert!(!bpf.index_free(stun));
    }
    drop(bpf);
    assert!(asks_for_binding(&port, &session), "the program goes on");
    let mut bpf = lab.open();
    assert!(bpf.list().unwrap().is_empty(), "no flow");
    assert!(!asks_for_binding(&port, &session), "until told again");
    assert!(bpf.answer_binding(&[listener]).is_empty());
    assert!(asks_for_binding(&port, &session));
    assert!(bpf.answer_binding(&[]).is_empty());
    assert!(!asks_for_binding(&port, &session));
    assert!(bpf.index_free(stun));
    // All that was held for it is free again, and a leg of its own goes before.
    bpf.install(&flow_of(0, Some(9)), &way(1500)).unwrap();
    let taken = Listener { local: flow_of(0, None).from.local, ..listener };
    let refused = bpf.answer_binding(&[taken]);
    assert!(matches!(refused[..], [(_, BackendError::IndexTaken { .. })]), "{refused:?}");
}
