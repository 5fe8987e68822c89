//! Sources for commands: a cluster is read once, or followed.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{Failure, warn};
use crate::cluster::kubernetes::{self, Pods, Scope};
use crate::cluster::object::{ParseOptions, Rejected};
use crate::cluster::publish::{Publisher, SharedStatus};
use crate::cluster::source::{OpenSource, Source, SourceError};
use crate::cluster::{self, Event, Events, error_chain, publish};
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{CONFIG, UNAVAILABLE};
use crate::report::Catalog;
use crate::report::lint::Unready;
use crate::zone::facts::{Change, PodId};
use crate::zone::{Builder, Diagnostic, Settings, Zone};

/// Time for a source to deliver everything.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two looks at a source that is followed.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A cluster, as a source described it.
pub(super) struct Cluster {
    /// The zone, and the facts that it was built from.
    pub(super) catalog: Catalog,
    /// Problems that the builder found.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Objects and annotations that are not valid.
    pub(super) rejected: Vec<Rejected>,
    /// Pods in the manifests.
    pods: HashSet<PodId>,
    api: Option<(Runtime, kube::Client)>,
}

/// Reads the source once, and warns if it rejected objects; `callsign doctor` lists them.
pub(super) fn read(args: &SourceArgs, names: &NameArgs) -> Result<Cluster, Failure> {
    let cluster = read_silently(args, names)?;
    if !cluster.rejected.is_empty() {
        let count = cluster.rejected.len();
        let objects = if count == 1 { "object" } else { "objects" };
        warn(format!(
            "{count} {objects} or annotations ignored, because they are not valid; `callsign doctor` lists them"
        ));
    }
    Ok(cluster)
}

/// Reads the source once.
fn read_silently(args: &SourceArgs, names: &NameArgs) -> Result<Cluster, Failure> {
    let options = args.options(names);
    match &options.source {
        Source::Manifests(path) => {
            built(Builder::new(settings(names)?), options.open_manifests(path).map_err(SourceError::from)?.1, None)
        }
        api => read_api(api, options.parse_options, names),
    }
}

fn read_api(source: &Source, parse_options: ParseOptions, names: &NameArgs) -> Result<Cluster, Failure> {
    let mut builder = Builder::new(settings(names)?);
    let runtime = runtime()?;
    let client = source.client(runtime.handle())?;
    let events = runtime.block_on(listed(&client, parse_options))?;
    builder.expect_namespaces();
    built(builder, events, Some((runtime, client)))
}

/// Reads the source once, and shows each object as it is written, with its place (`web.yaml:12`; empty for objects of
/// an API). Returns, too, why parts of the source cannot be read.
pub(super) fn inspect(
    args: &SourceArgs,
    names: &NameArgs,
    each: &mut dyn FnMut(&str, &Value),
) -> Result<(Cluster, Vec<String>), Failure> {
    let options = args.options(names);
    if let Source::Manifests(path) = &options.source {
        let (events, problems) = options.inspect_manifests(path, each);
        let cluster = built(Builder::new(settings(names)?), events, None)?;
        return Ok((cluster, problems.iter().map(ToString::to_string).collect()));
    }
    let cluster = read_api(&options.source, options.parse_options, names)?;
    let mut problems = Vec::new();
    let (runtime, client) = cluster.api.as_ref().ok_or_else(|| Failure::new(UNAVAILABLE, "the source has no API"))?;
    for (kind, path) in [
        ("Service", "/api/v1/services"),
        ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
        ("Namespace", "/api/v1/namespaces"),
        ("Pod", "/api/v1/pods"),
    ] {
        if let Err(error) = runtime.block_on(each_page(client, kind, path, each)) {
            problems.push(format!("cannot list {}: {}", path.rsplit('/').next().unwrap_or(path), error_chain(&error)));
        }
    }
    Ok((cluster, problems))
}

