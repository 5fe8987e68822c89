//! DNS over QUIC (RFC 9250): each query has a stream of its own.

use std::sync::Arc;

use hyper::body::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{EncryptedContext, HANDSHAKE_TIMEOUT, Transport, stopped};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::{MAX_QUERY, NoReply};
use crate::server::tcp::Frame;
use crate::wire::{TCP_KEEPALIVE, has_option};

// Error codes of RFC 9250 section 4.3.
const INTERNAL_ERROR: VarInt = VarInt::from_u32(1);
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);
const UNSPECIFIED_ERROR: VarInt = VarInt::from_u32(5);

/// Extracts the query from the complete contents of a stream, or from the first bytes of a stream that is too long.
///
/// # Errors
/// Returns the violation of RFC 9250 section 4.3.3 for which the connection has to be closed.
pub fn question(octets: &[u8]) -> Result<&[u8], &'static str> {
    let (message, length) = match Frame::parse(octets) {
        None => return Err("the stream ended before its message was complete"),
        Some(Frame::Whole(message)) => (message, message.len()),
        // Only its head is answered: a header without a question, which gets FORMERR.
        Some(Frame::Overlong { head, length }) => (head, length),
    };
    if octets.len() > 2 + length {
        return Err("the stream carries more than one message");
    }
    if !message.starts_with(&[0, 0]) {
        return Err("the message ID is not 0");
    }
    if has_option(message, TCP_KEEPALIVE) {
        return Err("the edns-tcp-keepalive option is not allowed");
    }
    Ok(message)
}

/// Answers queries until the client disconnects, the connection is idle for too long, or the server stops.
pub(super) async fn serve(connection: Connection, slot: ConnectionSlot, context: &Arc<EncryptedContext>) {
    let slot = Arc::new(slot);
    // Dropping the set aborts its tasks together with the connection.
    let mut in_flight = JoinSet::new();
    let (mut stopping, mut leaving) = (context.stopping.clone(), false);
    while !(leaving && in_flight.is_empty()) {
        tokio::select! {
            // Queries that have already arrived are answered even if the server is stopping.
            biased;
            stream = connection.accept_bi(), if !leaving => match stream {
                Ok((reply, question)) => {
                    in_flight.spawn(answer(connection.clone(), question, reply, slot.clone(), context.clone()));
                }
                // The client has disconnected or violated the protocol.
                Err(_) => return,
            },
            Some(_) = in_flight.join_next() => {}
            () = slot.idle_timeout(), if !leaving => leaving = true,
            () = stopped(&mut stopping), if !leaving => leaving = true,
        }
    }
    connection.close(Transport::Quic.no_error(), b"");
}

async fn answer(
    connection: Connection,
    mut question: RecvStream,
    mut reply: SendStream,
    slot: Arc<ConnectionSlot>,
    context: Arc<EncryptedContext>,
) {
    let Ok(Some(octets)) = timeout(HANDSHAKE_TIMEOUT, read(&mut question)).await else {
        let _ = question.stop(UNSPECIFIED_ERROR);
        let _ = reply.reset(UNSPECIFIED_ERROR);
        return;
    };
    let message = match self::question(&octets) {
        Ok(message) => message,
        Err(error) => return connection.close(PROTOCOL_ERROR, error.as_bytes()),
    };
    let found = match context.reply(&slot, message).await {
        Ok(found) => found,
        Err(NoReply::NotAQuery) => return connection.close(PROTOCOL_ERROR, b"the message is not a query"),
        Err(NoReply::Busy) => {
            let _ = reply.reset(INTERNAL_ERROR);
            return;
        }
    };
    let length = Bytes::copy_from_slice(&(found.len() as u16).to_be_bytes());
    let (idle, mut framed) = (slot.limits().idle, [length, found]);
    match timeout(idle, reply.write_all_chunks(&mut framed)).await {
        Ok(Ok(())) if reply.finish().is_ok() => {
            // Closing the connection before the client has all of the stream would lose the reply.
            let _ = timeout(idle, reply.stopped()).await;
        }
        // Without a reset, a truncated reply would look complete.
        _ => drop(reply.reset(UNSPECIFIED_ERROR)),
    }
}

/// Reads a whole stream, or until it is longer than any query may be; `None` if the stream fails.
async fn read(stream: &mut RecvStream) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    while let Some(chunk) = stream.read_chunk(MAX_QUERY, true).await.ok()? {
        octets.reserve_exact(chunk.bytes.len());
        octets.extend_from_slice(&chunk.bytes);
        if octets.len() > MAX_QUERY + 2 {
            break;
        }
    }
    Some(octets)
}
