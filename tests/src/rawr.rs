//! The built `rawr` as scenarios drive it. The one place that knows its flags and its JSON.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::netns::{Netns, checked};
use crate::process::{Process, binary, eventually, tail};

/// The STUN port.
pub const PORT: u16 = 3478;
/// Pins of instances lie in folders of their names below this one.
const PINS: &str = "/sys/fs/bpf/rawr";
/// More than the longest time that a daemon lets pass between two looks at the kernel's counters.
pub const COUNTERS_SETTLE: Duration = Duration::from_millis(1200);
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    Root,
}

/// How a daemon is run.
#[derive(Clone, Debug)]
pub struct Serve {
    pub kind: Kind,
    pub interfaces: Vec<String>,
    /// Servers to escalate to.
    pub parents: Vec<IpAddr>,
    /// Further lines of the configuration file.
    pub config: String,
    /// How much it logs.
    pub log: &'static str,
}

impl Serve {
    /// A root, in XDP on `interfaces`, at all addresses of its host.
    pub fn root(interfaces: &[&str]) -> Self {
        Self::new(Kind::Root, interfaces)
    }

    /// A gateway, in XDP on `interfaces`, at all addresses of its host.
    pub fn gateway(interfaces: &[&str]) -> Self {
        Self::new(Kind::Gateway, interfaces)
    }

    fn new(kind: Kind, interfaces: &[&str]) -> Self {
        Self {
            kind,
            interfaces: interfaces.iter().map(ToString::to_string).collect(),
            parents: Vec::new(),
            config: String::new(),
            log: "debug",
        }
    }

    /// The same with servers to escalate to.
    pub fn under(mut self, parents: &[IpAddr]) -> Self {
        self.parents.extend(parents);
        self
    }

    /// The same with further lines in its configuration file.
    pub fn configured(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self
    }

    /// The same with no account of each session in its log.
    pub fn terse(mut self) -> Self {
        self.log = "info";
        self
    }
}

/// Datagrams that a server has forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// In XDP.
    pub kernel: u64,
    /// In its process.
    pub userspace: u64,
}

impl Traffic {
    pub fn total(self) -> u64 {
        self.kernel + self.userspace
    }

    /// What has been added since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            kernel: self.kernel.saturating_sub(earlier.kernel),
            userspace: self.userspace.saturating_sub(earlier.userspace),
        }
    }

    /// Part that the kernel forwarded; 0 if nothing was.
    pub fn kernel_share(self) -> f64 {
        if self.total() == 0 { 0.0 } else { self.kernel as f64 / self.total() as f64 }
    }
}

/// An instance of `rawr serve` on a host, running or not. Dropping it removes all traces.
#[derive(Debug)]
pub struct Daemon {
    host: Rc<Netns>,
    name: String,
    instance: String,
    serve: Serve,
    directory: PathBuf,
    running: RefCell<Option<(Process, PathBuf)>>,
}

impl Daemon {
    /// Starts `rawr serve` and waits until it answers.
    pub fn start(host: Rc<Netns>, name: &str, serve: Serve, directory: &Path) -> Result<Self> {
        let directory = directory.join(name);
        fs::create_dir_all(&directory)?;
        // The namespace's name begins with a prefix of its own and holds the process id.
        let instance = host.name().to_owned();
        let daemon =
            Self { host, name: name.to_owned(), instance, serve, directory, running: None.into() };
        fs::write(daemon.config(), daemon.configuration())?;
        daemon.launch(&binary("rawr")?)?;
        Ok(daemon)
    }

