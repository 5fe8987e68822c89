//! TCP (RFC 7766): length-framed messages, pipelined, on threads of their own.
//!
//! Connections are served in turns. In a turn, a connection gets its replies up to 16 KB, or one that is
//! longer; and of all connections from one address, only one at a time has a long turn. So a client that pulls large
//! answers over many connections delays others by one turn.
//!
//! The idle timeout is for whole messages, not for octets: a client that sends one octet a second is as idle as one that
//! sends none. At a limit on connections, the one that has been inactive longest is closed.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::clients::{Backlog, Clients, ConnectionSlot, Turn};
use super::handler::{Handled, Handler, MAX_QUERY, TransportCounters};
use super::{CLOSE_TIMEOUT, DRAIN_TIMEOUT, UPSTREAM_TIMEOUT, canonical};
use crate::forward::Outbox;
use crate::wire::{HEADER_LEN, PADDING, TCP_KEEPALIVE, append_option, has_option, pad};

/// Octets of replies after which a connection's turn ends.
const TURN: usize = 16 * 1024;
/// A turn that replies with more octets than this is long.
const LONG_TURN: usize = 4096;
/// Number of steps of tasks between polls for events. A step can be a long turn, and new queries should not wait.
const EVENT_INTERVAL: u32 = 16;
/// Send buffer that the system keeps for a connection, in octets: what a client that does not read can hold there.
const SEND_BUFFER: usize = 16 * 1024;
/// Octets of a buffer that stay allocated while a connection is idle.
const RETAINED: usize = 4096;
/// Maximum number of a connection's queries that wait for an upstream. At the limit, its further queries have to wait.
const MAX_WAITING: usize = 64;
/// Wait after an error of accept: at the limit of descriptors, it fails again at once.
const PAUSE: Duration = Duration::from_millis(50);
/// Minimum interval between log lines about such errors.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// State that all connections of a transport share.
pub(super) struct StreamContext {
    pub(super) handler: Arc<Handler>,
    pub(super) counters: TransportCounters,
    pub(super) clients: Arc<Clients>,
    /// Whether replies are padded for clients that pad their queries.
    pub(super) is_encrypted: bool,
}

/// The options that a query asks its reply to have, besides those of every transport.
#[derive(Clone, Copy)]
struct Extras {
    padding: bool,
    keepalive: bool,
}

impl Extras {
    fn of(message: &[u8], context: &StreamContext) -> Extras {
        Extras {
            padding: context.is_encrypted && has_option(message, PADDING),
            keepalive: has_option(message, TCP_KEEPALIVE),
        }
    }

    /// Returns the reply with these options. `idle` is the idle timeout (RFC 7828 section 3.3.2).
    fn added_to(self, reply: &[u8], idle: Duration) -> Option<Vec<u8>> {
        if !self.padding && !self.keepalive {
            return None;
        }
        let mut reply = reply.to_vec();
        if self.keepalive {
            let units = u16::try_from(idle.as_millis() / 100).unwrap_or(u16::MAX);
            append_option(&mut reply, TCP_KEEPALIVE, &units.to_be_bytes());
        }
        if self.padding {
            pad(&mut reply);
        }
        Some(reply)
    }
}

/// Starts a thread with this name that serves the listeners until `stopping` turns true and the connections have closed or
/// [`DRAIN_TIMEOUT`] has passed.
///
/// # Errors
/// The system's error if the runtime or the thread cannot be created.
pub(super) fn start(
    listeners: Vec<std::net::TcpListener>,
    context: Arc<StreamContext>,
    stopping: watch::Receiver<bool>,
    name: String,
) -> io::Result<JoinHandle<()>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(EVENT_INTERVAL).build()?;
    std::thread::Builder::new().name(name).spawn(move || {
        runtime.block_on(async {
            let mut serving = JoinSet::new();
            for listener in listeners {
                serving.spawn(serve(listener, context.clone(), stopping.clone()));
            }
            for ended in serving.join_all().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "TCP listener failed");
                }
            }
            let _ = timeout(DRAIN_TIMEOUT, context.clients.all_closed()).await;
        });
    })
}

