//! The compiled XDP program, embedded.

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/rawr.bpf.o"));

/// The ELF object of the XDP program. Empty if this was built with `RAWR_SKIP_EBPF=1`: who loads it
/// says so.
pub fn object() -> &'static [u8] {
    OBJECT
}
