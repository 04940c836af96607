//! coturn: what a user would take instead. Each flow is an allocation with one channel.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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

use super::{Carried, Contender, Passage};
use crate::netns::lab::{Lab, PROCESS_CPU};
use crate::netns::traffic::Traffic;
use crate::netns::wire::{CHANNEL, Carrier, Destination, Shape, far_peer, near_leg, near_peer};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 3478);
/// Where it opens ports unless they have to be certain ones.
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 16);
const ALL_PORTS: [u16; 2] = [1024, 65_535];
const START_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const TRIES: usize = 5;
/// Longer than any run, in seconds; coturn grants no more.
const LIFETIME: u32 = 3600;

struct Coturn {
    lab: Lab,
    _listening: [OwnedFd; 2],
    _server: Process,
    directory: PathBuf,
    work: Work,
}

/// What it is to do.
enum Work {
    /// ChannelData of clients at the generator goes to their peers. Relayed transport addresses
    /// (RFC 8656 §2.1), by flow.
    ToPeer(Vec<SocketAddrV4>),
    /// Datagrams of peers at the generator go to the clients, here by flow.
    ToClient(Vec<SocketAddrV4>),
    /// Binding requests are answered.
    Binding,
}

/// Clients send ChannelData, their peers get plain datagrams.
pub(super) fn to_peer(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    coturn(traffic, label, (RELAY, ALL_PORTS), |lab| {
        let allocated = |flow| allocate(near_peer(flow), |_| far_peer(flow));
        let relayed = lab.generator.run(|| (0..flows).map(allocated).collect::<Result<_>>())??;
        Ok(Work::ToPeer(relayed))
    })
}

/// Peers send plain datagrams, the clients get ChannelData. There are as many ports as flows, so that
/// each is the one that a flow's packets go to; which client's it becomes is up to coturn.
pub(super) fn to_client(
    traffic: &mut Traffic,
    label: &str,
    flows: u32,
) -> Result<Box<dyn Contender>> {
    let ports = [near_leg(0).port(), near_leg(flows - 1).port()];
    let flow_at = move |relayed: SocketAddrV4| u32::from(relayed.port() - ports[0]);
    coturn(traffic, label, (*near_leg(0).ip(), ports), |lab| {
        let mut clients = vec![SERVER; flows as usize];
        let allocated = lab.sink.run(|| {
            let client = |flow| {
                let relayed = allocate(far_peer(flow), |at| near_peer(flow_at(at)))?;
                Ok((relayed, far_peer(flow)))
            };
            (0..flows).map(client).collect::<Result<Vec<_>>>()
        })??;
        for (relayed, client) in allocated {
            clients[flow_at(relayed) as usize] = client;
        }
        Ok(Work::ToClient(clients))
    })
}

/// Answers Binding requests.
pub(super) fn binding(traffic: &mut Traffic, label: &str, _: u32) -> Result<Box<dyn Contender>> {
    coturn(traffic, label, (RELAY, ALL_PORTS), |_| Ok(Work::Binding))
}

/// One relay thread on a CPU of its own; its relayed transport addresses are of these ports.
fn coturn(
    traffic: &mut Traffic,
    label: &str,
    relays: (Ipv4Addr, [u16; 2]),
    work: impl FnOnce(&Lab) -> Result<Work>,
) -> Result<Box<dyn Contender>> {
    let lab = Lab::new(label)?;
    let listening = traffic.listen(&lab)?;
    lab.poll_without_program()?;
    let directory = std::env::temp_dir().join(lab.relay.name());
    std::fs::create_dir_all(&directory)?;
    let server = start(&lab, relays, &directory)?;
    let work = work(&lab)?;
    Ok(Box::new(Coturn { lab, _listening: listening, _server: server, directory, work }))
}

fn start(lab: &Lab, (ip, ports): (Ipv4Addr, [u16; 2]), directory: &Path) -> Result<Process> {
    let [first, last] = ports.map(|port| port.to_string());
    let mut command = lab.relay.command("taskset");
    command
        .args(["--cpu-list", &PROCESS_CPU.to_string(), "turnserver", "-n", "--no-auth", "--no-cli"])
        .args(["--no-tcp", "--no-tls", "--no-dtls", "--no-tcp-relay", "--relay-threads", "1"])
        .args(["--listening-ip", &SERVER.ip().to_string(), "--relay-ip", &ip.to_string()])
        .args(["--min-port", &first, "--max-port", &last])
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

/// An allocation for a client, its channel bound to the peer that belongs to its relayed transport
/// address, which is returned.
fn allocate(
    client: SocketAddrV4,
    peer: impl Fn(SocketAddrV4) -> SocketAddrV4,
) -> Result<SocketAddrV4> {
    let socket = UdpSocket::bind(client)?;
    socket.connect(SERVER)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut request = Message::builder_request(ALLOCATE, MessageWriteVec::new());
    request.add_attribute(&RequestedTransport::new(RequestedTransport::UDP))?;
    request.add_attribute(&Lifetime::new(LIFETIME))?;
    let answer = ask(&socket, &request.finish())?;
    let answer = Message::from_bytes(&answer)?;
    let relayed = answer
        .attribute::<XorRelayedAddress>()
        .map_err(|_| anyhow::anyhow!("no allocation for {client}: {answer}"))?
        .addr(answer.transaction_id());
    let SocketAddr::V4(relayed) = relayed else {
        anyhow::bail!("a relayed address of the wrong family: {relayed}")
    };
    let mut request = Message::builder_request(CHANNEL_BIND, MessageWriteVec::new());
    let peer = XorPeerAddress::new(SocketAddr::V4(peer(relayed)), request.transaction_id());
    request.add_attribute(&ChannelNumber::new(CHANNEL))?;
    request.add_attribute(&peer)?;
    let answer = ask(&socket, &request.finish())?;
    let answer = Message::from_bytes(&answer)?;
    ensure!(
        answer.is_response() && !answer.has_class(MessageClass::Error),
        "no channel for {client}: {answer}"
    );
    Ok(relayed)
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
        let (destination, carrier) = match self.work {
            Work::ToPeer(_) => (Destination::One(SERVER), Carrier::Channel),
            Work::ToClient(_) => (Destination::OwnPort, Carrier::Plain),
            Work::Binding => (Destination::One(SERVER), Carrier::Binding),
        };
        Shape { destination, frame, carrier }
    }

    fn passage(&self, flow: u32) -> Passage {
        let of_flow = |addresses: &[SocketAddrV4]| addresses.get(flow as usize).copied();
        let (source, destination) = match &self.work {
            Work::ToPeer(relayed) => (of_flow(relayed), far_peer(flow)),
            Work::ToClient(clients) => (Some(SERVER), of_flow(clients).unwrap_or(SERVER)),
            Work::Binding => (Some(SERVER), near_peer(flow)),
        };
        Passage { source, destination, hops: None }
    }

    fn carried(&self) -> Carried {
        match self.work {
            Work::ToPeer(_) => Carried::Plain,
            Work::ToClient(_) => Carried::Channel(CHANNEL),
            Work::Binding => Carried::Answer,
        }
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
