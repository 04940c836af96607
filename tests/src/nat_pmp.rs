//! A router that maps ports on request, by NAT-PMP (RFC 6886): beside a [`Nat`](crate::nat::Nat), and with any address
//! outside. miniupnpd maps nothing where its outside has an address that is reserved for special purposes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::netns::{Netns, checked};
use crate::process::now;

const PORT: u16 = 5351;
/// How soon the server sees that it is to end.
const WAKE: Duration = Duration::from_millis(100);
/// What is mapped, before the NAT's own rules.
const RULES: &str = "\
nft 'add map inet rawr_nat asked_for { type inet_proto . inet_service : ipv4_addr . inet_service; }'
nft 'insert rule inet rawr_nat arrive iifname wan meta nfproto ipv4 meta l4proto { tcp, udp } \
dnat ip to meta l4proto . th dport map @asked_for'
nft 'insert rule inet rawr_nat through_router iifname wan ct status dnat accept'";

/// The server on a router. Dropping it ends it.
#[derive(Debug)]
pub struct NatPmp {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl NatPmp {
    /// Starts it on a router with the interface `wan`, which a [`Nat`](crate::nat::Nat) has been applied to.
    pub fn start(router: &Netns, outside: Ipv4Addr) -> Result<Self> {
        router.sh(RULES)?;
        let socket = router.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        socket.set_read_timeout(Some(WAKE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server { namespace: router.name().to_owned(), outside, start: now() };
        let stopped = Arc::clone(&stop);
        let server = thread::spawn(move || {
            let mut request = [0; 1100];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut request) else { continue };
                if let Some(answer) = server.answer(&request[..length], from) {
                    let _lost = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { stop, server: Some(server) })
    }
}

impl Drop for NatPmp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _panicked = server.join();
        }
    }
}

/// How many ports of this router's are mapped now.
pub fn mapped_ports(router: &Netns) -> Result<usize> {
    let map = router.sh("nft list map inet rawr_nat asked_for")?;
    Ok(map.split_once("elements").map_or(0, |(_, elements)| elements.matches(" : ").count()))
}

struct Server {
    namespace: String,
    outside: Ipv4Addr,
    start: Instant,
}

impl Server {
    fn answer(&self, request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let epoch = (self.start.elapsed().as_secs() as u32).to_be_bytes();
        match *request {
            [0, 0] => Some([&[0, 128, 0, 0], &epoch[..], &self.outside.octets()].concat()),
            [0, opcode @ (1 | 2), _, _, high, low, _, _, ref lifetime @ ..]
                if lifetime.len() == 4 =>
            {
                let protocol = if opcode == 1 { "udp" } else { "tcp" };
                let port = u16::from_be_bytes([high, low]);
                self.map(protocol, SocketAddr::new(from.ip(), port), lifetime != [0; 4]);
                // The outer port is the inner one, which is free where one host asks.
                let ports = [high, low, high, low];
                Some([&[0, 128 + opcode, 0, 0], &epoch[..], &ports, lifetime].concat())
            }
            // Another version (RFC 6886 §3.5): PCP, for example.
            [version, opcode, ..] if version != 0 => {
                Some([&[0, 128 | opcode, 0, 1], &epoch[..]].concat())
            }
            _ => None,
        }
    }

    fn map(&self, protocol: &str, inner: SocketAddr, is_wanted: bool) {
        let (ip, port) = (inner.ip(), inner.port());
        let script = if is_wanted {
            format!("add element inet rawr_nat asked_for {{ {protocol} . {port} : {ip} . {port} }}")
        } else {
            format!("delete element inet rawr_nat asked_for {{ {protocol} . {port} }}")
        };
        let namespace = format!("--net=/run/netns/{}", self.namespace);
        // What is not there cannot be deleted, which the asker need not know.
        if let Err(error) = checked(Command::new("nsenter").args([&namespace, "nft", &script])) {
            eprintln!("{error:#}");
        }
    }
}
