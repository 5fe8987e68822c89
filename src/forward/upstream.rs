//! One server to ask: how a question gets there and its reply back.
//!
//! Over UDP a question leaves from a socket that carries no other at that time, from a port that the system chose at
//! random, with a random id (RFC 5452 section 9). Sockets serve a few questions one after the other, because opening one costs as
//! much as a question does. TCP and TLS are hickory's, with many questions on one connection (RFC 7766 section 6.2.1.1).

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, Message};
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::xfer::{DnsExchange, FirstAnswer};
use hickory_net::{DnsHandle, tls};
use rustls::pki_types::ServerName;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::cache::mark;
use super::reply::{Entry, InvalidReply, Ttls};
use super::settings::Address;
use super::stats::{RCODES, TIME_BOUNDS, UpstreamStats, count};
use crate::wire::{Name, flags, rcode, rtype};

/// What we say that we can take over UDP, in octets: what passes every network in one piece.
const PAYLOAD: u16 = 1232;
/// Questions that a socket serves before another port takes its place.
const USES: u32 = 64;
/// Sockets that wait for the next question.
const IDLE_SOCKETS: usize = 64;
/// Time until a question is sent again over UDP; doubled each time.
const RESEND: Duration = Duration::from_millis(700);
/// Replies that were not given in time, one after the other, until a server is asked last.
const DOWN_AFTER: u32 = 3;
/// First and longest time that a server is asked last.
const REST: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// How long a server that does not know EDNS is asked without it.
const PLAIN: Duration = Duration::from_secs(900);

/// Why a server gave no answer.
#[derive(Debug)]
pub(super) enum UpstreamError {
    /// No reply in time.
    NoTrace,
    /// The system, or the way there.
    Io,
    /// A reply that nobody can use.
    InvalidReply,
    /// It says that it cannot, or will not, answer.
    Refused(Entry),
    /// There is nobody to ask.
    Nobody,
}

impl UpstreamError {
    /// The one of two that tells more.
    pub(super) fn or(self, other: UpstreamError) -> UpstreamError {
        match (&self, &other) {
            (UpstreamError::Refused(_), _) => self,
            (_, UpstreamError::Refused(_)) => other,
            (UpstreamError::Nobody, _) => other,
            _ => self,
        }
    }
}

/// What every exchange needs, and one thread shares.
pub(super) struct UpstreamContext {
    /// Keyed by what nobody outside knows: a pseudo-random function for ids.
    ids: RandomState,
    next: Cell<u64>,
    /// Where datagrams are received: none is looked at after the next.
    buffer: RefCell<Box<[u8]>>,
    epoch: Instant,
    pub(super) ttls: Ttls,
    tls: Option<rustls::ClientConfig>,
    /// Holds the tasks that drive connections: they end with it.
    provider: TokioRuntimeProvider,
    concurrent: usize,
    /// Which names are the cluster's.
    ours: Box<dyn Fn(&Name) -> bool>,
}

impl UpstreamContext {
    pub(super) fn new(
        epoch: std::time::Instant,
        ttls: Ttls,
        tls: Option<rustls::ClientConfig>,
        concurrent: usize,
        ours: Box<dyn Fn(&Name) -> bool>,
    ) -> UpstreamContext {
        UpstreamContext {
            ids: RandomState::new(),
            next: Cell::new(0),
            buffer: RefCell::new(vec![0; usize::from(u16::MAX)].into()),
            epoch: epoch.into(),
            ttls,
            tls,
            provider: TokioRuntimeProvider::new(),
            concurrent,
            ours,
        }
    }

    /// Seconds of the forwarder's clock.
    pub(super) fn now(&self) -> u32 {
        self.epoch.elapsed().as_secs() as u32
    }

    pub(super) fn random(&self) -> u64 {
        let next = self.next.get();
        self.next.set(next.wrapping_add(1));
        self.ids.hash_one(next)
    }

    fn parse(&self, message: &[u8], question: &[u8]) -> Result<Entry, InvalidReply> {
        Entry::parse(message, question, self.ttls, self.now(), &self.ours)
    }
}

/// A question as it is sent.
pub(super) struct UpstreamQuery<'q> {
    /// Name, type and class.
    pub(super) question: &'q [u8],
    /// See [`mark`].
    pub(super) marks: u8,
    /// When whoever asked has given up.
    pub(super) deadline: Instant,
}

