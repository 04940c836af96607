//! The tokio driver on loopback: two peers of one "subnet", and a root on a thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use rawr_nat::{
    Host, Incoming, Interface, PathKind, PeerEvent, PeerSocket, PeerSocketConfig, Traffic,
};
use rawr_proto::{Mac, Role, SessionSecret};

use crate::support::{Datagram, FakeServer};

const DATAGRAMS: u32 = 20_000;

struct Loopback;

impl Host for Loopback {
    fn interfaces(&self, _: Option<SocketAddr>) -> io::Result<Vec<Interface>> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Ok(vec![Interface { address, prefix_len: 8, mac: None }])
    }

    fn neighbour(&self, _: IpAddr) -> Option<Mac> {
        None
    }
}

/// Serves Exchange and Connect, and no data, until the test ends.
fn root() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut server = FakeServer::new(&address.to_string());
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let datagram = Datagram { from, to: address, bytes: buffer[..length].to_vec() };
            for reply in server.handle(&datagram) {
                socket.send_to(&reply.bytes, reply.to).unwrap();
            }
        }
    });
    address
}

fn bind(role: Role, root: SocketAddr) -> PeerSocket {
    let config = PeerSocketConfig {
        secret: SessionSecret::from_bytes([5; 32]),
        role,
        root: Some(root.into()),
        gateways: Vec::new(),
        data_port: 0,
        epoch: 1,
        raw_mac: false,
    };
    PeerSocket::bind(config, Box::new(Loopback)).unwrap()
}

async fn ready(socket: &mut PeerSocket, buffer: &mut [u8]) -> PathKind {
    loop {
        if let Incoming::Event(PeerEvent::Ready { path, .. }) = socket.next(buffer).await.unwrap() {
            return path.kind;
        }
    }
}

/// Sends numbered datagrams, 20 in flight at most, and expects each to come back.
async fn ping(mut socket: PeerSocket) -> Traffic {
    let mut buffer = vec![0; 65_535];
    // The other's Probe may overtake its candidates.
    let kind = ready(&mut socket, &mut buffer).await;
    assert!([PathKind::Direct, PathKind::Offered].contains(&kind));
    let (mut sent, mut returned) = (0_u32, 0_u32);
    while returned < DATAGRAMS {
        while sent < DATAGRAMS && sent - returned < 20 {
            socket.send(&sent.to_be_bytes());
            sent += 1;
        }
        if let Incoming::Data(length) = socket.next(&mut buffer).await.unwrap() {
            assert_eq!(buffer[..length], returned.to_be_bytes());
            returned += 1;
        }
    }
    socket.close().await.unwrap();
    socket.traffic()
}

async fn echo(mut socket: PeerSocket) {
    let mut buffer = vec![0; 65_535];
    loop {
        if let Incoming::Data(length) = socket.next(&mut buffer).await.unwrap() {
            socket.send(&buffer[..length]);
        }
    }
}

#[test]
fn datagrams_go_there_and_back_in_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let traffic = runtime.block_on(async {
        let root = root();
        let (a, b) = (bind(Role::A, root), bind(Role::B, root));
        let echo = tokio::spawn(echo(b));
        let limit = Duration::from_secs(20);
        let traffic = tokio::time::timeout(limit, tokio::spawn(ping(a))).await.unwrap().unwrap();
        echo.abort();
        traffic
    });
    let all = u64::from(DATAGRAMS);
    assert_eq!(traffic, Traffic { sent: all, received: all, dropped: 0 });
}
