//! Gives another program the same packet again and again.
//!
//! A test run of many repeats hands each run what the last one left. A program that turns IPv4 into
//! IPv6 could thus run only once; behind this one, it finds the same IPv4 packet each time.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// How the packet begins: all headers that any program under test may change, VLAN tags and IPv6
/// included, and somewhat of the payload. 72 bytes.
type Beginning = [u64; 9];
/// A whole packet that is shorter: a STUN header over UDP and IPv4.
type Header = [u16; 31];
/// The same with the attribute FINGERPRINT.
type WithFingerprint = [u16; 35];

#[map]
static REWIND_BEGINNING: Array<Beginning> = Array::with_max_entries(1, 0);
/// Length of the packet, in bytes.
#[map]
static REWIND_LENGTH: Array<u32> = Array::with_max_entries(1, 0);
/// The program under test.
#[map]
static REWIND_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Restores the packet, then runs the program under test on it.
#[xdp]
fn rewind(context: XdpContext) -> u32 {
    let (Some(beginning), Some(length)) = (REWIND_BEGINNING.get(0), REWIND_LENGTH.get(0)) else {
        return XDP_ABORTED;
    };
    // SAFETY: the context is the kernel's own.
    let surplus = unsafe { bpf_xdp_get_buff_len(context.ctx) } as i32 - *length as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_head(context.ctx, surplus) } != 0 {
        return XDP_ABORTED;
    }
    let is_restored = write::<Beginning>(&context, beginning)
        || write::<WithFingerprint>(&context, beginning)
        || write::<Header>(&context, beginning);
    if !is_restored {
        return XDP_ABORTED;
    }
    // SAFETY: the context is the kernel's own. The call returns only if there is no such program.
    unsafe { REWIND_NEXT.tail_call(&context, 0) };
    XDP_ABORTED
}

/// Writes as much of the beginning as `T` is long, unless the packet is shorter.
#[inline(always)]
fn write<T: Copy>(context: &XdpContext, beginning: &Beginning) -> bool {
    const { assert!(size_of::<T>() <= size_of::<Beginning>()) };
    let start = context.data();
    if start + size_of::<T>() > context.data_end() {
        return false;
    }
    // SAFETY: the bounds were just checked on the one side, and when this was compiled on the other.
    unsafe {
        let beginning = core::ptr::from_ref(beginning).cast::<T>().read_unaligned();
        (start as *mut T).write_unaligned(beginning);
    }
    true
}
