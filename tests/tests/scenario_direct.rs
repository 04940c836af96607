//! Peers behind NATs find a path without any server while data flows over one, move to it, and return when it
//! dies.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rawr_tests::lab::{Family, Lab};
use rawr_tests::nat::Nat;
use rawr_tests::nat_pmp::mapped_ports;
use rawr_tests::netns::Netns;
use rawr_tests::process::{eventually, patience};
use rawr_tests::rawr::COUNTERS_SETTLE;
use rawr_tests::scene::{Scene, Session, scenario};
use rawr_tests::stream::{Settings, Stream};
use rawr_tests::topology::{self, INTERNET, Site};

/// Datagrams that show in both directions that a stream flows.
const SOME: u64 = 300;
const FLOW_LIMIT: Duration = Duration::from_secs(10);
/// One time that a path is punched may fail: the next is after 10 s, the one after it 60 s later.
const DIRECT_LIMIT: Duration = Duration::from_secs(60);
const RETURN_LIMIT: Duration = Duration::from_secs(20);
/// Most that may be lost when a path dies, in seconds of a stream.
const DEATH_GAP: u64 = 3;
/// Time in which a path would have been found, in seconds of a stream.
const IN_VAIN: u64 = 8;
/// Without any server.
const DIRECT: &[&str] = &["host", "reflexive", "punched"];
const RELAYED: &[&str] = &["root"];

#[test]
fn two_home_routers_need_no_server() {
    goes_direct("two_home_routers_need_no_server", [Nat::Home, Nat::Home], Wait::UntilDataFlows);
}

#[test]
fn a_home_router_meets_a_symmetric_nat() {
    let nats = [Nat::Home, Nat::SymmetricRandom];
    goes_direct("a_home_router_meets_a_symmetric_nat", nats, Wait::Never);
}

#[test]
fn a_home_router_with_an_open_outside_meets_a_symmetric_nat() {
    let nats = [Nat::HomeOpen, Nat::SymmetricRandom];
    let name = "a_home_router_with_an_open_outside_meets_a_symmetric_nat";
    goes_direct(name, nats, Wait::Never);
}

#[test]
fn two_blocks_of_ports_meet() {
    goes_direct("two_blocks_of_ports_meet", [Nat::Block, Nat::Block], Wait::Never);
}

#[test]
fn two_sequences_of_ports_meet() {
    let nats = [Nat::Sequential, Nat::Sequential];
    goes_direct("two_sequences_of_ports_meet", nats, Wait::Never);
}

/// Whether a direct path is possible at once.
#[derive(PartialEq, Eq)]
enum Wait {
    /// It is, and takes so long to find that data flows before.
    Never,
    /// It would be found before data flows.
    UntilDataFlows,
}

/// Data flows over the root, then straight, then, once that path is cut, over the root again.
fn goes_direct(name: &str, nats: [Nat; 2], wait: Wait) {
    scenario(name, |scene| {
        let site = topology::two_homes_behind(scene, nats)?;
        let barrier = (wait == Wait::UntilDataFlows).then(|| Barrier::new(&scene.lab));
        let barrier = barrier.transpose()?;
        let session = join(scene, &site)?;
        let before = site.root.traffic()?.total();
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(SOME, FLOW_LIMIT)?;
        barrier.map_or(Ok(()), Barrier::lift)?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(DIRECT, DIRECT_LIMIT)?;
        }
        carries_nothing(&site, &mut stream).context("data is on the direct path")?;
        let carried = site.root.traffic()?.total() - before;
        ensure!(carried > 0, "the stream did not begin over the root");
        let reports = stream.stop()?;
        reports.ensure_perfect().context("the move to the direct path")?;
        ensure!(reports.reordered() == 0, "the move brought disorder: {reports:?}");
        tell(&session, nats);
        dies(scene, &site, &session, nats)
    });
}

/// Prints times for people.
fn tell(session: &Session, nats: [Nat; 2]) {
    for (peer, nat) in [&session.a, &session.b].into_iter().zip(nats) {
        for event in peer.events() {
            let (what, path) = (&event["event"], &event["path"]["kind"]);
            let probes = &event["probes"];
            eprintln!("{nats:?}, {nat:?}: {what} {path} {probes} at {} ms", event["after_ms"]);
        }
    }
}

/// The direct path is cut under a stream.
fn dies(scene: &Scene, site: &Site, session: &Session, nats: [Nat; 2]) -> Result<()> {
    let settings = Settings::default();
    let mut stream = scene.stream(session, settings)?;
    stream.flows(SOME, FLOW_LIMIT)?;
    let _barrier = Barrier::new(&scene.lab)?;
    for peer in [&session.a, &session.b] {
        peer.goes_by(RELAYED, RETURN_LIMIT)?;
    }
    let before = site.root.traffic()?.total();
    stream.flows(SOME, FLOW_LIMIT).context("after the death of the direct path")?;
    eventually("the root carries the stream", FLOW_LIMIT, || {
        Ok((site.root.traffic()?.total() >= before + SOME).then_some(()))
    })?;
    let reports = stream.stop()?;
    reports.ensure_intact()?;
    let most = DEATH_GAP * u64::from(settings.pps / patience());
    for [sender, receiver] in [[0, 1], [1, 0]] {
        let lost = reports.0[sender].sent.saturating_sub(reports.0[receiver].received);
        ensure!(lost <= most, "{lost} datagrams were lost, more than {most}: {reports:?}");
    }
    eprintln!(
        "{nats:?}: {} lost when the direct path died, silence {:?}",
        reports.lost(),
        reports.longest_gap()
    );
    Ok(())
}

