//! `rawr listen`, `connect`, `send`, `receive` and `ping` between two homes.
//!
//! ```text
//! a ── router-a ──┬── root
//! b ── router-b ──┘
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rawr_tests::lab::Family;
use rawr_tests::nat::Nat;
use rawr_tests::nat_pmp::mapped_ports;
use rawr_tests::netns::Netns;
use rawr_tests::process::{Process, binary, eventually};
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon, PORT};
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{self, INTERNET};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// For everything that takes a few round trips.
const LIMIT: Duration = Duration::from_secs(20);
/// For a command that does something and ends.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// A root that has forgotten all names knows them again within 15 s.
const WAIT: &str = "--wait=40";
/// Length of a file that is not through before somebody has interrupted it, in bytes.
const HUGE: u64 = 10_000_000_000;
/// What is forwarded to at the listener's host.
const TCP_ECHO: &str = "127.0.0.1:7000";
const UDP_ECHO: &str = "127.0.0.1:7001";

/// A command of the user of one host, which runs.
struct Command {
    process: Process,
    log: PathBuf,
    /// Lines of it that are of no interest any more.
    seen: usize,
}

impl Command {
    /// Reports go to a file of this command's own, whether they are its output or not.
    fn start(scene: &Scene, host: &str, label: &str, arguments: &[&str]) -> Result<Self> {
        let log = scene.lab.directory().join(format!("{label}.log"));
        // An earlier command of this label has told what is of no interest here.
        File::create(&log)?;
        let mut command = command(scene, host, arguments)?;
        let mut process = Process::spawn(label, &mut command, &log)?;
        let mut output = process.take_stdout()?;
        let mut file = File::options().append(true).open(&log)?;
        thread::spawn(move || std::io::copy(&mut output, &mut file));
        Ok(Self { process, log, seen: 0 })
    }

    /// Waits for an event of this name for which `is_it` holds, after the one that this returned last.
    fn event(&mut self, name: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let what = format!("{name} is told");
        let Self { process, log, seen } = self;
        let found = eventually(&what, LIMIT, || {
            let is_running = process.is_running();
            let text = fs::read_to_string(&*log)?;
            let lines = text.lines().enumerate().skip(*seen);
            let events = lines.filter_map(|(n, line)| Some((n, serde_json::from_str(line).ok()?)));
            let mut events = events.map(|(n, event): (usize, Value)| (n, event));
            let found = events.find(|(_, event)| event["event"] == name && is_it(event));
            if found.is_none() && !is_running {
                bail!("it has ended\n{text}");
            }
            Ok(found)
        });
        let (line, event) = found.with_context(|| self.process.log_tail(30))?;
        self.seen = line + 1;
        Ok(event)
    }

    /// Waits until it has failed; returns what it has told.
    fn failure(mut self) -> Result<String> {
        let status = self.process.wait(LIMIT)?;
        ensure!(!status.success(), "it succeeded\n{}", self.process.log_tail(30));
        Ok(fs::read_to_string(&self.log)?)
    }

    fn interrupt(mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        let status = self.process.wait(LIMIT)?;
        ensure!(status.success(), "{status}\n{}", self.process.log_tail(30));
        Ok(())
    }
}

/// `rawr` with these arguments, JSON, the root as server, and files of the host's own.
fn command(scene: &Scene, host: &str, arguments: &[&str]) -> Result<std::process::Command> {
    let namespace = scene.lab.at(host)?;
    let mut command = namespace.command(binary("rawr")?);
    let server = INTERNET.socket(Family::Ipv4, 1, PORT);
    command
        .args(arguments)
        .args(["--json", "--no-gateway", "--server", &format!("rawr:{server}")])
        .env("XDG_CONFIG_HOME", scene.lab.directory().join(format!("config-{host}")))
        .env("RAWR_LOG", "error");
    Ok(command)
}

/// Runs it to its end.
fn run(scene: &Scene, host: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = command(scene, host, arguments)?;
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command.spawn()?).with_context(|| format!("{arguments:?}"))
}

/// Waits for its end, and ends it where that does not come.
fn ended(child: Child) -> Result<Output> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let waiting = thread::spawn(move || child.wait_with_output());
    let result = eventually("it has ended", RUN_LIMIT, || Ok(waiting.is_finished().then_some(())));
    if result.is_err() {
        kill(pid, Signal::SIGKILL)?;
    }
    let output = waiting.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
    result.with_context(|| text(&output.stdout) + &text(&output.stderr))?;
    Ok(output)
}

