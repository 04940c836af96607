//! The task of one stream of a client: reads whole messages, writes what waits, and passes bytes on
//! once it is bound to a peer's stream (RFC 6062 §5.4).
//!
//! Reading waits while the loop is busy, so that TCP slows the client down. Writing never makes the
//! loop wait: what a slow client does not take fills the [`Outbox`], and then is dropped there.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rawr_proto::{FrameError, padded, whole};
use tokio::io::{
    AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    ReadHalf, WriteHalf,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::outbox::{Order, Outbox, Work};
use super::{StreamEvent, Timeouts};
use crate::control::{Client, Over};
use crate::io::clock::monotonic;

/// Bytes read at once from a stream that says little, and from one that says much.
const LEAST_READ: usize = 2 << 10;
const MOST_READ: usize = 64 << 10;
/// Bytes passed on at once between spliced streams.
const SPLICE_BUFFER: usize = 64 << 10;
/// How long a stream has to take what waits, once it is to be closed, and one direction of spliced
/// streams to end after the other.
const LINGER: Duration = Duration::from_secs(5);

/// Why nothing more is read.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the client")]
    Closed,
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    NotFramed(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server ends")]
    ServerGone,
}

/// A stream and what it takes to serve it.
pub(super) struct Connection<S> {
    pub(super) stream: S,
    pub(super) client: Client,
    pub(super) outbox: Arc<Outbox>,
    pub(super) events: mpsc::Sender<StreamEvent>,
    pub(super) timeouts: Timeouts,
    /// When the first message must have come.
    pub(super) first_by: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Serves the stream until it ends. That it has ended is told by an event, unless the loop closed
    /// it.
    pub(super) async fn run(self) {
        let Self { stream, client, outbox, events, timeouts, first_by } = self;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut input = BytesMut::new();
        let mut reading = Reading { client, events: &events, timeouts, first_by };
        let written = {
            let records = matches!(client.over, Over::Tls(_));
            let mut writing = pin!(write_all(&outbox, &mut writer, records));
            tokio::select! {
                biased;
                written = &mut writing => written,
                ended = reading.run(&mut reader, &mut input) => {
                    log::debug!("stream of {}: {ended}", client.remote);
                    tell_gone(&events, client).await;
                    // Answers to what came last are written still; the loop closes when it has heard.
                    match timeout(LINGER, &mut writing).await {
                        Ok(written) => written,
                        Err(_) => return,
                    }
                }
            }
        };
        match written {
            Ok(Order::Close) => {
                // A client that does not take the end of the stream has no use for it.
                let _ = timeout(LINGER, writer.shutdown()).await;
            }
            Ok(Order::Splice(peer)) => {
                let joined = Joined { reader, writer, read: input, peer };
                tokio::select! {
                    () = joined.pass_on() => tell_gone(&events, client).await,
                    () = until_closed(&outbox) => {}
                }
            }
            Err(error) => {
                log::debug!("stream of {}: {error}", client.remote);
                tell_gone(&events, client).await;
            }
        }
    }
}

/// The loop is told once. It may have closed the stream already, or be gone itself.
pub(super) async fn tell_gone(events: &mpsc::Sender<StreamEvent>, client: Client) {
    if let Some(connection) = client.connection() {
        let _ = events.send(StreamEvent::Gone(connection)).await;
    }
}

/// Writes what waits, as it comes, until there is an order. With `records`, each message is written by
/// itself, and so becomes a TLS record of its own: there are clients that take a record for a message.
/// What is below TLS collects the records until they are flushed.
async fn write_all<W: AsyncWrite + Unpin>(
    outbox: &Outbox,
    writer: &mut W,
    records: bool,
) -> io::Result<Order> {
    let mut flight = Vec::new();
    loop {
        match outbox.take(&mut flight) {
            Work::Write if records => {
                for message in padded(&flight) {
                    writer.write_all(message).await?;
                }
                flight.clear();
            }
            Work::Write => {
                writer.write_all(&flight).await?;
                flight.clear();
            }
            Work::Obey(order) => {
                writer.flush().await?;
                return Ok(order);
            }
            Work::Idle => {
                writer.flush().await?;
                outbox.changed().await;
            }
        }
    }
}

/// Waits for the order to close a stream whose bytes are passed on.
async fn until_closed(outbox: &Outbox) {
    let mut nothing = Vec::new();
    while !matches!(outbox.take(&mut nothing), Work::Obey(Order::Close)) {
        nothing.clear();
        outbox.changed().await;
    }
}

struct Reading<'a> {
    client: Client,
    events: &'a mpsc::Sender<StreamEvent>,
    timeouts: Timeouts,
    first_by: Instant,
}

