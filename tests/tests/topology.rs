//! What the daemon knows of the network, in namespaces: neighbours whose MAC address changes, routes
//! that move, links that go down, hosts that have never spoken. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rawr_userspace::dataplane::NextHop;
use rawr_userspace::doctor::{self, Finding, Options, veth_checksum_warning};
use rawr_userspace::io::neighbours::SweepConfig;
use rawr_userspace::io::netlink::{Config, NetworkEvent, NextHopResolver};
use rawr_userspace::topology::Mac;
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// More than enough for neighbour unreachability detection to give up: three probes, one second apart.
const PROBES: Duration = Duration::from_secs(20);

/// Runs a test in a router `r` with two links: `r0` to host `a` (192.0.2.0/24, 2001:db8:a::/64) and
/// `r1` to host `b` (198.51.100.0/24, 2001:db8:b::/64). Hosts route through the router.
fn in_router(test: impl AsyncFnOnce(&Net) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "with CI=true nothing is skipped: run as root");
        eprintln!("skipped: needs root to make network namespaces");
        return;
    }
    let net = Net::new();
    let thread = std::thread::spawn(move || {
        let namespace = File::open(format!("/run/netns/{}", net.name("r"))).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&net));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Three namespaces; deleted when dropped.
struct Net {
    suffix: String,
}

impl Net {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Self { suffix: format!("{}-{count}", std::process::id()) };
        for host in ["r", "a", "b"] {
            run("ip", &["netns", "add", &net.name(host)]);
            net.sh(host, "ip link set lo up");
            net.sh(host, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.ip_forward=1");
        }
        for (link, host, v4, v6) in
            [("r0", "a", "192.0.2", "2001:db8:a:"), ("r1", "b", "198.51.100", "2001:db8:b:")]
        {
            let (r, peer) = (net.name("r"), net.name(host));
            net.sh("r", &format!("ip link add {link} type veth peer name eth0 netns {peer}"));
            net.sh("r", &format!("ip link set {link} netns {r}"));
            for (host, device, n) in [("r", link, 1), (host, "eth0", 2)] {
                net.sh(host, &format!("ip addr add {v4}.{n}/24 dev {device}"));
                net.sh(host, &format!("ip addr add {v6}:{n}/64 dev {device} nodad"));
                net.sh(host, &format!("ip link set {device} up"));
            }
            net.sh(host, &format!("ip route add default via {v4}.1"));
        }
        net
    }

    fn name(&self, host: &str) -> String {
        format!("rawr-topo-{}-{host}", self.suffix)
    }

    /// Runs a command line in a namespace.
    fn sh(&self, host: &str, line: &str) -> String {
        let namespace = format!("--net=/run/netns/{}", self.name(host));
        let output = run("nsenter", &[&[namespace.as_str(), "--"], &words(line)[..]].concat());
        String::from_utf8(output.stdout).unwrap()
    }

