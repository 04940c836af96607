//! The library's client against the server, over a network that loses, and behind NATs that forget.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::{
    Bridge, BridgeConfig, BridgeError, BridgeEvent, BridgeOutput, PublicKey, session_secret,
};
use rawr_proto::{BridgeName, Credentials, IntroductionId};
use rawr_userspace::control::{Client, Command, Now, Server, ServerConfig};

use super::direct::{at, local, origin};
use super::{identity, name, root, secs};

const LATENCY: Duration = Duration::from_millis(20);

/// Some clients, a server, and the datagrams between them.
struct World {
    server: Server,
    now: Now,
    hosts: Vec<Host>,
    queue: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    loss: f64,
    server_is_up: bool,
    rng: StdRng,
}

struct Host {
    bridge: Bridge,
    /// Where its datagrams come from, as the server sees it.
    outside: SocketAddr,
    events: Vec<BridgeEvent>,
    /// What it answers introductions with; none for a host that does not.
    answers: Option<&'static [u8]>,
}

struct Datagram {
    to_server: bool,
    outside: SocketAddr,
    bytes: Vec<u8>,
}

impl World {
    fn new(config: ServerConfig, loss: f64, seed: u64) -> Self {
        let now = origin();
        Self {
            server: Server::new(config, [3; 32], now),
            now,
            hosts: Vec::new(),
            queue: BTreeMap::new(),
            sent: 0,
            loss,
            server_is_up: true,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn add(&mut self, number: u8, outside: &str, credentials: Option<Credentials>) -> usize {
        let epoch = 1000 + u64::try_from(self.hosts.len()).unwrap();
        let config = BridgeConfig {
            server: local(),
            identity: identity(number),
            credentials,
            epoch,
            reliable: false,
        };
        let bridge = Bridge::new(config, self.rng.random());
        let (outside, events) = (at(outside), Vec::new());
        self.hosts.push(Host { bridge, outside, events, answers: Some(b"welcome") });
        self.hosts.len() - 1
    }

    fn at(&mut self, host: usize) -> (&mut Bridge, Instant) {
        (&mut self.hosts[host].bridge, self.now.monotonic)
    }

    fn register(&mut self, host: usize, text: &str) {
        let (bridge, now) = self.at(host);
        bridge.register(now, &name(text), None);
    }

    fn introduce(&mut self, host: usize, text: &str, holder: PublicKey) -> IntroductionId {
        let (bridge, now) = self.at(host);
        bridge.introduce(now, &name(text), holder, b"hello").unwrap()
    }

    fn run(&mut self, span: Duration) {
        let end = self.now.monotonic + span;
        loop {
            self.flush();
            let datagram = self.queue.first_key_value().map(|((at, _), _)| *at);
            let server = self.server.poll_timeout().map(|(at, _)| at);
            let hosts = self.hosts.iter().filter_map(|host| host.bridge.poll_timeout());
            let next = hosts.chain(datagram).chain(server).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.advance(next.saturating_duration_since(self.now.monotonic));
            self.deliver();
            self.server.handle_timeout(self.now);
            let now = self.now.monotonic;
            self.hosts.iter_mut().for_each(|host| host.bridge.handle_timeout(now));
        }
        self.advance(end - self.now.monotonic);
    }

    fn advance(&mut self, span: Duration) {
        self.now.monotonic += span;
        self.now.unix += span;
    }

    fn deliver(&mut self) {
        while let Some(entry) =
            self.queue.first_entry().filter(|it| it.key().0 <= self.now.monotonic)
        {
            let Datagram { to_server, outside, bytes } = entry.remove();
            if to_server && self.server_is_up {
                self.server.handle_control(self.now, &Client::udp(local(), outside), &bytes);
            } else if !to_server
                && let Some(host) = self.hosts.iter_mut().find(|host| host.outside == outside)
            {
                assert!(bytes.len() <= 1200, "{} bytes", bytes.len());
                host.bridge.handle_datagram(self.now.monotonic, local(), &bytes);
            }
        }
    }

    fn flush(&mut self) {
        for index in 0..self.hosts.len() {
            while let Some(output) = self.hosts[index].bridge.poll_output() {
                match output {
                    BridgeOutput::Transmit(bytes) => {
                        self.send(true, self.hosts[index].outside, bytes)
                    }
                    BridgeOutput::Event(event) => self.take(index, event),
                }
            }
        }
        while let Some(command) = self.server.poll_command() {
            if let Command::Transmit { to, bytes, .. } = command {
                self.send(false, to, bytes);
            }
        }
    }

    fn take(&mut self, index: usize, event: BridgeEvent) {
        let now = self.now.monotonic;
        let host = &mut self.hosts[index];
        if let (BridgeEvent::Introduction { id, .. }, Some(answer)) = (&event, host.answers) {
            host.bridge.answer(now, *id, answer).unwrap();
        }
        host.events.push(event);
    }

    fn send(&mut self, to_server: bool, outside: SocketAddr, bytes: Vec<u8>) {
        if self.rng.random_bool(self.loss) {
            return;
        }
        self.sent += 1;
        let jitter = Duration::from_millis(self.rng.random_range(0..10));
        let key = (self.now.monotonic + LATENCY + jitter, self.sent);
        self.queue.insert(key, Datagram { to_server, outside, bytes });
    }

    fn events(&mut self, host: usize) -> Vec<BridgeEvent> {
        std::mem::take(&mut self.hosts[host].events)
    }
}

fn registered(text: &str, outside: &str) -> BridgeEvent {
    let (name, reflexive) = (name(text), at(outside));
    BridgeEvent::Registered { name, reflexive, lifetime: secs(3600) }
}

const A: &str = "192.0.2.10:5000";
const B: &str = "203.0.113.20:6000";

fn two(loss: f64, seed: u64) -> World {
    let mut world = World::new(root(), loss, seed);
    world.add(1, A, None);
    world.add(2, B, None);
    world
}

#[test]
fn two_that_know_a_name_share_a_secret() {
    let mut world = two(0.0, 1);
    world.register(0, "alice");
    world.run(secs(1));
    assert_eq!(world.events(0), [registered("alice", A)]);
    let (bridge, now) = world.at(1);
    bridge.look_up(now, &name("ALICE"));
    world.run(secs(1));
    let events = world.events(1);
    let [BridgeEvent::Found { holder, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!((holder.key, holder.address), (identity(1).public(), at(A).ip()));

    let id = world.introduce(1, "alice", holder.key);
    world.run(secs(1));
    let answer = BridgeEvent::Answer { id, reflexive: at(A), message: b"welcome".to_vec() };
    assert_eq!(world.events(1), [answer]);
    let events = world.events(0);
    let [BridgeEvent::Introduction { id: heard, from, reflexive, ref message, .. }] = events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((heard, from, reflexive), (id, identity(2).public(), at(B)));
    assert_eq!(message, b"hello");
    let secrets = [
        session_secret(&identity(1), &from, id).unwrap(),
        session_secret(&identity(2), &holder.key, id).unwrap(),
    ];
    assert_eq!(secrets[0], secrets[1]);
}

#[test]
fn loss_delays_and_repeats_nothing_that_is_told() {
    for seed in 0..60 {
        let mut world = two(0.3, seed);
        world.register(0, "alice");
        world.register(1, "bob");
        world.run(secs(30));
        for (host, text, outside) in [(0, "alice", A), (1, "bob", B)] {
            let events = world.events(host);
            assert_eq!(events.last(), Some(&registered(text, outside)), "seed {seed}");
        }
        let there = world.introduce(1, "alice", identity(1).public());
        let back = world.introduce(0, "bob", identity(2).public());
        world.run(secs(25));
        for (host, own, others) in [(1, there, back), (0, back, there)] {
            let events = world.events(host);
            let is_answer =
                |it: &&BridgeEvent| matches!(it, BridgeEvent::Answer { id, .. } if *id == own);
            let is_heard = |it: &&BridgeEvent| matches!(it, BridgeEvent::Introduction { id, .. } if *id == others);
            assert_eq!(events.iter().filter(is_answer).count(), 1, "seed {seed}: {events:?}");
            assert_eq!(events.iter().filter(is_heard).count(), 1, "seed {seed}: {events:?}");
        }
    }
}

#[test]
fn a_name_is_kept_through_changes_of_address_and_restarts() {
    let mut world = two(0.0, 2);
    world.register(0, "alice");
    world.run(secs(600));
    assert_eq!(world.events(0), [registered("alice", A)], "told once, whatever is refreshed");
    world.hosts[0].outside = at("192.0.2.10:5001");
    world.run(secs(20));
    assert_eq!(world.events(0), [registered("alice", "192.0.2.10:5001")]);
    let id = world.introduce(1, "alice", identity(1).public());
    world.run(secs(1));
    assert!(matches!(world.events(1)[..], [BridgeEvent::Answer { id: it, .. }] if it == id));
    world.events(0);

    // A server that has forgotten all, its own keys included.
    world.server = Server::new(root(), [9; 32], world.now);
    world.run(secs(20));
    assert_eq!(world.server.name_count(), 1);
    assert!(world.events(0).is_empty());
}

#[test]
fn a_server_that_is_away_is_told_of_once_and_found_again() {
    let mut world = two(0.0, 3);
    world.register(0, "alice");
    world.run(secs(1));
    world.events(0);
    world.server_is_up = false;
    world.run(secs(120));
    let error = BridgeError::Unanswered;
    assert_eq!(world.events(0), [BridgeEvent::NotRegistered { name: name("alice"), error }]);
    world.server_is_up = true;
    world.run(secs(10));
    assert_eq!(world.events(0), [registered("alice", A)]);
}

#[test]
fn errors_say_what_is_wrong() {
    let mut world = two(0.0, 4);
    world.register(0, "alice");
    world.run(secs(1));
    world.register(1, "alice");
    let (bridge, now) = world.at(1);
    bridge.look_up(now, &name("bob"));
    world.run(secs(1));
    let unknown = world.introduce(1, "bob", identity(1).public());
    world.run(secs(60));
    let events = world.events(1);
    let (taken, nobody) = (BridgeError::NameTaken, BridgeError::UnknownName);
    let expected = [
        BridgeEvent::NotRegistered { name: name("alice"), error: taken },
        BridgeEvent::NotFound { name: name("bob"), error: nobody },
        BridgeEvent::NotIntroduced { id: unknown, error: nobody },
    ];
    assert!(expected.iter().all(|it| events.contains(it)), "{events:?}");
    assert_eq!(events.len(), expected.len(), "and no more is tried: {events:?}");
    for error in [taken, nobody] {
        assert!(error.to_string().contains(':'), "{error}: says how to mend it");
    }
}

#[test]
fn a_holder_that_does_not_answer_and_one_with_another_key() {
    let mut world = two(0.0, 5);
    world.hosts[0].answers = None;
    world.register(0, "alice");
    world.run(secs(1));
    let silent = world.introduce(1, "alice", identity(1).public());
    // Sealed to a key that is not the holder's, so that the holder cannot read it.
    let other = world.introduce(1, "alice", identity(7).public());
    world.run(secs(30));
    let error = BridgeError::NoAnswer;
    let events = world.events(1);
    for id in [silent, other] {
        assert!(events.contains(&BridgeEvent::NotIntroduced { id, error }), "{events:?}");
    }
    let heard = world.events(0);
    assert!(
        matches!(heard[..], [BridgeEvent::Registered { .. }, BridgeEvent::Introduction { id, .. }] if id == silent)
    );
}

#[test]
fn a_name_is_given_up_at_the_end() {
    let mut world = two(0.0, 6);
    for text in ["alice", "anna"] {
        world.register(0, text);
    }
    world.run(secs(1));
    assert_eq!(world.server.name_count(), 2);
    world.events(0);
    let (bridge, now) = world.at(0);
    bridge.close(now);
    world.run(secs(1));
    assert_eq!((world.server.name_count(), world.events(0).len()), (0, 2));
    assert!(world.hosts[0].bridge.is_idle());
    assert_eq!(world.hosts[0].bridge.poll_timeout(), None);
}

#[test]
fn two_runs_of_one_holder_do_not_fight() {
    let mut world = two(0.0, 7);
    let newer = world.add(1, "198.18.0.1:7000", None);
    world.register(0, "alice");
    world.run(secs(1));
    world.register(newer, "alice");
    world.run(secs(60));
    let error = BridgeError::NewerRun;
    let lost = BridgeEvent::NotRegistered { name: name("alice"), error };
    assert_eq!(world.events(0), [registered("alice", A), lost]);
    assert_eq!(world.events(newer), [registered("alice", "198.18.0.1:7000")]);
}

#[test]
fn credentials_are_shown_where_they_are_wanted() {
    let good = Credentials { username: "anna".to_owned(), password: "secret".to_owned() };
    let mut config = root();
    config.trusted.clear();
    config.users = vec![good.clone()];
    let mut world = World::new(config, 0.0, 8);
    let wrong = Credentials { password: "guess".to_owned(), ..good.clone() };
    for (number, credentials) in [(1, Some(good)), (2, Some(wrong)), (3, None)] {
        let host = world.add(number, &format!("192.0.2.{number}:5000"), credentials);
        world.register(host, &format!("name-{number}"));
    }
    world.run(secs(10));
    assert!(matches!(world.events(0)[..], [BridgeEvent::Registered { .. }]));
    let error = BridgeError::Credentials;
    for number in [1, 2] {
        let name: BridgeName = name(&format!("name-{}", number + 1));
        assert_eq!(world.events(number), [BridgeEvent::NotRegistered { name, error }]);
    }
}

#[test]
fn a_server_without_bridge_says_so() {
    let mut config = root();
    config.bridge.enabled = false;
    let mut world = World::new(config, 0.0, 9);
    let host = world.add(1, A, None);
    world.register(host, "alice");
    world.run(secs(5));
    let error = BridgeError::NotOffered;
    assert_eq!(world.events(host), [BridgeEvent::NotRegistered { name: name("alice"), error }]);
}

#[test]
fn a_challenge_that_is_too_long_for_a_late_request_is_asked_for_again() {
    let mut config = root();
    config.realm = "r".repeat(127);
    let good = Credentials { username: "anna".to_owned(), password: "secret".to_owned() };
    config.users = vec![good.clone()];
    let mut world = World::new(config.clone(), 0.0, 10);
    let host = world.add(1, A, Some(good));
    world.register(host, "alice");
    world.run(secs(1));
    world.events(host);
    // The server has another key for its nonces now, and trusts nobody any more.
    config.trusted.clear();
    world.server = Server::new(config, [9; 32], world.now);
    world.run(secs(60));
    assert_eq!(world.server.name_count(), 1, "{:?}", world.events(host));
}

#[test]
fn over_a_stream_nothing_is_said_twice() {
    let config = BridgeConfig {
        server: local(),
        identity: identity(1),
        credentials: None,
        epoch: 1,
        reliable: true,
    };
    let (mut bridge, start) = (Bridge::new(config, [1; 32]), origin().monotonic);
    bridge.register(start, &name("alice"), None);
    let mut said = Vec::new();
    for second in 0..=10 {
        bridge.handle_timeout(start + secs(second));
        said.extend(std::iter::from_fn(|| bridge.poll_output()).map(|output| (second, output)));
    }
    let error = BridgeError::Unanswered;
    let lost = BridgeEvent::NotRegistered { name: name("alice"), error };
    assert!(matches!(said[0], (0, BridgeOutput::Transmit(_))));
    assert_eq!(said[1..], [(10, BridgeOutput::Event(lost))]);
}
