//! The query parser: it never panics, and the positions that it reports are correct.
#![no_main]

use callsign::wire::{Header, Name, Query};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    let Some(header) = Header::parse(message) else { return };
    let mut name = Name::empty();
    let Ok(query) = Query::parse(message, header, &mut name) else { return };
    assert!(query.question.end <= message.len());
    assert!(name.wire_len() <= 255 && name.wire().last() == Some(&0));
    assert!(name.wire().eq_ignore_ascii_case(&message[12..12 + name.wire_len()]));
    assert_eq!(name.span(0, name.labels()).len() + 1, name.wire_len());
});
