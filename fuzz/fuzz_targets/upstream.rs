//! Replies from upstreams: never a panic; forwarded replies have the client's ID and question, and fit its limit.
#![no_main]

use callsign::answer::{ForwardRequest, ForwardReason};
use callsign::forward::{Entry, Freshness, ReplyTo, Ttls};
use libfuzzer_sys::fuzz_target;

const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03WwW\x07example\x00\x00\x01\x00\x01";
const QUESTION: &[u8] = b"\x03www\x07example\x00\x00\x01\x00\x01";

fuzz_target!(|input: (u16, u32, bool, &[u8])| {
    let (limit, age, edns, rest) = input;
    // Random octets rarely begin with the right question, so they are appended to it.
    let Some((counts, records)) = rest.split_first_chunk::<6>() else { return };
    let message = [&QUERY[..2], &[0x81, 0x80, 0, 1], counts, &QUERY[12..], records].concat();
    let ttls = Ttls { floor: 0, ceiling: 3600 };
    let Ok(entry) = Entry::parse(&message, QUESTION, ttls, 0, |name| name.labels() > 3) else { return };
    let ask = ForwardRequest { end: QUERY.len() as u16, qtype: 1, limit, flags: 0x0100, edns: edns.then_some(0), reason: ForwardReason::Outside };
    let mut buffer = vec![0; 65_535];
    for age in [Freshness::Fresh(age), Freshness::Stale] {
        let Some(length) = entry.write(ReplyTo { query: QUERY, request: &ask, cookie: None }, age, 1232, &mut buffer) else { continue };
        assert!(length <= usize::from(limit));
        assert_eq!(buffer[..2], QUERY[..2]);
        assert_eq!(buffer[12..QUERY.len()], QUERY[12..]);
    }
});
