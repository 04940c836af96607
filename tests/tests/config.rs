//! What the configuration file's reader says to mistakes, and what follows from what is right.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};
use std::time::Duration;

use rawr_proto::ServerId;
use rawr_userspace::config::{Config, ConfigError, Datapath, Draft, Mistakes, Place, Problem};
use rawr_userspace::control::Kind;

const FULL: &str = r#"
instance = "edge"
kind = "gateway"
listen = ["192.0.2.1", "[2001:db8::1]:4000"]
interfaces = ["eth0", "eth1"]
datapath = "generic"
table_length = 65536
channel_table_length = 131072
data_ports = "50000-59999"
userspace_threads = 2
session_rate = "8Mbit/s"
trusted = ["192.0.2.77/24"]
secrets = ["old", "new"]
max_lifetime = 300

[limits]
sessions = 10

[[gateways]]
address = "rawr:gw1.example.net"
username = "edge-17"
password = "hunter2"

[[gateways]]
address = "192.0.2.9:5000"

[[users]]
name = "alice"
password = "hunter2"
"#;

#[test]
fn a_file_becomes_a_configuration() {
    let config = Config::from_toml(FULL).unwrap();
    assert_eq!(config.instance.as_str(), "edge");
    assert_eq!((config.kind, config.datapath), (Kind::Gateway, Datapath::Generic));
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["192.0.2.1:3478", "[2001:db8::1]:4000"]);
    let lengths = [config.table_length, config.channel_table_length].map(|length| length.get());
    assert_eq!(lengths, [65_536, 131_072]);
    assert_eq!(config.session_rate.unwrap().bytes_per_second(), 1_000_000);
    assert_eq!(config.trusted, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(config.max_lifetime, Duration::from_secs(300));
    assert_eq!((config.limits.sessions, config.limits.half_open), (10, 20_000));
    let parents: Vec<_> =
        config.gateways.iter().map(|gateway| gateway.address.to_string()).collect();
    assert_eq!(parents, ["rawr:gw1.example.net:3478", "rawr:192.0.2.9:5000"]);
    assert!(config.gateways[0].credentials.is_some() && config.gateways[1].credentials.is_none());
    assert_eq!(config.state_dir.to_str(), Some("/run/rawr/edge"));
    assert_eq!(config.admin_socket.to_str(), Some("/run/rawr/edge/admin.sock"));
}

#[test]
fn channel_tables_are_as_long_as_the_others_unless_told() {
    let config = Config::from_toml("table_length = 65536\n").unwrap();
    assert_eq!(config.channel_table_length.get(), 65_536);
}