#[test]
fn two_symmetric_nats_stay_with_the_root() {
    scenario("two_symmetric_nats_stay_with_the_root", |scene| {
        let site = topology::two_homes_behind(scene, [Nat::SymmetricRandom; 2])?;
        let session = join(scene, &site)?;
        let settings = Settings::default();
        let mut stream = scene.stream(&session, settings)?;
        let many = IN_VAIN * u64::from(settings.pps / patience());
        stream.flows(many, 4 * Duration::from_secs(IN_VAIN))?;
        let reports = stream.stop()?;
        reports.ensure_perfect()?;
        ensure!(reports.reordered() == 0, "disorder on one path: {reports:?}");
        for peer in [&session.a, &session.b] {
            let events = peer.events();
            ensure!(peer.via()?.kind == "root", "not over the root: {events:?}");
            let is_tried = |event: &serde_json::Value| event["event"] == "not-punched";
            ensure!(!events.iter().any(is_tried), "the hopeless was tried: {events:?}");
        }
        Ok(())
    });
}

#[test]
fn a_mapped_port_is_a_way_in_for_a_symmetric_nat() {
    scenario("a_mapped_port_is_a_way_in_for_a_symmetric_nat", |scene| {
        let nats = [Nat::SymmetricRandom; 2];
        let (site, _nat_pmp) = topology::two_homes_with_port_mapping(scene, nats)?;
        let router = scene.lab.at("router-a")?;
        let session = join(scene, &site)?;
        let mut stream = scene.stream(&session, Settings::default())?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(DIRECT, DIRECT_LIMIT)?;
        }
        carries_nothing(&site, &mut stream)?;
        let reports = stream.stop()?;
        reports.ensure_perfect()?;
        ensure!(reports.reordered() == 0, "the move brought disorder: {reports:?}");
        tell(&session, nats);
        ensure!(mapped_ports(&router)? > 0, "it is not the mapped port");
        scene.leave(session)?;
        let left = mapped_ports(&router)?;
        ensure!(left == 0, "{left} mappings are left at the router");
        Ok(())
    });
}

#[test]
fn a_direct_path_comes_back() {
    scenario("a_direct_path_comes_back", |scene| {
        let site = topology::two_homes_behind(scene, [Nat::Home; 2])?;
        let session = join(scene, &site)?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(DIRECT, DIRECT_LIMIT)?;
        }
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(SOME, FLOW_LIMIT)?;
        let barrier = Barrier::new(&scene.lab)?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(RELAYED, RETURN_LIMIT)?;
        }
        barrier.lift()?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(DIRECT, DIRECT_LIMIT).context("once it is there again")?;
        }
        carries_nothing(&site, &mut stream)?;
        tell(&session, [Nat::Home; 2]);
        stream.stop()?.ensure_intact()
    });
}

/// Starts both peers, and makes sure that the first data goes over the root.
fn join(scene: &mut Scene, site: &Site) -> Result<Session> {
    stay_on_one_cpu()?;
    let [a, b] = (site.joins)(Family::Ipv4);
    let session = scene.session(&a, &b)?;
    for peer in [&session.a, &session.b] {
        let events = peer.events();
        let ready = events.iter().find(|event| event["event"] == "ready");
        let kind = ready.map(|event| &event["path"]["kind"]);
        ensure!(kind.is_some_and(|kind| kind == "root"), "first by another path: {events:?}");
    }
    eprintln!("data can flow after {:?}", session.connected()?);
    Ok(session)
}

/// Processes that this thread starts from now on do not move between CPUs. One that does overtakes what it has left
/// on the former CPU's queue (the loopback interface has one for each), and that would count as our disorder.
fn stay_on_one_cpu() -> Result<()> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    let first = (0..CpuSet::count()).find(is_allowed).context("no CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(first)?;
    Ok(sched_setaffinity(this_thread, &one)?)
}

/// The root has no part in the stream.
fn carries_nothing(site: &Site, stream: &mut Stream) -> Result<()> {
    std::thread::sleep(COUNTERS_SETTLE);
    let before = site.root.traffic()?.total();
    stream.flows(10 * SOME, FLOW_LIMIT)?;
    std::thread::sleep(COUNTERS_SETTLE);
    let carried = site.root.traffic()?.total() - before;
    ensure!(carried < SOME, "the root carries {carried} datagrams of the stream");
    Ok(())
}

/// Lets nothing pass between the two homes. The root is reached by both.
struct Barrier([(Rc<Netns>, IpAddr); 2]);

impl Barrier {
    fn new(lab: &Lab) -> Result<Self> {
        let towards = |number| INTERNET.address(Family::Ipv4, number);
        let homes = [(lab.at("router-a")?, towards(12)), (lab.at("router-b")?, towards(11))];
        for (router, other) in &homes {
            router.sh(&format!("ip route add blackhole {other}/32"))?;
        }
        Ok(Self(homes))
    }

    fn lift(self) -> Result<()> {
        for (router, other) in &self.0 {
            router.sh(&format!("ip route del blackhole {other}/32"))?;
        }
        Ok(())
    }
}
