//! A Service in the zone: everything needed to answer queries for its names.

use std::net::IpAddr;
use std::sync::Arc;

use super::facts::Protocol;
use super::persistent_map::Slot;
use super::rrset::Rrset;
use super::{Seed, Visibility};
use crate::wire::{MAX_LABEL, Reply, rtype, same};

/// The name of a Service: its own label, then its namespace's, in wire format. They are stored inline, because every
/// lookup ends with a comparison of them, and following a pointer would cost another memory access.
#[derive(Debug)]
pub struct ServiceName {
    hash: u64,
    split: u8,
    len: u8,
    labels: [u8; 2 * (1 + MAX_LABEL)],
}

impl ServiceName {
    /// Creates a name from two lower-case labels with their length octets.
    pub fn new(seed: Seed, service: &[u8], namespace: &[u8]) -> ServiceName {
        let mut labels = [0; 2 * (1 + MAX_LABEL)];
        for (place, octet) in labels.iter_mut().zip(service.iter().chain(namespace)) {
            *place = *octet;
        }
        ServiceName {
            hash: seed.pair(seed.label(service), seed.label(namespace)),
            split: service.len() as u8,
            len: (service.len() + namespace.len()) as u8,
            labels,
        }
    }

    /// Hash of both labels.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Both labels, without the root.
    #[inline(always)]
    pub fn labels(&self) -> &[u8] {
        self.labels.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// The Service's own label with its length octet.
    #[inline(always)]
    pub fn service(&self) -> &[u8] {
        self.labels.get(..usize::from(self.split)).unwrap_or(&[])
    }

    /// The namespace's label with its length octet.
    #[inline(always)]
    pub fn namespace(&self) -> &[u8] {
        self.labels.get(usize::from(self.split)..usize::from(self.len)).unwrap_or(&[])
    }

    /// Whether the name consists of these two labels.
    #[inline(always)]
    pub fn is(&self, service: super::Label<'_>, namespace: super::Label<'_>) -> bool {
        same(self.service(), service.octets) && same(self.namespace(), namespace.octets)
    }

    /// The name as text: `name.namespace`.
    pub fn text(&self) -> String {
        crate::wire::text_of(self.labels())
    }
}

impl PartialEq for ServiceName {
    fn eq(&self, other: &ServiceName) -> bool {
        self.labels() == other.labels()
    }
}

impl Eq for ServiceName {}

impl PartialOrd for ServiceName {
    fn partial_cmp(&self, other: &ServiceName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServiceName {
    fn cmp(&self, other: &ServiceName) -> std::cmp::Ordering {
        self.labels().cmp(other.labels())
    }
}

/// A port, with the labels of its SRV name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `_name` with its length octet; empty for an unnamed port, which has no SRV name.
    pub label: Box<[u8]>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub number: u16,
    /// Whether an earlier port in the list has the same number: without port names, their records would be identical.
    pub repeats: bool,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Index of its ports in [`Endpoints::groups`].
    pub group: u16,
    /// The label of its name with its length octet; `None` for the address with dashes (see [`super::dashed`]).
    pub label: Option<Box<[u8]>>,
}

/// A name shared by one or more endpoints: the target of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index in [`Endpoints::all`] of the first endpoint with that name.
    pub endpoint: u32,
    /// Index in [`Endpoints::groups`] of the ports of all endpoints with that name.
    pub group: u16,
}

/// The ready endpoints of all slices of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// All endpoints, sorted by address.
    pub all: Box<[Endpoint]>,
    /// Indices into `all` of the endpoints with their own label, sorted by label.
    pub labelled: Box<[u32]>,
    /// SRV targets, one per name.
    pub targets: Box<[Target]>,
    /// Port lists of the slices, without duplicates.
    pub groups: Box<[Box<[Port]>]>,
}

impl Endpoints {
    /// All endpoints with this address.
    #[inline]
    pub fn at(&self, address: IpAddr) -> &[Endpoint] {
        let from = self.all.partition_point(|endpoint| endpoint.address < address);
        let rest = self.all.get(from..).unwrap_or(&[]);
        rest.get(..rest.partition_point(|endpoint| endpoint.address == address)).unwrap_or(&[])
    }

    /// Indices of the endpoints with this label.
    #[inline]
    pub fn labelled(&self, label: &[u8]) -> &[u32] {
        let label_at = |index: &u32| self.all.get(*index as usize).and_then(|endpoint| endpoint.label.as_deref());
        let from = self.labelled.partition_point(|index| label_at(index) < Some(label));
        let rest = self.labelled.get(from..).unwrap_or(&[]);
        rest.get(..rest.partition_point(|index| label_at(index) == Some(label))).unwrap_or(&[])
    }

    /// The ports of a group.
    #[inline]
    pub fn ports(&self, group: u16) -> &[Port] {
        self.groups.get(usize::from(group)).map_or(&[], |ports| ports)
    }
}

/// How queries for a Service are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Service with ClusterIPs, and its own ports; an unnamed port has an empty label.
    Cluster(Box<[Port]>),
    /// A headless Service, which resolves to its endpoints.
    Headless,
    /// The external name in wire format, root included; `None` if it is invalid, which results in NXDOMAIN.
    ExternalName(Option<Box<[u8]>>),
}

/// A Service in the zone; see the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Arc<ServiceName>,
    /// The callers that may see it; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// How queries for it are answered.
    pub kind: Kind,
    /// Its A records.
    pub a: Rrset,
    /// Its AAAA records.
    pub aaaa: Rrset,
    /// Its ready endpoints.
    pub endpoints: Endpoints,
}

impl Service {
    /// Whether it has records of any type. A headless Service without ready endpoints, or an invalid ExternalName, has
    /// none and does not exist for the protocol (DNS-Based Service Discovery 1.1.0 section 2.4.1), although it ends the
    /// search for a short name.
    #[inline(always)]
    pub fn answers(&self) -> bool {
        match &self.kind {
            Kind::Cluster(_) => true,
            Kind::Headless => !self.endpoints.all.is_empty(),
            Kind::ExternalName(target) => target.is_some(),
        }
    }

    /// Writes its address if it has exactly one of the query type, and returns whether it did.
    #[inline(always)]
    pub fn push_lone(&self, qtype: u16, out: &mut Reply<'_>) -> bool {
        match qtype {
            rtype::A => self.a.push_lone(out),
            rtype::AAAA => self.aaaa.push_lone(out),
            _ => false,
        }
    }

    /// Whether `address` is one of its ClusterIPs.
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        match (&self.kind, address) {
            (Kind::Cluster(_), IpAddr::V4(v4)) => {
                self.a.octets().chunks(16).any(|record| record.ends_with(&v4.octets()))
            }
            (Kind::Cluster(_), IpAddr::V6(v6)) => {
                self.aaaa.octets().chunks(28).any(|record| record.ends_with(&v6.octets()))
            }
            _ => false,
        }
    }
}

impl Slot for (u64, Arc<Service>) {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.0
    }
}

/// An alternative name in a namespace, used if no Service has that name: aliases and marked databases.
#[derive(Debug)]
pub struct AltName {
    /// The name, with the namespace in which it is valid.
    pub name: ServiceName,
    /// Services that claim it as an alias; the first one gets it.
    pub aliases: Box<[Arc<Service>]>,
    /// Services `name-*` marked `callsign.dev/default`, if the name is a kind of database.
    pub defaults: Box<[Arc<Service>]>,
}

impl Slot for Arc<AltName> {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.name.hash
    }
}
