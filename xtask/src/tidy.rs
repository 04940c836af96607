//! `cargo xtask tidy`: what the architecture forbids, and no compiler or lint checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{cargo, workspace};

/// A crate, and what it must not depend on, not even through others.
const FORBIDDEN_EDGES: &[(&str, &[&str])] = &[
    ("rawr-proto", &["rawr-common", "tokio", "mio", "aya", "socket2"]),
    ("rawr-ebpf", &["rawr-proto", "rawr-nat", "rawr-userspace", "rawr-tests"]),
    ("rawr-nat", &["rawr-common", "rawr-userspace", "rawr-tests", "rawr-sim", "aya"]),
    ("rawr-sim", &["rawr-common", "rawr-proto", "rawr-nat", "rawr-userspace", "tokio", "aya"]),
    ("rawr-userspace", &["rawr-tests", "rawr-bench"]),
    ("rawr-tests", &["rawr-bench", "bench-ebpf"]),
    ("bench-ebpf", &["rawr-common", "rawr-userspace", "rawr-tests"]),
    ("xtask", &["rawr-common", "rawr-proto", "rawr-nat", "rawr-userspace", "rawr-tests"]),
];
/// Depends on nothing at all: the kernel runs it.
const LEAF: &str = "rawr-common";

/// The pure core of the server, and words that must not stand in it.
const PURE: &str = "rawr-userspace/src/control/";
const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "aya",
    "mio",
    "socket2",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "TcpListener",
    "TcpStream",
];

/// Reading a clock.
const CLOCKS: &[&str] = &["Instant::now", "SystemTime::now"];
/// Folders, of any crate, whose files may.
const CLOCK_FOLDERS: &[&str] = &["/benches/", "/examples/", "/tests/"];
/// Files and folders that may.
const CLOCK_READERS: &[&str] = &[
    "bench/",
    "fuzz/",
    "rawr-nat/src/bridge/driver",
    "rawr-nat/src/driver",
    "rawr-nat/src/portmap/",
    "rawr-nat/src/punch/tcp",
    "rawr-nat/src/secure/connection",
    "rawr-nat/src/tokio",
    "rawr-userspace/src/cli/",
    "rawr-userspace/src/dataplane/slow_path/",
    "rawr-userspace/src/io/",
    "tests/",
    "xtask/",
];

const LONGEST_SOURCE: usize = 700;
const LONGEST_SCRIPT: usize = 100;
/// Folders of one machine or one user. In pieces, so that this file does not contain them.
const HOST_PATHS: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

const SKIPPED: &[&str] = &["target", ".git"];

/// Reports every violation, one a line; fails if there is one.
pub(crate) fn run() -> Result<()> {
    let mut violations = dependency_violations(&metadata()?)?;
    let root = workspace();
    for path in files(&root)? {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
        violations.extend(file_violations(&name, &text));
    }
    for violation in &violations {
        eprintln!("tidy: {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations of the architecture", violations.len());
    }
    Ok(())
}

fn metadata() -> Result<Value> {
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn dependency_violations(metadata: &Value) -> Result<Vec<String>> {
    let graph = Graph::read(metadata).context("cargo metadata has an unknown shape")?;
    let mut violations = Vec::new();
    for (package, forbidden) in FORBIDDEN_EDGES {
        let reachable = graph.reachable(package);
        for name in forbidden.iter().filter(|name| reachable.contains(**name)) {
            violations.push(format!("{package} must not depend on {name}, but does"));
        }
    }
    for name in graph.reachable(LEAF) {
        violations.push(format!("{LEAF} must depend on nothing, but depends on {name}"));
    }
    Ok(violations)
}

/// Normal dependencies (not those of tests and build scripts), by the names of packages.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn read(metadata: &Value) -> Option<Self> {
        let mut names = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            names.insert(package["id"].as_str()?, package["name"].as_str()?);
        }
        let mut graph = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            let edges: &mut BTreeSet<_> =
                graph.entry((*names.get(node["id"].as_str()?)?).to_owned()).or_default();
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                if kinds.iter().any(|each| each["kind"].is_null()) {
                    edges.insert((*names.get(dependency["pkg"].as_str()?)?).to_owned());
                }
            }
        }
        Some(Self(graph))
    }

    fn reachable(&self, from: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![from];
        while let Some(package) = waiting.pop() {
            for next in self.0.get(package).into_iter().flatten() {
                if found.insert(next.clone()) {
                    waiting.push(next);
                }
            }
        }
        found
    }
}

