//! One way of answering for every transport that carries whole messages: TCP, TLS, HTTPS, QUIC.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Counters, Published};
use crate::answer::{Limit, Scratch, Verdict, answer};
use crate::forward::{Client, ClientQuery, Forwarder, Freshness, Outbox};
use crate::zone::Caller;

/// Longest query that is read into memory, in octets.
pub(super) const MAX_QUERY: usize = 4096;
/// Largest reply.
const REPLY: usize = 65_535;

/// What answers come from.
pub struct Handler {
    table: Published,
    forwarder: Option<Arc<Forwarder>>,
}

/// What is counted of one transport.
#[derive(Clone, Default)]
pub struct TransportCounters {
    /// Of replies at once: the transport's thread writes them.
    pub counters: Arc<Counters>,
    /// Of replies that were waited for: the forwarder's thread writes them.
    pub late: Arc<Counters>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handled {
    /// Its reply was handed out.
    Replied,
    /// Its reply has to be waited for.
    Waits,
    /// It gets none: no header, or a reply itself.
    Dropped,
}

/// Why a message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoReply {
    /// It has no header, or is a reply itself.
    NoQuery,
    /// Too many wait for upstreams.
    Busy,
}

thread_local! {
    /// Replies are made here and kept only as long as they are: one buffer for a thousand connections.
    static SCRATCH: RefCell<(Scratch, Box<[u8]>)> = RefCell::new((Scratch::new(0), vec![0; REPLY].into()));
}

impl Handler {
    /// Answers from this table and, for names that are not the cluster's, from this forwarder.
    pub fn new(table: Published, forwarder: Option<Arc<Forwarder>>) -> Arc<Handler> {
        Arc::new(Handler { table, forwarder })
    }

    /// Answers one message: calls `reply` with the reply, or hands what `later` makes to the forwarder, which calls it with
    /// the reply or drops it.
    pub(super) fn handle<L: FnOnce(&[u8]) + Send + 'static>(
        &self,
        tally: &TransportCounters,
        from: IpAddr,
        message: &[u8],
        reply: impl FnOnce(&[u8]),
        later: impl FnOnce() -> L,
    ) -> Handled {
        SCRATCH.with_borrow_mut(|(scratch, buffer)| {
            let start = Instant::now();
            let caller = Caller::Address(from);
            let mut verdict = answer(&self.table.load(), caller, message, Limit::Stream, scratch, buffer);
            if let (Verdict::Forward(ask), Some(forwarder)) = (verdict, &self.forwarder) {
                match forwarder.answer(scratch.name(), message, &ask, start, buffer) {
                    Some((kept, age)) => {
                        tally.counters.cache_hit(age == Freshness::Stale);
                        verdict = kept;
                    }
                    None => {
                        let (counters, octets) = (tally.late.clone(), message.len());
                        let client = Box::new(Waiting { send: later(), counters, from, octets });
                        forwarder.hand_over(ClientQuery { query: message.into(), ask, from, received: start, client });
                        return Handled::Waits;
                    }
                }
            }
            tally.counters.count(from, message.len(), &verdict);
            let Verdict::Reply { len, .. } = verdict else { return Handled::Dropped };
            reply(&buffer[..len]);
            tally.counters.took(1, start.elapsed());
            Handled::Replied
        })
    }

    /// The reply to one message, waited for if need be.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn reply(
        &self,
        tally: &TransportCounters,
        from: IpAddr,
        message: &[u8],
    ) -> Result<Vec<u8>, NoReply> {
        let (mut now, mut later) = (None, None);
        let handled = self.handle(
            tally,
            from,
            message,
            |reply| now = Some(reply.to_vec()),
            || {
                let (sender, receiver) = oneshot::channel();
                later = Some(receiver);
                // Who asked may have gone.
                move |reply: &[u8]| drop(sender.send(reply.to_vec()))
            },
        );
        match (handled, later) {
            (Handled::Waits, Some(later)) => later.await.map_err(|_| NoReply::Busy),
            _ => now.ok_or(NoReply::NoQuery),
        }
    }
}

/// Who waits for a reply of the forwarder's.
struct Waiting<L> {
    send: L,
    counters: Arc<Counters>,
    from: IpAddr,
    octets: usize,
}

impl<L: FnOnce(&[u8]) + Send> Client for Waiting<L> {
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>> {
        self.counters.count(self.from, self.octets, verdict);
        self.counters.took(1, took);
        (self.send)(reply);
        None
    }
}
