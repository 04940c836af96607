//! What rawr reads from strangers, fed with anything. Each target is a function of bytes that panics where
//! something is wrong; it is the same one for libFuzzer (`fuzz_targets`) and for the bounded run of
//! `tests/short.rs`, and both begin with the inputs in `corpus`.
//!
//! `cargo xtask test` runs every target for seconds. Longer, without and with coverage (the latter takes
//! `cargo install cargo-fuzz` and a nightly toolchain; `datapath` takes root):
//!
//! ```sh
//! RAWR_FUZZ_ROUNDS=500 RAWR_FUZZ_SEED=7 cargo test -p rawr-fuzz
//! cargo +nightly fuzz run --features libfuzzer server
//! ```
//!
//! An input that fails is kept where the failure says. It becomes a file of the corpus together with the
//! change that mends it.

#![allow(clippy::unwrap_used, reason = "a target that panics has found something")]

pub mod datapath;
pub mod mutate;
pub mod reader;
pub mod server;
pub mod stream;

/// Something that takes bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The folder of its corpus has the same name.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that reach what random bytes hardly do.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Inputs of a bounded run, beside the corpus.
    pub rounds: u32,
    /// Whether it loads a program into the kernel.
    pub needs_root: bool,
}

/// All of them.
pub const TARGETS: [Target; 3] = [
    Target {
        name: "server",
        run: server::run,
        seeds: server::seeds,
        rounds: 20_000,
        needs_root: false,
    },
    Target {
        name: "stream",
        run: stream::run,
        seeds: stream::seeds,
        rounds: 300_000,
        needs_root: false,
    },
    Target {
        name: "datapath",
        run: datapath::run,
        seeds: datapath::seeds,
        rounds: 200_000,
        needs_root: true,
    },
];
