//! From events to published tables: apply, build, swap. A single change is published at once; a flood is coalesced.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Receiver;

use super::budget::NamespaceBudget;
use super::snapshot::{self, SnapshotError};
use super::{Event, Resource};
use crate::histogram::Histogram;
use crate::zone::facts::{Change, Key};
use crate::zone::{Builder, Diagnostic, Zone};

/// Largest average rate of published tables. Serials count 1024ths of a second: if they outran the clock, they would go
/// backwards at a restart.
const TABLES_PER_SECOND: f64 = 1000.0;
/// Number of tables that may exceed that rate after a quiet period.
const BURST: f64 = 100.0;
/// Time that the API has for its first complete lists before saved facts are served.
const API_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest interval between writes of the snapshot file.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// Largest number of queued events applied before the next table.
const BATCH: usize = 4096;
/// How long a source may fail before that is an error: an API server that restarts takes less time.
const OUTAGE: Duration = Duration::from_secs(60);
/// Number of logged problems that are remembered, so that each is logged only once.
const MAX_LOGGED: usize = 4096;

/// Upper bounds of the publishing histograms, in nanoseconds.
pub const PUBLISH_BOUNDS: [u64; 12] = [
    100_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// Longest time from a trigger that is counted: the time comes from an object, and may be any.
const MAX_TRIGGER_AGE: Duration = Duration::from_secs(3600);

/// A histogram by [`PUBLISH_BOUNDS`].
type PublishTimes = Arc<Histogram<{ PUBLISH_BOUNDS.len() }>>;

/// Status of the sources and of publishing, as metrics and `/ready` report it.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    /// Resources whose first list is not complete.
    pub pending: BTreeSet<Resource>,
    /// Time of each resource's last response.
    pub heard: BTreeMap<Resource, Instant>,
    /// Current error of each failing resource.
    pub failures: BTreeMap<Resource, String>,
    /// Number of invalid objects and annotations.
    pub rejected: u64,
    /// Number of published tables.
    pub published: u64,
    /// Time to build and swap a table.
    pub publish: PublishTimes,
    /// Time from a watch event to the table that includes its change.
    pub from_event: PublishTimes,
    /// Time from the cause of a change (a pod became ready) to the table that includes it.
    pub from_trigger: PublishTimes,
    /// Number of self-checks, and of objects that differed.
    pub compared: (u64, u64),
    /// Since when saved facts have been served; `None` once every resource has synced.
    pub saved_since: Option<Instant>,
}

/// The status, shared with the admin server. Threads that answer queries never lock it.
#[derive(Clone, Debug, Default)]
pub struct SharedStatus(Arc<Mutex<SourceStatus>>);

impl SharedStatus {
    /// Returns a copy of the current status.
    pub fn status(&self) -> SourceStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, SourceStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token bucket that limits the rate of published tables.
struct TokenBucket {
    credit: f64,
    last: Instant,
}

impl TokenBucket {
    fn new() -> TokenBucket {
        TokenBucket { credit: BURST, last: Instant::now() }
    }

    /// Returns how long to coalesce changes before the next table.
    fn wait(&mut self) -> Duration {
        let now = Instant::now();
        let earned = now.duration_since(std::mem::replace(&mut self.last, now)).as_secs_f64() * TABLES_PER_SECOND;
        self.credit = (self.credit + earned).min(BURST);
        Duration::from_secs_f64((1.0 - self.credit).max(0.0) / TABLES_PER_SECOND)
    }

