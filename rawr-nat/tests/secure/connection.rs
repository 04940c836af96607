//! The tokio driver, over a channel of datagrams.

use std::io;
use std::time::Duration;

use rawr_nat::secure::{Connection, Datagrams, SecureStream, StreamsConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::link::{config, identity};

/// One end of a path that loses every hundredth datagram.
struct Path {
    to: mpsc::Sender<Vec<u8>>,
    from: mpsc::Receiver<Vec<u8>>,
    sent: u32,
}

impl Datagrams for Path {
    fn send(&mut self, datagram: &[u8]) {
        self.sent += 1;
        if !self.sent.is_multiple_of(100) {
            let _full = self.to.try_send(datagram.to_vec());
        }
    }

    async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let datagram = self.from.recv().await.ok_or(io::ErrorKind::ConnectionAborted)?;
        buffer[..datagram.len()].copy_from_slice(&datagram);
        Ok(datagram.len())
    }
}

fn path() -> [Path; 2] {
    let (to_b, from_a) = mpsc::channel(1_000);
    let (to_a, from_b) = mpsc::channel(1_000);
    [Path { to: to_b, from: from_b, sent: 0 }, Path { to: to_a, from: from_a, sent: 0 }]
}

fn connect() -> [Connection; 2] {
    let [near, far] = path();
    let streams = StreamsConfig::default();
    let caller = Connection::initiate(near, config(1), identity(2).public(), streams).unwrap();
    [caller, Connection::respond(far, config(2), Some(identity(1).public()), streams)]
}

/// Sends back what comes, until the end.
async fn echo(mut stream: SecureStream) {
    let mut buffer = vec![0; 10_000];
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        if length == 0 {
            stream.shutdown().await.unwrap();
            return;
        }
        stream.write_all(&buffer[..length]).await.unwrap();
    }
}

#[tokio::test]
async fn streams_and_datagrams_go_both_ways() {
    let [caller, called] = connect();
    assert_eq!(caller.established().await.unwrap(), identity(2).public());
    assert_eq!(called.established().await.unwrap(), identity(1).public());

    let server = tokio::spawn(async move {
        for expected in [7, 8] {
            let (stream, port) = called.accept().await.unwrap();
            assert_eq!(port, expected);
            echo(stream).await;
        }
        let datagram = called.recv().await.unwrap();
        called.send(&datagram).unwrap();
        called.close().await;
    });
    for port in [7, 8] {
        let (mut read, mut write) = tokio::io::split(caller.open(port).await.unwrap());
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut came = Vec::new();
        read.read_to_end(&mut came).await.unwrap();
        assert!(came == expected);
        writer.await.unwrap();
    }
    // Another gets through if this one is lost.
    let answer = loop {
        caller.send(b"ping").unwrap();
        let wait = tokio::time::timeout(Duration::from_millis(200), caller.recv());
        if let Ok(answer) = wait.await {
            break answer;
        }
    };
    assert_eq!(answer.unwrap(), b"ping");
    caller.close().await;
    server.await.unwrap();
}

/// What was written before `close` arrives, however short the program's life.
#[tokio::test]
async fn closing_waits_for_what_is_on_its_way() {
    let [caller, called] = connect();
    let client = tokio::spawn(async move {
        let mut stream = caller.open(7).await.unwrap();
        stream.write_all(&vec![7; 300_000]).await.unwrap();
        drop(stream);
        caller.close().await;
    });
    let (mut stream, _) = called.accept().await.unwrap();
    let mut came = Vec::new();
    stream.read_to_end(&mut came).await.unwrap();
    drop(stream);
    assert_eq!(came.len(), 300_000);
    client.await.unwrap();
}

#[tokio::test]
async fn errors_name_their_cause() {
    let [near, far] = path();
    let streams = StreamsConfig::default();
    let wrong = identity(9).public();
    let caller = Connection::initiate(near, config(1), wrong, streams).unwrap();
    let called = Connection::respond(far, config(2), None, streams);
    let error = caller.established().await.unwrap_err();
    assert!(error.to_string().contains(&format!("not {wrong}")), "{error}");
    let error = caller.open(7).await.unwrap_err();
    assert!(error.to_string().contains(&format!("not {wrong}")), "{error}");
    drop(called);
}

#[tokio::test]
async fn a_path_that_ends_ends_everything() {
    let [caller, called] = connect();
    let mut stream = caller.open(7).await.unwrap();
    drop(called);
    let error = stream.read_u8().await.unwrap_err();
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::TimedOut];
    assert!(kinds.contains(&error.kind()), "{error}");
    let error = caller.accept().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
}
