//! DNS over TLS (RFC 7858): the framing of DNS over TCP, inside a TLS connection.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use super::EncryptedContext;
use crate::server::tcp::{self, Connection};

/// Serves a listener until the server stops.
pub(super) async fn serve(listener: TcpListener, context: Arc<EncryptedContext>) -> io::Result<()> {
    tcp::accept(listener, context.stopping.clone(), |stream, from| {
        let (config, context) = (context.configs.borrow().tls.clone(), context.clone());
        context.stream.clients.clone().admit(from, |slot| async move {
            let Some(stream) = context.handshake(TlsAcceptor::from(config).accept(stream)).await else { return };
            Connection::new(stream, slot, context.stream.clone()).run(context.stopping.clone()).await;
        });
    })
    .await
}
