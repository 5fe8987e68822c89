//! A cluster read once, for commands that answer and end.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{CONFIG, Failure, UNAVAILABLE};
use crate::app::{self, Begun, Following};
use crate::cluster::kubernetes::{self, Pods};
use crate::cluster::manifests::{ManifestOptions, Manifests};
use crate::cluster::object::{ParseOptions, Rejected};
use crate::cluster::publish::{Publisher, SharedStatus};
use crate::cluster::{self, Event, Events, publish};
use crate::config::{NameArgs, Source, SourceArgs};
use crate::report::Catalog;
use crate::zone::facts::{Change, PodId};
use crate::zone::{Builder, Diagnostic, Settings, Zone};

/// How long an API may take to tell everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a source that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What a source said.
pub(super) struct Cluster {
    /// The table, and the facts that it is made of.
    pub(super) catalog: Catalog,
    /// What was noticed while it was made.
    pub(super) reports: Vec<Diagnostic>,
    /// Objects, and annotations of objects, that could not be used.
    pub(super) rejected: Vec<Rejected>,
    /// Pods that manifests hold.
    pods: HashSet<PodId>,
    api: Option<(Runtime, kube::Client)>,
}

/// Reads everything once. That some objects cannot be used is told; which, is the doctor's to say.
pub(super) fn read(args: &SourceArgs, names: &NameArgs) -> Result<Cluster, Failure> {
    let cluster = read_silently(args, names)?;
    if !cluster.rejected.is_empty() {
        tracing::warn!(objects = cluster.rejected.len(), "could not be read whole; `callsign doctor` says which");
    }
    Ok(cluster)
}

/// Reads everything once.
pub(super) fn read_silently(args: &SourceArgs, names: &NameArgs) -> Result<Cluster, Failure> {
    let builder = Builder::new(settings(names)?);
    let parse_options = ParseOptions { endpoint_pod_names: names.endpoint_pod_names };
    let source = args.source();
    let (events, api) = match &source {
        Source::Nowhere => return Err(app::StartError::NoSource.into()),
        Source::Manifests(path) => {
            let options =
                ManifestOptions { path: path.clone(), parse_options, service_cidrs: args.service_cidrs.clone() };
            let (_, events) = Manifests::open(options).map_err(|error| Failure::from(app::StartError::from(error)))?;
            (events, None)
        }
        Source::Kubeconfig(..) | Source::InCluster => {
            let runtime = runtime()?;
            let client = app::client(&runtime, &source).map_err(Failure::from)?;
            let events = runtime.block_on(listed(&client, parse_options))?;
            (events, Some((runtime, client)))
        }
    };
    let pods = events.iter().filter_map(|event| match event {
        Event::Change(Change::Pod(pod, Some(_))) => Some(*pod),
        _ => None,
    });
    let pods = pods.collect();
    let (zone, mut builder, others) = publish::build(builder, events);
    let mut rejected = Vec::new();
    for event in others {
        match event {
            Event::Rejected(object) => rejected.push(object),
            Event::Health(_, Some(reason)) => tracing::warn!(reason, "left out"),
            _ => {}
        }
    }
    let reports = builder.take_reports();
    Ok(Cluster { catalog: Catalog::new(zone, builder.facts()), reports, rejected, pods, api })
}

/// What names mean, as to a server that forwards: that is the default, and decides what a namespace called `com` may
/// answer.
fn settings(names: &NameArgs) -> Result<Arc<Settings>, Failure> {
    let mut settings = names.settings().map_err(|error| Failure::new(CONFIG, error))?;
    settings.forwarding = true;
    Ok(Arc::new(settings))
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| Failure::new(UNAVAILABLE, format!("the system gives no runtime: {error}")))
}

/// A source that goes on telling.
pub(super) struct Live {
    runtime: Runtime,
    table: Arc<ArcSwap<Zone>>,
    events: Events,
    status: SharedStatus,
    /// What was wrong when it was looked at last.
    failures: RefCell<Option<String>>,
    client: Option<kube::Client>,
}

/// Follows a source, as the server does.
pub(super) fn follow(args: &SourceArgs, names: &NameArgs) -> Result<Live, Failure> {
    let settings = settings(names)?;
    let (source, runtime) = (args.source(), runtime()?);
    let table = Arc::new(ArcSwap::from_pointee(Zone::unsynced(settings.clone())));
    let status = SharedStatus::default();
    let (events, incoming) = mpsc::channel(4096);
    let following = Following {
        source: &source,
        service_cidrs: &args.service_cidrs,
        parse_options: ParseOptions { endpoint_pod_names: names.endpoint_pod_names },
        pods: &Pods::Off,
        self_check: Duration::ZERO,
    };
    let Begun { resources, first, client } = app::begin(&following, &runtime, &events)?;
    let mut publisher = Publisher::new(Builder::new(settings), table.clone(), status.clone(), resources);
    for event in first {
        publisher.take(event);
    }
    publisher.publish();
    runtime.spawn(publisher.run(incoming));
    let live = Live { runtime, table, events, status, failures: RefCell::default(), client };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !live.table.load().synced {
        let trouble = live.trouble();
        if std::time::Instant::now() > deadline || trouble.as_deref().is_some_and(is_final) {
            return Err(unavailable(trouble));
        }
        live.sleep(Duration::from_millis(20));
    }
    Ok(live)
}

