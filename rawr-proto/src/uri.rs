//! `rawr:` and `rawrs:` URIs, in the manner of TURN's (RFC 7065 §3.1).
//!
//! ```
//! use rawr_proto::{RawrUri, Transport};
//!
//! let uri: RawrUri = "rawr:[2001:db8::1]:4000?transport=udp".parse()?;
//! assert_eq!((uri.port(), uri.transport()), (4000, Transport::Udp));
//! assert_eq!(uri.to_string(), "rawr:[2001:db8::1]:4000?transport=udp");
//! # Ok::<(), rawr_proto::ParseUriError>(())
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::{DEFAULT_PORT, DEFAULT_SECURE_PORT};

/// Where a root is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawrUri {
    /// `rawrs:`, over TLS or DTLS.
    pub secure: bool,
    /// The server.
    pub host: Host,
    /// As written; see [`RawrUri::port`].
    pub explicit_port: Option<u16>,
    /// As written; see [`RawrUri::transport`].
    pub explicit_transport: Option<Transport>,
}

impl RawrUri {
    /// The port: as written, else 3478, or 5349 for `rawrs:`.
    pub fn port(&self) -> u16 {
        let default = if self.secure { DEFAULT_SECURE_PORT } else { DEFAULT_PORT };
        self.explicit_port.unwrap_or(default)
    }

    /// The transport: as written, else UDP, or TCP for `rawrs:`.
    pub fn transport(&self) -> Transport {
        let default = if self.secure { Transport::Tcp } else { Transport::Udp };
        self.explicit_transport.unwrap_or(default)
    }
}

/// A server's name or address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be resolved.
    Name(String),
    /// An address literal.
    Ip(IpAddr),
}

/// What is below STUN (below TLS or DTLS for `rawrs:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl FromStr for RawrUri {
    type Err = ParseUriError;

    fn from_str(text: &str) -> Result<Self, ParseUriError> {
        let (scheme, rest) = text.split_once(':').ok_or(ParseUriError::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "rawr" => false,
            "rawrs" => true,
            _ => return Err(ParseUriError::Scheme),
        };
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let (host, port) = split_port(authority)?;
        Ok(Self {
            secure,
            host: parse_host(host)?,
            explicit_port: port.map(parse_port).transpose()?,
            explicit_transport: query.map(parse_query).transpose()?,
        })
    }
}

impl fmt::Display for RawrUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "rawrs" } else { "rawr" };
        write!(f, "{scheme}:{}", self.host)?;
        if let Some(port) = self.explicit_port {
            write!(f, ":{port}")?;
        }
        if let Some(transport) = self.explicit_transport {
            write!(f, "?transport={transport}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// What is wrong with a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseUriError {
    /// Neither `rawr:` nor `rawrs:`.
    #[error("a root is written rawr:HOST[:PORT] or rawrs:HOST[:PORT]")]
    Scheme,
    /// No host, a character that no host has, or a bracket without its partner.
    #[error("{0:?} is neither a host name nor an address (IPv6 addresses stand in brackets)")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} is not a port from 1 to 65535")]
    Port(String),
    /// Something else than the transport, or not a transport.
    #[error("{0:?} is not transport=udp or transport=tcp")]
    Query(String),
}

/// Splits at the colon that follows the host. IPv6 addresses stand in brackets.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), ParseUriError> {
    let malformed = || ParseUriError::Host(authority.to_owned());
    if !authority.starts_with('[') {
        return Ok(match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        });
    }
    let end = authority.find(']').ok_or_else(malformed)? + 1;
    let (host, rest) = authority.split_at(end);
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(malformed()),
    }
}

fn parse_host(host: &str) -> Result<Host, ParseUriError> {
    let malformed = || ParseUriError::Host(host.to_owned());
    if let Some(bracketed) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let ip: Ipv6Addr = bracketed.parse().map_err(|_| malformed())?;
        return Ok(Host::Ip(ip.into()));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    // reg-name of RFC 3986 §3.2.2, without percent encoding, which no host needs.
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if host.is_empty() || !host.bytes().all(named) {
        return Err(malformed());
    }
    Ok(Host::Name(host.to_owned()))
}

fn parse_port(port: &str) -> Result<u16, ParseUriError> {
    let digits_only = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|number| digits_only && *number != 0);
    number.ok_or_else(|| ParseUriError::Port(port.to_owned()))
}

fn parse_query(query: &str) -> Result<Transport, ParseUriError> {
    match query.strip_prefix("transport=") {
        Some("udp") => Ok(Transport::Udp),
        Some("tcp") => Ok(Transport::Tcp),
        _ => Err(ParseUriError::Query(query.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for text in [
            "rawr:example.org",
            "rawrs:example.org",
            "rawr:example.org:8000",
            "rawr:192.0.2.1?transport=udp",
            "rawrs:192.0.2.1:443?transport=tcp",
            "rawr:[2001:db8::1]",
            "rawr:[2001:db8::1]:8000?transport=udp",
        ] {
            let uri: RawrUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn defaults() {
        let plain: RawrUri = "RAWR:example.org".parse().unwrap();
        assert_eq!((plain.port(), plain.transport()), (3478, Transport::Udp));
        let secure: RawrUri = "rawrs:example.org".parse().unwrap();
        assert_eq!((secure.port(), secure.transport()), (5349, Transport::Tcp));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, error) in [
            ("turn:example.org", ParseUriError::Scheme),
            ("example.org", ParseUriError::Scheme),
            ("rawr:", ParseUriError::Host(String::new())),
            ("rawr://example.org", ParseUriError::Host("//example.org".into())),
            ("rawr:2001:db8::1", ParseUriError::Port("db8::1".into())),
            ("rawr:[2001:db8::1", ParseUriError::Host("[2001:db8::1".into())),
            ("rawr:[2001:db8::1]x", ParseUriError::Host("[2001:db8::1]x".into())),
            ("rawr:[192.0.2.1]", ParseUriError::Host("[192.0.2.1]".into())),
            ("rawr:example.org:0", ParseUriError::Port("0".into())),
            ("rawr:example.org:+1", ParseUriError::Port("+1".into())),
            ("rawr:example.org:65536", ParseUriError::Port("65536".into())),
            ("rawr:example.org?transport=sctp", ParseUriError::Query("transport=sctp".into())),
        ] {
            assert_eq!(text.parse::<RawrUri>(), Err(error), "{text}");
        }
    }
}
