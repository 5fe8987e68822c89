//! The HTTP server of the health and admin addresses. Every client has a share of the connections, and every
//! connection a limited time.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::body::Body;
use crate::server::{Clients, Limits};

/// Time after which a connection takes no further request. Scrapers connect again without an error.
const LIFETIME: Duration = Duration::from_secs(20);
/// Time that its last response then still has. A client that reads too slowly gets a response that is cut short.
const LAST_RESPONSE: Duration = Duration::from_secs(40);
/// Largest head of a request, and the buffer for a response, in octets.
const BUFFER: usize = 16 * 1024;
/// Octets of a response that the system may hold for a client that does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// Wait after an error of accept: at the limit of descriptors, it fails again at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections and answers their requests by `respond`, forever.
pub(super) async fn serve<R, F>(listener: TcpListener, limits: Limits, respond: R)
where
    R: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let clients = Clients::new(limits);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip().to_canonical()),
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        // A failure only means that the system holds more of a response.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        let respond = respond.clone();
        clients.admit(from, |slot| async move {
            let slot = Arc::new(slot);
            let service = service_fn(|request| {
                let (respond, slot) = (respond.clone(), slot.clone());
                async move {
                    slot.record_activity();
                    Ok::<_, Infallible>(respond(request, from).await)
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(limits.idle).max_buf_size(BUFFER);
            let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                // An error means that the client disconnected or was too slow, which needs no handling.
                _ = connection.as_mut() => return,
                () = sleep(LIFETIME) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = timeout(LAST_RESPONSE, connection).await;
        });
    }
}

/// Returns a response with this content type.
pub(super) fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn typed(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    response(status, kind, Body::from(text))
}

pub(super) fn plain(status: StatusCode, text: String) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text)
}
