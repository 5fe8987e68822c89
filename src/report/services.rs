//! Which Services there are, what they are called, and on which ports.

use serde::Serialize;

use super::{Catalog, ServiceView, Viewer};
use crate::wire::text_of;
use crate::zone::facts::{Key, PortFact, ServiceType};

/// A Service as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its name in full.
    pub domain: String,
    /// How others of the cluster may write it.
    pub short: String,
    /// `ClusterIP`, `Headless` or `ExternalName`.
    pub r#type: &'static str,
    /// Its addresses, or where it leads to.
    pub addresses: Vec<String>,
    /// Its ports, in the order of the object.
    pub ports: Vec<PortJson>,
    /// Ready endpoints; not known where nothing lists any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<usize>,
    /// Endpoints in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u32>,
    /// More names for it in its namespace.
    pub aliases: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortJson {
    /// Empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What clients connect to.
    pub port: u16,
    /// Where that leads: a number, or the name of a container's port.
    pub target: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
}

impl PortJson {
    fn new(fact: &PortFact) -> PortJson {
        let target = fact.target.as_deref().map_or_else(|| fact.number.to_string(), str::to_owned);
        PortJson { name: fact.name.to_string(), port: fact.number, target, protocol: fact.protocol.as_str() }
    }

    /// `80:3000`, or a bare number where both are equal.
    pub fn text(&self) -> String {
        if self.target == self.port.to_string() {
            self.target.clone()
        } else {
            format!("{}:{}", self.port, self.target)
        }
    }
}

impl Line {
    fn new(catalog: &Catalog, key: &Key, known: &ServiceView) -> Line {
        let fact = &known.fact;
        let (kind, addresses) = match &fact.reach {
            ServiceType::Cluster(addresses) => ("ClusterIP", addresses.iter().map(ToString::to_string).collect()),
            ServiceType::Headless => ("Headless", known.ready.iter().map(ToString::to_string).collect()),
            ServiceType::External(target) => ("ExternalName", target.iter().map(|target| text_of(target)).collect()),
        };
        Line {
            namespace: key.namespace.to_string(),
            service: key.name.to_string(),
            domain: catalog.domain(key),
            short: catalog.short(key),
            r#type: kind,
            addresses,
            ports: fact.ports.iter().map(PortJson::new).collect(),
            ready: known.sliced.then_some(known.ready.len()),
            endpoints: known.sliced.then_some(known.total),
            aliases: fact.aliases.iter().map(|alias| alias.to_string()).collect(),
        }
    }

    /// `80:3000 443:3000`.
    pub fn ports_text(&self) -> String {
        self.ports.iter().map(PortJson::text).collect::<Vec<_>>().join(" ")
    }

    /// `2/3`: ready endpoints of all; empty where nothing lists any.
    pub fn ready_text(&self) -> String {
        match (self.ready, self.endpoints) {
            (Some(ready), Some(all)) => format!("{ready}/{all}"),
            _ => String::new(),
        }
    }
}

/// The Services of a namespace, or of all, in the order of their names.
pub fn list(catalog: &Catalog, namespace: Option<&str>) -> Vec<Line> {
    let wanted = catalog.services.iter().filter(|(key, _)| namespace.is_none_or(|wanted| *key.namespace == *wanted));
    wanted.map(|(key, known)| Line::new(catalog, key, known)).collect()
}

/// The same, of those that who looks may see: for it the others do not exist.
pub fn list_for(catalog: &Catalog, namespace: Option<&str>, viewer: &Viewer) -> Vec<Line> {
    let mut lines = list(catalog, namespace);
    if let Some(asker) = viewer.asker(&catalog.zone) {
        lines.retain(|line| {
            let service = catalog.entry(&Key::new(&line.namespace, &line.service));
            service.is_some_and(|service| asker.sees(&service.visibility))
        });
    }
    lines
}