    fn published(&mut self) {
        self.credit -= 1.0;
    }
}

impl SnapshotState {
    /// Returns when to write the facts next: at most once per `SAVE_EVERY`, by one writer at a time.
    fn due(&self) -> Option<tokio::time::Instant> {
        let busy = self.task.as_ref().is_some_and(|task| !task.is_finished());
        let next = self.last.map_or_else(Instant::now, |last| last + SAVE_EVERY);
        let next = if busy { next.max(Instant::now() + SAVE_EVERY / 50) } else { next };
        self.dirty.then(|| tokio::time::Instant::from_std(next))
    }
}

fn resource_of(change: &Change) -> (Resource, Key) {
    match change {
        Change::Service(key, _) => (Resource::Services, key.clone()),
        Change::Slice(key, _) => (Resource::EndpointSlices, key.clone()),
        Change::Namespace(name, _) => (Resource::Namespaces, Key { namespace: Box::default(), name: name.clone() }),
        // Pods are not saved.
        Change::Pod(..) => (Resource::Pods, Key::new("", "")),
    }
}

/// Applies the events of sources and publishes tables.
pub struct Publisher {
    builder: Builder,
    table: Arc<ArcSwap<Zone>>,
    status: SharedStatus,
    started: Instant,
    complaints: Complaints,
    budget: NamespaceBudget,
    /// Watched changes since the last table: the time of each event, and of its cause.
    waiting: Vec<(Instant, Option<jiff::Timestamp>)>,
    /// Resources that are failing: since when, and whether that has been reported as an error.
    failing: BTreeMap<Resource, (Instant, bool)>,
    saving: Option<SnapshotState>,
}

/// State of `--saved`: the snapshot file, and when to write it.
struct SnapshotState {
    path: PathBuf,
    last: Option<Instant>,
    dirty: bool,
    task: Option<tokio::task::JoinHandle<()>>,
    /// Whether the file has been read: that is attempted only once.
    tried: bool,
    /// Objects from the file that the API has not reported yet.
    unconfirmed: HashSet<(Resource, Key)>,
}

impl Publisher {
    /// Creates a publisher that waits for the given resources before its first table.
    pub fn new(
        mut builder: Builder,
        table: Arc<ArcSwap<Zone>>,
        status: SharedStatus,
        resources: impl IntoIterator<Item = Resource>,
    ) -> Publisher {
        let pending: BTreeSet<Resource> = resources.into_iter().collect();
        if pending.contains(&Resource::Namespaces) {
            builder.expect_namespaces();
        }
        status.lock().pending = pending;
        Publisher {
            builder,
            table,
            status,
            started: Instant::now(),
            complaints: Complaints::default(),
            budget: NamespaceBudget::new(usize::MAX),
            waiting: Vec::new(),
            failing: BTreeMap::new(),
            saving: None,
        }
    }

    /// Limits the memory for the objects of one namespace to about `octets`.
    pub fn limit_namespaces(&mut self, octets: usize) {
        self.budget = NamespaceBudget::new(octets);
    }

    /// Saves facts to `path`, and loads them from there at the start if the API does not respond.
    pub fn save_to(&mut self, path: PathBuf) {
        self.saving = Some(SnapshotState {
            path,
            last: None,
            dirty: false,
            task: None,
            tried: false,
            unconfirmed: HashSet::new(),
        });
    }

    /// Runs until every source has stopped.
    pub async fn run(mut self, mut events: Receiver<Event>) {
        let mut bucket = TokenBucket::new();
        let deadline = tokio::time::Instant::from_std(self.started + API_TIMEOUT);
        loop {
            // The timers run only while saved facts may be needed, or while there are facts to save.
            let waiting_for_api = self.may_need_snapshot();
            let save = self.saving.as_ref().and_then(SnapshotState::due);
            let event = tokio::select! {
                event = events.recv() => event,
                () = tokio::time::sleep_until(deadline), if waiting_for_api => {
                    self.load_snapshot();
                    continue;
                }
                () = tokio::time::sleep_until(save.unwrap_or(deadline)), if save.is_some() => {
                    self.save();
                    continue;
                }
            };
            let Some(event) = event else { return };
            self.take(event);
            // A single change is published at once; a flood is coalesced into a few tables.
            let wait = bucket.wait();
            if !wait.is_zero() {
                let next = tokio::time::Instant::now() + wait;
                while let Ok(Some(event)) = tokio::time::timeout_at(next, events.recv()).await {
                    self.take(event);
                }
            }
            for _ in 0..BATCH {
                match events.try_recv() {
                    Ok(event) => self.take(event),
                    Err(_) => break,
                }
            }
            if self.publish() {
                bucket.published();
            }
        }
    }

