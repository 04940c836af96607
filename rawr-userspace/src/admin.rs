//! How the operator's commands ask the daemon: lines of JSON over a Unix socket that only its owner
//! may open.
//!
//! A client sends one [`Request`] per line and gets one [`Response`] per line, in order. The server
//! here only moves lines: each request goes as a [`Call`] to the daemon's loop, which knows the
//! answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::dataplane::slow_path::Totals;
use crate::io::streams::StreamTotals;

/// Longest request, in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// How long a client waits for each answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    Sessions,
    Allocations,
    Flows,
    /// End, and let go of the kernel's part: nothing is forwarded any more.
    Detach,
    /// End. The kernel goes on forwarding.
    Stop,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", content = "value", rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Sessions(Vec<SessionInfo>),
    Allocations(Vec<AllocationInfo>),
    Flows(Vec<FlowInfo>),
    /// What was asked for is done, or will be at once.
    Done,
    Failed(String),
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub instance: String,
    /// What the server is called in hop lists, in hexadecimal digits.
    pub id: String,
    /// "gateway" or "root".
    pub kind: String,
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub listen: Vec<SocketAddr>,
    pub interfaces: Vec<InterfaceInfo>,
    pub sessions: SessionCounts,
    /// Of TURN.
    #[serde(default)]
    pub allocations: AllocationCounts,
    pub flows: FlowCounts,
    /// The kernel's tables; none where userspace forwards everything.
    pub tables: Vec<TableInfo>,
    /// What the kernel has forwarded, and passed up or dropped by reason, in packets.
    pub kernel: KernelCounts,
    pub slow_path: Totals,
    /// Addresses for TCP and TLS, and what has become of those who came there.
    #[serde(default)]
    pub listen_tcp: Vec<SocketAddr>,
    #[serde(default)]
    pub streams: StreamTotals,
    /// What the control plane has granted, refused and moved, by name; zeros are left out.
    pub control: BTreeMap<String, u64>,
    pub gateways: Vec<GatewayInfo>,
}

/// How one interface is forwarded on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceInfo {
    pub name: String,
    /// "native", "generic" or "userspace".
    pub mode: String,
    /// Why it is not a faster one.
    pub fallback: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    pub total: u64,
    /// Two legs meet here.
    pub met_here: u64,
    /// Relayed to a parent.
    pub escalated: u64,
    /// Still without a second leg.
    pub waiting: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationCounts {
    pub total: u64,
    /// Ports that wait for the Allocate with their RESERVATION-TOKEN.
    pub reserved_ports: u64,
    /// Users that have an allocation.
    pub users: u64,
    /// Those who have the most, ten at most.
    pub most: Vec<UserInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    pub name: String,
    pub allocations: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    pub installed: u64,
    pub pending: u64,
    pub failed: u64,
    /// Why flows are forwarded in userspace, with how many.
    pub failures: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounts {
    pub packets: u64,
    pub bytes: u64,
    pub reasons: BTreeMap<String, u64>,
}

/// How full one of the kernel's tables is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// "ports, IPv4" and so on.
    pub name: String,
    pub used: u64,
    pub length: u64,
}

/// How a parent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayInfo {
    pub address: String,
    pub up: bool,
    pub sessions: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub id: String,
    /// Whether two downstream legs meet at this server.
    pub met_here: bool,
    /// The parent or root that it goes on to.
    pub upstream: Option<SocketAddr>,
    pub legs: Vec<LegInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegInfo {
    /// "A" or "B".
    pub role: String,
    /// "downstream", "upstream", "candidate" (upstream, not in use yet), or "target" (found by MAC).
    pub direction: String,
    pub local: Option<SocketAddr>,
    /// Nothing until the client has sent data.
    pub remote: Option<SocketAddr>,
    pub state: String,
}

