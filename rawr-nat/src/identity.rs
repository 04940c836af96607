//! Who somebody is: an X25519 key pair that is kept, whose public half is the name.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD_NOCASE, DecodeKind};
use hmac::{Hmac, Mac as _};
use rand::CryptoRng;
use rawr_proto::SessionSecret;
use sha2::Sha256;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// Length of a public key as text: 256 bits, five to a character.
const TEXT_LEN: usize = 52;

/// A key pair that is kept. The secret half is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Identity {
    secret: StaticSecret,
    public: PublicKey,
}

impl Identity {
    /// A new one. `rng` is the system's, or has been seeded by it with 32 bytes.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self::from_bytes(&bytes)
    }

    /// The key pair of these secret 32 bytes (RFC 7748 §5).
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let secret = StaticSecret::from(*bytes);
        let public = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }

    /// The secret bytes, to keep them.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// The half that others may know.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// What the holders of these two key pairs can compute, and nobody else (RFC 7748 §6.1).
    ///
    /// # Errors
    /// If `theirs` is one of the few points with which everybody would get the same result.
    pub fn agree(&self, theirs: &PublicKey) -> Result<Zeroizing<[u8; 32]>, WeakKey> {
        let shared = self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(theirs.0));
        match shared.was_contributory() {
            true => Ok(Zeroizing::new(shared.to_bytes())),
            false => Err(WeakKey(*theirs)),
        }
    }

    /// The secret of a session with the holder of `theirs`, the same on both sides. Sessions that
    /// exist at the same time differ in `context`, which both sides know and which is no secret.
    ///
    /// # Errors
    /// If `theirs` is no key that anybody holds.
    pub fn session_secret(
        &self,
        theirs: &PublicKey,
        context: &[u8],
    ) -> Result<SessionSecret, WeakKey> {
        let shared = self.agree(theirs)?;
        let low = self.public.min(*theirs);
        let high = self.public.max(*theirs);
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(shared.as_ref()).expect("HMAC takes keys of any length");
        hmac.update(b"rawr session secret of two identities");
        hmac.update(&low.0);
        hmac.update(&high.0);
        hmac.update(context);
        Ok(SessionSecret::from_bytes(hmac.finalize().into_bytes().into()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// The half of an [`Identity`] that others know it by. As text it is base32 (RFC 4648 §6) in small
/// letters without padding, 52 characters; capital letters are taken as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes (RFC 7748 §5).
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, as they go over the wire.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        if text.len() != TEXT_LEN {
            return Err(ParseKeyError::Length(text.len()));
        }
        let bytes =
            BASE32_NOPAD_NOCASE.decode(text.as_bytes()).map_err(|error| match error.kind {
                DecodeKind::Symbol => ParseKeyError::Character(error.position),
                DecodeKind::Length | DecodeKind::Trailing | DecodeKind::Padding => {
                    ParseKeyError::Trailing
                }
            })?;
        bytes.try_into().map(Self).map_err(|_| ParseKeyError::Trailing)
    }
}

/// A public key that no key pair has: whoever agreed on a secret with it would share it with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a usable public key: a secret agreed on with it would be known to everybody")]
pub struct WeakKey(pub PublicKey);

/// Why a text is no [`PublicKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// It is not 52 bytes long but this many.
    #[error("a public key has {TEXT_LEN} characters (a-z, 2-7), not {0}")]
    Length(usize),
    /// No letter, and no digit from 2 to 7, at this position, counted from 0.
    #[error("the character at position {0} of the public key is none of a-z and 2-7")]
    Character(usize),
    /// The last character has bits that no key has.
    #[error("the last character of the public key is wrong: it has been mistyped or cut off")]
    Trailing,
}

#[cfg(feature = "tokio")]
pub use file::IdentityFileError;

#[cfg(feature = "tokio")]
mod file {
    //! An identity in a file: the secret bytes in hexadecimal, for its owner alone.

    use std::fs::{self, OpenOptions};
    use std::io::{self, Write as _};
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    use std::path::{Path, PathBuf};

    use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
    use rand::TryRngCore as _;
    use rand::rngs::OsRng;
    use zeroize::Zeroizing;

    use super::Identity;

    impl Identity {
        /// A new one from the system's random generator.
        ///
        /// # Panics
        /// If the system has no randomness to give.
        pub fn random() -> Self {
            Self::generate(&mut OsRng.unwrap_err())
        }

        /// Reads the identity in `path`; if there is no such file, makes one with a new identity and
        /// mode 0600.
        ///
        /// # Errors
        /// If the file can be read by others, or is not what [`Identity::save`] writes; if it cannot
        /// be read or made.
        pub fn load_or_create(path: &Path) -> Result<Self, IdentityFileError> {
            match Self::load(path) {
                Err(IdentityFileError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    let identity = Self::random();
                    match identity.save(path) {
                        // Somebody else was faster: theirs counts.
                        Err(IdentityFileError::Write { source, .. })
                            if source.kind() == io::ErrorKind::AlreadyExists =>
                        {
                            Self::load(path)
                        }
                        result => result.map(|()| identity),
                    }
                }
                result => result,
            }
        }

