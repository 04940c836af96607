//! A request and its answer, as the handlers see them.

use std::net::SocketAddr;

use rawr_proto::{Attributes, Decoded, ErrorCode, IntegrityKey, Role, SessionId};

use super::client::Client;
use super::counters::Count;
use super::time::Now;

/// A request on the STUN port.
pub(super) struct Request<'a> {
    pub(super) now: Now,
    pub(super) client: &'a Client,
    pub(super) decoded: &'a Decoded<'a>,
    /// Bytes.
    pub(super) length: usize,
}

impl Request<'_> {
    /// Address of ours that it came to.
    pub(super) fn local(&self) -> SocketAddr {
        self.client.local
    }

    pub(super) fn from(&self) -> SocketAddr {
        self.client.remote
    }

    pub(super) fn attributes(&self) -> &Attributes {
        &self.decoded.message.attributes
    }

    /// The leg that it is about.
    pub(super) fn subject(&self) -> Result<Subject, ErrorResponse> {
        let a = self.attributes();
        match (a.session, a.role, a.epoch) {
            (Some(session), Some(role), Some(epoch)) => Ok(Subject { session, role, epoch }),
            _ => Err(ErrorResponse::new(ErrorCode::BadRequest, Count::BadRequest)),
        }
    }
}

/// SESSION-ID, ROLE and EPOCH.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) session: SessionId,
    pub(super) role: Role,
    pub(super) epoch: u64,
}

/// What becomes of a granted request.
pub(super) enum Answer {
    /// A success response, keyed where integrity was asked for.
    Now(Box<Success>),
    /// It follows when the data port is open.
    Later,
}

pub(super) struct Success {
    pub(super) attributes: Attributes,
    pub(super) key: Option<IntegrityKey>,
}

impl Answer {
    pub(super) fn now(attributes: Attributes, key: Option<IntegrityKey>) -> Self {
        Self::Now(Box::new(Success { attributes, key }))
    }
}

/// What becomes of a refused request: an error response.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    pub(super) code: ErrorCode,
    pub(super) count: Count,
    /// Whether NONCE, and REALM for who needs it, go with it.
    pub(super) challenge: bool,
    /// Whether REALM goes with it though the source is trusted.
    pub(super) needs_user: bool,
    /// UNKNOWN-ATTRIBUTES.
    pub(super) unknown: Vec<u16>,
    /// Known once the request's integrity has been checked.
    pub(super) key: Option<Box<IntegrityKey>>,
}

impl ErrorResponse {
    pub(super) fn new(code: ErrorCode, count: Count) -> Self {
        let (challenge, needs_user) = (false, false);
        Self { code, count, challenge, needs_user, unknown: Vec::new(), key: None }
    }

    /// 401, or 438 for a stale nonce, with what the client needs to come back.
    pub(super) fn challenge(code: ErrorCode, count: Count) -> Self {
        Self { challenge: true, ..Self::new(code, count) }
    }

    pub(super) fn signed(self, key: &IntegrityKey) -> Self {
        Self { key: Some(Box::new(key.clone())), ..self }
    }
}
