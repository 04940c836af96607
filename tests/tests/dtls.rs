//! Clients over DTLS, by real sockets on the loopback.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dimpl::{Config, Dtls, DtlsCertificate, Output};
use rawr_userspace::control::{ConnectionId, Over};
use rawr_userspace::io::clock::monotonic;
use rawr_userspace::io::streams::{
    CertificateFiles, Settings, StreamEvent, Streams, StreamsError, Timeouts,
};
use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Nothing here takes that long; a test that waits for nothing fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    streams: Streams,
    events: mpsc::Receiver<StreamEvent>,
}

impl Server {
    fn open(name: &str, settings: Settings) -> Self {
        Self::try_open(name, &rcgen::PKCS_ECDSA_P256_SHA256, settings).unwrap()
    }

    fn try_open(
        name: &str,
        algorithm: &'static SignatureAlgorithm,
        settings: Settings,
    ) -> Result<Self, StreamsError> {
        let folder = std::env::temp_dir().join(format!("rawr-dtls-{name}-{}", std::process::id()));
        let certificate = Some(issue(&folder, algorithm));
        let settings = Settings { dtls: vec![LOOPBACK], certificate, ..settings };
        let opened = Streams::open(&settings);
        std::fs::remove_dir_all(folder).unwrap();
        opened.map(|(streams, events)| Self { streams, events })
    }

    fn address(&self) -> SocketAddr {
        self.streams.bound_dtls()[0]
    }
}

