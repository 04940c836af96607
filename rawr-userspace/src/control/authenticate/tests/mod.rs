//! The authentication of requests, message by message.

#[cfg(feature = "oauth")]
mod tokens;

use std::net::SocketAddr;
use std::time::Instant;

use proptest::prelude::*;
use rawr_proto::{Credentials, NONCE_LIFETIME, ServerId, ephemeral_username, userhash};
use stun_proto::auth::{Feature, LongTermClientAuth, LongTermClientValidation};
use stun_types::attribute::{ErrorCode, MessageIntegrity};
use stun_types::message::{
    IntegrityAlgorithm, LongTermCredentials, MessageWrite, MessageWriteVec, Method,
};
use turn_types::message::REFRESH;

use super::*;
use crate::control::command::Command;
use crate::control::config::{Kind, ServerConfig};
use crate::control::stun::Head;

const USER: &str = "cam";
const PASSWORD: &str = "hunter2";
const SECRET: &str = "north";
const REALM: &str = "example.org";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A server, a client, and what happens between them.
struct Scene {
    server: Server,
    client: Client,
    now: Now,
}

impl Scene {
    #[expect(clippy::disallowed_methods, reason = "any instant does as the origin")]
    fn new(config: ServerConfig) -> Self {
        let now = Now { monotonic: Instant::now(), unix: Duration::from_secs(1_800_000_000) };
        let server = Server::new(config, [3; 32], now);
        let client = Client::udp(at("198.51.100.1:3478"), at("192.0.2.9:4000"));
        Self { server, client, now }
    }

    /// The user, or the error response's bytes; empty if there is none.
    fn tell(&mut self, bytes: &[u8]) -> Result<Authenticated, Vec<u8>> {
        let message = rawr_proto::parse_stun(bytes).unwrap();
        let refusal = match self.server.authenticate(self.now, &self.client, &message) {
            Ok(user) => return Ok(user),
            Err(refusal) => refusal,
        };
        self.server.refuse_stun(self.now, &self.client, &Head::of(&message), refusal);
        let Some(command) = self.server.poll_command() else { return Err(Vec::new()) };
        assert_eq!(self.server.poll_command(), None);
        let Command::Transmit { to, bytes, .. } = command else { panic!("{command:?}") };
        assert_eq!(to, self.client.remote);
        Err(bytes)
    }

    fn error(&mut self, bytes: &[u8]) -> u16 {
        let answer = self.tell(bytes).unwrap_err();
        Message::from_bytes(&answer).unwrap().attribute::<ErrorCode>().unwrap().code()
    }

    fn nonce(&mut self) -> String {
        let first = self.tell(&Ask::default().unsigned()).unwrap_err();
        let message = Message::from_bytes(&first).unwrap();
        message.attribute::<Nonce>().unwrap().nonce().to_owned()
    }

    fn pass(&mut self, seconds: u64) {
        self.now.monotonic += Duration::from_secs(seconds);
        self.now.unix += Duration::from_secs(seconds);
    }
}

/// A root with a static user.
fn with_user() -> ServerConfig {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    config.realm = REALM.to_owned();
    let (username, password) = (USER.to_owned(), PASSWORD.to_owned());
    config.users = vec![Credentials { username, password }];
    config
}

/// One that also knows two secrets.
fn with_secrets() -> ServerConfig {
    ServerConfig { secrets: vec!["south".to_owned(), SECRET.to_owned()], ..with_user() }
}

/// A request, as a client of RFC 5389 makes it unless told otherwise.
#[derive(Clone)]
struct Ask {
    method: Method,
    user: Option<String>,
    hash: Option<[u8; 32]>,
    realm: Option<String>,
    nonce: Option<String>,
    /// Values of PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS.
    chosen: Option<Vec<u8>>,
    offered: Option<Vec<u8>>,
    algorithm: PasswordAlgorithm,
    attribute: IntegrityAttribute,
    password: String,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            method: ALLOCATE,
            user: Some(USER.to_owned()),
            hash: None,
            realm: Some(REALM.to_owned()),
            nonce: None,
            chosen: None,
            offered: None,
            algorithm: PasswordAlgorithm::Md5,
            attribute: IntegrityAttribute::Sha1,
            password: PASSWORD.to_owned(),
        }
    }
}

