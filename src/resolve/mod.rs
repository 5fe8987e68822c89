//! Resolves a name for a caller to an [`Outcome`].
//!
//! The resolver is generic over its trace. The hot path passes [`NoTrace`], which compiles to nothing. `callsign
//! explain` passes [`Recorded`], which records each rule with its result.

mod full;
mod reverse;
mod short;
mod trace;

use std::net::IpAddr;

pub use trace::{NoTrace, Probes, Recorded, Step, StepResult, Trace};

use crate::wire::Name;
use crate::zone::facts::Protocol;
use crate::zone::{Endpoint, Kind, Label, LazyCaller, Row, Service, Zone, dashed};

/// The object that a name denotes. The rcode depends on the existence of the name and never on the qtype, so resolution
/// does not know the qtype.
#[derive(Clone, Copy)]
pub enum Node<'z> {
    /// An existing name without records: an empty non-terminal (RFC 8020) or a namespace.
    Empty,
    /// The cluster domain itself.
    Apex,
    /// `ns.dns.Z`.
    NameServer,
    /// `dns-version.Z`.
    Version,
    /// A Service.
    Service(&'z Row),
    /// `_port._proto` of a Service.
    Port(&'z Service, PortLabels<'z>),
    /// An endpoint of a Service.
    Endpoint(EndpointMatch<'z>),
    /// An address spelled by the name itself: that of a pod.
    Address(IpAddr),
    /// `localhost` (RFC 6761 section 6.3).
    Localhost,
    /// An address that has reverse records.
    Reverse(IpAddr),
}

/// The labels of an SRV name.
#[derive(Clone, Copy)]
pub struct PortLabels<'z> {
    /// `_port`, including its length octet.
    pub port: &'z [u8],
    /// Transport protocol.
    pub protocol: Protocol,
}

/// The endpoints of a Service that share a name.
#[derive(Clone, Copy)]
pub struct EndpointMatch<'z> {
    /// The Service.
    pub service: &'z Service,
    own: &'z [u32],
    dashed: &'z [Endpoint],
}

impl<'z> EndpointMatch<'z> {
    /// Returns the endpoints of `service` named `label` (including its length octet), if there are any.
    pub fn new(service: &'z Service, label: &[u8]) -> Option<EndpointMatch<'z>> {
        let endpoints = &service.endpoints;
        if endpoints.all.is_empty() {
            return None;
        }
        let own = endpoints.labelled(label);
        let spelled = dashed::parse(label).filter(|address| dashed::Dashed::new(*address).label() == label);
        let dashed = spelled.map_or(&[][..], |address| endpoints.at(address));
        let found = EndpointMatch { service, own, dashed };
        found.iter().next().is_some().then_some(found)
    }

    /// Iterates over the endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &'z Endpoint> + use<'z> {
        let all = &self.service.endpoints.all;
        let own = self.own.iter().filter_map(|index| all.get(*index as usize));
        own.chain(self.unlabelled())
    }

    /// Endpoints without a label come first among those with one address.
    fn unlabelled(&self) -> impl Iterator<Item = &'z Endpoint> + use<'z> {
        self.dashed.iter().take_while(|endpoint| endpoint.label.is_none())
    }

    /// Iterates over the endpoints with addresses of one family.
    pub fn iter_family(&self, v4: bool) -> impl Iterator<Item = &'z Endpoint> + use<'z> {
        let all = &self.service.endpoints.all;
        let at = |index: &u32| all.get(*index as usize);
        // They are sorted by address, and IPv4 comes first.
        let first_v6 = self.own.partition_point(|index| at(index).is_some_and(|endpoint| endpoint.address.is_ipv4()));
        let (first, second) = self.own.split_at(first_v6);
        let own = if v4 { first } else { second }.iter().filter_map(move |index| all.get(*index as usize));
        own.chain(self.unlabelled().filter(move |endpoint| endpoint.address.is_ipv4() == v4))
    }

    /// Whether any of the endpoints has an IPv4 address.
    pub fn has_v4(&self) -> bool {
        self.iter_family(true).next().is_some()
    }

    /// Whether any of the endpoints has an IPv6 address.
    pub fn has_v6(&self) -> bool {
        self.iter_family(false).next().is_some()
    }
}

