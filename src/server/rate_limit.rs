//! Response rate limiting: a forged sender cannot have more than a few replies a second sent to its victim.
//!
//! The limit is for each network of a client (IPv4 /24, IPv6 /56), as in other servers. Of the replies beyond it, every
//! second one is dropped, and the others are truncated: they are no longer than their query, and a client that is
//! really there repeats the query over TCP. Clients with a valid cookie, those on this host, and replies that are little
//! longer than their query are not limited.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Number of networks that are counted apart. Two networks can share a counter by chance, but not on purpose: which
/// ones do depends on a secret.
const NETWORKS: usize = 1 << 16;

/// What happens to a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    /// It is sent.
    Whole,
    /// It is sent without its records, with TC set.
    Truncated,
    /// It is not sent.
    Nothing,
}

/// Counts the replies to each network, by the generic cell rate algorithm: a counter is the time at which its network
/// has earned all replies that it got.
pub(super) struct RateLimit {
    hashes: RandomState,
    started: Instant,
    /// Nanoseconds since `started`.
    earned: Box<[AtomicU64]>,
    /// Nanoseconds that one reply costs.
    cost: u64,
}

/// How far ahead a network may be, in nanoseconds: one second's worth of replies.
const BURST: u64 = 1_000_000_000;

impl RateLimit {
    /// Creates a limit of this many replies a second; `None` if that is 0.
    pub(super) fn new(rate: u32) -> Option<RateLimit> {
        let cost = BURST.checked_div(u64::from(rate))?;
        let earned = (0..NETWORKS).map(|_| AtomicU64::new(0)).collect();
        Some(RateLimit { hashes: RandomState::new(), started: Instant::now(), earned, cost })
    }

    /// Decides about a reply to this client. Allocates nothing, and does not wait.
    pub(super) fn check(&self, client: IpAddr, now: Instant) -> Allowance {
        let network = match client {
            IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
            IpAddr::V6(v6) => 1 << 63 | (v6.to_bits() >> 72) as u64,
        };
        if client.is_loopback() {
            return Allowance::Whole;
        }
        let hash = self.hashes.hash_one(network);
        let now = now.saturating_duration_since(self.started).as_nanos() as u64;
        let Some(counter) = self.earned.get(hash as usize % NETWORKS) else { return Allowance::Whole };
        // Threads may overwrite each other's count; the limit is then a little higher.
        let earned = counter.load(Relaxed).max(now);
        if earned - now <= BURST - self.cost {
            counter.store(earned + self.cost, Relaxed);
            return Allowance::Whole;
        }
        // The low bit alternates, without a counter of its own.
        let limited = counter.load(Relaxed);
        counter.store(limited ^ 1, Relaxed);
        if limited & 1 == 0 { Allowance::Truncated } else { Allowance::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_network_gets_its_rate_and_half_of_the_rest_truncated() {
        let limit = RateLimit::new(100).unwrap();
        let start = Instant::now();
        let mut counts = [0_u32; 3];
        // Ten seconds of 1,000 queries a second, from all addresses of one network.
        for index in 0..10_000u64 {
            let client = IpAddr::from([192, 0, 2, index as u8]);
            let allowance = limit.check(client, start + Duration::from_millis(index));
            counts[allowance as usize] += 1;
        }
        let [whole, truncated, nothing] = counts;
        assert!((1080..=1110).contains(&whole), "100 a second, and as many in a burst: {whole}");
        assert!(truncated.abs_diff(nothing) < 500, "half are truncated: {truncated} and {nothing}");
        let other = limit.check([198, 51, 100, 1].into(), start + Duration::from_secs(5));
        assert_eq!(other, Allowance::Whole, "another network");
        for _ in 0..1000 {
            assert_eq!(limit.check([127, 0, 0, 1].into(), start), Allowance::Whole, "this host");
        }
        assert!(RateLimit::new(0).is_none());
    }
}
