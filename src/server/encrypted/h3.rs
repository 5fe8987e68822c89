//! DNS over HTTPS (RFC 8484) by HTTP/3 (RFC 9114).

use std::sync::Arc;

use h3::server::{RequestResolver, RequestStream};
use http::Method;
use hyper::body::{Buf, Bytes};
use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bounded_quinn::{BoundedBidiStream, H3Connection};
use super::http::Refusal;
use super::{EncryptedContext, HANDSHAKE, LEAVE, STREAMS, end, http as doh, quic};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::QUERY;

/// H3_NO_ERROR and H3_EXCESSIVE_LOAD (RFC 9114 section 8.1).
pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
/// Streams of one connection that never became requests: h3 keeps something of each.
const STILLBORN: u32 = 10 * STREAMS;

/// Answers what a client asks, until it goes, asks nothing for too long, or the server ends.
pub(super) async fn serve(connection: quinn::Connection, place: ConnectionSlot, shared: &Arc<EncryptedContext>) {
    let place = Arc::new(place);
    let carried = H3Connection::new(connection.clone());
    let mut server = h3::server::builder();
    let server = server.max_field_section_size(doh::HEAD as u64).build::<_, Bytes>(carried);
    let Ok(Ok(mut server)) = timeout(HANDSHAKE, server).await else { return };
    // They end with the connection.
    let mut asked = JoinSet::new();
    let (mut stillborn, mut leaving) = (0, false);
    let mut stopping = shared.stopping.clone();
    loop {
        tokio::select! {
            // What has come is answered, though the server ends.
            biased;
            request = server.accept() => match request {
                Ok(Some(request)) => drop(asked.spawn(answer(request, place.clone(), shared.clone()))),
                // The client has gone, or broke a rule, or all is answered that came before we took our leave.
                Ok(None) | Err(_) => break,
            },
            Some(was) = asked.join_next() => stillborn += u32::from(!was.unwrap_or(false)),
            () = quic::idle(&place), if !leaving => leaving = true,
            () = end(&mut stopping), if !leaving => leaving = true,
        }
        if leaving || stillborn > STILLBORN {
            leaving = true;
            // What came before the next request is answered. Who does not take this in time does not take anything.
            if !matches!(timeout(LEAVE, server.shutdown(1)).await, Ok(Ok(()))) || asked.is_empty() {
                break;
            }
        }
    }
    // What was sent last may still be on its way: who has it closes the connection.
    let _ = timeout(LEAVE, connection.closed()).await;
    connection.close(if stillborn > STILLBORN { EXCESSIVE_LOAD } else { NO_ERROR }, b"");
}

/// Answers a request; says whether it was one. What is not sent in time, or cannot be, is reset when it is dropped.
async fn answer(
    request: RequestResolver<H3Connection, Bytes>,
    place: Arc<ConnectionSlot>,
    shared: Arc<EncryptedContext>,
) -> bool {
    let Ok(Ok((request, mut stream))) = timeout(HANDSHAKE, request.resolve_request()).await else { return false };
    let head = request.into_parts().0;
    let (is_head, length) = (head.method == Method::HEAD, doh::length(&head));
    let (answer, body) = shared.exchange(&place, head, body(&mut stream, length)).await.into_parts();
    let sent = async {
        stream.send_response(http::Response::from_parts(answer, ())).await?;
        if !is_head {
            stream.send_data(body).await?;
        }
        stream.finish().await
    };
    let _ = timeout(place.limits().idle, sent).await;
    true
}

async fn body(stream: &mut RequestStream<BoundedBidiStream, Bytes>, length: Option<u64>) -> Result<Vec<u8>, Refusal> {
    let (mut body, mut ended) = (Vec::new(), false);
    loop {
        let Some(mut data) = stream.recv_data().await.map_err(|_| doh::broken())? else {
            // h3 says so of an empty frame of data as well.
            match length.is_some_and(|length| length != body.len() as u64) {
                true if ended => return Err(doh::broken()),
                true => ended = true,
                false => return Ok(body),
            }
            continue;
        };
        while data.has_remaining() {
            let chunk = data.chunk();
            if body.len() + chunk.len() > QUERY {
                return Err(doh::too_large());
            }
            body.extend_from_slice(chunk);
            data.advance(data.chunk().len());
        }
    }
}
