//! In place of [`super::dtls`] where the Cargo feature `dtls` is off.

use std::net::SocketAddr;
use std::sync::Arc;

use super::certificate::Certificate;
use super::{Settings, Shared, StreamsError};
use crate::io::control_socket::ControlSocket;

/// There is none.
#[derive(Debug)]
pub enum DtlsPort {}

pub(super) fn listen(
    settings: &Settings,
    _certificate: Option<&Arc<Certificate>>,
    _shared: &Arc<Shared>,
    _bound: &mut Vec<SocketAddr>,
) -> Result<Option<Arc<DtlsPort>>, StreamsError> {
    let is_wanted = !settings.dtls.is_empty();
    if is_wanted { Err(StreamsError::WithoutDtls) } else { Ok(None) }
}

pub(crate) fn is_dtls(_datagram: &[u8]) -> bool {
    false
}

impl DtlsPort {
    pub(crate) fn serves(&self, _bound: SocketAddr) -> bool {
        match *self {}
    }

    pub(crate) fn take(
        &self,
        _socket: &Arc<ControlSocket>,
        _local: SocketAddr,
        _remote: SocketAddr,
        _datagram: &[u8],
    ) {
        match *self {}
    }
}
