//! The list of Services with their names, addresses and ports.

use serde::Serialize;

use super::{Catalog, ServiceView, Viewer};
use crate::wire::text_of;
use crate::zone::facts::{Key, PortFact, ServiceType};

/// One Service in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its full name.
    pub domain: String,
    /// The shortest name that works in all namespaces.
    pub short: String,
    /// `ClusterIP`, `Headless` or `ExternalName`.
    pub r#type: &'static str,
    /// Its addresses, or the target of an ExternalName.
    pub addresses: Vec<String>,
    /// Its ports, in the order of the manifest.
    pub ports: Vec<PortJson>,
    /// Number of ready endpoints; `None` if there are no EndpointSlices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<usize>,
    /// Number of endpoints, ready or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u32>,
    /// Its aliases, which are valid in its namespace.
    pub aliases: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortJson {
    /// Its name; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Port that clients connect to.
    pub port: u16,
    /// Target port: a number, or the name of a container's port.
    pub target: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
}

impl PortJson {
    fn new(fact: &PortFact) -> PortJson {
        let target = fact.target.as_deref().map_or_else(|| fact.number.to_string(), str::to_owned);
        PortJson { name: fact.name.to_string(), port: fact.number, target, protocol: fact.protocol.as_str() }
    }

    /// Formats the port as `80:3000`, or as a single number if both are equal.
    pub fn text(&self) -> String {
        if self.target == self.port.to_string() {
            self.target.clone()
        } else {
            format!("{}:{}", self.port, self.target)
        }
    }
}

impl ServiceEntry {
    fn new(catalog: &Catalog, key: &Key, known: &ServiceView) -> ServiceEntry {
        let fact = &known.fact;
        let (kind, addresses) = match &fact.service_type {
            ServiceType::Cluster(addresses) => ("ClusterIP", addresses.iter().map(ToString::to_string).collect()),
            ServiceType::Headless => ("Headless", known.ready.iter().map(ToString::to_string).collect()),
            ServiceType::External(target) => ("ExternalName", target.iter().map(|target| text_of(target)).collect()),
        };
        ServiceEntry {
            namespace: key.namespace.to_string(),
            service: key.name.to_string(),
            domain: catalog.domain(key),
            short: catalog.short(key),
            r#type: kind,
            addresses,
            ports: fact.ports.iter().map(PortJson::new).collect(),
            ready: known.has_slices.then_some(known.ready.len()),
            endpoints: known.has_slices.then_some(known.total),
            aliases: fact.aliases.iter().map(|alias| alias.to_string()).collect(),
        }
    }

    /// Formats the ports as `80:3000 443:3000`. A number of several protocols is listed with them: `53/UDP,53/TCP`.
    pub fn ports_text(&self) -> String {
        let mut groups: Vec<(u16, Vec<String>)> = Vec::new();
        for port in &self.ports {
            let of_number = || self.ports.iter().filter(|other| other.port == port.port);
            let is_plain = port.protocol == "TCP" && of_number().all(|other| other.protocol == "TCP");
            let text = if is_plain { port.text() } else { format!("{}/{}", port.text(), port.protocol) };
            match groups.iter_mut().find(|(number, _)| *number == port.port) {
                Some((_, texts)) => texts.push(text),
                None => groups.push((port.port, vec![text])),
            }
        }
        let texts = groups.into_iter().map(|(_, mut texts)| {
            texts.dedup();
            texts.join(",")
        });
        texts.collect::<Vec<_>>().join(" ")
    }

    /// Formats the endpoints as ready/total (`2/3`); empty if there are no EndpointSlices.
    pub fn ready_text(&self) -> String {
        match (self.ready, self.endpoints) {
            (Some(ready), Some(all)) => format!("{ready}/{all}"),
            _ => String::new(),
        }
    }
}

/// Lists the Services of one namespace, or of all, sorted by namespace and name.
pub fn list(catalog: &Catalog, namespace: Option<&str>) -> Vec<ServiceEntry> {
    let wanted = catalog.services.iter().filter(|(key, _)| namespace.is_none_or(|wanted| *key.namespace == *wanted));
    wanted.map(|(key, known)| ServiceEntry::new(catalog, key, known)).collect()
}

/// A position in the list of Services, at first before all of them.
#[derive(Clone, Debug, Default)]
pub struct Cursor(Option<Key>);

/// Returns the next Service that the viewer may see, and moves the cursor to it; `None` at the end.
pub fn next_for(catalog: &Catalog, cursor: &mut Cursor, viewer: &Viewer) -> Option<ServiceEntry> {
    use std::ops::Bound::{Excluded, Unbounded};
    let after = cursor.0.as_ref().map_or(Unbounded, Excluded);
    let lazy_caller = viewer.lazy_caller(&catalog.zone);
    let mut candidates = catalog.services.range((after, Unbounded));
    let (key, known) = candidates.find(|(key, _)| match &lazy_caller {
        None => true,
        Some(lazy_caller) => catalog.entry(key).is_some_and(|service| lazy_caller.sees(&service.visibility)),
    })?;
    cursor.0 = Some(key.clone());
    Some(ServiceEntry::new(catalog, key, known))
}
