//! Streams of clients and peers, by real sockets on the loopback.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rawr_proto::messages;
use rawr_userspace::control::{AttemptId, Client, ConnectError, ConnectionId, Over};
use rawr_userspace::dataplane::slow_path::On;
use rawr_userspace::io::streams::{CertificateFiles, Settings, StreamEvent, Streams, Timeouts};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Nothing here takes that long; a test that waits for nothing fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// Streams, and what they report.
struct Server {
    streams: Streams,
    events: mpsc::Receiver<StreamEvent>,
}

impl Server {
    fn open(settings: &Settings) -> Self {
        let (streams, events) = Streams::open(settings).unwrap();
        Self { streams, events }
    }

    fn tcp() -> Self {
        Self::open(&Settings { tcp: vec![LOOPBACK], ..Settings::default() })
    }

    fn address(&self) -> SocketAddr {
        self.streams.bound()[0]
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    async fn event(&mut self) -> StreamEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("no event came").unwrap()
    }

    /// The next messages of a client. Streams that end meanwhile are forgotten.
    async fn messages(&mut self) -> (Client, Vec<Vec<u8>>) {
        loop {
            match self.event().await {
                StreamEvent::Messages { client, bytes } => {
                    return (client, messages(&bytes).map(<[u8]>::to_vec).collect());
                }
                StreamEvent::Gone(connection) => {
                    self.streams.ended(connection);
                }
                other => panic!("{other:?} instead of messages"),
            }
        }
    }

    async fn connection(&mut self) -> ConnectionId {
        self.messages().await.0.connection().unwrap()
    }

    async fn gone(&mut self) -> ConnectionId {
        loop {
            match self.event().await {
                StreamEvent::Gone(connection) => return connection,
                StreamEvent::Messages { .. } => {}
                other => panic!("{other:?} instead of an end"),
            }
        }
    }
}

fn binding(number: u8) -> Vec<u8> {
    let mut bytes = vec![0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    bytes.resize(20, number);
    bytes
}

fn answer(number: u8) -> Vec<u8> {
    let mut bytes = binding(number);
    bytes[0] = 0x01;
    bytes
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40, 0x01];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

async fn read_exactly(stream: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("nothing came").unwrap();
    bytes
}

/// Reads until the other end closes; a reset is an end, too.
async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it did not end");
    bytes
}

#[tokio::test]
async fn messages_come_whole_and_answers_go_back() {
    let mut server = Server::tcp();
    let mut stream = server.connect().await;
    let data = channel_data(b"odd");
    let sent = [binding(1), [&data[..], &[0]].concat(), binding(2)].concat();
    let (first, second) = sent.split_at(23);
    stream.write_all(first).await.unwrap();
    let (client, received) = server.messages().await;
    assert_eq!(received, [binding(1)]);
    assert_eq!((client.local, client.remote), (server.address(), stream.local_addr().unwrap()));
    stream.write_all(second).await.unwrap();
    let (again, received) = server.messages().await;
    assert_eq!((again, received), (client, vec![data.clone(), binding(2)]));

    let Over::Tcp(connection) = client.over else { panic!("{client:?}") };
    assert!(server.streams.send(connection, &data));
    assert!(server.streams.send(connection, &answer(1)));
    let received = read_exactly(&mut stream, 28).await;
    assert_eq!(received, [answer(1), data, vec![0]].concat(), "answers first, data padded");

    drop(stream);
    assert_eq!(server.gone().await, connection);
    assert_eq!(server.streams.ended(connection), None);
    assert!(!server.streams.send(connection, &answer(2)));
}

#[tokio::test]
async fn every_stream_has_a_name_of_its_own() {
    let mut server = Server::tcp();
    let mut names = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream.write_all(&binding(0)).await.unwrap();
        names.push(server.connection().await);
        drop(stream);
        let gone = server.gone().await;
        server.streams.ended(gone);
    }
    names.dedup();
    assert_eq!(names.len(), 3);
}

