//! Who connects to whom through which NATs: the matrix of docs/traversal.md, and the program that runs on
//! each of its hosts.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use rawr_tests::matrix::{
    Cell, Internet, Kind, Plan, Results, SPECIAL, SUBSET, markdown, node, pairs, wire,
};
use rawr_tests::matrix::{replace, run};
use rawr_tests::scene::Scene;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run cells in a network of namespaces.
    Run(RunArgs),
    /// Put results into a document.
    Report {
        /// Results of a run.
        #[arg(long)]
        json: PathBuf,
        /// Document that has a place for them.
        #[arg(long)]
        document: PathBuf,
    },
    /// Be one of the hosts: told what to do by lines of JSON.
    Node(node::NodeArgs),
    /// Be the way between them: what passes a TUN device comes late.
    Wire(wire::WireArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Where the results go
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    /// Run this cell, such as N3xN6 or N3xN6+late200; may be repeated [default: all]
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<Cell>,
    /// Run only cells in which this kind has a part; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_parser = kind)]
    kinds: Vec<Kind>,
    /// Run the few cells of every day
    #[arg(long, conflicts_with = "cells")]
    subset: bool,
    /// Trials of a cell of which a percentage is claimed
    #[arg(long, default_value_t = 100)]
    trials: u32,
    /// Trials of each other cell [default: a fifth of that]
    #[arg(long)]
    few: Option<u32>,
    /// Cells at the same time
    #[arg(long, default_value_t = 6)]
    jobs: usize,
    /// Put nothing but a switch between the routers: what is sent to open the own one comes to the other
    #[arg(long)]
    flat: bool,
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::named(name).ok_or_else(|| format!("kinds are {:?}", Kind::ALL))
}

fn main() -> ExitCode {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .parse_env("RAWR_LOG")
        .format_timestamp_millis()
        .init();
    let result = match Arguments::parse().task {
        Task::Run(arguments) => arguments.run(),
        Task::Report { json, document } => report(&json, &document),
        Task::Node(arguments) => node::run(&arguments),
        Task::Wire(arguments) => wire::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl RunArgs {
    fn run(&self) -> Result<()> {
        let mut scene = Scene::new("m")?;
        let results = run(&mut scene, &self.plan());
        if results.is_err() {
            eprintln!("{}", scene.describe());
        }
        let results = results?;
        let text = serde_json::to_string_pretty(&results)? + "\n";
        fs::write(&self.json, text).with_context(|| self.json.display().to_string())?;
        println!("{}", verdict(&results));
        Ok(())
    }

    fn plan(&self) -> Plan {
        let mut cells = match (self.subset, self.cells.as_slice()) {
            (true, _) => SUBSET.to_vec(),
            (false, []) => pairs().into_iter().chain(SPECIAL).collect(),
            (false, cells) => cells.to_vec(),
        };
        if !self.kinds.is_empty() {
            cells.retain(|cell| self.kinds.iter().any(|kind| [cell.a, cell.b].contains(kind)));
        }
        let few = self.few.unwrap_or_else(|| self.trials.div_ceil(5));
        let internet = if self.flat { Internet::Flat } else { Internet::Routed };
        Plan { cells, trials: self.trials, few, jobs: self.jobs, internet }
    }
}

fn verdict(results: &Results) -> String {
    let all = results.cells.len();
    let met = results.cells.iter().filter(|cell| cell.is_met).count();
    let connected = results.cells.iter().filter(|cell| cell.connected == cell.trials).count();
    format!("{met} of {all} cells as expected, {connected} connect each time")
}

fn report(json: &PathBuf, document: &PathBuf) -> Result<()> {
    let text = fs::read_to_string(json).with_context(|| json.display().to_string())?;
    let results: Results = serde_json::from_str(&text)?;
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let text = replace(&text, &markdown(&results))?;
    fs::write(document, text).with_context(|| document.display().to_string())
}