impl UpstreamQuery<'_> {
    fn encode(&self, id: u16, edns: bool) -> Vec<u8> {
        let has = |mark| self.marks & mark != 0;
        let recursion = if has(mark::NOT_RECURSIVE) { 0 } else { flags::RD };
        let unchecked = if has(mark::CHECKING_DISABLED) { flags::CD } else { 0 };
        // AD in a question: tell whether the answer is authentic (RFC 6840 section 5.7).
        let flags = (recursion | unchecked | flags::AD).to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        let mut message = Vec::with_capacity(12 + self.question.len() + 11);
        message.extend_from_slice(&[id_high, id_low, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        message.extend_from_slice(self.question);
        if edns {
            let [high, low] = PAYLOAD.to_be_bytes();
            let dnssec = if has(mark::DNSSEC_OK) { 0x80 } else { 0 };
            message.extend_from_slice(&[0, 0, rtype::OPT as u8, high, low, 0, 0, dnssec, 0, 0, 0]);
        }
        message
    }
}

#[derive(Clone, Copy, Default)]
struct Health {
    /// Questions without a reply in time since the last reply.
    missed: u32,
    /// Until when it is asked last.
    rests_until: Option<Instant>,
}

struct PooledSocket {
    socket: UdpSocket,
    uses: u32,
}

type Stream = DnsExchange<TokioRuntimeProvider>;

/// A server, as the forwarder's thread knows it.
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) stats: Arc<UpstreamStats>,
    shared: std::rc::Rc<UpstreamContext>,
    lanes: RefCell<Vec<PooledSocket>>,
    /// The connection, and which of those that there have been it is.
    stream: Mutex<Option<(Stream, u64)>>,
    connections: Cell<u64>,
    health: Cell<Health>,
    /// Until when it is asked without EDNS, since it did not know it.
    plain_until: Cell<Option<Instant>>,
    /// Whether the last connection could not be made.
    unreachable: Cell<bool>,
}

impl Server {
    pub(super) fn new(address: Address, shared: &std::rc::Rc<UpstreamContext>) -> Server {
        Server {
            stats: Arc::new(UpstreamStats { server: address.to_string(), ..UpstreamStats::default() }),
            address,
            shared: shared.clone(),
            lanes: RefCell::default(),
            stream: Mutex::new(None),
            connections: Cell::new(0),
            health: Cell::default(),
            plain_until: Cell::new(None),
            unreachable: Cell::new(false),
        }
    }

    /// Whether it is asked in its turn.
    pub(super) fn is_up(&self) -> bool {
        self.health.get().rests_until.is_none()
    }

    /// Whether it has rested long enough to be tried, by one question and not by all.
    pub(super) fn should_be_tried(&self) -> bool {
        let mut health = self.health.get();
        let due = health.rests_until.is_some_and(|until| until <= Instant::now());
        if due {
            health.rests_until = Some(Instant::now() + rest(health.missed));
            self.health.set(health);
        }
        due
    }

    /// It did not answer while another did.
    pub(super) fn missed(&self) {
        let mut health = self.health.get();
        health.missed = health.missed.saturating_add(1);
        if health.missed >= DOWN_AFTER {
            if health.rests_until.is_none() {
                self.stats.down.store(true, Relaxed);
                tracing::warn!(upstream = %self.address, "upstream does not reply; others are asked first");
            }
            health.rests_until = Some(Instant::now() + rest(health.missed));
        }
        self.health.set(health);
    }

    fn replied(&self) {
        if self.health.replace(Health::default()).rests_until.is_some() {
            self.stats.down.store(false, Relaxed);
            tracing::info!(upstream = %self.address, "upstream replies again");
        }
    }

    fn knows_edns(&self) -> bool {
        self.plain_until.get().is_none_or(|until| until <= Instant::now())
    }

    /// A server that refused EDNS is asked without for a while, and not for ever: it may be replaced.
    fn ask_plainly(&self) {
        self.plain_until.set(Some(Instant::now() + PLAIN));
    }

