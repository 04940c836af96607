//! Opening and closing data ports: UDP ports of the slow path, TCP ports of streams. Both have a place in the
//! kernel's tables reserved, so that an address and port never names two of them.

use std::net::SocketAddr;

use super::driver::Driver;
use crate::control::{On, Parity, PortError, PortKind};
use crate::dataplane::backend::Backend as _;
use crate::dataplane::slow_path;

impl Driver {
    pub(super) fn open_port(&mut self, on: On, kind: PortKind) -> Result<SocketAddr, PortError> {
        let bpf = self.kernel.as_ref().map(|kernel| &kernel.bpf);
        // A port of before a restart has its place in the kernel's table still.
        let is_new = !matches!(on, On::Exactly(_));
        let accept = |local: SocketAddr| {
            self.ports.is_free(local) && (!is_new || bpf.is_none_or(|bpf| bpf.index_free(local)))
        };
        let on = match on {
            On::Address(ip) => slow_path::On::Address(ip),
            On::Toward(to) => slow_path::On::Toward(to),
            On::Exactly(at) => slow_path::On::Exactly(at),
        };
        let opened = match kind {
            PortKind::Udp(Parity::Any) => self.slow_path.open(on, &accept),
            PortKind::Udp(Parity::Even) => self.slow_path.open_even(on, false, &accept),
            PortKind::Udp(Parity::EvenAndNext) => self.slow_path.open_even(on, true, &accept),
            PortKind::Tcp => self.streams.open_port(on, &accept),
        };
        let local = opened.map_err(|error| {
            log::warn!("no data port: {error}");
            reason(&error)
        })?;
        self.ports.reserve(local);
        if kind == PortKind::Udp(Parity::EvenAndNext) {
            self.ports.reserve(SocketAddr::new(local.ip(), local.port() + 1));
        }
        Ok(local)
    }

    pub(super) fn close_port(&mut self, local: SocketAddr) {
        if !self.streams.close_port(local) {
            self.slow_path.close(local);
        }
        self.ports.release(local);
    }
}

/// What the server needs to know of a failure.
fn reason(error: &slow_path::PortError) -> PortError {
    match error {
        slow_path::PortError::NoFreePort { .. } => PortError::Exhausted,
        slow_path::PortError::NoRoute { .. } => PortError::Unreachable,
        slow_path::PortError::TooManyOpenFiles { .. } | slow_path::PortError::Bind { .. } => {
            PortError::System
        }
    }
}
