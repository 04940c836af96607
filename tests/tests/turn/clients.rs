//! A client of another make against the server, over virtual time: what it does by itself for hours.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::{messages, whole};
use rawr_userspace::control::{Client, Command, ConnectionId, Count, Over, Source};
use stun_types::message::IntegrityAlgorithm;
use turn_client_proto::api::{
    Socket5Tuple, Transmit, TransmitBuild, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet,
};
use turn_client_proto::prelude::{DelayedTransmitBuild, TurnClientApi};
use turn_client_proto::stun::Instant;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::udp::TurnClientUdp;
use turn_types::{AddressFamily, TransportType, TurnCredentials};

use super::direct::{Direct, Sent, at, local};
use super::secs;

const PEER: &str = "203.0.113.5:9000";
const UDP: TransportType = TransportType::Udp;
const TCP: TransportType = TransportType::Tcp;

fn credentials() -> TurnConfig {
    TurnConfig::new(TurnCredentials::new("anna", "anna's secret"))
}

/// A client, the server, and what lies between.
struct Scene<C> {
    direct: Direct,
    client: C,
    over: Client,
    elapsed: Duration,
    /// What a stream has brought of messages that are not whole.
    held: Vec<u8>,
    events: VecDeque<TurnEvent>,
    /// What peers have sent to the client.
    received: Vec<(SocketAddr, Vec<u8>)>,
    /// What came to peers, from which port of the server.
    delivered: Vec<(Source, SocketAddr, Vec<u8>)>,
    /// Every how many-th datagram is lost, each way; 0 for none.
    loss: u64,
    datagrams: u64,
    ignored: u64,
}

impl Scene<TurnClientUdp> {
    fn udp(config: TurnConfig) -> Self {
        let from = at("192.0.2.1:5000");
        Self::new(TurnClientUdp::allocate(from, local(), config), Client::udp(local(), from))
    }
}

impl Scene<TurnClientTcp> {
    fn tcp(config: TurnConfig) -> Self {
        let remote = at("192.0.2.1:5000");
        let over = Client { local: local(), remote, over: Over::Tcp(ConnectionId(1)) };
        Self::new(TurnClientTcp::allocate(remote, local(), config), over)
    }
}

impl<C: TurnClientApi> Scene<C> {
    fn new(client: C, over: Client) -> Self {
        Self {
            direct: Direct::new(),
            client,
            over,
            elapsed: Duration::ZERO,
            held: Vec::new(),
            events: VecDeque::new(),
            received: Vec::new(),
            delivered: Vec::new(),
            loss: 0,
            datagrams: 0,
            ignored: 0,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.elapsed.as_nanos() as i64 + 1_000_000_000)
    }

    fn is_lost(&mut self) -> bool {
        self.datagrams += 1;
        self.loss != 0 && self.datagrams.is_multiple_of(self.loss)
    }

    /// Passes on all that is to be said now, until nobody has anything to say.
    fn pump(&mut self) {
        loop {
            let poll = self.client.poll(self.now());
            let now = self.now();
            let Some(transmit) = self.client.poll_transmit(now) else {
                if let TurnPollRet::AllocateTcpSocket { id, socket, peer_addr } = poll {
                    self.open_socket(id, socket, peer_addr);
                    continue;
                }
                break;
            };
            if !self.is_lost() {
                self.pass_to_server(&transmit.data);
            }
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push_back(event);
        }
    }

    fn pass_to_server(&mut self, bytes: &[u8]) {
        let sent = if self.over.over == Over::Udp {
            self.direct.control(&self.over, bytes)
        } else {
            self.held.extend_from_slice(bytes);
            let length = whole(&self.held).unwrap();
            let complete: Vec<u8> = self.held.drain(..length).collect();
            let over = self.over;
            messages(&complete).flat_map(|message| self.direct.control(&over, message)).collect()
        };
        self.take(sent);
    }

    /// Brings what the server sent to where it belongs.
    fn take(&mut self, sent: Vec<Sent>) {
        for Sent { from, to, bytes } in sent {
            let is_client = match from {
                Source::Control(_) => to == self.over.remote,
                Source::Connection(connection) => self.over.connection() == Some(connection),
                Source::Route | Source::Data(_) | Source::DataUnfragmented(_) => false,
            };
            if !is_client {
                self.delivered.push((from, to, bytes));
            } else if !self.is_lost() {
                let transport = if self.over.over == Over::Udp { UDP } else { TCP };
                let transmit = Transmit::new(bytes, transport, local(), self.over.remote);
                self.receive(transmit);
            }
        }
    }

    fn receive(&mut self, transmit: Transmit<Vec<u8>>) {
        let now = self.now();
        match self.client.recv(transmit, now) {
            TurnRecvRet::PeerData(data) => self.received.push((data.peer, data.data().to_vec())),
            TurnRecvRet::Handled | TurnRecvRet::PeerIcmp { .. } => {}
            // What it does not want to hear: that it is wrong.
            TurnRecvRet::Ignored(_) => self.ignored += 1,
        }
        while let Some(data) = self.client.poll_recv(now) {
            self.received.push((data.peer, data.data().to_vec()));
        }
    }

