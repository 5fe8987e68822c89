//! Counters of the server threads. Each thread has its own set, on its own cache lines, and is its only writer. An
//! increment is therefore a plain load and store, and a scrape adds up the sets.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::mmsg::Unsent;
use crate::answer::{Verdict, ZoneClass};
use crate::histogram::{Histogram, HistogramCounts, add};
use crate::wire::rtype;

/// Query types that are counted by name; the last entry covers all other types.
pub const TYPES: [(u16, &str); 12] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::PTR, "PTR"),
    (rtype::CNAME, "CNAME"),
    (rtype::TXT, "TXT"),
    (rtype::SOA, "SOA"),
    (rtype::NS, "NS"),
    (15, "MX"),
    (65, "HTTPS"),
    (rtype::ANY, "ANY"),
    (0, "other"),
];

/// All zone classes, in the declaration order of the enum.
pub const ZONE_CLASSES: [ZoneClass; 4] = [ZoneClass::Cluster, ZoneClass::Reverse, ZoneClass::Short, ZoneClass::Other];

/// Response codes that are counted, with their mnemonics (IANA DNS parameters).
pub const RCODES: [(u16, &str); 7] =
    [(0, "NOERROR"), (1, "FORMERR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (4, "NOTIMP"), (5, "REFUSED"), (16, "BADVERS")];

/// The reasons for not sending a reply, in the declaration order of `Unsent`.
pub const UNSENT: [&str; 3] = ["full", "unreachable", "other"];

/// Upper bounds of the duration histogram, in nanoseconds.
pub const DURATION_BOUNDS: [u64; 9] =
    [1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000, 100_000_000];

/// Upper bounds of the size histograms, in octets.
pub const SIZE_BOUNDS: [u64; 6] = [64, 128, 256, 512, 1232, 4096];

/// Counters of one thread.
#[derive(Default)]
#[repr(align(128))]
pub struct Counters {
    /// Indexed by address family (IPv4, IPv6), zone class and query type.
    requests: [[[AtomicU64; TYPES.len()]; ZONE_CLASSES.len()]; 2],
    responses: [AtomicU64; RCODES.len()],
    durations: Histogram<{ DURATION_BOUNDS.len() }>,
    request_sizes: Histogram<{ SIZE_BOUNDS.len() }>,
    response_sizes: Histogram<{ SIZE_BOUNDS.len() }>,
    /// Calls of [`took`](Counters::took): a sign of life.
    batches: AtomicU64,
    dropped: AtomicU64,
    /// Indexed by `Unsent`.
    unsent: [AtomicU64; UNSENT.len()],
    cache_hits: AtomicU64,
    stale: AtomicU64,
    limited: AtomicU64,
    shed: AtomicU64,
}

/// Values of [`Counters`] at one point in time.
#[derive(Clone, Debug, Default)]
pub struct CounterValues {
    /// Indexed by address family (IPv4, IPv6), zone class and query type.
    pub requests: [[[u64; TYPES.len()]; ZONE_CLASSES.len()]; 2],
    /// Indexed as [`RCODES`].
    pub responses: [u64; RCODES.len()],
    /// By [`DURATION_BOUNDS`].
    pub durations: HistogramCounts<{ DURATION_BOUNDS.len() }>,
    /// By [`SIZE_BOUNDS`].
    pub request_sizes: HistogramCounts<{ SIZE_BOUNDS.len() }>,
    /// By [`SIZE_BOUNDS`].
    pub response_sizes: HistogramCounts<{ SIZE_BOUNDS.len() }>,
    /// Messages without a reply: those that are too short for a header, and those that are replies themselves.
    pub dropped: u64,
    /// Replies that the operating system refused to send, indexed as [`UNSENT`].
    pub unsent: [u64; UNSENT.len()],
    /// Queries answered from the forward cache.
    pub cache_hits: u64,
    /// Cache hits that were served stale.
    pub stale: u64,
    /// Replies that were truncated or dropped because their client's network is over its rate.
    pub limited: u64,
    /// Queries of the busiest clients that got no answer because the worker was overloaded.
    pub shed: u64,
}

impl Counters {
    /// Counts one message and its outcome.
    #[inline]
    pub fn count(&self, from: IpAddr, octets: usize, verdict: &Verdict) {
        let (len, rcode, qtype, zone_class) = match *verdict {
            Verdict::Reply { len, rcode, qtype, zone_class } => (len, rcode, qtype, zone_class),
            // Counted together with its reply.
            Verdict::Forward(_) => return,
            Verdict::Drop => return add(&self.dropped, 1),
        };
        let qtype_index =
            TYPES.iter().position(|(known, _)| *known == qtype).filter(|_| qtype != 0).unwrap_or(TYPES.len() - 1);
        add(&self.requests[usize::from(from.is_ipv6())][zone_class as usize][qtype_index], 1);
        if let Some(index) = RCODES.iter().position(|(known, _)| *known == rcode) {
            add(&self.responses[index], 1);
        }
        self.request_sizes.observe(&SIZE_BOUNDS, octets as u64, 1);
        self.response_sizes.observe(&SIZE_BOUNDS, len as u64, 1);
    }

    /// Adds `messages` observations of `time`, which runs from receiving a query to sending its reply.
    #[inline]
    pub fn took(&self, messages: usize, time: Duration) {
        self.durations.observe(&DURATION_BOUNDS, time.as_nanos() as u64, messages as u64);
        add(&self.batches, 1);
    }

    /// Returns the number of queries that have been answered.
    pub fn queries(&self) -> u64 {
        self.requests.iter().flatten().flatten().map(|count| count.load(Relaxed)).sum()
    }

    /// Returns how often [`took`](Self::took) was called.
    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Relaxed)
    }

    /// Counts a reply that could not be sent.
    pub(super) fn unsent(&self, reason: Unsent) {
        add(&self.unsent[reason as usize], 1);
    }

    /// Counts a reply that was truncated or dropped because its client's network is over its rate.
    pub(super) fn limited(&self) {
        add(&self.limited, 1);
    }

    /// Counts a query that gets no answer because the worker is overloaded.
    pub(super) fn shed(&self) {
        add(&self.shed, 1);
    }

    /// Counts a reply from the forward cache.
    #[inline]
    pub fn cache_hit(&self, stale: bool) {
        add(&self.cache_hits, 1);
        add(&self.stale, u64::from(stale));
    }

    /// Returns the current values.
    pub fn snapshot(&self) -> CounterValues {
        fn read<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
            std::array::from_fn(|index| counters[index].load(Relaxed))
        }
        CounterValues {
            requests: std::array::from_fn(|family| {
                std::array::from_fn(|zone_class| read(&self.requests[family][zone_class]))
            }),
            responses: read(&self.responses),
            durations: self.durations.counts(),
            request_sizes: self.request_sizes.counts(),
            response_sizes: self.response_sizes.counts(),
            dropped: self.dropped.load(Relaxed),
            unsent: read(&self.unsent),
            cache_hits: self.cache_hits.load(Relaxed),
            stale: self.stale.load(Relaxed),
            limited: self.limited.load(Relaxed),
            shed: self.shed.load(Relaxed),
        }
    }
}

impl CounterValues {
    /// Adds the values of another thread.
    pub fn add(&mut self, other: &CounterValues) {
        fn each(to: &mut [u64], from: &[u64]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        for (to, from) in self.requests.iter_mut().flatten().zip(other.requests.iter().flatten()) {
            each(to, from);
        }
        each(&mut self.responses, &other.responses);
        self.durations.add(&other.durations);
        self.request_sizes.add(&other.request_sizes);
        self.response_sizes.add(&other.response_sizes);
        self.dropped += other.dropped;
        each(&mut self.unsent, &other.unsent);
        self.cache_hits += other.cache_hits;
        self.stale += other.stale;
        self.limited += other.limited;
        self.shed += other.shed;
    }
}
