//! Refresh: a client keeps its allocation, lets go of it, or takes it along (RFC 8656 §8, RFC 8016 §3).

use std::time::Duration;

use rawr_proto::StunError;
use stun_types::attribute::AttributeStaticType;
use turn_types::attribute::{Lifetime, RequestedAddressFamily};

use super::allocation::{Relay, place};
use super::message::{Answer, MOBILITY_TICKET, Request, Success};
use crate::control::authenticate::Authenticated;
use crate::control::counters::Count;
use crate::control::server::{Server, seconds};
use crate::control::store::Index;
use crate::control::stun::Refusal;
use crate::control::time::Now;

impl Server {
    pub(super) fn refresh_allocation(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let ticket = request.message.raw_attribute(MOBILITY_TICKET);
        let index = match &ticket {
            Some(ticket) => self.allocation_of_ticket(request, who, &ticket.value)?,
            None => self.allocation_of(request, who)?,
        };
        let family = request.family(RequestedAddressFamily::TYPE)?.map(place);
        let lifetime = match request.optional::<Lifetime>()?.map(|it| it.seconds()) {
            Some(0) => Duration::ZERO,
            _ => self.allocation_lifetime(request, who)?,
        };
        let allocation = self.turn.allocations.get(index);
        let relays = allocation.map(|allocation| allocation.relays).unwrap_or_default();
        if family.is_some_and(|family| relays[family].is_none()) {
            return Err(Refusal::new(StunError::PeerAddressFamilyMismatch, Count::TurnFamily));
        }
        if let Some(ticket) = &ticket {
            self.move_allocation(request.now, index, &ticket.value, &request.client);
        }
        let concerned = [0, 1].map(|at| family.is_none_or(|family| family == at));
        self.counters.add(Count::RefreshAllocation);
        self.prolong(request.now, index, concerned, lifetime);
        let allocation = self.turn.allocations.get(index).filter(|_| ticket.is_some());
        let ticket = allocation.and_then(|it| self.turn.ticket(&self.config.realm, index, it));
        let lifetime = Some(seconds(lifetime));
        Ok(Answer::Now(Success { lifetime, ticket, ..Success::default() }))
    }

    /// Gives relayed transport addresses another lifetime; zero ends it.
    fn prolong(&mut self, now: Now, index: Index, concerned: [bool; 2], lifetime: Duration) {
        let Some(allocation) = self.turn.allocations.get_mut(index) else { return };
        let relays = allocation.relays.iter_mut().zip(concerned);
        let relays = relays.filter_map(|(relay, concerned)| concerned.then_some(relay));
        if !lifetime.is_zero() {
            relays.flatten().for_each(|relay| relay.expires = now.monotonic + lifetime);
            self.turn.allocations.arm_for(index, now.monotonic + lifetime);
            return;
        }
        let ended: Vec<Relay> = relays.filter_map(Option::take).collect();
        self.close_relays(index, &ended);
        self.end_if_over(index);
    }
}
