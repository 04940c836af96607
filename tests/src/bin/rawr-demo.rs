//! The main job, shown: two peers behind symmetric NATs meet at their provider's gateway, the
//! provider's gateway dies under their stream, and the root takes over. The last line is JSON.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::lab::Family;
use rawr_tests::process::{eventually, now};
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon, Traffic};
use rawr_tests::scene::Scene;
use rawr_tests::stream::{Reports, Settings};
use rawr_tests::topology::{self, Site};
use serde_json::json;

const TOPOLOGY: &str = r"
  peer a ── router-a ──┐                              all three routers: symmetric NAT
  10.0.1.2  (gateway)  ├── provider ─────── root      and rawr as a gateway
  peer b ── router-b ──┘   (gateway)        (root)    root: rawr, exchange and last resort
  10.0.2.2  (gateway)      100.64.0.1       203.0.113.1
";
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(4);
const FALL_BACK_LIMIT: Duration = Duration::from_secs(15);

/// What has to hold for the main job to be done.
const LONGEST_GAP: Duration = Duration::from_secs(3);
const KERNEL_SHARE: f64 = 0.999;
const PPS: u32 = 2000;

fn main() -> ExitCode {
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The main job did not work: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<()> {
    println!("{TOPOLOGY}");
    println!("Each of these is a network namespace; the wires are veth pairs.");
    let mut scene = Scene::new("demo")?;
    let outcome = run(&mut scene);
    if outcome.is_err() {
        eprintln!("{}", scene.describe());
    }
    let outcome = outcome?;
    outcome.print()?;
    outcome.check()
}

fn run(scene: &mut Scene) -> Result<Outcome> {
    let site = topology::provider(scene)?;
    let [a, b] = (site.joins)(Family::Ipv4);
    let session = scene.session(&a, &b)?;
    let connect = session.connected()?;
    println!("session set up in {:.1} ms", connect.as_secs_f64() * 1000.0);

    std::thread::sleep(COUNTERS_SETTLE);
    let before = Snapshot::take(&site)?;
    let mut stream = scene.stream(&session, Settings { pps: PPS, ..Settings::default() })?;
    let started = now();
    std::thread::sleep(BEFORE);
    let until_kill = stream.reports()?;
    std::thread::sleep(COUNTERS_SETTLE);
    let relayed = Snapshot::take(&site)?.since(&before);
    let path_before = relayed.path();
    println!("{} datagrams so far, by {path_before}", until_kill.received());

    println!("the provider's gateway is killed");
    site.relays[1].kill()?;
    let fallen = Snapshot::take_living(&site)?;
    eventually("the root carries the stream", FALL_BACK_LIMIT, || {
        stream.flows(100, FALL_BACK_LIMIT)?;
        let traffic = Snapshot::take_living(&site)?.since(&fallen);
        Ok((traffic.root.kernel > 100).then_some(()))
    })?;
    let moved = Snapshot::take_living(&site)?;
    std::thread::sleep(AFTER);
    let after = Snapshot::take_living(&site)?.since(&moved);
    let path_after = after.path();
    let elapsed = started.elapsed();
    let reports = stream.stop()?;
    println!("and the stream goes on, by {path_after}");
    Ok(Outcome { path_before, path_after, connect, relayed, reports, elapsed })
}

/// What the servers had forwarded at one moment, in the order of the path.
struct Snapshot {
    relays: Vec<(String, Traffic)>,
    root: Traffic,
}

impl Snapshot {
    fn take(site: &Site) -> Result<Self> {
        let read = |relay: &Daemon| Ok((relay.name().to_owned(), relay.traffic()?));
        let relays = site.relays().into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { relays, root: site.root.traffic()? })
    }

    /// Of those that run.
    fn take_living(site: &Site) -> Result<Self> {
        let read = |relay: &Daemon| Ok((relay.name().to_owned(), relay.traffic()?));
        let living = site.relays().into_iter().filter(|relay| relay.is_running());
        Ok(Self { relays: living.map(read).collect::<Result<_>>()?, root: site.root.traffic()? })
    }

    fn since(&self, earlier: &Self) -> Self {
        let relays = self.relays.iter().zip(&earlier.relays);
        Self {
            relays: relays.map(|(now, then)| (now.0.clone(), now.1.since(then.1))).collect(),
            root: self.root.since(earlier.root),
        }
    }

    /// The servers that carry data rather than a few probes, in order.
    fn path(&self) -> String {
        const FEW: u64 = 100;
        let relays = self.relays.iter().filter(|(_, traffic)| traffic.total() > FEW);
        let mut names: Vec<_> = relays.map(|(name, _)| name.as_str()).collect();
        if self.root.total() > FEW {
            let middle = names.len() / 2;
            names.insert(middle, "root");
        }
        names.join(" > ")
    }
}

struct Outcome {
    path_before: String,
    path_after: String,
    connect: Duration,
    /// While all servers lived.
    relayed: Snapshot,
    reports: Reports,
    elapsed: Duration,
}

impl Outcome {
    /// The least share of any server on the path.
    fn kernel_share(&self) -> f64 {
        let shares = self.relayed.relays.iter().map(|(_, traffic)| traffic.kernel_share());
        shares.fold(1.0, f64::min)
    }

    fn pps(&self) -> f64 {
        self.reports.received() as f64 / self.elapsed.as_secs_f64()
    }

    fn print(&self) -> Result<()> {
        let latency = serde_json::to_string(&self.reports.0[0].latency_us)?;
        println!();
        println!("path before        {}", self.path_before);
        println!("path after         {}", self.path_after);
        println!("setup              {:.1} ms", self.connect.as_secs_f64() * 1000.0);
        println!("in the kernel      {:.3} %", self.kernel_share() * 100.0);
        println!("throughput         {:.0} packets/s, both directions", self.pps());
        println!("one-way delay      {latency} microseconds");
        println!("sent / lost        {} / {}", self.reports.sent(), self.reports.lost());
        println!("longest gap        {} ms", self.reports.longest_gap().as_millis());
        println!(
            "{}",
            json!({
                "path_before": self.path_before,
                "path_after": self.path_after,
                "connect_ms": self.connect.as_secs_f64() * 1000.0,
                "kernel_share": self.kernel_share(),
                "lost_packets": self.reports.lost(),
                "gap_ms": self.reports.longest_gap().as_millis(),
                "pps": self.pps(),
            })
        );
        Ok(())
    }

    fn check(&self) -> Result<()> {
        ensure!(self.path_before == "router-a > provider > router-b", "met elsewhere");
        ensure!(self.path_after == "router-a > root > router-b", "did not fall back to the root");
        ensure!(self.kernel_share() >= KERNEL_SHARE, "userspace forwarded too much");
        ensure!(self.reports.longest_gap() <= LONGEST_GAP, "the stream stood still too long");
        self.reports.ensure_intact().context("data was changed")
    }
}
