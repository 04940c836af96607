//! The generator and the sink, seen from userspace.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::DevMap;
use aya::programs::{TestRun as _, Xdp};
use aya::{Ebpf, EbpfLoader, TestRunAttrs, TestRunOptions};
use bench_ebpf::{
    BUCKETS, FLOWS, Plan, Progress, SAMPLE_ROOM, SAMPLES, SEEN_BLOCK, Sample, bucket_start, mark,
    names,
};
use rawr_tests::kernel::attach;
use rawr_tests::netns::Netns;
use rawr_tests::process::now;

use super::lab::{GENERATOR, Lab, SINK, cpus, index_of};
use super::mapped::Mapped;
use super::wire::{Carrier, Shape};
use crate::affinity::pin_to;
use crate::object::object;

/// Frames per system call.
const REPEAT: u32 = 200_000;
/// Frames that the kernel sends at once: when going as fast as can be, and when paced.
const BATCH: u32 = 64;
const PACED_BATCH: u32 = 16;
/// Below this rate (packets per second of one generator) each packet is sent by itself.
const SINGLE_RATE: f64 = 500_000.0;
/// After this time without a packet nothing more is on its way.
const QUIET: Duration = Duration::from_millis(30);

/// What to send.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) shape: Shape,
    pub(super) flows: u32,
    /// Whether neighbouring flows follow each other, as caches like it; else they are far apart.
    pub(super) in_turn: bool,
    /// Generators, each on a CPU of its own from 0 on, with its own part of the flows.
    pub(super) cores: usize,
    /// Packets per second, all generators together; `None` for as fast as can be.
    pub(super) rate: Option<f64>,
    /// Whether latencies are taken.
    pub(super) stamped: bool,
    pub(super) time: Duration,
}

/// What became of it.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) seconds: f64,
    pub(super) offered: u64,
    /// Packets that reached the sink while the generator ran.
    pub(super) delivered: u64,
    /// Packets that reached it in the end.
    pub(super) arrived: u64,
    /// Flows of which at least one packet did.
    pub(super) flows: u32,
    /// Of each CPU's histogram bucket, the sum.
    latencies: Vec<u64>,
    /// Some of the frames that arrived.
    pub(super) samples: Vec<Vec<u8>>,
}

impl Outcome {
    /// Delivered packets per second.
    pub(super) fn rate(&self) -> f64 {
        self.delivered as f64 / self.seconds
    }

    /// The part of the packets that never arrived.
    pub(super) fn loss(&self) -> f64 {
        1.0 - (self.arrived as f64 / self.offered as f64).min(1.0)
    }

    /// The latency, in microseconds, that this part of the packets does not exceed; not a number
    /// if none was taken.
    pub(super) fn latency(&self, part: f64) -> f64 {
        let total: u64 = self.latencies.iter().sum();
        if total == 0 {
            return f64::NAN;
        }
        let mut left = (total as f64 * part).ceil() as u64;
        for (index, count) in (0..).zip(&self.latencies) {
            if *count >= left {
                return bucket_start(index + 1) as f64 / 1000.0;
            }
            left -= count;
        }
        f64::NAN
    }
}

/// The programs and maps of generator and sink.
pub(super) struct Traffic {
    ebpf: Ebpf,
    plans: Mapped<Plan>,
    progress: Mapped<Progress>,
    run: Mapped<u64>,
    /// Number of the last run.
    runs: u32,
    seen: Mapped<[u32; SEEN_BLOCK]>,
    samples: Mapped<Sample>,
    latencies: Mapped<u64>,
    /// Keeps the generator known to the kernel's dispatcher: to join it takes an RCU grace period,
    /// which each call would wait for otherwise.
    _known: (Netns, OwnedFd),
}

