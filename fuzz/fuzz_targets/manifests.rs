//! Manifests: neither reading a file nor building a zone from it ever panics.
#![no_main]

use std::sync::Arc;

use callsign::cluster::{Event, manifests, publish};
use callsign::zone::{Builder, Domain, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok((changes, _)) = manifests::read_text(text) else { return };
    let settings = Settings::new(vec![Domain::new("cluster.local").unwrap()]);
    let (zone, _, _) = publish::build(Builder::new(Arc::new(settings)), changes.into_iter().map(Event::Change).collect());
    for service in zone.services() {
        assert!(service.name.service().len() <= 64 && service.name.namespace().len() <= 64);
    }
});
