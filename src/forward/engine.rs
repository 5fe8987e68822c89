//! The forwarder's thread: every question that is not answered from what is kept comes through here.
//!
//! It is one thread, so what it knows needs no locks. A question in flight is asked once, whoever joins it meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, sleep};

use super::cache::{Cache, CacheKey, CacheLookup};
use super::loops;
use super::pool::Pool;
use super::reply::{Entry, Freshness};
use super::settings::{self, Forwarding};
use super::upstream::{Server, UpstreamContext, UpstreamError, UpstreamQuery};
use super::{ClientQuery, ForwardCache, Forwarder, Job, Outbox, WAITING, marks_of};
use crate::answer::{ForwardReason, Verdict, ZoneClass};
use crate::watched::Watched;
use crate::wire::{HEADER_LEN, Name, extended_error, flags, rcode};
use crate::zone::{Domain, Zone};

/// Time that upstreams have in all: stub resolvers wait for five seconds (resolv.conf(5)), and have to hear of it.
const DEADLINE: Duration = Duration::from_secs(4);
/// Time after which a stale answer is sent while a fresh one is still asked for (RFC 8767 section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// Seconds that a stale answer is sent at once, after nothing fresher could be had (RFC 8767 section 5).
const STALE_FOR: u32 = 30;
/// Seconds that it is remembered that nobody answered (RFC 9520 section 3.2).
const SILENCE_TTL: u32 = 1;
/// Jobs taken at a time.
const BATCH: usize = 64;
/// Clients that wait for each question in flight, on average, before more are turned away.
const CLIENTS: usize = 16;

/// A forwarder that runs.
pub struct StartedForwarder {
    /// What transports ask.
    pub forwarder: Arc<Forwarder>,
    /// Its thread, which ends when nobody asks any more.
    pub thread: JoinHandle<()>,
}

/// Starts the forwarder.
///
/// # Errors
/// When the trust store is of no use, a folder cannot be watched, or the system gives no thread.
pub fn start(forwarding: Forwarding, table: Arc<ArcSwap<Zone>>, payload: u16) -> io::Result<StartedForwarder> {
    let tls = match forwarding.servers().any(|server| server.tls.is_some()) {
        true => Some(crate::tls::client(forwarding.authorities.as_deref()).map_err(io::Error::other)?),
        false => None,
    };
    let (jobs, incoming) = mpsc::channel(WAITING);
    let cache = Arc::new(ForwardCache {
        entries: Cache::new(forwarding.bounds),
        epoch: std::time::Instant::now(),
        payload,
        counts: super::Counts::default(),
        upstreams: std::sync::Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Of a link, what it leads to changes.
    let file = forwarding.file.as_deref().map(|file| file.canonicalize().unwrap_or_else(|_| file.to_owned()));
    let watched = match file.as_deref().and_then(Path::parent) {
        Some(folder) => Some(Watched::new(folder, "resolv-conf")?),
        None => None,
    };
    let forwarder = Arc::new(Forwarder { cache: cache.clone(), jobs });
    let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
        let engine = Engine::new(&forwarding, table, cache, tls);
        LocalSet::new().block_on(&runtime, engine.run(incoming, forwarding.file, watched));
    })?;
    Ok(StartedForwarder { forwarder, thread })
}

/// Who waits for an entry.
enum Waiter {
    Client(ClientQuery),
    Task(oneshot::Sender<(Arc<Entry>, Freshness)>),
}

/// A question in flight.
#[derive(Default)]
struct Flight {
    waiters: Vec<Waiter>,
    /// What is sent to whoever comes, since the upstreams take their time.
    meanwhile: Option<Arc<Entry>>,
}

/// Everything that the thread knows.
pub(super) struct Engine {
    pub(super) shared: Rc<UpstreamContext>,
    pub(super) table: Arc<ArcSwap<Zone>>,
    cache: Arc<ForwardCache>,
    /// Longest zone first; the last, of the root, is the upstreams'.
    pub(super) routes: Vec<(Domain, Pool)>,
    flights: RefCell<HashMap<CacheKey, Flight>>,
    waiting: Cell<usize>,
    /// Answers of several parts that are being made.
    composing: Cell<usize>,
    concurrent: usize,
    stale: u32,
    pub(super) search: Vec<Domain>,
    pub(super) buffer: RefCell<Box<[u8]>>,
    turn: Cell<u16>,
    /// Replies that are sent once nothing else is to be done at once.
    outboxes: RefCell<Vec<Arc<dyn Outbox>>>,
    replied: Notify,
    /// Names that were sent to see whether they come back.
    pub(super) probes: RefCell<HashMap<Box<[u8]>, Rc<Server>>>,
}

