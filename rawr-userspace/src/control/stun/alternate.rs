//! Sending clients elsewhere (RFC 8489 §10), as a server does that is about to stop.

use std::net::SocketAddr;

use rawr_proto::StunError;
use stun_types::attribute::{AlternateServer, AttributeWrite};
use stun_types::message::{Message, TransactionId};

use super::answer::Refusal;
use crate::control::client::Client;
use crate::control::counters::Count;
use crate::control::server::Server;

impl Server {
    /// From now on, new allocations are refused with 300 and one of these servers; what is there stays.
    /// None of them ends it.
    pub fn send_elsewhere(&mut self, alternates: Vec<SocketAddr>) {
        self.config.alternates = alternates;
    }

    /// 300, if there is a server of the client's family to send it to.
    pub(in crate::control) fn elsewhere(
        &self,
        client: &Client,
        message: &Message<'_>,
    ) -> Option<Refusal> {
        let family = |server: &&SocketAddr| server.is_ipv4() == client.remote.is_ipv4();
        let servers: Vec<SocketAddr> =
            self.config.alternates.iter().filter(family).copied().collect();
        let server = pick(&servers, message.transaction_id())?;
        let alternate = AlternateServer::new(server);
        let refusal = Refusal::new(StunError::TryAlternate, Count::SentElsewhere);
        Some(refusal.with(alternate.to_raw().into_owned()))
    }
}

/// The one that the transaction, which is random, falls on: the same for a retransmission.
fn pick(servers: &[SocketAddr], transaction: TransactionId) -> Option<SocketAddr> {
    let index = u128::from(transaction).checked_rem(servers.len() as u128)?;
    servers.get(index as usize).copied()
}