impl Ask {
    /// As a client of RFC 8489 makes it.
    fn modern(nonce: &str) -> Self {
        Self {
            nonce: Some(nonce.to_owned()),
            chosen: Some(vec![0, 2, 0, 0]),
            offered: Some(PasswordAlgorithm::OFFERED.to_vec()),
            algorithm: PasswordAlgorithm::Sha256,
            attribute: IntegrityAttribute::Sha256,
            ..Self::default()
        }
    }

    fn with_nonce(&self, nonce: &str) -> Self {
        Self { nonce: Some(nonce.to_owned()), ..self.clone() }
    }

    fn build(&self) -> MessageWriteVec {
        let mut out = Message::builder_request(self.method, MessageWriteVec::new());
        let mut put = |kind: AttributeType, value: Option<&[u8]>| {
            if let Some(value) = value {
                out.push_attribute_unchecked(&RawAttribute::new(kind, value));
            }
        };
        put(AttributeType::new(0x0019), Some(&[17, 0, 0, 0]));
        put(Username::TYPE, self.user.as_deref().map(str::as_bytes));
        put(Userhash::TYPE, self.hash.as_ref().map(|hash| hash.as_slice()));
        put(Realm::TYPE, self.realm.as_deref().map(str::as_bytes));
        put(Nonce::TYPE, self.nonce.as_deref().map(str::as_bytes));
        put(AlgorithmAttribute::TYPE, self.chosen.as_deref());
        put(PasswordAlgorithms::TYPE, self.offered.as_deref());
        out
    }

    fn key(&self) -> LongTermIntegrity {
        let name = self.user.as_deref().unwrap_or(USER);
        let realm = self.realm.as_deref().unwrap_or(REALM);
        let key = PasswordKey::new(self.algorithm, name, realm, &self.password);
        LongTermIntegrity::new(self.attribute, &key)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.build();
        self.key().sign(&mut out);
        out.finish()
    }

    /// What a client sends before it knows anything.
    fn unsigned(&self) -> Vec<u8> {
        let nothing = Self { user: None, realm: None, nonce: None, ..self.clone() };
        nothing.build().finish()
    }
}

#[test]
fn a_client_of_rfc_5389_gets_in() {
    let mut scene = Scene::new(with_user());
    let nonce = scene.nonce();
    let ask = Ask::default().with_nonce(&nonce);
    let user = scene.tell(&ask.bytes()).unwrap();
    assert_eq!((&*user.user, user.expires), (USER, None));
    // The answer is signed as the request was.
    let mut out = Message::builder_request(ALLOCATE, MessageWriteVec::new());
    user.key.sign(&mut out);
    let answer = out.finish();
    let answer = Message::from_bytes(&answer).unwrap();
    assert!(answer.has_attribute(MessageIntegrity::TYPE) && ask.key().verify(&answer));
}

#[test]
fn password_and_integrity_algorithms_combine_freely() {
    let mut scene = Scene::new(with_secrets());
    let nonce = scene.nonce();
    let ephemeral = ephemeral_username(1_800_000_100, "cam");
    let password = ephemeral_password(SECRET, &ephemeral);
    for (user, password) in [(USER, PASSWORD), (&ephemeral, &password)] {
        for (algorithm, chosen) in [(PasswordAlgorithm::Md5, 1), (PasswordAlgorithm::Sha256, 2)] {
            for attribute in [IntegrityAttribute::Sha1, IntegrityAttribute::Sha256] {
                let (user, password) = (Some(user.to_owned()), password.to_owned());
                let chosen = Some(vec![0, chosen, 0, 0]);
                let modern = Ask::modern(&nonce);
                let ask = Ask { user, password, algorithm, attribute, chosen, ..modern };
                let user = scene.tell(&ask.bytes()).unwrap();
                assert_eq!(user.key.attribute(), attribute);
            }
        }
    }
}

