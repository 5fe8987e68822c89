//! Intact, damaged and forged replies from upstreams: a forwarded reply is readable by another parser, fits the limit
//! of the client, and carries the client's id and question.

use crate::common;
use crate::common::upstream::{self, parse, reply};
use callsign::answer::{ForwardReason, ForwardRequest};
use callsign::forward::{Entry, Freshness, InvalidReply, ReplyTo, Ttls};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;

const TTLS: Ttls = Ttls { floor: 0, ceiling: 3600 };

/// Returns the question as it is sent to upstreams: the name in lower case, type, class.
fn question(query: &[u8]) -> Vec<u8> {
    let name = callsign::wire::Name::parse(query, 12).unwrap();
    let end = 12 + name.wire_len();
    [name.wire(), &query[end..end + 4]].concat()
}

fn to<'q>(query: &'q [u8], request: &'q ForwardRequest) -> ReplyTo<'q> {
    ReplyTo { query, request, cookie: None }
}

fn ask(query: &[u8], limit: u16, edns: Option<u8>) -> ForwardRequest {
    let end = (12 + question(query).len()) as u16;
    ForwardRequest { end, qtype: 1, limit, flags: 0x0100, edns, reason: ForwardReason::Outside }
}

/// Returns whether every record has a type whose data is validated, so that another parser has no reason to reject it.
fn is_checked(message: &[u8]) -> bool {
    let known = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::NS,
        RecordType::PTR,
        RecordType::MX,
        RecordType::SRV,
    ];
    Message::from_vec(message).is_ok_and(|message| {
        let mut all = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
        all.all(|record| known.contains(&record.record_type()) || matches!(record.data, RData::SOA(_)))
    })
}

fn whole(query: &[u8]) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let mut reply = reply(
        &query,
        ResponseCode::NoError,
        &parse(
            "www.example 300 CNAME a.example.\na.example 200 CNAME b.example.\nb.example 100 A 192.0.2.1\n\
             b.example 100 A 192.0.2.2\nb.example 50 A 192.0.2.3",
        ),
    );
    reply.authorities = parse("example 60 SOA ns.example. hostmaster.example. 1 2 3 4 60\nexample 60 NS ns.example.");
    reply.additionals = parse("ns.example 60 AAAA 2001:db8::53\nns.example 60 A 192.0.2.53");
    reply.to_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn forwarded_replies_are_well_formed(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        limit in 12u16..1300,
        edns in any::<bool>(),
        age in 0u32..400,
    ) {
        let query = common::query("WWW.example. A", None);
        let mut message = whole(&query);
        for (at, octet) in edits {
            let at = at.index(message.len());
            message[at] = octet;
        }
        if let Some(cut) = cut {
            message.truncate(cut.index(message.len()));
        }
        if let Ok(entry) = Entry::parse(&message, &question(&query), TTLS, 0, |_| false) {
            let ask = ask(&query, limit, edns.then_some(0));
            let mut buffer = vec![0; 65_535];
            for age in [Freshness::Fresh(age), Freshness::Stale] {
                let Some(length) = entry.write(to(&query, &ask), age, 1232, &mut buffer) else { continue };
                prop_assert!(length <= usize::from(limit), "{length} of {limit}");
                prop_assert_eq!(&buffer[..2], &query[..2], "the id");
                prop_assert_eq!(&buffer[12..usize::from(ask.end)], &query[12..usize::from(ask.end)], "the question");
                let checked = is_checked(&entry.message(&question(&query)));
                let parsed = Message::from_vec(&buffer[..length]);
                prop_assert!(parsed.is_ok() || !checked, "{:?}: {:?}", parsed, &buffer[..length]);
            }
        }
    }

    #[test]
    fn noise_does_not_cause_a_panic(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let query = common::query("www.example. A", None);
        let _ = Entry::parse(&noise, &question(&query), TTLS, 0, |_| true);
        // And after a valid header and question.
        let head = &whole(&query)[..12 + question(&query).len()];
        let _ = Entry::parse(&[head, &noise].concat(), &question(&query), TTLS, 0, |_| true);
    }
}

#[test]
fn truncation_keeps_the_answer_section_longest() {
    let query = common::query("www.example. A", None);
    let entry = Entry::parse(&whole(&query), &question(&query), TTLS, 0, |_| false).unwrap();
    let mut buffer = vec![0; 65_535];
    let mut seen = Vec::new();
    for limit in (29..400).rev() {
        let length =
            entry.write(to(&query, &ask(&query, limit, None)), Freshness::Fresh(0), 1232, &mut buffer).unwrap();
        assert!(length <= usize::from(limit));
        let message = Message::from_vec(&buffer[..length]).unwrap();
        let shape =
            (message.answers.len(), message.authorities.len(), message.additionals.len(), message.metadata.truncation);
        if seen.last() != Some(&shape) {
            seen.push(shape);
        }
    }
    let expected = [
        (5, 2, 2, false),
        (5, 2, 0, false),
        (5, 0, 0, false),
        (4, 0, 0, true),
        (3, 0, 0, true),
        (2, 0, 0, true),
        (1, 0, 0, true),
        (0, 0, 0, true),
    ];
    assert_eq!(seen, expected, "additional records are dropped first, then the authority section, then answers");
}

