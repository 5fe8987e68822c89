//! Objects of the Kubernetes API, stripped at the door: these types hold what an answer needs, everything else is
//! skipped while it is read. Before adding a field, ask what it costs 100,000 times.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use thiserror::Error;

use crate::wire::{MAX_LABEL, name_from_text};
use crate::zone::external_name;
use crate::zone::facts::{
    Change, EndpointFact, Key, NamespaceFact, PodFact, PodId, PortFact, Protocol, ServiceFact, ServiceType, SliceFact,
    VisibleTo,
};

/// A Service claims no more aliases than this; a list that is longer is a mistake.
pub const MAX_ALIASES: usize = 64;

/// An object, or an annotation of one, that could not be used: it alone is left out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {name}: {reason}")]
pub struct Rejected {
    /// Kind of the object.
    pub kind: &'static str,
    /// `namespace/name`, as far as it has them.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What is read besides the facts themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct ParseOptions {
    /// `--endpoint-pod-names`.
    pub endpoint_pod_names: bool,
}

/// Text that YAML writers tend to leave unquoted: `true` and `80` are read as they are written.
#[derive(Clone, Debug, Default, PartialEq)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Text;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("text")
            }
            fn visit_str<E>(self, value: &str) -> Result<Text, E> {
                Ok(Text(value.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(String::new()))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// `metadata` of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    /// Opaque; for the watch and the self-check.
    pub resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

#[derive(Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    service_name: Option<Text>,
    #[serde(rename = "app.kubernetes.io/instance")]
    instance: Option<Text>,
    #[serde(rename = "app.kubernetes.io/name")]
    chart: Option<Text>,
    #[serde(rename = "service.name")]
    main: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "callsign.dev/alias")]
    alias: Option<Text>,
    #[serde(rename = "callsign.dev/default")]
    default: Option<Text>,
    #[serde(rename = "callsign.dev/visible-to")]
    visible_to: Option<Text>,
    #[serde(rename = "callsign.dev/links")]
    links: Option<Text>,
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    triggered: Option<Text>,
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<Text>,
}

impl Meta {
    /// The name, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.is_empty())
    }

    /// The namespace; what is silent about it is in `default`, as for kubectl.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    /// Whether the object is on its way out.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The bookmark that closes the initial events of a streamed list (Kubernetes API concepts, "Streaming lists").
    pub fn ends_initial_events(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.and_then(|annotations| annotations.initial_events_end.as_ref()).is_some_and(|end| end.0 == "true")
    }

    /// `endpoints.kubernetes.io/last-change-trigger-time`.
    pub fn triggered(&self) -> Option<jiff::Timestamp> {
        self.annotations.as_ref()?.triggered.as_ref()?.0.parse().ok()
    }

    /// `namespace/name` for messages.
    pub fn label(&self) -> String {
        match self.name() {
            Some(name) => format!("{}/{name}", self.namespace()),
            None => format!("{}/(no name)", self.namespace()),
        }
    }

    fn created(&self) -> i64 {
        let time = self.creation_timestamp.as_ref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        time.map_or(0, |time| time.as_second())
    }
}

/// `v1` Service.
#[derive(Debug, Deserialize)]
pub struct Service {
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
    ports: Option<Vec<ServicePort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    target_port: Option<Text>,
    app_protocol: Option<String>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
    address_type: Option<String>,
    endpoints: Option<Vec<Option<SliceEndpoint>>>,
    ports: Option<Vec<ServicePort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Option<Vec<Listed>>,
    conditions: Option<Conditions>,
    hostname: Option<String>,
    target_ref: Option<TargetRef>,
}

#[derive(Debug, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct TargetRef {
    kind: Option<TargetKind>,
    name: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
enum TargetKind {
    Pod,
    #[serde(other)]
    Other,
}

