//! One upstream server: sends queries to it and receives its replies.
//!
//! A UDP query has a random id, a name in random case ("0x20") and, while it is in flight, a socket to itself, on a port
//! that the system chose at random (RFC 5452 section 9). A socket is reused for a limited number of queries, because
//! opening one costs as much as a query does; it is picked at random from a large pool, so that no one can find out
//! which port the next query uses. TCP and TLS use hickory, which pipelines queries on one connection (RFC 7766 section 6.2.1.1).

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem::MaybeUninit;
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

use super::cache::key_flag;
use super::reader::InvalidReply;
use super::reply::{Entry, Ttls};
use super::settings::Address;
use super::stats::{RCODES, TIME_BOUNDS, UpstreamStats, count};
use crate::wire::{HEADER_LEN, Name, flags, rcode, rtype};

/// UDP payload size to announce, in bytes: small enough to avoid fragmentation on almost any path.
const PAYLOAD: u16 = 1232;
/// Number of queries after which a socket is replaced, and with it the source port.
const QUERIES_PER_SOCKET: u32 = 16;
/// Time after which a socket is replaced.
const SOCKET_LIFETIME: Duration = Duration::from_secs(10);
/// Number of pooled sockets from which a query takes one at random. While there are fewer, a query opens another.
const IDLE_SOCKETS: usize = 512;
/// Receive buffer of a socket in octets, so that forged replies to idle sockets hold little memory.
const RECEIVE_BUFFER: usize = 16 * 1024;
/// Messages that may wait in a socket when it is reused. One that holds more is replaced.
const MAX_STRAYS: usize = 16;
/// Wrong replies to a query after which it is repeated over TCP.
const MAX_WRONG: u32 = 5;
/// Time limit for the question over TCP whether a server keeps the case of names.
const CASE_CHECK: Duration = Duration::from_secs(1);
/// Time for which a server that does not keep the case of names gets them in lower case.
const WITHOUT_CASE: Duration = Duration::from_secs(3600);
/// Time until the first retransmit over UDP; it doubles after each.
const RETRANSMIT: Duration = Duration::from_millis(700);
/// Consecutive failures after which a server is down and queried last.
const DOWN_AFTER: u32 = 3;
/// A server that has replied within this time is not down.
const SILENCE: Duration = Duration::from_secs(1);
/// Number of log lines about a server going up or down, for each interval.
const LINES: u32 = 4;
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Initial and maximum time before a server that is down is tried again.
const DOWN_TIME: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// Time for which a server that does not support EDNS is queried without it.
const WITHOUT_EDNS: Duration = Duration::from_secs(900);

/// Reason why a server did not answer a query.
#[derive(Debug)]
pub(super) enum UpstreamError {
    /// No reply in time.
    Timeout,
    /// A network or system error.
    Io,
    /// An unusable reply.
    InvalidReply,
    /// A reply with an error rcode, such as REFUSED or SERVFAIL.
    Refused(Entry),
    /// There is no server to query.
    NoServer,
}

impl UpstreamError {
    /// Returns the more informative of two errors.
    pub(super) fn or(self, other: UpstreamError) -> UpstreamError {
        match (&self, &other) {
            (UpstreamError::Refused(_), _) => self,
            (_, UpstreamError::Refused(_)) => other,
            (UpstreamError::NoServer, _) => other,
            _ => self,
        }
    }
}

/// State that all servers of the forwarder's thread share.
pub(super) struct UpstreamContext {
    /// A hash with secret keys, used as a pseudo-random function for message ids.
    ids: RandomState,
    next: Cell<u64>,
    /// Receive buffer for datagrams; each one is parsed before the next is received.
    buffer: RefCell<Box<[u8]>>,
    epoch: Instant,
    pub(super) ttls: Ttls,
    tls: Option<rustls::ClientConfig>,
    /// Owns the tasks that drive connections; dropping it ends them.
    provider: TokioRuntimeProvider,
    concurrent: usize,
    /// Whether a name belongs to the cluster.
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

    /// Returns the time in seconds of the forwarder's clock.
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

/// A query to an upstream.
pub(super) struct UpstreamQuery<'q> {
    /// Name, type and class.
    pub(super) question: &'q [u8],
    /// See [`key_flag`].
    pub(super) key_flags: u8,
    /// Time at which the query fails with a timeout.
    pub(super) deadline: Instant,
}

