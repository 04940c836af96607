//! The control plane over virtual time: several servers and clients in one process.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod direct;
mod exchange;
mod floods;
mod net;
mod paths;
mod peers;
mod refusals;
mod stun;

use rawr_proto::{ServerId, SessionSecret};
use rawr_userspace::control::{Kind, Parent, ServerConfig};

use net::{Net, ip};

pub(crate) fn secret(number: u8) -> SessionSecret {
    SessionSecret::from_bytes([number; 32])
}

/// A server that trusts everybody.
pub(crate) fn open_server(kind: Kind, id: u8) -> ServerConfig {
    let mut config = ServerConfig::new(kind, ServerId([id; 8]));
    config.trusted = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    config
}

pub(crate) fn gateway(id: u8, parents: &[&str]) -> ServerConfig {
    let parent = |address: &&str| Parent {
        address: std::net::SocketAddr::new(ip(address), net::STUN),
        credentials: None,
    };
    let mut config = open_server(Kind::Gateway, id);
    config.parents = parents.iter().map(parent).collect();
    config
}

pub(crate) fn root(id: u8) -> ServerConfig {
    open_server(Kind::Root, id)
}

/// Whether what each of the two sends reaches the other, and nothing else does.
pub(crate) fn assert_talk(net: &mut Net, a: usize, b: usize) {
    for (from, to) in [(a, b), (b, a)] {
        let text = format!("{from} to {to} at {:?}", net.now);
        net.send(from, text.as_bytes());
        net.run(net::ms(100));
        assert_eq!(net.clients[to].texts().last(), Some(&text), "{from} does not reach {to}");
    }
}
