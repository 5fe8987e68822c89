//! The parts of TLS that clients and servers share: the cryptography provider, PEM parsing and trust.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Returns the only cryptography provider of the program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns the certificates of a PEM file, in order.
///
/// # Errors
/// The text is not valid PEM, or contains no certificate.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err("it contains no certificate; write certificates in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("it is not valid PEM: {error}")),
    }
}

/// Returns the first private key of a PEM file.
///
/// # Errors
/// The text is not valid PEM, or contains no private key without a passphrase.
pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => "it contains no private key; write one in PEM, without a passphrase".to_owned(),
        error => format!("it is not valid PEM: {error}"),
    })
}

/// Returns a trust store of the authorities in a PEM file. Unusable ones are logged and left out if others are usable.
///
/// # Errors
/// The text is not valid PEM, or contains no usable authority.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates(pem)?) {
        (0, _) => return Err("none of its certificates can be used as an authority".to_owned()),
        (_, 0) => {}
        (taken, left_out) => tracing::warn!(used = taken, ignored = left_out, "ignoring unusable CA certificates"),
    }
    Ok(roots)
}

/// Returns a client configuration that trusts the authorities of a file, or those of the system, or Mozilla's if the
/// system has none.
///
/// # Errors
/// Names the file and the reason.
pub fn client(file: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = match file {
        Some(path) => {
            let read = std::fs::read(path).map_err(|error| error.to_string());
            read.and_then(|pem| authorities(&pem)).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            // System stores may contain a few unusable certificates among many good ones.
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                // An image from scratch has none.
                let error = found.errors.first().map_or("it contains no certificate".to_owned(), ToString::to_string);
                tracing::info!(%error, "no system trust store; trusting Mozilla's authorities for upstreams over TLS");
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
            roots
        }
    };
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
