//! Attacks on a server in a process of its own: each row or test is one that stopped it, or another server, before.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::common::process::Server;
use crate::common::upstream::{self, Over, Upstream};
use crate::common::{self, Scratch, exchange, process};

/// Time after which a reply counts as missing. It is long: a loaded machine is not an attack.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request with this Host header; returns the response, or what of it arrived in time.
fn request(server: SocketAddr, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

/// A cluster with `count` Services in one namespace.
fn many_services(count: usize) -> (Scratch, String) {
    let scratch = Scratch::folder("many");
    let service = |index: usize| {
        format!(
            "kind: Service\nmetadata: {{name: s{index}, namespace: web}}\n\
             spec: {{clusterIP: 10.{}.{}.{}, ports: [{{name: http, port: 80}}, {{name: https, port: 443}}]}}\n---\n",
            100 + index / 65_536,
            index / 256 % 256,
            index % 256
        )
    };
    let path = scratch.file("cluster.yaml", &(0..count).map(service).collect::<String>());
    let path = path.to_str().unwrap().to_owned();
    (scratch, path)
}

#[test]
fn probes_are_answered_whatever_other_clients_do() {
    let (_scratch, cluster) = many_services(4000);
    let server = Server::start(&["--manifests", &cluster], None);
    let mut held = Vec::new();
    for address in [server.admin, server.health] {
        for _ in 0..300 {
            held.push(TcpStream::connect(address).unwrap());
        }
    }
    for _ in 0..64 {
        // A client that asks for a list, and reads none of it.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&server.admin.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        let _ = write!(stream, "GET /api/v1/services HTTP/1.1\r\nHost: {}\r\n\r\n", server.admin);
        held.push(stream);
    }
    std::thread::sleep(Duration::from_millis(200));
    for path in ["/health", "/ready"] {
        let response = request(server.health, path, &server.health.to_string());
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("OK\n"), "{path}: {response}");
    }
    let response = request(server.admin, "/metrics", &server.admin.to_string());
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("process_resident_memory_bytes"), "{response}");
    assert!(server.status("VmHWM:") < 200 * 1024, "the listings are not held in memory");
}

#[test]
fn a_listing_is_complete_however_it_is_read() {
    let (_scratch, cluster) = many_services(1000);
    let server = Server::start(&["--manifests", &cluster], None);
    for path in ["/api/v1/services", "/api/v1/services?namespace=web"] {
        let response = request(server.admin, path, &server.admin.to_string());
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(response.matches("\"service\":").count(), 1000, "{path}");
    }
}

#[test]
fn a_web_page_cannot_read_the_api_through_dns_rebinding() {
    let server = Server::start(&["--manifests", "deploy/demo", "--admin-host", "dns.example"], None);
    for (path, host, expected) in [
        ("/api/v1/services", "evil.example", "HTTP/1.1 421"),
        ("/api/v1/explain?name=api", "evil.example:9153", "HTTP/1.1 421"),
        ("/metrics", "evil.example", "HTTP/1.1 421"),
        ("/metrics", "dns.example", "HTTP/1.1 200"),
        ("/api/v1/services", "localhost:9153", "HTTP/1.1 200"),
        ("/health", "evil.example", "HTTP/1.1 200"),
    ] {
        let response = request(server.admin, path, host);
        assert!(response.starts_with(expected), "{path}, {host}: {response}");
    }
    let response = request(server.admin, "/ready?verbose", "evil.example");
    assert!(response.contains("no details") && !response.contains("services,"), "{response}");
    let response = request(server.health, "/metrics", "localhost");
    assert!(response.starts_with("HTTP/1.1 404"), "the health address serves probes only: {response}");
}

