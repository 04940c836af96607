use super::*;
use crate::control::Kind;

const FULL: &str = r#"
# A server behind a NAT, as many are.
listening-port=3478
tls-listening-port=5349
alt-listening-port=3500
listening-ip=10.0.0.5
listening-ip=10.0.0.6
relay-ip=10.0.0.5
external-ip=198.51.100.5/10.0.0.5
external-ip=198.51.100.6/10.0.0.6
min-port=40000
max-port=49999
relay-threads=2
verbose
fingerprint
lt-cred-mech
use-auth-secret
static-auth-secret="north=pole"
static-auth-secret=second
user=alice:hunter2
user=bob:0xa1b2c3
realm=example.org
user-quota=12
total-quota=1200
max-bps=125000
max-allocate-lifetime=7200
cert=/etc/ssl/turn.pem
pkey=/etc/ssl/turn.key
no-tlsv1
rfc5780
mobility
no-tcp-relay
no-multicast-peers
allowed-peer-ip=10.1.0.0-10.1.255.255
denied-peer-ip=10.0.0.0-10.255.255.255
denied-peer-ip=10.1.2.0-10.1.2.255
stale-nonce=600
proc-user=turnserver
no-cli
"#;

fn configured(text: &str) -> (Config, Import) {
    let import = import(text);
    let config = import.check().unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{}", import.toml));
    (config, import)
}

fn note<'i>(import: &'i Import, key: &str) -> Option<&'i Note> {
    import.notes.iter().find(|note| note.key == key)
}

fn shown<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_and_ports_are_taken_over() {
    let (config, _) = configured(FULL);
    let plain = ["10.0.0.5:3478", "10.0.0.6:3478"];
    let secure = ["10.0.0.5:5349", "10.0.0.6:5349"];
    assert_eq!(config.kind, Kind::Root);
    assert!(config.trusted.is_empty());
    assert_eq!(shown(&config.listen), plain);
    assert_eq!(shown(&config.turn.listen_tcp), [plain, secure].concat());
    assert_eq!(shown(&config.turn.listen_tls), [plain, secure].concat());
    assert_eq!(config.data_ports.0, 40000..=49999);
    let relays: Vec<String> = config
        .turn
        .relays
        .iter()
        .map(|relay| format!("{} {:?}", relay.address, relay.advertised))
        .collect();
    assert_eq!(relays, ["10.0.0.5 Some(198.51.100.5)", "10.0.0.6 Some(198.51.100.6)"]);
    let [pair] = config.turn.discovery[..] else { panic!("{:?}", config.turn.discovery) };
    assert_eq!(shown(&[pair.primary, pair.alternate]), ["10.0.0.5:3478", "10.0.0.6:3500"]);
    let udp = ["10.0.0.5:3478", "10.0.0.6:3478", "10.0.0.5:3500", "10.0.0.6:3500"];
    assert_eq!(shown(&config.udp_addresses()), udp);
}

#[test]
fn users_limits_and_peers_are_taken_over() {
    let (config, _) = configured(FULL);
    assert_eq!(config.realm, "example.org");
    let secrets: Vec<&str> = config.secrets.iter().map(|secret| secret.expose()).collect();
    assert_eq!(secrets, ["north=pole", "second"]);
    let users: Vec<&str> = config.users.iter().map(|user| user.username.as_str()).collect();
    assert_eq!(users, ["alice"]);
    let turn = &config.turn;
    assert_eq!((turn.limits.allocations, turn.limits.allocations_per_user), (1200, 12));
    assert_eq!(turn.allocation_rate.unwrap().bytes_per_second(), 250_000, "both directions");
    assert_eq!(turn.max_lifetime.as_secs(), 7200);
    assert!(turn.streams.idle_timeout > turn.max_lifetime);
    assert!(turn.mobility && !turn.tcp_relay);
    assert_eq!(shown(&turn.peers.allow), ["10.1.0.0/16"]);
    assert_eq!(shown(&turn.peers.deny), ["10.0.0.0/8"], "what is allowed wins");
    let files = turn.certificate.as_ref().unwrap();
    assert_eq!(files.certificate.to_str(), Some("/etc/ssl/turn.pem"));
}