impl Reading<'_> {
    /// Hands the whole messages of each read to the loop, as one piece.
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut R, input: &mut BytesMut) -> Ended {
        let mut expiry = pin!(sleep_until(self.first_by));
        let mut last_heard: Option<Instant> = None;
        let mut size = LEAST_READ;
        loop {
            make_room(input, size);
            let read = tokio::select! {
                biased;
                read = reader.read_buf(input) => read,
                () = &mut expiry => {
                    match last_heard.map(|at| at + self.timeouts.idle) {
                        Some(due) if due > now() => expiry.as_mut().reset(due),
                        Some(_) => return Ended::Silent(self.timeouts.idle),
                        None => return Ended::Silent(self.timeouts.handshake),
                    }
                    continue;
                }
            };
            match read {
                Ok(0) => return Ended::Closed,
                Ok(count) => size = next_size(size, count),
                Err(error) => return error.into(),
            }
            match whole(input) {
                Ok(0) => {}
                Ok(length) => {
                    let bytes = input.split_to(length).freeze();
                    let messages = StreamEvent::Messages { client: self.client, bytes };
                    // Room is waited for only with something in hand: a silent stream takes none.
                    if self.events.send(messages).await.is_err() {
                        return Ended::ServerGone;
                    }
                    last_heard = Some(now());
                }
                Err(error) => return error.into(),
            }
        }
    }
}

/// How much to read at once after `count` bytes came, of at most `size`.
fn next_size(size: usize, count: usize) -> usize {
    if count >= size {
        (size * 2).min(MOST_READ)
    } else if count < size / 4 {
        (size / 2).max(LEAST_READ)
    } else {
        size
    }
}

/// Makes room for `size` more bytes; gives back a buffer that has become far too large.
fn make_room(input: &mut BytesMut, size: usize) {
    if input.is_empty() && input.capacity() > 4 * size {
        *input = BytesMut::with_capacity(size);
    }
    input.reserve(size);
}

/// A client's and a peer's stream, from now on one.
struct Joined<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    /// What the client sent behind its request already.
    read: BytesMut,
    peer: TcpStream,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Joined<S> {
    /// Passes bytes on in both directions until both have ended.
    async fn pass_on(mut self) {
        let (from_peer, mut to_peer) = self.peer.into_split();
        if to_peer.write_all(&self.read).await.is_err() {
            return;
        }
        let mut up = pin!(pump(BufReader::with_capacity(SPLICE_BUFFER, self.reader), to_peer));
        let down = BufReader::with_capacity(SPLICE_BUFFER, from_peer);
        let mut down = pin!(pump(down, &mut self.writer));
        // Who has closed may have sent what the other still answers; who never closes is not waited
        // for.
        tokio::select! {
            () = &mut up => drop(timeout(LINGER, down).await),
            () = &mut down => drop(timeout(LINGER, up).await),
        }
    }
}

/// Passes bytes on in one direction, and their end.
async fn pump(mut from: impl AsyncBufRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    if let Err(error) = tokio::io::copy_buf(&mut from, &mut to).await {
        log::debug!("spliced streams: {error}");
    }
    // The other end may be gone.
    let _ = to.shutdown().await;
}

fn now() -> Instant {
    Instant::from_std(monotonic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_and_shrink_within_bounds() {
        let grown = (0..20).fold(LEAST_READ, |size, _| next_size(size, size));
        assert_eq!(grown, MOST_READ);
        assert_eq!(next_size(grown, grown / 2), grown);
        assert_eq!((0..20).fold(grown, |size, _| next_size(size, 1)), LEAST_READ);
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut input = BytesMut::with_capacity(MOST_READ);
        make_room(&mut input, LEAST_READ);
        assert!(input.capacity() < MOST_READ);
        input.extend_from_slice(&[1; 100]);
        make_room(&mut input, MOST_READ);
        assert_eq!((&input[..], input.capacity() >= 100 + MOST_READ), (&[1; 100][..], true));
    }
}
