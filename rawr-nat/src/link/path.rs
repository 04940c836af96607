//! The path of a link, as its encrypted connection sees it: something that carries datagrams.

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};

use super::survey::Survey;
use crate::agent::{AgentEvent, AgentPath, Connection, ConnectionIncoming};
use crate::secure::Datagrams;

/// How often the host's addresses are looked at, and the round trip time told.
const TICK: Duration = Duration::from_secs(1);
/// News that nobody has read yet. Later ones are dropped.
const MAX_NEWS: usize = 256;

/// Has the agent's connection while the link lasts.
pub(super) struct Path {
    /// `None` only while it is dropped.
    connection: Option<Connection>,
    survey: Survey,
    tick: Interval,
    path: watch::Sender<Option<AgentPath>>,
    news: mpsc::Sender<AgentEvent>,
    back: Option<oneshot::Sender<Connection>>,
}

/// What a link sees of its path.
pub(super) struct PathView {
    pub(super) path: watch::Receiver<Option<AgentPath>>,
    pub(super) news: mpsc::Receiver<AgentEvent>,
    /// Gives the connection back once nothing needs it any more, so that it can be closed.
    pub(super) back: oneshot::Receiver<Connection>,
}

impl Path {
    pub(super) fn new(connection: Connection, survey: Survey) -> (Self, PathView) {
        let (path, path_view) = watch::channel(None);
        let (news, news_view) = mpsc::channel(MAX_NEWS);
        let (back, back_view) = oneshot::channel();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (connection, back) = (Some(connection), Some(back));
        let view = PathView { path: path_view, news: news_view, back: back_view };
        (Self { connection, survey, tick, path, news, back }, view)
    }
}

impl Datagrams for Path {
    fn send(&mut self, datagram: &[u8]) {
        if let Some(connection) = &mut self.connection {
            connection.send(datagram);
        }
    }

    async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(connection) = &mut self.connection else { return std::future::pending().await };
        loop {
            tokio::select! {
                incoming = connection.next(buffer) => match incoming? {
                    ConnectionIncoming::Data(length) => return Ok(length),
                    ConnectionIncoming::Event(event) => {
                        self.path.send_replace(connection.path());
                        // Whoever wants to know reads faster than paths change.
                        let _unread = self.news.try_send(event);
                    }
                    ConnectionIncoming::Signal(_) => {}
                },
                behaviour = self.survey.changed() => connection.set_behaviour(behaviour),
                _ = self.tick.tick() => {
                    if let Err(error) = connection.refresh() {
                        log::debug!("own addresses stay as they were: {error}");
                    }
                    self.path.send_replace(connection.path());
                }
            }
        }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        if let (Some(connection), Some(back)) = (self.connection.take(), self.back.take()) {
            // The link was dropped and not closed: so is this.
            let _nobody = back.send(connection);
        }
    }
}
