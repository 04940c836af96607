//! The relays of streams: rawr's daemon and coturn, each on one core.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::process::{Process, eventually};
use rawr_tests::rawr::{Daemon, Serve};
use rustls::RootCertStore;

use super::client::Over;
use crate::affinity::on_cpu;
use crate::netns::lab::{FAR, Lab, PROCESS_CPU};
use crate::netns::traffic::Traffic;
use crate::turn::{PASSWORD, REALM, USER};

/// What the servers' certificate is for.
pub(super) const NAME: &str = "turn.example.net";
/// Where clients connect to, and where relayed transport addresses are.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const START_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relay {
    Rawr,
    Coturn,
}

impl Relay {
    pub(super) const ALL: [Self; 2] = [Self::Rawr, Self::Coturn];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rawr => "rawr",
            Self::Coturn => "coturn",
        }
    }
}

/// A relay that runs in a lab. Its parts are dropped in the order in which they stand here.
pub(super) struct Server {
    pub(super) relay: Relay,
    /// Its certificate.
    pub(super) trusted: RootCertStore,
    /// Dropping it ends it.
    _running: Box<dyn Any>,
    pub(super) lab: Lab,
    _listening: [OwnedFd; 2],
    directory: PathBuf,
}

impl Server {
    pub(super) fn start(traffic: &mut Traffic, relay: Relay) -> Result<Self> {
        let lab = Lab::new(&format!("streams-{}", relay.name()))?;
        let listening = traffic.listen(&lab)?;
        lab.poll_without_program()?;
        let directory = std::env::temp_dir().join(lab.relay.name());
        std::fs::create_dir_all(&directory)?;
        let issued = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        std::fs::write(certificate(&directory), issued.cert.pem())?;
        std::fs::write(key(&directory), issued.signing_key.serialize_pem())?;
        let mut trusted = RootCertStore::empty();
        trusted.add(issued.cert.der().clone())?;
        let running = on_cpu(PROCESS_CPU, || -> Result<Box<dyn Any>> {
            match relay {
                Relay::Rawr => Ok(Box::new(rawr(&lab, &directory)?)),
                Relay::Coturn => Ok(Box::new(coturn(&lab, &directory)?)),
            }
        })?;
        Ok(Self { relay, trusted, _running: running, lab, _listening: listening, directory })
    }

    pub(super) fn at(&self, over: Over) -> SocketAddr {
        SocketAddr::V4(address(over))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn address(over: Over) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER, if over == Over::Tcp { 3478 } else { 5349 })
}

fn certificate(directory: &Path) -> PathBuf {
    directory.join("chain.pem")
}

fn key(directory: &Path) -> PathBuf {
    directory.join("key.pem")
}

fn rawr(lab: &Lab, directory: &Path) -> Result<Daemon> {
    let config = format!(
        "[[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
         [turn]\nlisten_tcp = [\"{}\"]\nlisten_tls = [\"{}\"]\n\
         certificate = \"{}\"\nkey = \"{}\"\nallow_peers = [\"10.19.0.0/16\"]\n\
         [[turn.relays]]\naddress = \"{RELAY}\"\n",
        address(Over::Tcp),
        address(Over::Tls),
        certificate(directory).display(),
        key(directory).display(),
    );
    // The clients' interface has no program: with one, a veth takes TCP's long frames apart.
    let serve = Serve::root(&[FAR]).configured(&config).terse();
    Daemon::start(Rc::clone(&lab.relay), "rawr", serve, directory)
}

fn coturn(lab: &Lab, directory: &Path) -> Result<Process> {
    let mut command = lab.relay.command("turnserver");
    command
        .args(["-n", "--lt-cred-mech", "--realm", REALM, "--user", &format!("{USER}:{PASSWORD}")])
        .args(["--no-cli", "--no-udp", "--no-dtls", "--relay-threads", "1", "--simple-log"])
        .args(["--listening-ip", &SERVER.to_string(), "--relay-ip", &RELAY.to_string()])
        .arg("--cert")
        .arg(certificate(directory))
        .arg("--pkey")
        .arg(key(directory))
        .arg("--log-file")
        .arg(directory.join("turn.log"))
        .arg("--pidfile")
        .arg(directory.join("pid"));
    let mut server = Process::spawn("coturn", &mut command, &directory.join("log"))
        .context("is coturn installed? `apt-get install coturn`")?;
    eventually("coturn listens", START_LIMIT, || {
        ensure!(server.is_running(), "coturn ended: {}", server.log_tail(20));
        let sockets = lab.relay.sh("ss --tcp --listening --numeric --no-header")?;
        let listens = |over| sockets.contains(&address(over).to_string());
        Ok(Over::ALL.into_iter().all(listens).then_some(()))
    })?;
    Ok(server)
}
