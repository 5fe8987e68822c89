//! A name and a caller become an [`Outcome`].
//!
//! There is one resolver, told or silent: the hot path passes [`NoTrace`], which compiles to nothing, and `callsign
//! explain` passes [`Recorded`], which writes down each rule, what it looked for and what it found.

mod full;
mod reverse;
mod short;
mod trace;

use std::net::IpAddr;

pub use trace::{NoTrace, Probes, Recorded, Step, StepResult, Trace};

use crate::wire::Name;
use crate::zone::facts::Protocol;
use crate::zone::{Asker, Endpoint, Label, Service, Zone, dashed};

/// What a name is. Existence decides the rcode, never the type that was asked: [`Outcome`] knows no types.
#[derive(Clone, Copy)]
pub enum Node<'z> {
    /// A name without records of its own: something exists below it (RFC 8020), or it is a namespace.
    Empty,
    /// The cluster domain itself.
    Apex,
    /// `ns.dns.Z`.
    NameServer,
    /// `dns-version.Z`.
    Version,
    /// A Service.
    Service(&'z Service),
    /// `_port._proto` of a Service.
    Port(&'z Service, PortLabels<'z>),
    /// An endpoint of a Service.
    Endpoint(EndpointMatch<'z>),
    /// An address that its own name spells: a pod, or the loopback of `localhost`.
    Address(IpAddr),
    /// `localhost` (RFC 6761 section 6.3).
    Localhost,
    /// An address that has names.
    Reverse(IpAddr),
}

/// The labels of an SRV name.
#[derive(Clone, Copy)]
pub struct PortLabels<'z> {
    /// `_port` with its length octet.
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
    /// The endpoints of `service` that are called `label` (length octet included), if there are any.
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

    /// The endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &'z Endpoint> + use<'z> {
        let all = &self.service.endpoints.all;
        let own = self.own.iter().filter_map(|index| all.get(*index as usize));
        own.chain(self.dashed.iter().filter(|endpoint| endpoint.label.is_none()))
    }
}

/// Where a name lives: decides the SOA of a negative answer, and the zone that metrics count it under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Under a cluster domain.
    Domain {
        /// Which one.
        index: usize,
        /// How many labels of the name stand before it.
        above: usize,
    },
    /// Under `in-addr.arpa` or `ip6.arpa`.
    Reverse {
        /// How many labels of the name stand before the zone that the SOA speaks for.
        above: usize,
    },
    /// A short name, whose answer depends on who asks.
    Short,
}

/// What a name means to a caller.
#[derive(Clone, Copy)]
pub enum Outcome<'z> {
    /// It exists.
    Found(Node<'z>, Space),
    /// It does not: NXDOMAIN.
    Missing(Space),
    /// It is not the cluster's to answer: to be forwarded, or refused where nothing forwards.
    NotOurs,
    /// It could be the cluster's, which has not been learnt yet: SERVFAIL.
    NotReady,
}

/// Resolves a name for a caller. What most questions take, a full name, becomes part of the caller's code.
#[inline(always)]
pub fn resolve<'z, T: Trace>(zone: &'z Zone, asker: &Asker<'z>, name: &'z Name, trace: &mut T) -> Outcome<'z> {
    let search = Search { zone, asker };
    for (index, domain) in zone.settings.domains.iter().enumerate() {
        if let Some(above) = name.below(&domain.wire, domain.labels) {
            return full::resolve(&search, name, Space::Domain { index, above }, above, trace);
        }
    }
    if let Some(outcome) = reverse::resolve(&search, name, trace) {
        return outcome;
    }
    short::resolve(&search, name, trace)
}

/// What every rule needs.
struct Search<'s, 'z> {
    zone: &'z Zone,
    asker: &'s Asker<'z>,
}

impl<'z> Search<'_, 'z> {
    /// The Service `service` in `namespace`, if there is one that the caller may see.
    #[inline(always)]
    fn service<T: Trace>(
        &self,
        rule: &'static str,
        service: Label<'_>,
        namespace: Label<'_>,
        trace: &mut T,
    ) -> Option<&'z Service> {
        trace.probe();
        let found = self.zone.service(service, namespace);
        let seen = match found {
            Some(service) if self.asker.sees(&service.visibility) => Some(service),
            _ => None,
        };
        trace.note(|| {
            Step::service(rule, service.octets, namespace.octets, found.map(|found| &**found), seen.is_some())
        });
        seen.map(|service| &**service)
    }

    /// What lies below a Service: `_port._proto`, an endpoint, or the empty name between.
    fn below<T: Trace>(&self, service: &'z Service, name: &'z Name, labels: usize, trace: &mut T) -> Option<Node<'z>> {
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
        trace.note(|| Step::below(name, labels, service, node.is_some()));
        node
    }
}

fn protocol_of(label: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.label() == label)
}

/// The ports that SRV names of a Service are made of: its own, or those of its endpoints.
fn port_groups(service: &Service) -> impl Iterator<Item = &crate::zone::Port> {
    let (own, groups) = match &service.kind {
        crate::zone::Kind::Cluster(ports) => (&**ports, &[][..]),
        crate::zone::Kind::Headless => (&[][..], &*service.endpoints.groups),
        crate::zone::Kind::ExternalName(_) => (&[][..], &[][..]),
    };
    own.iter().chain(groups.iter().flat_map(|ports| ports.iter()))
}

fn has_named_port(service: &Service, protocol: Protocol) -> bool {
    port_groups(service).any(|port| port.protocol == protocol && !port.label.is_empty())
}

fn has_port(service: &Service, label: &[u8], protocol: Protocol) -> bool {
    port_groups(service).any(|port| port.protocol == protocol && *port.label == *label)
}