fn issue(folder: &Path, algorithm: &'static SignatureAlgorithm) -> CertificateFiles {
    std::fs::create_dir_all(folder).unwrap();
    let key = KeyPair::generate_for(algorithm).unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let files =
        CertificateFiles { certificate: folder.join("chain.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// The library's own client, which shares nothing with the server but the library.
struct Client {
    socket: UdpSocket,
    dtls: Dtls,
    is_connected: bool,
    is_closed: bool,
    received: VecDeque<Vec<u8>>,
}

impl Client {
    async fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
        socket.connect(server).await.unwrap();
        Self {
            socket,
            dtls: dtls_client(),
            is_connected: false,
            is_closed: false,
            received: VecDeque::new(),
        }
    }

    async fn connected(server: SocketAddr) -> Self {
        let mut client = Self::new(server).await;
        client.until(|client| client.is_connected).await;
        client
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        timeout(PATIENCE, async {
            let mut datagram = [0; 2048];
            loop {
                let due = self.put_out().await;
                if done(self) {
                    return;
                }
                tokio::select! {
                    length = self.socket.recv(&mut datagram) => {
                        self.dtls.handle_timeout(monotonic()).unwrap();
                        self.dtls.handle_packet(&datagram[..length.unwrap()]).unwrap();
                    }
                    () = tokio::time::sleep_until(due.into()) => {
                        self.dtls.handle_timeout(monotonic()).unwrap();
                    }
                }
            }
        })
        .await
        .expect("it did not come to that");
    }

    async fn put_out(&mut self) -> std::time::Instant {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.dtls.poll_output(&mut buffer) {
                Output::Packet(bytes) => _ = self.socket.send(bytes).await.unwrap(),
                Output::Connected => self.is_connected = true,
                Output::ApplicationData(bytes) => self.received.push_back(bytes.to_vec()),
                Output::CloseNotify => self.is_closed = true,
                Output::Timeout(due) => return due,
                _ => {}
            }
        }
    }

    async fn send(&mut self, message: &[u8]) {
        self.dtls.send_application_data(message).unwrap();
        self.put_out().await;
    }
}

fn dtls_client() -> Dtls {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let certificate = DtlsCertificate {
        certificate: certificate.der().to_vec(),
        private_key: key.serialize_der(),
    };
    let config = Arc::new(Config::builder().build().unwrap());
    let mut dtls = Dtls::new_12(config, certificate, monotonic());
    dtls.set_active(true);
    dtls.handle_timeout(monotonic()).unwrap();
    dtls
}

/// The next message, from whom, and the association's name.
async fn message(server: &mut Server) -> (ConnectionId, SocketAddr, Vec<u8>) {
    loop {
        match timeout(PATIENCE, server.events.recv()).await.expect("no event came").unwrap() {
            StreamEvent::Message { client, bytes } => {
                let Over::Dtls(id) = client.over else { panic!("{client:?}") };
                assert_eq!(client.local, server.address());
                return (id, client.remote, bytes.to_vec());
            }
            StreamEvent::Gone(id) => _ = server.streams.ended(id),
            other => panic!("{other:?}"),
        }
    }
}

async fn gone(server: &mut Server) -> ConnectionId {
    loop {
        if let StreamEvent::Gone(id) =
            timeout(PATIENCE, server.events.recv()).await.unwrap().unwrap()
        {
            server.streams.ended(id);
            return id;
        }
    }
}

fn channel_data(length: u8) -> Vec<u8> {
    let mut bytes = vec![0x40, 1, 0, length];
    bytes.resize(4 + usize::from(length), length);
    bytes
}

#[tokio::test]
async fn messages_go_both_ways_each_by_itself() {
    let mut server = Server::open("messages", Settings::default());
    let mut client = Client::connected(server.address()).await;
    for length in [0, 5, 101] {
        client.send(&channel_data(length)).await;
        let (id, from, bytes) = message(&mut server).await;
        assert_eq!(from, client.socket.local_addr().unwrap());
        assert_eq!(bytes, channel_data(length));
        // Two at once: in two records, without the padding of streams.
        for answer in [channel_data(length), channel_data(7)] {
            assert!(server.streams.send(id, &answer));
        }
    }
    client.until(|client| client.received.len() == 6).await;
    let expected = [0, 7, 5, 7, 101, 7].map(channel_data);
    assert_eq!(client.received, expected);
    assert_eq!(server.streams.totals().open, 1);
}

#[tokio::test]
async fn either_side_ends_an_association() {
    let mut server = Server::open("ends", Settings::default());
    let mut client = Client::connected(server.address()).await;
    client.send(b"first").await;
    let (id, ..) = message(&mut server).await;
    client.dtls.close().unwrap();
    client.put_out().await;
    assert_eq!(gone(&mut server).await, id);

    let mut client = Client::connected(server.address()).await;
    client.send(b"second").await;
    let (id, ..) = message(&mut server).await;
    server.streams.close(id);
    client.until(|client| client.is_closed).await;
    assert!(!server.streams.send(id, b"late"));
}

#[tokio::test]
async fn a_silent_client_is_forgotten() {
    let timeouts = Timeouts { handshake: Duration::from_secs(10), idle: Duration::from_millis(50) };
    let mut server = Server::open("silent", Settings { timeouts, ..Settings::default() });
    let mut client = Client::connected(server.address()).await;
    client.send(b"first").await;
    let (id, ..) = message(&mut server).await;
    assert_eq!(gone(&mut server).await, id);
    client.until(|client| client.is_closed).await;
}

#[tokio::test]
async fn a_source_that_has_proven_nothing_leaves_no_state_and_gets_less_than_it_sent() {
    let settings = Settings { unverified_per_second: 5, ..Settings::default() };
    let server = Server::open("forged", settings);
    let mut answers = 0;
    for _ in 0..20 {
        let mut client = Client::new(server.address()).await;
        let mut buffer = vec![0; 2048];
        let Output::Packet(hello) = client.dtls.poll_output(&mut buffer) else {
            panic!("no hello")
        };
        client.socket.send(hello).await.unwrap();
        let mut answer = [0; 2048];
        // The server's task runs while this one waits; the rate leaves some without an answer.
        let waited = timeout(Duration::from_millis(100), client.socket.recv(&mut answer)).await;
        let Ok(Ok(length)) = waited else { continue };
        assert!(length <= hello.len(), "{length} for {}", hello.len());
        assert_eq!((answer[0], answer[13]), (22, 3), "HelloVerifyRequest");
        answers += 1;
    }
    println!("{answers} of 20 were answered");
    assert!(answers >= 1);
    let totals = server.streams.totals();
    assert_eq!((totals.accepted, totals.open), (0, 0));
}

#[tokio::test]
async fn a_cookie_of_another_address_is_asked_for_again() {
    let server = Server::open("stolen", Settings::default());
    let mut client = Client::new(server.address()).await;
    let thief = UdpSocket::bind(LOOPBACK).await.unwrap();
    thief.connect(server.address()).await.unwrap();
    let (mut buffer, mut answer) = (vec![0; 2048], [0; 2048]);
    let mut ask = async |socket: &UdpSocket, hello: &[u8]| {
        socket.send(hello).await.unwrap();
        let length = timeout(PATIENCE, socket.recv(&mut answer)).await.unwrap().unwrap();
        assert_eq!((answer[0], answer[13]), (22, 3), "HelloVerifyRequest");
        answer[..length].to_vec()
    };
    let Output::Packet(hello) = client.dtls.poll_output(&mut buffer) else { panic!("no hello") };
    let question = ask(&client.socket, hello).await;
    client.dtls.handle_packet(&question).unwrap();
    let Output::Packet(proof) = client.dtls.poll_output(&mut buffer) else { panic!("no hello") };
    assert_ne!(ask(&thief, proof).await, question, "its own cookie");
    assert_eq!(server.streams.totals().accepted, 0);
}

#[tokio::test]
async fn a_client_that_begins_anew_replaces_its_association() {
    let mut server = Server::open("anew", Settings::default());
    let mut client = Client::connected(server.address()).await;
    client.send(b"first").await;
    let (first, ..) = message(&mut server).await;
    client.dtls = dtls_client();
    client.is_connected = false;
    // What the old association says last is none of the new one's.
    client.until(|client| client.is_connected).await;
    client.send(b"second").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match timeout(PATIENCE, server.events.recv()).await.unwrap().unwrap() {
            StreamEvent::Gone(id) => {
                assert_eq!(id, first);
                server.streams.ended(id);
                seen.push("gone");
            }
            StreamEvent::Message { client, bytes } => {
                assert_ne!(client.over, Over::Dtls(first));
                assert_eq!(&bytes[..], b"second");
                seen.push("message");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.contains(&"gone") && seen.contains(&"message"), "{seen:?}");
}

#[tokio::test]
async fn there_are_no_more_associations_than_the_limit() {
    let settings = Settings { connections_per_prefix: 1, ..Settings::default() };
    let mut server = Server::open("limit", settings);
    let mut first = Client::connected(server.address()).await;
    first.send(b"first").await;
    message(&mut server).await;
    let mut second = Client::new(server.address()).await;
    let waited = timeout(Duration::from_millis(300), second.until(|it| it.is_connected)).await;
    assert!(waited.is_err(), "a second one of the same prefix");
    let totals = server.streams.totals();
    assert_eq!((totals.accepted, totals.open), (1, 1));
    assert!(totals.refused >= 1);
    first.send(b"still there").await;
    assert_eq!(message(&mut server).await.2, b"still there");
}

#[tokio::test]
async fn a_key_that_dtls_cannot_use_is_refused_at_the_start() {
    let refused = Server::try_open("ed25519", &rcgen::PKCS_ED25519, Settings::default());
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("needs ECDSA P-256 or P-384"), "{error}");
    assert!(error.contains("key.pem"), "{error}");
}
