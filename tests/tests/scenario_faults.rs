//! Streams that go on while servers die and return, daemons are replaced, and the network changes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::lab::Family;
use rawr_tests::process::{binary, eventually};
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon};
use rawr_tests::scene::{Scene, Session, scenario};
use rawr_tests::stream::{Settings, Stream};
use rawr_tests::topology::{self, DETOUR, LAN_B, Site};

/// Datagrams that show in both directions that a stream flows.
const SOME: u64 = 300;
const FLOW_LIMIT: Duration = Duration::from_secs(10);
const RETURN_LIMIT: Duration = Duration::from_secs(20);
/// Longest silence after a server's death.
const DEATH_GAP: Duration = Duration::from_secs(3);
/// Within this time the kernel's entries follow a change of the network.
const CHANGE_GAP: Duration = Duration::from_secs(1);

#[test]
fn a_dead_provider_is_replaced_by_the_root_and_returned_to_ipv4() {
    dead_provider(Family::Ipv4);
}

#[test]
fn a_dead_provider_is_replaced_by_the_root_and_returned_to_ipv6() {
    dead_provider(Family::Ipv6);
}

fn dead_provider(family: Family) {
    scenario("a_dead_provider_is_replaced_by_the_root_and_returned_to", |scene| {
        let site = topology::provider(scene)?;
        let session = join(scene, &site, family)?;
        let provider = &site.relays[1];
        fall_back_and_return(scene, &site, &session, provider)
    });
}

#[test]
fn a_dead_router_is_replaced_by_the_root_and_returned_to_ipv4() {
    dead_router(Family::Ipv4);
}

#[test]
fn a_dead_router_is_replaced_by_the_root_and_returned_to_ipv6() {
    dead_router(Family::Ipv6);
}

fn dead_router(family: Family) {
    scenario("a_dead_router_is_replaced_by_the_root_and_returned_to", |scene| {
        let site = topology::two_subnets(scene)?;
        let session = join(scene, &site, family)?;
        fall_back_and_return(scene, &site, &session, &site.relays[0])?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(&["gateway", "offered"], RETURN_LIMIT)?;
        }
        Ok(())
    });
}

/// The nearest server is killed under a stream and later comes back.
fn fall_back_and_return(
    scene: &Scene,
    site: &Site,
    session: &Session,
    nearest: &Daemon,
) -> Result<()> {
    let mut stream = scene.stream(session, Settings::default())?;
    stream.flows(SOME, FLOW_LIMIT)?;
    nearest.kill()?;
    stream.flows(SOME, FLOW_LIMIT).context("after the death of the nearest server")?;
    carried_by(&site.root, &mut stream).context("the root does not carry the stream")?;
    let reports = stream.stop()?;
    reports.ensure_intact()?;
    ensure!(reports.longest_gap() <= DEATH_GAP, "the stream stood still too long: {reports:?}");

    let mut stream = scene.stream(session, Settings::default())?;
    stream.flows(SOME, FLOW_LIMIT)?;
    nearest.launch(&binary("rawr")?)?;
    carried_by(nearest, &mut stream).context("the session did not return")?;
    std::thread::sleep(COUNTERS_SETTLE);
    let before = site.root.traffic()?.total();
    stream.flows(10 * SOME, FLOW_LIMIT)?;
    let after = site.root.traffic()?.total();
    ensure!(after - before < SOME, "the root carries the stream still: {before} … {after}");
    let reports = stream.stop()?;
    reports.ensure_intact()?;
    ensure!(reports.lost() == 0, "the move lost datagrams: {reports:?}");
    Ok(())
}

#[test]
fn a_stream_survives_restart_crash_and_upgrade_of_the_root_ipv4() {
    replaced_daemons(Family::Ipv4, topology::two_homes);
}

#[test]
fn a_stream_survives_restart_crash_and_upgrade_of_the_root_ipv6() {
    replaced_daemons(Family::Ipv6, topology::two_homes);
}

#[test]
fn a_stream_survives_restart_crash_and_upgrade_of_three_gateways_ipv4() {
    replaced_daemons(Family::Ipv4, topology::provider);
}

