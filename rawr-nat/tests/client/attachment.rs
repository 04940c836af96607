//! One attachment at one server, over virtual time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Datagram, FakeServer};
use rawr_nat::{
    Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, AttachmentState, LostReason,
    Via,
};
use rawr_proto::{
    Attributes, Class, Credentials, ErrorCode, IntegrityKey, LegState, Message, Method, Role,
    SessionSecret, decode,
};

const LATENCY: Duration = Duration::from_millis(5);

/// One client and one server, 5 ms apart.
struct Bench {
    now: Instant,
    started: Instant,
    client: Attachment,
    role: Role,
    control: SocketAddr,
    data: SocketAddr,
    /// In both directions, with their times of arrival.
    in_flight: Vec<(Instant, Datagram)>,
    /// What the client sends on the data path goes to the other peer.
    is_joined: bool,
    sent: Vec<(Duration, Via, usize)>,
    events: Vec<AttachmentEvent>,
}

impl Bench {
    fn new(role: Role, change: impl FnOnce(&mut AttachmentConfig)) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut config = AttachmentConfig {
            server: "192.0.2.1:3478".parse().unwrap(),
            key: SessionSecret::from_bytes([7; 32]).key(),
            mac_key: None,
            role,
            epoch: 100,
            raise_epoch: true,
            credentials: None,
            target_mac: None,
            target_port: None,
            root: None,
            hops: Vec::new(),
            hop_limit: 8,
            lifetime: 120,
        };
        change(&mut config);
        let mut client = Attachment::new(config, 1, now);
        client.start_probing(now);
        let last = if role == Role::A { 10 } else { 20 };
        Self {
            now,
            started: now,
            client,
            role,
            control: SocketAddr::from(([198, 51, 100, last], 1000)),
            data: SocketAddr::from(([198, 51, 100, last], 2000)),
            in_flight: Vec::new(),
            is_joined: false,
            sent: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Runs until `end` after the start.
    fn run(&mut self, server: &mut FakeServer, end: Duration) {
        let end = self.started + end;
        loop {
            self.drain();
            let arrival = self.in_flight.iter().map(|(at, _)| *at).min();
            let Some(next) = arrival.into_iter().chain(self.client.poll_timeout()).min() else {
                break;
            };
            if next > end {
                break;
            }
            assert!(next >= self.now, "time does not run back");
            self.now = next;
            match self.in_flight.iter().position(|(at, _)| *at <= next) {
                Some(i) => {
                    let (_, datagram) = self.in_flight.remove(i);
                    self.deliver(server, &datagram);
                }
                None => self.client.handle_timeout(next),
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, server: &mut FakeServer, datagram: &Datagram) {
        let Datagram { from, to, bytes } = datagram;
        if self.is_joined && *from == self.data {
            self.in_flight.push((self.now + LATENCY, answer_of_peer(datagram)));
        } else if server.owns(*to) {
            let replies = server.handle(datagram);
            self.in_flight.extend(replies.into_iter().map(|reply| (self.now + LATENCY, reply)));
        } else if *to == self.control {
            self.client.handle_control(self.now, *from, bytes);
        } else if *to == self.data {
            self.client.handle_data(self.now, *from, bytes);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                AttachmentOutput::Transmit { via, to, bytes } => {
                    self.sent.push((self.now - self.started, via, bytes.len()));
                    let from = if via == Via::Control { self.control } else { self.data };
                    self.in_flight.push((self.now + LATENCY, Datagram { from, to, bytes }));
                }
                AttachmentOutput::Event(event) => self.events.push(event),
            }
        }
    }

    fn sent_millis(&self, via: Via) -> Vec<u128> {
        let of_via = self.sent.iter().filter(|(_, sent_via, _)| *sent_via == via);
        of_via.map(|(at, ..)| at.as_millis()).collect()
    }
}

/// The other peer's answer to a Probe.
fn answer_of_peer(probe: &Datagram) -> Datagram {
    let key = IntegrityKey::session(&SessionSecret::from_bytes([7; 32]).key());
    let message = decode(&probe.bytes).unwrap().message;
    let attributes = Attributes {
        session: message.attributes.session,
        leg_state: Some(LegState::Peer),
        ..Attributes::default()
    };
    let bytes = Message::success(message.head(), attributes).encode(Some(&key));
    Datagram { from: probe.to, to: probe.from, bytes }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn data_address(server: &FakeServer, role: Role) -> SocketAddr {
    server.sessions.values().next().unwrap().legs[&role].local
}

#[test]
fn connects_in_two_round_trips_and_binds_in_two_more() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(39));
    let data_address = data_address(&server, Role::A);
    assert_eq!(bench.events, [AttachmentEvent::Connected { data_address }]);
    bench.run(&mut server, millis(40));
    assert_eq!(bench.events[1..], [AttachmentEvent::Bound { mapped: bench.data }]);
    assert_eq!(bench.client.state(), AttachmentState::Bound);
    assert_eq!(bench.sent_millis(Via::Control), [0, 10]);
    assert_eq!(bench.sent_millis(Via::Data), [20, 30]);
}

#[test]
fn probes_thin_out_while_waiting() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(1_000));
    let sent = bench.sent_millis(Via::Data);
    assert_eq!(sent[..8], [20, 30, 70, 150, 310, 510, 710, 910]);
    bench.run(&mut server, millis(25_000));
    let last: Vec<_> = bench.sent_millis(Via::Data).into_iter().rev().take(3).collect();
    assert_eq!((last[0] - last[1], last[1] - last[2]), (1_000, 1_000));
}