impl Live {
    /// The namespace that a command is about, if somebody said which: `-n`, else the kubeconfig's context.
    pub(super) fn told_namespace(&self, names: &NameArgs) -> Option<String> {
        told_namespace(names, self.client.as_ref())
    }

    /// What is known now.
    pub(super) fn catalog(&self) -> Result<Catalog, Failure> {
        let facts = self.runtime.block_on(cluster::facts(&self.events));
        let facts = facts.ok_or_else(|| Failure::new(UNAVAILABLE, "the source has ended"))?;
        Ok(Catalog::new(self.table.load_full(), facts))
    }

    /// What is wrong with the source.
    fn trouble(&self) -> Option<String> {
        let status = self.status.status();
        status.failures.iter().map(|(resource, reason)| format!("{}: {reason}", resource.as_str())).next()
    }

    /// Lets time pass until it is worth looking again. When the source fails, or works again, that is told.
    pub(super) fn wait(&self) {
        self.sleep(LOOK);
        let now = self.trouble();
        let before = self.failures.replace(now.clone());
        match (before, now) {
            (None, Some(error)) => tracing::warn!(error, "the cluster cannot be followed: what is shown may be old"),
            (Some(_), None) => tracing::warn!("the cluster is followed again"),
            _ => {}
        }
    }

    fn sleep(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

/// A line on a terminal while a large cluster is listed; it is gone before anything else is printed.
struct Progress {
    next: Option<std::time::Instant>,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        let after = Duration::from_millis(300);
        let next = std::io::stderr().is_terminal().then(|| std::time::Instant::now() + after);
        Progress { next, shown: false }
    }

    fn show(&mut self, objects: usize) {
        let now = std::time::Instant::now();
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + Duration::from_millis(100));
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r{objects} objects of the cluster read …");
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Whether what an API says is its last word: a command is not patient where a server is.
fn is_final(reason: &str) -> bool {
    ["answers 401", "answers 403", "cannot reach"].iter().any(|word| reason.contains(word))
}

fn unavailable(failure: Option<String>) -> Failure {
    let error = failure.unwrap_or_else(|| format!("the API did not tell everything within {} s", PATIENCE.as_secs()));
    Failure::new(UNAVAILABLE, format!("{error}; check --kubeconfig, --context and that you may list it"))
}

async fn listed(client: &kube::Client, parse_options: ParseOptions) -> Result<Vec<Event>, Failure> {
    let (events, mut incoming) = mpsc::channel(4096);
    let mut pending = kubernetes::follow(client, parse_options, &Pods::Off, Duration::ZERO, &events);
    drop(events);
    let mut told = Vec::new();
    let mut trouble = None;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut progress = Progress::new();
    while !pending.is_empty() {
        progress.show(told.len());
        match tokio::time::timeout_at(deadline, incoming.recv()).await {
            Ok(Some(Event::Synced(resource))) => pending.retain(|waiting| *waiting != resource),
            Ok(Some(Event::Health(resource, Some(reason)))) => {
                let last = is_final(&reason);
                trouble = Some(format!("{}: {reason}", resource.as_str()));
                if last {
                    break;
                }
            }
            Ok(Some(event)) => told.push(event),
            Ok(None) | Err(_) => break,
        }
    }
    progress.clear();
    if pending.is_empty() {
        return Ok(told);
    }
    Err(unavailable(trouble))
}

/// The namespace that a command is about, if somebody said which: `-n`, else the kubeconfig's context.
fn told_namespace(names: &NameArgs, client: Option<&kube::Client>) -> Option<String> {
    names.namespace().or(client.map(kube::Client::default_namespace)).map(str::to_owned)
}

impl Cluster {
    /// The namespace that a command is about, if somebody said which: `-n`, else the kubeconfig's context.
    pub(super) fn told_namespace(&self, names: &NameArgs) -> Option<String> {
        told_namespace(names, self.api.as_ref().map(|(_, client)| client))
    }

    /// The namespace of a pod, by its name or (where an API can be asked) its address.
    pub(super) fn pod_namespace(&self, pod: &str) -> Option<String> {
        let (namespace, name) = pod.split_once('/').map_or((None, pod), |(namespace, name)| (Some(namespace), name));
        let mut places = self.catalog.namespaces().map(str::to_owned);
        let held = |place: &String| {
            namespace.is_none_or(|namespace| namespace == place) && self.pods.contains(&PodId::of(place, name))
        };
        if let Some(place) = places.find(held) {
            return Some(place);
        }
        let (runtime, client) = self.api.as_ref()?;
        let field = if name.parse::<std::net::IpAddr>().is_ok() { "status.podIP" } else { "metadata.name" };
        let request =
            http::Request::get(format!("/api/v1/pods?fieldSelector={field}%3D{name}")).body(Vec::new()).ok()?;
        let list = runtime.block_on(client.request::<Value>(request));
        let list = list.inspect_err(|error| tracing::warn!(%error, "pods cannot be asked for")).ok()?;
        let items = list.get("items")?.as_array()?;
        let namespaces = items.iter().filter_map(|item| item.get("metadata")?.get("namespace")?.as_str());
        namespaces.filter(|found| namespace.is_none_or(|namespace| namespace == *found)).map(str::to_owned).next()
    }
}
