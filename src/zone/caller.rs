//! The caller of a query, and what it may see.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use super::names::NamespaceName;
use super::namespace::Namespace;
use super::row::Row;
use super::visibility::Visibility;
use super::{Cidr, Zone};

/// The caller of a query.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'c> {
    /// A client, identified by its address.
    Address(IpAddr),
    /// A caller in a given namespace, as in `explain --from`.
    Namespace(&'c NamespaceName),
    /// A caller without an address or a namespace.
    Unknown,
}

/// The source of a caller's namespace: the first of these that applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Given explicitly.
    Explicit,
    /// `--callers`.
    Callers(Cidr),
    /// The one live pod that owns the address.
    Pod,
    /// `--namespace`.
    Default,
    /// No source; the namespace is unknown.
    Unknown,
}

/// A caller whose namespace is looked up on first use, because most queries do not need it.
pub struct LazyCaller<'z> {
    zone: &'z Zone,
    caller: Caller<'z>,
    namespace: Cell<Option<Option<&'z NamespaceName>>>,
}

impl Caller<'_> {
    /// The caller's address, if that identifies it.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Caller::Address(address) => Some(address),
            _ => None,
        }
    }
}

impl<'z> LazyCaller<'z> {
    /// Creates the caller of one query.
    #[inline(always)]
    pub fn new(zone: &'z Zone, caller: Caller<'z>) -> LazyCaller<'z> {
        LazyCaller { zone, caller, namespace: Cell::new(None) }
    }

    /// The zone that the caller queries.
    #[inline(always)]
    pub fn zone(&self) -> &'z Zone {
        self.zone
    }

    /// Returns the same caller, for a name that does not live as long as the zone.
    pub fn reborrow<'n>(&self) -> LazyCaller<'n>
    where
        'z: 'n,
    {
        LazyCaller { zone: self.zone, caller: self.caller, namespace: Cell::new(self.namespace.get()) }
    }

    /// Returns the caller's namespace; `None` if it is unknown.
    #[inline]
    pub fn namespace(&self) -> Option<&'z NamespaceName> {
        if let Some(known) = self.namespace.get() {
            return known;
        }
        let found = match self.caller {
            Caller::Address(address) => self.zone.namespace_of(address).0,
            Caller::Namespace(name) => Some(name),
            Caller::Unknown => None,
        };
        self.namespace.set(Some(found));
        found
    }

    /// Whether the caller may see an object with this visibility.
    #[inline(always)]
    pub fn sees(&self, visibility: &Option<Arc<Visibility>>) -> bool {
        match visibility {
            None => true,
            Some(visibility) => visibility.admits(self.namespace()),
        }
    }

    /// Whether the caller may see a Service.
    #[inline(always)]
    pub fn sees_service(&self, row: &Row) -> bool {
        row.is_open() || self.sees(&row.visibility)
    }

    /// Whether the caller may know that a namespace exists.
    #[inline]
    pub fn sees_namespace(&self, namespace: &Namespace) -> bool {
        namespace.open
            || self.sees(&namespace.visibility)
            || namespace.exceptions.as_ref().is_some_and(|visibility| visibility.admits(self.namespace()))
    }
}
