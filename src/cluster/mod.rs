//! Sources of facts, which are the Kubernetes API and manifests, and the path from a source to a published table.

mod budget;
pub mod kubernetes;
pub mod manifests;
pub mod object;
pub mod publish;
pub mod snapshot;
pub mod source;

use crate::zone::Facts;
use crate::zone::facts::Change;

/// An event from a source, or a request to the publisher.
#[derive(Debug)]
pub enum Event {
    /// An object changed, or is reported for the first time.
    Change(Change),
    /// A change from a watch. The time from it to the published table is measured.
    Watched {
        /// The change.
        change: Change,
        /// When the watch event arrived.
        received: std::time::Instant,
        /// When the cause of the change happened (`endpoints.kubernetes.io/last-change-trigger-time`).
        triggered: Option<jiff::Timestamp>,
    },
    /// The first complete list of a resource has been sent.
    Synced(Resource),
    /// The source has just responded for this resource.
    Heard(Resource),
    /// An object, or a part of one such as an annotation, is invalid.
    Rejected(object::Rejected),
    /// A resource cannot be followed, for this reason; `None`: it works.
    Health(Resource, Option<String>),
    /// A self-check compared the local state with the API: the number of differing objects, and some of their names.
    Compared(Resource, usize, Vec<String>),
    /// A request for a consistent copy of all facts.
    Facts(tokio::sync::oneshot::Sender<Facts>),
}

/// Returns a consistent copy of all facts; `None` if the publisher has stopped.
pub async fn facts(events: &Events) -> Option<Facts> {
    let (reply, facts) = tokio::sync::oneshot::channel();
    events.send(Event::Facts(reply)).await.ok()?;
    facts.await.ok()
}

/// Formats an error and its sources as one line: connection errors state the real reason only in their sources.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A unit of synchronization: a resource of the API, or all manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// All manifests.
    Manifests,
    /// Services from the API.
    Services,
    /// EndpointSlices from the API.
    EndpointSlices,
    /// Namespaces from the API.
    Namespaces,
    /// Pods from the API.
    Pods,
}

impl Resource {
    /// Returns the plural name, as in the API's paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Manifests => "manifests",
            Resource::Services => "services",
            Resource::EndpointSlices => "endpointslices",
            Resource::Namespaces => "namespaces",
            Resource::Pods => "pods",
        }
    }
}

/// The channel from sources to the publisher. It is bounded: a flood blocks the source instead of filling memory.
pub type Events = tokio::sync::mpsc::Sender<Event>;
