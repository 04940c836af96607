//! When the server has to act by itself, and why.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use super::store::Index;

/// Why the next timeout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A leg waits for the first Probe of its client.
    LegHalfOpen,
    /// A leg that is not refreshed expires.
    LegLifetime,
    /// An upstream leg has to send or to give up.
    Upstream,
    /// A target that has not asked is probed again, or given up.
    Target,
    /// A leg that was replaced stops draining.
    Drain,
    /// A session that could not escalate tries again.
    Escalation,
    /// What an exchange holds expires.
    Exchange,
    /// A parent's health is due.
    Parent,
    /// Sessions wait their turn to attach to another hop.
    Reattach,
    /// Something of an allocation expires.
    Allocation,
    /// A reserved port expires.
    Reservation,
    /// A name expires.
    Name,
    /// An introduction expires.
    Introduction,
}

impl Reason {
    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LegHalfOpen => "leg_half_open",
            Self::LegLifetime => "leg_lifetime",
            Self::Upstream => "upstream",
            Self::Target => "target",
            Self::Drain => "drain",
            Self::Escalation => "escalation",
            Self::Exchange => "exchange",
            Self::Parent => "parent",
            Self::Reattach => "reattach",
            Self::Allocation => "allocation",
            Self::Reservation => "reservation",
            Self::Name => "name",
            Self::Introduction => "introduction",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One alarm per session, ordered by time.
///
/// An alarm that is put off is left where it stands: it rings early once, and the session then says
/// when it really is due. So a refresh costs nothing here.
#[derive(Debug, Default)]
pub(super) struct Alarms(BTreeSet<(Instant, Index)>);

impl Alarms {
    /// Makes sure that `index` rings at `due` or earlier; `armed` is where its alarm stands.
    pub(super) fn arm(&mut self, index: Index, armed: &mut Option<Instant>, due: Option<Instant>) {
        let Some(due) = due else { return };
        if armed.is_some_and(|armed| armed <= due) {
            return;
        }
        self.disarm(index, armed);
        self.0.insert((due, index));
        *armed = Some(due);
    }

    /// Removes the alarm of `index`.
    pub(super) fn disarm(&mut self, index: Index, armed: &mut Option<Instant>) {
        if let Some(at) = armed.take() {
            self.0.remove(&(at, index));
        }
    }

    /// Takes out an alarm that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Index> {
        let first = *self.0.first().filter(|(at, _)| *at <= now)?;
        self.0.remove(&first);
        Some(first.1)
    }

    /// The alarm that rings first.
    pub(super) fn first(&self) -> Option<(Instant, Index)> {
        self.0.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    fn put_off_alarm_stays_and_earlier_one_moves() {
        let origin = Instant::now();
        let at = |secs| origin + Duration::from_secs(secs);
        let (mut alarms, mut armed) = (Alarms::default(), None);
        alarms.arm(7, &mut armed, Some(at(5)));
        alarms.arm(7, &mut armed, Some(at(9)));
        assert_eq!(alarms.first(), Some((at(5), 7)));
        alarms.arm(7, &mut armed, Some(at(2)));
        assert_eq!(alarms.first(), Some((at(2), 7)));
        assert_eq!(alarms.0.len(), 1);
        assert_eq!(alarms.pop(at(1)), None);
        assert_eq!(alarms.pop(at(2)), Some(7));
        assert_eq!(alarms.first(), None);
    }
}
