//! Answering a query allocates nothing between the query's octets and the reply's. A counting allocator verifies it.
//!
//! It takes no lock either, which follows from the types: `answer` takes `&Zone`, which holds no lock, and the
//! counters are atomics that only one thread writes. A test below checks the sources for lock types.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unsafe_code)]

#[path = "it/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use callsign::answer::{Limit, Scratch, Verdict, answer};
use callsign::server::{Counters, prefetch};
use common::{CLIENT, upstream};

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });
thread_local!(static OCTETS: Cell<usize> = const { Cell::new(0) });

struct Counting;

// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        OCTETS.with(|octets| octets.set(octets.get() + layout.size()));
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const OBJECTS: &str = r#"
kind: Service
metadata: {name: api, namespace: web, annotations: {callsign.dev/alias: backend, callsign.dev/visible-to: cluster}}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00::10"], ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: mysql-default, namespace: web}
spec: {clusterIP: 10.96.0.11}
---
kind: Service
metadata: {name: db, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: db-1, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [10.1.0.1], hostname: db-0}, {addresses: [10.1.0.2]}]
---
kind: Service
metadata: {name: out, namespace: web}
spec: {type: ExternalName, externalName: api.web.svc.cluster.local}
---
kind: Service
metadata: {name: sab-sabnzbd, namespace: ix-sab, labels: {app.kubernetes.io/instance: sab, app.kubernetes.io/name: sabnzbd}}
spec: {clusterIP: 10.96.0.12}
"#;

#[test]
fn a_hundred_thousand_answers_allocate_nothing() {
    let zone =
        common::zone(OBJECTS, &["--callers", "127.0.0.0/8=web", "--pod-names", "any", "--reverse-cidr", "10.0.0.0/8"]);
    let questions = [
        "api.web.svc.cluster.local A",
        "api.web.svc.cluster.local AAAA",
        "API.web.svc.cluster.local SRV",
        "db.web.svc.cluster.local A",
        "db.web.svc.cluster.local SRV",
        "_sql._tcp.db.web.svc.cluster.local SRV",
        "db-0.db.web.svc.cluster.local A",
        "10-1-0-2.db.web.svc.cluster.local A",
        "out.web.svc.cluster.local A",
        "nope.web.svc.cluster.local A",
        "cluster.local SOA",
        "cluster.local NS",
        "dns-version.cluster.local TXT",
        "10-1-0-9.web.pod.cluster.local A",
        "10.0.96.10.in-addr.arpa PTR",
        "1.0.1.10.in-addr.arpa PTR",
        "99.99.96.10.in-addr.arpa PTR",
        "api A",
        "api.web A",
        "backend A",
        "mysql A",
        "mysql-default A",
        "sab A",
        "sabnzbd.sab A",
        "nope A",
        "nope.web A",
        "db-0.db.web A",
        "www.example.com A",
        "localhost A",
        "x.test A",
    ];
    let mut queries: Vec<Vec<u8>> = questions.iter().map(|question| common::query(question, Some(1232))).collect();
    queries.extend(questions.iter().map(|question| common::query(question, None)));
    queries.push(vec![0; 12]);
    queries.push(b"garbage, and no message".to_vec());
    let counters = Counters::default();
    let mut reply = vec![0; 65_535];
    let mut scratch = Scratch::new(0);
    let mut replies = 0;
    let before = ALLOCATIONS.get();
    for turn in 0..100_000usize {
        let query = &queries[turn % queries.len()];
        if turn % 16 == 0 {
            prefetch::fetch(&zone, queries.iter().map(|query| &**query));
        }
        let limit = if turn % 3 == 0 { Limit::Stream } else { Limit::Datagram };
        let verdict = answer(&zone, CLIENT, query, limit, &mut scratch, &mut reply);
        counters.count(std::net::IpAddr::from([127, 0, 0, 1]), query.len(), &verdict);
        replies += usize::from(matches!(verdict, Verdict::Reply { .. }));
    }
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(allocations, 0, "allocations in 100,000 answers");
    assert!(replies > 99_000, "{replies}");
}

