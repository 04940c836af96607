//! Which path data takes. Each agent leaves a dead path by itself and at once; which better one both move to
//! is for the controlling agent to say.
//!
//! The controlling agent sends Select by the path that it wants, until Selected comes back by it: so both
//! directions have been proven before data takes it. Each Select has a higher number than the last; the
//! highest counts.

use std::time::{Duration, Instant};

use super::control::Control;
use super::direct::DirectPath;
use super::incoming::From;
use super::{Agent, AgentPath};

/// Pause before the first repetition of Select; it doubles up to the second.
const OFFER_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Selects without an answer after which a path is left alone for a while.
const OFFER_TRIES: u32 = 8;
/// Pause between messages that the agreed path is dead, and how many there are.
const COMPLAINT: (Duration, u32) = (Duration::from_millis(200), 25);
/// A path of the same kind is better if its round trip is shorter by this and by a fifth.
const MARGIN: Duration = Duration::from_millis(5);

/// A path that data may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The one over RAWR, wherever that leads.
    Rawr,
    /// The one with this number.
    Direct(u32),
}

/// What has been chosen, and what is being agreed.
#[derive(Debug)]
pub(super) struct Selection {
    /// What data takes.
    pub(super) current: Option<Choice>,
    /// Number of the last Select that was answered.
    generation: u32,
    /// What that chose.
    agreed: Choice,
    /// Number of the last Select that was sent.
    offered: u32,
    offer: Option<Offer>,
    /// The path that the controlling agent wants, and that has not been proven in our direction.
    wanted: Option<(u32, Choice)>,
    complaint: Option<Complaint>,
    /// Round trip time of the path that was left last.
    left_rtt: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    generation: u32,
    choice: Choice,
    sent: u32,
    next_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Complaint {
    generation: u32,
    left: u32,
    next_at: Instant,
}

impl Selection {
    pub(super) const fn new() -> Self {
        Self {
            current: None,
            generation: 0,
            agreed: Choice::Rawr,
            offered: 0,
            offer: None,
            wanted: None,
            complaint: None,
            left_rtt: Duration::ZERO,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let offer = self.offer.map(|offer| offer.next_at);
        let complaint = self.complaint.filter(|_| self.current.is_some());
        let complaint = complaint.map(|complaint| complaint.next_at);
        offer.into_iter().chain(complaint).min()
    }

    /// Round trip time of the path that data may still come by: the one that was left, or `current`.
    pub(super) fn slowest_rtt(&self, current: Option<Duration>) -> Duration {
        self.left_rtt.max(current.unwrap_or_default())
    }
}

impl Agent {
    pub(super) fn select(&mut self, now: Instant) {
        self.fall_back(now);
        if self.is_controlling() {
            self.offer(now);
        } else {
            self.accept(now);
            self.complain(now);
        }
    }

    /// Leaves a path that is dead for the best that works, without asking.
    fn fall_back(&mut self, now: Instant) {
        let current = self.selection.current;
        if current.is_some_and(|choice| self.is_usable(choice)) {
            return;
        }
        let next = self.best(now);
        if current == next {
            return;
        }
        self.switch(now, next, false);
        let generation = self.selection.generation;
        if current.is_some() && generation > 0 && !self.is_controlling() {
            let (next_at, left) = (now, COMPLAINT.1);
            self.selection.complaint = Some(Complaint { generation, left, next_at });
        }
    }

    /// The controlling agent's part: has the other one move to what is best.
    fn offer(&mut self, now: Instant) {
        let Some(wish) = self.preferred(now) else {
            self.selection.offer = None;
            return;
        };
        let known = self.selection.offer.filter(|offer| offer.choice == wish);
        if wish == self.selection.agreed && Some(wish) == self.selection.current {
            self.selection.offer = None;
            return;
        }
        let mut offer = known.unwrap_or_else(|| {
            self.selection.offered = self.selection.offered.max(self.selection.generation) + 1;
            let generation = self.selection.offered;
            Offer { generation, choice: wish, sent: 0, next_at: now }
        });
        if offer.next_at <= now {
            if offer.sent >= OFFER_TRIES && Some(wish) != self.selection.current {
                self.decline(now, wish);
                return;
            }
            let pause = OFFER_PAUSE.0 * (1 << offer.sent.min(10));
            offer.sent += 1;
            offer.next_at = now + pause.min(OFFER_PAUSE.1);
            self.send_on(wish, &Control::Select(offer.generation));
        }
        self.selection.offer = Some(offer);
    }

    /// Nobody answered to an offer.
    fn decline(&mut self, now: Instant, choice: Choice) {
        self.selection.offer = None;
        if let Choice::Direct(id) = choice
            && let Some(path) = self.path_mut(id)
        {
            path.rest(now);
        }
    }

    pub(super) fn handle_selected(&mut self, now: Instant, generation: u32) {
        let offer = self.selection.offer.take_if(|offer| offer.generation == generation);
        if let Some(Offer { choice, .. }) = offer {
            (self.selection.generation, self.selection.agreed) = (generation, choice);
            self.switch(now, Some(choice), true);
        }
    }

