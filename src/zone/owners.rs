//! The Services that own each address, for reverse names.
//!
//! Owners are kept apart by who may see them, so that a lookup meets only those that its caller may see: however many
//! others there are, they cost nothing, and no limit on steps decides what exists.

use std::sync::Arc;

use super::names::{NamespaceName, ServiceName};
use super::ordered::Ordered;
use super::persistent_map::{PersistentMap, Slot};
use super::visibility::Visibility;

/// A Service that owns an address, either as its ClusterIP or through a ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) address: [u8; 16],
    /// Whether it is an endpoint's address; the Service whose ClusterIP it is sorts first.
    pub(super) endpoint: bool,
    pub(super) service: Arc<ServiceName>,
}

impl Owner {
    /// The address as one number, which sorts like its octets and compares in a single operation.
    #[inline(always)]
    fn key(&self) -> u128 {
        u128::from_be_bytes(self.address)
    }
}

/// The owners that callers in one namespace may see, besides those that everyone or every known caller may see.
#[derive(Clone)]
struct NamespaceOwners {
    namespace: NamespaceName,
    owned: Ordered<Owner>,
}

impl Slot for NamespaceOwners {
    fn hash(&self) -> u64 {
        self.namespace.hash()
    }
}

/// All owners.
#[derive(Clone, Default)]
pub(super) struct Owners {
    everyone: Ordered<Owner>,
    known: Ordered<Owner>,
    by_namespace: PersistentMap<NamespaceOwners>,
    len: usize,
}

impl Owners {
    /// Number of addresses of Services, counted for each Service.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an owner with this visibility.
    pub(super) fn insert(&mut self, owner: Owner, visibility: Option<&Visibility>) {
        self.len += 1;
        match visibility {
            None => _ = self.everyone.insert(owner),
            Some(Visibility::Known) => _ = self.known.insert(owner),
            Some(Visibility::Namespaces(names)) => {
                for name in names {
                    self.change(name, |owned| _ = owned.insert(owner.clone()));
                }
            }
        }
    }

    /// Removes an owner that was added with this visibility.
    pub(super) fn remove(&mut self, owner: &Owner, visibility: Option<&Visibility>) {
        self.len -= 1;
        match visibility {
            None => _ = self.everyone.remove(owner),
            Some(Visibility::Known) => _ = self.known.remove(owner),
            Some(Visibility::Namespaces(names)) => {
                for name in names {
                    self.change(name, |owned| _ = owned.remove(owner));
                }
            }
        }
    }

    fn change(&mut self, namespace: &NamespaceName, change: impl FnOnce(&mut Ordered<Owner>)) {
        let is_match = |slot: &NamespaceOwners| slot.namespace == *namespace;
        let held = self.by_namespace.get(namespace.hash(), is_match);
        let mut owned = held.map(|held| held.owned.clone()).unwrap_or_default();
        change(&mut owned);
        if owned.len() == 0 {
            self.by_namespace.remove(namespace.hash(), is_match);
        } else {
            self.by_namespace.insert(NamespaceOwners { namespace: namespace.clone(), owned }, is_match);
        }
    }

    /// Calls `visit` with each set of owners that a caller may see, until it returns `false`. `namespace` returns the
    /// caller's; it is called only if any object is hidden.
    fn each_visible<'n>(
        &self,
        namespace: impl FnOnce() -> Option<&'n NamespaceName>,
        mut visit: impl FnMut(&Ordered<Owner>) -> bool,
    ) {
        if !visit(&self.everyone) || self.known.len() == 0 && self.by_namespace.is_empty() {
            return;
        }
        let Some(namespace) = namespace() else { return };
        if visit(&self.known)
            && let Some(own) = self.by_namespace.get(namespace.hash(), |slot| slot.namespace == *namespace)
        {
            visit(&own.owned);
        }
    }

    /// Calls `visit` with the name of each Service that owns the address and that the caller may see, until it returns
    /// `false`. If it is the ClusterIP of one of them, only with that one: see [`Owner::endpoint`].
    pub(super) fn of<'n>(
        &self,
        key: u128,
        namespace: impl Fn() -> Option<&'n NamespaceName>,
        mut visit: impl FnMut(&ServiceName) -> bool,
    ) {
        let mut cluster = None;
        self.each_visible(&namespace, |owned| {
            owned.visit_from(
                |owner| owner.key() < key,
                |owner| {
                    if owner.key() == key && !owner.endpoint {
                        cluster = Some(owner.service.clone());
                    }
                    false
                },
            );
            cluster.is_none()
        });
        if let Some(cluster) = cluster {
            visit(&cluster);
            return;
        }
        let mut is_wanted = true;
        self.each_visible(&namespace, |owned| {
            owned.visit_from(
                |owner| owner.key() < key,
                |owner| {
                    let is_own = owner.key() == key;
                    is_wanted &= !is_own || visit(&owner.service);
                    is_own && is_wanted
                },
            );
            is_wanted
        });
    }

    /// Whether a Service that the caller may see owns an address from `first` to `last`.
    pub(super) fn any_within<'n>(
        &self,
        first: u128,
        last: u128,
        namespace: impl FnOnce() -> Option<&'n NamespaceName>,
    ) -> bool {
        let mut found = false;
        self.each_visible(namespace, |owned| {
            owned.visit_from(
                |owner| owner.key() < first,
                |owner| {
                    found = owner.key() <= last;
                    false
                },
            );
            !found
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::Seed;

    #[test]
    fn hidden_owners_are_never_visited() {
        let seed = Seed::random();
        let namespace = |name: &str| NamespaceName::new(seed, &crate::wire::label_of(name).unwrap());
        let (own, other) = (namespace("own"), namespace("other"));
        let hidden = Visibility::Namespaces([other.clone()].into());
        let service = |index: usize| {
            let label = crate::wire::label_of(&format!("s{index}")).unwrap();
            Arc::new(ServiceName::new(seed, &label, other.label()))
        };
        let owner = |key: u128, index| Owner { address: key.to_be_bytes(), endpoint: true, service: service(index) };
        let mut owners = Owners::default();
        // A hostile tenant has 20,000 hidden Services at one address, and in the block around it.
        for index in 0..20_000 {
            owners.insert(owner(1000 + index as u128 % 50, index), Some(&hidden));
        }
        owners.insert(owner(1010, 20_000), None);
        let visits = |key, namespace: &NamespaceName| {
            let mut visits = 0;
            owners.of(
                key,
                || Some(namespace),
                |_| {
                    visits += 1;
                    true
                },
            );
            visits
        };
        assert_eq!((visits(1010, &own), visits(1011, &own), visits(1011, &other)), (1, 0, 400));
        assert!(!owners.any_within(1011, 2000, || Some(&own)), "behind any number of hidden owners");
        assert!(owners.any_within(1000, 2000, || None) && owners.any_within(1011, 2000, || Some(&other)));
        owners.insert(owner(2000, 1), None);
        assert!(owners.any_within(1011, 2000, || Some(&own)), "existence is not decided by a limit on steps");
        for index in 0..20_000 {
            owners.remove(&owner(1000 + index as u128 % 50, index), Some(&hidden));
        }
        assert!(owners.len() == 2 && owners.by_namespace.is_empty());
    }
}
