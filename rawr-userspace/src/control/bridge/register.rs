//! Register: a holder takes a name, keeps it, moves with it, or gives it up.

use std::sync::Arc;
use std::time::Duration;

use rawr_proto::{Attributes, BridgeKey, BridgeName, ErrorCode};

use super::call::{Caller, bad_request};
use super::config::Owner;
use super::record::NameRecord;
use super::registry::Registration;
use crate::control::client::{Client, ConnectionId};
use crate::control::command::Command;
use crate::control::counters::Count;
use crate::control::request::{ErrorResponse, Request};
use crate::control::server::{Server, seconds};
use crate::control::time::Now;

/// A lifetime is remembered anew once it is ahead of what is remembered by this part of itself: who
/// refreshes every few seconds is not written that often.
const AHEAD: u32 = 4;

impl Server {
    pub(super) fn register(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
    ) -> Result<Attributes, ErrorResponse> {
        let a = request.attributes();
        let (Some(name), Some(epoch)) = (a.bridge.name.as_ref(), a.epoch) else {
            return Err(bad_request());
        };
        self.may_hold(request, name, epoch, caller)?;
        let lifetime = self.name_lifetime(a.lifetime);
        let owner = self.config.bridge.owner;
        if lifetime.is_zero() {
            if self.bridge.registry.remove(owner, name).is_some() {
                self.forget_name(name.clone());
            }
        } else {
            self.hold(request, name, epoch, caller, lifetime);
        }
        self.counters.add(Count::Register);
        let (lifetime, mapped) = (Some(seconds(lifetime)), Some(request.from()));
        Ok(Attributes { lifetime, mapped, ..Attributes::default() })
    }

    /// Whether the name is free or the caller's, and no newer run of the caller's holds it.
    fn may_hold(
        &self,
        request: &Request<'_>,
        name: &BridgeName,
        epoch: u64,
        caller: &Caller,
    ) -> Result<(), ErrorResponse> {
        let holder = self.holder_of(caller)?;
        let Some(registration) = self.bridge.registry.get(name) else {
            if request.attributes().lifetime == Some(0) {
                return Ok(());
            }
            let limits = &self.config.bridge.limits;
            let admitted = self.bridge.registry.admit(limits, &holder, request.from());
            return admitted.map_err(|_| ErrorResponse::new(ErrorCode::QuotaReached, Count::Quota));
        };
        let is_same = match self.config.bridge.owner {
            Owner::Key => registration.public == caller.public,
            Owner::User => registration.user.is_some() && registration.user == caller.user,
        };
        if !is_same {
            return Err(ErrorResponse::new(ErrorCode::NameTaken, Count::NameTaken));
        }
        if registration.epoch > epoch {
            return Err(ErrorResponse::new(ErrorCode::RoleTaken, Count::RoleTaken));
        }
        Ok(())
    }

    fn hold(
        &mut self,
        request: &Request<'_>,
        name: &BridgeName,
        epoch: u64,
        caller: &Caller,
        lifetime: Duration,
    ) {
        let now = request.now.monotonic;
        let mut registration = Registration {
            public: caller.public,
            user: caller.user.clone(),
            key: Some(caller.key.clone()),
            local: request.local(),
            remote: request.from(),
            way: Some(*request.client),
            epoch,
            expires: now + lifetime,
            heard: now,
            remembered: None,
            armed: None,
        };
        let before = self.bridge.registry.get(name).filter(|it| it.is_as(&registration));
        registration.remembered = before.and_then(|before| before.remembered);
        let known = registration.remembered.unwrap_or(now);
        if registration.expires < known || registration.expires >= known + lifetime / AHEAD {
            registration.remembered = Some(registration.expires);
            let record = record(request.now, name, &registration);
            self.command(Command::Remember(Box::new(record)));
        }
        self.bridge.registry.insert(self.config.bridge.owner, name.clone(), registration);
    }

    pub(super) fn forget_name(&mut self, name: BridgeName) {
        self.command(Command::Forget(name));
    }

    /// Takes the names that were remembered before a restart, but for those whose time is over.
    pub fn restore_names(&mut self, now: Now, records: impl IntoIterator<Item = NameRecord>) {
        for record in records {
            let expires = now.instant_at(Duration::from_millis(record.expires));
            if expires <= now.monotonic {
                self.forget_name(record.name);
                continue;
            }
            let (local, remote) = (record.local, record.remote);
            let registration = Registration {
                public: record.public,
                user: record.user.map(Arc::from),
                key: None::<BridgeKey>,
                local,
                remote,
                way: record.over_udp.then(|| Client::udp(local, remote)),
                epoch: record.epoch,
                expires,
                heard: now.monotonic,
                remembered: Some(expires),
                armed: None,
            };
            self.bridge.registry.insert(self.config.bridge.owner, record.name, registration);
        }
    }

    /// A holder's stream has ended: its names stay, but nobody can be introduced to it.
    pub(in crate::control) fn bridge_connection_gone(&mut self, connection: ConnectionId) {
        self.bridge.registry.connection_gone(connection);
    }

    /// How many names are held.
    pub fn name_count(&self) -> usize {
        self.bridge.registry.len()
    }

    fn name_lifetime(&self, asked: Option<u32>) -> Duration {
        let config = &self.config.bridge;
        let asked = asked.map(|seconds| Duration::from_secs(seconds.into()));
        asked.unwrap_or(config.default_lifetime).min(config.max_lifetime)
    }
}

impl Registration {
    /// Whether it is worth no word more to who remembers, but for the time that it ends.
    fn is_as(&self, other: &Self) -> bool {
        self.public == other.public
            && self.user == other.user
            && (self.local, self.remote) == (other.local, other.remote)
            && self.way == other.way
            && self.epoch == other.epoch
    }
}

fn record(now: Now, name: &BridgeName, registration: &Registration) -> NameRecord {
    let expires = now.unix_at(registration.expires).as_millis();
    NameRecord {
        name: name.clone(),
        public: registration.public,
        user: registration.user.as_deref().map(str::to_owned),
        local: registration.local,
        remote: registration.remote,
        over_udp: registration.way.is_some_and(|way| way.connection().is_none()),
        epoch: registration.epoch,
        expires: u64::try_from(expires).unwrap_or(u64::MAX),
    }
}