/// Lists a resource in pages, so that a large cluster is never in memory as a whole.
async fn each_page(
    client: &kube::Client,
    kind: &str,
    path: &str,
    each: &mut dyn FnMut(&str, &Value),
) -> Result<(), kube::Error> {
    let mut next = String::new();
    loop {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", "500").append_pair("continue", &next);
        let request = http::Request::get(format!("{path}?{}", query.finish())).body(Vec::new());
        let mut page = client.request::<Value>(request.map_err(kube::Error::HttpError)?).await?;
        next = page.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default().to_owned();
        for item in page.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            let mut item = item.take();
            if let Some(fields) = item.as_object_mut() {
                fields.insert("kind".to_owned(), kind.into());
            }
            each("", &item);
        }
        if next.is_empty() {
            return Ok(());
        }
    }
}

fn built(builder: Builder, events: Vec<Event>, api: Option<(Runtime, kube::Client)>) -> Result<Cluster, Failure> {
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
            Event::Health(_, Some(reason)) => warn(format!("part of the source ignored: {reason}")),
            _ => {}
        }
    }
    let diagnostics = builder.take_diagnostics();
    Ok(Cluster { catalog: Catalog::new(zone, builder.facts()), diagnostics, rejected, pods, api })
}

/// Returns the settings of a server that forwards, as servers do by default. Forwarding decides whether a namespace
/// called `com` captures names.
fn settings(names: &NameArgs) -> Result<Arc<Settings>, Failure> {
    let mut settings = names.settings().map_err(|error| Failure::new(CONFIG, error))?;
    settings.forwarding = true;
    Ok(Arc::new(settings))
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| Failure::new(UNAVAILABLE, format!("cannot start a runtime: {error}")))
}

/// A source that is followed.
pub(super) struct Live {
    runtime: Runtime,
    table: Arc<ArcSwap<Zone>>,
    events: Events,
    status: SharedStatus,
    /// The problem of the source at the last look, if any.
    failures: RefCell<Option<String>>,
    client: Option<kube::Client>,
}

/// Follows a source as the server does, and waits for the first sync.
pub(super) fn follow(args: &SourceArgs, names: &NameArgs) -> Result<Live, Failure> {
    let settings = settings(names)?;
    let runtime = runtime()?;
    let table = Arc::new(ArcSwap::from_pointee(Zone::unsynced(settings.clone())));
    let status = SharedStatus::default();
    let (events, incoming) = mpsc::channel(4096);
    let OpenSource { resources, first, client } = args.options(names).follow(runtime.handle(), &events)?;
    let mut publisher = Publisher::new(Builder::new(settings), table.clone(), status.clone(), resources);
    for event in first {
        publisher.take(event);
    }
    publisher.publish();
    runtime.spawn(publisher.run(incoming));
    let live = Live { runtime, table, events, status, failures: RefCell::default(), client };
    let deadline = std::time::Instant::now() + SYNC_TIMEOUT;
    while !live.table.load().synced {
        let problem = live.problem();
        if std::time::Instant::now() > deadline || problem.as_deref().is_some_and(is_final) {
            return Err(unavailable(problem));
        }
        live.sleep(Duration::from_millis(20));
    }
    Ok(live)
}

impl Live {
    /// Returns the selected namespace: `-n`, else that of the kubeconfig's context.
    pub(super) fn selected_namespace(&self, names: &NameArgs) -> Option<String> {
        selected_namespace(names, self.client.as_ref())
    }

    /// Returns the current zone and facts.
    pub(super) fn catalog(&self) -> Result<Catalog, Failure> {
        let facts = self.runtime.block_on(cluster::facts(&self.events));
        let facts = facts.ok_or_else(|| Failure::new(UNAVAILABLE, "the source stopped"))?;
        Ok(Catalog::new(self.table.load_full(), facts))
    }

    /// Returns the first problem of the source, if any.
    fn problem(&self) -> Option<String> {
        let status = self.status.status();
        status.failures.iter().map(|(resource, reason)| format!("{}: {reason}", resource.as_str())).next()
    }

