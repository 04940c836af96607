//! Who sends a STUN or TURN request: the long-term credential mechanism, as a server runs it
//! (RFC 8489 §9.2.4).
//!
//! ```text
//! integrity? ─▶ all there? ─▶ nonce ─▶ rate of the prefix ─▶ algorithms ─▶ user ─▶ integrity
//!     401           400        438         (silence)             400        401       401
//! ```
//!
//! The nonce comes before everything that costs more than itself: a source that may be forged makes this
//! server neither look up a user nor compute a user's key.

use std::sync::Arc;
use std::time::Duration;

use rawr_proto::{
    IntegrityAttribute, LongTermIntegrity, NonceError, PasswordAlgorithm, PasswordKey,
    SecurityFeatures, StunError, ephemeral_password, ephemeral_password_sha256, expiry,
};
use stun_types::attribute::{
    Attribute, AttributeStaticType, AttributeType, MessageIntegrity, MessageIntegritySha256, Nonce,
    PasswordAlgorithm as AlgorithmAttribute, PasswordAlgorithms, RawAttribute, Realm, Userhash,
    Username,
};
use stun_types::message::Message;
use turn_types::message::ALLOCATE;

#[cfg(feature = "oauth")]
mod token;

#[cfg(feature = "oauth")]
pub use token::TokenServer;
#[cfg(feature = "oauth")]
pub(super) use token::Tokens;

use super::client::Client;
use super::counters::Count;
use super::limits::Prefix;
use super::server::Server;
use super::stun::Refusal;
use super::time::Now;

/// Longest USERNAME, in bytes (RFC 8489 §14.3).
const LONGEST_NAME: usize = 508;

/// A user that has shown to be one.
#[derive(Clone, Debug)]
pub(super) struct Authenticated {
    /// USERNAME, in clear.
    pub(super) user: Arc<str>,
    /// Signs the answer, with the attribute that the request had.
    pub(super) key: LongTermIntegrity,
    /// Since 1970: when an ephemeral user's time is over, or was.
    pub(super) expires: Option<Duration>,
}

/// The attributes that must be understood for it (RFC 8489 §9.2, RFC 7635 §6.2).
pub(super) const CREDENTIALS: &[AttributeType] = &[
    Username::TYPE,
    Userhash::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    AlgorithmAttribute::TYPE,
    MessageIntegrity::TYPE,
    MessageIntegritySha256::TYPE,
    #[cfg(feature = "oauth")]
    rawr_proto::AccessToken::TYPE,
];

/// The attributes that show who sends a request, each as it first occurs before the integrity.
#[derive(Default)]
struct Claim<'a> {
    username: Option<RawAttribute<'a>>,
    userhash: Option<RawAttribute<'a>>,
    realm: Option<RawAttribute<'a>>,
    nonce: Option<RawAttribute<'a>>,
    algorithm: Option<RawAttribute<'a>>,
    algorithms: Option<RawAttribute<'a>>,
}

impl<'a> Claim<'a> {
    fn of(message: &'a Message<'_>) -> Self {
        let mut claim = Self::default();
        for (_, attribute) in message.iter_attributes() {
            let slot = match attribute.get_type() {
                Username::TYPE => &mut claim.username,
                Userhash::TYPE => &mut claim.userhash,
                Realm::TYPE => &mut claim.realm,
                Nonce::TYPE => &mut claim.nonce,
                AlgorithmAttribute::TYPE => &mut claim.algorithm,
                PasswordAlgorithms::TYPE => &mut claim.algorithms,
                _ => continue,
            };
            slot.get_or_insert(attribute);
        }
        claim
    }

    /// Which algorithm makes the key, if the client was not talked into a worse one.
    fn algorithm(&self, told: SecurityFeatures) -> Option<PasswordAlgorithm> {
        match (&self.algorithm, &self.algorithms) {
            (None, None) => Some(PasswordAlgorithm::default()),
            (Some(chosen), _) if !told.password_algorithms => {
                PasswordAlgorithm::from_value(&chosen.value)
            }
            (Some(chosen), Some(offered)) if *offered.value == PasswordAlgorithm::OFFERED => {
                PasswordAlgorithm::from_value(&chosen.value)
            }
            (Some(_), _) | (None, Some(_)) => None,
        }
    }
}

/// How the request's key is made.
#[derive(Clone, Copy)]
struct Scheme {
    algorithm: PasswordAlgorithm,
    attribute: IntegrityAttribute,
    /// Whether an ephemeral user must still have time left.
    in_time: bool,
}

