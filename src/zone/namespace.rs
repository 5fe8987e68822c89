//! Namespaces: their names, their visibility, and the application that a namespace may represent.

use std::sync::Arc;

use super::application::Candidate;
use super::names::NamespaceName;
use super::persistent_map::Slot;
use super::visibility::Visibility;

/// A namespace in the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// The callers that may see it and, unless a Service overrides this, its Services; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// Whether a Service in it is visible to everyone although the namespace is not: its name then exists for everyone.
    pub open: bool,
    /// Who may see at least one of its other Services with their own setting: for these callers, the namespace exists.
    pub exceptions: Option<Arc<Visibility>>,
    /// All Services, if the namespace represents an application.
    pub application: Box<[Candidate]>,
}

impl Slot for Arc<Namespace> {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.name.hash()
    }
}
