//! Clients that bring an access token in place of a password (RFC 7635).
//!
//! A client sends its token with Allocate and Refresh, and keys what lies between with the key in it. So the
//! key is remembered for the client's 5-tuple, as long as the token is good.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rawr_proto::{AccessToken, IntegrityAttribute, LongTermIntegrity, Token, TokenKey};
use stun_types::attribute::AttributeStaticType;
use stun_types::message::Message;

use super::{Authenticated, Claim, Refusal, wrong_credentials};
use crate::control::client::Client;
use crate::control::config::ServerConfig;
use crate::control::server::Server;
use crate::control::time::Now;

/// This server as its authorization servers know it.
#[derive(Clone, Debug)]
pub struct TokenServer {
    /// What tokens are made for. Clients are told it with the challenge.
    pub name: String,
    /// Keys that are shared with the authorization servers. Several, so that they can be rotated.
    pub keys: Vec<TokenKey>,
}

/// Keys of the clients that have shown a token.
#[derive(Debug)]
pub(in crate::control) struct Tokens {
    held: HashMap<Client, Held>,
    most: usize,
    /// How many there may be before those whose time is over are looked for.
    prune_at: usize,
}

#[derive(Debug)]
struct Held {
    user: Arc<str>,
    token: Token,
}

impl Tokens {
    pub(in crate::control) fn new(config: &ServerConfig) -> Self {
        Self { held: HashMap::new(), most: config.limits.sessions, prune_at: 1024 }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Where there is no room, the client has to send its token with each request.
    fn hold(&mut self, now: Duration, client: &Client, held: Held) {
        if self.held.len() >= self.prune_at {
            self.held.retain(|_, held| held.token.good_until(now).is_some());
            self.prune_at = (self.held.len() * 2).clamp(1024, self.most.max(1024));
        }
        if self.held.len() < self.most || self.held.contains_key(client) {
            self.held.insert(*client, held);
        }
    }
}

impl Server {
    /// Checks a request whose USERNAME is the name of a good key of [`TokenServer::keys`]; `None` for any
    /// other.
    pub(super) fn bearer(
        &mut self,
        now: Now,
        client: &Client,
        claim: &Claim<'_>,
        message: &Message<'_>,
        attribute: IntegrityAttribute,
    ) -> Option<Result<Authenticated, Refusal>> {
        let server = self.config.tokens.as_ref()?;
        let name = std::str::from_utf8(&claim.username.as_ref()?.value).ok()?;
        let key = server.keys.iter().find(|key| key.id() == name && key.is_good(now.unix))?;
        let shown = message.raw_attribute(AccessToken::TYPE);
        let shown = shown.map(|token| key.open(&server.name, &token.value));
        let held = self.tokens.held.get(client).filter(|held| &*held.user == name);
        let (user, token, is_new) = match (shown, held) {
            (Some(Ok(token)), _) => (name.into(), token, true),
            (None, Some(held)) => (Arc::clone(&held.user), held.token.clone(), false),
            (Some(Err(_)), _) | (None, None) => return Some(Err(wrong_credentials().verified())),
        };
        let until = token.good_until(now.unix);
        let key = LongTermIntegrity::from_key(attribute, &token.key);
        let Some(until) = until.filter(|_| key.verify(message)) else {
            return Some(Err(wrong_credentials().verified()));
        };
        if is_new {
            let user = Arc::clone(&user);
            self.tokens.hold(now.unix, client, Held { user, token });
        }
        Some(Ok(Authenticated { user, key, expires: Some(until) }))
    }
}