/// Accepts connections until `stopping` turns true, and passes each to `admit`.
///
/// # Errors
/// The system's error if the listener cannot be registered with the runtime.
pub(super) async fn accept(
    listener: std::net::TcpListener,
    mut stopping: watch::Receiver<bool>,
    mut admit: impl FnMut(TcpStream, IpAddr),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut logged = None::<Instant>;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => {
                let _ = stream.set_nodelay(true);
                let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
                admit(stream, canonical(from));
            }
            Err(error) => {
                if logged.is_none_or(|last| last.elapsed() > LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    tracing::warn!(%error, "accept failed");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves a listener until `stopping` turns true. Open connections then finish their queries in flight.
///
/// # Errors
/// The system's error if the listener cannot be registered with the runtime.
async fn serve(
    listener: std::net::TcpListener,
    context: Arc<StreamContext>,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    accept(listener, stopping.clone(), |stream, from| {
        context.clients.admit(from, |slot| Connection::new(stream, slot, context.clone()).run(stopping.clone()));
    })
    .await
}

/// A reply from the forwarder's thread; `None` if the query gets no reply.
type DeferredReply = Option<Bytes>;

/// Replies from the forwarder's thread to one connection.
struct ReplyChannel {
    sender: mpsc::Sender<DeferredReply>,
    replies: mpsc::Receiver<DeferredReply>,
}

impl ReplyChannel {
    fn new() -> ReplyChannel {
        let (sender, replies) = mpsc::channel(MAX_WAITING);
        ReplyChannel { sender, replies }
    }
}

/// Sends one reply from the forwarder's thread to a connection. Replies may come out of order (RFC 7766 section 6.2.1.1).
struct StreamReplySender {
    replies: mpsc::Sender<DeferredReply>,
    backlog: Arc<Backlog>,
    extras: Extras,
    idle: Duration,
    sent: bool,
}

impl StreamReplySender {
    fn send(mut self, reply: &[u8]) -> Option<Arc<dyn Outbox>> {
        // The backlog limits the memory that a client can occupy by not reading its replies.
        let reply = self
            .extras
            .added_to(reply, self.idle)
            .map_or_else(|| self.backlog.charge(reply), |reply| self.backlog.charge(reply))?;
        self.sent = true;
        // The channel is never full: its capacity is the number of replies that a connection may wait for.
        let _ = self.replies.try_send(Some(reply));
        None
    }
}

impl Drop for StreamReplySender {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.replies.try_send(None);
        }
    }
}

/// One connection, over TCP or TLS.
pub(super) struct Connection<S> {
    stream: S,
    slot: ConnectionSlot,
    context: Arc<StreamContext>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Created for the first deferred reply.
    deferred: Option<ReplyChannel>,
    /// Number of deferred replies that have not arrived yet.
    waiting: usize,
    /// Number of octets of an overlong message that are still to be skipped.
    skip: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S, slot: ConnectionSlot, context: Arc<StreamContext>) -> Connection<S> {
        let (input, output) = (Vec::new(), Vec::new());
        Connection { stream, slot, context, input, output, deferred: None, waiting: 0, skip: 0 }
    }

    /// Answers queries until the client closes its side, is idle for too long, or the server stops.
    pub(super) async fn run(mut self, stopping: watch::Receiver<bool>) {
        self.answer(stopping).await;
        // Over TLS, this sends close_notify (RFC 8446 section 6.1), without which the client would have to suspect a
        // truncation attack.
        let _ = timeout(CLOSE_TIMEOUT, self.stream.shutdown()).await;
    }

    async fn answer(&mut self, mut stopping: watch::Receiver<bool>) {
        let idle_time = self.slot.limits().idle;
        let mut deadline = Instant::now() + idle_time;
        // Whether the client has closed its sending side. It may still read.
        let mut half_closed = false;
        loop {
            let turn = self.slot.turn().await;
            if self.answer_whole_messages() {
                deadline = Instant::now() + idle_time;
                self.slot.record_activity();
            }
            if !self.output.is_empty() {
                let Ok(Ok(())) = timeout_at(deadline, self.send(turn)).await else { return };
                self.output.clear();
                self.output.shrink_to(RETAINED);
                // More messages may have arrived than fit into one round of replies.
                continue;
            }
            drop(turn);
            let idle = self.input.is_empty() && self.skip == 0 && self.waiting == 0;
            let full = self.waiting >= MAX_WAITING;
            if half_closed && self.waiting == 0 {
                return;
            }
            let until = if self.waiting > 0 { deadline.max(Instant::now() + UPSTREAM_TIMEOUT) } else { deadline };
            let read = tokio::select! {
                read = timeout_at(until, self.stream.read_buf(&mut self.input)), if !full && !half_closed => read,
                reply = next(&mut self.deferred), if self.waiting > 0 => {
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
                Ok(Ok(_)) => half_closed = true,
                _ => return,
            }
        }
    }

    /// Sends the output. While that has to wait for the client, others have their turn; and a long turn ends only after
    /// the other tasks had theirs.
    async fn send(&mut self, mut turn: Turn) -> io::Result<()> {
        let (mut sent, mut is_held) = (0, false);
        loop {
            let before = sent;
            let done = self.send_some(&mut sent).await?;
            if sent - before > LONG_TURN {
                tokio::task::yield_now().await;
            } else if !done {
                drop(turn);
                self.slot.hold(self.output.len());
                is_held = true;
                // Nothing else may run between the attempt and this, or the wake-up would be lost.
                woken().await;
                turn = self.slot.turn().await;
            }
            if done {
                break;
            }
        }
        if is_held {
            self.slot.hold(0);
        }
        Ok(())
    }

    /// Sends as much of the output after the first `sent` octets as possible without waiting. Returns whether all of it
    /// is sent; if not, the task will be woken.
    async fn send_some(&mut self, sent: &mut usize) -> io::Result<bool> {
        poll_fn(|context| {
            let mut stream = Pin::new(&mut self.stream);
            Poll::Ready(loop {
                let step = match self.output.get(*sent..).filter(|rest| !rest.is_empty()) {
                    Some(rest) => stream.as_mut().poll_write(context, rest),
                    None => stream.as_mut().poll_flush(context).map_ok(|()| 0),
                };
                match step {
                    Poll::Ready(Ok(0)) if *sent < self.output.len() => break Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(0)) => break Ok(true),
                    Poll::Ready(Ok(octets)) => *sent += octets,
                    Poll::Ready(Err(error)) => break Err(error),
                    Poll::Pending => break Ok(false),
                }
            })
        })
        .await
    }

    /// Answers the messages that have arrived completely, in order, until the turn is over. Returns whether there were any.
    fn answer_whole_messages(&mut self) -> bool {
        let mut at = 0;
        let mut any = false;
        while self.output.len() < TURN && self.waiting < MAX_WAITING {
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
                    // An empty message gets no reply: RFC 7766 section 8 leaves it undefined.
                    let handled = respond(&self.context, &self.slot, message, &mut self.output, &mut self.deferred);
                    self.waiting += usize::from(handled == Handled::Deferred);
                }
                Frame::Overlong { head, length } => {
                    respond(&self.context, &self.slot, head, &mut self.output, &mut self.deferred);
                    at += 2;
                    self.skip = length;
                }
            }
        }
        self.input.drain(..at);
        if self.input.is_empty() {
            self.input.shrink_to(RETAINED);
        }
        any
    }
}

