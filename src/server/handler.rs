//! Answers a query for any transport: from the zone, then from the forward cache, then through the forwarder.
//!
//! A UDP worker calls [`Handler::answer`] with its own buffers. Stream transports (TCP, TLS, HTTPS, QUIC) call
//! [`Handler::respond`] or [`Handler::reply`], which use one buffer per thread.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::rate_limit::{Allowance, RateLimit};
use super::{Counters, Published};
use crate::answer::{ForwardRequest, Limit, Scratch, Verdict, answer, truncated};
use crate::forward::{Client, ClientQuery, Forwarder, Freshness, Outbox};
use crate::wire::rcode;
use crate::zone::{Caller, Zone};

/// Longest query that a stream may carry, in octets.
pub(super) const MAX_QUERY: usize = 4096;
/// Largest reply in octets.
const MAX_REPLY: usize = 65_535;

/// The sources of every transport's answers.
pub struct Handler {
    table: Published,
    forwarder: Option<Arc<Forwarder>>,
    rate_limit: Option<RateLimit>,
}

/// Counters of one transport. Each set is written by one thread.
#[derive(Clone, Default)]
pub struct TransportCounters {
    /// Counters of the replies that the transport's own thread sends.
    pub immediate: Arc<Counters>,
    /// Counters of the replies that wait for an upstream and that the forwarder's thread sends.
    pub deferred: Arc<Counters>,
}

/// Octets that a reply may have, besides twice those of its query, without being worth a forged query.
const SMALL: usize = 64;

/// A query as it arrived.
#[derive(Clone, Copy)]
pub(super) struct Message<'m> {
    pub(super) octets: &'m [u8],
    pub(super) from: IpAddr,
    pub(super) received: Instant,
    pub(super) limit: Limit,
}

/// The fate of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handled {
    /// The reply is written, and has this length in octets.
    Replied(usize),
    /// The forwarder's thread will send the reply, or drop the query.
    Deferred,
    /// There is no reply: the message has no complete header, or is itself a reply.
    Dropped,
}

/// The reason why a query gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoReply {
    /// The message has no complete header, or is itself a reply.
    NotAQuery,
    /// Too many queries wait for upstreams, or too many replies for the client to read them.
    Busy,
}

thread_local! {
    /// Buffer for replies on streams. All connections of a thread share it.
    static SCRATCH: RefCell<(Scratch, Box<[u8]>)> = RefCell::new((Scratch::new(0), vec![0; MAX_REPLY].into()));
}

impl Handler {
    /// Creates a handler that answers from this table and, for names outside the cluster, through this forwarder.
    /// `rate` is `--rate-limit`: replies a second to one network; 0 means that there is no limit.
    pub fn new(table: Published, forwarder: Option<Arc<Forwarder>>, rate: u32) -> Arc<Handler> {
        Arc::new(Handler { table, forwarder, rate_limit: RateLimit::new(rate) })
    }

    /// Loads the published table.
    #[inline]
    pub(super) fn zone(&self) -> arc_swap::Guard<Arc<Zone>> {
        self.table.load()
    }

    /// Writes the reply to a query and counts it, or queues the query for the forwarder's thread. In that case,
    /// `deferred` returns the function that will send the reply.
    #[inline(always)]
    pub(super) fn answer<S: SendReply>(
        &self,
        zone: &Zone,
        message: Message<'_>,
        (scratch, reply): (&mut Scratch, &mut [u8]),
        counters: &TransportCounters,
        deferred: impl FnOnce() -> S,
    ) -> Handled {
        let caller = Caller::Address(message.from);
        let mut verdict = answer(zone, caller, message.octets, message.limit, scratch, reply);
        if let Some(rate_limit) = &self.rate_limit
            && message.limit == Limit::Datagram
            && is_worth_forging(&verdict, message.octets.len())
            && !scratch.is_proven()
        {
            match rate_limit.check(message.from, message.received) {
                Allowance::Whole => {}
                allowance => return limited(message, allowance, reply, counters),
            }
        }
        if let Verdict::Forward(request) = verdict {
            verdict = self.forward(message, request, (scratch, reply), counters, deferred);
        }
        counters.immediate.count(message.from, message.octets.len(), &verdict);
        match verdict {
            Verdict::Reply { len, .. } => Handled::Replied(len),
            Verdict::Forward(_) => Handled::Deferred,
            Verdict::Drop => Handled::Dropped,
        }
    }

