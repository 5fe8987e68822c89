//! The memory that the objects of one namespace may take, so that one tenant cannot end the others.

use std::collections::HashMap;

use crate::zone::Builder;
use crate::zone::facts::{Change, PortFact, ServiceFact, ServiceType, SliceFact, VisibleTo};

/// Octets that every object takes, for its key and the structures around it.
const OBJECT: usize = 300;
/// Octets that a ready address takes: its fact, its endpoint, and its place in the reverse names.
const ADDRESS: usize = 160;
/// Octets that a port takes, besides its texts.
const PORT: usize = 120;
/// Octets that an alias takes.
const ALIAS: usize = 120;
/// Octets that a namespace in a list takes, with the reverse names that its callers see.
const ENTRY: usize = 800;

/// Estimated octets of each namespace.
pub(super) struct NamespaceBudget {
    most: usize,
    used: HashMap<Box<str>, usize>,
}

/// What a change would take if it were applied.
pub(super) struct OverBudget {
    /// Octets of the object.
    pub(super) size: usize,
    /// Octets that its namespace takes already.
    pub(super) used: usize,
}

impl NamespaceBudget {
    pub(super) fn new(most: usize) -> NamespaceBudget {
        NamespaceBudget { most, used: HashMap::new() }
    }

    /// Counts a change that is about to be applied.
    ///
    /// # Errors
    /// It would take its namespace over the budget. It then has to be replaced by the object's removal.
    pub(super) fn admit(&mut self, builder: &Builder, change: &Change) -> Result<(), OverBudget> {
        let (namespace, before, size) = match change {
            Change::Service(key, fact) => (
                &key.namespace,
                builder.service_fact(key).map_or(0, size_of_service),
                fact.as_deref().map_or(0, size_of_service),
            ),
            Change::Slice(key, fact) => (
                &key.namespace,
                builder.slice_fact(key).map_or(0, size_of_slice),
                fact.as_deref().map_or(0, size_of_slice),
            ),
            // A namespace is one object, which is bounded; a pod is an address.
            Change::Namespace(..) | Change::Pod(..) => return Ok(()),
        };
        let used = self.used.get(namespace).copied().unwrap_or(0).saturating_sub(before);
        let is_over = size > 0 && used + size > self.most;
        let now = if is_over { used } else { used + size };
        match now {
            0 => self.used.remove(namespace),
            now => self.used.insert(namespace.clone(), now),
        };
        if is_over { Err(OverBudget { size, used }) } else { Ok(()) }
    }
}

/// The octets that a Service takes in the facts and the table together, as an estimate.
fn size_of_service(fact: &ServiceFact) -> usize {
    let addresses = match &fact.service_type {
        ServiceType::Cluster(addresses) => addresses.len() * ADDRESS,
        ServiceType::Headless => 0,
        ServiceType::External(target) => 2 * target.as_ref().map_or(0, |target| target.len()),
    };
    let listed = match &fact.visible_to {
        Some(VisibleTo::Namespaces(names)) => names.len() * ENTRY,
        _ => 0,
    };
    let links = fact.links.as_ref().map_or(0, |links| links.len());
    OBJECT + addresses + listed + links + fact.aliases.len() * ALIAS + size_of_ports(&fact.ports)
}

/// The same for an EndpointSlice.
fn size_of_slice(fact: &SliceFact) -> usize {
    // A slice of no Service is not held.
    if fact.service.is_none() {
        return 0;
    }
    let names = fact.ready.iter().filter_map(|endpoint| endpoint.name.as_ref());
    let names: usize = names.map(|name| 2 * name.len()).sum();
    let targets: usize = fact.targets.iter().map(|target| 2 * target.len()).sum();
    OBJECT + fact.ready.len() * ADDRESS + names + targets + size_of_ports(&fact.ports)
}

fn size_of_ports(ports: &[PortFact]) -> usize {
    let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
    ports.iter().map(|port| PORT + 2 * (port.name.len() + text(&port.target) + text(&port.app_protocol))).sum()
}
