//! Who may use this server, and who belongs to a session.

use std::net::IpAddr;

use rawr_proto::{
    ErrorCode, IntegrityKey, LongTermKey, MacKey, Role, SessionKey, ephemeral_password, expiry,
};

use super::counters::Count;
use super::request::{ErrorResponse, Request, Subject};
use super::server::Server;
use super::store::Index;

/// A client that has shown to be allowed here and to know the session's key.
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) key: SessionKey,
    pub(super) mac_key: Option<MacKey>,
    pub(super) integrity: IntegrityKey,
}

impl Server {
    pub(super) fn trusts(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.config.trusted.iter().any(|subnet| subnet.contains(&source))
    }

    /// Checks a request that brings the session's key along.
    pub(super) fn admit(&self, request: &Request<'_>) -> Result<Caller, ErrorResponse> {
        let subject = request.subject()?;
        let a = request.attributes();
        let bad_request = || ErrorResponse::new(ErrorCode::BadRequest, Count::BadRequest);
        let wire_key = a.session_key.ok_or_else(bad_request)?;
        let (key, mac_key, integrity) = match self.user(request, |user| self.fits(request, user))? {
            Some(user) => {
                let nonce = a.nonce.as_deref().unwrap_or_default();
                let transaction = request.decoded.message.transaction;
                let key = user.mask_session_key(wire_key, nonce, transaction).session_key();
                let unmask = |masked| user.mask_mac_key(masked, nonce, transaction).mac_key();
                let integrity = IntegrityKey::credentialed(&user, &key);
                (key, a.mac_key.map(unmask), integrity)
            }
            None if self.trusts(request.from().ip()) => {
                let key = wire_key.session_key();
                let integrity = IntegrityKey::session(&key);
                (key, a.mac_key.map(rawr_proto::WireKey::mac_key), integrity)
            }
            None => return Err(self.untrusted()),
        };
        if !request.decoded.verify(&integrity) {
            return Err(wrong_integrity());
        }
        // Who has only seen the id cannot have a key that makes it.
        if key.id() != subject.session {
            let forbidden = ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden);
            return Err(forbidden.signed(&integrity));
        }
        Ok(Caller { subject, key, mac_key, integrity })
    }

    /// Checks a request about a leg that is here already. The session's key is proof enough: nobody
    /// has it but the peers and the servers that they chose.
    pub(super) fn member(
        &self,
        request: &Request<'_>,
    ) -> Result<(Index, Role, u64, IntegrityKey), ErrorResponse> {
        let Subject { session: id, role, epoch } = request.subject()?;
        let unknown = || ErrorResponse::new(ErrorCode::UnknownSession, Count::UnknownSession);
        let index = self.store.find(id).ok_or_else(unknown)?;
        let session = self.store.get(index).ok_or_else(unknown)?;
        let integrity = match self.user(request, |user| self.fits(request, user))? {
            Some(user) => IntegrityKey::credentialed(&user, &session.key),
            None => session.integrity(),
        };
        if !request.decoded.verify(&integrity) {
            return Err(wrong_integrity());
        }
        Ok((index, role, epoch, integrity))
    }

    /// The key of the user that the request names; `None` if it names none. Of an ephemeral user it is one
    /// that `fits`.
    pub(super) fn user(
        &self,
        request: &Request<'_>,
        fits: impl Fn(&LongTermKey) -> bool,
    ) -> Result<Option<LongTermKey>, ErrorResponse> {
        let a = request.attributes();
        let Some(username) = a.username.as_deref() else { return Ok(None) };
        if a.realm.as_deref().is_some_and(|realm| realm != self.config.realm) {
            return Err(wrong_integrity());
        }
        if let Some((_, account)) = self.users.find(username) {
            return Ok(Some(account.rawr.clone()));
        }
        expiry(username, request.now.unix.as_secs()).map_err(|_| wrong_integrity())?;
        // Of several secrets the right one is that which the request's integrity fits.
        let keys = self.config.secrets.iter().map(|secret| {
            LongTermKey::new(username, &self.config.realm, &ephemeral_password(secret, username))
        });
        let mut keys = keys.filter(|key| fits(key));
        keys.next().map(Some).ok_or_else(wrong_integrity)
    }

    fn fits(&self, request: &Request<'_>, user: &LongTermKey) -> bool {
        let a = request.attributes();
        let key = match a.session_key {
            Some(masked) => {
                let nonce = a.nonce.as_deref().unwrap_or_default();
                let transaction = request.decoded.message.transaction;
                user.mask_session_key(masked, nonce, transaction).session_key()
            }
            None => {
                let session = a.session.and_then(|id| self.store.get(self.store.find(id)?));
                let Some(session) = session else { return false };
                session.key.clone()
            }
        };
        request.decoded.verify(&IntegrityKey::credentialed(user, &key))
    }

    pub(super) fn untrusted(&self) -> ErrorResponse {
        if self.config.has_users() {
            ErrorResponse::challenge(ErrorCode::Unauthenticated, Count::Untrusted)
        } else {
            ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden)
        }
    }
}

pub(super) fn wrong_integrity() -> ErrorResponse {
    ErrorResponse::challenge(ErrorCode::Unauthenticated, Count::WrongIntegrity)
}
