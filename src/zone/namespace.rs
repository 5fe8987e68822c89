//! Namespaces: who they are, who may see them, and the application that one may be.

use std::sync::Arc;

use super::facts::VisibleTo;
use super::persistent_map::Slot;
use super::service::ServiceName;
use super::{Seed, Visibility};

/// The name of a namespace: its label and the label's hash, so that a caller's namespace is hashed once for all.
#[derive(Clone, Debug)]
pub struct NamespaceName(Arc<(u64, Box<[u8]>)>);

impl NamespaceName {
    /// From a label with its length octet, lower case.
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

    /// The label as lookups take it.
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

/// A Service that may be the main one of an application, with what decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The Service.
    pub name: Arc<ServiceName>,
    /// Who may see it.
    pub visibility: Option<Arc<Visibility>>,
    /// Its name is the full name that its labels make.
    pub full_name: bool,
    /// Its name is the application's.
    pub app_name: bool,
    /// It is labelled `service.name: main`.
    pub main: bool,
}

/// A namespace of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// Who may see it and, where a Service does not say otherwise, all in it; `None`: everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// A Service in it is open to everyone although the namespace is not: then its name exists for everyone.
    pub open: bool,
    /// Visibilities of other Services that decide for themselves: where one admits a caller, the name exists for them.
    pub exceptions: Box<[Arc<Visibility>]>,
    /// All Services, if the namespace is an application's.
    pub application: Box<[Candidate]>,
}

impl Slot for Arc<Namespace> {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.name.hash()
    }
}

impl Visibility {
    /// What a fact means inside `namespace`; `None`: everyone.
    pub fn of(fact: &VisibleTo, namespace: &NamespaceName, seed: Seed) -> Option<Arc<Visibility>> {
        match fact {
            VisibleTo::Everyone => None,
            VisibleTo::Cluster => Some(Arc::new(Visibility::Known)),
            VisibleTo::Namespaces(others) => {
                let others = others.iter().filter_map(|other| crate::wire::label_of(other).ok());
                let names =
                    std::iter::once(namespace.clone()).chain(others.map(|label| NamespaceName::new(seed, &label)));
                Some(Arc::new(Visibility::Among(names.collect())))
            }
        }
    }
}
