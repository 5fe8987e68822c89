//! The immutable table that answers come from, and its builder.
//!
//! A [`Zone`] is never changed: the [`Builder`] makes the next one, which shares with the last everything that did not
//! change, and the new one is published by swapping a pointer. Reading takes no lock and allocates nothing.

mod builder;
pub mod dashed;
pub mod facts;
mod hash;
mod namespace;
mod ordered;
mod persistent_map;
pub mod rrset;
mod service;
mod settings;
pub mod tld;

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

pub use builder::{Builder, Diagnostic, Facts, Work, external_name, full_name};
pub use hash::Seed;
pub use namespace::{Candidate, Namespace, NamespaceName};
pub use rrset::{Rrset, Soa};
pub use service::{AltName, Endpoint, Endpoints, Kind, Port, Service, ServiceName, Target};
pub use settings::{
    APPLICATION_PREFIX, CallerBlock, Cidr, DATABASE_KINDS, Domain, NoCidr, PodNames, Settings, address_of, bits,
};

use crate::wire::Name;
use ordered::Ordered;
use persistent_map::{PersistentMap, Slot};

/// Who may see a Service or a Namespace. Where there is none of these, everyone may.
#[derive(Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Callers whose namespace is known.
    Known,
    /// Callers of these namespaces.
    Among(Box<[NamespaceName]>),
}

impl Visibility {
    /// Whether a caller of `namespace` (`None`: not known) may see it.
    #[inline]
    pub fn admits(&self, namespace: Option<&NamespaceName>) -> bool {
        match (self, namespace) {
            (_, None) => false,
            (Visibility::Known, Some(_)) => true,
            (Visibility::Among(names), Some(namespace)) => names.contains(namespace),
        }
    }
}

/// A label with its length octet, lower case, and its hash.
#[derive(Clone, Copy, Debug)]
pub struct Label<'n> {
    /// With the length octet.
    pub octets: &'n [u8],
    hash: u64,
}

/// A pod's claim to an address: 40 bytes at most, for there may be 150,000 of them.
#[derive(Clone, Debug)]
struct Claim {
    address: [u8; 16],
    /// Hash of the pod's namespace and name; the lowest bit says that the pod is on the host network.
    pod: u64,
    namespace: NamespaceName,
}

const _: () = assert!(size_of::<Claim>() <= 40);

impl Claim {
    fn address(&self) -> u128 {
        u128::from_ne_bytes(self.address)
    }

    fn host_network(&self) -> bool {
        self.pod & 1 == 1
    }
}

impl Slot for Claim {
    #[inline(always)]
    fn hash(&self) -> u64 {
        hash::address(self.address())
    }
}

/// A Service that an address belongs to, as a ClusterIP or as a ready endpoint's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    address: [u8; 16],
    service: Arc<ServiceName>,
}

impl Owner {
    /// The address as one number, which compares as its octets do and is compared at once.
    #[inline(always)]
    fn key(&self) -> u128 {
        u128::from_be_bytes(self.address)
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'c> {
    /// A client, known by its address.
    Address(IpAddr),
    /// Somebody in a namespace, as `explain --from` has it.
    Namespace(&'c NamespaceName),
    /// Nobody in particular.
    Unknown,
}

/// How the namespace of a caller was found: the first of these that applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Told outright.
    Explicit,
    /// `--callers`.
    Callers(Cidr),
    /// The one live pod that owns the address.
    Pod,
    /// `--namespace`.
    Default,
    /// Not at all.
    Unknown,
}

/// A caller whose namespace is looked up when it is first needed: most questions do not need it.
pub struct Asker<'z> {
    zone: &'z Zone,
    caller: Caller<'z>,
    namespace: Cell<Option<Option<&'z NamespaceName>>>,
}

impl<'z> Asker<'z> {
    /// For one question.
    #[inline(always)]
    pub fn new(zone: &'z Zone, caller: Caller<'z>) -> Asker<'z> {
        Asker { zone, caller, namespace: Cell::new(None) }
    }

    /// The same caller, for a name that does not live as long as the table.
    pub fn again<'n>(&self) -> Asker<'n>
    where
        'z: 'n,
    {
        Asker { zone: self.zone, caller: self.caller, namespace: Cell::new(self.namespace.get()) }
    }

    /// The caller's namespace, `None` when it is not known.
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

    /// Whether the caller may see what has this visibility.
    #[inline(always)]
    pub fn sees(&self, visibility: &Option<Arc<Visibility>>) -> bool {
        match visibility {
            None => true,
            Some(visibility) => visibility.admits(self.namespace()),
        }
    }

    /// Whether the caller may know that a namespace exists.
    #[inline]
    pub fn sees_namespace(&self, namespace: &Namespace) -> bool {
        namespace.open
            || self.sees(&namespace.visibility)
            || namespace.exceptions.iter().any(|visibility| visibility.admits(self.namespace()))
    }
}

/// The table. Cloning it costs a few reference counts.
#[derive(Clone)]
pub struct Zone {
    /// The flags.
    pub settings: Arc<Settings>,
    /// The SOA record, and with it the serial.
    pub soa: Soa,
    /// Whether the cluster has been learnt: before, names that could be ours answer SERVFAIL.
    pub synced: bool,
    services: PersistentMap<(u64, Arc<Service>)>,
    alt_names: PersistentMap<Arc<AltName>>,
    namespaces: PersistentMap<Arc<Namespace>>,
    owners: Ordered<Owner>,
    claims: PersistentMap<Claim>,
    /// Whether anything is hidden from anyone: while nothing is, an address that has an owner has a name.
    hides: bool,
    endpoints: usize,
}

