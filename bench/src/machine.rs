//! What the results depend on besides the code.

use std::fs::read_to_string;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine, and the revision that ran on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gib: f64,
    /// Load average when the run began, over 1, 5 and 15 minutes.
    pub(crate) load: String,
    /// Whether a hypervisor runs it: other guests then share its caches and its time.
    pub(crate) virtual_machine: bool,
    /// The commit that was measured, with `+` if files were changed.
    pub(crate) revision: String,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let read = |file: &str| read_to_string(file).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let field = |name: &str| {
            cpus.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let memory = read("/proc/meminfo");
        let kib: f64 = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or_default();
        let load = read("/proc/loadavg");
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field("model name").trim_start_matches(['\t', ' ', ':']).to_owned(),
            cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gib: (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            virtual_machine: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            revision: revision(),
        }
    }
}

fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|files| !files.is_empty()) { "+" } else { "" };
    commit + mark
}
