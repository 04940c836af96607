//! Own external addresses, as STUN servers see them (RFC 8489 §2, RFC 8445 §5.1.1.2), and what keeps them
//! from being forgotten.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_proto::{Attributes, Class, Message, Method, TransactionId, decode, peek};

use crate::socket_id::SocketId;

/// Pause before the first retransmission; it doubles.
const RTO: Duration = Duration::from_millis(100);
/// Requests without an answer after which a server is left alone.
const MAX_TRIES: u32 = 6;
/// Pause before a server is asked again, so that NATs keep the mapping: many forget after 30 s.
const REFRESH: Duration = Duration::from_secs(20);
/// Pause before a server that did not answer is asked again.
const REST: Duration = Duration::from_secs(60);

/// Asks STUN servers from some sockets.
#[derive(Debug)]
pub(super) struct Gather {
    asks: Vec<Ask>,
    rng: StdRng,
}

/// One socket's question to one server, which is asked again and again, or once.
#[derive(Debug)]
struct Ask {
    socket: SocketId,
    server: SocketAddr,
    is_repeated: bool,
    transaction: TransactionId,
    tries: u32,
    send_at: Option<Instant>,
}

impl Gather {
    pub(super) fn new(seed: u64) -> Self {
        Self { asks: Vec::new(), rng: StdRng::seed_from_u64(seed) }
    }

    /// Asks for as long as the socket is there.
    pub(super) fn watch(&mut self, now: Instant, socket: SocketId, server: SocketAddr) {
        self.add(now, socket, server, true);
    }

    /// Asks until there is an answer.
    pub(super) fn ask(&mut self, now: Instant, socket: SocketId, server: SocketAddr) {
        self.add(now, socket, server, false);
    }

    fn add(&mut self, now: Instant, socket: SocketId, server: SocketAddr, is_repeated: bool) {
        let (transaction, send_at) = (TransactionId(self.rng.random()), Some(now));
        self.asks.push(Ask { socket, server, is_repeated, transaction, tries: 0, send_at });
    }

    /// The socket is no more.
    pub(super) fn forget(&mut self, socket: SocketId) {
        self.asks.retain(|ask| ask.socket != socket);
    }

    /// Asks all servers again: the NAT may have started anew.
    pub(super) fn refresh(&mut self, now: Instant) {
        for ask in self.asks.iter_mut().filter(|ask| ask.is_repeated) {
            ask.begin(TransactionId(self.rng.random()), now);
        }
    }

    /// Takes a datagram. Returns the address that the server saw it come from; `Some(None)` where the
    /// datagram is an answer without one.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<Option<SocketAddr>> {
        let Some((class @ (Class::Success | Class::Error), Method::Binding)) = peek(bytes) else {
            return None;
        };
        let message = decode(bytes).ok()?.message;
        let is_it = |ask: &Ask| {
            (ask.socket, ask.server, ask.transaction) == (socket, from, message.transaction)
        };
        let at = self.asks.iter().position(is_it)?;
        if self.asks[at].is_repeated {
            self.asks[at].begin(TransactionId(self.rng.random()), now + REFRESH);
        } else {
            self.asks.remove(at);
        }
        Some(message.attributes.mapped.filter(|_| class == Class::Success))
    }

    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
    ) -> Option<(SocketId, SocketAddr, Vec<u8>)> {
        let is_due = |ask: &Ask| ask.send_at.is_some_and(|at| at <= now);
        while let Some(at) = self.asks.iter().position(is_due) {
            let transaction = TransactionId(self.rng.random());
            let ask = &mut self.asks[at];
            if ask.tries < MAX_TRIES {
                return Some((ask.socket, ask.server, ask.send(now)));
            }
            match ask.is_repeated {
                true => ask.begin(transaction, now + REST),
                false => drop(self.asks.remove(at)),
            }
        }
        None
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.asks.iter().filter_map(|ask| ask.send_at).min()
    }
}

impl Ask {
    fn begin(&mut self, transaction: TransactionId, at: Instant) {
        (self.transaction, self.tries, self.send_at) = (transaction, 0, Some(at));
    }

    fn send(&mut self, now: Instant) -> Vec<u8> {
        self.send_at = Some(now + RTO * (1 << self.tries));
        self.tries += 1;
        Message::request(Method::Binding, self.transaction, Attributes::default()).encode(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: SocketId = SocketId(3);

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn answer(request: &[u8], mapped: SocketAddr) -> Vec<u8> {
        let head = decode(request).unwrap().message.head();
        Message::success(head, Attributes { mapped: Some(mapped), ..Attributes::default() })
            .encode(None)
    }

    #[test]
    fn a_server_says_what_it_saw() {
        let (now, mut gather) = (origin(), Gather::new(1));
        let (server, mapped) =
            ("192.0.2.1:3478".parse().unwrap(), "198.51.100.1:7".parse().unwrap());
        gather.watch(now, SOCKET, server);
        let (socket, to, request) = gather.poll_transmit(now).unwrap();
        assert_eq!((socket, to, gather.poll_transmit(now)), (SOCKET, server, None));
        let answer = answer(&request, mapped);
        assert_eq!(gather.handle(now, SocketId(4), server, &answer), None);
        assert_eq!(gather.handle(now, SOCKET, mapped, &answer), None);
        assert_eq!(gather.handle(now, SOCKET, server, &answer), Some(Some(mapped)));
        assert_eq!(gather.handle(now, SOCKET, server, &answer), None, "a repetition");
        assert_eq!(gather.poll_timeout(), Some(now + REFRESH));
    }

    #[test]
    fn a_server_that_is_silent_is_left_alone() {
        let (mut now, mut gather) = (origin(), Gather::new(1));
        gather.watch(now, SOCKET, "192.0.2.1:3478".parse().unwrap());
        gather.ask(now, SOCKET, "192.0.2.2:3478".parse().unwrap());
        let end = now + REST;
        let mut sent = 0;
        while now < end {
            sent += std::iter::from_fn(|| gather.poll_transmit(now)).count() as u32;
            now = gather.poll_timeout().unwrap();
        }
        assert_eq!(sent, 2 * MAX_TRIES);
    }
}
