//! Well-formed and malformed messages as octets, and the replies to them (RFC 1035, 6891, 7766, 8906, 9619).

use crate::common::{self, CLIENT, query, reply};
use callsign::answer::{Limit, Verdict};
use callsign::zone::Zone;
use hickory_proto::op::Message;
use proptest::prelude::*;
use std::sync::Arc;

const OBJECTS: &str = r#"
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: db, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: db-1, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [10.1.0.1], hostname: db-0}, {addresses: [10.1.0.2], hostname: db-1}]
---
kind: Service
metadata: {name: out, namespace: web}
spec: {type: ExternalName, externalName: www.example.com}
"#;

fn zone() -> Arc<Zone> {
    common::zone(OBJECTS, &["--namespace", "web"])
}

/// Returns a query for `api.web.svc.cluster.local A` with these header fields, and with `more` after the question.
fn message(flags: u16, counts: [u16; 4], more: &[u8]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34];
    message.extend(flags.to_be_bytes());
    message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    message.extend(b"\x03api\x03web\x03svc\x07cluster\x05local\0\x00\x01\x00\x01");
    message.extend(more);
    message
}

const OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

fn opt(version: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut opt = vec![0, 0, 41, 16, 0, 0, version, flags, 0];
    opt.extend((options.len() as u16).to_be_bytes());
    opt.extend(options);
    opt
}

/// Summarizes a reply: its rcode (with the extended bits of the OPT), the flags that are set, and the section counts.
fn summary(reply: Option<Vec<u8>>) -> String {
    let Some(reply) = reply else { return "nothing".to_owned() };
    let flags = u16::from_be_bytes([reply[2], reply[3]]);
    let mut rcode = flags & 15;
    let counts: Vec<u16> = (4..12).step_by(2).map(|at| u16::from_be_bytes([reply[at], reply[at + 1]])).collect();
    let mut text = String::new();
    if counts[3] > 0 && Message::from_vec(&reply).unwrap().edns.is_some() {
        let at = reply.len() - if reply.ends_with(&[0, 0]) { 11 } else { 17 };
        rcode |= u16::from(reply[at + 5]) << 4;
        text += if reply[at + 7] & 0x80 != 0 { " opt+do" } else { " opt" };
    }
    for (bit, name) in [
        (0x8000, " qr"),
        (0x400, " aa"),
        (0x200, " tc"),
        (0x100, " rd"),
        (0x80, " ra"),
        (0x40, " z"),
        (0x20, " ad"),
        (0x10, " cd"),
    ] {
        if flags & bit != 0 {
            text += name;
        }
    }
    if flags & 0x7800 != 0 {
        text += &format!(" opcode{}", (flags >> 11) & 15);
    }
    format!("{rcode}{text} {}/{}/{}/{}", counts[0], counts[1], counts[2], counts[3])
}