impl Server {
    /// Checks that a request was made by a user, at the address that it comes from. On the way it counts
    /// against the rate of the source's prefix.
    ///
    /// # Errors
    /// The error response to send ([`Server::refuse_stun`]).
    pub(super) fn authenticate(
        &mut self,
        now: Now,
        client: &Client,
        message: &Message<'_>,
    ) -> Result<Authenticated, Refusal> {
        if !self.config.has_users() {
            return Err(Refusal::new(StunError::Forbidden, Count::Forbidden).unverified());
        }
        let Some(attribute) = IntegrityAttribute::of(message) else {
            return Err(Refusal::challenge(StunError::Unauthenticated, Count::NoNonce));
        };
        let claim = Claim::of(message);
        let bad_request = || Refusal::new(StunError::BadRequest, Count::BadRequest);
        let named = claim.username.is_some() || claim.userhash.is_some();
        let (true, Some(realm), Some(nonce)) = (named, &claim.realm, &claim.nonce) else {
            return Err(bad_request().unverified());
        };
        let nonce = std::str::from_utf8(&nonce.value).unwrap_or_default();
        let told = self
            .features_told(now, client, message, nonce)
            .map_err(|_| Refusal::challenge(StunError::StaleNonce, Count::StaleNonce))?;
        if !self.requests.allow(now.monotonic, Prefix::of(client.remote.ip())) {
            return Err(Refusal::silent(StunError::ServerError, Count::RequestRate));
        }
        let algorithm = claim.algorithm(told).ok_or_else(bad_request)?;
        let in_time = self.config.strict_expiry || message.method() == ALLOCATE;
        let scheme = Scheme { algorithm, attribute, in_time };
        #[cfg(feature = "oauth")]
        if let Some(outcome) = self.bearer(now, client, &claim, message, attribute) {
            return outcome;
        }
        let same_realm = *realm.value == *self.config.realm.as_bytes();
        let user = same_realm.then(|| self.identify(now, &claim, message, scheme)).flatten();
        let user = user.ok_or_else(|| wrong_credentials().verified())?;
        if message.method() == ALLOCATE
            && let Some(refusal) = self.elsewhere(client, message)
        {
            return Err(refusal.signed(&user.key));
        }
        Ok(user)
    }

    /// Checks the nonce; returns the features that it told the client of. A ConnectionBind (RFC 6062 §5.4)
    /// may show that of its control connection: clients keep one nonce for all their connections, and a
    /// challenge here would have them replace it by one that is stale on the control connection.
    fn features_told(
        &self,
        now: Now,
        client: &Client,
        message: &Message<'_>,
        nonce: &str,
    ) -> Result<SecurityFeatures, NonceError> {
        let check = |source| self.nonces.check(now.unix.as_secs(), source, nonce);
        check(client.remote).or_else(|error| match self.control_connection(client, message) {
            Some(control) => check(control.remote),
            None => Err(error),
        })
    }

    /// Finds the user, static or ephemeral, whose key made the request's integrity.
    fn identify(
        &self,
        now: Now,
        claim: &Claim<'_>,
        message: &Message<'_>,
        scheme: Scheme,
    ) -> Option<Authenticated> {
        let Scheme { algorithm, attribute, in_time } = scheme;
        let name = claim.username.as_ref().map(|name| std::str::from_utf8(&name.value));
        let name = name.transpose().ok()?;
        let hash = claim.userhash.as_ref().map(|hash| &*hash.value);
        let account = match (name, hash) {
            (Some(name), _) => self.users.find(name),
            (None, Some(hash)) => self.users.find_hashed(hash),
            (None, None) => None,
        };
        if let Some((user, account)) = account {
            let key = account.integrity(algorithm, attribute);
            let user = Arc::clone(user);
            return key.verify(message).then_some(Authenticated { user, key, expires: None });
        }
        let name = name.filter(|name| name.len() <= LONGEST_NAME)?;
        let oldest = if in_time { now.unix.as_secs() } else { 0 };
        let expires = Some(Duration::from_secs(expiry(name, oldest).ok()?));
        // Of several secrets the right one is that which the request's integrity fits.
        let secrets = self.config.secrets.iter();
        let passwords = secrets.flat_map(|secret| {
            [ephemeral_password, ephemeral_password_sha256]
                .into_iter()
                .map(|make| make(secret, name))
        });
        let mut keys = passwords.map(|password| {
            let key = PasswordKey::new(algorithm, name, &self.config.realm, &password);
            LongTermIntegrity::new(attribute, &key)
        });
        let key = keys.find(|key| key.verify(message))?;
        Some(Authenticated { user: name.into(), key, expires })
    }
}

/// 401: unknown user, wrong password, wrong realm or expired; which of them is not said.
fn wrong_credentials() -> Refusal {
    Refusal::challenge(StunError::Unauthenticated, Count::WrongIntegrity)
}

#[cfg(test)]
mod tests;
