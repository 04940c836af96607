//! What goes wrong with names, and how to mend it.

use rawr_proto::ErrorCode;

/// Why a Bridge does not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// Somebody else holds the name.
    #[error(
        "somebody else holds this name: choose another, or use the identity that registered it; it \
         becomes free when its lifetime is over"
    )]
    NameTaken,
    /// Another run of the same holder, which started later, holds the name.
    #[error(
        "another run with the same identity holds this name: end that one, or choose another name"
    )]
    NewerRun,
    /// Nobody holds the name.
    #[error(
        "nobody holds this name: is it spelt right, and is the other side listening at this server?"
    )]
    UnknownName,
    /// The holder has not been heard of for two minutes, or its connection has ended.
    #[error(
        "the holder of this name is not online: start the other side, or wait until it is back"
    )]
    Unreachable,
    /// The server has passed the introduction on, and the holder did not answer.
    #[error(
        "the holder of this name does not answer: it may just have gone; try again in a minute"
    )]
    NoAnswer,
    /// The answer was not made by the key that the introduction was sealed to.
    #[error(
        "the answer is not from the key that was asked for: somebody else answers under this name"
    )]
    WrongHolder,
    /// This client, or its network, asks too often.
    #[error("the server is asked too often from this network: wait a second and try again")]
    TooManyRequests,
    /// This client, its network or the server has no room for more.
    #[error(
        "the server holds no more names or introductions from here: give up some, or ask its operator"
    )]
    Quota,
    /// The server wants credentials, or others than those that were shown.
    #[error("the server wants credentials, or does not know these: check user, password and realm")]
    Credentials,
    /// The server does not allow it.
    #[error(
        "the server does not allow it from here: ask its operator to trust this network, or for \
         credentials, or use another server"
    )]
    Forbidden,
    /// The server does not know Bridge.
    #[error("this server offers no names: ask its operator for bridge.enabled, or use another")]
    NotOffered,
    /// No answer came.
    #[error("the server does not answer: check its address, and that UDP to its port gets through")]
    Unanswered,
    /// Anything else.
    #[error("the server refuses: {0}")]
    Refused(ErrorCode),
}

impl BridgeError {
    pub(super) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::NameTaken => Self::NameTaken,
            ErrorCode::RoleTaken => Self::NewerRun,
            ErrorCode::UnknownName => Self::UnknownName,
            ErrorCode::HolderUnreachable => Self::Unreachable,
            ErrorCode::TooManyRequests => Self::TooManyRequests,
            ErrorCode::QuotaReached => Self::Quota,
            ErrorCode::Unauthenticated | ErrorCode::StaleNonce => Self::Credentials,
            ErrorCode::Forbidden => Self::Forbidden,
            other => Self::Refused(other),
        }
    }

    /// Whether asking again later may help without anybody's doing.
    pub const fn is_passing(self) -> bool {
        match self {
            Self::TooManyRequests | Self::Unanswered | Self::Unreachable | Self::NoAnswer => true,
            Self::Refused(code) => {
                matches!(code, ErrorCode::ServerError | ErrorCode::InsufficientCapacity)
            }
            Self::NameTaken
            | Self::NewerRun
            | Self::UnknownName
            | Self::WrongHolder
            | Self::Quota
            | Self::Credentials
            | Self::Forbidden
            | Self::NotOffered => false,
        }
    }
}