#[test]
fn no_secret_shows_in_debug_output() {
    let shown = format!("{:?}", Config::from_toml(FULL).unwrap());
    assert!(shown.contains("edge-17"));
    for secret in ["hunter2", "\"old\"", "\"new\""] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_root_trusts_nobody_and_looks_up_nothing_by_default() {
    let config = Config::from_toml("kind = \"root\"").unwrap();
    assert!(config.trusted.is_empty() && !config.mac_lookup);
    let config = Config::from_toml("").unwrap();
    assert!(config.trusted.contains(&"192.168.0.0/16".parse().unwrap()) && config.mac_lookup);
}

#[test]
fn flags_win_over_the_file() {
    let flags = Draft {
        datapath: Some(Datapath::Userspace),
        trusted: Some(Vec::new()),
        ..Draft::default()
    };
    let config = Draft::from_toml(FULL).unwrap().overridden_by(flags).finish().unwrap();
    assert_eq!(config.datapath, Datapath::Userspace);
    assert!(config.trusted.is_empty());
    assert_eq!(config.instance.as_str(), "edge");
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let text = "\
kinds = \"root\"
listen = [\"0.0.0.0:3478\", \"nowhere\"]
table_length = 1000
  userspace_threads = \"two\"
interfaces = [\"lo\"]
colour = 1

[limits]
sesions = 3

[[users]]
name = \"alice\"

[[gateways]]
address = \"rawrs:gw.example.net\"
";
    let told: Vec<String> = mistakes(text).0.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "1:1: kinds: unknown key; did you mean kind?",
            "2:27: listen[1]: expected an address with or without port, as \"0.0.0.0:3478\" or \
             \"[::]:3478\"",
            "3:16: table_length: expected a power of two from 1024 to 16777216",
            "4:23: userspace_threads: expected a whole number, without quotes",
            "5:15: interfaces[0]: the loopback interface cannot be forwarded on",
            "6:1: colour: unknown key",
            "9:1: limits.sesions: unknown key; did you mean sessions?",
            "11:1: users[0].password: missing",
            "15:11: gateways[0].address: gateways speak UDP: use rawr: without transport=tcp",
        ]
    );
}

#[test]
fn mistakes_in_the_table_turn_are_told_with_their_places() {
    let text = "\
[turn]
listen_tcp = [\"192.0.2.1:0\"]
certificate = \"chain.pem\"
alternate_servers = [\"0.0.0.0:3478\"]
allocation_rate = \"10 MB\"
nat64_prefixes = [\"2001:db8::/95\"]
limits.channels = 5000
streams.sendqueue = 1

[[turn.relays]]
address = \"10.0.0.5\"
advertised = \"2001:db8::5\"

[[turn.discovery]]
primary = \"192.0.2.1:3478\"
alternate = \"192.0.2.2:3478\"

[[turn.discovery]]
primary = \"192.0.2.1:3478\"
";
    let told: Vec<String> = mistakes(text).0.iter().map(ToString::to_string).collect();
    let expected = [
        "2:15: turn.listen_tcp[0]: expected an address with or without port",
        "3:15: turn.certificate: expected a path that begins with /",
        "4:22: turn.alternate_servers[0]: expected an address of one host with port",
        "5:19: turn.allocation_rate: expected a rate such as",
        "6:19: turn.nat64_prefixes[0]: expected an IPv6 prefix of length 32",
        "7:19: turn.limits.channels: expected a number from 1 to 4096",
        "8:9: turn.streams.sendqueue: unknown key; did you mean send_queue?",
        "12:14: turn.relays[0].advertised: is of the other family than address",
        "16:13: turn.discovery[0].alternate: must differ from primary in address and port",
        "18:1: turn.discovery[1].alternate: missing",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told} instead of {expected}");
    }
}

#[test]
fn access_tokens_have_keys() {
    let text = "\
realm = \"example.net\"
[[turn.oauth_keys]]
kid = \"old\"
key = \"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\"
expires = 1800000000
[[turn.oauth_keys]]
kid = \"new\"
key = \"MDEyMzQ1Njc4OWFiY2RlZg\"
algorithm = \"A128GCM\"
";
    let config = Config::from_toml(text).unwrap();
    let server = config.server(ServerId([1; 8]), Vec::new());
    let tokens = server.tokens.unwrap();
    assert_eq!(tokens.name, "example.net");
    let ids: Vec<_> = tokens.keys.iter().map(|key| key.id()).collect();
    assert_eq!(ids, ["old", "new"]);
    let good =
        |seconds| tokens.keys.iter().map(move |key| key.is_good(Duration::from_secs(seconds)));
    assert_eq!(good(1_799_999_999).collect::<Vec<_>>(), [true, true]);
    assert_eq!(good(1_800_000_000).collect::<Vec<_>>(), [false, true]);
    assert!(!format!("{config:?}").contains("MDEy"), "keys do not show");

    let wrong = "[[turn.oauth_keys]]\nkid = \"\"\nkey = \"AAAA\"\nalgorithm = \"A64\"\n";
    let told: Vec<String> = mistakes(wrong).0.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(told[0].starts_with("2:7: turn.oauth_keys[0].kid: must not be empty"), "{told:#?}");
    assert!(told[1].starts_with("3:7: turn.oauth_keys[0].key: has the wrong length"), "{told:#?}");
    assert!(told[2].starts_with("4:13: turn.oauth_keys[0].algorithm: "), "{told:#?}");
}

#[test]
fn names_and_passwords_have_one_form() {
    let user = |name: &str| {
        let text = format!("[[users]]\nname = \"{name}\"\npassword = \"{name}\u{a0}1\"\n");
        Config::from_toml(&text).map(|config| config.users)
    };
    assert_eq!(user("zoe\u{308}").unwrap(), user("zo\u{eb}").unwrap());
    assert_eq!(user("zo\u{eb}").unwrap()[0].password.expose(), "zo\u{eb} 1");
    let told = user("zo\\u0007").unwrap_err().0[0].to_string();
    assert!(told.starts_with("2:8: users[0].name: holds control characters"), "{told}");
}

#[test]
fn the_command_translates_a_turnserver_conf() {
    let file = std::env::temp_dir().join(format!("rawr-turnserver-{}.conf", std::process::id()));
    let translate = |text: &str| {
        std::fs::write(&file, text).unwrap();
        rawr(&["config", "import-coturn", file.to_str().unwrap()])
    };
    let harmless = translate("user=alice:hunter2\nsyslog\n");
    let grave = translate("user=alice:hunter2\nsecure-stun\n");
    std::fs::remove_file(&file).unwrap();

    assert_eq!(harmless.status.code(), Some(0), "{harmless:?}");
    let config = Config::from_toml(std::str::from_utf8(&harmless.stdout).unwrap()).unwrap();
    assert_eq!(config.users[0].password.expose(), "hunter2");
    let told = String::from_utf8(harmless.stderr).unwrap();
    assert!(told.contains(".conf:2: syslog: not needed: "), "{told}");
    assert!(!told.contains("hunter2"), "{told}");

    assert_eq!(grave.status.code(), Some(3), "{grave:?}");
    let told = String::from_utf8(grave.stderr).unwrap();
    assert!(told.contains(".conf:2: secure-stun: left out, with effect on security: "), "{told}");
}

#[test]
fn what_is_no_toml_is_told_with_its_place() {
    let found = mistakes("kind = \"root\"\nlisten = [\"0.0.0.0\"\nlog = \"info\"\n");
    let first = &found.0[0];
    assert!(matches!(&first.problem, Problem::Syntax(_)), "{first:?}");
    assert!(first.place.is_some_and(|place| (2..=3).contains(&place.line)), "{first:?}");
    let twice = mistakes("log = \"info\"\nlog = \"warn\"\n");
    assert_eq!(twice.0[0].place, Some(Place { line: 2, column: 1 }), "{twice:?}");
}

#[test]
fn contradictions_are_told_with_the_place_of_one_side() {
    for (text, expected) in [
        (
            "kind = \"root\"\nmac_lookup = true\n[[gateways]]\naddress = \"a\"\n",
            &["3:3: gateways: a root", "2:1: mac_lookup: a root"][..],
        ),
        ("max_lifetime = 60\n", &[" default_lifetime: is longer"][..]),
        ("data_ports = \"3000-4000\"\n", &["1:1: data_ports: contain a port of listen"][..]),
        (
            "[turn]\nlisten_tcp = [\"0.0.0.0:50000\"]\nlisten_tls = [\"::\"]\n",
            &[
                " data_ports: contain a port of the table turn",
                "3:1: turn.listen_tls: needs a cert",
            ],
        ),
        (
            concat!(
                "[[turn.oauth_keys]]\nkid = \"a\"\nkey = \"AAAAAAAAAAAAAAAAAAAAAA==\"\n",
                "algorithm = \"A128GCM\"\n[[turn.oauth_keys]]\nkid = \"a\"\nalgorithm = \"A128GCM\"\n",
                "key = \"BBBBBBBBBBBBBBBBBBBBBB\"\n",
            ),
            &["1:8: turn.oauth_keys: hold one kid twice"],
        ),
        (
            "[turn]\nanswer_binding = true\n",
            &["2:1: turn.answer_binding: has no effect while answer_short_binding is false"],
        ),
        (
            concat!(
                "kind = \"root\"\n[turn]\nanswer_binding = true\n[[turn.discovery]]\n",
                "primary = \"192.0.2.1:3478\"\nalternate = \"192.0.2.2:3479\"\n",
            ),
            &["3:1: turn.answer_binding: has no effect with turn.discovery"],
        ),
        (
            concat!(
                "[turn]\ncertificate = \"/c\"\nkey = \"/k\"\n",
                "listen_dtls = [\"0.0.0.0:3478\", \"192.0.2.1:3478\"]\n",
            ),
            &["4:1: turn.listen_dtls: has a port of listen, but not its address"],
        ),
        ("[turn]\nkey = \"/k\"\n", &["2:1: turn.key: needs turn.certificate"]),
        ("[turn]\nmax_lifetime = 60\n", &[" turn.default_lifetime: is longer"]),
        ("[turn]\nmax_lifetime = 3900\n", &[" turn.streams: idle_timeout must be longer"]),
        (
            "[turn]\nallow_peers = [\"10.0.0.0/8\"]\ndeny_peers = [\"10.9.9.9/8\"]\n",
            &["3:1: turn.deny_peers: hold a prefix that turn.allow_peers has"],
        ),
    ] {
        let found = mistakes(text).0;
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (mistake, expected) in found.iter().zip(expected) {
            assert!(mistake.to_string().starts_with(expected), "{mistake}");
        }
    }
}

#[test]
fn wrong_types_are_mistakes_and_never_panics() {
    for key in ["listen", "kind", "limits", "gateways", "users", "hop_limit", "mac_lookup", "log"] {
        for value in ["1", "-1", "1.5", "\"\"", "[[]]", "[1]", "{}", "{a=1}", "1979-05-27", "0x10"]
        {
            let text = format!("{key} = {value}\n");
            if let Err(Mistakes(found)) = Config::from_toml(&text) {
                assert!(found.iter().all(|mistake| mistake.key.starts_with(key)), "{found:?}");
            } else {
                let right = (key, value) == ("hop_limit", "1") || (key, value) == ("limits", "{}");
                assert!(right, "{text}");
            }
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load("/nowhere/rawr.toml".as_ref()).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert!(error.to_string().contains("/nowhere/rawr.toml"), "{error}");
}

#[test]
fn the_command_checks_a_file() {
    let dir = std::env::temp_dir().join(format!("rawr-config-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("rawr.toml");
    let check = || rawr(&["config", "check", file.to_str().unwrap()]);

    std::fs::write(&file, FULL).unwrap();
    let right = check();
    std::fs::write(&file, "kinds = 1\nlog = 2\n").unwrap();
    let wrong = check();
    std::fs::remove_dir_all(&dir).unwrap();

    assert!(right.status.success(), "{right:?}");
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    let told = String::from_utf8(wrong.stderr).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(lines[0].contains("rawr.toml:1:1: kinds: unknown key; did you mean kind?"), "{told}");
    assert!(lines[1].contains("rawr.toml:2:7: log: expected text in quotes"), "{told}");
}

fn mistakes(text: &str) -> Mistakes {
    Config::from_toml(text).unwrap_err()
}

/// Runs the command, which is built beside the tests.
fn rawr(args: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let command = test.ancestors().nth(2).unwrap().join("rawr");
    assert!(command.exists(), "{} is missing: build it with `cargo build`", command.display());
    Command::new(command).args(args).output().unwrap()
}