    /// Lets time pass, with all that happens in it.
    fn run(&mut self, span: Duration) {
        let end = self.elapsed + span;
        self.pump();
        while self.elapsed < end {
            let server = self.direct.server.poll_timeout().map(|(at, _)| {
                self.elapsed + at.saturating_duration_since(self.direct.now.monotonic)
            });
            let client = match self.client.poll(self.now()) {
                TurnPollRet::WaitUntil(at) => {
                    Some(self.elapsed + at.saturating_duration_since(self.now()))
                }
                TurnPollRet::Closed => None,
                other => panic!("{other:?}"),
            };
            let soonest = self.elapsed + Duration::from_millis(1);
            let next = server.into_iter().chain(client).min().unwrap_or(end).max(soonest).min(end);
            self.direct.advance(next - self.elapsed);
            self.elapsed = next;
            let sent = {
                self.direct.server.handle_timeout(self.direct.now);
                self.direct.drain()
            };
            self.take(sent);
            self.pump();
        }
    }

    fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        let now = self.now();
        let sent = self.client.send_to(UDP, peer, data.to_vec(), now).unwrap();
        if let Some(TransmitBuild { data, .. }) = sent {
            self.pass_to_server(&data.build());
        }
        self.pump();
    }

    fn peer_sends(&mut self, relayed: SocketAddr, peer: SocketAddr, data: &[u8]) {
        let sent = self.direct.data(relayed, peer, data);
        self.take(sent);
    }

    /// The relayed transport addresses, once they are allocated.
    fn allocate(&mut self) -> Vec<SocketAddr> {
        self.run(secs(5));
        self.client.relayed_addresses().map(|(_, relayed)| relayed).collect()
    }

    fn open_socket(&mut self, _: u32, _: Socket5Tuple, _: SocketAddr) {
        panic!("no TCP allocation here");
    }

    /// Sends both ways, with a permission and then with a channel. This client knows nothing of the
    /// padding of ChannelData over a stream, so that all lengths are multiples of four.
    fn exchange(&mut self, relayed: SocketAddr, peer: SocketAddr) {
        self.permit(relayed, peer);
        let now = self.now();
        self.client.bind_channel(UDP, peer, now).unwrap();
        self.run(secs(1));
        self.assert_relayed(relayed, peer, b"on a channel");
    }

    fn permit(&mut self, relayed: SocketAddr, peer: SocketAddr) {
        let now = self.now();
        self.client.create_permission(UDP, peer.ip(), now).unwrap();
        self.run(secs(1));
        self.assert_relayed(relayed, peer, b"sent");
    }

    fn assert_relayed(&mut self, relayed: SocketAddr, peer: SocketAddr, data: &[u8]) {
        self.send(peer, data);
        self.peer_sends(relayed, peer, data);
        let delivered: Vec<_> = self.delivered.drain(..).collect();
        assert_eq!(delivered, [(Source::Data(relayed), peer, data.to_vec())]);
        let received: Vec<_> = self.received.drain(..).collect();
        assert_eq!(received, [(peer, data.to_vec())]);
    }
}

#[test]
fn client_over_udp_keeps_its_allocation_for_hours() {
    let mut scene = Scene::udp(credentials());
    let relayed = scene.allocate();
    assert_eq!(relayed.len(), 1);
    scene.exchange(relayed[0], at(PEER));
    assert_eq!(scene.direct.flows.len(), 2);
    for _ in 0..24 {
        scene.run(secs(300));
        // It refreshes its allocation, its permission and its channel in time: nothing stops meanwhile.
        assert_eq!((scene.direct.server.allocation_count(), scene.direct.flows.len()), (1, 2));
    }
    assert_eq!(scene.direct.count(Count::PairedChannel), 1);
    assert!(scene.direct.count(Count::RefreshAllocation) >= 2);
    let now = scene.now();
    scene.client.delete(now).unwrap();
    scene.run(secs(1));
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.open.len()), (0, 0));
    assert!(scene.direct.flows.is_empty());
}

#[test]
fn client_that_goes_silent_is_forgotten() {
    let mut scene = Scene::udp(credentials());
    let relayed = scene.allocate();
    scene.exchange(relayed[0], at(PEER));
    scene.direct.pass(secs(3_600));
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.open.len()), (0, 0));
    assert!(scene.direct.flows.is_empty());
}

