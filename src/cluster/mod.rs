//! Where facts come from: the Kubernetes API or manifests, stripped at the door, and the way from there into the table.

pub mod kubernetes;
pub mod manifests;
pub mod object;
pub mod publish;
mod watched;

use crate::zone::facts::Change;

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// Something changed, or is being told for the first time.
    Change(Change),
    /// Everything of one kind has been told.
    Synced(Part),
    /// The source is alive: its last word is this recent.
    Heard(Part),
    /// An object, or an annotation of one, that could not be used.
    Rejected(object::Rejected),
    /// A part of the source fails, or (`None`) works again.
    Trouble(Part, Option<String>),
}

/// A part of a source that is learnt as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
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

impl Part {
    /// As the API calls it, in the plural.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Manifests => "manifests",
            Part::Services => "services",
            Part::EndpointSlices => "endpointslices",
            Part::Namespaces => "namespaces",
            Part::Pods => "pods",
        }
    }
}

/// Where sources send to. Bounded, so that a flood waits at the source and not in memory.
pub type Events = tokio::sync::mpsc::Sender<Event>;
