//! All sessions, by name, by data port and by deadline.

use std::collections::HashMap;
use std::net::SocketAddr;

use rawr_proto::SessionId;
use slab::Slab;

use super::deadline::Alarms;
use super::session::Session;

/// A session's place in the [`Store`], for as long as it is there.
pub(super) type Index = u32;

#[derive(Debug, Default)]
pub(super) struct Store {
    sessions: Slab<Box<Session>>,
    ids: HashMap<SessionId, Index>,
    ports: HashMap<SocketAddr, Index>,
    pub(super) alarms: Alarms,
}

impl Store {
    pub(super) fn insert(&mut self, session: Session) -> Index {
        let id = session.id;
        let index = self.sessions.insert(Box::new(session)) as Index;
        self.ids.insert(id, index);
        index
    }

    pub(super) fn remove(&mut self, index: Index) {
        let mut session = self.sessions.remove(index as usize);
        self.ids.remove(&session.id);
        self.alarms.disarm(index, &mut session.armed);
    }

    /// Arms the session's alarm for what it has to do next.
    pub(super) fn arm(&mut self, index: Index) {
        let Some(session) = self.sessions.get_mut(index as usize) else { return };
        let due = session.next_deadline().map(|(at, _)| at);
        self.alarms.arm(index, &mut session.armed, due);
    }

    pub(super) fn add_port(&mut self, local: SocketAddr, index: Index) {
        self.ports.insert(local, index);
    }

    pub(super) fn remove_port(&mut self, local: SocketAddr) {
        self.ports.remove(&local);
    }

    pub(super) fn get(&self, index: Index) -> Option<&Session> {
        self.sessions.get(index as usize).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, index: Index) -> Option<&mut Session> {
        self.sessions.get_mut(index as usize).map(Box::as_mut)
    }

    pub(super) fn find(&self, id: SessionId) -> Option<Index> {
        self.ids.get(&id).copied()
    }

    /// The session that the data port `local` belongs to.
    pub(super) fn by_port(&self, local: SocketAddr) -> Option<Index> {
        self.ports.get(&local).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &Session)> {
        self.sessions.iter().map(|(index, session)| (index as Index, session.as_ref()))
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }
}
