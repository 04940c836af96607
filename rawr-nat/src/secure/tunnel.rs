//! Streams and single datagrams side by side in one session.
//!
//! The first byte of a payload tells which it is: 0 for a datagram of the application's, 1 for a
//! segment of a stream's.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use super::config::{SealError, SessionEvent, SessionOutput};
use super::session::{MAX_PAYLOAD, Session};
use super::streams::{StreamError, StreamEvent, Streams, StreamsConfig};

const DATAGRAM: u8 = 0;
const SEGMENT: u8 = 1;

/// What happened in a [`Tunnel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelEvent {
    /// Of the session.
    Session(SessionEvent),
    /// Of a stream.
    Stream(StreamEvent),
    /// A datagram of the other side's application.
    Datagram(Vec<u8>),
}

/// A session, and what it carries.
///
/// After every other call, [`Tunnel::poll_transmit`] has to be drained, and then
/// [`Tunnel::poll_event`].
pub struct Tunnel {
    session: Session,
    streams: Streams,
    outgoing: VecDeque<Vec<u8>>,
    events: VecDeque<TunnelEvent>,
    dropped: u64,
}

impl Tunnel {
    /// The longest datagram of an application that [`Tunnel::send`] takes, in bytes. A path carries
    /// less: what is sent is longer by [`OVERHEAD`](super::OVERHEAD) and one.
    pub const MAX_DATAGRAM: usize = MAX_PAYLOAD - 1;

    /// Streams in `session`. `seed` is random.
    pub fn new(session: Session, config: StreamsConfig, seed: u64, now: Instant) -> Self {
        let streams = Streams::new(config, seed, now);
        let (outgoing, events) = (VecDeque::new(), VecDeque::new());
        let mut tunnel = Self { session, streams, outgoing, events, dropped: 0 };
        tunnel.settle(now);
        tunnel
    }

    /// The session.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// The streams: they may be opened before the session is established.
    pub const fn streams(&mut self) -> &mut Streams {
        &mut self.streams
    }

    /// Datagrams that came and were not genuine, or came twice.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sends a datagram of the application's, which may get lost as on any path.
    ///
    /// # Errors
    /// If the session is not established, or over, or the datagram too long.
    pub fn send(&mut self, now: Instant, datagram: &[u8]) -> Result<(), SealError> {
        if datagram.len() > Self::MAX_DATAGRAM {
            return Err(SealError::TooLong(datagram.len()));
        }
        let sealed = self.session.seal(now, &[&[DATAGRAM], datagram].concat());
        self.settle(now);
        self.outgoing.push_back(sealed?);
        Ok(())
    }

    /// Takes a datagram from the other side. What is not genuine is dropped.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        match self.session.handle_datagram(now, datagram) {
            Ok(Some(payload)) => self.handle_payload(now, &payload),
            Ok(None) => {}
            Err(why) => {
                self.dropped += 1;
                log::trace!("{} bytes dropped: {why}", datagram.len());
            }
        }
        self.settle(now);
    }

    /// To be called once [`Tunnel::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
        }
        if self.session.is_established() {
            self.streams.handle_timeout(now);
        }
        self.settle(now);
    }

    /// When [`Tunnel::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self.session.poll_timeout();
        let streams = self.streams.poll_timeout().filter(|_| self.session.is_established());
        session.into_iter().chain(streams).min()
    }

    /// The next datagram for the other side. May be left for later while the path is busy.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if let Some(datagram) = self.outgoing.pop_front() {
            return Some(datagram);
        }
        if !self.session.is_established() {
            return None;
        }
        let segment = self.streams.poll_transmit(now)?;
        let sealed = self.session.seal(now, &[&[SEGMENT], &segment[..]].concat());
        self.settle(now);
        match sealed {
            Ok(sealed) => self.outgoing.push_back(sealed),
            Err(why) => log::debug!("segment of {} bytes lost: {why}", segment.len()),
        }
        self.outgoing.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        let event = self.events.pop_front();
        event.or_else(|| self.streams.poll_event().map(TunnelEvent::Stream))
    }

    fn handle_payload(&mut self, now: Instant, payload: &[u8]) {
        match payload.split_first() {
            Some((&DATAGRAM, datagram)) => {
                self.events.push_back(TunnelEvent::Datagram(datagram.to_vec()));
            }
            Some((&SEGMENT, segment)) => self.streams.handle_datagram(now, segment),
            // Of a later version.
            Some(_) | None => self.dropped += 1,
        }
    }

    fn settle(&mut self, now: Instant) {
        while let Some(output) = self.session.poll_output() {
            match output {
                SessionOutput::Transmit(datagram) => self.outgoing.push_back(datagram),
                SessionOutput::Event(event) => {
                    match event {
                        SessionEvent::Established { .. } => self.streams.heard(now),
                        SessionEvent::Failed(_) => {
                            self.streams.fail_all(now, StreamError::TimedOut);
                        }
                        SessionEvent::Rekeyed | SessionEvent::Refused(_) => {}
                    }
                    self.events.push_back(TunnelEvent::Session(event));
                }
            }
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("session", &self.session)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}