    /// Whether saved facts may be needed and have not been tried.
    fn may_need_snapshot(&self) -> bool {
        self.saving.as_ref().is_some_and(|saving| !saving.tried) && !self.table.load().synced
    }

    /// Serves the saved facts until every resource has synced.
    fn load_snapshot(&mut self) {
        let Some(saving) = &mut self.saving else { return };
        self.status.lock().saved_since = Some(Instant::now());
        let saved = match snapshot::read(&saving.path) {
            Ok(saved) => saved,
            Err(error) => {
                self.status.lock().saved_since = None;
                let absent =
                    matches!(&error, SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
                if absent {
                    saving.tried = true;
                    tracing::info!(file = %saving.path.display(), "the API does not respond; no saved facts to serve");
                } else {
                    tracing::error!(%error, "cannot load saved facts; remove the file to enable saving again");
                    self.saving = None;
                }
                return;
            }
        };
        saving.tried = true;
        let age = saved.age();
        let (mut facts, mut within, path) = (0, Vec::new(), saving.path.clone());
        for change in saved.changes {
            let (resource, key) = resource_of(&change);
            // Facts that the API has already reported are newer.
            if !self.builder.has(&change) {
                saving.unconfirmed.insert((resource, key));
                within.push(change);
                facts += 1;
            }
        }
        for change in within {
            self.apply_within_budget(change);
        }
        self.builder.set_serial_floor(saved.serial);
        self.builder.set_synced();
        tracing::warn!(file = %path.display(), facts, ?age, "the API does not respond; serving saved facts");
        self.publish_now();
    }

    fn save(&mut self) {
        let synced = self.status.lock().pending.is_empty();
        let Some(saving) = &mut self.saving else { return };
        saving.last = Some(Instant::now());
        saving.dirty = false;
        if !synced {
            return;
        }
        let (path, facts, serial) = (saving.path.clone(), self.builder.facts(), self.table.load().soa.serial());
        let task = tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshot::write(&path, facts, serial) {
                tracing::warn!(%error, "cannot save facts");
            }
        });
        saving.task = Some(task);
    }

