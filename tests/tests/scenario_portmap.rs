//! Port mappings at a router of the kind that people have at home (miniupnpd), and a host without IPv4
//! behind a NAT64 (tayga), in namespaces.
//!
//! ```text
//! client ── router ── outside
//! ```

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_nat::nat64::{self, Prefix, Resolver};
use rawr_nat::portmap::{
    Gateway6, Gateways, MapError, MappedPort, Mapping, Means, PortMapper, PortMapperConfig,
    Protocols, Transport,
};
use rawr_tests::lab::{Family, Subnet};
use rawr_tests::nat::forward;
use rawr_tests::netns::Netns;
use rawr_tests::process::{Process, binary, eventually};
use rawr_tests::scene::{Scene, scenario};
use tokio::sync::oneshot;

const LAN: Subnet = Subnet::new([10, 0, 1], [0x2001, 0xdb8, 1, 1]);
const WAN: Subnet = Subnet::new([203, 0, 113], [0x2001, 0xdb8, 1, 2]);
const ROUTER: u8 = 1;
const CLIENT: u8 = 2;
const OUTSIDE: u8 = 3;
/// What the router calls its external address. miniupnpd maps nothing where that is reserved for special purposes, as
/// those of documentation are. It stands in answers alone, no packet goes there: see [`at_the_router`].
const TOLD: Ipv4Addr = Ipv4Addr::new(44, 1, 1, 1);
const SECOND: Duration = Duration::from_secs(1);

const RULES: &str = r#"table inet rawr_nat {
    chain forward {
        type filter hook forward priority filter; policy accept;
        meta l4proto ipv6-icmp accept
        iifname "wan" ct state established,related accept
        jump miniupnpd
        iifname "wan" counter drop
    }
    chain miniupnpd {}
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump prerouting_miniupnpd
    }
    chain prerouting_miniupnpd {}
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        jump postrouting_miniupnpd
        oifname "wan" meta nfproto ipv4 masquerade
    }
    chain postrouting_miniupnpd {}
}"#;

const FORGET: &str = "nft flush chain inet rawr_nat miniupnpd\n\
                      nft flush chain inet rawr_nat prerouting_miniupnpd\n\
                      nft flush chain inet rawr_nat postrouting_miniupnpd";

/// The router's daemon, and where it keeps its files.
struct Home {
    daemon: Option<Process>,
    directory: PathBuf,
}

impl Home {
    fn new(scene: &mut Scene) -> Result<Self> {
        let lab = &mut scene.lab;
        lab.hosts(&["client", "router", "outside"])?;
        lab.wire(&LAN, ("client", "eth0", CLIENT), ("router", "lan", ROUTER))?;
        lab.wire(&WAN, ("outside", "eth0", OUTSIDE), ("router", "wan", ROUTER))?;
        lab.default_route("client", &LAN, ROUTER)?;
        lab.route("outside", &LAN, &WAN, ROUTER)?;
        let router = lab.at("router")?;
        forward(&router)?;
        router.sh(&format!("nft -f - <<'RULES'\n{RULES}\nRULES"))?;
        let directory = lab.directory().to_owned();
        std::fs::write(directory.join("miniupnpd.conf"), CONFIG)?;
        let mut home = Self { daemon: None, directory };
        home.start(&router)?;
        Ok(home)
    }

    fn start(&mut self, router: &Netns) -> Result<()> {
        let file = |name: &str| self.directory.join(name);
        let mut command = router.command("miniupnpd");
        command.arg("-d").arg("-f").arg(file("miniupnpd.conf"));
        command.arg("-P").arg(file("miniupnpd.pid"));
        self.daemon = Some(Process::spawn("miniupnpd", &mut command, &file("miniupnpd"))?);
        // 5351 for PCP and NAT-PMP, 1900 for the search of IGD, in hexadecimal.
        eventually("the router listens", 10 * SECOND, || {
            let sockets = router.proc_net("udp")? + &router.proc_net("udp6")?;
            let listens = |port| sockets.contains(&format!(":{port:04X} "));
            Ok((listens(5351) && listens(1900)).then_some(()))
        })
    }

