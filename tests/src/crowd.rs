//! Thousands of sessions out of one thread: both sides of each as the client library's state
//! machine, over a few sockets.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rawr_nat::{
    Attachment, AttachmentConfig, AttachmentEvent, AttachmentOutput, AttachmentState, LostReason,
    Via,
};
use rawr_proto::{Role, SessionSecret};
use socket2::SockRef;

use crate::netns::Netns;
use crate::process::now;

/// Legs that may be on their way to be paired at a time.
const IN_FLIGHT: usize = 100;
const RECEIVE_BUFFER: usize = 16 << 20;
const PAUSE: Duration = Duration::from_millis(1);
/// Seconds that a session lives which is released as soon as a datagram has passed.
const FIRST_PACKET_LIFETIME: u32 = 60;
/// Begins the crowd's data: no STUN message begins so.
const MARK: u8 = 0xd5;

/// Sessions of one client host. All methods that wait drive the timers meanwhile.
#[derive(Debug)]
pub struct Crowd {
    /// For each address of the host: of role A, then of role B.
    sides: Vec<Side>,
    legs: Vec<Leg>,
    /// Which leg a control answer is for.
    transactions: HashMap<[u8; 12], usize>,
    /// Which leg the server's data address belongs to.
    by_data_address: HashMap<SocketAddr, usize>,
    /// How often a server did not answer for so long that the client had to begin anew.
    pub retries: usize,
    /// When which leg wants to be called.
    timers: BTreeSet<(Instant, usize)>,
}

#[derive(Debug)]
struct Side {
    control: UdpSocket,
    data: UdpSocket,
}

#[derive(Debug)]
struct Leg {
    attachment: Attachment,
    config: AttachmentConfig,
    side: usize,
    /// As it stands among the timers.
    timer: Option<Instant>,
    /// Datagrams of the other side that arrived.
    received: u64,
    over: Option<AttachmentEvent>,
}

