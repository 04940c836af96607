//! A TURN server in memory: what an authenticated request costs, with few allocations and with many.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_proto::{Credentials, ServerId};
use rawr_tests::process::now;
use rawr_userspace::control::{self, Command, Kind, Now, Server, ServerConfig};

use super::values::Value;
use crate::turn::{Client, PASSWORD, USER, error_code, succeeded};

/// Requests of each kind, ready before the time is taken.
const REQUESTS: u32 = 50_000;
/// The least of so many passes over them counts, as with the program's cost.
const PASSES: usize = 3;
/// From one request's client to the next one's: in no order that caches could like.
const STRIDE: usize = 7_919 * 31;
const SEED: [u8; 32] = [3; 32];
const MISMATCH: u16 = 437;

/// What is asked for.
#[derive(Clone, Copy)]
enum Request {
    Refresh,
    Permission,
    Channel,
    /// Where there is an allocation already: refused, but authenticated first.
    Allocate,
}

impl Request {
    const ALL: [Self; 4] = [Self::Refresh, Self::Permission, Self::Channel, Self::Allocate];

    fn name(self) -> &'static str {
        match self {
            Self::Refresh => "Refresh",
            Self::Permission => "CreatePermission",
            Self::Channel => "ChannelBind",
            Self::Allocate => "Allocate again (437)",
        }
    }

    fn encode(self, client: &Client) -> Result<Vec<u8>> {
        match self {
            Self::Refresh => client.refresh(),
            Self::Permission => client.permit(peer()),
            Self::Channel => client.bind(peer()),
            Self::Allocate => client.allocate(),
        }
    }

    fn check(self, answer: &[u8]) -> Result<()> {
        match self {
            Self::Allocate => {
                let error = error_code(answer);
                ensure!(error == Some(MISMATCH), "another Allocate got {error:?}");
                Ok(())
            }
            Self::Refresh | Self::Permission | Self::Channel => succeeded(answer),
        }
    }
}

/// All values with so many allocations, each with a permission and a channel.
pub(super) fn measure(allocations: u32) -> Result<Vec<Value>> {
    let mut crowd = Crowd::new()?;
    for number in 0..allocations {
        crowd.join(number).with_context(|| format!("client {number}"))?;
    }
    let held = crowd.server.allocation_count();
    ensure!(held == allocations as usize, "{held} allocations of {allocations}");
    let mut values = Vec::new();
    for request in Request::ALL {
        let seconds = crowd.time(request).context(request.name())?;
        let each = seconds / f64::from(REQUESTS);
        let labels = [("allocations", &*allocations.to_string()), ("request", request.name())];
        let mut add = |table: &str, unit, value| {
            values.push(Value::new(table, &labels, unit, value));
        };
        add("authenticated TURN requests per second", "requests/s", 1.0 / each);
        add("cost of an authenticated TURN request", "ns", 1e9 * each);
    }
    Ok(values)
}

fn peer() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 9_000))
}

fn from(number: u32) -> control::Client {
    let [_, a, b, c] = number.to_be_bytes();
    let local = SocketAddr::from(([198, 51, 100, 1], 3478));
    control::Client::udp(local, SocketAddr::from(([11, a, b, c], 5_000)))
}

/// A server with its clients. Time stands still.
struct Crowd {
    server: Server,
    now: Now,
    clients: Vec<Client>,
    ports: u32,
}

impl Crowd {
    /// A server with one user, who may have all that he wants.
    fn new() -> Result<Self> {
        let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
        let (username, password) = (USER.to_owned(), PASSWORD.to_owned());
        config.users.push(Credentials { username, password });
        config.limits.requests_per_second = u32::MAX;
        config.limits.unverified_per_second = u32::MAX;
        config.turn.limits.allocations_per_user = u32::MAX;
        config.turn.relay_addresses = vec![from(0).local.ip()];
        config.peers.allow = vec!["203.0.113.0/24".parse()?];
        let now = Now { monotonic: now(), unix: Duration::from_secs(1_900_000_000) };
        let server = Server::new(config, SEED, now);
        Ok(Self { server, now, clients: Vec::new(), ports: 0 })
    }

    /// A client more, with an allocation and a channel.
    fn join(&mut self, number: u32) -> Result<()> {
        let mut client = Client::new();
        let answer = self.turn(number, &client.first()).context("no challenge")?;
        client.challenged(&answer)?;
        for request in [client.allocate()?, client.bind(peer())?] {
            succeeded(&self.turn(number, &request).context("no answer")?)?;
        }
        self.clients.push(client);
        Ok(())
    }

    /// How many seconds [`REQUESTS`] take, at best.
    fn time(&mut self, request: Request) -> Result<f64> {
        let count = self.clients.len();
        let numbers = (0..REQUESTS as usize).map(|turn| turn * STRIDE % count);
        let requests = numbers
            .map(|number| Ok((number as u32, request.encode(&self.clients[number])?)))
            .collect::<Result<Vec<_>>>()?;
        let mut best = f64::INFINITY;
        for _ in 0..PASSES {
            let begin = now();
            for (number, bytes) in &requests {
                std::hint::black_box(self.turn(*number, bytes));
            }
            best = best.min(begin.elapsed().as_secs_f64());
        }
        // Outside of the time that is taken, and for one of each kind: all are alike.
        let (number, bytes) = &requests[0];
        request.check(&self.turn(*number, bytes).context("no answer")?)?;
        Ok(best)
    }

    /// One message, and all that follows from it. What was sent last.
    fn turn(&mut self, number: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        self.server.handle_control(self.now, &from(number), bytes);
        let mut sent = None;
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { bytes, .. } => sent = Some(bytes),
                Command::OpenPort { id, .. } => {
                    self.ports += 1;
                    let [_, a, b, c] = (self.ports / 8_000).to_be_bytes();
                    let port = 50_000 + (self.ports % 8_000) as u16;
                    let local = SocketAddr::from(([10, a, b, c], port));
                    self.server.port_opened(self.now, id, Ok(local));
                }
                other => drop(std::hint::black_box(other)),
            }
        }
        sent
    }
}