#[test]
fn a_reply_is_cached_for_its_smallest_ttl() {
    let query = common::query("www.example. A", None);
    let asked = Message::from_vec(&query).unwrap();
    let soa = "example 600 SOA ns.example. hostmaster.example. 1 2 3 4 120";
    let cases: [(&str, &str, &str, ResponseCode, u32); 12] = [
        (
            "a CNAME to a name without data: the SOA's minimum",
            "www.example 300 CNAME b.example.",
            soa,
            ResponseCode::NoError,
            120,
        ),
        ("a CNAME alone, without a SOA", "www.example 300 CNAME b.example.", "", ResponseCode::NoError, 0),
        (
            "the smallest TTL in the answer",
            "www.example 300 A 192.0.2.1\nwww.example 200 A 192.0.2.2",
            "",
            ResponseCode::NoError,
            200,
        ),
        ("at most the ceiling", "www.example 90000 A 192.0.2.1", "", ResponseCode::NoError, 3600),
        ("a TTL of zero is not cached", "www.example 0 A 192.0.2.1", "", ResponseCode::NoError, 0),
        ("the highest bit means zero (RFC 2181)", "www.example 2147483648 A 192.0.2.1", "", ResponseCode::NoError, 0),
        ("NODATA: the SOA's minimum", "", soa, ResponseCode::NoError, 120),
        ("NXDOMAIN: the SOA's minimum", "", soa, ResponseCode::NXDomain, 120),
        ("CNAME to a missing name: the smaller", "www.example 30 CNAME b.example.", soa, ResponseCode::NXDomain, 30),
        ("NXDOMAIN without a SOA", "", "", ResponseCode::NXDomain, 0),
        ("SERVFAIL", "", "", ResponseCode::ServFail, 5),
        ("REFUSED", "", "", ResponseCode::Refused, 0),
    ];
    for (case, answers, authority, rcode, ttl) in cases {
        let mut message = reply(&asked, rcode, &parse(answers));
        message.authorities = parse(authority);
        let entry = Entry::parse(&message.to_vec().unwrap(), &question(&query), TTLS, 7, |_| false).unwrap();
        assert_eq!(entry.ttl, ttl, "{case}");
        if ttl > 0 {
            assert_eq!(entry.freshness(7 + ttl - 1), Freshness::Fresh(ttl - 1), "{case}");
            assert_eq!(entry.freshness(7 + ttl), Freshness::Expired, "{case}");
        }
    }
}

#[test]
fn a_cname_chain_into_the_cluster_is_recognized() {
    let ours = |name: &callsign::wire::Name| name.wire().ends_with(b"\x05local\0");
    let through = "www.example 60 CNAME a.ns.svc.cluster.local.\na.ns.svc.cluster.local 60 CNAME b.example.\nb.example 60 A 192.0.2.1";
    for (case, question, answers, leads_in) in [
        ("no CNAME", "www.example. A", "www.example 60 A 192.0.2.1", false),
        ("a CNAME into the cluster", "www.example. A", "www.example 60 CNAME a.ns.svc.cluster.local.", true),
        ("a chain through the cluster", "www.example. A", through, true),
        ("a query for the CNAME itself", "www.example. CNAME", "www.example 60 CNAME a.ns.svc.cluster.local.", false),
    ] {
        let query = common::query(question, None);
        let mut message = reply(&Message::from_vec(&query).unwrap(), ResponseCode::NoError, &parse(answers));
        message.additionals = parse("a.ns.svc.cluster.local 60 A 10.1.2.3");
        let entry = Entry::parse(&message.to_vec().unwrap(), &self::question(&query), TTLS, 0, ours).unwrap();
        assert_eq!(entry.leads_in, leads_in, "{case}");
        let cached = Message::from_vec(&entry.message(&self::question(&query))).unwrap();
        assert!(cached.additionals.is_empty(), "{case}: records of cluster names come only from the zone");
    }
}

