//! The zone: an immutable table from which queries are answered, and its builder.
//!
//! A [`Zone`] never changes. The [`Builder`] creates its successor, which shares all unchanged parts with it and is
//! published by swapping a pointer. Reads take no lock and do not allocate.

mod alt_name;
mod application;
mod builder;
mod caller;
pub mod dashed;
pub mod facts;
mod hash;
mod names;
mod namespace;
mod ordered;
mod owners;
mod persistent_map;
mod row;
pub mod rrset;
mod service;
mod settings;
pub mod tld;
mod visibility;

use std::net::IpAddr;
use std::sync::Arc;

pub use alt_name::AltName;
pub use application::{Candidate, full_name};
pub use builder::{Builder, Diagnostic, PublishCost, external_name};
pub use caller::{Caller, LazyCaller, Origin};
pub use facts::Facts;
pub use hash::Seed;
pub use names::{NamespaceName, ServiceName};
pub use namespace::Namespace;
pub use row::Row;
pub use rrset::{Rrset, Soa};
pub use service::{Endpoint, Endpoints, Kind, Port, Service, SrvList};
pub use settings::{
    APPLICATION_PREFIX, CallerBlock, Cidr, DATABASE_KINDS, Domain, InvalidCidr, OwnPod, PodNames, Settings, address_of,
    bits,
};
pub use visibility::Visibility;

use crate::wire::Name;
use owners::Owners;
use persistent_map::{PersistentMap, Slot};

/// A lower-case label with its hash.
#[derive(Clone, Copy, Debug)]
pub struct Label<'n> {
    /// The label, including its length octet.
    pub octets: &'n [u8],
    hash: u64,
}

/// A pod's claim to an address. At most 40 bytes, because a cluster may have 150,000 of them.
#[derive(Clone, Debug)]
struct Claim {
    address: [u8; 16],
    /// Hash of the pod's namespace and name; the lowest bit is set if the pod uses the host network.
    pod: u64,
    namespace: NamespaceName,
}

const _: () = assert!(size_of::<Claim>() <= 40);

/// How many Services that claim the address of the server's pod are looked at.
const MAX_OWN_SERVICES: usize = 16;

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

/// The table of all names. Cloning it only increments a few reference counts.
#[derive(Clone)]
pub struct Zone {
    /// The settings that answers depend on.
    pub settings: Arc<Settings>,
    /// The SOA record, which contains the serial.
    pub soa: Soa,
    /// Whether the first sync is complete; until then, names that could be in the cluster are answered with SERVFAIL.
    pub synced: bool,
    services: PersistentMap<Row>,
    alt_names: PersistentMap<Arc<AltName>>,
    namespaces: PersistentMap<Arc<Namespace>>,
    owners: Owners,
    claims: PersistentMap<Claim>,
    endpoints: usize,
}

impl Zone {
    /// Returns an empty zone, as before the first sync.
    pub fn unsynced(settings: Arc<Settings>) -> Zone {
        Zone {
            soa: Soa::new(0, settings.ttl, settings.negative_ttl()),
            settings,
            synced: false,
            services: PersistentMap::default(),
            alt_names: PersistentMap::default(),
            namespaces: PersistentMap::default(),
            owners: Owners::default(),
            claims: PersistentMap::default(),
            endpoints: 0,
        }
    }

