//! Replies of upstreams, whole, damaged and made up: what is passed on can be read by another parser, fits its limit, and
//! carries the client's id and question.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/upstream.rs"]
#[allow(unused_imports)]
mod upstream;

use callsign::answer::{ForwardReason, ForwardRequest};
use callsign::forward::{Entry, Freshness, InvalidReply, Ttls};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;
use upstream::{parse, reply};

const TTLS: Ttls = Ttls { floor: 0, ceiling: 3600 };

/// The question in lower case, as it is sent to upstreams: name, type, class.
fn question(query: &[u8]) -> Vec<u8> {
    let name = callsign::wire::Name::parse(query, 12).unwrap();
    let end = 12 + name.wire_len();
    [name.wire(), &query[end..end + 4]].concat()
}

fn ask(query: &[u8], limit: u16, edns: Option<u8>) -> ForwardRequest {
    let end = (12 + question(query).len()) as u16;
    ForwardRequest { end, qtype: 1, limit, flags: 0x0100, edns, reason: ForwardReason::Outside }
}

/// Types of record whose contents are looked at: another parser has no reason to refuse what is left of them.
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
             b.example 100 A 192.0.2.2\nb.example 50 MX 10 a.example.",
        ),
    );
    reply.authorities = parse("example 60 SOA ns.example. hostmaster.example. 1 2 3 4 60\nexample 60 NS ns.example.");
    reply.additionals = parse("ns.example 60 AAAA 2001:db8::53\n_x._tcp.example 60 SRV 1 2 3 a.example.");
    reply.to_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_passed_on_is_sound(
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
                let Some(length) = entry.write(&query, &ask, age, 1232, &mut buffer) else { continue };
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
    fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let query = common::query("www.example. A", None);
        let _ = Entry::parse(&noise, &question(&query), TTLS, 0, |_| true);
        // And behind a header and question that are right.
        let head = &whole(&query)[..12 + question(&query).len()];
        let _ = Entry::parse(&[head, &noise].concat(), &question(&query), TTLS, 0, |_| true);
    }
}

#[test]
fn what_fits_is_sent_and_what_was_asked_for_comes_first() {
    let query = common::query("www.example. A", None);
    let entry = Entry::parse(&whole(&query), &question(&query), TTLS, 0, |_| false).unwrap();
    let mut buffer = vec![0; 65_535];
    let mut seen = Vec::new();
    for limit in (29..400).rev() {
        let length = entry.write(&query, &ask(&query, limit, None), Freshness::Fresh(0), 1232, &mut buffer).unwrap();
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
    assert_eq!(seen, expected, "additional records go first, then the authority, and only then what was asked for");
}

#[test]
fn ttls_and_what_is_kept() {
    let query = common::query("www.example. A", None);
    let asked = Message::from_vec(&query).unwrap();
    let soa = "example 600 SOA ns.example. hostmaster.example. 1 2 3 4 120";
    let cases: [(&str, &str, &str, ResponseCode, u32); 12] = [
        (
            "an alias of another type and nothing else",
            "www.example 300 CNAME b.example.",
            soa,
            ResponseCode::NoError,
            120,
        ),
        ("an alias to nothing, without SOA", "www.example 300 CNAME b.example.", "", ResponseCode::NoError, 0),
        (
            "the smallest TTL of the answer",
            "www.example 300 A 192.0.2.1\nwww.example 200 A 192.0.2.2",
            "",
            ResponseCode::NoError,
            200,
        ),
        ("no more than the ceiling", "www.example 90000 A 192.0.2.1", "", ResponseCode::NoError, 3600),
        ("a TTL of zero is not kept", "www.example 0 A 192.0.2.1", "", ResponseCode::NoError, 0),
        ("the highest bit means zero (RFC 2181)", "www.example 2147483648 A 192.0.2.1", "", ResponseCode::NoError, 0),
        ("NODATA: the SOA's minimum", "", soa, ResponseCode::NoError, 120),
        ("NXDOMAIN: the same", "", soa, ResponseCode::NXDomain, 120),
        ("an alias to nothing: both", "www.example 30 CNAME b.example.", soa, ResponseCode::NXDomain, 30),
        ("negative without SOA", "", "", ResponseCode::NXDomain, 0),
        ("SERVFAIL", "", "", ResponseCode::ServFail, 5),
        ("REFUSED", "", "", ResponseCode::Refused, 0),
    ];
    for (case, answers, authority, rcode, ttl) in cases {
        let mut message = reply(&asked, rcode, &parse(answers));
        message.authorities = parse(authority);
        let entry = Entry::parse(&message.to_vec().unwrap(), &question(&query), TTLS, 7, |_| false).unwrap();
        assert_eq!(entry.ttl, ttl, "{case}");
        if ttl > 0 {
            assert_eq!(entry.age(7 + ttl - 1), Freshness::Fresh(ttl - 1), "{case}");
            assert_eq!(entry.age(7 + ttl), Freshness::Expired, "{case}");
        }
    }
}

#[test]
fn what_leads_into_the_cluster() {
    let ours = |name: &callsign::wire::Name| name.wire().ends_with(b"\x05local\0");
    let through = "www.example 60 CNAME a.ns.svc.cluster.local.\na.ns.svc.cluster.local 60 CNAME b.example.\nb.example 60 A 192.0.2.1";
    for (case, question, answers, leads_in) in [
        ("nowhere", "www.example. A", "www.example 60 A 192.0.2.1", false),
        ("to its end", "www.example. A", "www.example 60 CNAME a.ns.svc.cluster.local.", true),
        ("through it", "www.example. A", through, true),
        ("the alias itself is asked for", "www.example. CNAME", "www.example 60 CNAME a.ns.svc.cluster.local.", false),
    ] {
        let query = common::query(question, None);
        let mut message = reply(&Message::from_vec(&query).unwrap(), ResponseCode::NoError, &parse(answers));
        message.additionals = parse("a.ns.svc.cluster.local 60 A 10.1.2.3");
        let entry = Entry::parse(&message.to_vec().unwrap(), &self::question(&query), TTLS, 0, ours).unwrap();
        assert_eq!(entry.leads_in, leads_in, "{case}");
        let kept = Message::from_vec(&entry.message(&self::question(&query))).unwrap();
        assert!(kept.additionals.is_empty(), "{case}: what the cluster's names are, the table says");
    }
}

#[test]
fn words_about_an_answer_never_cost_the_answer() {
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
        let length =
            entry.write(&query, &ask(&query, limit, Some(0)), Freshness::Fresh(0), 1232, &mut buffer).expect("a reply");
        let message = Message::from_vec(&buffer[..length]).unwrap();
        assert!(length <= usize::from(limit) && message.answers.len() == 1, "{limit}");
    }
}

