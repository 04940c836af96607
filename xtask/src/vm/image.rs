//! The initial files of the guest: busybox, the modules that lead to the host's files, and
//! `scripts/vm-boot.sh`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::{run, workspace};

use super::packages::Parts;

const BOOT_SCRIPT: &str = "scripts/vm-boot.sh";
/// What the guest needs to see the host's files.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Which module needs which others, in paths below the folder of a release.
const DEPENDENCIES: &str = "modules.dep";

/// Makes the archive that the kernel unpacks when it starts. Returns its path.
pub(super) fn make(folder: &Path, parts: &Parts) -> Result<PathBuf> {
    let release = &parts.kernel.release;
    let source = parts.kernel.modules().join(release);
    // Otherwise done when a kernel is installed.
    run(Command::new(&parts.busybox).args(["depmod", "-b"]).arg(parts.kernel.root()).arg(release))?;
    let root = folder.join("initramfs");
    let _ = fs::remove_dir_all(&root);
    for directory in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(&parts.busybox, root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::copy(workspace().join(BOOT_SCRIPT), &init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

    let listing = fs::read_to_string(source.join(DEPENDENCIES))?;
    let mut files = needed(&listing, &MODULES).with_context(|| format!("modules of {release}"))?;
    files.insert(DEPENDENCIES);
    for file in files {
        let target = root.join("lib/modules").join(release).join(file);
        fs::create_dir_all(target.parent().context("a module in no folder")?)?;
        fs::copy(source.join(file), target).with_context(|| file.to_owned())?;
    }
    archive(&parts.busybox, &root, folder.join("initramfs.cpio"))
}

/// The files of these modules and of all that they need, from the text of `modules.dep`.
fn needed<'a>(listing: &'a str, modules: &[&str]) -> Result<BTreeSet<&'a str>> {
    let mut files = BTreeSet::new();
    for module in modules {
        let line = listing.lines().find_map(|line| {
            let (file, others) = line.split_once(':')?;
            (stem(file) == *module).then_some((file, others))
        });
        let (file, others) = line.with_context(|| format!("there is no module {module}"))?;
        files.insert(file);
        files.extend(others.split_whitespace());
    }
    Ok(files)
}

/// A module's name: its file's, without a folder and endings. The kernel takes - and _ for the same.
fn stem(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// Puts all files below `root` into an archive of the kind that kernels unpack.
fn archive(busybox: &Path, root: &Path, path: PathBuf) -> Result<PathBuf> {
    let mut names = String::new();
    list(root, root, &mut names)?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root);
    let mut child =
        cpio.stdin(Stdio::piped()).stdout(File::create(&path)?).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("cpio has no input")?.write_all(names.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "busybox's cpio failed: {status}");
    Ok(path)
}

/// Appends the paths below `folder`, one a line, folders before what is in them.
fn list(root: &Path, folder: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        *names += &format!("{}\n", path.strip_prefix(root)?.display());
        if path.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{needed, stem};

    const LISTING: &str = "\
        kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
        kernel/net/9p/9pnet.ko:\n\
        kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko\n\
        kernel/drivers/net/veth.ko:\n";

    #[test]
    fn what_a_module_needs_comes_with_it() {
        let files: Vec<_> = needed(LISTING, &["9p", "9pnet_virtio"]).unwrap().into_iter().collect();
        assert_eq!(
            files,
            [
                "kernel/fs/9p/9p.ko",
                "kernel/fs/netfs/netfs.ko",
                "kernel/net/9p/9pnet.ko",
                "kernel/net/9p/9pnet_virtio.ko.xz",
            ]
        );
        assert!(needed(LISTING, &["overlay"]).is_err());
    }

    #[test]
    fn a_modules_name_has_no_folder_and_no_ending() {
        assert_eq!(stem("kernel/net/9p/9pnet_virtio.ko.xz"), "9pnet_virtio");
        assert_eq!(stem("kernel/crypto/crc32c-intel.ko"), "crc32c_intel");
    }
}
