//! DNS over QUIC streams, and the message fields that encrypted transports read: never a panic, and a query is exactly the
//! content of its frame.
#![no_main]

use callsign::server::encrypted::doq::question;
use callsign::wire::{freshness, has_option};
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    if let Ok(message) = question(stream) {
        assert!(stream[2..].starts_with(message) && message.len() <= 4096);
        assert!(message.starts_with(&[0, 0]));
    }
    let _ = has_option(stream, 11);
    // If another parser can read the message, none of its answers has a shorter TTL.
    let seconds = freshness(stream);
    if let (Some(seconds), Ok(message)) = (seconds, Message::from_vec(stream)) {
        let smallest = message.answers.iter().map(|record| record.ttl).min();
        assert!(smallest.is_none_or(|smallest| seconds <= smallest));
    }
});
