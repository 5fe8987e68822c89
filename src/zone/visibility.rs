//! Which callers may see an object.

use std::sync::Arc;

use super::Seed;
use super::facts::VisibleTo;
use super::names::NamespaceName;

/// The callers that may see a Service or a Namespace; an object without a `Visibility` is visible to everyone.
#[derive(Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Callers whose namespace is known.
    Known,
    /// Callers in these namespaces.
    Namespaces(Box<[NamespaceName]>),
}

impl Visibility {
    /// Whether a caller in `namespace` (`None` if unknown) may see the object.
    #[inline]
    pub fn admits(&self, namespace: Option<&NamespaceName>) -> bool {
        match (self, namespace) {
            (_, None) => false,
            (Visibility::Known, Some(_)) => true,
            (Visibility::Namespaces(names), Some(namespace)) => names.contains(namespace),
        }
    }

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
