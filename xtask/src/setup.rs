//! `cargo xtask setup`: installs what building and testing need and this machine lacks.
//!
//! It says what it is about to install, and why, before it does. Where nothing is missing it is quiet.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::command::{as_root, cargo, is_installed, run as run_command, workspace};
use crate::toolchain::{self, Compiler, LINKER_VERSION, Missing, Toolchain};

/// Something to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Package {
    name: &'static str,
    reason: &'static str,
}

/// What tests and benchmarks run: a program, the Debian package that has it, and what it is for.
const PROGRAMS: [(&str, Package); 10] = [
    ("ip", Package { name: "iproute2", reason: "network namespaces of tests and benchmarks" }),
    ("nft", Package { name: "nftables", reason: "the NATs between the namespaces of tests" }),
    (
        "ethtool",
        Package { name: "ethtool", reason: "checksum offloads of veth interfaces in tests" },
    ),
    (
        "turnserver",
        Package { name: "coturn", reason: "its tools test TURN, and benchmarks compare with it" },
    ),
    ("openssl", Package { name: "openssl", reason: "a DTLS client that tests the server" }),
    (
        "miniupnpd",
        Package {
            name: "miniupnpd-nftables",
            reason: "the router that tests ask for port mappings",
        },
    ),
    ("tayga", Package { name: "tayga", reason: "the NAT64 of tests" }),
    ("chromium", Package { name: "chromium", reason: "calls between browsers in tests" }),
    ("python3", Package { name: "python3", reason: "calls the library libnice in tests" }),
    ("tcpdump", Package { name: "tcpdump", reason: "packet captures of tests that fail" }),
];

/// Libraries that tests load, as the loader names them.
const LIBRARIES: [(&str, Package); 1] = [(
    "libnice.so.10",
    Package { name: "libnice10", reason: "an ICE agent, which tests TURN as GStreamer would" },
)];

/// A compiler that has `core` for BPF, where rustup has no nightly with `rust-src`.
const COMPILER: [Package; 3] = [
    Package { name: "rustc-web", reason: "compiles the XDP program" },
    Package { name: "cargo-web", reason: "builds the XDP program with that compiler" },
    Package { name: "libstd-rust-web-dev-bpf", reason: "Rust's core library for BPF" },
];

const LLVM: Package = Package { name: "libllvm22", reason: "bpf-linker generates code with it" };

pub(crate) fn run() -> Result<()> {
    let target_dir = workspace().join("target");
    let packages = missing_packages()?;
    let linker_missing = toolchain::find_linker(&target_dir).is_none();
    for package in &packages {
        println!("will install Debian package {}: {}", package.name, package.reason);
    }
    if linker_missing {
        println!(
            "will install bpf-linker {LINKER_VERSION} into target/tools: links the XDP program"
        );
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if linker_missing {
        install_tool(&target_dir, "bpf-linker", LINKER_VERSION)?;
    }
    let found = Toolchain::find(&target_dir).map_err(|missing| match missing {
        Missing::Llvm => anyhow::anyhow!("{missing}: install Debian's {}", LLVM.name),
        missing => missing.into(),
    })?;
    if !packages.is_empty() || linker_missing {
        print_toolchain(&found);
    }
    Ok(())
}

fn print_toolchain(Toolchain { compiler, linker, llvm }: &Toolchain) {
    let core = if compiler.precompiled_core { "its" } else { "a freshly compiled" };
    println!(
        "the XDP program will be built by {} and {} with {core} core, and linked by {} with {}",
        compiler.cargo.display(),
        compiler.rustc.display(),
        linker.display(),
        llvm.display()
    );
}

fn missing_packages() -> Result<Vec<Package>> {
    let programs = PROGRAMS.iter().filter(|(program, _)| !is_installed(program));
    let libraries = LIBRARIES.iter().filter(|(library, _)| !can_load(library));
    let mut missing: Vec<Package> =
        programs.chain(libraries).map(|(_, package)| *package).collect();
    match Compiler::find() {
        Ok(compiler) if toolchain::find_llvm(&compiler).is_none() => missing.push(LLVM),
        Ok(_) => {}
        // Debian's compiler brings its LLVM along.
        Err(Missing::Compiler(_)) => missing.extend(COMPILER),
        Err(named) => bail!("{named}; unset it or name another cargo"),
    }
    Ok(missing)
}

/// Whether the loader knows a library.
fn can_load(library: &str) -> bool {
    let known = Command::new("/sbin/ldconfig").arg("-p").output();
    known.is_ok_and(|known| String::from_utf8_lossy(&known.stdout).contains(library))
}

fn install_packages(packages: &[Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    ensure!(
        is_installed("apt-get"),
        "this is no Debian: install what provides {}; in place of {}, `rustup toolchain install \
         nightly --component rust-src` will do",
        names.join(", "),
        COMPILER.map(|package| package.name).join(", ")
    );
    apt_get(&["update", "--quiet"])?;
    // Debian's two lines of Rust packages exclude each other; which to keep is not ours to say.
    let install = ["install", "--quiet", "--yes", "--no-install-recommends", "--no-remove"];
    apt_get(&[&install, names.as_slice()].concat())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    run_command(as_root("apt-get")?.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Compiles a tool into `target_dir/tools` with the cargo that runs this.
pub(crate) fn install_tool(target_dir: &Path, name: &str, version: &str) -> Result<()> {
    let mut cargo = cargo();
    cargo
        .args(["install", name, "--version", version, "--locked", "--root"])
        .arg(target_dir.join("tools"))
        .arg("--target-dir")
        .arg(target_dir.join("tools/build"));
    run_command(&mut cargo)?;
    // Half a gigabyte that nothing needs again.
    let _ = std::fs::remove_dir_all(target_dir.join("tools/build"));
    Ok(())
}
