//! `cargo xtask matrix`: who connects to whom through which NATs, in network namespaces on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command::{as_root, cargo, is_root, run, workspace};
use crate::setup;

/// What is published, and where.
const RESULTS: &str = "docs/traversal/matrix.json";
const DOCUMENT: &str = "docs/traversal.md";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Writes the results to this file [default: docs/traversal/matrix.json, and a table of it into
    /// docs/traversal.md]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs this cell, such as N3xN6 or N3xN6+late200; may be repeated [default: all].
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<String>,
    /// Runs only cells in which this kind has a part; may be repeated.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Runs the few cells of every day.
    #[arg(long, conflicts_with = "cells")]
    subset: bool,
    /// Trials of a cell of which a percentage is claimed [default: 100]; the others have a fifth of that.
    #[arg(long)]
    trials: Option<u32>,
    /// Trials of each other cell.
    #[arg(long)]
    few: Option<u32>,
    /// Cells at the same time [default: 6].
    #[arg(long)]
    jobs: Option<u32>,
    /// Puts nothing but a switch between the routers: what is sent to open the own one comes to the other.
    #[arg(long, requires = "json")]
    flat: bool,
    /// Runs nothing: makes the table of the published results again.
    #[arg(long)]
    report: bool,
}

/// Builds the daemon and the nodes, and runs them.
pub(crate) fn start(arguments: &Arguments) -> Result<()> {
    let program = workspace().join("target/debug/rawr-matrix");
    let published = workspace().join(RESULTS);
    if arguments.report {
        build()?;
        return report(&program, &published);
    }
    setup::run()?;
    build()?;
    if !is_root() {
        eprintln!("Network namespaces and XDP need root, so the matrix itself runs through sudo.");
    }
    let json = arguments.json.as_ref().map(std::path::absolute).transpose()?;
    let mut command = as_root(&program)?;
    command.arg("run").arg("--json").arg(json.as_ref().unwrap_or(&published));
    for (flag, values) in [("--cell", &arguments.cells), ("--kind", &arguments.kinds)] {
        for value in values {
            command.args([flag, value]);
        }
    }
    for (flag, is_set) in [("--subset", arguments.subset), ("--flat", arguments.flat)] {
        if is_set {
            command.arg(flag);
        }
    }
    for (flag, value) in
        [("--trials", arguments.trials), ("--few", arguments.few), ("--jobs", arguments.jobs)]
    {
        if let Some(value) = value {
            command.args([flag, &value.to_string()]);
        }
    }
    run(&mut command)?;
    if json.is_none() { report(&program, &published) } else { Ok(()) }
}

fn build() -> Result<()> {
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))
}

fn report(program: &Path, json: &Path) -> Result<()> {
    let mut command = Command::new(program);
    let document = workspace().join(DOCUMENT);
    run(command.args(["report", "--json"]).arg(json).arg("--document").arg(document))
}
