//! The names that survive a restart, in a file.
//!
//! A thread of its own writes: the loop hands over what has changed and never waits for the disk. What
//! changes while a write is under way is written together afterwards, so that a slow disk delays writes
//! and does not pile them up.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rawr_proto::BridgeName;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::control::NameRecord;

/// Registrations as JSON, by name.
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");

/// Pause before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The file, and the thread that writes it. Dropping it writes what is left.
pub struct NameRegistry {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What the loop and the writer share.
#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    /// What each name that has changed is now; `None` for one that is to be forgotten.
    names: HashMap<BridgeName, Option<Box<NameRecord>>>,
    closing: bool,
}

/// A registration as it is written.
#[derive(Serialize, Deserialize)]
struct Stored {
    public: [u8; 32],
    user: Option<String>,
    local: SocketAddr,
    remote: SocketAddr,
    over_udp: bool,
    epoch: u64,
    expires: u64,
}

impl NameRegistry {
    /// Opens the file, which is made for its owner alone if it is missing; returns the names in it.
    ///
    /// # Errors
    /// The file cannot be made or read, is none of these, or another daemon has it open.
    pub fn open(path: &Path) -> anyhow::Result<(Self, Vec<NameRecord>)> {
        let open = || -> anyhow::Result<_> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = FileBackend::new(options.open(path)?)?;
            let database = Database::builder().create_with_backend(file)?;
            let records = load(&database)?;
            Ok((database, records))
        };
        let (database, records) = open().with_context(|| {
            format!(
                "cannot use {} as the registry of names; another daemon may have it open, or it is \
                 another file (see bridge.registry)",
                path.display()
            )
        })?;
        let shared = Arc::new(Shared::default());
        let writer = std::thread::Builder::new().name("names".to_owned()).spawn({
            let (shared, path) = (Arc::clone(&shared), path.to_owned());
            move || shared.write(&database, &path)
        })?;
        Ok((Self { shared, writer: Some(writer) }, records))
    }

    /// Has a registration written, in place of what is known of its name.
    pub fn remember(&mut self, record: &NameRecord) {
        self.change(record.name.clone(), Some(Box::new(record.clone())));
    }

    /// Has a name removed.
    pub fn forget(&mut self, name: &BridgeName) {
        self.change(name.clone(), None);
    }

    fn change(&mut self, name: BridgeName, record: Option<Box<NameRecord>>) {
        self.shared.lock().names.insert(name, record);
        self.shared.changed.notify_one();
    }
}

impl Drop for NameRegistry {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        // A writer that panicked has said so.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, database: &Database, path: &Path) {
        loop {
            let waiting = |pending: &mut Pending| pending.names.is_empty() && !pending.closing;
            let mut pending = self
                .changed
                .wait_while(self.lock(), waiting)
                .unwrap_or_else(PoisonError::into_inner);
            let closing = pending.closing;
            let names = std::mem::take(&mut pending.names);
            drop(pending);
            if let Err(error) = store(database, &names) {
                log::warn!("names would not survive a restart: {}: {error:#}", path.display());
                self.put_back(names, closing);
            }
            if closing {
                return;
            }
        }
    }

    /// What has changed meanwhile is newer.
    fn put_back(&self, names: HashMap<BridgeName, Option<Box<NameRecord>>>, closing: bool) {
        let mut pending = self.lock();
        for (name, record) in names {
            pending.names.entry(name).or_insert(record);
        }
        if !closing {
            let still_open = |pending: &mut Pending| !pending.closing;
            let _ = self.changed.wait_timeout_while(pending, RETRY, still_open);
        }
    }
}

fn load(database: &Database) -> anyhow::Result<Vec<NameRecord>> {
    let transaction = database.begin_write()?;
    transaction.open_table(NAMES)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let table = transaction.open_table(NAMES)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (name, stored) = entry?;
        match record(name.value(), stored.value()) {
            Ok(record) => records.push(record),
            Err(error) => log::warn!("the registration of {:?} is lost: {error:#}", name.value()),
        }
    }
    Ok(records)
}