#[test]
fn the_counting_allocator_sees_an_allocation() {
    let before = ALLOCATIONS.get();
    std::hint::black_box(Box::new(1));
    assert!(ALLOCATIONS.get() > before);
}

/// Everything that `answer` reads is shared by reference, so it takes no lock if the sources of the hot path name no
/// lock type.
#[test]
fn the_hot_path_uses_no_lock_type() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths: Vec<_> = ["wire", "zone", "resolve", "answer"].iter().map(|folder| source.join(folder)).collect();
    let mut files = 0;
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        files += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        for lock in ["Mutex", "RwLock", "OnceLock", "Condvar", "parking_lot"] {
            assert!(!text.contains(lock), "{} names {lock}", path.display());
        }
    }
    assert!(files > 20, "{files} files");
}

#[test]
fn cache_hits_are_answered_without_allocating() {
    use callsign::forward;
    use std::time::{Duration, Instant};
    struct LengthReporter(std::sync::mpsc::Sender<usize>);
    impl forward::Client for LengthReporter {
        fn send(
            self: Box<Self>,
            reply: &[u8],
            _: &Verdict,
            _: Duration,
        ) -> Option<std::sync::Arc<dyn forward::Outbox>> {
            self.0.send(reply.len()).unwrap();
            None
        }
    }
    let upstream = upstream::Upstream::serving("www.example 3600 A 192.0.2.1\nalias.example 3600 CNAME www.example.");
    let flag = upstream.flag();
    let zone = common::zone(OBJECTS, &[&flag]);
    let payload = zone.settings.udp_payload;
    let table = std::sync::Arc::new(arc_swap::ArcSwap::new(zone.clone()));
    let forwarder = forward::start(common::config(&[&flag]).forwarding, table, payload).unwrap().forwarder;
    let questions = ["www.example. A", "WWW.EXAMPLE. A", "alias.example. A", "www.example. MX", "nope.example. A"];
    let mut queries: Vec<Vec<u8>> = questions.iter().map(|question| common::query(question, Some(1232))).collect();
    queries.extend(questions.iter().map(|question| common::query(question, None)));
    let mut reply = vec![0; 65_535];
    let mut scratch = Scratch::new(0);
    let from = std::net::IpAddr::from([127, 0, 0, 1]);
    for query in &queries {
        let Verdict::Forward(ask) = answer(&zone, CLIENT, query, Limit::Datagram, &mut scratch, &mut reply) else {
            panic!("a name outside the cluster must be forwarded")
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let (query, client) = (query.as_slice().into(), Box::new(LengthReporter(sender)));
        forwarder.hand_over(forward::ClientQuery {
            query,
            request: ask,
            cookie: None,
            from,
            received: Instant::now(),
            client,
        });
        receiver.recv_timeout(Duration::from_secs(5)).unwrap();
    }
    let counters = Counters::default();
    let before = ALLOCATIONS.get();
    for turn in 0..100_000usize {
        let query = &queries[turn % queries.len()];
        let verdict = answer(&zone, CLIENT, query, Limit::Datagram, &mut scratch, &mut reply);
        let Verdict::Forward(ask) = verdict else { panic!("{verdict:?}") };
        let (verdict, age) = forwarder.answer(&scratch, query, &ask, Instant::now(), &mut reply).unwrap();
        counters.count(from, query.len(), &verdict);
        counters.cache_hit(age == forward::Freshness::Stale);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations in 100,000 answers");
}

#[test]
fn the_section_counts_of_a_reply_are_not_believed_before_its_records_are_read() {
    use callsign::forward::{Entry, Ttls};
    let query = common::query("www.example. A", None);
    let question = &query[12..];
    let mut reply = query.clone();
    reply[2] |= 0x80;
    // 65,535 records in each section, of which none follows.
    reply[6..12].fill(0xff);
    let before = OCTETS.get();
    let parsed = Entry::parse(&reply, question, Ttls { floor: 0, ceiling: 3600 }, 0, |_| false);
    let allocated = OCTETS.get() - before;
    assert!(parsed.is_err() && allocated < 4096, "{allocated} octets");
}
