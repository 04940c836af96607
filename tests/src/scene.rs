//! A lab with daemons and sessions in it, and what a scenario needs around it: one at a time, the
//! machine's privileges, and an account of everything when it fails.

use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngCore;

use crate::lab::Lab;
use crate::peer::{Join, Peer};
use crate::privilege::can_make_namespaces;
use crate::rawr::{self, COUNTERS_SETTLE, Daemon, Serve, Traffic};
use crate::stream::{Reports, Settings, Stream};

/// Scenarios measure time, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const READY_LIMIT: Duration = Duration::from_secs(10);
/// Local ports of the first session on a host; each further one takes the next two.
const FIRST_PORT: u16 = 20_000;

/// Runs one scenario in a lab of its own.
///
/// # Panics
/// If it fails, after printing what its daemons, peers and routers have to say.
pub fn scenario(name: &str, body: impl FnOnce(&mut Scene) -> Result<()>) {
    if !can_make_namespaces(name) {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scene = match Scene::new("s") {
        Ok(scene) => scene,
        Err(error) => panic!("{name}: no lab: {error:#}"),
    };
    if let Err(error) = body(&mut scene) {
        eprintln!("{}", scene.describe());
        panic!("{name}: {error:#}");
    }
}

/// A lab in use. Its parts are dropped in the order in which they stand here.
#[derive(Debug)]
pub struct Scene {
    sessions: Vec<Session>,
    daemons: Vec<Rc<Daemon>>,
    pub lab: Lab,
    started: u16,
}

impl Scene {
    pub fn new(label: &str) -> Result<Self> {
        rawr::sweep();
        let lab = Lab::new(label)?;
        Ok(Self { sessions: Vec::new(), daemons: Vec::new(), lab, started: 0 })
    }

    /// Starts a daemon on a host.
    pub fn serve(&mut self, host: &str, serve: Serve) -> Result<Rc<Daemon>> {
        let namespace = self.lab.at(host)?;
        let daemon = Daemon::start(namespace, host, serve, self.lab.directory());
        let daemon = daemon.with_context(|| {
            let log = self.lab.directory().join(host).join("log");
            crate::process::tail(host, &log, 20)
        })?;
        let daemon = Rc::new(daemon);
        self.daemons.push(Rc::clone(&daemon));
        Ok(daemon)
    }

    /// Starts both peers of a new session and waits until data can flow.
    pub fn session(&mut self, a: &Join, b: &Join) -> Result<Session> {
        let secret = random_secret();
        let start = |join: &Join, role, first| {
            let host = self.lab.at(&join.host)?;
            let ports = [first, first + 1];
            Peer::start(host, join, role, &secret, ports, self.lab.directory()).map(Rc::new)
        };
        let first = FIRST_PORT + 4 * self.started;
        let session = Session {
            a: start(a, "a", first)?,
            b: start(b, "b", first + 2)?,
            secret: secret.clone(),
        };
        self.started += 1;
        self.sessions.push(session.clone());
        session.connected()?;
        Ok(session)
    }

    /// Ends a session in an orderly way.
    pub fn leave(&mut self, session: Session) -> Result<()> {
        self.sessions.retain(|each| each.secret != session.secret);
        for peer in [session.a, session.b] {
            Rc::into_inner(peer).context("the peer is still in use")?.leave()?;
        }
        Ok(())
    }

    /// Starts the application on both sides of a session.
    pub fn stream(&self, session: &Session, settings: Settings) -> Result<Stream> {
        let ends = [session.a.endpoint(), session.b.endpoint()];
        Stream::start(ends, settings, self.lab.directory())
    }

    /// Runs the application for a while; returns its figures, and what each of `servers` forwarded
    /// meanwhile.
    pub fn carry(
        &self,
        session: &Session,
        settings: Settings,
        duration: Duration,
        servers: &[&Daemon],
    ) -> Result<(Reports, Vec<Traffic>)> {
        let counts = || servers.iter().map(|server| server.traffic()).collect::<Result<Vec<_>>>();
        std::thread::sleep(COUNTERS_SETTLE);
        let before = counts()?;
        let stream = self.stream(session, settings)?;
        std::thread::sleep(duration);
        let reports = stream.stop()?;
        std::thread::sleep(COUNTERS_SETTLE);
        let after = counts()?;
        let added = after.iter().zip(before).map(|(after, before)| after.since(before));
        Ok((reports, added.collect()))
    }

    /// Datagrams refused for their checksum, on all hosts.
    pub fn checksum_errors(&self) -> Result<u64> {
        self.lab.all().map(|(_, host)| host.checksum_errors()).sum()
    }

    /// All that may explain a failure.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for daemon in &self.daemons {
            text.push_str(&daemon.describe());
        }
        for session in self.sessions.iter().rev().take(1) {
            for peer in [&session.a, &session.b] {
                text.push_str(&peer.describe());
            }
        }
        for (name, host) in self.lab.all() {
            let facts = host.sh("ip -br addr; ip neigh; nft list ruleset | grep counter || true");
            // Writing to a string cannot fail.
            let _ = writeln!(text, "--- host {name}\n{}", facts.unwrap_or_else(|e| e.to_string()));
        }
        text
    }
}

/// A session with both its peers running.
#[derive(Clone, Debug)]
pub struct Session {
    pub a: Rc<Peer>,
    pub b: Rc<Peer>,
    /// 64 hexadecimal digits that both peers were given.
    pub secret: String,
}

impl Session {
    /// Waits until both sides are ready. The time that the later of the two peers took: the other
    /// waited for its process to be started, too.
    pub fn connected(&self) -> Result<Duration> {
        let (a, b) = (self.a.ready(READY_LIMIT)?, self.b.ready(READY_LIMIT)?);
        Ok(a.min(b))
    }
}

/// A secret for a new session.
pub fn random_secret() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
