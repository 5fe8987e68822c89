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
    /// Callers in these namespaces, which are sorted by hash.
    Namespaces(Box<[NamespaceName]>),
}

impl Visibility {
    /// Whether a caller in `namespace` (`None` if unknown) may see the object.
    #[inline]
    pub fn admits(&self, namespace: Option<&NamespaceName>) -> bool {
        match (self, namespace) {
            (_, None) => false,
            (Visibility::Known, Some(_)) => true,
            (Visibility::Namespaces(names), Some(namespace)) => {
                let from = names.partition_point(|name| name.hash() < namespace.hash());
                let same_hash = names.iter().skip(from).take_while(|name| name.hash() == namespace.hash());
                same_hash.into_iter().any(|name| name == namespace)
            }
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
                Some(Arc::new(Visibility::of_namespaces(names.collect())))
            }
        }
    }

    fn of_namespaces(mut names: Vec<NamespaceName>) -> Visibility {
        names.sort_unstable_by(|a, b| (a.hash(), a.label()).cmp(&(b.hash(), b.label())));
        names.dedup();
        Visibility::Namespaces(names.into())
    }
}

/// The callers that may see at least one of several objects.
#[derive(Default)]
pub(super) struct Audience {
    known: bool,
    names: Vec<NamespaceName>,
}

impl Audience {
    /// Adds those that may see an object with this visibility.
    pub(super) fn add(&mut self, visibility: &Visibility) {
        match visibility {
            Visibility::Known => self.known = true,
            Visibility::Namespaces(names) => self.names.extend(names.iter().cloned()),
        }
    }

    /// Returns all of them as one visibility; `None` if there are none.
    pub(super) fn into_visibility(self) -> Option<Arc<Visibility>> {
        match (self.known, self.names) {
            (true, _) => Some(Arc::new(Visibility::Known)),
            (false, names) if names.is_empty() => None,
            (false, names) => Some(Arc::new(Visibility::of_namespaces(names))),
        }
    }
}
