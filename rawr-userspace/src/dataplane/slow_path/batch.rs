//! Sending many datagrams of one flow with few system calls.
//!
//! The stack cuts a run of equally long datagrams, of which the last may be shorter, out of one
//! buffer (GSO). Runs are collected here; what is a run already, because the stack received it as
//! one (GRO), is sent from where it lies.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use quinn_udp::{EcnCodepoint, Transmit, UdpSocketState};

use super::port::{Port, despite_errors};
use super::{Tally, port};

/// Most segments of one run that every kernel with GSO takes (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;
/// Most bytes of one run, below the largest UDP payload of both families.
const MOST_BYTES: usize = 65_000;

/// Sends runs. Belongs to one worker, whose sockets share it.
#[derive(Debug)]
pub(super) struct Sender {
    /// How to send. Not of a socket that is sent by: those have their options from [`port::bind`].
    state: UdpSocketState,
    run: Vec<u8>,
    /// Length of each datagram in `run`; 0 if there is none.
    segment: usize,
    segments: usize,
    ecn: Option<EcnCodepoint>,
    /// No more datagrams may be added, as the last was shorter.
    closed: bool,
}

impl Sender {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: fresh_state()?,
            run: Vec::with_capacity(MOST_BYTES),
            segment: 0,
            segments: 0,
            ecn: None,
            closed: false,
        })
    }

    /// Adds datagrams, `stride` bytes each but the last, to what leaves from `out` to `to`. Every
    /// call until [`Self::flush`] must name the same `out` and `to`.
    pub(super) fn push(
        &mut self,
        out: &Port,
        to: SocketAddr,
        (bytes, stride): (&[u8], usize),
        ecn: Option<EcnCodepoint>,
        tally: &Tally,
    ) {
        let segments = bytes.len().div_ceil(stride.max(1)).max(1);
        if !self.fits(bytes.len(), stride, segments, ecn) {
            self.flush(out, to, tally);
        }
        if segments > 1 && self.segments == 0 && bytes.len() > MOST_BYTES / 2 {
            self.transmit(out, to, (bytes, stride), ecn, tally);
            return;
        }
        if self.segments == 0 {
            (self.segment, self.ecn) = (stride, ecn);
        }
        self.run.extend_from_slice(bytes);
        self.segments += segments;
        self.closed = bytes.len() < segments * self.segment || bytes.is_empty();
    }

    /// Sends what has been added.
    pub(super) fn flush(&mut self, out: &Port, to: SocketAddr, tally: &Tally) {
        if self.segments == 0 {
            return;
        }
        let run = std::mem::take(&mut self.run);
        self.transmit(out, to, (&run, self.segment), self.ecn, tally);
        self.run = run;
        self.run.clear();
        (self.segment, self.segments, self.closed) = (0, 0, false);
    }

    fn fits(&self, len: usize, stride: usize, segments: usize, ecn: Option<EcnCodepoint>) -> bool {
        self.segments == 0
            || (!self.closed
                && ecn == self.ecn
                && (stride == self.segment || (segments == 1 && len < self.segment && len > 0))
                && self.segments + segments <= MOST_SEGMENTS
                && self.run.len() + len <= MOST_BYTES)
    }

    fn transmit(
        &mut self,
        out: &Port,
        to: SocketAddr,
        (bytes, stride): (&[u8], usize),
        ecn: Option<EcnCodepoint>,
        tally: &Tally,
    ) {
        let _unchanged = out.may_fragment();
        let whole = Transmit {
            destination: to,
            ecn,
            contents: bytes,
            segment_size: Some(stride),
            src_ip: None,
        };
        if bytes.len() <= stride {
            return self.transmit_one(out, &whole, tally);
        }
        for contents in bytes.chunks(stride * MOST_SEGMENTS) {
            let run = Transmit { contents, ..whole.clone() };
            if self.transmit_run(out, &run, tally) {
                continue;
            }
            for contents in contents.chunks(stride) {
                self.transmit_one(out, &Transmit { contents, ..whole.clone() }, tally);
            }
        }
    }

    /// Whether the stack took the run, or failed to send it at all. Otherwise its datagrams are to
    /// be sent singly.
    fn transmit_run(&mut self, out: &Port, run: &Transmit<'_>, tally: &Tally) -> bool {
        let stride = run.segment_size.unwrap_or(run.contents.len());
        if self.state.max_gso_segments() == 1
            || stride > out.largest_segment.load(Ordering::Relaxed)
        {
            return false;
        }
        let send = || self.state.try_send((&out.socket).into(), run);
        let Err(error) = despite_errors(send) else { return true };
        let largest_segment = match error.raw_os_error() {
            // Larger than the MTU.
            Some(libc::EINVAL | libc::EMSGSIZE) => stride - 1,
            // The interface has no checksum offload.
            Some(libc::EIO) => 0,
            _ => {
                tally.send_error(&error, run.contents.len().div_ceil(stride) as u64);
                return true;
            }
        };
        out.largest_segment.store(largest_segment, Ordering::Relaxed);
        self.renew_after(&error);
        false
    }

    fn transmit_one(&mut self, out: &Port, datagram: &Transmit<'_>, tally: &Tally) {
        let single = Transmit { segment_size: None, ..datagram.clone() };
        let send = || self.state.try_send((&out.socket).into(), &single);
        if let Err(error) = despite_errors(send) {
            tally.send_error(&error, 1);
            self.renew_after(&error);
        }
    }

    /// The state gives up GSO and ECN for good after one refusal. That would hit all sockets for
    /// one whose path has a smaller MTU, or that sends to an impossible address.
    fn renew_after(&mut self, error: &io::Error) {
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) {
            return;
        }
        match fresh_state() {
            Ok(state) => self.state = state,
            Err(error) => log::debug!("no socket to find out about segmentation offload: {error}"),
        }
    }
}

fn fresh_state() -> io::Result<UdpSocketState> {
    let scratch = port::bind(SocketAddr::new([127, 0, 0, 1].into(), 0), 4096)?;
    UdpSocketState::new((&scratch).into())
}
