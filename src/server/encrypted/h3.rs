//! DNS over HTTPS (RFC 8484) with HTTP/3 (RFC 9114).

use std::sync::Arc;

use h3::server::{RequestResolver, RequestStream};
use http::Method;
use hyper::body::{Buf, Bytes};
use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bounded_quinn::{BoundedBidiStream, H3Connection};
use super::http::Refusal;
use super::{CLOSE_TIMEOUT, EncryptedContext, HANDSHAKE_TIMEOUT, MAX_STREAMS, Transport, http as doh, stopped};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::MAX_QUERY;

/// H3_EXCESSIVE_LOAD (RFC 9114 section 8.1).
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
/// Limit on the streams of one connection that never became requests, because h3 retains some state for each.
const MAX_FAILED_STREAMS: u32 = 10 * MAX_STREAMS;

/// Answers requests until the client disconnects, the connection is idle for too long, or the server stops.
pub(super) async fn serve(connection: quinn::Connection, slot: ConnectionSlot, context: &Arc<EncryptedContext>) {
    let slot = Arc::new(slot);
    let carried = H3Connection::new(connection.clone());
    let mut server = h3::server::builder();
    let server = server.max_field_section_size(doh::HEAD as u64).build::<_, Bytes>(carried);
    let Ok(Ok(mut server)) = timeout(HANDSHAKE_TIMEOUT, server).await else { return };
    // Dropping the set aborts its tasks together with the connection.
    let mut in_flight = JoinSet::new();
    let (mut failed_streams, mut leaving) = (0, false);
    let mut stopping = context.stopping.clone();
    loop {
        tokio::select! {
            // Requests that have already arrived are answered even if the server is stopping.
            biased;
            request = server.accept() => match request {
                Ok(Some(request)) => drop(in_flight.spawn(answer(request, slot.clone(), context.clone()))),
                // The client has disconnected or violated the protocol, or all requests before the GOAWAY are answered.
                Ok(None) | Err(_) => break,
            },
            Some(was) = in_flight.join_next() => failed_streams += u32::from(!was.unwrap_or(false)),
            () = slot.idle_timeout(), if !leaving => leaving = true,
            () = stopped(&mut stopping), if !leaving => leaving = true,
        }
        if leaving || failed_streams > MAX_FAILED_STREAMS {
            leaving = true;
            // Requests accepted so far are still answered. A client that does not accept the GOAWAY in time reads
            // nothing at all.
            if !matches!(timeout(CLOSE_TIMEOUT, server.shutdown(1)).await, Ok(Ok(()))) || in_flight.is_empty() {
                break;
            }
        }
    }
    // The last response may still be in flight: a client that has received it closes the connection.
    let _ = timeout(CLOSE_TIMEOUT, connection.closed()).await;
    let is_excessive = failed_streams > MAX_FAILED_STREAMS;
    connection.close(if is_excessive { EXCESSIVE_LOAD } else { Transport::H3.no_error() }, b"");
}

/// Answers a request; returns whether the stream carried one. A response that cannot be sent in time is reset on drop.
async fn answer(
    request: RequestResolver<H3Connection, Bytes>,
    slot: Arc<ConnectionSlot>,
    context: Arc<EncryptedContext>,
) -> bool {
    let Ok(Ok((request, mut stream))) = timeout(HANDSHAKE_TIMEOUT, request.resolve_request()).await else {
        return false;
    };
    let head = request.into_parts().0;
    let (is_head, length) = (head.method == Method::HEAD, doh::length(&head));
    let (answer, body) = context.exchange(&slot, head, body(&mut stream, length)).await.into_parts();
    let sent = async {
        stream.send_response(http::Response::from_parts(answer, ())).await?;
        if !is_head {
            stream.send_data(body).await?;
        }
        stream.finish().await
    };
    let _ = timeout(slot.limits().idle, sent).await;
    true
}

async fn body(stream: &mut RequestStream<BoundedBidiStream, Bytes>, length: Option<u64>) -> Result<Vec<u8>, Refusal> {
    let (mut body, mut ended) = (Vec::new(), false);
    loop {
        let Some(mut data) = stream.recv_data().await.map_err(|_| doh::broken())? else {
            // h3 also returns `None` for an empty DATA frame.
            match length.is_some_and(|length| length != body.len() as u64) {
                true if ended => return Err(doh::broken()),
                true => ended = true,
                false => return Ok(body),
            }
            continue;
        };
        while data.has_remaining() {
            let chunk = data.chunk();
            if body.len() + chunk.len() > MAX_QUERY {
                return Err(doh::too_large());
            }
            body.extend_from_slice(chunk);
            data.advance(data.chunk().len());
        }
    }
}
