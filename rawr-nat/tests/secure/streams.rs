//! Streams of bytes over a bad link.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rawr_nat::secure::{
    OpenError, Session, SessionEvent, StreamError, StreamEvent, StreamId, StreamsConfig, Tunnel,
    TunnelEvent,
};

use crate::link::{Link, Quality, config, identity, start};

const SECOND: Duration = Duration::from_secs(1);

/// What one side wants to do with a stream, and what became of it.
#[derive(Default)]
struct Transfer {
    to_write: Vec<u8>,
    written: usize,
    finishes: bool,
    has_finished: bool,
    read: Vec<u8>,
    /// Reads no more than this altogether.
    read_limit: Option<usize>,
    is_at_end: bool,
    error: Option<StreamError>,
    is_closed: bool,
}

/// Two tunnels over a link, and the applications at both ends.
struct Network {
    now: Instant,
    link: Link,
    ends: [Tunnel; 2],
    transfers: [BTreeMap<StreamId, Transfer>; 2],
    incoming: [Vec<(StreamId, u16)>; 2],
    connected: [Vec<StreamId>; 2],
    sessions: [Vec<SessionEvent>; 2],
    datagrams: [Vec<Vec<u8>>; 2],
}

impl Network {
    fn new(quality: Quality, seed: u64) -> Self {
        Self::with(quality, seed, [StreamsConfig::default(); 2])
    }

    fn with(quality: Quality, seed: u64, [near, far]: [StreamsConfig; 2]) -> Self {
        let now = start();
        let caller = Session::initiate(config(1), identity(2).public(), [1; 32], now).unwrap();
        let called = Session::respond(config(2), None, [2; 32], now);
        let ends = [
            Tunnel::new(caller, near, seed, now),
            Tunnel::new(called, far, seed.wrapping_add(1), now),
        ];
        let link = Link::new(quality, seed);
        let (transfers, incoming, connected, sessions, datagrams) = Default::default();
        let mut network =
            Self { now, link, ends, transfers, incoming, connected, sessions, datagrams };
        network.settle();
        network
    }

    fn open(&mut self, from: usize, port: u16, transfer: Transfer) -> StreamId {
        let id = self.ends[from].streams().open(self.now, port).unwrap();
        self.transfers[from].insert(id, transfer);
        self.settle();
        id
    }

