//! Translates coturn's turnserver.conf.
//!
//! Each line is translated, or told of in a [`Note`]. What the result does is checked like any other
//! configuration.

mod keys;
mod peers;
mod write;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

pub use self::keys::Weight;
use super::{Config, Mistakes};

/// A translation.
#[derive(Clone, Debug)]
pub struct Import {
    /// The configuration as TOML.
    pub toml: String,
    /// What was left out or works differently, in the order of the file.
    pub notes: Vec<Note>,
}

/// What became of one line, if it could not be taken over as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// From 1; nothing for what concerns the whole file.
    pub line: Option<usize>,
    pub key: String,
    pub weight: Weight,
    pub why: String,
}

impl Import {
    /// The heaviest of the notes.
    pub fn weight(&self) -> Weight {
        self.notes.iter().map(|note| note.weight).max().unwrap_or(Weight::None)
    }

    /// What `rawr config check` would say to the result.
    pub fn check(&self) -> Result<Config, Mistakes> {
        Config::from_toml(&self.toml)
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}: ")?;
        }
        let weight = match self.weight {
            Weight::None => "not needed",
            Weight::Function => "left out",
            Weight::Security => "left out, with effect on security",
        };
        write!(f, "{}: {weight}: {}", self.key, self.why)
    }
}

/// Translates the text of a turnserver.conf.
pub fn import(text: &str) -> Import {
    let mut found = Found::default();
    for (index, line) in text.lines().enumerate() {
        if let Some((key, value)) = split(line) {
            found.take(index + 1, key, value);
        }
    }
    found.conclude();
    Import { toml: write::toml(&found), notes: found.notes }
}

/// Key and value of a line; nothing for comments and empty lines. The value of a flag is empty.
fn split(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(['=', ' ', '\t']).unwrap_or(line.len());
    let (key, value) = line.split_at(end);
    let value = value.trim_start_matches(['=', ' ', '\t']).trim();
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some((key.trim_start_matches('-'), unquoted.unwrap_or(value)))
}

/// What the file says, as far as it can be taken over.
#[derive(Debug, Default)]
struct Found {
    listening_ips: Vec<IpAddr>,
    port: Option<u16>,
    tls_port: Option<u16>,
    alternate_port: Option<u16>,
    auxiliary: Vec<SocketAddr>,
    no_udp: bool,
    no_tcp: bool,
    no_tls: bool,
    /// Whether DTLS is told to be served or not.
    dtls: Option<bool>,
    server_name: Option<String>,
    rfc5780: bool,
    relay_ips: Vec<IpAddr>,
    /// Public address, and the private one that it stands for if that is told.
    external: Vec<(IpAddr, Option<IpAddr>)>,
    min_port: Option<u16>,
    max_port: Option<u16>,
    threads: Option<u64>,
    users: Vec<(String, String)>,
    secrets: Vec<String>,
    realm: Option<String>,
    user_quota: Option<u64>,
    total_quota: Option<u64>,
    /// Bytes per second.
    session_rate: Option<u64>,
    max_lifetime: Option<u64>,
    certificate: Option<String>,
    key: Option<String>,
    mobility: bool,
    no_tcp_relay: bool,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    alternate_servers: Vec<SocketAddr>,
    verbose: bool,
    notes: Vec<Note>,
}

impl Found {
    fn take(&mut self, line: usize, key: &str, value: &str) {
        let taken = match key {
            "listening-ip" | "relay-ip" | "external-ip" | "aux-server" | "alternate-server"
            | "allowed-peer-ip" | "denied-peer-ip" => self.take_address(key, value),
            "listening-port" | "tls-listening-port" | "alt-listening-port" | "min-port"
            | "max-port" => self.take_port(key, value),
            "relay-threads"
            | "user-quota"
            | "total-quota"
            | "max-bps"
            | "max-allocate-lifetime" => self.take_number(key, value),
            "no-udp" | "no-tcp" | "no-tls" | "no-tcp-relay" | "mobility" | "rfc5780" | "dtls"
            | "no-dtls" | "no-rfc5780" | "use-auth-secret" | "verbose" | "Verbose" => {
                self.take_flag(key, value)
            }
            "user" | "static-auth-secret" | "realm" | "cert" | "pkey" | "server-name" => {
                self.take_text(key, value)
            }
            _ => Err(None),
        };
        match taken {
            Ok(()) => {}
            Err(Some(expected)) => {
                let why = format!("cannot be understood: expected {expected}");
                self.note(Some(line), key, Weight::Security, why);
            }
            Err(None) if !is_on(value) => {}
            Err(None) => {
                let (weight, why) = keys::left_out(key)
                    .unwrap_or((Weight::Security, "nothing is known of this key"));
                self.note(Some(line), key, weight, why.to_owned());
            }
        }
    }

