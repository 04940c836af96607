//! Lookup: who holds a name, and where.

use rawr_proto::{Attributes, BridgeAttributes, ErrorCode};

use super::call::bad_request;
use crate::control::counters::Count;
use crate::control::request::{ErrorResponse, Request};
use crate::control::server::{Server, seconds};

impl Server {
    pub(super) fn look_up(&mut self, request: &Request<'_>) -> Result<Attributes, ErrorResponse> {
        let name = request.attributes().bridge.name.as_ref().ok_or_else(bad_request)?;
        let unknown = || ErrorResponse::new(ErrorCode::UnknownName, Count::UnknownName);
        let registration = self.bridge.registry.get(name).ok_or_else(unknown)?;
        let left = registration.expires.saturating_duration_since(request.now.monotonic);
        let bridge = BridgeAttributes {
            public_key: Some(registration.public),
            // The port is the one towards this server: behind a symmetric NAT it tells nobody anything,
            // and behind others it would let anybody send there.
            holder_address: Some(registration.remote.ip()),
            ..BridgeAttributes::default()
        };
        self.counters.add(Count::Lookup);
        Ok(Attributes { bridge, lifetime: Some(seconds(left)), ..Attributes::default() })
    }
}
