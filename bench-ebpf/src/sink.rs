//! The sink: counts the generator's packets by flow, sets some aside, and drops them all.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_load_bytes};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use bench_ebpf::{
    BUCKETS, FLOWS, PAYLOAD, PAYLOAD_OFFSETS, SAMPLE_EVERY, SAMPLE_ROOM, SAMPLES, SEEN_BLOCK,
    Sample, TRANSACTION_OFFSET, bucket, is_mark,
};

#[map]
static RUN: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SEEN: Array<[u32; SEEN_BLOCK]> =
    Array::with_max_entries(FLOWS / SEEN_BLOCK as u32, BPF_F_MMAPABLE);
#[map]
static SAMPLE_RING: Array<Sample> = Array::with_max_entries(SAMPLES, BPF_F_MMAPABLE);
#[map]
static LATENCIES: Array<u64> = Array::with_max_entries(BUCKETS, BPF_F_MMAPABLE);

/// Takes packets of the generator off the wire; all else goes on to the stack.
#[xdp]
fn sink(context: XdpContext) -> u32 {
    let Some([mark, flow, early, late]) = payload(&context) else { return XDP_PASS };
    if RUN.get(0) != Some(&u64::from(mark)) {
        return XDP_DROP;
    }
    let Some(block) = SEEN.get_ptr_mut(flow / SEEN_BLOCK as u32) else { return XDP_PASS };
    // SAFETY: no two CPUs get packets of one flow.
    let count = unsafe {
        let seen = &mut (*block)[flow as usize % SEEN_BLOCK];
        *seen += 1;
        *seen
    };
    // Each flow's turn comes at another count, so that few flows and many are sampled alike.
    let turn = count + flow * 41;
    if turn & (SAMPLE_EVERY - 1) == 0 {
        sample(&context, turn / SAMPLE_EVERY);
    }
    let stamp = u64::from(early) | u64::from(late) << 32;
    if stamp != 0 {
        note_latency(stamp);
    }
    XDP_DROP
}

/// How a payload of ours begins.
#[inline(always)]
fn payload(context: &XdpContext) -> Option<[u32; PAYLOAD / 4]> {
    for offset in PAYLOAD_OFFSETS {
        let start = context.data() + offset;
        if start + PAYLOAD > context.data_end() {
            return None;
        }
        // SAFETY: within the packet, as has just been checked.
        let words = unsafe { (start as *const [u32; PAYLOAD / 4]).read_unaligned() };
        if is_mark(words[0]) {
            return Some(words);
        }
    }
    let start = context.data() + TRANSACTION_OFFSET;
    if start + 8 > context.data_end() {
        return None;
    }
    // SAFETY: as above.
    let [mark, flow] = unsafe { (start as *const [u32; 2]).read_unaligned() };
    is_mark(mark).then_some([mark, flow, 0, 0])
}

#[inline(always)]
fn sample(context: &XdpContext, number: u32) {
    let index = cpu() * SAMPLES + (number & (SAMPLES - 1));
    let Some(sample) = SAMPLE_RING.get_ptr_mut(index) else { return };
    let len = (context.data_end() - context.data()) as u32 & (SAMPLE_ROOM as u32 - 1);
    if len == 0 {
        return;
    }
    // SAFETY: the sample has more room than `len`; this CPU's, so that nobody else writes.
    unsafe {
        let frame = &raw mut (*sample).frame;
        if bpf_xdp_load_bytes(context.ctx, 0, frame.cast(), len) == 0 {
            (*sample).len = u64::from(len);
        }
    }
}

#[inline(always)]
fn note_latency(stamp: u64) {
    // SAFETY: no side effects.
    let ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(stamp);
    if let Some(count) = LATENCIES.get_ptr_mut(cpu() * BUCKETS + bucket(ns)) {
        // SAFETY: this CPU's.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: no side effects.
    unsafe { bpf_get_smp_processor_id() }
}
