//! The application's processes as a scenario drives them: a stream in both directions at once.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ChildStdout;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::app::{Report, Shape};
use crate::netns::Netns;
use crate::process::{Process, binary, eventually, patience};

/// How long what is on its way may take to arrive after the senders have stopped.
const LINGER: Duration = Duration::from_millis(300);

/// What both ends send.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub pps: u32,
    pub shape: Shape,
    /// Payload sizes in bytes, used in turn.
    pub sizes: &'static [usize],
}

impl Default for Settings {
    fn default() -> Self {
        Self { pps: 1000, shape: Shape::Plain, sizes: &[64, 160, 200, 1200] }
    }
}

/// Where one end runs, and the local ports that carry its stream.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub host: &'a Netns,
    /// Where the application receives.
    pub bind: SocketAddr,
    /// Where it sends to.
    pub to: SocketAddr,
}

/// A stream in both directions. Dropping it ends it.
#[derive(Debug)]
pub struct Stream {
    ends: [App; 2],
}

impl Stream {
    /// Starts both ends, and sending once both listen.
    pub fn start(ends: [Endpoint<'_>; 2], settings: Settings, logs: &Path) -> Result<Self> {
        let [left, right] = ends;
        let mut stream = Self {
            ends: [App::start(1, left, settings, logs)?, App::start(2, right, settings, logs)?],
        };
        for end in &mut stream.ends {
            end.command("go")?;
        }
        Ok(stream)
    }

    /// What both ends have seen so far.
    pub fn reports(&mut self) -> Result<Reports> {
        let [left, right] = &mut self.ends;
        Ok(Reports([left.report()?, right.report()?]))
    }

    /// Waits until both ends have received `more` datagrams than now.
    pub fn flows(&mut self, more: u64, limit: Duration) -> Result<()> {
        let before = self.reports()?;
        eventually("the stream flows in both directions", limit, || {
            let now = self.reports()?;
            let enough = (0..2).all(|end| now.0[end].received >= before.0[end].received + more);
            Ok(enough.then_some(()))
        })
    }

    /// Stops both ends, waits for what is on its way, and returns the final figures.
    pub fn stop(mut self) -> Result<Reports> {
        for end in &mut self.ends {
            end.command("stop")?;
        }
        std::thread::sleep(LINGER * patience());
        self.reports()
    }
}

/// The figures of both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports(pub [Report; 2]);

impl Reports {
    pub fn sent(&self) -> u64 {
        self.0.iter().map(|end| end.sent).sum()
    }

    pub fn received(&self) -> u64 {
        self.0.iter().map(|end| end.received).sum()
    }

    /// Sent by one end and not received by the other.
    pub fn lost(&self) -> u64 {
        self.sent().saturating_sub(self.received())
    }

    pub fn corrupted(&self) -> u64 {
        self.0.iter().map(|end| end.corrupted).sum()
    }

    pub fn duplicated(&self) -> u64 {
        self.0.iter().map(|end| end.duplicated).sum()
    }

    /// Arrived after one that was sent later.
    pub fn reordered(&self) -> u64 {
        self.0.iter().map(|end| end.reordered).sum()
    }

    /// The longest silence that either end has known.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.0.iter().map(|end| end.longest_gap_ms).max().unwrap_or(0))
    }

    /// Fails unless every datagram has arrived, once, as it was sent.
    pub fn ensure_perfect(&self) -> Result<()> {
        ensure!(self.sent() > 0, "nothing was sent: {self:?}");
        ensure!(self.lost() == 0, "{} datagrams were lost: {self:?}", self.lost());
        ensure!(self.duplicated() == 0, "datagrams arrived twice: {self:?}");
        self.ensure_intact()
    }

    /// Fails if a datagram arrived changed, or by mistake.
    pub fn ensure_intact(&self) -> Result<()> {
        ensure!(self.corrupted() == 0, "datagrams arrived changed: {self:?}");
        Ok(())
    }
}

#[derive(Debug)]
struct App {
    process: Process,
    output: BufReader<ChildStdout>,
}

impl App {
    fn start(number: u32, end: Endpoint<'_>, settings: Settings, logs: &Path) -> Result<Self> {
        let name = format!("app-{}-{}", end.host.name(), end.bind.port());
        let sizes: Vec<_> = settings.sizes.iter().map(ToString::to_string).collect();
        // A slow machine would lose in its sockets what it is too slow to read.
        let pps = (settings.pps / patience()).max(1);
        let mut command = end.host.command(binary("rawr-app")?);
        command
            .args(["--bind", &end.bind.to_string(), "--to", &end.to.to_string()])
            .args(["--pps", &pps.to_string(), "--sizes", &sizes.join(",")])
            .args(["--stream", &number.to_string()]);
        if settings.shape == Shape::Stun {
            command.arg("--stun");
        }
        let log = logs.join(format!("{name}.log"));
        let mut process = Process::spawn(&name, &mut command, &log)?;
        let output = BufReader::new(process.take_stdout()?);
        let mut app = Self { process, output };
        app.answer().context("the application did not start")?;
        Ok(app)
    }

    fn report(&mut self) -> Result<Report> {
        Ok(serde_json::from_value(self.command("report")?)?)
    }

    fn command(&mut self, command: &str) -> Result<Value> {
        writeln!(self.process.stdin()?, "{command}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| self.process.log_tail(20))
    }
}
