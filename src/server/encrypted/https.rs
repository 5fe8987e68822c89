//! DNS over HTTPS (RFC 8484) with HTTP/2 and HTTP/1.1.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::{CLOSE_TIMEOUT, EncryptedContext, MAX_STREAMS, http as doh, stopped};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::MAX_QUERY;
use crate::server::{MAX_BACKLOG, UPSTREAM_TIMEOUT, tcp};

/// HTTP/2 flow-control window in bytes, of each stream and of the connection.
const WINDOW: u32 = 65_535;

/// Serves a listener until the server stops.
pub(super) async fn serve(listener: TcpListener, context: Arc<EncryptedContext>) -> io::Result<()> {
    tcp::accept(listener, context.stopping.clone(), |stream, from| {
        let (config, context) = (context.configs.borrow().https.clone(), context.clone());
        context.stream.clients.clone().admit(from, |slot| async move {
            let Some(stream) = context.handshake(TlsAcceptor::from(config).accept(stream)).await else { return };
            let slot = Arc::new(slot);
            let service = service_fn(|request| {
                let (slot, context) = (slot.clone(), context.clone());
                async move { Ok::<_, Infallible>(respond(request, &slot, &context).await) }
            });
            let is_2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let stream = TokioIo::new(stream);
            if is_2 {
                let mut server = http2::Builder::new(TokioExecutor::new());
                server
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(MAX_STREAMS)
                    .max_header_list_size(doh::HEAD as u32);
                server
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .max_send_buf_size(MAX_BACKLOG);
                drive(server.serve_connection(stream, service), &slot, context.stopping.clone()).await;
            } else {
                let mut server = http1::Builder::new();
                // The connection's idle timeout covers a slow request head.
                server.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(doh::HEAD);
                drive(server.serve_connection(stream, service), &slot, context.stopping.clone()).await;
            }
        });
    })
    .await
}

/// Serves a connection until the client disconnects, the connection is idle for too long, or the server stops.
async fn drive(connection: impl GracefulConnection, slot: &ConnectionSlot, mut stopping: watch::Receiver<bool>) {
    let mut connection = pin!(connection);
    loop {
        let deadline = slot.deadline();
        tokio::select! {
            _ = connection.as_mut() => return,
            () = sleep_until(deadline) => if slot.deadline() <= Instant::now() { break },
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(UPSTREAM_TIMEOUT, connection).await;
                return;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(CLOSE_TIMEOUT, connection).await;
}

async fn respond(
    request: Request<Incoming>,
    slot: &Arc<ConnectionSlot>,
    context: &EncryptedContext,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = async {
        let body = Limited::new(body, MAX_QUERY).collect().await;
        let body =
            body.map_err(|error| if error.is::<LengthLimitError>() { doh::too_large() } else { doh::broken() })?;
        Ok(body.to_bytes().into())
    };
    context.exchange(slot, head, body).await.map(Full::new)
}
