//! Attacks on a server in a process of its own: each row or test is one that stopped it, or another server, before.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::process::Server;
use crate::common::{self, Scratch, exchange};

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
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("# EOF\n"), "{response}");
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
