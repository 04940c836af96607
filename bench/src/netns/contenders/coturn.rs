//! coturn: what a user would take instead. Each flow is an allocation with one channel; ChannelData
//! goes in, plain datagrams come out.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::process::{Process, eventually};
use stun_types::message::{
    Message, MessageClass, MessageWrite, MessageWriteExt as _, MessageWriteVec,
};
use turn_types::attribute::{
    ChannelNumber, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND};

use super::{Contender, Passage};
use crate::netns::lab::{Lab, PROCESS_CPU};
use crate::netns::traffic::Traffic;
use crate::netns::wire::{CHANNEL, Destination, Shape, far_peer, near_peer};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 3478);
const START_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const TRIES: usize = 5;
/// Longer than any run, in seconds; coturn grants no more.
const LIFETIME: u32 = 3600;

struct Coturn {
    lab: Lab,
    _listening: [OwnedFd; 2],
    _server: Process,
    /// Relayed transport addresses (RFC 8656 §2.1), by flow.
    relayed: Vec<SocketAddrV4>,
    directory: PathBuf,
}

/// One relay thread on a CPU of its own.
pub(super) fn coturn(traffic: &mut Traffic, flows: u32) -> Result<Box<dyn Contender>> {
    let lab = Lab::new("coturn")?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    let directory = std::env::temp_dir().join(format!("rawr-{}-coturn", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let server = start(&lab, &directory)?;
    let relayed = lab.generator.run(|| (0..flows).map(allocate).collect::<Result<_>>())??;
    Ok(Box::new(Coturn { lab, _listening: listening, _server: server, relayed, directory }))
}

fn start(lab: &Lab, directory: &std::path::Path) -> Result<Process> {
    let mut command = lab.relay.command("taskset");
    command
        .args(["--cpu-list", &PROCESS_CPU.to_string(), "turnserver", "-n", "--no-auth", "--no-cli"])
        .args(["--no-tcp", "--no-tls", "--no-dtls", "--no-tcp-relay", "--relay-threads", "1"])
        .args(["--listening-ip", &SERVER.ip().to_string(), "--relay-ip", "10.9.0.16"])
        .args(["--min-port", "1024", "--max-port", "65535"])
        .args(["--channel-lifetime", "86400", "--permission-lifetime", "86400"])
        .arg("--simple-log")
        .arg("--log-file")
        .arg(directory.join("turn.log"))
        .arg("--pidfile")
        .arg(directory.join("pid"));
    let mut server = Process::spawn("coturn", &mut command, &directory.join("log"))
        .context("is coturn installed? `apt-get install coturn`")?;
    let listens = || -> Result<Option<()>> {
        ensure!(server.is_running(), "coturn ended: {}", server.log_tail(20));
        let sockets = lab.relay.sh("ss --udp --listening --numeric --no-header")?;
        Ok(sockets.contains(&SERVER.to_string()).then_some(()))
    };
    eventually("coturn listens", START_LIMIT, listens)?;
    Ok(server)
}

/// An allocation for a flow, its channel bound to the flow's far peer. Returns the relayed address.
fn allocate(flow: u32) -> Result<SocketAddrV4> {
    let socket = UdpSocket::bind(near_peer(flow))?;
    socket.connect(SERVER)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut request = Message::builder_request(ALLOCATE, MessageWriteVec::new());
    request.add_attribute(&RequestedTransport::new(RequestedTransport::UDP))?;
    request.add_attribute(&Lifetime::new(LIFETIME))?;
    let answer = ask(&socket, &request.finish())?;
    let answer = Message::from_bytes(&answer)?;
    let relayed = answer
        .attribute::<XorRelayedAddress>()
        .map_err(|_| anyhow::anyhow!("no allocation for flow {flow}: {answer}"))?
        .addr(answer.transaction_id());
    let mut request = Message::builder_request(CHANNEL_BIND, MessageWriteVec::new());
    let peer = XorPeerAddress::new(SocketAddr::V4(far_peer(flow)), request.transaction_id());
    request.add_attribute(&ChannelNumber::new(CHANNEL))?;
    request.add_attribute(&peer)?;
    let answer = ask(&socket, &request.finish())?;
    let answer = Message::from_bytes(&answer)?;
    ensure!(
        answer.is_response() && !answer.has_class(MessageClass::Error),
        "no channel for flow {flow}: {answer}"
    );
    match relayed {
        SocketAddr::V4(relayed) => Ok(relayed),
        SocketAddr::V6(_) => anyhow::bail!("a relayed address of the wrong family: {relayed}"),
    }
}

fn ask(socket: &UdpSocket, request: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1500];
    for _ in 0..TRIES {
        socket.send(request)?;
        if let Ok(len) = socket.recv(&mut buffer) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
    anyhow::bail!("coturn does not answer {}", socket.local_addr()?)
}

impl Contender for Coturn {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn shape(&self, frame: usize) -> Shape {
        Shape { destination: Destination::One(SERVER), frame, channel: true }
    }

    fn passage(&self, flow: u32) -> Passage {
        let source = self.relayed.get(flow as usize).copied();
        Passage { source, destination: far_peer(flow), hops: None }
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
