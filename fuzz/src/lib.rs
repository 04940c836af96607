//! What rawr reads from strangers, fed with anything. Each target is a function of bytes that panics where
//! something is wrong; it is the same one for libFuzzer (`fuzz_targets`) and for the bounded run of
//! `tests/short.rs`, and both begin with the inputs in `corpus`.

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
        rounds: 5_000,
        needs_root: false,
    },
    Target {
        name: "stream",
        run: stream::run,
        seeds: stream::seeds,
        rounds: 200_000,
        needs_root: false,
    },
    Target {
        name: "datapath",
        run: datapath::run,
        seeds: datapath::seeds,
        rounds: 100_000,
        needs_root: true,
    },
];
