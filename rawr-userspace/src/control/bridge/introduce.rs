//! Introduce: what somebody has to say to a name's holder, and the holder's answer.
//!
//! Either side repeats its request until it is answered. A repetition is passed on again, so that it makes
//! up for a lost indication, too; and who introduced itself gets the holder's answer with the next success
//! if the indication was lost.

use std::net::SocketAddr;

use rawr_proto::{
    Attributes, BridgeAttributes, BridgeKey, BridgeName, ErrorCode, IntegrityKey, IntroductionId,
    Message, Method,
};

use super::call::{Caller, bad_request};
use super::introductions::Introduction;
use crate::control::client::Client;
use crate::control::counters::Count;
use crate::control::request::{ErrorResponse, Request};
use crate::control::server::Server;

impl Server {
    pub(super) fn introduce(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
    ) -> Result<Attributes, ErrorResponse> {
        let a = &request.attributes().bridge;
        let (Some(id), Some(sealed)) = (a.introduction, a.sealed.as_deref()) else {
            return Err(bad_request());
        };
        let bridge = match &a.name {
            Some(name) => self.pass_to_holder(request, caller, id, name, sealed)?,
            None => {
                self.pass_back(request, caller, id, sealed)?;
                BridgeAttributes::default()
            }
        };
        Ok(Attributes { bridge, mapped: Some(request.from()), ..Attributes::default() })
    }

    /// Tells the holder of `name`; returns what it has answered, if anything.
    fn pass_to_holder(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
        id: IntroductionId,
        name: &BridgeName,
        sealed: &[u8],
    ) -> Result<BridgeAttributes, ErrorResponse> {
        let now = request.now.monotonic;
        let unknown = || ErrorResponse::new(ErrorCode::UnknownName, Count::UnknownName);
        let registration = self.bridge.registry.get(name).ok_or_else(unknown)?;
        let unreachable = ErrorCode::HolderUnreachable;
        let unreachable = || ErrorResponse::new(unreachable, Count::HolderUnreachable);
        let (way, holder) = (*registration.way(now).ok_or_else(unreachable)?, registration.public);
        let key = registration.key.clone().or_else(|| self.bridge.key.agree(&holder));
        let key = key.ok_or_else(unreachable)?;
        if let Some(introduction) = self.bridge.introductions.get_mut(id) {
            if (introduction.introducer, &introduction.name) != (caller.public, name) {
                return Err(ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden));
            }
            introduction.way = *request.client;
            if let Some((sealed, from)) = &introduction.answer {
                return Ok(said(sealed, *from));
            }
        } else {
            let introduction = Introduction {
                name: name.clone(),
                introducer: caller.public,
                key: caller.key.clone(),
                way: *request.client,
                holder,
                answer: None,
            };
            let limits = &self.config.bridge.limits;
            self.bridge
                .introductions
                .insert(now, limits, id, introduction)
                .map_err(|_| ErrorResponse::new(ErrorCode::QuotaReached, Count::Quota))?;
            self.counters.add(Count::Introduce);
        }
        let name = Some(name.clone());
        let said = said(sealed, request.from());
        self.indicate(&way, &key, BridgeAttributes { name, introduction: Some(id), ..said });
        Ok(BridgeAttributes::default())
    }

    /// Keeps the holder's answer, and tells who introduced itself.
    fn pass_back(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
        id: IntroductionId,
        sealed: &[u8],
    ) -> Result<(), ErrorResponse> {
        let over = || ErrorResponse::new(ErrorCode::UnknownName, Count::UnknownName);
        let introduction = self.bridge.introductions.get_mut(id).ok_or_else(over)?;
        if introduction.holder != caller.public {
            return Err(ErrorResponse::new(ErrorCode::Forbidden, Count::Forbidden));
        }
        let answer = (sealed.to_vec(), request.from());
        let is_first = introduction.answer.replace(answer).is_none();
        let (way, key) = (introduction.way, introduction.key.clone());
        if is_first {
            self.counters.add(Count::Introduced);
        }
        let said = said(sealed, request.from());
        self.indicate(&way, &key, BridgeAttributes { introduction: Some(id), ..said });
        Ok(())
    }

    fn indicate(&mut self, to: &Client, key: &BridgeKey, bridge: BridgeAttributes) {
        let attributes = Attributes { bridge, ..Attributes::default() };
        let transaction = self.transaction();
        let message = Message::indication(Method::Introduce, transaction, attributes);
        self.answer(to, message.encode(Some(&IntegrityKey::bridge(key))));
    }
}

/// What one side says to the other, and where it is.
fn said(sealed: &[u8], from: SocketAddr) -> BridgeAttributes {
    let (sealed, peer_address) = (Some(sealed.to_vec()), Some(from));
    BridgeAttributes { sealed, peer_address, ..BridgeAttributes::default() }
}
