//! What is counted of each upstream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Upper bounds of the histogram of times, in microseconds.
pub const TIME_BOUNDS: [u64; 8] = [250, 1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000, 4_000_000];
/// Response codes that are counted by name.
pub const RCODES: [(u16, &str); 5] = [(0, "NOERROR"), (1, "FORMERR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED")];

/// What is counted of one server, read by whoever scrapes.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    /// The server, as it was named.
    pub server: String,
    /// Questions sent.
    pub requests: AtomicU64,
    /// Replies by [`RCODES`], and all others.
    pub responses: [AtomicU64; RCODES.len() + 1],
    /// Questions that got no reply in time.
    pub timeouts: AtomicU64,
    /// Questions that could not be sent, and connections that broke.
    pub errors: AtomicU64,
    /// Replies that could not be used: damaged, or in a circle.
    pub unfit: AtomicU64,
    /// Messages that answered no question of ours: late, or forged.
    pub foreign: AtomicU64,
    /// Times to reply by [`TIME_BOUNDS`], the last above them all.
    pub times: [AtomicU64; TIME_BOUNDS.len() + 1],
    /// Sum of these times in microseconds.
    pub time: AtomicU64,
    /// Whether it is asked last, for it does not reply.
    pub down: AtomicBool,
    /// Whether what is asked of it comes back to us.
    pub looping: AtomicBool,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
