//! Builds tables from facts. A change rebuilds only what it affects; the rest is shared with the previous table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::facts::{Change, Key, NamespaceFact, PodFact, PodId, PortFact, ServiceFact, ServiceType, SliceFact};
use super::persistent_map::{PersistentMap, Slot};
use super::service::{AltName, Endpoint, Endpoints, Kind, Port, Service, ServiceName, Target};
use super::{
    Candidate, Claim, Namespace, NamespaceName, Owner, Rrset, Settings, Soa, Visibility, Zone, address_of, bits, hash,
};
use crate::wire::{label_of, name_from_text};

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

/// An address that a pod was last reported to have, as the hash under which its claim is stored. When the pod changes,
/// this claim has to be withdrawn.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    /// Two Services claim the same alias. The older one gets it; equal ages are ordered by name.
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

/// Holds all facts and builds tables from them.
pub struct Builder {
    zone: Zone,
    services: HashMap<Key, ServiceState>,
    slices: HashMap<Key, Box<str>>,
    namespaces: HashMap<Box<str>, NamespaceState>,
    alt_names: HashMap<Key, BTreeSet<Box<str>>>,
    hidden: usize,
    dirty_services: HashSet<Key>,
    dirty_alt_names: HashSet<Key>,
    dirty_namespaces: HashSet<Box<str>>,
    pods: PersistentMap<PodAddress>,
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
            hidden: 0,
            dirty_services: HashSet::new(),
            dirty_alt_names: HashSet::new(),
            dirty_namespaces: HashSet::new(),
            pods: PersistentMap::default(),
            changed: false,
            work: PublishCost::default(),
            diagnostics: Vec::new(),
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
        self.zone.has_hidden = self.hidden > 0;
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

    fn apply_service(&mut self, key: Key, fact: Option<ServiceFact>) {
        let known = self.services.entry(key.clone()).or_default();
        let fact = fact.map(Arc::new);
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

    fn apply_slice(&mut self, key: Key, fact: Option<SliceFact>) {
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
            if slices.get(&key.name).is_none_or(|held| **held != fact) {
                slices.insert(key.name, Arc::new(fact));
                self.dirty_services.insert(owner);
            }
        }
    }

