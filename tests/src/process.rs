//! Processes that a lab runs in its namespaces, and the files they write.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(5);

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes to standard error is appended to the file `log`.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let stderr = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("{name}: {:?} cannot be started", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output; there is one taker.
    pub fn take_stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().with_context(|| format!("{}: output already taken", self.name))
    }

    pub fn stdin(&mut self) -> Result<&mut ChildStdin> {
        self.child.stdin.as_mut().with_context(|| format!("{}: input already closed", self.name))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{}: cannot be sent {signal}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} has ended", self.name);
        eventually(&what, limit, || Ok(self.child.try_wait()?)).with_context(|| self.log_tail(20))
    }

    /// Ends it at once, as a power loss would.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// The last lines it logged, under a title.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.name, &self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// The last lines of a file, under a title.
pub fn tail(title: &str, file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|error| format!("({error})"));
    let all: Vec<_> = text.lines().collect();
    let shown = &all[all.len().saturating_sub(lines)..];
    format!(
        "--- log of {title}, last {} of {} lines\n{}\n",
        shown.len(),
        all.len(),
        shown.join("\n")
    )
}

/// The environment variable by whose value limits of waits are multiplied and rates of streams divided,
/// for machines as slow as an emulated one.
pub const PATIENCE: &str = "RAWR_TEST_PATIENCE";

/// Calls `attempt` until it returns something; an error of its own ends the wait. See [`PATIENCE`].
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let limit = limit * patience();
    let end = now() + limit;
    loop {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if now() >= end {
            bail!("it did not come true within {limit:?} that {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// The factor of [`PATIENCE`]; 1 where it is not set.
pub fn patience() -> u32 {
    let value = std::env::var(PATIENCE).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(1).max(1)
}

/// The clock of everything that waits for processes.
#[expect(clippy::disallowed_methods, reason = "a lab waits for real processes")]
pub fn now() -> Instant {
    Instant::now()
}

/// The path of a program of this workspace, built with the same profile as the running one. The
/// environment variable `RAWR_BIN` names another `rawr`.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("RAWR_BIN").filter(|_| name == "rawr") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().context("the running program is in no folder")?;
    // Test executables are one level further down.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(name);
    if !path.exists() {
        bail!(
            "{} is missing: build it with `cargo build --workspace --bins` (or run `cargo xtask test`)",
            path.display()
        );
    }
    Ok(path)
}