    /// Waits until the next look. Logs when the source fails, and when it recovers.
    pub(super) fn wait(&self) {
        self.sleep(POLL_INTERVAL);
        let now = self.problem();
        let before = self.failures.replace(now.clone());
        match (before, now) {
            (None, Some(error)) => {
                warn(format!("the output may be stale, because the cluster cannot be followed: {error}"))
            }
            (Some(_), None) => warn("the cluster is followed again"),
            _ => {}
        }
    }

    fn sleep(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

/// A progress line on the terminal while a large cluster is listed. It is erased before anything else is printed.
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
            let _ = write!(std::io::stderr(), "\rreading the cluster: {objects} objects …");
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Returns whether a problem is final. A command gives up where a server retries.
fn is_final(reason: &str) -> bool {
    ["returned 401", "returned 403", "cannot reach"].iter().any(|word| reason.contains(word))
}

fn unavailable(failure: Option<String>) -> Failure {
    let error = failure.unwrap_or_else(|| format!("timed out reading the cluster after {} s", SYNC_TIMEOUT.as_secs()));
    Failure::new(UNAVAILABLE, format!("{error}; check --kubeconfig, --context and your list permissions"))
}

async fn listed(client: &kube::Client, parse_options: ParseOptions) -> Result<Vec<Event>, Failure> {
    let (events, mut incoming) = mpsc::channel(4096);
    let mut pending = kubernetes::follow(
        client,
        parse_options,
        &Scope { namespace: None, pods: &Pods::Off },
        Duration::ZERO,
        &events,
    );
    drop(events);
    let mut received = Vec::new();
    let mut problem = None;
    let deadline = tokio::time::Instant::now() + SYNC_TIMEOUT;
    let mut progress = Progress::new();
    while !pending.is_empty() {
        progress.show(received.len());
        match tokio::time::timeout_at(deadline, incoming.recv()).await {
            Ok(Some(Event::Synced(resource))) => pending.retain(|waiting| *waiting != resource),
            Ok(Some(Event::Health(resource, Some(reason)))) => {
                let last = is_final(&reason);
                problem = Some(format!("{}: {reason}", resource.as_str()));
                if last {
                    break;
                }
            }
            Ok(Some(event)) => received.push(event),
            Ok(None) | Err(_) => break,
        }
    }
    progress.clear();
    if pending.is_empty() {
        return Ok(received);
    }
    Err(unavailable(problem))
}

/// Returns the selected namespace: `-n`, else that of the kubeconfig's context.
fn selected_namespace(names: &NameArgs, client: Option<&kube::Client>) -> Option<String> {
    names.namespace().or(client.map(kube::Client::default_namespace)).map(str::to_owned)
}

impl Cluster {
    /// Returns the selected namespace: `-n`, else that of the kubeconfig's context.
    pub(super) fn selected_namespace(&self, names: &NameArgs) -> Option<String> {
        selected_namespace(names, self.api.as_ref().map(|(_, client)| client))
    }

    /// Returns why a pod is not ready, and since when; `None` if the source is not an API, or does not say.
    pub(super) fn reason(&self, namespace: &str, pod: &str) -> Option<String> {
        let is_name = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.'));
        let (runtime, client) = self.api.as_ref().filter(|_| !pod.is_empty() && is_name(pod) && is_name(namespace))?;
        let request = http::Request::get(format!("/api/v1/namespaces/{namespace}/pods/{pod}")).body(Vec::new()).ok()?;
        Unready::of(&runtime.block_on(client.request::<Value>(request)).ok()?).map(|unready| unready.text())
    }

    /// Returns the namespace of a pod, found by name or, if the source is an API, by address.
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
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("fieldSelector", &format!("{field}={name}"));
        let request = http::Request::get(format!("/api/v1/pods?{}", query.finish())).body(Vec::new()).ok()?;
        let list = runtime.block_on(client.request::<Value>(request));
        let list = list.inspect_err(|error| warn(format!("cannot list pods: {error}"))).ok()?;
        let items = list.get("items")?.as_array()?;
        let namespaces = items.iter().filter_map(|item| item.get("metadata")?.get("namespace")?.as_str());
        namespaces.filter(|found| namespace.is_none_or(|namespace| namespace == *found)).map(str::to_owned).next()
    }
}
