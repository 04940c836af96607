//! Clients that bring an access token.

use rawr_proto::{AccessToken, ThirdPartyAuthorization, Token, TokenKey};

use super::*;

const NAME: &str = "turn.example.org";

fn key(id: &str) -> TokenKey {
    TokenKey::new(id, &[id.len() as u8; 32]).unwrap()
}

/// A token server that knows two keys, and a user with a password.
fn config() -> ServerConfig {
    let keys = vec![key("new"), key("older")];
    let tokens = Some(TokenServer { name: NAME.to_owned(), keys });
    ServerConfig { tokens, ..with_user() }
}

fn token() -> Token {
    let issued = Duration::from_secs(1_800_000_000);
    Token { key: vec![9; 32], issued, lifetime: Duration::from_secs(300) }
}

/// A request keyed by the token, which is sent along or not.
fn request(method: Method, nonce: &str, id: &str, shown: Option<Vec<u8>>) -> Vec<u8> {
    let user = Some(id.to_owned());
    let mut out = Ask { method, user, ..Ask::default().with_nonce(nonce) }.build();
    if let Some(shown) = shown {
        out.push_attribute_unchecked(&AccessToken(shown));
    }
    LongTermIntegrity::from_key(IntegrityAttribute::Sha1, &token().key).sign(&mut out);
    out.finish()
}

#[test]
fn a_token_opens_the_door_and_is_remembered_for_its_client() {
    let mut scene = Scene::new(config());
    let challenge = scene.tell(&Ask::default().unsigned()).unwrap_err();
    let challenge = Message::from_bytes(&challenge).unwrap();
    assert_eq!(challenge.attribute::<ThirdPartyAuthorization>().unwrap().0, NAME);
    let nonce = scene.nonce();
    let sealed = key("older").seal(NAME, &token(), [1; 12]);
    let bare = request(REFRESH, &nonce, "older", None);
    assert_eq!(scene.error(&bare), 401, "nothing is known of it yet");
    let user = scene.tell(&request(ALLOCATE, &nonce, "older", Some(sealed))).unwrap();
    assert_eq!(&*user.user, "older");
    assert_eq!(user.expires, Some(Duration::from_secs(1_800_000_300)));
    assert!(scene.tell(&bare).is_ok());
    assert_eq!(scene.error(&request(REFRESH, &nonce, "new", None)), 401);
    // Another client does not profit.
    scene.client.remote = at("192.0.2.9:4001");
    let nonce = scene.nonce();
    assert_eq!(scene.error(&request(REFRESH, &nonce, "older", None)), 401);
    // Who has a password still gets in.
    assert!(scene.tell(&Ask::default().with_nonce(&nonce).bytes()).is_ok());
}

#[test]
fn a_token_ends() {
    let mut scene = Scene::new(config());
    let nonce = scene.nonce();
    let sealed = key("new").seal(NAME, &token(), [1; 12]);
    let allocate = request(ALLOCATE, &nonce, "new", Some(sealed));
    assert!(scene.tell(&allocate).is_ok());
    scene.pass(306);
    assert_eq!(scene.error(&allocate), 401);
    assert_eq!(scene.error(&request(REFRESH, &nonce, "new", None)), 401);
}

#[test]
fn a_key_ends() {
    let expires = Some(Duration::from_secs(1_800_000_060));
    let keys = vec![key("new").expiring(expires)];
    let tokens = Some(TokenServer { name: NAME.to_owned(), keys });
    let mut scene = Scene::new(ServerConfig { tokens, ..with_user() });
    let nonce = scene.nonce();
    let sealed = key("new").seal(NAME, &token(), [1; 12]);
    let allocate = request(ALLOCATE, &nonce, "new", Some(sealed));
    assert!(scene.tell(&allocate).is_ok());
    scene.pass(59);
    assert!(scene.tell(&request(REFRESH, &nonce, "new", None)).is_ok());
    scene.pass(1);
    assert_eq!(scene.error(&allocate), 401);
    assert_eq!(scene.error(&request(REFRESH, &nonce, "new", None)), 401);
}

#[test]
fn forged_tokens_are_refused() {
    let mut scene = Scene::new(config());
    let nonce = scene.nonce();
    let elsewhere = key("new").seal("other.example.org", &token(), [1; 12]);
    let other_key = key("older").seal(NAME, &token(), [1; 12]);
    for shown in [elsewhere, other_key, vec![], vec![0xff; 600]] {
        assert_eq!(scene.error(&request(ALLOCATE, &nonce, "new", Some(shown))), 401);
    }
    // A token that somebody else has seen, without the key in it.
    let sealed = key("new").seal(NAME, &token(), [1; 12]);
    let mut out = Ask { user: Some("new".to_owned()), ..Ask::default().with_nonce(&nonce) }.build();
    out.push_attribute_unchecked(&AccessToken(sealed));
    LongTermIntegrity::from_key(IntegrityAttribute::Sha1, b"guess").sign(&mut out);
    assert_eq!(scene.error(&out.finish()), 401);
}

#[test]
fn held_tokens_are_bounded() {
    let mut config = config();
    config.limits.sessions = 2000;
    config.limits.unverified_per_second = 10_000;
    let mut scene = Scene::new(config);
    let sealed = key("new").seal(NAME, &token(), [1; 12]);
    for port in 1000..4000 {
        scene.client.remote.set_port(port);
        let nonce = scene.nonce();
        let allocate = request(ALLOCATE, &nonce, "new", Some(sealed.clone()));
        assert!(scene.tell(&allocate).is_ok());
        assert!(scene.server.tokens.len() <= 2000);
    }
    scene.pass(400);
    scene.client.remote.set_port(5000);
    let late = Token { issued: Duration::from_secs(1_800_000_400), ..token() };
    let sealed = key("new").seal(NAME, &late, [2; 12]);
    let nonce = scene.nonce();
    assert!(scene.tell(&request(ALLOCATE, &nonce, "new", Some(sealed))).is_ok());
    assert_eq!(scene.server.tokens.len(), 1, "the others' time is over");
}
