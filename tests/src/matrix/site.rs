//! The hosts of the matrix, each with the routers of its own that its kind says, on one Internet with one
//! server.
//!
//! ```text
//! h ── r ──┬── core ── server (two addresses)
//! h ── r ──┤
//! h ── r ──┬── c ──┘   a carrier's NAT, where the kind has one
//! h ── r ──┘
//! ```
//!
//! The core is a router, as there are between two homes: where it is not, in a flat network, nothing that is
//! sent to open the own router can end on its way to the other one. It keeps each packet for a while, too:
//! two that are sent at the same time pass each other.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::kind::Kind;
use super::wire::Wires;
use super::words::{Classified, News, Order, line};
use crate::lab::{Family, Lab, Subnet};
use crate::nat::{Nat, forget, forward};
use crate::netns::Netns;
use crate::process::{Process, binary};
use crate::rawr::Serve;
use crate::scene::Scene;
use crate::topology::INTERNET;

/// Address and port of RFC 5780, STUN over TCP at all endpoints, and where nothing but the Web passes.
const SERVER: &str = "\
[turn]
listen_tcp = [\"0.0.0.0:3478\", \"[::]:3478\", \"0.0.0.0:3479\", \"[::]:3479\", \"0.0.0.0:443\"]
[[turn.discovery]]
primary = \"203.0.113.1:3478\"
alternate = \"203.0.113.2:3479\"
[[turn.discovery]]
primary = \"[2001:db8:0:1::1]:3478\"
alternate = \"[2001:db8:0:1::2]:3479\"
";
/// Number of the first router on a flat Internet, and of the first carrier.
const FIRST: (u8, u8) = (11, 101);
/// Milliseconds from a router, or the server, to any other.
const WAY: u64 = 10;
/// Number of the core on the server's subnet.
const CORE: u8 = 254;
/// What NAT64 reaches IPv4 hosts by, and the IPv4 addresses that it gives to hosts without.
const NAT64: &str = "2001:db8:64::";
const POOL: &str = "192.168.255.0/24";

/// One of the two hosts of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub kind: Kind,
    /// 0 or 1.
    pub side: u8,
}

impl Place {
    /// Different for each.
    fn number(self) -> u8 {
        let kind = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or(0);
        u8::try_from(2 * kind).unwrap_or(u8::MAX) + self.side
    }

    fn lan(self) -> Subnet {
        let number = self.number();
        Subnet::new([10, 0, number], [0xfd00, 0, 1, number.into()])
    }

    fn host(self) -> String {
        format!("h{}", self.number())
    }

    fn router(self) -> String {
        format!("r{}", self.number())
    }
}

/// A host, what is before it, and the program on it.
#[derive(Debug)]
pub(super) struct Site {
    pub place: Place,
    pub host: Rc<Netns>,
    routers: Vec<Rc<Netns>>,
    node: Node,
    /// Address of its outermost router, or its own where it has none.
    outside: IpAddr,
    wires: Option<Rc<RefCell<Wires>>>,
}

impl Site {
    /// Its routers forget all that they have translated, as after a power loss.
    pub(super) fn forget(&self) -> Result<()> {
        self.routers.iter().try_for_each(|router| forget(router))
    }

    pub(super) fn tell(&mut self, order: &Order) -> Result<()> {
        let stdin = self.node.process.stdin()?;
        stdin.write_all(line(order)?.as_bytes()).and_then(|()| stdin.flush())?;
        Ok(())
    }

    /// Moves it so many milliseconds away from all others, there and back; as far as it is possible.
    pub(super) fn move_away(&self, round_trip: u64) -> Result<()> {
        let further = (round_trip / 2).saturating_sub(WAY) / 2;
        let wires = self.wires.as_ref().context("wires of a switch have no length")?;
        wires.borrow_mut().lengthen(self.outside, further)
    }

    /// What its program says next.
    pub(super) async fn news(&mut self) -> Result<News> {
        match self.node.news.recv().await {
            Some(news) => Ok(news),
            None => anyhow::bail!("the node has ended\n{}", self.node.process.log_tail(20)),
        }
    }

    /// Has it find out what its routers do.
    pub(super) async fn classify(&mut self) -> Result<Classified> {
        self.tell(&Order::Classify)?;
        loop {
            if let News::Classified(classified) = self.news().await? {
                return Ok(classified);
            }
        }
    }

    /// Starts its program anew.
    pub(super) fn restart(&mut self, lab: &Lab) -> Result<()> {
        self.node = Node::start(self.place, &self.host, lab)?;
        Ok(())
    }

    /// Address of its second host.
    pub(super) fn neighbour(&self) -> IpAddr {
        self.place.lan().address(Family::Ipv4, 3)
    }

    /// Where its server is.
    pub(super) fn server(&self) -> std::net::SocketAddr {
        server(self.place.kind)
    }
}