#[test]
fn what_is_left_out_is_told_with_its_line_and_its_weight() {
    let (_, import) = configured(FULL);
    assert_eq!(import.weight(), Weight::Security);
    let told = note(&import, "proc-user").unwrap();
    assert_eq!((told.line, told.weight), (Some(38), Weight::Security));
    assert!(told.to_string().starts_with("38: proc-user: left out, with effect on security: "));
    let told = note(&import, "user").unwrap();
    assert!(told.why.contains("0x"), "{told}");
    assert!(!told.why.contains("a1b2c3"), "a key is a secret, too");
    assert_eq!(note(&import, "no-cli").unwrap().weight, Weight::None);
    assert!(note(&import, "cert").is_none() && note(&import, "use-auth-secret").is_none());
}

#[test]
fn a_file_in_which_nothing_stands_serves_as_coturn_does() {
    let (config, import) = configured("# nothing\n\n");
    assert_eq!(shown(&config.listen), ["0.0.0.0:3478", "[::]:3478"]);
    assert_eq!(config.turn.listen_tcp, config.listen);
    assert!(config.turn.listen_tls.is_empty() && config.turn.discovery.is_empty());
    assert_eq!(import.weight(), Weight::Function);
    assert!(note(&import, "user").unwrap().why.contains("nobody may allocate"));
}

#[test]
fn flags_may_be_switched_off_and_written_in_several_ways() {
    let (config, import) =
        configured("no-tcp=0\nmobility = on\nsecure-stun=no\nno-tcp-relay off\n");
    assert!(!config.turn.listen_tcp.is_empty());
    assert!(config.turn.mobility && config.turn.tcp_relay);
    assert!(note(&import, "secure-stun").is_none(), "off is what it is here");
    let (config, _) = configured("no-tcp\n");
    assert!(config.turn.listen_tcp.is_empty());
}

#[test]
fn clients_of_rfc_5766_keep_their_channels() {
    let (config, import) = configured(FULL);
    assert!(config.turn.rfc5766_channels);
    assert!(import.toml.contains("# coturn takes channels up to 0x7fff"), "{}", import.toml);
}

#[test]
fn dtls_is_served_where_it_was_asked_for() {
    let files = "cert=/c\npkey=/k\n";
    for (flag, listens, is_told) in [
        ("dtls", cfg!(feature = "dtls"), !cfg!(feature = "dtls")),
        ("no-dtls", false, false),
        ("dtls=off", false, false),
        ("", false, true),
    ] {
        let (config, import) = configured(&format!("{files}{flag}\n"));
        assert_eq!(!config.turn.listen_dtls.is_empty(), listens, "{flag}");
        assert_eq!(note(&import, "dtls").is_some(), is_told, "{flag}");
    }
    let (config, import) = configured("dtls\n");
    assert!(config.turn.listen_dtls.is_empty() && note(&import, "dtls").is_none(), "nor in coturn");
}

#[test]
fn access_tokens_keep_the_server_s_name() {
    let (config, import) = configured("oauth\nserver-name=turn.example.org\n");
    assert!(note(&import, "oauth").unwrap().why.contains("turn.oauth_keys"));
    let name = config.turn.oauth_server_name.as_deref();
    assert_eq!(name, cfg!(feature = "oauth").then_some("turn.example.org"));
    assert_eq!(note(&import, "server-name").is_some(), cfg!(not(feature = "oauth")));
}

#[test]
fn what_cannot_be_judged_counts_as_security() {
    for line in ["denied-peer-ip=everybody", "brand-new-key=1", "user=alice", "max-bps=fast"] {
        let import = import(line);
        assert_eq!(import.weight(), Weight::Security, "{line}");
        assert_eq!(import.notes[0].line, Some(1));
    }
}

#[test]
fn what_lacks_something_is_told() {
    let (config, import) = configured("cert=turn.pem\npkey=/etc/turn.key\nrfc5780\n");
    assert_eq!(config.turn.certificate, None);
    assert!(note(&import, "cert").unwrap().why.contains("turn.pem is no absolute path"));
    assert!(note(&import, "rfc5780").unwrap().why.contains("turn.discovery"));
    let (_, import) = configured("external-ip=198.51.100.5\nuser=a:b\n");
    assert!(note(&import, "external-ip").unwrap().why.contains("turn.relays"));
}
