//! Long wires: the core of the Internet keeps each packet for a while, as a way between two homes does.
//!
//! Not every kernel has netem, so packets pass through a program: policy routing leads what comes to the core
//! into a TUN device, and what comes out of that to where it is to go.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{self, BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::words::line;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::{Process, binary, now};

/// The device.
const DEVICE: &str = "delay";
/// Of the routing table that leads there.
const TABLE: u32 = 100;
/// Packets that are kept at once: what comes beyond that is lost.
const MOST: usize = 20_000;
const MAX_PACKET: usize = 65_535;

/// How the program is run.
#[derive(clap::Args, Clone, Debug)]
pub struct WireArgs {
    /// TUN device, which exists
    #[arg(long)]
    device: String,
    /// How long each packet is kept, in milliseconds
    #[arg(long)]
    milliseconds: u64,
}

/// What the program is told: packets from and to this address are kept for so much longer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Further {
    address: IpAddr,
    milliseconds: u64,
}

/// The running program.
#[derive(Debug)]
pub(super) struct Wires(Process);

impl Wires {
    /// Makes all that the router named `core` forwards late by so many milliseconds.
    pub(super) fn start(lab: &Lab, core: &Netns, milliseconds: u64) -> Result<Self> {
        core.sh(&format!("ip tuntap add dev {DEVICE} mode tun"))
            .context("the kernel has no TUN device (/dev/net/tun)")?;
        core.sh(&format!("ip link set {DEVICE} up txqueuelen 10000"))?;
        for family in ["-4", "-6"] {
            core.sh(&format!(
                "ip {family} rule add pref 10 iif {DEVICE} lookup main\n\
                 ip {family} rule add pref 20 iif lo lookup main\n\
                 ip {family} rule add pref 30 lookup {TABLE}\n\
                 ip {family} route add default dev {DEVICE} table {TABLE}"
            ))?;
        }
        for which in ["all", DEVICE] {
            core.set(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
        }
        let mut command = core.command(binary("rawr-matrix")?);
        command.args(["wire", "--device", DEVICE, "--milliseconds", &milliseconds.to_string()]);
        Process::spawn("wire", &mut command, &lab.directory().join("wire")).map(Self)
    }

    /// Keeps packets from and to this address for so many milliseconds more from now on.
    pub(super) fn lengthen(&mut self, address: IpAddr, milliseconds: u64) -> Result<()> {
        let stdin = self.0.stdin()?;
        stdin.write_all(line(&Further { address, milliseconds })?.as_bytes())?;
        Ok(stdin.flush()?)
    }
}

/// Is the program, until its standard input ends.
pub fn run(arguments: &WireArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(forward(arguments));
    // A thread waits for standard input.
    runtime.shutdown_background();
    result
}

async fn forward(arguments: &WireArgs) -> Result<()> {
    // SAFETY: the file owns its descriptor, which is neither replaced nor closed as long as it is registered.
    let mut device = unsafe { AsyncFd::register(attach(&arguments.device)?) }?;
    let mut orders = orders();
    let mut queue = Queue::new(Duration::from_millis(arguments.milliseconds));
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let due = queue.due();
        let wait = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = device.readable() => {
                ready?.clear_ready();
                while let Some(length) = pass(device.get_mut().read(&mut buffer))? {
                    queue.put(now(), &buffer[..length]);
                }
            }
            () = wait => {}
            order = orders.recv() => match order {
                Some(further) => queue.lengthen(further),
                None => return Ok(()),
            }
        }
        while let Some(packet) = queue.take(now()) {
            // What no route leads back to is lost, as on the way.
            if let Err(error) = pass(device.get_mut().write(&packet)) {
                log::debug!("a packet of {} bytes: {error}", packet.len());
            }
        }
    }
}

