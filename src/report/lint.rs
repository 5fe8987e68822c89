//! Problems of objects as their authors wrote them: what a DNS server skips, but a person wants to know.
//!
//! *Design.* The zone's facts hold only what answers need. A selector, a container's port or a misspelt field is not
//! among them, so this report reads the objects themselves, from manifests or from the API, and retains of each what it
//! compares: a cluster may have 150,000 pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::doctor::{Finding, Severity};
use super::near;
use crate::zone::facts::Key;

/// Longest text that is quoted from an object, in characters.
const MAX_QUOTED: usize = 60;
/// Maximum number of findings about one object.
const MAX_FINDINGS: usize = 20;
/// Kinds that this report knows. A kind that is nearly one of them is misspelt.
const KINDS: [&str; 10] = [
    "Service",
    "EndpointSlice",
    "Namespace",
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
];
/// Types of a Service.
const TYPES: [&str; 4] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
/// Namespaces that every cluster has.
const GIVEN: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const CONTAINER_PORT: [&str; 5] = ["containerPort", "hostIP", "hostPort", "name", "protocol"];
/// Annotations that Callsign reads.
const ANNOTATIONS: [&str; 4] =
    ["callsign.dev/alias", "callsign.dev/default", "callsign.dev/visible-to", "callsign.dev/links"];
const PREFIX: &str = "callsign.dev/";

/// Fields of `v1` Service (Kubernetes API reference, ServiceSpec and ServicePort).
const SERVICE_SPEC: [&str; 20] = [
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
    "type",
];
const SERVICE_PORT: [&str; 6] = ["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"];
/// Fields of `discovery.k8s.io/v1` EndpointSlice.
const SLICE: [&str; 6] = ["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"];
const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

type Labels = BTreeMap<String, String>;

/// A Service, as written.
struct WrittenService {
    place: String,
    selector: Labels,
    ports: Vec<Target>,
    cluster_ips: Vec<String>,
    external_name: Option<String>,
}

/// The target of a Service's port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Number(u16),
    Name(String),
}

/// A pod, or the template of pods.
struct Workload {
    labels: Labels,
    ports: Vec<(Option<String>, u16)>,
}

/// A slice and the Service that it belongs to.
struct WrittenSlice {
    key: Key,
    place: String,
    service: String,
    /// Pods of its endpoints that are not ready.
    unready: Vec<String>,
}

/// Why a pod is not ready, and since when.
pub struct Unready {
    since: Option<String>,
    reason: Option<String>,
}

impl Unready {
    /// Returns why a pod is not ready; `None` if it is.
    pub fn of(pod: &Value) -> Option<Unready> {
        let status = pod.get("status")?;
        let condition = array(status, "conditions").find(|condition| text(condition, "type") == Some("Ready"))?;
        if text(condition, "status") == Some("True") {
            return None;
        }
        let waiting = array(status, "containerStatuses").find_map(|container| {
            container.pointer("/state/waiting/reason").or_else(|| container.pointer("/state/terminated/reason"))
        });
        let reason = waiting.and_then(Value::as_str).or_else(|| text(condition, "reason")).map(quoted);
        Some(Unready { since: text(condition, "lastTransitionTime").map(quoted), reason })
    }

    /// Returns the reason in words: `CrashLoopBackOff since 2026-01-02T03:04:05Z`.
    pub fn text(&self) -> String {
        let since = self.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        format!("{}{since}", self.reason.as_deref().unwrap_or("its readiness probe fails"))
    }
}

/// The objects seen so far, and the findings that concern one of them alone.
#[derive(Default)]
pub struct Lint {
    services: BTreeMap<Key, WrittenService>,
    slices: Vec<WrittenSlice>,
    /// By namespace.
    workloads: HashMap<String, Vec<Workload>>,
    unready: HashMap<(String, String), Unready>,
    /// Names of the Namespaces that are declared.
    namespaces: BTreeSet<String>,
    findings: BTreeSet<Finding>,
    /// Kinds and names of the objects, with the place of each, to find those that are declared twice.
    places: HashMap<(String, Key), String>,
}

fn finding(severity: Severity, code: &'static str, object: &str, what: String, why: &str, fix: String) -> Finding {
    Finding { severity, code, object: object.to_owned(), what, why: why.to_owned(), fix }
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key)?.as_str()
}