    /// As by a power cut: what it had mapped is forgotten.
    fn restart(&mut self, router: &Netns) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        router.sh(FORGET)?;
        self.start(router)
    }
}

const CONFIG: &str = "\
ext_ifname=wan
ext_ip=44.1.1.1
listening_ip=lan
enable_natpmp=yes
enable_upnp=yes
min_lifetime=2
max_lifetime=86400
upnp_table_name=rawr_nat
upnp_nat_table_name=rawr_nat
secure_mode=yes
system_uptime=no
uuid=00000000-0000-4000-8000-000000000001
allow 1024-65535 10.0.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

const MEANS: [(Means, Protocols); 4] = [
    (Means::Pcp, Protocols { pcp: true, ..Protocols::NONE }),
    (Means::NatPmp, Protocols { nat_pmp: true, ..Protocols::NONE }),
    (Means::Igd, Protocols { igd: true, ..Protocols::NONE }),
    // Of all that answer, the best.
    (Means::Pcp, Protocols::ALL),
];

fn home(name: &str, body: impl FnOnce(&Scene, &mut Home) -> Result<()>) {
    scenario(name, |scene| {
        let mut home = Home::new(scene)?;
        let result = body(scene, &mut home);
        if result.is_err()
            && let Some(daemon) = &home.daemon
        {
            eprintln!("{}", daemon.log_tail(40));
            eprintln!("{}", scene.lab.at("router")?.sh("nft list ruleset")?);
        }
        result
    });
}

/// Runs a client's asynchronous work in its namespace, for a minute at most.
fn run<T: Send>(client: &Netns, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    client.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let limited = async { tokio::time::timeout(60 * SECOND, work).await };
        runtime.block_on(limited).context("it took more than a minute")?
    })?
}

/// Asks for the router to be started anew, and waits until it has been.
struct Restart {
    ask: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl Restart {
    async fn now(self) -> Result<()> {
        ensure!(self.ask.send(()).is_ok(), "nobody restarts the router");
        self.done.await.context("the router was not restarted")
    }
}

/// Runs a client's work that the router is restarted in. The daemon would end with the thread that has
/// started it, so it is not the client's that does.
fn run_across_restart<T: Send, F: Future<Output = Result<T>> + Send>(
    client: &Netns,
    (router, home): (&Netns, &mut Home),
    work: impl FnOnce(Restart) -> F + Send,
) -> Result<T> {
    let ((ask, asked), (tell, done)) = (oneshot::channel(), oneshot::channel());
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| run(client, work(Restart { ask, done })));
        if asked.blocking_recv().is_ok() {
            home.restart(router)?;
            // The client may have given up.
            let _ = tell.send(());
        }
        worker.join().expect("the client's thread does not panic")
    })
}

/// The gateways as the client's routing table has them, short times.
fn config(uses: Protocols, lifetime: Duration) -> PortMapperConfig {
    let (patience, check) = (2 * SECOND, 3_600 * SECOND);
    PortMapperConfig { gateways: Gateways::of_this_host(), uses, lifetime, patience, check }
}

fn bind(host: &Netns, address: IpAddr) -> Result<UdpSocket> {
    let socket = host.run(|| UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(SECOND / 5))?;
    Ok(socket)
}

