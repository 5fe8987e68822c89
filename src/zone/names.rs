//! Names of Services and namespaces, in the form that lookups compare.

use std::sync::Arc;

use super::Seed;
use crate::wire::{MAX_LABEL, same};

/// The name of a Service: its own label, then its namespace's, in wire format. The labels are stored inline, because
/// every lookup ends with comparing them, and a pointer would cost another memory access.
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

/// The name of a namespace: its label and the label's hash, so that a caller's namespace is hashed only once.
#[derive(Clone, Debug)]
pub struct NamespaceName(Arc<(u64, Box<[u8]>)>);

impl NamespaceName {
    /// Creates a name from a lower-case label with its length octet.
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

    /// The label in the form that lookups take.
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
