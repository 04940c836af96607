//! What `-L` and `-U` say: a local port, and where the other side takes what comes to it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::target::{Target, TargetError};

/// `[BIND:]PORT:HOST:PORT`. Without an address the local port is open to this host alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where applications connect or send to.
    pub local: SocketAddr,
    /// Where the other side takes it.
    pub target: Target,
}

/// Why a text is no [`Forward`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("expected [BIND:]PORT:HOST:PORT, such as 8080:127.0.0.1:80, and not {0:?}")]
    Form(String),
    #[error("{0:?} is no address of this host to listen at: an IP address (IPv6 in brackets) or *")]
    Bind(String),
    #[error("{0:?} is no local port: 0 (any) to 65535")]
    Port(String),
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = || ForwardError::Form(text.to_owned());
        let parts = parts(text);
        let (bind, port, host, remote) = match parts[..] {
            [port, host, remote] => (None, port, host, remote),
            [bind, port, host, remote] => (Some(bind), port, host, remote),
            _ => return Err(form()),
        };
        let ip = match bind {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some("*") => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(bind) => {
                let parsed = bind.trim_matches(['[', ']']).parse();
                parsed.map_err(|_| ForwardError::Bind(bind.to_owned()))?
            }
        };
        let port = port.parse().map_err(|_| ForwardError::Port(port.to_owned()))?;
        let target = format!("{host}:{remote}").parse()?;
        Ok(Self { local: SocketAddr::new(ip, port), target })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} at the other side", self.local, self.target)
    }
}

/// The parts between colons, those in brackets left out.
fn parts(text: &str) -> Vec<&str> {
    let mut is_inside = false;
    let is_border = move |it: char| {
        is_inside = match it {
            '[' => true,
            ']' => false,
            _ => is_inside,
        };
        it == ':' && !is_inside
    };
    text.split(is_border).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports_are_for_this_host_unless_told_otherwise() {
        for (text, local, target) in [
            ("8080:127.0.0.1:80", "127.0.0.1:8080", "127.0.0.1:80"),
            ("0:localhost:80", "127.0.0.1:0", "localhost:80"),
            ("*:5353:10.0.0.1:53", "0.0.0.0:5353", "10.0.0.1:53"),
            ("[::1]:5353:[fd00::1]:53", "[::1]:5353", "[fd00::1]:53"),
            ("192.0.2.1:1:h:2", "192.0.2.1:1", "h:2"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.local.to_string(), local);
            assert_eq!(forward.target.to_string(), target);
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for text in ["", "80", "80:host", "a:80:host:1", "70000:host:1", "1:host:0", "::1:1:h:2"] {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
