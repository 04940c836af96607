//! One form for what people type: user names, passwords and realms (RFC 8489 §9.2.2).

use std::borrow::Cow;

use precis_profiles::OpaqueString;
use precis_profiles::precis_core::profile::PrecisFastInvocation as _;

/// Why a text cannot be a user name, a password or a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is empty, or holds what no keyboard types: control characters, or code points without meaning"
)]
pub struct NotOpaque;

/// The text in the form of the profile OpaqueString (RFC 8265 §4.2): characters composed (NFC), spaces of any
/// kind as U+0020; upper and lower case stay.
///
/// # Errors
/// The profile allows no such text.
pub fn opaque_string(text: &str) -> Result<Cow<'_, str>, NotOpaque> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if is_plain {
        return Ok(Cow::Borrowed(text));
    }
    let form = OpaqueString::enforce(text).map_err(|_| NotOpaque)?;
    // Composed, some characters become others that stand in certain places alone: U+0387 becomes U+00B7.
    match OpaqueString::enforce(&*form) {
        Ok(again) if again == form => Ok(form),
        _ => Err(NotOpaque),
    }
}

/// The same, or the text as it is where the profile does not allow it: it is nobody's then.
pub(crate) fn opaque_or_as_is(text: &str) -> Cow<'_, str> {
    opaque_string(text).unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_for_each_text() {
        for (text, form) in [
            ("Correct Horse: Battery~", "Correct Horse: Battery~"),
            ("e\u{301}", "\u{e9}"),
            ("\u{212b}", "\u{c5}"),
            ("a\u{3000}b\u{a0}c", "a b c"),
            // The example of RFC 5769 §2.4, and those of RFC 8265 §4.3.
            (
                "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}",
                "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}",
            ),
            ("\u{3c0}\u{df}\u{e5}", "\u{3c0}\u{df}\u{e5}"),
            ("Jack of \u{2666}s", "Jack of \u{2666}s"),
            ("foo\u{1680}bar", "foo bar"),
        ] {
            assert_eq!(opaque_string(text).as_deref(), Ok(form), "{text:?}");
        }
        // The last is the one that RFC 8265 §4.3 forbids.
        for text in ["", "a\0b", "tab\t", "\u{7f}", "\u{387}", "my cat is a \u{9}by"] {
            assert_eq!(opaque_string(text), Err(NotOpaque), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_form_is_its_own_form(text: String) {
            if let Ok(form) = opaque_string(&text) {
                let again = opaque_string(&form);
                prop_assert_eq!(again.as_deref(), Ok(&*form));
            }
        }
    }
}
