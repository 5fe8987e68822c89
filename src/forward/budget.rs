//! Shares of the upstreams' work, so that one client, or the names of one zone, never take all of it.
//!
//! Only queries that neither the table nor the cache can answer count. While less than a quarter of the places is
//! taken, everyone is served. Beyond that, a client or a zone that already has a quarter of the places, or has used up
//! its rate, is refused, and the others still find room.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use super::{ClientQuery, Outbox};
use crate::answer::Verdict;
use crate::wire::Name;

/// Number of parts of the places, of which a client or a zone gets one when places are scarce.
const PARTS: usize = 4;
/// Queries a second of one client or zone when places are scarce, and as many again in a burst.
const RATE: NonZeroU32 = NonZeroU32::new(1000).unwrap();
/// Number of rates above which those that are full again are forgotten.
const MAX_RATES: usize = 4096;
/// Clients' queries that may wait, for each place.
const WAITING_PER_PLACE: usize = 16;
/// Labels of the names of a zone. Where zones are really cut is known only to their servers.
const ZONE_LABELS: usize = 2;
/// Maximum number of clients that are counted by address, and of namespaces whose refusals are counted.
const MAX_COUNTED: usize = 256;
/// Time after which the counts of clients are halved, so that they show what happens now.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// Whose share is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Share {
    /// The client's.
    Client,
    /// The zone's.
    Zone,
}

impl Share {
    /// Returns the name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Share::Client => "client",
            Share::Zone => "zone",
        }
    }
}

/// The shares of clients and zones.
pub(super) struct Budget {
    places: usize,
    clients: Shares<IpAddr>,
    zones: Shares<Box<[u8]>>,
    /// Clients' queries that wait for an upstream query, which they may share with others.
    waiting: Shares<IpAddr>,
    total_waiting: Cell<usize>,
}

/// The places and rates of one kind of key.
struct Shares<K: Hash + Eq + Clone> {
    taken: RefCell<HashMap<K, usize>>,
    rates: RateLimiter<K, HashMapStateStore<K>, MonotonicClock, NoOpMiddleware<<MonotonicClock as Clock>::Instant>>,
}

/// A client's query that waits for an upstream, counted until it is dropped.
pub(super) struct Waiting {
    query: ClientQuery,
    _place: WaitingPlace,
}

struct WaitingPlace {
    budget: Rc<Budget>,
    client: IpAddr,
}

/// A place of a client and a zone, given back on drop.
pub(super) struct Place {
    budget: Rc<Budget>,
    client: IpAddr,
    zone: Box<[u8]>,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    fn new() -> Shares<K> {
        let clock = MonotonicClock;
        let rates = RateLimiter::new(Quota::per_second(RATE), HashMapStateStore::default(), clock);
        Shares { taken: RefCell::default(), rates }
    }

    /// Whether one more query of `key` is within its rate. Uses up a part of the rate.
    fn is_within_rate(&self, key: &K) -> bool {
        // The keys come from strangers.
        if self.rates.len() > MAX_RATES {
            self.rates.retain_recent();
        }
        self.rates.check_key(key).is_ok()
    }

    fn taken(&self, key: &K) -> usize {
        self.taken.borrow().get(key).copied().unwrap_or(0)
    }

    fn take(&self, key: &K) {
        *self.taken.borrow_mut().entry(key.clone()).or_default() += 1;
    }

    fn give_back(&self, key: &K) {
        let mut taken = self.taken.borrow_mut();
        if let Some(count) = taken.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(key);
            }
        }
    }
}

impl Budget {
    /// Creates a budget of this many places.
    pub(super) fn new(places: usize) -> Rc<Budget> {
        let (clients, zones, waiting) = (Shares::new(), Shares::new(), Shares::new());
        Rc::new(Budget { places, clients, zones, waiting, total_waiting: Cell::new(0) })
    }

    /// Returns the number of clients' queries that wait.
    pub(super) fn waiting(&self) -> usize {
        self.total_waiting.get()
    }

    /// Lets a client's query wait.
    ///
    /// # Errors
    /// The query, if its client's share of those that wait is used up.
    pub(super) fn wait(self: &Rc<Self>, query: ClientQuery) -> Result<Waiting, ClientQuery> {
        let (client, total) = (query.from, self.total_waiting.get());
        let most = self.places * WAITING_PER_PLACE;
        let is_over = total >= most.div_ceil(PARTS) && self.waiting.taken(&client) >= most.div_ceil(PARTS);
        if total >= most || is_over {
            return Err(query);
        }
        self.waiting.take(&client);
        self.total_waiting.set(total + 1);
        Ok(Waiting { query, _place: WaitingPlace { budget: self.clone(), client } })
    }

    /// Takes a place for a query of this client. `taken` is the number of places that are taken.
    ///
    /// # Errors
    /// Whose share is used up.
    pub(super) fn admit(self: &Rc<Self>, client: IpAddr, name: &Name, taken: usize) -> Result<Place, Share> {
        let most = self.places.div_ceil(PARTS);
        let zone = Box::from(name.span(name.labels().saturating_sub(ZONE_LABELS), name.labels()));
        if taken >= most {
            if self.clients.taken(&client) >= most {
                return Err(Share::Client);
            }
            if self.zones.taken(&zone) >= most {
                return Err(Share::Zone);
            }
            if !self.clients.is_within_rate(&client) {
                return Err(Share::Client);
            }
            if !self.zones.is_within_rate(&zone) {
                return Err(Share::Zone);
            }
        }
        self.clients.take(&client);
        self.zones.take(&zone);
        Ok(Place { budget: self.clone(), client, zone })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.budget.clients.give_back(&self.client);
        self.budget.zones.give_back(&self.zone);
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.budget.waiting.give_back(&self.client);
        self.budget.total_waiting.set(self.budget.total_waiting.get() - 1);
    }
}

