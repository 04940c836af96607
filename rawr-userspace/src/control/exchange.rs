//! Exchange: the two peers of a session get each other's MAC address and candidates.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{
    Attributes, ErrorCode, IntegrityKey, MacToken, Message, Method, SessionId, SessionKey,
};

use super::auth::Caller;
use super::command::Source;
use super::counters::Count;
use super::limits::Prefix;
use super::request::{Answer, ErrorResponse, Request};
use super::server::Server;
use super::time::Now;

/// How long what a peer handed over is kept after its last request.
const LIFETIME: Duration = Duration::from_secs(60);

/// What peers have handed over.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    sessions: HashMap<SessionId, Exchange>,
    /// In the order of their time. One that was put off goes to the back when its turn comes.
    queue: VecDeque<(Instant, SessionId)>,
}

#[derive(Debug)]
struct Exchange {
    key: SessionKey,
    prefix: Prefix,
    expires: Instant,
    sides: [Option<Side>; 2],
}

/// One peer's.
#[derive(Debug)]
struct Side {
    epoch: u64,
    source: SocketAddr,
    /// Address of ours that it sent to.
    local: SocketAddr,
    card: Card,
}

/// What the other peer gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Card {
    mac: Option<MacToken>,
    candidates: Option<Vec<u8>>,
}

impl Card {
    fn into_attributes(self) -> Attributes {
        let Self { mac: peer_mac, candidates: peer_candidates } = self;
        Attributes { peer_mac, peer_candidates, ..Attributes::default() }
    }
}

impl Exchanges {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }
}

impl Server {
    pub(super) fn exchange(&mut self, request: &Request<'_>) -> Result<Answer, ErrorResponse> {
        let caller = self.admit(request)?;
        self.begin_exchange(request, &caller)
            .map_err(|refusal| refusal.signed(&caller.integrity))?;
        let role = caller.subject.role;
        let id = caller.subject.session;
        let a = request.attributes();
        let card = Card { mac: a.own_mac, candidates: a.candidates.clone() };
        let Some(exchange) = self.exchanges.sessions.get_mut(&id) else {
            return Ok(Answer::Later);
        };
        exchange.expires = request.now.monotonic + LIFETIME;
        let side = Side {
            epoch: caller.subject.epoch,
            source: request.from(),
            local: request.local(),
            card: card.clone(),
        };
        let before = exchange.sides[role as usize].replace(side);
        let is_news = before.is_none_or(|before| before.card != card);
        let other = exchange.sides[role.other() as usize].as_ref();
        let known = other.map(|other| other.card.clone()).unwrap_or_default();
        let tell = other.filter(|_| is_news).map(|other| (other.local, other.source));
        if let Some((local, to)) = tell {
            let key = IntegrityKey::session(&exchange.key);
            let attributes = Attributes { session: Some(id), ..card.into_attributes() };
            let transaction = self.transaction();
            let news = Message::indication(Method::Exchange, transaction, attributes);
            self.transmit(Source::Control(local), to, news.encode(Some(&key)));
        }
        self.counters.add(Count::Exchange);
        Ok(Answer::now(known.into_attributes(), Some(caller.integrity)))
    }

    /// Makes sure that the session has an exchange, and that the caller may take its side.
    fn begin_exchange(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
    ) -> Result<(), ErrorResponse> {
        let id = caller.subject.session;
        if let Some(exchange) = self.exchanges.sessions.get(&id) {
            let side = exchange.sides[caller.subject.role as usize].as_ref();
            return match side {
                Some(side) if side.epoch > caller.subject.epoch => {
                    Err(ErrorResponse::new(ErrorCode::RoleTaken, Count::RoleTaken))
                }
                _ => Ok(()),
            };
        }
        let quota = || ErrorResponse::new(ErrorCode::QuotaReached, Count::Quota);
        if self.exchanges.sessions.len() >= self.config.limits.exchanges {
            return Err(quota());
        }
        let prefix = Prefix::of(request.from().ip());
        self.quotas.open_exchange(prefix).map_err(|_| quota())?;
        let expires = request.now.monotonic + LIFETIME;
        let (key, sides) = (caller.key.clone(), [None, None]);
        self.exchanges.sessions.insert(id, Exchange { key, prefix, expires, sides });
        self.exchanges.queue.push_back((expires, id));
        Ok(())
    }

    pub(super) fn expire_exchanges(&mut self, now: Now) {
        let Exchanges { sessions, queue } = &mut self.exchanges;
        while let Some((_, id)) = queue.pop_front_if(|(at, _)| *at <= now.monotonic) {
            let Some(exchange) = sessions.get(&id) else { continue };
            if exchange.expires > now.monotonic {
                queue.push_back((exchange.expires, id));
                continue;
            }
            self.quotas.close_exchange(exchange.prefix);
            self.counters.add(Count::ExpiredExchange);
            sessions.remove(&id);
        }
    }
}