#[test]
fn unanswered_connect_is_lost_after_seven_tries() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    server.up = false;
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(1_549));
    assert_eq!(bench.sent_millis(Via::Control), [0, 50, 150, 350, 650, 950, 1_250]);
    assert_eq!(bench.events, []);
    bench.run(&mut server, millis(1_550));
    assert_eq!(bench.events, [AttachmentEvent::Lost(LostReason::Unreachable)]);
    assert_eq!(bench.client.poll_timeout(), None);
}

#[test]
fn status_makes_it_probe_at_once_and_the_peers_answer_confirms() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(100));
    let leg = data_address(&server, Role::A);
    let key = IntegrityKey::session(&SessionSecret::from_bytes([7; 32]).key());
    let attributes = Attributes {
        session: Some(SessionSecret::from_bytes([7; 32]).key().id()),
        leg_state: Some(LegState::Paired),
        ..Attributes::default()
    };
    let id = rawr_proto::TransactionId([5; 12]);
    let status = Message::indication(Method::Status, id, attributes).encode(Some(&key));
    assert!(bench.client.handle_data(bench.now, leg, &status));
    let probes = bench.sent_millis(Via::Data).len();
    bench.drain();
    assert_eq!(bench.events.last(), Some(&AttachmentEvent::Paired));
    assert_eq!(bench.sent_millis(Via::Data)[probes..], [100]);
    bench.is_joined = true;
    bench.run(&mut server, millis(130));
    assert_eq!(bench.events.last(), Some(&AttachmentEvent::Confirmed { rtt: millis(10) }));
    let probes = bench.sent_millis(Via::Data).len();
    bench.run(&mut server, millis(20_000));
    assert_eq!(bench.sent_millis(Via::Data).len(), probes, "a gateway does not go on probing");
}

#[test]
fn foreign_datagrams_are_data() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(100));
    let leg = data_address(&server, Role::A);
    let stranger = IntegrityKey::session(&SessionSecret::from_bytes([8; 32]).key());
    let id = rawr_proto::TransactionId([5; 12]);
    let session = Some(SessionSecret::from_bytes([7; 32]).key().id());
    let paired =
        || Attributes { session, leg_state: Some(LegState::Paired), ..Attributes::default() };
    let forged = Message::indication(Method::Status, id, paired()).encode(Some(&stranger));
    let unkeyed = Message::indication(Method::Status, id, paired()).encode(None);
    let binding = Message::request(Method::Binding, id, Attributes::default()).encode(None);
    let head = Message::request(Method::Probe, id, Attributes::default()).head();
    let unasked = Message::error(
        head,
        ErrorCode::StaleNonce,
        Attributes { nonce: Some("x".into()), ..Attributes::default() },
    );
    for bytes in [forged, unkeyed, binding, unasked.encode(None), b"media".to_vec()] {
        assert!(!bench.client.handle_data(bench.now, leg, &bytes));
    }
    assert_eq!(bench.client.state(), AttachmentState::Bound);
    assert!(!bench.client.handle_control(bench.now, "192.0.2.9:3478".parse().unwrap(), b"x"));
}