impl UpstreamQuery<'_> {
    /// Encodes the query with this question, which may differ from [`question`](Self::question) in case.
    fn encode(&self, id: u16, question: &[u8], edns: bool) -> Vec<u8> {
        let has = |key_flag| self.key_flags & key_flag != 0;
        let recursion = if has(key_flag::NOT_RECURSIVE) { 0 } else { flags::RD };
        let unchecked = if has(key_flag::CHECKING_DISABLED) { flags::CD } else { 0 };
        // AD in a query requests the AD bit in its reply (RFC 6840 section 5.7).
        let flags = (recursion | unchecked | flags::AD).to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        let mut message = Vec::with_capacity(12 + self.question.len() + 11);
        message.extend_from_slice(&[id_high, id_low, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        message.extend_from_slice(question);
        if edns {
            let [high, low] = PAYLOAD.to_be_bytes();
            let dnssec = if has(key_flag::DNSSEC_OK) { 0x80 } else { 0 };
            message.extend_from_slice(&[0, 0, rtype::OPT as u8, high, low, 0, 0, dnssec, 0, 0, 0]);
        }
        message
    }
}

#[derive(Clone, Copy, Default)]
struct Health {
    /// Failures since the last reply.
    missed: u32,
    /// Time of the next try while the server is down; `None` if it is up.
    down_until: Option<Instant>,
    /// Time of the last reply.
    replied: Option<Instant>,
}

struct PooledSocket {
    socket: UdpSocket,
    uses: u32,
    opened: Instant,
}

impl PooledSocket {
    /// Discards the messages that have arrived while no query was in flight. Returns whether nothing is left.
    fn drain(&self) -> bool {
        let mut buffer = [const { MaybeUninit::uninit() }; 1];
        let socket = socket2::SockRef::from(&self.socket);
        // This bypasses tokio, which may not know yet that there is something to read.
        for _ in 0..MAX_STRAYS {
            match socket.recv(&mut buffer) {
                Ok(_) => {}
                // After any other error, tokio would report it again.
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        false
    }
}

/// A query as it was sent over UDP.
struct Asked<'q> {
    id: u16,
    question: &'q [u8],
    /// The question as it was spelled.
    sent: &'q [u8],
}

impl Asked<'_> {
    /// Whether a message repeats the question exactly.
    fn is_echoed_by(&self, message: &[u8]) -> bool {
        message.get(HEADER_LEN..HEADER_LEN + self.sent.len()) == Some(self.sent)
    }
}

/// What came of a query over UDP.
enum UdpReply {
    Entry(Entry),
    /// The whole reply is available over TCP.
    Truncated,
    /// The name has another case than in the query.
    OtherCase,
    /// Too many wrong replies arrived.
    Suspect,
}

/// A timeout over TCP after a reply over UDP.
fn late(error: UpstreamError) -> UpstreamError {
    match error {
        UpstreamError::Timeout => UpstreamError::InvalidReply,
        other => other,
    }
}

type Stream = DnsExchange<TokioRuntimeProvider>;

/// An upstream server and its state.
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) stats: Arc<UpstreamStats>,
    shared: std::rc::Rc<UpstreamContext>,
    idle_sockets: RefCell<Vec<PooledSocket>>,
    /// The open connection and its sequence number.
    stream: Mutex<Option<(Stream, u64)>>,
    connections: Cell<u64>,
    health: Cell<Health>,
    /// Time until which queries omit EDNS, because the server does not support it.
    without_edns_until: Cell<Option<Instant>>,
    /// Time until which names are sent in lower case, because the server does not keep their case.
    without_case_until: Cell<Option<Instant>>,
    /// Whether the last attempt to connect failed.
    unreachable: Cell<bool>,
    /// Start of the current interval of log lines, and their number.
    logged: Cell<Option<(Instant, u32)>>,
}

impl Server {
    pub(super) fn new(address: Address, shared: &std::rc::Rc<UpstreamContext>) -> Server {
        Server {
            stats: Arc::new(UpstreamStats { server: address.to_string(), ..UpstreamStats::default() }),
            address,
            shared: shared.clone(),
            idle_sockets: RefCell::default(),
            stream: Mutex::new(None),
            connections: Cell::new(0),
            health: Cell::default(),
            without_edns_until: Cell::new(None),
            without_case_until: Cell::new(None),
            unreachable: Cell::new(false),
            logged: Cell::new(None),
        }
    }

    /// Whether the server is up, and so queried in configured order.
    pub(super) fn is_up(&self) -> bool {
        self.health.get().down_until.is_none()
    }

    /// Whether a server that is down is due for another try. A call that returns true restarts the interval, so that
    /// only one query tries it.
    pub(super) fn is_due_for_retry(&self) -> bool {
        let mut health = self.health.get();
        let due = health.down_until.is_some_and(|until| until <= Instant::now());
        if due {
            health.down_until = Some(Instant::now() + down_time(health.missed));
            self.health.set(health);
        }
        due
    }