#[test]
fn well_formed_and_malformed_messages_get_the_right_reply() {
    let zone = zone();
    let two_questions =
        [&message(0, [2, 0, 0, 0], &[])[..], b"\x03api\x03web\x03svc\x07cluster\x05local\0\x00\x1c\x00\x01"].concat();
    let mut pointer = message(0, [1, 0, 0, 0], &[]);
    pointer.splice(16..20, [0xc0, 0x0c]);
    let without_question = [&message(0, [0, 0, 0, 1], &[])[..12], OPT].concat();
    let mut class = message(0, [1, 0, 0, 0], &[]);
    let last = class.len() - 1;
    class[last] = 3;
    let record = b"\x01x\0\x00\x01\x00\x01\0\0\0\0\0\x04\x01\x02\x03\x04";
    let root_question = [&message(0, [1, 0, 0, 0], &[])[..12], &[0, 0, 1, 0, 1]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a plain query", message(0x0100, [1, 0, 0, 0], &[]), "0 qr aa rd 1/1/0/0"),
        ("RD and CD are copied, AD and Z are cleared", message(0x0170, [1, 0, 0, 0], &[]), "0 qr aa rd cd 1/1/0/0"),
        ("AA, TC and RA in a query are ignored", message(0x0780, [1, 0, 0, 0], &[]), "0 qr aa rd 1/1/0/0"),
        ("an rcode in a query is ignored", message(0x0003, [1, 0, 0, 0], &[]), "0 qr aa 1/1/0/0"),
        ("EDNS", message(0, [1, 0, 0, 1], OPT), "0 opt qr aa 1/1/0/1"),
        ("the DO bit is copied (RFC 3225)", message(0, [1, 0, 0, 1], &opt(0, 0x80, &[])), "0 opt+do qr aa 1/1/0/1"),
        ("EDNS version 1", message(0, [1, 0, 0, 1], &opt(1, 0, &[])), "16 opt qr 1/0/0/1"),
        ("EDNS version 255", message(0, [1, 0, 0, 1], &opt(255, 0, &[])), "16 opt qr 1/0/0/1"),
        (
            "an unknown EDNS flag is ignored (RFC 8906 3.2.4)",
            message(0, [1, 0, 0, 1], &opt(0, 0x40, &[])),
            "0 opt qr aa 1/1/0/1",
        ),
        (
            "an unknown option is ignored (RFC 8906 3.2.2)",
            message(0, [1, 0, 0, 1], &opt(0, 0, &[0, 100, 0, 2, 1, 2])),
            "0 opt qr aa 1/1/0/1",
        ),
        ("an unknown option in version 1", message(0, [1, 0, 0, 1], &opt(1, 0, &[0, 100, 0, 0])), "16 opt qr 1/0/0/1"),
        ("a truncated option", message(0, [1, 0, 0, 1], &opt(0, 0, &[0, 100, 0, 9, 1])), "1 qr 0/0/0/0"),
        ("two OPTs", message(0, [1, 0, 0, 2], &[OPT, OPT].concat()), "1 qr 0/0/0/0"),
        ("an OPT whose owner is not the root", message(0, [1, 0, 0, 1], &[&[1, b'x'], OPT].concat()), "1 qr 0/0/0/0"),
        ("an OPT after another record", message(0, [1, 0, 0, 2], &[record, OPT].concat()), "0 opt qr aa 1/1/0/1"),
        (
            "records in answer and authority, as in IXFR",
            message(0, [1, 1, 1, 1], &[record, record, OPT].concat()),
            "0 opt qr aa 1/1/0/1",
        ),
        ("a record that is counted but missing", message(0, [1, 0, 0, 1], &[]), "1 qr 0/0/0/0"),
        ("a truncated record", message(0, [1, 0, 0, 1], &OPT[..9]), "1 qr 0/0/0/0"),
        ("octets after the message", message(0, [1, 0, 0, 0], b"trailing"), "0 qr aa 1/1/0/0"),
        ("no question (RFC 9619)", message(0, [0, 0, 0, 0], &[])[..12].to_vec(), "1 qr 0/0/0/0"),
        ("two questions", two_questions, "1 qr 0/0/0/0"),
        ("a question that is counted but missing", message(0, [1, 0, 0, 0], &[])[..12].to_vec(), "1 qr 0/0/0/0"),
        ("a question without its class", message(0, [1, 0, 0, 0], &[])[..41].to_vec(), "1 qr 0/0/0/0"),
        ("a truncated name", message(0, [1, 0, 0, 0], &[])[..20].to_vec(), "1 qr 0/0/0/0"),
        ("a compression pointer in the question", pointer, "1 qr 0/0/0/0"),
        ("half a header", vec![0x12, 0x34, 0, 0, 0, 1], "nothing"),
        ("nothing at all", vec![], "nothing"),
        ("a reply", message(0x8000, [1, 0, 0, 0], &[]), "nothing"),
        ("a reply with another opcode", message(0xa800, [1, 0, 0, 0], &[]), "nothing"),
        ("class CHAOS", class, "5 qr 1/0/0/0"),
        ("opcode IQUERY", message(0x0800, [1, 0, 0, 0], &[]), "4 qr opcode1 1/0/0/0"),
        ("opcode STATUS", message(0x1000, [1, 0, 0, 0], &[]), "4 qr opcode2 1/0/0/0"),
        ("opcode NOTIFY", message(0x2000, [1, 0, 0, 0], &[]), "4 qr opcode4 1/0/0/0"),
        ("opcode UPDATE", message(0x2800, [1, 0, 0, 0], &[]), "4 qr opcode5 1/0/0/0"),
        ("opcode 15 without a question", message(0x7800, [0, 0, 0, 0], &[])[..12].to_vec(), "4 qr opcode15 0/0/0/0"),
        ("opcode UPDATE with EDNS", message(0x2800, [1, 0, 0, 1], OPT), "4 opt qr opcode5 1/0/0/1"),
        ("no question, with EDNS", without_question, "1 opt qr 0/0/0/1"),
        ("a query for the root", root_question, "5 qr 1/0/0/0"),
    ];
    for (case, query, expected) in cases {
        let found = reply(&zone, CLIENT, &query, Limit::Datagram);
        assert_eq!(summary(found.clone()), expected, "{case}");
        if let Some(found) = found {
            assert_eq!(found[..2], query[..2], "{case}: the id is copied");
        }
    }
}

