//! Implements h3's QUIC traits with quinn, and bounds the memory that a client can use.
//!
//! # Design
//! The crate `h3-quinn` is the same adapter without limits; the tests use it for their client. The limits cannot be
//! enforced at a lower level, because quinn counts the data in flight, not the data that h3 has read.
//!
//! h3 buffers a frame until it is complete, whatever length the frame announces. The limits are therefore enforced
//! here, where the stream is read. Chunks are as large as the data allows, because h3 walks all chunks of a frame
//! whenever one arrives.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use hyper::body::{Buf, Bytes};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::http::HEAD;
use crate::server::handler::MAX_QUERY;

/// Limit on the size of a request, in bytes: its head, its body and any frames of unknown type.
const MAX_REQUEST: usize = HEAD + 2 * MAX_QUERY;
/// Limit on the total size of all open requests of a connection, in bytes.
const MAX_OPEN_REQUESTS: usize = 256 * 1024;
/// Minimum charge for a chunk, in bytes, because even a tiny chunk has overhead.
const MIN_CHARGE: usize = 64;
/// Budget of all control streams together, in bytes, and the credit that each request adds to it. Clients send priority
/// updates on the control stream.
const CONTROL_BUDGET: usize = 16 * 1024;
const CONTROL_CREDIT_PER_REQUEST: usize = 256;
/// Size of the read buffer, in bytes.
const CHUNK: usize = 2048;

type Accepting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>;

/// One HTTP/3 connection.
pub(super) struct H3Connection {
    connection: quinn::Connection,
    requests: Accepting<(quinn::SendStream, quinn::RecvStream)>,
    controls: Accepting<quinn::RecvStream>,
    opener: StreamOpener,
    /// Remaining budget of the control streams, in bytes.
    remaining: Arc<AtomicUsize>,
    /// Remaining budget of the requests, in bytes.
    budget: Arc<AtomicUsize>,
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
            remaining: Arc::new(AtomicUsize::new(CONTROL_BUDGET)),
            budget: Arc::new(AtomicUsize::new(MAX_OPEN_REQUESTS)),
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
        let stream = ready!(self.controls.as_mut().poll(context)).map_err(connection_error)?;
        self.controls = accept_uni(self.connection.clone());
        Poll::Ready(Ok(BoundedRecvStream {
            stream,
            remaining: usize::MAX,
            budget: self.remaining.clone(),
            charged: None,
        }))
    }

    fn poll_accept_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BoundedBidiStream, ConnectionErrorIncoming>> {
        let (sending, stream) = ready!(self.requests.as_mut().poll(context)).map_err(connection_error)?;
        self.requests = accept_bi(self.connection.clone());
        // Each request adds some credit, up to the initial budget.
        let _ = self.remaining.fetch_update(Relaxed, Relaxed, |remaining| {
            Some((remaining + CONTROL_CREDIT_PER_REQUEST).min(CONTROL_BUDGET))
        });
        let receiving =
            BoundedRecvStream { stream, remaining: MAX_REQUEST, budget: self.budget.clone(), charged: Some(0) };
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

    /// Always fails: a server never opens request streams.
    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<BoundedBidiStream, StreamErrorIncoming>> {
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server cannot open request streams".into())))
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<BoundedSendStream, StreamErrorIncoming>> {
        let connection = &self.connection;
        let opening = self.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.opening = None;
        let stream = opened.map_err(stream_error)?;
        Poll::Ready(Ok(BoundedSendStream::new(stream)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

/// A stream from the client, with a limit on the bytes it may still carry.
pub(super) struct BoundedRecvStream {
    stream: quinn::RecvStream,
    remaining: usize,
    /// Remaining budget that all streams of this kind share.
    budget: Arc<AtomicUsize>,
    /// Bytes taken from the shared budget, if they are returned on drop.
    charged: Option<usize>,
}

impl Drop for BoundedRecvStream {
    fn drop(&mut self) {
        self.budget.fetch_add(self.charged.unwrap_or(0), Relaxed);
    }
}

impl quic::RecvStream for BoundedRecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let mut chunk = [0; CHUNK];
        let length = match ready!(self.stream.poll_read(context, &mut chunk)) {
            Ok(0) => return Poll::Ready(Ok(None)),
            Ok(length) => length,
            Err(ReadError::Reset(code)) => return Poll::Ready(Err(stream_terminated(code.into_inner()))),
            Err(ReadError::ConnectionLost(error)) => return Poll::Ready(Err(stream_error(error))),
            Err(error) => return Poll::Ready(Err(StreamErrorIncoming::Unknown(error.into()))),
        };
        let taken = length.max(MIN_CHARGE);
        let has_room = || self.budget.fetch_update(Relaxed, Relaxed, |budget| budget.checked_sub(taken)).is_ok();
        if self.remaining < taken || !has_room() {
            let _ = self.stream.stop(varint(Code::H3_EXCESSIVE_LOAD.value()));
            return Poll::Ready(Err(stream_terminated(Code::H3_EXCESSIVE_LOAD.value())));
        }
        self.remaining -= taken;
        self.charged = self.charged.map(|charged| charged + taken);
        Poll::Ready(Ok(Some(Bytes::copy_from_slice(&chunk[..length]))))
    }

    fn stop_sending(&mut self, code: u64) {
        let _ = self.stream.stop(varint(code));
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// A stream from the server.
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
        // Otherwise quinn would finish the stream, and a truncated response would look complete.
        if !self.finished {
            let _ = self.stream.reset(varint(Code::H3_INTERNAL_ERROR.value()));
        }
    }
}

impl quic::SendStream<Bytes> for BoundedSendStream {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.data.as_mut().filter(|data| data.has_remaining()) {
            let written = match ready!(Pin::new(&mut self.stream).poll_write(context, data.chunk())) {
                Ok(written) => written,
                Err(WriteError::Stopped(code)) => return Poll::Ready(Err(stream_terminated(code.into_inner()))),
                Err(WriteError::ConnectionLost(error)) => return Poll::Ready(Err(stream_error(error))),
                Err(error) => return Poll::Ready(Err(StreamErrorIncoming::Unknown(error.into()))),
            };
            data.advance(written);
        }
        self.data = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.data.is_some() {
            return Err(StreamErrorIncoming::Unknown("the previous data has not been sent yet".into()));
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
        let _ = self.stream.reset(varint(code));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// Both directions of a request stream.
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

fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "stream IDs have 62 bits in both crates")]
fn id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(VarInt::from(id).into_inner()).expect("stream ID fits into 62 bits")
}

fn stream_terminated(error_code: u64) -> StreamErrorIncoming {
    StreamErrorIncoming::StreamTerminated { error_code }
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn stream_error(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}
