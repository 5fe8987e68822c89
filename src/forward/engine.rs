//! The forwarder's thread, which handles every query that the cache cannot answer.
//!
//! There is one such thread, so its state needs no locks. Identical queries share one upstream query in flight.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::budget::{Budget, Share, Waiting};
use super::cache::{Cache, CacheKey, CacheLookup};
use super::loops::{LoopDetector, Route, Routes};
use super::pool::Pool;
use super::reply::{Entry, Freshness, ReplyTo};
use super::settings::{self, Forwarding, RebindProtection};
use super::upstream::{UpstreamContext, UpstreamError, UpstreamQuery};
use super::{ClientQuery, ForwardCache, Forwarder, Job, Outbox, QUEUE_CAPACITY, key_flags_of};
use crate::answer::{ForwardReason, Verdict, ZoneClass};
use crate::watched::FolderWatch;
use crate::wire::{HEADER_LEN, Name, extended_error, flags, rcode, text_of};
use crate::zone::{Domain, NamespaceName, Zone};

/// Time limit for all upstreams together. Stub resolvers give up after five seconds (resolv.conf(5)), so a SERVFAIL
/// has to reach them before that.
const DEADLINE: Duration = Duration::from_secs(4);
/// Time limit if every server is down. One that is back replies sooner, and until then no query holds a place for long.
const DEADLINE_WHEN_DOWN: Duration = Duration::from_secs(1);
/// Time after which clients get a stale reply while the upstream query continues: the client response timer (RFC 8767
/// section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// Seconds after a failed refresh during which a stale reply is served at once: the failure recheck timer (RFC 8767
/// section 5).
const FAILURE_RECHECK: u32 = 30;
/// Interval at which a watched resolv.conf is read without a notification. The kernel sends none for a folder that did
/// not exist when the watch began, nor behind a changed link.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// TTL in seconds of the cached failure when no upstream replies (RFC 9520 section 3.2).
const NO_REPLY_TTL: u32 = 1;
/// Minimum interval between log lines about private addresses.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of jobs received at once.
const BATCH: usize = 64;

/// A running forwarder.
pub struct StartedForwarder {
    /// The transports' interface to the thread.
    pub forwarder: Arc<Forwarder>,
    /// Its thread, which ends once every clone of `forwarder` is dropped.
    pub thread: JoinHandle<()>,
}

/// Starts the forwarder.
///
/// # Errors
/// The trust store cannot be loaded, a directory cannot be watched, or the runtime or thread cannot be created.
pub fn start(forwarding: Forwarding, table: Arc<ArcSwap<Zone>>, payload: u16) -> io::Result<StartedForwarder> {
    let tls = match forwarding.servers().any(|server| server.tls.is_some()) {
        true => Some(crate::tls::client(forwarding.authorities.as_deref()).map_err(io::Error::other)?),
        false => None,
    };
    let (jobs, incoming) = mpsc::channel(QUEUE_CAPACITY);
    let cache = Arc::new(ForwardCache {
        entries: Cache::new(forwarding.bounds),
        epoch: std::time::Instant::now(),
        payload,
        counts: super::Counts::default(),
        busiest: super::BusiestClients::default(),
        upstreams: std::sync::Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // If the path is a symbolic link, changes happen in the directory of its target.
    let file = forwarding.file.as_deref().map(|file| file.canonicalize().unwrap_or_else(|_| file.to_owned()));
    let watched = match file.as_deref().and_then(Path::parent) {
        Some(folder) => {
            let watched = FolderWatch::new("resolv-conf")?;
            // Without the folder, the file is looked for at intervals.
            let _ = watched.add(folder);
            Some(watched)
        }
        None => None,
    };
    let forwarder = Arc::new(Forwarder { cache: cache.clone(), jobs });
    let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
        let engine = Engine::new(&forwarding, table, cache, tls);
        LocalSet::new().block_on(&runtime, engine.run(incoming, forwarding.file, watched));
    })?;
    Ok(StartedForwarder { forwarder, thread })
}

/// The recipient of an entry.
enum Waiter {
    Client(Waiting),
    /// A composition, for the client with this address.
    Task(IpAddr, oneshot::Sender<(Arc<Entry>, Freshness)>),
}