/// Whether what `outside` sends to `external` comes to `inside`. Nothing is lost here, so one datagram
/// says it. It comes from a port of its own: routers remember where others went.
fn arrives(outside: &Netns, external: SocketAddr, inside: &UdpSocket) -> Result<bool> {
    let family = if external.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let sender = bind(outside, WAN.address(family, OUTSIDE))?;
    sender.send_to(b"knock", at_the_router(external))?;
    let mut buffer = [0; 16];
    match inside.recv_from(&mut buffer) {
        Ok((length, from)) => {
            ensure!(buffer[..length] == *b"knock" && from == sender.local_addr()?, "from {from}");
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

/// Where a mapped port is in truth.
fn at_the_router(external: SocketAddr) -> SocketAddr {
    if external.ip() == TOLD {
        return WAN.socket(Family::Ipv4, ROUTER, external.port());
    }
    external
}

fn link_local(host: &Netns, interface: &str) -> Result<Ipv6Addr> {
    let listed = host.sh(&format!("ip -6 -o address show dev {interface} scope link"))?;
    let cidr = listed.split_whitespace().find(|word| word.starts_with("fe80:"));
    let address = cidr.and_then(|cidr| cidr.split('/').next()).context("no link-local address")?;
    Ok(address.parse()?)
}

fn held(port: &MappedPort) -> Result<Mapping> {
    port.mapping().context("there is no mapping any more")
}

#[test]
fn a_mapping_lets_others_in_until_it_is_removed() {
    home("a_mapping_lets_others_in_until_it_is_removed", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let wan = WAN.address(Family::Ipv4, ROUTER);
        let outside = &*outside;
        for (means, uses) in MEANS {
            let socket = bind(&client, LAN.address(Family::Ipv4, CLIENT))?;
            let local = socket.local_addr()?;
            ensure!(!arrives(outside, SocketAddr::new(wan, local.port()), &socket)?);
            let external = run(&client, async {
                let mut mapper = PortMapper::new(config(uses, 600 * SECOND));
                ensure!(mapper.protocols().await == uses, "not all means answered");
                let port = mapper.map(Transport::Udp, local).await?;
                let mapping = held(&port)?;
                ensure!(mapping.means == means && !mapping.is_double_nat, "{mapping:?}");
                ensure!(mapping.external.ip() == TOLD, "{mapping:?}");
                ensure!(mapping.lifetime == Some(600 * SECOND), "{mapping:?}");
                ensure!(arrives(outside, mapping.external, &socket)?, "{mapping:?}");
                mapper.close().await;
                Ok(mapping.external)
            })?;
            ensure!(!arrives(outside, external, &socket)?, "{means}: it was not removed");
            let rules = scene.lab.at("router")?.sh("nft list chain inet rawr_nat miniupnpd")?;
            ensure!(!rules.contains(&local.port().to_string()), "{means}: {rules}");
        }
        Ok(())
    });
}

#[test]
fn a_mapping_is_renewed() {
    home("a_mapping_is_renewed", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        let sockets = [(); 3].map(|()| bind(&client, LAN.address(Family::Ipv4, CLIENT)));
        let sockets = sockets.into_iter().collect::<Result<Vec<_>>>()?;
        run(&client, async {
            let mut mappers = Vec::new();
            for ((_, uses), socket) in MEANS.into_iter().zip(&sockets) {
                let mut mapper = PortMapper::new(config(uses, 4 * SECOND));
                let port = mapper.map(Transport::Udp, socket.local_addr()?).await?;
                mappers.push((mapper, port));
            }
            tokio::time::sleep(10 * SECOND).await;
            for ((mapper, port), socket) in mappers.into_iter().zip(&sockets) {
                let mapping = held(&port)?;
                ensure!(arrives(outside, mapping.external, socket)?, "{mapping:?} has expired");
                mapper.close().await;
            }
            Ok(())
        })
    });
}

#[test]
fn a_mapping_that_is_dropped_is_removed_in_the_background() {
    home("a_mapping_that_is_dropped_is_removed_in_the_background", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        for drops_mapper in [false, true] {
            let socket = bind(&client, LAN.address(Family::Ipv4, CLIENT))?;
            let local = socket.local_addr()?;
            run(&client, async {
                let mut mapper = PortMapper::new(config(Protocols::ALL, 600 * SECOND));
                let port = mapper.map(Transport::Udp, local).await?;
                let external = held(&port)?.external;
                ensure!(arrives(outside, external, &socket)?);
                let kept = match drops_mapper {
                    true => {
                        drop(mapper);
                        (None, Some(port))
                    }
                    false => {
                        drop(port);
                        (Some(mapper), None)
                    }
                };
                let mut is_gone = false;
                for _ in 0..50 {
                    tokio::time::sleep(SECOND / 10).await;
                    is_gone = !arrives(outside, external, &socket)?;
                    if is_gone {
                        break;
                    }
                }
                ensure!(is_gone, "it was not removed");
                drop(kept);
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// The program ends without a word, as when it is killed: the mapping goes by itself.
#[test]
fn a_mapping_that_nobody_renews_expires() {
    home("a_mapping_that_nobody_renews_expires", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        for (means, uses) in &MEANS[..3] {
            let socket = bind(&client, LAN.address(Family::Ipv4, CLIENT))?;
            let local = socket.local_addr()?;
            // The runtime ends with the future, before anything could be removed.
            let external = run(&client, async {
                let mut mapper = PortMapper::new(config(*uses, 4 * SECOND));
                let port = mapper.map(Transport::Udp, local).await?;
                let external = held(&port)?.external;
                std::mem::forget((mapper, port));
                Ok(external)
            })?;
            ensure!(arrives(outside, external, &socket)?, "{means}: it was removed at once");
            eventually("the mapping has expired", 20 * SECOND, || {
                Ok((!arrives(outside, external, &socket)?).then_some(()))
            })?;
        }
        Ok(())
    });
}

/// No means says so by itself here: it is the check that finds out. Without it nothing would come through,
/// for the router's rules are flushed while its daemon is down.
#[test]
fn a_router_that_forgets_is_told_again() {
    home("a_router_that_forgets_is_told_again", |scene, home| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        let router = scene.lab.at("router")?;
        let router = &*router;
        // Its epoch has to be worth something.
        std::thread::sleep(5 * SECOND);
        for (_, uses) in &MEANS[..3] {
            let socket = &bind(&client, LAN.address(Family::Ipv4, CLIENT))?;
            let local = socket.local_addr()?;
            run_across_restart(&client, (router, home), |restart| async move {
                let config = PortMapperConfig { check: SECOND, ..config(*uses, 7_200 * SECOND) };
                let mut mapper = PortMapper::new(config);
                let port = mapper.map(Transport::Udp, local).await?;
                let before = held(&port)?;
                tokio::time::sleep(4 * SECOND).await;
                ensure!(arrives(outside, before.external, socket)?, "{before:?}");
                restart.now().await?;
                let mut is_back = false;
                for _ in 0..20 {
                    tokio::time::sleep(SECOND / 2).await;
                    if let Some(mapping) = port.mapping() {
                        is_back |= arrives(outside, mapping.external, socket)?;
                    }
                    if is_back {
                        break;
                    }
                }
                ensure!(is_back, "{uses:?}: the mapping was not made again");
                ensure!(held(&port)?.external == before.external, "{:?}", port.mapping());
                mapper.close().await;
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_tcp_port_is_mapped_too() {
    home("a_tcp_port_is_mapped_too", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        let address = LAN.address(Family::Ipv4, CLIENT);
        for (_, uses) in &MEANS[..3] {
            let listener = client.run(|| std::net::TcpListener::bind((address, 0)))??;
            let local = listener.local_addr()?;
            run(&client, async {
                let mut mapper = PortMapper::new(config(*uses, 600 * SECOND));
                let port = mapper.map(Transport::Tcp, local).await?;
                let external = at_the_router(held(&port)?.external);
                let connected = outside
                    .run(|| std::net::TcpStream::connect_timeout(&external, SECOND).map(drop))?;
                ensure!(connected.is_ok(), "{uses:?}: {connected:?}");
                mapper.close().await;
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// For IPv6 the router's firewall is opened. Routers that announce themselves are known by their
/// link-local address, towards which the kernel would send from another address than the mapped one.
#[test]
fn a_pinhole_lets_others_in_until_it_is_removed() {
    home("a_pinhole_lets_others_in_until_it_is_removed", |scene, _| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let outside = &*outside;
        for (means, uses, is_link_local) in
            [(MEANS[0], false), (MEANS[0], true), (MEANS[2], true)].map(|((m, u), l)| (m, u, l))
        {
            if is_link_local {
                let address = link_local(&*scene.lab.at("router")?, "lan")?;
                client.sh(&format!("ip -6 route replace default via {address} dev eth0"))?;
            }
            let socket = bind(&client, LAN.address(Family::Ipv6, CLIENT))?;
            let local = socket.local_addr()?;
            ensure!(!arrives(outside, local, &socket)?);
            run(&client, async {
                let mut mapper = PortMapper::new(config(uses, 600 * SECOND));
                let port = mapper.map(Transport::Udp, local).await?;
                let mapping = held(&port)?;
                ensure!(mapping.means == means && mapping.external == local, "{mapping:?}");
                ensure!(arrives(outside, local, &socket)?, "{mapping:?}");
                mapper.close().await;
                Ok(())
            })?;
            ensure!(!arrives(outside, local, &socket)?, "{means}: it was not removed");
        }
        Ok(())
    });
}

/// A pinhole has no epoch either: it is asked for by its number, and opened anew.
#[test]
fn a_forgotten_pinhole_is_opened_again() {
    home("a_forgotten_pinhole_is_opened_again", |scene, home| {
        let (client, outside) = (scene.lab.at("client")?, scene.lab.at("outside")?);
        let (outside, router) = (&*outside, scene.lab.at("router")?);
        let router = &*router;
        let socket = &bind(&client, LAN.address(Family::Ipv6, CLIENT))?;
        let local = socket.local_addr()?;
        run_across_restart(&client, (router, home), |restart| async move {
            let (_, uses) = MEANS[2];
            let config = PortMapperConfig { check: SECOND, ..config(uses, 600 * SECOND) };
            let mut mapper = PortMapper::new(config);
            let _port = mapper.map(Transport::Udp, local).await?;
            ensure!(arrives(outside, local, socket)?);
            restart.now().await?;
            let mut is_back = false;
            for _ in 0..20 {
                tokio::time::sleep(SECOND / 2).await;
                is_back = arrives(outside, local, socket)?;
                if is_back {
                    break;
                }
            }
            ensure!(is_back, "the pinhole was not opened again");
            mapper.close().await;
            Ok(())
        })?;
        ensure!(!arrives(outside, local, socket)?, "it was not removed");
        Ok(())
    });
}

/// Where nothing answers it is said in time, by what was tried.
#[test]
fn a_router_without_any_of_it_is_told() {
    home("a_router_without_any_of_it_is_told", |scene, home| {
        home.daemon = None;
        let client = scene.lab.at("client")?;
        let local = LAN.socket(Family::Ipv4, CLIENT, 5_000);
        run(&client, async {
            let mut mapper = PortMapper::new(config(Protocols::ALL, 600 * SECOND));
            ensure!(mapper.protocols().await == Protocols::NONE);
            let error = mapper.map(Transport::Udp, local).await.err().context("a mapping")?;
            let text = error.to_string();
            for means in [Means::Pcp, Means::NatPmp, Means::Igd] {
                ensure!(text.contains(&means.to_string()), "{text}");
            }
            for local in ["0.0.0.0:5000", "10.0.1.2:0", "[::]:5000"] {
                let local = local.parse()?;
                let error = mapper.map(Transport::Udp, local).await.err();
                ensure!(error == Some(MapError::NotOne(local)), "{local}: {error:?}");
            }
            Ok(())
        })?;
        let gateways = client.run(Gateways::of_this_host)?;
        ensure!(gateways.ipv4 == Some(Ipv4Addr::new(10, 0, 1, ROUTER)), "{gateways:?}");
        ensure!(matches!(gateways.ipv6, Some(Gateway6 { scope: 1.., .. })), "{gateways:?}");
        Ok(())
    });
}

const NAT64: &str = "2001:db8:64::";
const OUTWARDS: &str = r#"table ip rawr_nat {
    chain translate {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" masquerade
    }
}"#;
/// What tayga gives to hosts that have no IPv4 address.
const POOL: &str = "192.168.255.0/24";

/// The client has no IPv4 address, and the server outside no IPv6 address.
#[test]
fn a_host_without_ipv4_reaches_one_without_ipv6() {
    scenario("a_host_without_ipv4_reaches_one_without_ipv6", |scene| {
        let lab = &mut scene.lab;
        lab.hosts(&["client", "router", "outside"])?;
        lab.wire(&LAN, ("client", "eth0", CLIENT), ("router", "lan", ROUTER))?;
        lab.wire(&WAN, ("outside", "eth0", OUTSIDE), ("router", "wan", ROUTER))?;
        lab.default_route("client", &LAN, ROUTER)?;
        lab.at("client")?.sh("ip -4 address flush dev eth0")?;
        lab.at("outside")?.sh("ip -6 address flush dev eth0")?;
        let router = lab.at("router")?;
        forward(&router)?;
        let config = lab.directory().join("tayga.conf");
        let directory = lab.directory().display().to_string();
        std::fs::write(
            &config,
            format!(
                "tun-device nat64\nipv4-addr 192.168.255.1\nprefix {NAT64}/96\n\
                 dynamic-pool {POOL}\ndata-dir {directory}\n"
            ),
        )?;
        let config = config.display();
        router.sh(&format!(
            "tayga -c {config} --mktun\nip link set nat64 up\nip route add {POOL} dev nat64\n\
             ip -6 route add {NAT64}/96 dev nat64\n\
             nft -f - <<'RULES'\n{OUTWARDS}\nRULES"
        ))?;
        let mut command = router.command("tayga");
        command.args(["-d", "-c"]).arg(config.to_string());
        let _tayga = Process::spawn("tayga", &mut command, &lab.directory().join("tayga"))?;

        let dns64 = router.run(|| UdpSocket::bind((LAN.address(Family::Ipv6, ROUTER), 53)))??;
        dns64.set_read_timeout(Some(20 * SECOND))?;
        let servers = [dns64.local_addr()?];
        let server = std::thread::spawn(move || answer_all(&dns64));
        let client = lab.at("client")?;
        let prefix = run(&client, async { Ok(nat64::discover(&Resolver::of(&servers)?).await?) })?;
        let prefix = prefix.context("no prefix was found")?;
        let report = netcheck_asking(&client, servers[0].ip(), lab.directory())?;
        bind(&client, LAN.address(Family::Ipv6, CLIENT))?.send_to(&[], servers[0])?;
        server.join().expect("the responder does not panic")?;
        ensure!(report["nat64"] == format!("{NAT64}/96"), "{report}");
        let expected: Ipv6Addr = NAT64.parse()?;
        ensure!(Some(prefix) == Prefix::new(expected, 96), "{prefix}");

        let far = bind(&*lab.at("outside")?, WAN.address(Family::Ipv4, OUTSIDE))?;
        let IpAddr::V4(address) = far.local_addr()?.ip() else { unreachable!("bound to IPv4") };
        let through = SocketAddr::new(prefix.synthesize(address).into(), far.local_addr()?.port());
        let near = bind(&client, LAN.address(Family::Ipv6, CLIENT))?;
        eventually("a datagram comes through the NAT64 and back", 10 * SECOND, || {
            near.send_to(b"there", through)?;
            let mut buffer = [0; 16];
            let Ok((length, from)) = far.recv_from(&mut buffer) else { return Ok(None) };
            ensure!(buffer[..length] == *b"there");
            far.send_to(b"and back", from)?;
            let Ok((length, from)) = near.recv_from(&mut buffer) else { return Ok(None) };
            ensure!(buffer[..length] == *b"and back" && from == through, "from {from}");
            Ok(Some(()))
        })
    });
}

/// What the router and the name servers have to say is in the report, even where no STUN server answers.
#[test]
fn netcheck_tells_what_the_router_can_do() {
    home("netcheck_tells_what_the_router_can_do", |scene, home| {
        let client = scene.lab.at("client")?;
        let report = netcheck(&client)?;
        let expected = serde_json::json!({ "pcp": true, "nat_pmp": true, "upnp_igd": true });
        ensure!(report["port_mapping"] == expected, "{report}");
        ensure!(report["nat64"].is_null(), "{report}");
        home.daemon = None;
        let report = netcheck(&client)?;
        let expected = serde_json::json!({ "pcp": false, "nat_pmp": false, "upnp_igd": false });
        ensure!(report["port_mapping"] == expected, "{report}");
        Ok(())
    });
}

fn netcheck(host: &Netns) -> Result<serde_json::Value> {
    let mut command = host.command(binary("rawr")?);
    let server = WAN.socket(Family::Ipv4, OUTSIDE, 3478).to_string();
    command.args(["netcheck", "--json", "--timeout", "3", "--server", &server]);
    let output = command.output()?;
    serde_json::from_slice(&output.stdout).context("netcheck printed no JSON")
}

/// With `server` for a name server.
fn netcheck_asking(host: &Netns, server: IpAddr, directory: &Path) -> Result<serde_json::Value> {
    let configuration = directory.join("resolv.conf");
    std::fs::write(&configuration, format!("nameserver {server}\n"))?;
    let (configuration, program) = (configuration.display(), binary("rawr")?);
    let script = format!(
        "mount --bind {configuration} /etc/resolv.conf && \
         exec {} netcheck --json --timeout 3 --server [{server}]:3478",
        program.display(),
    );
    let output = host.command("unshare").args(["--mount", "sh", "-c", &script]).output()?;
    serde_json::from_slice(&output.stdout).context("netcheck printed no JSON")
}

/// Where there is no DNS64, the answer has no addresses.
#[test]
fn a_network_without_nat64_has_no_prefix() {
    scenario("a_network_without_nat64_has_no_prefix", |scene| {
        scene.lab.hosts(&["client"])?;
        let client = scene.lab.at("client")?;
        let dns = client.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))??;
        dns.set_read_timeout(Some(20 * SECOND))?;
        let servers = [dns.local_addr()?];
        let server = std::thread::spawn(move || -> Result<()> {
            let mut query = [0; 512];
            let (length, from) = dns.recv_from(&mut query)?;
            dns.send_to(&response(&query[..length], &[])?, from)?;
            Ok(())
        });
        let found = run(&client, async { Ok(nat64::discover(&Resolver::of(&servers)?).await?) })?;
        server.join().expect("the responder does not panic")?;
        ensure!(found.is_none(), "{found:?}");
        Ok(())
    });
}

/// A DNS64, as far as `ipv4only.arpa` is concerned (RFC 7050 §2.2, RFC 6147). An empty datagram ends it.
fn answer_all(socket: &UdpSocket) -> Result<()> {
    let prefix: Ipv6Addr = NAT64.parse()?;
    let addresses = [170, 171].map(|last| {
        let mut bytes = prefix.octets();
        bytes[12..].copy_from_slice(&[192, 0, 0, last]);
        bytes
    });
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query)?;
        if length == 0 {
            return Ok(());
        }
        socket.send_to(&response(&query[..length], &addresses)?, from)?;
    }
}

/// A response with AAAA records to a query with one question (RFC 1035 §4.1, RFC 3596 §2).
fn response(query: &[u8], addresses: &[[u8; 16]]) -> Result<Vec<u8>> {
    const HEADER_LEN: usize = 12;
    let name = b"\x08ipv4only\x04arpa\x00";
    let question_end = HEADER_LEN + name.len() + 4;
    let question = query.get(HEADER_LEN..question_end).context("a query is longer")?;
    let asks =
        question.to_ascii_lowercase().starts_with(name) && question.ends_with(&[0, 28, 0, 1]);
    ensure!(asks, "another question: {question:?}");
    let count = u8::try_from(addresses.len())?;
    // Recursion was desired and is available; one question, the answers, nothing else.
    let flags_and_counts = [0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    let mut response = [&query[..2], &flags_and_counts, question].concat();
    for address in addresses {
        // The question's name, AAAA, IN, a minute, 16 bytes.
        response.extend_from_slice(&[0xC0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
        response.extend_from_slice(address);
    }
    Ok(response)
}
