//! Where the kernel enters: a verdict becomes an action and, if the packet was not forwarded, a count.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use rawr_common::binding;
use rawr_common::relay::{Glance, Verdict, glance};

use crate::frame::Packet;
use crate::maps::{self, Maps};

#[xdp]
fn rawr_relay(context: XdpContext) -> u32 {
    let raw = context.ctx;
    match glance(&mut Packet::new(context), &Maps) {
        Glance::Decided(verdict) => conclude(verdict),
        Glance::Asked { offset, v4 } => answer(raw, offset as u32, v4),
    }
}

/// A function of its own, whose stack and registers are not the relay's.
#[inline(never)]
fn answer(context: *mut xdp_md, offset: u32, v4: bool) -> u32 {
    let mut packet = Packet::new(XdpContext::new(context));
    conclude(binding::answer(&mut packet, &Maps, offset as usize, v4))
}

#[inline(always)]
fn conclude(verdict: Verdict) -> u32 {
    let (action, reason) = match verdict {
        // The tables chose the interface when they were asked whether there is one.
        Verdict::Redirect { .. } => return XDP_REDIRECT,
        Verdict::Transmit => return XDP_TX,
        Verdict::Pass(reason) => (XDP_PASS, reason),
        Verdict::Drop(reason) => (XDP_DROP, reason),
    };
    maps::count_reason(reason);
    action
}

/// Nothing here panics; the compiler wants to know what if.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper that needs the GPL is called.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