impl Waiter {
    fn client(&self) -> IpAddr {
        match self {
            Waiter::Client(waiting) => waiting.from,
            Waiter::Task(client, _) => *client,
        }
    }
}

/// An upstream query in flight.
#[derive(Default)]
struct Flight {
    waiters: Vec<Waiter>,
    /// The stale reply for clients that join while the upstreams are slow.
    interim: Option<Arc<Entry>>,
}

/// The state of the forwarder's thread.
pub(super) struct Engine {
    pub(super) shared: Rc<UpstreamContext>,
    pub(super) table: Arc<ArcSwap<Zone>>,
    cache: Arc<ForwardCache>,
    routes: Routes,
    flights: RefCell<HashMap<CacheKey, Flight>>,
    budget: Rc<Budget>,
    concurrent: usize,
    stale: u32,
    pub(super) search: Vec<Domain>,
    rebind: RebindProtection,
    /// Time of the last log line about it.
    rebind_logged: Cell<Option<Instant>>,
    pub(super) buffer: RefCell<Box<[u8]>>,
    turn: Cell<u16>,
    /// Batches to flush once no other work is ready.
    outboxes: RefCell<Vec<Arc<dyn Outbox>>>,
    replied: Notify,
    /// Notified when a query or a composition has finished.
    finished: Notify,
    loops: Rc<LoopDetector>,
}

impl Engine {
    fn new(
        forwarding: &Forwarding,
        table: Arc<ArcSwap<Zone>>,
        cache: Arc<ForwardCache>,
        tls: Option<rustls::ClientConfig>,
    ) -> Rc<Engine> {
        let settings = table.load().settings.clone();
        let ours = move |name: &Name| settings.is_ours(name);
        let shared = UpstreamContext::new(cache.epoch, forwarding.ttls, tls, forwarding.concurrent, Box::new(ours));
        let shared = Rc::new(shared);
        let stubs = forwarding.stubs.iter().map(|stub| Route {
            zone: stub.zone.clone(),
            pool: Pool::new(&stub.servers, &shared),
            is_stub: true,
            into_cluster: stub.into_cluster,
        });
        let zone = Domain { wire: [0].into(), labels: 0 };
        let pool = Pool::new(&forwarding.upstreams, &shared);
        let rest = Route { zone, pool, is_stub: false, into_cluster: false };
        let routes: Routes = stubs.chain([rest]).collect();
        let loops = LoopDetector::new(routes.clone(), shared.clone());
        let engine = Engine {
            shared,
            table,
            cache,
            routes,
            flights: RefCell::default(),
            budget: Budget::new(forwarding.concurrent),
            concurrent: forwarding.concurrent,
            stale: forwarding.stale.as_secs() as u32,
            search: forwarding.search.clone(),
            rebind: forwarding.rebind,
            rebind_logged: Cell::new(None),
            buffer: RefCell::new(vec![0; usize::from(u16::MAX)].into()),
            turn: Cell::new(0),
            outboxes: RefCell::default(),
            replied: Notify::new(),
            finished: Notify::new(),
            loops,
        };
        engine.publish_upstreams();
        Rc::new(engine)
    }

    /// Publishes the current upstreams' statistics for metrics.
    fn publish_upstreams(&self) {
        let servers: Vec<_> = self.routes.iter().flat_map(|route| route.pool.servers().to_vec()).collect();
        *self.cache.upstreams.lock().unwrap_or_else(PoisonError::into_inner) =
            servers.iter().map(|server| server.stats.clone()).collect();
    }

    /// Runs until every transport has dropped its [`Forwarder`], and the queries in flight have finished or
    /// [`DEADLINE`] has passed.
    async fn run(self: Rc<Self>, mut jobs: mpsc::Receiver<Job>, file: Option<PathBuf>, watched: Option<FolderWatch>) {
        if let (Some(path), Some(watched)) = (file, watched) {
            spawn_local(self.clone().follow(path, watched));
        }
        spawn_local(self.loops.clone().run(self.table.clone()));
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
        let idle = async {
            while !self.flights.borrow().is_empty() || self.budget.waiting() > 0 {
                self.finished.notified().await;
            }
        };
        let _ = timeout(DEADLINE, idle).await;
        for outbox in self.outboxes.borrow_mut().drain(..) {
            outbox.flush();
        }
    }

