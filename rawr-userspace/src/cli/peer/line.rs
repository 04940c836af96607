//! What carries datagrams to the other peer: RAWR alone, or the best path of all.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rawr_nat::agent::{AgentEvent, AgentPath, Connection, ConnectionIncoming};
use rawr_nat::punch::Reason;
use rawr_nat::{Incoming, PathInfo, PeerEvent, PeerSocket, Traffic};
use rawr_proto::ErrorCode;

/// The way to the other peer.
pub(super) enum Line {
    /// Over servers, or straight on one subnet.
    Rawr(Box<PeerSocket>),
    /// The same, until a path without servers is found.
    Direct(Box<Connection>),
}

/// What [`Line::next`] brings.
pub(super) enum News {
    /// A datagram of so many bytes is in the buffer.
    Data(usize),
    Event(Event),
}

/// What has happened to a [`Line`].
pub(super) enum Event {
    /// Data can flow for the first time, so long after the start.
    Ready {
        path: Path,
        connect: Duration,
    },
    Changed {
        from: Option<Path>,
        to: Path,
    },
    Lost(Path),
    Refused {
        server: SocketAddr,
        error: ErrorCode,
    },
    NotPunched {
        reason: Reason,
        probes: u32,
    },
    Closed,
}

/// The path that data takes.
pub(super) struct Path {
    pub(super) kind: &'static str,
    /// Where data is sent to.
    pub(super) remote: SocketAddr,
    pub(super) rtt: Duration,
}

impl Line {
    pub(super) async fn next(&mut self, buffer: &mut [u8]) -> io::Result<News> {
        Ok(match self {
            Self::Rawr(peer) => match peer.next(buffer).await? {
                Incoming::Data(length) => News::Data(length),
                Incoming::Event(event) => News::Event(event.into()),
            },
            Self::Direct(connection) => loop {
                match connection.next(buffer).await? {
                    ConnectionIncoming::Data(length) => break News::Data(length),
                    ConnectionIncoming::Event(event) => break News::Event(event.into()),
                    // Signals take the path that data takes.
                    ConnectionIncoming::Signal(_) => {}
                }
            },
        })
    }

    pub(super) fn try_recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Rawr(peer) => peer.try_recv(buffer),
            Self::Direct(connection) => connection.try_recv(buffer),
        }
    }

    pub(super) fn send(&mut self, datagram: &[u8]) {
        match self {
            Self::Rawr(peer) => peer.send(datagram),
            Self::Direct(connection) => connection.send(datagram),
        }
    }

    pub(super) async fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Rawr(peer) => peer.close().await,
            Self::Direct(connection) => connection.close().await,
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Rawr(peer) => peer.traffic(),
            Self::Direct(connection) => connection.traffic(),
        }
    }
}

impl From<PeerEvent> for Event {
    fn from(event: PeerEvent) -> Self {
        match event {
            PeerEvent::Ready { path, connect } => Self::Ready { path: path.into(), connect },
            PeerEvent::PathChanged { from, to } => {
                Self::Changed { from: from.map(Path::from), to: to.into() }
            }
            PeerEvent::PathLost(path) => Self::Lost(path.into()),
            PeerEvent::Refused { server, error } => Self::Refused { server, error },
            PeerEvent::Closed => Self::Closed,
        }
    }
}

impl From<AgentEvent> for Event {
    fn from(event: AgentEvent) -> Self {
        match event {
            AgentEvent::Ready { path, after } => Self::Ready { path: path.into(), connect: after },
            AgentEvent::PathChanged { from, to } => {
                Self::Changed { from: from.map(Path::from), to: to.into() }
            }
            AgentEvent::PathLost(path) => Self::Lost(path.into()),
            AgentEvent::Refused { server, error } => Self::Refused { server, error },
            AgentEvent::NotPunched { reason, probes } => Self::NotPunched { reason, probes },
            AgentEvent::Closed => Self::Closed,
        }
    }
}

impl From<PathInfo> for Path {
    fn from(path: PathInfo) -> Self {
        Self { kind: path.kind.as_str(), remote: path.remote, rtt: path.rtt }
    }
}

impl From<AgentPath> for Path {
    fn from(path: AgentPath) -> Self {
        Self { kind: path.kind.as_str(), remote: path.remote, rtt: path.rtt }
    }
}
