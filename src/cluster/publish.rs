//! From events to published tables: apply, build, swap. The first change at once, a flood coalesced.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Receiver;

use super::snapshot::{self, SnapshotError};
use super::{Event, Resource};
use crate::zone::facts::{Change, Key};
use crate::zone::{Builder, Diagnostic, Zone};

/// Tables follow each other no faster than this on average: serials count 1024ths of a second, and must not outrun the
/// clock, or a restart would take them back.
const TABLES_A_SECOND: f64 = 1000.0;
/// After a quiet while so many may follow each other as fast as they are made.
const BURST: f64 = 100.0;
/// How long the API may take to answer before saved facts are served.
const PATIENCE: Duration = Duration::from_secs(2);
/// Facts are written aside no more often than this.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// So many events are taken in before the table is looked at again.
const BATCH: usize = 4096;
/// Complaints that are remembered so that each is logged once.
const REMEMBERED: usize = 4096;

/// Bounds of the publishing histograms in seconds.
pub const PUBLISH_BOUNDS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];

/// A histogram that the control plane fills.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Counts for each bound, and one more for what is above.
    pub counts: [u64; PUBLISH_BOUNDS.len() + 1],
    /// Sum in seconds.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        let bucket = PUBLISH_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(PUBLISH_BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}

/// What operators ask of the control plane.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    /// Parts that have not been learnt yet.
    pub pending: BTreeSet<Resource>,
    /// When each part was last heard.
    pub heard: BTreeMap<Resource, Instant>,
    /// What is wrong with a part.
    pub failures: BTreeMap<Resource, String>,
    /// Objects and annotations that could not be used.
    pub rejected: u64,
    /// Tables published.
    pub published: u64,
    /// Time to make and swap one.
    pub publish: Histogram,
    /// From the event of a change to the table that answers with it.
    pub from_event: Histogram,
    /// From what the change tells of (a pod turned ready) to the table that answers with it.
    pub from_trigger: Histogram,
    /// Comparisons with the API, and objects that differed.
    pub compared: (u64, u64),
    /// Since when saved facts are served, until the API has told everything.
    pub saved_since: Option<Instant>,
}

/// Shared with the admin plane; never touched by the one that answers.
#[derive(Clone, Debug, Default)]
pub struct SharedStatus(Arc<Mutex<SourceStatus>>);

impl SharedStatus {
    /// The condition now.
    pub fn status(&self) -> SourceStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, SourceStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next table may be published: a bucket of tokens.
struct TokenBucket {
    credit: f64,
    last: Instant,
}

impl TokenBucket {
    fn new() -> TokenBucket {
        TokenBucket { credit: BURST, last: Instant::now() }
    }

    /// How long changes have to gather before the next table.
    fn wait(&mut self) -> Duration {
        let now = Instant::now();
        let earned = now.duration_since(std::mem::replace(&mut self.last, now)).as_secs_f64() * TABLES_A_SECOND;
        self.credit = (self.credit + earned).min(BURST);
        Duration::from_secs_f64((1.0 - self.credit).max(0.0) / TABLES_A_SECOND)
    }

    fn published(&mut self) {
        self.credit -= 1.0;
    }
}

impl Saving {
    /// When facts are to be written next: at most once in five seconds, and one writer at a time.
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

/// Takes in what sources say and publishes tables.
pub struct Publisher {
    builder: Builder,
    table: Arc<ArcSwap<Zone>>,
    status: SharedStatus,
    started: Instant,
    complaints: HashSet<String>,
    /// Changes since the last table: when their events arrived, and what triggered them.
    waiting: Vec<(Instant, Option<jiff::Timestamp>)>,
    saving: Option<Saving>,
}

/// `--saved`: where facts are written aside, and when.
struct Saving {
    path: PathBuf,
    last: Option<Instant>,
    dirty: bool,
    task: Option<tokio::task::JoinHandle<()>>,
    /// Reading is tried once.
    tried: bool,
    /// What was read from the file and has not been told by the API yet.
    unconfirmed: HashSet<(Resource, Key)>,
}

impl Publisher {
    /// A publisher that waits for these parts before its first table.
    pub fn new(
        builder: Builder,
        table: Arc<ArcSwap<Zone>>,
        status: SharedStatus,
        resources: impl IntoIterator<Item = Resource>,
    ) -> Publisher {
        status.lock().pending = resources.into_iter().collect();
        Publisher {
            builder,
            table,
            status,
            started: Instant::now(),
            complaints: HashSet::new(),
            waiting: Vec::new(),
            saving: None,
        }
    }

