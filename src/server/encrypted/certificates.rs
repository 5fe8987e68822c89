//! The server certificate, its key, and the authorities for client certificates. The files are read and checked at the
//! start, and reloaded when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::sync::watch;
use x509_cert::der::Decode;

use super::EncryptedStats;
use crate::tls;
use crate::watched::FolderWatch;

/// Interval at which the files are checked without a notification. The kernel sends none for changes on a network file
/// system, or behind a symbolic link to another folder.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Delay between the last change and the reload, because certificate and key are written one after the other.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// Paths of the PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `--tls-cert`: the server's certificate, followed by its intermediate certificates.
    pub certificate: PathBuf,
    /// `--tls-key`: the certificate's private key.
    pub key: PathBuf,
    /// `--tls-client-ca`: clients must present a certificate issued by one of these authorities.
    pub client_authorities: Option<PathBuf>,
}

/// An unusable file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot use {flag} {}: {reason}", file.display())]
pub struct CertificateError {
    /// The flag that names the file.
    pub flag: &'static str,
    /// Path of the file.
    pub file: PathBuf,
    /// Reason, and how to fix it.
    pub reason: String,
}

/// Contents of the files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

/// TLS configuration for each transport.
pub(super) struct Configs {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) https: Arc<ServerConfig>,
    pub(super) quic: Arc<ServerConfig>,
    pub(super) h3: Arc<ServerConfig>,
    /// Expiry of the certificate, in seconds since 1970.
    pub(super) not_after: i64,
}

