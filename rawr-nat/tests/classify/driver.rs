//! The driver, on loopback, against a server of RFC 5780 and TCP.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rawr_nat::classify::{ClassifyConfig, run};
use rawr_nat::{Filtering, Mapping, Ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::net::answer;

/// Opens a server at two addresses of loopback, on the same two ports of each.
async fn serve() -> [SocketAddr; 4] {
    let [one, two] = [1, 2].map(|number| IpAddr::from([127, 0, 0, number]));
    let mut sockets: Vec<Arc<UdpSocket>> = Vec::new();
    // Ports that are free at one address may not be at the other.
    while sockets.len() < 4 {
        sockets.clear();
        for _ in 0..2 {
            let Ok(first) = UdpSocket::bind((one, 0)).await else { continue };
            let port = first.local_addr().unwrap().port();
            let Ok(second) = UdpSocket::bind((two, port)).await else { continue };
            sockets.extend([Arc::new(first), Arc::new(second)]);
        }
    }
    // By address, then by port.
    sockets.swap(1, 2);
    let endpoints: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let endpoints: [SocketAddr; 4] = endpoints.try_into().unwrap();
    for position in 0..4 {
        tokio::spawn(answer_udp(sockets.clone(), endpoints, position));
        if let Ok(listener) = TcpListener::bind(endpoints[position]).await {
            tokio::spawn(answer_tcp(listener, endpoints));
        }
    }
    endpoints
}

async fn answer_udp(sockets: Vec<Arc<UdpSocket>>, endpoints: [SocketAddr; 4], position: usize) {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = sockets[position].recv_from(&mut buffer).await.unwrap();
        let ends = (from, endpoints[position]);
        let Some((by, to, bytes)) = answer(&endpoints, true, ends, &buffer[..length]) else {
            continue;
        };
        let by = endpoints.iter().position(|endpoint| *endpoint == by).unwrap();
        sockets[by].send_to(&bytes, to).await.unwrap();
    }
}

async fn answer_tcp(listener: TcpListener, endpoints: [SocketAddr; 4]) {
    loop {
        let (mut stream, from) = listener.accept().await.unwrap();
        let to = stream.local_addr().unwrap();
        let mut buffer = [0; 1500];
        let length = stream.read(&mut buffer).await.unwrap();
        if let Some((_, _, bytes)) = answer(&endpoints, true, (from, to), &buffer[..length]) {
            stream.write_all(&bytes).await.unwrap();
        }
    }
}

#[tokio::test]
async fn on_loopback_there_is_no_nat() {
    let endpoints = serve().await;
    let report = run(ClassifyConfig::new(vec![endpoints[0]])).await.unwrap();
    let family = report.ipv4.unwrap();
    let udp = family.udp.unwrap();
    assert_eq!(udp.external, endpoints[0].ip());
    assert_eq!((udp.mapping, udp.ports), (Mapping::None, Some(Ports::Preserved)));
    assert_eq!(udp.filtering, Some(Filtering::EndpointIndependent));
    assert_eq!(family.tcp.unwrap().mapping, Mapping::None);
    assert_eq!(family.discovery, [endpoints[0]]);
    assert!(family.udp_evidence.is_measured() && family.tcp_evidence.is_measured());
    assert_eq!(report.ipv6, None);
}
