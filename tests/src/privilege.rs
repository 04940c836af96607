//! What a test needs from the machine, and what happens where it is missing: the test is reported as
//! skipped, with the reason, except in continuous integration, where it fails.

use std::io::{self, Write};
use std::process::Command;

/// Line that reports a skipped test: this, its name, a colon, the reason.
pub const SKIP_MARK: &str = "rawr-skipped ";

/// Programs that build the laboratory.
const PROGRAMS: &[(&str, &str)] =
    &[("ip", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool")];

/// Whether a test that needs root may run. If not, says so in the name of `test`.
///
/// # Panics
/// If it may not and the environment says `CI=true`: there, nothing is skipped.
pub fn need_root(test: &str) -> bool {
    judge(test, without_root())
}

/// The same for a test that needs network namespaces, and the programs that furnish them.
///
/// # Panics
/// As [`need_root`].
pub fn can_make_namespaces(test: &str) -> bool {
    judge(test, without_root().or_else(without_programs))
}

/// The same for a test that needs `program` of the Debian package `package`.
///
/// # Panics
/// As [`need_root`].
pub fn need_program(test: &str, program: &str, package: &str) -> bool {
    judge(test, without_program(program, package))
}

/// The same for a test that loads `library` of the Debian package `package`.
///
/// # Panics
/// As [`need_root`].
pub fn need_library(test: &str, library: &str, package: &str) -> bool {
    let known = Command::new("/sbin/ldconfig").arg("-p").output();
    let found = known.is_ok_and(|known| String::from_utf8_lossy(&known.stdout).contains(library));
    let obstacle = format!("{library} is not installed (Debian package {package})");
    judge(test, (!found).then_some(obstacle))
}

fn judge(test: &str, obstacle: Option<String>) -> bool {
    let Some(reason) = obstacle else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} cannot run here: {reason}");
    // Not by print!, whose output the test runner keeps to itself.
    let _ = writeln!(io::stderr(), "\n{SKIP_MARK}{test}: {reason}");
    false
}

fn without_root() -> Option<String> {
    let is_root = nix::unistd::geteuid().is_root();
    (!is_root).then(|| "needs root, for network namespaces and XDP".to_owned())
}

fn without_programs() -> Option<String> {
    PROGRAMS.iter().find_map(|(program, package)| without_program(program, package))
}

fn without_program(program: &str, package: &str) -> Option<String> {
    let found = Command::new(program).arg("--version").output().is_ok();
    (!found).then(|| format!("{program} is not installed (Debian package {package})"))
}
