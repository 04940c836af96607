//! Callers that have to be users, and names that belong to users.

use rawr_proto::{Attributes, Credentials, ErrorCode, Method, ephemeral_password};
use rawr_userspace::control::{Client, Owner, ServerConfig};

use super::direct::{Direct, at, local, named, registration, result};
use super::{identity, root};

const HERE: &str = "192.0.2.10:5000";

fn user(name: &str) -> Credentials {
    Credentials { username: name.to_owned(), password: format!("{name}'s secret") }
}

fn ephemeral(name: &str) -> Credentials {
    let password = ephemeral_password("shared", name);
    Credentials { username: name.to_owned(), password }
}

/// A root as on the Internet: it trusts nobody.
fn closed() -> ServerConfig {
    let mut config = root();
    config.trusted.clear();
    config.users = vec![user("anna"), user("bert")];
    config.secrets = vec!["rotated".to_owned(), "shared".to_owned()];
    config
}

fn ask(
    direct: &mut Direct,
    who: u8,
    credentials: Option<&Credentials>,
    method: Method,
    attributes: Attributes,
) -> Result<Attributes, ErrorCode> {
    let client = Client::udp(local(), at(HERE));
    result(direct.ask_as(&client, &identity(who), credentials, method, attributes).unwrap())
}

fn register(
    direct: &mut Direct,
    who: u8,
    credentials: Option<&Credentials>,
    text: &str,
) -> Result<(), ErrorCode> {
    ask(direct, who, credentials, Method::Register, registration(text, 1, None)).map(drop)
}

#[test]
fn without_trust_every_request_needs_a_user() {
    let mut direct = Direct::new(closed());
    let wrong = Credentials { password: "guess".to_owned(), ..user("anna") };
    for credentials in [None, Some(&wrong), Some(&user("carl")), Some(&ephemeral("1000:carl"))] {
        for method in [Method::Register, Method::Lookup, Method::Introduce] {
            let refused = ask(&mut direct, 1, credentials, method, registration("a", 1, None));
            assert_eq!(refused, Err(ErrorCode::Unauthenticated), "{method:?} {credentials:?}");
        }
    }
    assert_eq!(direct.server.name_count(), 0);
    register(&mut direct, 1, Some(&user("anna")), "a").unwrap();
    let later = ephemeral("2000000000:carl");
    register(&mut direct, 2, Some(&later), "b").unwrap();
    for credentials in [user("bert"), later] {
        let found = ask(&mut direct, 3, Some(&credentials), Method::Lookup, named("a")).unwrap();
        assert_eq!(found.bridge.public_key, Some(*identity(1).public().as_bytes()));
    }
}

#[test]
fn a_name_of_a_key_is_not_the_users() {
    let mut direct = Direct::new(closed());
    register(&mut direct, 1, Some(&user("anna")), "a").unwrap();
    let taken = register(&mut direct, 2, Some(&user("anna")), "a");
    assert_eq!(taken, Err(ErrorCode::NameTaken));
    register(&mut direct, 1, Some(&user("bert")), "a").unwrap();
}

#[test]
fn a_name_of_a_user_outlives_the_key() {
    let mut config = closed();
    config.bridge.owner = Owner::User;
    config.bridge.limits.names_per_holder = 2;
    let mut direct = Direct::new(config);
    register(&mut direct, 1, Some(&user("anna")), "a").unwrap();
    let taken = register(&mut direct, 1, Some(&user("bert")), "a");
    assert_eq!(taken, Err(ErrorCode::NameTaken), "the same key, another user");
    register(&mut direct, 2, Some(&user("anna")), "a").unwrap();
    let found = ask(&mut direct, 3, Some(&user("bert")), Method::Lookup, named("a")).unwrap();
    assert_eq!(found.bridge.public_key, Some(*identity(2).public().as_bytes()));

    register(&mut direct, 3, Some(&user("anna")), "b").unwrap();
    let quota = register(&mut direct, 4, Some(&user("anna")), "c");
    assert_eq!(quota, Err(ErrorCode::QuotaReached), "two names, whichever the keys");

    // An ephemeral user is the same with another expiry, and is no static user of the same name.
    register(&mut direct, 5, Some(&ephemeral("2000000000:anna")), "d").unwrap();
    register(&mut direct, 6, Some(&ephemeral("2000000001:anna")), "d").unwrap();
    let taken = register(&mut direct, 6, Some(&user("bert")), "d");
    assert_eq!(taken, Err(ErrorCode::NameTaken));
    let nameless = register(&mut direct, 7, Some(&ephemeral("2000000000")), "e");
    assert_eq!(nameless, Err(ErrorCode::Unauthenticated));
}

#[test]
fn where_names_are_users_trust_is_not_enough_to_hold_one() {
    let mut config = closed();
    config.trusted = root().trusted;
    config.bridge.owner = Owner::User;
    let mut direct = Direct::new(config);
    let client = Client::udp(local(), at(HERE));
    let attributes = registration("a", 1, None);
    let answer = direct.ask_as(&client, &identity(1), None, Method::Register, attributes).unwrap();
    assert_eq!(answer.attributes.error, Some(ErrorCode::Unauthenticated));
    assert_eq!(answer.attributes.realm.as_deref(), Some("rawr"), "says where to be a user");
    assert!(answer.attributes.nonce.is_some() && answer.attributes.bridge.server_key.is_some());
    register(&mut direct, 1, Some(&user("anna")), "a").unwrap();
    assert!(ask(&mut direct, 2, None, Method::Lookup, named("a")).is_ok());
}

#[test]
fn the_longest_realm_fits_into_a_challenge() {
    let mut config = closed();
    config.realm = "r".repeat(127);
    let mut direct = Direct::new(config);
    let client = Client::udp(local(), at(HERE));
    let challenge = direct.challenge(&client, Method::Register);
    assert_eq!(challenge.realm.map(|realm| realm.len()), Some(127));
    register(&mut direct, 1, Some(&user("anna")), "a").unwrap();
}
