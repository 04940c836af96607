//! Allocate: a client asks for relayed transport addresses (RFC 8656 §7, RFC 6062 §5.1).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rawr_proto::StunError;
use stun_types::AddressFamily;
use stun_types::attribute::AttributeStaticType;
use turn_types::attribute::{
    AdditionalAddressFamily, DontFragment, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};

use super::allocation::{Allocation, Relay, family_of, place};
use super::limit::UserIndex;
use super::message::{
    ADDITIONAL_ADDRESS_FAMILY_DRAFT, Answer, MOBILITY_TICKET, Request, Success, bad_request,
};
use super::opening::{Missing, Opening, Want};
use crate::control::authenticate::Authenticated;
use crate::control::client::Over;
use crate::control::command::{Parity, PortKind};
use crate::control::counters::Count;
use crate::control::server::{Server, seconds};
use crate::control::store::Index;
use crate::control::stun::{Head, Refusal};
use crate::control::time::Now;

/// What is asked for, once it makes sense.
struct Wanted {
    kind: PortKind,
    families: Families,
    /// Of the port that was reserved before.
    token: Option<u64>,
    lifetime: Duration,
    has_ticket: bool,
}

#[derive(Clone, Copy)]
enum Families {
    One(AddressFamily),
    /// The client is content with one of them (ADDITIONAL-ADDRESS-FAMILY).
    Both,
}

impl Server {
    pub(super) fn allocate(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        if let Some(index) = self.turn.allocations.by_client(&request.client) {
            return self.allocate_again(request, who, index);
        }
        if self.turn.peers.is_bound(&request.client) {
            return Err(mismatch());
        }
        let wanted = self.read_allocate(request, who)?;
        let reserved = match wanted.token {
            Some(token) => Some(self.turn.take_reservation(token, &who.user)?),
            None => None,
        };
        let user = match reserved {
            Some((_, user)) => user,
            None => self.charge(who, reserves(wanted.kind))?,
        };
        self.begin_allocation(request, who, &wanted, user, reserved.map(|(local, _)| local))
    }

    /// A retransmission gets the same answer, or that which is still being made (RFC 8656 §7.2).
    fn allocate_again(
        &self,
        request: &Request<'_>,
        who: &Authenticated,
        index: Index,
    ) -> Result<Answer, Refusal> {
        let allocation = self.turn.allocations.get(index).ok_or_else(mismatch)?;
        let is_same = allocation.transaction == request.message.transaction_id()
            && self.turn.users.is(allocation.user, &who.user);
        if !is_same {
            return Err(mismatch());
        }
        if allocation.opening.is_some() {
            return Ok(Answer::Later);
        }
        Ok(Answer::Now(self.allocated(request.now, index, allocation)))
    }

    /// The attributes of the success response for an allocation.
    pub(super) fn allocated(&self, now: Now, index: Index, allocation: &Allocation) -> Success {
        let relays = allocation.relays.iter().flatten();
        let expires = relays.map(|relay| relay.expires).max();
        let left = expires.map(|expires| expires.saturating_duration_since(now.monotonic));
        Success {
            relayed: allocation.relays.map(|it| it.map(|it| self.turn.advertise(it.local))),
            mapped: Some(allocation.client.remote),
            lifetime: left.map(|left| seconds(left + Duration::from_millis(999))),
            token: allocation.reservation,
            ticket: self.turn.ticket(&self.config.realm, index, allocation),
            ..Success::default()
        }
    }

    fn read_allocate(&self, request: &Request<'_>, who: &Authenticated) -> Result<Wanted, Refusal> {
        let transport = request.required::<RequestedTransport>()?.protocol();
        let is_tcp = match transport {
            RequestedTransport::UDP => false,
            RequestedTransport::TCP if self.config.turn.tcp => true,
            _ => return Err(unsupported_transport()),
        };
        let even = request.optional::<EvenPort>()?;
        let token = request.optional::<ReservationToken>()?.map(|it| it.token());
        let requested = request.family(RequestedAddressFamily::TYPE)?;
        let additional = match request.family(AdditionalAddressFamily::TYPE)? {
            None => request.family(ADDITIONAL_ADDRESS_FAMILY_DRAFT)?,
            family => family,
        };
        let has_dont_fragment = request.optional::<DontFragment>()?.is_some();
        if is_tcp {
            let is_stream = matches!(request.client.over, Over::Tcp(_) | Over::Tls(_));
            let is_odd = even.is_some() || token.is_some() || has_dont_fragment;
            if !is_stream || is_odd {
                return Err(bad_request());
            }
        }
        let is_contradictory = token.is_some()
            && (even.is_some() || requested.is_some() || additional.is_some())
            || requested.is_some() && additional.is_some()
            || additional == Some(AddressFamily::IPV4)
            || additional.is_some() && even.as_ref().is_some_and(EvenPort::requested);
        if is_contradictory {
            return Err(bad_request());
        }
        let families = match (requested, additional) {
            (_, Some(_)) => Families::Both,
            (Some(family), None) => Families::One(family),
            (None, None) => Families::One(AddressFamily::IPV4),
        };
        let parity = even.map_or(Parity::Any, |even| match even.requested() {
            true => Parity::EvenAndNext,
            false => Parity::Even,
        });
        Ok(Wanted {
            kind: if is_tcp { PortKind::Tcp } else { PortKind::Udp(parity) },
            families,
            token,
            lifetime: self.allocation_lifetime(request, who)?,
            has_ticket: self.read_ticket(request, is_tcp)?,
        })
    }

