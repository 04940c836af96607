//! Entries that are no flows: STUN ports at which the program answers.

use std::net::{IpAddr, SocketAddr};

use rawr_common::entry::Account;
use rawr_common::flow::{Flow4, Flow6, Place};

use super::super::super::{FlowKey, Leg, backend::BackendError};
use super::{Entries, Held};

impl Entries {
    /// Where the entry of a STUN port stands, or may stand if it does not yet.
    pub(in super::super) fn stand(&self, local: SocketAddr) -> Result<Place, BackendError> {
        match self.listeners.get(&FlowKey::port(local)) {
            Some(held) => Ok(held.place),
            None => self.vacancy(Leg::whole(local, local)),
        }
    }

    /// Has the program answer at a STUN port, in a place that is [its](Self::stand).
    pub(in super::super) fn listen(&mut self, local: SocketAddr, held: Held) {
        let account = Account { generation: self.next_generation(), rate: held.limit };
        match local.ip() {
            IpAddr::V4(ip) => {
                let entry = Flow4::listener(ip.octets(), local.port(), held.exit, account);
                self.v4.write(held.place, &entry);
            }
            IpAddr::V6(ip) => {
                let entry = Flow6::listener(ip.octets(), local.port(), held.exit, account);
                self.v6.write(held.place, &entry);
            }
        }
        self.listeners.insert(FlowKey::port(local), held);
    }

    /// Has the program not answer at a STUN port any more.
    pub(in super::super) fn silence(&mut self, local: SocketAddr) -> Option<Held> {
        let key = FlowKey::port(local);
        let held = self.listeners.remove(&key)?;
        self.shelf_mut(&key).vacate(held.place);
        Some(held)
    }

    /// What is known of the entry of a STUN port, if the program answers there.
    pub(in super::super) fn listener(&self, local: SocketAddr) -> Option<Held> {
        self.listeners.get(&FlowKey::port(local)).copied()
    }

    /// The STUN ports at which the program answers.
    pub(in super::super) fn listeners(&self) -> Vec<SocketAddr> {
        self.listeners.keys().map(FlowKey::local).collect()
    }
}
