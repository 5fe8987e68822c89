//! Objects of the Kubernetes API, stripped while parsing: these types hold only the fields that answers need, and the
//! parser skips the rest. Before adding a field, consider its cost times 100,000 objects.

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

/// Largest number of aliases of one Service. A longer list is taken for a mistake and ignored.
pub const MAX_ALIASES: usize = 64;

/// An invalid object, or an invalid part of one such as an annotation. Only that object or part is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {name}: {reason}")]
pub struct Rejected {
    /// Kind of the object.
    pub kind: &'static str,
    /// `namespace/name`, or as much of it as the object has.
    pub name: String,
    /// The problem.
    pub reason: String,
}

/// Options for parsing objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ParseOptions {
    /// `--endpoint-pod-names`.
    pub endpoint_pod_names: bool,
}

/// Text that people tend to leave unquoted in YAML: `true` and `80` become the text as written.
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
    /// Opaque; used by the watch and the self-check.
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
    /// The name, unless it is missing or empty.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.is_empty())
    }

    /// The namespace; `default` if the object does not state one, as in kubectl.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    /// Whether the object is being deleted: it has a deletion timestamp.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Whether this is the bookmark that ends a streamed list (Kubernetes API concepts, "Streaming lists").
    pub fn ends_initial_events(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.and_then(|annotations| annotations.initial_events_end.as_ref()).is_some_and(|end| end.0 == "true")
    }

    /// When the cause of the last change happened: `endpoints.kubernetes.io/last-change-trigger-time`.
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
    addresses: Option<Vec<EndpointAddress>>,
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

/// An endpoint's address. It is parsed in place, because slices are full of them; other text is stored as it is.
#[derive(Debug)]
enum EndpointAddress {
    Address(IpAddr),
    Text(Box<str>),
}

impl<'de> Deserialize<'de> for EndpointAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointAddress, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = EndpointAddress;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an address")
            }
            fn visit_str<E>(self, value: &str) -> Result<EndpointAddress, E> {
                Ok(value.parse().map_or_else(|_| EndpointAddress::Text(value.into()), EndpointAddress::Address))
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

/// A kind of object that facts are derived from.
pub trait Object: serde::de::DeserializeOwned + Send + 'static {
    /// The `kind`, as in manifests and messages.
    const KIND: &'static str;

    /// The identity of an object within its kind.
    type Id: Clone + Eq + std::hash::Hash + std::fmt::Display + Send + Sync;

    /// Returns the identity of the object; `None` if it has no name.
    fn id(meta: &Meta) -> Option<Self::Id>;

    /// The object's metadata.
    fn metadata(&self) -> Option<&Meta>;

    /// Returns the change that the object's presence implies; adds a note for each invalid part that is ignored.
    ///
    /// # Errors
    /// When the whole object is invalid.
    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String>;

    /// Returns the change that the object's absence implies.
    fn gone(id: Self::Id) -> Change;
}

/// Converts an object to a change and a list of its invalid parts, which are ignored.
///
/// # Errors
/// When the whole object is invalid. The error names the object and the problem.
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
    label("namespace", meta.namespace())?;
    Ok(Key::new(&meta.namespace().to_ascii_lowercase(), name))
}

/// Checks a DNS label (letters, digits, dashes and underscores) and returns it in lower case.
fn label(what: &str, text: &str) -> Result<Box<str>, String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > MAX_LABEL {
        return Err(format!("{what} '{text}' has {} octets; a label has at most {MAX_LABEL}", text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
        Some(odd) => Err(format!("{what} '{text}' contains '{odd}'; a label has letters, digits, '-' and '_' only")),
        None => Ok(text.to_ascii_lowercase().into()),
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an IP address"))
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(format!("'{other}' is not a protocol; use TCP, UDP or SCTP")),
    }
}

fn ports(ports: &Option<Vec<ServicePort>>) -> Result<Vec<PortFact>, String> {
    let mut facts = Vec::new();
    for port in ports.iter().flatten() {
        // A port of a slice may lack a number: it means "all ports" (API documentation of EndpointPort).
        let Some(number) = port.port else { continue };
        let number = u16::try_from(number).map_err(|_| format!("{number} is not a port number"))?;
        let name = port.name.as_deref().unwrap_or_default();
        // In SRV names, the label is the name with a leading underscore: one octet longer.
        let name = if name.is_empty() { Box::default() } else { label("port name", name)? };
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
        let name = label("name", &key.name)?;
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
                notes.push(format!("externalName '{text}' is not a domain name; queries get NXDOMAIN"));
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
                    notes.push(format!("callsign.dev/default '{other}' is ignored; write \"true\" or \"false\""));
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

/// Parses `callsign.dev/alias`, for example `db, primary`.
fn aliases(text: Option<&Text>, notes: &mut Vec<String>) -> Vec<Box<str>> {
    let Some(text) = text else { return Vec::new() };
    let (aliases, problems) = parse_aliases(&text.0);
    notes.extend(problems);
    aliases
}

/// Parses the value of `callsign.dev/alias`; returns the aliases and the problems of ignored parts.
pub fn parse_aliases(text: &str) -> (Vec<Box<str>>, Vec<String>) {
    let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() {
        return (Vec::new(), vec!["callsign.dev/alias is ignored: it is empty".to_owned()]);
    }
    if entries.len() > MAX_ALIASES {
        let error =
            format!("callsign.dev/alias is ignored: it has {} aliases; the limit is {MAX_ALIASES}", entries.len());
        return (Vec::new(), vec![error]);
    }
    let (mut aliases, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        match label("alias", entry) {
            Ok(alias) if aliases.contains(&alias) => {}
            Ok(alias) => aliases.push(alias),
            Err(error) => problems.push(format!("callsign.dev/alias: {error}; this alias is ignored")),
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

/// Parses the value of `callsign.dev/visible-to`.
///
/// # Errors
/// When it is empty, or an entry is not a namespace name. The error names the entry.
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
            // `ready: null` means ready (API documentation of EndpointConditions).
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for listed in endpoint.addresses.iter().flatten() {
                match listed {
                    EndpointAddress::Address(address) if !fqdn => {
                        fact.ready.push(EndpointFact { address: *address, name: endpoint.name(parse_options, notes) });
                    }
                    EndpointAddress::Text(text) if fqdn => {
                        fact.targets.push(name_from_text(text).map_err(|error| format!("address '{text}': {error}"))?);
                    }
                    EndpointAddress::Address(address) => {
                        return Err(format!("address '{address}' is not a domain name"));
                    }
                    EndpointAddress::Text(text) => return Err(format!("address '{text}' is not an IP address")),
                }
            }
        }
        // Order carries no meaning: sort, so that the same endpoints always compare as equal.
        fact.ready.sort_unstable();
        fact.ready.dedup();
        Ok(Change::Slice(key, Some(fact)))
    }

    fn gone(key: Key) -> Change {
        Change::Slice(key, None)
    }
}

impl SliceEndpoint {
    /// Returns the endpoint's label; `None` if its address serves as its name.
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
        // A pod's name may contain dots or exceed the length of a label: such a pod goes by its address.
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
        let name = label("name", meta.name().ok_or("the object has no name")?)?;
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
