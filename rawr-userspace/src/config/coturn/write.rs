//! Writes what was found as TOML, in the order of docs/rawr.example.toml.

use std::fmt::{Display, Write as _};

use toml::Value;

use super::Found;

pub(super) fn toml(found: &Found) -> String {
    let mut out = String::from("# Made from a turnserver.conf.\n");
    top(found, &mut out);
    turn(found, &mut out);
    for (name, password) in &found.users {
        out.push_str("\n[[users]]\n");
        put(&mut out, "name", quoted(name));
        put(&mut out, "password", quoted(password));
    }
    out
}

fn top(found: &Found, out: &mut String) {
    put(out, "kind", quoted("root"));
    put(out, "listen", list(found.plain()));
    put(out, "trusted", "[]");
    put(out, "answer_short_binding", true);
    if found.min_port.is_some() || found.max_port.is_some() {
        let (low, high) = (found.min_port.unwrap_or(49152), found.max_port.unwrap_or(65535));
        put(out, "data_ports", quoted(&format!("{low}-{high}")));
    }
    if let Some(threads) = found.threads {
        put(out, "userspace_threads", threads.min(64));
    }
    if let Some(realm) = &found.realm {
        put(out, "realm", quoted(realm));
    }
    if !found.secrets.is_empty() {
        put(out, "secrets", list(&found.secrets));
    }
    if found.verbose {
        put(out, "log", quoted("debug"));
    }
}

fn turn(found: &Found, out: &mut String) {
    out.push_str("\n[turn]\n");
    let (plain, secure) = (found.plain(), found.secure());
    let every = || plain.iter().chain(&secure);
    match (found.no_tcp, found.has_tls()) {
        (false, true) => put(out, "listen_tcp", list(every())),
        (false, false) => put(out, "listen_tcp", list(&plain)),
        (true, _) => {}
    }
    if found.has_tls() {
        put(out, "listen_tls", list(every()));
    }
    if found.has_dtls() {
        put(out, "listen_dtls", list(every()));
    }
    if let (Some(certificate), Some(key)) = (&found.certificate, &found.key) {
        put(out, "certificate", quoted(certificate));
        put(out, "key", quoted(key));
    }
    if !found.alternate_servers.is_empty() {
        put(out, "alternate_servers", list(&found.alternate_servers));
    }
    put(out, "mobility", found.mobility);
    out.push_str("# coturn takes channels up to 0x7fff; clients that were made for RFC 5766 choose among them.\n");
    put(out, "rfc5766_channels", true);
    if let Some(name) = &found.server_name {
        put(out, "oauth_server_name", quoted(name));
    }
    put(out, "tcp_relay", !found.no_tcp_relay);
    if let Some(lifetime) = found.max_lifetime {
        put(out, "default_lifetime", lifetime.clamp(10, 600));
        put(out, "max_lifetime", lifetime.clamp(10, 86_400));
    }
    if let Some(bytes) = found.session_rate {
        // There for each direction, here for both.
        let rate = format!("{}kbit/s", bytes.saturating_mul(16).div_ceil(1000));
        put(out, "allocation_rate", quoted(&rate));
    }
    for (key, prefixes) in [("allow_peers", &found.allow), ("deny_peers", &found.deny)] {
        if !prefixes.is_empty() {
            put(out, key, list(prefixes));
        }
    }
    turn_tables(found, out);
}

fn turn_tables(found: &Found, out: &mut String) {
    if found.total_quota.is_some() || found.user_quota.is_some() {
        out.push_str("\n[turn.limits]\n");
        for (key, quota) in
            [("allocations", found.total_quota), ("allocations_per_user", found.user_quota)]
        {
            if let Some(quota) = quota {
                put(out, key, quota.min(u64::from(u32::MAX)));
            }
        }
    }
    // Refreshes are all that a client may say in this time.
    if let Some(lifetime) = found.max_lifetime.filter(|lifetime| *lifetime >= 3900) {
        out.push_str("\n[turn.streams]\n");
        put(out, "idle_timeout", (lifetime + 300).min(86_400));
    }
    for (address, advertised) in found.relays() {
        out.push_str("\n[[turn.relays]]\n");
        put(out, "address", quoted(&address.to_string()));
        if let Some(advertised) = advertised {
            put(out, "advertised", quoted(&advertised.to_string()));
        }
    }
    for [primary, alternate] in found.discovery() {
        out.push_str("\n[[turn.discovery]]\n");
        put(out, "primary", quoted(&primary.to_string()));
        put(out, "alternate", quoted(&alternate.to_string()));
    }
}

fn put(out: &mut String, key: &str, value: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{key} = {value}");
}

fn quoted(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> Value {
    Value::Array(items.into_iter().map(|item| Value::String(item.to_string())).collect())
}