    #[inline(never)]
    fn forward<S: SendReply>(
        &self,
        message: Message<'_>,
        request: ForwardRequest,
        (scratch, reply): (&mut Scratch, &mut [u8]),
        counters: &TransportCounters,
        deferred: impl FnOnce() -> S,
    ) -> Verdict {
        let Some(forwarder) = &self.forwarder else { return Verdict::Drop };
        let Message { octets, from, received, .. } = message;
        if let Some((verdict, freshness)) = forwarder.answer(scratch, octets, &request, received, reply) {
            counters.immediate.cache_hit(freshness == Freshness::Stale);
            return verdict;
        }
        let send = deferred();
        let client = Box::new(Waiting { send, counters: counters.deferred.clone(), from, octets: octets.len() });
        let cookie = scratch.cookie().copied();
        forwarder.hand_over(ClientQuery { query: octets.into(), request, cookie, from, received, client });
        Verdict::Forward(request)
    }

    /// Answers a message of a stream. Calls `reply` with an immediate reply. For any other, `deferred` returns the
    /// function that the forwarder's thread calls with the reply, or drops if there is none.
    pub(super) fn respond<S: SendReply>(
        &self,
        counters: &TransportCounters,
        from: IpAddr,
        octets: &[u8],
        reply: impl FnOnce(&[u8]),
        deferred: impl FnOnce() -> S,
    ) -> Handled {
        SCRATCH.with_borrow_mut(|(scratch, buffer)| {
            let received = Instant::now();
            let message = Message { octets, from, received, limit: Limit::Stream };
            let handled = self.answer(&self.zone(), message, (scratch, buffer), counters, deferred);
            if let Handled::Replied(length) = handled {
                reply(&buffer[..length]);
                counters.immediate.took(1, received.elapsed());
            }
            handled
        })
    }

    /// Returns the reply to one message of a stream; waits for an upstream if necessary.
    ///
    /// # Errors
    /// The reason for not replying.
    pub(super) async fn reply(
        &self,
        counters: &TransportCounters,
        from: IpAddr,
        octets: &[u8],
    ) -> Result<Vec<u8>, NoReply> {
        let (mut immediate, mut deferred) = (None, None);
        let handled = self.respond(
            counters,
            from,
            octets,
            |reply| immediate = Some(reply.to_vec()),
            || {
                let (sender, receiver) = oneshot::channel();
                deferred = Some(receiver);
                move |reply: &[u8]| {
                    // The receiver is dropped if the client disconnects.
                    let _ = sender.send(reply.to_vec());
                    None
                }
            },
        );
        match (handled, deferred) {
            (Handled::Deferred, Some(deferred)) => deferred.await.map_err(|_| NoReply::Busy),
            _ => immediate.ok_or(NoReply::NotAQuery),
        }
    }
}

/// Whether somebody could gain by forging the sender of a query: its reply is much longer, or upstreams have to work, or
/// the client is not one that the server answers (REFUSED).
fn is_worth_forging(verdict: &Verdict, query: usize) -> bool {
    match *verdict {
        Verdict::Reply { len, rcode, .. } => len > 2 * query + SMALL || rcode == rcode::REFUSED,
        Verdict::Forward(_) => true,
        Verdict::Drop => false,
    }
}

/// Writes what a client over its rate gets, and counts it.
#[cold]
fn limited(message: Message<'_>, allowance: Allowance, reply: &mut [u8], counters: &TransportCounters) -> Handled {
    counters.immediate.limited();
    match truncated(message.octets, reply) {
        Some(length) if allowance == Allowance::Truncated => Handled::Replied(length),
        _ => Handled::Dropped,
    }
}

/// Sends a reply from the forwarder's thread, or adds it to a batch: see [`Client::send`].
pub(super) trait SendReply: FnOnce(&[u8]) -> Option<Arc<dyn Outbox>> + Send + 'static {}

impl<F: FnOnce(&[u8]) -> Option<Arc<dyn Outbox>> + Send + 'static> SendReply for F {}

/// A client that waits for a reply from the forwarder's thread.
struct Waiting<S> {
    send: S,
    counters: Arc<Counters>,
    from: IpAddr,
    /// Length of its query in octets.
    octets: usize,
}

impl<S: SendReply> Client for Waiting<S> {
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>> {
        self.counters.count(self.from, self.octets, verdict);
        self.counters.took(1, took);
        (self.send)(reply)
    }
}
