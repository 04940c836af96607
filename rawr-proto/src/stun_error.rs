//! The errors that a STUN or TURN server answers with (RFC 8489 §14.8 and those named below).

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $reason:literal;)*) => {
        /// Value of ERROR-CODE in an answer to a STUN or TURN request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum StunError {
            $($(#[$doc])* $variant,)*
        }

        impl StunError {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number.
            pub const fn code(self) -> u16 {
                match self {
                    $(Self::$variant => $code,)*
                }
            }

            /// The reason phrase.
            pub const fn reason(self) -> &'static str {
                match self {
                    $(Self::$variant => $reason,)*
                }
            }
        }
    };
}

codes! {
    /// The client should go to the server in ALTERNATE-SERVER (RFC 8489 §10).
    TryAlternate = 300, "Try Alternate";
    /// The request does not make sense: an attribute is missing or contradicts another (RFC 8489).
    BadRequest = 400, "Bad Request";
    /// Credentials are missing or wrong; NONCE and REALM come with it (RFC 8489 §9.2).
    Unauthenticated = 401, "Unauthenticated";
    /// Understood, and not allowed to this client, or not to this peer (RFC 8656 §19).
    Forbidden = 403, "Forbidden";
    /// Mobility is not offered here (RFC 8016 §3).
    MobilityForbidden = 405, "Mobility Forbidden";
    /// UNKNOWN-ATTRIBUTES lists what was not understood (RFC 8489).
    UnknownAttribute = 420, "Unknown Attribute";
    /// There is no allocation on this 5-tuple, or there is one already (RFC 8656 §19).
    AllocationMismatch = 437, "Allocation Mismatch";
    /// The nonce has expired; a fresh one comes with it (RFC 8489 §9.2).
    StaleNonce = 438, "Stale Nonce";
    /// There are no relayed addresses of this family (RFC 8656 §19).
    AddressFamilyNotSupported = 440, "Address Family not Supported";
    /// The allocation belongs to another user (RFC 8656 §19).
    WrongCredentials = 441, "Wrong Credentials";
    /// REQUESTED-TRANSPORT is not offered, or not over this transport (RFC 8656 §19).
    UnsupportedTransportProtocol = 442, "Unsupported Transport Protocol";
    /// The peer is of another family than the relayed transport address (RFC 8656 §19).
    PeerAddressFamilyMismatch = 443, "Peer Address Family Mismatch";
    /// There is a connection to this peer already (RFC 6062 §6.2).
    ConnectionAlreadyExists = 446, "Connection Already Exists";
    /// The peer refused the connection, or did not answer (RFC 6062 §6.2).
    ConnectionTimeoutOrFailure = 447, "Connection Timeout or Failure";
    /// The user has as many allocations as it may have (RFC 8656 §19).
    AllocationQuotaReached = 486, "Allocation Quota Reached";
    /// The server failed; trying again may help (RFC 8489).
    ServerError = 500, "Server Error";
    /// No port, or no memory left (RFC 8656 §19).
    InsufficientCapacity = 508, "Insufficient Capacity";
}

impl StunError {
    /// Class and number, as they stand in ERROR-CODE.
    pub const fn digits(self) -> (u8, u8) {
        ((self.code() / 100) as u8, (self.code() % 100) as u8)
    }
}

impl fmt::Display for StunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.reason())
    }
}
