//! The types of single values, each parsed from text.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rawr_proto::{Host, ParseUriError, RawrUri, Transport, opaque_string};

use crate::control::Kind;

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("expected one of {}", .0.join(", "))]
    Choice(&'static [&'static str]),
    #[error("expected {0}")]
    Expected(&'static str),
    #[error("{0}")]
    Because(&'static str),
    #[error("{0}")]
    Uri(ParseUriError),
    #[error("{0}")]
    Other(String),
}

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// The fastest that works: native, else generic, else userspace.
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP in the stack.
    Generic,
    /// UDP sockets.
    Userspace,
}

/// Names the daemon among others on the same host; part of file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName(String);

/// Ports, both ends included; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

/// Length of the flow tables: a power of two from 1,024 to 16,777,216.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLength(u32);

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

/// A password or key, which never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A user name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// Where another server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Name or address, to be resolved; IPv6 addresses without brackets.
    pub host: String,
    pub port: u16,
}

impl InstanceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl TableLength {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for TableLength {
    fn default() -> Self {
        Self(1 << 18)
    }
}

impl Rate {
    /// So many bytes per second.
    pub const fn of_bytes(per_second: u64) -> Self {
        Self(per_second)
    }

    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Credentials {
    pub(crate) fn to_proto(&self) -> rawr_proto::Credentials {
        let Self { username, password } = self;
        rawr_proto::Credentials {
            username: username.clone(),
            password: password.expose().to_owned(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl FromStr for Kind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "gateway" => Ok(Self::Gateway),
            "root" => Ok(Self::Root),
            _ => Err(ValueError::Choice(&["gateway", "root"])),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Root => "root",
        })
    }
}

impl FromStr for Datapath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "userspace" => Ok(Self::Userspace),
            _ => Err(ValueError::Choice(&["auto", "native", "generic", "userspace"])),
        }
    }
}

impl FromStr for InstanceName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if (1..=32).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::Expected("1 to 32 of the characters a-z, A-Z, 0-9, - and _"))
        }
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = ValueError::Expected("two ports, as in \"49152-65535\"");
        let (low, high) = text.split_once('-').ok_or_else(|| expected.clone())?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| expected.clone());
        match (port(low)?, port(high)?) {
            (low, high) if low > high => {
                Err(ValueError::Because("the first port is above the last"))
            }
            (0..=1023, _) => Err(ValueError::Because("ports below 1024 are kept for services")),
            (low, high) => Ok(Self(low..=high)),
        }
    }
}

impl FromStr for TableLength {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.parse::<u32>() {
            Ok(length) if length.is_power_of_two() && (10..=24).contains(&length.ilog2()) => {
                Ok(Self(length))
            }
            _ => Err(ValueError::Expected("a power of two from 1024 to 16777216")),
        }
    }
}

impl FromStr for Rate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected =
            || ValueError::Expected("a rate such as \"500kbit/s\", \"20Mbit/s\" or \"1Gbit/s\"");
        let digits = text.bytes().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, unit) = text.split_at(digits);
        let scale = match unit.trim_start() {
            "kbit/s" => 1_000,
            "Mbit/s" => 1_000_000,
            "Gbit/s" => 1_000_000_000,
            _ => return Err(expected()),
        };
        let number: u64 = number.parse().map_err(|_| expected())?;
        match number.checked_mul(scale).map(|bits| bits / 8) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(expected()),
        }
    }
}

/// A user name, password or realm, in the one form that all have (RFC 8265).
pub(super) fn opaque(text: &str) -> Result<String, ValueError> {
    match text {
        "" => Err(ValueError::Because("must not be empty")),
        _ => opaque_string(text).map(Cow::into_owned).map_err(|_| {
            ValueError::Because("holds control characters, or others that nobody types")
        }),
    }
}

impl FromStr for Secret {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "" => Err(ValueError::Because("must not be empty")),
            _ => Ok(Self::new(text)),
        }
    }
}

impl FromStr for Credentials {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once(':') {
            Some((username, password)) if !username.is_empty() => {
                Ok(Self { username: opaque(username)?, password: Secret(opaque(password)?) })
            }
            _ => Err(ValueError::Expected("name:password")),
        }
    }
}

impl FromStr for ServerAddress {
    type Err = ValueError;

    /// A `rawr:` URI, or what follows its colon; IPv6 addresses may stand without brackets.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let uri = match text.parse::<Ipv6Addr>() {
            Ok(ip) => format!("rawr:[{ip}]"),
            Err(_) if text.starts_with("rawr:") || text.starts_with("rawrs:") => text.to_owned(),
            Err(_) => format!("rawr:{text}"),
        };
        let uri: RawrUri = uri.parse().map_err(ValueError::Uri)?;
        if uri.transport() != Transport::Udp {
            return Err(ValueError::Because("gateways speak UDP: use rawr: without transport=tcp"));
        }
        let port = uri.port();
        let host = match uri.host {
            Host::Name(name) => name,
            Host::Ip(ip) => ip.to_string(),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "rawr:[{host}]:{port}"),
            false => write!(f, "rawr:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses() {
        for (text, expected) in [
            ("rawr:gw.example.net", "rawr:gw.example.net:3478"),
            ("gw.example.net:4000", "rawr:gw.example.net:4000"),
            ("192.0.2.1", "rawr:192.0.2.1:3478"),
            ("rawr:[2001:db8::1]:4000?transport=udp", "rawr:[2001:db8::1]:4000"),
            ("[2001:db8::1]", "rawr:[2001:db8::1]:3478"),
            ("2001:db8::1", "rawr:[2001:db8::1]:3478"),
        ] {
            let parsed: ServerAddress = text.parse().unwrap();
            assert_eq!(parsed.to_string(), expected);
            assert_eq!(parsed.to_string().parse::<ServerAddress>().unwrap(), parsed);
        }
        for text in [
            "",
            "rawr:",
            "rawrs:a",
            "a:0",
            "a:70000",
            "a b",
            "[zz]",
            "http://a",
            ":3478",
            "rawr:a?transport=tcp",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_ranges_lengths_and_names() {
        assert_eq!("20Mbit/s".parse::<Rate>().unwrap().bytes_per_second(), 2_500_000);
        assert_eq!("1 Gbit/s".parse::<Rate>().unwrap().bytes_per_second(), 125_000_000);
        for text in ["", "5", "Mbit/s", "-1Mbit/s", "0kbit/s", "99999999999999999999Gbit/s", "1 MB"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!("40000-40001".parse::<PortRange>().unwrap().0, 40000..=40001);
        for text in ["", "5", "9000-8000", "80-90", "1-70000", "a-b"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        assert_eq!("65536".parse::<TableLength>().unwrap().get(), 65536);
        for text in ["0", "512", "65537", "33554432", "x"] {
            assert!(text.parse::<TableLength>().is_err(), "{text}");
        }
        for text in ["", "a/b", "..", &"x".repeat(33)] {
            assert!(text.parse::<InstanceName>().is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let credentials: Credentials = "alice:hunter2:x".parse().unwrap();
        assert_eq!(credentials.password.expose(), "hunter2:x");
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