    fn take_address(&mut self, key: &str, value: &str) -> Result<(), Option<&'static str>> {
        const ADDRESS: Option<&str> = Some("an IP address");
        const WITH_PORT: Option<&str> = Some("an IP address with port");
        let ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().map_err(|_| ADDRESS);
        match key {
            "listening-ip" => self.listening_ips.push(ip(value)?),
            "relay-ip" => self.relay_ips.push(ip(value)?),
            "external-ip" => self.external.push(match value.split_once('/') {
                Some((public, private)) => (ip(public)?, Some(ip(private)?)),
                None => (ip(value)?, None),
            }),
            "aux-server" => self.auxiliary.push(value.parse().map_err(|_| WITH_PORT)?),
            "alternate-server" => {
                let address = value.parse().or_else(|_| {
                    ip(value).map(|ip| SocketAddr::new(ip, super::STUN_PORT)).map_err(|_| WITH_PORT)
                })?;
                self.alternate_servers.push(address);
            }
            _ => {
                let expected = Some("an address, a prefix or a range of addresses");
                let prefixes = peers::prefixes(value).ok_or(expected)?;
                let list = if key == "allowed-peer-ip" { &mut self.allow } else { &mut self.deny };
                list.extend(prefixes);
            }
        }
        Ok(())
    }

    fn take_port(&mut self, key: &str, value: &str) -> Result<(), Option<&'static str>> {
        let port: u16 = value.parse().map_err(|_| Some("a port"))?;
        let slot = match key {
            "listening-port" => &mut self.port,
            "tls-listening-port" => &mut self.tls_port,
            "alt-listening-port" => &mut self.alternate_port,
            "min-port" => &mut self.min_port,
            _ => &mut self.max_port,
        };
        // 0 is coturn's default.
        *slot = Some(port).filter(|port| *port != 0);
        Ok(())
    }

    fn take_number(&mut self, key: &str, value: &str) -> Result<(), Option<&'static str>> {
        let number: u64 = value.parse().map_err(|_| Some("a whole number"))?;
        let slot = match key {
            "relay-threads" => &mut self.threads,
            "user-quota" => &mut self.user_quota,
            "total-quota" => &mut self.total_quota,
            "max-bps" => &mut self.session_rate,
            _ => &mut self.max_lifetime,
        };
        // 0 means no limit, or coturn's default.
        *slot = Some(number).filter(|number| *number != 0);
        Ok(())
    }

    fn take_flag(&mut self, key: &str, value: &str) -> Result<(), Option<&'static str>> {
        let on = is_on(value);
        match key {
            "no-udp" => self.no_udp = on,
            "no-tcp" => self.no_tcp = on,
            "no-tls" => self.no_tls = on,
            "dtls" => self.dtls = Some(on),
            "no-dtls" => self.dtls = Some(!on),
            "no-tcp-relay" => self.no_tcp_relay = on,
            "mobility" => self.mobility = on,
            "rfc5780" => self.rfc5780 = on,
            "no-rfc5780" => self.rfc5780 = !on,
            "verbose" | "Verbose" => self.verbose = on,
            // Secrets are used wherever there are some.
            _ => {}
        }
        Ok(())
    }

    fn take_text(&mut self, key: &str, value: &str) -> Result<(), Option<&'static str>> {
        if value.is_empty() {
            return Err(Some("a value"));
        }
        match key {
            "user" => match value.split_once(':') {
                Some((_, password)) if password.starts_with("0x") => {
                    return Err(Some("a password: from a key (0x...) it cannot be found out"));
                }
                Some((name, password)) if !name.is_empty() && !password.is_empty() => {
                    self.users.push((name.to_owned(), password.to_owned()));
                }
                _ => return Err(Some("name:password")),
            },
            "static-auth-secret" => self.secrets.push(value.to_owned()),
            "realm" => self.realm = Some(value.to_owned()),
            "server-name" => self.server_name = Some(value.to_owned()),
            "cert" => self.certificate = Some(value.to_owned()),
            _ => self.key = Some(value.to_owned()),
        }
        Ok(())
    }

    /// What follows from several lines together.
    fn conclude(&mut self) {
        let (allow, deny) = (std::mem::take(&mut self.allow), std::mem::take(&mut self.deny));
        self.deny = peers::denied_beside(&allow, deny);
        self.allow = allow;
        self.note(
            None,
            "denied-peer-ip",
            Weight::Function,
            "private and other special-purpose addresses are denied by default; name those that \
             clients may reach in turn.allow_peers"
                .to_owned(),
        );
        if self.no_udp {
            let why = "clients over UDP are served; a firewall can keep them out".to_owned();
            self.note(None, "no-udp", Weight::Security, why);
        }
        for slot in [&mut self.certificate, &mut self.key] {
            let Some(path) = slot.take_if(|path| !path.starts_with('/')) else { continue };
            let why = format!("{path} is no absolute path: set turn.certificate and turn.key");
            let note = Note { line: None, key: "cert".to_owned(), weight: Weight::Function, why };
            self.notes.push(note);
        }
        self.conclude_secure();
        if self.rfc5780 && self.discovery().is_empty() {
            let why =
                "behaviour discovery needs two listening-ip of one family: see turn.discovery";
            self.note(None, "rfc5780", Weight::Function, why.to_owned());
        }
        let families = self.relays().iter().map(|(ip, _)| ip.is_ipv4()).collect::<Vec<_>>();
        let nowhere = |public: &IpAddr| !families.contains(&public.is_ipv4());
        if self.external.iter().any(|(public, _)| nowhere(public)) {
            let why = "which address of this host it stands for is not told: add it to turn.relays";
            self.note(None, "external-ip", Weight::Function, why.to_owned());
        }
        if self.users.is_empty() && self.secrets.is_empty() {
            let why = "nobody may allocate: there is neither a user nor a static-auth-secret";
            self.note(None, "user", Weight::Function, why.to_owned());
        }
    }

    /// What coturn serves over DTLS and with access tokens, and what of it cannot be told from its file.
    fn conclude_secure(&mut self) {
        let why = match (self.dtls, self.has_certificate()) {
            (Some(true), true) if cfg!(feature = "dtls") => None,
            (Some(true), true) => Some("this rawr is built without the Cargo feature dtls"),
            (None, true) => Some(
                "coturn may serve DTLS wherever it has a certificate; set turn.listen_dtls if clients use it \
                 (the key has to be ECDSA)",
            ),
            (Some(false), _) | (_, false) => None,
        };
        if let Some(why) = why {
            self.note(None, "dtls", Weight::Function, why.to_owned());
        }
        if self.server_name.take_if(|_| cfg!(not(feature = "oauth"))).is_some() {
            let why = "this rawr is built without the Cargo feature oauth";
            self.note(None, "server-name", Weight::Function, why.to_owned());
        }
    }

    fn note(&mut self, line: Option<usize>, key: &str, weight: Weight, why: String) {
        self.notes.push(Note { line, key: key.to_owned(), weight, why });
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(super::STUN_PORT)
    }

    /// Where UDP and plain TCP are served.
    fn plain(&self) -> Vec<SocketAddr> {
        let mut addresses = self.on_all(self.port());
        addresses.extend(&self.auxiliary);
        addresses
    }

    /// Where TLS is served: in coturn any TCP port takes plain TCP and TLS.
    fn secure(&self) -> Vec<SocketAddr> {
        self.on_all(self.tls_port.unwrap_or(rawr_proto::DEFAULT_SECURE_PORT))
    }

    fn has_tls(&self) -> bool {
        !self.no_tls && self.has_certificate()
    }

    fn has_dtls(&self) -> bool {
        cfg!(feature = "dtls") && self.dtls == Some(true) && self.has_certificate()
    }

    fn has_certificate(&self) -> bool {
        self.certificate.is_some() && self.key.is_some()
    }

    fn on_all(&self, port: u16) -> Vec<SocketAddr> {
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let ips = if self.listening_ips.is_empty() { &all[..] } else { &self.listening_ips };
        ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    /// The pairs for behaviour discovery: the first two addresses of each family.
    fn discovery(&self) -> Vec<[SocketAddr; 2]> {
        let other = self.alternate_port.unwrap_or_else(|| self.port().wrapping_add(1));
        let pair = |is_v4: bool| {
            let mut ips = self.listening_ips.iter().filter(|ip| ip.is_ipv4() == is_v4);
            let (first, second) = (ips.next()?, ips.next()?);
            Some([SocketAddr::new(*first, self.port()), SocketAddr::new(*second, other)])
        };
        if !self.rfc5780 {
            return Vec::new();
        }
        [pair(true), pair(false)].into_iter().flatten().collect()
    }

    /// Addresses of this host that ports are opened on, with what clients are told instead.
    fn relays(&self) -> Vec<(IpAddr, Option<IpAddr>)> {
        let own = if self.relay_ips.is_empty() { &self.listening_ips } else { &self.relay_ips };
        let mut ips = own.clone();
        ips.extend(self.external.iter().filter_map(|(_, private)| *private));
        let mut relays: Vec<(IpAddr, Option<IpAddr>)> = Vec::new();
        for ip in ips {
            if relays.iter().all(|(known, _)| *known != ip) {
                let public = self.external.iter().find(|(public, private)| match private {
                    Some(private) => *private == ip,
                    None => public.is_ipv4() == ip.is_ipv4(),
                });
                relays.push((ip, public.map(|(public, _)| *public)));
            }
        }
        relays
    }
}

/// A flag is on unless it is said to be off.
fn is_on(value: &str) -> bool {
    !matches!(value, "0" | "off" | "no" | "false" | "f")
}

#[cfg(test)]
mod tests;