impl Traffic {
    pub(super) fn new() -> Result<Self> {
        let cpus = cpus() as u32;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::PLANS, cpus)
            .map_max_entries(names::PROGRESS, cpus)
            .map_max_entries(names::SAMPLE_RING, cpus * SAMPLES)
            .map_max_entries(names::LATENCIES, cpus * BUCKETS)
            .load(loadable()?)
            .context("cannot load the generator's maps")?;
        for name in [names::GENERATE, names::SINK] {
            program(&mut ebpf, name)?.load().with_context(|| format!("program {name}"))?;
        }
        let nursery = Netns::new("nursery")?;
        nursery.sh("ip link add gen0 type veth peer name gen1")?;
        let generate = program(&mut ebpf, names::GENERATE)?.fd()?.as_fd().try_clone_to_owned()?;
        let index = index_of(&nursery, "gen0")?;
        let known = nursery.run(|| attach(generate.as_fd(), index))??;
        Ok(Self {
            plans: Mapped::new(&mut ebpf, names::PLANS, cpus)?,
            progress: Mapped::new(&mut ebpf, names::PROGRESS, cpus)?,
            run: Mapped::new(&mut ebpf, names::RUN, 1)?,
            runs: 0,
            seen: Mapped::new(&mut ebpf, names::SEEN, FLOWS / SEEN_BLOCK as u32)?,
            samples: Mapped::new(&mut ebpf, names::SAMPLE_RING, cpus * SAMPLES)?,
            latencies: Mapped::new(&mut ebpf, names::LATENCIES, cpus * BUCKETS)?,
            ebpf,
            _known: (nursery, known),
        })
    }

    /// Puts the sink on both ends of a lab. In force as long as the result lives.
    pub(super) fn listen(&mut self, lab: &Lab) -> Result<[OwnedFd; 2]> {
        let sink = program(&mut self.ebpf, names::SINK)?.fd()?.as_fd().try_clone_to_owned()?;
        let on = |netns: &Netns, interface| {
            let index = index_of(netns, interface)?;
            netns.run(|| attach(sink.as_fd(), index))?
        };
        Ok([on(&lab.generator, GENERATOR)?, on(&lab.sink, SINK)?])
    }

    /// Sends, and waits until all has arrived that will.
    pub(super) fn send(&mut self, lab: &Lab, load: &Load) -> Result<Outcome> {
        self.prepare(load)?;
        let index = index_of(&lab.generator, GENERATOR)?;
        let generate: &Xdp =
            self.ebpf.program(names::GENERATE).context("no generator")?.try_into()?;
        let seen = &self.seen;
        let (seconds, delivered) = lab.generator.run(|| -> Result<_> {
            let start = now();
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..load.cores)
                    .map(|cpu| scope.spawn(move || generate_on(cpu, generate, index, load, start)))
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })?;
            Ok((start.elapsed().as_secs_f64(), total(seen)))
        })??;
        self.settle();
        // What comes even later must not change what is read now.
        self.run.fill(0);
        Ok(self.outcome(seconds, delivered))
    }

    fn prepare(&mut self, load: &Load) -> Result<()> {
        let cores = load.cores as u32;
        ensure!(load.cores <= cpus() && load.flows >= cores, "{load:?} on {} CPUs", cpus());
        let flows = load.flows / cores;
        let mark = self.next_mark();
        for cpu in 0..cores {
            let mut plan = load.shape.plan(mark, cpu * flows, flows);
            // A transaction ID has no room for the time.
            plan.stamped = (load.stamped && load.shape.carrier != Carrier::Binding).into();
            if load.in_turn {
                plan.step = 1 % flows;
            }
            plan.interval =
                load.rate.map_or(0, |rate| (1e9 * f64::from(cores) / rate).max(1.0) as u64);
            self.plans.write(cpu as usize, plan);
        }
        self.run.fill(mark.into());
        // The walk goes on where the last one ended, so that slow contenders meet all flows, too.
        let went: Vec<_> = self.progress.iter().collect();
        for (cpu, Progress { next, .. }) in went.into_iter().enumerate() {
            self.progress.write(cpu, Progress { next: next % flows, ..Progress::default() });
        }
        self.forget();
        Ok(())
    }

    fn next_mark(&mut self) -> u32 {
        self.runs += 1;
        mark(self.runs)
    }

    fn forget(&mut self) {
        self.seen.fill([0; SEEN_BLOCK]);
        self.latencies.fill(0);
        self.samples.fill(Sample { len: 0, frame: [0; SAMPLE_ROOM] });
    }

    /// Has the sink count what somebody else than the generator sends. Returns what payloads begin with.
    pub(super) fn begin(&mut self) -> u32 {
        let mark = self.next_mark();
        self.forget();
        self.run.fill(mark.into());
        mark
    }

    /// Tells how many packets have reached the sink so far.
    pub(super) fn delivered(&self) -> impl Fn() -> u64 + Send {
        let seen = &self.seen;
        move || total(seen)
    }

    /// From now on the sink counts nothing more.
    pub(super) fn end(&self) {
        self.run.fill(0);
    }

    /// Some of the frames that arrived.
    pub(super) fn samples(&self) -> Vec<Vec<u8>> {
        let taken = self.samples.iter().filter(|sample| sample.len > 0);
        taken.map(|sample| sample.frame[..sample.len as usize].to_vec()).collect()
    }

    fn settle(&self) {
        let mut before = total(&self.seen);
        loop {
            sleep(QUIET);
            let now = total(&self.seen);
            if now == before {
                return;
            }
            before = now;
        }
    }

    fn outcome(&self, seconds: f64, delivered: u64) -> Outcome {
        let mut latencies = vec![0; BUCKETS as usize];
        for (index, count) in self.latencies.iter().enumerate() {
            latencies[index % BUCKETS as usize] += count;
        }
        Outcome {
            seconds,
            offered: self.progress.iter().map(|progress| progress.sent).sum(),
            delivered,
            arrived: total(&self.seen),
            flows: self.seen.iter().flatten().filter(|&count| count > 0).count() as u32,
            latencies,
            samples: self.samples(),
        }
    }
}