/// Nothing where it would block.
fn pass(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn orders() -> UnboundedReceiver<Further> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(io::Result::ok) {
            match serde_json::from_str(&line) {
                Ok(order) => {
                    if sender.send(order).is_err() {
                        return;
                    }
                }
                Err(error) => log::error!("no order: {line}: {error}"),
            }
        }
    });
    receiver
}

/// Opens a TUN device of this network namespace; it does not block.
fn attach(name: &str) -> Result<File> {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long for an interface");
    // SAFETY: all bytes zero are a valid value of this structure of integers, arrays and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes no more than the structure.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("the TUN device {name}"));
    }
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Packets on their way, in the order in which they arrive.
#[derive(Debug)]
struct Queue {
    delay: Duration,
    further: HashMap<IpAddr, Duration>,
    packets: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    number: u64,
}

impl Queue {
    fn new(delay: Duration) -> Self {
        Self { delay, further: HashMap::new(), packets: BinaryHeap::new(), number: 0 }
    }

    fn lengthen(&mut self, further: Further) {
        self.further.insert(further.address, Duration::from_millis(further.milliseconds));
    }

    /// What is no packet to one host is not forwarded.
    fn put(&mut self, now: Instant, packet: &[u8]) {
        let Some(ends) = ends(packet) else { return };
        if ends[1].is_multicast() || self.packets.len() >= MOST {
            return;
        }
        let further: Duration = ends.iter().filter_map(|end| self.further.get(end)).sum();
        let at = now + self.delay + further;
        self.packets.push(Reverse((at, self.number, packet.to_vec())));
        self.number += 1;
    }

    fn due(&self) -> Option<Instant> {
        self.packets.peek().map(|Reverse((at, ..))| *at)
    }

    fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due().filter(|at| *at <= now)?;
        self.packets.pop().map(|Reverse((_, _, packet))| packet)
    }
}

/// Source and destination of an IP packet (RFC 791 §3.1, RFC 8200 §3).
fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    match packet.first()? >> 4 {
        4 => {
            let at = |at: usize| packet.get(at..)?.first_chunk::<4>();
            Some([Ipv4Addr::from(*at(12)?).into(), Ipv4Addr::from(*at(16)?).into()])
        }
        6 => {
            let at = |at: usize| packet.get(at..)?.first_chunk::<16>();
            Some([Ipv6Addr::from(*at(8)?).into(), Ipv6Addr::from(*at(24)?).into()])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: [u8; 4], to: [u8; 4], what: u8) -> Vec<u8> {
        let head = [0x45, 0, 0, 21, 0, 0, 0, 0, 64, 17, 0, 0];
        [&head[..], &from[..], &to[..], &[what]].concat()
    }

    #[test]
    fn packets_come_in_order_and_late() {
        let (start, mut queue) = (now(), Queue::new(Duration::from_millis(10)));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let (near, far, other) = ([192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3]);
        queue.lengthen(Further { address: far.into(), milliseconds: 15 });
        queue.put(at(0), &packet(near, far, 1));
        queue.put(at(1), &packet(near, other, 2));
        queue.put(at(1), &packet(other, near, 3));
        queue.put(at(1), &packet(near, [224, 0, 0, 1], 4));
        queue.put(at(1), &[0x45]);
        let mut take = |milliseconds| queue.take(at(milliseconds)).map(|packet| packet[20]);
        assert_eq!([take(10), take(11), take(11), take(11)], [None, Some(2), Some(3), None]);
        assert_eq!([take(24), take(25), take(1000)], [None, Some(1), None]);
    }

    #[test]
    fn ends_of_both_families() {
        let ipv4 = packet([192, 0, 2, 1], [192, 0, 2, 2], 0);
        assert_eq!(ends(&ipv4), Some([[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]));
        let (from, to) = ([1_u8; 16], [2_u8; 16]);
        let ipv6 = [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &from[..], &to[..]].concat();
        assert_eq!(ends(&ipv6), Some([from.into(), to.into()]));
        assert_eq!([ends(&[]), ends(&ipv6[..39])], [None, None]);
    }
}