    /// Writes facts aside to `path`, and reads them from there when the API does not answer.
    pub fn save_to(&mut self, path: PathBuf) {
        self.saving =
            Some(Saving { path, last: None, dirty: false, task: None, tried: false, unconfirmed: HashSet::new() });
    }

    /// Runs until every source is gone.
    pub async fn run(mut self, mut events: Receiver<Event>) {
        let mut pace = TokenBucket::new();
        let patience = tokio::time::Instant::from_std(self.started + PATIENCE);
        loop {
            // Only while saved facts could help, and only while there is something to save, does time pass by itself.
            let hoping = self.is_hoping();
            let save = self.saving.as_ref().and_then(Saving::due);
            let event = tokio::select! {
                event = events.recv() => event,
                () = tokio::time::sleep_until(patience), if hoping => {
                    self.read_saved();
                    continue;
                }
                () = tokio::time::sleep_until(save.unwrap_or(patience)), if save.is_some() => {
                    self.save();
                    continue;
                }
            };
            let Some(event) = event else { return };
            self.take(event);
            // A change is published at once, a flood as a few tables.
            let wait = pace.wait();
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
                pace.published();
            }
        }
    }

    /// Whether saved facts could help and have not been tried.
    fn is_hoping(&self) -> bool {
        self.saving.as_ref().is_some_and(|saving| !saving.tried) && !self.table.load().synced
    }