    /// Whether the client wants to be able to move (RFC 8016 §3.2.1): its ticket is empty.
    fn read_ticket(&self, request: &Request<'_>, is_tcp: bool) -> Result<bool, Refusal> {
        let Some(ticket) = request.message.raw_attribute(MOBILITY_TICKET) else { return Ok(false) };
        if !self.config.turn.mobility || is_tcp {
            return Err(Refusal::new(StunError::MobilityForbidden, Count::Forbidden));
        }
        if ticket.value.is_empty() { Ok(true) } else { Err(bad_request()) }
    }

    /// The lifetime that is granted: between the default and the longest one (RFC 8656 §7.2), and where
    /// the operator wants it so, no longer than an ephemeral user's own time.
    pub(super) fn allocation_lifetime(
        &self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Duration, Refusal> {
        let config = &self.config.turn;
        let wanted = request.optional::<Lifetime>()?.map_or(0, |it| it.seconds());
        let wanted = Duration::from_secs(u64::from(wanted));
        let longest = config.max_lifetime.max(config.default_lifetime);
        let granted = wanted.clamp(config.default_lifetime, longest);
        let left = who.expires.map(|expires| expires.saturating_sub(request.now.unix));
        let most = left.filter(|_| self.config.strict_expiry).unwrap_or(granted);
        Ok(granted.min(most.max(Duration::from_secs(1))))
    }

    /// Charges what an Allocate may hold to its user: an allocation, and a port beside it.
    fn charge(&mut self, who: &Authenticated, reserves: bool) -> Result<UserIndex, Refusal> {
        let limits = self.turn.limits;
        let held = self.turn.allocations.len() + self.turn.reservations.len();
        if held + usize::from(reserves) >= limits.allocations {
            return Err(Refusal::new(StunError::InsufficientCapacity, Count::TurnCapacity));
        }
        let quota = || Refusal::new(StunError::AllocationQuotaReached, Count::TurnQuota);
        let most = limits.allocations_per_user;
        let user = self.turn.users.charge(&who.user, most).ok_or_else(quota)?;
        if reserves && self.turn.users.charge(&who.user, most).is_none() {
            self.turn.users.credit(user);
            return Err(quota());
        }
        Ok(user)
    }

    fn begin_allocation(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
        wanted: &Wanted,
        user: UserIndex,
        reserved: Option<SocketAddr>,
    ) -> Result<Answer, Refusal> {
        let Request { now, client, message } = request;
        let mut allocation =
            Allocation::new(*client, user, message.transaction_id(), self.rng.random());
        allocation.mobility = wanted.has_ticket.then(|| self.new_mobility());
        if wanted.kind == PortKind::Tcp {
            allocation.connections = Some(Box::default());
        }
        if let Some(local) = reserved {
            let expires = now.monotonic + wanted.lifetime;
            let family = family_of(local.ip());
            allocation.relays[place(family)] = Some(Relay { local, expires });
            let index = self.turn.allocations.insert(allocation);
            self.turn.allocations.add_relay(local, index);
            self.turn.allocations.arm(index);
            self.counters.add(Count::Allocate);
            let allocation = self.turn.allocations.get(index).ok_or_else(mismatch)?;
            return Ok(Answer::Now(self.allocated(*now, index, allocation)));
        }
        let local = client.local.ip();
        let (wants, refused) = match self.relay_wants(local, wanted.families) {
            Ok(found) => found,
            Err(refusal) => {
                self.uncharge(user, reserves(wanted.kind));
                return Err(refusal);
            }
        };
        self.turn.addresses.advance();
        let index = self.turn.allocations.insert(allocation);
        let opening = Opening::new((Head::of(message), who.key.clone()), wanted.lifetime, refused);
        self.open_relays(index, opening, wanted.kind, &wants);
        Ok(Answer::Later)
    }

    /// Which addresses of ours serve the families, and which family none serves.
    fn relay_wants(
        &self,
        local: IpAddr,
        families: Families,
    ) -> Result<(Vec<Want>, Missing), Refusal> {
        let none = StunError::AddressFamilyNotSupported;
        let refusal = || Refusal::new(none, Count::TurnFamily);
        let want =
            |family| self.turn.addresses.of(family, local).map(|address| Want { family, address });
        let both = [AddressFamily::IPV4, AddressFamily::IPV6];
        match families {
            Families::One(family) => Ok((vec![want(family).ok_or_else(refusal)?], None)),
            Families::Both => match both.map(want) {
                [Some(v4), Some(v6)] => Ok((vec![v4, v6], None)),
                [Some(v4), None] => Ok((vec![v4], Some((AddressFamily::IPV6, none)))),
                [None, Some(v6)] => Ok((vec![v6], Some((AddressFamily::IPV4, none)))),
                [None, None] => Err(refusal()),
            },
        }
    }

    pub(super) fn uncharge(&mut self, user: UserIndex, reserves: bool) {
        if reserves {
            self.turn.users.credit(user);
        }
        self.turn.users.credit(user);
    }
}

fn reserves(kind: PortKind) -> bool {
    kind == PortKind::Udp(Parity::EvenAndNext)
}

/// There is no such allocation, or there is one already: 437.
pub(super) fn mismatch() -> Refusal {
    Refusal::new(StunError::AllocationMismatch, Count::TurnMismatch)
}

fn unsupported_transport() -> Refusal {
    Refusal::new(StunError::UnsupportedTransportProtocol, Count::TurnTransport)
}
