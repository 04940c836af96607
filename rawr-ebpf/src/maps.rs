//! The program's maps. Their names stand in `rawr_common::flow::names`; userspace sets the lengths of
//! the tables when it loads the program.

use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
use rawr_common::flow::{self, Exit, Flow4, Flow6, Rate};
use rawr_common::rate;
use rawr_common::reason::Reason;
use rawr_common::relay::Tables;
use rawr_common::shared::{Entry, Shared};
use rawr_common::{channel, sharing};

#[map]
static FLOWS4: Array<Flow4> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<Flow6> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CHANNELS4: Array<Flow4> = Array::with_max_entries(channel::GROUP, BPF_F_MMAPABLE);
#[map]
static CHANNELS6: Array<Flow6> = Array::with_max_entries(channel::GROUP, BPF_F_MMAPABLE);
#[map]
static SHARED_PORTS: Array<u64> = Array::with_max_entries(sharing::WORDS, BPF_F_MMAPABLE);
#[map]
static EXITS: Array<Exit> = Array::with_max_entries(flow::EXITS, 0);
#[map]
static RATES: Array<Rate> = Array::with_max_entries(1, 0);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
static EGRESS: DevMap = DevMap::with_max_entries(flow::EXITS, 0);

/// Length of the port tables minus one, patched when the program is loaded.
#[unsafe(no_mangle)]
static TABLE_MASK: u32 = 0;

/// Length of the channel tables minus one, patched as well.
#[unsafe(no_mangle)]
static CHANNEL_MASK: u32 = channel::GROUP - 1;

/// Whether the program answers STUN Binding requests, patched as well.
#[unsafe(no_mangle)]
static ANSWERS: u32 = 0;

/// What keys of the channel tables are hashed with, patched as well.
#[unsafe(no_mangle)]
static HASH_SEED: u64 = 0;

/// Read as if it could change, the compiler does not unroll the loop over it.
static PROBES: u32 = channel::PROBES;

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
    fn channel_mask(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const CHANNEL_MASK).read_volatile() }
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const HASH_SEED).read_volatile() }
    }

    #[inline(always)]
    fn answers(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const ANSWERS).read_volatile() != 0 }
    }

    #[inline(always)]
    fn probes(&self) -> u32 {
        // SAFETY: a static.
        unsafe { (&raw const PROBES).read_volatile() }
    }

    #[inline(always)]
    fn flow4(&self, index: u32) -> Option<Shared<Flow4>> {
        open(&FLOWS4, index)
    }

    #[inline(always)]
    fn flow6(&self, index: u32) -> Option<Shared<Flow6>> {
        open(&FLOWS6, index)
    }

    #[inline(always)]
    fn shared_ports(&self, index: u32) -> u64 {
        // SAFETY: the kernel returned the word. Read as what may change, because userspace writes it.
        SHARED_PORTS.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn channel4(&self, index: u32) -> Option<Shared<Flow4>> {
        open(&CHANNELS4, index)
    }

    #[inline(always)]
    fn channel6(&self, index: u32) -> Option<Shared<Flow6>> {
        open(&CHANNELS6, index)
    }

    #[inline(always)]
    fn exit(&self, slot: u8) -> Option<&Exit> {
        // While a flow names it, nobody writes it.
        EXITS.get(u32::from(slot))
    }

    /// Asks by choosing: `bpf_redirect_map` notes the interface for a later `XDP_REDIRECT`, and
    /// nothing happens unless that is what the program returns.
    #[inline(always)]
    fn has_egress(&self, slot: u8) -> bool {
        EGRESS.redirect(u32::from(slot), 0).is_ok()
    }

    #[inline(always)]
    fn admit(&self, index: u32, bytes: u16) -> bool {
        admit(index, bytes)
    }
}

/// A function of its own: few flows have a limit, and inline it would stand there for each way out.
#[inline(never)]
fn admit(index: u32, bytes: u16) -> bool {
    let at = |index| NonNull::new(RATES.get_ptr_mut(index)?);
    // SAFETY: the kernel returned the limits; aligned as all map values are. Userspace writes one only
    // when it sets it up anew.
    unsafe { rate::admit(at, index, bpf_ktime_get_coarse_ns(), bytes) }
}

#[inline(always)]
fn open<E: Entry>(table: &Array<E>, index: u32) -> Option<Shared<E>> {
    let entry = NonNull::new(table.get_ptr_mut(index)?)?;
    // SAFETY: the kernel returned it, and array entries live as long as the map.
    unsafe { Shared::open(entry) }
}
