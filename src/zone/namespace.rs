//! Namespaces: their names, their visibility, and the application that a namespace may represent.

use std::sync::Arc;

use super::Seed;
use super::application::Candidate;
use super::persistent_map::Slot;
use super::visibility::Visibility;

/// The name of a namespace: its label and the label's hash, so that a caller's namespace is hashed only once.
#[derive(Clone, Debug)]
pub struct NamespaceName(Arc<(u64, Box<[u8]>)>);

impl NamespaceName {
    /// Creates a name from a lower-case label with its length octet.
    pub fn new(seed: Seed, label: &[u8]) -> NamespaceName {
        NamespaceName(Arc::new((seed.label(label), label.into())))
    }

    /// Hash of the label.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.0.0
    }

    /// The label with its length octet.
    #[inline(always)]
    pub fn label(&self) -> &[u8] {
        &self.0.1
    }

    /// The label in the form that lookups take.
    #[inline(always)]
    pub fn as_label(&self) -> super::Label<'_> {
        super::Label { octets: self.label(), hash: self.hash() }
    }

    /// The label as text.
    pub fn text(&self) -> String {
        crate::wire::text_of(self.label())
    }
}

impl PartialEq for NamespaceName {
    fn eq(&self, other: &NamespaceName) -> bool {
        self.label() == other.label()
    }
}

impl Eq for NamespaceName {}

/// A namespace in the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// The callers that may see it and, unless a Service overrides this, its Services; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// Whether a Service in it is visible to everyone although the namespace is not: its name then exists for everyone.
    pub open: bool,
    /// Visibilities of its other Services with their own setting: the namespace exists for callers that one admits.
    pub exceptions: Box<[Arc<Visibility>]>,
    /// All Services, if the namespace represents an application.
    pub application: Box<[Candidate]>,
}

impl Slot for Arc<Namespace> {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.name.hash()
    }
}
