//! DNS over QUIC (RFC 9250): each question has a stream of its own.

use std::sync::Arc;

use hyper::body::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{EncryptedContext, HANDSHAKE, end, quic};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::{NoReply, QUERY};
use crate::server::tcp::Frame;
use crate::wire::has_option;

// Error codes of RFC 9250 section 4.3.
pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0);
const INTERNAL_ERROR: VarInt = VarInt::from_u32(1);
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);
const UNSPECIFIED_ERROR: VarInt = VarInt::from_u32(5);

/// EDNS option that says how long a TCP connection may be idle (RFC 7828); QUIC has its own way.
const TCP_KEEPALIVE: u16 = 11;

/// The question on a stream, all of which has come, or as much as is read of what is too long.
///
/// # Errors
/// What is against RFC 9250 section 4.3.3, for which the whole connection is closed.
pub fn question(octets: &[u8]) -> Result<&[u8], &'static str> {
    let (message, length) = match Frame::parse(octets) {
        None => return Err("the stream ended before its message"),
        Some(Frame::Whole(message)) => (message, message.len()),
        // Answered in its place: a header that has no question.
        Some(Frame::Overlong { head, length }) => (head, length),
    };
    if octets.len() > 2 + length {
        return Err("there is more than one message on a stream");
    }
    if !message.starts_with(&[0, 0]) {
        return Err("the id is not 0");
    }
    if has_option(message, TCP_KEEPALIVE) {
        return Err("the option is TCP's");
    }
    Ok(message)
}

/// Answers what a client asks, until it goes, asks nothing for too long, or the server ends.
pub(super) async fn serve(connection: Connection, place: ConnectionSlot, shared: &Arc<EncryptedContext>) {
    let place = Arc::new(place);
    // They end with the connection.
    let mut asked = JoinSet::new();
    let (mut stopping, mut leaving) = (shared.stopping.clone(), false);
    while !(leaving && asked.is_empty()) {
        tokio::select! {
            // What has come is answered, though the server ends.
            biased;
            stream = connection.accept_bi(), if !leaving => match stream {
                Ok((reply, question)) => {
                    asked.spawn(answer(connection.clone(), question, reply, place.clone(), shared.clone()));
                }
                // The client has gone, or broke a rule.
                Err(_) => return,
            },
            Some(_) = asked.join_next() => {}
            () = quic::idle(&place), if !leaving => leaving = true,
            () = end(&mut stopping), if !leaving => leaving = true,
        }
    }
    connection.close(NO_ERROR, b"");
}

async fn answer(
    connection: Connection,
    mut question: RecvStream,
    mut reply: SendStream,
    place: Arc<ConnectionSlot>,
    shared: Arc<EncryptedContext>,
) {
    let Ok(Some(octets)) = timeout(HANDSHAKE, read(&mut question)).await else {
        let _ = question.stop(UNSPECIFIED_ERROR);
        let _ = reply.reset(UNSPECIFIED_ERROR);
        return;
    };
    let message = match self::question(&octets) {
        Ok(message) => message,
        Err(error) => return connection.close(PROTOCOL_ERROR, error.as_bytes()),
    };
    let found = match shared.reply(&place, message).await {
        Ok(found) => found,
        Err(NoReply::NoQuery) => return connection.close(PROTOCOL_ERROR, b"this is no query"),
        Err(NoReply::Busy) => {
            let _ = reply.reset(INTERNAL_ERROR);
            return;
        }
    };
    let length = Bytes::copy_from_slice(&(found.len() as u16).to_be_bytes());
    let (idle, mut framed) = (place.limits().idle, [length, found]);
    match timeout(idle, reply.write_all_chunks(&mut framed)).await {
        Ok(Ok(())) if reply.finish().is_ok() => quic::taken(&reply, idle).await,
        // Else it would end as if this were all.
        _ => drop(reply.reset(UNSPECIFIED_ERROR)),
    }
}

/// All that comes on a stream, or as much of it as shows that it is longer than any question; `None` if it breaks off.
async fn read(stream: &mut RecvStream) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    while let Some(chunk) = stream.read_chunk(QUERY, true).await.ok()? {
        octets.reserve_exact(chunk.bytes.len());
        octets.extend_from_slice(&chunk.bytes);
        if octets.len() > QUERY + 2 {
            break;
        }
    }
    Some(octets)
}