impl Deref for Waiting {
    type Target = ClientQuery;

    fn deref(&self) -> &ClientQuery {
        &self.query
    }
}

impl Waiting {
    /// Sends the reply; see [`Client::send`](super::Client::send).
    pub(super) fn send(self, reply: &[u8], verdict: &Verdict) -> Option<Arc<dyn Outbox>> {
        let took = self.query.received.elapsed();
        self.query.client.send(reply, verdict, took)
    }
}

/// What one client has asked of the upstreams lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// Queries that neither the table nor the cache could answer.
    pub misses: u64,
    /// Those of them that were refused, because a share was used up.
    pub refused: u64,
}

/// The busiest clients, by the Space-Saving algorithm: an address that is not counted yet takes the place of the least
/// busy one and inherits its count, so that a busy client is never missed.
#[derive(Debug, Default)]
pub struct BusiestClients(Mutex<Busiest>);

#[derive(Debug, Default)]
struct Busiest {
    clients: HashMap<IpAddr, ClientCounts>,
    /// Refusals by namespace of the caller, since the start.
    refusals: HashMap<(Box<str>, Share), u64>,
    halved: Option<Instant>,
}

impl BusiestClients {
    /// Counts a miss.
    pub(super) fn miss(&self, client: IpAddr) {
        let busiest = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if busiest.halved.is_none_or(|last| now.duration_since(last) > HALF_LIFE) {
            busiest.halved = Some(now);
            busiest.clients.retain(|_, counts| {
                *counts = ClientCounts { misses: counts.misses / 2, refused: counts.refused / 2 };
                counts.misses > 0
            });
        }
        let clients = &mut busiest.clients;
        let mut counts = ClientCounts::default();
        if clients.len() >= MAX_COUNTED && !clients.contains_key(&client) {
            let least = clients.iter().min_by_key(|(_, counts)| counts.misses).map(|(client, _)| *client);
            counts = least.and_then(|least| clients.remove(&least)).unwrap_or_default();
            counts.refused = 0;
        }
        clients.entry(client).or_insert(counts).misses += 1;
    }

    /// Counts a refusal of a client in this namespace; empty if it is not known.
    pub(super) fn refuse(&self, client: IpAddr, namespace: &str, share: Share) {
        let busiest = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = busiest.clients.get_mut(&client) {
            counts.refused += 1;
        }
        let has_room = busiest.refusals.len() < MAX_COUNTED;
        let namespace =
            if has_room || busiest.refusals.keys().any(|(known, _)| **known == *namespace) { namespace } else { "" };
        *busiest.refusals.entry((namespace.into(), share)).or_default() += 1;
    }

    /// Returns the busiest clients, busiest first.
    pub fn clients(&self) -> Vec<(IpAddr, ClientCounts)> {
        let busiest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clients: Vec<_> = busiest.clients.iter().map(|(client, counts)| (*client, *counts)).collect();
        clients.sort_by_key(|(client, counts)| (std::cmp::Reverse(counts.misses), *client));
        clients
    }

    /// Returns the refusals by namespace and share, sorted.
    pub fn refusals(&self) -> Vec<((Box<str>, Share), u64)> {
        let busiest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refusals: Vec<_> = busiest.refusals.iter().map(|(key, count)| (key.clone(), *count)).collect();
        refusals.sort();
        refusals
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::name_from_text;

    fn client(last: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + last).into()
    }

    /// Takes places for as many of these queries as are admitted.
    fn admitted(budget: &Rc<Budget>, held: &mut Vec<Place>, from: IpAddr, zone: &str, count: usize) -> usize {
        let before = held.len();
        for index in 0..count {
            let wire = name_from_text(&format!("r{index}.{zone}")).unwrap();
            let name = Name::parse(&wire, 0).unwrap();
            held.extend(budget.admit(from, &name, held.len()));
        }
        held.len() - before
    }

    #[test]
    fn no_client_and_no_zone_takes_all_places() {
        let budget = Budget::new(100);
        let mut held = Vec::new();
        assert_eq!(admitted(&budget, &mut held, client(1), "dead.example", 1000), 25, "a client gets a quarter");
        assert_eq!(admitted(&budget, &mut held, client(2), "dead.example", 1000), 0, "and so does a zone");
        assert_eq!(admitted(&budget, &mut held, client(2), "other.example", 10), 10, "another zone is served");
        assert_eq!(admitted(&budget, &mut held, client(1), "third.example", 10), 0, "but not for that client");
        held.clear();
        assert!(budget.clients.taken.borrow().is_empty() && budget.zones.taken.borrow().is_empty(), "all are free");
        assert_eq!(admitted(&budget, &mut held, client(1), "dead.example", 1000), 25, "and can be taken again");
    }

    #[test]
    fn strangers_fill_no_memory() {
        let (budget, busiest) = (Budget::new(4), BusiestClients::default());
        let mut held = Vec::new();
        admitted(&budget, &mut held, client(0), "busy.example", 1);
        let honest = client(1_000_000);
        for index in 0..50_000 {
            busiest.miss(client(index));
            if index % 10 == 0 {
                busiest.miss(honest);
            }
            busiest.refuse(client(index), &format!("ns-{index}"), Share::Client);
            admitted(&budget, &mut Vec::new(), client(index), &format!("z{index}.example"), 2);
        }
        assert!(busiest.clients().len() <= MAX_COUNTED && busiest.refusals().len() <= MAX_COUNTED + 1);
        assert_eq!(busiest.clients()[0].0, honest, "the busiest is known");
        assert!(budget.clients.taken.borrow().len() <= 1 && budget.zones.taken.borrow().len() <= 1);
    }
}
