//! From events to published tables: apply, build, swap. The first change at once, a flood coalesced.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Receiver;

use super::{Event, Part};
use crate::zone::{Builder, Report, Zone};

/// Tables follow each other no faster than this, which also keeps serials below 256 a second.
const WINDOW: Duration = Duration::from_millis(4);
/// So many events are taken in before the table is looked at again.
const BATCH: usize = 4096;
/// Complaints that are remembered so that each is logged once.
const REMEMBERED: usize = 4096;

/// Bounds of the publishing histograms in seconds.
pub const PUBLISH_BOUNDS: [f64; 8] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0];

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
pub struct Condition {
    /// Parts that have not been learnt yet.
    pub pending: BTreeSet<Part>,
    /// When each part was last heard.
    pub heard: BTreeMap<Part, Instant>,
    /// What is wrong with a part.
    pub trouble: BTreeMap<Part, String>,
    /// Objects and annotations that could not be used.
    pub rejected: u64,
    /// Tables published.
    pub published: u64,
    /// Time to make and swap one.
    pub publish: Histogram,
}

/// Shared with the admin plane; never touched by the one that answers.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Condition>>);

impl Status {
    /// The condition now.
    pub fn condition(&self) -> Condition {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes in what sources say and publishes tables.
pub struct Publisher {
    builder: Builder,
    table: Arc<ArcSwap<Zone>>,
    status: Status,
    started: Instant,
    complaints: HashSet<String>,
}

impl Publisher {
    /// A publisher that waits for these parts before its first table.
    pub fn new(
        builder: Builder,
        table: Arc<ArcSwap<Zone>>,
        status: Status,
        parts: impl IntoIterator<Item = Part>,
    ) -> Publisher {
        status.lock().pending = parts.into_iter().collect();
        Publisher { builder, table, status, started: Instant::now(), complaints: HashSet::new() }
    }

    /// Runs until every source is gone.
    pub async fn run(mut self, mut events: Receiver<Event>) {
        let mut last = None::<Instant>;
        while let Some(event) = events.recv().await {
            self.take(event);
            // Within the window after a table, changes gather; after a quiet while, the first is published at once.
            if let Some(next) = last.map(|last| last + WINDOW).filter(|next| *next > Instant::now()) {
                let next = tokio::time::Instant::from_std(next);
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
                last = Some(Instant::now());
            }
        }
    }

    /// Takes in one event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.builder.apply(change),
            Event::Heard(part) => {
                self.status.lock().heard.insert(part, Instant::now());
            }
            Event::Synced(part) => {
                let mut condition = self.status.lock();
                condition.heard.insert(part, Instant::now());
                condition.pending.remove(&part);
                if condition.pending.is_empty() {
                    drop(condition);
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
            Event::Trouble(part, Some(reason)) => {
                let before = self.status.lock().trouble.insert(part, reason.clone());
                if before.as_ref() != Some(&reason) {
                    tracing::error!(source = part.as_str(), reason, "source in trouble; the last good table is served");
                }
            }
            Event::Trouble(part, None) => {
                if self.status.lock().trouble.remove(&part).is_some() {
                    tracing::info!(source = part.as_str(), "source works again");
                }
            }
        }
    }

    /// Publishes a table if an answer changed; says whether it did.
    pub fn publish(&mut self) -> bool {
        if !self.status.lock().pending.is_empty() {
            return false;
        }
        let start = Instant::now();
        let first = !self.table.load().synced;
        let zone = self.builder.publish();
        let published = zone.is_some();
        if let Some(zone) = zone {
            let (services, endpoints, names) = zone.size();
            let serial = zone.serial;
            self.table.store(zone);
            let mut condition = self.status.lock();
            condition.published += 1;
            condition.publish.observe(start.elapsed().as_secs_f64());
            drop(condition);
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

    fn report(&mut self, report: &Report) {
        if self.is_new(&format!("{report:?}")) {
            match report {
                Report::AliasClaimed { alias, kept_by, refused } => {
                    tracing::warn!(alias, kept_by, refused, "two Services claim one alias; the older keeps it");
                }
                Report::TwoDefaults { kind, services } => {
                    tracing::warn!(kind, ?services, "several Services are marked as the default database; none is");
                }
                Report::AliasShadowed { alias, claimed_by } => {
                    tracing::warn!(alias, claimed_by, "an alias is also a Service's name; the Service has it");
                }
                Report::TopLevelDomain { namespace } => {
                    tracing::warn!(
                        namespace,
                        "a namespace is called like a public top-level domain; see docs/names.md"
                    );
                }
                Report::FqdnSkipped { service } => {
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
            Event::Change(change) => builder.apply(change),
            other => others.push(other),
        }
    }
    builder.set_synced();
    let zone = builder.publish();
    let zone = zone.unwrap_or_else(|| Arc::new(Zone::unsynced(builder.settings().clone())));
    (zone, builder, others)
}
