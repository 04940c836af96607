//! The keys that one handshake gave: they seal, open, and know what has come already.

use std::time::Instant;

use snow::StatelessTransportState;

use super::replay::ReplayWindow;
use super::wire::{self, Counter, OVERHEAD, Slot, TAG_LEN};

pub(super) struct Keys {
    transport: StatelessTransportState,
    /// Where the other side finds them.
    theirs: Slot,
    /// Where this side finds them.
    pub(super) slot: Slot,
    pub(super) made: Instant,
    /// Whether this side began the handshake.
    pub(super) is_initiator: bool,
    /// Whether something came that was sealed with them.
    pub(super) heard: bool,
    sealed: u64,
    window: ReplayWindow,
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOpened {
    Forged,
    Replayed,
}

impl Keys {
    pub(super) fn new(
        transport: StatelessTransportState,
        slot: Slot,
        theirs: Slot,
        made: Instant,
        is_initiator: bool,
    ) -> Self {
        let window = ReplayWindow::new();
        Self { transport, theirs, slot, made, is_initiator, heard: false, sealed: 0, window }
    }

    /// How many datagrams have been sealed.
    pub(super) const fn sealed(&self) -> u64 {
        self.sealed
    }

    /// `None` where they have been used up, or the payload is too long.
    pub(super) fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        self.seal_as(payload, true)
    }

    /// A datagram that carries nothing: it shows the other side that these keys are in use.
    pub(super) fn seal_nothing(&mut self) -> Option<Vec<u8>> {
        self.seal_as(&[], false)
    }

    fn seal_as(&mut self, payload: &[u8], has_payload: bool) -> Option<Vec<u8>> {
        if self.sealed >= Counter::MAX {
            return None;
        }
        let counter = Counter::new(self.sealed, has_payload);
        let mut datagram = vec![0; payload.len() + OVERHEAD];
        let (head, sealed) = datagram.split_at_mut(OVERHEAD - TAG_LEN);
        head.copy_from_slice(&wire::data_head(self.theirs, counter));
        self.transport.write_message(counter.nonce(), payload, sealed).ok()?;
        self.sealed += 1;
        Some(datagram)
    }

    /// The payload, or `None` if the datagram was to carry none.
    pub(super) fn open(
        &mut self,
        counter: Counter,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>, NotOpened> {
        if counter.number() >= Counter::MAX {
            return Err(NotOpened::Forged);
        }
        if !self.window.admits(counter.number()) {
            return Err(NotOpened::Replayed);
        }
        let mut payload = vec![0; sealed.len()];
        let length = self
            .transport
            .read_message(counter.nonce(), sealed, &mut payload)
            .map_err(|_| NotOpened::Forged)?;
        self.window.mark(counter.number());
        self.heard = true;
        payload.truncate(length);
        Ok(counter.has_payload().then_some(payload))
    }
}
