//! Has routers let in what comes to own sockets, while data flows already.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::LocalSocket;
use crate::portmap::{Gateways, PortMapper, PortMapperConfig, Transport};

/// Pause before a router is asked again that has mapped nothing; it doubles up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How long removal may take at the end.
const REMOVAL: Duration = Duration::from_secs(3);

/// A socket, and where others reach it.
pub(super) type Mapped = (LocalSocket, SocketAddr);
/// Who is asked, and how: called whenever the host may have other addresses.
pub(super) type Settings = Box<dyn Fn() -> PortMapperConfig + Send>;

/// Mappings that are kept. They are removed when this is closed, and in the background if it is dropped.
pub(super) struct Mappings {
    settings: Option<Settings>,
    /// Who has been asked, and on behalf of which sockets.
    asked: Option<(Gateways, Vec<LocalSocket>)>,
    /// Where this is replaced, tasks remove what they hold, and end.
    wanted: watch::Sender<()>,
    tasks: JoinSet<()>,
    teller: UnboundedSender<Mapped>,
    told: UnboundedReceiver<Mapped>,
}

impl Mappings {
    /// Nobody is asked.
    pub(super) fn none() -> Self {
        let (teller, told) = unbounded_channel();
        let (wanted, _) = watch::channel(());
        Self { settings: None, asked: None, wanted, tasks: JoinSet::new(), teller, told }
    }

    /// Asks from now on.
    pub(super) fn ask(&mut self, settings: Settings, local: impl Iterator<Item = LocalSocket>) {
        self.settings = Some(settings);
        self.begin(local);
    }

    /// Begins, or begins again if the host has other addresses by now, or other routers.
    pub(super) fn begin(&mut self, local: impl Iterator<Item = LocalSocket>) {
        let Some(settings) = &self.settings else { return };
        let config = settings();
        let asked = (config.gateways, first_of_each_family(local));
        if self.asked.as_ref() == Some(&asked) {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        (self.wanted, _) = watch::channel(());
        for socket in &asked.1 {
            let keeping = keep(config, *socket, self.teller.clone(), self.wanted.subscribe());
            self.tasks.spawn(keeping);
        }
        self.asked = Some(asked);
    }

    /// Waits for a new mapping. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Mapped {
        match self.told.recv().await {
            Some(mapped) => mapped,
            None => std::future::pending().await,
        }
    }

    /// Removes all, and waits until routers have confirmed it or had their time.
    pub(super) async fn close(mut self) {
        (self.wanted, _) = watch::channel(());
        let removal = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(REMOVAL, removal).await.is_err() {
            log::warn!("port mappings may be left at the router, until they expire");
        }
    }
}

/// That towards the servers comes first, and so is the one that a router knows.
fn first_of_each_family(local: impl Iterator<Item = LocalSocket>) -> Vec<LocalSocket> {
    let local: Vec<_> = local.collect();
    let first = |is_ipv4| local.iter().find(move |it| it.address.is_ipv4() == is_ipv4);
    [true, false].into_iter().filter_map(first).copied().collect()
}

/// Until it is wanted no more. Does not give up: the router may come later than we do.
async fn keep(
    config: PortMapperConfig,
    socket: LocalSocket,
    teller: UnboundedSender<Mapped>,
    mut wanted: watch::Receiver<()>,
) {
    let mut mapper = PortMapper::new(config);
    let mut pause = PAUSE.0;
    let mut port = loop {
        // Not cut short, or a mapping could be left that nobody knows of.
        match mapper.map(Transport::Udp, socket.address).await {
            Ok(port) => break port,
            Err(error) => log::debug!("{}: {error}; again in {pause:?}", socket.address),
        }
        tokio::select! {
            _ = wanted.changed() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
        }
    };
    let mut mapping = port.mapping();
    loop {
        if let Some(mapping) = mapping
            && teller.send((socket, mapping.external)).is_err()
        {
            break;
        }
        tokio::select! {
            _ = wanted.changed() => break,
            changed = port.changed() => match changed {
                Ok(changed) => mapping = changed,
                Err(_closed) => break,
            },
        }
    }
    mapper.close().await;
}
