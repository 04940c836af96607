//! Sessions by the hundred thousand at one server in memory, message by message, and what follows
//! from its decisions. Only the work of the server and of its data plane is timed: making and reading
//! the clients' messages is not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rawr_proto::{
    Attributes, IntegrityKey, LegState, MIN_FIRST_REQUEST, Message, Method, Role, ServerId,
    SessionSecret, TransactionId, WireKey, decode,
};
use rawr_userspace::control::{Client, Command, Kind, Now, On, Server, ServerConfig};

use crate::process::now;

/// Data ports of one address, from the first on.
const PORTS: u32 = 60_000;
const FIRST_PORT: u32 = 2_000;
/// Longer than a leg lives that nobody refreshes.
const LIFETIME: Duration = Duration::from_secs(130);
const SEED: [u8; 32] = [3; 32];

/// What obeys those of a server's commands that are about flows.
pub trait DataPlane {
    /// Notes what is wanted. Commands about datagrams and about opening ports do not come here.
    fn obey(&mut self, command: &Command);

    /// Makes it so, if anything has changed.
    fn settle(&mut self, now: Instant);
}

/// A data plane that is not there.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl DataPlane for Nothing {
    fn obey(&mut self, _: &Command) {}

    fn settle(&mut self, _: Instant) {}
}

/// Time spent in turns of the server's loop: something comes in, then all that follows is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub total: Duration,
    /// The longest turn. Meanwhile, nobody else is served.
    pub longest: Duration,
}

/// A server with clients and a data plane. Time stands still, except where it is said to pass.
pub struct Load<D> {
    pub server: Server,
    pub plane: D,
    pub now: Now,
    spent: Spent,
    transaction: u64,
    ports: u32,
    sessions: u32,
}

impl<D: DataPlane> Load<D> {
    /// A root that trusts everybody, and sets no bounds to how many come at once.
    pub fn new(plane: D) -> Result<Self> {
        let now = Now { monotonic: now(), unix: Duration::from_secs(1_800_000_000) };
        Ok(Self::with(Server::new(config()?, SEED, now), plane, now))
    }

    /// A server that was restored at `now`. What it wants first is still to be done: [`Self::resume`].
    pub fn with(server: Server, plane: D, now: Now) -> Self {
        let spent = Spent::default();
        Self { server, plane, now, spent, transaction: 0, ports: 0, sessions: 0 }
    }

