//! DNS over HTTPS (RFC 8484) by HTTP/3 (RFC 9114).

use std::sync::Arc;

use h3::server::{RequestResolver, RequestStream};
use h3_quinn::BidiStream;
use hyper::body::{Buf, Bytes};
use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::{Asked, Refusal};
use super::{HANDSHAKE, LEAVE, Shared, end, http as doh, quic};
use crate::server::clients::Place;
use crate::server::handler::QUERY;

/// H3_NO_ERROR (RFC 9114 section 8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// Answers what a client asks, until it goes, asks nothing for too long, or the server ends.
pub(super) async fn serve(connection: quinn::Connection, place: Place, shared: &Arc<Shared>) {
    let place = Arc::new(place);
    let carried = h3_quinn::Connection::new(connection.clone());
    let mut server = h3::server::builder();
    let server = server.max_field_section_size(doh::HEAD as u64).build::<_, Bytes>(carried);
    let Ok(Ok(mut server)) = timeout(HANDSHAKE, server).await else { return };
    // They end with the connection.
    let mut asked = JoinSet::new();
    let mut stopping = shared.stopping.clone();
    loop {
        tokio::select! {
            request = server.accept() => match request {
                Ok(Some(request)) => drop(asked.spawn(answer(request, place.clone(), shared.clone()))),
                // The client has gone, or broke a rule.
                Ok(None) | Err(_) => break,
            },
            Some(_) = asked.join_next() => {}
            () = quic::idle(&place) => return connection.close(NO_ERROR, b""),
            () = end(&mut stopping), if asked.is_empty() => break,
        }
    }
    // What was sent last may still be on its way: who has it closes the connection.
    let _ = server.shutdown(0).await;
    let _ = timeout(LEAVE, connection.closed()).await;
    connection.close(NO_ERROR, b"");
}

async fn answer(request: RequestResolver<h3_quinn::Connection, Bytes>, place: Arc<Place>, shared: Arc<Shared>) {
    let Ok(Ok((request, mut stream))) = timeout(HANDSHAKE, request.resolve_request()).await else { return };
    let reply = reply(&request.into_parts().0, &mut stream, &place, &shared).await;
    let (head, body) = doh::response(reply).into_parts();
    let idle = place.limits().idle;
    let sent = async {
        stream.send_response(http::Response::from_parts(head, ())).await?;
        stream.send_data(body).await?;
        stream.finish().await
    };
    let _ = timeout(idle, sent).await;
}

async fn reply(
    head: &http::request::Parts,
    stream: &mut RequestStream<BidiStream<Bytes>, Bytes>,
    place: &Arc<Place>,
    shared: &Shared,
) -> Result<Bytes, Refusal> {
    let message = match doh::asked(head)? {
        Asked::Message(message) => message,
        Asked::Body => timeout(HANDSHAKE, body(stream)).await.map_err(|_| doh::too_slow())??,
    };
    Ok(shared.reply(place, &message).await?)
}

async fn body(stream: &mut RequestStream<BidiStream<Bytes>, Bytes>) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(mut data) = stream.recv_data().await.map_err(|_| doh::broken())? {
        while data.has_remaining() {
            let chunk = data.chunk();
            if body.len() + chunk.len() > QUERY {
                return Err(doh::too_large());
            }
            body.extend_from_slice(chunk);
            data.advance(data.chunk().len());
        }
    }
    Ok(body)
}
