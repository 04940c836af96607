//! What the two messages of the introduction say that makes a link.
//!
//! Each begins with the version of what follows. The one who introduces itself says no more; the
//! holder of the name adds a byte: 0 for welcome, else why not.

use std::fmt;

/// The version of links that this is.
const VERSION: u8 = 1;

const WELCOME: u8 = 0;
const STRANGER: u8 = 1;
const FULL: u8 = 2;
const OTHER_VERSION: u8 = 3;

/// Why a listener does not want a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It lets in certain keys alone, and ours is none of them.
    Stranger,
    /// It has as many links as it may have.
    Full,
    /// It does not speak this version.
    Version,
    /// Something that this version does not know.
    Unknown(u8),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger => f.write_str(
                "it lets in certain keys alone, and this one is none of them: it has to be started with \
                 --peer-key and the key that `rawr identity` prints here",
            ),
            Self::Full => f.write_str("it has as many links as it may have: try again later"),
            Self::Version => {
                f.write_str("it speaks another version: both sides need the same release")
            }
            Self::Unknown(code) => {
                write!(f, "for reason {code}, which this version does not know: it is newer")
            }
        }
    }
}

/// What the one says that introduces itself.
pub(super) fn hello() -> Vec<u8> {
    vec![VERSION]
}

/// Whether a listener of this version understands what was said.
pub(super) fn is_understood(hello: &[u8]) -> bool {
    hello.first() == Some(&VERSION)
}

/// What the listener answers.
pub(super) fn answer(verdict: Result<(), Refusal>) -> Vec<u8> {
    let code = match verdict {
        Ok(()) => WELCOME,
        Err(Refusal::Stranger) => STRANGER,
        Err(Refusal::Full) => FULL,
        Err(Refusal::Version) => OTHER_VERSION,
        Err(Refusal::Unknown(code)) => code,
    };
    vec![VERSION, code]
}

/// Reads the listener's answer. What follows the two bytes is of a later version, and left alone.
pub(super) fn read_answer(message: &[u8]) -> Result<(), Refusal> {
    match message {
        [VERSION, WELCOME, ..] => Ok(()),
        [_, STRANGER, ..] => Err(Refusal::Stranger),
        [_, FULL, ..] => Err(Refusal::Full),
        [_, OTHER_VERSION, ..] => Err(Refusal::Version),
        [VERSION, code, ..] => Err(Refusal::Unknown(*code)),
        _ => Err(Refusal::Version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_were_meant() {
        let refusals = [Refusal::Stranger, Refusal::Full, Refusal::Version, Refusal::Unknown(77)];
        for verdict in refusals.map(Err).into_iter().chain([Ok(())]) {
            assert_eq!(read_answer(&answer(verdict)), verdict);
        }
    }

    #[test]
    fn other_versions_are_told_apart() {
        assert!(is_understood(&hello()));
        assert!(!is_understood(&[]));
        assert!(!is_understood(&[VERSION + 1, 1, 2, 3]));
        assert_eq!(read_answer(&[]), Err(Refusal::Version));
        assert_eq!(read_answer(&[VERSION + 1, WELCOME]), Err(Refusal::Version));
        assert_eq!(read_answer(&[VERSION, WELCOME, 9, 9]), Ok(()));
    }
}
