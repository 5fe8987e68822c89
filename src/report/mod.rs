//! What a cluster's names are, for people and programs: the listing, the explanation of a name, the variables of a link,
//! and what is wrong. Functions of the table and the facts, without input or output: the commands print what they
//! return, the admin address serves it.

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
use crate::zone::{Asker, Caller, Facts, NamespaceName, Origin, Service, Zone};

/// The facts of one moment, in order, beside the table that was made of them.
pub struct Catalog {
    /// The table.
    pub zone: Arc<Zone>,
    services: BTreeMap<Key, ServiceView>,
    namespaces: BTreeSet<Box<str>>,
}

/// Who looks at a cluster by way of a server.
#[derive(Clone, Debug)]
pub enum Viewer {
    /// Somebody who may see everything.
    Operator,
    /// Somebody who may see what a caller of this namespace may (`None`: not known).
    Caller(Option<NamespaceName>),
}

impl Viewer {
    /// Who a client of the admin address is. Over loopback comes an operator (a port that is forwarded, a shell on the
    /// host); in a sidecar, which is told its namespace, it may as well be the application. From elsewhere it is who
    /// `--callers` or a pod's address say, and never a default: the default is for those who ask for names.
    pub fn of(zone: &Zone, client: IpAddr) -> Viewer {
        match (client.is_loopback(), &zone.settings.namespace) {
            (true, None) => return Viewer::Operator,
            (true, Some(own)) => return Viewer::Caller(Some(own.clone())),
            _ => {}
        }
        match zone.namespace_of(client) {
            (Some(namespace), Origin::Callers(_) | Origin::Pod) => Viewer::Caller(Some(namespace.clone())),
            _ => Viewer::Caller(None),
        }
    }

    /// What such a reader may learn.
    pub fn sight(&self) -> explain::Sight {
        match self {
            Viewer::Operator => explain::Sight::Operator,
            Viewer::Caller(_) => explain::Sight::Caller,
        }
    }

    fn asker<'z>(&'z self, zone: &'z Zone) -> Option<Asker<'z>> {
        match self {
            Viewer::Operator => None,
            Viewer::Caller(None) => Some(Asker::new(zone, Caller::Unknown)),
            Viewer::Caller(Some(namespace)) => Some(Asker::new(zone, Caller::Namespace(namespace))),
        }
    }
}

/// What is known of a Service.
struct ServiceView {
    fact: Arc<ServiceFact>,
    /// Endpoints that its slices list, ready or not.
    total: u32,
    /// Addresses of those that are ready.
    ready: BTreeSet<IpAddr>,
    /// Whether it has slices at all: manifests need none.
    sliced: bool,
}

impl Catalog {
    /// In order, whatever order the facts are in.
    pub fn new(zone: Arc<Zone>, facts: Facts) -> Catalog {
        let mut services: BTreeMap<Key, ServiceView> = facts
            .services
            .into_iter()
            .map(|(key, fact)| (key, ServiceView { fact, total: 0, ready: BTreeSet::new(), sliced: false }))
            .collect();
        let mut namespaces: BTreeSet<Box<str>> = facts.namespaces.into_iter().map(|(name, _)| name).collect();
        namespaces.extend(services.keys().map(|key| key.namespace.clone()));
        for (key, slice) in facts.slices {
            let Some(service) = &slice.service else { continue };
            if let Some(known) = services.get_mut(&Key::new(&key.namespace, service)) {
                // A pod that several slices list, for its ports differ, is one endpoint.
                let before = known.ready.len();
                known.ready.extend(slice.ready.iter().map(|endpoint| endpoint.address));
                let repeated = slice.ready.len() - (known.ready.len() - before);
                known.total += slice.total.saturating_sub(repeated as u32);
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

    /// Whether there is such a namespace for who looks.
    pub fn shows_namespace(&self, name: &str, viewer: &Viewer) -> bool {
        let Some(asker) = viewer.asker(&self.zone) else { return self.has_namespace(name) };
        let label = label_of(name).ok();
        let found = label.as_deref().and_then(|label| self.zone.namespace(self.zone.label(label)));
        found.is_some_and(|namespace| asker.sees_namespace(namespace))
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The Service that a name means to somebody in a namespace, by the rules that the server has. One that is not ready
    /// ends the search as well, and is meant although it has no answer now.
    fn resolved(&self, text: &str, namespace: &NamespaceName) -> Option<&Arc<Service>> {
        let wire = name_from_text(text).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        let asker = Asker::new(&self.zone, Caller::Namespace(namespace));
        if let Some(service) = self.service_of(&name, &asker) {
            return Some(service);
        }
        let place = if name.labels() == 1 { namespace.as_label() } else { self.zone.label_of(&name, 1) };
        let plain = match name.labels() {
            1 | 2 => true,
            3 => name.label(2) == b"\x03svc",
            _ => self.zone.settings.is_under_domain(&name) && name.label(2) == b"\x03svc",
        };
        let found = self.zone.service(self.zone.label_of(&name, 0), place).filter(|_| plain)?;
        (!found.answers() && asker.sees(&found.visibility)).then_some(found)
    }

    /// The Service that a name means to whoever asks from no namespace in particular.
    fn means(&self, name: &str) -> Option<Key> {
        let wire = name_from_text(name).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        self.service_of(&name, &Asker::new(&self.zone, Caller::Unknown)).map(|service| key_of(service))
    }

    /// The Service that the server finds for a name.
    fn service_of(&self, name: &Name, asker: &Asker<'_>) -> Option<&Arc<Service>> {
        match resolve(&self.zone, &asker.again(), name, &mut NoTrace) {
            Outcome::Found(Node::Service(service), _) => self.zone.service_named(&service.name),
            _ => None,
        }
    }

    /// The shortest name that all namespaces may use: an app's, or a part's of an app, else name and namespace.
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