impl Zone {
    /// A table that knows nothing yet.
    pub fn unsynced(settings: Arc<Settings>) -> Zone {
        Zone {
            soa: Soa::new(0, settings.ttl, settings.negative_ttl()),
            settings,
            synced: false,
            services: PersistentMap::default(),
            alt_names: PersistentMap::default(),
            namespaces: PersistentMap::default(),
            owners: Ordered::default(),
            claims: PersistentMap::default(),
            hides: false,
            endpoints: 0,
        }
    }

    /// A label with its hash, to be looked up as often as need be.
    #[inline(always)]
    pub fn label<'n>(&self, octets: &'n [u8]) -> Label<'n> {
        Label { octets, hash: self.settings.seed.label(octets) }
    }

    /// A label of a name with its hash.
    #[inline(always)]
    pub fn label_of<'n>(&self, name: &'n Name, index: usize) -> Label<'n> {
        Label { octets: name.label(index), hash: self.settings.seed.label_of(name, index) }
    }

    /// The Service of this label in this namespace. Visibility is not looked at.
    #[inline(always)]
    pub fn service(&self, service: Label<'_>, namespace: Label<'_>) -> Option<&Arc<Service>> {
        let hash = self.settings.seed.pair(service.hash, namespace.hash);
        // A loop, not a closure: this is the probe of nearly every answer, and is to be part of its caller.
        for slot in self.services.run_from(hash) {
            if slot.0 != hash {
                return None;
            }
            if slot.1.name.is(service, namespace) {
                return Some(&slot.1);
            }
        }
        None
    }

    /// The Service of a name.
    #[inline]
    pub fn service_named(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name.hash(), |slot| *slot.1.name == *name).map(|slot| &slot.1)
    }

    /// What else the name means in the namespace.
    #[inline]
    pub fn alt_name(&self, name: Label<'_>, namespace: Label<'_>) -> Option<&AltName> {
        if self.alt_names.is_empty() {
            return None;
        }
        let hash = self.settings.seed.pair(name.hash, namespace.hash);
        self.alt_names.get(hash, |slot| slot.name.is(name, namespace)).map(|slot| &**slot)
    }

    /// The namespace of a label.
    #[inline]
    pub fn namespace(&self, label: Label<'_>) -> Option<&Namespace> {
        self.namespaces.get(label.hash, |slot| slot.name.label() == label.octets).map(|slot| &**slot)
    }

    /// Calls `visit` with each Service that owns the address, until it returns `false`.
    #[inline]
    pub fn owners_of(&self, address: IpAddr, mut visit: impl FnMut(&Service) -> bool) {
        let key = bits(address);
        self.owners.visit_from(
            |owner| owner.key() < key,
            |owner| owner.key() == key && self.service_named(&owner.service).is_none_or(|service| visit(service)),
        );
    }

    /// Whether some Service that `sees` admits owns an address of the block. What is hidden is stepped over, a limited
    /// number of times: a block of nothing but hidden addresses does not exist.
    pub fn has_owner_within(&self, first: u128, last: u128, sees: impl Fn(&Service) -> bool) -> bool {
        const STEPS: usize = 256;
        let (mut found, mut steps) = (false, 0);
        self.owners.visit_from(
            |owner| owner.key() < first,
            |owner| {
                steps += 1;
                if owner.key() > last || steps > STEPS {
                    return false;
                }
                found = !self.hides || self.service_named(&owner.service).is_some_and(|service| sees(service));
                !found
            },
        );
        found
    }

    /// The namespace that an address calls from, and what told so (see [`Origin`]).
    #[inline]
    pub fn namespace_of(&self, address: IpAddr) -> (Option<&NamespaceName>, Origin) {
        let address = bits(address);
        if let Some(caller) = self.settings.callers.iter().find(|caller| caller.block.contains(address)) {
            return (Some(&caller.namespace), Origin::Callers(caller.block));
        }
        let mut pods = self.claims.with_hash(hash::address(address));
        let mut pods = pods.by_ref().filter(|claim| claim.address() == address && !claim.host_network());
        if let Some(claim) = pods.next() {
            // Two live pods that claim one address are in doubt: then neither is believed, and nothing else either.
            return match pods.next() {
                None => (Some(&claim.namespace), Origin::Pod),
                Some(_) => (None, Origin::Unknown),
            };
        }
        match &self.settings.namespace {
            Some(namespace) => (Some(namespace), Origin::Default),
            None => (None, Origin::Unknown),
        }
    }

    /// Whether a live pod of the namespace has the address.
    #[inline]
    pub fn has_pod(&self, address: IpAddr, namespace: &[u8]) -> bool {
        let address = bits(address);
        self.claims
            .with_hash(hash::address(address))
            .any(|claim| claim.address() == address && claim.namespace.label() == namespace)
    }

    /// Whether `--allow-from` lets this client ask.
    #[inline(always)]
    pub fn allows(&self, caller: Caller<'_>) -> bool {
        match caller {
            Caller::Address(address) if !self.settings.allow_from.is_empty() => {
                let address = bits(address);
                self.settings.allow_from.iter().any(|block| block.contains(address))
            }
            _ => true,
        }
    }

    /// Every Service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().map(|slot| &slot.1)
    }

    /// Every namespace, in no order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().map(|slot| &**slot)
    }

    /// How much there is: Services, ready endpoints, addresses with a name.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.services.len(), self.endpoints, self.owners.len())
    }
}