#[tokio::test]
async fn what_is_no_stun_ends_the_stream() {
    let mut server = Server::tcp();
    let mut stream = server.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
    let gone = server.gone().await;
    server.streams.ended(gone);
    assert_eq!(read_to_end(&mut stream).await, b"");
}

#[tokio::test]
async fn a_closed_stream_has_taken_what_waited() {
    let mut server = Server::tcp();
    let mut stream = server.connect().await;
    stream.write_all(&binding(1)).await.unwrap();
    let connection = server.connection().await;
    server.streams.send(connection, &channel_data(&[7; 1000]));
    server.streams.send(connection, &answer(1));
    assert_eq!(server.streams.close(connection), None);
    assert_eq!(read_to_end(&mut stream).await.len(), 20 + 1004);
}

#[tokio::test]
async fn a_last_request_is_answered_although_the_client_has_ended_its_side() {
    let mut server = Server::tcp();
    let mut stream = server.connect().await;
    stream.write_all(&binding(1)).await.unwrap();
    stream.shutdown().await.unwrap();
    let connection = server.connection().await;
    server.streams.send(connection, &answer(1));
    assert_eq!(server.gone().await, connection);
    server.streams.ended(connection);
    assert_eq!(read_to_end(&mut stream).await, answer(1));
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_whole_messages_and_no_answer() {
    let mut server =
        Server::open(&Settings { tcp: vec![LOOPBACK], send_queue: 1 << 18, ..Settings::default() });
    let mut stream = server.connect().await;
    stream.write_all(&binding(1)).await.unwrap();
    let connection = server.connection().await;
    let data = channel_data(&[9; 1200]);
    let mut taken = 0;
    // More than any socket buffer holds.
    for _ in 0..40_000 {
        taken += usize::from(server.streams.send(connection, &data));
        if server.streams.take_touched() {
            tokio::task::yield_now().await;
        }
    }
    assert!(server.streams.totals().dropped > 0);
    assert_eq!(taken as u64 + server.streams.totals().dropped, 40_000);
    assert!(server.streams.send(connection, &answer(3)), "answers have room of their own");
    server.streams.close(connection);
    let received = read_to_end(&mut stream).await;
    let told: Vec<&[u8]> = messages(&received).collect();
    assert_eq!(told.len(), taken + 1);
    assert!(told.iter().all(|message| *message == data || *message == answer(3)));
}

#[tokio::test]
async fn streams_are_limited_by_prefix_and_make_room_when_they_end() {
    let mut server = Server::open(&Settings {
        tcp: vec![LOOPBACK],
        connections_per_prefix: 2,
        ..Settings::default()
    });
    let mut open = Vec::new();
    for number in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(&binding(number)).await.unwrap();
        server.messages().await;
        open.push(stream);
    }
    let mut refused = server.connect().await;
    assert_eq!(read_to_end(&mut refused).await, b"");
    let totals = server.streams.totals();
    assert_eq!((totals.open, totals.accepted, totals.refused), (2, 2, 1));

    open.pop();
    let gone = server.gone().await;
    server.streams.ended(gone);
    while server.streams.totals().open == 2 {
        tokio::task::yield_now().await;
    }
    let mut stream = server.connect().await;
    stream.write_all(&binding(4)).await.unwrap();
    server.messages().await;
}

#[tokio::test]
async fn silent_clients_are_closed_before_and_after_their_first_message() {
    let short = Duration::from_millis(100);
    let mut server = Server::open(&Settings {
        tcp: vec![LOOPBACK],
        timeouts: Timeouts { handshake: short, idle: 2 * short },
        ..Settings::default()
    });
    let mut silent = server.connect().await;
    silent.write_all(&binding(1)[..19]).await.unwrap();
    let gone = server.gone().await;
    server.streams.ended(gone);
    assert_eq!(read_to_end(&mut silent).await, b"");

    let mut idle = server.connect().await;
    idle.write_all(&binding(1)).await.unwrap();
    let connection = server.connection().await;
    assert_eq!(server.gone().await, connection);
    server.streams.ended(connection);
    assert_eq!(read_to_end(&mut idle).await, b"");
}

