//! What HTTP/3 asks of QUIC, answered by quinn, within bounds.
//!
//! h3 keeps a frame until it is whole, however long it says it is: what a client may say on one stream is counted here, where
//! it is read. What is read comes in pieces as large as there is, since h3 walks all pieces of a frame at each one that comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use hyper::body::{Buf, Bytes};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::http::HEAD;
use crate::server::BACKLOG;
use crate::server::handler::QUERY;

/// Octets that a request may have, its head, its body and frames that nobody knows.
const REQUEST: usize = HEAD + 2 * QUERY;
/// And all requests of a connection together.
const REQUESTS: usize = BACKLOG;
/// What a piece takes in any case, however few octets are in it.
const AT_LEAST: usize = 64;
/// Octets of all control streams together, and what each request adds: priorities are told there.
const CONTROL: usize = 16 * 1024;
const CONTROL_A_REQUEST: usize = 256;
/// Octets that are read at a time.
const PIECE: usize = 2048;

type Accepting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>;

/// One connection.
pub(super) struct H3Connection {
    connection: quinn::Connection,
    requests: Accepting<(quinn::SendStream, quinn::RecvStream)>,
    controls: Accepting<quinn::RecvStream>,
    opener: StreamOpener,
    /// What control streams may still say.
    left: Arc<AtomicUsize>,
    /// What requests may hold.
    room: Arc<AtomicUsize>,
}

impl H3Connection {
    pub(super) fn new(connection: quinn::Connection) -> H3Connection {
        let opener = StreamOpener { connection: connection.clone(), opening: None };
        let (requests, controls) = (accept_bi(connection.clone()), accept_uni(connection.clone()));
        H3Connection {
            connection,
            requests,
            controls,
            opener,
            left: Arc::new(AtomicUsize::new(CONTROL)),
            room: Arc::new(AtomicUsize::new(REQUESTS)),
        }
    }
}

fn accept_bi(connection: quinn::Connection) -> Accepting<(quinn::SendStream, quinn::RecvStream)> {
    Box::pin(async move { connection.accept_bi().await })
}

fn accept_uni(connection: quinn::Connection) -> Accepting<quinn::RecvStream> {
    Box::pin(async move { connection.accept_uni().await })
}

impl quic::Connection<Bytes> for H3Connection {
    type RecvStream = BoundedRecvStream;
    type OpenStreams = StreamOpener;

    fn poll_accept_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BoundedRecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(self.controls.as_mut().poll(context)).map_err(lost)?;
        self.controls = accept_uni(self.connection.clone());
        Poll::Ready(Ok(BoundedRecvStream { stream, left: usize::MAX, room: self.left.clone(), held: None }))
    }

    fn poll_accept_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BoundedBidiStream, ConnectionErrorIncoming>> {
        let (sending, stream) = ready!(self.requests.as_mut().poll(context)).map_err(lost)?;
        self.requests = accept_bi(self.connection.clone());
        // What has been said is forgiven bit by bit, not saved up.
        let _ = self.left.fetch_update(Relaxed, Relaxed, |left| Some((left + CONTROL_A_REQUEST).min(CONTROL)));
        let receiving = BoundedRecvStream { stream, left: REQUEST, room: self.room.clone(), held: Some(0) };
        Poll::Ready(Ok(BoundedBidiStream { sending: BoundedSendStream::new(sending), receiving }))
    }

    fn opener(&self) -> StreamOpener {
        StreamOpener { connection: self.connection.clone(), opening: None }
    }
}

impl quic::OpenStreams<Bytes> for H3Connection {
    type BidiStream = BoundedBidiStream;
    type SendStream = BoundedSendStream;