    /// The other agent does not hear us any more on the path that was agreed.
    pub(super) fn handle_lost(&mut self, now: Instant, generation: u32) {
        let is_present = generation == self.selection.generation;
        if let Choice::Direct(id) = self.selection.agreed
            && is_present
            && self.is_controlling()
            && let Some(path) = self.path_mut(id)
        {
            path.die(now);
        }
    }

    /// The controlled agent's part: it has been told which path to take.
    pub(super) fn handle_select(&mut self, now: Instant, from: From, generation: u32) {
        if self.is_controlling() || generation < self.selection.generation {
            return;
        }
        let choice = match from {
            From::Rawr => Choice::Rawr,
            From::Application => return,
            From::Direct(socket, remote) => {
                let is_it = |it: &&mut DirectPath| (it.socket, it.remote) == (socket, remote);
                let Some(path) = self.paths.iter_mut().find(is_it) else { return };
                path.retry(now);
                Choice::Direct(path.id)
            }
        };
        if generation == self.selection.generation {
            if self.selection.current == Some(choice) {
                self.reply(from, &Control::Selected(generation));
            }
        } else if self.selection.wanted.is_none_or(|(wanted, _)| wanted <= generation) {
            self.selection.wanted = Some((generation, choice));
        }
    }

    /// Takes the path that the controlling agent wants, once it works in our direction, too.
    fn accept(&mut self, now: Instant) {
        let wanted = self.selection.wanted.filter(|(_, choice)| self.is_usable(*choice));
        if let Some((generation, choice)) = wanted {
            (self.selection.wanted, self.selection.complaint) = (None, None);
            (self.selection.generation, self.selection.agreed) = (generation, choice);
            self.switch(now, Some(choice), true);
            self.send_on(choice, &Control::Selected(generation));
        }
    }

    /// Tells the controlling agent that the agreed path is dead.
    fn complain(&mut self, now: Instant) {
        let Some(choice) = self.selection.current else { return };
        let Some(complaint) = &mut self.selection.complaint else { return };
        if complaint.next_at > now {
            return;
        }
        let generation = complaint.generation;
        (complaint.next_at, complaint.left) = (now + COMPLAINT.0, complaint.left - 1);
        if complaint.left == 0 {
            self.selection.complaint = None;
        }
        self.send_on(choice, &Control::Lost(generation));
    }

    fn switch(&mut self, now: Instant, to: Option<Choice>, is_orderly: bool) {
        let from = self.selection.current;
        if from == to {
            return;
        }
        let left = from.filter(|choice| is_orderly && self.is_usable(*choice));
        self.selection.left_rtt =
            from.and_then(|it| self.describe(it)).map_or(Duration::ZERO, |it| it.rtt);
        for (choice, is_selected) in [(from, false), (to, true)] {
            if let Some(Choice::Direct(id)) = choice
                && let Some(path) = self.path_mut(id)
            {
                path.set_selected(now, is_selected);
            }
        }
        let is_direct = matches!(to, Some(Choice::Direct(_)));
        if is_direct {
            self.ice.relax();
        }
        self.rawr.rest(now, is_direct);
        self.outbox.hand_over(now, left);
        self.selection.current = to;
        self.mailbox.hurry(now);
    }

    fn is_usable(&self, choice: Choice) -> bool {
        match choice {
            Choice::Rawr => self.rawr.destination().is_some(),
            Choice::Direct(id) => self.paths.iter().any(|path| path.id == id && path.is_valid()),
        }
    }

    /// All that work, and whether they have lately.
    fn usable(&self, now: Instant) -> impl Iterator<Item = (Choice, AgentPath, bool)> {
        let rawr = self.is_usable(Choice::Rawr).then_some((Choice::Rawr, true));
        let valid = self.paths.iter().filter(|path| path.is_valid());
        let direct = valid.map(move |path| (Choice::Direct(path.id), path.is_eligible(now)));
        let all = rawr.into_iter().chain(direct);
        all.filter_map(|(choice, is_steady)| Some((choice, self.describe(choice)?, is_steady)))
    }

    /// The best that works at all.
    fn best(&self, now: Instant) -> Option<Choice> {
        let order = |(_, path, is_steady): &(Choice, AgentPath, bool)| {
            (!is_steady, !path.kind.is_direct(), path.rtt)
        };
        self.usable(now).min_by_key(order).map(|(choice, ..)| choice)
    }

    /// What data takes now, unless something else is clearly better.
    fn preferred(&self, now: Instant) -> Option<Choice> {
        let current = self.selection.current?;
        let mut best = (current, self.describe(current)?);
        for (choice, path, _) in self.usable(now).filter(|(.., is_steady)| *is_steady) {
            if is_better(path, best.1) {
                best = (choice, path);
            }
        }
        Some(best.0)
    }
}

fn is_better(new: AgentPath, old: AgentPath) -> bool {
    match (new.kind.is_direct(), old.kind.is_direct()) {
        (true, false) => true,
        (false, true) => false,
        _ => new.rtt + MARGIN.max(old.rtt / 5) < old.rtt,
    }
}