    /// Applies one event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.apply(change),
            Event::Watched { change, received, triggered } => {
                self.apply(change);
                if self.waiting.len() < BATCH {
                    self.waiting.push((received, triggered));
                }
            }
            Event::Facts(reply) => {
                // The requester may no longer wait for the reply.
                let _ = reply.send(self.builder.facts());
            }
            Event::Compared(resource, differing, examples) => {
                let mut status = self.status.lock();
                status.compared.0 += 1;
                status.compared.1 += differing as u64;
                drop(status);
                if differing > 0 {
                    tracing::error!(
                        resource = resource.as_str(),
                        differing,
                        ?examples,
                        "self-check found differences from the API; relisting"
                    );
                }
            }
            Event::Heard(resource) => {
                self.status.lock().heard.insert(resource, Instant::now());
            }
            Event::Synced(resource) => {
                self.remove_unconfirmed(resource);
                let mut status = self.status.lock();
                status.heard.insert(resource, Instant::now());
                status.pending.remove(&resource);
                if status.pending.is_empty() {
                    if status.saved_since.take().is_some() {
                        tracing::info!("synced with the API; saved facts are no longer served");
                    }
                    drop(status);
                    self.builder.set_synced();
                }
            }
            Event::Rejected(rejected) => {
                self.status.lock().rejected += 1;
                let namespace = rejected.name.split('/').next().unwrap_or_default();
                if self.complaints.is_due(namespace, &rejected) {
                    tracing::warn!(
                        kind = rejected.kind,
                        object = rejected.name,
                        reason = rejected.reason,
                        "ignoring invalid object or annotation"
                    );
                }
            }
            Event::Health(resource, Some(reason)) => {
                let before = self.status.lock().failures.insert(resource, reason.clone());
                if before.as_ref() != Some(&reason) {
                    let resource = resource.as_str();
                    match self.table.load().synced {
                        _ if resource == Resource::Manifests.as_str() => {
                            tracing::warn!(reason, "cannot read all manifests; what they last said remains in effect");
                        }
                        true => tracing::warn!(resource, reason, "source failed; serving the last snapshot"),
                        false => tracing::warn!(resource, reason, "source failed before the first sync"),
                    }
                }
                // A restart of the API server is expected, so it is only a warning.
                let (since, is_reported) = self.failing.entry(resource).or_insert((Instant::now(), false));
                if since.elapsed() > OUTAGE && !std::mem::replace(is_reported, true) {
                    let (resource, since) = (resource.as_str(), since.elapsed());
                    tracing::error!(resource, reason, ?since, "source is still failing; answers may be stale");
                }
                // The API has failed: do not wait for it any longer.
                if self.may_need_snapshot() {
                    self.load_snapshot();
                }
            }
            Event::Health(resource, None) => {
                self.failing.remove(&resource);
                if self.status.lock().failures.remove(&resource).is_some() {
                    tracing::info!(resource = resource.as_str(), "source recovered");
                }
            }
        }
    }

    fn apply(&mut self, change: Change) {
        if let Some(saving) = self.saving.as_mut().filter(|saving| !saving.unconfirmed.is_empty()) {
            saving.unconfirmed.remove(&resource_of(&change));
        }
        self.apply_within_budget(change);
    }

    fn apply_within_budget(&mut self, change: Change) {
        let Err(over) = self.budget.admit(&self.builder, &change) else { return self.builder.apply(change) };
        let (resource, key) = resource_of(&change);
        self.status.lock().rejected += 1;
        if self.complaints.is_due(&key.namespace, &(&key, resource)) {
            tracing::warn!(
                resource = resource.as_str(),
                object = %key,
                size = over.size,
                used = over.used,
                "ignoring object: its namespace is over --namespace-budget"
            );
        }
        self.builder.apply(match change {
            Change::Service(key, _) => Change::Service(key, None),
            Change::Slice(key, _) => Change::Slice(key, None),
            other => other,
        });
    }

    /// Removes saved objects that no longer exist: the first list of the resource did not contain them.
    fn remove_unconfirmed(&mut self, resource: Resource) {
        let Some(saving) = &mut self.saving else { return };
        let (gone, remaining) =
            std::mem::take(&mut saving.unconfirmed).into_iter().partition(|(of, _)| *of == resource);
        saving.unconfirmed = remaining;
        let gone: HashSet<(Resource, Key)> = gone;
        for (resource, key) in gone {
            self.apply_within_budget(match resource {
                Resource::Services => Change::Service(key, None),
                Resource::EndpointSlices => Change::Slice(key, None),
                Resource::Namespaces => Change::Namespace(key.name, None),
                Resource::Pods | Resource::Manifests => continue,
            });
        }
    }

    /// Publishes a table if any answer changed; returns whether it did.
    pub fn publish(&mut self) -> bool {
        let status = self.status.lock();
        // Saved facts are complete; those from the API are not until every first list is.
        if !status.pending.is_empty() && status.saved_since.is_none() {
            return false;
        }
        drop(status);
        self.publish_now()
    }

    fn publish_now(&mut self) -> bool {
        let start = Instant::now();
        let first = !self.table.load().synced;
        let zone = self.builder.publish();
        let published = zone.is_some();
        let waiting = std::mem::take(&mut self.waiting);
        if let Some(zone) = zone {
            let (services, endpoints, names) = zone.size();
            let serial = zone.soa.serial();
            self.table.store(zone);
            let mut status = self.status.lock();
            status.published += 1;
            status.publish.observe(&PUBLISH_BOUNDS, start.elapsed().as_nanos() as u64, 1);
            let now = jiff::Timestamp::now();
            for (received, triggered) in waiting {
                status.from_event.observe(&PUBLISH_BOUNDS, received.elapsed().as_nanos() as u64, 1);
                if let Some(triggered) = triggered {
                    let elapsed = now.duration_since(triggered).as_nanos().clamp(0, MAX_TRIGGER_AGE.as_nanos() as i128);
                    status.from_trigger.observe(&PUBLISH_BOUNDS, elapsed as u64, 1);
                }
            }
            drop(status);
            if let Some(saving) = &mut self.saving {
                saving.dirty = true;
            }
            if first {
                let after = self.started.elapsed();
                tracing::info!(services, endpoints, names, serial, ?after, "synced");
            } else {
                tracing::debug!(services, endpoints, names, serial, "published");
            }
        }
        for report in self.builder.take_diagnostics() {
            self.report(&report);
        }
        published
    }

    fn report(&mut self, report: &Diagnostic) {
        if self.complaints.is_due(report.namespace(), report) {
            match report {
                Diagnostic::AliasClaimed { alias, granted_to, refused } => {
                    tracing::warn!(
                        alias,
                        granted_to,
                        refused,
                        "two Services claim the same alias; the older one gets it"
                    );
                }
                Diagnostic::AmbiguousDefault { kind, services } => {
                    tracing::warn!(kind, ?services, "several Services claim to be the default database; using none");
                }
                Diagnostic::AliasShadowed { alias, claimed_by } => {
                    tracing::warn!(alias, claimed_by, "alias is shadowed by a Service of the same name");
                }
                Diagnostic::TopLevelDomain { namespace } => {
                    tracing::warn!(namespace, "namespace has the name of a public top-level domain; see docs/names.md");
                }
                Diagnostic::FqdnSkipped { service } => {
                    tracing::warn!(service, "ignoring FQDN endpoints; a Service can have only one, served as a CNAME");
                }
            }
        }
    }
}