#[test]
fn refreshes_four_times_per_lifetime_and_outlives_a_restarting_server() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, Duration::from_secs(29));
    server.up = false;
    bench.run(&mut server, Duration::from_secs(36));
    server.up = true;
    bench.run(&mut server, Duration::from_secs(70));
    let refreshes = server.log.iter().filter(|(_, method)| *method == Method::Refresh);
    assert_eq!(refreshes.count(), 2);
    assert_eq!(bench.events.len(), 2, "{:?}", bench.events);
    server.up = false;
    bench.run(&mut server, Duration::from_secs(250));
    assert_eq!(bench.events.last(), Some(&AttachmentEvent::Lost(LostReason::Expired)));
}

#[test]
fn forgotten_leg_is_connected_anew_with_a_greater_epoch() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, Duration::from_secs(1));
    let before = bench.client.data_address().unwrap();
    server.sessions.clear();
    bench.run(&mut server, millis(30_037));
    let after = data_address(&server, Role::A);
    assert_ne!(before, after);
    assert_eq!(bench.client.data_address(), Some(before), "the old path stands until then");
    assert_eq!(server.sessions.values().next().unwrap().legs[&Role::A].epoch, 101);
    assert_eq!(bench.events[2..], []);
    bench.run(&mut server, Duration::from_secs(31));
    let bound = AttachmentEvent::Bound { mapped: bench.data };
    assert_eq!(bench.events[2..], [AttachmentEvent::Connected { data_address: after }, bound]);
}

#[test]
fn credentials_mask_the_keys() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let user = Credentials { username: "cam".into(), password: "secret".into() };
    server.user = Some(user.clone());
    let mut bench = Bench::new(Role::B, |config| config.credentials = Some(user));
    bench.run(&mut server, millis(100));
    assert_eq!(bench.client.state(), AttachmentState::Bound);
    bench.run(&mut server, Duration::from_secs(31));
    assert_eq!(server.log.last().map(|(_, method)| *method), Some(Method::Probe));
    assert!(server.log.contains(&(Class::Request, Method::Refresh)));
}

#[test]
fn wrong_or_missing_credentials_are_refused() {
    let right = Credentials { username: "cam".into(), password: "secret".into() };
    let wrong = Credentials { password: "guess".into(), ..right.clone() };
    for credentials in [None, Some(wrong)] {
        let mut server = FakeServer::new("192.0.2.1:3478");
        server.user = Some(right.clone());
        let mut bench = Bench::new(Role::A, |config| config.credentials = credentials);
        bench.run(&mut server, millis(1_000));
        assert_eq!(bench.events, [AttachmentEvent::Refused(ErrorCode::Unauthenticated)]);
        assert!(server.sessions.is_empty());
    }
}

#[test]
fn target_may_become_known_later() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let secret = SessionSecret::from_bytes([7; 32]);
    let mut bench = Bench::new(Role::A, |config| config.mac_key = Some(secret.mac_key()));
    bench.run(&mut server, millis(100));
    let leg = server.sessions.values().next().unwrap().legs[&Role::A].clone();
    assert!(!leg.knows_mac_key, "the key is of no use yet");
    let mac = secret.mac_key().blind(rawr_proto::Mac([2, 0, 0, 0, 0, 1]));
    bench.client.update_target(bench.now, Some(mac), Some(5_000));
    bench.run(&mut server, millis(200));
    let updated = server.sessions.values().next().unwrap().legs[&Role::A].clone();
    assert!(updated.knows_mac_key);
    assert_eq!((updated.target_mac, updated.local), (Some(mac), leg.local));
    assert_eq!(bench.client.state(), AttachmentState::Bound);
    assert_eq!(bench.events.len(), 2);
}

#[test]
fn release_is_acknowledged_or_given_up() {
    let mut server = FakeServer::new("192.0.2.1:3478");
    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(100));
    assert_eq!(bench.role, Role::A);
    bench.client.release(bench.now);
    bench.run(&mut server, millis(120));
    assert_eq!(bench.events.last(), Some(&AttachmentEvent::Released));
    assert!(server.sessions.values().next().unwrap().legs.is_empty());

    let mut bench = Bench::new(Role::A, |_| {});
    bench.run(&mut server, millis(100));
    server.up = false;
    bench.client.release(bench.now);
    bench.run(&mut server, Duration::from_secs(2));
    assert_eq!(bench.events.last(), Some(&AttachmentEvent::Released));
    assert_eq!(bench.client.poll_timeout(), None);
}
