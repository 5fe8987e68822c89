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

/// Silence after which a connection counts as dead. The server ends an idle watch before that.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

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
    pods: &Pods,
    check: Duration,
    events: &Events,
) -> Vec<Resource> {
    let follow = Follow { client: client.clone(), parse_options, check, events: events.clone() };
    let all = |path, page| Collection { path, page, selector: None };
    follow.watch::<ServiceObject>(Resource::Services, all("/api/v1/services", 500));
    // Slices are large: a smaller page limits the memory that a list needs.
    follow.watch::<EndpointSliceObject>(Resource::EndpointSlices, all("/apis/discovery.k8s.io/v1/endpointslices", 100));
    follow.watch::<NamespaceObject>(Resource::Namespaces, all("/api/v1/namespaces", 500));
    let mut resources = vec![Resource::Services, Resource::EndpointSlices, Resource::Namespaces];
    let selector = match pods {
        Pods::Off => return resources,
        Pods::All => None,
        Pods::Node(node) => Some(format!("spec.nodeName={node}")),
    };
    follow.watch::<PodObject>(Resource::Pods, Collection { path: "/api/v1/pods", page: 500, selector });
    resources.push(Resource::Pods);
    resources
}

impl Follow {
    fn watch<O: Object>(&self, resource: Resource, collection: Collection) {
        tokio::spawn(Watcher::<O>::new(self.clone(), resource, collection).run());
    }
}
