//! The program's maps. Their names stand in `rawr_common::flow::names`; userspace sets the lengths of
//! the tables when it loads the program.

use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use rawr_common::flow::{self, Exit, Flow4, Flow6, Rate};
use rawr_common::reason::Reason;
use rawr_common::relay::Tables;
use rawr_common::shared::Shared;
use rawr_common::wire::Header;

#[map]
static FLOWS4: Array<Flow4> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<Flow6> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static EXITS: Array<Exit> = Array::with_max_entries(flow::EXITS, 0);
#[map]
static RATES: Array<Rate> = Array::with_max_entries(1, 0);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
static EGRESS: DevMap = DevMap::with_max_entries(flow::EXITS, 0);

/// Length of the flow tables minus one, patched when the program is loaded.
#[unsafe(no_mangle)]
static TABLE_MASK: u32 = 0;

/// Counts a packet that is not forwarded.
#[inline(always)]
pub(crate) fn count_reason(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's slot, which nobody else writes.
        unsafe { *count += 1 };
    }
}

/// The maps as the relay sees them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn mask(&self) -> u32 {
        // SAFETY: a static; read as if it could change, because the loader patches it.
        unsafe { (&raw const TABLE_MASK).read_volatile() }
    }

    #[inline(always)]
    fn flow4(&self, index: u32) -> Option<Shared<Flow4>> {
        let entry = NonNull::new(FLOWS4.get_ptr_mut(index)?)?;
        // SAFETY: the kernel returned it, and array entries live as long as the map.
        unsafe { Shared::open(entry) }
    }

    #[inline(always)]
    fn flow6(&self, index: u32) -> Option<Shared<Flow6>> {
        let entry = NonNull::new(FLOWS6.get_ptr_mut(index)?)?;
        // SAFETY: as above.
        unsafe { Shared::open(entry) }
    }

    #[inline(always)]
    fn exit(&self, slot: u8) -> Option<Exit> {
        let exit = NonNull::new(EXITS.get_ptr_mut(u32::from(slot))?)?;
        // SAFETY: the kernel returned it. While a flow names it, nobody writes it.
        Some(unsafe { Exit::load(exit.cast()) })
    }

    /// Asks by choosing: `bpf_redirect_map` notes the interface for a later `XDP_REDIRECT`, and
    /// nothing happens unless that is what the program returns.
    #[inline(always)]
    fn has_egress(&self, slot: u8) -> bool {
        EGRESS.redirect(u32::from(slot), 0).is_ok()
    }

    #[inline(always)]
    fn admit(&self, rate: u32, bytes: u16) -> bool {
        let Some(rate) = RATES.get_ptr_mut(rate) else { return true };
        // A flow's packets come in on one CPU, so that a plain load and store suffice; while a flow
        // moves to another CPU, a packet may go uncounted.
        // SAFETY: the kernel returned it; aligned as all map values are.
        unsafe {
            let now = bpf_ktime_get_coarse_ns();
            let Some(full_at) = rate.read_volatile().admit(now, bytes) else { return false };
            (&raw mut (*rate).full_at).write_volatile(full_at);
        }
        true
    }
}