/// A cluster with one headless Service, `big.web`, whose addresses fill a message of 64 KB.
fn big_answer() -> (Scratch, String) {
    let scratch = Scratch::folder("big");
    let mut text = "kind: Service\nmetadata: {name: big, namespace: web}\nspec: {clusterIP: None}\n---\n\
                    kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n"
        .to_owned();
    for slice in 0..16 {
        let addresses: Vec<String> = (0..250).map(|index| format!("{{addresses: [10.1.{slice}.{index}]}}")).collect();
        text += &format!(
            "---\nkind: EndpointSlice\nmetadata: {{name: big-{slice}, namespace: web, labels: \
             {{kubernetes.io/service-name: big}}}}\naddressType: IPv4\nendpoints: [{}]\n",
            addresses.join(", ")
        );
    }
    let path = scratch.file("cluster.yaml", &text);
    let path = path.to_str().unwrap().to_owned();
    (scratch, path)
}

/// Opens a TCP connection from this client address, with a small receive buffer.
fn stream_from(client: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&SocketAddr::from((client, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    TcpStream::from(socket)
}

/// `count` framed queries, one after the other.
fn pipelined(question: &str, count: usize) -> Vec<u8> {
    exchange::framed(&common::query(question, None)).repeat(count)
}

#[test]
fn clients_that_do_not_read_hold_little_memory() {
    let (_scratch, cluster) = big_answer();
    let server = Server::start(&["--manifests", &cluster], None);
    let before = server.status("VmRSS:");
    let mut held = Vec::new();
    for client in 2..12 {
        for _ in 0..90 {
            let mut stream = stream_from([127, 0, 0, client], server.dns);
            stream.write_all(&pipelined("big.web.svc.cluster.local A", 16)).unwrap();
            held.push(stream);
        }
    }
    for _ in 0..20 {
        let mut honest = stream_from([127, 0, 0, 200], server.dns);
        honest.set_read_timeout(Some(PATIENCE)).unwrap();
        honest.write_all(&pipelined("api.web.svc.cluster.local A", 1)).unwrap();
        let reply = exchange::read_framed(&mut honest).unwrap();
        assert!(reply.ends_with(&[10, 96, 0, 10]), "the honest client is answered");
    }
    let grown = server.status("VmHWM:") - before;
    assert!(grown < 48 * 1024, "900 connections hold {grown} KB");
}

#[test]
fn an_address_with_many_connections_takes_turns_with_others() {
    let (_scratch, cluster) = big_answer();
    let server = Server::start(&["--manifests", &cluster, "--workers", "1"], None);
    let pulled = Arc::new(AtomicUsize::new(0));
    let queries = pipelined("big.web.svc.cluster.local A", 64);
    let pullers: Vec<_> = (0..50)
        .map(|_| {
            let (mut stream, pulled, queries) =
                (stream_from([127, 0, 0, 2], server.dns), pulled.clone(), queries.clone());
            stream.write_all(&queries).unwrap();
            std::thread::spawn(move || {
                while let Ok(reply) = exchange::read_framed(&mut stream) {
                    pulled.fetch_add(reply.len(), Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut honest = stream_from([127, 0, 0, 3], server.dns);
    honest.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut waited = 0;
    for _ in 0..20 {
        let before = pulled.load(Ordering::Relaxed);
        honest.write_all(&pipelined("api.web.svc.cluster.local A", 1)).unwrap();
        exchange::read_framed(&mut honest).unwrap();
        waited += pulled.load(Ordering::Relaxed) - before;
    }
    drop(server);
    pullers.into_iter().for_each(|puller| puller.join().unwrap());
    assert!(waited > 0, "the attack was on");
    assert!(waited < 20 * 4 * 65_536, "while 20 queries waited, others pulled {waited} octets");
}

#[test]
fn random_names_of_a_dead_zone_leave_the_upstream_to_others() {
    // The upstream answers quickly, except for names in a zone whose servers are dead.
    let upstream = Upstream::start(|query, _| {
        if query.queries[0].name().to_lowercase().to_string().ends_with("dead.example.") {
            return Vec::new();
        }
        vec![upstream::reply(query, ResponseCode::NXDomain, &[]).to_vec().unwrap()]
    });
    let flags = ["--manifests", "deploy/demo", "--max-concurrent", "100", "--callers", "127.0.0.2/32=web"];
    let server = Server::start(&[&flags[..], &[&upstream.flag()]].concat(), None);
    let socket_from = |client: [u8; 4]| {
        let socket = exchange::udp_socket_from(client.into(), server.dns);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let attacker = socket_from([127, 0, 0, 2]);
    for index in 0..400 {
        attacker.send(&common::query(&format!("r{index}.dead.example. A"), Some(1232))).unwrap();
    }
    let reply = Message::from_vec(&exchange_one(&attacker)).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "the attacker's share is used up");
    let honest = socket_from([127, 0, 0, 3]);
    for index in 0..40 {
        let reply = exchange::exchange(&honest, &common::query(&format!("n{index}.live.example. A"), None)).unwrap();
        let rcode = Message::from_vec(&reply).unwrap().metadata.response_code;
        assert_eq!(rcode, ResponseCode::NXDomain, "n{index}.live.example");
    }
    let metrics = server.get("/metrics");
    assert!(metrics.contains(r#"callsign_forward_refused_total{namespace="web",share="client"}"#), "{metrics}");
    let clients = server.get("/api/v1/clients");
    assert!(clients.contains(r#"[{"address":"127.0.0.2","namespace":"web","misses":400,"#), "{clients}");
    let doctor = process::run(&["doctor", "--server", &server.admin.to_string()]);
    let text = String::from_utf8(doctor.stdout).unwrap();
    assert!(text.contains("127.0.0.2: this client of web asks too much") && text.contains("[busy-client]"), "{text}");
    assert!(text.contains("  127.0.0.3 (namespace unknown): 40, 0 of them refused\n"), "{text}");
}

/// Receives one message.
fn exchange_one(socket: &UdpSocket) -> Vec<u8> {
    let mut message = vec![0; 4096];
    let length = socket.recv(&mut message).unwrap();
    message.truncate(length);
    message
}

/// An upstream that shows its socket, so that a test can forge its replies. Returns each query's octets and sender.
fn raw_upstream() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives the next query that is not a loop probe (HINFO).
fn next_query(upstream: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = upstream.recv_from(&mut buffer).unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        if query.queries[0].query_type() != RecordType::HINFO {
            return (buffer[..length].to_vec(), from);
        }
        let reply = upstream::reply(&query, ResponseCode::NXDomain, &[]).to_vec().unwrap();
        upstream.send_to(&reply, from).unwrap();
    }
}

/// The reply with one address to a query's octets.
fn address_reply(query: &[u8], address: &str) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let record = format!("{} 300 A {address}", query.queries[0].name());
    upstream::reply(&query, ResponseCode::NoError, &upstream::parse(&record)).to_vec().unwrap()
}

#[test]
fn the_port_of_a_query_cannot_be_found_by_asking() {
    let upstream = raw_upstream();
    let address = upstream.local_addr().unwrap();
    let flags = ["--manifests", "deploy/demo", "--upstream", &address.to_string(), "--admin", "0.0.0.0:0"];
    let server = Server::start(&flags, None);
    let client = exchange::udp_socket(server.dns);
    let mut ports = Vec::new();
    let mut spellings = BTreeSet::new();
    for index in 0..1500 {
        client.send(&common::query(&format!("n{index}.some.example. A"), None)).unwrap();
        let (query, from) = next_query(&upstream);
        upstream.send_to(&address_reply(&query, "192.0.2.1"), from).unwrap();
        exchange_one(&client);
        ports.push(from.port());
        spellings.insert(query[12 + 6..30].to_vec());
    }
    let repeated = ports.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let distinct = ports.iter().collect::<BTreeSet<_>>().len();
    assert!(repeated < 30, "{repeated} queries of 1,500 left from the port of the one before");
    assert!(distinct > 500, "1,500 queries left from {distinct} ports");
    let uses = |port: &u16| ports.iter().filter(|other| *other == port).count();
    assert!(ports.iter().map(uses).max().unwrap() <= 32, "a port is used for a few queries only");
    assert!(spellings.len() > 200, "names have {} spellings", spellings.len());
    // Whoever guesses from another host sees no counter move.
    let metrics = |address| request(SocketAddr::new(address, server.admin.port()), "/metrics", &address.to_string());
    assert!(metrics([127, 0, 0, 1].into()).contains("callsign_upstream_foreign_replies_total"));
    if let Some(address) = exchange::own_address() {
        let shown = metrics(address);
        assert!(shown.contains("callsign_upstream_requests_total") && !shown.contains("foreign"), "{shown}");
        let denied = request(SocketAddr::new(address, server.admin.port()), "/api/v1/services", &address.to_string());
        assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    }
}

#[test]
fn forged_replies_are_not_believed() {
    let upstream = raw_upstream();
    let address = upstream.local_addr().unwrap();
    let tcp = std::net::TcpListener::bind(address).unwrap();
    let truth = std::thread::spawn(move || {
        let (mut stream, _) = tcp.accept().unwrap();
        let query = exchange::read_framed(&mut stream).unwrap();
        stream.write_all(&exchange::framed(&address_reply(&query, "192.0.2.7"))).unwrap();
        query
    });
    let server = Server::start(&["--manifests", "deploy/demo", "--upstream", &address.to_string()], None);
    let client = exchange::udp_socket(server.dns);
    client.send(&common::query("bank.example. A", None)).unwrap();
    let (query, from) = next_query(&upstream);
    // The attacker knows the port and tries message IDs; the fifth wrong one makes the server ask over TCP.
    for guess in 1..=5u16 {
        let mut forged = address_reply(&query, "203.0.113.66");
        let id = u16::from_be_bytes([query[0], query[1]]).wrapping_add(guess);
        forged[..2].copy_from_slice(&id.to_be_bytes());
        upstream.send_to(&forged, from).unwrap();
    }
    let reply = Message::from_vec(&exchange_one(&client)).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.7", "TCP decides");
    truth.join().unwrap();
    // An attacker who guesses the ID as well does not know the case of the name.
    client.send(&common::query("another.bank.example. A", None)).unwrap();
    let (query, from) = next_query(&upstream);
    let mut forged = address_reply(&query, "203.0.113.66");
    for octet in forged[12..12 + 22].iter_mut().filter(|octet| octet.is_ascii_alphabetic()) {
        *octet ^= 0x20;
    }
    upstream.send_to(&forged, from).unwrap();
    // Here TCP is gone, so the query is repeated over UDP, with a new ID from a new port.
    let (second, port) = next_query(&upstream);
    assert!(port != from && second[..2] != query[..2], "a new ID and a new port");
    upstream.send_to(&address_reply(&second, "192.0.2.8"), port).unwrap();
    let reply = Message::from_vec(&exchange_one(&client)).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.8");
}

#[test]
fn an_upstream_that_does_not_keep_the_case_of_names_is_remembered() {
    for has_tcp in [true, false] {
        let lower = |query: &Message| {
            let mut reply = address_reply(&query.to_vec().unwrap(), "192.0.2.9");
            reply[12..].make_ascii_lowercase();
            vec![reply]
        };
        let upstream =
            Upstream::start(move |query, over| if over == Over::Udp || has_tcp { lower(query) } else { Vec::new() });
        let server = Server::start(&["--manifests", "deploy/demo", &upstream.flag()], None);
        for index in 0..5 {
            let question = common::query(&format!("long-name-{index}.example. A"), None);
            let reply = Message::from_vec(&exchange::udp(server.dns, &question).unwrap()).unwrap();
            assert_eq!(reply.answers[0].data.to_string(), "192.0.2.9", "TCP {has_tcp}");
        }
        let asked = upstream.asked();
        assert!(asked <= 5 + 2, "the exception is found once: {asked} queries");
    }
}

#[test]
fn a_public_name_does_not_lead_into_the_cluster() {
    // The owner of evil.example points it at Services, and adds addresses for names that are not his.
    let upstream = Upstream::start(|query, _| {
        let mut reply = upstream::reply(
            query,
            ResponseCode::NoError,
            &upstream::parse(
                "into.evil.example 60 CNAME api.web.svc.cluster.local.
                 api.web.svc.cluster.local 60 A 203.0.113.66",
            ),
        );
        reply.additionals = upstream::parse("api.web.svc.cluster.local 60 A 203.0.113.66");
        vec![reply.to_vec().unwrap()]
    });
    let stub = format!("--stub=evil.example={},into-cluster", upstream.address);
    let alias = "into.evil.example. 60 CNAME api.web.svc.cluster.local.";
    for (case, flags, expected) in [
        ("an upstream", &[&*upstream.flag()][..], format!("NOERROR\n{alias}")),
        (
            "a stub zone that may",
            &["--upstream=none", &stub],
            format!("NOERROR\n{alias}\napi.web.svc.cluster.local. 5 A 10.96.0.10"),
        ),
    ] {
        let (_scratch, cluster) = big_answer();
        let server = Server::start(&[&["--manifests", &cluster][..], flags].concat(), None);
        for _ in 0..2 {
            let reply = exchange::udp(server.dns, &common::query("into.evil.example. A", None)).unwrap();
            let shown = common::text(&reply);
            assert_eq!(shown.replace(" 59 ", " 60 ").trim_end(), expected, "{case}");
        }
    }
}

#[test]
fn records_that_do_not_answer_the_question_are_dropped() {
    let soa = |owner: &str| format!("{owner} 60 SOA ns.{owner} mail.{owner} 1 2 3 4 60");
    // Answers, authority and additional section of the upstream, and the sections that clients get.
    let cases: &[(&str, &str, String, &str, &str)] = &[
        ("an answer", "www.example 60 A 192.0.2.1", String::new(), "", "www.example. A | |"),
        (
            "an address for another name",
            "www.example 60 A 192.0.2.1\nbank.example 60 A 203.0.113.66",
            String::new(),
            "",
            "www.example. A | |",
        ),
        (
            "a chain, and a record beside it",
            "www.example 60 CNAME a.example.\nbank.example 60 A 203.0.113.66\na.example 60 A 192.0.2.1",
            String::new(),
            "",
            "www.example. CNAME, a.example. A | |",
        ),
        (
            "another type",
            "www.example 60 A 192.0.2.1\nwww.example 60 TXT \"x\"",
            String::new(),
            "",
            "www.example. A | |",
        ),
        ("the SOA of a parent", "", soa("example."), "", "| example. SOA |"),
        ("the SOA of another zone", "", soa("bank."), "", "| |"),
        (
            "NS of a parent with its address",
            "www.example 60 A 192.0.2.1",
            "example 60 NS ns.example.".into(),
            "ns.example 60 A 192.0.2.53",
            "www.example. A | example. NS | ns.example. A",
        ),
        ("NS of another zone", "www.example 60 A 192.0.2.1", "bank 60 NS ns.example.".into(), "", "www.example. A | |"),
        (
            "an address that nobody asked for",
            "www.example 60 A 192.0.2.1",
            String::new(),
            "bank.example 60 A 203.0.113.66",
            "www.example. A | |",
        ),
    ];
    for (case, answers, authority, additional, expected) in cases {
        let (answers, authority, additional) =
            (upstream::parse(answers), upstream::parse(authority), upstream::parse(additional));
        let upstream = Upstream::start(move |query, _| {
            let mut reply = upstream::reply(query, ResponseCode::NoError, &answers);
            (reply.authorities, reply.additionals) = (authority.clone(), additional.clone());
            vec![reply.to_vec().unwrap()]
        });
        let server = Server::start(&["--manifests", "deploy/demo", &upstream.flag()], None);
        let reply = exchange::udp(server.dns, &common::query("www.example. A", None)).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        let section = |records: &[hickory_proto::rr::Record]| {
            records
                .iter()
                .map(|record| format!("{} {}", record.name, record.record_type()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let sections = [&reply.answers, &reply.authorities, &reply.additionals].map(|records| section(records));
        assert_eq!(sections.join(" | ").replace("  ", " ").trim(), *expected, "{case}");
    }
}

#[test]
fn private_addresses_of_public_names_are_refused_on_request() {
    let private = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0"];
    let upstream = Upstream::start(move |query, _| {
        let name = query.queries[0].name().to_lowercase().to_string();
        let index: usize = name.split('.').next().unwrap().parse().unwrap();
        let address = private.get(index).unwrap_or(&"192.0.2.1");
        vec![address_reply(&query.to_vec().unwrap(), address)]
    });
    for (mode, is_refused, count) in [("off", false, 0), ("log", false, private.len()), ("on", true, private.len())] {
        let stub = format!("--stub=corp={}", upstream.address);
        let flags = ["--manifests", "deploy/demo", &upstream.flag(), &stub, "--rebind-protection", mode];
        let server = Server::start(&flags, None);
        for (index, address) in private.iter().enumerate() {
            let reply = server.ask(&format!("{index}.example. A"));
            assert_eq!(reply.starts_with("REFUSED"), is_refused, "{mode}, {address}: {reply}");
            assert!(server.ask(&format!("{index}.corp. A")).contains(address), "{mode}: stub zones may");
        }
        assert!(server.ask("99.example. A").contains("192.0.2.1"));
        let counted = format!("callsign_forward_private_addresses_total {count}\n");
        assert!(server.get("/metrics").contains(&counted), "{mode}");
    }
}

#[test]
fn opcodes_other_than_query_are_never_forwarded() {
    // CoreDNS, BIND and others have passed on UPDATE or NOTIFY, or answered them from the cache.
    let upstream = Upstream::start(|query, _| vec![address_reply(&query.to_vec().unwrap(), "192.0.2.1")]);
    let server = Server::start(&["--manifests", "deploy/demo", &upstream.flag()], None);
    assert!(server.ask("www.example. A").contains("192.0.2.1"));
    let asked = upstream.asked();
    for opcode in (1..16).filter(|opcode| *opcode != 0) {
        for name in ["www.example. A", "other.example. SOA", "api.web.svc.cluster.local. A"] {
            let mut query = common::query(name, Some(1232));
            query[2] = query[2] & 0x87 | opcode << 3;
            for reply in [exchange::udp(server.dns, &query).unwrap(), exchange::tcp(server.dns, &query).unwrap()] {
                assert_eq!(reply[3] & 0x0f, 4, "NOTIMP for opcode {opcode}, {name}");
            }
        }
    }
    assert_eq!(upstream.asked(), asked, "nothing was forwarded");
}

/// A query with this cookie option.
fn with_cookie(question: &str, cookie: &[u8]) -> Vec<u8> {
    let mut query = Message::from_vec(&common::query(question, Some(1232))).unwrap();
    query.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(10, cookie.to_vec()));
    query.to_vec().unwrap()
}

/// The cookie option of a reply.
fn cookie_of(reply: &[u8]) -> Option<Vec<u8>> {
    let reply = Message::from_vec(reply).unwrap();
    match reply.edns?.option(EdnsCode::from(10u16))? {
        EdnsOption::Unknown(_, data) => Some(data.clone()),
        _ => None,
    }
}

#[test]
fn cookies_are_returned_with_every_kind_of_reply() {
    let upstream = Upstream::start(|query, _| vec![address_reply(&query.to_vec().unwrap(), "192.0.2.1")]);
    let server = Server::start(&["--manifests", "deploy/demo", &upstream.flag()], None);
    let client = exchange::udp_socket(server.dns);
    for (case, question) in [
        ("an answer", "api.web.svc.cluster.local. A"),
        ("NXDOMAIN", "nothing.web.svc.cluster.local. A"),
        ("from an upstream", "www.example. A"),
        ("from the cache", "www.example. A"),
        ("NOTIMP", "www.example. TYPE200"),
    ] {
        let first = exchange::exchange(&client, &with_cookie(question, &[7; 8])).unwrap();
        let cookie = cookie_of(&first).unwrap_or_else(|| panic!("{case}: no cookie"));
        assert!(cookie.len() == 24 && cookie[..8] == [7; 8], "{case}");
        let again = exchange::exchange(&client, &with_cookie(question, &cookie)).unwrap();
        assert_eq!(cookie_of(&again).unwrap().len(), 24, "{case}");
        let plain = exchange::exchange(&client, &common::query(question, Some(1232))).unwrap();
        assert_eq!(cookie_of(&plain), None, "{case}: no cookie without one");
    }
    // A query for a cookie alone has no question (RFC 7873 section 5.4).
    let mut alone = with_cookie("a. A", &[7; 8]);
    alone[5] = 0;
    alone.drain(12..12 + 3 + 4);
    let reply = exchange::exchange(&client, &alone).unwrap();
    assert_eq!((reply[3] & 0x0f, cookie_of(&reply).map(|cookie| cookie.len())), (0, Some(24)));
    for length in [1, 7, 9, 15, 41] {
        let reply = exchange::exchange(&client, &with_cookie("api. A", &vec![7; length])).unwrap();
        assert_eq!(reply[3] & 0x0f, 1, "FORMERR for a cookie of {length} octets");
    }
}

#[test]
fn a_forged_sender_gets_few_replies_and_a_real_one_all() {
    // Loopback is exempt, so this needs another address of this host.
    let Some(own) = exchange::own_address() else { return };
    let (_scratch, cluster) = big_answer();
    let flags = ["--manifests", &cluster, "--rate-limit", "20", "--listen", "0.0.0.0:0", "--allow-from", "0.0.0.0/0"];
    let server = Server::start(&flags, None);
    let port = server.line.split("0.0.0.0:").nth(1).unwrap().split(' ').next().unwrap().parse::<u16>().unwrap();
    let client = exchange::udp_socket((own, port).into());
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let query = common::query("big.web.svc.cluster.local. A", Some(1232));
    for _ in 0..400 {
        client.send(&query).unwrap();
    }
    let mut received = 0;
    let (mut whole, mut truncated, mut buffer) = (0, 0, [0; 4096]);
    while let Ok(length) = client.recv(&mut buffer) {
        let is_truncated = length <= query.len();
        assert!(is_truncated || length > 1000, "a truncated reply amplifies nothing");
        received += 1;
        truncated += usize::from(is_truncated);
        whole += usize::from(!is_truncated);
    }
    assert!((20..100).contains(&whole), "{whole} of {received}");
    assert!((100..250).contains(&truncated), "{truncated} of {received}");
    // A client with a cookie is not limited, and over TCP nobody is.
    let reply = loop {
        client.send(&with_cookie("big.web.svc.cluster.local. A", &[7; 8])).unwrap();
        if let Ok(length) = client.recv(&mut buffer)
            && let Some(cookie) = cookie_of(&buffer[..length])
        {
            break cookie;
        }
    };
    for _ in 0..100 {
        let reply = exchange::exchange(&client, &with_cookie("big.web.svc.cluster.local. A", &reply)).unwrap();
        assert!(reply.len() > 1000, "not limited");
        let reply = exchange::tcp((own, port).into(), &query).unwrap();
        assert!(reply.len() > 1000, "not limited");
        // A short reply gains nothing.
        let short = common::query("api.web.svc.cluster.local. A", None);
        assert!(exchange::exchange(&client, &short).unwrap().ends_with(&[10, 96, 0, 10]));
    }
    assert!(server.get("/metrics").contains("callsign_dns_rate_limited_total "));
}