    fn mac(&self, host: &str, device: &str) -> Mac {
        let link = self.sh(host, &format!("ip -o link show dev {device}"));
        let mac = words(&link).into_iter().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let bytes: Vec<_> = mac.split(':').map(|it| u8::from_str_radix(it, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in ["r", "a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(host)]).status();
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    output
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn open() -> NextHopResolver {
    NextHopResolver::open(Config::default()).unwrap()
}

/// Waits for a pair's next hop to be as wanted, and says how long that took.
async fn becomes(
    resolver: &mut NextHopResolver,
    pair: (IpAddr, IpAddr),
    within: Duration,
    wanted: impl Fn(Option<NextHop>) -> bool,
) -> Duration {
    let start = Instant::now();
    while !wanted(resolver.next_hop(pair.0, pair.1)) {
        let left = within.saturating_sub(start.elapsed());
        let Ok(_) = timeout(left, resolver.next()).await else {
            panic!("after {within:?} still {:?}", resolver.next_hop(pair.0, pair.1));
        };
    }
    start.elapsed()
}

/// One datagram from a host, so that it resolves whom it sends to.
fn send_from(net: &Net, host: &str, to: &str) {
    let namespace = format!("/run/netns/{}", net.name(host));
    let to = (ip(to), 9);
    std::thread::spawn(move || {
        setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let any = if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        UdpSocket::bind(any).unwrap().send_to(b"x", to).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn a_fresh_neighbour_is_resolved_at_once() {
    in_router(async |net: &Net| {
        let mut resolver = open();
        for (remote, local) in [("192.0.2.2", "192.0.2.1"), ("2001:db8:a::2", "2001:db8:a::1")] {
            let pair = (ip(remote), ip(local));
            assert_eq!(resolver.watch(pair.0, pair.1), None);
            let took = becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
            eprintln!("{remote} resolved within {took:?}");
            let hop = resolver.next_hop(pair.0, pair.1).unwrap();
            assert_eq!(hop.dst_mac, net.mac("a", "eth0"));
            assert_eq!(hop.src_mac, net.mac("r", "r0"));
            assert_eq!(hop.mtu, 1500);
            assert!(!hop.tx, "veth must not use XDP_TX");
            assert_eq!(resolver.watch(pair.0, pair.1), Some(hop), "known at once the second time");
        }
    });
}

#[test]
fn a_changed_mac_is_seen_within_a_second_of_traffic() {
    in_router(async |net: &Net| {
        let mut resolver = open();
        for (remote, local, mac) in [
            ("192.0.2.2", "192.0.2.1", [2, 0, 0, 0, 9, 4]),
            ("2001:db8:a::2", "2001:db8:a::1", [2, 0, 0, 0, 9, 6]),
        ] {
            let pair = (ip(remote), ip(local));
            resolver.watch(pair.0, pair.1);
            becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
            let [.., x, y] = mac;
            net.sh("a", &format!("ip link set eth0 address 02:00:00:00:{x:02x}:{y:02x}"));
            send_from(net, "a", local);
            let is_new = |hop: Option<NextHop>| hop.is_some_and(|hop| hop.dst_mac == mac);
            let took = becomes(&mut resolver, pair, SECOND, is_new).await;
            eprintln!("new MAC address of {remote} seen within {took:?}");
        }
    });
}

#[test]
fn a_changed_mac_is_found_out_without_any_traffic() {
    in_router(async |net: &Net| {
        let verify_every = SECOND;
        let mut resolver =
            NextHopResolver::open(Config { verify_every, ..Config::default() }).unwrap();
        let pair = (ip("192.0.2.2"), ip("192.0.2.1"));
        resolver.watch(pair.0, pair.1);
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
        net.sh("a", "ip link set eth0 address 02:00:00:00:09:08");
        let is_new = |hop: Option<NextHop>| hop.is_some_and(|hop| hop.dst_mac[5] == 8);
        let took = becomes(&mut resolver, pair, verify_every + PROBES, is_new).await;
        eprintln!("new MAC address of a host that says nothing seen within {took:?}");
    });
}

#[test]
fn a_host_that_is_gone_loses_its_next_hop_and_gets_it_back() {
    in_router(async |net: &Net| {
        let verify_every = SECOND;
        let mut resolver =
            NextHopResolver::open(Config { verify_every, ..Config::default() }).unwrap();
        let pair = (ip("192.0.2.2"), ip("192.0.2.1"));
        resolver.watch(pair.0, pair.1);
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
        net.sh("a", "ip addr del 192.0.2.2/24 dev eth0");
        let took = becomes(&mut resolver, pair, verify_every + PROBES, |hop| hop.is_none()).await;
        eprintln!("loss of the host seen within {took:?}");
        net.sh("a", "ip addr add 192.0.2.2/24 dev eth0");
        let took = becomes(&mut resolver, pair, PROBES, |hop| hop.is_some()).await;
        eprintln!("return of the host seen within {took:?}");
    });
}

#[test]
fn a_route_that_moves_moves_the_next_hop() {
    in_router(async |net: &Net| {
        net.sh("r", "ip route add 203.0.113.0/24 via 192.0.2.2");
        let mut resolver = open();
        let pair = (ip("203.0.113.7"), ip("192.0.2.1"));
        resolver.watch(pair.0, pair.1);
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
        let before = resolver.next_hop(pair.0, pair.1).unwrap();
        assert_eq!(before.dst_mac, net.mac("a", "eth0"));

        net.sh("r", "ip route replace 203.0.113.0/24 via 198.51.100.2 mtu 1400");
        let moved = |hop: Option<NextHop>| hop.is_some_and(|hop| hop.ifindex != before.ifindex);
        let took = becomes(&mut resolver, pair, SECOND, moved).await;
        eprintln!("moved route seen within {took:?}");
        let after = resolver.next_hop(pair.0, pair.1).unwrap();
        assert_eq!(after.dst_mac, net.mac("b", "eth0"));
        assert_eq!(after.mtu, 1400);

        net.sh("r", "ip route del 203.0.113.0/24");
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_none()).await;
    });
}

#[test]
fn a_policy_rule_by_source_decides() {
    in_router(async |net: &Net| {
        net.sh("r", "ip route add 203.0.113.0/24 via 192.0.2.2");
        net.sh("r", "ip route add 203.0.113.0/24 via 198.51.100.2 table 77");
        let mut resolver = open();
        let remote = ip("203.0.113.7");
        let (a, b) = ((remote, ip("192.0.2.1")), (remote, ip("198.51.100.1")));
        for (remote, local) in [a, b] {
            resolver.watch(remote, local);
            becomes(&mut resolver, (remote, local), SECOND, |hop| hop.is_some()).await;
        }
        assert_eq!(resolver.next_hop(b.0, b.1).unwrap().dst_mac, net.mac("a", "eth0"));
        net.sh("r", "ip rule add from 198.51.100.1 lookup 77");
        let mac = net.mac("b", "eth0");
        becomes(&mut resolver, b, SECOND, |hop| hop.is_some_and(|hop| hop.dst_mac == mac)).await;
        assert_eq!(resolver.next_hop(a.0, a.1).unwrap().dst_mac, net.mac("a", "eth0"));
    });
}

#[test]
fn a_link_that_goes_down_and_up_takes_its_next_hops_along() {
    in_router(async |net: &Net| {
        let mut resolver = open();
        let pair = (ip("192.0.2.2"), ip("192.0.2.1"));
        resolver.watch(pair.0, pair.1);
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
        for (host, device) in [("r", "r0"), ("a", "eth0")] {
            net.sh(host, &format!("ip link set {device} down"));
            // The kernel may tell of a lost carrier a second late.
            let took = becomes(&mut resolver, pair, 2 * SECOND, |hop| hop.is_none()).await;
            eprintln!("{device} down seen within {took:?}");
            net.sh(host, &format!("ip link set {device} up"));
            let took = becomes(&mut resolver, pair, 2 * SECOND, |hop| hop.is_some()).await;
            eprintln!("{device} up seen within {took:?}");
        }
    });
}

#[test]
fn silent_hosts_are_found_by_arp_and_by_icmpv6() {
    in_router(async |net: &Net| {
        net.sh("b", "ip addr add 198.51.100.77/24 dev eth0");
        net.sh("b", "ip -6 addr add 2001:db8:b::77/64 dev eth0 nodad");
        let sweep = SweepConfig { interfaces: vec!["r1".to_owned()], ..SweepConfig::default() };
        let mut resolver = NextHopResolver::open(Config { sweep, ..Config::default() }).unwrap();
        let mac = net.mac("b", "eth0");
        resolver.probe_neighbours();
        let start = Instant::now();
        let (mut by_arp, mut by_icmpv6) = (false, false);
        while !(by_arp && by_icmpv6) {
            let left = SECOND.saturating_sub(start.elapsed());
            let event = timeout(left, resolver.next()).await;
            let event = event.unwrap_or_else(|_| panic!("by ARP: {by_arp}, ICMPv6: {by_icmpv6}"));
            match event {
                NetworkEvent::Neighbour { ip: found, mac: Some(heard), .. } if heard == mac => {
                    by_arp |= found == ip("198.51.100.77");
                    // Which of its addresses a host answers from is its choice (RFC 6724).
                    by_icmpv6 |= found == ip("2001:db8:b::77") || found == ip("2001:db8:b::2");
                }
                _ => {}
            }
        }
        eprintln!("silent hosts found within {:?}", start.elapsed());
        let elsewhere = ip("192.0.2.2");
        assert!(resolver.topology().neighbour_of(elsewhere).is_none(), "only r1 may be probed");

        // Addresses that nobody answers for do not stay behind in the kernel's table.
        let _ = timeout(4 * SECOND, async {
            loop {
                resolver.next().await;
            }
        })
        .await;
        let left = net.sh("r", "ip -4 neigh show dev r1");
        assert!(left.lines().count() <= 2, "{left}");
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    in_router(async |net: &Net| {
        let receive_buffer = 4096;
        let mut resolver =
            NextHopResolver::open(Config { receive_buffer, ..Config::default() }).unwrap();
        let pair = (ip("192.0.2.2"), ip("192.0.2.1"));
        resolver.watch(pair.0, pair.1);
        becomes(&mut resolver, pair, SECOND, |hop| hop.is_some()).await;
        // Nobody reads meanwhile, and the kernel drops the last ones.
        for n in 1..=100 {
            let neighbour = format!("192.0.2.2 lladdr 02:00:00:00:00:{n:02x}");
            net.sh("r", &format!("ip neigh replace {neighbour} dev r0 nud permanent"));
        }
        net.sh("r", "ip addr add 192.0.2.99/24 dev r0");
        let last = |hop: Option<NextHop>| hop.is_some_and(|hop| hop.dst_mac[5] == 100);
        becomes(&mut resolver, pair, SECOND, last).await;
        assert!(resolver.topology().is_own(ip("192.0.2.99")));
    });
}

#[test]
fn ten_thousand_pairs_move_with_their_route_within_a_second() {
    in_router(async |net: &Net| {
        net.sh("r", "ip route add 10.0.0.0/8 via 192.0.2.2");
        let mut resolver = open();
        let local = ip("192.0.2.1");
        let remote = |n: u32| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let last = (remote(9_999), local);
        let start = Instant::now();
        for n in 0..10_000 {
            resolver.watch(remote(n), local);
        }
        eprintln!("10,000 routes asked for in {:?}", start.elapsed());
        becomes(&mut resolver, last, SECOND, |hop| hop.is_some()).await;
        let before = last_hop(&resolver, last);

        net.sh("r", "ip route replace 10.0.0.0/8 via 198.51.100.2");
        let start = Instant::now();
        let moved = |resolver: &NextHopResolver| {
            (0..10_000)
                .filter_map(|n| resolver.next_hop(remote(n), local))
                .filter(|hop| hop.ifindex != before.ifindex)
                .count()
        };
        while moved(&resolver) < 10_000 {
            let took = start.elapsed();
            assert!(took < SECOND, "{} of 10,000 moved within {took:?}", moved(&resolver));
            for _ in 0..1_000 {
                if timeout(Duration::from_millis(5), resolver.next()).await.is_err() {
                    break;
                }
            }
        }
        eprintln!("10,000 next hops moved within {:?}", start.elapsed());
    });
}

fn last_hop(resolver: &NextHopResolver, pair: (IpAddr, IpAddr)) -> NextHop {
    resolver.next_hop(pair.0, pair.1).unwrap()
}

#[test]
fn the_doctor_sees_unfinished_checksums_and_a_deaf_veth() {
    in_router(async |net: &Net| {
        let warning = veth_checksum_warning("r0").expect("both ends have it on by default");
        assert!(warning.contains("ethtool -K r0 tx off"), "{warning}");
        net.sh("r", "ethtool -K r0 tx off");
        assert_eq!(veth_checksum_warning("r0"), None);

        let examine = || {
            let options = Options { interfaces: vec!["r0".to_owned()], ..Options::default() };
            let report = doctor::run(&options);
            report.findings.into_iter().filter(|it| it.subject == "r0").collect::<Vec<_>>()
        };
        let deaf = |findings: &[Finding]| findings.iter().any(|it| it.fix.contains("gro on"));
        assert!(deaf(&examine()), "{:#?}", examine());
        net.sh("a", "ethtool -K eth0 gro on");
        assert!(!deaf(&examine()), "{:#?}", examine());
        let report = doctor::run(&Options::default());
        assert_eq!(report.facts.interfaces.len(), 2, "both links, and not lo");
        eprintln!("{report}");
    });
}
