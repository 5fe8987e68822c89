//! Where facts come from: the Kubernetes API or manifests, stripped at the door, and the way from there into the table.

pub mod kubernetes;
pub mod manifests;
pub mod object;
pub mod publish;
pub mod snapshot;

use crate::zone::Facts;
use crate::zone::facts::Change;

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// Something changed, or is being told for the first time.
    Change(Change),
    /// Something changed while we watched: how long that takes to be answered is measured.
    Watched {
        /// The change.
        change: Change,
        /// When its event arrived.
        received: std::time::Instant,
        /// When what the object tells of happened (`endpoints.kubernetes.io/last-change-trigger-time`).
        triggered: Option<jiff::Timestamp>,
    },
    /// Everything of one kind has been told.
    Synced(Resource),
    /// The source is alive: its last word is this recent.
    Heard(Resource),
    /// An object, or an annotation of one, that could not be used.
    Rejected(object::Rejected),
    /// A part of the source fails, or (`None`) works again.
    Health(Resource, Option<String>),
    /// What is held was compared with what the server has: so many objects differed, some of them by name.
    Compared(Resource, usize, Vec<String>),
    /// Somebody wants to know all facts of one moment.
    Facts(tokio::sync::oneshot::Sender<Facts>),
}

/// All facts of one moment; `None` if the source has ended.
pub async fn facts(events: &Events) -> Option<Facts> {
    let (wanted, facts) = tokio::sync::oneshot::channel();
    events.send(Event::Facts(wanted)).await.ok()?;
    facts.await.ok()
}

/// An error with its causes, which is where connection errors say what happened, as one line.
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

/// A part of a source that is learnt as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// All manifests together.
    Manifests,
    /// Services of the API.
    Services,
    /// EndpointSlices of the API.
    EndpointSlices,
    /// Namespaces of the API.
    Namespaces,
    /// Pods of the API.
    Pods,
}

impl Resource {
    /// As the API calls it, in the plural.
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

/// Where sources send to. Bounded, so that a flood waits at the source and not in memory.
pub type Events = tokio::sync::mpsc::Sender<Event>;
