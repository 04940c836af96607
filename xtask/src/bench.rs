//! `cargo xtask bench`: builds the benchmarks for speed and runs them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::command::{cargo, run as run_command};
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// What the XDP program costs per packet, without a driver. Needs root.
    Program {
        /// Writes the results to this file, too.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Rounds over all kinds of packets.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::run()?;
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "rawr-tests", "--bin", "rawr-bench"]);
    cargo.arg("--");
    match &arguments.benchmark {
        Benchmark::Program { json, rounds } => {
            cargo.args(["program", "--rounds", &rounds.to_string()]);
            if let Some(file) = json {
                cargo.arg("--json").arg(std::path::absolute(file)?);
            }
        }
    }
    run_command(&mut cargo)
}
