//! A cluster read once, for commands that answer and end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{CONFIG, Failure, UNAVAILABLE};
use crate::app;
use crate::cluster::kubernetes::{self, Pods};
use crate::cluster::manifests::{Manifests, Options};
use crate::cluster::object::Reading;
use crate::cluster::{Event, publish};
use crate::config::{NameArgs, Source, SourceArgs};
use crate::zone::facts::{Change, PodId};
use crate::zone::{Builder, Zone};

/// How long an API may take to tell everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a source said.
pub(super) struct Cluster {
    /// The table.
    pub(super) zone: Arc<Zone>,
    /// What was said of it.
    pub(super) builder: Builder,
    /// Pods that manifests hold.
    pods: HashSet<PodId>,
    api: Option<(Runtime, kube::Client)>,
}

/// Reads everything once. Complaints about single objects go to stderr.
pub(super) fn read(args: &SourceArgs, names: &NameArgs) -> Result<Cluster, Failure> {
    let settings = names.settings().map_err(|why| Failure::new(CONFIG, why))?;
    let reading = Reading { endpoint_pod_names: names.endpoint_pod_names };
    let source = args.source();
    let builder = Builder::new(Arc::new(settings));
    let (events, api) = match &source {
        Source::Nowhere => return Err(app::StartError::NoSource.into()),
        Source::Manifests(path) => {
            let options = Options { path: path.clone(), reading, service_cidrs: args.service_cidrs.clone() };
            let (_, events) = Manifests::open(options).map_err(|why| Failure::from(app::StartError::from(why)))?;
            (events, None)
        }
        Source::Kubeconfig(..) | Source::InCluster => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime =
                runtime.map_err(|why| Failure::new(UNAVAILABLE, format!("the system gives no runtime: {why}")))?;
            let client = app::client(&runtime, &source).map_err(Failure::from)?;
            let events = runtime.block_on(listed(&client, reading))?;
            (events, Some((runtime, client)))
        }
    };
    let pods = events.iter().filter_map(|event| match event {
        Event::Change(Change::Pod(pod, Some(_))) => Some(*pod),
        _ => None,
    });
    let pods = pods.collect();
    let (zone, builder, others) = publish::build(builder, events);
    for event in others {
        match event {
            Event::Rejected(rejected) => tracing::warn!(object = %rejected, "left out"),
            Event::Trouble(_, Some(reason)) => tracing::warn!(reason, "left out"),
            _ => {}
        }
    }
    Ok(Cluster { zone, builder, pods, api })
}

async fn listed(client: &kube::Client, reading: Reading) -> Result<Vec<Event>, Failure> {
    let (events, mut incoming) = mpsc::channel(4096);
    let mut pending = kubernetes::follow(client, reading, &Pods::Off, Duration::ZERO, &events);
    drop(events);
    let mut told = Vec::new();
    let mut trouble = None;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !pending.is_empty() {
        match tokio::time::timeout_at(deadline, incoming.recv()).await {
            Ok(Some(Event::Synced(part))) => pending.retain(|waiting| *waiting != part),
            // A command is not patient where a server is: what the API refuses now is the answer.
            Ok(Some(Event::Trouble(part, Some(reason)))) => {
                let refused = ["401", "403"].iter().any(|code| reason.contains(&format!("answers {code}")));
                trouble = Some(format!("{}: {reason}", part.as_str()));
                if refused || reason.starts_with("cannot reach") {
                    break;
                }
            }
            Ok(Some(event)) => told.push(event),
            Ok(None) | Err(_) => break,
        }
    }
    if pending.is_empty() {
        return Ok(told);
    }
    let why = trouble.unwrap_or_else(|| format!("the API did not tell everything within {} s", PATIENCE.as_secs()));
    Err(Failure::new(UNAVAILABLE, format!("{why}; check --kubeconfig, --context and that you may list it")))
}

impl Cluster {
    /// The namespace of a pod, by its name or (where an API can be asked) its address.
    pub(super) fn pod_namespace(&self, pod: &str) -> Option<String> {
        let (namespace, name) = pod.split_once('/').map_or((None, pod), |(namespace, name)| (Some(namespace), name));
        let mut places = self.zone.namespaces().map(|place| place.name.text());
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
        let list: Value = runtime.block_on(client.request(request)).ok()?;
        let items = list.get("items")?.as_array()?;
        let namespaces = items.iter().filter_map(|item| item.get("metadata")?.get("namespace")?.as_str());
        namespaces.filter(|found| namespace.is_none_or(|namespace| namespace == *found)).map(str::to_owned).next()
    }
}
