//! Where the other side is asked to connect to, and where it may be asked to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// In small letters.
    Name(String),
}

/// Targets that the other side may ask for: `HOST:PORT[/tcp|/udp]`, where the host is a name, an address,
/// a subnet or `*`, and the port a number, `FIRST-LAST` or `*`. A name is allowed by its name alone,
/// whatever it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    host: AllowedHost,
    ports: RangeInclusive<u16>,
    transport: Option<Transport>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AllowedHost {
    Any,
    Subnet(IpNet),
    /// In small letters.
    Name(String),
}

/// Why a text is no target, or allows none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("expected HOST:PORT, such as 127.0.0.1:80 or [::1]:80, and not {0:?}")]
    Form(String),
    #[error("{0:?} is no port: 1 to 65535")]
    Port(String),
    #[error("{0:?} is no host: a name, or an address (IPv6 in brackets)")]
    Host(String),
    #[error("{0:?} are no ports: a number, FIRST-LAST or *")]
    Ports(String),
    #[error("{0:?} is no transport: tcp or udp")]
    Transport(String),
}

impl Transport {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Target {
    /// Its addresses.
    ///
    /// # Errors
    /// If there is none.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, self.port)]),
            Host::Name(name) => {
                Ok(tokio::net::lookup_host((name.as_str(), self.port)).await?.collect())
            }
        }
    }
}

impl Allowed {
    /// Whether this allows `target`.
    pub fn covers(&self, transport: Transport, target: &Target) -> bool {
        let is_host = match (&self.host, &target.host) {
            (AllowedHost::Any, _) => true,
            (AllowedHost::Subnet(subnet), Host::Ip(ip)) => subnet.contains(&ip.to_canonical()),
            (AllowedHost::Name(allowed), Host::Name(name)) => allowed == name,
            (AllowedHost::Subnet(_), Host::Name(_)) | (AllowedHost::Name(_), Host::Ip(_)) => false,
        };
        is_host
            && self.ports.contains(&target.port)
            && self.transport.is_none_or(|it| it == transport)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = split(text)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| TargetError::Port(text.to_owned()))?;
        let host = match address(host) {
            Some(ip) => Host::Ip(ip.to_canonical()),
            None => Host::Name(name(host)?),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Allowed {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        // A subnet has a slash, too, but before the port.
        let (place, transport) = match text.rsplit_once('/') {
            Some((place, "tcp")) => (place, Some(Transport::Tcp)),
            Some((place, "udp")) => (place, Some(Transport::Udp)),
            Some((_, other)) if !other.contains(':') => {
                return Err(TargetError::Transport(other.to_owned()));
            }
            _ => (text, None),
        };
        let (host, ports) = split(place)?;
        let host = match (host, address(host)) {
            ("*", _) => AllowedHost::Any,
            (_, Some(ip)) => AllowedHost::Subnet(ip.to_canonical().into()),
            (text, None) => match text.trim_matches(['[', ']']).parse::<IpNet>() {
                Ok(subnet) => AllowedHost::Subnet(subnet.trunc()),
                Err(_) => AllowedHost::Name(name(text)?),
            },
        };
        let ports = port_range(ports).ok_or_else(|| TargetError::Ports(ports.to_owned()))?;
        Ok(Self { host, ports, transport })
    }
}

fn split(text: &str) -> Result<(&str, &str), TargetError> {
    text.rsplit_once(':').ok_or_else(|| TargetError::Form(text.to_owned()))
}

/// IPv6 addresses stand in brackets, so that the port is told from their last group.
fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ipv6) => ipv6.parse().ok().filter(IpAddr::is_ipv6),
        None => host.parse().ok().filter(IpAddr::is_ipv4),
    }
}

fn name(host: &str) -> Result<String, TargetError> {
    let is_good = |it: char| it.is_alphanumeric() || "-._".contains(it);
    match !host.is_empty() && host.len() <= 253 && host.chars().all(is_good) {
        true => Ok(host.to_lowercase()),
        false => Err(TargetError::Host(host.to_owned())),
    }
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once('-') {
        _ if text == "*" => Some(1..=u16::MAX),
        Some((first, last)) => {
            let range = port(first)?..=port(last)?;
            (!range.is_empty()).then_some(range)
        }
        None => port(text).map(|port| port..=port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(allowed: &str, target: &str) -> [bool; 2] {
        let (allowed, target): (Allowed, Target) =
            (allowed.parse().unwrap(), target.parse().unwrap());
        [Transport::Tcp, Transport::Udp].map(|transport| allowed.covers(transport, &target))
    }

    #[test]
    fn targets_are_read_as_they_are_shown() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:1", "a.example.net:65535"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("LocalHost:80".parse::<Target>().unwrap().to_string(), "localhost:80");
        assert_eq!("[::ffff:10.0.0.1]:80".parse::<Target>().unwrap().to_string(), "10.0.0.1:80");
        for text in ["", "80", "host:0", "host:65536", ":80", "::1:80", "a b:80", "[10.0.0.1]:80"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_allowed_is_covered() {
        const BOTH: [bool; 2] = [true, true];
        const NONE: [bool; 2] = [false, false];
        assert_eq!(covers("127.0.0.1:80", "127.0.0.1:80"), BOTH);
        assert_eq!(covers("127.0.0.1:80", "[::ffff:127.0.0.1]:80"), BOTH);
        assert_eq!(covers("127.0.0.1:80/tcp", "127.0.0.1:80"), [true, false]);
        assert_eq!(covers("127.0.0.1:80/udp", "127.0.0.1:80"), [false, true]);
        assert_eq!(covers("127.0.0.1:80", "127.0.0.1:81"), NONE);
        assert_eq!(covers("127.0.0.1:80", "127.0.0.2:80"), NONE);
        assert_eq!(covers("127.0.0.1:80", "localhost:80"), NONE);
        assert_eq!(covers("localhost:80", "localhost:80"), BOTH);
        assert_eq!(covers("localhost:80", "127.0.0.1:80"), NONE);
        assert_eq!(covers("10.0.0.0/8:22-23", "10.9.9.9:23"), BOTH);
        assert_eq!(covers("10.0.0.0/8:22-23/udp", "10.9.9.9:24"), NONE);
        assert_eq!(covers("[fd00::/8]:*", "[fd00::1]:7"), BOTH);
        assert_eq!(covers("*:53/udp", "resolver.example.net:53"), [false, true]);
        assert_eq!(covers("*:*", "[::1]:1"), BOTH);
    }

    #[test]
    fn what_allows_nothing_is_an_error() {
        for text in ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:9-8", "127.0.0.1:80/sctp", "*", "a b:1"]
        {
            assert!(text.parse::<Allowed>().is_err(), "{text}");
        }
    }
}
