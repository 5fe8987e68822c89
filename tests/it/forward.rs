//! Names outside the cluster: forwarding, caching, and upstreams whose replies are invalid, late or missing.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::common::process::Server;
use crate::common::upstream::{Over, Upstream, from_zone, name, parse, reply, until};
use crate::common::{self, Scratch, exchange, process};

const CLUSTER: &str = r#"
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 3000}]}
---
kind: Service
metadata: {name: secret, namespace: vault, annotations: {callsign.dev/visible-to: namespace}}
spec: {clusterIP: 10.96.0.66}
---
kind: Service
metadata: {name: out, namespace: web}
spec: {type: ExternalName, externalName: WWW.example}
---
kind: Service
metadata: {name: gone, namespace: web}
spec: {type: ExternalName, externalName: missing.example}
---
kind: Service
metadata: {name: round, namespace: web}
spec: {type: ExternalName, externalName: into.example}
"#;

const WORLD: &str = "
    www.example 300 A 192.0.2.1
    www.example 300 AAAA 2001:db8::1
    alias.example 100 CNAME www.example.
    into.example 60 CNAME api.web.svc.cluster.local.
    hidden.example 60 CNAME secret.vault.svc.cluster.local.
    short.example 1 A 192.0.2.2
    never.example 0 A 192.0.2.3
    mail.example 60 MX 10 www.example.
    text.example 60 TXT \"some text\"
    srv.example 60 SRV 1 2 3 www.example.
    a.b.c.d.example 60 A 192.0.2.4
";

/// Starts a server for [`CLUSTER`] with these flags. Its only caller is in namespace `web`.
fn serve(flags: &[&str]) -> (Server, Scratch) {
    let scratch = Scratch::folder("forward");
    let path = scratch.file("cluster.yaml", CLUSTER);
    let own = ["--manifests", path.to_str().unwrap(), "--callers", "127.0.0.1/32=web"];
    let flags: Vec<&str> = own.iter().chain(flags).copied().collect();
    (Server::start(&flags, None), scratch)
}

/// A reply as text: rcode, flags and extended error; then its answers.
fn show(message: &Message) -> String {
    let mut head = format!("{:?}", message.metadata.response_code).to_uppercase();
    for (set, flag) in [
        (message.metadata.authoritative, " aa"),
        (message.metadata.truncation, " tc"),
        (message.metadata.authentic_data, " ad"),
    ] {
        head += if set { flag } else { "" };
    }
    assert!(message.metadata.recursion_available, "a forwarding server sets RA");
    if let Some(EdnsOption::Unknown(_, error)) =
        message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::from(15u16)))
    {
        head += &format!(" error {}", u16::from_be_bytes([error[0], error[1]]));
    }
    let answers = message
        .answers
        .iter()
        .map(|record| format!("\n{} {} {} {}", record.name, record.ttl, record.record_type(), record.data));
    head + &answers.collect::<String>()
}

fn ask(server: &Server, question: &str) -> String {
    let reply = exchange::udp(server.dns, &common::query(question, Some(1232))).expect("a reply");
    show(&Message::from_vec(&reply).unwrap())
}

#[test]
fn upstream_replies_reach_clients_and_cluster_names_do_not_leak() {
    let upstream = Upstream::serving(WORLD);
    let (server, _scratch) = serve(&[&upstream.flag()]);
    for (question, expected) in [
        ("www.example. A", "NOERROR\nwww.example. 300 A 192.0.2.1"),
        ("www.example. AAAA", "NOERROR\nwww.example. 300 AAAA 2001:db8::1"),
        ("WWW.Example. A", "NOERROR\nWWW.Example. 300 A 192.0.2.1"),
        ("alias.example. A", "NOERROR\nalias.example. 100 CNAME www.example.\nwww.example. 300 A 192.0.2.1"),
        ("mail.example. MX", "NOERROR\nmail.example. 60 MX 10 www.example."),
        ("text.example. TXT", "NOERROR\ntext.example. 60 TXT some text"),
        ("srv.example. SRV", "NOERROR\nsrv.example. 60 SRV 1 2 3 www.example."),
        ("www.example. MX", "NOERROR"),
        ("nope.nowhere. A", "NXDOMAIN"),
        ("api.web. A", "NOERROR aa\napi.web. 5 A 10.96.0.10"),
        ("api. A", "NOERROR aa\napi. 5 A 10.96.0.10"),
        ("nope. A", "NXDOMAIN aa"),
        ("nope.web. A", "NXDOMAIN aa"),
        ("nope.web.svc.cluster.local. A", "NXDOMAIN aa"),
        ("printer.local. A", "NXDOMAIN aa"),
        ("x.onion. A", "NXDOMAIN aa"),
        ("localhost. A", "NOERROR aa\nlocalhost. 5 A 127.0.0.1"),
    ] {
        assert_eq!(ask(&server, question), expected, "{question}");
    }
    let leaked: Vec<String> = upstream.questions();
    let leaked =
        leaked.iter().filter(|question| !question.contains(".example.") && !question.contains("nope.nowhere."));
    assert_eq!(leaked.count(), 0);
}

