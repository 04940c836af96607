//! Finds what compiles the XDP program: a Rust compiler that has `core` for BPF, and bpf-linker with
//! an LLVM that reads that compiler's bitcode. Shared by `cargo xtask setup` and by the build script
//! of rawr-userspace, so it uses nothing but the standard library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

/// The target of the XDP program.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The release of bpf-linker that this project is built and tested with.
pub(crate) const LINKER_VERSION: &str = "0.10.3";
/// Names a cargo to compile the XDP program with; its rustc lies beside it.
pub(crate) const CARGO_VARIABLE: &str = "RAWR_BPF_CARGO";

/// The LLVM that bpf-linker 0.10 speaks to. It reads the bitcode of no newer one.
const LLVM_MAJOR: u32 = 22;

/// All that it takes to compile the XDP program.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
    /// The LLVM library that the linker loads.
    pub(crate) llvm: PathBuf,
}

/// A cargo and a rustc that can compile for [`TARGET`].
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// `core` comes precompiled; else it is compiled from the compiler's `rust-src`.
    pub(crate) precompiled_core: bool,
    sysroot: PathBuf,
}

/// What was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No compiler fits; the candidates and what each lacks.
    Compiler(Vec<(PathBuf, &'static str)>),
    /// The compiler that [`CARGO_VARIABLE`] names lacks something.
    NamedCompiler(PathBuf, &'static str),
    Linker,
    Llvm,
}

impl Toolchain {
    /// Finds a compiler, the linker and its LLVM. `target_dir` is the workspace's target folder.
    pub(crate) fn find(target_dir: &Path) -> Result<Self, Missing> {
        let compiler = Compiler::find()?;
        let linker = find_linker(target_dir).ok_or(Missing::Linker)?;
        let llvm = find_llvm(&compiler).ok_or(Missing::Llvm)?;
        Ok(Self { compiler, linker, llvm })
    }
}

impl Compiler {
    /// The first that fits: the one that [`CARGO_VARIABLE`] names, rustup's nightlies, the system's.
    pub(crate) fn find() -> Result<Self, Missing> {
        if let Some(cargo) = env::var_os(CARGO_VARIABLE).map(PathBuf::from) {
            return Self::examine(&cargo).map_err(|lack| Missing::NamedCompiler(cargo, lack));
        }
        let mut unfit = Vec::new();
        for cargo in nightlies().into_iter().chain([PathBuf::from("/usr/bin/cargo")]) {
            match Self::examine(&cargo) {
                Ok(compiler) => return Ok(compiler),
                Err(lack) => unfit.push((cargo, lack)),
            }
        }
        Err(Missing::Compiler(unfit))
    }

    /// Whether this cargo's rustc can compile for BPF, or else what it lacks.
    fn examine(cargo: &Path) -> Result<Self, &'static str> {
        if !cargo.is_file() {
            return Err("does not exist");
        }
        let rustc = cargo.with_file_name("rustc");
        let version = output(&rustc, &["-vV"]).ok_or("has no working rustc beside it")?;
        if llvm_major(&version).is_none_or(|major| major > LLVM_MAJOR) {
            return Err("has a rustc with an LLVM newer than 22, which bpf-linker cannot read");
        }
        let sysroot = output(&rustc, &["--print", "sysroot"]).ok_or("has no sysroot")?;
        let sysroot = PathBuf::from(sysroot.trim());
        let rustlib = sysroot.join("lib/rustlib");
        let precompiled_core = rustlib.join(TARGET).is_dir();
        if !precompiled_core && !rustlib.join("src/rust/library/core").is_dir() {
            return Err("has neither a precompiled core for BPF nor rust-src");
        }
        Ok(Self { cargo: cargo.to_owned(), rustc, precompiled_core, sysroot })
    }
}

/// bpf-linker, of the right version, on `PATH`, among cargo's programs or in `target_dir/tools`.
pub(crate) fn find_linker(target_dir: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .chain([target_dir.join("tools/bin")])
        .map(|folder| folder.join("bpf-linker"))
        .find(|program| {
            let version = program.is_file().then(|| output(program, &["--version"])).flatten();
            version.is_some_and(|version| version.trim().ends_with(LINKER_VERSION))
        })
}

/// The library of LLVM 22: the compiler's own, another rustup toolchain's, or the system's.
pub(crate) fn find_llvm(compiler: &Compiler) -> Option<PathBuf> {
    let arch = env::consts::ARCH;
    [compiler.sysroot.join("lib")]
        .into_iter()
        .chain(rustup_toolchains().into_iter().map(|toolchain| toolchain.join("lib")))
        .chain(
            [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib/llvm-22/lib".into()].map(Into::into),
        )
        .chain(["/usr/lib64", "/usr/lib"].map(PathBuf::from))
        .flat_map(|folder| sorted_entries(&folder))
        .find(|file| is_llvm(file))
}

/// Whether a file is LLVM 22's library itself, not a linker script that stands for it.
fn is_llvm(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(&format!("libLLVM.so.{LLVM_MAJOR}.")) && file.is_file()
}

fn nightlies() -> Vec<PathBuf> {
    let mut nightlies = rustup_toolchains();
    nightlies.retain(|toolchain| {
        toolchain.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
    });
    nightlies.into_iter().map(|toolchain| toolchain.join("bin/cargo")).collect()
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    home.map(|home| sorted_entries(&home.join("toolchains"))).unwrap_or_default()
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("LD_LIBRARY_PATH");
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler(unfit) => {
                write!(f, "no Rust compiler here can compile for BPF")?;
                unfit.iter().try_for_each(|(cargo, lack)| write!(f, "; {} {lack}", cargo.display()))
            }
            Self::NamedCompiler(cargo, lack) => {
                write!(f, "{CARGO_VARIABLE} is set, but {} {lack}", cargo.display())
            }
            Self::Linker => write!(f, "bpf-linker {LINKER_VERSION} is missing"),
            Self::Llvm => write!(f, "bpf-linker needs the library of LLVM {LLVM_MAJOR}"),
        }
    }
}

impl std::error::Error for Missing {}
