//! Facts from the Kubernetes API: list and watch, with one task and one connection per resource.
//!
//! # Design
//! `kube::runtime::watcher` holds a list in memory until it is complete, which for a relist is a second copy of the
//! cluster, and its stores hold whole objects. The local state here is a key and five octets for each object. The
//! client of `kube` handles credentials, TLS and requests.
//!
//! A pure function, `State::step`, decides the next request; `Watcher` carries it out. Lists are streamed
//! (`sendInitialEvents`) unless the server's response shows that it cannot stream; then they are read in pages. Each
//! listed object is compared with the local state as it arrives, so memory never holds two copies of the cluster.

mod lines;
mod request;
mod self_check;
mod state;
mod watcher;

use std::time::Duration;

use super::object::{EndpointSliceObject, NamespaceObject, Object, ParseOptions, PodObject, ServiceObject};
use super::{Events, Resource};
use request::Collection;
use watcher::Watcher;

/// Silence after which a request that is not a watch has failed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which a watch has failed: the server sends a bookmark about every minute. A connection that is dead is
/// noticed sooner, by TCP.
const WATCH_SILENCE_TIMEOUT: Duration = Duration::from_secs(150);

/// Which pods to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// No pods.
    Off,
    /// The pods of one node.
    Node(String),
    /// All pods.
    All,
}

/// What to watch.
pub struct Scope<'s> {
    /// A namespace; `None` for all.
    pub namespace: Option<&'s str>,
    /// Which pods.
    pub pods: &'s Pods,
}

/// Parameters that the watchers of all resources share.
#[derive(Clone)]
struct Follow {
    client: kube::Client,
    parse_options: ParseOptions,
    /// Interval of the self-check; zero disables it.
    check: Duration,
    events: Events,
}

/// Starts a watcher for every resource that answers depend on; returns the resources that must sync first.
pub fn follow(
    client: &kube::Client,
    parse_options: ParseOptions,
    scope: &Scope<'_>,
    check: Duration,
    events: &Events,
) -> Vec<Resource> {
    let follow = Follow { client: client.clone(), parse_options, check, events: events.clone() };
    let within = scope.namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    let all = |path, page| Collection { path, page, selector: None };
    follow.watch::<ServiceObject>(Resource::Services, all(format!("/api/v1/{within}services"), 500));
    // Slices are large: a smaller page limits the memory that a list needs.
    let slices = format!("/apis/discovery.k8s.io/v1/{within}endpointslices");
    follow.watch::<EndpointSliceObject>(Resource::EndpointSlices, all(slices, 100));
    let mut resources = vec![Resource::Services, Resource::EndpointSlices];
    // Who may read one namespace may not list all.
    if scope.namespace.is_none() {
        follow.watch::<NamespaceObject>(Resource::Namespaces, all("/api/v1/namespaces".to_owned(), 500));
        resources.push(Resource::Namespaces);
    }
    let selector = match scope.pods {
        Pods::Off => return resources,
        Pods::All => None,
        Pods::Node(node) => Some(format!("spec.nodeName={node}")),
    };
    follow
        .watch::<PodObject>(Resource::Pods, Collection { path: format!("/api/v1/{within}pods"), page: 500, selector });
    resources.push(Resource::Pods);
    resources
}

impl Follow {
    fn watch<O: Object>(&self, resource: Resource, collection: Collection) {
        tokio::spawn(Watcher::<O>::new(self.clone(), resource, collection).run());
    }
}
