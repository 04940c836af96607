//! XDP programs that rawr is measured with: a generator, a sink, and the limits.
//!
//! Built for BPF by the build script of rawr-bench. For the host it is an empty program, so that the
//! whole workspace builds and can be checked there.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod generate;
#[cfg(target_arch = "bpf")]
mod limits;
#[cfg(target_arch = "bpf")]
mod rewind;
#[cfg(target_arch = "bpf")]
mod sink;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Nothing here panics; the compiler wants to know what if.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper that needs the GPL is called.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