/// A running `rawr-matrix node`.
#[derive(Debug)]
struct Node {
    process: Process,
    news: UnboundedReceiver<News>,
}

impl Node {
    fn start(place: Place, host: &Netns, lab: &Lab) -> Result<Self> {
        let name = format!("{}-{}", place.kind, place.side);
        let mut command = host.command(binary("rawr-matrix")?);
        command.args(["node", "--server", &server(place.kind).to_string()]);
        if place.kind == Kind::N11 {
            command.args(["--nat64", NAT64]);
        }
        let log = lab.directory().join(format!("node-{name}"));
        let mut process = Process::spawn(&name, &mut command, &log)?;
        let stdout = process.take_stdout()?;
        let (sender, news) = unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(news) => {
                        if sender.send(news).is_err() {
                            return;
                        }
                    }
                    Err(error) => eprintln!("a node said {line}: {error}"),
                }
            }
        });
        Ok(Self { process, news })
    }
}

fn server(kind: Kind) -> std::net::SocketAddr {
    match kind {
        Kind::N10 => INTERNET.socket(Family::Ipv4, 1, 443),
        Kind::N11 => INTERNET.socket(Family::Ipv6, 1, 3478),
        _ => INTERNET.socket(Family::Ipv4, 1, 3478),
    }
}

/// What joins the routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Internet {
    /// A router, to which each has a wire of its own.
    Routed,
    /// A switch.
    Flat,
}

impl Internet {
    /// Plugs the host or router with this number, which is different for each. Returns its subnet and its
    /// number there.
    fn plug(self, lab: &Lab, host: &str, interface: &str, number: u8) -> Result<(Subnet, u8)> {
        match self {
            Self::Flat => {
                lab.plug(&INTERNET, "internet", (host, interface, number))?;
                Ok((INTERNET, number))
            }
            Self::Routed => {
                let subnet = routed(number);
                let core = format!("to-{host}");
                lab.wire(&subnet, ("core", &core, 1), (host, interface, 2))?;
                lab.default_route(host, &subnet, 1)?;
                Ok((subnet, 2))
            }
        }
    }

    /// The address that [`Internet::plug`] gives.
    fn address(self, number: u8) -> IpAddr {
        match self {
            Self::Flat => INTERNET.address(Family::Ipv4, number),
            Self::Routed => routed(number).address(Family::Ipv4, 2),
        }
    }

    /// Where the way to another subnet is looked up.
    const fn routers(self) -> &'static str {
        match self {
            Self::Flat => "server",
            Self::Routed => "core",
        }
    }
}

/// Between the core and the host or router with this number.
fn routed(number: u8) -> Subnet {
    Subnet::new([198, 18, number], [0x2001, 0xdb8, 1, number.into()])
}

/// Builds both sites of each kind, in a lab with nothing else in it. The processes are what else the sites
/// need.
pub(super) fn build(
    scene: &mut Scene,
    internet: Internet,
    kinds: &[Kind],
) -> Result<(Vec<Site>, Vec<Process>)> {
    let wires = begin(scene, internet)?;
    let lab = &mut scene.lab;
    let mut helpers = Vec::new();
    for kind in kinds.iter().copied().filter(|kind| kind.carrier().is_some()) {
        carrier(lab, internet, kind)?;
    }
    let places = kinds.iter().flat_map(|kind| [0, 1].map(|side| Place { kind: *kind, side }));
    let places: Vec<_> = places.collect();
    for place in &places {
        match place.kind {
            Kind::P => {
                lab.hosts(&[&place.host()])?;
                internet.plug(lab, &place.host(), "eth0", FIRST.0 + place.number())?;
            }
            Kind::N11 => {
                let uplink = home(lab, internet, *place)?;
                // There is no NAT for IPv6: others have to know the way.
                let (subnet, number) = uplink;
                lab.route(internet.routers(), &place.lan(), &subnet, number)?;
            }
            _ => drop(home(lab, internet, *place)?),
        }
        match place.kind {
            Kind::N11 => helpers.push(nat64(lab, *place)?),
            _ => without_ipv6(&*lab.at(&place.host())?)?,
        }
    }
    let site = |place: Place| {
        let number = match place.kind.carrier() {
            Some(_) => carrier_number(place.kind),
            None => FIRST.0 + place.number(),
        };
        site(lab, place, internet.address(number), wires.clone())
    };
    let sites = places.into_iter().map(site).collect::<Result<_>>()?;
    Ok((sites, helpers))
}

