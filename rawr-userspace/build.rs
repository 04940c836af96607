//! Compiles the XDP program and hands its object to `dataplane::object`.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

#[path = "../xtask/src/bpf_object.rs"]
mod bpf_object;

fn main() {
    bpf_object::embed("rawr-ebpf", "rawr.bpf.o");
}
