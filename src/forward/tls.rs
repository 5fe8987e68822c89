//! Whom a client of TLS trusts.

use std::sync::Arc;

/// What a client of TLS trusts: the authorities of a file, or those of the system.
///
/// # Errors
/// Says which file and what is wrong with it.
pub fn trust(authorities: Option<&std::path::Path>) -> Result<rustls::ClientConfig, String> {
    let found = match authorities {
        Some(path) => rustls_native_certs::load_certs_from_paths(Some(path), None),
        None => rustls_native_certs::load_native_certs(),
    };
    let place = || authorities.map_or("the system's trust store".to_owned(), |path| path.display().to_string());
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or("no certificate in it".to_owned(), ToString::to_string);
        return Err(format!("{}: {why}", place()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
