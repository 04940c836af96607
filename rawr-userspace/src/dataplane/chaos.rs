//! A backend that fails now and then, to prove that what stands above it recovers.

use std::{cell::RefCell, net::SocketAddr, ops::Bound};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Counters, Flow, FlowKey, NextHop,
    backend::{Backend, BackendError, Installed, Reasons, Usage},
};

/// Passes calls on to another backend, but fails some of them: half of those without doing
/// anything, the other half after it was done, as where an answer is lost.
pub struct Chaos<B> {
    inner: B,
    probability: f64,
    rng: RefCell<StdRng>,
}

enum Fate {
    Works,
    FailsBefore,
    FailsAfter,
}

impl<B> Chaos<B> {
    /// Calls fail with `probability` (0 to 1); which ones follows from `seed`.
    pub fn new(inner: B, probability: f64, seed: u64) -> Self {
        Self { inner, probability, rng: RefCell::new(StdRng::seed_from_u64(seed)) }
    }

    /// From now on calls fail with `probability`.
    pub fn set_probability(&mut self, probability: f64) {
        self.probability = probability;
    }

    /// The backend below.
    pub fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    fn fate(&self) -> Fate {
        let mut rng = self.rng.borrow_mut();
        if !rng.random_bool(self.probability) {
            Fate::Works
        } else if rng.random() {
            Fate::FailsBefore
        } else {
            Fate::FailsAfter
        }
    }

    fn read<T>(&self, read: impl Fn(&B) -> Result<T, BackendError>) -> Result<T, BackendError> {
        match self.fate() {
            Fate::Works => read(&self.inner),
            Fate::FailsBefore | Fate::FailsAfter => Err(BackendError::Chaos),
        }
    }

    fn write<T>(
        &mut self,
        write: impl Fn(&mut B) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        match self.fate() {
            Fate::Works => write(&mut self.inner),
            Fate::FailsBefore => Err(BackendError::Chaos),
            Fate::FailsAfter => write(&mut self.inner).and(Err(BackendError::Chaos)),
        }
    }
}

impl<B: Backend> Backend for Chaos<B> {
    fn install(&mut self, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        self.write(|inner| inner.install(flow, next_hop))
    }

    fn remove(&mut self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        self.write(|inner| inner.remove(key))
    }

    fn holds(&self, flow: &Flow, next_hop: &NextHop) -> bool {
        self.inner.holds(flow, next_hop)
    }

    fn list_after(
        &self,
        after: Bound<FlowKey>,
        most: usize,
    ) -> Result<Vec<Installed>, BackendError> {
        self.read(|inner| inner.list_after(after, most))
    }

    fn counters(&self, key: FlowKey) -> Result<Option<Counters>, BackendError> {
        self.read(|inner| inner.counters(key))
    }

    fn reasons(&self) -> Result<Reasons, BackendError> {
        self.read(B::reasons)
    }

    fn index_free(&self, local: SocketAddr) -> bool {
        self.inner.index_free(local)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}
