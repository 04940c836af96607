//! Allocations over UDP: the daemon beside coturn, each on one core, with the clients on another.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::lab::Family;
use rawr_tests::netns::Netns;
use rawr_tests::process::{Process, eventually, now};
use rawr_tests::rawr::{PORT, Serve};
use rawr_tests::scene::Scene;
use rawr_tests::topology::INTERNET;
use rawr_userspace::dataplane::slow_path::raise_open_files;

use super::memory::Memory;
use super::values::Value;
use crate::affinity::{on_cpu, pin_to};
use crate::turn::{Client, PASSWORD, REALM, USER, succeeded};

/// The CPUs of the clients and of the server.
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
/// Allocations that are held while the server's memory is looked at.
const HELD: usize = 4_000;
/// The first client's port; the others' follow.
const FIRST_PORT: u16 = 20_000;
/// Clients that come and go, so many at once.
const CLIENTS: usize = 3_200;
const AT_ONCE: usize = 32;
/// Files that this process needs besides the clients' sockets.
const OTHER_FILES: usize = 1_000;
const START_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const TRIES: usize = 5;
/// Numbers of server and client in their subnet.
const SERVER: u8 = 1;
const CLIENT: u8 = 2;

/// Who is measured.
#[derive(Clone, Copy)]
enum Relay {
    Rawr,
    Coturn,
}

/// A round: both relays, each started anew, so that what one round leaves behind is not the next one's.
pub(super) fn measure() -> Result<Vec<Value>> {
    raise_open_files((HELD + OTHER_FILES) as u64)?;
    let mut values = Vec::new();
    for relay in [Relay::Rawr, Relay::Coturn] {
        values.extend(relay.measure().with_context(|| format!("{} over UDP", relay.name()))?);
    }
    Ok(values)
}

impl Relay {
    fn name(self) -> &'static str {
        match self {
            Self::Rawr => "rawr",
            Self::Coturn => "coturn",
        }
    }

    fn measure(self) -> Result<Vec<Value>> {
        let mut scene = Scene::new(&format!("turn-{}", self.name()))?;
        scene.lab.hosts(&["server", "client"])?;
        scene.lab.wire(&INTERNET, ("server", "wan", SERVER), ("client", "eth0", CLIENT))?;
        // Both stay until the end of the function.
        let (pid, _server) = on_cpu(SERVER_CPU, || match self {
            Self::Rawr => serve(&mut scene).map(|pid| (pid, None)),
            Self::Coturn => {
                let process = coturn(&*scene.lab.at("server")?, scene.lab.directory())?;
                Ok((process.id(), Some(process)))
            }
        })?;
        let client = scene.lab.at("client")?;
        let measured = client.run(|| -> Result<_> {
            pin_to(CLIENT_CPU)?;
            let idle = Memory::of(pid)?;
            let mut held = Vec::new();
            for first in (0..HELD).step_by(AT_ONCE) {
                let mut batch = Batch::new(first)?;
                batch.allocate()?;
                held.push(batch);
            }
            let each = Memory::of(pid)?.each_since(idle, HELD as u32);
            for batch in &mut held {
                batch.ask(Client::release)?;
            }
            Ok((each, lifecycles()?))
        })?;
        let (each, rate) = measured.inspect_err(|_| eprintln!("{}", scene.describe()))?;
        let labels = [("contender", self.name())];
        Ok(vec![
            Value::new("TURN requests over UDP per second", &labels, "requests/s", rate),
            Value::new("resident memory per idle allocation", &labels, "B", each),
        ])
    }
}

/// Requests per second of clients that allocate, permit, bind a channel and release, each after a
/// challenge: five requests.
fn lifecycles() -> Result<f64> {
    let mut spent = Duration::ZERO;
    for first in (HELD..HELD + CLIENTS).step_by(AT_ONCE) {
        let mut batch = Batch::new(first)?;
        let begin = now();
        batch.allocate()?;
        batch.ask(|client| client.permit(peer()))?;
        batch.ask(|client| client.bind(peer()))?;
        batch.ask(Client::release)?;
        spent += begin.elapsed();
    }
    Ok(5.0 * CLIENTS as f64 / spent.as_secs_f64())
}