fn array<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn labels(value: Option<&Value>) -> Labels {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

impl Lint {
    /// Adds an object. `place` says where it is written, such as `web.yaml:12`; empty for objects of the API.
    pub fn add(&mut self, place: &str, object: &Value) {
        let Some(fields) = object.as_object() else { return };
        let kind = text(object, "kind").unwrap_or_default();
        if kind.ends_with("List") {
            let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
            for item in array(object, "items") {
                match (item_kind, item.get("kind")) {
                    (Some(kind), None) => {
                        let mut item = item.clone();
                        item["kind"] = kind.into();
                        self.add(place, &item);
                    }
                    _ => self.add(place, item),
                }
            }
            return;
        }
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let name = text(metadata, "name").unwrap_or_default().to_owned();
        let namespace = text(metadata, "namespace").filter(|text| !text.is_empty()).unwrap_or("default").to_owned();
        let key = Key::new(&namespace, &name);
        let before = self.findings.len();
        self.kind(place, kind, &key, fields);
        match kind {
            "Service" => self.service(place, key, object),
            "EndpointSlice" => self.slice(place, key, object),
            "Namespace" => self.namespace(place, &name, object),
            "Pod" => self.pod(&key, object),
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
                self.workload(place, &key, object, "/spec/template");
            }
            "CronJob" => self.workload(place, &key, object, "/spec/jobTemplate/spec/template"),
            _ => {}
        }
        while self.findings.len() > before + MAX_FINDINGS {
            self.findings.pop_last();
        }
    }

    /// Where an object is written, in parentheses after a space; empty if that is not known. `name` is
    /// `namespace/name`, or the name of a Namespace.
    pub fn place_of(&self, kind: &str, name: &str) -> String {
        let (namespace, own) = name.split_once('/').unwrap_or(("", name));
        self.places.get(&(kind.to_owned(), Key::new(namespace, own))).map_or_else(String::new, |place| at(place))
    }

    /// Returns all findings.
    pub fn findings(mut self, domains: &[String]) -> (BTreeSet<Finding>, BTreeMap<Key, String>) {
        self.same_addresses();
        self.undeclared_namespaces();
        self.selectors();
        self.external_names(domains);
        let mut causes: BTreeMap<Key, String> = BTreeMap::new();
        for slice in &self.slices {
            let owner = Key::new(&slice.key.namespace, &slice.service);
            if !self.services.contains_key(&owner) {
                self.findings.insert(finding(
                    Severity::Warning,
                    "slice-without-service",
                    &slice.key.to_string(),
                    format!("this EndpointSlice{} belongs to Service {owner}, which does not exist", at(&slice.place)),
                    "its endpoints have no names",
                    "create the Service, correct the label kubernetes.io/service-name, or delete the slice".to_owned(),
                ));
            }
            for pod in &slice.unready {
                let Some(unready) = self.unready.get(&(slice.key.namespace.to_string(), pod.clone())) else { continue };
                causes.entry(owner.clone()).or_insert_with(|| format!("pod {pod}: {}", unready.text()));
            }
        }
        (self.findings, causes)
    }

    fn insert(&mut self, severity: Severity, code: &'static str, object: &str, words: [String; 3]) {
        let [what, why, fix] = words;
        self.findings.insert(finding(severity, code, object, what, &why, fix));
    }

    /// Checks the kind, and that the object is declared only once.
    fn kind(&mut self, place: &str, kind: &str, key: &Key, fields: &Map<String, Value>) {
        let label = if key.name.is_empty() { place.to_owned() } else { key.to_string() };
        let meant = match kind {
            "" if fields.contains_key("metadata") || fields.contains_key("spec") => {
                let written = fields.keys().find(|field| field.eq_ignore_ascii_case("kind"));
                let hint = written.map(|field| format!("write 'kind' instead of '{field}'"));
                let hint = hint.unwrap_or_else(|| "add the kind, such as kind: Service".to_owned());
                let what = format!("this object{} has no kind", at(place));
                self.insert(Severity::Warning, "misspelt-field", &label, [what, IGNORED.to_owned(), hint]);
                return;
            }
            known if KINDS.contains(&known) => None,
            // Jobs are not misspelt Pods.
            other => near::closest(other, KINDS).filter(|meant| other.len() > 4 || other.eq_ignore_ascii_case(meant)),
        };
        if let Some(meant) = meant {
            let what = format!("this object{} has the kind '{}'", at(place), quoted(kind));
            let why = format!("{IGNORED}, since kinds are written exactly");
            self.insert(Severity::Error, "misspelt-field", &label, [what, why, format!("write kind: {meant}")]);
            return;
        }
        if KINDS.contains(&kind) && !key.name.is_empty() {
            let identity = if kind == "Namespace" { Key::new("", &key.name) } else { key.clone() };
            if let Some(first) = self.places.insert((kind.to_owned(), identity), place.to_owned()) {
                let what = format!("this {kind} is declared in {first} and again in {place}");
                let why = "only the last declaration counts, as with kubectl apply".to_owned();
                self.insert(Severity::Error, "declared-twice", &label, [what, why, "remove one of them".to_owned()]);
            }
        }
    }

    /// Checks the names of fields against the API's.
    fn fields(&mut self, place: &str, object: &str, inside: &str, value: Option<&Value>, known: &[&str]) {
        let Some(fields) = value.and_then(Value::as_object) else { return };
        for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
            let meant = near::closest(field, known.iter().copied());
            let hint = meant.map_or_else(|| "remove it".to_owned(), |meant| format!("write '{meant}'"));
            let what = format!("{inside} has an unknown field '{}'{}", quoted(field), at(place));
            // Of a field that is near a known one, a value is lost.
            let severity = if meant.is_some() { Severity::Error } else { Severity::Warning };
            let why = "the field is ignored, by Callsign and by the API".to_owned();
            self.insert(severity, "misspelt-field", object, [what, why, hint]);
        }
    }

    fn annotations(&mut self, place: &str, object: &str, metadata: Option<&Value>) {
        let annotations = metadata.and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
        let misspelt = |name: &&String| {
            let (domain, _) = name.split_once('/').unwrap_or_default();
            let is_ours = near::closest(domain, [PREFIX.trim_end_matches('/')]).is_some();
            is_ours && !ANNOTATIONS.contains(&name.as_str())
        };
        for name in annotations.into_iter().flat_map(Map::keys).filter(misspelt) {
            let list = || format!("the annotations are {}", ANNOTATIONS.join(", "));
            let fix = near::closest(name, ANNOTATIONS).map_or_else(list, |meant| format!("write {meant}"));
            let what = format!("it has an unknown annotation '{}'{}", quoted(name), at(place));
            let words = [what, "the annotation has no effect".to_owned(), fix];
            self.insert(Severity::Error, "misspelt-annotation", object, words);
        }
    }

    /// Checks a label against the API's rule (RFC 1123 section 2.1, in lower case). The name of a Service also begins
    /// with a letter (RFC 1035 section 2.3.1).
    fn name(&mut self, place: &str, what: &str, name: &str, object: &str) {
        let is_of_service = what == "name";
        if name.is_empty() || is_label(name) && !(is_of_service && name.starts_with(|c: char| c.is_ascii_digit())) {
            return;
        }
        let letter = if is_of_service { ", beginning with a letter" } else { "" };
        let what = format!("Kubernetes would refuse the {what} '{}'{}", quoted(name), at(place));
        let why = "an object of this name cannot exist in a cluster".to_owned();
        let fix = format!("use at most 63 lower-case letters, digits and '-'{letter}");
        self.insert(Severity::Error, "invalid-name", object, [what, why, fix]);
    }

    fn service(&mut self, place: &str, key: Key, object: &Value) {
        let label = if key.name.is_empty() { place.to_owned() } else { key.to_string() };
        let (metadata, spec) = (object.get("metadata"), object.get("spec"));
        self.annotations(place, &label, metadata);
        self.fields(place, &label, "it", Some(object), &OBJECT);
        self.fields(place, &label, "metadata", metadata, &METADATA);
        self.fields(place, &label, "spec", spec, &SERVICE_SPEC);
        self.name(place, "name", &key.name, &label);
        self.name(place, "namespace", &key.namespace, &label);
        let empty = Value::Null;
        let spec = spec.unwrap_or(&empty);
        let selector = spec.get("selector").and_then(Value::as_object);
        for (field, _) in selector.into_iter().flatten().filter(|(_, value)| !value.is_string()) {
            let what = format!("its selector has '{}', which is not a label with a text{}", quoted(field), at(place));
            let why = "Kubernetes would refuse it: unlike a Deployment's, it is a plain map of labels".to_owned();
            let fix = "write the labels directly below selector, with quotes around numbers".to_owned();
            self.insert(Severity::Error, "invalid-selector", &label, [what, why, fix]);
        }
        if let Some(unknown) = text(spec, "type").filter(|kind| !TYPES.contains(kind)) {
            let meant = near::closest(unknown, TYPES).map(|meant| format!("write {meant}"));
            let what = format!("its type '{}' does not exist{}", quoted(unknown), at(place));
            let fix = meant.unwrap_or_else(|| format!("the types are {}", TYPES.join(", ")));
            let words = [what, "Kubernetes would refuse it".to_owned(), fix];
            self.insert(Severity::Error, "misspelt-field", &label, words);
        }
        let names: Vec<&str> = array(spec, "ports").map(|port| text(port, "name").unwrap_or_default()).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        if names.len() > 1 && (distinct.contains("") || distinct.len() < names.len()) {
            let what = format!("its {} ports do not all have a name of their own{}", names.len(), at(place));
            let why = "Kubernetes would refuse it, and SRV names could not tell them apart".to_owned();
            self.insert(Severity::Error, "ports-without-names", &label, [what, why, "name each port".to_owned()]);
        }
        let mut ports = Vec::new();
        for port in array(spec, "ports") {
            self.fields(place, &label, "a port", Some(port), &SERVICE_PORT);
            if let Some(name) = text(port, "name") {
                self.name(place, "port name", name, &label);
            }
            ports.extend(target(port));
        }
        let single = text(spec, "clusterIP").map(str::to_owned);
        let several = array(spec, "clusterIPs").filter_map(|value| value.as_str().map(str::to_owned));
        let mut cluster_ips: Vec<String> = single.into_iter().chain(several).collect();
        cluster_ips.retain(|address| !address.is_empty() && address != "None");
        cluster_ips.sort();
        cluster_ips.dedup();
        let is_external = text(spec, "type") == Some("ExternalName");
        let external_name = text(spec, "externalName").filter(|_| is_external).map(str::to_owned);
        let selector = if is_external { Labels::new() } else { labels(spec.get("selector")) };
        let written = WrittenService { place: place.to_owned(), selector, ports, cluster_ips, external_name };
        self.services.insert(key, written);
    }

    fn slice(&mut self, place: &str, key: Key, object: &Value) {
        let label = key.to_string();
        self.fields(place, &label, "it", Some(object), &SLICE);
        self.fields(place, &label, "metadata", object.get("metadata"), &METADATA);
        let service = object.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str);
        let is_ready =
            |endpoint: &&Value| endpoint.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false);
        let unready = array(object, "endpoints").filter(|endpoint| !is_ready(endpoint));
        let unready = unready.filter_map(|endpoint| Some(endpoint.pointer("/targetRef/name")?.as_str()?.to_owned()));
        let Some(service) = service.map(str::to_owned) else { return };
        self.slices.push(WrittenSlice { key, place: place.to_owned(), service, unready: unready.collect() });
    }

    fn namespace(&mut self, place: &str, name: &str, object: &Value) {
        self.namespaces.insert(name.to_owned());
        self.annotations(place, name, object.get("metadata"));
        let label = if name.is_empty() { place } else { name };
        self.fields(place, label, "metadata", object.get("metadata"), &METADATA);
        self.name(place, "namespace", name, name);
    }

    fn pod(&mut self, key: &Key, object: &Value) {
        // A finished pod is behind no Service.
        if matches!(object.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed")) {
            return;
        }
        self.template(&key.namespace, Some(object));
        if let Some(unready) = Unready::of(object) {
            self.unready.insert((key.namespace.to_string(), key.name.to_string()), unready);
        }
    }

    fn workload(&mut self, place: &str, key: &Key, object: &Value, template: &str) {
        let (label, template) = (key.to_string(), object.pointer(template));
        self.fields(place, &label, "it", Some(object), &OBJECT);
        self.fields(place, &label, "metadata", object.get("metadata"), &METADATA);
        let empty = Value::Null;
        let spec = template.and_then(|template| template.get("spec")).unwrap_or(&empty);
        for container in array(spec, "containers").chain(array(spec, "initContainers")) {
            let fields = container.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
            let odd = fields.filter(|field| *field != "ports" && near::closest(field, ["ports"]).is_some()).map(quoted);
            for field in odd.collect::<Vec<_>>() {
                let what = format!("a container has an unknown field '{field}'{}", at(place));
                let words = [what, "the field is ignored".to_owned(), "write 'ports'".to_owned()];
                self.insert(Severity::Error, "misspelt-field", &label, words);
            }
            for port in array(container, "ports") {
                self.fields(place, &label, "a container's port", Some(port), &CONTAINER_PORT);
            }
        }
        self.template(&key.namespace, template);
    }

    /// Checks that manifests that declare Namespaces declare those of all Services.
    fn undeclared_namespaces(&mut self) {
        let services = self.services.iter().filter(|(_, service)| !service.place.is_empty());
        let used: BTreeMap<&str, String> =
            services.map(|(key, service)| (&*key.namespace, at(&service.place))).collect();
        let mut found = Vec::new();
        for (namespace, place) in used {
            if self.namespaces.is_empty() || self.namespaces.contains(namespace) || GIVEN.contains(&namespace) {
                continue;
            }
            let fix = match near::closest(namespace, self.namespaces.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "declare the Namespace too, if the cluster does not have it".to_owned(),
            };
            found.push((namespace.to_owned(), format!("Services are in it, but no manifest declares it{place}"), fix));
        }
        for (namespace, what, fix) in found {
            let why = "kubectl apply fails if the namespace does not exist".to_owned();
            self.insert(Severity::Warning, "undeclared-namespace", &namespace, [what, why, fix]);
        }
    }

    fn template(&mut self, namespace: &str, template: Option<&Value>) {
        let Some(template) = template else { return };
        let empty = Value::Null;
        let spec = template.get("spec").unwrap_or(&empty);
        let containers = array(spec, "containers").chain(array(spec, "initContainers"));
        let ports = containers.flat_map(|container| array(container, "ports")).filter_map(|port| {
            let number = port.get("containerPort")?.as_u64().and_then(|number| u16::try_from(number).ok())?;
            Some((text(port, "name").map(str::to_owned), number))
        });
        let labels = labels(template.pointer("/metadata/labels"));
        let workload = Workload { labels, ports: ports.collect() };
        self.workloads.entry(namespace.to_owned()).or_default().push(workload);
    }

    fn same_addresses(&mut self) {
        let mut owners: BTreeMap<&str, Vec<&Key>> = BTreeMap::new();
        for (key, service) in &self.services {
            for address in &service.cluster_ips {
                owners.entry(address).or_default().push(key);
            }
        }
        let shared: Vec<(String, String)> = owners
            .into_iter()
            .filter(|(_, owners)| owners.len() > 1)
            .map(|(address, owners)| {
                let owners: Vec<String> = owners.iter().take(5).map(ToString::to_string).collect();
                (address.to_owned(), owners.join(", "))
            })
            .collect();
        for (address, owners) in shared {
            let what = format!("they have the same clusterIP {address}");
            let why = "an address belongs to one Service: connections to the others reach the wrong one".to_owned();
            let fix = "give each its own clusterIP, or none, so that the cluster assigns one".to_owned();
            self.insert(Severity::Error, "same-cluster-ip", &owners, [what, why, fix]);
        }
    }

    /// Checks selectors and target ports against pods and templates. A source without any knows only Services.
    fn selectors(&mut self) {
        if self.workloads.is_empty() {
            return;
        }
        let mut found = Vec::new();
        for (key, service) in self.services.iter().filter(|(_, service)| !service.selector.is_empty()) {
            let workloads = self.workloads.get(&*key.namespace).map(Vec::as_slice).unwrap_or_default();
            let selects = |workload: &&Workload| {
                service.selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value))
            };
            let selected: Vec<&Workload> = workloads.iter().filter(selects).collect();
            let selector: Vec<String> =
                service.selector.iter().map(|(label, value)| format!("{label}={value}")).collect();
            let selector = quoted(&selector.join(","));
            if selected.is_empty() {
                let what = format!("its selector {selector} matches no pod in its namespace{}", at(&service.place));
                let why = "the Service has no endpoints: nothing accepts connections".to_owned();
                let fix = match nearest_labels(&service.selector, workloads) {
                    Some(labels) => format!("did you mean {labels}?"),
                    None => "compare it with the labels of the pods' template".to_owned(),
                };
                found.push((Severity::Error, "selector-matches-nothing", key.to_string(), [what, why, fix]));
                continue;
            }
            let ports: Vec<&(Option<String>, u16)> = selected.iter().flat_map(|workload| &workload.ports).collect();
            for target in &service.ports {
                let (severity, is_there) = match target {
                    // Containers need not list the ports that they listen on.
                    Target::Number(wanted) => {
                        (Severity::Warning, ports.is_empty() || ports.iter().any(|(_, number)| number == wanted))
                    }
                    Target::Name(wanted) => {
                        (Severity::Error, ports.iter().any(|(name, _)| name.as_deref() == Some(wanted)))
                    }
                };
                if is_there {
                    continue;
                }
                let listed: BTreeSet<String> = ports
                    .iter()
                    .map(|(name, number)| {
                        name.as_ref().map_or_else(|| number.to_string(), |name| format!("{name} ({number})"))
                    })
                    .collect();
                let listed: Vec<String> = listed.into_iter().take(5).collect();
                let wanted = match target {
                    Target::Number(number) => number.to_string(),
                    Target::Name(name) => quoted(name),
                };
                let what = format!("its targetPort {wanted} is not a port of the selected pods{}", at(&service.place));
                let why = match severity {
                    Severity::Error => "the port has no endpoints, and SRV queries for it no records",
                    Severity::Warning => "connections are refused, unless the container listens on it nevertheless",
                };
                let fix = match listed.as_slice() {
                    [] => format!("name a containerPort {wanted}"),
                    listed => format!("the containers have {}", listed.join(", ")),
                };
                found.push((severity, "target-port-missing", key.to_string(), [what, why.to_owned(), fix]));
            }
        }
        for (severity, code, object, words) in found {
            self.insert(severity, code, &object, words);
        }
    }

    /// Checks that externalNames in the cluster exist.
    fn external_names(&mut self, domains: &[String]) {
        let mut found = Vec::new();
        for (key, service) in &self.services {
            let Some(target) = &service.external_name else { continue };
            let target = target.trim_end_matches('.').to_ascii_lowercase();
            let inside = domains.iter().find_map(|domain| target.strip_suffix(domain.as_str())?.strip_suffix(".svc."));
            let Some((name, namespace)) = inside.and_then(|inside| inside.rsplit_once('.')) else { continue };
            // An endpoint of a headless Service has one label more.
            let name = name.rsplit('.').next().unwrap_or(name);
            if self.services.contains_key(&Key::new(namespace, name)) {
                continue;
            }
            let names = self.services.keys().filter(|other| *other.namespace == *namespace).map(|other| &*other.name);
            let fix = match near::closest(name, names) {
                Some(meant) => format!("did you mean {meant}.{namespace}?"),
                None => "create that Service, or correct externalName".to_owned(),
            };
            let what =
                format!("its externalName {} does not exist in the cluster{}", quoted(&target), at(&service.place));
            found.push((key.to_string(), [what, "its name leads nowhere: NXDOMAIN".to_owned(), fix]));
        }
        for (object, words) in found {
            self.insert(Severity::Error, "external-name-missing", &object, words);
        }
    }
}