#[test]
fn nothing_stands_in_longer_than_it_may() {
    let query = common::query("www.example. A", None);
    let message =
        reply(&Message::from_vec(&query).unwrap(), ResponseCode::NoError, &parse("www.example 60 A 192.0.2.1"));
    let entry = Entry::parse(&message.to_vec().unwrap(), &question(&query), TTLS, 0, |_| false).unwrap();
    entry.stand_in_until(90, 0);
    assert_eq!((entry.age(59), entry.age(61)), (Freshness::Fresh(59), Freshness::Expired), "--cache-stale 0");
    entry.stand_in_until(90, 3600);
    assert_eq!((entry.age(61), entry.age(91)), (Freshness::Stale, Freshness::Expired));
}

#[test]
fn what_is_not_passed_on() {
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
        ("nothing", vec![], InvalidReply::Foreign),
        ("a query", query.clone(), InvalidReply::Foreign),
        (
            "another name",
            with(&|message| {
                message.queries[0].set_name(upstream::name("w.example"));
            }),
            InvalidReply::Foreign,
        ),
        (
            "another type, which differs by a bit that letters fold",
            {
                let mut query = common::query("www.example. TYPE65", None);
                query[2] |= 0x80;
                query
            },
            InvalidReply::Foreign,
        ),
        ("cut off", with(&|message| message.metadata.truncation = true), InvalidReply::Truncated),
        ("a record that does not end", bytes(&|octets| octets.truncate(octets.len() - 1)), InvalidReply::Damaged),
        ("more records than there are", bytes(&|octets| octets[7] = 2), InvalidReply::Damaged),
        (
            "a pointer to itself",
            bytes(&|octets| {
                let at = octets.len() - 16;
                octets[at + 1] = at as u8;
            }),
            InvalidReply::Damaged,
        ),
        (
            "a name that leads into a TTL, which changes with age",
            {
                let mut octets = reply(&asked, ResponseCode::NoError, &two()).to_vec().unwrap();
                let (ttl, last) = (12 + question(&query).len() + 6, octets.len() - 1);
                assert_eq!(octets[ttl..ttl + 4], [0, 0, 1, 44]);
                octets[last] = ttl as u8 + 2;
                octets
            },
            InvalidReply::Damaged,
        ),
        (
            "a label that reaches from an earlier record over the TTL of the one that it names",
            {
                let head = reply(&asked, ResponseCode::NoError, &two()).to_vec().unwrap();
                let head = &head[..12 + question(&query).len()];
                let first = record(12, 16, &[0, 15]);
                // The last octet of the first record, and what follows, up to the zero that ends the address.
                [head, &first, &record(head.len() + first.len() - 1, 1, &[192, 0, 2, 0])].concat()
            },
            InvalidReply::Damaged,
        ),
        (
            "aliases in a circle",
            with(&|message| {
                message.answers = parse("www.example 60 CNAME b.example.\nb.example 60 CNAME WWW.example.");
            }),
            InvalidReply::Circle,
        ),
    ];
    for (case, message, unfit) in cases {
        let found = Entry::parse(&message, &question(&query), TTLS, 0, |_| false);
        assert_eq!(found.err(), Some(unfit), "{case}");
    }
}
