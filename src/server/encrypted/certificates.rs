//! The certificate that clients are shown, its key, and the authorities of client certificates: read, checked, and read
//! again when the files change.

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
use crate::watched::Watched;

/// Files are looked at this often even if the kernel tells nothing: on a network file system, and behind a link that leads
/// to another folder, it does not.
const LOOK: Duration = Duration::from_secs(60);
/// Time between the first change and a look: certificate and key are written one after the other.
const SETTLE: Duration = Duration::from_millis(200);

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `--tls-cert`: the server's certificate, then those that lead from it to an authority.
    pub certificate: PathBuf,
    /// `--tls-key`.
    pub key: PathBuf,
    /// `--tls-client-ca`: clients have to show a certificate by one of these.
    pub client_authorities: Option<PathBuf>,
}

/// Why a file will not do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{flag} {}: {reason}", file.display())]
pub struct CertificateError {
    /// The flag that names the file.
    pub flag: &'static str,
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it, and what to do.
    pub reason: String,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

/// How handshakes are made, by transport.
pub(super) struct Configs {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) https: Arc<ServerConfig>,
    pub(super) quic: Arc<ServerConfig>,
    pub(super) h3: Arc<ServerConfig>,
    /// The end of the certificate's time, in seconds since 1970.
    pub(super) not_after: i64,
}

impl Files {
    fn unfit(&self, flag: &'static str, error: impl ToString) -> CertificateError {
        let file = match flag {
            "--tls-cert" => Some(&self.certificate),
            "--tls-key" => Some(&self.key),
            _ => self.client_authorities.as_ref(),
        };
        CertificateError { flag, file: file.cloned().unwrap_or_default(), reason: error.to_string() }
    }

    /// Reads them.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn read(&self) -> Result<Contents, CertificateError> {
        let read = |flag, path: &Path| fs::read(path).map_err(|error| self.unfit(flag, error));
        let authorities = self.client_authorities.as_ref().map(|path| read("--tls-client-ca", path));
        Ok(Contents {
            certificate: read("--tls-cert", &self.certificate)?,
            key: read("--tls-key", &self.key)?,
            client_authorities: authorities.transpose()?,
        })
    }

    /// Makes of them what handshakes need.
    ///
    /// # Errors
    /// Names the file and says what is wrong with it: no PEM, out of its time, not the certificate's key.
    pub(super) fn configs(&self, contents: &Contents, now: Timestamp) -> Result<Configs, CertificateError> {
        let certificate = |error: &dyn ToString| self.unfit("--tls-cert", error.to_string());
        let chain = tls::certificates(&contents.certificate).map_err(|error| certificate(&error))?;
        // There is one: else it would have been an error.
        let not_after =
            chain.first().map_or(Ok(0), |first| lifetime(first, now)).map_err(|error| certificate(&error))?;
        let key = tls::private_key(&contents.key).map_err(|error| self.unfit("--tls-key", error))?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let certificate = self.certificate.display();
                self.unfit("--tls-key", format!("it is not the key of the certificate in {certificate}"))
            }
            rustls::Error::InvalidCertificate(_) => certificate(&error),
            error => self.unfit("--tls-key", error),
        })?;
        let shown = Arc::new(Shown(Arc::new(certified)));
        let verifier = contents.client_authorities.as_ref().map(|pem| {
            let authority = |error: &dyn ToString| self.unfit("--tls-client-ca", error.to_string());
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
            // There is no early data (0-RTT): what is sent again by somebody else must not be answered again (RFC 9250
            // section 4.5). Clients keep their sessions themselves, sealed: nothing of theirs is kept here. Who has to show a
            // certificate shows it each time: with a session it would stay good for as long as it comes back, expired or not.
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

    /// Watches the folders that they are in, each once. To be called before they are read: what changes in between is told.
    pub(super) fn watch(&self) -> Vec<Watched> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_authorities.as_ref()];
        let folders = files.into_iter().flatten().map(|file| match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        });
        let mut folders: Vec<_> = folders.collect();
        folders.sort();
        folders.dedup();
        let watched = folders.iter().filter_map(|folder| match Watched::new(folder, "certificates") {
            Ok(watched) => Some(watched),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "changes of the certificate are seen once a minute");
                None
            }
        });
        watched.collect()
    }

    /// Looks at the files when they change, and publishes what is in them. What will not do is told, and what was before
    /// stays.
    pub(super) async fn follow(
        self,
        watched: Vec<Watched>,
        first: Contents,
        configs: watch::Sender<Arc<Configs>>,
        stats: Arc<EncryptedStats>,
    ) {
        // What is shown, and what was said of what is not.
        let (mut used, mut told, mut expired) = (first, None, false);
        loop {
            let changes = watched.iter().map(|folder| Box::pin(folder.changed()));
            tokio::select! {
                () = any(changes) => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(LOOK) => {}
                () = configs.closed() => return,
            }
            // A file system that hangs must not hang those that are served.
            let files = self.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || files.read()).await else { return };
            let made = found.and_then(|contents| match contents == used {
                true => Ok(None),
                // What will not do is looked at again each time: it may only be too early for it.
                false => self.configs(&contents, Timestamp::now()).map(|made| Some((contents, made))),
            });
            match made {
                Ok(None) => told = None,
                Ok(Some((contents, made))) => {
                    (used, told) = (contents, None);
                    stats.not_after.store(made.not_after, Relaxed);
                    tracing::info!(until = %moment(made.not_after), "the certificate has been read again");
                    configs.send_replace(Arc::new(made));
                }
                Err(error) if told.as_ref() != Some(&error) => {
                    stats.unfit.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "the certificate of before stays");
                    told = Some(error);
                }
                Err(_) => {}
            }
            let until = stats.not_after.load(Relaxed);
            if until < Timestamp::now().as_second() && !expired {
                tracing::error!(until = %moment(until), "the certificate that is shown has expired");
            }
            expired = until < Timestamp::now().as_second();
        }
    }
}

/// Returns when the first of these does; if there are none, never.
async fn any<F: Future<Output = ()> + Unpin>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<F> = futures.collect();
    std::future::poll_fn(|context| {
        let ready = futures.iter_mut().any(|future| std::pin::Pin::new(future).poll(context).is_ready());
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// The end of a certificate's time, if now is within it.
fn lifetime(certificate: &CertificateDer<'_>, now: Timestamp) -> Result<i64, String> {
    let certificate =
        x509_cert::Certificate::from_der(certificate).map_err(|error| format!("it is no certificate: {error}"))?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs().try_into().unwrap_or(i64::MAX);
    let (from, until): (i64, i64) = (seconds(validity.not_before), seconds(validity.not_after));
    match now.as_second() {
        now if now > until => Err(format!("it expired at {}; no client would accept it", moment(until))),
        now if now < from => Err(format!("it is not valid before {}; look at the clock", moment(from))),
        _ => Ok(until),
    }
}

/// One certificate, whatever name the client asks for: clients check it, and know other names of this server.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
