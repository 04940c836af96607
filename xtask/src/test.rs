//! `cargo xtask test`: everything that has to hold before a change is merged.

use std::io::{BufRead, BufReader, Read};
use std::ops::AddAssign;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::command::{cargo, display, elevation, is_installed, is_root, run, workspace};
use crate::{setup, tidy};

/// Begins the line by which a test says that it was skipped, and why.
const SKIP_MARK: &str = "rawr-skipped ";

const DENY_VERSION: &str = "0.20.2";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose names contain this, and no other check.
    filter: Option<String>,
    /// Do not install anything.
    #[arg(long)]
    no_setup: bool,
}

/// Prepares the machine, checks the sources, builds, and runs all tests. The last line that it
/// prints is the count.
pub(crate) fn start(arguments: &Arguments) -> Result<()> {
    if !arguments.no_setup {
        setup::run()?;
    }
    if arguments.filter.is_none() {
        check()?;
    }
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if let Some(filter) = &arguments.filter {
        command.args(["--", filter]);
    }
    elevate(&mut command)?;
    let (counts, succeeded) = count(&mut command)?;
    println!("{counts}");
    if counts.failed > 0 || !succeeded {
        // An error would be printed below the count, which is to be the last line.
        std::process::exit(1);
    }
    Ok(())
}

/// What needs no test to be run.
fn check() -> Result<()> {
    run(cargo().args(["fmt", "--check"]))?;
    tidy::run()?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))?;
    // Tests need all features; this is rawr as it is built without any.
    let plain = ["clippy", "--package", "rawr-userspace", "--bins", "--quiet"];
    run(cargo().args(plain).args(["--", "--deny", "warnings"]))?;
    check_dependencies()
}

/// Licences, sources and bans of deny.toml. Whoever lacks cargo-deny is told so; continuous
/// integration, which skips nothing, builds it.
fn check_dependencies() -> Result<()> {
    let target_dir = workspace().join("target");
    let built = target_dir.join("tools/bin/cargo-deny");
    let is_found = || built.exists() || is_installed("cargo-deny");
    if !is_found() && std::env::var("CI").as_deref() == Ok("true") {
        println!("will install cargo-deny {DENY_VERSION} into target/tools: checks dependencies");
        setup::install_tool(&target_dir, "cargo-deny", DENY_VERSION)?;
    }
    if !is_found() {
        eprintln!("cargo-deny is not installed: licences of dependencies are not checked");
        return Ok(());
    }
    let mut deny = if built.exists() { Command::new(built) } else { Command::new("cargo-deny") };
    deny.current_dir(workspace());
    run(deny.args(["--log-level", "error", "check", "bans", "licenses", "sources"]))
}

/// Makes cargo run the test programs, and only them, as root: what it builds stays the user's.
fn elevate(command: &mut Command) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let Some(words) = elevation() else {
        eprintln!("There is no sudo: tests that need root are skipped.");
        return Ok(());
    };
    eprintln!("Network namespaces and XDP need root, so test programs run through sudo.");
    let version = cargo().arg("-vV").output()?.stdout;
    let version = String::from_utf8_lossy(&version);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("cargo does not tell which machine it runs on")?;
    let variable = host.to_uppercase().replace(['-', '.'], "_");
    command.env(format!("CARGO_TARGET_{variable}_RUNNER"), words.join(" "));
    Ok(())
}

/// Tests by their outcome, over all programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the tests, shows what they print, and adds up what they report.
fn count(command: &mut Command) -> Result<(Counts, bool)> {
    eprintln!("$ {}", display(command));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let errors = thread::spawn(move || errors.map(|pipe| tally(pipe, |line| eprintln!("{line}"))));
    let mut counts = output.map(|pipe| tally(pipe, |line| println!("{line}"))).unwrap_or_default();
    counts += errors.join().ok().flatten().unwrap_or_default();
    // A skipped test has returned early, which its runner takes for a pass.
    counts.passed = counts.passed.saturating_sub(counts.skipped);
    Ok((counts, child.wait()?.success()))
}

fn tally(pipe: impl Read, show: impl Fn(&str)) -> Counts {
    let mut counts = Counts::default();
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line);
        show(text.trim_end());
        counts += read(&text);
        line.clear();
    }
    counts
}

/// What one line of output adds. Ignored tests are not counted: they are for other occasions.
pub(crate) fn read(line: &str) -> Counts {
    if line.starts_with(SKIP_MARK) {
        return Counts { skipped: 1, ..Counts::default() };
    }
    let Some(result) = line.strip_prefix("test result: ") else { return Counts::default() };
    let number = |name: &str| -> u64 {
        let before = result.split_once(name).map_or("", |(before, _)| before);
        before.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    Counts { passed: number(" passed"), failed: number(" failed"), skipped: 0 }
}

#[cfg(test)]
mod tests {
    use super::{Counts, read, tally};

    #[test]
    fn results_and_skips_add_up() {
        let output = "running 5 tests\n\
            test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            rawr-skipped a_test: needs root\n\
            test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let counts = tally(output.as_bytes(), |_| {});
        assert_eq!(counts, Counts { passed: 7, failed: 3, skipped: 1 });
        assert_eq!(counts.to_string(), "7 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(read("test some_test ... ok"), Counts::default());
    }
}
