//! Clients over DTLS 1.2 (RFC 8656 §3.1, RFC 7350): which datagram belongs to which association.
//!
//! ```text
//! UDP port ─▶ DtlsPort ─┬─▶ the association of these addresses: its task ─▶ StreamEvent
//!                       ├─▶ ClientHello ─▶ HelloVerifyRequest              nothing is kept
//!                       └─▶ ClientHello with cookie ─▶ admission ─▶ a new association
//! ```
//!
//! DTLS 1.3 is not spoken: the library's cookie for it does not carry the first ClientHello's hash, so the
//! exchange would need state of sources that have proven nothing. Clients that speak 1.3 offer 1.2 as well.

mod association;
mod hello;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dimpl::crypto::Dtls12CipherSuite;
use dimpl::{Config, Dtls, DtlsCertificate};
use tokio::sync::mpsc;

use self::association::Association;
use self::hello::{ClientHello, ClientRandom, Cookies};
use super::certificate::Certificate;
use super::outbox::Outbox;
use super::{ClientStream, Settings, Shared, StreamsError};
use crate::control::limits::{Prefix, Rates};
use crate::control::{Client, ConnectionId, Over};
use crate::io::clock::monotonic;
use crate::io::control_socket::{Buffers, ControlSocket};

/// Datagrams of one client that wait for its association.
const INBOX: usize = 64;
/// Bytes of a datagram of the handshake, which every path takes.
const HANDSHAKE_MTU: usize = 1200;

/// Takes the DTLS datagrams of all ports.
#[derive(Debug)]
pub struct DtlsPort {
    shared: Arc<Shared>,
    certificate: Arc<Certificate>,
    config: Arc<Config>,
    cookies: Cookies,
    /// HelloVerifyRequests that one prefix may cause.
    answers: Mutex<Rates>,
    /// Ports that others share with DTLS.
    with_others: Vec<SocketAddr>,
    associations: Arc<Associations>,
}

/// Who has an association, by the address of ours and the client's.
#[derive(Debug, Default)]
struct Associations(Mutex<HashMap<(SocketAddr, SocketAddr), Entry>>);

#[derive(Debug)]
struct Entry {
    id: ConnectionId,
    random: ClientRandom,
    /// An association whose inbox closes ends.
    inbox: mpsc::Sender<Vec<u8>>,
}

/// Opens the ports that are DTLS's alone. `None` if there is to be no DTLS at all.
pub(super) fn listen(
    settings: &Settings,
    certificate: Option<&Arc<Certificate>>,
    shared: &Arc<Shared>,
    bound: &mut Vec<SocketAddr>,
) -> Result<Option<Arc<DtlsPort>>, StreamsError> {
    if settings.dtls.is_empty() {
        return Ok(None);
    }
    let certificate = Arc::clone(certificate.ok_or(StreamsError::NoCertificate)?);
    let (with_others, alone): (Vec<_>, Vec<_>) =
        settings.dtls.iter().copied().partition(|address| settings.udp.contains(address));
    let (mut cookie_key, mut rate_key) = ([0; 32], [0; 8]);
    for key in [&mut cookie_key[..], &mut rate_key] {
        getrandom::fill(key).map_err(|error| StreamsError::Dtls(error.to_string()))?;
    }
    let port = Arc::new(DtlsPort {
        shared: Arc::clone(shared),
        certificate,
        config: config(settings)?,
        cookies: Cookies::new(cookie_key, monotonic()),
        answers: Mutex::new(Rates::new(
            monotonic(),
            u64::from_ne_bytes(rate_key),
            settings.unverified_per_second,
        )),
        with_others,
        associations: Arc::default(),
    });
    for address in alone {
        match ControlSocket::bind(address) {
            Ok(socket) => {
                bound.push(socket.bound());
                tokio::spawn(receive(Arc::new(socket), Arc::clone(&port)));
            }
            // A host without IPv6 still serves IPv4.
            Err(source) if address.ip().is_unspecified() && settings.dtls.len() > 1 => {
                log::warn!("not listening on UDP {address} for DTLS: {source}");
            }
            Err(source) => return Err(StreamsError::ListenDtls { address, source }),
        }
    }
    Ok(Some(port))
}

fn config(settings: &Settings) -> Result<Arc<Config>, StreamsError> {
    let config = Config::builder()
        .with_crypto_provider(hello::provider())
        .require_client_certificate(false)
        .dtls12_cipher_suites(&[
            Dtls12CipherSuite::ECDHE_ECDSA_AES128_GCM_SHA256,
            Dtls12CipherSuite::ECDHE_ECDSA_AES256_GCM_SHA384,
            Dtls12CipherSuite::ECDHE_ECDSA_CHACHA20_POLY1305_SHA256,
        ])
        .handshake_timeout(settings.timeouts.handshake)
        .mtu(HANDSHAKE_MTU)
        .build();
    config.map(Arc::new).map_err(|error| StreamsError::Dtls(error.to_string()))
}

