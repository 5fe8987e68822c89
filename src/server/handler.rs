//! From a query to its reply, for every transport: the zone, then the cache of upstream replies, then the forwarder.
//!
//! A UDP worker calls [`Handler::answer`] with its own buffers; transports that carry whole messages (TCP, TLS, HTTPS,
//! QUIC) call [`Handler::respond`] or [`Handler::reply`], which share one buffer a thread.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Counters, Published};
use crate::answer::{ForwardRequest, Limit, Scratch, Verdict, answer};
use crate::forward::{Client, ClientQuery, Forwarder, Freshness, Outbox};
use crate::zone::{Caller, Zone};

/// Longest query that a stream may carry, in octets.
pub(super) const MAX_QUERY: usize = 4096;
/// Largest reply in octets.
const MAX_REPLY: usize = 65_535;

/// What every transport answers from.
pub struct Handler {
    table: Published,
    forwarder: Option<Arc<Forwarder>>,
}

/// Counters of one transport, each written by one thread.
#[derive(Clone, Default)]
pub struct TransportCounters {
    /// Replies that the transport's own thread sends at once.
    pub immediate: Arc<Counters>,
    /// Replies that wait for an upstream, which the forwarder's thread sends.
    pub deferred: Arc<Counters>,
}

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
    /// Its reply is written, and has this length.
    Replied(usize),
    /// Its reply comes from the forwarder's thread, if one comes.
    Deferred,
    /// It gets no reply: it has no header, or is itself a reply.
    Dropped,
}

/// The reason why a query gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoReply {
    /// It has no header, or is itself a reply.
    NotAQuery,
    /// Too many queries wait for upstreams.
    Busy,
}

thread_local! {
    /// Replies to messages of streams are written here: one buffer for a thousand connections.
    static SCRATCH: RefCell<(Scratch, Box<[u8]>)> = RefCell::new((Scratch::new(0), vec![0; MAX_REPLY].into()));
}

impl Handler {
    /// Answers from this table and, for names outside the cluster, from this forwarder.
    pub fn new(table: Published, forwarder: Option<Arc<Forwarder>>) -> Arc<Handler> {
        Arc::new(Handler { table, forwarder })
    }

    /// The table that is published now.
    #[inline]
    pub(super) fn zone(&self) -> arc_swap::Guard<Arc<Zone>> {
        self.table.load()
    }

    /// Writes the reply to a query, or queues the query for the forwarder's thread, which passes its reply to what
    /// `deferred` returns. Counts the query.
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
        if let Some((verdict, freshness)) = forwarder.answer(scratch.name(), octets, &request, received, reply) {
            counters.immediate.cache_hit(freshness == Freshness::Stale);
            return verdict;
        }
        let send = deferred();
        let client = Box::new(Waiting { send, counters: counters.deferred.clone(), from, octets: octets.len() });
        forwarder.hand_over(ClientQuery { query: octets.into(), request, from, received, client });
        Verdict::Forward(request)
    }

    /// Answers a message of a stream: calls `reply` with the reply at once, or has the forwarder's thread call what
    /// `deferred` returns with it. What `deferred` returns is dropped if no reply comes.
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

    /// The reply to one message of a stream, after the wait for an upstream if there is one.
    ///
    /// # Errors
    /// The reason why there is no reply.
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
                    // The receiver is gone if the client is.
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

/// Sends a reply from the forwarder's thread, or adds it to a batch: see [`Client::send`].
pub(super) trait SendReply: FnOnce(&[u8]) -> Option<Arc<dyn Outbox>> + Send + 'static {}

impl<F: FnOnce(&[u8]) -> Option<Arc<dyn Outbox>> + Send + 'static> SendReply for F {}

/// A client that waits for a reply of the forwarder's thread.
struct Waiting<S> {
    send: S,
    counters: Arc<Counters>,
    from: IpAddr,
    /// Length of its query.
    octets: usize,
}

impl<S: SendReply> Client for Waiting<S> {
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>> {
        self.counters.count(self.from, self.octets, verdict);
        self.counters.took(1, took);
        (self.send)(reply)
    }
}
