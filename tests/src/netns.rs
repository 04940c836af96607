//! Network namespaces that go away together with the value that made them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// What the names of all namespaces of this project begin with; the process id follows.
const PREFIX: &str = "rawr-";
const REGISTRY: &str = "/run/netns";

/// Settings of every host: addresses outlive a link that goes down, duplicate address detection
/// does not delay the first packet, and a changed MAC address is announced to the neighbours.
const HOST_SETTINGS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/keep_addr_on_down", "1"),
    ("net/ipv6/conf/default/keep_addr_on_down", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/ndisc_notify", "1"),
    ("net/ipv4/conf/all/arp_notify", "1"),
    ("net/ipv4/conf/default/arp_notify", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// A network namespace. Dropping it deletes it, with its interfaces and rules.
///
/// Only the network is separate: processes inside see the same files, so also the same bpffs.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: Arc<File>,
}

impl Netns {
    /// Makes a namespace for the host `label`, with its loopback interface up.
    pub fn new(label: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{label}", std::process::id());
        checked(Command::new("ip").args(["netns", "add", &name]))?;
        let handle = File::open(Path::new(REGISTRY).join(&name))
            .with_context(|| format!("the new namespace {name} cannot be opened"))?;
        let namespace = Self { name, handle: Arc::new(handle) };
        namespace.sh("ip link set lo up")?;
        for (key, value) in HOST_SETTINGS {
            namespace.set(key, value)?;
        }
        Ok(namespace)
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside. Sockets made there stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.handle)?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will run inside, and be killed when the thread that starts it ends.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let handle = Arc::clone(&self.handle);
        let mut command = Command::new(program.as_ref());
        // SAFETY: between fork and exec the closure makes two system calls and touches no memory
        // but the handle, which it owns.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                enter(&handle)
            });
        }
        command
    }

    /// Runs shell commands inside, one per line, and returns what they print. The first that fails
    /// ends it.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = checked(self.command("/bin/sh").args(["-ec", script]))
            .with_context(|| format!("in namespace {}", self.name))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a network sysctl, its name written with slashes.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))?
            .with_context(|| format!("{key} cannot be set in namespace {}", self.name))
    }

    /// Reads a file below `/proc/net` as processes inside see it.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        let path = PathBuf::from("/proc/thread-self/net").join(file);
        self.run(|| fs::read_to_string(path))?
            .with_context(|| format!("/proc/net/{file} of namespace {}", self.name))
    }

    /// UDP datagrams that sockets inside refused for a wrong checksum, both families.
    pub fn checksum_errors(&self) -> Result<u64> {
        let ipv4 = column(&self.proc_net("snmp")?, "Udp:", "InCsumErrors");
        let ipv6: Option<u64> = self
            .proc_net("snmp6")?
            .lines()
            .find_map(|line| line.strip_prefix("Udp6InCsumErrors")?.trim().parse().ok());
        match (ipv4, ipv6) {
            (Some(ipv4), Some(ipv6)) => Ok(ipv4 + ipv6),
            _ => bail!("the kernel does not count wrong UDP checksums in {}", self.name),
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Deletes the namespaces of test processes that are no more, as after a crash or a power loss.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(REGISTRY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_orphaned(&name) {
            delete(&name);
        }
    }
}

/// Whether a name is that of a namespace whose maker is no more.
pub fn is_orphaned(name: &str) -> bool {
    maker(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The process that a namespace's name says has made it.
fn maker(name: &str) -> Option<u32> {
    let (pid, _label) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

fn delete(name: &str) {
    // Failure means that it is gone already; the sweep of a later run finds what is not.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

/// Runs a command to its end. Failure is an error that holds what it printed.
pub fn checked(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| {
        format!("{} cannot be run; is it installed?", command.get_program().to_string_lossy())
    })?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|each| each.to_string_lossy()).collect();
        bail!(
            "`{} {}`: {}: {}",
            command.get_program().to_string_lossy(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

/// One value out of the pairs of lines (names, numbers) that `/proc/net/snmp` consists of.
fn column(text: &str, row: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().filter(|line| line.starts_with(row));
    let (names, values) = (rows.next()?, rows.next()?);
    let position = names.split_whitespace().position(|each| each == name)?;
    values.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{column, maker};

    #[test]
    fn finds_the_column_by_its_name() {
        let text = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams InCsumErrors\nUdp: 12 3\n";
        assert_eq!(column(text, "Udp:", "InCsumErrors"), Some(3));
        assert_eq!(column(text, "Udp:", "Absent"), None);
    }

    #[test]
    fn only_own_names_have_a_maker() {
        assert_eq!(maker("rawr-123-root"), Some(123));
        assert_eq!(maker("rawr-bench-root"), None);
        assert_eq!(maker("other-123-root"), None);
    }
}