/// Decides which complaints about objects are logged: each one once, and only a few a minute for each namespace, because
/// their authors decide how many there are.
#[derive(Default)]
struct Complaints {
    hasher: RandomState,
    logged: HashSet<u64>,
    /// Complaints in the current minute, by namespace.
    recent: HashMap<Box<str>, u32>,
    minute: Option<Instant>,
    /// Complaints of that minute that were not logged.
    suppressed: u64,
}

/// Complaints a minute about the objects of one namespace, and about those of all.
const COMPLAINTS: [u32; 2] = [10, 50];

impl Complaints {
    fn is_due(&mut self, namespace: &str, complaint: &impl Hash) -> bool {
        let now = Instant::now();
        if self.minute.is_none_or(|minute| now.duration_since(minute) >= Duration::from_secs(60)) {
            if self.suppressed > 0 {
                tracing::warn!(count = self.suppressed, "more complaints about objects were not logged");
            }
            (self.minute, self.suppressed) = (Some(now), 0);
            self.recent.clear();
        }
        if self.logged.len() >= MAX_LOGGED {
            self.logged.clear();
        }
        if !self.logged.insert(self.hasher.hash_one(complaint)) {
            return false;
        }
        let all = self.recent.values().sum::<u32>();
        // At the limit for all, nothing is added, so this map stays small.
        let own = self.recent.get(namespace).copied().unwrap_or(0);
        if own >= COMPLAINTS[0] || all >= COMPLAINTS[1] {
            self.suppressed += 1;
            return false;
        }
        self.recent.insert(namespace.into(), own + 1);
        true
    }
}

/// Builds a table from all events of a finite source, for commands that read it once.
pub fn build(mut builder: Builder, events: Vec<Event>) -> (Arc<Zone>, Builder, Vec<Event>) {
    let mut others = Vec::new();
    for event in events {
        match event {
            Event::Change(change) | Event::Watched { change, .. } => builder.apply(change),
            other => others.push(other),
        }
    }
    builder.set_synced();
    let zone = builder.publish();
    let zone = zone.unwrap_or_else(|| Arc::new(Zone::unsynced(builder.settings().clone())));
    (zone, builder, others)
}
