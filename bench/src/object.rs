//! The XDP programs that rawr is measured with, compiled by the build script.

/// The object file of bench-ebpf. Empty if it was built with `RAWR_SKIP_EBPF=1`.
pub(crate) fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.bpf.o"))
}
