//! The table `bridge` of the configuration, and the flags beside it.

use std::path::PathBuf;

use rawr_proto::ServerId;
use rawr_userspace::config::{Config, Draft, DraftBridge};
use rawr_userspace::control::Owner;

use super::secs;

const FULL: &str = r#"
kind = "root"
secrets = ["shared"]

[bridge]
registry = "/var/lib/rawr/names.redb"
owner = "user"
default_lifetime = 60
max_lifetime = 120

[bridge.limits]
names = 5
lookups_per_second = 7
"#;

#[test]
fn the_table_says_what_is_offered() {
    let config = Config::from_toml(FULL).unwrap();
    assert_eq!(config.bridge.registry, Some(PathBuf::from("/var/lib/rawr/names.redb")));
    let server = config.server(ServerId([1; 8]), Vec::new()).bridge;
    assert_eq!((server.enabled, server.owner), (true, Owner::User));
    assert_eq!((server.default_lifetime, server.max_lifetime), (secs(60), secs(120)));
    assert_eq!((server.limits.names, server.limits.lookups_per_second), (5, 7));
    assert_eq!(server.limits.names_per_holder, 16, "the default");
}

#[test]
fn a_root_offers_it_and_a_gateway_does_where_it_is_told() {
    let enabled = |text: &str| Config::from_toml(text).unwrap().bridge.enabled;
    assert!(enabled("kind = \"root\"") && !enabled(""));
    assert!(enabled("[bridge]\nenabled = true\n"));
    assert!(!enabled("kind = \"root\"\n[bridge]\nenabled = false\n"));
}

#[test]
fn flags_win_over_the_file() {
    let bridge = DraftBridge {
        enabled: Some(false),
        registry: Some("/elsewhere".into()),
        ..DraftBridge::default()
    };
    let flags = Draft { bridge, ..Draft::default() };
    let bridge = Draft::from_toml(FULL).unwrap().overridden_by(flags).finish().unwrap().bridge;
    assert_eq!((bridge.enabled, bridge.registry), (false, Some(PathBuf::from("/elsewhere"))));
    assert_eq!(bridge.owner, Owner::User);
}

#[test]
fn mistakes_are_told_with_their_places() {
    let text = "\
[bridge]
enabled = \"yes\"
registry = \"names\"
owner = \"nobody\"
registri = \"/x\"

[bridge.limits]
names = 0
";
    let told: Vec<_> =
        Config::from_toml(text).unwrap_err().0.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "2:11: bridge.enabled: expected true or false",
            "3:12: bridge.registry: expected a path that begins with /",
            "4:9: bridge.owner: expected one of key, user",
            "5:1: bridge.registri: unknown key; did you mean registry?",
            "8:9: bridge.limits.names: expected a number from 1 to 4294967295",
        ]
    );
    for (text, key) in [
        ("[bridge]\nowner = \"user\"\n", "bridge.owner"),
        ("[bridge]\ndefault_lifetime = 600\nmax_lifetime = 60\n", "bridge.default_lifetime"),
    ] {
        let mistakes = Config::from_toml(text).unwrap_err();
        assert_eq!((mistakes.0.len(), mistakes.0[0].key.as_str()), (1, key));
        assert_eq!(mistakes.0[0].place.unwrap().line, 2);
    }
}
