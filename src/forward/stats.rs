//! Statistics of each upstream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::histogram::Histogram;

/// Upper bounds of the reply time histogram's buckets, in microseconds.
pub const TIME_BOUNDS: [u64; 8] = [250, 1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000, 4_000_000];
/// Response codes that have a counter of their own.
pub const RCODES: [(u16, &str); 5] = [(0, "NOERROR"), (1, "FORMERR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED")];

/// Statistics of one upstream, read by metrics and readiness.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    /// The server's address, as [`Address`](super::Address) formats it.
    pub server: String,
    /// Queries. Retransmits do not count.
    pub requests: AtomicU64,
    /// Replies by [`RCODES`]; the last counter is for all other codes.
    pub responses: [AtomicU64; RCODES.len() + 1],
    /// Queries that timed out.
    pub timeouts: AtomicU64,
    /// Queries that failed with a network error: not sent, or the connection failed.
    pub errors: AtomicU64,
    /// Replies that could not be used, for example malformed ones or CNAME loops.
    pub invalid: AtomicU64,
    /// Messages that matched no outstanding query: late or forged.
    pub mismatched: AtomicU64,
    /// Reply times by [`TIME_BOUNDS`].
    pub times: Histogram<{ TIME_BOUNDS.len() }>,
    /// Whether the server is down, and so queried last.
    pub down: AtomicBool,
    /// Whether the server forwards our queries back to us.
    pub looping: AtomicBool,
}

/// Increments a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
