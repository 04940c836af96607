//! Compiles a package of the workspace for BPF, in the build script of the package that embeds it.
//!
//! `RAWR_SKIP_EBPF=1` embeds an empty object instead, for jobs that only check or document.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use crate::toolchain::{self, TARGET, Toolchain};

const SKIP: &str = "RAWR_SKIP_EBPF";

/// Writes the object of `package`'s program to `file` in `OUT_DIR`, or says why there is none.
pub(crate) fn embed(package: &str, file: &str) {
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let workspace = own.parent().expect("the package lies in the workspace");
    watch(package, workspace);
    match object(package, workspace, &out) {
        Ok(object) => fs::write(out.join(file), object).expect("OUT_DIR is writable"),
        // Cargo fails because of this line, and shows it alone.
        Err(message) => println!("cargo::error={message}"),
    }
}

fn watch(package: &str, workspace: &Path) {
    for name in [SKIP, toolchain::CARGO_VARIABLE] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for file in ["Cargo.lock", "xtask/src/toolchain.rs", "xtask/src/bpf_object.rs"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }
    for package in [package, "rawr-common"] {
        for part in ["Cargo.toml", "src"] {
            println!("cargo::rerun-if-changed={}", workspace.join(package).join(part).display());
        }
    }
}

/// The bytes of the object, or why there are none.
fn object(package: &str, workspace: &Path, out: &Path) -> Result<Vec<u8>, String> {
    if env::var_os(SKIP).is_some_and(|value| value != "0") {
        return Ok(Vec::new());
    }
    let toolchain = Toolchain::find(&workspace.join("target"))
        .map_err(|missing| format!("{missing}: run `cargo xtask setup`, then build again"))?;
    let target_dir = out.join("bpf");
    compile(package, &toolchain, workspace, out, &target_dir)?;
    let file = target_dir.join(TARGET).join("release").join(package);
    fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn compile(
    package: &str,
    toolchain: &Toolchain,
    workspace: &Path,
    out: &Path,
    target_dir: &Path,
) -> Result<(), String> {
    let mut cargo = cargo(toolchain, out)
        .map_err(|error| format!("cannot prepare {}: {error}", out.display()))?;
    cargo
        .args(["build", "--release", "--locked", "--package", package, "--bin", package])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .current_dir(workspace);
    if !toolchain.compiler.precompiled_core {
        cargo.args(["-Z", "build-std=core"]);
    }
    let program = toolchain.compiler.cargo.display();
    let output = cargo.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    Err(format!("{package} does not compile:\n{messages}").replace('\n', "\ncargo::error="))
}

/// A cargo command that compiles for BPF, free of what the environment meant for the host's compiler.
/// `scratch` is a folder that it may keep files in.
fn cargo(toolchain: &Toolchain, scratch: &Path) -> io::Result<Command> {
    let mut command = Command::new(&toolchain.compiler.cargo);
    for (name, _) in env::vars_os().filter(|(name, _)| is_for_the_host(name)) {
        command.env_remove(name);
    }
    command
        .env("RUSTC", &toolchain.compiler.rustc)
        // `core` and aya-ebpf use features that stable compilers keep to themselves.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain))
        .env("LD_LIBRARY_PATH", llvm_folder(toolchain, scratch)?);
    Ok(command)
}

fn rustflags(toolchain: &Toolchain) -> String {
    [
        &format!("-Clinker={}", toolchain.linker.display()),
        "-Ctarget-cpu=v3",
        "-Cpanic=abort",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // Packet headers lie at any offset; without this each load of one falls into bytes.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ]
    .join("\x1f")
}

/// A folder that holds the one LLVM library. The linker loads the first that it meets in
/// `LD_LIBRARY_PATH`, and the folders that libraries usually lie in may hold several.
fn llvm_folder(toolchain: &Toolchain, scratch: &Path) -> io::Result<PathBuf> {
    let folder = scratch.join("llvm");
    fs::create_dir_all(&folder)?;
    let link = folder.join("libLLVM.so");
    if fs::read_link(&link).ok().as_ref() != Some(&toolchain.llvm) {
        let _ = fs::remove_file(&link);
        symlink(&toolchain.llvm, &link)?;
    }
    Ok(folder)
}

/// Settings that cargo hands to build scripts, or users to cargo, for the host's compiler.
fn is_for_the_host(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"];
    let dropped =
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "TARGET", "LD_LIB"];
    dropped.iter().any(|prefix| name.starts_with(prefix))
        && !kept.contains(&name.as_ref())
        && !name.starts_with("CARGO_REGISTRIES_")
        && !name.starts_with("CARGO_HTTP_")
}
