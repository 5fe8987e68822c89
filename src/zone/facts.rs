//! Facts: the state of the cluster according to a source (the Kubernetes API, manifests, a snapshot file), stripped of
//! everything that no answer needs. Names are lower-case labels and addresses are parsed: sources reject invalid input.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The key of a namespaced object. The namespace comes first so that keys sort by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// A label.
    pub namespace: Box<str>,
    /// A label for a Service; any object name for slices and pods.
    pub name: Box<str>,
}

impl Key {
    /// Creates a key from a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in Kubernetes objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// The label of SRV names (RFC 2782), with its length octet.
    pub fn label(self) -> &'static [u8] {
        match self {
            Protocol::Tcp => b"\x04_tcp",
            Protocol::Udp => b"\x04_udp",
            Protocol::Sctp => b"\x05_sctp",
        }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFact {
    /// Empty for an unnamed port.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub number: u16,
    /// Services only: `targetPort`, a number or the name of a port, if it differs from `number`.
    pub target: Option<Box<str>>,
    /// `appProtocol`, if given.
    pub app_protocol: Option<Box<str>>,
}

/// The type of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// `clusterIPs`: at most one per address family.
    Cluster(Vec<IpAddr>),
    /// `clusterIP: None`: the Service resolves to the addresses of its endpoints.
    Headless,
    /// `externalName` in wire format, lower case, root included; `None` if it is an IP literal or an invalid name.
    External(Option<Box<[u8]>>),
}

impl Default for ServiceType {
    /// A Service without an address.
    fn default() -> ServiceType {
        ServiceType::Cluster(Vec::new())
    }
}

/// The callers that may see a Service: `callsign.dev/visible-to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VisibleTo {
    /// `*`: everyone.
    Everyone,
    /// `cluster`: callers whose namespace is known.
    Cluster,
    /// `namespace` or a list: its own namespace and these.
    Namespaces(Vec<Box<str>>),
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFact {
    /// Type of the Service.
    #[serde(rename = "reach")]
    pub service_type: ServiceType,
    /// Ports, in the order of the object.
    pub ports: Vec<PortFact>,
    /// Creation time in seconds since 1970; 0 if unknown.
    pub created: i64,
    /// `callsign.dev/alias`: labels.
    pub aliases: Vec<Box<str>>,
    /// `callsign.dev/default: "true"`.
    pub default: bool,
    /// `callsign.dev/visible-to`; `None` if the namespace's setting applies.
    pub visible_to: Option<VisibleTo>,
    /// `callsign.dev/links`, as written.
    pub links: Option<Box<str>>,
    /// Label `app.kubernetes.io/instance`.
    pub release: Option<Box<str>>,
    /// Label `app.kubernetes.io/name`.
    pub chart: Option<Box<str>>,
    /// Label `service.name: main`.
    pub main: bool,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointFact {
    /// One address; an endpoint with several addresses becomes several facts, as in CoreDNS.
    pub address: IpAddr,
    /// `hostname`, or else the pod's name with `--endpoint-pod-names`; `None` if the endpoint is named by its address.
    pub name: Option<Box<str>>,
}

/// An endpoint that is not ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnreadyFact {
    /// Its first address, as written.
    pub address: Box<str>,
    /// Its pod; empty if it has none.
    pub pod: Box<str>,
    /// Whether its pod is being deleted.
    pub is_terminating: bool,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceFact {
    /// Name of the Service in the same namespace; `None` if the slice has no such label.
    pub service: Option<Box<str>>,
    /// Ready endpoints; no answer needs the others.
    pub ready: Vec<EndpointFact>,
    /// Number of endpoints in the slice, ready or not.
    pub total: u32,
    /// Endpoints that are not ready, for commands; a server has none.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub unready: Box<[UnreadyFact]>,
    /// Ports with a number.
    pub ports: Vec<PortFact>,
    /// Ready endpoints of an `addressType: FQDN` slice: names in wire format.
    pub targets: Vec<Box<[u8]>>,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFact {
    /// `callsign.dev/visible-to`: the default for all Services in it.
    pub visible_to: Option<VisibleTo>,
}

/// The identity of a pod: a keyed hash of its namespace and name. A cluster may have 150,000 pods, and no lookup needs
/// their names. An array of octets needs no alignment padding next to the other fields of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId([u8; 8]);

impl std::fmt::Display for PodId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "pod {:016x}", self.bits())
    }
}

impl PodId {
    /// Returns the identity of a pod within this process. The key is random, so that a user who can name pods cannot
    /// choose a name whose hash equals another pod's.
    pub fn of(namespace: &str, name: &str) -> PodId {
        use std::hash::{BuildHasher, RandomState};
        static KEY: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);
        PodId(KEY.hash_one((namespace, name)).to_ne_bytes())
    }

    /// The hash as a number.
    pub fn bits(self) -> u64 {
        u64::from_ne_bytes(self.0)
    }
}

/// A live pod; finished pods and pods that are being deleted are not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFact {
    /// Its namespace.
    pub namespace: Box<str>,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod shares its node's addresses, which then do not identify a caller.
    pub host_network: bool,
}

/// One change to the facts. `None` deletes the object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A Service.
    Service(Key, Option<Arc<ServiceFact>>),
    /// An EndpointSlice.
    Slice(Key, Option<Arc<SliceFact>>),
    /// A Namespace.
    Namespace(Box<str>, Option<NamespaceFact>),
    /// A Pod.
    Pod(PodId, Option<PodFact>),
}

/// A consistent snapshot of the facts, without pods.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Services.
    pub services: Vec<(Key, Arc<ServiceFact>)>,
    /// EndpointSlices that belong to a Service.
    pub slices: Vec<(Key, Arc<SliceFact>)>,
    /// Namespaces.
    pub namespaces: Vec<(Box<str>, NamespaceFact)>,
}

impl Facts {
    /// Removes the Services and EndpointSlices of all other namespaces.
    pub fn retain_namespace(&mut self, namespace: &str) {
        self.services.retain(|(key, _)| *key.namespace == *namespace);
        self.slices.retain(|(key, _)| *key.namespace == *namespace);
    }
}
