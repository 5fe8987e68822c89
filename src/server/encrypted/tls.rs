//! DNS over TLS (RFC 7858): the framing of DNS over TCP, inside a TLS connection.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use super::EncryptedContext;
use crate::server::tcp::{self, Connection};

/// Serves a listener until the server stops.
pub(super) async fn serve(listener: TcpListener, shared: Arc<EncryptedContext>) -> io::Result<()> {
    tcp::accept(listener, shared.stopping.clone(), |stream, from| {
        let (config, shared) = (shared.configs.borrow().tls.clone(), shared.clone());
        shared.stream.clients.clone().admit(from, |slot| async move {
            let Some(stream) = shared.handshake(TlsAcceptor::from(config).accept(stream)).await else { return };
            Connection::new(stream, slot, shared.stream.clone()).run(shared.stopping.clone()).await;
        });
    })
    .await
}
