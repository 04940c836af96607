//! `rawr config check`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Config, DEFAULT_PATH};

/// Checks configuration files
#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Name every mistake in a file, with line and column
    Check {
        #[arg(default_value = DEFAULT_PATH)]
        file: PathBuf,
    },
}

/// Says that the file is right, or what is wrong with it.
pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let ConfigCommand::Check { file } = &args.command;
    let config = Config::load(file)?;
    println!("{} is right: {} {}", file.display(), config.kind, config.instance.as_str());
    Ok(())
}
