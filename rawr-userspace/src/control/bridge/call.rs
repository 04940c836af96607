//! Who calls: the identity and the user behind a request.

use std::sync::Arc;
use std::time::Instant;

use rawr_proto::{BridgeKey, ErrorCode, IntegrityKey, Method};

use super::config::Owner;
use super::registry::Holder;
use crate::control::auth::wrong_integrity;
use crate::control::counters::Count;
use crate::control::limits::Prefix;
use crate::control::request::{Answer, ErrorResponse, Request};
use crate::control::server::Server;

/// A caller that has shown to hold its identity and to be allowed here.
pub(super) struct Caller {
    pub(super) public: [u8; 32],
    /// Whose credentials it has shown, if any.
    pub(super) user: Option<Arc<str>>,
    pub(super) key: BridgeKey,
    /// Keys the answer.
    pub(super) integrity: IntegrityKey,
}

impl Server {
    /// Takes a request of one of Bridge's methods, whose nonce is valid.
    pub(in crate::control) fn bridge_request(
        &mut self,
        request: &Request<'_>,
    ) -> Result<Answer, ErrorResponse> {
        if !self.config.bridge.enabled {
            return Err(ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden));
        }
        let caller = self.caller(request)?;
        let outcome = match request.decoded.message.method {
            Method::Register => self.register(request, &caller),
            Method::Lookup => self.look_up(request),
            Method::Introduce => self.introduce(request, &caller),
            _ => Err(bad_request()),
        };
        match outcome {
            Ok(attributes) => Ok(Answer::now(attributes, Some(caller.integrity))),
            Err(refusal) => Err(refusal.signed(&caller.integrity)),
        }
    }

    /// Forgets what the end of the time is come for.
    pub(in crate::control) fn expire_bridge(&mut self, now: Instant) {
        let owner = self.config.bridge.owner;
        while let Some(name) = self.bridge.registry.pop_expired(owner, now) {
            self.counters.add(Count::ExpiredName);
            self.forget_name(name);
        }
        while self.bridge.introductions.pop_expired(now).is_some() {
            self.counters.add(Count::ExpiredIntroduction);
        }
    }

    fn caller(&mut self, request: &Request<'_>) -> Result<Caller, ErrorResponse> {
        let public = request.attributes().bridge.public_key.ok_or_else(bad_request)?;
        let key = self.agree(request, &public)?;
        let user = self.user(request, |user| {
            request.decoded.verify(&IntegrityKey::bridge_credentialed(user, &key))
        })?;
        let integrity = match &user {
            Some(user) => IntegrityKey::bridge_credentialed(user, &key),
            None if !self.trusts(request.from().ip()) => return Err(self.untrusted()),
            None => IntegrityKey::bridge(&key),
        };
        if !request.decoded.verify(&integrity) {
            return Err(wrong_integrity());
        }
        let user = user.and_then(|_| account(request.attributes().username.as_deref()?));
        Ok(Caller { public, user, key, integrity })
    }

    /// What keys the caller's messages. Of who refreshes, or answers, it is known; else it costs an
    /// agreement. Whatever does more than that counts against a rate of the caller's prefix.
    fn agree(
        &mut self,
        request: &Request<'_>,
        public: &[u8; 32],
    ) -> Result<BridgeKey, ErrorResponse> {
        let known = self.known_key(request, public);
        let method = request.decoded.message.method;
        let introduces = method == Method::Introduce && request.attributes().bridge.name.is_some();
        if let Some(key) = known.as_ref().filter(|_| !introduces) {
            return Ok(key.clone());
        }
        let rate = match method {
            Method::Register => &mut self.bridge.registrations,
            Method::Lookup => &mut self.bridge.lookups,
            _ => &mut self.bridge.introduced,
        };
        if !rate.allow(request.now.monotonic, Prefix::of(request.from().ip())) {
            return Err(ErrorResponse::new(ErrorCode::TooManyRequests, Count::BridgeRate));
        }
        let weak = || ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden);
        known.or_else(|| self.bridge.key.agree(public)).ok_or_else(weak)
    }

    fn known_key(&self, request: &Request<'_>, public: &[u8; 32]) -> Option<BridgeKey> {
        let a = &request.attributes().bridge;
        let of_holder = |name| {
            let registration = self.bridge.registry.get(name)?;
            registration.key.clone().filter(|_| registration.public == *public)
        };
        match request.decoded.message.method {
            Method::Register => of_holder(a.name.as_ref()?),
            Method::Introduce => {
                let introduction = self.bridge.introductions.get(a.introduction?)?;
                let key = introduction.key.clone();
                Some(key)
                    .filter(|_| introduction.introducer == *public)
                    .or_else(|| of_holder(&introduction.name))
            }
            _ => None,
        }
    }

    /// Whom a name would belong to if this caller registered it.
    pub(super) fn holder_of(&self, caller: &Caller) -> Result<Holder, ErrorResponse> {
        match (self.config.bridge.owner, &caller.user) {
            (Owner::Key, _) => Ok(Holder::Key(caller.public)),
            (Owner::User, Some(user)) => Ok(Holder::User(Arc::clone(user))),
            (Owner::User, None) => Err(ErrorResponse {
                needs_user: true,
                ..ErrorResponse::challenge(ErrorCode::Unauthenticated, Count::Untrusted)
            }),
        }
    }
}

/// Whom a name can belong to: a static user, or the name in an ephemeral one ("expiry:name" or
/// "name:expiry"), which stays when the expiry changes. No static user's name holds a colon.
fn account(username: &str) -> Option<Arc<str>> {
    let Some((first, second)) = username.split_once(':') else {
        return username.parse::<u64>().is_err().then(|| username.into());
    };
    let name = if first.parse::<u64>().is_ok() { second } else { first };
    (!name.is_empty()).then(|| format!(":{name}").into())
}

pub(super) fn bad_request() -> ErrorResponse {
    ErrorResponse::new(ErrorCode::BadRequest, Count::BadRequest)
}

#[cfg(test)]
mod tests {
    use super::account;

    #[test]
    fn ephemeral_users_keep_their_names() {
        assert_eq!(account("alice").as_deref(), Some("alice"));
        assert_eq!(account("1700000000:alice").as_deref(), Some(":alice"));
        assert_eq!(account("alice:1700000000").as_deref(), Some(":alice"));
        assert_eq!(account("1700000000"), None);
        assert_eq!(account("1700000000:"), None);
    }
}
