//! `scripts/pktgen.sh`: the kernel's packet generator sends on a leg of a session, or the script says why
//! it cannot.

use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::lab::{Family, Lab};
use rawr_tests::netns::Netns;
use rawr_tests::privilege::need_root;
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon};
use rawr_tests::scene::scenario;
use rawr_tests::topology::{self, LAN_A};
use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/pktgen.sh");
/// The script's exit status where the kernel has no pktgen.
const NO_PKTGEN: i32 = 3;
const PATH_LIMIT: Duration = Duration::from_secs(10);
const COUNT: u64 = 20_000;
/// Packets per second: so few that no queue overflows where this is emulated.
const RATE: u64 = 4_000;
const SHARE: f64 = 0.999;

#[test]
#[ignore = "needs pktgen: `cargo xtask vm`"]
fn what_pktgen_sends_on_a_leg_is_forwarded_in_the_kernel_ipv4() {
    forwarded_in_the_kernel(Family::Ipv4);
}

#[test]
#[ignore = "needs pktgen: `cargo xtask vm`"]
fn what_pktgen_sends_on_a_leg_is_forwarded_in_the_kernel_ipv6() {
    forwarded_in_the_kernel(Family::Ipv6);
}

fn forwarded_in_the_kernel(family: Family) {
    scenario("what_pktgen_sends_on_a_leg_is_forwarded_in_the_kernel", |scene| {
        let site = topology::two_subnets(scene)?;
        let [a, b] = (site.joins)(family);
        let session = scene.session(&a, &b)?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(&["gateway", "offered"], PATH_LIMIT)?;
        }
        let relay = &site.relays[0];
        let before = leg(relay, family)?.packets;
        let errors = scene.checksum_errors()?;
        let output = pktgen(&scene.lab, &leg(relay, family)?)?;
        let text = String::from_utf8_lossy(&output.stdout);
        eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "pktgen.sh ended with {}", output.status);
        sleep(COUNTERS_SETTLE);
        let forwarded = leg(relay, family)?.packets - before;

        let figure = |name: &str| -> Result<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.split(' ').next());
            Ok(value.with_context(|| format!("no {name}"))?.parse()?)
        };
        ensure!(figure("sent: ")? == COUNT, "not all was sent");
        eprintln!("the kernel of the relay forwarded {forwarded}");
        let enough = |count: u64| count as f64 >= SHARE * COUNT as f64;
        ensure!(enough(forwarded), "the kernel forwarded only {forwarded} of {COUNT}");
        ensure!(enough(figure("received: ")?), "too few arrived");
        ensure!(scene.checksum_errors()? == errors, "wrong checksums arrived");
        Ok(())
    });
}

#[test]
fn the_script_says_what_is_missing() -> Result<()> {
    if !need_root("the_script_says_what_is_missing") {
        return Ok(());
    }
    let host = Netns::new("nothing")?;
    let mut command = Command::new(SCRIPT);
    command.args(["--netns", host.name(), "--device", "absent0"]);
    command.args([
        "--dst-mac",
        "02:00:00:00:00:01",
        "--src",
        "192.0.2.1:1",
        "--dst",
        "192.0.2.2:2",
    ]);
    let output = command.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    // Whether the kernel has pktgen is seen independently of the script, which has tried to load it.
    if Path::new("/proc/net/pktgen").exists() {
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("no device absent0"), "{message}");
    } else {
        assert_eq!(output.status.code(), Some(NO_PKTGEN), "{message}");
        for part in ["has no packet generator", "CONFIG_NET_PKTGEN", "linux-image-amd64"] {
            assert!(message.contains(part), "{message}");
        }
    }
    Ok(())
}

/// From peer `a` to the relay.
#[derive(Debug)]
struct Leg {
    remote: String,
    local: String,
    /// Forwarded by the kernel.
    packets: u64,
}

/// The installed flow that begins at peer `a`.
fn leg(relay: &Daemon, family: Family) -> Result<Leg> {
    let peer = LAN_A.address(family, 2);
    let flows = relay.listed("flows")?;
    let text = |flow: &Value, key: &str| flow[key].as_str().unwrap_or_default().to_owned();
    let is_wanted = |flow: &&Value| {
        let remote = text(flow, "from_remote").parse();
        text(flow, "state") == "installed"
            && remote.is_ok_and(|remote: std::net::SocketAddr| remote.ip() == peer)
    };
    let flow = flows.iter().find(is_wanted);
    let flow = flow.with_context(|| format!("no installed flow from {peer} in {flows:?}"))?;
    Ok(Leg {
        remote: text(flow, "from_remote"),
        local: text(flow, "from_local"),
        packets: flow["packets"].as_u64().context("no counter")?,
    })
}

/// Runs the script on a leg, from the peer's host, up to the other peer's.
fn pktgen(lab: &Lab, leg: &Leg) -> Result<Output> {
    let link: Value = serde_json::from_str(&lab.at("router")?.sh("ip -j link show lan-a")?)?;
    let mac = link.pointer("/0/address").and_then(Value::as_str);
    let mut command = Command::new(SCRIPT);
    command
        .args(["--netns", lab.at("a")?.name(), "--device", "eth0"])
        .args(["--dst-mac", mac.with_context(|| format!("no MAC address in {link}"))?])
        .args(["--src", &leg.remote, "--dst", &leg.local])
        .args(["--count", &COUNT.to_string(), "--rate", &RATE.to_string()])
        .args(["--sink", "eth0", "--sink-netns", lab.at("b")?.name()]);
    command.output().with_context(|| format!("{SCRIPT} cannot be run"))
}