/// The first answer: which bytes, and how many for how many.
#[test]
fn challenge_holds_no_more_than_it_must() {
    let mut scene = Scene::new(with_user());
    let first = Ask::default().unsigned();
    let answer = scene.tell(&first).unwrap_err();
    let message = Message::from_bytes(&answer).unwrap();
    let kinds: Vec<u16> =
        message.iter_attributes().map(|(_, attribute)| attribute.get_type().value()).collect();
    assert_eq!(kinds, [0x0009, 0x0014, 0x0015, 0x8002]);
    assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 401);
    assert_eq!(message.attribute::<Realm>().unwrap().realm(), REALM);
    let factor = answer.len() as f64 / first.len() as f64;
    println!("401 to Allocate: {} B -> {} B, {factor:.2} times", first.len(), answer.len());
    // Header, ERROR-CODE without a phrase, REALM of 11 bytes, NONCE of 32, PASSWORD-ALGORITHMS of two.
    assert_eq!((first.len(), answer.len()), (28, 20 + 8 + 16 + 36 + 12));
    assert_eq!(answer[20 + 8 + 4 + 11], 0, "padding is zero, whatever stood there before");
    assert_eq!(scene.server.counters().get(Count::Challenged), 1);
}

#[test]
fn a_gateway_stays_silent_rather_than_answer_with_more() {
    let config = ServerConfig { kind: Kind::Gateway, answer_short_binding: false, ..with_user() };
    let mut scene = Scene::new(config);
    assert_eq!(scene.tell(&Ask::default().unsigned()).unwrap_err(), b"");
    assert_eq!(scene.server.counters().get(Count::TooLong), 1);
}

#[test]
fn without_users_there_is_no_turn() {
    let mut scene = Scene::new(ServerConfig::new(Kind::Root, ServerId([1; 8])));
    assert_eq!(scene.error(&Ask::default().unsigned()), 403);
}

#[test]
fn what_is_missing_is_a_bad_request() {
    let mut scene = Scene::new(with_user());
    let good = Ask::default().with_nonce(&scene.nonce());
    for ask in [
        Ask { user: None, ..good.clone() },
        Ask { realm: None, ..good.clone() },
        Ask { nonce: None, ..good.clone() },
    ] {
        let answer = scene.tell(&ask.bytes()).unwrap_err();
        let message = Message::from_bytes(&answer).unwrap();
        assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 400);
        assert!(!message.has_attribute(Nonce::TYPE), "RFC 8489 §9.2.4");
    }
    assert!(scene.tell(&good.bytes()).is_ok());
}

#[test]
fn nonces_go_stale_and_are_of_one_address() {
    let mut scene = Scene::new(with_user());
    let ask = Ask::default().with_nonce(&scene.nonce());
    scene.pass(NONCE_LIFETIME);
    assert!(scene.tell(&ask.bytes()).is_ok());
    scene.pass(1);
    let stale = scene.tell(&ask.bytes()).unwrap_err();
    let message = Message::from_bytes(&stale).unwrap();
    assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 438);
    let fresh = message.attribute::<Nonce>().unwrap();
    let fresh = ask.with_nonce(fresh.nonce()).bytes();
    assert!(stale.len() <= ask.bytes().len(), "438 is no longer than what it answers");
    assert!(scene.tell(&fresh).is_ok());
    scene.client.remote = at("192.0.2.9:4001");
    assert_eq!(scene.error(&fresh), 438);
}

