//! Reports on the names of a cluster: the list of Services, the explanation of a name, the variables of links, and
//! findings. They are pure functions of the table and the facts. Commands print the results, and the admin address
//! serves them.

pub mod doctor;
pub mod explain;
pub mod links;
pub mod lint;
pub mod near;
pub mod server;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::resolve::{NoTrace, Node, Outcome, resolve};
use crate::wire::{Name, label_of, name_from_text, text_of};
use crate::zone::facts::{Key, PortFact, ServiceFact, ServiceType, UnreadyFact};
use crate::zone::{Caller, Facts, LazyCaller, NamespaceName, Row, Service, Zone};

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
    /// Endpoints that are not ready.
    unready: Vec<UnreadyFact>,
}

/// Number of names that are suggested.
const MAX_SUGGESTED: usize = 5;
/// Number of endpoints that are not ready, of which an explanation says why.
const MAX_UNREADY: usize = 5;

impl Catalog {
    /// Builds a catalog. The order of the facts does not matter.
    pub fn new(zone: Arc<Zone>, facts: Facts) -> Catalog {
        let mut services: BTreeMap<Key, ServiceView> = facts
            .services
            .into_iter()
            .map(|(key, fact)| {
                (key, ServiceView { fact, total: 0, ready: BTreeSet::new(), has_slices: false, unready: Vec::new() })
            })
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
                known.unready.extend(slice.unready.iter().cloned());
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
    fn resolved(&self, text: &str, namespace: &NamespaceName) -> Option<&Row> {
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

    /// Adds to the explanation of a name what the facts know of its Service: endpoints that are not ready, and whether
    /// the port is one of its ports. `reason` says why a pod is not ready.
    pub fn complete(
        &self,
        explanation: &mut explain::Explanation,
        name: &Name,
        from: Option<&NamespaceName>,
        port: Option<u16>,
        mut reason: impl FnMut(&str, &str) -> Option<String>,
    ) {
        let Some((key, known)) = self.meant(name, from) else { return };
        let notes = &mut explanation.notes;
        if matches!(known.fact.service_type, ServiceType::Cluster(_)) && known.has_slices && known.ready.is_empty() {
            notes.push(format!("none of the {} endpoints of Service {key} is ready: connections fail", known.total));
            explanation.fails = true;
        }
        for endpoint in known.unready.iter().take(MAX_UNREADY) {
            let pod = if endpoint.pod.is_empty() { String::new() } else { format!(" (pod {})", endpoint.pod) };
            let why = match endpoint.is_terminating {
                true => "it is being deleted".to_owned(),
                false => reason(&key.namespace, &endpoint.pod)
                    .unwrap_or_else(|| "its readiness probe fails, or it is starting".to_owned()),
            };
            notes.push(format!("  {}{pod} is not ready: {why}", endpoint.address));
        }
        if let Some(more) = known.unready.len().checked_sub(MAX_UNREADY).filter(|more| *more > 0) {
            notes.push(format!("  and {more} more"));
        }
        let Some(port) = port else { return };
        // Clients of a headless Service connect to the pods themselves.
        let is_headless = matches!(known.fact.service_type, ServiceType::Headless);
        let is_target = |fact: &PortFact| is_headless && fact.target.as_deref() == Some(&*port.to_string());
        let found = known.fact.ports.iter().find(|fact| fact.number == port || is_target(fact));
        match found {
            Some(fact) => {
                let name = if fact.name.is_empty() { String::new() } else { format!(" ({})", fact.name) };
                let target = fact.target.as_ref().map(|target| format!(", which leads to port {target} of its pods"));
                notes.push(format!("port {port}{name} is a port of Service {key}{}", target.unwrap_or_default()));
            }
            None if known.fact.ports.is_empty() => notes.push(format!("Service {key} lists no ports")),
            None => {
                notes.push(format!(
                    "port {port} is not a port of Service {key}; it has {}",
                    links::listed(&known.fact.ports)
                ));
                explanation.fails = true;
            }
        }
    }

    /// Returns the Service that a name means, whether or not it has an answer.
    fn meant(&self, name: &Name, from: Option<&NamespaceName>) -> Option<(&Key, &ServiceView)> {
        let caller = from.map_or(Caller::Unknown, Caller::Namespace);
        let lazy_caller = LazyCaller::new(&self.zone, caller);
        let found = self.service_of(name, &lazy_caller).map(|service| key_of(service)).or_else(|| {
            let label = |index: usize| text_of(name.label(index));
            let namespace = match name.labels() {
                1 => from?.text(),
                _ => label(1),
            };
            let is_plain = name.labels() <= 2 || label(2) == "svc";
            let key = is_plain.then(|| Key::new(&namespace, &label(0)))?;
            let entry = self.entry(&key)?;
            // A name that does not resolve, for a caller who may not see the Service, is explained by its trace.
            (!entry.answers() && lazy_caller.sees(&entry.visibility)).then_some(key)
        })?;
        self.services.get_key_value(&found)
    }

    /// Returns names that nearly equal an alias or the name of a port.
    pub fn near_parts(&self, name: &Name, from: Option<&NamespaceName>) -> Vec<String> {
        let asked = text_of(name.wire());
        let asked = asked.trim_end_matches('.');
        let (first, rest) = asked.split_once('.').unwrap_or((asked, ""));
        if let Some(port) = first.strip_prefix('_') {
            // The name of a port: `_http._tcp.api`.
            let mut labels = rest.splitn(2, '.');
            let (protocol, service) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
            let parsed = name_from_text(service).ok().and_then(|wire| Name::parse(&wire, 0).ok());
            let known = parsed.as_ref().and_then(|service| self.meant(service, from));
            let ports = known.iter().flat_map(|(_, known)| &known.fact.ports).map(|port| &*port.name);
            let meant = near::closest(port, ports.filter(|name| !name.is_empty()));
            return meant.map(|meant| format!("_{meant}.{protocol}.{service}")).into_iter().collect();
        }
        let own = from.map(NamespaceName::text);
        if rest.is_empty() {
            // An alias, a database or an app of which the caller would have to say the namespace.
            let is_own = |namespace: &&str| own.as_deref() == Some(*namespace);
            let others = self
                .namespaces()
                .filter(|namespace| !is_own(namespace))
                .map(|namespace| format!("{first}.{namespace}"));
            let app = self.means(first).map(|key| format!("{}.{}", key.name, key.namespace));
            let found = app.into_iter().chain(others.filter(|name| self.means(name).is_some()));
            let found: Vec<String> = found.take(MAX_SUGGESTED).collect();
            if !found.is_empty() {
                return found;
            }
        }
        let aliases = self.services.iter().filter(|(key, _)| match rest {
            "" => own.as_deref() == Some(&*key.namespace),
            namespace => *key.namespace == *namespace,
        });
        let aliases = aliases.flat_map(|(_, known)| &known.fact.aliases).map(|alias| &**alias);
        let dot = if rest.is_empty() { "" } else { "." };
        let found = near::closest(first, aliases).filter(|alias| *alias != first);
        found.map(|alias| format!("{alias}{dot}{rest}")).into_iter().collect()
    }

    /// Resolves a name to a Service for a caller without a known namespace.
    fn means(&self, name: &str) -> Option<Key> {
        let wire = name_from_text(name).ok()?;
        let name = Name::parse(&wire, 0).ok()?;
        self.service_of(&name, &LazyCaller::new(&self.zone, Caller::Unknown)).map(|service| key_of(service))
    }

    /// Resolves a name to a Service as the server does.
    fn service_of(&self, name: &Name, lazy_caller: &LazyCaller<'_>) -> Option<&Row> {
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
    fn entry(&self, key: &Key) -> Option<&Row> {
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
    Key::new(&text_of(service.name.namespace()), &text_of(service.name.service()))
}
