//! What a node writes down of a connection.

use std::time::Instant;

use super::node::milliseconds;
use super::words::Account;

/// Keeps count while a connection is there.
#[derive(Debug)]
pub(super) struct Ledger {
    started: Instant,
    account: Account,
    /// When the last datagram came, or the mark was set after that.
    heard: Option<Instant>,
    /// Datagrams, and the numbers that they ran through, since the mark.
    since: Option<Since>,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    first: u64,
    last: u64,
    count: u64,
}

impl Ledger {
    pub(super) fn new(started: Instant) -> Self {
        Self { started, account: Account::default(), heard: None, since: None }
    }

    /// A datagram has come. Returns whether it is the first.
    pub(super) fn take(&mut self, now: Instant, number: u64) -> bool {
        let is_first = self.account.first_byte.is_none();
        if is_first {
            self.account.first_byte = Some(milliseconds(self.started, now));
        }
        self.account.received += 1;
        self.note_gap(now);
        self.heard = Some(now);
        match &mut self.since {
            None => self.since = Some(Since { first: number, last: number, count: 1 }),
            Some(since) => {
                since.count += u64::from(number >= since.first);
                self.account.late += u64::from(number < since.last);
                since.last = since.last.max(number);
            }
        }
        is_first
    }

    /// Gaps and losses count from now on.
    pub(super) fn mark(&mut self, now: Instant) {
        (self.account.gap, self.since) = (0.0, None);
        self.heard = self.heard.map(|_| now);
    }

    /// A path without a relay is there.
    pub(super) fn direct(&mut self, now: Instant) {
        let after = milliseconds(self.started, now);
        self.account.direct.get_or_insert(after);
    }

    pub(super) fn reason(&mut self, reason: String) {
        self.account.reasons.push(reason);
    }

    /// What data takes in the end, and the probes that it has cost.
    pub(super) fn end(&mut self, path: Option<(String, bool)>, probes: u64) {
        self.account.is_direct = path.as_ref().is_some_and(|(_, is_direct)| *is_direct);
        self.account.path = path.map(|(kind, _)| kind);
        self.account.probes = probes;
    }

    /// The sum. A silence that lasts counts.
    pub(super) fn account(mut self, now: Instant) -> Account {
        self.note_gap(now);
        let lost = |since: Since| (since.last - since.first + 1).saturating_sub(since.count);
        Account { lost: self.since.map_or(0, lost), ..self.account }
    }

    fn note_gap(&mut self, now: Instant) {
        if let Some(heard) = self.heard {
            self.account.gap = self.account.gap.max(milliseconds(heard, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process;

    #[test]
    fn gaps_and_losses_count_from_the_mark() {
        let start = process::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut ledger = Ledger::new(start);
        assert!(ledger.take(at(100), 0));
        assert!(!ledger.take(at(2000), 7));
        ledger.mark(at(2010));
        ledger.take(at(2020), 9);
        ledger.take(at(2050), 12);
        ledger.take(at(2051), 11);
        let account = ledger.account(at(2060));
        assert_eq!((account.received, account.lost, account.late), (5, 1, 1));
        assert!((account.gap - 30.0).abs() < 1e-6, "{}", account.gap);
        assert_eq!(account.first_byte, Some(100.0));
    }
}
