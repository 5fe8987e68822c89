//! Reports on the names of a cluster: the list of Services, the explanation of a name, the variables of links, and
//! findings. They are pure functions of the table and the facts. Commands print the results, and the admin address
//! serves them.

pub mod clients;
pub mod doctor;
pub mod explain;
pub mod links;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::resolve::{NoTrace, Node, Outcome, resolve};
use crate::wire::{Name, label_of, name_from_text};
use crate::zone::facts::{Key, ServiceFact};
use crate::zone::{Caller, Facts, LazyCaller, NamespaceName, Service, Zone};

/// A consistent snapshot of the facts, sorted, with the table built from them.
pub struct Catalog {
    /// The table.
    pub zone: Arc<Zone>,
    services: BTreeMap<Key, ServiceView>,
    namespaces: BTreeSet<Box<str>>,
}

/// The reader of a server's reports.
#[derive(Clone, Debug)]
pub enum Viewer {
    /// May see everything.
    Operator,
    /// May see as much as a caller in this namespace (`None` if it is not known).
    Caller(Option<NamespaceName>),
}

impl Viewer {
    /// Determines the viewer for a client on the server's own host: an operator (port forwarding, or a shell). In a
    /// sidecar, which has a configured namespace, it may also be the application, and sees what that may see.
    pub fn local(zone: &Zone) -> Viewer {
        match &zone.settings.namespace {
            None => Viewer::Operator,
            Some(own) => Viewer::Caller(Some(own.clone())),
        }
    }

    /// Returns how much an explanation for this viewer may reveal.
    pub fn audience(&self) -> explain::Audience {
        match self {
            Viewer::Operator => explain::Audience::Operator,
            Viewer::Caller(_) => explain::Audience::Caller,
        }
    }

    fn lazy_caller<'z>(&'z self, zone: &'z Zone) -> Option<LazyCaller<'z>> {
        match self {
            Viewer::Operator => None,
            Viewer::Caller(None) => Some(LazyCaller::new(zone, Caller::Unknown)),
            Viewer::Caller(Some(namespace)) => Some(LazyCaller::new(zone, Caller::Namespace(namespace))),
        }
    }
}

/// A Service's fact and a summary of its slices.
struct ServiceView {
    fact: Arc<ServiceFact>,
    /// Number of endpoints that its slices list, ready or not.
    total: u32,
    /// Addresses of the ready endpoints.
    ready: BTreeSet<IpAddr>,
    /// Whether it has any slices. In manifests they are optional.
    has_slices: bool,
}

impl Catalog {
    /// Builds a catalog. The order of the facts does not matter.
    pub fn new(zone: Arc<Zone>, facts: Facts) -> Catalog {
        let mut services: BTreeMap<Key, ServiceView> = facts
            .services
            .into_iter()
            .map(|(key, fact)| (key, ServiceView { fact, total: 0, ready: BTreeSet::new(), has_slices: false }))
            .collect();
        let mut namespaces: BTreeSet<Box<str>> = facts.namespaces.into_iter().map(|(name, _)| name).collect();
        namespaces.extend(services.keys().map(|key| key.namespace.clone()));
        for (key, slice) in facts.slices {
            let Some(service) = &slice.service else { continue };
            if let Some(known) = services.get_mut(&Key::new(&key.namespace, service)) {
                // Several slices can list the same pod with different ports; it counts as one endpoint.
                let before = known.ready.len();
                known.ready.extend(slice.ready.iter().map(|endpoint| endpoint.address));
                let repeated = slice.ready.len() - (known.ready.len() - before);
                known.total += slice.total.saturating_sub(repeated as u32);
                known.has_slices = true;
            }
        }
        Catalog { zone, services, namespaces }
    }

    /// Iterates over the namespaces that exist or contain Services.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|name| &**name)
    }

    /// Returns whether the namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// Returns whether the namespace exists and is visible to the viewer.
    pub fn shows_namespace(&self, name: &str, viewer: &Viewer) -> bool {
        let Some(lazy_caller) = viewer.lazy_caller(&self.zone) else { return self.has_namespace(name) };
        let label = label_of(name).ok();
        let found = label.as_deref().and_then(|label| self.zone.namespace(self.zone.label(label)));
        found.is_some_and(|namespace| lazy_caller.sees_namespace(namespace))
    }

    /// Returns the number of Services.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Returns whether there are no Services.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Resolves a name to a Service for a caller in a namespace, by the rules of the server. A Service without ready
    /// endpoints is returned too, although its name has no answer at present.
    fn resolved(&self, text: &str, namespace: &NamespaceName) -> Option<&Arc<Service>> {
        let wire = name_from_text(text).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        let lazy_caller = LazyCaller::new(&self.zone, Caller::Namespace(namespace));
        if let Some(service) = self.service_of(&name, &lazy_caller) {
            return Some(service);
        }
        let namespace_label = if name.labels() == 1 { namespace.as_label() } else { self.zone.label_of(&name, 1) };
        let plain = match name.labels() {
            1 | 2 => true,
            3 => name.label(2) == b"\x03svc",
            _ => self.zone.settings.is_ours(&name) && name.label(2) == b"\x03svc",
        };
        let found = self.zone.service(self.zone.label_of(&name, 0), namespace_label).filter(|_| plain)?;
        (!found.answers() && lazy_caller.sees(&found.visibility)).then_some(found)
    }

    /// Resolves a name to a Service for a caller without a known namespace.
    fn means(&self, name: &str) -> Option<Key> {
        let wire = name_from_text(name).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        self.service_of(&name, &LazyCaller::new(&self.zone, Caller::Unknown)).map(|service| key_of(service))
    }

    /// Resolves a name to a Service as the server does.
    fn service_of(&self, name: &Name, lazy_caller: &LazyCaller<'_>) -> Option<&Arc<Service>> {
        match resolve(&lazy_caller.reborrow(), name, NoTrace) {
            Outcome::Found(Node::Service(service), _) => self.zone.service_named(&service.name),
            _ => None,
        }
    }

    /// Returns the shortest name that works in all namespaces: the app, a part of an app, or else `SERVICE.NAMESPACE`.
    fn short(&self, key: &Key) -> String {
        let prefix = &*self.zone.settings.application_prefix;
        let app = key.namespace.as_bytes().strip_prefix(prefix).filter(|app| !app.is_empty());
        let app = app.and_then(|app| std::str::from_utf8(app).ok());
        let main = app.and_then(|app| self.means(app));
        let part = main.as_ref().and_then(|main| key.name.strip_prefix(&*main.name)?.strip_prefix('-'));
        let candidates = [app.map(str::to_owned), app.zip(part).map(|(app, part)| format!("{part}.{app}"))];
        let found = candidates.into_iter().flatten().find(|name| self.means(name).as_ref() == Some(key));
        found.unwrap_or_else(|| format!("{}.{}", key.name, key.namespace))
    }

    /// Returns the table's Service for a key.
    fn entry(&self, key: &Key) -> Option<&Arc<Service>> {
        let (service, namespace) = (label_of(&key.name).ok()?, label_of(&key.namespace).ok()?);
        self.zone.service(self.zone.label(&service), self.zone.label(&namespace))
    }

    /// Returns the full name of a Service.
    fn domain(&self, key: &Key) -> String {
        format!("{}.{}.svc.{}", key.name, key.namespace, self.zone.settings.first_domain())
    }
}

/// Returns the key under which the facts hold a Service of the table.
fn key_of(service: &Service) -> Key {
    use crate::wire::text_of;
    Key::new(&text_of(service.name.namespace()), &text_of(service.name.service()))
}
