//! What TLS is made of, for those who ask over it and for those who answer: one provider of cryptography, PEM, trust.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The one provider of cryptography in the program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Certificates in PEM, in their order.
///
/// # Errors
/// Says what is wrong with the text, and what to write.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate is in it; write certificates in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("it is no PEM: {error}")),
    }
}

/// The first private key in PEM.
///
/// # Errors
/// As above.
pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => "no private key is in it; write one in PEM, without a passphrase".to_owned(),
        error => format!("it is no PEM: {error}"),
    })
}

/// Authorities in PEM, as somebody who trusts them has them. Of many, one that nobody can read is told and left out.
///
/// # Errors
/// As above, or that none of them is an authority's.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates(pem)?) {
        (0, _) => return Err("none of the certificates in it can be an authority's".to_owned()),
        (_, 0) => {}
        (taken, left_out) => tracing::warn!(taken, left_out, "authorities that cannot be read are not trusted"),
    }
    Ok(roots)
}

/// How a client of TLS asks: it trusts the authorities of a file, or those of the system.
///
/// # Errors
/// Says which file and what is wrong with it.
pub fn client(file: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = match file {
        Some(path) => {
            let read = std::fs::read(path).map_err(|error| error.to_string());
            read.and_then(|pem| authorities(&pem)).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            // A system has certificates that nobody can read any more, among many that are good.
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                let error = found.errors.first().map_or("no certificate in it".to_owned(), ToString::to_string);
                return Err(format!("the system's trust store: {error}"));
            }
            roots
        }
    };
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
