//! What the two ends of a link do for each other: pipes, forwarded ports, files, and pings.
//!
//! Each service has a port of the link's streams. Who opens a stream says first what it wants; the other
//! side agrees, or says why not, and what follows is the service's. Datagrams begin with a byte that says
//! what they are ([`hub`]).

pub mod file;
pub mod forward;
pub mod hub;
pub mod pipe;
pub mod serve;
pub mod target;
pub mod tcp;
pub mod udp;
pub mod wire;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Standard input and output of both ends.
    Pipe,
    /// A TCP connection to a target that the other side reaches.
    Tcp,
    /// Datagrams to a target that the other side reaches; the stream lasts as long as they may go.
    Udp,
    /// A file.
    File,
}

impl Service {
    /// The port of its streams.
    pub const fn port(self) -> u16 {
        match self {
            Self::Pipe => 2,
            Self::Tcp => 3,
            Self::Udp => 4,
            Self::File => 5,
        }
    }

    /// The service that has this port.
    pub const fn of(port: u16) -> Option<Self> {
        match port {
            2 => Some(Self::Pipe),
            3 => Some(Self::Tcp),
            4 => Some(Self::Udp),
            5 => Some(Self::File),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_services_belong_together() {
        for service in [Service::Pipe, Service::Tcp, Service::Udp, Service::File] {
            assert_eq!(Service::of(service.port()), Some(service));
            assert!(service.port() >= rawr_nat::link::Link::FIRST_PORT);
        }
        assert_eq!(Service::of(1), None);
        assert_eq!(Service::of(6), None);
    }
}
