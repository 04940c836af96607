//! Replays the worked examples of docs/protocol.md from the document itself.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::HashMap;

use rawr_proto::{
    BridgeKey, Class, ErrorCode, IntegrityKey, LegState, LongTermKey, Mac, MacToken, Message,
    Method, SessionSecret, WireKey, decode,
};
use x25519_dalek::{PublicKey, StaticSecret};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

struct Example {
    name: &'static str,
    key: &'static str,
    bytes: Vec<u8>,
}

/// The fenced blocks whose first line begins with `kind`: the rest of that line, and the content.
fn blocks(kind: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    DOCUMENT.split("\n```").filter_map(move |block| {
        let (head, content) = block.split_once('\n')?;
        Some((head.strip_prefix(kind)?.trim(), content))
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn examples() -> Vec<Example> {
    let parse = |(head, content): (&'static str, &'static str)| {
        let (name, key) = head.split_once(' ').unwrap();
        let hex: Vec<_> = content.lines().map(|line| line.split('#').next().unwrap()).collect();
        Example { name, key, bytes: from_hex(&hex.concat()) }
    };
    blocks("hex ").map(parse).collect()
}

fn example(name: &str) -> Message {
    let examples = examples();
    let example = examples.iter().find(|example| example.name == name).unwrap();
    decode(&example.bytes).unwrap().message
}

fn keys() -> HashMap<&'static str, Vec<u8>> {
    table("keys")
}

fn table(kind: &'static str) -> HashMap<&'static str, Vec<u8>> {
    let (_, content) = blocks(kind).next().unwrap();
    let lines = content.lines().filter_map(|line| line.split_once(" = "));
    lines.map(|(name, value)| (name, from_hex(value))).collect()
}

fn secret() -> SessionSecret {
    SessionSecret::from_bytes(keys()["S"].clone().try_into().unwrap())
}

fn user() -> LongTermKey {
    LongTermKey::new("cam", "example.org", "hunter2")
}

/// What keys the messages of `who`, computed from the secrets.
fn bridge_key(who: &str) -> IntegrityKey {
    let keys = table("bridge-keys");
    let secret = |who: &str| -> [u8; 32] {
        keys[format!("{who} secret").as_str()].clone().try_into().unwrap()
    };
    let public = |who| PublicKey::from(&StaticSecret::from(secret(who)));
    for known in [who, "server"] {
        assert_eq!(public(known).as_bytes(), &*keys[format!("{known} public").as_str()]);
    }
    let agreed = StaticSecret::from(secret(who)).diffie_hellman(&public("server"));
    assert_eq!(agreed.as_bytes(), &*keys[format!("{who} and server").as_str()]);
    let (caller, server) = (public(who), public("server"));
    IntegrityKey::bridge(&BridgeKey::new(agreed.as_bytes(), caller.as_bytes(), server.as_bytes()))
}

#[test]
fn keys_follow_from_the_secret() {
    let keys = keys();
    let secret = secret();
    assert_eq!(keys["K"], secret.key().as_bytes());
    assert_eq!(keys["id"], secret.key().id().0);
    assert_eq!(keys["Km"], secret.mac_key().as_bytes());
    let blinded = MacToken::Blinded(keys["blinded"].clone().try_into().unwrap());
    assert_eq!(secret.mac_key().blind(Mac([2, 0, 0, 0, 0, 0x0b])), blinded);
}

#[test]
fn every_example_is_read_and_written_byte_for_byte() {
    let session = IntegrityKey::session(&secret().key());
    let user = IntegrityKey::credentialed(&user(), &secret().key());
    let examples = examples();
    let (holder, introducer) = (bridge_key("holder"), bridge_key("introducer"));
    assert_eq!(examples.len(), 29);
    for Example { name, key, bytes } in &examples {
        let decoded = decode(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let key = match *key {
            "session" => Some(&session),
            "user" => Some(&user),
            "holder" => Some(&holder),
            "introducer" => Some(&introducer),
            "none" => None,
            other => panic!("{name}: key {other}"),
        };
        assert_eq!(decoded.has_integrity(), key.is_some(), "{name}");
        assert!(key.is_none_or(|key| decoded.verify(key)), "{name}");
        assert_eq!(decoded.unknown_required(), [], "{name}");
        assert_eq!(&decoded.message.encode(key), bytes, "{name}");
    }
}

#[test]
fn challenges_are_not_longer_than_what_caused_them() {
    let length = |name| examples().iter().find(|it| it.name == name).unwrap().bytes.len();
    for (first, challenge) in [
        ("connect-first", "connect-challenge"),
        ("probe-first", "probe-challenge"),
        ("register-first", "register-challenge"),
    ] {
        assert!(length(first) >= if first == "register-first" { 256 } else { 160 });
        assert!(length(challenge) <= length(first));
        assert_eq!(example(first).transaction, example(challenge).transaction);
    }
}

#[test]
fn connect_brings_the_keys_in_clear_or_masked() {
    let key = WireKey::from(&secret().key());
    let clear = example("connect").attributes;
    assert_eq!(clear.session_key, Some(key));
    assert_eq!(clear.mac_key, Some(WireKey::from(&secret().mac_key())));
    assert_eq!(clear.root, Some("203.0.113.1:3478".parse().unwrap()));

    let Message { transaction, attributes: masked, .. } = example("connect-with-user");
    let nonce = masked.nonce.unwrap();
    let wire = masked.session_key.unwrap();
    assert_ne!(wire, key);
    assert_eq!(user().mask_session_key(wire, &nonce, transaction), key);
    assert_eq!((masked.hops.len(), masked.hop_limit), (1, Some(7)));

    let granted = example("connect-success").attributes;
    assert_eq!(granted.data_address, Some("192.0.2.1:49200".parse().unwrap()));
    assert_eq!(granted.mapped, Some("192.0.2.10:40000".parse().unwrap()));
}

#[test]
fn probes_and_status_say_how_far_the_leg_is() {
    let state = |name| example(name).attributes.leg_state;
    assert_eq!(state("probe-success"), Some(LegState::Waiting));
    assert_eq!(state("status"), Some(LegState::Paired));
    assert_eq!(state("probe-answered-by-peer"), Some(LegState::Peer));
    let status = example("status");
    assert_eq!((status.method, status.class), (Method::Status, Class::Indication));
}

#[test]
fn candidates_open() {
    let key = secret().candidate_key();
    let own = example("exchange").attributes.candidates.unwrap();
    assert_eq!(key.open(&own), Some(vec!["192.0.2.10:40001".parse().unwrap()]));
    let expected =
        vec!["198.51.100.20:40002".parse().unwrap(), "[2001:db8::20]:40002".parse().unwrap()];
    for name in ["exchange-success", "exchange-indication"] {
        let peer = example(name).attributes.peer_candidates.unwrap();
        assert_eq!(key.open(&peer).as_ref(), Some(&expected));
    }
}

#[test]
fn names_lead_from_one_identity_to_the_other() {
    let keys = table("bridge-keys");
    let said = |name| example(name).attributes.bridge;
    let public = |who: &str| Some(keys[who].clone().try_into().unwrap());
    assert_eq!(said("register-challenge").server_key, public("server public"));
    assert_eq!(said("register").public_key, public("holder public"));
    assert_eq!(said("lookup").public_key, public("introducer public"));
    let found = said("lookup-success");
    assert_eq!(found.public_key, public("holder public"));
    assert_eq!(found.holder_address, Some("192.0.2.10".parse().unwrap()));
    let taken = example("register-taken").attributes.error;
    assert_eq!(taken, Some(ErrorCode::NameTaken));

    let (asked, told) = (said("introduce"), said("introduce-indication"));
    assert_eq!((&asked.introduction, &asked.sealed), (&told.introduction, &told.sealed));
    assert_eq!((asked.name, told.name), (said("register").name, said("lookup").name));
    assert_eq!(told.peer_address, example("introduce-success").attributes.mapped);
    let (answered, told) = (said("introduce-answer"), said("introduce-answer-indication"));
    assert_eq!(answered.sealed, told.sealed);
    assert_eq!(answered.introduction, asked.introduction);
    assert_eq!(told.peer_address, example("register-success").attributes.mapped);
}

#[test]
fn a_server_sends_to_nobody_more_than_it_got_for_it() {
    let length = |name| examples().iter().find(|it| it.name == name).unwrap().bytes.len();
    assert!(length("introduce-indication") <= length("introduce"));
    assert!(length("introduce-answer-indication") <= length("introduce-answer"));
}