    /// Its name in the lab: that of its host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    pub fn launch(&self, program: &Path) -> Result<()> {
        let mut command = self.host.command(program);
        let kind = if self.serve.kind == Kind::Root { "root" } else { "gateway" };
        command
            .args(["serve", "--instance", &self.instance, "--kind", kind])
            .args(["--datapath", "native", "--table-length", "131072"])
            .arg("--state-dir")
            .arg(self.directory.join("state"))
            .arg("--admin-socket")
            .arg(self.socket())
            .arg("--config")
            .arg(self.config())
            .args(["--log", self.serve.log]);
        for interface in &self.serve.interfaces {
            command.args(["--interface", interface]);
        }
        for parent in &self.serve.parents {
            command.args(["--gateway", &SocketAddr::new(*parent, PORT).to_string()]);
        }
        let process = Process::spawn(&self.name, &mut command, &self.log())?;
        *self.running.borrow_mut() = Some((process, program.to_owned()));
        eventually(&format!("the daemon on {} answers", self.name), START_LIMIT, || {
            if !self.is_running() {
                return Err(anyhow!("the daemon on {} ended while it started", self.name));
            }
            Ok(self.status().ok().map(drop))
        })
    }

    /// Ends it in an orderly way (SIGTERM); the kernel goes on forwarding.
    pub fn stop(&self) -> Result<()> {
        let (mut process, _) = self.running.take().context("the daemon does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(STOP_LIMIT).map(drop)
    }

    /// Cuts its power: the process is killed, and what it left in the kernel is removed.
    pub fn kill(&self) -> Result<()> {
        let (mut process, _) = self.running.take().context("the daemon does not run")?;
        process.kill()?;
        self.detach()
    }

    /// Kills the process alone; the kernel goes on forwarding.
    pub fn crash(&self) -> Result<()> {
        let (mut process, _) = self.running.take().context("the daemon does not run")?;
        Ok(process.kill()?)
    }

    pub fn is_running(&self) -> bool {
        self.running.borrow_mut().as_mut().is_some_and(|(process, _)| process.is_running())
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.borrow().as_ref().map(|(process, _)| process.id())
    }

    /// Datagrams forwarded. Those of the last [`COUNTERS_SETTLE`] may not be counted yet, and a
    /// restart may begin anew.
    pub fn traffic(&self) -> Result<Traffic> {
        let status = self.status()?;
        let pairs = number(&status, "/slow_path/forwarded")?;
        // To peers of TURN clients and back. What has not happened is not listed.
        let relayed = ["/control/relayed_to_peer", "/control/relayed_to_client"]
            .map(|path| status.pointer(path).and_then(Value::as_u64).unwrap_or(0));
        Ok(Traffic {
            kernel: number(&status, "/kernel/packets")?,
            userspace: pairs + relayed.iter().sum::<u64>(),
        })
    }

    /// Sessions that it holds, paired or waiting.
    pub fn sessions(&self) -> Result<u64> {
        number(&self.status()?, "/sessions/total")
    }

    /// Its own id in hop lists: 16 hexadecimal digits.
    pub fn id(&self) -> Result<String> {
        let status = self.status()?;
        let id = status.pointer("/id").and_then(Value::as_str).map(str::to_owned);
        id.with_context(|| format!("no server id in {status}"))
    }

    /// The answer of `rawr status --json`.
    pub fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    /// The answer of `rawr sessions --json` or `rawr flows --json`.
    pub fn listed(&self, what: &str) -> Result<Vec<Value>> {
        match self.ask(what)? {
            Value::Array(items) => Ok(items),
            other => Err(anyhow!("`rawr {what} --json` printed {other}")),
        }
    }

    /// Memory of its process, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let pid = self.pid().context("the daemon does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        kilobytes.map(|count: u64| count * 1024).context("/proc does not tell the memory in use")
    }

    /// All that may explain a failure.
    pub fn describe(&self) -> String {
        let status = |what| self.ask(what).map_or_else(|e| format!("({e:#})"), |v| v.to_string());
        let log = tail(&self.name, &self.log(), 40);
        if !self.is_running() {
            return format!("{log}(not running)\n");
        }
        let mut flows = status("flows");
        flows.truncate(4000);
        format!("{log}status: {}\nflows: {flows}\n", status("status"))
    }

    fn ask(&self, what: &str) -> Result<Value> {
        let running = self.running.borrow();
        let (_, program) = running.as_ref().context("the daemon does not run")?;
        let mut command = Command::new(program);
        command.args([what, "--json", "--socket"]).arg(self.socket());
        let output = checked(&mut command)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`rawr {what} --json` printed no JSON"))
    }

    fn detach(&self) -> Result<()> {
        let mut command = self.host.command(binary("rawr")?);
        checked(command.args(["detach", "--instance", &self.instance])).map(drop)
    }

    /// Everybody is trusted: who may use a server is not what scenarios are about, but for the one
    /// that says so.
    fn configuration(&self) -> String {
        format!("trusted = [\"0.0.0.0/0\", \"::/0\"]\n{}", self.serve.config)
    }

    fn config(&self) -> PathBuf {
        self.directory.join("rawr.toml")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.running.take();
        if self.detach().is_err() {
            // At least the pins must not outlive the test.
            let _ = fs::remove_dir_all(Path::new(PINS).join(&self.instance));
        }
    }
}

/// Removes the pins of test processes that are no more.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(PINS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if crate::netns::is_orphaned(&name) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The number at `path` in a document.
fn number(document: &Value, path: &str) -> Result<u64> {
    let number = document.pointer(path).and_then(Value::as_u64);
    number.with_context(|| format!("no number {path} in {document}"))
}

#[cfg(test)]
mod tests {
    use super::Traffic;

    #[test]
    fn the_share_is_of_what_was_added() {
        let (earlier, later) =
            (Traffic { kernel: 10, userspace: 10 }, Traffic { kernel: 109, userspace: 11 });
        assert_eq!(later.since(earlier), Traffic { kernel: 99, userspace: 1 });
        assert!((later.since(earlier).kernel_share() - 0.99).abs() < 1e-9);
        assert!(Traffic::default().kernel_share() < 1e-9);
    }
}