/// An endpoint's address, parsed while it is read: slices are full of them. Text is kept where it is none.
#[derive(Debug)]
enum Listed {
    Address(IpAddr),
    Text(Box<str>),
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listed, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Listed;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an address")
            }
            fn visit_str<E>(self, value: &str) -> Result<Listed, E> {
                Ok(value.parse().map_or_else(|_| Listed::Text(value.into()), Listed::Address))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// `v1` Namespace.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
}

/// `v1` Pod.
#[derive(Debug, Deserialize)]
pub struct Pod {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    host_network: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// A kind that facts are made of.
pub trait Object: serde::de::DeserializeOwned + Send + 'static {
    /// As manifests and messages call it.
    const KIND: &'static str;

    /// What it is told apart by.
    type Id: Clone + Eq + std::hash::Hash + std::fmt::Display + Send + Sync;

    /// Which one this is; `None` without a name.
    fn id(meta: &Meta) -> Option<Self::Id>;

    /// Its metadata.
    fn metadata(&self) -> Option<&Meta>;

    /// The change that its presence means, and what of it could not be read.
    ///
    /// # Errors
    /// When the object as a whole cannot be used.
    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String>;

    /// The change that its absence means.
    fn gone(id: Self::Id) -> Change;
}

/// What an object says: the change, and notes on what of it was ignored.
///
/// # Errors
/// Names the object and what is wrong with it.
pub fn read<O: Object>(object: &O, parse_options: ParseOptions) -> Result<(Change, Vec<Rejected>), Rejected> {
    let rejected = |name: String, reason: String| Rejected { kind: O::KIND, name, reason };
    let Some(meta) = object.metadata() else {
        return Err(rejected("(no metadata)".to_owned(), "the object has no metadata".to_owned()));
    };
    let mut notes = Vec::new();
    match object.change(meta, parse_options, &mut notes) {
        Ok(change) => Ok((change, notes.into_iter().map(|reason| rejected(meta.label(), reason)).collect())),
        Err(reason) => Err(rejected(meta.label(), reason)),
    }
}

fn key_of(meta: &Meta) -> Result<Key, String> {
    let name = meta.name().ok_or("the object has no name")?;
    label("its namespace", meta.namespace())?;
    Ok(Key::new(&meta.namespace().to_ascii_lowercase(), name))
}

/// A label that a name can have: letters, digits, dashes and underscores.
fn label(what: &str, text: &str) -> Result<Box<str>, String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > MAX_LABEL {
        return Err(format!("{what} '{text}' has {} octets; a label has at most {MAX_LABEL}", text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
        Some(odd) => Err(format!("{what} '{text}' has the character '{odd}', which no label has")),
        None => Ok(text.to_ascii_lowercase().into()),
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is no IP address"))
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(format!("'{other}' is no protocol; use TCP, UDP or SCTP")),
    }
}

fn ports(ports: &Option<Vec<ServicePort>>) -> Result<Vec<PortFact>, String> {
    let mut facts = Vec::new();
    for port in ports.iter().flatten() {
        // A slice may have a port without a number: "all ports" (API documentation of EndpointPort).
        let Some(number) = port.port else { continue };
        let number = u16::try_from(number).map_err(|_| format!("{number} is no port number"))?;
        let name = port.name.as_deref().unwrap_or_default();
        // The label of a port is one octet longer than its name.
        let name = if name.is_empty() { Box::default() } else { label("a port's name", name)? };
        let own = number.to_string();
        facts.push(PortFact {
            name,
            protocol: protocol(port.protocol.as_deref())?,
            number,
            target: port
                .target_port
                .as_ref()
                .map(|target| target.0.as_str())
                .filter(|target| !target.is_empty() && *target != own)
                .map(Into::into),
            app_protocol: port.app_protocol.as_deref().map(Into::into),
        });
    }
    Ok(facts)
}

impl Object for Service {
    const KIND: &'static str = "Service";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, _: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let name = label("its name", &key.name)?;
        let empty = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let listed = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
        let mut addresses: Vec<&str> = listed.map(String::as_str).filter(|ip| !ip.is_empty()).collect();
        addresses.dedup();
        let reach = if spec.kind.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().unwrap_or_default();
            let target = external_name(target);
            if target.is_none() {
                let text = spec.external_name.as_deref().unwrap_or_default();
                notes.push(format!("externalName '{text}' is no domain name: it is answered NXDOMAIN"));
            }
            ServiceType::External(target)
        } else if addresses.contains(&"None") {
            ServiceType::Headless
        } else {
            let mut parsed = Vec::new();
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
        let text = |text: &Option<Text>| {
            text.as_ref().map(|text| text.0.as_str()).filter(|text| !text.is_empty()).map(Box::from)
        };
        let default = annotations.and_then(|annotations| annotations.default.as_ref()).map(|text| text.0.trim());
        let fact = ServiceFact {
            reach,
            ports: ports(&spec.ports)?,
            created: meta.created(),
            aliases: aliases(annotations.and_then(|annotations| annotations.alias.as_ref()), notes),
            default: match default {
                Some("true") => true,
                None | Some("false") => false,
                Some(other) => {
                    notes.push(format!("callsign.dev/default '{other}' is ignored: write \"true\" or \"false\""));
                    false
                }
            },
            visible_to: visible_to(annotations, notes),
            links: annotations.and_then(|annotations| text(&annotations.links)),
            release: labels.and_then(|labels| text(&labels.instance)),
            chart: labels.and_then(|labels| text(&labels.chart)),
            main: labels.and_then(|labels| labels.main.as_ref()).is_some_and(|main| main.0 == "main"),
        };
        Ok(Change::Service(Key { name, ..key }, Some(fact)))
    }

    fn gone(key: Key) -> Change {
        Change::Service(key, None)
    }
}

