//! Datagrams of a link, each for one of those who share it.
//!
//! | first byte | what follows                                      |
//! |------------|---------------------------------------------------|
//! | 0          | a ping: 8 bytes, which come back                  |
//! | 1          | the answer to one: the same 8 bytes               |
//! | 2          | a forwarded datagram: its flow (4 bytes), payload |

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rawr_nat::link::Link;
use tokio::sync::mpsc;

const PING: u8 = 0;
const PONG: u8 = 1;
const FLOW: u8 = 2;

/// Flows of a link at the same time.
pub const MAX_FLOWS: usize = 1024;
/// Datagrams that wait for one of those who share the link. Later ones are lost.
const MAX_WAITING: usize = 256;

/// A datagram of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Datagram<'a> {
    Ping([u8; 8]),
    Pong([u8; 8]),
    Flow(u32, &'a [u8]),
}

/// Sorts a link's datagrams. It does so while [`Hub::run`] is awaited.
pub struct Hub {
    link: Arc<Link>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flows: HashMap<u32, mpsc::Sender<Vec<u8>>>,
    next_flow: u32,
    pongs: Option<mpsc::Sender<u64>>,
}

/// A place for datagrams of a flow. Dropped, it is free again.
pub struct Flow {
    hub: Arc<Hub>,
    id: u32,
    received: mpsc::Receiver<Vec<u8>>,
}

impl Hub {
    pub fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self { link, state: Mutex::default() })
    }

    /// The link.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Answers pings, and gives others what is theirs, until the link is over.
    ///
    /// # Errors
    /// When it is.
    pub async fn run(&self) -> io::Result<()> {
        loop {
            let bytes = self.link.recv().await?;
            match Datagram::read(&bytes) {
                Some(Datagram::Ping(mark)) => self.send(Datagram::Pong(mark)),
                Some(Datagram::Pong(mark)) => {
                    if let Some(pongs) = &self.lock().pongs {
                        // One that nobody waits for is late.
                        let _late = pongs.try_send(u64::from_be_bytes(mark));
                    }
                }
                Some(Datagram::Flow(id, payload)) => {
                    if let Some(flow) = self.lock().flows.get(&id) {
                        // As on any way: what finds no room is lost.
                        let _full = flow.try_send(payload.to_vec());
                    }
                }
                // Of a later version.
                None => {}
            }
        }
    }

    /// Sends a ping; its answer comes with the same mark.
    pub fn ping(&self, mark: u64) {
        self.send(Datagram::Ping(mark.to_be_bytes()));
    }

    /// Marks of answers to pings, from now on.
    pub fn pongs(&self) -> mpsc::Receiver<u64> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        self.lock().pongs = Some(sender);
        receiver
    }

    /// A flow with a number of ours; `None` if there are too many.
    pub fn open_flow(self: &Arc<Self>) -> Option<Flow> {
        let mut state = self.lock();
        let id = state.next_flow;
        state.next_flow = id.wrapping_add(1);
        drop(state);
        self.take_flow(id)
    }

    /// A flow with a number of the other side's; `None` if it is taken, or there are too many.
    pub fn take_flow(self: &Arc<Self>, id: u32) -> Option<Flow> {
        let mut state = self.lock();
        if state.flows.len() >= MAX_FLOWS || state.flows.contains_key(&id) {
            return None;
        }
        let (sender, received) = mpsc::channel(MAX_WAITING);
        state.flows.insert(id, sender);
        Some(Flow { hub: Arc::clone(self), id, received })
    }

    fn send(&self, datagram: Datagram<'_>) {
        if let Err(error) = self.link.send(&datagram.to_bytes()) {
            log::debug!("a datagram was not sent: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    /// Its number, which the other side has to know.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Sends a datagram to the other side, which may get lost.
    pub fn send(&self, payload: &[u8]) {
        self.hub.send(Datagram::Flow(self.id, payload));
    }

    /// Waits for a datagram of the other side's. Nothing is lost if the future is dropped.
    pub async fn recv(&mut self) -> Vec<u8> {
        match self.received.recv().await {
            Some(payload) => payload,
            // The sender is there as long as this is.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.hub.lock().flows.remove(&self.id);
    }
}

impl<'a> Datagram<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&PING, mark) => Some(Self::Ping(mark.try_into().ok()?)),
            (&PONG, mark) => Some(Self::Pong(mark.try_into().ok()?)),
            (&FLOW, rest) => {
                let (id, payload) = rest.split_first_chunk()?;
                Some(Self::Flow(u32::from_be_bytes(*id), payload))
            }
            _ => None,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Ping(mark) => [&[PING], &mark[..]].concat(),
            Self::Pong(mark) => [&[PONG], &mark[..]].concat(),
            Self::Flow(id, payload) => [&[FLOW], &id.to_be_bytes()[..], payload].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for datagram in [
            Datagram::Ping([7; 8]),
            Datagram::Pong([1; 8]),
            Datagram::Flow(77, b"x"),
            Datagram::Flow(0, b""),
        ] {
            assert_eq!(Datagram::read(&datagram.to_bytes()), Some(datagram));
        }
    }

    #[test]
    fn nonsense_is_nothing() {
        for bytes in [&[][..], &[PING], &[PING, 1, 2], &[FLOW, 0, 0, 0], &[9, 1, 2, 3]] {
            assert_eq!(Datagram::read(bytes), None);
        }
    }
}
