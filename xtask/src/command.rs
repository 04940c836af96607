//! Running other programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Variables that programs run through sudo need from the caller.
const KEPT: &str = "CI,RUST_BACKTRACE,RAWR_LOG,RAWR_BIN,RAWR_KEEP_LOGS";

/// The folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Cargo, of the toolchain that runs this.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Says what it runs, and runs it. Failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", display(command));
    let status = command.status().with_context(|| format!("cannot run {}", display(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", display(command));
    }
    Ok(())
}

/// How a command would be typed.
pub(crate) fn display(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let arguments = command.get_args().map(|each| each.to_string_lossy().into_owned());
    let words: Vec<_> =
        [name.to_string_lossy().into_owned()].into_iter().chain(arguments).collect();
    words.join(" ")
}

/// Whether `program` can be started.
pub(crate) fn is_installed(program: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// What to put before a command to run it as root: nothing, or sudo and its flags. `None` where
/// there is no way.
pub(crate) fn elevation() -> Option<Vec<String>> {
    if is_root() {
        return Some(Vec::new());
    }
    is_installed("sudo").then(|| vec!["sudo".to_owned(), format!("--preserve-env={KEPT}")])
}

/// A command that runs as root.
pub(crate) fn as_root(program: impl AsRef<Path>) -> Result<Command> {
    let program = program.as_ref();
    let words = elevation().with_context(|| {
        format!("{} needs root: run this as root, or install sudo", program.display())
    })?;
    let mut command = match words.split_first() {
        Some((sudo, flags)) => {
            let mut command = Command::new(sudo);
            command.args(flags).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir(workspace());
    Ok(command)
}
