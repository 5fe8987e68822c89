//! TCP (RFC 7766): length-framed messages, pipelined, on one thread of their own.
//!
//! A client is given time for whole messages, not for octets: whoever sends one octet a second is as idle as whoever
//! sends none. Where a limit on connections is reached, the one that has been of no use for longest makes room.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::{BindError, Counters, Published, canonical};
use crate::answer::{Limit, Scratch, Verdict, answer};
use crate::forward::{Age, Client, Forwarder, Outbox, Question};
use crate::wire::HEADER_LEN;
use crate::zone::Caller;

/// Longest query read into memory, in octets. What is longer is read and forgotten, and answered FORMERR.
const QUERY: usize = 4096;
/// Largest reply.
const REPLY: usize = 65_535;
/// A connection keeps no more than this while it is idle.
const KEPT: usize = 4096;
/// Replies of one connection that wait to be sent: then no more of its queries are answered.
const BACKLOG: usize = 256 * 1024;
/// Questions of one connection that wait for an upstream: then no more of its queries are answered.
const WAITING: usize = 64;
/// Time that a connection is kept for replies that it waits for, longer than any upstream is waited for.
const UPSTREAM: Duration = Duration::from_secs(5);
/// Wait after an error of accept: at the limit of descriptors it fails at once, again and again.
const PAUSE: Duration = Duration::from_millis(50);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--tcp-connections`: in all.
    pub connections: usize,
    /// `--tcp-connections-per-address`: of one client address.
    pub per_address: usize,
    /// `--tcp-idle`: time for the next whole message, and for taking a reply.
    pub idle: Duration,
}

/// Everything that a connection shares with the others.
pub struct Shared {
    table: Published,
    /// Counters of all TCP listeners: one thread serves them.
    pub counters: Arc<Counters>,
    /// Counters of the replies that were waited for: the forwarder's thread sends them.
    pub late: Arc<Counters>,
    forwarder: Option<Arc<Forwarder>>,
    limits: Limits,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Open>,
}

struct Open {
    from: IpAddr,
    /// When it last sent a whole message, or was accepted.
    useful: Instant,
    task: AbortHandle,
}

impl Shared {
    /// For all listeners of a server.
    pub fn new(table: Published, forwarder: Option<Arc<Forwarder>>, limits: Limits) -> Arc<Shared> {
        let connections = Mutex::default();
        Arc::new(Shared { table, counters: Arc::default(), late: Arc::default(), forwarder, limits, connections })
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more connection of `from`.
    fn make_room(&self, from: IpAddr) {
        let mut connections = self.lock();
        let own = connections.open.values().filter(|open| open.from == from).count();
        let full = connections.open.len() >= self.limits.connections;
        if !full && own < self.limits.per_address {
            return;
        }
        // At its own limit a client loses one of its own, else whoever is least useful.
        let mine = own >= self.limits.per_address;
        let candidates = connections.open.iter().filter(|(_, open)| !mine || open.from == from);
        let stalest = candidates.min_by_key(|(_, open)| open.useful).map(|(id, _)| *id);
        if let Some(open) = stalest.and_then(|id| connections.open.remove(&id)) {
            open.task.abort();
        }
    }

    fn was_useful(&self, id: u64) {
        if let Some(open) = self.lock().open.get_mut(&id) {
            open.useful = Instant::now();
        }
    }
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

/// Accepts connections until `stopping` turns true; those that are open then finish what they have begun.
pub async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut complained = None::<Instant>;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => admit(stream, canonical(from), &shared, &stopping),
            Err(why) => {
                if complained.is_none_or(|last| last.elapsed() > Duration::from_secs(60)) {
                    complained = Some(Instant::now());
                    tracing::warn!(%why, "a TCP connection could not be accepted");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, from: IpAddr, shared: &Arc<Shared>, stopping: &watch::Receiver<bool>) {
    shared.make_room(from);
    let mut connections = shared.lock();
    let id = connections.next;
    connections.next += 1;
    let (input, output, late) = (Vec::new(), Vec::new(), None);
    let connection = Connection { id, from, stream, shared: shared.clone(), input, output, late, waiting: 0, skip: 0 };
    let task = tokio::spawn(connection.run(stopping.clone())).abort_handle();
    connections.open.insert(id, Open { from, useful: Instant::now(), task });
}

/// A reply that was waited for, or that there will be none.
type Reply = Option<Vec<u8>>;
struct Late {
    sender: mpsc::Sender<Reply>,
    replies: mpsc::Receiver<Reply>,
    queued: Arc<AtomicUsize>,
}

impl Late {
    fn new() -> Late {
        let (sender, replies) = mpsc::channel(WAITING);
        Late { sender, replies, queued: Arc::default() }
    }
}

/// Sends one reply to a connection, later: in whatever order they come (RFC 7766 section 6.2.1.1).
struct Sender {
    replies: mpsc::Sender<Reply>,
    /// Octets of replies that the connection has not taken yet.
    queued: Arc<AtomicUsize>,
    counters: Arc<Counters>,
    from: IpAddr,
    octets: usize,
    sent: bool,
}

impl Client for Sender {
    fn send(mut self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>> {
        self.counters.count(self.from, self.octets, verdict);
        self.counters.took(1, took);
        // A client that does not read gets no more kept for it than it would get of replies at once.
        if self.queued.load(Relaxed) > BACKLOG {
            return None;
        }
        self.queued.fetch_add(reply.len(), Relaxed);
        self.sent = true;
        // There is room for as many as a connection may wait for.
        let _ = self.replies.try_send(Some(reply.to_vec()));
        None
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.replies.try_send(None);
        }
    }
}

struct Connection {
    id: u64,
    from: IpAddr,
    stream: TcpStream,
    shared: Arc<Shared>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Where replies come from that were waited for; made when the first is.
    late: Option<Late>,
    /// How many there are to come.
    waiting: usize,
    /// Octets of an overlong message that are still to come.
    skip: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lock().open.remove(&self.id);
    }
}

thread_local! {
    /// Replies are made here and kept only as long as they are: one buffer for a thousand connections.
    static SCRATCH: RefCell<(Scratch, Box<[u8]>)> = RefCell::new((Scratch::new(0), vec![0; REPLY].into()));
}

impl Connection {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let _ = self.stream.set_nodelay(true);
        let mut deadline = Instant::now() + self.shared.limits.idle;
        // The client has said all that it will, and may still read.
        let mut ended = false;
        loop {
            if self.answer_whole_messages() {
                deadline = Instant::now() + self.shared.limits.idle;
                self.shared.was_useful(self.id);
            }
            if !self.output.is_empty() {
                let Ok(Ok(())) = timeout_at(deadline, self.stream.write_all(&self.output)).await else { return };
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
            let until = if self.waiting > 0 { deadline.max(Instant::now() + UPSTREAM) } else { deadline };
            let read = tokio::select! {
                read = timeout_at(until, self.stream.read_buf(&mut self.input)), if !full && !ended => read,
                reply = next(&mut self.late), if self.waiting > 0 => {
                    self.waiting -= 1;
                    if let Some(reply) = reply {
                        push_framed(&reply, &mut self.output);
                    }
                    deadline = Instant::now() + self.shared.limits.idle;
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
        while self.output.len() < BACKLOG && self.waiting < WAITING {
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
                    let waits = respond(&self.shared, self.from, message, &mut self.output, &mut self.late);
                    self.waiting += usize::from(waits);
                }
                Frame::Overlong { head, length } => {
                    respond(&self.shared, self.from, head, &mut self.output, &mut self.late);
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
        if length > QUERY {
            return rest.get(..HEADER_LEN).map(|head| Frame::Overlong { head, length });
        }
        rest.get(..length).map(Frame::Whole)
    }
}

/// The next reply that was waited for.
async fn next(late: &mut Option<Late>) -> Reply {
    match late {
        Some(Late { replies, queued, .. }) => {
            let reply = replies.recv().await.flatten();
            queued.fetch_sub(reply.as_ref().map_or(0, Vec::len), Relaxed);
            reply
        }
        None => std::future::pending().await,
    }
}

fn push_framed(reply: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(&(reply.len() as u16).to_be_bytes());
    output.extend_from_slice(reply);
}

/// Appends the framed reply to one message; says whether it has to be waited for instead.
fn respond(shared: &Shared, from: IpAddr, message: &[u8], output: &mut Vec<u8>, late: &mut Option<Late>) -> bool {
    SCRATCH.with_borrow_mut(|(scratch, reply)| {
        let start = std::time::Instant::now();
        let mut verdict = answer(&shared.table.load(), Caller::Address(from), message, Limit::Stream, scratch, reply);
        if let (Verdict::Forward(ask), Some(forwarder)) = (verdict, &shared.forwarder) {
            match forwarder.answer(scratch.name(), message, &ask, start, reply) {
                Some((kept, age)) => {
                    shared.counters.kept(age == Age::Stale);
                    verdict = kept;
                }
                None => {
                    let late = late.get_or_insert_with(Late::new);
                    let client = Sender {
                        replies: late.sender.clone(),
                        queued: late.queued.clone(),
                        counters: shared.late.clone(),
                        from,
                        octets: message.len(),
                        sent: false,
                    };
                    let (query, client) = (message.into(), Box::new(client));
                    forwarder.hand_over(Question { query, ask, from, received: start, client });
                    return true;
                }
            }
        }
        shared.counters.count(from, message.len(), &verdict);
        if let Verdict::Reply { len, .. } = verdict {
            push_framed(&reply[..len], output);
            shared.counters.took(1, start.elapsed());
        }
        false
    })
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
