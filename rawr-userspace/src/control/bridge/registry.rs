//! All names, with who holds them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rawr_proto::{BridgeKey, BridgeName};

use super::config::{BridgeLimits, Owner};
use crate::control::client::{Client, ConnectionId};
use crate::control::limits::{Prefix, QuotaReached};

/// How long a holder that has not been heard of counts as reachable: NATs forget it soon.
const REACHABLE: Duration = Duration::from_secs(120);

/// A name's holder.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) public: [u8; 32],
    /// Whose credentials it has shown, if any.
    pub(super) user: Option<Arc<str>>,
    /// Keys its messages; not known before a restored holder comes back or is needed.
    pub(super) key: Option<BridgeKey>,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// How indications reach it; `None` once its stream has gone.
    pub(super) way: Option<Client>,
    pub(super) epoch: u64,
    pub(super) expires: Instant,
    pub(super) heard: Instant,
    /// When it expires as far as is remembered; `None` if nothing is.
    pub(super) remembered: Option<Instant>,
    /// Where its alarm stands: not after `expires`. Set by the registry.
    pub(super) armed: Option<Instant>,
}

impl Registration {
    fn prefix(&self) -> Prefix {
        Prefix::of(self.remote.ip())
    }

    /// How it can be reached, if it probably can.
    pub(super) fn way(&self, now: Instant) -> Option<&Client> {
        self.way.as_ref().filter(|_| now < self.heard + REACHABLE)
    }

    fn connection(&self) -> Option<ConnectionId> {
        self.way.as_ref()?.connection()
    }

    fn holder(&self, owner: Owner) -> Option<Holder> {
        match owner {
            Owner::Key => Some(Holder::Key(self.public)),
            Owner::User => self.user.clone().map(Holder::User),
        }
    }
}

/// Whom a name belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Key([u8; 32]),
    User(Arc<str>),
}

/// Names by name and by deadline, and who has how many.
#[derive(Debug, Default)]
pub(super) struct Registry {
    names: HashMap<BridgeName, Registration>,
    /// One for each name, not after its end. One that was put off rings early once, and is then set anew.
    alarms: BTreeSet<(Instant, BridgeName)>,
    holders: HashMap<Holder, u32>,
    prefixes: HashMap<Prefix, u32>,
    streams: HashMap<ConnectionId, BTreeSet<BridgeName>>,
}

impl Registry {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn get(&self, name: &BridgeName) -> Option<&Registration> {
        self.names.get(name)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Whether one more name is within the limits.
    pub(super) fn admit(
        &self,
        limits: &BridgeLimits,
        holder: &Holder,
        from: SocketAddr,
    ) -> Result<(), QuotaReached> {
        let held = self.holders.get(holder).copied().unwrap_or_default();
        let near = self.prefixes.get(&Prefix::of(from.ip())).copied().unwrap_or_default();
        let within = self.names.len() < limits.names
            && held < limits.names_per_holder
            && near < limits.names_per_prefix;
        if within { Ok(()) } else { Err(QuotaReached) }
    }

    /// Puts a registration in, in place of the one of this name if there is one.
    pub(super) fn insert(
        &mut self,
        owner: Owner,
        name: BridgeName,
        mut registration: Registration,
    ) {
        let before = self.remove(owner, &name);
        let due = before.and_then(|before| before.armed).filter(|at| *at <= registration.expires);
        let due = due.unwrap_or(registration.expires);
        registration.armed = Some(due);
        self.alarms.insert((due, name.clone()));
        if let Some(holder) = registration.holder(owner) {
            *self.holders.entry(holder).or_default() += 1;
        }
        *self.prefixes.entry(registration.prefix()).or_default() += 1;
        if let Some(connection) = registration.connection() {
            self.streams.entry(connection).or_default().insert(name.clone());
        }
        self.names.insert(name, registration);
    }

    pub(super) fn remove(&mut self, owner: Owner, name: &BridgeName) -> Option<Registration> {
        let registration = self.names.remove(name)?;
        if let Some(at) = registration.armed {
            self.alarms.remove(&(at, name.clone()));
        }
        if let Some(holder) = registration.holder(owner) {
            release(self.holders.entry(holder));
        }
        release(self.prefixes.entry(registration.prefix()));
        if let Some(connection) = registration.connection()
            && let Some(names) = self.streams.get_mut(&connection)
        {
            names.remove(name);
            if names.is_empty() {
                self.streams.remove(&connection);
            }
        }
        Some(registration)
    }

    /// Takes out a name whose time is over.
    pub(super) fn pop_expired(&mut self, owner: Owner, now: Instant) -> Option<BridgeName> {
        while self.alarms.first().is_some_and(|(at, _)| *at <= now) {
            let (_, name) = self.alarms.pop_first()?;
            let Some(registration) = self.names.get_mut(&name) else { continue };
            if registration.expires <= now {
                registration.armed = None;
                self.remove(owner, &name);
                return Some(name);
            }
            registration.armed = Some(registration.expires);
            self.alarms.insert((registration.expires, name));
        }
        None
    }

    /// The names that were registered over this stream cannot be reached any more.
    pub(super) fn connection_gone(&mut self, connection: ConnectionId) {
        for name in self.streams.remove(&connection).into_iter().flatten() {
            if let Some(registration) = self.names.get_mut(&name)
                && registration.connection() == Some(connection)
            {
                registration.way = None;
            }
        }
    }
}

/// Counts one less, and leaves no zero behind.
fn release<K: Hash + Eq>(entry: Entry<'_, K, u32>) {
    if let Entry::Occupied(mut entry) = entry {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}
