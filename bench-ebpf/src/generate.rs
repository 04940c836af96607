//! The generator: run by `BPF_PROG_TEST_RUN` with live frames, it makes each frame a packet of the
//! next flow and sends it out. The kernel recycles frames without restoring them, so that all of
//! the front is written anew.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use bench_ebpf::{
    FRONT, PAYLOAD, PAYLOAD_OFFSETS, Plan, Progress, TRANSACTION_OFFSET, near, near_port,
};

#[map]
static PLANS: Array<Plan> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PROGRESS: Array<Progress> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A generator that is late by more than this (nanoseconds) does not make up for it.
const PATIENCE: u64 = 100_000;

const IP_CHECKSUM: usize = 24;
const SOURCE: usize = 26 + 2;
const DESTINATION: usize = 30 + 2;
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;
const UDP_CHECKSUM: usize = 40;

/// Sends a packet of the next flow, or nothing (dropping the frame) if none is due.
#[xdp]
fn generate(context: XdpContext) -> u32 {
    // SAFETY: no side effects.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let (Some(plan), Some(progress)) = (PLANS.get(cpu), PROGRESS.get_ptr_mut(cpu)) else {
        return XDP_ABORTED;
    };
    // SAFETY: this CPU's, whose generator runs once at a time.
    let progress = unsafe { &mut *progress };
    if !is_due(plan, progress) {
        return XDP_DROP;
    }
    let start = context.data();
    if start + FRONT > context.data_end() {
        return XDP_ABORTED;
    }
    let flow = plan.first + progress.next;
    progress.next += plan.step;
    if progress.next >= plan.flows {
        progress.next -= plan.flows;
    }
    progress.sent += 1;
    // SAFETY: the frame is that long.
    unsafe { write(start as *mut u8, plan, flow) };
    XDP_TX
}

#[inline(always)]
fn is_due(plan: &Plan, progress: &mut Progress) -> bool {
    if plan.interval == 0 {
        return true;
    }
    // SAFETY: no side effects.
    let now = unsafe { bpf_ktime_get_ns() };
    if now < progress.due {
        return false;
    }
    let late = now - progress.due;
    progress.due = if late > PATIENCE { now } else { progress.due } + plan.interval;
    true
}

/// # Safety
///
/// `frame` is [`FRONT`] bytes long.
#[inline(always)]
unsafe fn write(frame: *mut u8, plan: &Plan, flow: u32) {
    let stamp = if plan.stamped == 0 {
        0
    } else {
        // SAFETY: no side effects.
        unsafe { bpf_ktime_get_ns() }
    };
    let (source, source_port) = near(flow);
    let (destination, destination_port) = if plan.own_port == 0 { (0, 0) } else { near_port(flow) };
    let mut front = plan.front;
    let mut set = |offset: usize, value: u16| {
        let bytes = value.to_be_bytes();
        (front[offset], front[offset + 1]) = (bytes[0], bytes[1]);
    };
    let mut addresses = u32::from(source.to_be());
    set(SOURCE, source);
    set(SOURCE_PORT, source_port);
    let mut covered = u32::from(source_port.to_be());
    if plan.own_port != 0 {
        set(DESTINATION, destination);
        set(DESTINATION_PORT, destination_port);
        addresses += u32::from(destination.to_be());
        covered += u32::from(destination_port.to_be());
    }
    let ip = fold(plan.ip_sum + addresses);
    let udp = fold(plan.udp_sum + addresses + covered + sum(flow) + sum64(stamp));
    set(IP_CHECKSUM, u16::from_be(ip));
    set(UDP_CHECKSUM, u16::from_be(if udp == 0 { 0xffff } else { udp }));
    // SAFETY: the caller vouches for the frame; all offsets leave room for what begins there.
    unsafe {
        frame.cast::<[u8; FRONT]>().write_unaligned(front);
        if plan.payload as usize == TRANSACTION_OFFSET {
            let transaction = frame.add(TRANSACTION_OFFSET);
            transaction.cast::<u32>().write_unaligned(plan.mark);
            transaction.add(4).cast::<u32>().write_unaligned(flow);
            return;
        }
        let offset = if plan.payload as usize == PAYLOAD_OFFSETS[0] {
            PAYLOAD_OFFSETS[0]
        } else {
            PAYLOAD_OFFSETS[1]
        };
        let payload = frame.add(offset);
        payload.cast::<u32>().write_unaligned(plan.mark);
        payload.add(4).cast::<u32>().write_unaligned(flow);
        payload.add(8).cast::<u64>().write_unaligned(stamp);
    }
}

#[inline(always)]
fn sum(value: u32) -> u32 {
    (value & 0xffff) + (value >> 16)
}

#[inline(always)]
fn sum64(value: u64) -> u32 {
    sum(value as u32) + sum((value >> 32) as u32)
}

/// The checksum for a sum of 16-bit words as loaded.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

const _: () = assert!(PAYLOAD_OFFSETS[1] + PAYLOAD <= FRONT && TRANSACTION_OFFSET + 8 <= FRONT);
