//! The certificate that TLS and DTLS are secured with, and its exchange while the server runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::{SignalKind, signal};

/// What clients may ask for by ALPN (RFC 7443 §3).
pub const PROTOCOLS: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(60);

/// Where certificate and key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those that lead to a root, as most authorities hand them out.
    pub certificate: PathBuf,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} holds no {what} as PEM (-----BEGIN ...): {source}", .path.display())]
    NotPem { path: PathBuf, what: &'static str, source: pem::Error },
    #[error(
        "{} and {} do not fit together or cannot be used: {source}; both must be of the same \
         key (RSA of 2048 bits or more, ECDSA P-256 or P-384, or Ed25519)",
        .files.certificate.display(), .files.key.display()
    )]
    Unusable { files: CertificateFiles, source: rustls::Error },
    #[error(
        "the key in {} cannot be used for DTLS, which needs ECDSA P-256 or P-384: have a certificate \
         made for such a key, or leave out turn.listen_dtls ({why})", .path.display()
    )]
    NotForDtls { path: PathBuf, why: String },
}

/// A certificate that can be exchanged. New streams get the one that is in force when they begin.
#[derive(Debug)]
pub struct Certificate {
    files: CertificateFiles,
    /// What the files were like when they were read last, whether they could be used or not.
    seen: RwLock<Stamp>,
    current: RwLock<Current>,
    /// Whether it has to do for DTLS as well.
    for_dtls: bool,
}

/// What is in force.
#[derive(Clone, Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    /// For DTLS, where that is offered.
    #[cfg(feature = "dtls")]
    dtls: Option<dimpl::DtlsCertificate>,
}

/// By which a change of the files shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([Option<(SystemTime, u64)>; 2]);

impl Certificate {
    /// Reads the files.
    pub fn load(files: CertificateFiles) -> Result<Arc<Self>, CertificateError> {
        Self::load_for(files, false)
    }

    /// Reads the files, which have to do for DTLS, too.
    pub fn load_for_dtls(files: CertificateFiles) -> Result<Arc<Self>, CertificateError> {
        Self::load_for(files, true)
    }

    fn load_for(files: CertificateFiles, for_dtls: bool) -> Result<Arc<Self>, CertificateError> {
        let seen = RwLock::new(Stamp::of(&files));
        let current = RwLock::new(read(&files, for_dtls)?);
        Ok(Arc::new(Self { files, seen, current, for_dtls }))
    }

    /// Reads the files again. If they cannot be used, what was there stays.
    pub fn reload(&self) -> Result<(), CertificateError> {
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = Stamp::of(&self.files);
        let new = read(&self.files, self.for_dtls)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Whether the files are not what was read last.
    pub fn has_changed(&self) -> bool {
        *self.seen.read().unwrap_or_else(PoisonError::into_inner) != Stamp::of(&self.files)
    }

    /// Keeps up with the files: reads them at SIGHUP and when they change. Never ends.
    pub async fn keep_up(self: Arc<Self>) {
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| log::warn!("SIGHUP does not reload the certificate: {error}"))
            .ok();
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            let asked = tokio::select! {
                _ = async { hangup.as_mut()?.recv().await }, if hangup.is_some() => true,
                _ = tick.tick() => false,
            };
            if asked || self.has_changed() {
                self.reload_and_tell();
            }
        }
    }

    fn reload_and_tell(&self) {
        match self.reload() {
            Ok(()) => log::info!("certificate {} read again", self.files.certificate.display()),
            Err(error) => log::warn!("the certificate stays as it was: {error}"),
        }
    }

    /// What DTLS is spoken with, if it is offered.
    #[cfg(feature = "dtls")]
    pub(super) fn for_dtls(&self) -> Option<dimpl::DtlsCertificate> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).dtls.clone()
    }

    /// How TLS is spoken with this certificate.
    ///
    /// # Errors
    /// The cryptography has no TLS version in common with us, which a build decides.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // A client that comes back need not sign again; it costs no state here (RFC 5077).
        config.ticketer = ring::Ticketer::new()?;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).certified))
    }
}

impl Stamp {
    fn of(files: &CertificateFiles) -> Self {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Self([stamp(&files.certificate), stamp(&files.key)])
    }
}

fn read(files: &CertificateFiles, for_dtls: bool) -> Result<Current, CertificateError> {
    let not_pem = |path: &Path, what| {
        let path = path.to_owned();
        move |source| CertificateError::NotPem { path, what, source }
    };
    let chain = CertificateDer::pem_slice_iter(&contents(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(not_pem(&files.certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&contents(&files.key)?)
        .map_err(not_pem(&files.key, "private key"))?;
    #[cfg(feature = "dtls")]
    let dtls = for_dtls.then(|| super::dtls::credential(&chain[0], key.secret_der())).transpose();
    #[cfg(feature = "dtls")]
    let dtls = dtls.map_err(|error| {
        let path = files.key.clone();
        CertificateError::NotForDtls { path, why: error.to_string() }
    })?;
    #[cfg(not(feature = "dtls"))]
    let _ = for_dtls;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|source| CertificateError::Unusable { files: files.clone(), source })?;
    Ok(Current {
        certified: Arc::new(certified),
        #[cfg(feature = "dtls")]
        dtls,
    })
}

fn contents(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own with a certificate and its key; goes when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("rawr-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn files(&self) -> CertificateFiles {
            CertificateFiles {
                certificate: self.0.join("certificate.pem"),
                key: self.0.join("key.pem"),
            }
        }

        /// Writes a new certificate and returns it.
        fn issue(&self) -> Vec<u8> {
            let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            fs::write(self.files().certificate, issued.cert.pem()).unwrap();
            fs::write(self.files().key, issued.signing_key.serialize_pem()).unwrap();
            issued.cert.der().to_vec()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn in_force(certificate: &Certificate) -> Vec<u8> {
        certificate.current.read().unwrap().certified.end_entity_cert().unwrap().to_vec()
    }

    #[test]
    fn a_bad_new_file_keeps_the_old_certificate() {
        let folder = Folder::new("certificate");
        let first = folder.issue();
        let certificate = Certificate::load(folder.files()).unwrap();
        assert_eq!(in_force(&certificate), first);
        assert!(!certificate.has_changed());

        let key = fs::read(folder.files().key).unwrap();
        let second = folder.issue();
        fs::write(folder.files().key, &key).unwrap();
        let error = certificate.reload().unwrap_err();
        assert!(matches!(error, CertificateError::Unusable { .. }), "{error}");
        fs::write(folder.files().certificate, "nothing").unwrap();
        assert!(certificate.has_changed());
        let error = certificate.reload().unwrap_err().to_string();
        assert!(error.contains("certificate.pem holds no certificate"), "{error}");
        assert!(!certificate.has_changed(), "told once, not every minute");
        assert_eq!(in_force(&certificate), first);
        assert_ne!(first, second);

        let third = folder.issue();
        certificate.reload().unwrap();
        assert_eq!(in_force(&certificate), third);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = Folder::new("no-certificate");
        let error = Certificate::load(folder.files()).unwrap_err().to_string();
        assert!(error.contains("certificate.pem"), "{error}");
        folder.issue();
        fs::remove_file(folder.files().key).unwrap();
        let error = Certificate::load(folder.files()).unwrap_err().to_string();
        assert!(error.contains("key.pem"), "{error}");
    }
}
