//! What a cluster's names are, for people and programs: the listing, the explanation of a name, the variables of a link,
//! and what is wrong. Functions of the table and the facts, without input or output: the commands print what they
//! return, the admin address serves it.

pub mod doctor;
pub mod explain;
pub mod links;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resolve::{Node, Outcome, Silent, resolve};
use crate::wire::{Name, label_of, name_from_text};
use crate::zone::facts::{Key, ServiceFact};
use crate::zone::{Asker, Caller, Facts, NamespaceName, Service, Zone};

/// The facts of one moment, in order, beside the table that was made of them.
pub struct Catalog {
    /// The table.
    pub zone: Arc<Zone>,
    services: BTreeMap<Key, Known>,
    namespaces: BTreeSet<Box<str>>,
}

/// What is known of a Service.
struct Known {
    fact: Arc<ServiceFact>,
    /// Endpoints that its slices list, ready or not.
    total: u32,
    /// Addresses of those that are ready.
    ready: BTreeSet<std::net::IpAddr>,
    /// Whether it has slices at all: manifests need none.
    sliced: bool,
}

impl Catalog {
    /// In order, whatever order the facts are in.
    pub fn new(zone: Arc<Zone>, facts: Facts) -> Catalog {
        let mut services: BTreeMap<Key, Known> = facts
            .services
            .into_iter()
            .map(|(key, fact)| (key, Known { fact, total: 0, ready: BTreeSet::new(), sliced: false }))
            .collect();
        let mut namespaces: BTreeSet<Box<str>> = facts.namespaces.into_iter().map(|(name, _)| name).collect();
        namespaces.extend(services.keys().map(|key| key.namespace.clone()));
        for (key, slice) in facts.slices {
            let Some(service) = &slice.service else { continue };
            if let Some(known) = services.get_mut(&Key::new(&key.namespace, service)) {
                known.total += slice.total;
                known.ready.extend(slice.ready.iter().map(|endpoint| endpoint.address));
                known.sliced = true;
            }
        }
        Catalog { zone, services, namespaces }
    }

    /// Namespaces that exist, or that Services are in.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|name| &**name)
    }

    /// Whether there is such a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The Service that a name means to somebody in a namespace, by the rules that the server has.
    fn resolved(&self, name: &str, namespace: &NamespaceName) -> Option<&Arc<Service>> {
        let wire = name_from_text(name).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        let asker = Asker::new(&self.zone, Caller::Namespace(namespace));
        match resolve(&self.zone, &asker, &name, &mut Silent) {
            Outcome::Found(Node::Service(service), _) => self.zone.service_named(&service.name),
            _ => None,
        }
    }

    /// The Service of the table that a key names.
    fn entry(&self, key: &Key) -> Option<&Arc<Service>> {
        let (service, namespace) = (label_of(&key.name).ok()?, label_of(&key.namespace).ok()?);
        self.zone.service(self.zone.label(&service), self.zone.label(&namespace))
    }

    /// The name of a Service in full.
    fn domain(&self, key: &Key) -> String {
        format!("{}.{}.svc.{}", key.name, key.namespace, self.zone.settings.first_domain())
    }
}

/// What a Service of the table is called among the facts.
fn key_of(service: &Service) -> Key {
    use crate::wire::text_of;
    Key::new(&text_of(service.name.namespace()), &text_of(service.name.service()))
}
