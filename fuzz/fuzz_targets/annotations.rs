//! Annotations: accepted values consist of labels, and rejected ones are reported.
#![no_main]

use callsign::cluster::object::{MAX_ENTRIES, parse_aliases, parse_visible_to};
use callsign::wire::label_of;
use callsign::zone::facts::VisibleTo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (aliases, problems) = parse_aliases(text);
    assert!(aliases.len() <= MAX_ENTRIES);
    assert!(!aliases.is_empty() || !problems.is_empty());
    assert!(aliases.iter().all(|alias| label_of(alias).is_ok()));
    if let Ok(VisibleTo::Namespaces(names)) = parse_visible_to(text) {
        assert!(names.iter().all(|name| label_of(name).is_ok()));
    }
});