fn record(name: &str, stored: &[u8]) -> anyhow::Result<NameRecord> {
    let name = name.parse()?;
    let Stored { public, user, local, remote, over_udp, epoch, expires } =
        serde_json::from_slice(stored).context("it is of another version")?;
    Ok(NameRecord { name, public, user, local, remote, over_udp, epoch, expires })
}

fn store(
    database: &Database,
    names: &HashMap<BridgeName, Option<Box<NameRecord>>>,
) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(NAMES)?;
        for (name, record) in names {
            match record {
                Some(record) => {
                    table.insert(name.as_str(), Stored::of(record)?.as_slice())?;
                }
                None => {
                    table.remove(name.as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

impl Stored {
    fn of(record: &NameRecord) -> anyhow::Result<Vec<u8>> {
        let NameRecord { public, ref user, local, remote, over_udp, epoch, expires, .. } = *record;
        let user = user.clone();
        Ok(serde_json::to_vec(&Self { public, user, local, remote, over_udp, epoch, expires })?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    fn path(label: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rawr-names-{}-{label}", std::process::id()))
    }

    fn named(name: &str, epoch: u64) -> NameRecord {
        NameRecord {
            name: name.parse().unwrap(),
            public: [7; 32],
            user: (epoch > 1).then(|| "anna".to_owned()),
            local: "192.0.2.1:3478".parse().unwrap(),
            remote: "[2001:db8::1]:4000".parse().unwrap(),
            over_udp: true,
            epoch,
            expires: u64::MAX - epoch,
        }
    }

    fn names(path: &Path) -> Vec<NameRecord> {
        NameRegistry::open(path).unwrap().1
    }

    #[test]
    fn what_is_remembered_is_there_again_and_what_is_forgotten_is_not() {
        let path = path("roundtrip");
        let (mut registry, before) = NameRegistry::open(&path).unwrap();
        assert_eq!(before, []);
        for record in [named("a", 1), named("b", 1), named("büro", 1), named("a", 2)] {
            registry.remember(&record);
        }
        registry.forget(&"b".parse().unwrap());
        registry.forget(&"never".parse().unwrap());
        drop(registry);
        assert_eq!(names(&path), [named("a", 2), named("büro", 1)]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let (mut registry, _) = NameRegistry::open(&path).unwrap();
        registry.forget(&"a".parse().unwrap());
        drop(registry);
        assert_eq!(names(&path), [named("büro", 1)]);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_could_not_be_written_waits_and_does_not_undo_what_came_later() {
        let shared = Shared::default();
        let change =
            |name: &str, epoch| (name.parse().unwrap(), Some(Box::new(named(name, epoch))));
        shared.lock().names.extend([change("a", 2), ("c".parse().unwrap(), None)]);
        let failed = [change("a", 1), change("b", 1), change("c", 1)];
        shared.put_back(failed.into_iter().collect(), true);
        let pending = std::mem::take(&mut shared.lock().names);
        let expected = [change("a", 2), change("b", 1), ("c".parse().unwrap(), None)];
        assert_eq!(pending, expected.into_iter().collect());
    }

    #[test]
    fn a_file_in_use_and_a_file_of_another_kind_are_refused() {
        let path = path("foreign");
        fs::write(&path, "something else, and long enough to be looked at").unwrap();
        let error = NameRegistry::open(&path).err().unwrap();
        assert!(format!("{error:#}").contains("bridge.registry"), "{error:#}");
        assert!(fs::read_to_string(&path).unwrap().starts_with("something else"));
        fs::remove_file(&path).unwrap();

        let registry = NameRegistry::open(&path).unwrap();
        assert!(NameRegistry::open(&path).is_err());
        drop(registry);
        assert!(NameRegistry::open(&path).is_ok());
        fs::remove_file(&path).unwrap();
    }
}