    /// Hashes a label once for any number of lookups.
    #[inline(always)]
    pub fn label<'n>(&self, octets: &'n [u8]) -> Label<'n> {
        Label { octets, hash: self.settings.seed.label(octets) }
    }

    /// Returns a label of a name with its hash.
    #[inline(always)]
    pub fn label_of<'n>(&self, name: &'n Name, index: usize) -> Label<'n> {
        Label { octets: name.label(index), hash: self.settings.seed.label_of(name, index) }
    }

    /// Looks up a Service by its label and its namespace's label. Does not check visibility.
    #[inline(always)]
    pub fn service(&self, service: Label<'_>, namespace: Label<'_>) -> Option<&Row> {
        let hash = self.service_hash(service, namespace);
        // If the prediction is right, the rows beside it are not read.
        if let Some(row) = self.services.likely(hash).filter(|row| row.hash() == hash && row.is(service, namespace)) {
            return Some(row);
        }
        // A loop rather than a closure, so that it is inlined: nearly every answer runs this probe.
        for row in self.services.run_from(hash) {
            if row.hash() != hash {
                return None;
            }
            if row.is(service, namespace) {
                return Some(row);
            }
        }
        None
    }

    /// The hash under which [`service`](Self::service) looks a Service up.
    #[inline(always)]
    pub fn service_hash(&self, service: Label<'_>, namespace: Label<'_>) -> u64 {
        self.settings.seed.pair(service.hash, namespace.hash)
    }

    /// Returns the rows that the lookup of a Service with this hash probably reads, without reading them.
    #[inline(always)]
    pub fn likely_rows(&self, hash: u64) -> &[Row] {
        self.services.likely_run(hash)
    }

    /// Looks up a Service by its name.
    #[inline]
    pub fn service_named(&self, name: &ServiceName) -> Option<&Row> {
        self.services.get(name.hash(), |row| row.has_name(name))
    }

    /// Looks up an alternative name in a namespace.
    #[inline]
    pub fn alt_name(&self, name: Label<'_>, namespace: Label<'_>) -> Option<&AltName> {
        if self.alt_names.is_empty() {
            return None;
        }
        let hash = self.settings.seed.pair(name.hash, namespace.hash);
        self.alt_names.get(hash, |slot| slot.name.is(name, namespace)).map(|slot| &**slot)
    }

    /// Looks up a namespace by its label.
    #[inline]
    pub fn namespace(&self, label: Label<'_>) -> Option<&Namespace> {
        self.namespaces.get(label.hash, |slot| slot.name.label() == label.octets).map(|slot| &**slot)
    }

    /// Calls `visit` with each Service that owns the address and that the caller may see, until it returns `false`. If one
    /// of them has it as its ClusterIP, only with that one.
    #[inline]
    pub fn owners_of<'n>(
        &self,
        address: IpAddr,
        namespace: impl Fn() -> Option<&'n NamespaceName>,
        mut visit: impl FnMut(&Service) -> bool,
    ) {
        self.owners.of(bits(address), namespace, |name| self.service_named(name).is_none_or(|service| visit(service)));
    }

    /// Returns the A and AAAA records of `ns.dns.Z`: the ClusterIPs of the Service in the server's own namespace that leads
    /// to this server, else the addresses that it advertises.
    pub fn name_server(&self) -> (&Rrset, &Rrset) {
        let found = self.settings.own_pod.as_ref().and_then(|pod| {
            pod.addresses.iter().find_map(|address| {
                let (mut found, mut steps) = (None, MAX_OWN_SERVICES);
                self.owners.of(
                    bits(*address),
                    || Some(&pod.namespace),
                    |name| {
                        steps -= 1;
                        let is_own = |service: &&Row| {
                            name.namespace() == pod.namespace.label() && matches!(service.kind, Kind::Cluster(_))
                        };
                        found = self.service_named(name).filter(is_own);
                        found.is_none() && steps > 0
                    },
                );
                found
            })
        });
        match found {
            Some(service) => (&service.a, &service.aaaa),
            None => (&self.settings.advertise_v4, &self.settings.advertise_v6),
        }
    }

    /// Whether a Service that the caller may see owns an address in the block.
    pub fn has_owner_within<'n>(
        &self,
        first: u128,
        last: u128,
        namespace: impl FnOnce() -> Option<&'n NamespaceName>,
    ) -> bool {
        self.owners.any_within(first, last, namespace)
    }

    /// Returns the namespace of the caller with this address, and its source (see [`Origin`]).
    #[inline]
    pub fn namespace_of(&self, address: IpAddr) -> (Option<&NamespaceName>, Origin) {
        let address = bits(address);
        if let Some(caller) = self.settings.callers.iter().find(|caller| caller.block.contains(address)) {
            return (Some(&caller.namespace), Origin::Callers(caller.block));
        }
        let mut pods = self.claims.with_hash(hash::address(address));
        let mut pods = pods.by_ref().filter(|claim| claim.address() == address && !claim.host_network());
        if let Some(claim) = pods.next() {
            // If two live pods claim one address, neither claim is trusted, and no later source applies.
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

    /// Whether `--allow-from` admits this client.
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

    /// Iterates over all Services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Row> {
        self.services.iter()
    }

    /// Iterates over all namespaces, in no particular order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().map(|slot| &**slot)
    }

    /// Number of Services, of ready endpoints, and of addresses with a name.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.services.len(), self.endpoints, self.owners.len())
    }
}
