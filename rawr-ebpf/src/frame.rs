//! The kernel's packets as the relay sees them.

use core::ptr::NonNull;

use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use rawr_common::relay::Frame;

/// A packet in the driver's buffer.
pub(crate) struct Packet(XdpContext);

impl Packet {
    #[inline(always)]
    pub(crate) fn new(context: XdpContext) -> Self {
        Self(context)
    }
}

// SAFETY: the kernel's verifier refuses the program if what `at` returns could leave the packet.
unsafe impl Frame for Packet {
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let start = self.0.data() + offset;
        if start + len > self.0.data_end() {
            return None;
        }
        // SAFETY: no packet begins at 0, which the verifier knows.
        Some(unsafe { NonNull::new_unchecked(start as *mut u8) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn move_head(&mut self, delta: i32) -> bool {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { bpf_xdp_adjust_head(self.0.ctx, delta) == 0 }
    }

    #[inline(always)]
    fn move_tail(&mut self, delta: i32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_xdp_adjust_tail(self.0.ctx, delta) == 0 }
    }
}
