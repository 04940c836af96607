//! One request that is repeated until it is answered or given up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::TransactionId;

use crate::socket_id::SocketId;

/// Until the first repetition.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Until each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// When what has not been answered is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// Repeated so long.
    repeat: Duration,
    /// Waited for after that.
    wait: Duration,
}

impl Patience {
    /// While nobody has answered: a server beyond a satellite is still heard.
    pub(super) const UNKNOWN: Self =
        Self { repeat: Duration::from_millis(1900), wait: Duration::from_millis(1100) };

    /// Once servers have answered within `rtt`. Five transmissions make it unlikely that all were
    /// lost on a way that loses one of ten.
    pub(super) fn of(rtt: Duration) -> Self {
        let wait = (rtt * 3).clamp(Duration::from_millis(100), Duration::from_millis(1500));
        Self { repeat: Duration::from_millis(700), wait }
    }

    /// From the first transmission to the end.
    pub(super) fn whole(self) -> Duration {
        self.repeat + self.wait
    }
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Ask<P> {
    pub(super) socket: SocketId,
    pub(super) to: SocketAddr,
    pub(super) transaction: TransactionId,
    pub(super) purpose: P,
    pub(super) ttl: Option<u8>,
    /// When it was sent first.
    pub(super) first: Instant,
    tries: u32,
    bytes: Vec<u8>,
}

/// What a request is due for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Send(Vec<u8>),
    GiveUp,
}

impl<P> Ask<P> {
    /// To be sent at once: ask [`Ask::poll`].
    pub(super) fn new(
        socket: SocketId,
        to: SocketAddr,
        (transaction, bytes): (TransactionId, Vec<u8>),
        purpose: P,
        now: Instant,
    ) -> Self {
        Self { socket, to, transaction, purpose, ttl: None, first: now, tries: 0, bytes }
    }

    pub(super) const fn is_repeated(&self) -> bool {
        self.tries > 1
    }

    pub(super) fn poll(&mut self, now: Instant, patience: Patience) -> Due {
        if now >= self.first + patience.whole() {
            return Due::GiveUp;
        }
        let at = repetition(self.tries);
        if at > patience.repeat || now < self.first + at {
            return Due::Nothing;
        }
        // What a late timer has missed is not made up for.
        while self.first + repetition(self.tries) <= now {
            self.tries += 1;
        }
        Due::Send(self.bytes.clone())
    }

    /// When [`Ask::poll`] has something new to tell.
    pub(super) fn poll_timeout(&self, patience: Patience) -> Instant {
        let at = repetition(self.tries);
        let at = if at > patience.repeat { patience.whole() } else { at.min(patience.whole()) };
        self.first + at
    }
}

/// When the transmission number `tries`, from 0, is due after the first.
fn repetition(tries: u32) -> Duration {
    match tries {
        0 => Duration::ZERO,
        more => FIRST_PAUSE + PAUSE * (more - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    fn start() -> Instant {
        Instant::now()
    }

    /// When an unanswered request was sent, and given up, in ms.
    fn life(patience: Patience) -> (Vec<u128>, u128) {
        let start = start();
        let to = "192.0.2.1:3478".parse().unwrap();
        let message = (TransactionId([0; 12]), vec![1]);
        let mut ask = Ask::new(SocketId(0), to, message, (), start);
        let (mut now, mut sent) = (start, Vec::new());
        loop {
            match ask.poll(now, patience) {
                Due::Send(_) => sent.push((now - start).as_millis()),
                Due::GiveUp => return (sent, (now - start).as_millis()),
                Due::Nothing => now = ask.poll_timeout(patience),
            }
        }
    }

    #[test]
    fn it_is_repeated_soon_and_then_regularly() {
        let near = life(Patience::of(Duration::from_millis(1)));
        assert_eq!(near, (vec![0, 100, 300, 500, 700], 800));
        let far = life(Patience::of(Duration::from_millis(300)));
        assert_eq!(far, (vec![0, 100, 300, 500, 700], 1600));
        let (sent, end) = life(Patience::UNKNOWN);
        assert_eq!((sent.len(), sent.last(), end), (11, Some(&1900), 3000));
    }

    #[test]
    fn a_late_timer_makes_no_burst() {
        let start = start();
        let to = "192.0.2.1:3478".parse().unwrap();
        let mut ask = Ask::new(SocketId(0), to, (TransactionId([0; 12]), vec![]), (), start);
        let late = start + Duration::from_millis(600);
        assert_eq!(ask.poll(late, Patience::UNKNOWN), Due::Send(vec![]));
        assert_eq!(ask.poll(late, Patience::UNKNOWN), Due::Nothing);
    }
}
