//! Bridge, the rendezvous by name: who holds a name, where it is, and how to introduce oneself to it.
//!
//! ```text
//! Register ─▶ Registry: name ─▶ holder, address, lifetime ─▶ Remember, Forget
//! Lookup ───────▶ │
//! Introduce ──────┴─▶ Introductions ─▶ indication to the holder
//! Introduce of the holder ──▶ │ ─────▶ indication to who introduced itself
//! ```
//!
//! A name belongs to a key, or to a user, for as long as it is refreshed. Requests are keyed by what the
//! caller's identity and this server's have in common, so each shows that its sender holds the identity.

mod call;
mod config;
mod introduce;
mod introductions;
mod key;
mod lookup;
mod record;
mod register;
mod registry;

use std::time::Instant;

use rand::Rng;
use rand::rngs::StdRng;

pub use config::{BridgeConfig, BridgeLimits, Owner};
pub use record::NameRecord;

use super::deadline::Reason;
use super::limits::Rates;
use introductions::Introductions;
pub(super) use key::ServerKey;
use registry::Registry;

/// What a server knows for Bridge.
#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) key: ServerKey,
    registry: Registry,
    introductions: Introductions,
    /// Requests that cost a key agreement, by what they are for: each prefix has so many a second.
    registrations: Rates,
    lookups: Rates,
    introduced: Rates,
}

impl Bridge {
    pub(super) fn new(
        limits: BridgeLimits,
        nonce_key: &[u8; 32],
        rng: &mut StdRng,
        now: Instant,
    ) -> Self {
        let mut rates = |rate| Rates::new(now, rng.random(), rate);
        Self {
            key: ServerKey::of(nonce_key),
            registry: Registry::default(),
            introductions: Introductions::default(),
            registrations: rates(limits.registrations_per_second),
            lookups: rates(limits.lookups_per_second),
            introduced: rates(limits.introductions_per_second),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<(Instant, Reason)> {
        let name = self.registry.next_deadline().map(|at| (at, Reason::Name));
        let introduction = self.introductions.next_deadline().map(|at| (at, Reason::Introduction));
        name.into_iter().chain(introduction).min()
    }
}