#[test]
fn extended_error_text_never_displaces_the_answer() {
    use hickory_proto::op::Edns;
    use hickory_proto::rr::rdata::opt::EdnsOption;
    let query = common::query("www.example. A", Some(512));
    let mut message =
        reply(&Message::from_vec(&query).unwrap(), ResponseCode::NoError, &parse("www.example 60 A 192.0.2.1"));
    let mut edns = Edns::new();
    edns.options_mut().insert(EdnsOption::Unknown(15, [&[0, 6][..], &[b'x'; 248]].concat()));
    message.set_edns(edns);
    let entry = Entry::parse(&message.to_vec().unwrap(), &question(&query), TTLS, 0, |_| false).unwrap();
    let mut buffer = vec![0; 65_535];
    for limit in 60..400 {
        let length = entry
            .write(to(&query, &ask(&query, limit, Some(0))), Freshness::Fresh(0), 1232, &mut buffer)
            .expect("a reply");
        let message = Message::from_vec(&buffer[..length]).unwrap();
        assert!(length <= usize::from(limit) && message.answers.len() == 1, "{limit}");
    }
}

#[test]
fn a_stale_reply_is_served_no_longer_than_allowed() {
    let query = common::query("www.example. A", None);
    let message =
        reply(&Message::from_vec(&query).unwrap(), ResponseCode::NoError, &parse("www.example 60 A 192.0.2.1"));
    let entry = Entry::parse(&message.to_vec().unwrap(), &question(&query), TTLS, 0, |_| false).unwrap();
    entry.serve_stale_until(90, 0);
    assert_eq!(
        (entry.freshness(59), entry.freshness(61)),
        (Freshness::Fresh(59), Freshness::Expired),
        "--cache-stale 0"
    );
    entry.serve_stale_until(90, 3600);
    assert_eq!((entry.freshness(61), entry.freshness(91)), (Freshness::Stale, Freshness::Expired));
}

#[test]
fn invalid_replies_are_rejected() {
    let query = common::query("www.example. A", None);
    let asked = Message::from_vec(&query).unwrap();
    let good = || reply(&asked, ResponseCode::NoError, &parse("www.example 60 A 192.0.2.1"));
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = good();
        change(&mut message);
        message.to_vec().unwrap()
    };
    let bytes = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = good().to_vec().unwrap();
        change(&mut message);
        message
    };
    let two = || parse("www.example 300 A 192.0.2.1\nwww.example 300 PTR www.example.");
    let record = |owner: usize, rtype: u8, data: &[u8]| {
        [&[0xc0, owner as u8, 0, rtype, 0, 1, 0, 0, 1, 44, 0, data.len() as u8], data].concat()
    };
    let cases: [(&str, Vec<u8>, InvalidReply); 11] = [
        ("an empty message", vec![], InvalidReply::Mismatched),
        ("a query", query.clone(), InvalidReply::Mismatched),
        (
            "another name",
            with(&|message| {
                message.queries[0].set_name(upstream::name("w.example"));
            }),
            InvalidReply::Mismatched,
        ),
        (
            "another type that differs only in the bit that case folding ignores",
            {
                let mut query = common::query("www.example. TYPE65", None);
                query[2] |= 0x80;
                query
            },
            InvalidReply::Mismatched,
        ),
        ("truncated", with(&|message| message.metadata.truncation = true), InvalidReply::Truncated),
        ("a truncated record", bytes(&|octets| octets.truncate(octets.len() - 1)), InvalidReply::Malformed),
        ("a count that exceeds the records", bytes(&|octets| octets[7] = 2), InvalidReply::Malformed),
        (
            "a compression pointer to itself",
            bytes(&|octets| {
                let at = octets.len() - 16;
                octets[at + 1] = at as u8;
            }),
            InvalidReply::Malformed,
        ),
        (
            "a compression pointer into a TTL, which changes with age",
            {
                let mut octets = reply(&asked, ResponseCode::NoError, &two()).to_vec().unwrap();
                let (ttl, last) = (12 + question(&query).len() + 6, octets.len() - 1);
                assert_eq!(octets[ttl..ttl + 4], [0, 0, 1, 44]);
                octets[last] = ttl as u8 + 2;
                octets
            },
            InvalidReply::Malformed,
        ),
        (
            "an owner name whose label starts in an earlier record and spans its own record's TTL",
            {
                let head = reply(&asked, ResponseCode::NoError, &two()).to_vec().unwrap();
                let head = &head[..12 + question(&query).len()];
                let first = record(12, 16, &[0, 15]);
                // The label runs from the last octet of the first record to the zero that ends the address.
                [head, &first, &record(head.len() + first.len() - 1, 1, &[192, 0, 2, 0])].concat()
            },
            InvalidReply::Malformed,
        ),
        (
            "a CNAME loop",
            with(&|message| {
                message.answers = parse("www.example 60 CNAME b.example.\nb.example 60 CNAME WWW.example.");
            }),
            InvalidReply::CnameLoop,
        ),
    ];
    for (case, message, invalid) in cases {
        let found = Entry::parse(&message, &question(&query), TTLS, 0, |_| false);
        assert_eq!(found.err(), Some(invalid), "{case}");
    }
}
