//! Keeps data in order when it moves from one path to another.
//!
//! What was sent last on the slower path arrives after what was sent first on the faster one. So the sender
//! counts its handovers, says with each datagram which one it was sent after, and ends the data on the path
//! it leaves with a marker. The receiver holds back what came by the new path until the marker has come by
//! the old one. Where the old path is dead there is no marker, and nothing to wait for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::frame::{HANDOVERS, Tag};

/// Least and longest time that data is held back: the marker may be lost.
const LIMIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// Datagrams and bytes held back at most.
const ROOM: (usize, usize) = (4096, 4 << 20);
/// How often a marker is sent, and the pause in between.
const MARKERS: (u8, Duration) = (3, Duration::from_millis(20));

/// The receiver's side.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Handover that the data was sent after that is passed on now.
    current: u8,
    held: VecDeque<(Tag, Vec<u8>)>,
    held_bytes: usize,
    release_at: Option<Instant>,
    released: VecDeque<Vec<u8>>,
}

impl Inbox {
    /// Takes data. Returns whether it is to be passed on at once, after what [`Inbox::poll`] has.
    /// `old_rtt` is the round trip time of the path that was left, as far as it is known.
    pub(super) fn take(&mut self, now: Instant, tag: Tag, data: &[u8], old_rtt: Duration) -> bool {
        let ahead = tag.handover.wrapping_sub(self.current) % HANDOVERS;
        if ahead == 0 || ahead > HANDOVERS / 2 {
            return true;
        }
        let has_room = self.held.len() < ROOM.0 && self.held_bytes + data.len() <= ROOM.1;
        if !tag.is_marked || ahead > 1 || !has_room {
            self.release();
            self.current = tag.handover;
            return true;
        }
        let limit = (old_rtt + MARKERS.1).clamp(LIMIT.0, LIMIT.1);
        self.release_at.get_or_insert(now + limit);
        self.held_bytes += data.len();
        self.held.push_back((tag, data.to_vec()));
        false
    }

    /// Takes a marker: data sent before the handover that it counts has all come.
    pub(super) fn handle_marker(&mut self, handover: u32) {
        let handover = count(handover);
        let ahead = handover.wrapping_sub(self.current) % HANDOVERS;
        if (1..=HANDOVERS / 2).contains(&ahead) {
            self.current = handover;
            self.release();
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.release_at.is_some_and(|at| at <= now) {
            self.release();
        }
    }

    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.release_at
    }

    /// Data that was held back, and is to be passed on now.
    pub(super) fn poll(&mut self) -> Option<Vec<u8>> {
        self.released.pop_front()
    }

    fn release(&mut self) {
        self.release_at = None;
        self.held_bytes = 0;
        for (tag, data) in self.held.drain(..) {
            self.current = tag.handover;
            self.released.push_back(data);
        }
    }
}

/// The sender's side: counts handovers, and owes markers for them.
#[derive(Debug)]
pub(super) struct Outbox<P> {
    handovers: u32,
    is_marked: bool,
    /// The path that was left, and how many markers it is still to carry.
    owed: Option<(P, u8, Instant)>,
}

impl<P: Copy + PartialEq> Outbox<P> {
    pub(super) const fn new() -> Self {
        Self { handovers: 0, is_marked: false, owed: None }
    }

    /// What data is marked with.
    pub(super) fn tag(&self) -> Tag {
        Tag { handover: count(self.handovers), is_marked: self.is_marked }
    }

    /// Data takes another path from now on; `left` is the one before, if that is alive.
    pub(super) fn hand_over(&mut self, now: Instant, left: Option<P>) {
        self.handovers = self.handovers.wrapping_add(1);
        self.is_marked = left.is_some();
        self.owed = left.map(|path| (path, MARKERS.0, now));
    }

    /// The path that a marker is to be sent on now, and what it says.
    pub(super) fn poll_marker(&mut self, now: Instant) -> Option<(P, u32)> {
        let (path, left, at) = self.owed.filter(|(_, _, at)| *at <= now)?;
        self.owed = (left > 1).then(|| (path, left - 1, at + MARKERS.1));
        Some((path, self.handovers))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.owed.map(|(_, _, at)| at)
    }
}

fn count(handovers: u32) -> u8 {
    (handovers % u32::from(HANDOVERS)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(80);

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn tag(handover: u8, is_marked: bool) -> Tag {
        Tag { handover, is_marked }
    }

    #[test]
    fn data_waits_for_the_marker() {
        let (now, mut inbox) = (origin(), Inbox::default());
        assert!(inbox.take(now, tag(0, false), b"old", RTT));
        assert!(!inbox.take(now, tag(1, true), b"new 1", RTT));
        assert!(!inbox.take(now, tag(1, true), b"new 2", RTT));
        assert!(inbox.take(now, tag(0, false), b"old, late", RTT));
        assert_eq!(inbox.poll(), None);
        inbox.handle_marker(1);
        assert_eq!(inbox.poll(), Some(b"new 1".to_vec()));
        assert_eq!(inbox.poll(), Some(b"new 2".to_vec()));
        assert_eq!(inbox.poll(), None);
        assert!(inbox.take(now, tag(1, true), b"new 3", RTT));
        assert_eq!(inbox.poll_timeout(), None);
    }

    #[test]
    fn data_does_not_wait_for_ever() {
        let (now, mut inbox) = (origin(), Inbox::default());
        assert!(!inbox.take(now, tag(1, true), b"new", RTT));
        let at = inbox.poll_timeout().unwrap();
        assert!(at - now <= LIMIT.1);
        inbox.handle_timeout(at);
        assert_eq!(inbox.poll(), Some(b"new".to_vec()));
        assert!(inbox.take(at, tag(1, true), b"more", RTT));
    }

    #[test]
    fn data_does_not_wait_where_the_old_path_is_dead() {
        let (now, mut inbox) = (origin(), Inbox::default());
        assert!(inbox.take(now, tag(1, false), b"new", RTT));
        assert!(!inbox.take(now, tag(2, true), b"held", RTT));
        assert!(inbox.take(now, tag(3, false), b"newer", RTT));
        assert_eq!(inbox.poll(), Some(b"held".to_vec()));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let (now, mut inbox) = (origin(), Inbox::default());
        let held = (0..=ROOM.0).take_while(|_| !inbox.take(now, tag(1, true), b"new", RTT)).count();
        assert_eq!(held, ROOM.0);
        assert_eq!(std::iter::from_fn(|| inbox.poll()).count(), ROOM.0);
    }

    #[test]
    fn markers_are_repeated_on_the_path_that_was_left() {
        let (now, mut outbox) = (origin(), Outbox::new());
        outbox.hand_over(now, Some('a'));
        assert_eq!(outbox.tag(), tag(1, true));
        assert_eq!(outbox.poll_marker(now), Some(('a', 1)));
        assert_eq!(outbox.poll_marker(now), None);
        let later = outbox.poll_timeout().unwrap();
        assert_eq!(outbox.poll_marker(later), Some(('a', 1)));
        outbox.hand_over(later, None);
        assert_eq!((outbox.tag(), outbox.poll_timeout()), (tag(2, false), None));
    }
}
