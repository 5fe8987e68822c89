//! Rebuilds the entries that a change affects: Services, alternative names and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use super::service::build_service;
use super::{Builder, Diagnostic, ServiceState};
use crate::wire::label_of;
use crate::zone::facts::{Key, ServiceFact};
use crate::zone::names::ServiceName;
use crate::zone::owners::Owner;
use crate::zone::service::{Kind, Service};
use crate::zone::visibility::Audience;
use crate::zone::{AltName, Candidate, Namespace, Row, Settings, Visibility, bits};

impl Builder {
    pub(super) fn rebuild_service(&mut self, key: &Key) {
        let Some(namespace) = self.intern_namespace(&key.namespace) else { return };
        let Ok(label) = label_of(&key.name) else { return };
        let default = self.default_visibility(&key.namespace);
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
        let is_match = |row: &Row| row.has_name(&name);
        self.work.copied += match &new {
            Some(new) => self.zone.services.insert(Row::new(new.clone()), is_match),
            None => self.zone.services.remove(name.hash(), is_match),
        };
        let ready = |service: &Option<Arc<Service>>| service.as_ref().map_or(0, |service| service.endpoints.all.len());
        self.zone.endpoints = self.zone.endpoints + ready(&new) - ready(&old);
        let visibility =
            |service: &Option<Arc<Service>>| service.as_ref().and_then(|service| service.visibility.clone());
        let (seen_before, seen_after) = (visibility(&old), visibility(&new));
        if seen_before.is_some() || seen_after.is_some() {
            self.dirty_namespaces.insert(key.namespace.clone());
        }
        let (before, after) = (addresses_of(old.as_deref()), addresses_of(new.as_deref()));
        let owner = |&(address, endpoint): &(u128, bool)| Owner {
            address: address.to_be_bytes(),
            endpoint,
            service: name.clone(),
        };
        let moved = seen_before != seen_after;
        for removed in before.iter().filter(|address| moved || after.binary_search(address).is_err()) {
            self.zone.owners.remove(&owner(removed), seen_before.as_deref());
            self.work.rebuilt += 1;
        }
        for added in after.iter().filter(|address| moved || before.binary_search(address).is_err()) {
            self.zone.owners.insert(owner(added), seen_after.as_deref());
            self.work.rebuilt += 1;
        }
        if let Some(fact) = self.services.get(key).and_then(|known| known.fact.as_ref()) {
            for alt_name in alt_names_of(key, fact, &self.zone.settings) {
                self.dirty_alt_names.insert(Key { namespace: key.namespace.clone(), name: alt_name });
            }
        }
    }

    pub(super) fn rebuild_alt_name(&mut self, key: &Key) {
        let (Some(namespace), Ok(label)) = (self.intern_namespace(&key.namespace), label_of(&key.name)) else { return };
        let claims = self.alt_names.get(key).into_iter().flatten();
        let mut claims: Vec<(i64, &Box<str>, &ServiceState)> = claims
            .filter_map(|name| {
                let known = self.services.get(&Key { namespace: key.namespace.clone(), name: name.clone() })?;
                Some((known.fact.as_ref()?.created, name, known))
            })
            .collect();
        claims.sort_by_key(|(created, name, _)| (*created, *name));
        let built = |wanted: &dyn Fn(&str, &ServiceFact) -> bool| -> Box<[Row]> {
            let claims =
                claims.iter().filter(|(_, name, known)| known.fact.as_ref().is_some_and(|fact| wanted(name, fact)));
            claims.filter_map(|(_, _, known)| known.built.clone().map(Row::new)).collect()
        };
        let alt_name = AltName {
            name: ServiceName::new(self.zone.settings.seed, &label, namespace.label()),
            aliases: built(&|_, fact| fact.aliases.contains(&key.name)),
            defaults: built(&|name, fact| is_default_of(name, fact, &key.name)),
        };
        if let [granted, refused @ ..] = &*alt_name.aliases {
            for refused in refused {
                let (alias, granted_to, refused) = (key.to_string(), granted.name.text(), refused.name.text());
                self.diagnostics.push(Diagnostic::AliasClaimed { alias, granted_to, refused });
            }
            if self.services.get(key).is_some_and(|known| known.fact.is_some()) {
                self.diagnostics
                    .push(Diagnostic::AliasShadowed { alias: key.to_string(), claimed_by: granted.name.text() });
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

    pub(super) fn rebuild_namespace(&mut self, name: &str) {
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
        let visibility =
            self.default_visibility(name).and_then(|visible_to| Visibility::of(&visible_to, &namespace, settings.seed));
        let application =
            name.as_bytes().strip_prefix(&*settings.application_prefix).and_then(|app| std::str::from_utf8(app).ok());
        let (mut open, mut exceptions, mut candidates) = (false, Audience::default(), Vec::new());
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
                        Some(exception) => exceptions.add(exception),
                    }
                }
                if let Some(app) = application.filter(|app| !app.is_empty()) {
                    candidates.push(Candidate::new(app, service, fact, built));
                }
            }
        }
        let new = Namespace {
            name: namespace.clone(),
            open: open && visibility.is_some(),
            exceptions: if visibility.is_some() { exceptions.into_visibility() } else { None },
            visibility,
            application: Candidate::chosen(candidates),
        };
        if self.zone.namespaces.get(namespace.hash(), is_match).is_none_or(|held| **held != new) {
            self.changed = true;
            self.work.copied += self.zone.namespaces.insert(Arc::new(new), is_match);
        }
    }
}

/// Returns the Service's aliases, and the kinds of database that it claims to be the default for.
pub(super) fn alt_names_of(key: &Key, fact: &ServiceFact, settings: &Settings) -> Vec<Box<str>> {
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
        |a: &[Row], b: &[Row]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a.shared(), b.shared()));
    same(&a.aliases, &b.aliases) && same(&a.defaults, &b.defaults)
}

/// Maximum number of reverse names of a Service that lists namespaces, counted for each namespace. Its ClusterIPs come
/// first.
const MAX_SHARED_OWNERS: usize = 1024;

/// Returns the addresses whose reverse names the Service owns, and whether each is an endpoint's; sorted and
/// deduplicated.
fn addresses_of(service: Option<&Service>) -> Vec<(u128, bool)> {
    let Some(service) = service else { return Vec::new() };
    let endpoints = service.endpoints.all.iter().map(|endpoint| (bits(endpoint.address), true));
    let mut addresses: Vec<(u128, bool)> = endpoints.collect();
    if let Kind::Cluster(_) = service.kind {
        let v4 = service.a.octets().chunks(16).filter_map(|record| record.last_chunk::<4>());
        addresses.extend(v4.map(|octets| (bits(IpAddr::from(*octets)), false)));
        let v6 = service.aaaa.octets().chunks(28).filter_map(|record| record.last_chunk::<16>());
        addresses.extend(v6.map(|octets| (bits(IpAddr::from(*octets)), false)));
    }
    addresses.sort_unstable();
    addresses.dedup();
    // Each address is kept for each namespace, and their product is what an author could make large.
    if let Some(Visibility::Namespaces(names)) = service.visibility.as_deref().filter(|_| addresses.len() > 1)
        && names.len() > 1
    {
        addresses.sort_by_key(|(address, endpoint)| (*endpoint, *address));
        addresses.truncate((MAX_SHARED_OWNERS / names.len()).max(1));
        addresses.sort_unstable();
    }
    addresses
}