/// The next message of a stream, which its length precedes (RFC 1035 section 4.2.2).
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'s> {
    /// A complete message.
    Whole(&'s [u8]),
    /// The start of a message that is longer than any query.
    Overlong {
        /// The DNS header, which is answered instead of the message. Without its question, it gets FORMERR.
        head: &'s [u8],
        /// Length of the message in octets.
        length: usize,
    },
}

impl<'s> Frame<'s> {
    /// Parses the first message of `octets`; `None` if more octets are needed.
    pub fn parse(octets: &'s [u8]) -> Option<Frame<'s>> {
        let (length, rest) = octets.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_QUERY {
            return rest.get(..HEADER_LEN).map(|head| Frame::Overlong { head, length });
        }
        rest.get(..length).map(Frame::Whole)
    }
}

/// Waits until something wakes the task.
async fn woken() {
    let mut polled = false;
    poll_fn(|_| if mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Receives the next deferred reply. Waits forever if no reply was ever deferred.
async fn next(deferred: &mut Option<ReplyChannel>) -> DeferredReply {
    match deferred {
        Some(channel) => channel.replies.recv().await.flatten(),
        None => std::future::pending().await,
    }
}

fn push_framed(reply: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(&(reply.len() as u16).to_be_bytes());
    output.extend_from_slice(reply);
}

/// Appends the framed reply to `output`, or has the forwarder's thread send it to the channel.
fn respond(
    context: &StreamContext,
    slot: &ConnectionSlot,
    message: &[u8],
    output: &mut Vec<u8>,
    deferred: &mut Option<ReplyChannel>,
) -> Handled {
    let (extras, idle) = (Extras::of(message, context), slot.limits().idle);
    let deferred = || {
        let replies = deferred.get_or_insert_with(ReplyChannel::new).sender.clone();
        let sender = StreamReplySender { replies, backlog: slot.backlog.clone(), extras, idle, sent: false };
        move |reply: &[u8]| sender.send(reply)
    };
    let push = |reply: &[u8]| match extras.added_to(reply, idle) {
        None => push_framed(reply, output),
        Some(reply) => push_framed(&reply, output),
    };
    context.handler.respond(&context.counters, slot.from, message, push, deferred)
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
