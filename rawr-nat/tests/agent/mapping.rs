//! A router maps ports for a connection, on loopback.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use rawr_nat::agent::{Connection, Signalling};
use rawr_nat::portmap::{Gateways, PortMapperConfig, Protocols};
use rawr_proto::Role;

use crate::driver::{LIMIT, bind};

/// No other test's: the port is the protocol's.
const ROUTER: Ipv4Addr = Ipv4Addr::new(127, 0, 77, 1);
const PORT: u16 = 5351;
const LIFETIME: u32 = 600;

/// A port that is to be mapped, and for how many seconds: 0, if it is to be so no more.
type Wish = (u16, u32);

/// Speaks NAT-PMP (RFC 6886 §3) until the test ends, and maps each port to the same one.
fn router() -> Receiver<Wish> {
    let socket = UdpSocket::bind((ROUTER, PORT)).unwrap();
    let (teller, wishes) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = match buffer[..length] {
                [0, 0] => vec![0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7],
                [0, 1, _, _, a, b, _, _, c, d, e, f] => {
                    let wish = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]));
                    if teller.send(wish).is_err() {
                        return;
                    }
                    vec![0, 129, 0, 0, 0, 0, 0, 9, a, b, a, b, c, d, e, f]
                }
                _ => continue,
            };
            socket.send_to(&answer, from).unwrap();
        }
    });
    wishes
}

fn settings() -> PortMapperConfig {
    let second = Duration::from_secs(1);
    PortMapperConfig {
        gateways: Gateways { ipv4: Some(ROUTER), ipv6: None },
        uses: Protocols { nat_pmp: true, ..Protocols::NONE },
        lifetime: LIFETIME * second,
        patience: 5 * second,
        check: 3600 * second,
    }
}

/// What the router is asked next, while the connection goes on.
async fn wish(connection: &mut Connection, wishes: &Receiver<Wish>) -> Wish {
    let mut buffer = vec![0; 65_535];
    let asked = async {
        loop {
            match wishes.try_recv() {
                Ok(wish) => return wish,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => panic!("the router has ended"),
            }
            let turn = Duration::from_millis(20);
            let _no_news = tokio::time::timeout(turn, connection.next(&mut buffer)).await;
        }
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap()
}

#[test]
fn a_port_is_mapped_once_and_given_back_at_the_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let wishes = router();
        let mut connection = bind(Role::A, None, Signalling::Application, 32);
        let port = connection.sockets()[0].address.port();
        connection.map_ports(settings);
        assert_eq!(wish(&mut connection, &wishes).await, (port, LIFETIME));
        // The host has the addresses that it had.
        connection.refresh().unwrap();
        connection.close().await.unwrap();
        // A slow router is asked more than once.
        let mut rest: Vec<_> = wishes.try_iter().collect();
        rest.dedup();
        assert!(rest.ends_with(&[(port, 0)]), "{rest:?}");
        assert!(rest.len() == 1 || rest == [(port, LIFETIME), (port, 0)], "{rest:?}");
    });
}
