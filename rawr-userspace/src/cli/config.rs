//! `rawr config`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::config::coturn::{self, Weight};
use crate::config::{Config, DEFAULT_PATH};

/// Exit status of an import that left out something with effect on security.
const LEFT_OUT_SECURITY: u8 = 3;

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
    /// Translate coturn's configuration to standard output, and tell on standard error what was left
    /// out. Ends with status 3 if something with effect on security was
    ImportCoturn {
        #[arg(default_value = "/etc/turnserver.conf")]
        file: PathBuf,
    },
}

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        ConfigCommand::Check { file } => check(file),
        ConfigCommand::ImportCoturn { file } => import_coturn(file),
    }
}

/// Says that the file is right, or what is wrong with it.
fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    println!("{} is right: {} {}", file.display(), config.kind, config.instance.as_str());
    Ok(ExitCode::SUCCESS)
}

fn import_coturn(file: &Path) -> anyhow::Result<ExitCode> {
    // Other bytes than UTF-8 can only stand in comments, or be told as what they are.
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let import = coturn::import(&String::from_utf8_lossy(&bytes));
    print!("{}", import.toml);
    for note in &import.notes {
        eprintln!("{}:{note}", file.display());
    }
    if let Err(mistakes) = import.check() {
        for mistake in &mistakes.0 {
            eprintln!("to be mended in the result:{mistake}");
        }
    }
    Ok(match import.weight() {
        Weight::None | Weight::Function => ExitCode::SUCCESS,
        Weight::Security => ExitCode::from(LEFT_OUT_SECURITY),
    })
}
