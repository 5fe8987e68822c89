//! Names that are not the cluster's: asked of others, and what they say kept.
//!
//! A transport asks the [`Forwarder`] for what is kept, on its own thread; what is not kept it hands over, and goes on. One
//! thread of the forwarder's own asks upstreams and replies to whoever waits. A worker never waits for it.

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

use crate::answer::{ForwardReason, ForwardRequest, Verdict, ZoneClass};
use crate::wire::{Name, flags};
use cache::{Cache, CacheKey, CacheLookup, mark};

pub use cache::Bounds;
pub use engine::{StartedForwarder, start};
pub use reply::{Entry, Freshness, InvalidReply, Ttls};
pub use settings::{Address, Forwarding, NoAddress, RESOLV_CONF, Stub, Upstream, nameservers, read};
pub use stats::{RCODES, TIME_BOUNDS, UpstreamStats};

/// Questions that may wait for the forwarder's thread. A flood beyond it is dropped, as a full socket would drop it.
const WAITING: usize = 4096;

/// Who waits for a reply. It is sent once, or never.
pub trait Client: Send {
    /// Sends the reply, or puts it into an [`Outbox`], which it returns if that was empty before. `verdict` and `took` are
    /// for metrics.
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>>;
}

/// Replies that are sent together: one by one, each would cost a system call and wake its reader by itself.
pub trait Outbox: Send + Sync {
    /// Sends all of them.
    fn flush(&self);
}

/// A question that is handed over.
pub struct ClientQuery {
    /// The client's whole message.
    pub query: Box<[u8]>,
    /// What has been read of it.
    pub ask: ForwardRequest,
    /// Who asks.
    pub from: IpAddr,
    /// When it came.
    pub received: Instant,
    /// Where the reply goes.
    pub client: Box<dyn Client>,
}

enum Job {
    ClientQuery(ClientQuery),
    /// Something popular is about to expire.
    Refresh(CacheKey),
}

/// What is counted of forwarding, besides upstreams.
#[derive(Debug, Default)]
pub struct Counts {
    /// Questions that nothing kept answered.
    pub misses: AtomicU64,
    /// Answers past their time, for want of fresher ones: those that the forwarder's thread sent.
    pub stale: AtomicU64,
    /// Popular answers asked for again before they expired.
    pub prefetches: AtomicU64,
    /// Questions refused for want of room: too many in flight, or waiting.
    pub rejected: AtomicU64,
    /// Questions that joined one in flight.
    pub joined: AtomicU64,
}

/// What upstreams have said, and what is counted: written by the forwarder's thread, read by everyone.
pub struct ForwardCache {
    entries: Cache,
    epoch: Instant,
    /// What the OPT record of replies says, in octets.
    payload: u16,
    /// See [`Counts`].
    pub counts: Counts,
    upstreams: Mutex<Vec<Arc<UpstreamStats>>>,
}

/// What transports ask.
pub struct Forwarder {
    /// See [`ForwardCache`].
    pub cache: Arc<ForwardCache>,
    jobs: mpsc::Sender<Job>,
}

/// The marks of a question.
fn marks_of(ask: &ForwardRequest) -> u8 {
    let when = |condition: bool, mark| if condition { mark } else { 0 };
    when(ask.edns.is_some_and(|flags| flags & 0x80 != 0), mark::DNSSEC_OK)
        | when(ask.flags & flags::CD != 0, mark::CHECKING_DISABLED)
        | when(ask.flags & flags::RD == 0, mark::NOT_RECURSIVE)
}

impl Forwarder {
    /// The reply, if it is kept: no lock is held while it is written, nothing is allocated. `received` is when the query
    /// came.
    #[inline]
    pub fn answer(
        &self,
        name: &Name,
        query: &[u8],
        ask: &ForwardRequest,
        received: Instant,
        reply: &mut [u8],
    ) -> Option<(Verdict, Freshness)> {
        if ask.reason != ForwardReason::Outside {
            return None;
        }
        let wanted = CacheLookup::new(name.wire(), ask.qtype, marks_of(ask));
        let entry = self.cache.entries.get(&wanted).filter(|entry| !entry.leads_in)?;
        let age = entry.age(received.saturating_duration_since(self.cache.epoch).as_secs() as u32);
        match age {
            Freshness::Fresh(seconds) if entry.hit(seconds) => self.refresh(&wanted, &entry),
            Freshness::Expired => return None,
            _ => {}
        }
        let len = entry.write(query, ask, age, self.cache.payload, reply)?;
        Some((Verdict::Reply { len, rcode: entry.rcode, qtype: ask.qtype, zone_class: ZoneClass::Other }, age))
    }

    /// Has something popular asked for again. It happens once in the life of an entry, and may allocate.
    #[cold]
    fn refresh(&self, wanted: &CacheLookup<'_>, entry: &Entry) {
        if self.jobs.try_send(Job::Refresh(wanted.key())).is_err() {
            entry.refreshed();
        }
    }

    /// Hands a question over. Where too many wait it is dropped: who asks will ask again.
    pub fn hand_over(&self, question: ClientQuery) {
        if self.jobs.try_send(Job::ClientQuery(question)).is_err() {
            self.cache.counts.rejected.fetch_add(1, Relaxed);
        }
    }
}

impl ForwardCache {
    /// Entries and octets that are kept now.
    pub fn size(&self) -> (usize, u64) {
        self.entries.size()
    }

    /// What is counted of each upstream that is asked now.
    pub fn upstreams(&self) -> Vec<Arc<UpstreamStats>> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
