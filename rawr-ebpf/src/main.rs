//! The XDP program of the rawr relay: [`rawr_common::relay`] over the kernel's frames and maps.
//!
//! Built for BPF by rawr-userspace's build script. For the host it is an empty program, so that the
//! whole workspace builds and can be checked there.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod program;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