    /// Asks. What comes back as an answer is one: that a name exists, or does not.
    pub(super) async fn ask(&self, asked: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let start = Instant::now();
        count(&self.stats.requests);
        let result = match self.address.tls {
            Some(_) => self.over_stream(asked).await,
            None => self.over_udp(asked).await,
        };
        match &result {
            Ok(entry) => {
                self.replied();
                let place = RCODES.iter().position(|(rcode, _)| *rcode == entry.rcode).unwrap_or(RCODES.len());
                count(&self.stats.responses[place]);
                let time = start.elapsed().as_micros() as u64;
                count(&self.stats.times[TIME_BOUNDS.iter().take_while(|bound| **bound < time).count()]);
                self.stats.time.fetch_add(time, Relaxed);
            }
            Err(UpstreamError::NoTrace) => {
                count(&self.stats.timeouts);
                self.missed();
            }
            Err(UpstreamError::Io) => {
                count(&self.stats.errors);
                self.missed();
            }
            Err(_) => count(&self.stats.unfit),
        }
        match result {
            Ok(entry) if matches!(entry.rcode, rcode::NOERROR | rcode::NXDOMAIN) => Ok(entry),
            Ok(entry) => Err(UpstreamError::Refused(entry)),
            Err(trouble) => Err(trouble),
        }
    }

