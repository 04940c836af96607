//! What waits to be written to one stream: bounded, answers before data, whole messages only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::frame;

/// Bytes of answers that may wait besides the data. An answer has at most a few hundred.
const MOST_CONTROL: usize = 1 << 16;

/// What the driver asks of a stream's task, besides writing.
#[derive(Debug)]
pub(super) enum Order {
    /// Write what waits, then close.
    Close,
    /// Write what waits, then pass bytes on in both directions.
    Splice(TcpStream),
}

/// What a stream's task has to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Write the bytes that were taken.
    Write,
    /// Nothing waits to be written any more.
    Obey(Order),
    /// Wait for [`Outbox::changed`].
    Idle,
}

/// The queue between the loop, which never waits, and the task that writes to the stream.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// Bytes of data that may wait.
    most: usize,
}

/// Messages stand one behind the other, so that one system call (and one TLS record) takes many.
#[derive(Debug, Default)]
struct Waiting {
    control: Vec<u8>,
    data: Vec<u8>,
    order: Option<Order>,
}

impl Outbox {
    /// For at most `most` bytes of data.
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: Mutex::default(), changed: Notify::new(), most }
    }

    /// Adds one message; pads ChannelData. Whether there was room.
    pub(super) fn push(&self, message: &[u8]) -> bool {
        let mut waiting = self.waiting();
        let Waiting { control, data, .. } = &mut *waiting;
        let padding = frame::padding(message);
        let (queue, most) =
            if frame::is_data(message) { (data, self.most) } else { (control, MOST_CONTROL) };
        if queue.len() + message.len() + padding.len() > most {
            return false;
        }
        queue.extend_from_slice(message);
        queue.extend_from_slice(padding);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// Tells the task what to do once all has been written. The first order stands, but closing comes
    /// before everything.
    pub(super) fn order(&self, order: Order) {
        let mut waiting = self.waiting();
        if waiting.order.is_none() || matches!(order, Order::Close) {
            waiting.order = Some(order);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Moves what is to be written next to `flight`, which is empty.
    pub(super) fn take(&self, flight: &mut Vec<u8>) -> Work {
        let mut waiting = self.waiting();
        let Waiting { control, data, order } = &mut *waiting;
        for queue in [control, data] {
            if !queue.is_empty() {
                std::mem::swap(queue, flight);
                return Work::Write;
            }
        }
        order.take().map_or(Work::Idle, Work::Obey)
    }

    /// Waits for the next [`Self::push`] or [`Self::order`], if none was since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = &[0x40, 0x00, 0x00, 0x05, 1, 2, 3, 4, 5];
    const ANSWER: &[u8] = &[0x01, 0x03, 0, 0];

    #[test]
    fn answers_overtake_data_and_orders_come_last() {
        let outbox = Outbox::new(100);
        outbox.order(Order::Close);
        assert!(outbox.push(DATA) && outbox.push(DATA) && outbox.push(ANSWER));
        let mut flight = Vec::new();
        assert!(matches!(outbox.take(&mut flight), Work::Write));
        assert_eq!(flight, ANSWER);
        flight.clear();
        assert!(matches!(outbox.take(&mut flight), Work::Write));
        let padded = [DATA, &[0; 3]].concat();
        assert_eq!(flight, padded.repeat(2));
        flight.clear();
        assert!(matches!(outbox.take(&mut flight), Work::Obey(Order::Close)));
        assert!(matches!(outbox.take(&mut flight), Work::Idle));
    }

    #[test]
    fn what_does_not_fit_is_refused_whole_and_answers_have_room_of_their_own() {
        let outbox = Outbox::new(30);
        assert!(outbox.push(DATA) && outbox.push(DATA));
        assert!(!outbox.push(DATA), "12 bytes each with padding");
        assert!(outbox.push(ANSWER));
        let mut flight = Vec::new();
        outbox.take(&mut flight);
        flight.clear();
        outbox.take(&mut flight);
        assert_eq!(flight.len(), 24);
        assert!(outbox.push(DATA));
    }
}
