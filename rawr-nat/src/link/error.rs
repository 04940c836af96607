//! Why there is no link.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::BridgeName;

use super::greeting::Refusal;
use super::known::TrustError;
use crate::bridge::{BridgeError, SealError};
use crate::identity::WeakKey;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The server has not led to the other side.
    #[error("{name} at {server}: {error}")]
    Name {
        /// The name that was asked for.
        name: BridgeName,
        /// Where.
        server: SocketAddr,
        /// What went wrong.
        error: BridgeError,
    },
    /// The other side's key is not to be believed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The other side does not want us.
    #[error("{name} refuses: {refusal}")]
    Refused {
        /// Whom we asked.
        name: BridgeName,
        /// What it said.
        refusal: Refusal,
    },
    /// Nothing can be agreed on with such a key.
    #[error(transparent)]
    Weak(#[from] WeakKey),
    /// The introduction cannot be written.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A socket cannot be opened, or has failed, or the host does not tell its addresses.
    #[error("sockets: {0}")]
    Sockets(io::Error),
    /// The two sides have not proved to each other who they are.
    #[error("no connection: {0}")]
    Handshake(io::Error),
    /// The other side was introduced and then not heard of.
    #[error(
        "nothing has come from the other side within {} s: see that UDP gets through to the server from \
         both sides, or that this one reaches the other directly",
        after.as_secs()
    )]
    Silence {
        /// How long it was waited for.
        after: Duration,
    },
    /// It was told to stop.
    #[error("stopped before there was a link")]
    Stopped,
}

impl LinkError {
    /// Whether trying again later may help without anybody's doing here.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Name { error, .. } => {
                error.is_passing() || matches!(error, BridgeError::UnknownName)
            }
            Self::Refused { refusal, .. } => matches!(refusal, Refusal::Full),
            Self::Handshake(_) | Self::Silence { .. } => true,
            Self::Trust(_) | Self::Weak(_) | Self::Seal(_) | Self::Sockets(_) | Self::Stopped => {
                false
            }
        }
    }
}
