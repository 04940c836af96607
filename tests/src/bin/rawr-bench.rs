//! Benchmarks, run by `cargo xtask bench`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use rawr_common::entry::{Account, Exit, Tags};
use rawr_common::flow::{Flow4, Flow6, Rate, Tuple4, Tuple6};
use rawr_tests::kernel::{INGRESS, Kernel, action, attach, bare_program, test_run};
use rawr_tests::packet::Packet;
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// What the XDP program costs per packet, without a driver.
    Program {
        /// Writes the results here.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Rounds over all kinds of packets.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().benchmark {
        Benchmark::Program { json, rounds } => program(json, rounds),
    }
}

/// Entries in a full table.
const FLOWS: u32 = 60_000;
/// Runs per call. A packet goes round the flows, each of which takes one off its TTL of 255.
const REPEAT: u32 = 250;
/// Calls per kind and round.
const CALLS: u32 = 400;

/// One row of the table: a loaded program and the packets that it is measured with.
struct Case {
    name: &'static str,
    entries: u32,
    program: OwnedFd,
    /// One frame per call, in turn.
    frames: Vec<Vec<u8>>,
    action: u32,
    /// Mean of each round, in nanoseconds per packet.
    rounds: Vec<f64>,
}

fn program(json: Option<PathBuf>, rounds: usize) -> Result<()> {
    let ifindex = own_interface()?;
    let mut cases = cases()?;
    for case in &mut cases {
        case.measure(ifindex)?;
        case.rounds.clear();
    }
    for _ in 0..rounds {
        for case in &mut cases {
            case.measure(ifindex)?;
        }
    }
    println!("{:<34} {:>8} {:>8} {:>8} {:>8}", "packets", "entries", "ns", "least", "most");
    for case in &cases {
        let (median, least, most) = case.summary();
        println!("{:<34} {:>8} {median:>8.1} {least:>8.1} {most:>8.1}", case.name, case.entries);
    }
    if let Some(file) = json {
        let results: Vec<Value> = cases.iter().map(Case::to_json).collect();
        let document = json!({ "benchmark": "program", "unit": "ns per packet", "repeat": REPEAT,
            "calls": CALLS, "rounds": rounds, "machine": machine(), "results": results });
        std::fs::write(&file, serde_json::to_string_pretty(&document)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

impl Case {
    fn new(
        name: &'static str,
        entries: u32,
        program: OwnedFd,
        frames: Vec<Vec<u8>>,
        action: u32,
    ) -> Self {
        Self { name, entries, program, frames, action, rounds: Vec::new() }
    }

    /// One round. The program is attached meanwhile, because otherwise the kernel would make each
    /// call wait for an RCU grace period, and all that follows would find cold caches.
    fn measure(&mut self, ifindex: u32) -> Result<()> {
        let _attached = attach(self.program.as_fd(), ifindex)?;
        let mut costs = Vec::new();
        for frame in self.frames.iter().cycle().take(CALLS as usize) {
            let outcome = test_run(self.program.as_fd(), frame, REPEAT)?;
            ensure!(
                outcome.action == self.action,
                "{}: action {} instead of {}",
                self.name,
                outcome.action,
                self.action
            );
            // The kernel rounds down.
            costs.push(f64::from(outcome.ns) + 0.5);
        }
        // A mean without the calls that something interrupted.
        costs.sort_by(f64::total_cmp);
        let kept = &costs[..costs.len() * 3 / 4];
        self.rounds.push(kept.iter().sum::<f64>() / kept.len() as f64);
        Ok(())
    }

    /// Median, least and most of the rounds.
    fn summary(&self) -> (f64, f64, f64) {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
    }

    fn to_json(&self) -> Value {
        let (median, least, most) = self.summary();
        json!({ "packets": self.name, "entries": self.entries, "median": median, "least": least,
            "most": most, "rounds": self.rounds })
    }
}

fn cases() -> Result<Vec<Case>> {
    use Family::{V4, V6};
    let tx = Exit { ifindex: INGRESS, mtu: 1500, tx: true, ..Exit::default() };
    let redirect = Exit { tx: false, ..tx };
    let tagged = Exit { tags: Tags::Customer(7), ..tx };
    let pair = |name, entries| Ring { name, entries, len: 2, families: [V4; 2], exits: [tx; 2] };
    let rings = [
        pair("IPv4 pair", 2),
        pair("IPv4 pair", FLOWS),
        Ring { exits: [redirect; 2], ..pair("IPv4 pair, redirected", FLOWS) },
        Ring { exits: [tagged, tx], ..pair("IPv4 pair, VLAN tag on and off", FLOWS) },
        Ring { families: [V6; 2], ..pair("IPv6 pair", FLOWS) },
        Ring { families: [V4, V6], ..pair("IPv4 to IPv6 and back", FLOWS) },
        Ring { len: FLOWS, ..pair("IPv4, another flow each time", FLOWS) },
        Ring { len: FLOWS, families: [V6; 2], ..pair("IPv6, another flow each time", FLOWS) },
        Ring { len: FLOWS, families: [V4, V6], ..pair("both, another flow each time", FLOWS) },
    ];
    let mut cases = vec![bare()?, passed_up()?];
    for ring in rings {
        cases.push(ring.case()?);
    }
    cases.push(rated(pair("IPv4 pair, rate limited", FLOWS))?);
    Ok(cases)
}

fn bare() -> Result<Case> {
    let program = bare_program(action::TX)?;
    let frame = Flow::at(0, Family::V4).packet().frame();
    Ok(Case::new("bare XDP_TX", 0, program, vec![frame], action::TX))
}

/// UDP that no flow is for, while the table is full.
fn passed_up() -> Result<Case> {
    let mut kernel = full_table()?;
    let mut packet = Flow::at(0, Family::V4).packet();
    packet.src.set_port(9);
    let name = "IPv4 without a flow, passed up";
    Ok(Case::new(name, FLOWS, kernel.program()?, vec![packet.frame()], action::PASS))
}

fn full_table() -> Result<Kernel> {
    let exit = Exit { ifindex: INGRESS, mtu: 1500, tx: true, ..Exit::default() };
    let ring =
        Ring { name: "", entries: FLOWS, len: 2, families: [Family::V4; 2], exits: [exit; 2] };
    ring.load(false)
}

/// As the ring, below a rate limit that never bites.
fn rated(ring: Ring) -> Result<Case> {
    let mut kernel = ring.load(true)?;
    for index in 0..ring.len {
        kernel.set_rate(index, Rate::new(1 << 40, Duration::from_secs(1)))?;
    }
    ring.measured_with(&mut kernel)
}

/// Flows in rings: what leaves by one arrives on the next, so that repeated runs on one frame stay in
/// the forwarding path. The families and exits take turns.
#[derive(Clone, Copy)]
struct Ring {
    name: &'static str,
    /// All flows in the table.
    entries: u32,
    /// How many make a ring.
    len: u32,
    families: [Family; 2],
    exits: [Exit; 2],
}

impl Ring {
    fn case(&self) -> Result<Case> {
        let mut kernel = self.load(false)?;
        self.measured_with(&mut kernel)
    }

    fn measured_with(&self, kernel: &mut Kernel) -> Result<Case> {
        // In a long ring each call goes on where the last one ended.
        let starts = (0..self.len).step_by(REPEAT as usize);
        let frames = starts.map(|index| self.flow(index).packet().frame()).collect();
        let action = if self.exits[0].tx { action::TX } else { action::REDIRECT };
        Ok(Case::new(self.name, self.entries, kernel.program()?, frames, action))
    }

    fn load(&self, rated: bool) -> Result<Kernel> {
        let mut kernel = Kernel::load(self.entries.next_power_of_two().max(4))?;
        kernel.set_egress(0, INGRESS)?;
        for index in 0..self.entries {
            let account = Account { generation: 1, counter: index, rated };
            self.install(&mut kernel, index, account)?;
        }
        Ok(kernel)
    }

    fn install(&self, kernel: &mut Kernel, index: u32, account: Account) -> Result<()> {
        let ring = index - index % self.len;
        let (from, to) = (self.flow(index), self.flow(ring + (index + 1) % self.len));
        let exit = &self.exits[(index % 2) as usize];
        match (from, to) {
            (Flow::V4(from), Flow::V4(to)) => {
                kernel.set_flow4(index, &Flow4::new(from, to, exit, account))
            }
            (Flow::V6(from), Flow::V6(to)) => {
                kernel.set_flow6(index, &Flow6::new(from, to, exit, account))
            }
            (Flow::V6(from), Flow::V4(to)) => {
                kernel.set_flow6(index, &Flow6::to_ipv4(from, to, exit, account))
            }
            (Flow::V4(from), Flow::V6(to)) => {
                // The IPv6 table has nothing at this index: the flow here is an IPv4 one.
                let mirrored = Tuple6 {
                    src: to.dst,
                    dst: to.src,
                    src_port: to.dst_port,
                    dst_port: to.src_port,
                };
                kernel.set_flow6(index, &Flow6::new(mirrored, mirrored, exit, account))?;
                kernel.set_flow4(index, &Flow4::to_ipv6(from, &to, index, exit, account))
            }
        }
    }

    fn flow(&self, index: u32) -> Flow {
        Flow::at(index, self.families[(index % 2) as usize])
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// What arrives for one entry.
enum Flow {
    V4(Tuple4),
    V6(Tuple6),
}

impl Flow {
    /// The flow that belongs at `index` of a table.
    fn at(index: u32, family: Family) -> Self {
        let dst_port = (index as u16).to_be_bytes();
        let src_port = (40_000 ^ index as u16).to_be_bytes();
        match family {
            Family::V4 => {
                let (src, dst) = ([198, 51, 100, 7], [192, 0, 2, 0]);
                Self::V4(Tuple4 { src, dst, src_port, dst_port })
            }
            Family::V6 => {
                let mut src = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
                let mut dst = src;
                (src[5], dst[5], dst[15]) = (1, 2, 0);
                Self::V6(Tuple6 { src, dst, src_port, dst_port })
            }
        }
    }

    fn packet(&self) -> Packet {
        let (src, dst, src_port, dst_port) = match self {
            Self::V4(tuple) => (tuple.src.into(), tuple.dst.into(), tuple.src_port, tuple.dst_port),
            Self::V6(tuple) => (tuple.src.into(), tuple.dst.into(), tuple.src_port, tuple.dst_port),
        };
        let end = |ip: IpAddr, port| SocketAddr::new(ip, u16::from_be_bytes(port));
        let mut packet = Packet::new(end(src, src_port), end(dst, dst_port));
        packet.ttl = 255;
        packet.payload = vec![0x5a; 160];
        packet
    }
}

/// An interface in a network namespace that goes when this process does.
fn own_interface() -> Result<u32> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("cannot leave the network")?;
    let arguments = ["link", "add", "bench0", "type", "veth", "peer", "name", "bench1"];
    let status = Command::new("ip").args(arguments).status().context("cannot run `ip`")?;
    ensure!(status.success(), "`ip {}` failed", arguments.join(" "));
    Ok(nix::net::if_::if_nametoindex("bench0")?)
}

fn machine() -> Value {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cpus": cpus.lines().filter(|line| line.starts_with("processor")).count(),
        "load": read("/proc/loadavg").trim(),
    })
}
