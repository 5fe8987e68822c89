//! Builds tables from facts. A change rebuilds only what it affects; the rest is shared with the previous table.

mod rebuild;
mod service;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::facts::{Change, Facts, Key, NamespaceFact, PodFact, PodId, ServiceFact, SliceFact, VisibleTo};
use super::persistent_map::{PersistentMap, Slot};
use super::service::Service;
use super::{Claim, NamespaceName, Settings, Soa, Zone, bits, hash};
use crate::wire::label_of;
use rebuild::alt_names_of;

pub use service::external_name;

/// A Service's facts, and the entry built from them.
#[derive(Default)]
struct ServiceState {
    fact: Option<Arc<ServiceFact>>,
    slices: BTreeMap<Box<str>, Arc<SliceFact>>,
    built: Option<Arc<Service>>,
}

/// A namespace's fact and the Services in it.
#[derive(Default)]
struct NamespaceState {
    name: Option<NamespaceName>,
    fact: Option<NamespaceFact>,
    services: BTreeSet<Box<str>>,
}

/// An address in the last report about a pod, as the hash under which its claim is stored. It is needed to withdraw the
/// claim when the pod changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodAddress {
    pod: PodId,
    address: u64,
}

impl Slot for PodAddress {
    fn hash(&self) -> u64 {
        self.pod.bits()
    }
}

/// The cost of building a table. It must scale with the change, not with the size of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishCost {
    /// Services, alternative names, namespaces and reverse names that were rebuilt.
    pub rebuilt: usize,
    /// Bytes copied along the paths to them.
    pub copied: usize,
}

/// A problem in the facts that an operator should know about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Diagnostic {
    /// Two Services claim the same alias. The older one gets it; between equally old ones, the name decides.
    AliasClaimed {
        /// The alias.
        alias: String,
        /// The Service that gets it.
        granted_to: String,
        /// The Service that does not.
        refused: String,
    },
    /// Several Services claim to be the default for one kind of database, so none is used.
    AmbiguousDefault {
        /// The kind.
        kind: String,
        /// The Services.
        services: Vec<String>,
    },
    /// A Service has the alias as its name and takes precedence.
    AliasShadowed {
        /// The alias, which is also the name of a Service.
        alias: String,
        /// The Service that claims it.
        claimed_by: String,
    },
    /// The name of a Namespace is also a public top-level domain.
    TopLevelDomain {
        /// The Namespace.
        namespace: String,
    },
    /// `addressType: FQDN` slices list several endpoints, or appear beside addresses; they are skipped.
    FqdnSkipped {
        /// The Service.
        service: String,
    },
}

impl Diagnostic {
    /// Returns the namespace of the object that causes the problem; empty if it is not a part of its name.
    pub fn namespace(&self) -> &str {
        let name = match self {
            Diagnostic::AliasClaimed { refused, .. } => refused,
            Diagnostic::AmbiguousDefault { kind, .. } => return kind.split('/').next().unwrap_or_default(),
            Diagnostic::AliasShadowed { claimed_by, .. } => claimed_by,
            Diagnostic::TopLevelDomain { namespace } => return namespace,
            Diagnostic::FqdnSkipped { service } => return service.split('/').next().unwrap_or_default(),
        };
        name.split('.').nth(1).unwrap_or_default()
    }
}

/// Stores all facts and builds zones from them.
pub struct Builder {
    zone: Zone,
    services: HashMap<Key, ServiceState>,
    slices: HashMap<Key, Box<str>>,
    namespaces: HashMap<Box<str>, NamespaceState>,
    alt_names: HashMap<Key, BTreeSet<Box<str>>>,
    dirty_services: HashSet<Key>,
    dirty_alt_names: HashSet<Key>,
    dirty_namespaces: HashSet<Box<str>>,
    pods: PersistentMap<PodAddress>,
    /// Whether the source reports Namespaces, so that a missing one is not known yet.
    expects_namespaces: bool,
    changed: bool,
    work: PublishCost,
    diagnostics: Vec<Diagnostic>,
}

