//! Names under which somebody can be found at a server.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::Error;
use precis_profiles::precis_core::profile::Profile;

/// Rounds after which a text that still changes is given up (RFC 8264 §7).
const ROUNDS: usize = 4;

/// A name in its normal form, which is the only one that goes over the wire: PRECIS profile
/// UsernameCaseMapped (RFC 8265 §3.3). So two names that differ only in case, in width or in how accents
/// are composed are one name; spaces, control and invisible characters are in none.
///
/// ```
/// use rawr_proto::BridgeName;
///
/// let name: BridgeName = "Büro-7".parse()?;
/// assert_eq!(name.as_str(), "büro-7");
/// assert_eq!(name, "BU\u{308}RO-7".parse()?);
/// assert!("two words".parse::<BridgeName>().is_err());
/// # Ok::<(), rawr_proto::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BridgeName(Arc<str>);

impl BridgeName {
    /// Longest name, in bytes of UTF-8 in normal form.
    pub const MAX_LEN: usize = 64;

    /// The name that somebody has typed, brought into its normal form.
    ///
    /// # Errors
    /// Says what keeps the text from being a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        // What normalisation could shorten that much is no name that anybody types.
        if text.len() > 4 * Self::MAX_LEN {
            return Err(NameError::Long { bytes: text.len() });
        }
        let mut name = text.to_owned();
        for _ in 0..ROUNDS {
            let next = normalised(&name)?;
            if next != name {
                name = next;
                continue;
            }
            return match name.len() {
                0..=Self::MAX_LEN => Ok(Self(name.into())),
                bytes => Err(NameError::Long { bytes }),
            };
        }
        Err(NameError::Unstable)
    }

    /// Reads a name that must be in its normal form already.
    pub(crate) fn from_wire(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= Self::MAX_LEN)?;
        let name = Self::new(text).ok()?;
        (name.as_str() == text).then_some(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn normalised(text: &str) -> Result<String, NameError> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.bytes().all(is_plain) {
        return Ok(text.to_owned());
    }
    match UsernameCaseMapped::new().enforce(text) {
        Ok(name) => Ok(name.into_owned()),
        Err(Error::BadCodepoint(info)) => {
            let character = char::from_u32(info.cp).unwrap_or(char::REPLACEMENT_CHARACTER);
            Err(NameError::Character { character, position: info.position })
        }
        Err(Error::Invalid | Error::Unexpected(_)) => Err(NameError::Order),
    }
}

impl FromStr for BridgeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BridgeName({:?})", self.as_str())
    }
}

/// Why a text is no [`BridgeName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing in it.
    #[error("a name must not be empty")]
    Empty,
    /// It is too long.
    #[error(
        "a name has at most {} bytes of UTF-8, not {bytes}: choose a shorter one",
        BridgeName::MAX_LEN
    )]
    Long {
        /// Its length.
        bytes: usize,
    },
    /// It holds something that is in no name.
    #[error(
        "{character:?} at position {position} is in no name: take letters, digits and ASCII punctuation, no spaces"
    )]
    Character {
        /// The first such.
        character: char,
        /// Characters before it.
        position: usize,
    },
    /// Letters written from right to left are mixed with others in a way that would be shown as another
    /// name (RFC 5893 §2), or a character stands where it means nothing.
    #[error("the characters are in an order that is in no name: do not mix writing directions")]
    Order,
    /// Its normal form has a normal form of its own.
    #[error("the name has no normal form: choose another")]
    Unstable,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Result<String, NameError> {
        BridgeName::new(text).map(|name| name.as_str().to_owned())
    }

    #[test]
    fn names_that_look_alike_are_one() {
        for (text, normal) in [
            ("alice", "alice"),
            ("ALICE-Laptop_2", "alice-laptop_2"),
            ("ａｌｉｃｅ", "alice"),
            ("BU\u{308}RO", "b\u{fc}ro"),
            ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
            ("שלום", "שלום"),
            ("#1@home/nas!", "#1@home/nas!"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(normal));
            assert_eq!(BridgeName::from_wire(normal.as_bytes()).unwrap().as_str(), normal);
            assert_eq!(text == normal, BridgeName::from_wire(text.as_bytes()).is_some());
        }
    }

    #[test]
    fn what_is_in_no_name_is_named() {
        assert_eq!(name(""), Err(NameError::Empty));
        assert_eq!(name("a b"), Err(NameError::Character { character: ' ', position: 1 }));
        for bad in ["\u{7}", "a\u{202e}b", "a\u{200b}", "a\u{a0}", "\u{1f600}", "\n"] {
            assert!(matches!(name(bad), Err(NameError::Character { .. })), "{bad:?}");
        }
        assert_eq!(name("אa"), Err(NameError::Order));
        assert_eq!(name(&"x".repeat(64)).map(|name| name.len()), Ok(64));
        assert_eq!(name(&"x".repeat(65)), Err(NameError::Long { bytes: 65 }));
        assert_eq!(name(&"ü".repeat(33)), Err(NameError::Long { bytes: 66 }));
        assert_eq!(name(&"x".repeat(1000)), Err(NameError::Long { bytes: 1000 }));
        assert!(BridgeName::from_wire(&[0xff]).is_none());
    }

    proptest! {
        #[test]
        fn the_normal_form_is_its_own(text in "\\PC{0,40}") {
            if let Ok(normal) = name(&text) {
                prop_assert_eq!(name(&normal), Ok(normal.clone()));
                prop_assert!(normal.len() <= BridgeName::MAX_LEN);
                prop_assert!(!normal.chars().any(|c| c.is_control() || c.is_whitespace()));
                prop_assert!(BridgeName::from_wire(normal.as_bytes()).is_some());
            }
        }
    }
}