impl Service {
    /// The families that the object wants addresses of, where it has none yet: for manifests, which nobody gave any.
    pub fn wants_addresses(&self) -> (bool, bool) {
        let Some(spec) = &self.spec else { return (true, false) };
        match spec.ip_families.as_deref() {
            None | Some([]) => (true, false),
            Some(families) => {
                (families.iter().any(|family| family == "IPv4"), families.iter().any(|family| family == "IPv6"))
            }
        }
    }
}

/// `callsign.dev/alias: db, primary`. Read by a fuzz target too.
fn aliases(text: Option<&Text>, notes: &mut Vec<String>) -> Vec<Box<str>> {
    let Some(text) = text else { return Vec::new() };
    let (aliases, problems) = parse_aliases(&text.0);
    notes.extend(problems);
    aliases
}

/// The aliases of an annotation, and what of it is ignored.
pub fn parse_aliases(text: &str) -> (Vec<Box<str>>, Vec<String>) {
    let resources: Vec<&str> = text.split(',').map(str::trim).filter(|resource| !resource.is_empty()).collect();
    if resources.is_empty() {
        return (Vec::new(), vec!["callsign.dev/alias is ignored: it names no alias".to_owned()]);
    }
    if resources.len() > MAX_ALIASES {
        let error =
            format!("callsign.dev/alias is ignored: it has {} names, at most {MAX_ALIASES} are taken", resources.len());
        return (Vec::new(), vec![error]);
    }
    let (mut aliases, mut problems) = (Vec::new(), Vec::new());
    for resource in resources {
        match label("alias", resource) {
            Ok(alias) if aliases.contains(&alias) => {}
            Ok(alias) => aliases.push(alias),
            Err(error) => problems.push(format!("callsign.dev/alias: {error}; it is ignored")),
        }
    }
    (aliases, problems)
}

fn visible_to(annotations: Option<&Annotations>, notes: &mut Vec<String>) -> Option<VisibleTo> {
    let text = &annotations?.visible_to.as_ref()?.0;
    match parse_visible_to(text) {
        Ok(visible_to) => Some(visible_to),
        Err(error) => {
            notes.push(format!(
                "callsign.dev/visible-to is ignored: {error}; write '*', 'cluster', 'namespace' or a list of namespaces"
            ));
            None
        }
    }
}