/// Each idle stream used to be able to hold one of the places for events.
#[tokio::test]
async fn many_idle_streams_do_not_keep_one_from_being_served() {
    let mut server = Server::tcp();
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(server.connect().await);
    }
    let mut stream = server.connect().await;
    stream.write_all(&binding(1)).await.unwrap();
    assert_eq!(server.messages().await.1, [binding(1)]);
}

/// A certificate in a folder of its own, and a client that trusts it alone.
struct Authority {
    folder: PathBuf,
    files: CertificateFiles,
    trusted: RootCertStore,
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("rawr-streams-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let files =
            CertificateFiles { certificate: folder.join("chain.pem"), key: folder.join("key.pem") };
        let mut authority = Self { folder, files, trusted: RootCertStore::empty() };
        authority.issue();
        authority
    }

    /// Writes a new certificate, which from now on is trusted, too.
    fn issue(&mut self) -> CertificateDer<'static> {
        let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(&self.files.certificate, issued.cert.pem()).unwrap();
        fs::write(&self.files.key, issued.signing_key.serialize_pem()).unwrap();
        self.trusted.add(issued.cert.der().clone()).unwrap();
        issued.cert.der().clone()
    }

    fn settings(&self) -> Settings {
        Settings {
            tls: vec![LOOPBACK],
            certificate: Some(self.files.clone()),
            ..Settings::default()
        }
    }

    async fn connect(
        &self,
        to: SocketAddr,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(self.trusted.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(to).await?;
        let connector = TlsConnector::from(Arc::new(config));
        timeout(PATIENCE, connector.connect(name, stream)).await.expect("no TLS")
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), server: &mut Server) -> Client {
    stream.write_all(&binding(5)).await.unwrap();
    stream.flush().await.unwrap();
    let (client, received) = server.messages().await;
    assert_eq!(received, [binding(5)]);
    assert!(server.streams.send(client.connection().unwrap(), &answer(5)));
    assert_eq!(read_exactly(stream, 20).await, answer(5));
    client
}