    /// Serves what was saved until the API has told everything.
    fn read_saved(&mut self) {
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
                    tracing::info!(file = %saving.path.display(), "the API does not answer, and nothing has been saved yet");
                } else {
                    tracing::error!(%error, "saved facts are refused; the file is left alone: remove it to save again");
                    self.saving = None;
                }
                return;
            }
        };
        saving.tried = true;
        let age = saved.age();
        let mut facts = 0;
        for change in saved.changes {
            let (resource, key) = resource_of(&change);
            // What the API has told already is newer.
            if !self.builder.has(&change) {
                saving.unconfirmed.insert((resource, key));
                self.builder.apply(change);
                facts += 1;
            }
        }
        self.builder.set_serial_floor(saved.serial);
        self.builder.set_synced();
        tracing::warn!(file = %saving.path.display(), facts, ?age, "the API does not answer: saved facts are served until it does");
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
                tracing::warn!(%error, "facts could not be saved");
            }
        });
        saving.task = Some(task);
    }

    /// Takes in one event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.apply(change),
            Event::Watched { change, received, triggered } => {
                self.apply(change);
                if self.waiting.len() < BATCH {
                    self.waiting.push((received, triggered));
                }
            }
            Event::Facts(wanted) => {
                // Who asked may have gone.
                let _ = wanted.send(self.builder.facts());
            }
            Event::Compared(resource, differing, examples) => {
                let mut status = self.status.lock();
                status.compared.0 += 1;
                status.compared.1 += differing as u64;
                drop(status);
                if differing > 0 {
                    tracing::error!(
                        source = resource.as_str(),
                        differing,
                        ?examples,
                        "what is held differs from what the API has; it is listed again"
                    );
                }
            }
            Event::Heard(resource) => {
                self.status.lock().heard.insert(resource, Instant::now());
            }
            Event::Synced(resource) => {
                self.forget_unconfirmed(resource);
                let mut status = self.status.lock();
                status.heard.insert(resource, Instant::now());
                status.pending.remove(&resource);
                if status.pending.is_empty() {
                    if status.saved_since.take().is_some() {
                        tracing::info!("the API has told everything: saved facts are not needed any more");
                    }
                    drop(status);
                    self.builder.set_synced();
                }
            }
            Event::Rejected(rejected) => {
                self.status.lock().rejected += 1;
                let text = rejected.to_string();
                if self.is_new(&text) {
                    tracing::warn!(kind = rejected.kind, object = rejected.name, reason = rejected.reason, "left out");
                }
            }
            Event::Health(resource, Some(reason)) => {
                let before = self.status.lock().failures.insert(resource, reason.clone());
                if before.as_ref() != Some(&reason) {
                    tracing::error!(
                        source = resource.as_str(),
                        reason,
                        "source in trouble; the last good table is served"
                    );
                }
                // An API that says that it cannot be had needs no more patience.
                if self.is_hoping() {
                    self.read_saved();
                }
            }
            Event::Health(resource, None) => {
                if self.status.lock().failures.remove(&resource).is_some() {
                    tracing::info!(source = resource.as_str(), "source works again");
                }
            }
        }
    }

    fn apply(&mut self, change: Change) {
        if let Some(saving) = self.saving.as_mut().filter(|saving| !saving.unconfirmed.is_empty()) {
            saving.unconfirmed.remove(&resource_of(&change));
        }
        self.builder.apply(change);
    }

    /// What was saved and is not there any more.
    fn forget_unconfirmed(&mut self, resource: Resource) {
        let Some(saving) = &mut self.saving else { return };
        let (gone, kept) = std::mem::take(&mut saving.unconfirmed).into_iter().partition(|(of, _)| *of == resource);
        saving.unconfirmed = kept;
        let gone: HashSet<(Resource, Key)> = gone;
        for (resource, key) in gone {
            self.builder.apply(match resource {
                Resource::Services => Change::Service(key, None),
                Resource::EndpointSlices => Change::Slice(key, None),
                Resource::Namespaces => Change::Namespace(key.name, None),
                Resource::Pods | Resource::Manifests => continue,
            });
        }
    }

    /// Publishes a table if an answer changed; says whether it did.
    pub fn publish(&mut self) -> bool {
        let status = self.status.lock();
        // Saved facts are a whole; what the API has told of its first list is not, until it is all told.
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
            status.publish.observe(start.elapsed().as_secs_f64());
            let now = jiff::Timestamp::now();
            for (received, triggered) in waiting {
                status.from_event.observe(received.elapsed().as_secs_f64());
                if let Some(triggered) = triggered {
                    status.from_trigger.observe(now.duration_since(triggered).as_secs_f64().max(0.0));
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
        for report in self.builder.take_reports() {
            self.report(&report);
        }
        published
    }

    fn report(&mut self, report: &Diagnostic) {
        if self.is_new(&format!("{report:?}")) {
            match report {
                Diagnostic::AliasClaimed { alias, kept_by, refused } => {
                    tracing::warn!(alias, kept_by, refused, "two Services claim one alias; the older keeps it");
                }
                Diagnostic::TwoDefaults { kind, services } => {
                    tracing::warn!(kind, ?services, "several Services are marked as the default database; none is");
                }
                Diagnostic::AliasShadowed { alias, claimed_by } => {
                    tracing::warn!(alias, claimed_by, "an alias is also a Service's name; the Service has it");
                }
                Diagnostic::TopLevelDomain { namespace } => {
                    tracing::warn!(
                        namespace,
                        "a namespace is called like a public top-level domain; see docs/names.md"
                    );
                }
                Diagnostic::FqdnSkipped { service } => {
                    tracing::warn!(
                        service,
                        "FQDN endpoints are skipped: only a single one can be answered, as a CNAME"
                    );
                }
            }
        }
    }

    /// Whether this is said for the first time.
    fn is_new(&mut self, text: &str) -> bool {
        if self.complaints.len() >= REMEMBERED {
            self.complaints.clear();
        }
        self.complaints.insert(text.to_owned())
    }
}

/// Learns everything that a source of finite length says: for commands that read once.
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