fn file_violations(name: &str, text: &str) -> Vec<String> {
    let mut violations = host_path_violations(name, text);
    if name.ends_with(".rs") {
        violations.extend(source_violations(name, text));
    }
    if name.starts_with("scripts/") && text.starts_with("#!") {
        violations.extend(script_violations(name, text));
    }
    violations
}

fn host_path_violations(name: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for (number, line) in numbered(text) {
        for path in HOST_PATHS.iter().filter(|path| line.contains(**path)) {
            violations.push(format!("{name}:{number}: names {path}, a folder of one machine"));
        }
    }
    violations
}

fn source_violations(name: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    // Unit tests stand last in a file.
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let length = code.lines().count();
    if length > LONGEST_SOURCE && !name.contains("/tests/") {
        violations.push(format!("{name}: {length} lines without tests, {LONGEST_SOURCE} may be"));
    }
    let may_read_clock = CLOCK_READERS.iter().any(|reader| name.starts_with(reader))
        || CLOCK_FOLDERS.iter().any(|folder| name.contains(folder));
    for (number, line) in numbered(code) {
        let line = line.split("//").next().unwrap_or_default();
        for clock in CLOCKS.iter().filter(|clock| !may_read_clock && line.contains(**clock)) {
            violations.push(format!("{name}:{number}: {clock}: time is an argument here"));
        }
        if name.starts_with(PURE) {
            for word in words(line).filter(|word| IMPURE_WORDS.contains(word)) {
                violations.push(format!("{name}:{number}: {word} in the pure core"));
            }
        }
    }
    violations
}

fn script_violations(name: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let length = text.lines().count();
    if length > LONGEST_SCRIPT {
        violations.push(format!("{name}: {length} lines, {LONGEST_SCRIPT} may be"));
    }
    if !text.contains("set -euo pipefail") {
        violations.push(format!("{name}: does not stop at errors (set -euo pipefail)"));
    }
    violations
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if SKIPPED.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            found.extend(files(&path)?);
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_is_kept_pure() {
        let name = "rawr-userspace/src/control/server.rs";
        let found = |text: &str| file_violations(name, text);
        assert_eq!(found("use std::net::SocketAddr; // no tokio here"), [""; 0]);
        assert_eq!(found("use tokio::net;"), [format!("{name}:1: tokio in the pure core")]);
        assert_eq!(
            found("\nlet now = Instant::now();"),
            [format!("{name}:2: Instant::now: time is an argument here")]
        );
        assert_eq!(found("#[cfg(test)]\nmod tests { use tokio::net; }"), [""; 0]);
    }

    #[test]
    fn long_files_and_careless_scripts_are_found() {
        let long = "\n".repeat(LONGEST_SOURCE + 1);
        assert_eq!(file_violations("rawr-nat/src/lib.rs", &long).len(), 1);
        assert_eq!(file_violations("tests/tests/scenario.rs", &long), [""; 0]);
        assert_eq!(file_violations("scripts/x.sh", "#!/bin/bash\necho\n").len(), 1);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let text = format!("see {}me/notes", "/ho");
        assert_eq!(file_violations("docs/a.md", &text).len(), 1);
    }

    #[test]
    fn forbidden_edges_are_found_through_others() {
        let package = |name: &str| serde_json::json!({"id": name, "name": name});
        let node = |name: &str, to: &str, kind: Value| serde_json::json!({"id": name, "deps": [{"pkg": to, "dep_kinds": [{"kind": kind}]}]});
        let metadata = serde_json::json!({
            "packages": [package("rawr-nat"), package("helper"), package("aya")],
            "resolve": {"nodes": [
                node("rawr-nat", "helper", Value::Null),
                node("helper", "aya", Value::Null),
                node("aya", "rawr-nat", "dev".into()),
            ]},
        });
        let violations = dependency_violations(&metadata).unwrap();
        assert_eq!(violations, ["rawr-nat must not depend on aya, but does"]);
    }
}
