//! Links: encrypted connections with whoever holds a name, over the best path there is.
//!
//! | step                               | by what                                                     |
//! |------------------------------------|-------------------------------------------------------------|
//! | the name leads to a key            | a server's Bridge ([`crate::Bridge`])                       |
//! | the key is the one that is meant   | [`Trust`]: it was told, or is the one that the name had     |
//! | both sides learn of each other     | an introduction, sealed to the key, and its answer          |
//! | datagrams find their way           | [`crate::agent`]: over RAWR at once, then directly          |
//! | both prove who they are            | [`crate::secure`]: Noise IK, for this introduction alone    |
//! | the link lasts                     | one stream, which says nothing, lasts as long               |
//!
//! [`Listener`] holds a name and makes a link with everybody who comes; [`Link::connect`] comes. A link
//! carries streams, each to a port that says what it is for, and datagrams.

mod connect;
mod error;
mod greeting;
mod known;
mod listen;
mod path;
mod survey;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rawr_proto::{IntroductionId, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc, oneshot, watch};

pub use error::LinkError;
pub use greeting::Refusal;
pub use known::{Familiarity, KnownPeers, Trust, TrustError};
pub use listen::{Callers, Listener, ListenerEvent};
pub use survey::Survey;

use path::{Path, PathView};

use crate::agent::{AgentEvent, AgentPath, Connection, ConnectionConfig, Signalling};
use crate::bridge::{BridgeSocketConfig, session_secret};
use crate::driver::PeerSocketConfig;
use crate::host::LinuxHost;
use crate::identity::{Identity, PublicKey};
use crate::peer::ServerConfig;
use crate::punch::Tuning;
use crate::secure::{self, SealError, SecureStream, SessionConfig, StreamsConfig};

/// The port of the stream that lasts as long as its link. The application's are above.
const LIFE_PORT: u16 = 1;
/// How long a link may take from its introduction on.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was sent last is still on its way when nothing needs the path any more. A server that has released
/// the path would drop it, and the other side would wait for it in vain.
const LAST: Duration = Duration::from_millis(100);
/// Probes that may be spent each time a path is punched.
const PROBE_BUDGET: u32 = 2048;

/// What is the same for all links of one side.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Who we are.
    pub identity: Identity,
    /// Where names are registered, sides are introduced, and data is relayed while there is no better
    /// path.
    pub server: ServerConfig,
    /// Nearer relays, tried before it.
    pub gateways: Vec<ServerConfig>,
    /// Where own external addresses are asked for.
    pub stun_servers: Vec<SocketAddr>,
    /// What own NATs do.
    pub survey: Survey,
    /// Whether routers are asked to let the other side in (Cargo feature `portmap`), and to stop it when the
    /// link is closed.
    pub map_ports: bool,
    /// Greater than that of any earlier run (milliseconds since 1970).
    pub epoch: u64,
    /// Once it says so, links that are being made are given up, and what they hold is released.
    pub stop: watch::Receiver<bool>,
}

/// An encrypted connection with one other side.
///
/// Dropped, it breaks off, and servers keep its legs until they notice; [`Link::close`] releases all.
pub struct Link {
    peer: PublicKey,
    familiarity: Familiarity,
    secure: secure::Connection,
    path: watch::Receiver<Option<AgentPath>>,
    news: Mutex<mpsc::Receiver<AgentEvent>>,
    back: oneshot::Receiver<Connection>,
    ending: watch::Receiver<Option<Ending>>,
    /// Dropped, it ends the life of the link.
    leave: oneshot::Sender<()>,
    /// Its place among those that a listener may have.
    _place: Option<OwnedSemaphorePermit>,
}

/// How a link has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The other side has closed it.
    Closed,
    /// It broke: the other side is gone, or nothing gets through any more.
    Broken(String),
}

impl Link {
    /// The longest datagram that [`Link::send`] takes, in bytes. What is longer than about 1,150 bytes is
    /// fragmented on most paths, or lost.
    pub const MAX_DATAGRAM: usize = secure::Tunnel::MAX_DATAGRAM;

    /// Lowest port that streams may be opened to; the highest is 49,151.
    pub const FIRST_PORT: u16 = LIFE_PORT + 1;

    /// Who the other side is. It has proved to hold this key.
    pub const fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Whether the other side's key was known before.
    pub const fn familiarity(&self) -> Familiarity {
        self.familiarity
    }

    /// The path that data takes now, as of a second ago at most.
    pub fn path(&self) -> Option<AgentPath> {
        *self.path.borrow()
    }

