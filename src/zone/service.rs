//! A Service as the table holds it: everything that its names answer.

use std::net::IpAddr;
use std::sync::Arc;

use super::facts::Protocol;
use super::persistent_map::Slot;
use super::rrset::Rrset;
use super::{Seed, Visibility};
use crate::wire::{MAX_LABEL, Reply, rtype, same};

/// What a Service is called: its own label and its namespace's, on the wire, one after the other. They are held in place:
/// every lookup ends with comparing them, and memory elsewhere is what a lookup waits for.
#[derive(Debug)]
pub struct ServiceName {
    hash: u64,
    split: u8,
    len: u8,
    labels: [u8; 2 * (1 + MAX_LABEL)],
}

impl ServiceName {
    /// From two labels with their length octets, lower case.
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

    /// Both labels, without a root.
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

    /// Whether these are its two labels.
    #[inline(always)]
    pub fn is(&self, service: super::Label<'_>, namespace: super::Label<'_>) -> bool {
        same(self.service(), service.octets) && same(self.namespace(), namespace.octets)
    }

    /// `name.namespace`.
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
    /// `_name` with its length octet; empty for an unnamed port, which has no name of its own.
    pub label: Box<[u8]>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub number: u16,
    /// An earlier port of the list has the same number: a record without the port's name would be that one's twin.
    pub repeats: bool,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Index of its ports among [`Endpoints::groups`].
    pub group: u16,
    /// The label of its name with its length octet; `None`: the address with dashes (see [`super::dashed`]).
    pub label: Option<Box<[u8]>>,
}

/// A name that endpoints have: what an SRV record points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of the first endpoint of that name among [`Endpoints::all`].
    pub endpoint: u32,
    /// Index of the ports of all endpoints of that name among [`Endpoints::groups`].
    pub group: u16,
}

/// Ready endpoints of all slices of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Sorted by address.
    pub all: Box<[Endpoint]>,
    /// Indices into `all` of those with a label of their own, sorted by label.
    pub labelled: Box<[u32]>,
    /// Each name once.
    pub targets: Box<[Target]>,
    /// Ports of each slice, the same ones once.
    pub groups: Box<[Box<[Port]>]>,
}

impl Endpoints {
    /// All endpoints of one address.
    #[inline]
    pub fn at(&self, address: IpAddr) -> &[Endpoint] {
        let from = self.all.partition_point(|endpoint| endpoint.address < address);
        let rest = self.all.get(from..).unwrap_or(&[]);
        rest.get(..rest.partition_point(|endpoint| endpoint.address == address)).unwrap_or(&[])
    }

    /// Indices of the endpoints whose own label this is.
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

/// How a Service is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has ClusterIPs; its own ports, unnamed ones with an empty label.
    Cluster(Box<[Port]>),
    /// Its endpoints answer for it.
    Headless,
    /// A name in wire format, root included; `None`: something that is no name, which answers NXDOMAIN.
    ExternalName(Option<Box<[u8]>>),
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is called.
    pub name: Arc<ServiceName>,
    /// Who may see it; `None`: everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// How it is answered.
    pub kind: Kind,
    /// Its A records.
    pub a: Rrset,
    /// Its AAAA records.
    pub aaaa: Rrset,
    /// Its ready endpoints.
    pub endpoints: Endpoints,
}

impl Service {
    /// A headless Service without a ready endpoint, or an ExternalName that is no name, has no records of any type
    /// and does not exist for the protocol (DNS-Based Service Discovery 1.1.0 section 2.4.1), although it ends the
    /// search for a short name.
    #[inline(always)]
    pub fn answers(&self) -> bool {
        match &self.kind {
            Kind::Cluster(_) => true,
            Kind::Headless => !self.endpoints.all.is_empty(),
            Kind::ExternalName(target) => target.is_some(),
        }
    }

    /// Writes its address, if it has one of the type that is asked for and no other; says whether it did.
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

/// What else a name of a namespace may mean, when no Service has it: aliases and marked databases.
#[derive(Debug)]
pub struct AltName {
    /// The name, in the namespace it is valid in.
    pub name: ServiceName,
    /// Services that claim it as an alias, the one that keeps it first.
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
