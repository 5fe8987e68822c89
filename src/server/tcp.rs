//! TCP (RFC 7766): length-framed messages, pipelined, on one thread of their own.
//!
//! A client is given time for whole messages, not for octets: whoever sends one octet a second is as idle as whoever
//! sends none. Where a limit on connections is reached, the one that has been of no use for longest makes room.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::clients::{Backlog, Clients, ConnectionSlot};
use super::handler::{Handled, Handler, MAX_QUERY, TransportCounters};
use super::{BindError, CLOSE_TIMEOUT, MAX_BACKLOG, UPSTREAM_TIMEOUT, canonical};
use crate::wire::HEADER_LEN;

/// A connection keeps no more than this while it is idle.
const KEPT: usize = 4096;
/// Questions of one connection that wait for an upstream: then no more of its queries are answered.
const WAITING: usize = 64;
/// Wait after an error of accept: at the limit of descriptors it fails at once, again and again.
const PAUSE: Duration = Duration::from_millis(50);

/// Everything that a connection shares with the others.
pub struct StreamContext {
    /// What answers its messages.
    pub handler: Arc<Handler>,
    /// What is counted of all of them.
    pub tally: TransportCounters,
    /// Those that are open.
    pub clients: Arc<Clients>,
}

/// Binds a listener.
///
/// # Errors
/// Names the address.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    let failed = |source| BindError { address, transport: "tcp", source };
    let listen = || -> io::Result<std::net::TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(failed)
}

/// Accepts connections until `stopping` turns true, and lets `admit` see to them.
///
/// # Errors
/// When the system does not let the runtime wait for the listener.
pub(super) async fn accept(
    listener: std::net::TcpListener,
    mut stopping: watch::Receiver<bool>,
    mut admit: impl FnMut(TcpStream, IpAddr),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut complained = None::<Instant>;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => {
                let _ = stream.set_nodelay(true);
                admit(stream, canonical(from));
            }
            Err(error) => {
                if complained.is_none_or(|last| last.elapsed() > Duration::from_secs(60)) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "a connection could not be accepted");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves a listener until `stopping` turns true; connections that are open then finish what they have begun.
///
/// # Errors
/// When the system does not let the runtime wait for the listener.
pub async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<StreamContext>,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    accept(listener, stopping.clone(), |stream, from| {
        shared.clients.admit(from, |place| Connection::new(stream, place, shared.clone()).run(stopping.clone()));
    })
    .await
}

/// A reply that was waited for, or that there will be none.
type DeferredReply = Option<Bytes>;
struct ReplyChannel {
    sender: mpsc::Sender<DeferredReply>,
    replies: mpsc::Receiver<DeferredReply>,
}

impl ReplyChannel {
    fn new() -> ReplyChannel {
        let (sender, replies) = mpsc::channel(WAITING);
        ReplyChannel { sender, replies }
    }
}

/// Sends one reply to a connection, later: in whatever order they come (RFC 7766 section 6.2.1.1).
struct StreamReplySender {
    replies: mpsc::Sender<DeferredReply>,
    backlog: Arc<Backlog>,
    sent: bool,
}

impl StreamReplySender {
    fn send(mut self, reply: &[u8]) {
        // A client that does not read gets no more kept for it than it would get of replies at once.
        let Some(reply) = self.backlog.charge(reply) else { return };
        self.sent = true;
        // There is room for as many as a connection may wait for.
        let _ = self.replies.try_send(Some(reply));
    }
}

impl Drop for StreamReplySender {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.replies.try_send(None);
        }
    }
}