    /// Waits for news of the path; for ever, once the link is over. Nothing is lost if the future is
    /// dropped.
    pub async fn news(&self) -> AgentEvent {
        match self.news.lock().await.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Waits for the end of the link.
    pub async fn ended(&self) -> Ending {
        let mut ending = self.ending.clone();
        match ending.wait_for(Option::is_some).await {
            Ok(ending) => ending.clone().unwrap_or(Ending::Closed),
            Err(_) => Ending::Closed,
        }
    }

    /// Opens a stream to a port of the other side's, and waits until it agrees.
    ///
    /// # Errors
    /// If it does not, or the port is none, or there are too many streams, or the link is over.
    pub async fn open(&self, port: u16) -> io::Result<SecureStream> {
        self.secure.open(port).await
    }

    /// Waits for the other side to open a stream; also returns the port that it is for.
    ///
    /// # Errors
    /// If the link is over.
    pub async fn accept(&self) -> io::Result<(SecureStream, u16)> {
        self.secure.accept().await
    }

    /// Sends a datagram, which may get lost.
    ///
    /// # Errors
    /// If the link is over, or the datagram too long.
    pub fn send(&self, datagram: &[u8]) -> Result<(), SealError> {
        self.secure.send(datagram)
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// If the link is over.
    pub async fn recv(&self) -> io::Result<Vec<u8>> {
        self.secure.recv().await
    }

    /// Ends it: what was written to streams that are finished arrives within 5 s or not at all; then the
    /// other side is told, and servers release what they hold for it.
    pub async fn close(self) {
        let Self { secure, leave, back, .. } = self;
        drop(leave);
        secure.close().await;
        tokio::time::sleep(LAST).await;
        release(back).await;
    }

    /// Tells the end of the link, which is that of its stream.
    fn new(begun: Begun, life: SecureStream) -> Self {
        let Begun { peer, familiarity, secure, view } = begun;
        let (leave, left) = oneshot::channel();
        let (tell, ending) = watch::channel(None);
        tokio::spawn(live(life, left, tell));
        let PathView { path, news, back } = view;
        let news = Mutex::new(news);
        Self { peer, familiarity, secure, path, news, back, ending, leave, _place: None }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl LinkConfig {
    /// Waits until it is to stop.
    async fn stopped(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(feature = "portmap")]
    fn mapping(&self, mut connection: Connection) -> Connection {
        if self.map_ports {
            connection.map_ports(crate::portmap::PortMapperConfig::of_this_host);
        }
        connection
    }

    #[cfg(not(feature = "portmap"))]
    fn mapping(&self, connection: Connection) -> Connection {
        connection
    }

    fn bridge(&self) -> BridgeSocketConfig {
        let ServerConfig { address: server, credentials } = self.server.clone();
        BridgeSocketConfig { server, identity: self.identity.clone(), credentials }
    }
}

/// Which of the two sides this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// It held the name.
    Listening,
    /// It came.
    Calling,
}

/// A link whose two sides have not proved yet who they are.
struct Begun {
    peer: PublicKey,
    familiarity: Familiarity,
    secure: secure::Connection,
    view: PathView,
}

impl Begun {
    /// Begins to look for a path, and to prove over it who both are. The introduction makes their secret.
    fn new(
        config: &LinkConfig,
        side: Side,
        peer: PublicKey,
        familiarity: Familiarity,
        id: IntroductionId,
    ) -> Result<Self, LinkError> {
        let secret = session_secret(&config.identity, &peer, id)?;
        let role = match side {
            Side::Listening => Role::A,
            Side::Calling => Role::B,
        };
        let rawr = PeerSocketConfig {
            secret,
            role,
            root: Some(config.server.clone()),
            gateways: config.gateways.clone(),
            data_port: 0,
            epoch: config.epoch,
            raw_mac: false,
        };
        let connection = ConnectionConfig {
            rawr,
            stun_servers: config.stun_servers.clone(),
            signalling: Signalling::InBand,
            nat64: None,
            punching: Some(Tuning::default()),
            behaviour: config.survey.found(),
            probe_budget: PROBE_BUDGET,
        };
        let connection = Connection::bind(connection, Box::new(LinuxHost));
        let connection = config.mapping(connection.map_err(LinkError::Sockets)?);
        let (path, view) = Path::new(connection, config.survey.clone());
        let session = SessionConfig::new(config.identity.clone(), id.0.to_vec(), config.epoch);
        let streams = StreamsConfig::default();
        let secure = match side {
            Side::Listening => secure::Connection::respond(path, session, Some(peer), streams),
            Side::Calling => secure::Connection::initiate(path, session, peer, streams)?,
        };
        Ok(Self { peer, familiarity, secure, view })
    }

    /// Waits until both have proved who they are, and there is the stream that lasts.
    async fn establish(
        self,
        side: Side,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Link, LinkError> {
        let life = async {
            self.secure.established().await?;
            match side {
                Side::Listening => loop {
                    if let (stream, LIFE_PORT) = self.secure.accept().await? {
                        break Ok(stream);
                    }
                },
                Side::Calling => self.secure.open(LIFE_PORT).await,
            }
        };
        let life = tokio::select! {
            life = tokio::time::timeout(PATIENCE, life) => match life {
                Ok(life) => life.map_err(LinkError::Handshake),
                Err(_) => Err(LinkError::Silence { after: PATIENCE }),
            },
            () = cancelled => Err(LinkError::Stopped),
        };
        match life {
            Ok(life) => Ok(Link::new(self, life)),
            Err(error) => {
                self.give_up().await;
                Err(error)
            }
        }
    }

    /// Releases what servers hold for it.
    async fn give_up(self) {
        drop(self.secure);
        release(self.view.back).await;
    }
}

/// Has servers release what they hold for a path, once nothing needs it any more.
async fn release(back: oneshot::Receiver<Connection>) {
    if let Ok(mut connection) = back.await
        && let Err(error) = connection.close().await
    {
        log::debug!("a path was not closed in order: {error}");
    }
}

/// Waits for the end of the stream that lasts, and ends it on our side, too.
async fn live(
    mut life: SecureStream,
    left: oneshot::Receiver<()>,
    tell: watch::Sender<Option<Ending>>,
) {
    let ending = tokio::select! {
        read = life.read_u8() => match read {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Ending::Broken(error.to_string())
            }
            Ok(_) | Err(_) => Ending::Closed,
        },
        _ = left => Ending::Closed,
    };
    // It is over whether that succeeds or not.
    let _over = life.shutdown().await;
    tell.send_replace(Some(ending));
}
