//! The networks of the scenarios, with their daemons running. All have both families throughout.

use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Result, bail};

use crate::lab::{Family, Subnet};
use crate::nat::{self, Nat};
use crate::nat_pmp::NatPmp;
use crate::peer::Join;
use crate::rawr::{Daemon, Serve};
use crate::scene::Scene;

/// The Internet: documentation prefixes (RFC 5737, RFC 3849). The root is number 1.
pub const INTERNET: Subnet = Subnet::new([203, 0, 113], [0x2001, 0xdb8, 0, 1]);
/// An Internet provider's access network (RFC 6598).
pub const ACCESS: Subnet = Subnet::new([100, 64, 0], [0x2001, 0xdb8, 0, 64]);
/// A second way to the Internet.
pub const DETOUR: Subnet = Subnet::new([198, 51, 100], [0x2001, 0xdb8, 0, 2]);
pub const LAN_A: Subnet = Subnet::new([10, 0, 1], [0xfd00, 0, 0, 1]);
pub const LAN_B: Subnet = Subnet::new([10, 0, 2], [0xfd00, 0, 0, 2]);

/// Lines of a root's configuration that has it tell what NATs do, with its second address, over TCP too.
const DISCOVERY: &str = "\
[turn]
listen_tcp = [\"0.0.0.0:3478\", \"0.0.0.0:3479\"]
[[turn.discovery]]
primary = \"203.0.113.1:3478\"
alternate = \"203.0.113.2:3479\"
";

const STUN_OVER_TCP: &str = "\
[turn]
listen_tcp = [\"0.0.0.0:3478\"]
";

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A network, ready for sessions between its hosts `a` and `b`.
#[derive(Clone, Debug)]
pub struct Site {
    pub root: Rc<Daemon>,
    /// The servers that data has to pass, in order from `a` to `b`.
    pub relays: Vec<Rc<Daemon>>,
    /// How the peers join.
    pub joins: fn(Family) -> [Join; 2],
}

impl Site {
    pub fn relays(&self) -> Vec<&Daemon> {
        self.relays.iter().map(|relay| &**relay).collect()
    }
}

/// Both peers behind different symmetric NATs, nothing but a root:
///
/// ```text
/// a ── router-a ──┬── root
/// b ── router-b ──┘
/// ```
pub fn two_homes(scene: &mut Scene) -> Result<Site> {
    two_homes_at(scene, Serve::root(&["wan"]))
}

/// The same, the root run in this way.
pub fn two_homes_at(scene: &mut Scene, serve: Serve) -> Result<Site> {
    homes(scene, [Nat::Symmetric; 2])?;
    let root = scene.serve("root", serve)?;
    Ok(Site {
        relays: vec![Rc::clone(&root)],
        root,
        joins: |family| ["a", "b"].map(|host| Join::root(host, INTERNET.address(family, 1))),
    })
}

/// The same network with these NATs at the routers, a root that tells what they do (RFC 5780), and peers that
/// look for paths without any server.
pub fn two_homes_behind(scene: &mut Scene, nats: [Nat; 2]) -> Result<Site> {
    homes(scene, nats)?;
    let second = INTERNET.address(Family::Ipv4, 2);
    scene.lab.at("root")?.sh(&format!("ip addr add {second}/24 dev wan"))?;
    let root = scene.serve("root", Serve::root(&["wan"]).configured(DISCOVERY))?;
    Ok(Site {
        relays: vec![Rc::clone(&root)],
        root,
        joins: |family| {
            ["a", "b"].map(|host| Join::root(host, INTERNET.address(family, 1)).direct())
        },
    })
}

/// The same network, where the router of `a` maps ports on request; a root that speaks STUN over TCP too, but does not
/// tell what NATs do.
pub fn two_homes_with_port_mapping(scene: &mut Scene, nats: [Nat; 2]) -> Result<(Site, NatPmp)> {
    homes(scene, nats)?;
    let root = scene.serve("root", Serve::root(&["wan"]).configured(STUN_OVER_TCP))?;
    let IpAddr::V4(outside) = INTERNET.address(Family::Ipv4, 11) else { bail!("no IPv4") };
    let nat_pmp = NatPmp::start(&*scene.lab.at("router-a")?, outside)?;
    let site = Site {
        relays: vec![Rc::clone(&root)],
        root,
        joins: |family| {
            ["a", "b"].map(|host| Join::root(host, INTERNET.address(family, 1)).direct())
        },
    };
    Ok((site, nat_pmp))
}

fn homes(scene: &mut Scene, nats: [Nat; 2]) -> Result<()> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.hosts(&["root", "router-a", "router-b", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    let homes = [("router-a", 11, LAN_A, "a"), ("router-b", 12, LAN_B, "b")];
    for ((router, number, subnet, peer), nat) in homes.into_iter().zip(nats) {
        lab.plug(&INTERNET, "internet", (router, "wan", number))?;
        lab.wire(&subnet, (router, "lan", 1), (peer, "eth0", 2))?;
        lab.default_route(peer, &subnet, 1)?;
        nat.apply(&*lab.at(router)?, "wan")?;
    }
    Ok(())
}

/// Both peers on one subnet of a RAWR router:
///
/// ```text
/// a ─┬─ lan ── router ── root
/// b ─┘
/// ```
pub fn one_lan(scene: &mut Scene) -> Result<Site> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.switch("lan")?;
    lab.hosts(&["root", "router", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    lab.plug(&INTERNET, "internet", ("router", "wan", 11))?;
    lab.plug(&LAN_A, "lan", ("router", "lan", 1))?;
    for (peer, number) in [("a", 2), ("b", 3)] {
        lab.plug(&LAN_A, "lan", (peer, "eth0", number))?;
        lab.default_route(peer, &LAN_A, 1)?;
    }
    Nat::Symmetric.apply(&*lab.at("router")?, "wan")?;
    let root = root(scene, &["wan"])?;
    scene.serve("router", Serve::gateway(&["lan", "wan"]))?;
    Ok(Site {
        root,
        relays: Vec::new(),
        joins: |family| {
            let [root, gateway] = [INTERNET.address(family, 1), LAN_A.address(family, 1)];
            ["a", "b"].map(|host| Join::gateway(host, root, gateway))
        },
    })
}

/// The peers on two subnets of one RAWR router:
///
/// ```text
/// a ──┐
///     ├─ router ── root
/// b ──┘
/// ```
pub fn two_subnets(scene: &mut Scene) -> Result<Site> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.hosts(&["root", "router", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    lab.plug(&INTERNET, "internet", ("router", "wan", 11))?;
    for (interface, subnet, peer) in [("lan-a", LAN_A, "a"), ("lan-b", LAN_B, "b")] {
        lab.wire(&subnet, ("router", interface, 1), (peer, "eth0", 2))?;
        lab.default_route(peer, &subnet, 1)?;
    }
    Nat::Symmetric.apply(&*lab.at("router")?, "wan")?;
    let root = root(scene, &["wan"])?;
    let router = scene.serve("router", Serve::gateway(&["lan-a", "lan-b", "wan"]))?;
    Ok(Site {
        root,
        relays: vec![router],
        joins: |family| {
            let root = INTERNET.address(family, 1);
            [
                Join::gateway("a", root, LAN_A.address(family, 1)),
                Join::gateway("b", root, LAN_B.address(family, 1)),
            ]
        },
    })
}

/// As [`two_subnets`], but `b` knows of no gateway: it does not ask, it is found.
pub fn silent_target(scene: &mut Scene) -> Result<Site> {
    let site = two_subnets(scene)?;
    Ok(Site {
        joins: |family| {
            let root = INTERNET.address(family, 1);
            [Join::gateway("a", root, LAN_A.address(family, 1)), Join::root("b", root)]
        },
        ..site
    })
}

/// Two RAWR routers under one provider's RAWR gateway, with symmetric NATs at all three:
///
/// ```text
/// a ── router-a ──┐
///                 ├─ access ── provider ── root
/// b ── router-b ──┘
/// ```
pub fn provider(scene: &mut Scene) -> Result<Site> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.switch("access")?;
    lab.hosts(&["root", "provider", "router-a", "router-b", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    lab.plug(&INTERNET, "internet", ("provider", "wan", 11))?;
    lab.plug(&ACCESS, "access", ("provider", "lan", 1))?;
    Nat::Symmetric.apply(&*lab.at("provider")?, "wan")?;
    for (router, number, subnet, peer) in
        [("router-a", 11, LAN_A, "a"), ("router-b", 12, LAN_B, "b")]
    {
        lab.plug(&ACCESS, "access", (router, "wan", number))?;
        lab.default_route(router, &ACCESS, 1)?;
        lab.wire(&subnet, (router, "lan", 1), (peer, "eth0", 2))?;
        lab.default_route(peer, &subnet, 1)?;
        Nat::Symmetric.apply(&*lab.at(router)?, "wan")?;
    }
    let root = root(scene, &["wan"])?;
    let provider = scene.serve("provider", Serve::gateway(&["lan", "wan"]))?;
    let mut home =
        |router| scene.serve(router, Serve::gateway(&["lan", "wan"]).under(&both(&ACCESS, 1)));
    let (router_a, router_b) = (home("router-a")?, home("router-b")?);
    Ok(Site {
        root,
        relays: vec![router_a, provider, router_b],
        joins: |family| {
            let root = INTERNET.address(family, 1);
            [
                Join::gateway("a", root, LAN_A.address(family, 1)),
                Join::gateway("b", root, LAN_B.address(family, 1)),
            ]
        },
    })
}

/// A gateway with one interface, beside a router that knows nothing of RAWR:
///
/// ```text
/// gateway ─┬─ lan ── legacy router ──┬── root
///       a ─┘                         b (another subnet)
/// ```
pub fn stick(scene: &mut Scene) -> Result<Site> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.switch("lan")?;
    lab.hosts(&["root", "router", "gateway", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    lab.plug(&INTERNET, "internet", ("router", "wan", 11))?;
    lab.plug(&LAN_A, "lan", ("router", "lan-a", 1))?;
    lab.plug(&LAN_A, "lan", ("a", "eth0", 2))?;
    lab.plug(&LAN_A, "lan", ("gateway", "eth0", 3))?;
    lab.wire(&LAN_B, ("router", "lan-b", 1), ("b", "eth0", 2))?;
    for (host, subnet) in [("a", LAN_A), ("gateway", LAN_A), ("b", LAN_B)] {
        lab.default_route(host, &subnet, 1)?;
    }
    Nat::Symmetric.apply(&*lab.at("router")?, "wan")?;
    let root = root(scene, &["wan"])?;
    let gateway = scene.serve("gateway", Serve::gateway(&["eth0"]))?;
    Ok(Site {
        root,
        relays: vec![gateway],
        joins: |family| {
            let [root, gateway] = [INTERNET.address(family, 1), LAN_A.address(family, 3)];
            ["a", "b"].map(|host| Join::gateway(host, root, gateway))
        },
    })
}

/// A root with two ways to peer `b`, of which the first is in use:
///
/// ```text
/// a ── router-a ──┬── root ──┐ (detour)
///                 └── transit ── b
/// ```
pub fn two_ways(scene: &mut Scene) -> Result<Site> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.hosts(&["root", "router-a", "transit", "a", "b"])?;
    lab.plug(&INTERNET, "internet", ("root", "wan", 1))?;
    lab.plug(&INTERNET, "internet", ("router-a", "wan", 11))?;
    lab.plug(&INTERNET, "internet", ("transit", "wan", 254))?;
    lab.wire(&DETOUR, ("root", "detour", 1), ("transit", "detour", 254))?;
    lab.wire(&LAN_A, ("router-a", "lan", 1), ("a", "eth0", 2))?;
    lab.wire(&LAN_B, ("transit", "lan", 1), ("b", "eth0", 2))?;
    lab.default_route("a", &LAN_A, 1)?;
    lab.default_route("b", &LAN_B, 1)?;
    lab.route("root", &LAN_B, &INTERNET, 254)?;
    Nat::Symmetric.apply(&*lab.at("router-a")?, "wan")?;
    nat::forward(&*lab.at("transit")?)?;
    let root = root(scene, &["wan", "detour"])?;
    Ok(Site {
        relays: vec![Rc::clone(&root)],
        root,
        joins: |family| ["a", "b"].map(|host| Join::root(host, INTERNET.address(family, 1))),
    })
}

/// A host's addresses in both families.
pub fn both(subnet: &Subnet, number: u8) -> [IpAddr; 2] {
    FAMILIES.map(|family| subnet.address(family, number))
}

fn root(scene: &mut Scene, interfaces: &[&str]) -> Result<Rc<Daemon>> {
    scene.serve("root", Serve::root(interfaces))
}