impl Builder {
    /// Returns a builder without facts.
    pub fn new(settings: Arc<Settings>) -> Builder {
        Builder {
            zone: Zone::unsynced(settings),
            services: HashMap::new(),
            slices: HashMap::new(),
            namespaces: HashMap::new(),
            alt_names: HashMap::new(),
            dirty_services: HashSet::new(),
            dirty_alt_names: HashSet::new(),
            dirty_namespaces: HashSet::new(),
            pods: PersistentMap::default(),
            expects_namespaces: false,
            changed: false,
            work: PublishCost::default(),
            diagnostics: Vec::new(),
        }
    }

    /// Hides the Services of a namespace from all others until the namespace is reported: it may hide them. For sources
    /// that report every Namespace.
    pub fn expect_namespaces(&mut self) {
        self.expects_namespaces = true;
    }

    /// The visibility of a namespace, and of its Services that have none of their own.
    fn default_visibility(&self, namespace: &str) -> Option<VisibleTo> {
        match self.namespaces.get(namespace).and_then(|state| state.fact.as_ref()) {
            Some(fact) => fact.visible_to.clone(),
            None => self.expects_namespaces.then(|| VisibleTo::Namespaces(Vec::new())),
        }
    }

    /// Applies one change. The next [`publish`](Self::publish) rebuilds the affected entries.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(key, fact) => self.apply_service(key, fact),
            Change::Slice(key, fact) => self.apply_slice(key, fact),
            Change::Namespace(name, fact) => self.apply_namespace(name, fact),
            Change::Pod(pod, fact) => self.apply_pod(pod, fact),
        }
    }

    /// Marks the first sync as complete.
    pub fn set_synced(&mut self) {
        self.changed |= !self.zone.synced;
        self.zone.synced = true;
    }

    /// Sets the lowest serial to publish, usually the last one of an earlier run.
    pub fn set_serial_floor(&mut self, serial: u32) {
        let last = self.zone.soa.serial();
        if last == 0 || serial.wrapping_sub(last) as i32 > 0 {
            self.set_serial(serial);
        }
    }

    fn set_serial(&mut self, serial: u32) {
        let settings = &self.zone.settings;
        self.zone.soa = Soa::new(serial, settings.ttl, settings.negative_ttl());
    }

    /// Builds the next table, or returns `None` if it would answer every query as the last one does.
    pub fn publish(&mut self) -> Option<Arc<Zone>> {
        self.work = PublishCost::default();
        for key in std::mem::take(&mut self.dirty_services) {
            self.rebuild_service(&key);
        }
        for key in std::mem::take(&mut self.dirty_alt_names) {
            self.rebuild_alt_name(&key);
        }
        for name in std::mem::take(&mut self.dirty_namespaces) {
            self.rebuild_namespace(&name);
        }
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.set_serial(next_serial(self.zone.soa.serial(), SystemTime::now()));
        Some(Arc::new(self.zone.clone()))
    }

    /// Returns the cost of the last [`publish`](Self::publish).
    pub fn work(&self) -> PublishCost {
        self.work
    }

    /// Returns the diagnostics found since the last call.
    pub fn take_diagnostics(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.diagnostics)
    }

    /// Iterates over all Services with their facts and the number of endpoints that their slices list.
    pub fn services(&self) -> impl Iterator<Item = (&Key, &ServiceFact, u32)> {
        self.services.iter().filter_map(|(key, known)| {
            let total = known.slices.values().map(|slice| slice.total).sum();
            Some((key, &**known.fact.as_ref()?, total))
        })
    }

    /// Returns whether the builder holds a fact about the object that the change refers to.
    pub fn has(&self, change: &Change) -> bool {
        match change {
            Change::Service(key, _) => self.services.get(key).is_some_and(|known| known.fact.is_some()),
            Change::Slice(key, _) => self.slices.contains_key(key),
            Change::Namespace(name, _) => self.namespaces.get(name).is_some_and(|state| state.fact.is_some()),
            Change::Pod(pod, _) => self.pods.with_hash(pod.bits()).any(|held| held.pod == *pod),
        }
    }

    /// Returns the held fact about a Service.
    pub fn service_fact(&self, key: &Key) -> Option<&ServiceFact> {
        self.services.get(key)?.fact.as_deref()
    }

    /// Returns the held fact about an EndpointSlice.
    pub fn slice_fact(&self, key: &Key) -> Option<&SliceFact> {
        let service = Key { namespace: key.namespace.clone(), name: self.slices.get(key)?.clone() };
        self.services.get(&service)?.slices.get(&key.name).map(|fact| &**fact)
    }

    /// Returns all facts except pods. They are shared, not copied, so that they can be saved while changes are applied.
    pub fn facts(&self) -> Facts {
        let services = self.services.iter().filter_map(|(key, known)| Some((key.clone(), known.fact.clone()?)));
        let slices = self.services.iter().flat_map(|(key, known)| {
            known
                .slices
                .iter()
                .map(|(name, fact)| (Key { namespace: key.namespace.clone(), name: name.clone() }, fact.clone()))
        });
        let namespaces = self.namespaces.iter().filter_map(|(name, state)| Some((name.clone(), state.fact.clone()?)));
        Facts { services: services.collect(), slices: slices.collect(), namespaces: namespaces.collect() }
    }

    /// Returns the settings that tables are built with.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.zone.settings
    }

    fn apply_service(&mut self, key: Key, fact: Option<Arc<ServiceFact>>) {
        let known = self.services.entry(key.clone()).or_default();
        if known.fact == fact {
            if known.fact.is_none() && known.slices.is_empty() {
                self.services.remove(&key);
            }
            return;
        }
        let old = std::mem::replace(&mut known.fact, fact.clone());
        let empty = known.fact.is_none() && known.slices.is_empty() && known.built.is_none();
        for (fact, present) in [(&old, false), (&fact, true)] {
            for alt_name in fact.iter().flat_map(|fact| alt_names_of(&key, fact, &self.zone.settings)) {
                let alt_name = Key { namespace: key.namespace.clone(), name: alt_name };
                let claims = self.alt_names.entry(alt_name.clone()).or_default();
                if present {
                    claims.insert(key.name.clone());
                } else {
                    claims.remove(&key.name);
                }
                self.dirty_alt_names.insert(alt_name);
            }
        }
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        if fact.is_some() {
            state.services.insert(key.name.clone());
        } else {
            state.services.remove(&key.name);
        }
        self.dirty_namespaces.insert(key.namespace.clone());
        if empty {
            self.services.remove(&key);
        }
        self.dirty_services.insert(key);
    }

    fn apply_slice(&mut self, key: Key, fact: Option<Arc<SliceFact>>) {
        let service = |name: &str| Key { namespace: key.namespace.clone(), name: name.into() };
        let owner = fact.as_ref().and_then(|fact| fact.service.clone());
        let before = match &owner {
            Some(owner) => self.slices.insert(key.clone(), owner.clone()),
            None => self.slices.remove(&key),
        };
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            let before = service(&before);
            if let Some(known) = self.services.get_mut(&before) {
                known.slices.remove(&key.name);
                if known.fact.is_none() && known.slices.is_empty() && known.built.is_none() {
                    self.services.remove(&before);
                }
            }
            self.dirty_services.insert(before);
        }
        if let (Some(owner), Some(fact)) = (owner, fact) {
            let owner = service(&owner);
            let slices = &mut self.services.entry(owner.clone()).or_default().slices;
            if slices.get(&key.name).is_none_or(|held| *held != fact) {
                slices.insert(key.name, fact);
                self.dirty_services.insert(owner);
            }
        }
    }

    fn apply_namespace(&mut self, name: Box<str>, fact: Option<NamespaceFact>) {
        let before = self.default_visibility(&name);
        let state = self.namespaces.entry(name.clone()).or_default();
        if state.fact == fact {
            return;
        }
        if fact.is_some() && state.fact.is_none() && super::tld::is_public(&name) {
            self.diagnostics.push(Diagnostic::TopLevelDomain { namespace: name.to_string() });
        }
        state.fact = fact;
        if self.default_visibility(&name) != before {
            let services = self.namespaces.get(&name).into_iter().flat_map(|state| &state.services);
            let keys = services.map(|service| Key { namespace: name.clone(), name: service.clone() });
            self.dirty_services.extend(keys);
        }
        self.dirty_namespaces.insert(name);
    }

    fn apply_pod(&mut self, pod: PodId, fact: Option<PodFact>) {
        let host_network = fact.as_ref().is_some_and(|fact| fact.host_network);
        let claimed: Vec<u128> = fact.iter().flat_map(|fact| fact.addresses.iter().copied().map(bits)).collect();
        // The lowest bit is set if the pod uses its node's network.
        let tag = pod.bits() & !1 | u64::from(host_network);
        let is_of_pod = |claim: &Claim| claim.pod & !1 == tag & !1;
        let before: Vec<PodAddress> = self.pods.with_hash(pod.bits()).filter(|held| held.pod == pod).cloned().collect();
        for removed in
            before.iter().filter(|held| !claimed.iter().any(|address| hash::address(*address) == held.address))
        {
            self.pods.remove(pod.bits(), |held| held == removed);
            self.work.copied += self.zone.claims.remove(removed.address, is_of_pod);
            self.changed = true;
        }
        let Some(fact) = fact.filter(|_| !claimed.is_empty()) else { return };
        let Some(namespace) = self.intern_namespace(&fact.namespace) else { return };
        for address in claimed {
            let held = self.zone.claims.get(hash::address(address), is_of_pod);
            if held.is_none_or(|claim| claim.pod != tag) {
                let claim = Claim { address: address.to_ne_bytes(), pod: tag, namespace: namespace.clone() };
                self.work.copied += self.zone.claims.insert(claim, is_of_pod);
                let slot = PodAddress { pod, address: hash::address(address) };
                self.pods.insert(slot.clone(), |held| *held == slot);
                self.changed = true;
            }
        }
    }

    /// Returns the single shared copy of a namespace's name.
    fn intern_namespace(&mut self, namespace: &str) -> Option<NamespaceName> {
        let state = match self.namespaces.get_mut(namespace) {
            Some(state) => state,
            None => self.namespaces.entry(namespace.into()).or_default(),
        };
        if state.name.is_none() {
            state.name = Some(NamespaceName::new(self.zone.settings.seed, &label_of(namespace).ok()?));
        }
        state.name.clone()
    }
}

/// Returns the serial after `last`: the time in 1024ths of a second, or `last + 1` if changes arrive faster than that.
/// Serials therefore grow with every change. They also grow across restarts without stored state, unless more than 1024
/// tables a second were published on average. 32 bits wrap after 48 days; RFC 1982 arithmetic handles that unless 24
/// days pass without a change. A saved snapshot includes the serial.
fn next_serial(last: u32, now: SystemTime) -> u32 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = (since.as_millis() * 1024 / 1000) as u32;
    let ahead = clock.wrapping_sub(last) as i32 > 0;
    if last == 0 || ahead { clock } else { last.wrapping_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn serials_follow_the_clock_or_grow_by_one() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let first = next_serial(0, at(1_700_000_000));
        assert_eq!(next_serial(first, at(1_700_000_000)), first.wrapping_add(1), "two changes within one tick");
        assert_eq!(next_serial(first, at(1_700_000_001)), first.wrapping_add(1024));
        assert_eq!(next_serial(first, at(1_699_999_000)), first.wrapping_add(1), "the clock was set back");
        let later = next_serial(0, at(1_700_000_000 + 86_400 * 20));
        assert!(later.wrapping_sub(first) as i32 > 0, "a serial of 20 days later is greater (RFC 1982)");
    }
}
