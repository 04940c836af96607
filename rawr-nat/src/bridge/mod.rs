//! Rendezvous by name: the client of Bridge, which a RAWR server offers.
//!
//! [`Bridge`] registers names and keeps them, looks others' up, and introduces its identity to their
//! holders: a message of at most [`MAX_MESSAGE`] bytes goes to the holder, sealed, and one comes back.
//! After that both know each other's key, what the other said, and a common secret
//! ([`session_secret`]), which is what a session over RAWR needs, or a punch through two NATs.
//!
//! ```text
//! holder                      server                     introducer
//!   Register(name) ─────────────▶│
//!                                │◀───────────── Lookup(name)
//!                                │─── key, address, lifetime ───▶
//!                                │◀─ Introduce(name, id, sealed) ─
//!   ◀── Introduce(id, sealed) ───│
//!   ─── Introduce(id, sealed) ──▶│─── Introduce(id, sealed) ────▶
//! ```
//!
//! `BridgeSocket::connect_stream` and `accept_stream` go all the way: to a TCP connection between the two,
//! straight through the NATs of both.
//!
//! [`Bridge`] is sans-IO, as all machines here. `BridgeSocket` drives one over UDP, or over
//! a stream where UDP does not get through (feature `tokio`).

mod call;
#[cfg(feature = "tokio")]
mod driver;
mod error;
mod incoming;
mod name;
mod outgoing;
mod seal;
#[cfg(feature = "tokio")]
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{
    Attributes, BridgeAttributes, BridgeName, Class, Credentials, IntroductionId, Method, decode,
    peek,
};

#[cfg(feature = "tokio")]
pub use driver::{BridgeSocket, BridgeSocketConfig};
pub use error::BridgeError;
pub use seal::{MAX_MESSAGE, SealError, session_secret};
#[cfg(feature = "tokio")]
pub use stream::{StreamError, is_stream};

use call::{Call, Caller, Outcome, is_same};
use incoming::Incoming;
use name::Held;
use outgoing::Outgoing;

use crate::identity::{Identity, PublicKey};

/// What a [`Bridge`] is to do.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The server's STUN port.
    pub server: SocketAddr,
    /// Who holds the names, and who introduces itself.
    pub identity: Identity,
    /// Used if the server asks for them.
    pub credentials: Option<Credentials>,
    /// Greater than that of any earlier run (milliseconds since 1970).
    pub epoch: u64,
    /// Whether nothing is lost on the way to the server, as over TCP: then no request is sent twice.
    pub reliable: bool,
}

/// Holds names at one server, and reaches the holders of others.
#[derive(Debug)]
pub struct Bridge {
    server: SocketAddr,
    epoch: u64,
    caller: Caller,
    calls: Vec<(Purpose, Call)>,
    held: BTreeMap<BridgeName, Held>,
    outgoing: BTreeMap<IntroductionId, Outgoing>,
    incoming: Incoming,
    outputs: VecDeque<BridgeOutput>,
    rng: StdRng,
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    Register(BridgeName),
    Deregister(BridgeName),
    LookUp(BridgeName),
    Introduce(IntroductionId),
    Answer(IntroductionId),
}

/// What a [`Bridge`] wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeOutput {
    /// Send to the server.
    Transmit(Vec<u8>),
    /// Something happened.
    Event(BridgeEvent),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeEvent {
    /// The name is ours. Told once, and again when our address has changed.
    Registered {
        /// Which.
        name: BridgeName,
        /// Where our datagrams come from, as the server sees it.
        reflexive: SocketAddr,
        /// For how long it stays ours without our doing.
        lifetime: Duration,
    },
    /// The name is not ours (any more). Where the error is passing, it is tried again, and this is told
    /// once; else that is the end of it.
    NotRegistered {
        /// Which.
        name: BridgeName,
        /// Why.
        error: BridgeError,
    },
    /// The name is ours no more, as was wished.
    Deregistered {
        /// Which.
        name: BridgeName,
    },
    /// Somebody holds the name that was looked up.
    Found {
        /// Which.
        name: BridgeName,
        /// Who, and where.
        holder: Holder,
    },
    /// The name that was looked up leads nowhere.
    NotFound {
        /// Which.
        name: BridgeName,
        /// Why.
        error: BridgeError,
    },
    /// Somebody introduces itself to us. Told once; answer it with [`Bridge::answer`].
    Introduction {
        /// Which.
        id: IntroductionId,
        /// Under which of our names.
        name: BridgeName,
        /// Who. It has shown to hold this key.
        from: PublicKey,
        /// Where its datagrams come from, as the server sees it.
        reflexive: SocketAddr,
        /// What it says.
        message: Vec<u8>,
    },
    /// The holder has answered our introduction.
    Answer {
        /// Which.
        id: IntroductionId,
        /// Where its datagrams come from, as the server sees it.
        reflexive: SocketAddr,
        /// What it says.
        message: Vec<u8>,
    },
    /// Our introduction came to nothing.
    NotIntroduced {
        /// Which.
        id: IntroductionId,
        /// Why.
        error: BridgeError,
    },
}

/// A name's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its key, as far as the server is to be believed.
    pub key: PublicKey,
    /// Where it registered from.
    pub address: IpAddr,
    /// For how long the name stays its own.
    pub lifetime: Duration,
}

impl Bridge {
    /// One that has nothing to do yet. `seed` comes from the system's random generator: keys follow from
    /// it.
    pub fn new(config: BridgeConfig, seed: [u8; 32]) -> Self {
        let BridgeConfig { server, identity, credentials, epoch, reliable } = config;
        Self {
            server,
            epoch,
            caller: Caller::new(identity, credentials, reliable),
            calls: Vec::new(),
            held: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: Incoming::default(),
            outputs: VecDeque::new(),
            rng: StdRng::from_seed(seed),
        }
    }