/// An allocation (RFC 8656 §2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationInfo {
    pub client: SocketAddr,
    /// Address of ours that the client speaks to.
    pub server: SocketAddr,
    /// "udp", "tcp", "tls" or "dtls".
    pub transport: String,
    pub user: String,
    /// Relayed transport addresses, as they are bound here.
    pub relayed: Vec<SocketAddr>,
    /// "udp", or "tcp" for a TCP allocation (RFC 6062).
    pub peers_over: String,
    /// Whether its client may move (RFC 8016).
    pub mobile: bool,
    /// What is left of its lifetime.
    pub expires_seconds: u64,
    pub permissions: u64,
    pub channels: u64,
    /// Channels that the kernel forwards, or will once it knows how.
    pub forwarded_channels: u64,
    /// TCP connections to peers.
    pub connections: u64,
    pub to_peers: Carried,
    pub to_client: Carried,
}

/// What has been relayed in one direction: by the kernel for the channels that there are now, by userspace
/// since the allocation was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub kernel_packets: u64,
    pub kernel_bytes: u64,
    pub userspace_packets: u64,
    pub userspace_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    pub from_remote: SocketAddr,
    pub from_local: SocketAddr,
    /// Channel of the ChannelData that arrives; nothing where that is plain datagrams.
    pub from_channel: Option<u16>,
    pub to_local: SocketAddr,
    pub to_remote: SocketAddr,
    /// Channel of the ChannelData that leaves.
    pub to_channel: Option<u16>,
    /// "installed", "pending", "userspace", or "failed".
    pub state: String,
    /// Why it is not installed.
    pub reason: Option<String>,
    /// Forwarded by the kernel.
    pub packets: u64,
    pub bytes: u64,
    /// Forwarded by userspace.
    pub userspace_packets: u64,
    /// Interface and MAC address that packets leave by, where the kernel forwards them.
    pub next_hop: Option<String>,
}

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Response>,
}

/// Why the admin socket does not work.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("a daemon answers at {} already: choose another instance name, or stop it", .0.display())]
    Busy(PathBuf),
    #[error("cannot make the admin socket {}: {source}", .path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("no daemon answers at {} ({source}): is `rawr serve` running, with this --instance?", .path.display())]
    Absent { path: PathBuf, source: io::Error },
    #[error("{} is the socket of another user: try sudo", .0.display())]
    Denied(PathBuf),
    #[error("the daemon ended before it answered")]
    Gone,
    #[error("the daemon broke off: {0}")]
    Broken(io::Error),
    #[error("the daemon sent what is no answer ({0}): is it of another version?")]
    Garbled(serde_json::Error),
    #[error("{0}")]
    Failed(String),
}

/// The daemon's end. Dropping it removes the socket.
#[derive(Debug)]
pub struct AdminServer {
    path: PathBuf,
    listener: UnixListener,
}