fn total(seen: &Mapped<[u32; SEEN_BLOCK]>) -> u64 {
    seen.iter().flatten().map(u64::from).sum()
}

/// Sends on one CPU until the time is over.
fn generate_on(cpu: usize, generate: &Xdp, index: u32, load: &Load, start: Instant) -> Result<()> {
    pin_to(cpu)?;
    let frame = load.shape.bytes();
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&index.to_ne_bytes());
    let batch = match load.rate {
        None => BATCH,
        Some(rate) if rate / load.cores as f64 <= SINGLE_RATE => 1,
        Some(_) => PACED_BATCH,
    };
    while start.elapsed() < load.time {
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: REPEAT,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        };
        generate.test_run(options).context("the generator does not run")?;
    }
    Ok(())
}

fn loadable() -> Result<&'static [u8]> {
    ensure!(!object().is_empty(), "built with RAWR_SKIP_EBPF=1: there is no generator");
    Ok(object())
}

/// A loaded limit: a program that sends every packet on to the interface `way_out`, if one is given.
pub(super) struct Limit {
    _maps: Ebpf,
    pub(super) program: OwnedFd,
}

impl Limit {
    /// Loads the program `name` in the namespace of the interface that packets leave by.
    pub(super) fn load(name: &str, netns: &Netns, way_out: u32) -> Result<Self> {
        netns.run(|| {
            let mut ebpf = Ebpf::load(loadable()?)?;
            let map = ebpf.map_mut(names::WAY_OUT).context("no device map")?;
            DevMap::try_from(map)?.set(0, way_out, None, 0)?;
            let xdp = program(&mut ebpf, name)?;
            xdp.load()?;
            let program = xdp.fd()?.as_fd().try_clone_to_owned()?;
            Ok(Self { _maps: ebpf, program })
        })?
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
