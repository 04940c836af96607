//! What the generator and the sink agree on with the benchmark that drives them.
//!
//! A *flow* is a number below [`FLOWS`]. It stands for one leg of a session at a relay: datagrams
//! from an address and port of its own (`near`), to a port of the relay (`near_port`), which sends
//! them on from another of its ports (`far_port`) to the other peer (`far`).
#![no_std]

/// Most flows.
pub const FLOWS: u32 = 1_000_000;

/// Bytes at the front of a frame that the generator writes anew for each packet; also the length of
/// the shortest frame.
pub const FRONT: usize = 64;

/// A payload's first bytes: the run's mark, the flow and the time of sending, all in the host's order.
/// Time is in nanoseconds of the monotonic clock, or 0.
pub const PAYLOAD: usize = 16;

/// What payloads of a run begin with, so that what comes late from an earlier one is known as such.
pub const fn mark(run: u32) -> u32 {
    MAGIC | run & 0xffff
}

/// Whether a payload is of any run.
#[inline(always)]
pub const fn is_mark(word: u32) -> bool {
    word & 0xffff_0000 == MAGIC
}

const MAGIC: u32 = 0x7261_0000;

/// Where payloads may begin: behind IPv4 and UDP, or a ChannelData header more.
pub const PAYLOAD_OFFSETS: [usize; 2] = [42, 46];

/// Where the transaction ID of a STUN message begins (RFC 8489 §5), which an answer repeats. It has room
/// for the mark and the flow alone.
pub const TRANSACTION_OFFSET: usize = 50;

/// Flows that share one address of the relay.
pub const PORTS_PER_ADDRESS: u32 = 62_500;
const FIRST_PORT: u16 = 1024;

/// The last two bytes of the near peer's address, and its port.
#[inline(always)]
pub const fn near(flow: u32) -> (u16, u16) {
    ((flow >> 4) as u16, 20_000 + (flow & 15) as u16)
}

/// The last two bytes of the far peer's address, and its port.
pub const fn far(flow: u32) -> (u16, u16) {
    ((flow >> 4) as u16, 30_000 + (flow & 15) as u16)
}

/// The last two bytes of the relay's address that the near peer sends to, and the port.
#[inline(always)]
pub const fn near_port(flow: u32) -> (u16, u16) {
    ((flow / PORTS_PER_ADDRESS) as u16, FIRST_PORT + (flow % PORTS_PER_ADDRESS) as u16)
}

/// The last two bytes of the relay's address that the far peer gets datagrams from, and the port.
pub const fn far_port(flow: u32) -> (u16, u16) {
    let (address, port) = near_port(flow);
    (address + 16, port)
}

/// What one CPU's generator sends.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Plan {
    /// The front of each frame, with zeros where a flow's own bytes go, checksums included.
    pub front: [u8; FRONT],
    /// See [`mark`].
    pub mark: u32,
    /// Where the payload begins.
    pub payload: u32,
    /// Flows are `first` to `first + flows - 1`.
    pub first: u32,
    pub flows: u32,
    /// From one packet's flow to the next one's, modulo `flows`; coprime to it, so that each flow has
    /// its turn.
    pub step: u32,
    /// Ones' complement sum, not folded, of the IPv4 header in `front`, as loaded.
    pub ip_sum: u32,
    /// The same of pseudo header, UDP header and whole payload.
    pub udp_sum: u32,
    /// 1 if datagrams go to the flow's own port of the relay, 0 if `front` says where.
    pub own_port: u32,
    /// 1 if packets shall carry the time.
    pub stamped: u32,
    /// From one packet to the next, in nanoseconds; 0 for as fast as can be.
    pub interval: u64,
}

/// How far one CPU's generator is.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct Progress {
    /// The next flow, less [`Plan::first`].
    pub next: u32,
    /// Packets sent.
    pub sent: u64,
    /// When the next packet is due.
    pub due: u64,
}

/// Flows whose counts share an element of the sink's map, the elements of which are no smaller than
/// eight bytes.
pub const SEEN_BLOCK: usize = 16;

/// A frame that the sink has set aside for a closer look.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sample {
    /// Length of the frame; 0 if there is none.
    pub len: u64,
    pub frame: [u8; SAMPLE_ROOM],
}

/// Longer frames are not sampled.
pub const SAMPLE_ROOM: usize = 2048;
/// Each CPU has so many samples; a power of two.
pub const SAMPLES: u32 = 16;
/// One packet of so many is sampled; a power of two.
pub const SAMPLE_EVERY: u32 = 4096;

/// Buckets of a CPU's histogram of latencies.
pub const BUCKETS: u32 = 1024;
const STEPS: u32 = 5;

/// The bucket of a latency in nanoseconds: 32 to each power of two, so that buckets are 3 % wide.
#[inline(always)]
pub const fn bucket(ns: u64) -> u32 {
    if ns < 1 << STEPS {
        return ns as u32;
    }
    let power = 63 - ns.leading_zeros();
    let index = ((power - STEPS) << STEPS) + (ns >> (power - STEPS)) as u32;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The least latency that falls into a bucket.
pub const fn bucket_start(index: u32) -> u64 {
    if index < 1 << STEPS {
        return index as u64;
    }
    let power = (index >> STEPS) - 1;
    ((index & ((1 << STEPS) - 1)) as u64 + (1 << STEPS)) << power
}

/// Names of programs and maps.
pub mod names {
    pub const GENERATE: &str = "generate";
    pub const SINK: &str = "sink";
    pub const BARE_REDIRECT: &str = "bare_redirect";
    pub const BARE_TRANSMIT: &str = "bare_transmit";
    /// `Array<Plan>`, by CPU. All maps are `BPF_F_MMAPABLE`.
    pub const PLANS: &str = "PLANS";
    /// `Array<Progress>`, by CPU.
    pub const PROGRESS: &str = "PROGRESS";
    /// `Array<u64>` with one element: the [`mark`](super::mark) of the run.
    pub const RUN: &str = "RUN";
    /// `Array<[u32; SEEN_BLOCK]>`, by flow: packets that the sink has seen.
    pub const SEEN: &str = "SEEN";
    /// `Array<Sample>`, by CPU.
    pub const SAMPLE_RING: &str = "SAMPLE_RING";
    /// `Array<u64>`, by CPU.
    pub const LATENCIES: &str = "LATENCIES";
    /// `DevMap` with one slot.
    pub const WAY_OUT: &str = "WAY_OUT";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_begin_where_they_say() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(bucket_start(index)), index);
            if index > 0 {
                assert_eq!(bucket(bucket_start(index) - 1), index - 1);
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn flows_have_ports_of_their_own() {
        let last = FLOWS - 1;
        assert_eq!(near_port(0), (0, 1024));
        assert_eq!(near_port(last), (15, 63_523));
        assert_eq!(far_port(last), (31, 63_523));
        assert_eq!(near(last), (62_499, 20_015));
    }
}