#[test]
fn names_and_labels_are_accepted_up_to_their_length_limits() {
    let zone = zone();
    let question = |name: &[u8]| [&[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat();
    let suffix: &[u8] = b"\x03svc\x07cluster\x05local\0";
    let label = |length: u8| [&[length][..], &vec![b'a'; usize::from(length)]].concat();
    let long = |last: u8| [label(63), label(63), label(63), label(last), suffix.to_vec()].concat();
    assert_eq!(long(43).len(), 255);
    for (case, name, expected) in [
        ("a label of 63 octets", [label(63), suffix.to_vec()].concat(), 3),
        ("a name of 255 octets", long(43), 3),
        ("a name of 256 octets", long(44), 1),
        ("a label of 64 octets", [label(64), suffix.to_vec()].concat(), 1),
        ("a label of arbitrary octets", [vec![3, 0, 255, b'.'], suffix.to_vec()].concat(), 3),
    ] {
        let found = reply(&zone, CLIENT, &question(&name), Limit::Datagram).unwrap();
        assert_eq!(found[3] & 15, expected, "{case}");
    }
}

#[test]
fn two_hundred_endpoints_are_truncated_to_each_size_limit() {
    let endpoints: Vec<String> =
        (0..200).map(|n| format!("{{addresses: [10.2.{}.{}], hostname: pod-{n}}}", n / 100, n % 100)).collect();
    let objects = format!(
        "kind: Service\nmetadata: {{name: many, namespace: web}}\nspec: {{clusterIP: None}}\n---\nkind: EndpointSlice\n\
         metadata: {{name: many-1, namespace: web, labels: {{kubernetes.io/service-name: many}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 80}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    let zone = common::zone(&objects, &["--udp-payload", "4096"]);
    for (case, question, payload, limit, answers, glue, truncated) in [
        ("A in 512 octets", "many.web.svc.cluster.local A", None, Limit::Datagram, 29, 0, true),
        ("A in 1232 octets", "many.web.svc.cluster.local A", Some(1232), Limit::Datagram, 73, 0, true),
        ("A in 4096 octets: all answers", "many.web.svc.cluster.local A", Some(4096), Limit::Datagram, 200, 0, false),
        ("A over TCP", "many.web.svc.cluster.local A", Some(1232), Limit::Stream, 200, 0, false),
        (
            "SRV in 512 octets: no glue, fewer answers",
            "_http._tcp.many.web.svc.cluster.local SRV",
            None,
            Limit::Datagram,
            8,
            0,
            true,
        ),
        ("SRV in 4096 octets", "_http._tcp.many.web.svc.cluster.local SRV", Some(4096), Limit::Datagram, 76, 0, true),
        (
            "SRV over TCP: all answers, and glue as far as compression pointers reach",
            "_http._tcp.many.web.svc.cluster.local SRV",
            None,
            Limit::Stream,
            200,
            200,
            false,
        ),
    ] {
        let found = reply(&zone, CLIENT, &query(question, payload), limit).unwrap();
        let message = Message::from_vec(&found).unwrap();
        let counted = (message.answers.len(), message.additionals.len(), message.metadata.truncation);
        assert_eq!(counted, (answers, glue, truncated), "{case}");
    }
}

#[test]
fn glue_is_dropped_first_and_without_tc() {
    // Seventeen endpoints: their SRV records fit into 1,232 octets, their glue does not.
    let endpoints: Vec<String> = (0..17).map(|n| format!("{{addresses: [10.2.0.{n}]}}")).collect();
    let objects = format!(
        "kind: Service\nmetadata: {{name: ten, namespace: web}}\nspec: {{clusterIP: None}}\n---\nkind: EndpointSlice\n\
         metadata: {{name: ten-1, namespace: web, labels: {{kubernetes.io/service-name: ten}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 80}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    let zone = common::zone(&objects, &[]);
    let found = reply(&zone, CLIENT, &query("ten.web.svc.cluster.local SRV", Some(1232)), Limit::Datagram).unwrap();
    let message = Message::from_vec(&found).unwrap();
    assert_eq!((message.answers.len(), message.metadata.truncation), (17, false));
    assert!(message.additionals.len() < 17, "{}", message.additionals.len());
}

#[test]
fn answers_rotate() {
    let zone = zone();
    let mut buffer = vec![0; 512];
    let query = query("db.web.svc.cluster.local A", None);
    let mut firsts = Vec::new();
    let mut scratch = callsign::answer::Scratch::new(u16::MAX);
    for _ in 0..4 {
        let verdict = callsign::answer::answer(&zone, CLIENT, &query, Limit::Datagram, &mut scratch, &mut buffer);
        let callsign::answer::Verdict::Reply { len, .. } = verdict else { panic!("{verdict:?}") };
        let message = Message::from_vec(&buffer[..len]).unwrap();
        firsts.push(message.answers[0].data.to_string());
    }
    assert_eq!(firsts, ["10.1.0.1", "10.1.0.2", "10.1.0.1", "10.1.0.2"]);
}

#[test]
fn possible_cluster_names_get_servfail_before_the_first_sync() {
    let settings = common::config(&["--namespace", "web"]).settings;
    let zone = Zone::unsynced(Arc::new(settings));
    for (question, expected) in [
        ("api.web.svc.cluster.local A", "2 opt qr rd 1/0/0/1"),
        ("cluster.local SOA", "2 opt qr rd 1/0/0/1"),
        ("1.0.96.10.in-addr.arpa PTR", "2 opt qr rd 1/0/0/1"),
        ("api A", "2 opt qr rd 1/0/0/1"),
        ("api.web A", "2 opt qr rd 1/0/0/1"),
        ("db-0.db.web A", "2 opt qr rd 1/0/0/1"),
        ("_http._tcp.api.web.svc SRV", "2 opt qr rd 1/0/0/1"),
        ("a.b.c.example.com A", "5 opt qr rd 1/0/0/1"),
    ] {
        let found = reply(&zone, CLIENT, &query(question, Some(1232)), Limit::Datagram).unwrap();
        assert_eq!(summary(Some(found.clone())), expected, "{question}");
        if expected.starts_with('2') {
            // RFC 8914: option 15, code 14 (Not Ready).
            assert!(found.ends_with(&[0, 6, 0, 15, 0, 2, 0, 14]), "{question}");
        }
    }
}

#[test]
fn clients_outside_allow_from_are_always_refused() {
    let zone = common::zone(OBJECTS, &["--allow-from", "10.0.0.0/8", "--allow-from", "fd00::/8"]);
    for (address, expected) in
        [("10.1.2.3", 0), ("fd00::1", 0), ("192.0.2.1", 5), ("2001:db8::1", 5), ("::ffff:10.0.0.1", 0)]
    {
        let caller = callsign::zone::Caller::Address(address.parse::<std::net::IpAddr>().unwrap().to_canonical());
        for question in ["api.web.svc.cluster.local A", "cluster.local SOA", "dns-version.cluster.local TXT"] {
            let found = reply(&zone, caller, &query(question, None), Limit::Datagram).unwrap();
            assert_eq!(found[3] & 15, expected, "{address} {question}");
        }
    }
}

/// Checks the invariants that hold for the reply to any message.
fn check(zone: &Zone, message: &[u8]) {
    for (limit, most) in [(Limit::Datagram, 1232), (Limit::Stream, 65_535)] {
        let Some(found) = reply(zone, CLIENT, message, limit) else {
            assert!(
                message.len() < 12 || message[2] & 0x80 != 0,
                "only a reply, or a message without a header, gets no reply"
            );
            continue;
        };
        assert!(found.len() <= most);
        assert_eq!(found[..2], message[..2], "the id is copied");
        assert_eq!(found[2] & 0xf8, message[2] & 0x78 | 0x80, "QR is set and the opcode is copied");
        let parsed = Message::from_vec(&found).unwrap_or_else(|error| panic!("{error}: {found:?} to {message:?}"));
        if parsed.queries.len() == 1 {
            let mut end = 12;
            while message[end] != 0 {
                end += 1 + usize::from(message[end]);
            }
            assert_eq!(found[12..end + 5], message[12..end + 5], "the question is copied unchanged");
        } else {
            let rcode = found[3] & 15;
            assert!(rcode == 1 || rcode == 4, "only FORMERR and NOTIMP have no question");
        }
    }
}

/// Generates queries with up to five changed octets, some of them truncated.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "api.web.svc.cluster.local",
        "db.web.svc.cluster.local",
        "db-0.db.web.svc.cluster.local",
        "out.web.svc.cluster.local",
        "_http._tcp.api.web.svc.cluster.local",
        "1.0.1.10.in-addr.arpa",
        "cluster.local",
        "api",
        "api.web",
        "nope.web.svc.cluster.local",
    ]);
    let types = prop::sample::select(vec!["A", "AAAA", "SRV", "PTR", "SOA", "NS", "TXT", "ANY", "TYPE65280"]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (names, types, prop::option::of(any::<u16>()), changes, any::<Option<prop::sample::Index>>()).prop_map(
        |(name, rtype, payload, changes, cut)| {
            let mut message = query(&format!("{name} {rtype}"), payload);
            for (place, octet) in changes {
                let at = place.index(message.len());
                message[at] = octet;
            }
            if let Some(cut) = cut {
                message.truncate(cut.index(message.len() + 1));
            }
            message
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn random_octets_get_a_valid_reply_or_none(message in prop::collection::vec(any::<u8>(), 0..600)) {
        thread_local!(static ZONE: Arc<Zone> = zone());
        ZONE.with(|zone| check(zone, &message));
    }

    #[test]
    fn mutated_queries_get_a_valid_reply_or_none(message in mutated()) {
        thread_local!(static ZONE: Arc<Zone> = zone());
        ZONE.with(|zone| check(zone, &message));
    }
}

/// `CALLSIGN_MESSAGES` sets the number of messages; ten million take a minute in a release build.
#[test]
fn many_mutated_messages_get_a_valid_reply_or_none() {
    let count: u64 = std::env::var("CALLSIGN_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let zone = zone();
    let seeds: Vec<Vec<u8>> = [
        "api.web.svc.cluster.local A",
        "db.web.svc.cluster.local SRV",
        "out.web.svc.cluster.local A",
        "api A",
        "mysql.web A",
        "1.0.1.10.in-addr.arpa PTR",
        "cluster.local NS",
        "nope.web.svc.cluster.local AAAA",
        "_sql._tcp.db.web SRV",
        "10-1-0-1.db.web.svc.cluster.local ANY",
    ]
    .iter()
    .flat_map(|question| [query(question, None), query(question, Some(1232))])
    .collect();
    // xorshift64*: fast, and deterministic.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut dice = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    let mut message = Vec::new();
    for round in 0..count {
        message.clear();
        if round % 8 == 0 {
            message.extend((0..dice() % 300).map(|_| dice() as u8));
        } else {
            message.extend(&seeds[dice() as usize % seeds.len()]);
            for _ in 0..dice() % 5 {
                let at = dice() as usize % message.len();
                match dice() % 4 {
                    0 => message[at] = dice() as u8,
                    1 => message[at] ^= 1 << (dice() % 8),
                    2 => message.insert(at, dice() as u8),
                    _ => drop(message.remove(at)),
                }
            }
        }
        check(&zone, &message);
    }
}

/// The layers around a DNS message in encrypted transports: URIs, streams, and the checks that they need.
mod encapsulated {
    use super::*;
    use callsign::server::encrypted::{doq, http as doh};
    use callsign::wire::{freshness, has_option};
    use data_encoding::BASE64URL_NOPAD;

    fn get(query: &str) -> Result<doh::QuestionSource, doh::Refusal> {
        let uri = http::Uri::try_from(format!("https://dns.example/dns-query?{query}")).unwrap();
        doh::asked(&http::Request::get(uri).body(()).unwrap().into_parts().0)
    }

    proptest! {
        #[test]
        fn the_dns_parameter_of_a_uri_decodes_to_the_message(message in prop::collection::vec(any::<u8>(), 0..5000)) {
            let found = get(&format!("dns={}", BASE64URL_NOPAD.encode(&message)));
            if message.len() <= 4096 {
                prop_assert_eq!(found, Ok(doh::QuestionSource::Message(message)));
            } else {
                prop_assert_eq!(found.unwrap_err().status.as_u16(), 414);
            }
        }

        #[test]
        fn any_query_part_of_a_uri_is_accepted_or_refused(query in "[!-~&&[^#<>\"`{}|\\\\^]]{0,300}") {
            let _ = get(&query);
            let _ = get(&format!("dns={query}"));
        }

        #[test]
        fn doq_questions_are_validated(octets in prop::collection::vec(any::<u8>(), 0..5000), framed in any::<bool>()) {
            let octets = if framed { [&(octets.len() as u16).to_be_bytes()[..], &octets].concat() } else { octets };
            if let Ok(message) = doq::question(&octets) {
                prop_assert!(message.starts_with(&[0, 0]));
                prop_assert!(octets[2..].starts_with(message));
                prop_assert!(message.len() <= 4096);
            }
        }

        #[test]
        fn noise_does_not_cause_a_panic(octets in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = (freshness(&octets), has_option(&octets, 11));
            let behind = message(0x0100, [1, 2, 2, 2], &octets);
            let _ = (freshness(&behind), has_option(&behind, 11));
        }
    }

    #[test]
    fn a_reply_stays_fresh_for_its_smallest_ttl() {
        let zone = zone();
        for (case, question, expected) in [
            ("an address", "api.web.svc.cluster.local A", Some(5)),
            ("several addresses", "db.web.svc.cluster.local A", Some(5)),
            ("an answer with glue, whose TTLs are ignored", "_sql._tcp.db.web.svc.cluster.local SRV", Some(5)),
            ("an alias", "out.web.svc.cluster.local A", Some(5)),
            ("NXDOMAIN: the SOA's minimum", "none.web.svc.cluster.local A", Some(5)),
            ("NODATA: the SOA's minimum", "api.web.svc.cluster.local AAAA", Some(5)),
            ("REFUSED: no lifetime", "www.example.com A", None),
        ] {
            let found = reply(&zone, CLIENT, &query(question, Some(1232)), Limit::Stream).unwrap();
            assert_eq!(freshness(&found), expected, "{case}");
        }
        let record = |owner: &[u8], rtype: u8, ttl: u32, data: &[u8]| {
            let head = [owner, &[0, rtype, 0, 1], &ttl.to_be_bytes(), &(data.len() as u16).to_be_bytes()].concat();
            [head, data.to_vec()].concat()
        };
        let soa = |ttl, minimum: u32| record(&[0], 6, ttl, &[&[0; 18][..], &minimum.to_be_bytes()].concat());
        for (case, counts, records, expected) in [
            (
                "the smallest TTL in the answer",
                [1, 2, 0, 0],
                [record(&[0], 1, 9, &[0; 4]), record(&[0], 1, 7, &[0; 4])].concat(),
                Some(7),
            ),
            ("the SOA's TTL, if it is the smaller one", [1, 0, 1, 0], soa(3, 60), Some(3)),
            ("the SOA's minimum, if it is the smaller one", [1, 0, 1, 0], soa(60, 4), Some(4)),
            ("CNAME and SOA: the smaller TTL", [1, 1, 1, 0], [record(&[0], 5, 9, &[0]), soa(60, 30)].concat(), Some(9)),
            ("a SOA too short to hold a minimum", [1, 0, 1, 0], record(&[0], 6, 9, &[0; 3]), None),
            ("fewer records than the header counts", [1, 2, 0, 0], record(&[0], 1, 9, &[0; 4]), None),
        ] {
            assert_eq!(freshness(&message(0x8100, counts, &records)), expected, "{case}");
        }
    }

    #[test]
    fn an_option_is_found_only_in_a_well_formed_opt() {
        for (case, counts, more, expected) in [
            ("no OPT", [1, 0, 0, 0], vec![], false),
            ("an OPT without options", [1, 0, 0, 1], OPT.to_vec(), false),
            ("another option", [1, 0, 0, 1], opt(0, 0, &[0, 10, 0, 1, 11]), false),
            ("the option", [1, 0, 0, 1], opt(0, 0, &[0, 11, 0, 0]), true),
            ("after another option", [1, 0, 0, 1], opt(0, 0, &[0, 10, 0, 1, 11, 0, 11, 0, 2, 0, 9]), true),
            ("a truncated OPT", [1, 0, 0, 1], opt(0, 0, &[0, 11, 0, 0])[..12].to_vec(), false),
        ] {
            assert_eq!(has_option(&message(0x0100, counts, &more), 11), expected, "{case}");
        }
    }
}

#[test]
fn types_that_no_record_has_are_refused_here() {
    let zone = common::zone(
        "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.1}\n",
        &["--upstream", "192.0.2.53"],
    );
    for (case, qtype, rcode) in [
        ("reserved", 0, 1),
        ("OPT", 41, 1),
        ("TSIG", 250, 1),
        ("TKEY", 249, 4),
        ("MAILB", 253, 4),
        ("an unassigned meta type", 200, 4),
        ("AXFR", 252, 5),
    ] {
        for name in ["www.example.", "api.web.svc.cluster.local."] {
            let found =
                reply(&zone, CLIENT, &common::query(&format!("{name} TYPE{qtype}"), None), Limit::Datagram).unwrap();
            assert_eq!(found[3] & 0x0f, rcode, "{case}, {name}");
        }
    }
}

#[test]
fn names_and_addresses_that_nobody_knows_are_not_forwarded() {
    let flags = ["--upstream", "192.0.2.53", "--stub", "168.192.in-addr.arpa=192.0.2.54"];
    let zone =
        common::zone("kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.1}\n", &flags);
    for (case, question, expected) in [
        ("a name under .alt (RFC 9476)", "site.gns.alt. A", Some("NXDOMAIN aa")),
        ("a private address (RFC 6303)", "9.9.9.10.in-addr.arpa. PTR", Some("NXDOMAIN aa\nsoa 10.in-addr.arpa.")),
        ("its zone", "9.9.10.in-addr.arpa. A", Some("NXDOMAIN aa\nsoa 10.in-addr.arpa.")),
        ("a shared address (RFC 7793)", "1.2.64.100.in-addr.arpa. PTR", Some("NXDOMAIN aa")),
        ("a private address in a stub zone", "9.9.168.192.in-addr.arpa. PTR", None),
        ("a public address", "8.8.8.8.in-addr.arpa. PTR", None),
        (
            "a local IPv6 address",
            &format!("{}d.f.ip6.arpa. PTR", "0.".repeat(30)),
            Some("NXDOMAIN aa\nsoa d.f.ip6.arpa."),
        ),
    ] {
        let (mut scratch, mut buffer) = (callsign::answer::Scratch::new(0), vec![0; 512]);
        let query = common::query(question, None);
        match callsign::answer::answer(&zone, CLIENT, &query, Limit::Datagram, &mut scratch, &mut buffer) {
            Verdict::Reply { len, .. } => {
                let found = common::text(&buffer[..len]);
                assert!(expected.is_some_and(|expected| found.starts_with(expected)), "{case}: {found}");
            }
            verdict => assert!(expected.is_none(), "{case}: {verdict:?}"),
        }
    }
}
