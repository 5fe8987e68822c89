//! A Service in the zone: everything needed to answer queries for its names.

use std::net::IpAddr;
use std::sync::Arc;

use super::facts::Protocol;
use super::names::ServiceName;
use super::persistent_map::Slot;
use super::rrset::Rrset;
use super::visibility::Visibility;
use crate::wire::{Reply, rtype};

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
        self.name.hash()
    }
}
