//! Compiles the generator, the sinks and the limits for BPF.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

#[path = "../xtask/src/bpf_object.rs"]
mod bpf_object;

fn main() {
    bpf_object::embed("bench-ebpf", "bench.bpf.o");
}
