//! TCP over loopback, where nothing translates: the protocol between the two sides.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rawr_nat::punch::{Hopeless, Reason, TcpPunchConfig, Tuning, tcp_punch};
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;

fn behaviour(address: SocketAddr) -> Behaviour {
    Behaviour {
        external: address.ip(),
        mapping: Mapping::None,
        filtering: Some(Filtering::AddressAndPortDependent),
        ports: Some(Ports::Preserved),
        last_port: address.port(),
        hairpins: None,
    }
}

/// Two sides that know of each other.
async fn pair(addresses: [IpAddr; 2]) -> [TcpPunchConfig; 2] {
    let mut locals = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        locals.push(listener.local_addr().unwrap());
    }
    let ((to_a, from_b), (to_b, from_a)) = (unbounded_channel(), unbounded_channel());
    let side = |ours: usize, outgoing, incoming| TcpPunchConfig {
        key: [1; 32],
        is_initiator: ours == 0,
        ours: behaviour(locals[ours]),
        theirs: behaviour(locals[1 - ours]),
        local: locals[ours],
        our_external: vec![locals[ours]],
        their_endpoints: vec![locals[1 - ours]],
        server: None,
        tuning: Tuning::default(),
        outgoing,
        incoming,
    };
    [side(0, to_b, from_b), side(1, to_a, from_a)]
}

async fn goes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"data").await.unwrap();
    let mut got = [0; 4];
    to.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"data");
}

async fn meet([a, b]: [TcpPunchConfig; 2]) {
    let (a, b) = tokio::join!(tcp_punch(a), tcp_punch(b));
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.peer_addr().unwrap(), b.local_addr().unwrap(), "both keep the same stream");
    goes(&mut a, &mut b).await;
    goes(&mut b, &mut a).await;
}

#[tokio::test]
async fn both_ends_keep_the_same_stream() {
    for _ in 0..20 {
        meet(pair([[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]).await).await;
    }
}

#[tokio::test]
async fn so_they_do_over_ipv6() {
    meet(pair(["::1".parse().unwrap(); 2]).await).await;
}

#[tokio::test]
async fn many_sockets_meet_many_ports() {
    let [mut a, mut b] = pair([[127, 0, 0, 3].into(), [127, 0, 0, 4].into()]).await;
    // Ports that do not depend on the destination, told as if they did: a block around them.
    let port = b.local.port();
    let hard = |side: Behaviour| Behaviour {
        mapping: Mapping::AddressAndPortDependent,
        ports: Some(Ports::Block { low: port.saturating_sub(8), high: port.saturating_add(8) }),
        ..side
    };
    (b.ours, a.theirs) = (hard(b.ours), hard(a.theirs));
    meet([a, b]).await;
}

#[tokio::test]
async fn a_stranger_is_not_taken() {
    let [mut a, mut b] = pair([[127, 0, 0, 5].into(), [127, 0, 0, 6].into()]).await;
    b.key = [2; 32];
    for side in [&mut a, &mut b] {
        side.tuning.deadline = Duration::from_secs(2);
    }
    let (a, b) = tokio::join!(tcp_punch(a), tcp_punch(b));
    assert_eq!(a.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(b.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn hopeless_pairs_are_told_so_at_once() {
    let [mut a, _] = pair([[127, 0, 0, 7].into(), [127, 0, 0, 8].into()]).await;
    let random = |side: Behaviour| Behaviour {
        mapping: Mapping::AddressAndPortDependent,
        ports: Some(Ports::Random),
        ..side
    };
    (a.ours, a.theirs) = (random(a.ours), random(a.theirs));
    let error = tcp_punch(a).await.unwrap_err();
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<Reason>());
    assert_eq!(reason, Some(&Reason::Hopeless(Hopeless::Random)));
}
