//! What outlives a restart: enough for every pair to go on, and for every client to notice nothing.
//!
//! A snapshot holds the sessions' keys. It is for this host's next daemon alone.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{Mac, MacKey, MacToken, Role, ServerId, SessionKey};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::command::On;
use super::config::ServerConfig;
use super::limits::Prefix;
use super::server::Server;
use super::session::{Ask, PeerLeg, Port, Session};
use super::store::Index;
use super::time::Now;
use super::turn::{TurnRecord, TurnView};

/// Version of the layout.
const VERSION: u32 = 1;

/// The sessions of a [`Server`], for the one that takes over.
#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    version: u32,
    nonce_key: Hex<32>,
    sessions: Vec<SessionRecord>,
    /// `None` where the snapshot is older than TURN here.
    turn: Option<TurnRecord>,
}

impl Snapshot {
    /// How many sessions and allocations it holds.
    pub fn len(&self) -> usize {
        self.sessions.len() + self.turn.as_ref().map_or(0, TurnRecord::len)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A [`Snapshot`] that is being written.
#[derive(Serialize)]
struct SnapshotView<'a> {
    version: u32,
    nonce_key: Hex<32>,
    sessions: Records<'a>,
    turn: TurnView<'a>,
}

/// The sessions of a server, as a list.
struct Records<'a> {
    server: &'a Server,
    now: Now,
}

impl Serialize for Records<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sessions = self.server.store.iter();
        serializer.collect_seq(sessions.filter_map(|(_, session)| record(session, self.now)))
    }
}