    async fn over_udp(&self, asked: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let mut lane = self.lane().map_err(|_| UpstreamError::Io)?;
        let mut patience = RESEND;
        let mut edns = self.knows_edns();
        let known = edns;
        // Sent again it is the same question: a server that takes its time answers the first one sent.
        let id = self.shared.random() as u16;
        loop {
            let message = asked.encode(id, edns);
            lane.uses += 1;
            // At once: a new socket is not known to be writable yet. A full queue is a lost datagram, which is sent again.
            match socket2::SockRef::from(&lane.socket).send(&message) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(UpstreamError::Io),
                _ => {}
            }
            let until = asked.deadline.min(Instant::now() + patience);
            match timeout_at(until, self.receive(&lane.socket, id, asked.question)).await {
                Ok(Ok(Ok(entry))) => {
                    self.keep(lane);
                    if known && !edns {
                        self.ask_plainly();
                    }
                    return Ok(entry);
                }
                Ok(Ok(Err(InvalidReply::Truncated))) => {
                    self.keep(lane);
                    // It has replied: silence over TCP is no reason to ask it last.
                    return self.over_stream(asked).await.map_err(|trouble| match trouble {
                        UpstreamError::NoTrace => UpstreamError::InvalidReply,
                        other => other,
                    });
                }
                // Whether that was the reason shows when it is asked without.
                Ok(Ok(Err(InvalidReply::NoEdns))) if edns => edns = false,
                Ok(Ok(Err(_))) => return Err(UpstreamError::InvalidReply),
                Ok(Err(_)) => return Err(UpstreamError::Io),
                Err(_) if Instant::now() >= asked.deadline => return Err(UpstreamError::NoTrace),
                Err(_) => patience *= 2,
            }
        }
    }

    /// Waits for the reply to one question. Other messages are stepped over: the right one may still come.
    async fn receive(&self, socket: &UdpSocket, id: u16, question: &[u8]) -> io::Result<Result<Entry, InvalidReply>> {
        loop {
            // A port where nobody listens shows as an error, with nothing to read.
            let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
            if ready.is_error() {
                let error = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                return Err(socket.take_error()?.or(error.err()).unwrap_or(io::ErrorKind::ConnectionRefused.into()));
            }
            let mut buffer = self.shared.buffer.borrow_mut();
            let length = match socket.try_recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let message = buffer.get(..length).unwrap_or(&[]);
            if message.first_chunk() != Some(&id.to_be_bytes()) {
                count(&self.stats.foreign);
                continue;
            }
            match self.shared.parse(message, question) {
                Err(InvalidReply::Foreign) => count(&self.stats.foreign),
                // More than was asked for: what sends it knows no bounds, or is not who we asked.
                Ok(_) if length > usize::from(PAYLOAD) => return Ok(Err(InvalidReply::Truncated)),
                result => return Ok(result),
            }
        }
    }

    /// A socket that carries no other question, connected, so that the system takes datagrams of this server alone.
    fn lane(&self) -> io::Result<PooledSocket> {
        if let Some(lane) = self.lanes.borrow_mut().pop() {
            return Ok(lane);
        }
        let any: SocketAddr = match self.address.socket {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(self.address.socket)?;
        Ok(PooledSocket { socket: UdpSocket::from_std(socket)?, uses: 0 })
    }

    fn keep(&self, lane: PooledSocket) {
        let mut lanes = self.lanes.borrow_mut();
        if lane.uses < USES && lanes.len() < IDLE_SOCKETS {
            lanes.push(lane);
        }
    }

    /// Over TCP or TLS. A connection that the server has closed meanwhile is opened again, once. One that says nothing in
    /// time is given up: it may be dead, and would be asked again and again.
    async fn over_stream(&self, asked: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let mut edns = self.knows_edns();
        let known = edns;
        let mut fresh = false;
        loop {
            let opened = timeout_at(asked.deadline, self.connection()).await.unwrap_or(Err(UpstreamError::NoTrace));
            let (stream, number, is_new) = opened?;
            fresh |= is_new;
            let message = Message::from_vec(&asked.encode(0, edns)).map_err(|_| UpstreamError::InvalidReply)?;
            let sent = stream.send(DnsRequest::new(message, DnsRequestOptions::default()));
            let given_up = GivenUp { server: self, number, in_time: Cell::new(false) };
            let reply = timeout_at(asked.deadline, sent.first_answer()).await;
            given_up.in_time.set(matches!(reply, Ok(Ok(_))));
            match reply {
                Ok(Ok(response)) => match self.shared.parse(response.as_buffer(), asked.question) {
                    Ok(entry) => {
                        if known && !edns {
                            self.ask_plainly();
                        }
                        return Ok(entry);
                    }
                    Err(InvalidReply::NoEdns) if edns => edns = false,
                    Err(_) => return Err(UpstreamError::InvalidReply),
                },
                Ok(Err(error)) => {
                    tracing::debug!(upstream = %self.address, %error, "connection to an upstream");
                    if fresh {
                        return Err(UpstreamError::Io);
                    }
                }
                Err(_) => return Err(UpstreamError::NoTrace),
            }
        }
    }

    /// The connection, its number, and whether it was opened just now.
    async fn connection(&self) -> Result<(Stream, u64, bool), UpstreamError> {
        let mut open = self.stream.lock().await;
        if let Some((stream, number)) = &*open {
            return Ok((stream.clone(), *number, false));
        }
        let (to, time, most) = (self.address.socket, Duration::from_secs(4), Some(self.shared.concurrent));
        let provider = self.shared.provider.clone();
        let opened = match (&self.address.tls, &self.shared.tls) {
            (None, _) => TcpClientStream::exchange(to, None, time, most, provider).await,
            (Some(name), Some(config)) => {
                let name = ServerName::try_from(String::from(&**name)).map_err(|_| UpstreamError::Io)?;
                tls::tls_exchange(to, name, config.clone(), time, most, provider).await
            }
            (Some(_), None) => return Err(UpstreamError::Io),
        };
        match opened {
            Ok(stream) => {
                let number = self.connections.get().wrapping_add(1);
                self.connections.set(number);
                *open = Some((stream.clone(), number));
                self.unreachable.set(false);
                Ok((stream, number, true))
            }
            Err(error) => {
                // Once, until one succeeds: a wrong certificate is for an operator to mend.
                if !self.unreachable.replace(true) {
                    tracing::warn!(upstream = %self.address, %error, "no connection to an upstream");
                }
                Err(UpstreamError::Io)
            }
        }
    }
}

/// A connection that gave no reply in time, or whose question nobody waits for any more, is not used again: it may be dead,
/// and nothing else would show that. Another one costs little.
struct GivenUp<'s> {
    server: &'s Server,
    number: u64,
    in_time: Cell<bool>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.in_time.get() {
            return;
        }
        // Somebody who is opening another holds the lock: then this one is gone already.
        if let Ok(mut open) = self.server.stream.try_lock()
            && open.as_ref().is_some_and(|(_, number)| *number == self.number)
        {
            *open = None;
        }
    }
}

/// How long a server rests that has missed so many questions.
fn rest(missed: u32) -> Duration {
    let doublings = missed.saturating_sub(DOWN_AFTER).min(8);
    (REST[0] * (1 << doublings)).min(REST[1])
}