fn peer() -> SocketAddr {
    INTERNET.socket(Family::Ipv4, CLIENT, 9_000)
}

/// Clients that ask at the same time.
struct Batch {
    clients: Vec<(Client, UdpSocket)>,
    buffer: Vec<u8>,
}

impl Batch {
    /// The clients from the `first` on. Each has a port that none had before: coturn goes on knowing a
    /// 5-tuple for a while.
    fn new(first: usize) -> Result<Self> {
        let client = |number| -> Result<_> {
            let port = FIRST_PORT + number as u16;
            let socket = UdpSocket::bind(INTERNET.socket(Family::Ipv4, CLIENT, port))?;
            socket.connect(INTERNET.socket(Family::Ipv4, SERVER, PORT))?;
            socket.set_read_timeout(Some(ANSWER_LIMIT))?;
            Ok((Client::new(), socket))
        };
        let clients = (first..first + AT_ONCE).map(client).collect::<Result<_>>()?;
        Ok(Self { clients, buffer: vec![0; 1500] })
    }

    fn allocate(&mut self) -> Result<()> {
        self.exchange(&|client| Ok(client.first()), &mut Client::challenged)?;
        self.ask(Client::allocate)
    }

    /// All ask, and all get what they want.
    fn ask(&mut self, request: impl Fn(&Client) -> Result<Vec<u8>>) -> Result<()> {
        self.exchange(&request, &mut |_, answer| succeeded(answer))
    }

    fn exchange(
        &mut self,
        request: &dyn Fn(&Client) -> Result<Vec<u8>>,
        answered: &mut dyn FnMut(&mut Client, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut sent = Vec::new();
        for (client, socket) in &self.clients {
            let bytes = request(client)?;
            socket.send(&bytes)?;
            sent.push(bytes);
        }
        for ((client, socket), bytes) in self.clients.iter_mut().zip(&sent) {
            let mut tries = 1;
            let length = loop {
                if let Ok(length) = socket.recv(&mut self.buffer) {
                    break length;
                }
                ensure!(tries < TRIES, "the server does not answer");
                tries += 1;
                socket.send(bytes)?;
            };
            answered(client, &self.buffer[..length])?;
        }
        Ok(())
    }
}

/// The daemon's process.
fn serve(scene: &mut Scene) -> Result<u32> {
    let config = format!(
        "[limits]\nrequests_per_second = 4000000\nunverified_per_second = 4000000\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
         [turn]\nallow_peers = [\"{}\"]\n\
         [turn.limits]\nallocations_per_user = 100000\n",
        INTERNET.cidr(Family::Ipv4)
    );
    let serve = Serve::root(&["wan"]).configured(&config).terse();
    scene.serve("server", serve)?.pid().context("the daemon does not run")
}

/// coturn with one relay thread.
fn coturn(host: &Netns, directory: &Path) -> Result<Process> {
    let address = INTERNET.address(Family::Ipv4, SERVER).to_string();
    let mut command = host.command("turnserver");
    command
        .args(["-n", "--lt-cred-mech", "--realm", REALM, "--user", &format!("{USER}:{PASSWORD}")])
        .args(["--no-cli", "--no-tcp", "--no-tls", "--no-dtls", "--relay-threads", "1"])
        .args(["--listening-ip", &address, "--relay-ip", &address, "--simple-log", "--log-file"])
        .arg(directory.join("turn.log"))
        .arg("--pidfile")
        .arg(directory.join("pid"));
    let mut server = Process::spawn("coturn", &mut command, &directory.join("log"))
        .context("is coturn installed? `apt-get install coturn`")?;
    let address = INTERNET.socket(Family::Ipv4, SERVER, PORT).to_string();
    eventually("coturn listens", START_LIMIT, || {
        ensure!(server.is_running(), "coturn ended: {}", server.log_tail(20));
        let sockets = host.sh("ss --udp --listening --numeric --no-header")?;
        Ok(sockets.contains(&address).then_some(()))
    })?;
    Ok(server)
}
