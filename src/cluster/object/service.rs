//! `v1` Service.

use serde::Deserialize;

use super::annotations::{aliases, visible_to};
use super::meta::{Meta, Text};
use super::ports::{PortObject, ports};
use super::{MAX_ANNOTATION, Object, ParseOptions, address, key_of, label, quoted};
use crate::wire::MAX_LABEL;
use crate::zone::external_name;
use crate::zone::facts::{Change, Key, ServiceFact, ServiceType};

/// `v1` Service.
#[derive(Debug, Deserialize)]
pub struct ServiceObject {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
    spec: Option<ServiceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    external_name: Option<String>,
    ip_families: Option<Vec<String>>,
    ports: Option<Vec<PortObject>>,
}

impl Object for ServiceObject {
    const KIND: &'static str = "Service";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let name = label("name", &key.name)?;
        let empty = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let listed = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
        let mut addresses: Vec<&str> = listed.map(String::as_str).filter(|ip| !ip.is_empty()).collect();
        addresses.dedup();
        let service_type = if spec.kind.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().unwrap_or_default();
            let target = external_name(target);
            if target.is_none() {
                let text = spec.external_name.as_deref().unwrap_or_default();
                let text = quoted(text);
                notes.push(format!("externalName '{text}' is not a domain name; queries get NXDOMAIN"));
            }
            ServiceType::External(target)
        } else if addresses.contains(&"None") {
            ServiceType::Headless
        } else {
            let mut parsed = Vec::with_capacity(addresses.len());
            for text in addresses {
                let address = address(text)?;
                if !parsed.contains(&address) {
                    parsed.push(address);
                }
            }
            ServiceType::Cluster(parsed)
        };
        let annotations = meta.annotations.as_ref();
        let labels = meta.labels.as_ref();
        let links =
            annotations.and_then(|annotations| annotations.links.as_ref()).filter(|_| parse_options.for_commands);
        if let Some(length) = links.map(|links| links.0.len()).filter(|length| *length > MAX_ANNOTATION) {
            notes.push(format!("callsign.dev/links is ignored: it has {length} octets; the limit is {MAX_ANNOTATION}"));
        }
        let links = links.filter(|links| links.0.len() <= MAX_ANNOTATION);
        // A label's value has at most 63 octets (Kubernetes API concepts, "Labels and Selectors").
        let text = |text: &Option<Text>| {
            let text = text.as_ref().map(|text| text.0.as_str());
            text.filter(|text| !text.is_empty() && text.len() <= MAX_LABEL).map(Box::from)
        };
        let default = annotations.and_then(|annotations| annotations.default.as_ref()).map(|text| text.0.trim());
        let fact = ServiceFact {
            service_type,
            ports: ports(&spec.ports, notes)?,
            created: meta.created(),
            aliases: aliases(annotations.and_then(|annotations| annotations.alias.as_ref()), notes),
            default: match default {
                Some("true") => true,
                None | Some("false") => false,
                Some(other) => {
                    let other = quoted(other);
                    notes.push(format!("callsign.dev/default '{other}' is ignored; write \"true\" or \"false\""));
                    false
                }
            },
            visible_to: visible_to(annotations, notes),
            links: links.map(|links| links.0.as_str()).filter(|links| !links.is_empty()).map(Box::from),
            release: labels.and_then(|labels| text(&labels.instance)),
            chart: labels.and_then(|labels| text(&labels.chart)),
            main: labels.and_then(|labels| labels.main.as_ref()).is_some_and(|main| main.0 == "main"),
        };
        Ok(Change::Service(Key { name, ..key }, Some(fact.into())))
    }

    fn gone(key: Key) -> Change {
        Change::Service(key, None)
    }
}

impl ServiceObject {
    /// Returns the address families (IPv4, IPv6) that the object requests. Manifests need them for Services that no
    /// API server has given an address.
    pub fn requested_families(&self) -> (bool, bool) {
        let Some(spec) = &self.spec else { return (true, false) };
        match spec.ip_families.as_deref() {
            None | Some([]) => (true, false),
            Some(families) => {
                (families.iter().any(|family| family == "IPv4"), families.iter().any(|family| family == "IPv6"))
            }
        }
    }
}