impl Files {
    fn rejected(&self, flag: &'static str, error: impl ToString) -> CertificateError {
        let file = match flag {
            "--tls-cert" => Some(&self.certificate),
            "--tls-key" => Some(&self.key),
            _ => self.client_authorities.as_ref(),
        };
        CertificateError { flag, file: file.cloned().unwrap_or_default(), reason: error.to_string() }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The error names the file that cannot be read.
    pub(super) fn read(&self) -> Result<Contents, CertificateError> {
        let read = |flag, path: &Path| fs::read(path).map_err(|error| self.rejected(flag, error));
        let authorities = self.client_authorities.as_ref().map(|path| read("--tls-client-ca", path));
        Ok(Contents {
            certificate: read("--tls-cert", &self.certificate)?,
            key: read("--tls-key", &self.key)?,
            client_authorities: authorities.transpose()?,
        })
    }

    /// Builds the TLS configurations from the contents.
    ///
    /// # Errors
    /// The error names the file and the reason: invalid PEM, an expired certificate, or a key that does not match.
    pub(super) fn configs(&self, contents: &Contents, now: Timestamp) -> Result<Configs, CertificateError> {
        let certificate = |error: &dyn ToString| self.rejected("--tls-cert", error.to_string());
        let chain = tls::certificates(&contents.certificate).map_err(|error| certificate(&error))?;
        // The chain is never empty: `tls::certificates` rejects a file without certificates.
        let not_after =
            chain.first().map_or(Ok(0), |first| check_validity(first, now)).map_err(|error| certificate(&error))?;
        let key = tls::private_key(&contents.key).map_err(|error| self.rejected("--tls-key", error))?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let certificate = self.certificate.display();
                self.rejected("--tls-key", format!("it is not the key of the certificate in {certificate}"))
            }
            rustls::Error::InvalidCertificate(_) => certificate(&error),
            error => self.rejected("--tls-key", error),
        })?;
        let shown = Arc::new(FixedCertificate(Arc::new(certified)));
        let verifier = contents.client_authorities.as_ref().map(|pem| {
            let authority = |error: &dyn ToString| self.rejected("--tls-client-ca", error.to_string());
            let roots = tls::authorities(pem).map_err(|error| authority(&error))?;
            let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), tls::provider());
            builder.build().map_err(|error| authority(&error))
        });
        let verifier = verifier.transpose()?;
        let config = |protocols: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]| {
            let config = ServerConfig::builder_with_provider(tls::provider())
                .with_protocol_versions(versions)
                .map_err(|error| certificate(&error))?;
            let config = match &verifier {
                Some(verifier) => config.with_client_cert_verifier(verifier.clone()),
                None => config.with_no_client_auth(),
            };
            let mut config = config.with_cert_resolver(shown.clone());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            // Early data (0-RTT) is disabled because an attacker could replay it (RFC 9250 section 4.5). Session
            // tickets are stateless: the client stores them, and the server stores nothing. With client certificates
            // there are no tickets: a resumed session would skip the check, and a client could keep resuming after its
            // certificate has expired.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            match verifier {
                Some(_) => config.send_tls13_tickets = 0,
                None => config.ticketer = Ticketer::new().map_err(|error| certificate(&error))?,
            }
            Ok(Arc::new(config))
        };
        let quic = &[&rustls::version::TLS13];
        Ok(Configs {
            tls: config(&["dot"], rustls::DEFAULT_VERSIONS)?,
            https: config(&["h2", "http/1.1"], rustls::DEFAULT_VERSIONS)?,
            quic: config(&["doq"], quic)?,
            h3: config(&["h3"], quic)?,
            not_after,
        })
    }

    /// Watches the folders of the files. Call this before reading the files, so that no change in between is missed.
    pub(super) fn watch(&self) -> Option<FolderWatch> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_authorities.as_ref()];
        let folders = files.into_iter().flatten().map(|file| match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        });
        let watched = FolderWatch::new("certificates").and_then(|watched| {
            folders.into_iter().try_for_each(|folder| watched.add(&folder))?;
            Ok(watched)
        });
        watched.inspect_err(|error| tracing::warn!(%error, "cannot watch certificate folders; polling instead")).ok()
    }

    /// Reloads the files when they change and publishes the new configurations. If the files are unusable, it logs the
    /// reason, and the previous configurations stay in use.
    pub(super) async fn follow(
        self,
        watched: Option<FolderWatch>,
        first: Contents,
        configs: watch::Sender<Arc<Configs>>,
        stats: Arc<EncryptedStats>,
    ) {
        // The contents in use, the last error logged, and whether expiry has been logged.
        let (mut used, mut reported, mut expired) = (first, None, false);
        loop {
            let settled = async {
                match &watched {
                    Some(watched) => watched.settled(SETTLE_TIME).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = settled => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = configs.closed() => return,
            }
            // A hung file system must not block the connections.
            let files = self.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || files.read()).await else { return };
            let made = found.and_then(|contents| match contents == used {
                true => Ok(None),
                // Unusable files are checked again each time: a certificate may not be valid yet.
                false => self.configs(&contents, Timestamp::now()).map(|made| Some((contents, made))),
            });
            match made {
                Ok(None) => reported = None,
                Ok(Some((contents, made))) => {
                    (used, reported) = (contents, None);
                    stats.not_after.store(made.not_after, Relaxed);
                    tracing::info!(not_after = %timestamp(made.not_after), "certificate reloaded");
                    configs.send_replace(Arc::new(made));
                }
                Err(error) if reported.as_ref() != Some(&error) => {
                    stats.rejected.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "certificate reload failed; still using the previous one");
                    reported = Some(error);
                }
                Err(_) => {}
            }
            let until = stats.not_after.load(Relaxed);
            if until < Timestamp::now().as_second() && !expired {
                tracing::error!(not_after = %timestamp(until), "the certificate in use has expired");
            }
            expired = until < Timestamp::now().as_second();
        }
    }
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// Checks that a certificate is valid now; returns its expiry in seconds since 1970.
fn check_validity(certificate: &CertificateDer<'_>, now: Timestamp) -> Result<i64, String> {
    let certificate =
        x509_cert::Certificate::from_der(certificate).map_err(|error| format!("not an X.509 certificate: {error}"))?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs().try_into().unwrap_or(i64::MAX);
    let (from, until): (i64, i64) = (seconds(validity.not_before), seconds(validity.not_after));
    match now.as_second() {
        now if now > until => Err(format!("the certificate expired at {}; renew it", timestamp(until))),
        now if now < from => Err(format!("the certificate is not valid before {}; check the clock", timestamp(from))),
        _ => Ok(until),
    }
}

/// Selects the same certificate for every server name. The client checks it, and may know the server by another name.
#[derive(Debug)]
struct FixedCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