    fn apply_namespace(&mut self, name: Box<str>, fact: Option<NamespaceFact>) {
        let state = self.namespaces.entry(name.clone()).or_default();
        if state.fact == fact {
            return;
        }
        if fact.is_some() && state.fact.is_none() && super::tld::is_public(&name) {
            self.diagnostics.push(Diagnostic::TopLevelDomain { namespace: name.to_string() });
        }
        let visible_to = |fact: &Option<NamespaceFact>| fact.as_ref().and_then(|fact| fact.visible_to.clone());
        if visible_to(&state.fact) != visible_to(&fact) {
            for service in &state.services {
                self.dirty_services.insert(Key { namespace: name.clone(), name: service.clone() });
            }
        }
        state.fact = fact;
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

    fn rebuild_service(&mut self, key: &Key) {
        let Some(namespace) = self.intern_namespace(&key.namespace) else { return };
        let Ok(label) = label_of(&key.name) else { return };
        let default = self.namespaces.get(&key.namespace).and_then(|state| state.fact.as_ref()?.visible_to.clone());
        let Some(known) = self.services.get_mut(key) else { return };
        let old = known.built.take();
        let settings = &self.zone.settings;
        let new = known.fact.as_ref().map(|fact| {
            let name = match &old {
                Some(old) => old.name.clone(),
                None => Arc::new(ServiceName::new(settings.seed, &label, namespace.label())),
            };
            let visible_to = fact.visible_to.as_ref().or(default.as_ref());
            let visibility = visible_to.and_then(|fact| Visibility::of(fact, &namespace, settings.seed));
            let (service, skipped) = build_service(name, visibility, fact, known.slices.values(), settings.ttl);
            if skipped {
                self.diagnostics.push(Diagnostic::FqdnSkipped { service: key.to_string() });
            }
            service
        });
        self.work.rebuilt += 1;
        if old.as_deref() == new.as_ref() {
            known.built = old;
            return;
        }
        known.built = new.map(Arc::new);
        let built = known.built.clone();
        if known.fact.is_none() && known.slices.is_empty() {
            self.services.remove(key);
        }
        self.replace_service(key, old, built);
    }

    fn replace_service(&mut self, key: &Key, old: Option<Arc<Service>>, new: Option<Arc<Service>>) {
        self.changed = true;
        let Some(name) = new.as_ref().or(old.as_ref()).map(|service| service.name.clone()) else { return };
        let is_match = |slot: &(u64, Arc<Service>)| *slot.1.name == *name;
        self.work.copied += match &new {
            Some(new) => self.zone.services.insert((name.hash(), new.clone()), is_match),
            None => self.zone.services.remove(name.hash(), is_match),
        };
        let ready = |service: &Option<Arc<Service>>| service.as_ref().map_or(0, |service| service.endpoints.all.len());
        self.zone.endpoints = self.zone.endpoints + ready(&new) - ready(&old);
        let hidden = |service: &Option<Arc<Service>>| {
            usize::from(service.as_ref().is_some_and(|service| service.visibility.is_some()))
        };
        self.hidden = self.hidden + hidden(&new) - hidden(&old);
        if hidden(&new) + hidden(&old) > 0 {
            self.dirty_namespaces.insert(key.namespace.clone());
        }
        let (before, after) = (addresses_of(old.as_deref()), addresses_of(new.as_deref()));
        let owner = |address: &u128| Owner { address: address.to_be_bytes(), service: name.clone() };
        for removed in before.iter().filter(|address| after.binary_search(address).is_err()) {
            self.zone.owners.remove(&owner(removed));
            self.work.rebuilt += 1;
        }
        for added in after.iter().filter(|address| before.binary_search(address).is_err()) {
            self.zone.owners.insert(owner(added));
            self.work.rebuilt += 1;
        }
        if let Some(fact) = self.services.get(key).and_then(|known| known.fact.as_ref()) {
            for alt_name in alt_names_of(key, fact, &self.zone.settings) {
                self.dirty_alt_names.insert(Key { namespace: key.namespace.clone(), name: alt_name });
            }
        }
    }

    fn rebuild_alt_name(&mut self, key: &Key) {
        let (Some(namespace), Ok(label)) = (self.intern_namespace(&key.namespace), label_of(&key.name)) else { return };
        let claims = self.alt_names.get(key).into_iter().flatten();
        let mut claims: Vec<(i64, &Box<str>, &ServiceState)> = claims
            .filter_map(|name| {
                let known = self.services.get(&Key { namespace: key.namespace.clone(), name: name.clone() })?;
                Some((known.fact.as_ref()?.created, name, known))
            })
            .collect();
        claims.sort_by_key(|(created, name, _)| (*created, *name));
        let built = |wanted: &dyn Fn(&str, &ServiceFact) -> bool| -> Box<[Arc<Service>]> {
            let claims =
                claims.iter().filter(|(_, name, known)| known.fact.as_ref().is_some_and(|fact| wanted(name, fact)));
            claims.filter_map(|(_, _, known)| known.built.clone()).collect()
        };
        let alt_name = AltName {
            name: ServiceName::new(self.zone.settings.seed, &label, namespace.label()),
            aliases: built(&|_, fact| fact.aliases.contains(&key.name)),
            defaults: built(&|name, fact| is_default_of(name, fact, &key.name)),
        };
        if let [kept, refused @ ..] = &*alt_name.aliases {
            for refused in refused {
                let (alias, granted_to, refused) = (key.to_string(), kept.name.text(), refused.name.text());
                self.diagnostics.push(Diagnostic::AliasClaimed { alias, granted_to, refused });
            }
            if self.services.get(key).is_some_and(|known| known.fact.is_some()) {
                self.diagnostics
                    .push(Diagnostic::AliasShadowed { alias: key.to_string(), claimed_by: kept.name.text() });
            }
        }
        if alt_name.defaults.len() > 1 {
            let services = alt_name.defaults.iter().map(|service| service.name.text()).collect();
            self.diagnostics.push(Diagnostic::AmbiguousDefault { kind: key.to_string(), services });
        }
        let hash = alt_name.name.hash();
        let is_match = |slot: &Arc<AltName>| slot.name == alt_name.name;
        let held = self.zone.alt_names.get(hash, is_match);
        self.work.rebuilt += 1;
        if alt_name.aliases.is_empty() && alt_name.defaults.is_empty() {
            self.alt_names.remove(key);
            if held.is_some() {
                self.changed = true;
                self.work.copied += self.zone.alt_names.remove(hash, is_match);
            }
        } else if held.is_none_or(|held| !same_alt_name(held, &alt_name)) {
            self.changed = true;
            let alt_name = Arc::new(alt_name);
            self.work.copied += self.zone.alt_names.insert(alt_name.clone(), |slot| slot.name == alt_name.name);
        }
    }

    fn rebuild_namespace(&mut self, name: &str) {
        let Some(namespace) = self.intern_namespace(name) else { return };
        let Some(state) = self.namespaces.get(name) else { return };
        let is_match = |slot: &Arc<Namespace>| slot.name == namespace;
        self.work.rebuilt += 1;
        if state.fact.is_none() && state.services.is_empty() {
            self.namespaces.remove(name);
            self.changed |= self.zone.namespaces.get(namespace.hash(), is_match).is_some();
            self.work.copied += self.zone.namespaces.remove(namespace.hash(), is_match);
            return;
        }
        let settings = &self.zone.settings;
        let visible_to = state.fact.as_ref().and_then(|fact| fact.visible_to.as_ref());
        let visibility = visible_to.and_then(|fact| Visibility::of(fact, &namespace, settings.seed));
        let application =
            name.as_bytes().strip_prefix(&*settings.application_prefix).and_then(|app| std::str::from_utf8(app).ok());
        let (mut open, mut exceptions, mut candidates) = (false, Vec::new(), Vec::new());
        // Only a namespace that restricts visibility, or is an application, depends on its Services.
        if visibility.is_some() || application.is_some_and(|app| !app.is_empty()) {
            for service in &state.services {
                let key = Key { namespace: name.into(), name: service.clone() };
                let Some(ServiceState { fact: Some(fact), built: Some(built), .. }) = self.services.get(&key) else {
                    continue;
                };
                if fact.visible_to.is_some() {
                    match &built.visibility {
                        None => open = true,
                        Some(exception) if !exceptions.contains(exception) => exceptions.push(exception.clone()),
                        Some(_) => {}
                    }
                }
                if let Some(app) = application.filter(|app| !app.is_empty()) {
                    candidates.push(candidate(app, service, fact, built));
                }
            }
        }
        let new = Namespace {
            name: namespace.clone(),
            open: open && visibility.is_some(),
            exceptions: if visibility.is_some() { exceptions.into() } else { Box::default() },
            visibility,
            application: candidates.into(),
        };
        if self.zone.namespaces.get(namespace.hash(), is_match).is_none_or(|held| **held != new) {
            self.changed = true;
            self.work.copied += self.zone.namespaces.insert(Arc::new(new), is_match);
        }
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

/// Returns the Service's aliases, and the kinds of database that it claims to be the default for.
fn alt_names_of(key: &Key, fact: &ServiceFact, settings: &Settings) -> Vec<Box<str>> {
    let mut alt_names = fact.aliases.clone();
    if fact.default {
        for kind in &settings.database_kinds {
            let kind = String::from_utf8_lossy(kind.get(1..).unwrap_or(&[]));
            if is_default_of(&key.name, fact, &kind) {
                alt_names.push(kind.into());
            }
        }
    }
    alt_names.sort_unstable();
    alt_names.dedup();
    alt_names
}

fn is_default_of(name: &str, fact: &ServiceFact, kind: &str) -> bool {
    fact.default && name.strip_prefix(kind).is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
}

fn same_alt_name(a: &AltName, b: &AltName) -> bool {
    let same =
        |a: &[Arc<Service>], b: &[Arc<Service>]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b));
    same(&a.aliases, &b.aliases) && same(&a.defaults, &b.defaults)
}

/// Returns the addresses whose reverse names the Service owns, sorted and deduplicated.
fn addresses_of(service: Option<&Service>) -> Vec<u128> {
    let Some(service) = service else { return Vec::new() };
    let mut addresses: Vec<u128> = service.endpoints.all.iter().map(|endpoint| bits(endpoint.address)).collect();
    if let Kind::Cluster(_) = service.kind {
        let v4 = service.a.octets().chunks(16).filter_map(|record| record.last_chunk::<4>());
        addresses.extend(v4.map(|octets| bits(IpAddr::from(*octets))));
        let v6 = service.aaaa.octets().chunks(28).filter_map(|record| record.last_chunk::<16>());
        addresses.extend(v6.map(|octets| bits(IpAddr::from(*octets))));
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Computes the `fullname` template of Helm charts: at most 63 characters, without one trailing dash. The release name
/// is used alone if it contains the chart name.
pub fn full_name(release: &str, chart: &str) -> String {
    let trim = |text: &str| {
        let cut: String = text.chars().take(63).collect();
        cut.strip_suffix('-').unwrap_or(&cut).to_owned()
    };
    let chart = trim(&chart.to_lowercase());
    let name = if release.contains(&chart) { release.to_owned() } else { format!("{release}-{chart}") };
    trim(&name.to_lowercase())
}

fn candidate(app: &str, name: &str, fact: &ServiceFact, built: &Service) -> Candidate {
    let release = fact.release.as_deref().unwrap_or(app);
    Candidate {
        name: built.name.clone(),
        visibility: built.visibility.clone(),
        full_name: fact.chart.as_ref().is_some_and(|chart| full_name(release, chart) == name),
        app_name: name == app,
        main: fact.main,
    }
}

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
fn build_service<'s>(
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
    match &fact.reach {
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
    // IPv4-mapped addresses are IPv4: no client could use them in an AAAA record.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn chart_full_names_follow_the_helm_template() {
        for (release, chart, expected) in [
            ("sabnzbd", "sabnzbd", "sabnzbd"),
            ("sab", "sabnzbd", "sab-sabnzbd"),
            ("sabnzbd-23", "sabnzbd", "sabnzbd-23"),
            ("my", "Home-Assistant", "my-home-assistant"),
            ("app", "x-", "app-x"),
        ] {
            assert_eq!(full_name(release, chart), expected);
        }
        assert_eq!(full_name(&"a".repeat(62), "-b").len(), 62, "cut to 63, then one dash removed");
    }

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
