//! Refresh and Release: a client keeps its leg, or drops it.

use rawr_proto::{Attributes, ErrorCode, IntegrityKey, Role};

use super::counters::Count;
use super::request::{Answer, ErrorResponse, Request};
use super::server::Server;
use super::session::{PeerLeg, Session};
use super::store::Index;

impl Server {
    pub(super) fn refresh(&mut self, request: &Request<'_>) -> Result<Answer, ErrorResponse> {
        let (index, role, epoch, key) = self.member(request)?;
        let lifetime = self.lifetime(request.attributes().lifetime);
        let from = request.from();
        let leg = self.leg_of(index, role, |leg| leg.is_of(epoch, from));
        let leg = leg.ok_or_else(|| unknown(&key))?;
        leg.refresh(request.now.monotonic, from, lifetime);
        let local = leg.port.open();
        let leg_state = local.and_then(|local| Some(self.store.get(index)?.state_of(local)));
        self.counters.add(Count::Refresh);
        self.store.arm(index);
        let attributes =
            Attributes { lifetime: Some(lifetime), leg_state, ..Attributes::default() };
        Ok(Answer::now(attributes, Some(key)))
    }

    pub(super) fn release(&mut self, request: &Request<'_>) -> Result<Answer, ErrorResponse> {
        let (index, role, epoch, key) = self.member(request)?;
        let from = request.from();
        self.leg_of(index, role, |leg| leg.is_of(epoch, from)).ok_or_else(|| unknown(&key))?;
        let Some(session) = self.store.get_mut(index) else { return Err(unknown(&key)) };
        if session.leg(role).is_some_and(|leg| leg.epoch == epoch) {
            self.drop_leg(index, role);
        } else if let Some(leg) = session.retiring[role as usize].take() {
            self.close_leg(&leg);
        }
        self.counters.add(Count::Release);
        self.touch(request.now, index);
        Ok(Answer::now(Attributes::default(), Some(key)))
    }

    /// The leg of `role` that `is_it` holds for: the newest, or the one that it replaces.
    fn leg_of(
        &mut self,
        index: Index,
        role: Role,
        is_it: impl Fn(&PeerLeg) -> bool,
    ) -> Option<&mut PeerLeg> {
        let Session { legs, retiring, .. } = self.store.get_mut(index)?;
        let newest = legs[role as usize].as_mut();
        let retiring = retiring[role as usize].as_deref_mut();
        newest.into_iter().chain(retiring).find(|leg| is_it(leg))
    }
}

fn unknown(key: &IntegrityKey) -> ErrorResponse {
    ErrorResponse::new(ErrorCode::UnknownSession, Count::UnknownSession).signed(key)
}