/// All relays of a stream are stopped and started, killed and started, and replaced by another copy
/// of the program, one after the other. Not one packet is lost.
fn replaced_daemons(family: Family, network: fn(&mut Scene) -> Result<Site>) {
    scenario("a_stream_survives_restart_crash_and_upgrade", |scene| {
        let site = network(scene)?;
        let session = join(scene, &site, family)?;
        let current = binary("rawr")?;
        let upgrade = scene.lab.directory().join("rawr-next");
        fs::copy(&current, &upgrade)?;

        for relay in &site.relays {
            type Ending = fn(&Daemon) -> Result<()>;
            let endings: [(&str, Ending, _); 3] = [
                ("restart", Daemon::stop, &current),
                ("crash", Daemon::crash, &current),
                ("upgrade", Daemon::stop, &upgrade),
            ];
            for (what, end, program) in endings {
                let mut stream = scene.stream(&session, Settings::default())?;
                stream.flows(SOME, FLOW_LIMIT)?;
                end(relay)?;
                stream.flows(SOME, FLOW_LIMIT).with_context(|| format!("{what}: daemon gone"))?;
                relay.launch(program)?;
                stream.flows(2 * SOME, FLOW_LIMIT).with_context(|| format!("{what}: back"))?;
                carried_by(relay, &mut stream)?;
                let reports = stream.stop()?;
                reports.ensure_perfect().with_context(|| format!("{what} of {}", relay.name()))?;
                ensure!(relay.sessions()? == 1, "{what}: the session was forgotten");
            }
            let pid = relay.pid().context("the daemon does not run")?;
            ensure!(fs::read_link(format!("/proc/{pid}/exe"))? == upgrade, "not upgraded");
        }
        Ok(())
    });
}

#[test]
fn a_changed_next_hop_mac_is_followed_ipv4() {
    changed_mac(Family::Ipv4);
}

#[test]
fn a_changed_next_hop_mac_is_followed_ipv6() {
    changed_mac(Family::Ipv6);
}

fn changed_mac(family: Family) {
    scenario("a_changed_next_hop_mac_is_followed", |scene| {
        let site = topology::two_homes(scene)?;
        let session = join(scene, &site, family)?;
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(1200, FLOW_LIMIT)?;
        scene.lab.at("router-a")?.sh("ip link set wan address 02:00:00:00:0a:0a")?;
        stream.flows(1200, FLOW_LIMIT)?;
        carried_by(&site.root, &mut stream)?;
        let reports = stream.stop()?;
        reports.ensure_intact()?;
        ensure!(reports.longest_gap() <= CHANGE_GAP, "followed too late: {reports:?}");
        Ok(())
    });
}

#[test]
fn an_interface_that_was_down_relays_again_ipv4() {
    interface_down(Family::Ipv4);
}

#[test]
fn an_interface_that_was_down_relays_again_ipv6() {
    interface_down(Family::Ipv6);
}

fn interface_down(family: Family) {
    const DOWN: Duration = Duration::from_millis(500);
    scenario("an_interface_that_was_down_relays_again", |scene| {
        let site = topology::two_subnets(scene)?;
        let session = join(scene, &site, family)?;
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(SOME, FLOW_LIMIT)?;
        let router = scene.lab.at("router")?;
        router.sh("ip link set lan-a down")?;
        std::thread::sleep(DOWN);
        router.sh("ip link set lan-a up")?;
        stream.flows(SOME, FLOW_LIMIT).context("after the interface was down")?;
        carried_by(&site.relays[0], &mut stream)?;
        let reports = stream.stop()?;
        reports.ensure_intact()?;
        ensure!(reports.longest_gap() <= DOWN + DEATH_GAP, "recovered too late: {reports:?}");
        Ok(())
    });
}

#[test]
fn a_route_that_moves_to_another_interface_is_followed_ipv4() {
    moved_route(Family::Ipv4);
}

#[test]
fn a_route_that_moves_to_another_interface_is_followed_ipv6() {
    moved_route(Family::Ipv6);
}

fn moved_route(family: Family) {
    scenario("a_route_that_moves_to_another_interface_is_followed", |scene| {
        let site = topology::two_ways(scene)?;
        let session = join(scene, &site, family)?;
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(SOME, FLOW_LIMIT)?;
        scene.lab.route("root", &LAN_B, &DETOUR, 254)?;
        let transit = scene.lab.at("transit")?;
        let arrived = || -> Result<u64> {
            let counts = transit.proc_net("dev")?;
            let line = counts.lines().find_map(|line| line.trim().strip_prefix("detour:"));
            let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            packets.context("no counters of the detour")
        };
        let before = arrived()?;
        stream.flows(SOME, FLOW_LIMIT)?;
        carried_by(&site.root, &mut stream)?;
        let reports = stream.stop()?;
        let detoured = arrived()? - before;
        ensure!(detoured > SOME, "only {detoured} packets took the new way: {reports:?}");
        reports.ensure_intact()?;
        ensure!(reports.longest_gap() <= CHANGE_GAP, "followed too late: {reports:?}");
        Ok(())
    });
}

fn join(scene: &mut Scene, site: &Site, family: Family) -> Result<Session> {
    let [a, b] = (site.joins)(family);
    scene.session(&a, &b)
}

/// Waits until the kernel of `server` forwards the stream.
fn carried_by(server: &Daemon, stream: &mut Stream) -> Result<()> {
    let before = server.traffic()?;
    eventually(&format!("the kernel of {} carries the stream", server.name()), RETURN_LIMIT, || {
        stream.flows(SOME / 3, FLOW_LIMIT)?;
        Ok((server.traffic()?.since(before).kernel >= SOME).then_some(()))
    })
}