    fn poll_open_bidi(&mut self, context: &mut Context<'_>) -> Poll<Result<BoundedBidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(context)
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<BoundedSendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(context)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens the server's own streams.
pub(super) struct StreamOpener {
    connection: quinn::Connection,
    opening: Option<Accepting<quinn::SendStream>>,
}

impl quic::OpenStreams<Bytes> for StreamOpener {
    type BidiStream = BoundedBidiStream;
    type SendStream = BoundedSendStream;

    /// A server opens no requests.
    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<BoundedBidiStream, StreamErrorIncoming>> {
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server opens no requests".into())))
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<BoundedSendStream, StreamErrorIncoming>> {
        let connection = &self.connection;
        let opening = self.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.opening = None;
        let stream = opened.map_err(lost_stream)?;
        Poll::Ready(Ok(BoundedSendStream::new(stream)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(number(code.value()), reason);
    }
}

/// A stream that the client speaks on, and how much it may still say.
pub(super) struct BoundedRecvStream {
    stream: quinn::RecvStream,
    left: usize,
    /// And all of its kind together.
    room: Arc<AtomicUsize>,
    /// What it has taken of that, if it gives it back at its end.
    held: Option<usize>,
}

impl Drop for BoundedRecvStream {
    fn drop(&mut self) {
        self.room.fetch_add(self.held.unwrap_or(0), Relaxed);
    }
}

impl quic::RecvStream for BoundedRecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let mut piece = [0; PIECE];
        let length = match ready!(self.stream.poll_read(context, &mut piece)) {
            Ok(0) => return Poll::Ready(Ok(None)),
            Ok(length) => length,
            Err(ReadError::Reset(code)) => return Poll::Ready(Err(terminated(code.into_inner()))),
            Err(ReadError::ConnectionLost(error)) => return Poll::Ready(Err(lost_stream(error))),
            Err(error) => return Poll::Ready(Err(StreamErrorIncoming::Unknown(error.into()))),
        };
        let taken = length.max(AT_LEAST);
        let has_room = || self.room.fetch_update(Relaxed, Relaxed, |room| room.checked_sub(taken)).is_ok();
        if self.left < taken || !has_room() {
            let _ = self.stream.stop(number(Code::H3_EXCESSIVE_LOAD.value()));
            return Poll::Ready(Err(terminated(Code::H3_EXCESSIVE_LOAD.value())));
        }
        self.left -= taken;
        self.held = self.held.map(|held| held + taken);
        Poll::Ready(Ok(Some(Bytes::copy_from_slice(&piece[..length]))))
    }

    fn stop_sending(&mut self, code: u64) {
        let _ = self.stream.stop(number(code));
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// A stream that the server speaks on.
pub(super) struct BoundedSendStream {
    stream: quinn::SendStream,
    data: Option<WriteBuf<Bytes>>,
    finished: bool,
}

impl BoundedSendStream {
    fn new(stream: quinn::SendStream) -> BoundedSendStream {
        BoundedSendStream { stream, data: None, finished: false }
    }
}

impl Drop for BoundedSendStream {
    fn drop(&mut self) {
        // Else quinn would end it as if what was sent were all.
        if !self.finished {
            let _ = self.stream.reset(number(Code::H3_INTERNAL_ERROR.value()));
        }
    }
}

impl quic::SendStream<Bytes> for BoundedSendStream {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.data.as_mut().filter(|data| data.has_remaining()) {
            let written = match ready!(Pin::new(&mut self.stream).poll_write(context, data.chunk())) {
                Ok(written) => written,
                Err(WriteError::Stopped(code)) => return Poll::Ready(Err(terminated(code.into_inner()))),
                Err(WriteError::ConnectionLost(error)) => return Poll::Ready(Err(lost_stream(error))),
                Err(error) => return Poll::Ready(Err(StreamErrorIncoming::Unknown(error.into()))),
            };
            data.advance(written);
        }
        self.data = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.data.is_some() {
            return Err(StreamErrorIncoming::Unknown("what was to be sent before has not been".into()));
        }
        self.data = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(context))?;
        self.finished = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(error.into())))
    }

    fn reset(&mut self, code: u64) {
        self.finished = true;
        let _ = self.stream.reset(number(code));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// Both directions of a request.
pub(super) struct BoundedBidiStream {
    sending: BoundedSendStream,
    receiving: BoundedRecvStream,
}

impl quic::BidiStream<Bytes> for BoundedBidiStream {
    type SendStream = BoundedSendStream;
    type RecvStream = BoundedRecvStream;

    fn split(self) -> (BoundedSendStream, BoundedRecvStream) {
        (self.sending, self.receiving)
    }
}

impl quic::RecvStream for BoundedBidiStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receiving.poll_data(context)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receiving.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receiving.recv_id()
    }
}

impl quic::SendStream<Bytes> for BoundedBidiStream {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.sending.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_finish(context)
    }

    fn reset(&mut self, code: u64) {
        self.sending.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.sending.send_id()
    }
}

fn number(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "ids of both crates have the same 62 bits")]
fn id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(VarInt::from(id).into_inner()).expect("62 bits")
}

fn terminated(error_code: u64) -> StreamErrorIncoming {
    StreamErrorIncoming::StreamTerminated { error_code }
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn lost_stream(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}
