//! Keys that names had before: trust on first use.
//!
//! A file has a line for each name: its key, the name, and the server that it is registered at. Lines
//! that begin with `#` are comments.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rawr_proto::BridgeName;

use crate::identity::PublicKey;

/// Whose key is believed to be that of a name.
#[derive(Clone, Debug)]
pub enum Trust {
    /// This one's.
    Key(PublicKey),
    /// The one that the name had before; of a new name, any, which is remembered.
    FirstUse(KnownPeers),
}

/// The file of known names, seen from one server.
#[derive(Clone, Debug)]
pub struct KnownPeers {
    path: PathBuf,
    server: String,
}

/// What is known of a name's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Familiarity {
    /// It was told, or is the one that the name had before.
    Known,
    /// The name has not been met before.
    New,
}

/// Why a key is not believed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not the one that was asked for.
    #[error(
        "{name} is held by {found}, and not by {wanted}: somebody else has the name, or the key was \
         mistyped; compare it with what `rawr identity` prints there"
    )]
    OtherKey {
        /// The name.
        name: BridgeName,
        /// Who holds it.
        found: PublicKey,
        /// Who was to hold it.
        wanted: PublicKey,
    },
    /// The name had another before.
    #[error(
        "{name} has another key than before: it was {known}, and is {found} now. Either it has got a new \
         identity, or somebody else answers under its name. Where the former is certain, remove line \
         {line} of {}",
        path.display()
    )]
    Changed {
        /// The name.
        name: BridgeName,
        /// What it was.
        known: PublicKey,
        /// What it is now.
        found: PublicKey,
        /// The file.
        path: PathBuf,
        /// The line in it, counted from 1.
        line: usize,
    },
    /// A line is not what this writes.
    #[error(
        "{}, line {line}: expected a key, a name and a server, with spaces between: mend or remove it",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line in it, counted from 1.
        line: usize,
    },
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Trust {
    /// Whether `found` may be the key of `name`.
    ///
    /// # Errors
    /// If not, or the file of known names cannot be read.
    pub fn check(&self, name: &BridgeName, found: PublicKey) -> Result<Familiarity, TrustError> {
        match self {
            Self::Key(wanted) if *wanted == found => Ok(Familiarity::Known),
            Self::Key(wanted) => {
                Err(TrustError::OtherKey { name: name.clone(), found, wanted: *wanted })
            }
            Self::FirstUse(known) => known.check(name, found),
        }
    }

    /// Takes note that `name` has this key.
    ///
    /// # Errors
    /// If the file of known names cannot be written.
    pub fn remember(&self, name: &BridgeName, key: PublicKey) -> Result<(), TrustError> {
        match self {
            Self::Key(_) => Ok(()),
            Self::FirstUse(known) => known.remember(name, key),
        }
    }
}

impl KnownPeers {
    /// Names at `server`, in the file `path`, which need not be there yet.
    pub fn new(path: &Path, server: &str) -> Self {
        Self { path: path.to_owned(), server: server.to_owned() }
    }

    fn check(&self, name: &BridgeName, found: PublicKey) -> Result<Familiarity, TrustError> {
        let path = || self.path.clone();
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(TrustError::File { path: path(), source }),
        };
        for (line, content) in (1..).zip(text.lines()) {
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let broken = || TrustError::Line { path: path(), line };
            let fields: Vec<_> = content.split_whitespace().collect();
            let [key, of, server] = fields[..] else { return Err(broken()) };
            let known: PublicKey = key.parse().map_err(|_| broken())?;
            if (of, server) != (name.as_str(), &*self.server) {
                continue;
            }
            let name = name.clone();
            return match known == found {
                true => Ok(Familiarity::Known),
                false => Err(TrustError::Changed { name, known, found, path: path(), line }),
            };
        }
        Ok(Familiarity::New)
    }

    fn remember(&self, name: &BridgeName, key: PublicKey) -> Result<(), TrustError> {
        let append = || {
            let options = OpenOptions::new().append(true).create(true).mode(0o600).clone();
            options
                .open(&self.path)?
                .write_all(format!("{key} {name} {}\n", self.server).as_bytes())
        };
        append().map_err(|source| TrustError::File { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn key(number: u8) -> PublicKey {
        Identity::from_bytes(&[number; 32]).public()
    }

    fn name(text: &str) -> BridgeName {
        text.parse().unwrap()
    }

    /// A file's path, which is free, and removed in the end.
    struct Free(PathBuf);

    impl Free {
        fn new(label: &str) -> Self {
            let file = format!("rawr-known-{label}-{}", std::process::id());
            Self(std::env::temp_dir().join(file))
        }
    }

    impl Drop for Free {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_first_key_is_remembered_and_another_one_refused() {
        let free = Free::new("first");
        let trust = Trust::FirstUse(KnownPeers::new(&free.0, "rawr:a:3478"));
        assert_eq!(trust.check(&name("alice"), key(1)).unwrap(), Familiarity::New);
        trust.remember(&name("alice"), key(1)).unwrap();
        assert_eq!(trust.check(&name("alice"), key(1)).unwrap(), Familiarity::Known);
        assert_eq!(trust.check(&name("bob"), key(2)).unwrap(), Familiarity::New);
        trust.remember(&name("bob"), key(2)).unwrap();

        let error = trust.check(&name("bob"), key(1)).unwrap_err();
        assert!(matches!(error, TrustError::Changed { line: 2, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&key(1).to_string()) && text.contains(&key(2).to_string()), "{text}");

        let elsewhere = Trust::FirstUse(KnownPeers::new(&free.0, "rawr:b:3478"));
        assert_eq!(elsewhere.check(&name("bob"), key(1)).unwrap(), Familiarity::New);
    }

    #[test]
    fn a_key_that_was_told_is_the_only_one() {
        let trust = Trust::Key(key(1));
        assert_eq!(trust.check(&name("alice"), key(1)).unwrap(), Familiarity::Known);
        let error = trust.check(&name("alice"), key(2)).unwrap_err();
        assert!(matches!(error, TrustError::OtherKey { .. }), "{error}");
    }

    #[test]
    fn comments_are_left_alone_and_damage_is_told() {
        let free = Free::new("damage");
        fs::write(&free.0, "# of mine\n\nnonsense\n").unwrap();
        let trust = Trust::FirstUse(KnownPeers::new(&free.0, "rawr:a:3478"));
        let error = trust.check(&name("alice"), key(1)).unwrap_err();
        assert!(matches!(error, TrustError::Line { line: 3, .. }), "{error}");
    }
}
