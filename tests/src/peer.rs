//! `rawr peer` as scenarios drive it.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ChildStdout;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::netns::Netns;
use crate::process::{Process, binary, eventually};
use crate::rawr::PORT;
use crate::stream::Endpoint;

const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// How one side of a session is run.
#[derive(Clone, Debug)]
pub struct Join {
    /// The lab's name of the host.
    pub host: String,
    pub root: IpAddr,
    /// Gateways in the order in which they are tried; none: straight to the root.
    pub gateways: Vec<IpAddr>,
    /// Whether it looks for paths without any server, too.
    pub direct: bool,
}

impl Join {
    /// A peer that knows only the root.
    pub fn root(host: &str, root: IpAddr) -> Self {
        Self { host: host.to_owned(), root, gateways: Vec::new(), direct: false }
    }

    /// A peer behind a gateway.
    pub fn gateway(host: &str, root: IpAddr, gateway: IpAddr) -> Self {
        Self { gateways: vec![gateway], ..Self::root(host, root) }
    }

    /// The same, looking for paths without any server, too.
    pub fn direct(self) -> Self {
        Self { direct: true, ..self }
    }
}

/// What carries a session's data, as a peer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// `direct`, `gateway`, `offered` or `root`; `host`, `reflexive` or `punched` for peers that look for
    /// paths without any server.
    pub kind: String,
    /// Address that data is sent to.
    pub server: Option<SocketAddr>,
}

/// A running `rawr peer`.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    host: Rc<Netns>,
    events: Arc<Mutex<Vec<Value>>>,
    application: SocketAddr,
    listen: SocketAddr,
}

impl Peer {
    /// Starts one side of the session `secret`. `ports` are two free local ports.
    pub fn start(
        host: Rc<Netns>,
        join: &Join,
        role: &str,
        secret: &str,
        ports: [u16; 2],
        logs: &Path,
    ) -> Result<Self> {
        let [listen, application] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let name = format!("peer-{}-{}", join.host, listen.port());
        let mut command = host.command(binary("rawr")?);
        command
            .args(["peer", "--session", secret, "--role", role, "--status-json"])
            .args(["--root", &SocketAddr::new(join.root, PORT).to_string()])
            .args(["--listen", &listen.to_string(), "--forward", &application.to_string()])
            .env("RAWR_LOG", "debug");
        for gateway in &join.gateways {
            command.args(["--gateway", &SocketAddr::new(*gateway, PORT).to_string()]);
        }
        if join.gateways.is_empty() {
            command.arg("--no-gateway");
        }
        if join.direct {
            command.arg("--direct");
        }
        let mut process = Process::spawn(&name, &mut command, &logs.join(format!("{name}.log")))?;
        let events = Arc::default();
        collect(process.take_stdout()?, Arc::clone(&events));
        Ok(Self { process, host, events, application, listen })
    }

    /// Waits until data can flow, and returns the time from its first request to then.
    pub fn ready(&self, limit: Duration) -> Result<Duration> {
        let event = eventually("a peer is ready", limit, || Ok(self.last("ready")))?;
        let milliseconds = event.get("connect_ms").and_then(Value::as_f64);
        let milliseconds = milliseconds.with_context(|| format!("no connect_ms in {event}"))?;
        Ok(Duration::from_secs_f64(milliseconds / 1000.0))
    }

    /// What carries its data now.
    pub fn via(&self) -> Result<Via> {
        let events = self.events();
        let path =
            events.iter().rev().find_map(|event| event.get("path").filter(|p| p.is_object()));
        let path = path.with_context(|| format!("no path in {events:?}"))?;
        let kind = path.get("kind").and_then(Value::as_str);
        let server = path.get("server").and_then(Value::as_str);
        Ok(Via {
            kind: kind.with_context(|| format!("no kind in {path}"))?.to_owned(),
            server: server.map(str::parse).transpose()?,
        })
    }

    /// Waits until its data goes by a path of one of these kinds.
    pub fn goes_by(&self, kinds: &[&str], limit: Duration) -> Result<Via> {
        eventually(&format!("the path is {}", kinds.join(" or ")), limit, || {
            Ok(self.via().ok().filter(|via| kinds.contains(&via.kind.as_str())))
        })
        .with_context(|| format!("events: {:?}", self.events()))
    }

    /// Everything that it has said.
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its application runs.
    pub fn endpoint(&self) -> Endpoint<'_> {
        Endpoint { host: &self.host, bind: self.application, to: self.listen }
    }

    /// Leaves the session in an orderly way.
    pub fn leave(mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(LEAVE_LIMIT)?;
        ensure!(status.success(), "a peer left with {status}\n{}", self.process.log_tail(20));
        Ok(())
    }

    /// All that may explain a failure.
    pub fn describe(&self) -> String {
        let events: Vec<_> = self.events().iter().map(ToString::to_string).collect();
        format!("{}events:\n{}\n", self.process.log_tail(25), events.join("\n"))
    }

    fn last(&self, name: &str) -> Option<Value> {
        let events = self.events();
        events.into_iter().rev().find(|event| event.get("event").is_some_and(|each| each == name))
    }
}

/// Keeps each line of JSON that the peer prints.
fn collect(output: ChildStdout, events: Arc<Mutex<Vec<Value>>>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Ok(event) = serde_json::from_str(&line) {
                events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        }
    });
}
