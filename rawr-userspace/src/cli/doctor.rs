//! `rawr doctor`.

use std::process::ExitCode;

use clap::Args;

use super::args::{OutputArgs, ServeArgs};
use crate::doctor;

/// What the host is judged for.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Sessions that the server is to hold at once
    #[arg(long, default_value_t = 10_000)]
    sessions: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Writes what was found. Fails if something would not work.
pub(super) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let config = args.serve.config()?;
    let report = doctor::run(&config.doctor(args.sessions));
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(report.exit_code()))
}
