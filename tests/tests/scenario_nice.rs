//! Two agents of libnice, each behind a symmetric NAT, with relayed candidates alone.
//!
//! ```text
//! a ── router-a ──┬── root (rawr)
//! b ── router-b ──┘
//! ```

use anyhow::{Result, ensure};
use rawr_tests::lab::Family;
use rawr_tests::nice::{Agent, Relay};
use rawr_tests::privilege::need_library;
use rawr_tests::rawr::{COUNTERS_SETTLE, Serve, Traffic};
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{INTERNET, Site, two_homes_at};

const CONFIG: &str = "\
[[users]]
name = \"alice\"
password = \"correct horse\"
[turn]
listen_tcp = [\"0.0.0.0:3478\", \"[::]:3478\"]
[[turn.relays]]
address = \"203.0.113.1\"
[[turn.relays]]
address = \"2001:db8:0:1::1\"
";
/// Datagrams in one direction; as many come back.
const COUNT: u32 = 500;

/// What the server did for two agents that reached each other and lost nothing.
fn exchange(scene: &Scene, site: &Site, family: Family, transport: &str) -> Result<Traffic> {
    let server = INTERNET.address(family, 1);
    let relay = Relay { server, user: "alice", password: "correct horse", transport };
    let (lab, directory) = (&scene.lab, scene.lab.directory());
    let mut caller = Agent::call(&*lab.at("a")?, &relay, COUNT, directory)?;
    let mut called = Agent::answer(&*lab.at("b")?, &relay, directory)?;
    let (a, b) = (caller.description()?, called.description()?);
    caller.meet(&b)?;
    called.meet(&a)?;
    for agent in [&mut caller, &mut called] {
        let kinds = agent.connected()?;
        ensure!(kinds == ["relay", "relay"], "{family:?}, {transport}: {kinds:?}");
    }
    std::thread::sleep(COUNTERS_SETTLE);
    let before = site.root.traffic()?;
    ensure!(caller.exchange()?, "{family:?}, {transport}: what came back is not what was sent");
    std::thread::sleep(COUNTERS_SETTLE);
    Ok(site.root.traffic()?.since(before))
}

#[test]
fn agents_reach_each_other_over_udp_and_tcp() {
    let name = "agents_reach_each_other_over_udp_and_tcp";
    if !need_library(name, "libnice.so.10", "libnice10") {
        return;
    }
    scenario(name, |scene| {
        let site = two_homes_at(scene, Serve::root(&["wan"]).configured(CONFIG))?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let traffic = exchange(scene, &site, family, "udp")?;
            println!("{family:?}, udp: {traffic:?}");
            ensure!(traffic.kernel_share() >= 0.99, "{family:?}: {traffic:?}");
            ensure!(traffic.kernel >= u64::from(2 * COUNT), "{family:?}: {traffic:?}");
            let traffic = exchange(scene, &site, family, "tcp")?;
            println!("{family:?}, tcp: {traffic:?}");
            ensure!(traffic.userspace >= u64::from(2 * COUNT), "{family:?}: {traffic:?}");
        }
        ensure!(scene.checksum_errors()? == 0, "wrong checksums arrived");
        Ok(())
    });
}