    /// Counts a failure: a timeout, a network error, or another server that answered first.
    pub(super) fn missed(&self) {
        let mut health = self.health.get();
        health.missed = health.missed.saturating_add(1);
        // Names of a dead zone time out although the server works: it still answers others.
        let is_silent = health.replied.is_none_or(|replied| replied.elapsed() > SILENCE);
        if health.missed >= DOWN_AFTER && is_silent {
            if health.down_until.is_none() {
                self.stats.down.store(true, Relaxed);
                if self.may_log() {
                    tracing::warn!(upstream = %self.address, "upstream is down; querying it last");
                }
            }
            health.down_until = Some(Instant::now() + down_time(health.missed));
        }
        self.health.set(health);
    }

    fn replied(&self) {
        let now = Health { missed: 0, down_until: None, replied: Some(Instant::now()) };
        if self.health.replace(now).down_until.is_some() {
            self.stats.down.store(false, Relaxed);
            if self.may_log() {
                tracing::info!(upstream = %self.address, "upstream is up again");
            }
        }
    }

    /// Whether another line may be logged about the server going up or down: a flapping one would fill the log.
    fn may_log(&self) -> bool {
        let now = Instant::now();
        let (minute, lines) = self.logged.get().filter(|(minute, _)| *minute + LOG_INTERVAL > now).unwrap_or((now, 0));
        self.logged.set(Some((minute, lines + 1)));
        lines < LINES
    }

    fn supports_edns(&self) -> bool {
        self.without_edns_until.get().is_none_or(|until| until <= Instant::now())
    }

    /// Omits EDNS from queries for a while. It is tried again later, because the server may have been upgraded.
    fn disable_edns(&self) {
        self.without_edns_until.set(Some(Instant::now() + WITHOUT_EDNS));
    }

    /// Whether the server keeps the case of names, as far as is known.
    fn keeps_case(&self) -> bool {
        self.without_case_until.get().is_none_or(|until| until <= Instant::now())
    }

    /// Returns the question as it is sent: its letters in random case ("0x20"), if the server keeps it.
    fn spelled(&self, question: &[u8], keeps_case: bool) -> Vec<u8> {
        let mut spelled = question.to_vec();
        if keeps_case {
            // The lengths of labels are no letters.
            let name = spelled.len().saturating_sub(4);
            let mut random = 0;
            for (index, octet) in spelled.iter_mut().take(name).enumerate() {
                if index % 64 == 0 {
                    random = self.shared.random();
                }
                if octet.is_ascii_alphabetic() {
                    *octet ^= ((random >> (index % 64)) as u8 & 1) << 5;
                }
            }
        }
        spelled
    }

    /// Sends a query and returns its reply: NOERROR or NXDOMAIN. Other rcodes are [`UpstreamError::Refused`].
    pub(super) async fn query(&self, query: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let start = Instant::now();
        count(&self.stats.requests);
        let result = match self.address.tls {
            Some(_) => self.over_stream(query, query.deadline).await.map(|(entry, _)| entry),
            None => self.over_udp(query).await,
        };
        match &result {
            Ok(entry) => {
                self.replied();
                let index = RCODES.iter().position(|(rcode, _)| *rcode == entry.rcode).unwrap_or(RCODES.len());
                count(&self.stats.responses[index]);
                self.stats.times.observe(&TIME_BOUNDS, start.elapsed().as_micros() as u64, 1);
            }
            Err(UpstreamError::Timeout) => {
                count(&self.stats.timeouts);
                self.missed();
            }
            Err(UpstreamError::Io) => {
                count(&self.stats.errors);
                self.missed();
            }
            Err(_) => count(&self.stats.invalid),
        }
        match result {
            Ok(entry) if matches!(entry.rcode, rcode::NOERROR | rcode::NXDOMAIN) => Ok(entry),
            Ok(entry) => Err(UpstreamError::Refused(entry)),
            Err(error) => Err(error),
        }
    }

