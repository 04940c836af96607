//! What peers learn of each other, and nobody else.

use std::net::SocketAddr;

use rawr_proto::{
    Attributes, Class, ErrorCode, IntegrityKey, Mac, MacToken, Message, Method, Role,
    SessionSecret, WireKey, decode,
};
use rawr_userspace::control::Count;

use super::direct::{Direct, Sent, subject};
use super::net::secs;
use super::{root, secret};

const MAC_A: MacToken = MacToken::Raw(Mac([2, 0, 0, 0, 0, 1]));

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn card(secret: &SessionSecret, role: Role, epoch: u64, mac: MacToken, text: &[u8]) -> Attributes {
    Attributes {
        session_key: Some(WireKey::from(&secret.key())),
        own_mac: Some(mac),
        candidates: Some(text.to_vec()),
        ..subject(secret, role, epoch)
    }
}

/// Hands a card over: the answer, and what was sent to others.
fn exchange(direct: &mut Direct, from: SocketAddr, card: Attributes) -> (Message, Sent) {
    let nonce = Some(direct.nonce(from));
    let message = direct.message(Method::Exchange, Attributes { nonce, ..card.clone() });
    let key = IntegrityKey::session(&card.session_key.unwrap().session_key());
    let sent = direct.control(from, &message.encode(Some(&key)));
    let (mut own, others): (Sent, Sent) = sent.into_iter().partition(|(to, _)| *to == from);
    assert_eq!(own.len(), 1);
    (decode(&own.remove(0).1).unwrap().message, others)
}

#[test]
fn both_peers_learn_of_each_other() {
    let mut direct = Direct::new(root(1));
    let (a, b) = (at("192.0.2.1:5000"), at("203.0.113.1:5000"));
    let secret = secret(1);
    let blinded = secret.mac_key().blind(Mac([2, 0, 0, 0, 0, 2]));

    let (first, told) = exchange(&mut direct, a, card(&secret, Role::A, 1, MAC_A, b"sealed by A"));
    assert_eq!((first.class, first.attributes.peer_mac), (Class::Success, None));
    assert!(told.is_empty());

    let card_b = card(&secret, Role::B, 1, blinded, b"sealed by B");
    let (second, told) = exchange(&mut direct, b, card_b.clone());
    assert_eq!(second.attributes.peer_mac, Some(MAC_A));
    assert_eq!(second.attributes.peer_candidates.as_deref(), Some(&b"sealed by A"[..]));
    let news = decode(&told[0].1).unwrap();
    assert_eq!((told.len(), told[0].0), (1, a));
    assert!(news.verify(&IntegrityKey::session(&secret.key())));
    let news = news.message;
    assert_eq!((news.class, news.method), (Class::Indication, Method::Exchange));
    assert_eq!(news.attributes.peer_mac, Some(blinded));
    assert_eq!(news.attributes.peer_candidates.as_deref(), Some(&b"sealed by B"[..]));

    // Asked again: the same, and nobody is told twice.
    let (again, told) = exchange(&mut direct, b, card_b);
    assert_eq!(again.attributes.peer_mac, Some(MAC_A));
    assert!(told.is_empty());
}

#[test]
fn other_sessions_and_late_comers_learn_nothing() {
    let mut direct = Direct::new(root(1));
    let (a, b) = (at("192.0.2.1:5000"), at("203.0.113.1:5000"));
    exchange(&mut direct, a, card(&secret(1), Role::A, 1, MAC_A, b"1"));
    let (answer, told) = exchange(&mut direct, b, card(&secret(2), Role::B, 1, MAC_A, b"2"));
    assert_eq!((answer.attributes.peer_mac, told.len()), (None, 0));

    direct.pass(secs(121));
    assert_eq!(direct.server.counters().get(Count::ExpiredExchange), 2);
    let (answer, _) = exchange(&mut direct, b, card(&secret(1), Role::B, 1, MAC_A, b"late"));
    assert_eq!(answer.attributes.peer_mac, None);
}

#[test]
fn older_epoch_is_refused_and_quota_holds() {
    let mut config = root(1);
    config.limits.exchanges_per_prefix = 2;
    config.limits.exchanges = 3;
    let mut direct = Direct::new(config);
    let a = at("192.0.2.1:5000");
    exchange(&mut direct, a, card(&secret(1), Role::A, 5, MAC_A, b""));
    let (answer, _) = exchange(&mut direct, a, card(&secret(1), Role::A, 4, MAC_A, b""));
    assert_eq!(answer.attributes.error, Some(ErrorCode::RoleTaken));
    let mut error = |from: &str, number| {
        let card = card(&secret(number), Role::A, 1, MAC_A, b"");
        exchange(&mut direct, at(from), card).0.attributes.error
    };
    assert_eq!(error("192.0.2.1:5000", 2), None);
    assert_eq!(error("192.0.2.2:5000", 3), Some(ErrorCode::QuotaReached));
    assert_eq!(error("203.0.113.1:5000", 3), None);
    assert_eq!(error("198.18.0.1:5000", 4), Some(ErrorCode::QuotaReached));
}
