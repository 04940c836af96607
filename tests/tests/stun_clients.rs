//! STUN clients that others wrote, against the control plane over real sockets on loopback. They are
//! coturn's, which `cargo xtask setup` installs.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::net::{SocketAddr, UdpSocket};
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rawr_proto::ServerId;
use rawr_userspace::control::{
    Behaviour, Client, Command, Kind, Now, Server, ServerConfig, Source,
};

/// A root on two addresses with two ports each, until it is dropped.
struct Root {
    primary: SocketAddr,
    alternate: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What came: to where, from where, what.
type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

impl Root {
    fn start() -> Self {
        let (sockets, behaviour) = std::iter::repeat_with(two_by_two).flatten().next().unwrap();
        let [primary, .., alternate] = behaviour.sockets();
        let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
        config.behaviours = vec![behaviour];
        let stop = Arc::new(AtomicBool::new(false));
        let (to_server, inbox) = channel();
        let mut threads: Vec<_> = sockets
            .iter()
            .map(|socket| receive(socket.try_clone().unwrap(), to_server.clone(), stop.clone()))
            .collect();
        threads.push(thread::spawn(move || answer(config, &sockets, &inbox)));
        Self { primary, alternate, stop, threads }
    }

    /// Runs one of coturn's clients against the primary address; returns what it says.
    fn ask(&self, client: &str, options: &[&str]) -> String {
        let mut process = Process::new(client);
        process.args(options).args(["-p", &self.primary.port().to_string()]);
        let output = process.arg(self.primary.ip().to_string()).output();
        let output = output.unwrap_or_else(|error| {
            panic!("{client} does not start ({error}); `cargo xtask setup` installs it")
        });
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Both ports on both addresses; `None` where somebody else has one of them.
fn two_by_two() -> Option<(Vec<UdpSocket>, Behaviour)> {
    let first = UdpSocket::bind("127.0.0.1:0").ok()?;
    let last = UdpSocket::bind("127.0.0.2:0").ok()?;
    let (primary, alternate) = (first.local_addr().ok()?, last.local_addr().ok()?);
    let behaviour = Behaviour::new(primary, alternate)?;
    let mixed = &behaviour.sockets()[1..3];
    let mixed = mixed.iter().map(UdpSocket::bind).collect::<Result<Vec<_>, _>>().ok()?;
    Some(([first, last].into_iter().chain(mixed).collect(), behaviour))
}

fn receive(
    socket: UdpSocket,
    to_server: Sender<Datagram>,
    stop: Arc<AtomicBool>,
) -> JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let local = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                to_server.send((local, from, buffer[..length].to_vec())).unwrap();
            }
        }
    })
}

/// Ends when no socket receives any more.
fn answer(config: ServerConfig, sockets: &[UdpSocket], inbox: &Receiver<Datagram>) {
    let mut server = Server::new(config, [5; 32], now());
    for (local, from, bytes) in inbox {
        server.handle_control(now(), &Client::udp(local, from), &bytes);
        while let Some(command) = server.poll_command() {
            let Command::Transmit { from: Source::Control(local), to, bytes } = command else {
                panic!("{command:?}")
            };
            let mut sockets = sockets.iter();
            let socket = sockets.find(|socket| socket.local_addr().unwrap() == local).unwrap();
            socket.send_to(&bytes, to).unwrap();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "real clients live in real time")]
fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Now { monotonic: Instant::now(), unix }
}

#[test]
fn stunclient_learns_its_address() {
    let root = Root::start();
    let text = root.ask("turnutils_stunclient", &[]);
    assert!(text.contains("UDP reflexive addr: 127.0.0.1:"), "{text}");
}

#[test]
fn stunclient_finds_the_other_address() {
    let root = Root::start();
    let text = root.ask("turnutils_stunclient", &["-f"]);
    let other = format!("Other addr: : {}", root.alternate);
    assert!(text.contains(&other), "no {other:?} in {text}");
    assert!(!text.contains("ERROR"), "{text}");
}

#[test]
fn natdiscovery_sees_that_there_is_no_nat() {
    let root = Root::start();
    for padding in [&["-m", "-f"][..], &["-m", "-f", "-P"]] {
        let text = root.ask("turnutils_natdiscovery", padding);
        assert!(text.contains("Endpoint Independent Mapping"), "{text}");
        assert!(text.contains("Endpoint Independent Filtering"), "{text}");
    }
}