/// The same for one that succeeds: its events.
fn events(scene: &Scene, host: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = run(scene, host, arguments)?;
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{arguments:?}: {}\n{out}{error}", output.status);
    out.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The same for one that fails: what it says.
fn failure(scene: &Scene, host: &str, arguments: &[&str]) -> Result<String> {
    let output = run(scene, host, arguments)?;
    ensure!(!output.status.success(), "{arguments:?} succeeded: {}", text(&output.stdout));
    Ok(text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Pings, and returns the last path and how many came back.
fn ping(scene: &Scene, host: &str, name: &str) -> Result<(Value, u64)> {
    let told = events(scene, host, &["ping", name, "-c", "5", "-i", "0.1", WAIT])?;
    let path = told.iter().rev().find(|event| event["event"] == "pong");
    let path = path.map(|event| event["path"].clone()).context("nothing came back")?;
    let summary = told.last().filter(|event| event["event"] == "summary").context("no summary")?;
    ensure!(summary["sent"] == 5 && summary["min_ms"].as_f64() > Some(0.0), "{summary}");
    Ok((path, summary["received"].as_u64().unwrap_or(0)))
}

/// Echoes TCP connections and datagrams at the two addresses, inside a host, as long as the test runs.
fn echo(host: &Netns) -> Result<()> {
    let (tcp, udp) = host.run(|| (TcpListener::bind(TCP_ECHO), UdpSocket::bind(UDP_ECHO)))?;
    let (tcp, udp) = (tcp?, udp?);
    thread::spawn(move || {
        for mut socket in tcp.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut sender = socket.try_clone()?;
                std::io::copy(&mut socket, &mut sender)?;
                sender.shutdown(Shutdown::Write)
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _gone = udp.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

fn connect(host: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let socket = host.run(|| TcpStream::connect_timeout(&to, LIMIT))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Where a forwarded port listens.
fn local(command: &mut Command, transport: &str, target: &str) -> Result<SocketAddr> {
    let is_it = |event: &Value| event["transport"] == transport && event["target"] == target;
    let event = command.event("forwarding", is_it)?;
    Ok(event["local"].as_str().context("no address")?.parse()?)
}

/// Sends so many bytes there and has them come back, one way after the other.
fn there_and_back(socket: &mut TcpStream, length: usize) -> Result<()> {
    let sent: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
    let mut sender = socket.try_clone()?;
    let expected = sent.clone();
    let writing = thread::spawn(move || sender.write_all(&sent));
    let mut came = vec![0; length];
    socket.read_exact(&mut came).context("what was sent does not come back")?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(came == expected, "something else has come back");
    Ok(())
}

/// Sends datagrams until one comes back.
fn datagram_and_back(host: &Netns, to: SocketAddr) -> Result<()> {
    let socket = host.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut number = 0_u32;
    eventually("a datagram comes back", LIMIT, || {
        number += 1;
        socket.send_to(format!("number {number}").as_bytes(), to)?;
        let mut buffer = [0; 100];
        match socket.recv(&mut buffer) {
            Ok(length) => Ok(Some(text(&buffer[..length]))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .and_then(|came| {
        ensure!(came.starts_with("number "), "{came:?} has come back");
        Ok(())
    })
}

fn listen(scene: &Scene, name: &str, arguments: &[&str]) -> Result<Command> {
    let arguments = [&["listen", name], arguments].concat();
    let mut listener = Command::start(scene, "b", &format!("listen-{name}"), &arguments)?;
    listener.event("registered", |event| event["name"] == name)?;
    Ok(listener)
}

#[test]
fn ports_are_forwarded_through_symmetric_nats_and_a_restart() {
    scenario("ports_are_forwarded_through_symmetric_nats_and_a_restart", |scene| {
        let site = topology::two_homes(scene)?;
        let (a, b) = (scene.lab.at("a")?, scene.lab.at("b")?);
        echo(&b)?;
        let allowed = ["--allow", "127.0.0.1:7000/tcp", "--allow", "127.0.0.1:7001/udp"];
        let listener = listen(scene, "alice", &allowed)?;
        let (path, received) = ping(scene, "a", "alice")?;
        ensure!(path["kind"] == "root" && path["direct"] == false && received > 0, "{path}");

        let forwards = ["-L", "0:127.0.0.1:7000", "-U", "0:127.0.0.1:7001", "-L", "0:127.0.0.1:9"];
        let arguments = [&["connect", "alice"], &forwards[..]].concat();
        let mut connector = Command::start(scene, "a", "connect", &arguments)?;
        let tcp = local(&mut connector, "tcp", TCP_ECHO)?;
        let denied = local(&mut connector, "tcp", "127.0.0.1:9")?;
        let udp = local(&mut connector, "udp", UDP_ECHO)?;
        let mut socket = connect(&a, tcp)?;
        there_and_back(&mut socket, 1_000_000)?;
        datagram_and_back(&a, udp)?;

        // A target that nobody has allowed is broken off, and the connector is told why.
        let broken = connect(&a, denied)?.read(&mut [0]);
        ensure!(broken.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        let refusal = connector.event("refused", |_| true)?;
        let why = refusal["reason"].as_str().unwrap_or_default();
        ensure!(why.contains("--allow 127.0.0.1:9/tcp"), "{why}");

        // What it does not offer at all it says, too.
        let letter = scene.lab.directory().join("letter");
        fs::write(&letter, "x")?;
        let letter = letter.to_str().context("a path")?;
        let said = failure(scene, "a", &["send", letter, "alice"])?;
        ensure!(said.contains("this side receives no files"), "{said}");
        let said = failure(scene, "a", &["connect", "alice"])?;
        ensure!(said.contains("this side offers no pipe"), "{said}");

        // Many have come through one name, and the root's process may go meanwhile.
        let (_, received) = ping(scene, "a", "alice")?;
        ensure!(received > 0, "a second link has no answer");
        site.root.stop()?;
        there_and_back(&mut socket, 100_000)?;
        site.root.launch(&binary("rawr")?)?;
        there_and_back(&mut socket, 100_000)?;
        let mut second = connect(&a, tcp)?;
        there_and_back(&mut second, 10_000)?;
        second.shutdown(Shutdown::Write)?;
        ensure!(second.read(&mut [0])? == 0, "an end that is none");
        let (_, received) = ping(scene, "a", "alice")?;
        ensure!(received > 0, "the name is not known again after a restart");

        connector.interrupt()?;
        listener.interrupt()?;
        nothing_is_left(scene, &site.root, "alice")
    });
}

/// Whoever was interrupted holds no name and no leg at the root.
fn nothing_is_left(scene: &Scene, root: &Daemon, name: &str) -> Result<()> {
    eventually("no session is left", Duration::from_secs(5), || {
        Ok((root.sessions()? == 0).then_some(()))
    })?;
    let said = failure(scene, "a", &["ping", name, "-c", "1"])?;
    ensure!(said.contains("nobody holds this name"), "{said}");
    Ok(())
}

#[test]
fn pipes_and_files_arrive_whole() {
    scenario("pipes_and_files_arrive_whole", |scene| {
        let site = topology::two_homes(scene)?;
        pipe_both_ways(scene)?;
        send_a_file(scene)?;
        interrupted_on_the_way(scene)?;
        nothing_is_left(scene, &site.root, "bob")
    });
}

fn pipe_both_ways(scene: &Scene) -> Result<()> {
    let mut listener = command(scene, "b", &["listen", "pipe"])?;
    let listener = listener.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut listener = listener.spawn()?;
    let mut input = listener.stdin.take().context("no input")?;
    let mut connector = command(scene, "a", &["connect", "pipe", WAIT])?;
    let connector = connector.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connector = connector.spawn()?;
    let mut other = connector.stdin.take().context("no input")?;
    let long: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 249) as u8).collect();
    let expected = long.clone();
    let writing = thread::spawn(move || {
        input.write_all(b"from b")?;
        drop(input);
        other.write_all(&long)
    });
    let listening = thread::spawn(|| ended(listener));
    let connected = ended(connector);
    let listened = listening.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
    let (listened, connected) = (listened.context("listen")?, connected.context("connect")?);
    writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    for each in [&listened, &connected] {
        ensure!(each.status.success(), "{}: {}", each.status, text(&each.stderr));
    }
    ensure!(listened.stdout == expected, "{} bytes of {}", listened.stdout.len(), expected.len());
    ensure!(connected.stdout == b"from b", "{:?}", text(&connected.stdout));
    Ok(())
}

fn send_a_file(scene: &Scene) -> Result<()> {
    let directory = scene.lab.directory();
    let (file, inbox) = (directory.join("data.bin"), directory.join("inbox"));
    fs::create_dir(&inbox)?;
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
    fs::write(&file, &content)?;
    let hash: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let (file, folder) = (file.to_str().context("a path")?, inbox.to_str().context("a path")?);

    let mut receiver = Command::start(scene, "b", "receive", &["receive", "bob", folder])?;
    let told = events(scene, "a", &["send", file, "bob", WAIT])?;
    let sent = told.iter().find(|event| event["event"] == "sent").context("nothing was sent")?;
    eprintln!("{sent}");
    ensure!(sent["sha256"] == *hash && sent["bytes"] == 20_000_000, "{sent}");
    let status: ExitStatus = receiver.process.wait(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", receiver.process.log_tail(20));
    ensure!(fs::read(inbox.join("data.bin"))? == content, "something else has arrived");

    // A file that is there is not replaced, and both sides say so.
    let receiver =
        Command::start(scene, "b", "receive-again", &["receive", "bob", folder, "--keep"])?;
    let said = failure(scene, "a", &["send", file, "bob", WAIT])?;
    ensure!(said.contains("there already"), "{said}");
    receiver.interrupt()?;
    let left = fs::read_dir(&inbox)?.count();
    ensure!(left == 1, "{left} files are in the inbox");
    Ok(())
}

/// Whoever is interrupted in the middle leaves nothing, and says so to the other side.
fn interrupted_on_the_way(scene: &Scene) -> Result<()> {
    let directory = scene.lab.directory();
    let (file, inbox) = (directory.join("half.bin"), directory.join("other-inbox"));
    fs::create_dir(&inbox)?;
    // Nothing of it lies on the disk.
    File::create(&file)?.set_len(HUGE)?;
    let (file, folder) = (file.to_str().context("a path")?, inbox.to_str().context("a path")?);
    let receiver = Command::start(scene, "b", "receive-half", &["receive", "bob", folder])?;
    let mut sender = Command::start(scene, "a", "send-half", &["send", file, "bob", WAIT])?;
    let progress = sender.event("progress", |event| event["bytes"].as_u64() > Some(0))?;
    ensure!(progress["of"] == HUGE, "{progress}");
    sender.process.signal(Signal::SIGINT)?;
    let said = sender.failure()?;
    ensure!(said.contains("interrupted: the file was not sent"), "{said}");
    let said = receiver.failure()?;
    ensure!(said.contains("the link broke"), "{said}");
    let left = fs::read_dir(&inbox)?.count();
    ensure!(left == 0, "{left} files are left of half a one");

    let seeker = Command::start(scene, "a", "seek", &["connect", "nobody", WAIT])?;
    thread::sleep(Duration::from_millis(500));
    seeker.interrupt()
}

#[test]
fn keys_are_remembered_and_others_refused() {
    scenario("keys_are_remembered_and_others_refused", |scene| {
        topology::two_homes(scene)?;
        let own = own_key(scene, "a")?;
        let first = listen(scene, "carol", &["--allow", "127.0.0.1:1"])?;
        ping(scene, "a", "carol")?;
        let taken = failure(scene, "a", &["listen", "carol"])?;
        ensure!(taken.contains("carol: somebody else holds this name"), "{taken}");
        let unknown = failure(scene, "a", &["connect", "carrol"])?;
        ensure!(unknown.contains("nobody holds this name: is it spelt right"), "{unknown}");
        let wrong = failure(scene, "a", &["ping", "carol", "-c", "1", "--peer-key", &own])?;
        ensure!(wrong.contains("and not by"), "{wrong}");
        first.interrupt()?;

        // Another identity under the same name.
        fs::remove_file(scene.lab.directory().join("config-b/rawr/identity"))?;
        let second = listen(scene, "carol", &["--allow", "127.0.0.1:1"])?;
        let changed = failure(scene, "a", &["ping", "carol", "-c", "1"])?;
        ensure!(changed.contains("another key than before"), "{changed}");
        second.interrupt()?;

        let other = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let strict = listen(scene, "dave", &["--allow", "127.0.0.1:1", "--peer-key", other])?;
        let refused = failure(scene, "a", &["ping", "dave", "-c", "1"])?;
        ensure!(refused.contains("certain keys alone"), "{refused}");
        strict.interrupt()?;
        let open = listen(scene, "dave", &["--allow", "127.0.0.1:1", "--peer-key", &own])?;
        ping(scene, "a", "dave")?;
        open.interrupt()
    });
}

/// The key that a host's user has.
fn own_key(scene: &Scene, host: &str) -> Result<String> {
    let namespace = scene.lab.at(host)?;
    let mut command = namespace.command(binary("rawr")?);
    let config = scene.lab.directory().join(format!("config-{host}"));
    let output = command.arg("identity").env("XDG_CONFIG_HOME", config).output()?;
    Ok(text(&output.stdout).trim().to_owned())
}

#[test]
fn usual_home_routers_are_crossed_directly_and_paths_change() {
    scenario("usual_home_routers_are_crossed_directly_and_paths_change", |scene| {
        let site = topology::two_homes_behind(scene, [Nat::Home, Nat::Home])?;
        let (a, b) = (scene.lab.at("a")?, scene.lab.at("b")?);
        echo(&b)?;
        let listener = listen(scene, "erin", &["--allow", "127.0.0.1:7000/tcp"])?;
        let arguments = ["connect", "erin", "-L", "0:127.0.0.1:7000"];
        let mut connector = Command::start(scene, "a", "connect-erin", &arguments)?;
        let tcp = local(&mut connector, "tcp", TCP_ECHO)?;
        let is_direct = |event: &Value| event["path"]["direct"] == true;
        connector.event("path", is_direct)?;
        let arguments = ["ping", "erin", "-i", "0.1"];
        let mut pinger = Command::start(scene, "a", "ping-erin", &arguments)?;
        pinger.event("pong", is_direct)?;
        let mut socket = connect(&a, tcp)?;
        thread::sleep(COUNTERS_SETTLE);
        let before = site.root.traffic()?;
        there_and_back(&mut socket, 1_000_000)?;
        thread::sleep(COUNTERS_SETTLE);
        let relayed = site.root.traffic()?.since(before).total();
        ensure!(relayed < 100, "{relayed} datagrams were relayed beside a direct path");

        // The two homes reach the root, and not each other.
        between_homes(scene, "add")?;
        let is_relayed = |event: &Value| event["path"]["kind"] == "root";
        pinger.event("path", is_relayed)?;
        pinger.event("pong", is_relayed)?;
        there_and_back(&mut socket, 100_000)?;
        between_homes(scene, "del")?;
        pinger.event("path", is_direct)?;
        let pong = pinger.event("pong", is_direct)?;
        ensure!(pong["rtt_us"].as_u64() > Some(0), "{pong}");
        there_and_back(&mut socket, 100_000)?;

        pinger.interrupt()?;
        connector.interrupt()?;
        listener.interrupt()?;
        nothing_is_left(scene, &site.root, "erin")
    });
}

#[test]
fn a_mapped_port_lets_the_other_side_in_and_is_given_back() {
    scenario("a_mapped_port_lets_the_other_side_in_and_is_given_back", |scene| {
        let nats = [Nat::SymmetricRandom; 2];
        let (site, _nat_pmp) = topology::two_homes_with_port_mapping(scene, nats)?;
        let router = scene.lab.at("router-a")?;
        let listener = listen(scene, "frank", &["--allow", "127.0.0.1:1"])?;
        let arguments = ["ping", "frank", "-i", "0.1"];
        let mut pinger = Command::start(scene, "a", "ping-frank", &arguments)?;
        pinger.event("pong", |event| event["path"]["direct"] == true)?;
        ensure!(mapped_ports(&router)? > 0, "it is not the mapped port");
        pinger.interrupt()?;
        let left = mapped_ports(&router)?;
        ensure!(left == 0, "{left} mappings are left at the router");
        listener.interrupt()?;
        nothing_is_left(scene, &site.root, "frank")
    });
}

/// Cuts the way between the two homes, or mends it.
fn between_homes(scene: &Scene, verb: &str) -> Result<()> {
    for (router, other) in [("router-a", 12), ("router-b", 11)] {
        let other = INTERNET.address(Family::Ipv4, other);
        scene.lab.at(router)?.sh(&format!("ip route {verb} blackhole {other}/32"))?;
    }
    Ok(())
}
