//! `rawr netcheck` behind NATs of every kind, against a server with two addresses.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use rawr_tests::lab::{Family, Lab, Subnet};
use rawr_tests::nat::{BLOCK_HIGH, BLOCK_LOW, Nat};
use rawr_tests::netns::{Netns, checked};
use rawr_tests::process::binary;
use rawr_tests::rawr::Serve;
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{ACCESS, INTERNET};
use serde_json::Value;

/// Address and port of RFC 5780 for each family, and TCP at all four endpoints.
const SERVER: &str = "\
[turn]
listen_tcp = [\"0.0.0.0:3478\", \"[::]:3478\", \"0.0.0.0:3479\", \"[::]:3479\"]
[[turn.discovery]]
primary = \"203.0.113.1:3478\"
alternate = \"203.0.113.2:3479\"
[[turn.discovery]]
primary = \"[2001:db8:0:1::1]:3478\"
alternate = \"[2001:db8:0:1::2]:3479\"
";

/// Bounds of a block are estimated from the ports that were seen.
const BLOCK_ERROR: u64 = 256;

const NONE: &str = "none";
const INDEPENDENT: &str = "endpoint-independent";
const BY_ADDRESS: &str = "address-dependent";
const BY_BOTH: &str = "address-and-port-dependent";

/// What netcheck has to say.
struct Expected {
    nat: Nat,
    /// Mapping, filtering and ports of UDP over IPv4; `None` where it is blocked.
    udp: Option<[&'static str; 3]>,
    /// Mapping of TCP over IPv4.
    tcp: &'static str,
    /// Mapping and filtering of UDP over IPv6.
    ipv6: Option<[&'static str; 2]>,
    hairpins: Option<bool>,
}

impl Expected {
    const fn new(
        nat: Nat,
        mapping: &'static str,
        filtering: &'static str,
        ports: &'static str,
    ) -> Self {
        let udp = Some([mapping, filtering, ports]);
        Self { nat, udp, tcp: INDEPENDENT, ipv6: Some([NONE, BY_BOTH]), hairpins: Some(false) }
    }

    const fn tcp(self, tcp: &'static str) -> Self {
        Self { tcp, ..self }
    }

    const fn ipv6(self, mapping: &'static str, filtering: &'static str) -> Self {
        Self { ipv6: Some([mapping, filtering]), ..self }
    }

    const fn hairpins(self, hairpins: Option<bool>) -> Self {
        Self { hairpins, ..self }
    }

    const fn without_udp(self) -> Self {
        Self { udp: None, ipv6: None, hairpins: None, ..self }
    }
}

const KINDS: [Expected; 14] = [
    Expected::new(Nat::Firewall, NONE, BY_BOTH, "preserved").tcp(NONE).hairpins(None),
    Expected::new(Nat::Home, INDEPENDENT, BY_BOTH, "preserved"),
    Expected::new(Nat::HomeOpen, INDEPENDENT, BY_BOTH, "preserved").ipv6(NONE, INDEPENDENT),
    Expected::new(Nat::HomeMapped, INDEPENDENT, BY_BOTH, "preserved"),
    Expected::new(Nat::FullCone, INDEPENDENT, INDEPENDENT, "preserved").ipv6(NONE, INDEPENDENT),
    Expected::new(Nat::AddressFiltered, INDEPENDENT, BY_ADDRESS, "preserved"),
    Expected::new(Nat::AddressDependent, BY_ADDRESS, BY_BOTH, "block"),
    Expected::new(Nat::Symmetric, BY_BOTH, BY_BOTH, "random").tcp(BY_BOTH).ipv6(BY_BOTH, BY_BOTH),
    Expected::new(Nat::SymmetricRandom, BY_BOTH, BY_BOTH, "random").tcp(BY_BOTH),
    Expected::new(Nat::Sequential, BY_BOTH, BY_BOTH, "sequential"),
    Expected::new(Nat::Block, BY_BOTH, BY_BOTH, "block").tcp(BY_BOTH),
    Expected::new(Nat::UdpBlocked, "", "", "").without_udp(),
    Expected::new(Nat::Carrier { hairpin: false }, INDEPENDENT, INDEPENDENT, "preserved")
        .ipv6(NONE, INDEPENDENT),
    Expected::new(Nat::Carrier { hairpin: true }, INDEPENDENT, INDEPENDENT, "preserved")
        .ipv6(NONE, INDEPENDENT)
        .hairpins(Some(true)),
];

#[test]
fn every_kind_of_nat_is_told() {
    scenario("every_kind_of_nat_is_told", |scene| {
        internet(scene)?;
        for (number, expected) in (0..).zip(&KINDS) {
            home(&mut scene.lab, number, expected.nat)?;
        }
        let mut wrong = Vec::new();
        for (number, expected) in (0..).zip(&KINDS) {
            let host = scene.lab.at(&format!("h{number}"))?;
            let report = netcheck(&host, &[])?;
            eprintln!("{:?}: {} ms", expected.nat, report["elapsed_ms"]);
            if let Err(error) = expected.check(&report) {
                wrong.push(format!("{:?}: {error:#}\n{report:#}", expected.nat));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

#[test]
fn without_a_nat_there_is_none() {
    scenario("without_a_nat_there_is_none", |scene| {
        internet(scene)?;
        scene.lab.hosts(&["open"])?;
        scene.lab.plug(&INTERNET, "internet", ("open", "wan", 100))?;
        let report = netcheck(&scene.lab.at("open")?, &[])?;
        for family in ["ipv4", "ipv6"] {
            let udp = &report[family]["udp"];
            ensure!(udp["mapping"] == NONE && udp["filtering"] == INDEPENDENT, "{report:#}");
            ensure!(report[family]["double_nat"] == false, "{report:#}");
            let peers = report[family]["peers"].as_array().context("no peers")?;
            ensure!(peers.iter().all(|peer| peer["direct"] == true), "{report:#}");
        }
        Ok(())
    });
}

#[test]
fn a_carriers_nat_before_the_home_router_is_seen() {
    scenario("a_carriers_nat_before_the_home_router_is_seen", |scene| {
        internet(scene)?;
        let lab = &mut scene.lab;
        lab.hosts(&["carrier", "home", "host"])?;
        let lan = lan(0);
        lab.plug(&INTERNET, "internet", ("carrier", "wan", 11))?;
        lab.wire(&ACCESS, ("carrier", "lan", 1), ("home", "wan", 2))?;
        lab.wire(&lan, ("home", "lan", 1), ("host", "eth0", 2))?;
        lab.default_route("home", &ACCESS, 1)?;
        lab.default_route("host", &lan, 1)?;
        Nat::Carrier { hairpin: true }.apply(&*lab.at("carrier")?, "wan")?;
        Nat::Home.apply(&*lab.at("home")?, "wan")?;
        let report = netcheck(&lab.at("host")?, &[])?;
        let ipv4 = &report["ipv4"];
        ensure!(ipv4["carrier_grade_nat"] == true, "{report:#}");
        ensure!(ipv4["double_nat"] == true, "{report:#}");
        ensure!(ipv4["routers"][1]["address"] == "100.64.0.1", "{report:#}");
        // Through both, and let in by the home router, to which both sockets have written.
        ensure!(ipv4["udp"]["hairpins"] == true, "{report:#}");
        ensure!(ipv4["udp"]["filtering"] == BY_BOTH, "{report:#}");
        Ok(())
    });
}

#[test]
fn the_lifetime_of_a_mapping_is_found() {
    scenario("the_lifetime_of_a_mapping_is_found", |scene| {
        internet(scene)?;
        home(&mut scene.lab, 0, Nat::Home)?;
        let router = scene.lab.at("r0")?;
        for state in ["udp_timeout", "udp_timeout_stream"] {
            router.set(&format!("net/netfilter/nf_conntrack_{state}"), "5")?;
        }
        let report = netcheck(&scene.lab.at("h0")?, &["--lifetime=1,10"])?;
        let lifetime = &report["ipv4"]["mapping_lifetime"];
        ensure!(lifetime["at_least_seconds"] == 1, "{report:#}");
        ensure!(lifetime["less_than_seconds"] == 10, "{report:#}");
        Ok(())
    });
}

#[test]
fn a_person_reads_what_it_means_and_what_to_do_where_nothing_answers() {
    scenario("a_person_reads_what_it_means", |scene| {
        internet(scene)?;
        home(&mut scene.lab, 0, Nat::Symmetric)?;
        let host = scene.lab.at("h0")?;
        let mut command = host.command(binary("rawr")?);
        let output = checked(command.args(["netcheck", "--server", "203.0.113.1"]))?;
        let text = String::from_utf8(output.stdout)?;
        for expected in [
            "IPv4         10.0.0.2, seen from outside as 203.0.113.11",
            "symmetric, a port for each address and port; any ports",
            "behind a usual home router                 direct, many ports tried",
            "relayed: both ports unknown",
            "IPv6         not tried",
        ] {
            ensure!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        let mut command = host.command(binary("rawr")?);
        let output = command.args(["netcheck", "--server", "203.0.113.77:9"]).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && said.contains("203.0.113.77:9"), "{said}");
        ensure!(said.contains("no server answered"), "{said}");
        Ok(())
    });
}

impl Expected {
    fn check(&self, report: &Value) -> Result<()> {
        let ipv4 = &report["ipv4"];
        let Some([mapping, filtering, ports]) = self.udp else {
            ensure!(ipv4["udp"].is_null() && report["ipv6"]["udp"].is_null(), "UDP is not blocked");
            return same("TCP", &ipv4["tcp"]["mapping"], self.tcp);
        };
        same("mapping", &ipv4["udp"]["mapping"], mapping)?;
        same("filtering", &ipv4["udp"]["filtering"], filtering)?;
        same("pattern", &ipv4["udp"]["ports"]["pattern"], ports)?;
        same("TCP", &ipv4["tcp"]["mapping"], self.tcp)?;
        ensure!(ipv4["udp"]["hairpins"].as_bool() == self.hairpins, "hairpinning");
        if let Some([mapping, filtering]) = self.ipv6 {
            same("mapping of IPv6", &report["ipv6"]["udp"]["mapping"], mapping)?;
            same("filtering of IPv6", &report["ipv6"]["udp"]["filtering"], filtering)?;
        }
        if self.nat == Nat::Block {
            for (bound, expected) in [("low", BLOCK_LOW), ("high", BLOCK_HIGH)] {
                let found =
                    ipv4["udp"]["ports"][bound].as_u64().context("a block without bounds")?;
                ensure!(found.abs_diff(expected.into()) <= BLOCK_ERROR, "{bound}: {found}");
            }
        }
        if self.nat == Nat::Sequential {
            ensure!(ipv4["udp"]["ports"]["step"] == 1, "the step");
        }
        Ok(())
    }
}

fn same(what: &str, found: &Value, expected: &str) -> Result<()> {
    ensure!(found == expected, "{what}: {found}, not {expected}");
    Ok(())
}

/// A server with two addresses of each family on a switch.
fn internet(scene: &mut Scene) -> Result<()> {
    let lab = &mut scene.lab;
    lab.switch("internet")?;
    lab.hosts(&["server"])?;
    lab.plug(&INTERNET, "internet", ("server", "wan", 1))?;
    let [ipv4, ipv6] = [Family::Ipv4, Family::Ipv6].map(|family| INTERNET.address(family, 2));
    lab.at("server")?
        .sh(&format!("ip addr add {ipv4}/24 dev wan\nip addr add {ipv6}/64 dev wan nodad"))?;
    scene.serve("server", Serve::root(&["wan"]).configured(SERVER))?;
    Ok(())
}

/// Host `h{number}` behind router `r{number}`, which the server knows a way to.
fn home(lab: &mut Lab, number: u8, nat: Nat) -> Result<()> {
    let (router, host, lan) = (format!("r{number}"), format!("h{number}"), lan(number));
    lab.hosts(&[&router, &host])?;
    lab.plug(&INTERNET, "internet", (&router, "wan", 11 + number))?;
    lab.wire(&lan, (&router, "lan", 1), (&host, "eth0", 2))?;
    lab.default_route(&host, &lan, 1)?;
    lab.route("server", &lan, &INTERNET, 11 + number)?;
    nat.apply(&*lab.at(&router)?, "wan")
}

const fn lan(number: u8) -> Subnet {
    Subnet::new([10, 0, number], [0xfd00, 0, 1, number as u16])
}

fn netcheck(host: &Rc<Netns>, arguments: &[&str]) -> Result<Value> {
    let mut command = host.command(binary("rawr")?);
    command.args(["netcheck", "--json"]);
    for family in [Family::Ipv4, Family::Ipv6] {
        command.args(["--server", &INTERNET.socket(family, 1, 3478).to_string()]);
    }
    let output = checked(command.args(arguments))?;
    serde_json::from_slice(&output.stdout).context("netcheck printed no JSON")
}