/// The value of `callsign.dev/visible-to`.
///
/// # Errors
/// Says which part is no namespace.
pub fn parse_visible_to(text: &str) -> Result<VisibleTo, String> {
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        "*" => Ok(VisibleTo::Everyone),
        "cluster" => Ok(VisibleTo::Cluster),
        "namespace" => Ok(VisibleTo::Namespaces(Vec::new())),
        list => {
            let names = list.split(',').map(|name| label("namespace", name.trim()));
            Ok(VisibleTo::Namespaces(names.collect::<Result<_, _>>()?))
        }
    }
}

impl Object for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let service = meta.labels.as_ref().and_then(|labels| labels.service_name.as_ref());
        let mut fact = SliceFact {
            service: service.filter(|name| !name.0.is_empty()).map(|name| name.0.to_ascii_lowercase().into()),
            ports: ports(&self.ports)?,
            ..SliceFact::default()
        };
        let fqdn = self.address_type.as_deref() == Some("FQDN");
        for endpoint in self.endpoints.iter().flatten().flatten() {
            fact.total += 1;
            // "ready: null" means ready (API documentation of EndpointConditions).
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for listed in endpoint.addresses.iter().flatten() {
                match listed {
                    Listed::Address(address) if !fqdn => {
                        fact.ready.push(EndpointFact { address: *address, name: endpoint.name(parse_options, notes) });
                    }
                    Listed::Text(text) if fqdn => {
                        fact.targets.push(name_from_text(text).map_err(|error| format!("address '{text}': {error}"))?);
                    }
                    Listed::Address(address) => return Err(format!("address '{address}' is no domain name")),
                    Listed::Text(text) => return Err(format!("'{text}' is no IP address")),
                }
            }
        }
        // The order of a list is no fact: sorted, the same endpoints are the same slice.
        fact.ready.sort_unstable();
        fact.ready.dedup();
        Ok(Change::Slice(key, Some(fact)))
    }

    fn gone(key: Key) -> Change {
        Change::Slice(key, None)
    }
}

impl SliceEndpoint {
    /// What the endpoint is called, if not by its address.
    fn name(&self, parse_options: ParseOptions, notes: &mut Vec<String>) -> Option<Box<str>> {
        if let Some(hostname) = self.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
            match label("hostname", hostname) {
                Ok(hostname) => return Some(hostname),
                Err(error) => notes.push(format!("{error}; the endpoint is named by its address")),
            }
        }
        if !parse_options.endpoint_pod_names {
            return None;
        }
        let pod = self.target_ref.as_ref().filter(|target| target.kind == Some(TargetKind::Pod))?.name.as_deref()?;
        // A pod's name may have dots, or be longer than a label.
        label("pod", pod).ok()
    }
}

impl Object for Namespace {
    const KIND: &'static str = "Namespace";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, _: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let name = label("its name", meta.name().ok_or("the object has no name")?)?;
        let fact = NamespaceFact { visible_to: visible_to(meta.annotations.as_ref(), notes) };
        Ok(Change::Namespace(name, Some(fact)))
    }

    fn gone(key: Key) -> Change {
        Change::Namespace(key.name, None)
    }
}

impl Object for Pod {
    const KIND: &'static str = "Pod";
    type Id = PodId;

    fn id(meta: &Meta) -> Option<PodId> {
        Some(PodId::of(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, _: ParseOptions, _: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let pod = PodId::of(&key.namespace, &key.name);
        let status = self.status.as_ref();
        let finished = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        if finished || meta.is_being_deleted() {
            return Ok(Change::Pod(pod, None));
        }
        let mut addresses = Vec::new();
        for status in status.iter() {
            let listed = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
            for text in listed.chain(status.pod_ip.as_deref()).filter(|text| !text.is_empty()) {
                let address = address(text)?;
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        let host_network = self.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        Ok(Change::Pod(pod, Some(PodFact { namespace: key.namespace, addresses, host_network })))
    }

    fn gone(pod: PodId) -> Change {
        Change::Pod(pod, None)
    }
}