        /// Reads the identity in `path`.
        ///
        /// # Errors
        /// If the file can be read by others, is no identity, or cannot be read.
        pub fn load(path: &Path) -> Result<Self, IdentityFileError> {
            let at = || path.to_path_buf();
            let failed = |source| IdentityFileError::Read { path: at(), source };
            let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(IdentityFileError::Exposed { path: at(), mode });
            }
            let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
            let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map(Zeroizing::new);
            let bytes = bytes.ok().and_then(|it| <[u8; 32]>::try_from(it.as_slice()).ok());
            let bytes = bytes.map(Zeroizing::new);
            bytes.map(|it| Self::from_bytes(&it)).ok_or_else(|| IdentityFileError::Format(at()))
        }

        /// Writes a new file with mode 0600: 64 hexadecimal digits and a newline. It appears under
        /// its name only when it is whole.
        ///
        /// # Errors
        /// If there is a file of this name already (an identity is not replaced by mistake), or it
        /// cannot be written.
        pub fn save(&self, path: &Path) -> Result<(), IdentityFileError> {
            let failed = |source| IdentityFileError::Write { path: path.to_path_buf(), source };
            let draft = path.with_extension(format!("new.{}", std::process::id()));
            let text = Zeroizing::new(HEXLOWER.encode(self.to_bytes().as_ref()));
            let write = || {
                let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
                let mut file = options.open(&draft)?;
                file.write_all(text.as_bytes())?;
                file.write_all(b"\n")?;
                file.sync_all()?;
                fs::hard_link(&draft, path)
            };
            let result = write().map_err(failed);
            let _ = fs::remove_file(&draft);
            result
        }
    }

    /// Why an identity's file cannot be used.
    #[derive(Debug, thiserror::Error)]
    pub enum IdentityFileError {
        /// It cannot be read.
        #[error("identity {}: {source}", path.display())]
        Read {
            /// Which file.
            path: PathBuf,
            /// Why.
            source: io::Error,
        },
        /// It cannot be written.
        #[error("identity {} cannot be written: {source}", path.display())]
        Write {
            /// Which file.
            path: PathBuf,
            /// Why.
            source: io::Error,
        },
        /// Others than its owner may read or change it.
        #[error("identity {} has mode {mode:03o}, others may know it: chmod 600, or make a new one",
            path.display())]
        Exposed {
            /// Which file.
            path: PathBuf,
            /// Its mode bits.
            mode: u32,
        },
        /// Something else is in it.
        #[error("identity {} is not 64 hexadecimal digits: it is another file, or damaged",
            .0.display())]
        Format(PathBuf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 7748 §6.1.
    #[test]
    fn agrees_as_the_standard_says() {
        let hex = |text: &str| -> [u8; 32] {
            data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
        };
        let alice = Identity::from_bytes(&hex(
            "77076d0a7318a57d3c16c17251b26645df4c8a6ae4e5a24a5b6b3b5f1e0f4b2a",
        ));
        let bob = Identity::from_bytes(&hex(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ));
        let bobs = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(*bob.public().as_bytes(), hex(bobs));
        assert_eq!(alice.agree(&bob.public()), bob.agree(&alice.public()));
    }

    fn pair() -> [Identity; 2] {
        [Identity::from_bytes(&[1; 32]), Identity::from_bytes(&[2; 32])]
    }

    #[test]
    fn both_sides_get_the_same_session_secret() {
        let [a, b] = pair();
        let ours = a.session_secret(&b.public(), b"x").unwrap().to_hex();
        assert_eq!(ours, b.session_secret(&a.public(), b"x").unwrap().to_hex());
        assert_ne!(ours, b.session_secret(&a.public(), b"y").unwrap().to_hex());
        let c = Identity::from_bytes(&[3; 32]);
        assert_ne!(ours, a.session_secret(&c.public(), b"x").unwrap().to_hex());
    }

    #[test]
    fn refuses_points_of_low_order() {
        let [a, _] = pair();
        for weak in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
            let weak = PublicKey::from_bytes(weak);
            assert_eq!(a.agree(&weak), Err(WeakKey(weak)));
        }
    }

    #[test]
    fn reads_what_it_prints() {
        let [a, _] = pair();
        let text = a.public().to_string();
        assert_eq!(text.len(), TEXT_LEN);
        assert_eq!(text.parse(), Ok(a.public()));
        assert_eq!(text.to_uppercase().parse(), Ok(a.public()));
        assert_eq!(text[1..].parse::<PublicKey>(), Err(ParseKeyError::Length(51)));
        let wrong = format!("{}1{}", &text[..4], &text[5..]);
        assert_eq!(wrong.parse::<PublicKey>(), Err(ParseKeyError::Character(4)));
        let wrong = format!("{}7", &text[..51]);
        assert_eq!(wrong.parse::<PublicKey>(), Err(ParseKeyError::Trailing));
    }

    #[test]
    fn does_not_print_secrets() {
        let [a, _] = pair();
        assert_eq!(format!("{a:?}"), format!("Identity({})", a.public()));
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn keeps_itself_in_a_file_of_its_owner() {
        use std::fs;
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

        let directory = std::env::temp_dir().join(format!("rawr-identity-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("identity");
        let made = Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(&path).unwrap().public(), made.public());
        assert!(matches!(pair()[0].save(&path), Err(IdentityFileError::Write { .. })));
        assert_eq!(Identity::load(&path).unwrap().public(), made.public(), "not replaced");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Identity::load(&path),
            Err(IdentityFileError::Exposed { mode: 0o644, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityFileError::Format(_))));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no draft is left");
        fs::remove_dir_all(directory).unwrap();
    }
}
