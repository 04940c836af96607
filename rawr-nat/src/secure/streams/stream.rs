//! One stream: a TCP socket, and what is known of it beyond that.

use std::time::Instant;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};

use super::{LINGER, StreamError, StreamsConfig};

/// The two ports by which both sides know a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) own: u16,
    pub(super) peers: u16,
}

/// The parts of a TCP header that are looked at before `smoltcp` gets it (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentHead {
    pub(super) ports: Ports,
    pub(super) opens: bool,
    pub(super) resets: bool,
    /// Whether it does nothing but acknowledge.
    is_bare: bool,
    acknowledged: Option<Acknowledged>,
}

/// What a segment says of the other direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acknowledged {
    number: u32,
    window: u16,
}

impl SegmentHead {
    pub(super) fn read(segment: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = segment.first_chunk()?;
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = header[13] & 0x3F;
        let (syn, ack, rst) = (flags & 0x02 != 0, flags & ACK != 0, flags & 0x04 != 0);
        let number = u32::from(half(8)) << 16 | u32::from(half(10));
        Some(Self {
            ports: Ports { own: half(2), peers: half(0) },
            opens: syn && !ack && !rst,
            resets: rst,
            is_bare: flags == ACK && header_len(header) == segment.len(),
            acknowledged: ack.then_some(Acknowledged { number, window: half(14) }),
        })
    }
}

const ACK: u8 = 0x10;

fn header_len(header: &[u8; 20]) -> usize {
    usize::from(header[12] >> 4) * 4
}

/// What `segment` acknowledges, without what it carries.
fn bare_acknowledgement(segment: &[u8]) -> Option<[u8; 20]> {
    let mut header = *segment.first_chunk()?;
    let length = segment.len().checked_sub(header_len(&header))?;
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let next = sequence.wrapping_add(u32::try_from(length).ok()?);
    header[4..8].copy_from_slice(&next.to_be_bytes());
    (header[12], header[13]) = (5 << 4, ACK);
    Some(header)
}

/// Who opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Own,
    Peer,
}

/// Duplicate acknowledgements that mean a loss (RFC 5681 §3.2).
const FAST_RETRANSMIT: u8 = 3;

pub(super) struct Stream {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) ports: Ports,
    pub(super) origin: Origin,
    /// Whether both sides have agreed to it.
    pub(super) is_open: bool,
    pub(super) error: Option<StreamError>,
    /// Whether it has been told that it is open.
    pub(super) was_told: bool,
    /// Whether its end has been told.
    pub(super) is_over: bool,
    /// This side has no more to write.
    pub(super) finishes: bool,
    /// Nor has the other one.
    peer_finished: bool,
    /// What the last segment acknowledged, and how many bare ones have said the same again.
    acknowledged: Option<Acknowledged>,
    duplicates: u8,
    /// Nobody uses it any more; it goes by itself, at this time by force.
    pub(super) released: Option<Instant>,
    /// What was not confirmed when that time was set.
    pub(super) unconfirmed: usize,
    /// Somebody waits for it to become readable.
    pub(super) awaits_read: bool,
    /// Somebody waits for room.
    pub(super) awaits_write: bool,
    /// When it is to be looked at, as noted in the timers.
    pub(super) deadline: Option<Instant>,
    /// Whether it is among those that may have something to send.
    pub(super) is_queued: bool,
}

