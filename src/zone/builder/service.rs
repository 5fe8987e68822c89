//! Builds the entry of one Service from its fact and its EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use crate::wire::{label_of, name_from_text};
use crate::zone::facts::{PortFact, ServiceFact, ServiceType, SliceFact};
use crate::zone::names::ServiceName;
use crate::zone::service::{Endpoint, Endpoints, Kind, Port, Service, Target};
use crate::zone::{Rrset, Visibility, address_of, bits};

/// Converts ports for lookups: duplicates are dropped, and ports that repeat a number are marked.
fn ports_of(facts: &[PortFact]) -> Box<[Port]> {
    let mut ports: Vec<Port> = Vec::with_capacity(facts.len());
    for fact in facts {
        let label = match fact.name.is_empty() {
            true => Box::default(),
            false => label_of(&format!("_{}", fact.name)).unwrap_or_default(),
        };
        let repeats = ports.iter().any(|port| port.number == fact.number);
        let port = Port { label, protocol: fact.protocol, number: fact.number, repeats };
        let twin =
            |other: &Port| other.number == port.number && other.label == port.label && other.protocol == port.protocol;
        if !ports.iter().any(twin) {
            ports.push(port);
        }
    }
    ports.into()
}

/// Merges the ports of several groups into one group.
fn merged(groups: &[Box<[Port]>], indices: &[u16]) -> Box<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for port in indices.iter().flat_map(|index| groups[usize::from(*index)].iter()) {
        let twin =
            |other: &Port| other.number == port.number && other.label == port.label && other.protocol == port.protocol;
        if !ports.iter().any(twin) {
            let repeats = ports.iter().any(|other| other.number == port.number);
            ports.push(Port { repeats, ..port.clone() });
        }
    }
    ports.into()
}

fn group_of(groups: &mut Vec<Box<[Port]>>, ports: Box<[Port]>) -> u16 {
    let index = groups.iter().position(|group| *group == ports).unwrap_or_else(|| {
        groups.push(ports);
        groups.len() - 1
    });
    index as u16
}

/// Builds a Service from its fact and slices. The flag is true if an FQDN slice had to be skipped.
pub(super) fn build_service<'s>(
    name: Arc<ServiceName>,
    visibility: Option<Arc<Visibility>>,
    fact: &ServiceFact,
    slices: impl Iterator<Item = &'s Arc<SliceFact>> + Clone,
    ttl: u32,
) -> (Service, bool) {
    let mut service = Service {
        name,
        visibility,
        kind: Kind::Headless,
        a: Rrset::default(),
        aaaa: Rrset::default(),
        endpoints: Endpoints::default(),
    };
    let mut skipped = false;
    match &fact.service_type {
        ServiceType::External(target) => service.kind = Kind::ExternalName(target.clone()),
        ServiceType::Cluster(addresses) => {
            service.kind = Kind::Cluster(ports_of(&fact.ports));
            (service.a, service.aaaa) = rrsets(addresses.iter().copied(), ttl);
            service.endpoints = endpoints(slices);
        }
        ServiceType::Headless => {
            service.endpoints = endpoints(slices.clone());
            (service.a, service.aaaa) = rrsets(service.endpoints.all.iter().map(|endpoint| endpoint.address), ttl);
            let mut targets: Vec<&Box<[u8]>> = slices.flat_map(|slice| &slice.targets).collect();
            targets.sort_unstable();
            targets.dedup();
            match targets.as_slice() {
                [] => {}
                [only] if service.endpoints.all.is_empty() => service.kind = Kind::ExternalName(Some((*only).clone())),
                _ => skipped = true,
            }
        }
    }
    (service, skipped)
}

fn rrsets(addresses: impl Iterator<Item = IpAddr>, ttl: u32) -> (Rrset, Rrset) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    // IPv4-mapped addresses become A records: no client could use them in an AAAA record.
    for address in addresses.map(|address| address_of(bits(address))) {
        match address {
            IpAddr::V4(address) => v4.push(address),
            IpAddr::V6(address) => v6.push(address),
        }
    }
    v4.sort_unstable();
    v4.dedup();
    v6.sort_unstable();
    v6.dedup();
    (Rrset::a(&v4, ttl), Rrset::aaaa(&v6, ttl))
}

fn endpoints<'s>(slices: impl Iterator<Item = &'s Arc<SliceFact>>) -> Endpoints {
    let mut groups: Vec<Box<[Port]>> = Vec::new();
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices.filter(|slice| !slice.ready.is_empty()) {
        let group = group_of(&mut groups, ports_of(&slice.ports));
        all.extend(slice.ready.iter().map(|endpoint| Endpoint {
            address: endpoint.address,
            group,
            label: endpoint.name.as_deref().and_then(|name| label_of(name).ok()),
        }));
    }
    all.sort_unstable_by(|a, b| (a.address, &a.label, a.group).cmp(&(b.address, &b.label, b.group)));
    all.dedup();
    let (mut labelled, plain): (Vec<u32>, Vec<u32>) =
        (0..all.len() as u32).partition(|index| all[*index as usize].label.is_some());
    labelled.sort_by(|a, b| all[*a as usize].label.cmp(&all[*b as usize].label));
    let same_name = |a: &u32, b: &u32| {
        let (a, b) = (&all[*a as usize], &all[*b as usize]);
        a.label == b.label && (a.label.is_some() || a.address == b.address)
    };
    let mut targets = Vec::new();
    for run in plain.chunk_by(same_name).chain(labelled.chunk_by(same_name)) {
        let mut indices: Vec<u16> = run.iter().map(|index| all[*index as usize].group).collect();
        indices.sort_unstable();
        indices.dedup();
        let group = match indices.as_slice() {
            [only] => *only,
            several => {
                let ports = merged(&groups, several);
                group_of(&mut groups, ports)
            }
        };
        targets.push(Target { endpoint: run[0], group });
    }
    Endpoints { all: all.into(), labelled: labelled.into(), targets: targets.into(), groups: groups.into() }
}

/// Converts an ExternalName to wire format. Returns `None` for IP literals and invalid names.
pub fn external_name(text: &str) -> Option<Box<[u8]>> {
    let literal = text.trim_end_matches('.').parse::<IpAddr>().is_ok();
    name_from_text(text).ok().filter(|wire| !literal && wire.len() > 1)
}
