//! Without the feature `portmap` no router is asked.

use std::net::SocketAddr;

use super::LocalSocket;

/// A socket, and where others reach it.
pub(super) type Mapped = (LocalSocket, SocketAddr);

/// None, ever.
#[derive(Debug)]
pub(super) struct Mappings;

impl Mappings {
    pub(super) const fn none() -> Self {
        Self
    }

    pub(super) fn begin(&mut self, _: impl Iterator<Item = LocalSocket>) {}

    pub(super) async fn next(&mut self) -> Mapped {
        std::future::pending().await
    }

    pub(super) async fn close(self) {}
}