    async fn over_udp(&self, query: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        match self.spelled_over_udp(query, self.keeps_case()).await? {
            UdpReply::Entry(entry) => Ok(entry),
            // The server has replied over UDP, so a timeout over TCP does not count as a failure of the server.
            UdpReply::Truncated => self.over_stream(query, query.deadline).await.map(|(entry, _)| entry).map_err(late),
            UdpReply::Suspect => self.over_stream(query, query.deadline).await.map(|(entry, _)| entry),
            // Either the reply is forged, or the server does not keep the case. TCP shows which.
            UdpReply::OtherCase => {
                let deadline = query.deadline.min(Instant::now() + CASE_CHECK);
                match self.over_stream(query, deadline).await {
                    Ok((entry, keeps_case)) => {
                        if !keeps_case {
                            self.disable_case();
                        }
                        Ok(entry)
                    }
                    Err(UpstreamError::Io | UpstreamError::Timeout) => {
                        match self.spelled_over_udp(query, false).await? {
                            UdpReply::Entry(entry) => {
                                self.disable_case();
                                Ok(entry)
                            }
                            _ => Err(UpstreamError::InvalidReply),
                        }
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Sends names in lower case for a while.
    fn disable_case(&self) {
        tracing::info!(upstream = %self.address, "upstream does not keep the case of names; sending lower case");
        self.without_case_until.set(Some(Instant::now() + WITHOUT_CASE));
    }

    async fn spelled_over_udp(&self, query: &UpstreamQuery<'_>, keeps_case: bool) -> Result<UdpReply, UpstreamError> {
        let mut pooled = self.pooled().map_err(|_| UpstreamError::Io)?;
        let mut patience = RETRANSMIT;
        let mut edns = self.supports_edns();
        let known = edns;
        // Retransmits have the same id and spelling, because a slow server may reply to the first transmission.
        let id = self.shared.random() as u16;
        let sent = self.spelled(query.question, keeps_case);
        let mut wrong = 0;
        loop {
            let message = query.encode(id, &sent, edns);
            pooled.uses += 1;
            // This bypasses tokio, which does not yet know that a new socket is writable. If the send queue is full the
            // datagram is lost, and the retransmit replaces it.
            match socket2::SockRef::from(&pooled.socket).send(&message) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(UpstreamError::Io),
                _ => {}
            }
            let until = query.deadline.min(Instant::now() + patience);
            let asked = Asked { id, question: query.question, sent: &sent };
            match timeout_at(until, self.receive(&pooled.socket, &asked, &mut wrong)).await {
                Ok(Ok(Ok(reply))) => {
                    if !matches!(reply, UdpReply::Suspect) {
                        self.release(pooled);
                    }
                    if matches!(reply, UdpReply::Entry(_)) && known && !edns {
                        self.disable_edns();
                    }
                    return Ok(reply);
                }
                // The retry without EDNS shows whether EDNS was the reason.
                Ok(Ok(Err(InvalidReply::NoEdns))) if edns => edns = false,
                Ok(Ok(Err(_))) => return Err(UpstreamError::InvalidReply),
                Ok(Err(_)) => return Err(UpstreamError::Io),
                Err(_) if Instant::now() >= query.deadline => return Err(UpstreamError::Timeout),
                Err(_) => patience *= 2,
            }
        }
    }

    /// Waits for the reply to one query. Messages that do not match are skipped, because the right one may still
    /// arrive; `wrong` counts them.
    async fn receive(
        &self,
        socket: &UdpSocket,
        asked: &Asked<'_>,
        wrong: &mut u32,
    ) -> io::Result<Result<UdpReply, InvalidReply>> {
        loop {
            // A closed port shows as an error (ICMP port unreachable), with nothing to read.
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
            let has_id = message.first_chunk() == Some(&asked.id.to_be_bytes());
            let parsed =
                if has_id { self.shared.parse(message, asked.question) } else { Err(InvalidReply::Mismatched) };
            match parsed {
                Err(InvalidReply::Mismatched) => {
                    count(&self.stats.mismatched);
                    *wrong += 1;
                    if *wrong >= MAX_WRONG {
                        return Ok(Ok(UdpReply::Suspect));
                    }
                }
                // The question was left out, so its case is not known.
                Err(InvalidReply::NoEdns) => return Ok(Err(InvalidReply::NoEdns)),
                _ if !asked.is_echoed_by(message) => {
                    count(&self.stats.mismatched);
                    return Ok(Ok(UdpReply::OtherCase));
                }
                Err(InvalidReply::Truncated) => return Ok(Ok(UdpReply::Truncated)),
                // It exceeds the announced payload size: the server is broken or the reply is forged. TCP decides.
                Ok(_) if length > usize::from(PAYLOAD) => return Ok(Ok(UdpReply::Truncated)),
                Ok(entry) => return Ok(Ok(UdpReply::Entry(entry))),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Returns a socket with no query in flight. It is connected, so that the system drops datagrams from other
    /// addresses.
    fn pooled(&self) -> io::Result<PooledSocket> {
        loop {
            let mut idle_sockets = self.idle_sockets.borrow_mut();
            if idle_sockets.len() < IDLE_SOCKETS {
                let opened = self.open();
                // Without descriptors for another socket, one of the pool has to do.
                if opened.is_ok() || idle_sockets.is_empty() {
                    return opened;
                }
            }
            let picked = (self.shared.random() % idle_sockets.len() as u64) as usize;
            let pooled = idle_sockets.swap_remove(picked);
            if pooled.opened.elapsed() < SOCKET_LIFETIME && pooled.drain() {
                return Ok(pooled);
            }
        }
    }

    fn open(&self) -> io::Result<PooledSocket> {
        let any: SocketAddr = match self.address.socket {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        // A failure only means that forged replies can hold more memory.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
        socket.connect(self.address.socket)?;
        Ok(PooledSocket { socket: UdpSocket::from_std(socket)?, uses: 0, opened: Instant::now() })
    }

    fn release(&self, pooled: PooledSocket) {
        let mut idle_sockets = self.idle_sockets.borrow_mut();
        if pooled.uses < QUERIES_PER_SOCKET && idle_sockets.len() < IDLE_SOCKETS {
            idle_sockets.push(pooled);
        }
    }

    /// Queries over TCP or TLS. If the server has closed an idle connection, it is reopened once. A connection that
    /// times out is dropped, because it may be dead, and every later query on it would time out as well.
    /// Also returns whether the reply keeps the case of the name.
    async fn over_stream(&self, query: &UpstreamQuery<'_>, deadline: Instant) -> Result<(Entry, bool), UpstreamError> {
        let sent_question = self.spelled(query.question, self.keeps_case());
        let mut edns = self.supports_edns();
        let known = edns;
        let mut fresh = false;
        loop {
            let opened = timeout_at(deadline, self.connection()).await.unwrap_or(Err(UpstreamError::Timeout));
            let (stream, number, is_new) = opened?;
            fresh |= is_new;
            let message =
                Message::from_vec(&query.encode(0, &sent_question, edns)).map_err(|_| UpstreamError::InvalidReply)?;
            let sent = stream.send(DnsRequest::new(message, DnsRequestOptions::default()));
            let guard = DropUnlessReplied { server: self, number, has_reply: Cell::new(false) };
            let reply = timeout_at(deadline, sent.first_answer()).await;
            guard.has_reply.set(matches!(reply, Ok(Ok(_))));
            match reply {
                Ok(Ok(response)) => match self.shared.parse(response.as_buffer(), query.question) {
                    Ok(entry) => {
                        if known && !edns {
                            self.disable_edns();
                        }
                        let asked = Asked { id: 0, question: query.question, sent: &sent_question };
                        return Ok((entry, asked.is_echoed_by(response.as_buffer())));
                    }
                    Err(InvalidReply::NoEdns) if edns => edns = false,
                    Err(_) => return Err(UpstreamError::InvalidReply),
                },
                Ok(Err(error)) => {
                    tracing::debug!(upstream = %self.address, %error, "connection to upstream failed");
                    if fresh {
                        return Err(UpstreamError::Io);
                    }
                }
                Err(_) => return Err(UpstreamError::Timeout),
            }
        }
    }

    /// Returns the connection, its sequence number, and whether this call opened it.
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
                // Warn once until a connection succeeds: an operator has to fix a wrong certificate.
                if !self.unreachable.replace(true) {
                    tracing::warn!(upstream = %self.address, %error, "cannot connect to upstream");
                }
                Err(UpstreamError::Io)
            }
        }
    }
}

/// Guard that drops a connection unless a reply arrived in time. A connection whose query timed out or was cancelled
/// may be dead, and nothing else would reveal that. A new one costs little.
struct DropUnlessReplied<'s> {
    server: &'s Server,
    number: u64,
    has_reply: Cell<bool>,
}

impl Drop for DropUnlessReplied<'_> {
    fn drop(&mut self) {
        if self.has_reply.get() {
            return;
        }
        // If the lock is taken, another task is opening a new connection, so this one is already gone.
        if let Ok(mut open) = self.server.stream.try_lock()
            && open.as_ref().is_some_and(|(_, number)| *number == self.number)
        {
            *open = None;
        }
    }
}

/// Returns the time before a server is tried again, after this many failures in a row.
fn down_time(missed: u32) -> Duration {
    let doublings = missed.saturating_sub(DOWN_AFTER).min(8);
    (DOWN_TIME[0] * (1 << doublings)).min(DOWN_TIME[1])
}