    /// Our identity.
    pub const fn identity(&self) -> &Identity {
        &self.caller.identity
    }

    /// Asks who holds `name`: [`BridgeEvent::Found`] or [`BridgeEvent::NotFound`] follows.
    pub fn look_up(&mut self, now: Instant, name: &BridgeName) {
        let bridge = BridgeAttributes { name: Some(name.clone()), ..BridgeAttributes::default() };
        self.ask(now, Purpose::LookUp(name.clone()), Method::Lookup, bridge, None);
        self.pump(now);
    }

    /// Takes a datagram that came to the socket, or a message that a stream held. Returns whether it was for
    /// this machine.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        let method = peek(bytes).filter(|(_, method)| method.is_bridge());
        if !is_same(from, self.server) || method.is_none() {
            return false;
        }
        let Ok(message) = decode(bytes) else { return false };
        match message.message.class {
            Class::Success | Class::Error => {
                let transaction = message.message.transaction;
                let is_it = |(_, call): &(Purpose, Call)| call.transaction() == transaction;
                let Some(index) = self.calls.iter().position(is_it) else { return false };
                let (_, call) = &mut self.calls[index];
                if let Some(outcome) = self.caller.take(call, now, &message, &mut self.rng) {
                    let (purpose, _) = self.calls.swap_remove(index);
                    self.conclude(now, purpose, outcome);
                }
            }
            Class::Indication if self.caller.verifies(&message) => {
                self.indicated(now, &message.message.attributes.bridge);
            }
            Class::Indication | Class::Request => return false,
        }
        self.pump(now);
        true
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(index) = self.calls.iter().position(|(_, call)| call.is_over(now)) {
            let (purpose, _) = self.calls.swap_remove(index);
            self.caller.forget_nonce();
            self.conclude(now, purpose, Err(BridgeError::Unanswered));
        }
        self.refresh_names(now);
        self.repeat_introductions(now);
        self.incoming.forget(now);
        self.pump(now);
    }

    /// When [`Bridge::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.calls.iter().map(|(_, call)| call.due());
        let names = self.held.values().filter_map(Held::due);
        let outgoing = self.outgoing.values().map(Outgoing::due);
        calls.chain(names).chain(outgoing).chain(self.incoming.due()).min()
    }

    /// What to do next, until `None`.
    pub fn poll_output(&mut self) -> Option<BridgeOutput> {
        self.outputs.pop_front()
    }

    /// Gives up all names, and everything that is under way.
    pub fn close(&mut self, now: Instant) {
        self.calls.clear();
        self.outgoing.clear();
        for name in self.held.keys().cloned().collect::<Vec<_>>() {
            self.deregister(now, &name);
        }
    }

    /// Whether nothing is held and nothing under way.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.held.is_empty() && self.outgoing.is_empty()
    }

    fn ask(
        &mut self,
        now: Instant,
        purpose: Purpose,
        method: Method,
        bridge: BridgeAttributes,
        lifetime: Option<u32>,
    ) {
        let epoch = (method == Method::Register).then_some(self.epoch);
        let attributes = Attributes { bridge, lifetime, epoch, ..Attributes::default() };
        let call = self.caller.call(now, method, attributes, &mut self.rng);
        self.calls.push((purpose, call));
    }

    fn is_asking(&self, purpose: &Purpose) -> bool {
        self.calls.iter().any(|(other, _)| other == purpose)
    }

    /// Takes the end of a request.
    fn conclude(&mut self, now: Instant, purpose: Purpose, outcome: Outcome) {
        match purpose {
            Purpose::Register(name) => self.register_concluded(now, name, outcome),
            // Whoever gives up a name has it no longer, whatever the server knows.
            Purpose::Deregister(name) => self.event(BridgeEvent::Deregistered { name }),
            Purpose::LookUp(name) => self.look_up_concluded(name, outcome),
            Purpose::Introduce(id) => self.introduce_concluded(now, id, outcome),
            // If it was lost, the introducer asks again, and gets it then.
            Purpose::Answer(_) => {}
        }
    }

    fn look_up_concluded(&mut self, name: BridgeName, outcome: Outcome) {
        let found = outcome.and_then(|attributes| {
            let Attributes { bridge, lifetime, .. } = *attributes;
            match (bridge.public_key, bridge.holder_address, lifetime) {
                (Some(key), Some(address), Some(seconds)) => Ok(Holder {
                    key: PublicKey::from_bytes(key),
                    address,
                    lifetime: Duration::from_secs(seconds.into()),
                }),
                _ => Err(BridgeError::NotOffered),
            }
        });
        self.event(match found {
            Ok(holder) => BridgeEvent::Found { name, holder },
            Err(error) => BridgeEvent::NotFound { name, error },
        });
    }

    /// Takes a verified indication.
    fn indicated(&mut self, now: Instant, said: &BridgeAttributes) {
        let (Some(id), Some(sealed)) = (said.introduction, said.sealed.as_deref()) else { return };
        match &said.name {
            Some(name) => self.introduced(now, id, name, said.peer_address, sealed),
            None => self.answered(id, said.peer_address, sealed),
        }
    }

    fn event(&mut self, event: BridgeEvent) {
        self.outputs.push_back(BridgeOutput::Event(event));
    }

    fn pump(&mut self, now: Instant) {
        for (_, call) in &mut self.calls {
            self.outputs.extend(call.poll_transmit(now).map(BridgeOutput::Transmit));
        }
    }

    fn seed(&mut self) -> [u8; 32] {
        self.rng.random()
    }
}