/// One connection, whatever carries its octets.
pub(super) struct Connection<S> {
    stream: S,
    place: ConnectionSlot,
    shared: Arc<StreamContext>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Where replies come from that were waited for; made when the first is.
    late: Option<ReplyChannel>,
    /// How many there are to come.
    waiting: usize,
    /// Octets of an overlong message that are still to come.
    skip: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S, place: ConnectionSlot, shared: Arc<StreamContext>) -> Connection<S> {
        let (input, output) = (Vec::new(), Vec::new());
        Connection { stream, place, shared, input, output, late: None, waiting: 0, skip: 0 }
    }

    /// Answers until the client has no more to say, says nothing for too long, or the server ends.
    pub(super) async fn run(mut self, stopping: watch::Receiver<bool>) {
        self.answer(stopping).await;
        // TLS says that this is the end (RFC 8446 section 6.1), so that nobody else can say it.
        let _ = timeout(CLOSE_TIMEOUT, self.stream.shutdown()).await;
    }

    async fn answer(&mut self, mut stopping: watch::Receiver<bool>) {
        let idle_time = self.place.limits().idle;
        let mut deadline = Instant::now() + idle_time;
        // The client has said all that it will, and may still read.
        let mut ended = false;
        loop {
            if self.answer_whole_messages() {
                deadline = Instant::now() + idle_time;
                self.place.record_activity();
            }
            if !self.output.is_empty() {
                let sent = async {
                    self.stream.write_all(&self.output).await?;
                    self.stream.flush().await
                };
                let Ok(Ok(())) = timeout_at(deadline, sent).await else { return };
                self.output.clear();
                self.output.shrink_to(KEPT);
                // More may wait than one round of replies may take.
                continue;
            }
            let idle = self.input.is_empty() && self.skip == 0 && self.waiting == 0;
            let full = self.waiting >= WAITING;
            if ended && self.waiting == 0 {
                return;
            }
            let until = if self.waiting > 0 { deadline.max(Instant::now() + UPSTREAM_TIMEOUT) } else { deadline };
            let read = tokio::select! {
                read = timeout_at(until, self.stream.read_buf(&mut self.input)), if !full && !ended => read,
                reply = next(&mut self.late), if self.waiting > 0 => {
                    self.waiting -= 1;
                    if let Some(reply) = reply {
                        push_framed(&reply, &mut self.output);
                    }
                    deadline = Instant::now() + idle_time;
                    continue;
                }
                _ = stopping.wait_for(|stopping| *stopping), if idle => return,
            };
            match read {
                Ok(Ok(octets)) if octets > 0 => {}
                Ok(Ok(_)) => ended = true,
                _ => return,
            }
        }
    }

    /// Answers the messages that have arrived whole, in their order; says whether there were any.
    fn answer_whole_messages(&mut self) -> bool {
        let mut at = 0;
        let mut any = false;
        while self.output.len() < MAX_BACKLOG && self.waiting < WAITING {
            if self.skip > 0 {
                let here = self.skip.min(self.input.len() - at);
                at += here;
                self.skip -= here;
                if self.skip > 0 {
                    break;
                }
                any = true;
            }
            let Some(frame) = Frame::parse(&self.input[at..]) else { break };
            match frame {
                Frame::Whole(message) => {
                    at += 2 + message.len();
                    any = true;
                    // An empty message is no message (RFC 7766 section 8 leaves it without meaning).
                    let handled = respond(&self.shared, &self.place, message, &mut self.output, &mut self.late);
                    self.waiting += usize::from(handled == Handled::Waits);
                }
                Frame::Overlong { head, length } => {
                    respond(&self.shared, &self.place, head, &mut self.output, &mut self.late);
                    at += 2;
                    self.skip = length;
                }
            }
        }
        self.input.drain(..at);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        any
    }
}

/// The next message of a stream (RFC 1035 section 4.2.2).
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'s> {
    /// All of it.
    Whole(&'s [u8]),
    /// Longer than any query: its header, and the octets that follow the length.
    Overlong {
        /// Answered in place of the message: a header that has no question.
        head: &'s [u8],
        /// Length of the message.
        length: usize,
    },
}

impl<'s> Frame<'s> {
    /// The first message of `octets`, once there is enough of it.
    pub fn parse(octets: &'s [u8]) -> Option<Frame<'s>> {
        let (length, rest) = octets.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_QUERY {
            return rest.get(..HEADER_LEN).map(|head| Frame::Overlong { head, length });
        }
        rest.get(..length).map(Frame::Whole)
    }
}

/// The next reply that was waited for.
async fn next(late: &mut Option<ReplyChannel>) -> DeferredReply {
    match late {
        Some(late) => late.replies.recv().await.flatten(),
        None => std::future::pending().await,
    }
}

fn push_framed(reply: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(&(reply.len() as u16).to_be_bytes());
    output.extend_from_slice(reply);
}

/// Appends the framed reply to one message, or has it sent later.
fn respond(
    shared: &StreamContext,
    place: &ConnectionSlot,
    message: &[u8],
    output: &mut Vec<u8>,
    late: &mut Option<ReplyChannel>,
) -> Handled {
    let later = || {
        let late = late.get_or_insert_with(ReplyChannel::new);
        let sender = StreamReplySender { replies: late.sender.clone(), backlog: place.backlog.clone(), sent: false };
        move |reply: &[u8]| sender.send(reply)
    };
    shared.handler.handle(&shared.tally, place.from, message, |reply| push_framed(reply, output), later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let overlong = [&[0xff, 0xff][..], &[7; 20]].concat();
        let cases: &[(&str, &[u8], Option<Frame<'_>>)] = &[
            ("nothing", &[], None),
            ("half a length", &[0], None),
            ("a length and no message", &[0, 1], None),
            ("an empty message", &[0, 0], Some(Frame::Whole(&[]))),
            ("a message and the start of another", &[0, 1, 9, 0], Some(Frame::Whole(&[9]))),
            ("the longest frame", &overlong, Some(Frame::Overlong { head: &[7; 12], length: 65_535 })),
            ("the longest frame without its header", &overlong[..13], None),
        ];
        for (case, octets, expected) in cases {
            assert_eq!(Frame::parse(octets), *expected, "{case}");
        }
    }
}
