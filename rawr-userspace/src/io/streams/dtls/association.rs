//! The task of one DTLS association: takes datagrams out of records and puts messages into them. One record
//! is one message (RFC 7350 §3), as one datagram is over UDP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dimpl::{Dtls, Output};
use rawr_proto::messages;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::super::connection::tell_gone;
use super::super::outbox::{Order, Outbox, Work};
use super::super::{StreamEvent, Timeouts};
use crate::control::Client;
use crate::io::clock::monotonic;
use crate::io::control_socket::ControlSocket;

/// Bytes for what `dimpl` puts out: a record of the longest length, and its header.
pub(super) const BUFFER: usize = 17 << 10;
/// How long to wait after a failure to receive.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Why an association is over.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the client")]
    Closed,
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    #[error("the client has begun anew")]
    Replaced,
    #[error("closed by the server")]
    Told,
    #[error("{0}")]
    Dtls(#[from] dimpl::Error),
    #[error("the server ends")]
    ServerGone,
}

/// An association whose client has shown that it receives at its address.
pub(super) struct Association {
    pub(super) dtls: Dtls,
    pub(super) buffer: Vec<u8>,
    pub(super) socket: Arc<ControlSocket>,
    pub(super) client: Client,
    pub(super) datagrams: mpsc::Receiver<Vec<u8>>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) events: mpsc::Sender<StreamEvent>,
    pub(super) timeouts: Timeouts,
}

impl Association {
    /// Serves the client until the association ends. That it has ended is told by an event, unless the loop
    /// closed it. Whether the client has said anything.
    pub(super) async fn run(mut self) -> bool {
        let mut last_heard = None;
        let ended = self.serve(&mut last_heard).await;
        log::debug!("DTLS of {}: {ended}", self.client.remote);
        // The client learns of it, if it still listens (RFC 5246 §7.2.1); where it listens to a new association,
        // that is none of this one's business.
        if !matches!(ended, Ended::Replaced) && self.dtls.close().is_ok() {
            let _ = self.put_out(&mut last_heard).await;
        }
        if !matches!(ended, Ended::Told) {
            tell_gone(&self.events, self.client).await;
        }
        last_heard.is_some()
    }

    async fn serve(&mut self, last_heard: &mut Option<Instant>) -> Ended {
        let first_by = monotonic() + self.timeouts.handshake;
        loop {
            let due = match self.put_out(last_heard).await {
                Ok(due) => due,
                Err(ended) => return ended,
            };
            let silent_at = last_heard.map_or(first_by, |at| at + self.timeouts.idle);
            let done = tokio::select! {
                biased;
                datagram = self.datagrams.recv() => match datagram {
                    Some(datagram) => self.take(&datagram),
                    None => Err(Ended::Replaced),
                },
                () = self.outbox.changed() => self.write(last_heard).await,
                () = sleep_until(due.min(silent_at).into()) => self.on_time(silent_at, *last_heard),
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) -> Result<(), Ended> {
        self.dtls.handle_timeout(monotonic())?;
        Ok(self.dtls.handle_packet(datagram)?)
    }

    fn on_time(&mut self, silent_at: Instant, last_heard: Option<Instant>) -> Result<(), Ended> {
        let now = monotonic();
        if silent_at <= now {
            let Timeouts { handshake, idle } = self.timeouts;
            return Err(Ended::Silent(last_heard.map_or(handshake, |_| idle)));
        }
        Ok(self.dtls.handle_timeout(now)?)
    }

    /// Sends what waits, each message in a record and a datagram of its own.
    async fn write(&mut self, last_heard: &mut Option<Instant>) -> Result<(), Ended> {
        let mut flight = Vec::new();
        loop {
            match self.outbox.take(&mut flight) {
                Work::Write => {
                    for message in messages(&flight) {
                        self.dtls.send_application_data(message)?;
                        self.put_out(last_heard).await?;
                    }
                    flight.clear();
                }
                // A client over DTLS has no allocation whose peers are streams (RFC 6062 §4.1).
                Work::Obey(Order::Close | Order::Splice(_)) => return Err(Ended::Told),
                Work::Idle => return Ok(()),
            }
        }
    }

    /// Does what the association wants done; when it wants to be asked again.
    async fn put_out(&mut self, last_heard: &mut Option<Instant>) -> Result<Instant, Ended> {
        let Client { local, remote, .. } = self.client;
        loop {
            let message = match self.dtls.poll_output(&mut self.buffer) {
                Output::Packet(bytes) => {
                    // A full queue drops, as the network would.
                    let _ = self.socket.send(Some(local.ip()), remote, bytes);
                    continue;
                }
                Output::ApplicationData(bytes) => Ok(Bytes::copy_from_slice(bytes)),
                Output::BufferTooSmall { needed } => Err(needed),
                Output::CloseNotify => return Err(Ended::Closed),
                Output::Timeout(due) => return Ok(due),
                // Clients show no certificate, and there is no SRTP.
                _ => continue,
            };
            match message {
                Ok(bytes) => {
                    *last_heard = Some(monotonic());
                    let message = StreamEvent::Message { client: self.client, bytes };
                    // Meanwhile the inbox fills up, and drops.
                    self.events.send(message).await.map_err(|_| Ended::ServerGone)?;
                }
                Err(needed) => self.buffer.resize(needed, 0),
            }
        }
    }
}