const IGNORED: &str = "the object is ignored";

/// Says where an object is written, if that is known.
fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" ({place})") }
}

/// Whether the API accepts a label of a name (RFC 1123 section 2.1, in lower case).
fn is_label(text: &str) -> bool {
    let is_plain = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    is_plain && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-')
}

/// Returns the target of a port: its `targetPort`, else the port itself.
fn target(port: &Value) -> Option<Target> {
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    match port.get("targetPort") {
        Some(Value::String(name)) => match name.parse() {
            Ok(number) => Some(Target::Number(number)),
            Err(_) => Some(Target::Name(name.clone())),
        },
        Some(value) => number(value).map(Target::Number),
        None => port.get("port").and_then(number).map(Target::Number),
    }
}

/// Returns the labels that a selector nearly matches.
fn nearest_labels(selector: &Labels, workloads: &[Workload]) -> Option<String> {
    let (label, value) = selector.iter().next().filter(|_| selector.len() == 1)?;
    let values = workloads.iter().filter_map(|workload| workload.labels.get(label)).map(String::as_str);
    if let Some(meant) = near::closest(value, values) {
        return Some(format!("{label}={meant}"));
    }
    let names = workloads.iter().flat_map(|workload| &workload.labels).filter(|(_, other)| *other == value);
    names.map(|(name, _)| format!("{name}={value}")).next()
}
