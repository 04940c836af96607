//! What a restarted daemon needs to know: the sessions, as a file in the state directory.
//!
//! It holds session keys, so only its owner may read it. It is replaced in one step, so a crash leaves
//! the old one or the new one, never half of either.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The shortest time between two writes.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// At most one part in this many of the daemon's time is spent on writing.
const SHARE_OF_TIME: u32 = 20;

/// The file, and when it is written next.
pub struct StateFile {
    path: PathBuf,
    due: Option<Instant>,
    earliest: Option<Instant>,
}

impl StateFile {
    /// The state file of the daemon whose state lives in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
            format!("cannot make the state directory {}; choose another", directory.display())
        })?;
        Ok(Self { path: directory.join("sessions.json"), due: None, earliest: None })
    }

    /// Reads what an earlier daemon left, if anything.
    ///
    /// # Errors
    /// The file is there but cannot be read or understood.
    pub fn load<T: DeserializeOwned>(&self) -> anyhow::Result<Option<T>> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let state = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is not a state of this version; sessions start anew", self.path.display())
        })?;
        Ok(Some(state))
    }

    /// Something has changed that is worth keeping.
    pub fn touch(&mut self, now: Instant) {
        let earliest = self.earliest.unwrap_or(now).max(now);
        self.due.get_or_insert(earliest);
    }

    /// When [`StateFile::save`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Writes `state`, and puts the next write off in proportion to how long this one took.
    ///
    /// # Errors
    /// The disk is full, or the directory is gone; the old file then still stands.
    pub fn save<T: Serialize>(
        &mut self,
        state: &T,
        clock: impl Fn() -> Instant,
    ) -> anyhow::Result<()> {
        let start = clock();
        self.due = None;
        let written = self.replace(state);
        let end = clock();
        self.earliest = Some(end + SHORTEST_PAUSE.max((end - start) * SHARE_OF_TIME));
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn replace<T: Serialize>(&self, state: &T) -> anyhow::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let file: File =
            options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, state)?;
        writer.flush()?;
        fs::rename(&fresh, &self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::io::clock;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rawr-state-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_was_saved_is_loaded_and_only_the_owner_may_read_it() {
        let directory = directory("roundtrip");
        let mut file = StateFile::new(&directory).unwrap();
        assert_eq!(file.load::<Vec<u32>>().unwrap(), None);
        file.save(&vec![1, 2, 3], clock::monotonic).unwrap();
        assert_eq!(file.load::<Vec<u32>>().unwrap(), Some(vec![1, 2, 3]));
        let mode = fs::metadata(directory.join("sessions.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn writes_keep_their_distance() {
        let directory = directory("distance");
        let mut file = StateFile::new(&directory).unwrap();
        let now = clock::monotonic();
        file.touch(now);
        assert_eq!(file.poll_timeout(), Some(now));
        file.save(&1, || now).unwrap();
        assert_eq!(file.poll_timeout(), None);
        file.touch(now);
        assert_eq!(file.poll_timeout(), Some(now + SHORTEST_PAUSE));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_of_another_version_is_told_apart() {
        let directory = directory("garbage");
        let file = StateFile::new(&directory).unwrap();
        fs::write(directory.join("sessions.json"), "nonsense").unwrap();
        let error = file.load::<Vec<u32>>().unwrap_err();
        assert!(format!("{error:#}").contains("sessions start anew"), "{error:#}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
