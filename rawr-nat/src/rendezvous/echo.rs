//! Stands in for the other side's messages where there is no path for them: answers each of ours with
//! what the other side would say, if it is as far as we are.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::punch::{Message, Order, Stage};

/// How long the other side is given, if it is to fire first.
const THEY_FIRE: Duration = Duration::from_millis(500);

/// What the other side says to one of our messages, and after how long; nothing where we say that we
/// are not ready, or will not be.
pub(super) fn reply(ours: &Message, order: Order) -> Option<(Duration, Message)> {
    match ours.stage {
        Stage::Preparing | Stage::Firing | Stage::Fired | Stage::GivenUp => None,
        Stage::Prepared => {
            let delay = match order {
                Order::TheirsFirst => THEY_FIRE,
                Order::OursFirst | Order::Together => Duration::ZERO,
            };
            let number = u32::from(ours.round) + 1;
            // As if it had come at once: nobody waits for a round trip that is not known.
            let (last, held) = (ours.number, delay);
            let (stage, round) = (Stage::Fired, ours.round);
            let theirs =
                Message { stage, round, number, last, held, port: None, endpoints: Vec::new() };
            Some((delay, theirs))
        }
    }
}

/// Answers until our side is gone.
pub(super) async fn run(
    mut ours: UnboundedReceiver<Vec<u8>>,
    theirs: UnboundedSender<Vec<u8>>,
    order: Order,
) {
    while let Some(bytes) = ours.recv().await {
        let Some((delay, message)) = Message::decode(&bytes).and_then(|ours| reply(&ours, order))
        else {
            continue;
        };
        tokio::time::sleep(delay).await;
        if theirs.send(message.encode()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(stage: Stage, round: u16, number: u32) -> Message {
        let (last, held, port) = (0, Duration::ZERO, None);
        Message { stage, round, number, last, held, port, endpoints: Vec::new() }
    }

    #[test]
    fn the_other_side_is_as_far_as_we_are() {
        let (delay, said) = reply(&ours(Stage::Prepared, 3, 9), Order::Together).unwrap();
        assert_eq!((said.stage, said.round, said.last), (Stage::Fired, 3, 9));
        assert_eq!(delay, Duration::ZERO);
        let (_, later) = reply(&ours(Stage::Prepared, 4, 12), Order::Together).unwrap();
        assert!(later.number > said.number, "it is news");
        assert!(reply(&ours(Stage::GivenUp, 3, 9), Order::Together).is_none());
        assert!(reply(&ours(Stage::Prepared, 0, 1), Order::TheirsFirst).unwrap().0 > delay);
    }
}
