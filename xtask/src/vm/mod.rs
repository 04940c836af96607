//! `cargo xtask vm`: what the kernel has a part in, tested on Debian's kernel, which QEMU emulates.
//!
//! The guest sees the host's files, on which its writes leave no trace, so it runs the programs that were
//! built here, with the tools that are installed here. Only the kernel is another, and what it has as
//! modules: netem and pktgen above all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, display, is_installed, run, workspace};
use crate::setup;

mod image;
mod packages;
mod report;

use packages::Parts;
use report::Report;

/// Names the modules' folder and the workspace to the guest.
const GUEST_MODULES: &str = "RAWR_MODULES";
const GUEST_WORKSPACE: &str = "RAWR_WORKSPACE";
/// Where the guest finds what to run, below the workspace. `scripts/vm-init.sh` reads it.
const JOBS_FILE: &str = "target/vm/jobs";
/// Seconds after which the emulator is ended.
const TIME_LIMIT: u32 = 1500;
/// MiB. A daemon's tables take 25.
const MEMORY: &str = "3072";
const PROCESSORS: &str = "2";

/// Tests to be run in the guest: a program of the package rawr-tests, and which of its tests.
#[derive(Clone, Copy, Debug)]
struct Job {
    program: &'static str,
    /// A part of the tests' names; empty: all.
    tests: &'static str,
}

const JOBS: &[Job] = &[
    // Also loads the program, so the verifier judges it.
    Job { program: "datapath", tests: "" },
    Job { program: "backend", tests: "" },
    Job { program: "scenario_paths", tests: "symmetric_nats_meet_at_the_root" },
    Job { program: "scenario_paths", tests: "a_gateway_on_a_stick_relays_ipv4" },
    Job { program: "scenario_paths", tests: "two_routers_meet_at_their_provider_ipv6" },
    Job { program: "scenario_faults", tests: "crash_and_upgrade_of_the_root_ipv4" },
    Job { program: "scenario_netem", tests: "" },
    Job { program: "scenario_pktgen", tests: "" },
];

impl Job {
    fn name(&self) -> String {
        if self.tests.is_empty() {
            self.program.to_owned()
        } else {
            format!("{}/{}", self.program, self.tests)
        }
    }

    /// The words by which the guest runs it: with the tests that are marked as ignored because other
    /// kernels lack what they need.
    fn command(&self, executable: &Path) -> String {
        format!("{} --include-ignored --color never {}", executable.display(), self.tests)
    }
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Do not install anything.
    #[arg(long)]
    no_setup: bool,
    /// Run only jobs whose names contain this.
    filter: Option<String>,
}

/// Runs the jobs in the guest. The last line that it prints is the count.
pub(crate) fn start(arguments: &Arguments) -> Result<()> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let jobs: Vec<_> = JOBS.iter().filter(|job| job.name().contains(filter)).copied().collect();
    ensure!(!jobs.is_empty(), "no job is named {filter}; there are: {}", names(JOBS).join(", "));
    let report = boot(&jobs, !arguments.no_setup)?;
    print!("{report}");
    let problems = report.problems(&names(&jobs));
    for problem in &problems {
        eprintln!("vm: {problem}");
    }
    println!("{}", report.counts());
    if !problems.is_empty() {
        // An error would be printed below the count, which is to be the last line.
        std::process::exit(1);
    }
    Ok(())
}

fn names(jobs: &[Job]) -> Vec<String> {
    jobs.iter().map(Job::name).collect()
}

fn boot(jobs: &[Job], with_setup: bool) -> Result<Report> {
    let folder = workspace().join("target/vm");
    let root = workspace().display().to_string();
    ensure!(!root.contains(char::is_whitespace), "{root}: the guest knows no path with spaces");
    fs::create_dir_all(&folder)?;
    if with_setup {
        setup::run()?;
    }
    let parts = Parts::find(&folder, with_setup)?;
    let programs = build(jobs)?;
    let mut lines = String::new();
    for job in jobs {
        let program = programs.get(job.program);
        let program = program.with_context(|| format!("rawr-tests has no {}", job.program))?;
        lines += &format!("{}\t{}\n", job.name(), job.command(program));
    }
    fs::write(workspace().join(JOBS_FILE), lines)?;
    let image = image::make(&folder, &parts)?;
    watch(&mut emulator(&parts, &image))
}

/// Builds what the guest runs, optimised, because the emulator is slow. Returns the test programs by
/// name.
fn build(jobs: &[Job]) -> Result<BTreeMap<String, PathBuf>> {
    let packages = ["--release", "--package", "rawr-tests"];
    run(cargo().arg("build").args(packages).args(["--package", "rawr-userspace", "--bins"]))?;
    let mut command = cargo();
    command.arg("test").args(packages).args(["--no-run", "--message-format", "json"]);
    let programs: BTreeSet<_> = jobs.iter().map(|job| job.program).collect();
    for program in programs {
        command.args(["--test", program]);
    }
    eprintln!("$ {}", display(&command));
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("`{}` failed: {}", display(&command), output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The test programs that cargo's messages, one a line, say it has built.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let executable = message["executable"].as_str()?;
        let target = &message["target"];
        let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
        is_test.then_some((target["name"].as_str()?.to_owned(), executable.into()))
    };
    messages.filter_map(program).collect()
}

/// The emulator, its console on standard output. It changes no file of the host.
fn emulator(parts: &Parts, image: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", &TIME_LIMIT.to_string()]).arg(&parts.qemu.program);
    for folder in &parts.qemu.data {
        command.arg("-L").arg(folder);
    }
    command.envs(parts.qemu.environment.iter().cloned());
    let (root, modules) = (workspace(), parts.kernel.modules());
    let line = format!(
        "console=ttyS0 quiet loglevel=3 panic=-1 {GUEST_WORKSPACE}={} {GUEST_MODULES}={}",
        root.display(),
        modules.display()
    );
    // Hardware acceleration is not asked for: not every machine that offers it has it.
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-kernel"])
        .arg(parts.kernel.image())
        .arg("-initrd")
        .arg(image)
        .args(["-append", &line, "-virtfs"])
        .arg("local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap");
    command
}

/// Runs the emulator, shows what its console says, and reads the report from it.
fn watch(command: &mut Command) -> Result<Report> {
    ensure!(is_installed("timeout"), "timeout (Debian's coreutils) is not installed");
    eprintln!("$ {}", display(command));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("the emulator has no output")?;
    let mut report = Report::default();
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        println!("{}", text.trim_end());
        report.read(text.trim_end());
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        eprintln!("vm: the emulator ended with {status} (124: after {TIME_LIMIT} s)");
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{JOBS, executables, names};

    #[test]
    fn jobs_have_different_names() {
        let mut names = names(JOBS);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), JOBS.len());
    }

    #[test]
    fn test_programs_are_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"rawr_tests","kind":["lib"]},"executable":"/t/rawr_tests-1"}
            {"reason":"compiler-artifact","target":{"name":"datapath","kind":["test"]},"executable":"/t/datapath-1"}
            {"reason":"compiler-artifact","target":{"name":"aya","kind":["lib"]},"executable":null}
            {"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["datapath"], Path::new("/t/datapath-1"));
    }
}