impl Stream {
    pub(super) fn new(config: &StreamsConfig, ports: Ports, origin: Origin) -> Self {
        // Not touched before they are used, so that they cost nothing then.
        let [receive, send] = [0; 2].map(|_: u8| SocketBuffer::new(vec![0; config.window]));
        let mut socket = Socket::new(receive, send);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            ports,
            origin,
            is_open: false,
            error: None,
            was_told: false,
            is_over: false,
            finishes: false,
            peer_finished: false,
            acknowledged: None,
            duplicates: 0,
            released: None,
            unconfirmed: 0,
            awaits_read: false,
            awaits_write: false,
            deadline: None,
            is_queued: false,
        }
    }

    pub(super) fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// What `smoltcp` 0.14 is to be given of a segment: nothing, the segment, or more.
    ///
    /// After three duplicate acknowledgements it stops its timer for retransmissions, to repeat the
    /// earliest data at once. Where a FIN is all that is to be confirmed there is none, and the FIN,
    /// if lost, would never be repeated: so there it gets no duplicates.
    ///
    /// It also forgets the duplicates that it has counted when data comes, as if data acknowledged
    /// something new. With data in both directions it would learn of losses by its timer alone: so it
    /// is reminded of them.
    pub(super) fn admit(&mut self, head: &SegmentHead, segment: &[u8]) -> Vec<Vec<u8>> {
        let is_repeated = head.acknowledged.is_some() && head.acknowledged == self.acknowledged;
        self.acknowledged = head.acknowledged;
        self.duplicates = match (is_repeated, head.is_bare) {
            (false, _) => 0,
            (true, true) => self.duplicates.saturating_add(1),
            (true, false) => self.duplicates,
        };
        if head.is_bare && is_repeated && self.finishes && self.socket().send_queue() == 0 {
            return Vec::new();
        }
        let mut admitted = vec![segment.to_vec()];
        if !head.is_bare && matches!(self.duplicates, 1..FAST_RETRANSMIT) {
            let reminder = bare_acknowledgement(segment).map(|it| it.to_vec());
            admitted.extend(reminder.into_iter().cycle().take(self.duplicates.into()));
        }
        admitted
    }

    /// As much as there is room for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.finishes {
            return Err(StreamError::Finished);
        }
        // Not yet open: no room.
        let written = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.awaits_write = written < bytes.len();
        Ok(written)
    }

    /// `None` where nothing has come since; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, StreamError> {
        match self.socket_mut().recv_slice(buffer) {
            Ok(0) if !buffer.is_empty() => {}
            Ok(length) => return Ok(Some(length)),
            Err(RecvError::Finished) => return Ok(Some(0)),
            Err(RecvError::InvalidState) => {
                if let Some(error) = self.error {
                    return Err(error);
                }
            }
        }
        self.awaits_read = true;
        Ok(None)
    }

    /// Takes note of what has become of the socket after a segment, a timer, or a call.
    pub(super) fn update(&mut self, was_reset: bool) {
        let state = self.socket().state();
        if !self.is_open && is_agreed(state) {
            self.is_open = true;
            if self.finishes {
                self.socket_mut().close();
            }
        }
        self.peer_finished |=
            matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        let ended = matches!(state, State::Closed | State::Listen);
        if ended && self.error.is_none() && !self.ended_well() {
            self.error = Some(match (was_reset, self.is_open) {
                (true, true) => StreamError::Reset,
                (true, false) => StreamError::Refused,
                (false, _) => StreamError::TimedOut,
            });
        }
    }

    /// Both sides have said all, and the other one has what this one said.
    fn ended_well(&self) -> bool {
        self.finishes && self.peer_finished && self.socket().send_queue() == 0
    }

    /// Whether reading would say at once that there is no more.
    fn is_at_end(&self) -> bool {
        self.peer_finished && !self.socket().can_recv()
    }

    pub(super) fn is_readable(&self) -> bool {
        self.socket().can_recv() || self.error.is_some() || self.is_at_end()
    }

    pub(super) fn is_writable(&self) -> bool {
        self.socket().can_send() || self.error.is_some()
    }

    /// Whether a stream that nobody uses has had its time; as long as it gets on, it gets more.
    pub(super) fn linger_is_over(&mut self, now: Instant) -> bool {
        if self.released.is_none_or(|at| now < at) {
            return false;
        }
        self.released = Some(now + LINGER);
        let left = self.socket().send_queue();
        let before = std::mem::replace(&mut self.unconfirmed, left);
        left == 0 || left >= before
    }

    /// Whether TCP has nothing left to do.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.socket().state(), State::Closed | State::Listen | State::TimeWait)
    }
}

const fn is_agreed(state: State) -> bool {
    match state {
        State::Closed | State::Listen | State::SynSent | State::SynReceived => false,
        State::Established
        | State::FinWait1
        | State::FinWait2
        | State::CloseWait
        | State::Closing
        | State::LastAck
        | State::TimeWait => true,
    }
}
