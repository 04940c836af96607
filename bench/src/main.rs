//! Benchmarks, run by `cargo xtask bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::rounds::Wanted;

mod affinity;
mod control;
mod document;
mod machine;
mod netns;
mod object;
mod program;
mod report;
mod rounds;
mod turn;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// What the XDP program costs per packet, without a driver.
    Program(Run),
    /// How many packets per second reach the other end, and how late.
    Netns(Run),
    /// What sessions cost the server and the daemon.
    Control(Run),
    /// Makes docs/benchmarks.md of the results in docs/benchmarks.
    Report,
    #[command(hide = true, subcommand)]
    ControlStep(control::Step),
}

/// How a benchmark is run.
#[derive(clap::Args)]
struct Run {
    /// Writes the results here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds over all rows.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Lets disturbed rounds count: to see whether everything works, not for figures.
    #[arg(long)]
    rehearse: bool,
}

impl Run {
    fn wanted(&self) -> Wanted {
        Wanted { rounds: self.rounds, is_rehearsal: self.rehearse }
    }
}

fn main() -> Result<()> {
    match Arguments::parse().benchmark {
        Benchmark::Program(run) => program::run(&run),
        Benchmark::Netns(run) => netns::run(&run),
        Benchmark::Control(run) => control::run(&run),
        Benchmark::Report => report::run(),
        Benchmark::ControlStep(step) => step.run(),
    }
}
