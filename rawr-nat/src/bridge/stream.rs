//! A TCP connection with whoever holds a name, with no relay in it: both sides map a socket, tell each
//! other where it is by an introduction, and punch.

use std::future::Future;
use std::io;
use std::pin::pin;

use rawr_proto::{BridgeName, IntroductionId};
use tokio::net::TcpStream;

use super::{BridgeError, BridgeEvent, BridgeSocket, SealError};
use crate::identity::PublicKey;
use crate::rendezvous::{
    InfoError, MappedTcpSocket, MappingContext, PubRendezvousInfo, PunchError, gen_rendezvous_info,
    tcp_punch_hole,
};

/// What a message begins with that asks for a connection, or agrees to one. The rest is a
/// [`PubRendezvousInfo`].
const STREAM: &[u8] = b"tcp\0";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The name leads nowhere.
    #[error("{name} cannot be looked up: {error}")]
    NotFound {
        /// Which.
        name: BridgeName,
        /// Why.
        error: BridgeError,
    },
    /// The holder cannot be told of us, or does not answer.
    #[error("{name} cannot be reached through the server: {error}")]
    NotIntroduced {
        /// Which.
        name: BridgeName,
        /// Why.
        error: BridgeError,
    },
    /// What the other side says is not about a connection.
    #[error("the other side does not want a TCP connection by this name")]
    Declined,
    /// What the other side says cannot be read.
    #[error(transparent)]
    Info(#[from] InfoError),
    /// Our message cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The server is gone, or no socket can be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No path through the NATs was found.
    #[error(transparent)]
    Punch(#[from] PunchError),
}

/// Whether an introduction asks for a TCP connection: [`BridgeSocket::accept_stream`] makes it.
pub fn is_stream(message: &[u8]) -> bool {
    message.starts_with(STREAM)
}

impl BridgeSocket {
    /// Connects by TCP with whoever holds `name`, straight through the NATs of both, and says who that is.
    /// The other side has to call [`BridgeSocket::accept_stream`]. Both have proven to hold their keys when
    /// it returns; nothing is encrypted.
    ///
    /// Names stay registered meanwhile, and what else happens is kept for [`BridgeSocket::next`].
    ///
    /// # Errors
    /// If the name leads nowhere, the holder does not agree, or the NATs cannot be opened for each other.
    pub async fn connect_stream(
        &mut self,
        name: &BridgeName,
        mapping: &MappingContext,
    ) -> Result<(TcpStream, PublicKey), StreamError> {
        self.look_up(name);
        let holder = match self.until(|event| is_found(event, name)).await? {
            BridgeEvent::Found { holder, .. } => holder.key,
            BridgeEvent::NotFound { error, .. } => {
                return Err(StreamError::NotFound { name: name.clone(), error });
            }
            _ => unreachable!("nothing else was waited for"),
        };
        let mapped = self.meanwhile(MappedTcpSocket::new(mapping)).await??;
        let (ours, told) = gen_rendezvous_info(mapped.endpoints);
        let id = self.introduce(name, holder, &message(&told))?;
        let theirs = match self.until(|event| is_answer(event, id)).await? {
            BridgeEvent::Answer { message, .. } => read(&message)?,
            BridgeEvent::NotIntroduced { error, .. } => {
                return Err(StreamError::NotIntroduced { name: name.clone(), error });
            }
            _ => unreachable!("nothing else was waited for"),
        };
        let stream = self.meanwhile(tcp_punch_hole(mapped.socket, ours, theirs)).await??;
        Ok((stream, holder))
    }

    /// Agrees to an introduction ([`BridgeEvent::Introduction`], its `id` and `message`) that asks for a
    /// TCP connection, and makes it. Whoever may not connect is declined with [`BridgeSocket::answer`]
    /// and an empty message.
    ///
    /// # Errors
    /// As [`BridgeSocket::connect_stream`].
    pub async fn accept_stream(
        &mut self,
        id: IntroductionId,
        introduction: &[u8],
        mapping: &MappingContext,
    ) -> Result<TcpStream, StreamError> {
        let theirs = read(introduction)?;
        let mapped = self.meanwhile(MappedTcpSocket::new(mapping)).await??;
        let (ours, told) = gen_rendezvous_info(mapped.endpoints);
        self.answer(id, &message(&told))?;
        Ok(self.meanwhile(tcp_punch_hole(mapped.socket, ours, theirs)).await??)
    }

    /// Waits for one event, and keeps all others.
    async fn until(&mut self, wanted: impl Fn(&BridgeEvent) -> bool) -> io::Result<BridgeEvent> {
        loop {
            if let Some(event) = self.take_event(&wanted) {
                return Ok(event);
            }
            self.step().await?;
        }
    }

    /// Acts while `work` is done, and keeps all events.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> io::Result<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                stepped = self.step() => stepped?,
            }
        }
    }
}

fn is_found(event: &BridgeEvent, wanted: &BridgeName) -> bool {
    match event {
        BridgeEvent::Found { name, .. } | BridgeEvent::NotFound { name, .. } => name == wanted,
        _ => false,
    }
}

fn is_answer(event: &BridgeEvent, wanted: IntroductionId) -> bool {
    match event {
        BridgeEvent::Answer { id, .. } | BridgeEvent::NotIntroduced { id, .. } => *id == wanted,
        _ => false,
    }
}

fn message(info: &PubRendezvousInfo) -> Vec<u8> {
    [STREAM, &info.to_bytes()].concat()
}

fn read(message: &[u8]) -> Result<PubRendezvousInfo, StreamError> {
    let info = message.strip_prefix(STREAM).ok_or(StreamError::Declined)?;
    Ok(PubRendezvousInfo::from_bytes(info)?)
}
