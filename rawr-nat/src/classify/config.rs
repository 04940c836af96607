//! What a classification is told from outside.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest that a report may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(5);

/// What a [`super::Classifier`] is to find out, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifyConfig {
    /// STUN servers, of both families. The first four of each family are asked. Two addresses tell a
    /// mapping that depends on the address; one server of RFC 5780 has two.
    pub servers: Vec<SocketAddr>,
    /// The host's own addresses that others could reach. A family without one is left out. The
    /// driver fills them in where there are none.
    pub local: Vec<IpAddr>,
    /// The external address that the router next to the host tells by a port-mapping protocol.
    pub router_external: Option<IpAddr>,
    /// When a report is due, whatever is known by then.
    pub timeout: Duration,
    /// Whether TCP is tried, too.
    pub tcp: bool,
    /// Whether routers on the way are asked for their addresses, by datagrams that live too short.
    pub routers: bool,
    /// Times of silence after which a mapping is looked for, none by default. A report is then
    /// followed by [`super::LifetimeTest`], which takes as long as the longest of them.
    pub silences: Vec<Duration>,
}

impl ClassifyConfig {
    /// Everything that takes no more than a few seconds.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            local: Vec::new(),
            router_external: None,
            timeout: TIME_LIMIT,
            tcp: true,
            routers: true,
            silences: Vec::new(),
        }
    }
}