#[test]
fn unknown_types_errors_and_the_ad_bit_are_forwarded_unchanged() {
    let odd =
        RData::Unknown { code: RecordType::from(65_534), rdata: hickory_proto::rr::rdata::NULL::with(vec![1, 2, 3]) };
    let upstream = Upstream::start(move |query, _| {
        let question = query.queries.first().unwrap();
        let dnssec = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let mut reply = match question.name().to_lowercase().to_ascii().as_str() {
            "odd.example." => {
                let record = Record::from_rdata(question.name().clone(), 60, odd.clone());
                reply(query, ResponseCode::NoError, &[record])
            }
            "signed.example." => {
                let mut reply = reply(query, ResponseCode::NoError, &parse("signed.example 60 A 192.0.2.9"));
                reply.metadata.authentic_data = true;
                let text = if dnssec { "with signatures" } else { "without" };
                reply.additionals = parse(&format!("signed.example 60 TXT \"{text}\""));
                reply
            }
            "bogus.example." => reply(query, ResponseCode::ServFail, &[]),
            _ => reply(query, ResponseCode::from(0, 6), &[]),
        };
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        if question.name() == &name("bogus.example") {
            edns.options_mut().insert(EdnsOption::Unknown(15, vec![0, 6, b'b', b'a', b'd']));
        }
        // A cookie is valid for one hop only (RFC 7873).
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
        reply.set_edns(edns);
        vec![reply.to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    let with = |text: &str, set: &dyn Fn(&mut Message)| {
        let mut query = Message::from_vec(&common::query(text, Some(1232))).unwrap();
        set(&mut query);
        Message::from_vec(&exchange::udp(server.dns, &query.to_vec().unwrap()).unwrap()).unwrap()
    };
    for _ in 0..2 {
        let odd = with("odd.example. TYPE65534", &|_| {});
        assert!(matches!(&odd.answers[0].data, RData::Unknown { rdata, .. } if rdata.anything == [1, 2, 3]));
        assert!(!show(&with("signed.example. A", &|_| {})).contains(" ad"), "the client did not set AD or DO");
        let authentic = with("signed.example. A", &|query| query.metadata.authentic_data = true);
        assert!(show(&authentic).starts_with("NOERROR ad"), "{}", show(&authentic));
        let signed = with("signed.example. A", &|query| {
            query.edns.as_mut().unwrap().set_dnssec_ok(true);
        });
        assert!(show(&signed).starts_with("NOERROR ad"));
        assert!(signed.additionals[0].to_string().contains("with signatures"));
        assert!(signed.edns.unwrap().flags().dnssec_ok);
        let bogus = with("bogus.example. A", &|_| {});
        assert_eq!(show(&bogus), "SERVFAIL error 6");
        assert!(bogus.edns.unwrap().option(EdnsCode::from(10u16)).is_none(), "cookies are not forwarded");
        let unchecked = with("bogus.example. A", &|query| query.metadata.checking_disabled = true);
        assert!(unchecked.metadata.checking_disabled);
    }
}

#[test]
fn replies_are_cached_for_their_ttl() {
    let upstream = Upstream::serving(WORLD);
    let (server, _scratch) = serve(&[&upstream.flag(), "--cache-max-ttl", "200"]);
    // The number of upstream queries for two client queries.
    for (question, times) in [
        ("www.example. AAAA", 1),
        ("alias.example. A", 1),
        ("www.example. MX", 1),
        ("missing.example. A", 1),
        ("never.example. A", 2),
    ] {
        let before = upstream.asked();
        ask(&server, question);
        ask(&server, &question.to_uppercase());
        assert_eq!(upstream.asked() - before, times, "{question}");
    }
    // TTLs count down, starting at the ceiling if they exceed it.
    assert!(ask(&server, "www.example. A").contains("www.example. 200 A"));
    std::thread::sleep(Duration::from_millis(2100));
    let later = ask(&server, "www.example. A");
    assert!(later.contains("www.example. 198 A") || later.contains("www.example. 197 A"), "{later}");
    // An expired reply is fetched again.
    let before = upstream.asked();
    ask(&server, "short.example. A");
    std::thread::sleep(Duration::from_millis(2100));
    ask(&server, "short.example. A");
    assert_eq!(upstream.asked() - before, 2);
    let metrics = server.get("/metrics");
    for metric in ["callsign_cache_hits_total", "callsign_cache_misses_total", "callsign_upstream_requests_total"] {
        assert!(metrics.contains(metric), "{metric}");
    }
    // Scrapers reject a histogram whose last bucket is not +Inf.
    assert!(metrics.contains("le=\"+Inf\"") && !metrics.contains("e308"));
}

#[test]
fn a_negative_reply_without_a_soa_is_not_cached() {
    let upstream = Upstream::start(|query, _| vec![reply(query, ResponseCode::NXDomain, &[]).to_vec().unwrap()]);
    let (server, _scratch) = serve(&[&upstream.flag()]);
    assert_eq!(ask(&server, "x.example. A"), "NXDOMAIN");
    assert_eq!(ask(&server, "x.example. A"), "NXDOMAIN");
    assert_eq!(upstream.asked(), 2);
}

#[test]
fn the_cache_stays_within_its_limit() {
    let upstream = Upstream::start(|query, _| {
        let owner = query.queries.first().unwrap().name().to_ascii();
        vec![reply(query, ResponseCode::NoError, &parse(&format!("{owner} 300 A 192.0.2.1"))).to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag(), "--cache-entries", "100"]);
    for index in 0..500 {
        ask(&server, &format!("n{index}.bounds.example. A"));
    }
    let metrics = server.get("/metrics");
    let entries = metrics.lines().find_map(|line| line.strip_prefix("callsign_cache_entries ")).unwrap();
    assert!((20.0..=100.0).contains(&entries.parse::<f64>().unwrap()), "{entries}");
    let (none, _scratch) = serve(&[&upstream.flag(), "--cache-entries", "0"]);
    let before = upstream.asked();
    ask(&none, "x.example. A");
    ask(&none, "x.example. A");
    assert_eq!(upstream.asked() - before, 2, "nothing is cached");
}

#[test]
fn identical_questions_in_flight_share_one_upstream_query() {
    let upstream = Upstream::start(|query, _| {
        std::thread::sleep(Duration::from_millis(300));
        vec![from_zone(&parse(WORLD), query)]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let server = server.dns;
            std::thread::spawn(move || exchange::udp(server, &common::query("www.example. A", Some(1232))).unwrap())
        })
        .collect();
    for client in clients {
        assert_eq!(Message::from_vec(&client.join().unwrap()).unwrap().answers.len(), 1);
    }
    assert_eq!(upstream.asked(), 1);
}

/// The replies of a misbehaving upstream to a query.
type Misbehaviour = fn(&Message, Over) -> Vec<Vec<u8>>;

#[test]
fn a_bad_upstream_leads_to_failover_or_servfail() {
    fn good(query: &Message) -> Message {
        reply(query, ResponseCode::NoError, &parse("www.example 300 A 203.0.113.66"))
    }
    let misbehaviours: [(&str, Misbehaviour, &str); 10] = [
        (
            "another id, as in a forged reply",
            |query, _| {
                let mut reply = good(query);
                reply.metadata.id ^= 1;
                vec![reply.to_vec().unwrap()]
            },
            "SERVFAIL error 22",
        ),
        (
            "another question",
            |query, _| {
                let mut reply = good(query);
                reply.queries[0].set_name(name("other.example"));
                vec![reply.to_vec().unwrap()]
            },
            "SERVFAIL error 22",
        ),
        (
            "another type",
            |query, _| {
                let mut reply = good(query);
                reply.queries[0].set_query_type(RecordType::MX);
                vec![reply.to_vec().unwrap()]
            },
            "SERVFAIL error 22",
        ),
        ("garbage", |_, _| vec![b"this is no DNS".to_vec()], "SERVFAIL error 22"),
        (
            "a reply that ends in the middle of a record",
            |query, _| {
                let whole = good(query).to_vec().unwrap();
                vec![whole[..whole.len() - 15].to_vec()]
            },
            "SERVFAIL error 22",
        ),
        (
            "an address of three octets",
            |query, _| {
                let mut whole = reply(query, ResponseCode::NoError, &[]).to_vec().unwrap();
                whole.truncate(12 + 13 + 4);
                whole[7] = 1;
                whole[11] = 0;
                whole.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 3, 192, 0, 2]);
                vec![whole]
            },
            "SERVFAIL error 22",
        ),
        ("no reply", |_, _| vec![], "SERVFAIL error 22"),
        (
            "TC over UDP and TCP",
            |query, _| {
                let mut reply = reply(query, ResponseCode::NoError, &[]);
                reply.metadata.truncation = true;
                vec![reply.to_vec().unwrap()]
            },
            "SERVFAIL error 22",
        ),
        ("REFUSED", |query, _| vec![reply(query, ResponseCode::Refused, &[]).to_vec().unwrap()], "SERVFAIL error 22"),
        (
            "a CNAME loop",
            |query, _| {
                let circle = parse("www.example 60 CNAME b.example.\nb.example 60 CNAME www.example.");
                vec![reply(query, ResponseCode::NoError, &circle).to_vec().unwrap()]
            },
            "SERVFAIL error 22",
        ),
    ];
    let threads: Vec<_> = misbehaviours
        .into_iter()
        .map(|(case, misbehaviour, alone)| {
            std::thread::spawn(move || {
                let bad = Upstream::start(misbehaviour);
                let good = Upstream::serving(WORLD);
                let (server, _scratch) = serve(&[&bad.flag(), &good.flag()]);
                let start = Instant::now();
                let answer = ask(&server, "www.example. A");
                assert_eq!(answer, "NOERROR\nwww.example. 300 A 192.0.2.1", "{case}, with another upstream");
                assert!(start.elapsed() < Duration::from_secs(4), "{case}: {:?}", start.elapsed());
                let (server, _scratch) = serve(&[&bad.flag()]);
                let start = Instant::now();
                assert_eq!(ask(&server, "www.example. A"), alone, "{case}, as the only upstream");
                assert!(start.elapsed() < Duration::from_secs(5), "{case}: {:?}", start.elapsed());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn forged_replies_before_the_genuine_one_are_ignored() {
    // After five of them, the query is repeated over TCP.
    let upstream = Upstream::start(|query, _| {
        let forged = |id: u16| {
            let mut forged = reply(query, ResponseCode::NoError, &parse("www.example 300 A 203.0.113.66"));
            forged.metadata.id = id;
            forged.to_vec().unwrap()
        };
        let mut all: Vec<Vec<u8>> = (1..=20).map(|more| forged(query.metadata.id.wrapping_add(more))).collect();
        all.push(from_zone(&parse(WORLD), query));
        all
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    for _ in 0..2 {
        assert_eq!(ask(&server, "www.example. A"), "NOERROR\nwww.example. 300 A 192.0.2.1");
    }
    let metrics = server.get("/metrics");
    assert!(
        metrics.lines().any(|line| line.starts_with("callsign_upstream_foreign_replies_total") && line.ends_with(" 5"))
    );
}

#[test]
fn ids_and_ports_are_unpredictable_and_other_sources_are_ignored() {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};
    let (own, elsewhere) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.2:0").unwrap());
    let at = own.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<(u16, u16)>>> = Arc::default();
    let noted = seen.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = own.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            noted.lock().unwrap().push((query.metadata.id, from.port()));
            // Correct except for its source address.
            let forged = reply(&query, ResponseCode::NoError, &parse("www.example 300 A 203.0.113.66"));
            let _ = elsewhere.send_to(&forged.to_vec().unwrap(), from);
            std::thread::sleep(Duration::from_millis(1));
            let _ = own.send_to(&from_zone(&parse("www.example 0 A 192.0.2.1"), &query), from);
        }
    });
    let (server, _scratch) = serve(&[&format!("--upstream={at}")]);
    for _ in 0..200 {
        assert_eq!(ask(&server, "www.example. A"), "NOERROR\nwww.example. 0 A 192.0.2.1");
    }
    let seen = seen.lock().unwrap();
    let ids: BTreeSet<u16> = seen.iter().map(|(id, _)| *id).collect();
    let ports: BTreeSet<u16> = seen.iter().map(|(_, port)| *port).collect();
    // Among 200 random 16-bit numbers there are a few duplicates, rarely ten.
    assert!(ids.len() > 190, "{} ids", ids.len());
    let steps: BTreeSet<i32> = seen.windows(2).map(|pair| i32::from(pair[1].0) - i32::from(pair[0].0)).collect();
    assert!(steps.len() > 180, "ids are not sequential");
    assert!(ports.len() >= 3, "a port is used for at most 64 queries: {} ports", ports.len());
}

#[test]
fn when_one_upstream_fails_another_answers() {
    let first = Upstream::serving(WORLD);
    let second = Upstream::serving(WORLD);
    let (server, _scratch) = serve(&[&first.flag(), &second.flag(), "--cache-entries", "0"]);
    ask(&server, "www.example. A");
    assert_eq!((first.asked(), second.asked()), (1, 0), "the first upstream is preferred");
    first.set_silent(true);
    for _ in 0..4 {
        assert!(ask(&server, "www.example. A").starts_with("NOERROR"));
    }
    assert!(ask(&server, "www.example. A").starts_with("NOERROR"));
    assert!(server.get("/ready?verbose").contains("does not reply"));
    first.set_silent(false);
    until("the first upstream is in use again", || {
        ask(&server, "www.example. A");
        server.get("/ready?verbose").matches("in use").count() == 2
    });
    // Without a listener, the kernel reports an error.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (server, _scratch) = serve(&[&format!("--upstream={nobody}"), &second.flag()]);
    assert!(ask(&server, "www.example. A").starts_with("NOERROR"));
    let failures = format!("callsign_upstream_failures_total{{to=\"{nobody}\",reason=\"network\"}} ");
    let metrics = server.get("/metrics");
    let failures = metrics.lines().find_map(|line| line.strip_prefix(&failures)).unwrap();
    assert!(failures.parse::<u32>().unwrap() > 0);
}

#[test]
fn truncated_replies_are_fetched_over_tcp() {
    let upstream = Upstream::start(|query, over| {
        let records: String = (0..100).map(|index| format!("many.example 60 A 192.0.2.{index}\n")).collect();
        let mut reply = reply(query, ResponseCode::NoError, &parse(&records));
        if over == Over::Udp {
            reply.answers.clear();
            reply.metadata.truncation = true;
        }
        vec![reply.to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    for payload in [None, Some(512), Some(1232), Some(4096)] {
        let reply = exchange::udp(server.dns, &common::query("many.example. A", payload)).unwrap();
        assert!(reply.len() <= usize::from(payload.unwrap_or(512).min(1232)), "{payload:?}");
        let message = Message::from_vec(&reply).unwrap();
        assert!(message.metadata.truncation && !message.answers.is_empty(), "{payload:?}");
    }
    for question in ["many.example. A", "api. A"] {
        let reply = exchange::tcp(server.dns, &common::query(question, None)).unwrap();
        let message = Message::from_vec(&reply).unwrap();
        assert_eq!(message.answers.len(), if question.starts_with("many") { 100 } else { 1 });
        assert!(!message.metadata.truncation);
    }
    assert_eq!(upstream.asked(), 2, "once over UDP, once over TCP");
}

#[test]
fn an_upstream_without_edns_support_is_queried_without_it() {
    let upstream = Upstream::start(|query, _| {
        if query.edns.is_some() {
            let mut refusal = reply(query, ResponseCode::FormErr, &[]);
            refusal.edns = None;
            return vec![refusal.to_vec().unwrap()];
        }
        vec![from_zone(&parse(WORLD), query)]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    assert_eq!(ask(&server, "www.example. A"), "NOERROR\nwww.example. 300 A 192.0.2.1");
}

#[test]
fn a_formerr_for_one_question_does_not_disable_edns_for_others() {
    let upstream = Upstream::start(|query, _| {
        if query.queries[0].query_type() == RecordType::from(999) {
            let mut refusal = reply(query, ResponseCode::FormErr, &[]);
            refusal.edns = None;
            return vec![refusal.to_vec().unwrap()];
        }
        let text = if query.edns.is_some() { "with EDNS" } else { "without" };
        let owner = query.queries[0].name().to_ascii();
        vec![reply(query, ResponseCode::NoError, &parse(&format!("{owner} 60 TXT \"{text}\""))).to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    assert!(ask(&server, "odd.example. TYPE999").starts_with("SERVFAIL"));
    assert!(ask(&server, "even.example. TXT").contains("with EDNS"));
}

#[test]
fn a_silently_dead_connection_is_not_reused() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let over_tcp = AtomicUsize::new(0);
    let upstream = Upstream::start(move |query, over| {
        let mut reply = reply(query, ResponseCode::NoError, &parse("long.example 0 A 192.0.2.1"));
        if over == Over::Udp {
            reply.answers.clear();
            reply.metadata.truncation = true;
        } else if over_tcp.fetch_add(1, Ordering::SeqCst) == 1 {
            // This thread reads nothing more from the connection.
            std::thread::sleep(Duration::from_secs(60));
        }
        vec![reply.to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    assert!(ask(&server, "long.example. A").contains("192.0.2.1"));
    assert!(ask(&server, "long.example. A").starts_with("SERVFAIL"), "the connection has just died");
    // The failure is cached for a second.
    std::thread::sleep(Duration::from_millis(2100));
    assert!(ask(&server, "long.example. A").contains("192.0.2.1"), "over a new connection");
}

#[test]
fn half_closed_client_still_gets_its_replies() {
    use std::io::{Read as _, Write as _};
    let upstream = Upstream::start(|query, _| {
        std::thread::sleep(Duration::from_millis(300));
        vec![from_zone(&parse(WORLD), query)]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    let mut stream = exchange::tcp_stream(server.dns);
    for question in ["www.example. A", "api. A", "mail.example. MX"] {
        let query = common::query(question, None);
        stream.write_all(&exchange::framed(&query)).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let mut replies = 0;
    while let Some((length, rest)) = all.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        assert_eq!(Message::from_vec(&rest[..length]).unwrap().answers.len(), 1);
        replies += 1;
        all = rest[length..].to_vec();
    }
    assert_eq!(replies, 3);
}

#[test]
fn a_reply_that_takes_seconds_is_still_forwarded() {
    let upstream = Upstream::start(|query, _| {
        std::thread::sleep(Duration::from_millis(2500));
        vec![from_zone(&parse(WORLD), query)]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    assert_eq!(ask(&server, "www.example. A"), "NOERROR\nwww.example. 300 A 192.0.2.1");
}

#[test]
fn queries_in_flight_are_answered_before_exit() {
    let upstream = Upstream::start(|query, _| {
        std::thread::sleep(Duration::from_millis(1000));
        vec![from_zone(&parse(WORLD), query)]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    let at = server.dns;
    // One reply is forwarded unchanged, the other is composed.
    let clients = ["www.example. A", "out. AAAA"].map(|question| {
        std::thread::spawn(move || exchange::udp(at, &common::query(question, Some(1232))).expect("a reply"))
    });
    until("the upstream has a query", || upstream.asked() == 1 || upstream.asked() == 2);
    server.signal("-INT");
    for client in clients {
        assert!(show(&Message::from_vec(&client.join().unwrap()).unwrap()).starts_with("NOERROR"));
    }
    let (status, log) = server.wait();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn stale_replies_are_served_when_the_upstream_is_silent() {
    let upstream = Upstream::serving(WORLD);
    let (server, _scratch) = serve(&[&upstream.flag()]);
    ask(&server, "short.example. A");
    upstream.set_silent(true);
    std::thread::sleep(Duration::from_millis(2100));
    let stale = "NOERROR error 3\nshort.example. 30 A 192.0.2.2";
    let start = Instant::now();
    assert_eq!(ask(&server, "short.example. A"), stale);
    assert!(start.elapsed() < Duration::from_secs(4), "before the client gives up: {:?}", start.elapsed());
    // Once the upstream is known to be silent, clients do not wait for it.
    std::thread::sleep(Duration::from_millis(3000));
    let start = Instant::now();
    assert_eq!(ask(&server, "short.example. A"), stale);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    let (strict, _scratch) = serve(&[&upstream.flag(), "--cache-stale", "0"]);
    upstream.set_silent(false);
    ask(&strict, "short.example. A");
    upstream.set_silent(true);
    std::thread::sleep(Duration::from_millis(2100));
    assert!(ask(&strict, "short.example. A").starts_with("SERVFAIL"));
}

#[test]
fn popular_replies_are_prefetched_before_they_expire() {
    let upstream = Upstream::start(|query, _| {
        vec![reply(query, ResponseCode::NoError, &parse("popular.example 10 A 192.0.2.1")).to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(12) {
        assert!(ask(&server, "popular.example. A").contains("192.0.2.1"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(upstream.asked(), 2, "one cache miss, and one prefetch within the ten seconds");
    let metrics = server.get("/metrics");
    assert!(metrics.contains("callsign_cache_prefetch_total 1") && metrics.contains("callsign_cache_misses_total 1"));
}

#[test]
fn stub_zones_are_forwarded_to_their_own_servers() {
    let world = Upstream::serving(WORLD);
    let corp = Upstream::serving("a.corp.example 60 A 192.0.2.11\nx.corp.local 60 A 192.0.2.12");
    let deep =
        Upstream::serving("b.deep.corp.example 60 A 192.0.2.13\n4.3.2.10.in-addr.arpa 60 PTR host.corp.example.");
    let (corp_at, deep_at) = (corp.address, deep.address);
    let stubs = [
        format!("--stub=corp.example={corp_at}"),
        format!("--stub=deep.corp.example={deep_at}"),
        format!("--stub=corp.local={corp_at}"),
        format!("--stub=10.in-addr.arpa={deep_at}"),
    ];
    let stubs: Vec<&str> = stubs.iter().map(String::as_str).collect();
    let world_flag = world.flag();
    let (server, _scratch) = serve(&[&[world_flag.as_str()], &stubs[..]].concat());
    for (question, expected) in [
        ("a.corp.example. A", "NOERROR\na.corp.example. 60 A 192.0.2.11"),
        ("b.deep.corp.example. A", "NOERROR\nb.deep.corp.example. 60 A 192.0.2.13"),
        ("x.corp.local. A", "NOERROR\nx.corp.local. 60 A 192.0.2.12"),
        ("4.3.2.10.in-addr.arpa. PTR", "NOERROR\n4.3.2.10.in-addr.arpa. 60 PTR host.corp.example."),
        ("10.0.96.10.in-addr.arpa. PTR", "NOERROR aa\n10.0.96.10.in-addr.arpa. 5 PTR api.web.svc.cluster.local."),
        ("www.example. A", "NOERROR\nwww.example. 300 A 192.0.2.1"),
    ] {
        assert_eq!(ask(&server, question), expected, "{question}");
    }
    assert_eq!(world.asked(), 1);
    let (server, _scratch) = serve(&[&["--upstream=none"], &stubs[..]].concat());
    assert_eq!(ask(&server, "a.corp.example. A"), "NOERROR\na.corp.example. 60 A 192.0.2.11");
    assert_eq!(ask(&server, "www.example. A"), "REFUSED", "so that the client tries its next nameserver");
}

#[test]
fn cnames_are_followed_out_of_the_cluster_and_into_it() {
    let upstream = Upstream::serving(WORLD);
    let stub = format!("--stub=example={},into-cluster", upstream.address);
    let (server, _scratch) = serve(&["--upstream=none", &stub]);
    for _ in 0..2 {
        for (question, expected) in [
            (
                "out.web.svc.cluster.local. A",
                "NOERROR aa\nout.web.svc.cluster.local. 5 CNAME www.example.\nwww.example. 300 A 192.0.2.1",
            ),
            ("out. AAAA", "NOERROR aa\nout. 5 CNAME www.example.\nwww.example. 300 AAAA 2001:db8::1"),
            ("out. MX", "NOERROR aa\nout. 5 CNAME www.example."),
            ("gone. A", "NXDOMAIN aa\ngone. 5 CNAME missing.example."),
            (
                "into.example. A",
                "NOERROR\ninto.example. 60 CNAME api.web.svc.cluster.local.\napi.web.svc.cluster.local. 5 A 10.96.0.10",
            ),
            (
                "INTO.example. A",
                "NOERROR\nINTO.example. 60 CNAME api.web.svc.cluster.local.\napi.web.svc.cluster.local. 5 A 10.96.0.10",
            ),
            (
                "round. A",
                "NOERROR aa\nround. 5 CNAME into.example.\ninto.example. 60 CNAME api.web.svc.cluster.local.\napi.web.svc.cluster.local. 5 A 10.96.0.10",
            ),
            // A name that the caller may not see does not exist, even if an outside CNAME leads to it.
            ("hidden.example. A", "NXDOMAIN\nhidden.example. 60 CNAME secret.vault.svc.cluster.local."),
        ] {
            let answer = ask(&server, question);
            let same =
                |line: &str| line.split(' ').filter(|word| word.parse::<u32>().is_err()).collect::<Vec<_>>().join(" ");
            let answer: Vec<String> = answer.lines().map(same).collect();
            let expected: Vec<String> = expected.lines().map(same).collect();
            assert_eq!(answer, expected, "{question}");
        }
    }
    let (alone, _scratch) = serve(&["--upstream=none"]);
    let reply = exchange::udp(alone.dns, &common::query("out. A", None)).unwrap();
    assert_eq!(common::text(&reply), "NOERROR aa\nout. 5 CNAME www.example.");
}

#[test]
fn an_upstream_that_is_this_server_is_rejected_at_startup() {
    let scratch = Scratch::folder("loop");
    let cluster = scratch.file("cluster.yaml", CLUSTER);
    for (listen, upstream) in
        [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "127.0.0.1"), ("[::1]", "[::1]")]
    {
        // Another test may take the port before the server has it.
        let mut attempts = (0..10).map(|_| {
            let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let (listen, upstream) = (format!("{listen}:{port}"), format!("{upstream}:{port}"));
            let flags =
                ["--listen", &listen, "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0", "--upstream", &upstream];
            let output = process::run(&[&["serve", "--manifests", cluster.to_str().unwrap()][..], &flags].concat());
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        });
        let (status, error) = attempts.find(|(_, error)| !error.contains("Address already in use")).unwrap();
        assert_eq!(status, Some(78), "{listen}: {error}");
        assert!(error.contains("is this server") && error.contains("--upstream none"), "{error}");
    }
}

#[test]
fn an_upstream_that_forwards_back_to_us_is_detected_and_dropped() {
    use std::sync::{Arc, Mutex};
    let us: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    // A relay that forwards every datagram to us and returns our replies.
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = relay.local_addr().unwrap();
    let to = us.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = relay.recv_from(&mut buffer) {
            let (query, relay, to) = (buffer[..length].to_vec(), relay.try_clone().unwrap(), to.clone());
            std::thread::spawn(move || {
                let Some(us) = *to.lock().unwrap() else { return };
                if let Ok(reply) = exchange::udp(us, &query) {
                    let _ = relay.send_to(&reply, from);
                }
            });
        }
    });
    let (server, _scratch) = serve(&[&format!("--upstream={at}")]);
    *us.lock().unwrap() = Some(server.dns);
    assert!(ask(&server, "www.example. A").starts_with("SERVFAIL"));
    until("the loop is reported", || server.get("/ready?verbose").contains("forwarding loop"));
    let start = Instant::now();
    assert!(ask(&server, "other.example. A").starts_with("SERVFAIL"));
    assert!(start.elapsed() < Duration::from_secs(1), "the upstream is no longer queried");
    assert!(ask(&server, "api. A").contains("10.96.0.10"), "cluster names are still answered");
    server.signal("-INT");
    let (_, log) = server.wait();
    assert!(log.contains("ERROR") && log.contains("forwarding loop"), "{log}");
}

#[test]
fn a_search_list_is_completed_within_one_query() {
    let upstream = Upstream::serving(&format!("{WORLD}\nhost.corp.example 60 A 192.0.2.21"));
    let (server, _scratch) = serve(&[&upstream.flag(), "--complete-search", "--search", "corp.example"]);
    for (question, expected) in [
        (
            "www.example.web.svc.cluster.local. A",
            "NOERROR aa\nwww.example.web.svc.cluster.local. 5 CNAME www.example.\nwww.example. 300 A 192.0.2.1",
        ),
        (
            "www.example.web.svc.cluster.local. AAAA",
            "NOERROR aa\nwww.example.web.svc.cluster.local. 5 CNAME www.example.\nwww.example. 300 AAAA 2001:db8::1",
        ),
        (
            "mail.example.web.svc.cluster.local. A",
            "NOERROR aa\nmail.example.web.svc.cluster.local. 5 CNAME mail.example.",
        ),
        (
            "api.web.web.svc.cluster.local. A",
            "NOERROR aa\napi.web.web.svc.cluster.local. 5 CNAME api.web.svc.cluster.local.\napi.web.svc.cluster.local. 5 A 10.96.0.10",
        ),
        (
            "host.web.svc.cluster.local. A",
            "NOERROR aa\nhost.web.svc.cluster.local. 5 CNAME host.corp.example.\nhost.corp.example. 60 A 192.0.2.21",
        ),
        ("missing.example.web.svc.cluster.local. A", "NXDOMAIN aa"),
        ("api.web.svc.cluster.local. A", "NOERROR aa\napi.web.svc.cluster.local. 5 A 10.96.0.10"),
        // Another namespace is not the first domain of this caller's search list.
        ("www.example.vault.svc.cluster.local. A", "NXDOMAIN aa"),
    ] {
        assert_eq!(ask(&server, question), expected, "{question}");
    }
    let scratch = Scratch::folder("unknown");
    let path = scratch.file("cluster.yaml", CLUSTER);
    let unknown = Server::start(&["--manifests", path.to_str().unwrap(), &upstream.flag(), "--complete-search"], None);
    assert_eq!(ask(&unknown, "www.example.web.svc.cluster.local. A"), "NXDOMAIN aa", "the caller has no namespace");
    let (off, _scratch) = serve(&[&upstream.flag()]);
    assert_eq!(ask(&off, "www.example.web.svc.cluster.local. A"), "NXDOMAIN aa");
    let (alone, _scratch) = serve(&["--upstream=none", "--complete-search"]);
    let reply =
        exchange::udp(alone.dns, &common::query("www.example.web.svc.cluster.local. A", None)).expect("a reply");
    assert!(common::text(&reply).starts_with("NXDOMAIN aa"), "there is no upstream to complete it with");
}

#[test]
fn possible_cluster_names_are_not_forwarded_before_the_first_sync() {
    let upstream = Upstream::serving(WORLD);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let scratch = Scratch::folder("unsynced");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{}'}}}}]\n\
         users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n",
        nobody.local_addr().unwrap()
    );
    let kubeconfig = scratch.file("kubeconfig", &kubeconfig);
    let server = Server::start(&["--kubeconfig", kubeconfig.to_str().unwrap(), &upstream.flag()], None);
    for question in [
        "api. A",
        "api.web. A",
        "db-0.db.web. A",
        "api.web.svc. A",
        "api.web.svc.cluster.local. A",
        "10.0.96.10.in-addr.arpa. PTR",
        "b.b.b.b.b.b.b.b.ip6.arpa. PTR",
    ] {
        assert_eq!(ask(&server, question), "SERVFAIL error 14", "{question}");
    }
    assert_eq!(upstream.questions(), Vec::<String>::new());
    assert!(ask(&server, "a.b.c.d.example. A").contains("192.0.2.4"));
}

#[test]
fn a_changed_resolv_conf_is_reloaded() {
    let first = Upstream::serving(WORLD);
    let scratch = Scratch::folder("resolv");
    // A resolv.conf cannot name ports, so these servers do not exist: the test checks which ones would be queried.
    let file = scratch.file("resolv.conf", "search x\nnameserver 127.0.0.9\n");
    let (server, _scratch) =
        serve(&[&format!("--upstream={}", file.display()), &format!("--stub=example={}", first.address)]);
    until("the upstream is listed", || server.get("/ready?verbose").contains("upstream 127.0.0.9:53"));
    assert!(ask(&server, "www.example. A").contains("192.0.2.1"));
    scratch.file("new", "nameserver 127.0.0.8\nnameserver 127.0.0.7\n");
    std::fs::rename(scratch.0.join("new"), &file).unwrap();
    until("the new upstreams are listed", || {
        let text = server.get("/ready?verbose");
        text.contains("upstream 127.0.0.8:53") && text.contains("127.0.0.7:53") && !text.contains("127.0.0.9")
    });
    std::fs::remove_file(&file).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.get("/ready?verbose").contains("upstream 127.0.0.8:53"), "a missing file changes nothing");
}

#[test]
fn a_silent_upstream_does_not_delay_other_clients() {
    let upstream = Upstream::start(|_, _| Vec::new());
    let (server, _scratch) = serve(&[&upstream.flag(), "--max-concurrent", "100"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.dns).unwrap();
    for index in 0..300 {
        socket.send(&common::query(&format!("n{index}.silent.example. A"), None)).unwrap();
    }
    for _ in 0..100 {
        let start = Instant::now();
        assert!(ask(&server, "api. A").contains("10.96.0.10"));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    // Queries above the limit get SERVFAIL at once.
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 512];
    let told = (0..200).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
    assert_eq!(told, 200);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(socket.recv(&mut buffer).is_ok(), "queries in flight get a reply in time");
    assert_eq!(buffer[3] & 0x0f, 2, "SERVFAIL");
}

#[test]
fn bad_flags_are_reported_in_one_line() {
    for (flags, expected) in [
        (&["--upstream", "dns.example"][..], "'dns.example' is not a server"),
        (&["--upstream", "none", "--upstream", "10.0.0.1"], "--upstream none excludes other upstreams"),
        (&["--upstream", "/nowhere/resolv.conf"], "/nowhere/resolv.conf"),
        (&["--upstream", "/dev/null"], "lists no nameservers"),
        (&["--upstream", "none", "--stub", "corp.example"], "has no server"),
        (&["--upstream", "none", "--search", "a..b"], "--search 'a..b'"),
        (&["--upstream", "tls://127.0.0.1#x.example", "--upstream-ca", "/dev/null"], "/dev/null"),
        (&["--upstream", "none", "--cache-min-ttl", "300", "--cache-max-ttl", "60"], "--cache-min-ttl"),
    ] {
        let scratch = Scratch::folder("flags");
        let cluster = scratch.file("cluster.yaml", CLUSTER);
        let own = [
            "serve",
            "--manifests",
            cluster.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
        ];
        let output = process::run(&own.iter().chain(flags).copied().collect::<Vec<_>>());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(64 | 78)), "{flags:?}: {error}");
        let said: Vec<&str> = error.lines().filter(|line| !line.contains(" INFO ")).collect();
        assert!(said.len() == 1 && said[0].contains(expected), "{flags:?}: {error}");
    }
}

#[test]
fn ten_thousand_cached_replies_take_at_most_twelve_megabytes() {
    let upstream = Upstream::start(|query, _| {
        let owner = query.queries.first().unwrap().name().to_ascii();
        // A CNAME and two addresses, as from a content delivery network.
        let records = format!(
            "{owner} 300 CNAME edge.network.example.\nedge.network.example 60 A 192.0.2.1\nedge.network.example 60 A 192.0.2.2"
        );
        vec![reply(query, ResponseCode::NoError, &parse(&records)).to_vec().unwrap()]
    });
    let (server, _scratch) = serve(&[&upstream.flag()]);
    // The first query triggers one-time allocations, which must not be measured.
    ask(&server, "first.example. A");
    let before = server.status("RssAnon:");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.dns).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    for window in 0..400 {
        for index in 0..25 {
            socket.send(&common::query(&format!("host-{window}-{index}.shop.example. A"), Some(1232))).unwrap();
        }
        for _ in 0..25 {
            socket.recv(&mut [0; 1500]).unwrap();
        }
    }
    let metrics = server.get("/metrics");
    let entries = metrics.lines().find_map(|line| line.strip_prefix("callsign_cache_entries ")).unwrap();
    assert!(entries.parse::<f64>().unwrap() > 9000.0, "{entries}");
    let grown = server.status("RssAnon:") - before;
    assert!(grown <= 12_000, "{grown} KiB");
}

/// glibc and musl ask for both families at once, from one port. A host that gets an answer for one family and an error or
/// nothing for the other believes that the name has one family only.
#[test]
fn both_families_are_answered_in_the_first_second_after_a_start() {
    let upstream = Upstream::start(|query, _| {
        // Replies in any order, some late.
        let id = u64::from(query.metadata.id);
        std::thread::sleep(Duration::from_millis(id % 7 * (id % 3)));
        let question = query.queries.first().unwrap();
        let data = if question.query_type() == RecordType::A { "A 192.0.2.1" } else { "AAAA 2001:db8::1" };
        let record = parse(&format!("{} 60 {data}", question.name()));
        vec![reply(query, ResponseCode::NoError, &record).to_vec().unwrap()]
    });
    let scratch = Scratch::folder("families");
    let path = scratch.file("cluster.yaml", CLUSTER);
    for start in 0..50 {
        let flags = ["--manifests", path.to_str().unwrap(), "--workers", "2", &upstream.flag()];
        let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0"];
        let running = callsign::app::start(common::config(&[&flags[..], &listen].concat())).unwrap();
        let server = running.addresses[0];
        let clients = std::thread::scope(|scope| {
            let ask = |client: usize| {
                let socket = exchange::udp_socket(server);
                for round in 0..5 {
                    // Two clients ask for the same name, so that questions are joined.
                    let name = format!("n{round}-{}.example", client / 2);
                    for (id, family) in [(1, "A"), (2, "AAAA")] {
                        let mut query = common::query(&format!("{name}. {family}"), Some(1232));
                        query[..2].copy_from_slice(&u16::to_be_bytes(id));
                        socket.send(&query).unwrap();
                    }
                    let mut got = [0, 0];
                    let mut octets = [0; 1232];
                    for _ in 0..2 {
                        let length =
                            socket.recv(&mut octets).unwrap_or_else(|error| panic!("{name}: {got:?}, {error}"));
                        let message = Message::from_vec(&octets[..length]).unwrap();
                        assert_eq!(message.metadata.response_code, ResponseCode::NoError, "start {start}: {message:?}");
                        got[usize::from(message.metadata.id) - 1] += message.answers.len();
                    }
                    assert_eq!(got, [1, 1], "start {start}: {name}");
                }
            };
            let clients: Vec<_> = (0..4).map(|client| scope.spawn(move || ask(client))).collect();
            clients.into_iter().map(|client| client.join()).filter(Result::is_err).count()
        });
        running.stop();
        assert_eq!(clients, 0, "clients without an answer after start {start}");
    }
}

#[test]
fn a_resolv_conf_that_appears_late_is_used() {
    // Only the default path may be missing, so the server gets a view of the file system in which it is.
    let scratch = Scratch::folder("late");
    let (etc, manifests) =
        (scratch.0.join("etc"), scratch.file("api.yaml", "kind: Namespace\nmetadata: {name: web}\n"));
    std::fs::create_dir(&etc).unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command
        .arg(format!("mount --bind {} /etc && exec {} \"$@\"", etc.display(), env!("CARGO_BIN_EXE_callsign")))
        .arg("sh");
    let can = std::process::Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("not tested: this user may not create a mount namespace");
        return;
    }
    let server = Server::start_with(
        command,
        &["--manifests", manifests.to_str().unwrap(), "--upstream", "/etc/resolv.conf"],
        None,
    );
    assert!(ask(&server, "www.example. A").contains("SERVFAIL"), "there is no upstream yet");
    std::fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.9\n").unwrap();
    until("the upstream is listed", || server.get("/ready?verbose").contains("upstream 127.0.0.9:53"));
}
