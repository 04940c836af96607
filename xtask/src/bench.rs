//! `cargo xtask bench`: builds the benchmarks for speed and runs them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::command::{cargo, run as run_command, workspace};
use crate::setup;

/// Where the committed results are.
const RESULTS: &str = "docs/benchmarks";
const BENCHMARKS: [&str; 3] = ["program", "netns", "control"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// What the XDP program costs per packet, without a driver. Needs root.
    Program(Run),
    /// Packets per second and latency on virtual Ethernets, beside other relays. Needs root.
    Netns(Run),
    /// What sessions cost: time, memory, expiry, restart. Needs root.
    Control(Run),
    /// All three, one after the other, then the report.
    All {
        /// Writes the results to this folder, and makes no report.
        #[arg(long, value_name = "FOLDER")]
        json: Option<PathBuf>,
        /// Rounds of each.
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Make docs/benchmarks.md and its plots of the results in docs/benchmarks.
    Report,
}

#[derive(clap::Args)]
struct Run {
    /// Writes the results to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds over all rows, instead of as many as the benchmark deems enough.
    #[arg(long)]
    rounds: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run()?;
    match &arguments.benchmark {
        Benchmark::Program(own) => measure("program", own),
        Benchmark::Netns(own) => measure("netns", own),
        Benchmark::Control(own) => measure("control", own),
        Benchmark::All { json, rounds } => {
            let folder = json.clone().unwrap_or_else(|| workspace().join(RESULTS));
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
            for name in BENCHMARKS {
                let json = folder.join(name).with_extension("json");
                measure(name, &Run { json: Some(json), rounds: *rounds })?;
            }
            if json.is_none() { bench(&["report".to_owned()]) } else { Ok(()) }
        }
        Benchmark::Report => bench(&["report".to_owned()]),
    }
}

fn measure(name: &str, run: &Run) -> Result<()> {
    let mut arguments = vec![name.to_owned()];
    if let Some(file) = &run.json {
        let file = std::path::absolute(file)?;
        arguments.extend(["--json".to_owned(), file.display().to_string()]);
    }
    if let Some(rounds) = run.rounds {
        arguments.extend(["--rounds".to_owned(), rounds.to_string()]);
    }
    bench(&arguments)
}

fn bench(arguments: &[String]) -> Result<()> {
    // Some rows are measured on the daemon itself.
    run_command(cargo().args(["build", "--quiet", "--release", "--package", "rawr-userspace"]))?;
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "rawr-bench", "--"]).args(arguments);
    run_command(&mut cargo)
}