/// Why a snapshot cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Made by another version of this program.
    #[error("snapshot of layout {found}, expected {VERSION}; sessions will connect anew")]
    Version { found: u32 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SessionRecord {
    key: Hex<32>,
    mac_key: Option<Hex<32>>,
    /// A's and B's.
    legs: [Option<LegRecord>; 2],
    target: Option<FlowRecord>,
    upstream: Option<UpstreamRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LegRecord {
    epoch: u64,
    source: SocketAddr,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    lifetime: u32,
    /// Milliseconds since 1970.
    expires: u64,
    depth: u8,
    ask: Option<AskRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct AskRecord {
    target_mac: Option<TokenRecord>,
    target_port: Option<u16>,
    root: Option<SocketAddr>,
    hops: Vec<Hex<8>>,
    hops_left: u8,
    arrived_at: SocketAddr,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum TokenRecord {
    Raw(Hex<6>),
    Blinded(Hex<16>),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct FlowRecord {
    local: SocketAddr,
    remote: SocketAddr,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct UpstreamRecord {
    server: SocketAddr,
    epoch: u64,
    flow: FlowRecord,
    paired: bool,
}

impl Server {
    /// The state to start again from: it is read back as a [`Snapshot`]. The sessions are not copied
    /// for it, which would take as much memory again.
    pub fn snapshot(&self, now: Now) -> impl Serialize {
        SnapshotView {
            version: VERSION,
            nonce_key: Hex(*self.nonces.as_bytes()),
            sessions: Records { server: self, now },
            turn: self.turn_view(now),
        }
    }

    /// A server that goes on where the one that made the snapshot stopped. It asks for the same data
    /// ports again, and makes each pair again as soon as its ports are open.
    ///
    /// # Errors
    /// The snapshot is another version's.
    pub fn restore(
        config: ServerConfig,
        seed: [u8; 32],
        now: Now,
        snapshot: Snapshot,
    ) -> Result<Self, RestoreError> {
        if snapshot.version != VERSION {
            return Err(RestoreError::Version { found: snapshot.version });
        }
        let mut server = Self::new(config, seed, now);
        server.set_nonce_key(snapshot.nonce_key.0);
        for record in snapshot.sessions {
            server.restore_session(now, record);
        }
        if let Some(turn) = snapshot.turn {
            server.restore_turn(now, turn);
        }
        Ok(server)
    }

    fn restore_session(&mut self, now: Now, record: SessionRecord) {
        let mut session = Session::new(SessionKey::from_bytes(record.key.0));
        session.mac_key = record.mac_key.map(|key| Box::new(MacKey::from_bytes(key.0)));
        let index = self.store.insert(session);
        for (role, leg) in [Role::A, Role::B].into_iter().zip(record.legs) {
            if let Some(leg) = leg {
                self.restore_leg(now, index, role, leg);
            }
        }
        if let Some(target) = record.target {
            self.restore_target(now, index, target.local, target.remote);
        }
        if let Some(upstream) = record.upstream {
            let FlowRecord { local, remote } = upstream.flow;
            let UpstreamRecord { server, epoch, paired, .. } = upstream;
            self.restore_upstream(now, index, (server, epoch), (local, remote), paired);
        }
        self.touch(now, index);
    }

    fn restore_leg(&mut self, now: Now, index: Index, role: Role, record: LegRecord) {
        let expires = now.instant_at(Duration::from_millis(record.expires));
        if expires <= now.monotonic {
            return;
        }
        let prefix = Prefix::of(record.source.ip());
        self.quotas.restore_leg(prefix, record.remote.is_some());
        let leg = PeerLeg {
            epoch: record.epoch,
            source: record.source,
            prefix,
            port: Port::Opening(self.open_port(index, On::Exactly(record.local))),
            remote: record.remote,
            lifetime: record.lifetime,
            expires,
            depth: record.depth,
            ask: record.ask.map(|ask| Box::new(ask.into())),
            answer: None,
        };
        if let Some(session) = self.store.get_mut(index) {
            session.legs[role as usize] = Some(leg);
        }
    }
}

fn record(session: &Session, now: Now) -> Option<SessionRecord> {
    let legs = [Role::A, Role::B].map(|role| {
        let newest = session.leg(role).filter(|leg| leg.port.open().is_some());
        let retiring = session.retiring[role as usize].as_deref();
        let bound = newest.into_iter().chain(retiring).find(|leg| leg.remote.is_some());
        bound.or(newest).and_then(|leg| leg_record(leg, now))
    });
    legs.iter().any(Option::is_some).then(|| SessionRecord {
        key: Hex(*session.key.as_bytes()),
        mac_key: session.mac_key.as_ref().map(|key| Hex(*key.as_bytes())),
        legs,
        target: session.target.as_ref().and_then(|target| target.bound()).map(FlowRecord::from),
        upstream: session.upstream.as_ref().and_then(|upstream| {
            let flow = FlowRecord::from(upstream.bound()?);
            let (server, epoch, paired) = (upstream.server, upstream.epoch, upstream.paired);
            Some(UpstreamRecord { server, epoch, flow, paired })
        }),
    })
}

fn leg_record(leg: &PeerLeg, now: Now) -> Option<LegRecord> {
    Some(LegRecord {
        epoch: leg.epoch,
        source: leg.source,
        local: leg.port.open()?,
        remote: leg.remote,
        lifetime: leg.lifetime,
        expires: millis(now, leg.expires),
        depth: leg.depth,
        ask: leg.ask.as_deref().map(AskRecord::from),
    })
}

fn millis(now: Now, at: Instant) -> u64 {
    u64::try_from(now.unix_at(at).as_millis()).unwrap_or(u64::MAX)
}

impl From<crate::dataplane::Leg> for FlowRecord {
    fn from(leg: crate::dataplane::Leg) -> Self {
        Self { local: leg.local, remote: leg.remote }
    }
}

impl From<&Ask> for AskRecord {
    fn from(ask: &Ask) -> Self {
        Self {
            target_mac: ask.target_mac.map(|token| match token {
                MacToken::Raw(mac) => TokenRecord::Raw(Hex(mac.0)),
                MacToken::Blinded(bytes) => TokenRecord::Blinded(Hex(bytes)),
            }),
            target_port: ask.target_port,
            root: ask.root,
            hops: ask.hops.iter().map(|id| Hex(id.0)).collect(),
            hops_left: ask.hops_left,
            arrived_at: ask.arrived_at,
        }
    }
}

impl From<AskRecord> for Ask {
    fn from(record: AskRecord) -> Self {
        Self {
            target_mac: record.target_mac.map(|token| match token {
                TokenRecord::Raw(mac) => MacToken::Raw(Mac(mac.0)),
                TokenRecord::Blinded(bytes) => MacToken::Blinded(bytes.0),
            }),
            target_port: record.target_port,
            root: record.root,
            hops: record.hops.into_iter().map(|id| ServerId(id.0)).collect(),
            hops_left: record.hops_left,
            arrived_at: record.arrived_at,
        }
    }
}

/// Bytes that are written as hexadecimal digits, and not shown.
#[derive(Clone, Copy)]
pub(super) struct Hex<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hex(..)")
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format_args!("expected {} hexadecimal digits", 2 * N));
        if digits.len() != 2 * N || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}