fn begin(scene: &mut Scene, internet: Internet) -> Result<Option<Rc<RefCell<Wires>>>> {
    let lab = &mut scene.lab;
    lab.hosts(&["server"])?;
    let wires = match internet {
        Internet::Flat => {
            lab.switch("internet")?;
            lab.plug(&INTERNET, "internet", ("server", "wan", 1))?;
            None
        }
        Internet::Routed => {
            lab.hosts(&["core"])?;
            lab.wire(&INTERNET, ("core", "to-server", CORE), ("server", "wan", 1))?;
            lab.default_route("server", &INTERNET, CORE)?;
            let core = lab.at("core")?;
            forward(&core)?;
            Some(Rc::new(RefCell::new(Wires::start(lab, &core, WAY)?)))
        }
    };
    let [ipv4, ipv6] = [Family::Ipv4, Family::Ipv6].map(|family| INTERNET.address(family, 2));
    lab.at("server")?
        .sh(&format!("ip addr add {ipv4}/24 dev wan\nip addr add {ipv6}/64 dev wan nodad"))?;
    scene.serve("server", Serve::root(&["wan"]).configured(SERVER).terse())?;
    Ok(wires)
}

/// Subnet between a carrier and its subscribers (RFC 6598).
fn access(kind: Kind) -> Subnet {
    let number = Place { kind, side: 0 }.number();
    Subnet::new([100, 64, number], [0x2001, 0xdb8, 0x40, number.into()])
}

fn carrier(lab: &mut Lab, internet: Internet, kind: Kind) -> Result<()> {
    let (carrier, switch) = (carrier_name(kind), format!("s{kind}"));
    let Some(nat) = kind.carrier() else { return Ok(()) };
    lab.switch(&switch)?;
    lab.hosts(&[&carrier])?;
    internet.plug(lab, &carrier, "wan", carrier_number(kind))?;
    lab.plug(&access(kind), &switch, (&carrier, "lan", 1))?;
    nat.apply(&*lab.at(&carrier)?, "wan")
}

fn carrier_number(kind: Kind) -> u8 {
    FIRST.1 + Place { kind, side: 0 }.number()
}

fn carrier_name(kind: Kind) -> String {
    format!("c{kind}")
}

/// A host behind a router, on the Internet or at a carrier's. Returns the router's subnet outside and its
/// number there.
fn home(lab: &mut Lab, internet: Internet, place: Place) -> Result<(Subnet, u8)> {
    let (host, router, lan) = (place.host(), place.router(), place.lan());
    lab.hosts(&[&router, &host])?;
    let uplink = match place.kind.carrier() {
        Some(_) => {
            let (access, number) = (access(place.kind), 11 + place.side);
            lab.plug(&access, &format!("s{}", place.kind), (&router, "wan", number))?;
            lab.default_route(&router, &access, 1)?;
            (access, number)
        }
        None => internet.plug(lab, &router, "wan", FIRST.0 + place.number())?,
    };
    lab.wire(&lan, (&router, "lan", 1), (&host, "eth0", 2))?;
    lab.default_route(&host, &lan, 1)?;
    if let Some(nat) = place.kind.nat() {
        nat.apply(&*lab.at(&router)?, "wan")?;
    }
    Ok(uplink)
}

/// Takes the host's IPv4 address away. Its router translates for it, by a program that is returned.
fn nat64(lab: &Lab, place: Place) -> Result<Process> {
    let router = lab.at(&place.router())?;
    lab.at(&place.host())?.sh("ip -4 address flush dev eth0")?;
    forward(&router)?;
    let state = lab.directory().join(format!("tayga-{}", place.side));
    std::fs::create_dir_all(&state)?;
    let config = state.join("tayga.conf");
    let text = format!(
        "tun-device nat64\nipv4-addr 192.168.255.1\nprefix {NAT64}/96\n\
         dynamic-pool {POOL}\ndata-dir {}\n",
        state.display()
    );
    std::fs::write(&config, text)?;
    router.sh(&format!(
        "tayga -c {} --mktun\nip link set nat64 up\nip route add {POOL} dev nat64\n\
         ip -6 route add {NAT64}/96 dev nat64",
        config.display()
    ))?;
    let mut command = router.command("tayga");
    command.args(["-d", "-c"]).arg(&config);
    Process::spawn("tayga", &mut command, &state.join("log")).context("tayga")
}

/// Without NAT for it, IPv6 would join all.
fn without_ipv6(host: &Netns) -> Result<()> {
    for interfaces in ["all", "default"] {
        host.set(&format!("net/ipv6/conf/{interfaces}/disable_ipv6"), "1")?;
    }
    Ok(())
}

fn site(
    lab: &Lab,
    place: Place,
    outside: IpAddr,
    wires: Option<Rc<RefCell<Wires>>>,
) -> Result<Site> {
    let host = lab.at(&place.host())?;
    let mut routers = Vec::new();
    if place.kind.nat().is_some_and(|nat| nat != Nat::Firewall) {
        routers.push(lab.at(&place.router())?);
    }
    if place.kind.carrier().is_some() {
        routers.push(lab.at(&carrier_name(place.kind))?);
    }
    let node = Node::start(place, &host, lab)?;
    Ok(Site { place, host, routers, node, outside, wires })
}