    /// Until something is to be done, at most until `end`.
    fn step(&mut self, end: Instant) -> bool {
        let timers = self.ends.iter().filter_map(Tunnel::poll_timeout);
        let next = timers.chain(self.link.next_at()).min().filter(|at| *at <= end);
        let Some(next) = next else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        while let Some((to, bytes)) = self.link.arrive(self.now) {
            self.ends[to].handle_datagram(self.now, &bytes);
        }
        for end in &mut self.ends {
            if end.poll_timeout().is_some_and(|at| at <= self.now) {
                end.handle_timeout(self.now);
            }
        }
        self.settle();
        true
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    fn run_until(&mut self, limit: Duration, is_done: impl Fn(&Self) -> bool) -> Duration {
        let begun = self.now;
        while !is_done(self) {
            assert!(self.step(begun + limit), "not done after {limit:?}: {:#?}", self.ends);
        }
        self.now - begun
    }

    fn settle(&mut self) {
        for i in [0, 1] {
            loop {
                while let Some(datagram) = self.ends[i].poll_transmit(self.now) {
                    self.link.send(self.now, 1 - i, datagram);
                }
                let mut is_idle = true;
                while let Some(event) = self.ends[i].poll_event() {
                    is_idle = false;
                    self.handle(i, event);
                }
                let ids: Vec<_> = self.transfers[i].keys().copied().collect();
                for id in ids {
                    is_idle &= !self.work(i, id);
                }
                if is_idle {
                    break;
                }
            }
        }
    }

    fn handle(&mut self, i: usize, event: TunnelEvent) {
        match event {
            TunnelEvent::Session(event) => self.sessions[i].push(event),
            TunnelEvent::Datagram(datagram) => self.datagrams[i].push(datagram),
            TunnelEvent::Stream(StreamEvent::Incoming { id, port }) => {
                self.transfers[i].entry(id).or_default();
                self.incoming[i].push((id, port));
            }
            TunnelEvent::Stream(StreamEvent::Connected(id)) => self.connected[i].push(id),
            TunnelEvent::Stream(StreamEvent::Closed { id, error }) => {
                let transfer = self.transfers[i].get_mut(&id).unwrap();
                transfer.is_closed = true;
                transfer.error = error;
            }
            TunnelEvent::Stream(StreamEvent::Readable(_) | StreamEvent::Writable(_)) => {}
        }
    }

    /// Whether something could be done.
    fn work(&mut self, i: usize, id: StreamId) -> bool {
        let transfer = self.transfers[i].get_mut(&id).unwrap();
        let streams = self.ends[i].streams();
        let before = (transfer.written, transfer.has_finished, transfer.read.len());
        while transfer.written < transfer.to_write.len() {
            match streams.write(self.now, id, &transfer.to_write[transfer.written..]) {
                Ok(0) | Err(_) => break,
                Ok(written) => transfer.written += written,
            }
        }
        let has_written = transfer.written == transfer.to_write.len();
        if transfer.finishes && has_written && !transfer.has_finished {
            transfer.has_finished = true;
            streams.finish(self.now, id);
        }
        let mut buffer = [0; 65_536];
        let limit = transfer.read_limit.unwrap_or(usize::MAX);
        while !transfer.is_at_end && transfer.read.len() < limit {
            match streams.read(self.now, id, &mut buffer) {
                Ok(Some(0)) => transfer.is_at_end = true,
                Ok(Some(length)) => transfer.read.extend_from_slice(&buffer[..length]),
                Ok(None) | Err(_) => break,
            }
        }
        before != (transfer.written, transfer.has_finished, transfer.read.len())
    }
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

fn sends(bytes: Vec<u8>) -> Transfer {
    Transfer { to_write: bytes, finishes: true, ..Transfer::default() }
}

/// The other side's end of the only stream.
fn far(network: &Network) -> Option<&Transfer> {
    let (id, _) = network.incoming[1].first()?;
    network.transfers[1].get(id)
}

const LOSSY: Quality = Quality {
    loss: 5,
    doubled: 2,
    corrupted: 1,
    delay: Duration::from_millis(20),
    jitter: Duration::from_millis(5),
    rate: None,
};

#[test]
fn ten_megabytes_come_intact_over_a_lossy_link() {
    let mut network = Network::new(LOSSY, 1);
    let sent = bytes(10_000_000, 1);
    network.open(0, 7, sends(sent.clone()));
    let took =
        network.run_until(3_000 * SECOND, |network| far(network).is_some_and(|far| far.is_at_end));
    assert!(far(&network).unwrap().read == sent, "what came is not what was sent");
    println!("10 MB at 5% loss, 40 to 50 ms: {took:?}");
}

#[test]
fn a_window_is_enough_for_a_fast_and_long_link() {
    let rate = Some(125_000_000 / 8);
    let quality = Quality { delay: Duration::from_millis(40), rate, ..Quality::PERFECT };
    let mut network = Network::new(quality, 1);
    let sent = bytes(60_000_000, 1);
    network.open(0, 7, sends(sent.clone()));
    let has = |length: usize| {
        move |network: &Network| far(network).is_some_and(|far| far.read.len() >= length)
    };
    let first = network.run_until(60 * SECOND, has(20_000_000));
    let rest = network.run_until(60 * SECOND, has(60_000_000));
    assert!(far(&network).unwrap().read == sent);
    let rate = 40.0 * 8.0 / rest.as_secs_f64();
    println!("125 Mbit/s and 80 ms: the first 20 MB in {first:?}, then {rate:.0} Mbit/s");
    assert!(rate > 100.0, "{rate:.0} Mbit/s");
}

#[test]
fn both_directions_go_at_once() {
    let mut network = Network::new(LOSSY, 2);
    let (there, back) = (bytes(300_000, 1), bytes(400_000, 2));
    let id = network.open(0, 7, sends(there.clone()));
    network.run_until(10 * SECOND, |network| !network.incoming[1].is_empty());
    let (far_id, port) = network.incoming[1][0];
    assert_eq!(port, 7);
    network.transfers[1].insert(far_id, sends(back.clone()));
    network.settle();
    let closed = |network: &Network| {
        network.transfers[0][&id].is_closed && network.transfers[1][&far_id].is_closed
    };
    let took = network.run_until(600 * SECOND, closed);
    println!("300 kB and 400 kB against each other at 5% loss: {took:?}");
    assert!(network.transfers[1][&far_id].read == there);
    assert!(network.transfers[0][&id].read == back);
    assert_eq!(network.transfers[0][&id].error, None);
    assert_eq!(network.transfers[1][&far_id].error, None);

    network.ends[0].streams().release(network.now, id);
    network.ends[1].streams().release(network.now, far_id);
    assert_eq!(network.ends.each_mut().map(|end| end.streams().len()), [0, 0]);
}

#[test]
fn one_direction_may_end_before_the_other() {
    let mut network = Network::new(LOSSY, 3);
    let id = network.open(0, 7, sends(b"question".to_vec()));
    network.run_until(20 * SECOND, |network| far(network).is_some_and(|far| far.is_at_end));
    assert_eq!(far(&network).unwrap().read, b"question");
    assert!(!network.transfers[0][&id].is_at_end);
    network.run(30 * SECOND);
    let (far_id, _) = network.incoming[1][0];
    let answer = bytes(100_000, 3);
    let transfer = network.transfers[1].get_mut(&far_id).unwrap();
    (transfer.to_write, transfer.finishes) = (answer.clone(), true);
    network.settle();
    network.run_until(200 * SECOND, |network| network.transfers[0][&id].is_at_end);
    assert!(network.transfers[0][&id].read == answer);
    assert_eq!(network.ends[0].streams().write(network.now, id, b"x"), Err(StreamError::Finished));
}

/// Idle and busy streams alike.
#[test]
fn a_peer_that_vanishes_ends_streams_in_time() {
    let mut network = Network::new(Quality::PERFECT, 4);
    let idle = network.open(0, 7, Transfer::default());
    let busy = network.open(0, 8, Transfer::default());
    network.run(2 * SECOND);
    assert_eq!(network.connected[0], [idle, busy]);
    network.link.is_cut = true;
    network.transfers[0].get_mut(&busy).unwrap().to_write = bytes(10_000, 1);
    network.settle();
    let timeout = StreamsConfig::default().timeout;
    let closed =
        |network: &Network| [idle, busy].iter().all(|id| network.transfers[0][id].is_closed);
    let took = network.run_until(2 * timeout, closed);
    assert!(took <= timeout, "{took:?}");
    for id in [idle, busy] {
        assert_eq!(network.transfers[0][&id].error, Some(StreamError::TimedOut));
        let mut buffer = [0; 10];
        let read = network.ends[0].streams().read(network.now, id, &mut buffer);
        assert_eq!(read, Err(StreamError::TimedOut));
    }
}

#[test]
fn streams_outlive_a_gap_and_new_keys() {
    let mut network = Network::new(Quality::PERFECT, 5);
    let id = network.open(0, 7, Transfer::default());
    network.run(115 * SECOND);
    network.link.is_cut = true;
    network.transfers[0].get_mut(&id).unwrap().to_write = bytes(100_000, 1);
    network.run(10 * SECOND);
    network.link.is_cut = false;
    network.run_until(60 * SECOND, |network| {
        far(network).is_some_and(|far| far.read.len() == 100_000)
    });
    assert!(far(&network).unwrap().read == bytes(100_000, 1));
    network.run(10 * SECOND);
    assert_eq!(network.sessions[0].last(), Some(&SessionEvent::Rekeyed));
}

#[test]
fn an_aborted_stream_is_an_error_at_the_other_side() {
    let mut network = Network::new(Quality::PERFECT, 6);
    let id = network.open(0, 7, Transfer::default());
    network.run(SECOND);
    network.ends[0].streams().abort(network.now, id);
    network.settle();
    network.run(SECOND);
    assert_eq!(network.transfers[0][&id].error, Some(StreamError::Aborted));
    assert_eq!(far(&network).unwrap().error, Some(StreamError::Reset));
}

/// Who does not read keeps the other side from writing more than the windows hold.
#[test]
fn a_slow_reader_stops_the_writer() {
    let streams = StreamsConfig { window: 50_000, ..StreamsConfig::default() };
    let mut network = Network::with(Quality::PERFECT, 7, [streams; 2]);
    let id = network.open(0, 7, Transfer::default());
    network.run(SECOND);
    let (far_id, _) = network.incoming[1][0];
    network.transfers[1].get_mut(&far_id).unwrap().read_limit = Some(0);
    network.transfers[0].get_mut(&id).unwrap().to_write = bytes(1_000_000, 1);
    network.settle();
    network.run(60 * SECOND);
    let written = network.transfers[0][&id].written;
    assert!((50_000..=100_000).contains(&written), "{written}");
    assert!(!network.transfers[0][&id].is_closed, "waiting is no error");
    network.transfers[1].get_mut(&far_id).unwrap().read_limit = None;
    network.settle();
    network.run_until(60 * SECOND, |network| {
        far(network).is_some_and(|far| far.read.len() == 1_000_000)
    });
    assert!(far(&network).unwrap().read == bytes(1_000_000, 1));
}

#[test]
fn what_is_not_possible_is_said() {
    let limited = |max_streams| StreamsConfig { max_streams, ..StreamsConfig::default() };
    let mut network = Network::with(Quality::PERFECT, 8, [limited(3), limited(2)]);
    for port in [0, 49_152, u16::MAX] {
        let error = network.ends[0].streams().open(network.now, port);
        assert_eq!(error, Err(OpenError::Port(port)));
    }
    let ids = [7, 7, 9].map(|port| network.open(0, port, Transfer::default()));
    let error = network.ends[0].streams().open(network.now, 10);
    assert_eq!(error, Err(OpenError::TooMany(3)));
    network.run(5 * SECOND);
    let errors = ids.map(|id| network.transfers[0][&id].error);
    assert_eq!(errors, [None, None, Some(StreamError::Refused)], "the other side has two at most");
    let ports: Vec<_> = network.incoming[1].iter().map(|it| it.1).collect();
    assert_eq!(ports, [7, 7]);
}

/// A stream that nobody uses any more goes by itself, whatever the other side does.
#[test]
fn released_streams_are_forgotten() {
    let mut network = Network::new(Quality::PERFECT, 9);
    // Nothing under way; something under way there; something under way here.
    let ids = [7, 8, 9].map(|port| network.open(0, port, Transfer::default()));
    network.run(SECOND);
    let (far_id, _) = network.incoming[1][1];
    network.transfers[1].get_mut(&far_id).unwrap().to_write = bytes(5_000_000, 1);
    network.transfers[0].get_mut(&ids[1]).unwrap().read_limit = Some(0);
    network.transfers[0].get_mut(&ids[2]).unwrap().to_write = bytes(500_000, 2);
    network.settle();
    network.run(SECOND);
    for id in ids {
        network.transfers[0].remove(&id);
        network.ends[0].streams().release(network.now, id);
    }
    network.settle();
    network.run(2 * SECOND);
    let (last, _) = network.incoming[1][2];
    assert!(network.transfers[1][&last].read == bytes(500_000, 2), "what was written still came");
    assert_eq!(network.transfers[1][&far_id].error, Some(StreamError::Reset));
    network.run(130 * SECOND);
    assert_eq!(network.ends[0].streams().len(), 0);
}

/// Else the other side would wait for what never comes.
#[test]
fn the_last_end_is_confirmed_before_a_stream_is_forgotten() {
    let mut network = Network::new(Quality::PERFECT, 10);
    let near_id = network.open(0, 7, Transfer::default());
    network.run_until(SECOND, |network| far(network).is_some());
    let (far_id, _) = network.incoming[1][0];
    network.transfers[1].get_mut(&far_id).unwrap().finishes = true;
    network.settle();
    network.run_until(SECOND, |network| network.transfers[0][&near_id].is_at_end);
    // The end comes with data, or right after.
    network.transfers[0].insert(near_id, sends(bytes(10, 1)));
    network.settle();
    network.transfers[0].remove(&near_id);
    network.ends[0].streams().release(network.now, near_id);
    network.settle();
    network.run_until(SECOND, |network| far(network).is_some_and(|it| it.is_at_end));
    network.transfers[1].remove(&far_id);
    network.ends[1].streams().release(network.now, far_id);
    network.settle();
    network.run(2 * Quality::PERFECT.delay);
    for end in &mut network.ends {
        assert_eq!(end.streams().len(), 0, "{end:?}");
    }
}

#[test]
fn datagrams_go_beside_streams() {
    let mut network = Network::new(Quality::PERFECT, 10);
    network.run(SECOND);
    for payload in [&b"one"[..], b""] {
        network.ends[0].send(network.now, payload).unwrap();
    }
    network.settle();
    network.run(SECOND);
    assert_eq!(network.datagrams[1], [b"one".to_vec(), vec![]]);
}

#[test]
fn datagrams_keep_to_the_mtu() {
    let streams = StreamsConfig { mtu: 500, ..StreamsConfig::default() };
    let mut network = Network::with(Quality::PERFECT, 11, [streams; 2]);
    network.run(SECOND);
    let id = network.ends[0].streams().open(network.now, 7).unwrap();
    network.transfers[0].insert(id, sends(bytes(100_000, 1)));
    let mut longest = 0;
    while far(&network).is_none_or(|far| !far.is_at_end) {
        let (now, end) = (network.now, network.now + SECOND);
        for i in [0, 1] {
            while let Some(datagram) = network.ends[i].poll_transmit(now) {
                longest = longest.max(datagram.len());
                network.link.send(now, 1 - i, datagram);
            }
        }
        assert!(network.step(end));
    }
    assert!(longest <= 500 + 1 + rawr_nat::secure::OVERHEAD, "{longest}");
}

fn qualities() -> impl Strategy<Value = Quality> {
    (0..12_u32, 0..10_u32, 0..5_u32, 1..60_u64, 0..40_u64).prop_map(
        |(loss, doubled, corrupted, delay, jitter)| Quality {
            loss,
            doubled,
            corrupted,
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            rate: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Many streams at once, in both directions, over whatever link: all of it comes, in order.
    #[test]
    fn streams_come_intact(
        quality in qualities(),
        seed: u64,
        lengths in proptest::collection::vec((0..60_000_usize, 0..2_usize), 1..8),
    ) {
        // Twenty seconds of silence happen at such a loss, once many segments have backed off.
        let streams = StreamsConfig { timeout: 300 * SECOND, ..StreamsConfig::default() };
        let mut network = Network::with(quality, seed, [streams; 2]);
        let mut opened = Vec::new();
        for (i, (length, from)) in lengths.into_iter().enumerate() {
            let port = u16::try_from(i).unwrap() + 1;
            let sent = bytes(length, seed.wrapping_add(u64::from(port)));
            opened.push((from, port, sent.clone(), network.open(from, port, sends(sent))));
        }
        let all_read = |network: &Network| {
            let read = |side: usize| network.transfers[side].values().filter(|it| it.is_at_end);
            let expected = |from: usize| opened.iter().filter(|it| it.0 == from).count();
            [0, 1].into_iter().all(|from| {
                let incoming = &network.incoming[1 - from];
                incoming.len() == expected(from) && read(1 - from).count() >= expected(from)
            })
        };
        network.run_until(3_000 * SECOND, all_read);
        for (from, port, sent, _) in &opened {
            let (id, _) = network.incoming[1 - from].iter().find(|it| it.1 == *port).unwrap();
            prop_assert!(network.transfers[1 - from][id].read == *sent, "port {}", port);
        }
    }
}
