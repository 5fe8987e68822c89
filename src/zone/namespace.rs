//! Namespaces: their names, their visibility, and the application that a namespace may represent.

use std::sync::Arc;

use super::facts::VisibleTo;
use super::persistent_map::Slot;
use super::service::ServiceName;
use super::{Seed, Visibility};

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

/// A candidate for the main Service of an application, with the criteria for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The Service.
    pub name: Arc<ServiceName>,
    /// The callers that may see it; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// Whether its name is the full name derived from its Kubernetes labels.
    pub full_name: bool,
    /// Whether its name is the application's name.
    pub app_name: bool,
    /// Whether it has the Kubernetes label `service.name: main`.
    pub main: bool,
}

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

impl Visibility {
    /// Converts a fact about an object in `namespace`; returns `None` for everyone.
    pub fn of(fact: &VisibleTo, namespace: &NamespaceName, seed: Seed) -> Option<Arc<Visibility>> {
        match fact {
            VisibleTo::Everyone => None,
            VisibleTo::Cluster => Some(Arc::new(Visibility::Known)),
            VisibleTo::Namespaces(others) => {
                let others = others.iter().filter_map(|other| crate::wire::label_of(other).ok());
                let names =
                    std::iter::once(namespace.clone()).chain(others.map(|label| NamespaceName::new(seed, &label)));
                Some(Arc::new(Visibility::Namespaces(names.collect())))
            }
        }
    }
}
