//! Builds the entry of one Service from its fact and its EndpointSlices.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::wire::{label_of, name_from_text};
use crate::zone::facts::{PortFact, ServiceFact, ServiceType, SliceFact};
use crate::zone::names::ServiceName;
use crate::zone::service::{Endpoint, Endpoints, Kind, Port, Service, SrvList};
use crate::zone::{Rrset, Visibility, address_of, bits};

/// Converts ports for lookups: duplicates are dropped, and ports that repeat a number are marked.
fn ports_of(facts: &[PortFact]) -> Box<[Port]> {
    distinct(facts.iter().map(|fact| {
        let label = match fact.name.is_empty() {
            true => Box::default(),
            false => label_of(&format!("_{}", fact.name)).unwrap_or_default(),
        };
        Port { label, protocol: fact.protocol, number: fact.number, repeats: false }
    }))
}

/// Drops duplicates, and marks ports that repeat a number.
fn distinct(ports: impl Iterator<Item = Port>) -> Box<[Port]> {
    let (mut seen, mut numbers) = (HashSet::new(), HashSet::new());
    let ports = ports.map(|port| Port { repeats: false, ..port });
    let ports = ports.filter(|port| seen.insert((port.number, port.label.clone(), port.protocol)));
    ports.map(|port| Port { repeats: !numbers.insert(port.number), ..port }).collect()
}

/// The port lists of a Service's endpoints, each once.
#[derive(Default)]
struct Groups {
    lists: Vec<Box<[Port]>>,
    indices: HashMap<Box<[Port]>, u16>,
    /// Ports in the lists that were joined.
    joined: usize,
}

/// Maximum number of ports in the joined lists of a Service. Names that many slices share have the ports of one of them
/// beyond that.
const MAX_JOINED: usize = 20_000;

impl Groups {
    /// Returns the index of a list. Beyond 65,535 lists, which no cluster has, it is that of a missing one.
    fn index(&mut self, ports: Box<[Port]>) -> u16 {
        if let Some(index) = self.indices.get(&ports) {
            return *index;
        }
        let Ok(index) = u16::try_from(self.lists.len()) else { return u16::MAX };
        self.lists.push(ports.clone());
        self.indices.insert(ports, index);
        index
    }

    /// Returns the index of the list that joins these.
    fn joined(&mut self, indices: &[u16]) -> u16 {
        match indices {
            [only] => *only,
            [first, ..] if self.joined > MAX_JOINED => *first,
            several => {
                let lists = several.iter().filter_map(|index| self.lists.get(usize::from(*index)));
                let ports = distinct(lists.flat_map(|list| list.iter().cloned()));
                self.joined += ports.len();
                self.index(ports)
            }
        }
    }
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
            service.endpoints = endpoints(slices, false);
        }
        ServiceType::Headless => {
            service.endpoints = endpoints(slices.clone(), true);
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

/// Collects the endpoints of all slices, and their SRV records if the Service is headless.
fn endpoints<'s>(slices: impl Iterator<Item = &'s Arc<SliceFact>>, headless: bool) -> Endpoints {
    let mut groups = Groups::default();
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices.filter(|slice| !slice.ready.is_empty()) {
        let group = groups.index(ports_of(&slice.ports));
        all.extend(slice.ready.iter().map(|endpoint| Endpoint {
            address: endpoint.address,
            group,
            named_group: group,
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
    let (mut targets, mut named) = (Vec::new(), Vec::new());
    for run in plain.chunk_by(same_name).chain(labelled.chunk_by(same_name)) {
        let mut indices: Vec<u16> = run.iter().map(|index| all[*index as usize].group).collect();
        indices.sort_unstable();
        indices.dedup();
        let group = groups.joined(&indices);
        if indices.len() > 1 {
            named.extend(run.iter().map(|index| (*index, group)));
        }
        if headless {
            targets.push((group, run[0]));
        }
    }
    for (index, group) in named {
        all[index as usize].named_group = group;
    }
    targets.sort_by_key(|(group, _)| *group);
    let runs: Vec<(u16, u32)> = targets.chunk_by(|a, b| a.0 == b.0).map(|run| (run[0].0, run.len() as u32)).collect();
    let (srv, srv_by_port) = SrvList::of_groups(&groups.lists, &runs);
    Endpoints {
        all: all.into(),
        labelled: labelled.into(),
        targets: targets.into_iter().map(|(_, endpoint)| endpoint).collect(),
        groups: groups.lists.into(),
        srv,
        srv_by_port,
    }
}

/// Converts an ExternalName to wire format. Returns `None` for IP literals and invalid names.
pub fn external_name(text: &str) -> Option<Box<[u8]>> {
    let literal = text.trim_end_matches('.').parse::<IpAddr>().is_ok();
    name_from_text(text).ok().filter(|wire| !literal && wire.len() > 1)
}