#[test]
fn wrong_users_passwords_and_realms_look_alike() {
    let mut scene = Scene::new(with_secrets());
    let good = Ask::default().with_nonce(&scene.nonce());
    let expired = ephemeral_username(1_800_000_000, "cam");
    let password = ephemeral_password(SECRET, &expired);
    let other = ephemeral_username(1_800_000_100, "cam");
    let asks = [
        Ask { password: "wrong".to_owned(), ..good.clone() },
        Ask { user: Some("eve".to_owned()), ..good.clone() },
        Ask { realm: Some("elsewhere".to_owned()), ..good.clone() },
        Ask { attribute: IntegrityAttribute::Sha256, password: "wrong".to_owned(), ..good.clone() },
        Ask { algorithm: PasswordAlgorithm::Sha256, ..good.clone() },
        Ask { user: Some(expired), password: password.clone(), ..good.clone() },
        Ask { user: Some(other), password, ..good.clone() },
    ];
    let answers: Vec<Vec<u8>> =
        asks.iter().map(|ask| scene.tell(&ask.bytes()).unwrap_err()[20..].to_vec()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "but for the transaction");
    assert_eq!(answers[0][..8], [0, 9, 0, 4, 0, 0, 4, 1]);
    assert_eq!(scene.server.counters().get(Count::WrongIntegrity), 7);
}

#[test]
fn bid_down_is_noticed() {
    let mut scene = Scene::new(with_user());
    let nonce = scene.nonce();
    let good = Ask::modern(&nonce);
    assert!(scene.tell(&good.bytes()).is_ok());
    for ask in [
        Ask { offered: None, ..good.clone() },
        Ask { chosen: None, ..good.clone() },
        Ask { offered: Some(vec![0, 1, 0, 0]), ..good.clone() },
        Ask { offered: Some(vec![0, 1, 0, 0, 0, 2, 0, 0]), ..good.clone() },
        Ask { chosen: Some(vec![0, 3, 0, 0]), ..good.clone() },
        Ask { chosen: Some(vec![0, 2, 0, 4, 1, 2, 3, 4]), ..good.clone() },
    ] {
        assert_eq!(scene.error(&ask.bytes()), 400);
    }
    // Somebody on the way takes the feature out of the nonce that the client sees.
    let stripped =
        Ask::default().with_nonce(&nonce.replacen("gAAB", "AAAA", 1).replacen("wAAD", "AAAA", 1));
    assert_ne!(stripped.nonce, Some(nonce));
    assert_eq!(scene.error(&stripped.bytes()), 438);
}

#[test]
fn hashed_names_are_found_unless_names_are_ephemeral() {
    let mut scene = Scene::new(with_user());
    let hash = Some(userhash(USER, REALM));
    let nonce = scene.nonce();
    assert!(nonce.starts_with("obMatJos2wAAD"), "{nonce}");
    let ask = Ask { user: None, hash, ..Ask::modern(&nonce) };
    assert_eq!(&*scene.tell(&ask.bytes()).unwrap().user, USER);
    let ask = Ask { hash: Some([7; 32]), ..ask };
    assert_eq!(scene.error(&ask.bytes()), 401);
    let nonce = Scene::new(with_secrets()).nonce();
    assert!(nonce.starts_with("obMatJos2gAAB"), "no promise that cannot be kept: {nonce}");
}

#[test]
fn ephemeral_users_of_every_secret_get_in_until_their_time_is_over() {
    let mut scene = Scene::new(with_secrets());
    let user = ephemeral_username(1_800_000_100, "cam");
    let nonce = scene.nonce();
    let ask = |secret: &str, method| {
        let password = ephemeral_password(secret, &user);
        Ask { method, user: Some(user.clone()), password, ..Ask::modern(&nonce) }.bytes()
    };
    for secret in ["south", SECRET] {
        let allowed = scene.tell(&ask(secret, ALLOCATE)).unwrap();
        assert_eq!(allowed.expires, Some(Duration::from_secs(1_800_000_100)));
    }
    assert_eq!(scene.error(&ask("west", ALLOCATE)), 401);
    let password = ephemeral_password_sha256(SECRET, &user);
    let sha256 = Ask { user: Some(user.clone()), password, ..Ask::modern(&nonce) };
    assert!(scene.tell(&sha256.bytes()).is_ok());
    scene.pass(100);
    assert_eq!(scene.error(&ask(SECRET, ALLOCATE)), 401);
    assert!(scene.tell(&ask(SECRET, REFRESH)).is_ok(), "what it has it may keep");
    scene.server.config.strict_expiry = true;
    assert_eq!(scene.error(&ask(SECRET, REFRESH)), 401);
}

