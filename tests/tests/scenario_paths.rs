//! Where the two legs of a session meet, that the kernel carries the data there, and how long it
//! takes until it does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::app::{Percentiles, Shape};
use rawr_tests::lab::Family;
use rawr_tests::rawr::Traffic;
use rawr_tests::scene::{Scene, Session, scenario};
use rawr_tests::stream::Settings;
use rawr_tests::topology::{self, Site};
use rawr_tests::watch::{WATCHED_SIZES, Watch};

const SETUPS: usize = 20;
const KERNEL_SHARE: f64 = 0.999;
const PATH_LIMIT: Duration = Duration::from_secs(5);
/// By a gateway: who asks first is attached to it, and the other may have been found by then.
const NEAR: &[&str] = &["gateway", "offered"];
const STREAM: Duration = Duration::from_secs(3);

#[test]
fn symmetric_nats_meet_at_the_root_ipv4() {
    symmetric_nats(Family::Ipv4);
}

#[test]
fn symmetric_nats_meet_at_the_root_ipv6() {
    symmetric_nats(Family::Ipv6);
}

fn symmetric_nats(family: Family) {
    scenario("symmetric_nats_meet_at_the_root", |scene| {
        let site = topology::two_homes(scene)?;
        prove(scene, &site, family, [&["root"]; 2], &[])
    });
}

#[test]
fn one_subnet_needs_no_server_ipv4() {
    one_subnet(Family::Ipv4);
}

#[test]
fn one_subnet_needs_no_server_ipv6() {
    one_subnet(Family::Ipv6);
}

fn one_subnet(family: Family) {
    scenario("one_subnet_needs_no_server", |scene| {
        let site = topology::one_lan(scene)?;
        let unused = [
            Watch::new(&scene.lab, "internet", "root", "wan")?,
            Watch::new(&scene.lab, "lan", "router", "lan")?,
        ];
        prove(scene, &site, family, [&["direct"]; 2], &unused)
    });
}

#[test]
fn two_subnets_meet_at_their_router_ipv4() {
    two_subnets(Family::Ipv4);
}

#[test]
fn two_subnets_meet_at_their_router_ipv6() {
    two_subnets(Family::Ipv6);
}

fn two_subnets(family: Family) {
    scenario("two_subnets_meet_at_their_router", |scene| {
        let site = topology::two_subnets(scene)?;
        let unused = [Watch::new(&scene.lab, "internet", "root", "wan")?];
        prove(scene, &site, family, [NEAR; 2], &unused)
    });
}

#[test]
fn two_routers_meet_at_their_provider_ipv4() {
    provider(Family::Ipv4);
}

#[test]
fn two_routers_meet_at_their_provider_ipv6() {
    provider(Family::Ipv6);
}

fn provider(family: Family) {
    scenario("two_routers_meet_at_their_provider", |scene| {
        let site = topology::provider(scene)?;
        let unused = [Watch::new(&scene.lab, "internet", "root", "wan")?];
        prove(scene, &site, family, [NEAR; 2], &unused)
    });
}

#[test]
fn a_gateway_on_a_stick_relays_ipv4() {
    stick(Family::Ipv4);
}

#[test]
fn a_gateway_on_a_stick_relays_ipv6() {
    stick(Family::Ipv6);
}

fn stick(family: Family) {
    scenario("a_gateway_on_a_stick_relays", |scene| {
        let site = topology::stick(scene)?;
        let unused = [Watch::new(&scene.lab, "internet", "root", "wan")?];
        prove(scene, &site, family, [NEAR; 2], &unused)
    });
}

#[test]
fn a_target_that_has_not_asked_is_found_by_its_mac_ipv4() {
    silent_target(Family::Ipv4);
}

#[test]
fn a_target_that_has_not_asked_is_found_by_its_mac_ipv6() {
    silent_target(Family::Ipv6);
}

fn silent_target(family: Family) {
    scenario("a_target_that_has_not_asked_is_found_by_its_mac", |scene| {
        let site = topology::silent_target(scene)?;
        let unused = [Watch::new(&scene.lab, "internet", "root", "wan")?];
        prove(scene, &site, family, [&["gateway"], &["offered"]], &unused)
    });
}

/// All that holds in every one of these networks: sessions are set up in time; their data takes the
/// expected path, arrives whole and in the kernel of each relay; and does not pass where `unused`
/// watches.
fn prove(
    scene: &mut Scene,
    site: &Site,
    family: Family,
    kinds: [&[&str]; 2],
    unused: &[Watch],
) -> Result<()> {
    let [a, b] = (site.joins)(family);
    let setups = setup_times(scene, site, family)?;
    eprintln!("setup of {SETUPS} sessions, in microseconds: {setups:?}");
    let session = scene.session(&a, &b)?;
    session.a.goes_by(kinds[0], PATH_LIMIT).context("peer a")?;
    session.b.goes_by(kinds[1], PATH_LIMIT).context("peer b")?;

    let errors = scene.checksum_errors()?;
    let seen = watched(unused)?;
    for shape in [Shape::Plain, Shape::Stun] {
        carries(scene, site, &session, shape).with_context(|| format!("{shape:?} data"))?;
    }
    ensure!(scene.checksum_errors()? == errors, "a host received a wrong checksum");
    ensure!(watched(unused)? == seen, "data passed a server that it need not pass");
    Ok(())
}

fn carries(scene: &Scene, site: &Site, session: &Session, shape: Shape) -> Result<()> {
    let settings = Settings { shape, sizes: WATCHED_SIZES, ..Settings::default() };
    let relays = site.relays();
    let (reports, traffic) = scene.carry(session, settings, STREAM, &relays)?;
    reports.ensure_perfect()?;
    for (relay, traffic) in relays.iter().zip(traffic) {
        let name = relay.name();
        ensure!(is_in_kernel(traffic, reports.sent()), "{name}: {traffic:?} of {reports:?}");
    }
    Ok(())
}

/// Whether so much was forwarded by the kernel, both of what was forwarded and of what was sent.
fn is_in_kernel(traffic: Traffic, sent: u64) -> bool {
    traffic.kernel_share() >= KERNEL_SHARE && traffic.kernel as f64 >= KERNEL_SHARE * sent as f64
}

fn setup_times(scene: &mut Scene, site: &Site, family: Family) -> Result<Percentiles> {
    let [a, b] = (site.joins)(family);
    let mut times = Vec::new();
    for _ in 0..SETUPS {
        let session = scene.session(&a, &b)?;
        times.push(u32::try_from(session.connected()?.as_micros())?);
        scene.leave(session)?;
    }
    Ok(Percentiles::of(times))
}

fn watched(watches: &[Watch]) -> Result<u64> {
    watches.iter().map(Watch::packets).sum()
}
