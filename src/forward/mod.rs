//! Forwarding: names outside the cluster are resolved by upstreams, and their replies are cached.
//!
//! A transport looks a query up in the cache through the [`Forwarder`], on its own thread. On a miss it enqueues the
//! query and moves on, so a worker never waits. One dedicated thread queries the upstreams and replies to the waiting
//! clients.

mod budget;
mod cache;
mod compose;
mod engine;
mod loops;
mod pool;
mod reader;
mod reply;
mod settings;
mod stats;
mod upstream;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::answer::{Cookie, ForwardReason, ForwardRequest, Scratch, Verdict, ZoneClass};
use crate::wire::flags;
use cache::{Cache, CacheKey, CacheLookup, key_flag};

pub use budget::{BusiestClients, ClientCounts, Share};
pub use cache::Bounds;
pub use engine::{StartedForwarder, start};
pub use reader::InvalidReply;
pub use reply::{Entry, Freshness, ReplyTo, Ttls};
pub use settings::{
    Address, Forwarding, InvalidAddress, RESOLV_CONF, RebindProtection, Stub, Upstream, nameservers, read,
};
pub use stats::{RCODES, TIME_BOUNDS, UpstreamStats};

/// Capacity of the forwarder's queue. Queries beyond it are dropped, as they would be by a full socket buffer.
const QUEUE_CAPACITY: usize = 4096;

/// A client that waits for a reply. It gets at most one.
pub trait Client: Send {
    /// Sends the reply, or adds it to an [`Outbox`]. Returns that outbox if it was empty, so that the caller flushes
    /// it. `verdict` and `took` are for metrics.
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>>;
}

/// A batch of replies. Sent one by one, each would cost a system call and a wakeup of its receiver.
pub trait Outbox: Send + Sync {
    /// Sends the whole batch.
    fn flush(&self);
}

/// A query handed to the forwarder's thread.
pub struct ClientQuery {
    /// The client's whole message.
    pub query: Box<[u8]>,
    /// The parsed parts of the query.
    pub request: ForwardRequest,
    /// The cookie of the reply, if the client sent one.
    pub cookie: Option<Cookie>,
    /// The client's address.
    pub from: IpAddr,
    /// Arrival time of the query.
    pub received: Instant,
    /// The recipient of the reply.
    pub client: Box<dyn Client>,
}

enum Job {
    ClientQuery(ClientQuery),
    /// Prefetch a popular entry that is about to expire.
    Refresh(CacheKey),
}

/// Counters of forwarding, except those of each upstream.
#[derive(Debug, Default)]
pub struct Counts {
    /// Cache misses.
    pub misses: AtomicU64,
    /// Stale replies sent by the forwarder's thread. The transports count their own.
    pub stale: AtomicU64,
    /// Popular entries that were prefetched before they expired.
    pub prefetches: AtomicU64,
    /// Queries rejected because too many were in flight or waiting.
    pub rejected: AtomicU64,
    /// Queries that joined an identical one in flight.
    pub joined: AtomicU64,
    /// Replies for public names that had private addresses, if `--rebind-protection` looks for them.
    pub rebinds: AtomicU64,
}

/// Cached replies and counters of forwarding, written by the forwarder's thread and read by any thread.
pub struct ForwardCache {
    entries: Cache,
    epoch: Instant,
    /// UDP payload size that the OPT record of replies announces, in bytes.
    payload: u16,
    /// See [`Counts`].
    pub counts: Counts,
    /// The clients that cause most of the upstreams' work.
    pub busiest: BusiestClients,
    upstreams: Mutex<Vec<Arc<UpstreamStats>>>,
}

/// The transports' interface to forwarding: cache lookups, and the queue of the forwarder's thread.
pub struct Forwarder {
    /// The cache and the counters.
    pub cache: Arc<ForwardCache>,
    jobs: mpsc::Sender<Job>,
}

/// Returns the query flags that are part of the cache key.
fn key_flags_of(request: &ForwardRequest) -> u8 {
    let when = |condition: bool, key_flag| if condition { key_flag } else { 0 };
    when(request.edns.is_some_and(|flags| flags & 0x80 != 0), key_flag::DNSSEC_OK)
        | when(request.flags & flags::CD != 0, key_flag::CHECKING_DISABLED)
        | when(request.flags & flags::RD == 0, key_flag::NOT_RECURSIVE)
}

impl Forwarder {
    /// Writes the cached reply, if there is one, without allocating and without holding a lock. `received` is the
    /// arrival time of the query.
    #[inline]
    pub fn answer(
        &self,
        scratch: &Scratch,
        query: &[u8],
        request: &ForwardRequest,
        received: Instant,
        reply: &mut [u8],
    ) -> Option<(Verdict, Freshness)> {
        if request.reason != ForwardReason::Outside {
            return None;
        }
        let wanted = CacheLookup::new(scratch.name().wire(), request.qtype, key_flags_of(request));
        let entry = self.cache.entries.get(&wanted).filter(|entry| !entry.leads_in)?;
        let freshness = entry.freshness(received.saturating_duration_since(self.cache.epoch).as_secs() as u32);
        match freshness {
            Freshness::Fresh(seconds) if entry.hit(seconds) => self.refresh(&wanted, &entry),
            Freshness::Expired => return None,
            _ => {}
        }
        let to = ReplyTo { query, request, cookie: scratch.cookie() };
        let len = entry.write(to, freshness, self.cache.payload, reply)?;
        Some((
            Verdict::Reply { len, rcode: entry.rcode, qtype: request.qtype, zone_class: ZoneClass::Other },
            freshness,
        ))
    }

    /// Requests a prefetch. This happens about once in the life of an entry, so it may allocate.
    #[cold]
    fn refresh(&self, wanted: &CacheLookup<'_>, entry: &Entry) {
        if self.jobs.try_send(Job::Refresh(wanted.key())).is_err() {
            entry.clear_refreshing();
        }
    }

    /// Enqueues a query for the forwarder's thread. If the queue is full the query is dropped; the client will retry.
    pub fn hand_over(&self, question: ClientQuery) {
        if self.jobs.try_send(Job::ClientQuery(question)).is_err() {
            self.cache.counts.rejected.fetch_add(1, Relaxed);
        }
    }
}

impl ForwardCache {
    /// Number of cached entries and their total size in bytes.
    pub fn size(&self) -> (usize, u64) {
        self.entries.size()
    }

    /// Statistics of each upstream in the current configuration.
    pub fn upstreams(&self) -> Vec<Arc<UpstreamStats>> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
