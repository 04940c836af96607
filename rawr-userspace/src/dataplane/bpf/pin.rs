//! Where the program, its maps and its links are pinned, so that they outlive the process:
//!
//! ```text
//! /sys/fs/bpf/rawr/INSTANCE/abi4/maps/FLOWS4 …   program   link-eth0 …
//! ```
//!
//! With the maps is kept the seed of the hash by which the channel tables were filled: as the target of
//! a symbolic link, the only thing besides pins that a BPF file system takes.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use rawr_common::flow::ABI_VERSION;

use super::sys::Link;

/// Where bpffs is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Begins the name of a pinned link; that of its interface follows.
const LINK: &str = "link-";

/// Name of the link whose target is the seed, among the maps.
const SEED: &str = "seed";

/// What went wrong with a pin.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "instance name {0:?}: use up to 64 letters, digits, `-` and `_`, because it becomes a \
         directory of the BPF file system"
    )]
    Instance(String),
    #[error(
        "{path} is no BPF file system, and mounting one there failed: {source}; \
         run `mount -t bpf bpf {path}` as root, or give the container a bpffs"
    )]
    Mount { path: PathBuf, source: io::Error },
    #[error("another rawr runs as instance {0:?}; stop that one, or give this one another name")]
    InUse(String),
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

/// Held by the process that writes an instance's maps; ends with it.
pub(super) type Lock = Flock<File>;

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    instance: PathBuf,
}

impl Pins {
    /// Makes the directories of `instance` and locks them; mounts a BPF file system at `bpffs` if
    /// there is none.
    pub(super) fn prepare(bpffs: &Path, instance: &str) -> Result<(Self, Lock), PinError> {
        let pins = Self::of(bpffs, instance)?;
        mount_bpffs(bpffs)?;
        pins.make_maps_dir()?;
        let path = pins.instance.clone();
        let dir = match File::open(&path) {
            Ok(dir) => dir,
            Err(source) => return Err(PinError::File { what: "open", path, source }),
        };
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok((pins, lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(PinError::InUse(instance.to_owned())),
            Err((_, errno)) => Err(PinError::File { what: "lock", path, source: errno.into() }),
        }
    }

    /// Takes the program off all interfaces of `instance` and removes its pins, whatever is there.
    /// Returns the names of those interfaces.
    pub fn detach(bpffs: &Path, instance: &str) -> Result<Vec<String>, PinError> {
        let pins = Self::of(bpffs, instance)?;
        if !pins.instance.exists() {
            return Ok(Vec::new());
        }
        let links = pins.links();
        for (_, path) in &links {
            remove_link(path)?;
        }
        remove_all(&pins.instance)?;
        let mut interfaces: Vec<_> = links.into_iter().map(|(interface, _)| interface).collect();
        interfaces.sort();
        interfaces.dedup();
        Ok(interfaces)
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The seed that the maps were filled with, if it is there.
    pub(super) fn seed(&self) -> Option<u64> {
        let target = fs::read_link(self.map(SEED)).ok()?;
        u64::from_str_radix(target.to_str()?, 16).ok()
    }

    /// Keeps the seed of new maps.
    pub(super) fn set_seed(&self, seed: u64) -> Result<(), PinError> {
        let path = self.map(SEED);
        symlink(format!("{seed:016x}"), &path).map_err(|source| PinError::File {
            what: "make",
            path,
            source,
        })
    }

    /// The pin of the program.
    pub fn program(&self) -> PathBuf {
        self.abi().join("program")
    }

    /// The pin of the link to an interface. Names on bpffs have no dot, those of interfaces no
    /// colon.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.abi().join(format!("{LINK}{}", interface.replace('.', ":")))
    }

    /// All pinned links, those of other ABI versions included: interface and pin. Those of this
    /// version come first.
    pub fn links(&self) -> Vec<(String, PathBuf)> {
        let mut versions = children(&self.instance);
        versions.sort_by_key(|path| *path != self.abi());
        let mut links = Vec::new();
        for path in versions.iter().flat_map(|version| children(version)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(interface) = name.strip_prefix(LINK) {
                links.push((interface.replace(':', "."), path));
            }
        }
        links
    }

    /// Puts maps that cannot be used any more out of the way; programs may still use them.
    pub(super) fn set_maps_aside(&self) -> Result<(), PinError> {
        let old = self.old_maps();
        if old.exists() {
            remove_all(&old)?;
        }
        fs::rename(self.maps(), &old).map_err(|source| PinError::File {
            what: "rename",
            path: self.maps(),
            source,
        })?;
        self.make_maps_dir()
    }

    /// Removes what other versions of rawr have left, and links to interfaces not in `keep`.
    /// Returns the interfaces that have lost their program so.
    pub(super) fn remove_leftovers(&self, keep: &[&str]) -> Result<Vec<String>, PinError> {
        let mut detached = Vec::new();
        for (interface, path) in self.links() {
            if keep.iter().any(|&kept| path == self.link(kept)) {
                continue;
            }
            remove_link(&path)?;
            if !keep.contains(&interface.as_str()) {
                detached.push(interface);
            }
        }
        for path in children(&self.instance).into_iter().filter(|path| *path != self.abi()) {
            remove_all(&path)?;
        }
        if self.old_maps().exists() {
            remove_all(&self.old_maps())?;
        }
        Ok(detached)
    }

    fn of(bpffs: &Path, instance: &str) -> Result<Self, PinError> {
        let suits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if instance.is_empty() || instance.len() > 64 || !instance.chars().all(suits) {
            return Err(PinError::Instance(instance.to_owned()));
        }
        Ok(Self { instance: bpffs.join("rawr").join(instance) })
    }

    fn abi(&self) -> PathBuf {
        self.instance.join(format!("abi{ABI_VERSION}"))
    }

    fn maps(&self) -> PathBuf {
        self.abi().join("maps")
    }

    fn old_maps(&self) -> PathBuf {
        self.abi().join("maps-old")
    }

    fn make_maps_dir(&self) -> Result<(), PinError> {
        let path = self.maps();
        // The seed is nobody else's to know, and a symbolic link has no permissions of its own.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| PinError::File { what: "make", path, source })
    }
}

/// Takes the program that a pinned link holds off its interface, and removes the pin. What is no
/// link is removed as well.
pub(super) fn remove_link(path: &Path) -> Result<(), PinError> {
    if let Ok(link) = Link::open(path) {
        // Fails if the interface is gone, and then there is nothing to take off.
        let _ = link.detach();
    }
    remove_all(path)
}

fn mount_bpffs(path: &Path) -> Result<(), PinError> {
    if statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| PinError::Mount { path: path.to_owned(), source: errno.into() })
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn remove_all(path: &Path) -> Result<(), PinError> {
    let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::File { what: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_bpffs() {
        let pins = Pins::of(Path::new("/b"), "edge-1").unwrap();
        let abi = format!("/b/rawr/edge-1/abi{ABI_VERSION}");
        assert_eq!(pins.link("eth0.5"), Path::new(&format!("{abi}/link-eth0:5")));
        assert_eq!(pins.map("FLOWS4"), Path::new(&format!("{abi}/maps/FLOWS4")));
        for bad in ["", "..", "a/b", "a.b", &"x".repeat(65)] {
            assert!(matches!(Pins::of(Path::new("/b"), bad), Err(PinError::Instance(_))), "{bad}");
        }
    }
}
