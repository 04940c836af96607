//! What happens on streams and on the way to peers, told to the server.

use rawr_proto::messages;
use tokio::sync::mpsc;

use super::driver::{BURST, Driver, now};
use super::streams::StreamEvent;
use crate::control::{ConnectionId, Icmp, Now};
use crate::dataplane::slow_path::PathError;

/// `first` and what has come behind it, `most` in all. The rest stays where it is, for the next turn.
pub(super) fn burst<T>(
    first: T,
    more: &mut mpsc::Receiver<T>,
    most: usize,
) -> impl Iterator<Item = T> {
    let further = std::iter::from_fn(|| more.try_recv().ok());
    std::iter::once(first).chain(further.take(most.saturating_sub(1)))
}

impl Driver {
    pub(super) fn on_stream(&mut self, first: StreamEvent, more: &mut mpsc::Receiver<StreamEvent>) {
        let now = now();
        // One event may hold hundreds of messages.
        for event in burst(first, more, BURST / 16) {
            self.tell_of_stream(now, event);
            self.obey(now);
        }
    }

    fn tell_of_stream(&mut self, now: Now, event: StreamEvent) {
        match event {
            StreamEvent::Messages { client, bytes } => {
                for message in messages(&bytes) {
                    self.server.handle_control(now, &client, message);
                    self.obey(now);
                }
            }
            StreamEvent::Message { client, bytes } => {
                self.server.handle_control(now, &client, &bytes);
            }
            StreamEvent::Gone(connection) => {
                let other = self.streams.ended(connection);
                for gone in [Some(connection), other].into_iter().flatten() {
                    self.server.connection_gone(now, gone);
                }
            }
            StreamEvent::PeerConnected { attempt, result } => {
                self.server.peer_connected(now, attempt, result);
            }
            StreamEvent::PeerAccepted { local, remote, peer } => {
                self.server.peer_accepted(now, local, remote, peer);
            }
        }
    }

    pub(super) fn on_path_error(&mut self, error: PathError) {
        let now = now();
        let PathError { local, to, kind, code, data } = error;
        self.server.icmp(now, local, to, Icmp { kind, code, data });
        self.obey(now);
    }

    pub(super) fn splice(&mut self, now: Now, client: ConnectionId, peer: ConnectionId) {
        if self.streams.splice(client, peer) {
            return;
        }
        // One of them has ended already; the other ends with it.
        for connection in [client, peer] {
            self.streams.close(connection);
            self.server.connection_gone(now, connection);
        }
    }

    pub(super) fn close_connection(&mut self, now: Now, connection: ConnectionId) {
        if let Some(other) = self.streams.close(connection) {
            self.server.connection_gone(now, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_no_more_than_it_hands_out() {
        let (sender, mut receiver) = mpsc::channel(8);
        (1..=5).for_each(|number| sender.try_send(number).unwrap());
        let first = receiver.try_recv().unwrap();
        assert_eq!(burst(first, &mut receiver, 3).collect::<Vec<_>>(), [1, 2, 3]);
        let first = receiver.try_recv().unwrap();
        assert_eq!(burst(first, &mut receiver, 3).collect::<Vec<_>>(), [4, 5]);
        assert!(receiver.is_empty());
    }
}