#[test]
fn what_stands_behind_integrity_does_not_count() {
    let mut scene = Scene::new(with_user());
    let good = Ask::default().with_nonce(&scene.nonce());
    // Integrity of another's name does not become this user's by a second USERNAME behind it.
    let wrong = Ask { user: Some("eve".to_owned()), password: "eve's".to_owned(), ..good.clone() };
    let mut out = wrong.build();
    wrong.key().sign(&mut out);
    out.push_attribute_unchecked(&RawAttribute::new(Username::TYPE, USER.as_bytes()));
    good.key().sign(&mut out);
    assert_eq!(scene.error(&out.finish()), 401);
    // Nor does what is missing before it count when it comes behind.
    let mut out = Ask { nonce: None, ..good.clone() }.build();
    good.key().sign(&mut out);
    let nonce = good.nonce.clone().unwrap();
    out.push_attribute_unchecked(&RawAttribute::new(Nonce::TYPE, nonce.as_bytes()));
    assert_eq!(scene.error(&out.finish()), 400);
}

#[test]
fn of_duplicates_the_first_counts() {
    let mut scene = Scene::new(with_user());
    let good = Ask::default().with_nonce(&scene.nonce());
    let mut out = good.build();
    out.push_attribute_unchecked(&RawAttribute::new(Username::TYPE, b"eve"));
    out.push_attribute_unchecked(&RawAttribute::new(Realm::TYPE, b"elsewhere"));
    out.push_attribute_unchecked(&RawAttribute::new(Nonce::TYPE, b"none"));
    good.key().sign(&mut out);
    assert_eq!(&*scene.tell(&out.finish()).unwrap().user, USER);
}

#[test]
fn a_name_and_a_password_have_one_form() {
    let (decomposed, composed) = ("zoe\u{308}", "zo\u{eb}");
    let mut config = with_user();
    config.users[0] =
        Credentials { username: decomposed.to_owned(), password: format!("{decomposed}\u{3000}x") };
    let mut scene = Scene::new(config);
    let nonce = scene.nonce();
    let password = format!("{composed} x");
    let old =
        Ask { user: Some(composed.to_owned()), password, ..Ask::default().with_nonce(&nonce) };
    assert_eq!(&*scene.tell(&old.bytes()).unwrap().user, composed);
    let hash = Some(userhash(decomposed, REALM));
    assert_eq!(hash, Some(userhash(composed, REALM)));
    let other = Ask { user: Some("ZOE\u{308}".to_owned()), ..old };
    assert_eq!(scene.error(&other.bytes()), 401, "upper case is another name");
}

#[test]
fn both_integrities_count_as_the_better() {
    let mut scene = Scene::new(with_user());
    let old = Ask::default().with_nonce(&scene.nonce());
    let new = Ask { attribute: IntegrityAttribute::Sha256, ..old.clone() };
    let mut both = old.build();
    old.key().sign(&mut both);
    new.key().sign(&mut both);
    let user = scene.tell(&both.finish()).unwrap();
    assert_eq!(user.key.attribute(), IntegrityAttribute::Sha256);
    let mut wrong = old.build();
    old.key().sign(&mut wrong);
    Ask { password: "wrong".to_owned(), ..new }.key().sign(&mut wrong);
    assert_eq!(scene.error(&wrong.finish()), 401, "though the other fits");
}

