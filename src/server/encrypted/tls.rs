//! DNS over TLS (RFC 7858): what TCP carries, in a TLS connection.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{HANDSHAKE, Shared, end};
use crate::server::tcp::{self, Connection};

/// Serves a listener until the server ends.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    tcp::accept(listener, shared.stopping.clone(), |stream, from| {
        let (config, shared) = (shared.configs.borrow().tls.clone(), shared.clone());
        shared.stream.clients.clone().admit(from, |place| async move {
            let Some(stream) = handshake(config, stream, &shared).await else { return };
            Connection::new(stream, place, shared.stream.clone()).run(shared.stopping.clone()).await;
        });
    })
    .await
}

/// A connection on which client and server have come to terms in time.
pub(super) async fn handshake(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    shared: &Shared,
) -> Option<TlsStream<TcpStream>> {
    let mut stopping = shared.stopping.clone();
    let stream = tokio::select! {
        stream = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)) => stream,
        () = end(&mut stopping) => return None,
    };
    match stream {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(_)) | Err(_) => {
            shared.stats.handshakes_failed.fetch_add(1, Relaxed);
            None
        }
    }
}
