//! The emulator, busybox and the kernel, as Debian packages unpacked below `target/vm`: the host's own
//! packages and its boot loader stay as they are.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{as_root, display, is_installed, is_root, run};

const EMULATOR: &str = "qemu-system-x86_64";
const EMULATOR_PACKAGE: &str = "qemu-system-x86";
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Depends on the package of the present kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// What the guest is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub qemu: Qemu,
    pub busybox: PathBuf,
    pub kernel: Kernel,
}

#[derive(Debug)]
pub(super) struct Qemu {
    pub program: PathBuf,
    /// Folders of firmware; none where it is installed and knows them.
    pub data: Vec<PathBuf>,
    pub environment: Vec<(OsString, OsString)>,
}

#[derive(Debug)]
pub(super) struct Kernel {
    /// Where its package is unpacked.
    folder: PathBuf,
    pub release: String,
}

impl Parts {
    /// What is below `folder`; with `setup`, after unpacking there what is missing.
    pub(super) fn find(folder: &Path, setup: bool) -> Result<Self> {
        let parts = [
            ("qemu", EMULATOR_PACKAGE, "emulates a machine", is_installed(EMULATOR)),
            ("busybox", BUSYBOX_PACKAGE, "starts that machine", false),
            ("kernel", KERNEL_PACKAGE, "the kernel to be tested on", false),
        ];
        let missing: Vec<_> = parts
            .into_iter()
            .filter(|(part, _, _, installed)| !installed && !folder.join(part).exists())
            .collect();
        for (part, package, reason, _) in &missing {
            ensure!(setup, "Debian package {package} is missing: run this without --no-setup");
            println!("will unpack Debian package {package} into target/vm/{part}: {reason}");
        }
        if !missing.is_empty() {
            ensure!(is_installed("dpkg"), "this is no Debian: there is no dpkg to unpack packages");
            update();
        }
        for (part, package, ..) in missing {
            let names = match package {
                KERNEL_PACKAGE => vec![kernel_package()?],
                _ => planned(&apt(&["apt-get", "install", "--dry-run"], package)?),
            };
            // Where the package is installed, nothing is planned.
            let names = if names.is_empty() { vec![package.to_owned()] } else { names };
            unpack(&names, folder, part).with_context(|| format!("Debian package {package}"))?;
        }
        Ok(Self {
            qemu: Qemu::find(&folder.join("qemu"))?,
            busybox: existing(&folder.join("busybox"), &["usr/bin/busybox", "bin/busybox"])?,
            kernel: Kernel::find(folder.join("kernel"))?,
        })
    }
}

impl Qemu {
    fn find(folder: &Path) -> Result<Self> {
        if is_installed(EMULATOR) {
            let program = EMULATOR.into();
            return Ok(Self { program, data: Vec::new(), environment: Vec::new() });
        }
        const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries = std::env::join_paths(LIBRARIES.map(|path| folder.join(path)))?;
        let modules = folder.join(LIBRARIES[0]).join("qemu").into_os_string();
        Ok(Self {
            program: existing(folder, &["usr/bin/qemu-system-x86_64"])?,
            data: ["usr/share/qemu", "usr/share/seabios"].map(|path| folder.join(path)).into(),
            environment: vec![
                ("LD_LIBRARY_PATH".into(), libraries),
                ("QEMU_MODULE_DIR".into(), modules),
            ],
        })
    }
}

impl Kernel {
    fn find(folder: PathBuf) -> Result<Self> {
        let boot = fs::read_dir(folder.join("boot"))?.filter_map(Result::ok);
        let release = boot
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
        let release = release.with_context(|| format!("no kernel in {}", folder.display()))?;
        Ok(Self { folder, release })
    }

    /// The kernel itself.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder that has `lib/modules`.
    pub(super) fn root(&self) -> PathBuf {
        let merged = self.folder.join("usr");
        if merged.join("lib/modules").exists() { merged } else { self.folder.clone() }
    }

    /// The folder of modules, one folder in it for each release.
    pub(super) fn modules(&self) -> PathBuf {
        self.root().join("lib/modules")
    }
}

/// Refreshes the lists of packages, if that is allowed.
fn update() {
    let updated = as_root("apt-get").and_then(|mut apt| run(apt.args(["update", "--quiet"])));
    if let Err(error) = updated {
        eprintln!("the lists of packages are used as they are: {error:#}");
    }
}

/// The package that has the kernel.
fn kernel_package() -> Result<String> {
    let text = apt(&["apt-cache", "depends"], KERNEL_PACKAGE)?;
    dependency(&text).with_context(|| format!("{KERNEL_PACKAGE} depends on no kernel:\n{text}"))
}

/// Downloads packages and unpacks them, all of them or none, into `folder/part`.
fn unpack(names: &[String], folder: &Path, part: &str) -> Result<()> {
    let [packages, partial] =
        ["packages", "partial"].map(|end| folder.join(format!("{part}-{end}")));
    for directory in [&packages, &partial] {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)?;
    }
    // apt-get, where root runs it, downloads as another user.
    fs::set_permissions(&packages, fs::Permissions::from_mode(0o777))?;
    let mut download = Command::new("apt-get");
    download.current_dir(&packages).args(["download", "--quiet"]).args(names);
    if is_root() {
        download.args(["--option", "APT::Sandbox::User=root"]);
    }
    run(&mut download)?;
    for package in fs::read_dir(&packages)? {
        let mut dpkg = Command::new("dpkg");
        let status = dpkg.arg("--extract").arg(package?.path()).arg(&partial).status()?;
        ensure!(status.success(), "`{}` failed: {status}", display(&dpkg));
    }
    fs::rename(&partial, folder.join(part))?;
    // The kernel's is 70 MB.
    Ok(fs::remove_dir_all(&packages)?)
}

/// What one of apt's programs says about a package.
fn apt(words: &[&str], package: &str) -> Result<String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(package).env("LC_ALL", "C");
    if words[0] == "apt-get" {
        command.arg("--no-install-recommends");
    }
    let output = command.output().with_context(|| format!("{} cannot be run", words[0]))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "Debian package {package} is not to be had from the package sources of this machine: {}",
            complaint.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The packages that `apt-get install --dry-run` says it would unpack.
fn planned(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

/// The first package that `apt-cache depends` says one depends on.
fn dependency(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim);
    lines.find_map(|line| Some(line.strip_prefix("Depends: ")?.to_owned()))
}

/// The first of these paths that is there.
fn existing(folder: &Path, paths: &[&str]) -> Result<PathBuf> {
    let found = paths.iter().map(|path| folder.join(path)).find(|path| path.exists());
    found.with_context(|| {
        format!("{} lacks {}: remove that folder, and try again", folder.display(), paths[0])
    })
}

#[cfg(test)]
mod tests {
    use super::{dependency, planned};

    #[test]
    fn the_kernels_package_is_what_the_other_depends_on() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(dependency(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("linux-image-amd64\n"), None);
    }

    #[test]
    fn planned_packages_are_those_to_be_unpacked() {
        let text = "Building dependency tree...\nRemv other [1]\n\
            Inst libslirp0 (4.7.0-1 Debian:12 [amd64])\n\
            Inst qemu-system-x86 [1:7.1] (1:7.2 Debian:12 [amd64])\nConf libslirp0 (4.7.0-1)\n";
        assert_eq!(planned(text), ["libslirp0", "qemu-system-x86"]);
    }
}
