//! What a UDP worker leaves unanswered when more arrives than it can answer.
//!
//! Its queue would overflow, and everyone would lose queries, in proportion to what they sent. Instead, those who send
//! most go without answers first. Reading a query costs a fraction of answering it, so the queue stays short, and
//! clients that ask little are all answered. Nothing is counted while the worker keeps up, nor if a single client is
//! the load, because then no other client needs protection.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::mmsg::BATCH;

/// Full batches in a row after which the worker counts as overloaded.
const OVERLOADED: u32 = 8;
/// Queries after which the limit is adapted, and counting starts anew.
const ROUND: u32 = 1024;
/// The first limit of an overload, and the lowest and the highest one: queries of one client in a round. It falls fast
/// and rises slowly, because a queue that is full delays everyone.
const FIRST: u32 = 16;
const LOWEST: u32 = 4;
const HIGHEST: u32 = 64;
/// Number of counters. Clients that share one by chance share a limit for as long as the load lasts.
const COUNTERS: usize = 4096;

/// Chooses the queries of an overloaded worker that get no answer.
pub(super) struct Shedder {
    hashes: RandomState,
    /// Queries of each client in this round.
    counts: Box<[u32]>,
    /// Queries in this round.
    total: u32,
    /// The largest of `counts`.
    most: u32,
    /// Queries of a client in a round that are answered; [`ROUND`] means all.
    limit: u32,
    /// Full batches in a row.
    full: u32,
}

impl Shedder {
    pub(super) fn new() -> Shedder {
        let counts = vec![0; COUNTERS].into();
        Shedder { hashes: RandomState::new(), counts, total: 0, most: 0, limit: ROUND, full: 0 }
    }

    /// Notes how many queries a batch has. Returns whether [`admits`](Self::admits) has to decide about each of them.
    #[inline]
    pub(super) fn is_needed(&mut self, received: usize) -> bool {
        if received == BATCH {
            self.full += 1;
        } else {
            self.full = 0;
        }
        self.full >= OVERLOADED || self.limit < ROUND
    }

    /// Whether a query of this client is answered. Allocates nothing.
    #[cold]
    pub(super) fn admits(&mut self, client: IpAddr) -> bool {
        if self.total >= ROUND {
            let is_one_client = self.most > ROUND / 20 * 19;
            self.limit = match self.full >= OVERLOADED {
                _ if is_one_client => ROUND,
                true if self.limit == ROUND => FIRST,
                true => (self.limit / 2).max(LOWEST),
                false if self.limit >= HIGHEST => ROUND,
                false => 2 * self.limit,
            };
            (self.total, self.most) = (0, 0);
            self.counts.fill(0);
        }
        self.total += 1;
        let Some(count) = self.counts.get_mut(self.hashes.hash_one(client) as usize % COUNTERS) else { return true };
        *count += 1;
        self.most = self.most.max(*count);
        *count <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers batches, in which every client has this many queries; returns how many of each were answered.
    fn answered(shedder: &mut Shedder, batches: usize, received: usize, clients: &[(IpAddr, usize)]) -> Vec<usize> {
        let mut answered = vec![0; clients.len()];
        for _ in 0..batches {
            let is_needed = shedder.is_needed(received);
            for (place, (client, count)) in clients.iter().enumerate() {
                answered[place] += (0..*count).filter(|_| !is_needed || shedder.admits(*client)).count();
            }
        }
        answered
    }

    #[test]
    fn those_who_send_most_go_without_answers_first() {
        let [first, second, honest] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let flood = [(first, 40), (second, 23), (honest, 1)];
        let mut shedder = Shedder::new();
        assert_eq!(answered(&mut shedder, 7, BATCH, &flood), [280, 161, 7], "a burst is answered");
        let found = answered(&mut shedder, 2000, BATCH, &flood);
        assert_eq!(shedder.limit, LOWEST);
        assert!(found[0] < 2000 && found[1] < 2000, "a flood is not: {found:?}");
        // A client that asks less than the lowest limit loses nothing.
        let mut lost = 0;
        for batch in 0..640 {
            let is_asking = batch % 8 == 0;
            let clients = [(first, BATCH - usize::from(is_asking)), (honest, usize::from(is_asking))];
            lost += usize::from(is_asking) - answered(&mut shedder, 1, BATCH, &clients)[1];
        }
        assert_eq!(lost, 0);
        // Once the queue is empty, everyone is answered again.
        answered(&mut shedder, 3000, 3, &[(first, 2), (second, 1)]);
        assert_eq!(shedder.limit, ROUND);
        assert_eq!(answered(&mut shedder, 5, 3, &[(first, 3)]), [15]);
    }

    #[test]
    fn a_single_client_is_never_limited() {
        let mut shedder = Shedder::new();
        let client = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(answered(&mut shedder, 10_000, BATCH, &[(client, BATCH)]), [10_000 * BATCH]);
    }
}
