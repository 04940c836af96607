//! What a session is to do, and what it says.

use std::time::Duration;

use crate::identity::{Identity, PublicKey};

/// What a [`Session`](super::Session) is to do.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Who we are.
    pub identity: Identity,
    /// What both sides know of the connection; a handshake made for another one is not accepted. May
    /// be empty, and need not be secret.
    pub context: Vec<u8>,
    /// Greater each time the peer starts (milliseconds since 1970).
    pub epoch: u64,
    /// How long the initiator of the first handshake tries.
    pub patience: Duration,
    /// When keys are replaced.
    pub rekeying: Rekeying,
}

impl SessionConfig {
    /// With the usual times.
    pub fn new(identity: Identity, context: Vec<u8>, epoch: u64) -> Self {
        let (patience, rekeying) = (Duration::from_secs(30), Rekeying::default());
        Self { identity, context, epoch, patience, rekeying }
    }
}

/// When keys are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rekeying {
    /// Their age at which their initiator begins a new handshake, in the background. The other side
    /// does so a quarter later, if there is none by then.
    pub after: Duration,
    /// The number of datagrams sealed after which either side begins one.
    pub after_datagrams: u64,
    /// Their age at which they are used no longer, and the session has failed.
    pub expire: Duration,
    /// How long replaced keys still open what is late.
    pub grace: Duration,
}

impl Default for Rekeying {
    /// 2 minutes or 2^32 datagrams, 4 minutes, 15 seconds.
    fn default() -> Self {
        Self {
            after: Duration::from_secs(120),
            after_datagrams: 1 << 32,
            expire: Duration::from_secs(240),
            grace: Duration::from_secs(15),
        }
    }
}

/// What a [`Session`](super::Session) wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    /// Send to the other side, over whatever path.
    Transmit(Vec<u8>),
    /// Something happened.
    Event(SessionEvent),
}

/// What happened to a [`Session`](super::Session).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// Both sides have proved who they are. Data flows from now on.
    Established {
        /// The other side.
        peer: PublicKey,
    },
    /// New keys are in use.
    Rekeyed,
    /// Somebody else than expected has knocked, and proved to have this key.
    Refused(PublicKey),
    /// The session is over.
    Failed(SessionError),
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Nobody answered the first handshake.
    #[error("no answer from {peer} within {} s: nothing gets through, or nobody is there",
        after.as_secs())]
    Unanswered {
        /// Whom we asked for.
        peer: PublicKey,
        /// How long we tried.
        after: Duration,
    },
    /// Somebody answered that the handshake cannot be read.
    #[error(
        "the other side is not {peer}, or takes part in another connection: compare the key with \
        the one that it prints"
    )]
    WrongPeer {
        /// Whom we asked for.
        peer: PublicKey,
    },
    /// Somebody answered that they expect somebody else.
    #[error("{peer} expects somebody else than {own}: it has to be told that key")]
    NotExpected {
        /// Whom we asked for.
        peer: PublicKey,
        /// Who we are.
        own: PublicKey,
    },
    /// The keys grew too old, and no handshake for new ones was answered.
    #[error("{peer} has not answered for {} s, and the keys have expired", after.as_secs())]
    Expired {
        /// The other side.
        peer: PublicKey,
        /// How long we tried.
        after: Duration,
    },
}

/// Why nothing can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There are no keys yet.
    #[error("the session is not established yet")]
    NotEstablished,
    /// There will be none.
    #[error(transparent)]
    Over(SessionError),
    /// No datagram is that long.
    #[error("{0} bytes do not fit in a datagram: at most {max}", max = super::MAX_PAYLOAD)]
    TooLong(usize),
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It is not of this protocol.
    #[error("not a datagram of a session")]
    Malformed,
    /// It was sealed with keys that there are not, or no longer.
    #[error("sealed with unknown or old keys")]
    UnknownKeys,
    /// It was changed on its way, or made by somebody without the keys.
    #[error("not genuine")]
    Forged,
    /// It came before, or is too old to tell.
    #[error("came before, or too late")]
    Replayed,
    /// A handshake that was written for another key or context.
    #[error("a handshake for somebody else")]
    Unreadable,
    /// A handshake of somebody who is not expected.
    #[error("a handshake of {0}, who is not expected")]
    Stranger(PublicKey),
    /// A handshake that has come at the same time as the own one, which goes first.
    #[error("the own handshake goes first")]
    Simultaneous,
    /// More handshakes than are computed in this time.
    #[error("too many handshakes")]
    TooMany,
    /// The session is over.
    #[error("the session is over")]
    Over,
}
