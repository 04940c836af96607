//! The application of the scenarios: sends a stream to one UDP port and judges the one that comes
//! back. It takes the commands `go`, `stop` and `report` on standard input and answers each with a
//! line of JSON; the end of the input ends it.

use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use rawr_tests::app::{Datagram, Receiver, Shape};
use serde_json::json;
use socket2::SockRef;

/// Between bursts of a sender whose packets are due faster.
const TICK: Duration = Duration::from_millis(1);
/// Enough for a second of any stream used here.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Sends a checked stream and reports on the one that it receives.
#[derive(Parser)]
struct Arguments {
    /// Address to receive at.
    #[arg(long)]
    bind: SocketAddr,
    /// Address to send to.
    #[arg(long)]
    to: SocketAddr,
    /// Packets a second.
    #[arg(long, default_value_t = 1000)]
    pps: u32,
    /// Payload sizes in bytes, used in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 200, 1200])]
    sizes: Vec<usize>,
    /// Send STUN Binding requests instead of plain data.
    #[arg(long)]
    stun: bool,
    /// Tells this end's stream from others.
    #[arg(long, default_value_t = 1)]
    stream: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let socket = UdpSocket::bind(arguments.bind)
        .with_context(|| format!("cannot receive at {}", arguments.bind))?;
    // The limit of unprivileged processes does; more spares losses that are the test's own.
    let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);

    let receiver = Arc::new(Mutex::new(Receiver::default()));
    let sender = Arc::new(Sender::default());
    spawn_receiving(socket.try_clone()?, Arc::clone(&receiver));
    spawn_sending(socket, arguments, Arc::clone(&sender));

    answer(&json!({"event": "bound"}))?;
    for command in io::stdin().lock().lines() {
        match command?.trim() {
            "go" => {
                sender.sending.store(true, Ordering::SeqCst);
                answer(&json!({"event": "sending"}))?;
            }
            "stop" => {
                sender.sending.store(false, Ordering::SeqCst);
                thread::sleep(2 * TICK);
                answer(&json!({"event": "stopped"}))?;
            }
            "report" => {
                let sent = sender.sent.load(Ordering::SeqCst);
                let report = receiver.lock().unwrap_or_else(PoisonError::into_inner).report(sent);
                answer(&serde_json::to_value(report)?)?;
            }
            other => answer(&json!({"event": "error", "unknown_command": other}))?,
        }
    }
    Ok(())
}

#[derive(Default)]
struct Sender {
    sending: AtomicBool,
    sent: AtomicU64,
}

fn answer(value: &serde_json::Value) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{value}")?;
    Ok(output.flush()?)
}

fn spawn_receiving(socket: UdpSocket, receiver: Arc<Mutex<Receiver>>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            // A port unreachable of the far end's start-up is reported here and means nothing.
            let Ok((length, _from)) = socket.recv_from(&mut buffer) else { continue };
            let now = monotonic_ns();
            receiver.lock().unwrap_or_else(PoisonError::into_inner).arrived(&buffer[..length], now);
        }
    });
}

fn spawn_sending(socket: UdpSocket, arguments: Arguments, sender: Arc<Sender>) {
    thread::spawn(move || {
        let shape = if arguments.stun { Shape::Stun } else { Shape::Plain };
        let interval = 1_000_000_000 / u64::from(arguments.pps.max(1));
        let mut sizes = arguments.sizes.iter().cycle();
        let mut due = monotonic_ns();
        for number in 0.. {
            loop {
                if !sender.sending.load(Ordering::SeqCst) {
                    thread::sleep(TICK);
                    due = monotonic_ns();
                } else if monotonic_ns() < due {
                    let left = Duration::from_nanos(due.saturating_sub(monotonic_ns()));
                    thread::sleep(left.max(TICK));
                } else {
                    break;
                }
            }
            due += interval;
            let datagram = Datagram { stream: arguments.stream, number, sent_at: monotonic_ns() };
            let bytes = datagram.encode(shape, sizes.next().copied().unwrap_or_default());
            while socket.send_to(&bytes, arguments.to).is_err() {
                // An error here belongs to an earlier datagram; this one has not been sent yet.
                thread::sleep(TICK);
            }
            sender.sent.fetch_add(1, Ordering::SeqCst);
        }
    });
}

/// A clock that all processes of this machine share.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of our own.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}
