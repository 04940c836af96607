//! The side that holds a name.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rawr_proto::{BridgeName, IntroductionId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::greeting::{Refusal, answer, is_understood};
use super::{Begun, Familiarity, Link, LinkConfig, LinkError, Side};
use crate::bridge::{BridgeError, BridgeEvent, BridgeSocket};
use crate::identity::PublicKey;

/// Links that a listener has at most, with those that are being made.
const MAX_LINKS: usize = 64;

/// Who may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Whoever knows the name.
    Anyone,
    /// The holders of these keys.
    Keys(Vec<PublicKey>),
}

/// Holds a name at a server, and makes a link with everybody who comes.
///
/// It acts while [`Listener::next`] is awaited, and only then: await it all the time.
pub struct Listener {
    config: LinkConfig,
    callers: Callers,
    bridge: BridgeSocket,
    places: Arc<Semaphore>,
    greetings: JoinSet<(PublicKey, Result<Link, LinkError>)>,
    /// Gives up the links that are being made.
    stop: watch::Sender<bool>,
}

/// What happened to a [`Listener`].
#[derive(Debug)]
pub enum ListenerEvent {
    /// The name is ours. Told again when our address has changed, or after trouble.
    Registered {
        /// Where the server sees us.
        reflexive: SocketAddr,
        /// For how long the name stays ours without our doing.
        lifetime: Duration,
    },
    /// The name is not ours. Where the error is passing, it is tried again.
    NotRegistered(BridgeError),
    /// Somebody has come.
    Link(Link),
    /// Somebody has come, and was not let in.
    Refused {
        /// Who.
        from: PublicKey,
        /// What they were told.
        refusal: Refusal,
    },
    /// Somebody has come, and no link was made.
    Failed {
        /// Who.
        from: PublicKey,
        /// Why.
        error: LinkError,
    },
}

impl Listener {
    /// Asks for a name. Nobody comes before it is registered.
    ///
    /// # Errors
    /// If no socket can be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(config: LinkConfig, name: &BridgeName, callers: Callers) -> io::Result<Self> {
        let mut bridge = BridgeSocket::bind(config.bridge())?;
        bridge.register(name, None);
        let places = Arc::new(Semaphore::new(MAX_LINKS));
        let (greetings, stop) = (JoinSet::new(), watch::Sender::new(false));
        Ok(Self { config, callers, bridge, places, greetings, stop })
    }

    /// Waits for news. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// If a socket fails for good.
    pub async fn next(&mut self) -> io::Result<ListenerEvent> {
        loop {
            tokio::select! {
                event = self.bridge.next() => {
                    if let Some(event) = self.handle(event?) {
                        return Ok(event);
                    }
                }
                Some(greeted) = self.greetings.join_next() => return Ok(match greeted {
                    Ok((_, Ok(link))) => ListenerEvent::Link(link),
                    Ok((from, Err(error))) => ListenerEvent::Failed { from, error },
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }),
            }
        }
    }

    /// Gives up the name, and links that are being made, and waits until the server has confirmed it or
    /// had its time. Links that [`Listener::next`] has brought stay.
    ///
    /// # Errors
    /// If the socket fails for good.
    pub async fn close(mut self) -> io::Result<()> {
        self.stop.send_replace(true);
        let greetings = async {
            while let Some(greeted) = self.greetings.join_next().await {
                if let Ok((_, Ok(link))) = greeted {
                    link.close().await;
                }
            }
        };
        let (closed, ()) = tokio::join!(self.bridge.close(), greetings);
        closed
    }

    fn handle(&mut self, event: BridgeEvent) -> Option<ListenerEvent> {
        match event {
            BridgeEvent::Registered { reflexive, lifetime, .. } => {
                Some(ListenerEvent::Registered { reflexive, lifetime })
            }
            BridgeEvent::NotRegistered { error, .. } => Some(ListenerEvent::NotRegistered(error)),
            BridgeEvent::Introduction { id, from, message, .. } => {
                self.introduced(id, from, &message)
            }
            BridgeEvent::Deregistered { .. }
            | BridgeEvent::Found { .. }
            | BridgeEvent::NotFound { .. }
            | BridgeEvent::Answer { .. }
            | BridgeEvent::NotIntroduced { .. } => None,
        }
    }

    fn introduced(
        &mut self,
        id: IntroductionId,
        from: PublicKey,
        hello: &[u8],
    ) -> Option<ListenerEvent> {
        let place = self.admit(from, hello);
        let verdict = place.as_ref().map(|_| ()).map_err(|refusal| *refusal);
        if let Err(error) = self.bridge.answer(id, &answer(verdict)) {
            return Some(ListenerEvent::Failed { from, error: error.into() });
        }
        match place {
            Ok(place) => {
                let greeting = greet(self.config.clone(), from, id, place, self.stop.subscribe());
                self.greetings.spawn(async move { (from, greeting.await) });
                None
            }
            Err(refusal) => Some(ListenerEvent::Refused { from, refusal }),
        }
    }

    /// Their place among our links, if they may have one.
    fn admit(&self, from: PublicKey, hello: &[u8]) -> Result<OwnedSemaphorePermit, Refusal> {
        let is_wanted = match &self.callers {
            Callers::Anyone => true,
            Callers::Keys(keys) => keys.contains(&from),
        };
        match (is_understood(hello), is_wanted) {
            (false, _) => Err(Refusal::Version),
            (true, false) => Err(Refusal::Stranger),
            (true, true) => Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refusal::Full),
        }
    }
}

async fn greet(
    config: LinkConfig,
    from: PublicKey,
    id: IntroductionId,
    place: OwnedSemaphorePermit,
    mut closed: watch::Receiver<bool>,
) -> Result<Link, LinkError> {
    let begun = Begun::new(&config, Side::Listening, from, Familiarity::Known, id)?;
    let cancelled = async {
        tokio::select! {
            // Gone is as good as closed.
            _ = closed.wait_for(|closed| *closed) => {}
            () = config.stopped() => {}
        }
    };
    let mut link = begun.establish(Side::Listening, cancelled).await?;
    link._place = Some(place);
    Ok(link)
}
