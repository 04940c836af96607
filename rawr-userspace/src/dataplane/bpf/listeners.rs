//! STUN ports at which the program itself answers Binding requests.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    super::{Limit, NextHop, backend::BackendError},
    Bpf, Flows, entries,
};

/// A STUN port at which the program answers Binding requests that need no authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// An address of ours, not a wildcard.
    pub local: SocketAddr,
    /// How packets leave by the interface with that address. Answers go where requests come from, so the
    /// destination does not matter.
    pub exit: NextHop,
    /// Most bytes (of layer 3) of answers per second; `None` for no limit. Userspace gets the requests
    /// beyond.
    pub bytes_per_second: Option<u64>,
}

impl Bpf {
    /// Has the program, loaded with [`Config::answers`](super::Config::answers), answer at these ports, and
    /// at no others. Where it cannot, userspace answers: the
    /// ports are returned with why.
    pub fn answer_binding(&mut self, listeners: &[Listener]) -> Vec<(SocketAddr, BackendError)> {
        let wanted: BTreeSet<_> = listeners.iter().map(|listener| listener.local).collect();
        for local in self.flows.entries.listeners() {
            if !wanted.contains(&local) {
                self.flows.silence(local);
            }
        }
        let listen = |listener: &Listener| {
            let failed = self.flows.listen(listener).err()?;
            self.flows.silence(listener.local);
            Some((listener.local, failed))
        };
        listeners.iter().filter_map(listen).collect()
    }
}

impl Flows {
    fn listen(&mut self, listener: &Listener) -> Result<(), BackendError> {
        let Listener { local, exit, bytes_per_second } = listener;
        let place = self.entries.stand(*local)?;
        let before = self.entries.listener(*local);
        let exit = self.exits.acquire(&entries::exit(exit)?)?;
        let had = before.and_then(|before| before.limit);
        let limit = match self.rates.acquire(&Limit::own(*bytes_per_second), had) {
            Ok(limit) => limit,
            Err(error) => {
                self.exits.release(exit);
                return Err(error);
            }
        };
        self.entries.listen(*local, entries::Held { place, exit, limit });
        before.into_iter().for_each(|held| self.release(held));
        Ok(())
    }

    fn silence(&mut self, local: SocketAddr) {
        let gone = self.entries.silence(local);
        gone.into_iter().for_each(|held| self.release(held));
    }
}