    /// Sets up `count` more sessions, one after the other, until data can flow on both legs.
    pub fn set_up(&mut self, count: u32) -> Result<Spent> {
        self.spent = Spent::default();
        for number in self.sessions..self.sessions + count {
            let mut bytes = [9; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            let secret = SessionSecret::from_bytes(bytes);
            let alone = self.leg(number, &secret, Role::A)?;
            let together = self.leg(number, &secret, Role::B)?;
            ensure!(
                (alone, together) == (LegState::Waiting, LegState::Paired),
                "the legs of session {number} are {alone:?} and {together:?}"
            );
        }
        self.sessions += count;
        Ok(self.spent)
    }

    /// Does what the server wants, in one turn.
    pub fn resume(&mut self) -> Spent {
        self.spent = Spent::default();
        self.turn(|_, _| ());
        self.spent
    }

    /// Lets so much time pass that all legs expire.
    pub fn expire(&mut self) -> Spent {
        self.spent = Spent::default();
        self.now.monotonic += LIFETIME;
        self.now.unix += LIFETIME;
        while self.server.poll_timeout().is_some_and(|(at, _)| at <= self.now.monotonic) {
            self.turn(Server::handle_timeout);
        }
        self.spent
    }

    /// Connect and Probe, each after a challenge. How far the leg has come then.
    fn leg(&mut self, number: u32, secret: &SessionSecret, role: Role) -> Result<LegState> {
        let [_, a, b, c] = number.to_be_bytes();
        let from = SocketAddr::from(([10 + role as u8, a, b, c], 5000));
        let key = secret.key();
        let integrity = IntegrityKey::session(&key);
        let first = self.message(Method::Connect, Attributes::default());
        let nonce = self.control(from, &first.encode_padded(None, MIN_FIRST_REQUEST))?.nonce;
        let connect = Attributes {
            session: Some(key.id()),
            role: Some(role),
            epoch: Some(1),
            session_key: Some(WireKey::from(&key)),
            nonce,
            ..Attributes::default()
        };
        let connect = self.message(Method::Connect, connect);
        let local = self.control(from, &connect.encode(Some(&integrity)))?.data_address;
        let local = local.context("Connect got no data address")?;

        let data = SocketAddr::new(from.ip(), 6000);
        let session = Some(key.id());
        let attributes = Attributes { session, role: Some(role), ..Attributes::default() };
        let probe = self.message(Method::Probe, attributes.clone());
        let probe = probe.encode_padded(Some(&integrity), MIN_FIRST_REQUEST);
        let nonce = self.data(local, data, &probe)?.nonce;
        let probe = self.message(Method::Probe, Attributes { nonce, ..attributes });
        let probe = probe.encode_padded(Some(&integrity), MIN_FIRST_REQUEST);
        self.data(local, data, &probe)?.leg_state.context("Probe got no answer")
    }

    fn message(&mut self, method: Method, attributes: Attributes) -> Message {
        self.transaction += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        Message::request(method, TransactionId(id), attributes)
    }

    fn control(&mut self, from: SocketAddr, bytes: &[u8]) -> Result<Attributes> {
        let to = SocketAddr::from(([198, 51, 100, 1], 3478));
        answer(self.turn(|server, now| server.handle_control(now, &Client::udp(to, from), bytes)))
    }

    fn data(&mut self, local: SocketAddr, from: SocketAddr, bytes: &[u8]) -> Result<Attributes> {
        answer(self.turn(|server, now| server.handle_data(now, local, from, bytes)))
    }

    /// One turn, as the daemon's loop does it. The datagram that was sent last.
    fn turn(&mut self, event: impl FnOnce(&mut Server, Now)) -> Option<Vec<u8>> {
        let begin = now();
        event(&mut self.server, self.now);
        let mut sent = None;
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Transmit { bytes, .. } => {
                    // Who is told of a pair sends at once.
                    self.plane.settle(self.now.monotonic);
                    sent = Some(bytes);
                }
                Command::OpenPort { id, on, .. } => {
                    let local = self.port(on);
                    self.server.port_opened(self.now, id, Ok(local));
                }
                command => self.plane.obey(&command),
            }
        }
        self.plane.settle(self.now.monotonic);
        let took = begin.elapsed();
        self.spent.total += took;
        self.spent.longest = self.spent.longest.max(took);
        sent
    }

    /// A data port whose place in tables of at least 2^18 entries no other has.
    fn port(&mut self, on: On) -> SocketAddr {
        if let On::Exactly(local) = on {
            return local;
        }
        let (address, port) = (self.ports / PORTS, FIRST_PORT + self.ports % PORTS);
        self.ports += 1;
        SocketAddr::from(([198, 51, 100, address as u8], port as u16))
    }
}

/// How the server is configured.
///
/// # Errors
/// Never, as long as addresses are written as they are.
pub fn config() -> Result<ServerConfig> {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    config.trusted = vec!["0.0.0.0/0".parse()?];
    config.limits.sessions = usize::MAX;
    config.limits.unverified_per_second = u32::MAX;
    config.limits.half_open = u32::MAX;
    config.limits.half_open_per_prefix = u32::MAX;
    Ok(config)
}

fn answer(bytes: Option<Vec<u8>>) -> Result<Attributes> {
    let bytes = bytes.context("the server did not answer")?;
    Ok(decode(&bytes).context("the server's answer cannot be read")?.message.attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_expire_at_once_but_not_in_one_turn() {
        let mut load = Load::new(Nothing).unwrap();
        load.set_up(600).unwrap();
        assert_eq!(load.server.session_count(), 600);
        load.now.monotonic += LIFETIME;
        load.turn(Server::handle_timeout);
        let left = load.server.session_count();
        assert!((1..600).contains(&left), "{left} are left");
        load.now.monotonic -= LIFETIME;
        load.expire();
        assert_eq!(load.server.session_count(), 0);
    }
}