/// What `dimpl` needs of a certificate.
///
/// # Errors
/// Its key is not of a kind that `dimpl` signs with.
pub(super) fn credential(
    certificate: &[u8],
    key: &[u8],
) -> Result<DtlsCertificate, dimpl::CryptoError> {
    hello::provider().key_provider.load_private_key(key)?;
    Ok(DtlsCertificate { certificate: certificate.to_vec(), private_key: key.to_vec() })
}

/// Whether a datagram is one of DTLS, as its first byte tells (RFC 7983 §7).
pub(crate) fn is_dtls(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(20..=63))
}

impl DtlsPort {
    /// Whether clients may speak DTLS at a port that has been bound for others as well.
    pub(crate) fn serves(&self, bound: SocketAddr) -> bool {
        self.with_others.contains(&bound)
    }

    /// Takes one datagram that came to `local`, which `socket` serves.
    pub(crate) fn take(
        &self,
        socket: &Arc<ControlSocket>,
        local: SocketAddr,
        remote: SocketAddr,
        datagram: &[u8],
    ) {
        let hello = ClientHello::parse(datagram);
        if let Some(entry) = self.associations.lock().get(&(local, remote))
            // A client that begins anew at the same address draws anew (RFC 6347 §4.2.8).
            && hello.is_none_or(|hello| hello.random() == entry.random)
        {
            // A full inbox drops, as the network would.
            let _ = entry.inbox.try_send(datagram.to_vec());
            return;
        }
        let Some(hello) = hello else { return };
        let now = monotonic();
        if self.cookies.is_proof(now, local, remote, &hello) {
            self.begin(socket, local, remote, &hello, datagram);
        } else if self.may_answer(now, remote) {
            // A cookie that proves nothing is as good as none (RFC 6347 §4.2.1).
            let answer = self.cookies.ask(now, local, remote, &hello);
            // Never more than came.
            if answer.len() <= hello.length() {
                let _ = socket.send(Some(local.ip()), remote, &answer);
            }
        }
    }

    fn may_answer(&self, now: Instant, remote: SocketAddr) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.allow(now, Prefix::of(remote.ip()))
    }

    /// Makes the association of a client that has shown that it receives at its address. One that the
    /// address had before ends.
    fn begin(
        &self,
        socket: &Arc<ControlSocket>,
        local: SocketAddr,
        remote: SocketAddr,
        hello: &ClientHello<'_>,
        datagram: &[u8],
    ) {
        let Some(ticket) = self.shared.admission.admit(remote.ip()) else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Some(credential) = self.certificate.for_dtls() else { return };
        let mut dtls = Dtls::new_12(Arc::clone(&self.config), credential, monotonic());
        let mut buffer = vec![0; association::BUFFER];
        if let Err(error) = hello::begin(&mut dtls, monotonic(), hello, datagram, &mut buffer) {
            self.shared.failed.fetch_add(1, Ordering::Relaxed);
            log::debug!("DTLS of {remote}: {error}");
            return;
        }
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let (inbox, datagrams) = mpsc::channel(INBOX);
        let (id, outbox) = (self.shared.next_id(), Arc::new(Outbox::new(self.shared.send_queue)));
        let random = hello.random().try_into().unwrap_or_default();
        self.associations.lock().insert((local, remote), Entry { id, random, inbox });
        let entry = ClientStream { outbox: Arc::clone(&outbox), bound_to: None };
        self.shared.registry().clients.insert(id, entry);
        let association = Association {
            dtls,
            buffer,
            socket: Arc::clone(socket),
            client: Client { local, remote, over: Over::Dtls(id) },
            datagrams,
            outbox,
            events: self.shared.events.clone(),
            timeouts: self.shared.timeouts,
        };
        let (shared, associations) = (Arc::clone(&self.shared), Arc::clone(&self.associations));
        tokio::spawn(async move {
            let _ticket = ticket;
            if !association.run().await {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
            associations.forget(local, remote, id);
        });
    }
}

impl Associations {
    fn lock(&self) -> MutexGuard<'_, HashMap<(SocketAddr, SocketAddr), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an association, and not its successor.
    fn forget(&self, local: SocketAddr, remote: SocketAddr, id: ConnectionId) {
        let mut associations = self.lock();
        if associations.get(&(local, remote)).is_some_and(|entry| entry.id == id) {
            associations.remove(&(local, remote));
        }
    }
}

/// Moves the datagrams of a port that is DTLS's alone.
async fn receive(socket: Arc<ControlSocket>, port: Arc<DtlsPort>) {
    let mut buffers = Buffers::default();
    while !port.shared.events.is_closed() {
        let take = |local, from, bytes: &[u8]| {
            if is_dtls(bytes) {
                port.take(&socket, local, from, bytes);
            }
        };
        if let Err(error) = socket.receive(&mut buffers, take).await {
            log::warn!("cannot receive on {}: {error}", socket.bound());
            tokio::time::sleep(association::PAUSE).await;
        }
    }
}