impl AdminServer {
    /// Makes the socket and its directory. A socket at which nobody answers is replaced.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        if UnixStream::connect(path).is_ok() {
            return Err(AdminError::Busy(path.to_owned()));
        }
        let make = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            // Under another name, until only its owner may open it.
            let unready = path.with_extension(format!("{}.tmp", std::process::id()));
            let listener = UnixListener::bind(&unready)?;
            std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&unready, path)?;
            Ok(listener)
        };
        let listener =
            make().map_err(|source| AdminError::Bind { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Serves clients until nobody takes `calls` any more.
    pub async fn run(self, calls: mpsc::Sender<Call>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = calls.closed() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(stream, &calls).await {
                            log::debug!("admin client: {error}");
                        }
                    });
                }
                Err(error) => {
                    log::warn!("cannot accept admin clients: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // It may be gone with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve_client(
    mut stream: tokio::net::UnixStream,
    calls: &mpsc::Sender<Call>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(LONGEST_REQUEST);
        if limited.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let too_long = line.len() as u64 == LONGEST_REQUEST && !line.ends_with(b"\n");
        let response = match serde_json::from_slice(&line) {
            _ if too_long => Response::Failed("the request is too long".to_owned()),
            Ok(request) => answer(request, calls).await,
            Err(error) => Response::Failed(format!("no request: {error}")),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        writer.write_all(&bytes).await?;
        if too_long {
            return Ok(());
        }
    }
}

async fn answer(request: Request, calls: &mpsc::Sender<Call>) -> Response {
    let (reply, response) = oneshot::channel();
    let ending = || Response::Failed("the daemon is ending".to_owned());
    if calls.send(Call { request, reply }).await.is_err() {
        return ending();
    }
    response.await.unwrap_or_else(|_| ending())
}

/// Asks the daemon at `path`. What it refuses is an error.
pub fn ask(path: &Path, request: Request) -> Result<Response, AdminError> {
    let mut stream = UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => AdminError::Denied(path.to_owned()),
        _ => AdminError::Absent { path: path.to_owned(), source },
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(AdminError::Broken)?;
    let mut line = serde_json::to_string(&request).map_err(AdminError::Garbled)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(AdminError::Broken)?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(AdminError::Gone);
        }
        read => read.map_err(AdminError::Broken)?,
    };
    if answer.is_empty() {
        return Err(AdminError::Gone);
    }
    match serde_json::from_str(&answer).map_err(AdminError::Garbled)? {
        Response::Failed(why) => Err(AdminError::Failed(why)),
        response => Ok(response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rawr-admin-{}-{name}", std::process::id()));
        dir.join("admin.sock")
    }

    /// Runs a server at `path` whose loop answers each request by `respond`, while `client` runs.
    fn with_server<T: Send + 'static>(
        path: &Path,
        respond: impl Fn(Request) -> Option<Response>,
        client: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (calls, mut called) = mpsc::channel(1);
            let server = tokio::spawn(AdminServer::bind(path).unwrap().run(calls));
            let mut client = tokio::task::spawn_blocking(client);
            let result = loop {
                tokio::select! {
                    Some(call) = called.recv() => match respond(call.request) {
                        Some(response) => call.reply.send(response).unwrap(),
                        None => drop(call),
                    },
                    result = &mut client => break result.unwrap(),
                }
            };
            drop(called);
            server.await.unwrap();
            result
        })
    }

    #[test]
    fn asks_and_answers_and_cleans_up() {
        let path = path("ask");
        let asked = path.clone();
        let mode = path.clone();
        let respond = |request| match request {
            Request::Flows => Some(Response::Flows(Vec::new())),
            Request::Stop => Some(Response::Done),
            Request::Detach => Some(Response::Failed("not now".to_owned())),
            _ => None,
        };
        let answers = with_server(&path, respond, move || {
            assert_eq!(std::fs::metadata(&mode).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(matches!(AdminServer::bind(&asked), Err(AdminError::Busy(_))));
            [Request::Flows, Request::Stop, Request::Detach, Request::Status]
                .map(|request| ask(&asked, request))
        });
        let [flows, stop, detach, status] = answers;
        assert_eq!(flows.unwrap(), Response::Flows(Vec::new()));
        assert_eq!(stop.unwrap(), Response::Done);
        assert_eq!(detach.unwrap_err().to_string(), "not now");
        assert_eq!(status.unwrap_err().to_string(), "the daemon is ending");
        assert!(!path.exists());
        assert!(matches!(ask(&path, Request::Status), Err(AdminError::Absent { .. })));
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let path = path("stale");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let asked = path.clone();
        let answer =
            with_server(&path, |_| Some(Response::Done), move || ask(&asked, Request::Stop));
        assert_eq!(answer.unwrap(), Response::Done);
    }

    #[test]
    fn what_is_no_request_is_told_and_the_next_is_served() {
        let path = path("garbled");
        let asked = path.clone();
        let lines = with_server(
            &path,
            |_| Some(Response::Done),
            move || {
                let mut stream = UnixStream::connect(&asked).unwrap();
                stream.write_all(b"{}\nhello\n{\"request\":\"stop\"}\n").unwrap();
                stream.write_all(&vec![b'x'; LONGEST_REQUEST as usize]).unwrap();
                BufReader::new(stream).lines().map(Result::unwrap).collect::<Vec<_>>()
            },
        );
        assert_eq!(lines.len(), 4, "{lines:?}");
        for index in [0, 1, 3] {
            assert!(lines[index].contains("\"failed\""), "{lines:?}");
        }
        assert_eq!(lines[2], r#"{"response":"done"}"#);
    }
}