/// The zone that a name belongs to. It determines the SOA of a negative answer and the `zone` label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Under a cluster domain.
    Domain {
        /// Index into the configured cluster domains.
        index: usize,
        /// Number of labels before the domain.
        above: usize,
    },
    /// Under `in-addr.arpa` or `ip6.arpa`.
    Reverse {
        /// Number of labels before the owner name of the SOA.
        above: usize,
    },
    /// A short name, whose answer depends on the caller.
    Short,
}

/// The result of resolving a name for a caller.
#[derive(Clone, Copy)]
pub enum Outcome<'z> {
    /// The name exists.
    Found(Node<'z>, Space),
    /// The name does not exist: NXDOMAIN.
    Missing(Space),
    /// The name does not belong to the cluster: the query is forwarded, or refused if there are no upstreams.
    NotOurs,
    /// The name may belong to the cluster, but the first sync is not complete: SERVFAIL.
    NotReady,
}

/// Resolves a name for a caller. It is inlined because most queries are for full names, which take the shortest path.
#[inline(always)]
pub fn resolve<'z, T: Trace>(caller: &LazyCaller<'z>, name: &'z Name, trace: T) -> Outcome<'z> {
    let search = Search { caller, name, trace };
    for (index, domain) in caller.zone().settings.domains.iter().enumerate() {
        if let Some(above) = name.below(&domain.wire, domain.labels) {
            return search.full_name(Space::Domain { index, above }, above);
        }
    }
    if let Some(outcome) = search.reverse_name() {
        return outcome;
    }
    search.short_name()
}

/// The resolution of one name: the caller, which refers to the zone; the name; and the trace. Its methods are the
/// rules: for full names in `full.rs`, for reverse names in `reverse.rs`, for short names in `short.rs`. On the hot
/// path the trace has no size, so a `Search` is two words and stays in registers.
#[derive(Clone, Copy)]
struct Search<'s, 'z, T> {
    caller: &'s LazyCaller<'z>,
    name: &'z Name,
    trace: T,
}

impl<'z, T: Trace> Search<'_, 'z, T> {
    #[inline(always)]
    fn zone(self) -> &'z Zone {
        self.caller.zone()
    }

    /// Returns the Service `service` in `namespace` if it exists and is visible to the caller.
    #[inline(always)]
    fn service(self, rule: &'static str, service: Label<'_>, namespace: Label<'_>) -> Option<&'z Row> {
        self.trace.probe();
        let found = self.zone().service(service, namespace);
        let visible = found.filter(|found| self.caller.sees_service(found));
        self.trace.note(|| Step::service(rule, service.octets, namespace.octets, found, visible.is_some()));
        visible
    }

    /// Resolves the first `labels` labels of the name below a Service: `_port._proto`, the empty non-terminal `_proto`, or
    /// an endpoint.
    fn below(self, service: &'z Service, labels: usize) -> Option<Node<'z>> {
        let name = self.name;
        let node = match labels {
            1 => match protocol_of(name.label(0)) {
                Some(protocol) => has_named_port(service, protocol).then_some(Node::Empty),
                None => EndpointMatch::new(service, name.label(0)).map(Node::Endpoint),
            },
            2 => {
                let protocol = protocol_of(name.label(1))?;
                let port = name.label(0);
                has_port(service, port, protocol).then_some(Node::Port(service, PortLabels { port, protocol }))
            }
            _ => None,
        };
        self.trace.note(|| Step::below(name, labels, service, node.is_some()));
        node
    }
}

fn protocol_of(label: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.label() == label)
}

/// Whether a Service has an SRV name for this protocol.
fn has_named_port(service: &Service, protocol: Protocol) -> bool {
    match &service.kind {
        Kind::Cluster(ports) => ports.iter().any(|port| port.protocol == protocol && !port.label.is_empty()),
        Kind::Headless => service.endpoints.has_srv_over(protocol),
        Kind::ExternalName(_) => false,
    }
}

fn has_port(service: &Service, label: &[u8], protocol: Protocol) -> bool {
    match &service.kind {
        Kind::Cluster(ports) => ports.iter().any(|port| port.protocol == protocol && *port.label == *label),
        Kind::Headless => service.endpoints.srv_of(label, protocol).is_some(),
        Kind::ExternalName(_) => false,
    }
}