#[test]
fn requests_over_the_rate_are_dropped() {
    let mut config = with_user();
    config.limits.requests_per_second = 50;
    let mut scene = Scene::new(config);
    let ask = Ask::default().with_nonce(&scene.nonce()).bytes();
    let allowed = (0..500).filter(|_| scene.tell(&ask).is_ok()).count();
    assert!((49..=51).contains(&allowed), "{allowed}");
    assert_eq!(scene.tell(&ask).unwrap_err(), b"", "and not answered");
}

#[test]
fn clients_are_sent_elsewhere_once_they_are_known() {
    let mut scene = Scene::new(with_user());
    let nonce = scene.nonce();
    scene.server.send_elsewhere(vec![at("[2001:db8::1]:3478"), at("203.0.113.1:3478")]);
    assert_eq!(scene.error(&Ask::default().unsigned()), 401);
    let ask = Ask::default().with_nonce(&nonce);
    let answer = scene.tell(&ask.bytes()).unwrap_err();
    let message = Message::from_bytes(&answer).unwrap();
    assert_eq!(message.attribute::<ErrorCode>().unwrap().code(), 300);
    let server = message.attribute::<stun_types::attribute::AlternateServer>().unwrap().server();
    assert_eq!(server, at("203.0.113.1:3478"), "of the client's family");
    assert!(ask.key().verify(&message), "or anybody could send clients away");
    let refresh = Ask { method: REFRESH, ..ask.clone() };
    assert!(scene.tell(&refresh.bytes()).is_ok(), "what is here stays");
    scene.server.send_elsewhere(Vec::new());
    assert!(scene.tell(&ask.bytes()).is_ok());
}

/// Another implementation's client, in each of its ways.
#[test]
fn an_independent_client_gets_in() {
    for (algorithm, anonymous) in [
        (IntegrityAlgorithm::Sha1, Feature::Disabled),
        (IntegrityAlgorithm::Sha256, Feature::Disabled),
        (IntegrityAlgorithm::Sha256, Feature::Required),
    ] {
        let mut scene = Scene::new(with_user());
        let mut auth = LongTermClientAuth::new();
        auth.set_credentials(LongTermCredentials::new(USER.to_owned(), PASSWORD.to_owned()));
        auth.set_supported_integrity(algorithm);
        auth.set_anonymous_username(anonymous);
        let challenge = scene.tell(&Ask::default().unsigned()).unwrap_err();
        let challenge = Message::from_bytes(&challenge).unwrap();
        let next = auth.validate_incoming_message(&challenge).unwrap();
        assert!(matches!(next, LongTermClientValidation::ResendRequest(_)));
        let sign = |auth: &mut LongTermClientAuth| {
            let out = Message::builder_request(ALLOCATE, MessageWriteVec::new());
            auth.sign_outgoing_message(out).unwrap().finish()
        };
        let request = sign(&mut auth);
        let hashed = Message::from_bytes(&request).unwrap().has_attribute(Userhash::TYPE);
        assert_eq!(hashed, anonymous == Feature::Required);
        assert_eq!(&*scene.tell(&request).unwrap().user, USER);
        // After a stale nonce, too.
        scene.pass(NONCE_LIFETIME + 1);
        let stale = scene.tell(&sign(&mut auth)).unwrap_err();
        auth.validate_incoming_message(&Message::from_bytes(&stale).unwrap()).unwrap();
        assert_eq!(&*scene.tell(&sign(&mut auth)).unwrap().user, USER);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// No byte of a request can be changed by somebody who does not know the password.
    #[test]
    fn a_changed_request_is_refused(at: prop::sample::Index, bit in 0..8_u8, modern: bool) {
        let mut scene = Scene::new(with_user());
        let nonce = scene.nonce();
        let ask = if modern { Ask::modern(&nonce) } else { Ask::default().with_nonce(&nonce) };
        let mut bytes = ask.bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // What does not even parse is dropped before.
        if rawr_proto::parse_stun(&bytes).is_some() {
            prop_assert!(scene.tell(&bytes).is_err(), "byte {at}");
        }
    }
}
