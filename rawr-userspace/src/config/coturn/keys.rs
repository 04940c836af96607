//! Keys of turnserver.conf that have no counterpart, and what that means.

/// How much a key that is left out matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The server does that anyway, or it concerned coturn alone.
    None,
    /// Something works differently.
    Function,
    /// Somebody may do or see more than before.
    Security,
}

use Weight::{Function, None as Nothing, Security};

/// Key, weight, and what to say. Sorted by key.
const LEFT_OUT: &[(&str, Weight, &str)] = &[
    ("CA-file", Security, "clients are not asked for certificates of their own"),
    ("acme-redirect", Function, "there is no HTTP on the STUN port"),
    (
        "allocation-default-address-family",
        Function,
        "a client that asks for no family gets IPv4 (RFC 8656, section 7.2)",
    ),
    (
        "allow-loopback-peers",
        Function,
        "peers on this host stay denied; name them in turn.allow_peers if it has to be",
    ),
    ("alt-tls-listening-port", Function, "behaviour discovery is offered over UDP alone"),
    (
        "bps-capacity",
        Security,
        "there is no limit for all traffic together; turn.allocation_rate and turn.user_rate limit each",
    ),
    ("channel-lifetime", Function, "channels live for 600 s (RFC 8656, section 12)"),
    ("check-origin-consistency", Security, "ORIGIN is not looked at"),
    ("cipher-list", Security, "TLS 1.2 and 1.3 have a fixed list of strong ciphers"),
    ("cli-ip", Nothing, "there is no CLI port; `rawr status` reads a Unix socket"),
    ("cli-max-output-sessions", Nothing, "there is no CLI port; `rawr status` reads a Unix socket"),
    ("cli-password", Nothing, "there is no CLI port; `rawr status` reads a Unix socket"),
    ("cli-port", Nothing, "there is no CLI port; `rawr status` reads a Unix socket"),
    ("daemon", Nothing, "the service manager does that; see scripts/rawr.service"),
    ("dh-file", Nothing, "TLS uses elliptic curves alone"),
    ("dh1066", Nothing, "TLS uses elliptic curves alone"),
    ("dh2066", Nothing, "TLS uses elliptic curves alone"),
    ("dh566", Nothing, "TLS uses elliptic curves alone"),
    ("ec-curve-name", Nothing, "the curve is agreed on (X25519, P-256 or P-384)"),
    ("fingerprint", Nothing, "answers have FINGERPRINT where the request has it"),
    (
        "keep-address-family",
        Function,
        "a client that asks for no family gets IPv4 (RFC 8656, section 7.2)",
    ),
    ("listening-device", Function, "sockets are bound to addresses; see listen"),
    ("log-binding", Nothing, "Binding requests are counted and never logged"),
    ("log-file", Nothing, "the log goes to standard error, where the service manager takes it"),
    ("lt-cred-mech", Nothing, "allocations always take long-term credentials"),
    ("max-allocate-timeout", Nothing, "an allocation that is not completed leaves nothing behind"),
    (
        "mongo-userdb",
        Security,
        "users, secrets and denied peers in a database are not taken over; name them in the file",
    ),
    (
        "mysql-userdb",
        Security,
        "users, secrets and denied peers in a database are not taken over; name them in the file",
    ),
    ("ne", Nothing, "it concerned coturn's threads"),
    ("new-log-timestamp", Nothing, "the log has ISO 8601 timestamps"),
    ("new-log-timestamp-format", Nothing, "the log has ISO 8601 timestamps"),
    ("no-auth", Function, "allocations always take long-term credentials: name users or secrets"),
    ("no-auth-pings", Nothing, "there is no database"),
    ("no-cli", Nothing, "there is no CLI port"),
    ("no-dynamic-ip-list", Nothing, "there is no database"),
    ("no-dynamic-realms", Nothing, "there is no database"),
    ("no-loopback-peers", Nothing, "peers on this host are denied by default"),
    ("no-multicast-peers", Nothing, "multicast and broadcast peers are denied by default"),
    ("no-software-attribute", Nothing, "answers have no SOFTWARE"),
    (
        "no-stdout-log",
        Nothing,
        "the log goes to standard error, where the service manager takes it",
    ),
    ("no-stun", Function, "STUN Binding requests are answered, within a rate for each source"),
    (
        "no-stun-backward-compatibility",
        Nothing,
        "only messages with the magic cookie are STUN (RFC 8489)",
    ),
    ("no-tlsv1", Nothing, "TLS begins at 1.2"),
    ("no-tlsv1_1", Nothing, "TLS begins at 1.2"),
    ("no-tlsv1_2", Security, "TLS 1.2 is offered beside 1.3"),
    ("no-udp-relay", Security, "relaying over UDP is what this server is for"),
    (
        "oauth",
        Function,
        "the keys of access tokens are in coturn's database, table oauth_key: name them in turn.oauth_keys",
    ),
    ("permission-lifetime", Function, "permissions live for 300 s (RFC 8656, section 9)"),
    ("pidfile", Nothing, "the service manager knows the process"),
    (
        "pkey-pwd",
        Function,
        "the key has to be stored decrypted: openssl pkey -in old.pem -out new.pem",
    ),
    ("proc-group", Security, "the service manager sets user and group; see scripts/rawr.service"),
    ("proc-user", Security, "the service manager sets user and group; see scripts/rawr.service"),
    ("prometheus", Function, "counters are read by `rawr status --json`"),
    ("prometheus-address", Function, "counters are read by `rawr status --json`"),
    ("prometheus-path", Function, "counters are read by `rawr status --json`"),
    ("prometheus-port", Function, "counters are read by `rawr status --json`"),
    ("prometheus-username-labels", Function, "counters are read by `rawr status --json`"),
    (
        "psql-userdb",
        Security,
        "users, secrets and denied peers in a database are not taken over; name them in the file",
    ),
    ("raw-public-keys", Function, "TLS takes X.509 certificates alone"),
    ("redis-statsdb", Function, "counters are read by `rawr status --json`"),
    (
        "redis-userdb",
        Security,
        "users, secrets and denied peers in a database are not taken over; name them in the file",
    ),
    ("relay-device", Function, "sockets are bound to addresses; see turn.relays"),
    (
        "response-origin-only-with-rfc5780",
        Nothing,
        "RESPONSE-ORIGIN is sent with behaviour discovery alone",
    ),
    ("rest-api-separator", Function, "expiry and name of ephemeral users are separated by a colon"),
    (
        "secret-key-file",
        Function,
        "passwords stand in the file as they are; let only the daemon read it",
    ),
    ("secure-stun", Security, "STUN Binding requests are answered without credentials"),
    ("server-relay", Function, "peers of the server's own are not served"),
    ("simple-log", Nothing, "the log goes to standard error, where the service manager takes it"),
    ("stale-nonce", Nothing, "nonces expire always"),
    (
        "stun-only",
        Security,
        "TURN is served to whoever has credentials: name neither users nor secrets to serve none",
    ),
    ("syslog", Nothing, "the log goes to standard error, where the service manager takes it"),
    (
        "syslog-facility",
        Nothing,
        "the log goes to standard error, where the service manager takes it",
    ),
    ("tcp-proxy-port", Function, "the PROXY protocol is not spoken"),
    (
        "tls-alternate-server",
        Function,
        "all clients are sent to the same server: turn.alternate_servers",
    ),
    ("udp-self-balance", Nothing, "it concerned coturn's threads"),
    (
        "userdb",
        Security,
        "users, secrets and denied peers in a database are not taken over; name them in the file",
    ),
    ("web-admin", Nothing, "there is no web interface"),
    ("web-admin-ip", Nothing, "there is no web interface"),
    ("web-admin-listen-on-workers", Nothing, "there is no web interface"),
    ("web-admin-port", Nothing, "there is no web interface"),
];

/// What leaving out `key` means; `None` for keys that nothing is known of.
pub(super) fn left_out(key: &str) -> Option<(Weight, &'static str)> {
    let index = LEFT_OUT.binary_search_by(|(known, ..)| (*known).cmp(key)).ok()?;
    let (_, weight, why) = LEFT_OUT[index];
    Some((weight, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_stand_once() {
        assert!(LEFT_OUT.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(left_out("stun-only").unwrap().0, Security);
        assert!(left_out("stun-onl").is_none());
    }
}