impl Engine {
    fn new(
        forwarding: &Forwarding,
        table: Arc<ArcSwap<Zone>>,
        cache: Arc<ForwardCache>,
        tls: Option<rustls::ClientConfig>,
    ) -> Rc<Engine> {
        let settings = table.load().settings.clone();
        let ours = move |name: &Name| settings.is_under_domain(name);
        let shared = UpstreamContext::new(cache.epoch, forwarding.ttls, tls, forwarding.concurrent, Box::new(ours));
        let shared = Rc::new(shared);
        let stubs = forwarding.stubs.iter().map(|stub| (stub.zone.clone(), &stub.servers));
        let rest = (Domain { wire: [0].into(), labels: 0 }, &forwarding.upstreams);
        let routes = stubs.chain([rest]).map(|(zone, servers)| (zone, Pool::new(servers, &shared))).collect();
        let engine = Engine {
            shared,
            table,
            cache,
            routes,
            flights: RefCell::default(),
            waiting: Cell::new(0),
            composing: Cell::new(0),
            concurrent: forwarding.concurrent,
            stale: forwarding.stale.as_secs() as u32,
            search: forwarding.search.clone(),
            buffer: RefCell::new(vec![0; usize::from(u16::MAX)].into()),
            turn: Cell::new(0),
            outboxes: RefCell::default(),
            replied: Notify::new(),
            probes: RefCell::default(),
        };
        engine.tell_upstreams();
        Rc::new(engine)
    }

    /// Which upstreams there are now, for metrics.
    fn tell_upstreams(&self) {
        let servers: Vec<_> = self.routes.iter().flat_map(|(_, pool)| pool.servers().to_vec()).collect();
        *self.cache.upstreams.lock().unwrap_or_else(PoisonError::into_inner) =
            servers.iter().map(|server| server.stats.clone()).collect();
    }

    /// Works until no transport is left that could ask, and what is in flight has landed.
    async fn run(self: Rc<Self>, mut jobs: mpsc::Receiver<Job>, file: Option<PathBuf>, watched: Option<Watched>) {
        if let (Some(path), Some(watched)) = (file, watched) {
            spawn_local(self.clone().follow(path, watched));
        }
        spawn_local(self.clone().look_for_loops());
        spawn_local(self.clone().flush());
        let mut batch = Vec::with_capacity(BATCH);
        while jobs.recv_many(&mut batch, BATCH).await > 0 {
            for job in batch.drain(..) {
                match job {
                    Job::ClientQuery(question) => self.take(question),
                    Job::Refresh(key) => self.refresh(key),
                }
            }
        }
        let end = Instant::now() + DEADLINE;
        while (!self.flights.borrow().is_empty() || self.composing.get() > 0) && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        for outbox in self.outboxes.borrow_mut().drain(..) {
            outbox.flush();
        }
    }