    /// Reloads the resolv.conf when it changes or appears. A file that is unreadable or lists no servers is ignored.
    async fn follow(self: Rc<Self>, path: PathBuf, watched: FolderWatch) {
        let mut known = settings::read(&path).unwrap_or_default();
        let mut reported = None;
        loop {
            let _ = timeout(POLL_INTERVAL, watched.settled(Duration::from_millis(50))).await;
            let found = match settings::read(&path) {
                Ok(found) if found == known => continue,
                Ok(found) => found,
                Err(error) => {
                    if !known.is_empty() && reported.as_ref() != Some(&error) {
                        tracing::warn!(%error, "cannot reload upstreams; still using the previous ones");
                    }
                    reported = Some(error);
                    continue;
                }
            };
            let names: Vec<String> = found.iter().map(ToString::to_string).collect();
            tracing::info!(file = %path.display(), upstreams = names.join(" "), "upstreams reloaded");
            if let Some(route) = self.routes.last() {
                route.pool.replace(&found, &self.shared);
            }
            self.publish_upstreams();
            (known, reported) = (found, None);
            self.loops.probe_all();
        }
    }

    /// TTL of the cluster's own records, in seconds.
    pub(super) fn ttl(&self) -> u32 {
        self.table.load().settings.ttl
    }

