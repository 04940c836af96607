//! What no relay can be faster than: programs that send every packet on, untouched.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::DevMap;
use aya_ebpf::programs::XdpContext;

/// The interface that [`bare_redirect`] sends by.
#[map]
static WAY_OUT: DevMap = DevMap::with_max_entries(1, 0);

/// Everything leaves by the other interface.
#[xdp]
fn bare_redirect(_: XdpContext) -> u32 {
    WAY_OUT.redirect(0, 0).unwrap_or_else(|action| action)
}

/// Everything leaves by the interface that it came in by.
#[xdp]
fn bare_transmit(_: XdpContext) -> u32 {
    XDP_TX
}

/// Everything goes up. A veth takes frames from its peer's driver only if it has a program.
#[xdp]
fn pass(_: XdpContext) -> u32 {
    XDP_PASS
}