#[test]
fn lost_datagrams_are_made_up_for_by_retransmissions() {
    for loss in [3, 4, 5] {
        let mut scene = Scene::udp(credentials());
        scene.loss = loss;
        let mut relayed = Vec::new();
        for _ in 0..20 {
            relayed = scene.allocate();
            if !relayed.is_empty() {
                break;
            }
        }
        assert_eq!(relayed.len(), 1, "every {loss}th is lost");
        assert_eq!((scene.direct.server.allocation_count(), scene.direct.open.len()), (1, 1));
        let now = scene.now();
        scene.client.bind_channel(UDP, at(PEER), now).unwrap();
        scene.run(secs(30));
        assert_eq!(scene.direct.flows.len(), 2);
    }
}

#[test]
fn client_with_sha256_and_both_families() {
    let mut config = credentials();
    config.set_supported_integrity(IntegrityAlgorithm::Sha256);
    config.add_address_family(AddressFamily::IPV6);
    let mut scene = Scene::udp(config);
    let relayed = scene.allocate();
    assert_eq!(relayed.len(), 2);
    // Its channels have the same number in either family, which is one too many (RFC 8656 §12.2): it has
    // one here.
    let [v4, v6] = relayed[..] else { panic!("{relayed:?}") };
    scene.permit(v6, at("[2001:db8:2::5]:9000"));
    scene.exchange(v4, at(PEER));
    scene.run(secs(3_600));
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.flows.len()), (1, 2));
}

#[test]
fn client_over_tcp_is_relayed_by_userspace() {
    let mut scene = Scene::tcp(credentials());
    let relayed = scene.allocate();
    assert_eq!(relayed.len(), 1);
    scene.exchange(relayed[0], at(PEER));
    scene.run(secs(3_600));
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.flows.len()), (1, 0));
    let connection = scene.over.connection().unwrap();
    scene.direct.server.connection_gone(scene.direct.now, connection);
    scene.direct.drain();
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.open.len()), (0, 0));
}

#[test]
fn wrong_password_gets_no_allocation() {
    let mut scene = Scene::udp(TurnConfig::new(TurnCredentials::new("anna", "guess")));
    assert!(scene.allocate().is_empty());
    scene.run(secs(60));
    assert_eq!((scene.direct.server.allocation_count(), scene.direct.open.len()), (0, 0));
    assert!(scene.direct.count(Count::WrongIntegrity) >= 1);
}

#[test]
fn denied_peer_is_told_to_the_client() {
    let mut scene = Scene::udp(credentials());
    scene.allocate();
    let denied = at("127.0.0.1:80");
    let now = scene.now();
    scene.client.create_permission(UDP, denied.ip(), now).unwrap();
    scene.run(secs(1));
    let is_told = |event: &TurnEvent| matches!(event, TurnEvent::PermissionCreateFailed(_, _));
    assert!(scene.events.iter().any(is_told), "{:?}", scene.events);
}

#[test]
fn client_with_a_tcp_allocation_connects_to_a_peer() {
    let mut config = credentials();
    config.set_allocation_transport(TCP);
    let mut scene = Scene::tcp(config);
    let relayed = scene.allocate();
    assert_eq!(relayed.len(), 1);
    let now = scene.now();
    scene.client.create_permission(TCP, at(PEER).ip(), now).unwrap();
    scene.run(secs(1));
    let now = scene.now();
    scene.client.tcp_connect(at(PEER), now).unwrap();
    scene.pump();
    let (attempt, from, to) = scene.direct.attempts.remove(0);
    assert_eq!((from, to), (relayed[0], at(PEER)));
    scene.direct.server.peer_connected(scene.direct.now, attempt, Ok(ConnectionId(50)));
    let sent = scene.direct.drain();
    scene.take(sent);
    let TurnPollRet::AllocateTcpSocket { id, socket, peer_addr } = scene.client.poll(scene.now())
    else {
        panic!("no socket is asked for");
    };
    // Its second stream, which ConnectionBind makes one with the peer's.
    let second = at("192.0.2.1:5001");
    let now = scene.now();
    scene.client.allocated_tcp_socket(id, socket, peer_addr, Some(second), now).unwrap();
    let data = Client { local: local(), remote: second, over: Over::Tcp(ConnectionId(2)) };
    // At another port it needs another nonce; and it leaves a pause between two requests.
    for _ in 0..2 {
        scene.elapsed += secs(1);
        scene.direct.advance(secs(1));
        let now = scene.now();
        scene.client.poll(now);
        while let Some(transmit) = scene.client.poll_transmit(now) {
            assert_eq!(transmit.from, second);
            for Sent { bytes, .. } in scene.direct.control(&data, &transmit.data) {
                scene.receive(Transmit::new(bytes, TCP, local(), second));
            }
        }
    }
    scene.pump();
    let splice = Command::Splice { client: ConnectionId(2), peer: ConnectionId(50) };
    assert_eq!(scene.direct.commands, [splice]);
    let is_there = |event: &TurnEvent| matches!(event, TurnEvent::TcpConnected(_));
    assert!(scene.events.iter().any(is_there), "{:?}", scene.events);
}