    /// Returns the next rotation index, which decides the record that an answer starts with.
    pub(super) fn turn(&self) -> u16 {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    /// Whether only the zone answers for a name.
    pub(super) fn is_ours(&self, name: &Name) -> bool {
        self.table.load().settings.is_ours(name)
    }

    fn take(self: &Rc<Self>, question: ClientQuery) {
        let Ok(name) = Name::parse(&question.query, HEADER_LEN) else { return };
        if self.loops.catches(&name) {
            return;
        }
        let is_outside = question.request.reason == ForwardReason::Outside;
        let Ok(waiting) = self.budget.wait(question) else {
            self.cache.counts.rejected.fetch_add(1, Relaxed);
            return;
        };
        if !is_outside {
            self.clone().spawn_compose(waiting);
            return;
        }
        let key = CacheLookup::new(name.wire(), waiting.request.qtype, key_flags_of(&waiting.request)).key();
        self.request(key, Waiter::Client(waiting));
    }

    /// Spawns the task that composes an answer within [`DEADLINE`].
    fn spawn_compose(self: Rc<Self>, question: Waiting) {
        spawn_local(async move {
            self.clone().compose(question, Instant::now() + DEADLINE).await;
            self.finished.notify_one();
        });
    }

    /// Returns the entry for a key, from the cache or an upstream; `None` if the query was rejected.
    pub(super) async fn lookup(self: &Rc<Self>, key: CacheKey, client: IpAddr) -> Option<(Arc<Entry>, Freshness)> {
        let (found, wait) = oneshot::channel();
        self.request(key, Waiter::Task(client, found));
        wait.await.ok()
    }

    fn request(self: &Rc<Self>, key: CacheKey, waiter: Waiter) {
        let now = self.shared.now();
        let cached = self.cache.entries.get(&key.parts());
        if let Some(entry) = &cached {
            let freshness = entry.freshness(now);
            if freshness != Freshness::Expired {
                return self.deliver(waiter, entry, freshness);
            }
        }
        self.cache.counts.misses.fetch_add(1, Relaxed);
        let fallback = cached.filter(|entry| entry.may_serve_stale(now, self.stale));
        let mut flights = self.flights.borrow_mut();
        let full = flights.len() >= self.concurrent;
        if let Some(flight) = flights.get_mut(&key) {
            self.cache.counts.joined.fetch_add(1, Relaxed);
            if let Some(entry) = flight.interim.clone() {
                drop(flights);
                return self.deliver(waiter, &entry, Freshness::Stale);
            }
            flight.waiters.push(waiter);
            return;
        }
        let taken = flights.len();
        drop(flights);
        let client = waiter.client();
        self.cache.busiest.miss(client);
        let place = match full {
            true => Err(None),
            false => {
                let name = Name::parse(key.parts().name, 0);
                name.map_err(|_| None).and_then(|name| self.budget.admit(client, &name, taken).map_err(Some))
            }
        };
        let place = match place {
            Ok(place) => place,
            Err(over) => {
                self.refuse(client, over);
                return match fallback {
                    Some(entry) => self.deliver(waiter, &entry, Freshness::Stale),
                    None => {
                        let error = if over.is_some() { &extended_error::PROHIBITED } else { &extended_error::OTHER };
                        self.deliver(waiter, &Arc::new(Entry::failure(error, now, 0)), Freshness::Fresh(0))
                    }
                };
            }
        };
        self.flights.borrow_mut().insert(key.clone(), Flight { waiters: vec![waiter], interim: None });
        let engine = self.clone();
        spawn_local(async move {
            engine.run_query(key, fallback).await;
            drop(place);
        });
    }

    /// Counts a query that was refused: because a share was used up, or because all places were taken.
    fn refuse(&self, client: IpAddr, over: Option<Share>) {
        let Some(share) = over else {
            self.cache.counts.rejected.fetch_add(1, Relaxed);
            return;
        };
        let zone = self.table.load();
        let namespace = zone.namespace_of(client).0.map(NamespaceName::text).unwrap_or_default();
        self.cache.busiest.refuse(client, &namespace, share);
    }

    /// Prefetches an entry that is about to expire.
    fn refresh(self: &Rc<Self>, key: CacheKey) {
        let entry = self.cache.entries.get(&key.parts());
        let mut flights = self.flights.borrow_mut();
        if flights.contains_key(&key) || flights.len() >= self.concurrent {
            if let Some(entry) = entry {
                entry.clear_refreshing();
            }
            return;
        }
        self.cache.counts.prefetches.fetch_add(1, Relaxed);
        flights.insert(key.clone(), Flight::default());
        drop(flights);
        spawn_local(self.clone().run_query(key, entry));
    }

    /// Queries the upstreams, caches the reply, and delivers it to all waiters. `fallback` is the cached entry to serve
    /// if the upstreams fail or are slow.
    async fn run_query(self: Rc<Self>, key: CacheKey, fallback: Option<Arc<Entry>>) {
        let result = {
            let mut query = std::pin::pin!(self.query(&key));
            match &fallback {
                None => query.await,
                Some(entry) => tokio::select! {
                    biased;
                    result = &mut query => result,
                    () = sleep(STALE_AFTER) => {
                        let freshness = entry.freshness(self.shared.now());
                        if entry.may_serve_stale(self.shared.now(), self.stale) {
                            self.deliver_all(&key, entry, freshness.or_stale(), true);
                        }
                        query.await
                    }
                },
            }
        };
        let now = self.shared.now();
        match (result, fallback) {
            (Ok(entry), _) => {
                let entry = Arc::new(entry);
                // Cache it before replying: a client may repeat its query as soon as it has the reply.
                if entry.ttl > 0 {
                    self.cache.entries.insert(key.clone(), entry.clone());
                }
                self.deliver_all(&key, &entry, Freshness::Fresh(0), false);
            }
            (Err(_), Some(entry))
                if entry.freshness(now) != Freshness::Expired || entry.may_serve_stale(now, self.stale) =>
            {
                entry.serve_stale_until(now.saturating_add(FAILURE_RECHECK), self.stale);
                entry.clear_refreshing();
                let freshness = entry.freshness(now);
                self.deliver_all(&key, &entry, freshness.or_stale(), false);
            }
            (Err(error), _) => {
                let entry = Arc::new(match error {
                    // The upstream's extended errors are more specific than ours.
                    UpstreamError::Refused(entry) if entry.rcode == rcode::SERVFAIL => entry,
                    UpstreamError::Io => Entry::failure(&extended_error::NETWORK_ERROR, now, NO_REPLY_TTL),
                    _ => Entry::failure(&extended_error::NO_REACHABLE_AUTHORITY, now, NO_REPLY_TTL),
                });
                self.cache.entries.insert(key.clone(), entry.clone());
                self.deliver_all(&key, &entry, Freshness::Fresh(0), false);
            }
        }
        self.finished.notify_one();
    }

    async fn query(self: &Rc<Self>, key: &CacheKey) -> Result<Entry, UpstreamError> {
        let question = key.question();
        let name = Name::parse(&question, 0).map_err(|_| UpstreamError::NoServer)?;
        let route = self.routes.iter().find(|route| name.below(&route.zone.wire, route.zone.labels).is_some());
        let Some(route) = route else { return Err(UpstreamError::NoServer) };
        let pool = &route.pool;
        let limit = if pool.is_down() { DEADLINE_WHEN_DOWN } else { DEADLINE };
        let query = UpstreamQuery { question: &question, key_flags: key.key_flags(), deadline: Instant::now() + limit };
        let result = pool.query(&query).await;
        // A server that forwards to itself waits for itself, so a timeout may be a sign of a loop.
        let silent = matches!(result, Err(UpstreamError::Timeout));
        if silent || !pool.is_healthy() {
            for server in pool.servers().iter().filter(|server| silent || !server.is_up()) {
                self.loops.probe(server);
            }
        }
        result.map(|entry| self.checked(entry, route, &name))
    }

    /// Applies what a route's servers may say to their reply.
    fn checked(&self, mut entry: Entry, route: &Route, name: &Name) -> Entry {
        entry.leads_in &= route.into_cluster;
        if !entry.has_private_address || route.is_stub || self.rebind == RebindProtection::Off {
            return entry;
        }
        self.cache.counts.rebinds.fetch_add(1, Relaxed);
        let is_due = self.rebind_logged.get().is_none_or(|last| last.elapsed() > LOG_INTERVAL);
        if is_due {
            self.rebind_logged.set(Some(Instant::now()));
            let name = text_of(name.wire());
            tracing::warn!(name, refused = self.rebind == RebindProtection::On, "public name has a private address");
        }
        match self.rebind {
            RebindProtection::On => {
                let mut refusal = Entry::failure(&extended_error::FILTERED, self.shared.now(), entry.ttl);
                refusal.rcode = rcode::REFUSED;
                refusal
            }
            _ => entry,
        }
    }

    /// Delivers an entry to all waiters. With `interim`, the query stays in flight and later clients get the same
    /// entry.
    fn deliver_all(self: &Rc<Self>, key: &CacheKey, entry: &Arc<Entry>, freshness: Freshness, interim: bool) {
        let waiters = {
            let mut flights = self.flights.borrow_mut();
            if interim {
                let Some(flight) = flights.get_mut(key) else { return };
                flight.interim = Some(entry.clone());
                std::mem::take(&mut flight.waiters)
            } else {
                flights.remove(key).map(|flight| flight.waiters).unwrap_or_default()
            }
        };
        for waiter in waiters {
            self.deliver(waiter, entry, freshness);
        }
    }

    fn deliver(self: &Rc<Self>, waiter: Waiter, entry: &Arc<Entry>, freshness: Freshness) {
        if freshness == Freshness::Stale {
            self.cache.counts.stale.fetch_add(1, Relaxed);
        }
        match waiter {
            Waiter::Task(_, found) => {
                let _ = found.send((entry.clone(), freshness));
            }
            Waiter::Client(question) if entry.leads_in => {
                self.clone().spawn_compose(question);
            }
            Waiter::Client(question) => self.reply(question, entry, freshness, false),
        }
    }

    /// Replies to a client with an entry.
    pub(super) fn reply(&self, question: Waiting, entry: &Entry, freshness: Freshness, authoritative: bool) {
        let mut buffer = self.buffer.borrow_mut();
        let request = &question.request;
        let to = ReplyTo { query: &question.query, request, cookie: question.cookie.as_ref() };
        let Some(len) = entry.write(to, freshness, self.cache.payload, &mut buffer) else { return };
        if let Some(octet) = buffer.get_mut(2).filter(|_| authoritative) {
            *octet |= (flags::AA >> 8) as u8;
        }
        let verdict = Verdict::Reply { len, rcode: entry.rcode, qtype: request.qtype, zone_class: ZoneClass::Other };
        self.send(question, buffer.get(..len).unwrap_or(&[]), &verdict);
    }

    pub(super) fn send(&self, question: Waiting, reply: &[u8], verdict: &Verdict) {
        if let Some(outbox) = question.send(reply, verdict) {
            self.outboxes.borrow_mut().push(outbox);
            self.replied.notify_one();
        }
    }

    /// Flushes the batches of replies. It yields to ready tasks first, so that more replies share a system call.
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