#[tokio::test]
async fn tls_agrees_on_a_protocol_of_stun_or_on_none() {
    let authority = Authority::new("alpn");
    let mut server = Server::open(&authority.settings());
    for (offered, agreed) in [
        (&[&b"stun.turn"[..]][..], Some(&b"stun.turn"[..])),
        (&[b"h2", b"stun.nat-discovery"], Some(b"stun.nat-discovery")),
        (&[], None),
    ] {
        let mut stream = authority.connect(server.address(), offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        let client = ask(&mut stream, &mut server).await;
        assert!(matches!(client.over, Over::Tls(_)));
        drop(stream);
        let gone = server.gone().await;
        server.streams.ended(gone);
    }
    let refused = authority.connect(server.address(), &[b"h2"]).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
}

#[tokio::test]
async fn one_port_serves_tcp_and_tls() {
    let authority = Authority::new("both");
    let settings = Settings { tcp: vec![LOOPBACK], ..authority.settings() };
    let mut server = Server::open(&settings);
    assert_eq!(server.streams.bound().len(), 1);
    let mut plain = server.connect().await;
    let client = ask(&mut plain, &mut server).await;
    assert!(matches!(client.over, Over::Tcp(_)));
    let mut secure = authority.connect(server.address(), &[]).await.unwrap();
    let client = ask(&mut secure, &mut server).await;
    assert!(matches!(client.over, Over::Tls(_)));
}

#[tokio::test]
async fn tls_carries_much_data_and_ends_in_order() {
    let authority = Authority::new("data");
    let mut server = Server::open(&authority.settings());
    let mut stream = authority.connect(server.address(), &[]).await.unwrap();
    let connection = ask(&mut stream, &mut server).await.connection().unwrap();
    let data = channel_data(&[3; 1201]);
    for _ in 0..500 {
        assert!(server.streams.send(connection, &data));
    }
    server.streams.close(connection);
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().expect("no close_notify");
    assert_eq!(messages(&received).filter(|message| *message == data).count(), 500);
}

/// coturn's test client takes each TLS record for one message.
#[tokio::test]
async fn each_message_is_a_tls_record_of_its_own() {
    let authority = Authority::new("records");
    let mut server = Server::open(&authority.settings());
    let mut stream = authority.connect(server.address(), &[]).await.unwrap();
    let connection = ask(&mut stream, &mut server).await.connection().unwrap();
    let sent: Vec<_> = (1..=20).map(|length| channel_data(&[4; 60][..length * 3])).collect();
    sent.iter().for_each(|data| assert!(server.streams.send(connection, data)));
    let (tcp, tls) = stream.get_mut();
    for data in &sent {
        let header = read_exactly(tcp, 5).await;
        let length = u16::from_be_bytes([header[3], header[4]]);
        let record = [header, read_exactly(tcp, usize::from(length)).await].concat();
        tls.read_tls(&mut &record[..]).unwrap();
        tls.process_new_packets().unwrap();
        let mut message = vec![0; 1000];
        let count = std::io::Read::read(&mut tls.reader(), &mut message).unwrap();
        assert_eq!(messages(&message[..count]).collect::<Vec<_>>(), [&data[..]]);
    }
}

#[tokio::test]
async fn a_plain_client_gets_nothing_on_a_port_for_tls() {
    let authority = Authority::new("plain");
    let mut server = Server::open(&authority.settings());
    let mut stream = server.connect().await;
    stream.write_all(&binding(1)).await.unwrap();
    let received = read_to_end(&mut stream).await;
    assert_eq!(received.first(), Some(&21), "a TLS alert: {received:02x?}");
    assert!(server.events.try_recv().is_err());
    assert_eq!(server.streams.totals().failed, 1);
}

#[tokio::test]
async fn a_new_certificate_is_used_at_a_signal_and_a_bad_one_is_not() {
    let mut authority = Authority::new("reload");
    let mut server = Server::open(&authority.settings());
    let shown = async |authority: &Authority, server: &Server| {
        let stream = authority.connect(server.address(), &[]).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let first = shown(&authority, &server).await;
    let mut open = authority.connect(server.address(), &[]).await.unwrap();

    let key = fs::read(&authority.files.key).unwrap();
    let second = authority.issue();
    let good = fs::read(&authority.files.key).unwrap();
    fs::write(&authority.files.key, &key).unwrap();
    hang_up();
    for _ in 0..20 {
        assert_eq!(shown(&authority, &server).await, first, "key and certificate do not fit");
    }
    fs::write(&authority.files.key, &good).unwrap();
    hang_up();
    let reloaded = async {
        while shown(&authority, &server).await != second {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reloaded).await.expect("the certificate stays the old one");
    ask(&mut open, &mut server).await;
}

/// Sends this process SIGHUP.
fn hang_up() {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
}

#[tokio::test]
async fn tls_without_certificate_is_refused_at_the_start() {
    let settings = Settings { tls: vec![LOOPBACK], ..Settings::default() };
    let error = Streams::open(&settings).unwrap_err().to_string();
    assert!(error.contains("turn.certificate"), "{error}");
}

/// A server with a client's stream and a TCP port.
async fn relay() -> (Server, TcpStream, ConnectionId, SocketAddr) {
    let mut server = Server::tcp();
    let mut client = server.connect().await;
    client.write_all(&binding(1)).await.unwrap();
    let connection = server.connection().await;
    let local = server.streams.open_port(On::Address(LOOPBACK.ip()), &|_| true).unwrap();
    (server, client, connection, local)
}

#[tokio::test]
async fn bytes_pass_between_a_client_and_a_peer_that_connects() {
    let (mut server, mut client, connection, local) = relay().await;
    let mut remote = TcpStream::connect(local).await.unwrap();
    remote.write_all(b"early").await.unwrap();
    let StreamEvent::PeerAccepted { local: at, remote: from, peer } = server.event().await else {
        panic!("no peer")
    };
    assert_eq!((at, from), (local, remote.local_addr().unwrap()));
    server.streams.send(connection, &answer(9));
    assert!(server.streams.splice(connection, peer));
    assert!(!server.streams.splice(connection, peer), "only once");
    assert_eq!(read_exactly(&mut client, 20).await, answer(9));
    assert_eq!(read_exactly(&mut client, 5).await, b"early");

    let much: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut peer_reads, mut peer_writes) = remote.into_split();
    let up = async {
        client_writes.write_all(&much).await.unwrap();
        client_writes.shutdown().await.unwrap();
    };
    let down = async {
        peer_writes.write_all(&much).await.unwrap();
        peer_writes.shutdown().await.unwrap();
    };
    let all = async {
        tokio::join!(up, down, read_to_end(&mut client_reads), read_to_end(&mut peer_reads))
    };
    let ((), (), at_client, at_peer) = timeout(PATIENCE, all).await.expect("not all came");
    assert!(at_client == much && at_peer == much);
    assert_eq!(server.gone().await, connection);
    assert_eq!(server.streams.ended(connection), Some(peer));
}

#[tokio::test]
async fn a_connection_to_a_peer_leaves_from_the_relayed_address() {
    let (mut server, mut client, connection, local) = relay().await;
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let to = listener.local_addr().unwrap();
    server.streams.connect(AttemptId(1), local, to);
    let (mut remote, from) = listener.accept().await.unwrap();
    assert_eq!(from, local);
    let StreamEvent::PeerConnected { attempt: AttemptId(1), result: Ok(peer) } =
        server.event().await
    else {
        panic!("no connection")
    };
    server.streams.connect(AttemptId(2), local, to);
    let again = server.event().await;
    assert!(
        matches!(
            again,
            StreamEvent::PeerConnected { attempt: AttemptId(2), result: Err(ConnectError::Exists) }
        ),
        "{again:?}"
    );

    assert!(server.streams.splice(connection, peer));
    client.write_all(b"up").await.unwrap();
    assert_eq!(read_exactly(&mut remote, 2).await, b"up");
    assert_eq!(server.streams.close(peer), Some(connection), "the client's stream ends with it");
    assert_eq!(read_to_end(&mut client).await, b"");
    assert_eq!(read_to_end(&mut remote).await, b"");
}

#[tokio::test]
async fn a_peer_that_refuses_and_a_port_that_closes_are_told() {
    let (mut server, _client, _, local) = relay().await;
    let nobody = {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        listener.local_addr().unwrap()
    };
    let failed = async |server: &mut Server| match server.event().await {
        StreamEvent::PeerConnected { result: Err(ConnectError::Failed), attempt } => attempt,
        other => panic!("{other:?}"),
    };
    server.streams.connect(AttemptId(1), local, nobody);
    assert_eq!(failed(&mut server).await, AttemptId(1));
    assert!(server.streams.close_port(local));
    assert!(!server.streams.close_port(local));
    server.streams.connect(AttemptId(2), local, nobody);
    assert_eq!(failed(&mut server).await, AttemptId(2));
    let closed = async {
        while TcpStream::connect(local).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, closed).await.expect("the port is open still");
}

#[tokio::test]
async fn a_tcp_port_is_nobody_elses() {
    let taken = std::net::TcpListener::bind("127.0.0.1:20401").unwrap();
    let mut server = Server::open(&Settings {
        tcp: vec![LOOPBACK],
        relay_ports: 20_401..=20_402,
        ..Settings::default()
    });
    let on = On::Address(LOOPBACK.ip());
    assert_eq!(server.streams.open_port(on, &|_| true).unwrap().port(), 20_402);
    assert!(server.streams.open_port(on, &|_| true).is_err());
    drop(taken);
    assert!(server.streams.open_port(on, &|at| at.port() != 20_401).is_err());
    assert_eq!(server.streams.open_port(on, &|_| true).unwrap().port(), 20_401);
}

/// A daemon on the loopback; ends when dropped.
struct Daemon {
    child: std::process::Child,
    folder: PathBuf,
}

impl Daemon {
    fn start(authority: &Authority, port: u16) -> Self {
        let folder = authority.folder.join("daemon");
        fs::create_dir_all(&folder).unwrap();
        let CertificateFiles { certificate, key } = &authority.files;
        let config = format!(
            "kind = \"root\"\ndatapath = \"userspace\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             data_ports = \"{}-{}\"\nstate_dir = {folder:?}\n[turn]\n\
             listen_tcp = [\"127.0.0.1:{port}\"]\nlisten_tls = [\"127.0.0.1:{port}\"]\n\
             certificate = {certificate:?}\nkey = {key:?}\n",
            port + 1,
            port + 20,
        );
        let file = folder.join("rawr.toml");
        fs::write(&file, config).unwrap();
        let test = std::env::current_exe().unwrap();
        let command = test.ancestors().nth(2).unwrap().join("rawr");
        assert!(command.exists(), "{} is missing: cargo build", command.display());
        let child =
            std::process::Command::new(command).arg("serve").arg("--config").arg(file).spawn();
        Self { child: child.unwrap(), folder }
    }

    async fn connect(&mut self, port: u16) -> TcpStream {
        let connected = async {
            loop {
                if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                    return stream;
                }
                assert_eq!(self.child.try_wait().unwrap(), None, "the daemon has ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, connected).await.expect("the daemon does not listen")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Asks for the own address, and checks what comes.
async fn ask_daemon(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), own: SocketAddr) {
    stream.write_all(&binding(7)).await.unwrap();
    stream.flush().await.unwrap();
    let head = read_exactly(stream, 20).await;
    assert_eq!((&head[..2], &head[4..]), (&[1, 1][..], &binding(7)[4..]));
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let attributes = read_exactly(stream, length).await;
    let [0x00, 0x20, 0, 8, 0, 1, high, low, ..] = attributes[..] else {
        panic!("{attributes:02x?}")
    };
    assert_eq!(u16::from_be_bytes([high, low]) ^ 0x2112, own.port());
}

#[tokio::test]
async fn the_daemon_tells_clients_over_tcp_and_tls_their_address() {
    let (authority, port) = (Authority::new("daemon"), 20_640);
    let mut daemon = Daemon::start(&authority, port);
    let mut plain = daemon.connect(port).await;
    let own = plain.local_addr().unwrap();
    ask_daemon(&mut plain, own).await;
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let mut secure = authority.connect(to, &[b"stun.turn"]).await.unwrap();
    let own = secure.get_ref().0.local_addr().unwrap();
    ask_daemon(&mut secure, own).await;
    let own = plain.local_addr().unwrap();
    ask_daemon(&mut plain, own).await;
}

#[tokio::test]
async fn the_daemon_answers_every_stream_of_a_burst() {
    let (authority, port) = (Authority::new("burst"), 20_680);
    let mut daemon = Daemon::start(&authority, port);
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(daemon.connect(port).await);
    }
    for stream in &streams {
        assert_eq!(stream.try_write(&binding(7)).unwrap(), 20);
    }
    for stream in &mut streams {
        assert_eq!(read_exactly(stream, 32).await[..2], [1, 1]);
    }
}