    /// Reads the file of upstreams again whenever it may have changed. One without servers changes nothing.
    async fn follow(self: Rc<Self>, path: PathBuf, watched: Watched) {
        let mut known = settings::read(&path).unwrap_or_default();
        loop {
            watched.changed().await;
            // Editors and kubelets write in steps.
            sleep(Duration::from_millis(50)).await;
            let found = match settings::read(&path) {
                Ok(found) if found == known => continue,
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "the upstreams known so far are asked on");
                    continue;
                }
            };
            let told: Vec<String> = found.iter().map(ToString::to_string).collect();
            tracing::info!(file = %path.display(), upstreams = told.join(" "), "upstreams have changed");
            if let Some((_, pool)) = self.routes.last() {
                pool.replace(&found, &self.shared);
            }
            self.tell_upstreams();
            known = found;
            self.clone().probe_all();
        }
    }

    /// TTL of what is the cluster's, in seconds.
    pub(super) fn ttl(&self) -> u32 {
        self.table.load().settings.ttl
    }

    /// Another number from one answer to the next, by which records take turns.
    pub(super) fn turn(&self) -> u16 {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    /// Whether a name lies under a cluster domain.
    pub(super) fn is_ours(&self, name: &Name) -> bool {
        self.table.load().settings.is_under_domain(name)
    }

    fn take(self: &Rc<Self>, question: ClientQuery) {
        let Ok(name) = Name::parse(&question.query, HEADER_LEN) else { return };
        if let Some(server) = self.probes.borrow_mut().remove(name.wire()) {
            return loops::found(&server);
        }
        if question.ask.reason != ForwardReason::Outside {
            if self.composing.get() >= self.concurrent * CLIENTS {
                self.cache.counts.rejected.fetch_add(1, Relaxed);
                return;
            }
            self.clone().put_together(question);
            return;
        }
        let key = CacheLookup::new(name.wire(), question.ask.qtype, marks_of(&question.ask)).key();
        self.want(key, Waiter::Client(question));
    }

    /// Has an answer of several parts made, in the time that an answer has.
    fn put_together(self: Rc<Self>, question: ClientQuery) {
        self.composing.set(self.composing.get() + 1);
        spawn_local(async move {
            self.clone().compose(question, Instant::now() + DEADLINE).await;
            self.composing.set(self.composing.get() - 1);
        });
    }

    /// What is kept, or can be had; `None` if nobody can be asked.
    pub(super) async fn lookup(self: &Rc<Self>, key: CacheKey) -> Option<(Arc<Entry>, Freshness)> {
        let (found, wait) = oneshot::channel();
        self.want(key, Waiter::Task(found));
        wait.await.ok()
    }

    fn want(self: &Rc<Self>, key: CacheKey, waiter: Waiter) {
        let now = self.shared.now();
        let cached = self.cache.entries.get(&key.parts());
        if let Some(entry) = &cached {
            let age = entry.age(now);
            if age != Freshness::Expired {
                return self.deliver(waiter, entry, age);
            }
        }
        self.cache.counts.misses.fetch_add(1, Relaxed);
        let stand_in = cached.filter(|entry| entry.may_stand_in(now, self.stale));
        let mut flights = self.flights.borrow_mut();
        let full = flights.len() >= self.concurrent;
        if let Some(flight) = flights.get_mut(&key) {
            self.cache.counts.joined.fetch_add(1, Relaxed);
            if let Some(entry) = flight.meanwhile.clone() {
                drop(flights);
                return self.deliver(waiter, &entry, Freshness::Stale);
            }
            if self.waiting.get() >= self.concurrent * CLIENTS {
                self.cache.counts.rejected.fetch_add(1, Relaxed);
                return;
            }
            self.waiting.set(self.waiting.get() + 1);
            flight.waiters.push(waiter);
            return;
        }
        if full {
            drop(flights);
            self.cache.counts.rejected.fetch_add(1, Relaxed);
            return match stand_in {
                Some(entry) => self.deliver(waiter, &entry, Freshness::Stale),
                None => {
                    self.deliver(waiter, &Arc::new(Entry::failure(&extended_error::OTHER, now, 0)), Freshness::Fresh(0))
                }
            };
        }
        self.waiting.set(self.waiting.get() + 1);
        flights.insert(key.clone(), Flight { waiters: vec![waiter], meanwhile: None });
        drop(flights);
        spawn_local(self.clone().fly(key, stand_in));
    }

    /// Asks again for what is about to expire.
    fn refresh(self: &Rc<Self>, key: CacheKey) {
        let entry = self.cache.entries.get(&key.parts());
        let mut flights = self.flights.borrow_mut();
        if flights.contains_key(&key) || flights.len() >= self.concurrent {
            if let Some(entry) = entry {
                entry.refreshed();
            }
            return;
        }
        self.cache.counts.prefetches.fetch_add(1, Relaxed);
        flights.insert(key.clone(), Flight::default());
        drop(flights);
        spawn_local(self.clone().fly(key, entry));
    }

    /// Asks, keeps what comes, and tells everyone who waits. `stand_in` is told where nothing fresh can be had.
    async fn fly(self: Rc<Self>, key: CacheKey, stand_in: Option<Arc<Entry>>) {
        let result = {
            let mut asking = std::pin::pin!(self.ask(&key));
            match &stand_in {
                None => asking.await,
                Some(entry) => tokio::select! {
                    biased;
                    result = &mut asking => result,
                    () = sleep(STALE_AFTER) => {
                        let age = entry.age(self.shared.now());
                        if entry.may_stand_in(self.shared.now(), self.stale) {
                            self.tell(&key, entry, if age == Freshness::Expired { Freshness::Stale } else { age }, true);
                        }
                        asking.await
                    }
                },
            }
        };
        let now = self.shared.now();
        match (result, stand_in) {
            (Ok(entry), _) => {
                let entry = Arc::new(entry);
                // Kept before it is told: who is told may ask again.
                if entry.ttl > 0 {
                    self.cache.entries.insert(key.clone(), entry.clone());
                }
                self.tell(&key, &entry, Freshness::Fresh(0), false);
            }
            (Err(_), Some(entry)) if entry.age(now) != Freshness::Expired || entry.may_stand_in(now, self.stale) => {
                entry.stand_in_until(now.saturating_add(STALE_FOR), self.stale);
                entry.refreshed();
                let age = entry.age(now);
                self.tell(&key, &entry, if age == Freshness::Expired { Freshness::Stale } else { age }, false);
            }
            (Err(trouble), _) => {
                let entry = Arc::new(match trouble {
                    // Its own word for why it failed is worth more than ours.
                    UpstreamError::Refused(entry) if entry.rcode == rcode::SERVFAIL => entry,
                    UpstreamError::Io => Entry::failure(&extended_error::NETWORK_ERROR, now, SILENCE_TTL),
                    _ => Entry::failure(&extended_error::NO_REACHABLE_AUTHORITY, now, SILENCE_TTL),
                });
                self.cache.entries.insert(key.clone(), entry.clone());
                self.tell(&key, &entry, Freshness::Fresh(0), false);
            }
        }
    }

    async fn ask(self: &Rc<Self>, key: &CacheKey) -> Result<Entry, UpstreamError> {
        let question = key.question();
        let name = Name::parse(&question, 0).map_err(|_| UpstreamError::Nobody)?;
        let route = self.routes.iter().find(|(zone, _)| name.below(&zone.wire, zone.labels).is_some());
        let Some((_, pool)) = route else { return Err(UpstreamError::Nobody) };
        let asked = UpstreamQuery { question: &question, marks: key.marks(), deadline: Instant::now() + DEADLINE };
        let result = pool.ask(&asked).await;
        // Who asks itself waits for itself: silence may be a loop.
        let silent = matches!(result, Err(UpstreamError::NoTrace));
        if silent || !pool.is_well() {
            for server in pool.servers().iter().filter(|server| silent || !server.is_up()) {
                self.probe(server);
            }
        }
        result
    }

    /// Tells everyone who waits for this. While it is still being asked for, those who come are told the same.
    fn tell(self: &Rc<Self>, key: &CacheKey, entry: &Arc<Entry>, age: Freshness, meanwhile: bool) {
        let waiters = {
            let mut flights = self.flights.borrow_mut();
            if meanwhile {
                let Some(flight) = flights.get_mut(key) else { return };
                flight.meanwhile = Some(entry.clone());
                std::mem::take(&mut flight.waiters)
            } else {
                flights.remove(key).map(|flight| flight.waiters).unwrap_or_default()
            }
        };
        self.waiting.set(self.waiting.get().saturating_sub(waiters.len()));
        for waiter in waiters {
            self.deliver(waiter, entry, age);
        }
    }

    fn deliver(self: &Rc<Self>, waiter: Waiter, entry: &Arc<Entry>, age: Freshness) {
        if age == Freshness::Stale {
            self.cache.counts.stale.fetch_add(1, Relaxed);
        }
        match waiter {
            Waiter::Task(found) => {
                let _ = found.send((entry.clone(), age));
            }
            Waiter::Client(question) if entry.leads_in => {
                self.clone().put_together(question);
            }
            Waiter::Client(question) => self.reply(question, entry, age, false),
        }
    }

    /// Sends an entry as the reply.
    pub(super) fn reply(&self, question: ClientQuery, entry: &Entry, age: Freshness, authoritative: bool) {
        let mut buffer = self.buffer.borrow_mut();
        let ask = &question.ask;
        let Some(len) = entry.write(&question.query, ask, age, self.cache.payload, &mut buffer) else { return };
        if let Some(octet) = buffer.get_mut(2).filter(|_| authoritative) {
            *octet |= (flags::AA >> 8) as u8;
        }
        let verdict = Verdict::Reply { len, rcode: entry.rcode, qtype: ask.qtype, zone_class: ZoneClass::Other };
        self.send(question, buffer.get(..len).unwrap_or(&[]), &verdict);
    }

    pub(super) fn send(&self, question: ClientQuery, reply: &[u8], verdict: &Verdict) {
        let took = question.received.elapsed();
        if let Some(outbox) = question.client.send(reply, verdict, took) {
            self.outboxes.borrow_mut().push(outbox);
            self.replied.notify_one();
        }
    }

    /// Sends replies, after everything that can be done at once has been done: more of them go together.
    async fn flush(self: Rc<Self>) {
        loop {
            self.replied.notified().await;
            yield_now().await;
            for outbox in self.outboxes.borrow_mut().drain(..) {
                outbox.flush();
            }
        }
    }
}
