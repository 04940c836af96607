//! The errors that a server answers with (RFC 8489 §14.8).

use std::fmt;

/// Value of ERROR-CODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 400: the request does not make sense: an attribute is missing or contradicts another.
    BadRequest,
    /// 401: a nonce, credentials or the right key are missing. A fresh NONCE comes with it.
    Unauthenticated,
    /// 403: understood, and not allowed to this client.
    Forbidden,
    /// 404: nobody holds this name.
    UnknownName,
    /// 409: somebody else holds this name.
    NameTaken,
    /// 420: UNKNOWN-ATTRIBUTES lists what was not understood.
    UnknownAttribute,
    /// 429: this client asks too often. Ask again after a second or more.
    TooManyRequests,
    /// 437: the server holds no such leg. Connect anew.
    UnknownSession,
    /// 438: the nonce has expired. A fresh one comes with it.
    StaleNonce,
    /// 480: the holder of this name has not been heard of lately.
    HolderUnreachable,
    /// 482: HOP-LIST holds this server already.
    LoopDetected,
    /// 483: HOP-LIMIT is used up.
    TooManyHops,
    /// 486: this client has as many sessions, or names, as it may have.
    QuotaReached,
    /// 487: the session has a leg of this role already; or a newer run of this client holds the name.
    RoleTaken,
    /// 500: the server failed; trying again may help.
    ServerError,
    /// 508: no port or no memory left.
    InsufficientCapacity,
    /// Any other, from 300 to 699; made by [`ErrorCode::from_code`] only.
    Other(u16),
}

impl ErrorCode {
    const KNOWN: [Self; 16] = [
        Self::BadRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::UnknownName,
        Self::NameTaken,
        Self::UnknownAttribute,
        Self::TooManyRequests,
        Self::UnknownSession,
        Self::StaleNonce,
        Self::HolderUnreachable,
        Self::LoopDetected,
        Self::TooManyHops,
        Self::QuotaReached,
        Self::RoleTaken,
        Self::ServerError,
        Self::InsufficientCapacity,
    ];

    /// The error with this number; `None` unless it lies between 300 and 699.
    pub fn from_code(code: u16) -> Option<Self> {
        let known = Self::KNOWN.into_iter().find(|known| known.code() == code);
        known.or_else(|| (300..700).contains(&code).then_some(Self::Other(code)))
    }

    /// The number.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::UnknownName => 404,
            Self::NameTaken => 409,
            Self::UnknownAttribute => 420,
            Self::TooManyRequests => 429,
            Self::UnknownSession => 437,
            Self::StaleNonce => 438,
            Self::HolderUnreachable => 480,
            Self::LoopDetected => 482,
            Self::TooManyHops => 483,
            Self::QuotaReached => 486,
            Self::RoleTaken => 487,
            Self::ServerError => 500,
            Self::InsufficientCapacity => 508,
            Self::Other(code) => code,
        }
    }

    /// The reason phrase.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Unauthenticated => "Unauthenticated",
            Self::Forbidden => "Forbidden",
            Self::UnknownName => "Unknown Name",
            Self::NameTaken => "Name Taken",
            Self::UnknownAttribute => "Unknown Attribute",
            Self::TooManyRequests => "Too Many Requests",
            Self::UnknownSession => "Unknown Session",
            Self::StaleNonce => "Stale Nonce",
            Self::HolderUnreachable => "Holder Unreachable",
            Self::LoopDetected => "Loop Detected",
            Self::TooManyHops => "Too Many Hops",
            Self::QuotaReached => "Quota Reached",
            Self::RoleTaken => "Role Taken",
            Self::ServerError => "Server Error",
            Self::InsufficientCapacity => "Insufficient Capacity",
            Self::Other(_) => "",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.reason())
    }
}