impl Crowd {
    /// Sockets at `host`, on each of its `addresses`.
    pub fn new(host: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let socket = |address| -> Result<UdpSocket> {
            let socket = host.run(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
            socket.set_nonblocking(true)?;
            // The limit of unprivileged processes serves, only slower.
            let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
            Ok(socket)
        };
        let sides = addresses.iter().flat_map(|address| [*address; 2]);
        let side = |address| -> Result<Side> {
            Ok(Side { control: socket(address)?, data: socket(address)? })
        };
        Ok(Self {
            sides: sides.map(side).collect::<Result<_>>()?,
            legs: Vec::new(),
            transactions: HashMap::new(),
            by_data_address: HashMap::new(),
            retries: 0,
            timers: BTreeSet::new(),
        })
    }

    /// Starts `count` sessions and waits until the server has paired them all.
    pub fn pair(
        &mut self,
        server: SocketAddr,
        count: usize,
        lifetime: u32,
        limit: Duration,
    ) -> Result<()> {
        let end = now() + limit;
        let (mut started, mut first) = (0, self.legs.len());
        while started < count || first < self.legs.len() {
            while started < count && self.legs.len() - first < IN_FLIGHT {
                self.start(server, lifetime)?;
                started += 1;
            }
            self.drive()?;
            while self.legs.get(first).is_some_and(|leg| leg.is_paired()) {
                first += 1;
            }
            self.retry(first)?;
            if let Some(leg) = self.legs[first..].iter().find(|leg| leg.over.is_some()) {
                bail!("a session failed after {first} legs: {:?}", leg.over);
            }
            ensure!(now() < end, "only {first} legs of {} were paired in {limit:?}", 2 * count);
        }
        Ok(())
    }

    /// Sends one datagram from each side of each session that lives, and returns how many of them
    /// did not arrive on the other side.
    pub fn exchange_data(&mut self, limit: Duration) -> Result<usize> {
        let before: Vec<_> = self.legs.iter().map(|leg| leg.received).collect();
        for index in 0..self.legs.len() {
            let leg = &self.legs[index];
            let Some(to) = leg.attachment.data_address().filter(|_| leg.over.is_none()) else {
                continue;
            };
            self.sides[leg.side].data.send_to(&[MARK; 64], to)?;
            if index % 64 == 0 {
                self.drive()?;
            }
        }
        let missing = |crowd: &Self| {
            let living = crowd.legs.iter().zip(&before).filter(|(leg, _)| leg.over.is_none());
            living.filter(|(leg, before)| leg.received == **before).count()
        };
        let end = now() + limit;
        while missing(self) > 0 && now() < end {
            self.drive()?;
        }
        Ok(missing(self))
    }

    /// Releases the first `count` sessions and waits for the server's consent.
    pub fn release(&mut self, count: usize, limit: Duration) -> Result<()> {
        let end = now() + limit;
        for chunk in 0..(2 * count).div_ceil(IN_FLIGHT) {
            let legs = chunk * IN_FLIGHT..(2 * count).min((chunk + 1) * IN_FLIGHT);
            for index in legs.clone() {
                self.legs[index].attachment.release(now());
                self.drain(index)?;
            }
            while self.legs[legs.clone()].iter().any(|leg| leg.over.is_none()) {
                self.drive()?;
                ensure!(now() < end, "not all sessions were released in {limit:?}");
            }
        }
        Ok(())
    }

    /// Time from the first Connect of a new session until the first datagram of one side has arrived
    /// at the other. It is sent as soon as its sender knows that the session is paired. The session
    /// is released afterwards.
    pub fn first_packet(&mut self, server: SocketAddr, limit: Duration) -> Result<Duration> {
        let (from, to) = (self.legs.len(), self.legs.len() + 1);
        let begin = now();
        self.start(server, FIRST_PACKET_LIFETIME)?;
        self.spin_until("paired", begin + limit, |crowd| crowd.legs[from].is_paired())?;
        let data = self.legs[from].attachment.data_address().context("paired without a port")?;
        self.sides[self.legs[from].side].data.send_to(&[MARK; 64], data)?;
        self.spin_until("reached", begin + limit, |crowd| crowd.legs[to].received > 0)?;
        let took = begin.elapsed();
        for index in [from, to] {
            self.legs[index].attachment.release(now());
            self.drain(index)?;
        }
        self.spin_until("released", begin + limit, |crowd| {
            crowd.legs[from..=to].iter().all(|leg| leg.over.is_some())
        })?;
        Ok(took)
    }

    /// Drives the sessions without a pause, which would be longer than what is waited for.
    fn spin_until(
        &mut self,
        what: &str,
        end: Instant,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        while !is_so(self) {
            self.serve()?;
            ensure!(now() < end, "a session was not {what} in time");
        }
        Ok(())
    }

    fn start(&mut self, server: SocketAddr, lifetime: u32) -> Result<()> {
        let secret = SessionSecret::from_bytes(rand::rng().random());
        let is_reachable =
            |side: &Side| side.data.local_addr().is_ok_and(|own| own.is_ipv4() == server.is_ipv4());
        let first = self.sides.iter().position(is_reachable).context("no way to the server")?;
        for (side, role) in [(first, Role::A), (first + 1, Role::B)] {
            let config = AttachmentConfig {
                server,
                key: secret.key(),
                mac_key: None,
                role,
                epoch: 1,
                raise_epoch: false,
                credentials: None,
                target_mac: None,
                target_port: None,
                root: None,
                hops: Vec::new(),
                hop_limit: 8,
                lifetime,
            };
            let attachment = attach(&config);
            self.legs.push(Leg { attachment, config, side, timer: None, received: 0, over: None });
            self.drain(self.legs.len() - 1)?;
        }
        Ok(())
    }

    /// Lets those begin anew, from leg number `first` on, that got no answer.
    fn retry(&mut self, first: usize) -> Result<()> {
        for index in first..self.legs.len() {
            let leg = &mut self.legs[index];
            if leg.over == Some(AttachmentEvent::Lost(LostReason::Unreachable)) {
                leg.config.epoch += 1;
                leg.attachment = attach(&leg.config);
                leg.over = None;
                self.retries += 1;
                self.drain(index)?;
            }
        }
        Ok(())
    }

    /// Serves what is there; pauses if there was nothing.
    fn drive(&mut self) -> Result<()> {
        if !self.serve()? {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Receives what is there and serves the timers that are due. Whether anything was received.
    fn serve(&mut self) -> Result<bool> {
        let mut idle = true;
        let mut buffer = [0; 2048];
        for side in 0..self.sides.len() {
            while let Ok((length, _)) = self.sides[side].control.recv_from(&mut buffer) {
                idle = false;
                self.handle_control(&buffer[..length])?;
            }
            while let Ok((length, from)) = self.sides[side].data.recv_from(&mut buffer) {
                idle = false;
                self.handle_data(from, &buffer[..length])?;
            }
        }
        while let Some((_, index)) = self.timers.first().copied().filter(|(at, _)| *at <= now()) {
            self.legs[index].attachment.handle_timeout(now());
            self.drain(index)?;
        }
        Ok(!idle)
    }

    fn handle_control(&mut self, bytes: &[u8]) -> Result<()> {
        let transaction: Option<[u8; 12]> = bytes.get(8..20).and_then(|id| id.try_into().ok());
        let Some(index) = transaction.and_then(|id| self.transactions.remove(&id)) else {
            return Ok(());
        };
        let leg = &mut self.legs[index];
        let server = leg.attachment.server();
        leg.attachment.handle_control(now(), server, bytes);
        self.drain(index)
    }

    fn handle_data(&mut self, from: SocketAddr, bytes: &[u8]) -> Result<()> {
        let Some(index) = self.by_data_address.get(&from).copied() else { return Ok(()) };
        let leg = &mut self.legs[index];
        if bytes.first() == Some(&MARK) {
            leg.received += 1;
            return Ok(());
        }
        // What it leaves is a Probe of the other side, which proves nothing here: data does.
        leg.attachment.handle_data(now(), from, bytes);
        self.drain(index)
    }

    fn drain(&mut self, index: usize) -> Result<()> {
        while let Some(output) = self.legs[index].attachment.poll_output() {
            match output {
                AttachmentOutput::Transmit { via, to, bytes } => {
                    let side = &self.sides[self.legs[index].side];
                    let socket = match via {
                        Via::Control => {
                            let id = bytes.get(8..20).and_then(|id| id.try_into().ok());
                            self.transactions.insert(id.context("no STUN request")?, index);
                            &side.control
                        }
                        Via::Data => &side.data,
                    };
                    // A full queue loses it, as the network would; it will be repeated.
                    let _ = socket.send_to(&bytes, to);
                }
                AttachmentOutput::Event(event) => self.note(index, event),
            }
        }
        let leg = &mut self.legs[index];
        let timer = leg.attachment.poll_timeout();
        if let Some(before) = std::mem::replace(&mut leg.timer, timer) {
            self.timers.remove(&(before, index));
        }
        self.timers.extend(timer.map(|at| (at, index)));
        Ok(())
    }

    fn note(&mut self, index: usize, event: AttachmentEvent) {
        let leg = &mut self.legs[index];
        match event {
            AttachmentEvent::Connected { data_address } => {
                self.by_data_address.insert(data_address, index);
            }
            AttachmentEvent::Paired => leg.attachment.stop_probing(),
            AttachmentEvent::Lost(_) | AttachmentEvent::Refused(_) | AttachmentEvent::Released => {
                leg.over = Some(event);
            }
            AttachmentEvent::Bound { .. }
            | AttachmentEvent::Confirmed { .. }
            | AttachmentEvent::Unpaired => {}
        }
    }
}

fn attach(config: &AttachmentConfig) -> Attachment {
    let mut attachment = Attachment::new(config.clone(), rand::rng().random(), now());
    attachment.start_probing(now());
    attachment
}

impl Leg {
    fn is_paired(&self) -> bool {
        matches!(self.attachment.state(), AttachmentState::Paired | AttachmentState::Confirmed)
    }
}
