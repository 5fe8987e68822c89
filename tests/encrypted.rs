//! TLS, HTTPS, QUIC and HTTP/3: who is answered, what is refused and how, and what happens when certificates change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_stack_frames,
    missing_docs
)]

mod common;
#[path = "common/encrypted.rs"]
mod encrypted;
#[path = "common/process.rs"]
mod process;
#[path = "common/upstream.rs"]
#[allow(unused_imports)]
mod upstream;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use callsign::server::encrypted::{ListenUrl, Transport};
use common::{Scratch, query};
use encrypted::{Authority, Client, Failed, NAME, Pair, Trust, framed};
use hyper::Request;
use hyper::body::Bytes;
use process::Server;
use rustls::pki_types::ServerName;

const OBJECTS: &str = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n";
const QUESTION: &str = "api.web.svc.cluster.local A";
const ALL: &str = "tls://127.0.0.1:0,https://127.0.0.1:0,quic://127.0.0.1:0,h3://127.0.0.1:0";

/// A server with certificates of its own.
struct Encrypted {
    server: Server,
    trust: Trust,
    authority: Authority,
    folder: Scratch,
}

impl Encrypted {
    fn start(flags: &[&str]) -> Encrypted {
        Encrypted::start_by(process::callsign(), flags)
    }

    fn start_by(command: Command, flags: &[&str]) -> Encrypted {
        let (folder, authority) = (Scratch::folder("encrypted"), Authority::new("An authority"));
        authority.issue("A server").write(&folder.0);
        Encrypted::start_from(folder, authority, command, flags)
    }

    /// With the files of this folder.
    fn start_from(folder: Scratch, authority: Authority, command: Command, flags: &[&str]) -> Encrypted {
        let objects = folder.file("objects.yaml", OBJECTS);
        let file = |name: &str| folder.0.join(name).into_os_string().into_string().unwrap();
        let (certificate, key) = (file("tls.crt"), file("tls.key"));
        let shown = ["--listen", ALL, "--tls-cert", &certificate, "--tls-key", &key, "--lame-duck", "0"];
        let source = ["--manifests", objects.to_str().unwrap()];
        let flags: Vec<&str> = shown.iter().chain(&source).chain(flags).copied().collect();
        let server = Server::start_by(command, &flags, None);
        Encrypted { server, trust: Trust { authority: authority.pem.clone(), identity: None }, authority, folder }
    }

    fn endpoints(&self) -> Vec<ListenUrl> {
        let words = self.server.line.split([' ', ',']);
        words.filter(|word| word.contains("://")).map(|word| word.parse().unwrap()).collect()
    }

    fn endpoint(&self, transport: Transport) -> ListenUrl {
        *self.endpoints().iter().find(|endpoint| endpoint.transport == transport).unwrap()
    }

    fn address(&self, transport: Transport) -> SocketAddr {
        self.endpoint(transport).address
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.server.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("callsign_{name} "))).unwrap_or("- -1");
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn becomes(&self, name: &str, expected: f64) {
        let start = Instant::now();
        while self.metric(name) != expected {
            assert!(start.elapsed() < Duration::from_secs(10), "{name} is {}, not {expected}", self.metric(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everybody else is answered: over UDP, and by a new connection of each kind.
    async fn is_well(&self, case: &str) {
        assert!(self.server.ask(QUESTION).contains("10.96.0.10"), "{case}");
        for endpoint in self.endpoints() {
            ask_once(endpoint, &self.trust).await.unwrap_or_else(|error| panic!("{case}: {endpoint}: {error}"));
        }
    }
}

/// A question as QUIC has it: its id is 0.
fn question() -> Vec<u8> {
    let mut query = query(QUESTION, Some(1232));
    query[..2].fill(0);
    query
}

async fn ask_once(endpoint: ListenUrl, trust: &Trust) -> Result<(), Failed> {
    let reply = Client::connect(endpoint, trust).await?.ask(&question()).await?;
    if common::text(&reply).contains("10.96.0.10") { Ok(()) } else { Err(common::text(&reply).into()) }
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Reads until the other side closes; what came, and whether it did.
fn rest(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut octets = Vec::new();
    match stream.read_to_end(&mut octets) {
        Ok(_) => (octets, true),
        Err(error) => (octets, error.kind() != ErrorKind::WouldBlock),
    }
}

fn write(folder: &Scratch, name: &str, text: &str) -> String {
    folder.file(name, text).into_os_string().into_string().unwrap()
}

#[test]
fn what_does_not_start() {
    let folder = Scratch::folder("unfit");
    let authority = Authority::new("An authority");
    let (good, other) = (authority.issue("A server"), authority.issue("Another"));
    let pair = |name: &str, pair: &Pair| {
        (write(&folder, &format!("{name}.crt"), &pair.certificate), write(&folder, &format!("{name}.key"), &pair.key))
    };
    let (certificate, key) = pair("good", &good);
    let (_, other_key) = pair("other", &other);
    let (expired, expired_key) = pair("expired", &authority.issue_for("A server", 2020..2021));
    let (early, early_key) = pair("early", &authority.issue_for("A server", 2080..2090));
    let empty = write(&folder, "empty", "");
    let noise = write(&folder, "noise", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    let shell = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let shell = write(&folder, "shell", shell);
    let missing = folder.0.join("missing").into_os_string().into_string().unwrap();
    let objects = write(&folder, "objects.yaml", OBJECTS);
    let tls = "tls://127.0.0.1:0";
    let cases: &[(&str, &[&str], &[&str])] = &[
        (
            "no certificate and no key",
            &["--listen", tls],
            &["--listen tls://127.0.0.1:0 needs --tls-cert FILE and --tls-key FILE"],
        ),
        ("no key", &["--listen", tls, "--tls-cert", &certificate], &["needs --tls-cert FILE and --tls-key FILE"]),
        (
            "a certificate, and nothing to show it to",
            &["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key],
            &["--tls-cert is for encrypted transports", "--listen tls://"],
        ),
        (
            "a scheme that nobody knows",
            &["--listen", "ftp://127.0.0.1:0"],
            &["--listen 'ftp://127.0.0.1:0'", "tls, https, quic and h3"],
        ),
        ("no port", &["--listen", "tls://127.0.0.1"], &["--listen 'tls://127.0.0.1'", "ADDR:PORT"]),
        (
            "a certificate that is not there",
            &["--listen", tls, "--tls-cert", &missing, "--tls-key", &key],
            &["--tls-cert", &missing, "No such file"],
        ),
        (
            "a key that is not there",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &missing],
            &["--tls-key", &missing, "No such file"],
        ),
        (
            "an empty certificate",
            &["--listen", tls, "--tls-cert", &empty, "--tls-key", &key],
            &["--tls-cert", &empty, "no certificate is in it"],
        ),
        (
            "an empty key",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &empty],
            &["--tls-key", &empty, "no private key is in it"],
        ),
        (
            "PEM that is none",
            &["--listen", tls, "--tls-cert", &noise, "--tls-key", &key],
            &["--tls-cert", &noise, "no PEM"],
        ),
        (
            "PEM that holds no certificate",
            &["--listen", tls, "--tls-cert", &shell, "--tls-key", &key],
            &["--tls-cert", &shell, "no certificate"],
        ),
        (
            "certificate and key changed places",
            &["--listen", tls, "--tls-cert", &key, "--tls-key", &certificate],
            &["--tls-cert", &key, "no certificate is in it"],
        ),
        (
            "the key of another",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &other_key],
            &["--tls-key", &other_key, "not the key of", &certificate],
        ),
        (
            "expired",
            &["--listen", tls, "--tls-cert", &expired, "--tls-key", &expired_key],
            &["--tls-cert", &expired, "expired at 2021-01-01T00:00:00Z"],
        ),
        (
            "not valid yet",
            &["--listen", tls, "--tls-cert", &early, "--tls-key", &early_key],
            &["--tls-cert", &early, "not valid before 2080-01-01T00:00:00Z"],
        ),
        (
            "authorities of clients that are none",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &empty],
            &["--tls-client-ca", &empty, "no certificate is in it"],
        ),
    ];
    for (case, flags, expected) in cases {
        let always = ["serve", "--admin", "127.0.0.1:0", "--upstream", "none", "--manifests", &objects];
        let output = process::run(&always.iter().chain(*flags).copied().collect::<Vec<_>>());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{case}: {text}");
        let last = text.lines().last().unwrap_or_default();
        for part in *expected {
            assert!(last.contains(part), "{case}: '{part}' is missing: {last}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn client_certificates() {
    let folder = Scratch::folder("authorities");
    let (clients, strangers) = (Authority::new("Of clients"), Authority::new("Of strangers"));
    let authorities = write(&folder, "ca.crt", &clients.pem);
    let it = Encrypted::start(&["--tls-client-ca", &authorities]);
    let with = |identity| Trust { identity, ..it.trust.clone() };
    for endpoint in it.endpoints() {
        for (case, identity, answered) in [
            ("none", None, false),
            ("by another authority", Some(strangers.issue("A stranger")), false),
            ("expired", Some(clients.issue_for("A client", 2020..2021)), false),
            ("by the authority", Some(clients.issue("A client")), true),
        ] {
            let answer = ask_once(endpoint, &with(identity)).await;
            assert_eq!(answer.is_ok(), answered, "{endpoint}: {case}: {answer:?}");
        }
    }
    assert!(it.metric("encrypted_handshake_failures_total") >= 12.0);
    // With a session a certificate would stay good for as long as its client comes back.
    let config = with(Some(clients.issue("A client"))).config(Some("dot"));
    for _ in 0..2 {
        let mut client =
            Client::Tls(Box::new(encrypted::tls(it.address(Transport::Tls), config.clone()).await.unwrap()));
        client.ask(&question()).await.unwrap();
        let Client::Tls(stream) = &client else { unreachable!() };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    // Other authorities: who was let in by the one before is not any more.
    std::fs::write(&authorities, &strangers.pem).unwrap();
    let known = with(Some(clients.issue("A client")));
    let start = Instant::now();
    while ask_once(it.endpoint(Transport::Tls), &known).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for endpoint in it.endpoints() {
        assert!(ask_once(endpoint, &known).await.is_err(), "{endpoint}");
        ask_once(endpoint, &with(Some(strangers.issue("No stranger any more")))).await.unwrap();
    }
}

/// The certificate that a client is shown.
async fn shown(endpoint: ListenUrl, trust: &Trust) -> Vec<u8> {
    match endpoint.transport {
        Transport::Tls | Transport::Https => {
            let stream = encrypted::tls(endpoint.address, trust.config(None)).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        }
        transport => {
            let protocol = if transport == Transport::Quic { "doq" } else { "h3" };
            let (_, connection) = encrypted::quic(endpoint.address, trust.config(Some(protocol))).await.unwrap();
            let chain = connection.peer_identity().unwrap();
            chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap()[0].to_vec()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_are_read_again() {
    let it = Encrypted::start(&[]);
    let folder = &it.folder.0;
    let all_show = async |pair: &Pair, case: &str| {
        for endpoint in it.endpoints() {
            assert_eq!(shown(endpoint, &it.trust).await, pair.der(), "{case}: {endpoint}");
        }
    };
    // Written in place.
    let second = it.authority.issue_for("The second", 2020..2088);
    second.write(folder);
    it.becomes("tls_certificate_not_after_timestamp_seconds", 3_723_753_600.0);
    all_show(&second, "in place").await;
    // What will not do changes nothing.
    let certificate = folder.join("tls.crt");
    let mut failures = it.metric("tls_certificate_reload_failures_total");
    for (case, text) in [
        ("of another key", it.authority.issue("Another").certificate),
        ("cut off", second.certificate[..300].to_owned()),
        ("expired", it.authority.issue_for("The second", 2020..2021).certificate),
    ] {
        std::fs::write(&certificate, text).unwrap();
        failures += 1.0;
        it.becomes("tls_certificate_reload_failures_total", failures);
        all_show(&second, case).await;
    }
    std::fs::remove_file(&certificate).unwrap();
    it.becomes("tls_certificate_reload_failures_total", failures + 1.0);
    all_show(&second, "removed").await;
    // And what will do is taken again.
    let third = it.authority.issue_for("The third", 2020..2087);
    third.write(folder);
    it.becomes("tls_certificate_not_after_timestamp_seconds", 3_692_217_600.0);
    all_show(&third, "after all that").await;
    // One that nobody renews is told when its time is over; it is shown all the same.
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 4;
    let last = it.authority.issue_until("The last", soon);
    last.write(folder);
    it.becomes("tls_certificate_not_after_timestamp_seconds", soon as f64);
    tokio::time::sleep(Duration::from_secs(6)).await;
    it.folder.file("unrelated", "");
    tokio::time::sleep(Duration::from_secs(1)).await;
    it.server.signal("-INT");
    let (status, log) = it.server.wait();
    assert_eq!(status, Some(0), "{log}");
    for part in [
        "the certificate of before stays",
        "not the key of",
        "expired at 2021",
        "No such file",
        "has been read again",
        "has expired",
    ] {
        assert!(log.contains(part), "'{part}' is missing: {log}");
    }
}

/// As the kubelet writes a Secret: a folder of its own, and a link that is renamed.
fn mount(folder: &Path, version: u32, pair: &Pair) {
    let name = format!("..version-{version}");
    std::fs::create_dir(folder.join(&name)).unwrap();
    pair.write(&folder.join(&name));
    std::os::unix::fs::symlink(&name, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if version > 0 {
        std::fs::remove_dir_all(folder.join(format!("..version-{}", version - 1))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_and_no_question_fails() {
    let (folder, authority) = (Scratch::folder("mounted"), Authority::new("An authority"));
    mount(&folder.0, 0, &authority.issue("Version 0"));
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.0.join(name)).unwrap();
    }
    let it = Encrypted::start_from(folder, authority, process::callsign(), &[]);
    let (trust, authority, folder) = (&it.trust, &it.authority, &it.folder);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut clients = Vec::new();
    for endpoint in it.endpoints() {
        for stays in [true, false] {
            let (trust, stop, asked) = (trust.clone(), stop.clone(), asked.clone());
            clients.push(tokio::spawn(async move {
                let mut client = Client::connect(endpoint, &trust).await.unwrap();
                while !stop.load(Relaxed) {
                    if !stays {
                        client = Client::connect(endpoint, &trust)
                            .await
                            .unwrap_or_else(|error| panic!("{endpoint}: {error}"));
                    }
                    client.ask(&question()).await.unwrap_or_else(|error| panic!("{endpoint}: {error}"));
                    asked.fetch_add(1, Relaxed);
                }
            }));
        }
    }
    let mut last = authority.issue("Version 0");
    for version in 1..6 {
        last = authority.issue(&format!("Version {version}"));
        mount(&folder.0, version, &last);
        let start = Instant::now();
        for endpoint in it.endpoints() {
            while shown(endpoint, trust).await != last.der() {
                assert!(start.elapsed() < Duration::from_secs(10), "{endpoint}: version {version} is not shown");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    stop.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(asked.load(Relaxed) > 100, "{}", asked.load(Relaxed));
    assert_eq!(shown(it.endpoint(Transport::Tls), trust).await, last.der());
}

/// In prose; method, URI, content type and body; status and how long the response may be kept.
type Exchange = (&'static str, &'static str, String, &'static str, Vec<u8>, u16, &'static str);

fn http(method: &str, uri: &str, kind: &str, body: Vec<u8>) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(format!("https://{NAME}{uri}"));
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    request.body(body.into()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_and_responses() {
    let it = Encrypted::start(&[]);
    let dns = "application/dns-message";
    let url = |message: &[u8]| format!("/dns-query?dns={}", data_encoding::BASE64URL_NOPAD.encode(message));
    let padded = format!("/dns-query?dns={}", data_encoding::BASE64URL.encode(&question()));
    let reply = [&[0, 0, 0x80, 0][..], &[0; 8]].concat();
    let cases: Vec<Exchange> = vec![
        ("a question in the body", "POST", "/dns-query".into(), dns, question(), 200, "private, max-age=5"),
        (
            "its type in other letters, with parameters",
            "POST",
            "/dns-query".into(),
            "Application/DNS-Message; a=b",
            question(),
            200,
            "private, max-age=5",
        ),
        ("a question in the URI", "GET", url(&question()), "", vec![], 200, "private, max-age=5"),
        ("with padding, which the standard leaves out", "GET", padded, "", vec![], 200, "private, max-age=5"),
        (
            "other parameters before it",
            "GET",
            url(&question()).replace("?dns", "?a=b&dns"),
            "",
            vec![],
            200,
            "private, max-age=5",
        ),
        (
            "a name that is not there: the SOA says how long",
            "GET",
            url(&query("none.web.svc.cluster.local A", None)),
            "",
            vec![],
            200,
            "private, max-age=5",
        ),
        ("a name of others, refused", "GET", url(&query("www.example.com A", None)), "", vec![], 200, "no-store"),
        (
            "a question that is malformed gets a DNS answer",
            "POST",
            "/dns-query".into(),
            dns,
            vec![7; 100],
            200,
            "no-store",
        ),
        ("another path", "GET", "/".into(), "", vec![], 404, "no-store"),
        ("GET without dns=", "GET", "/dns-query".into(), "", vec![], 400, "no-store"),
        ("no base64url", "GET", "/dns-query?dns=!!!!".into(), "", vec![], 400, "no-store"),
        ("base64, not base64url", "GET", "/dns-query?dns=AA%2F%2B".into(), "", vec![], 400, "no-store"),
        ("too little for a question", "GET", "/dns-query?dns=AAAA".into(), "", vec![], 400, "no-store"),
        ("a reply is no question", "GET", url(&reply), "", vec![], 400, "no-store"),
        ("a URI longer than any question", "GET", url(&vec![0; 4097]), "", vec![], 414, "no-store"),
        ("another method", "PUT", "/dns-query".into(), dns, question(), 405, "no-store"),
        ("another type", "POST", "/dns-query".into(), "text/plain", question(), 415, "no-store"),
        ("no type", "POST", "/dns-query".into(), "", question(), 415, "no-store"),
        ("nothing", "POST", "/dns-query".into(), dns, vec![], 400, "no-store"),
        ("a body of the longest question", "POST", "/dns-query".into(), dns, vec![7; 4096], 200, "no-store"),
        ("a body longer than that", "POST", "/dns-query".into(), dns, vec![7; 4097], 413, "no-store"),
        ("10 MB", "POST", "/dns-query".into(), dns, vec![7; 10_000_000], 413, "no-store"),
    ];
    for version in ["1.1", "2", "3"] {
        for (case, method, uri, kind, body, status, cached) in &cases {
            let mut client = match version {
                "1.1" => Client::http1(it.address(Transport::Https), &it.trust).await.unwrap(),
                "2" => Client::connect(it.endpoint(Transport::Https), &it.trust).await.unwrap(),
                _ => Client::connect(it.endpoint(Transport::H3), &it.trust).await.unwrap(),
            };
            let request = http(method, uri, kind, body.clone());
            let response = match client.request(request).await {
                Ok(response) => response,
                // A client that is still sending when it is refused may see the end before the response.
                Err(error) if body.len() > 1_000_000 && version != "3" && error.to_string() != "too long" => continue,
                Err(error) => panic!("{case}, HTTP/{version}: {error}"),
            };
            let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
            assert_eq!(response.status().as_u16(), *status, "{case}, HTTP/{version}: {response:?}");
            assert_eq!(header("cache-control"), *cached, "{case}, HTTP/{version}");
            assert_eq!(header("content-length"), response.body().len().to_string(), "{case}, HTTP/{version}");
            let kind = if *status == 200 { dns } else { "text/plain; charset=utf-8" };
            assert_eq!(header("content-type"), kind, "{case}, HTTP/{version}");
            assert_eq!(header("allow"), if *status == 405 { "GET, POST" } else { "" }, "{case}, HTTP/{version}");
        }
    }
    it.is_well("after all that").await;
}

/// The code that the server closes a connection with.
async fn closed(connection: &quinn::Connection) -> Option<u64> {
    match tokio::time::timeout(Duration::from_secs(5), connection.closed()).await {
        Ok(quinn::ConnectionError::ApplicationClosed(close)) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_rules_of_dns_over_quic() {
    let it = Encrypted::start(&[]);
    let good = question();
    let with_id = query(QUESTION, None);
    let keepalive = {
        use hickory_proto::op::{Edns, Message};
        use hickory_proto::rr::rdata::opt::EdnsOption;
        let mut message = Message::from_vec(&good).unwrap();
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(11, vec![]));
        message.set_edns(edns);
        message.to_vec().unwrap()
    };
    let reply = [&[0, 0, 0x80, 0][..], &[0; 8]].concat();
    for (case, octets) in [
        ("an id that is not 0", framed(&with_id)),
        ("a header with such an id, longer than any question", [&[0xff, 0xff, 0, 1][..], &[0; 5000]].concat()),
        ("two questions", [framed(&good), framed(&good)].concat()),
        ("octets behind the question", [framed(&good), vec![0]].concat()),
        ("half a question", framed(&good)[..20].to_vec()),
        ("half a length", vec![0]),
        ("nothing", vec![]),
        ("TCP's option", framed(&keepalive)),
        ("a reply", framed(&reply)),
        ("an empty message", framed(&[])),
    ] {
        let (_endpoint, connection) =
            encrypted::quic(it.address(Transport::Quic), it.trust.config(Some("doq"))).await.unwrap();
        let (mut stream, _reply) = connection.open_bi().await.unwrap();
        let _ = stream.write_all(&octets).await;
        let _ = stream.finish();
        assert_eq!(closed(&connection).await, Some(2), "{case}: DOQ_PROTOCOL_ERROR");
    }
    let (_endpoint, connection) =
        encrypted::quic(it.address(Transport::Quic), it.trust.config(Some("doq"))).await.unwrap();
    let one_way = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(one_way.is_err(), "there are no streams of one direction");
    // Longer than any question, and its id is 0: the header is answered, as over TCP.
    let reply = encrypted::ask_quic(&connection, &[&good[..], &[0; 5000]].concat()).await.unwrap();
    assert_eq!((reply.len(), reply[3] & 15), (12, 1));
    // More questions than may be asked at a time, all of them on one connection.
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let connection = connection.clone();
        asked.spawn(async move { encrypted::ask_quic(&connection, &question()).await.unwrap() });
    }
    while let Some(reply) = asked.join_next().await {
        assert_eq!(reply.unwrap()[3] & 15, 0);
    }
    // A client that gives up one question goes on with others.
    let (mut question, mut reply) = connection.open_bi().await.unwrap();
    question.write_all(&framed(&good)[..20]).await.unwrap();
    question.reset(3u32.into()).unwrap();
    reply.stop(3u32.into()).unwrap();
    encrypted::ask_quic(&connection, &good).await.unwrap();
    it.is_well("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn protocols_are_agreed_on() {
    let it = Encrypted::start(&[]);
    let dot = it.address(Transport::Tls);
    // RFC 7858 names no protocol: who offers none is served.
    for (case, address, protocol, agreed) in [
        ("none, for TLS", dot, None, true),
        ("dot, for TLS", dot, Some("dot"), true),
        ("another, for TLS", dot, Some("h2"), false),
        ("none, for HTTPS: HTTP/1.1", it.address(Transport::Https), None, true),
        ("another, for HTTPS", it.address(Transport::Https), Some("dot"), false),
    ] {
        assert_eq!(encrypted::tls(address, it.trust.config(protocol)).await.is_ok(), agreed, "{case}");
    }
    for (case, transport, protocol, agreed) in [
        ("doq", Transport::Quic, Some("doq"), true),
        ("none, for QUIC", Transport::Quic, None, false),
        ("h3, for QUIC", Transport::Quic, Some("h3"), false),
        ("doq, for HTTP/3", Transport::H3, Some("doq"), false),
    ] {
        assert_eq!(encrypted::quic(it.address(transport), it.trust.config(protocol)).await.is_ok(), agreed, "{case}");
    }
    // TLS 1.2 is spoken, its predecessors are not.
    let mut old = it.trust.config(None);
    old.alpn_protocols.clear();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let authority: rustls::pki_types::CertificateDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(it.trust.authority.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]);
    let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    let mut client = Client::Tls(Box::new(encrypted::tls(dot, config).await.unwrap()));
    client.ask(&question()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_are_resumed_and_early_data_is_not_taken() {
    let it = Encrypted::start(&[]);
    let mut config = it.trust.config(Some("dot"));
    config.enable_early_data = true;
    for (case, kind) in [("first", rustls::HandshakeKind::Full), ("again", rustls::HandshakeKind::Resumed)] {
        let stream = encrypted::tls(it.address(Transport::Tls), config.clone()).await.unwrap();
        let mut client = Client::Tls(Box::new(stream));
        client.ask(&question()).await.unwrap();
        let Client::Tls(stream) = &client else { unreachable!() };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{case}");
        assert!(!stream.get_ref().1.is_early_data_accepted(), "{case}");
    }
    // What a ticket does not allow, a client of rustls does not send; QUIC says so as well.
    let server = ServerName::try_from(NAME).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    assert!(connection.early_data().is_none());
    let mut config = it.trust.config(Some("doq"));
    config.enable_early_data = true;
    let config = Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap());
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    for _ in 0..2 {
        let config = quinn::ClientConfig::new(config.clone());
        let connecting = endpoint.connect_with(config, it.address(Transport::Quic), NAME).unwrap();
        let connecting = connecting.into_0rtt();
        assert!(connecting.is_err(), "there is nothing that would let a client send early");
        let connection = connecting.err().unwrap().await.unwrap();
        encrypted::ask_quic(&connection, &question()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_at_the_ports() {
    let it = Encrypted::start(&["--tcp-idle", "1s"]);
    for transport in [Transport::Tls, Transport::Https] {
        let address = it.address(transport);
        for (case, octets) in [
            ("plain DNS", framed(&question())),
            ("plain HTTP", b"GET /dns-query HTTP/1.1\r\nHost: it\r\n\r\n".to_vec()),
            ("a record that is longer than any", vec![22, 3, 1, 0xff, 0xff]),
        ] {
            let mut stream = connect(address);
            let start = Instant::now();
            stream.write_all(&octets).unwrap();
            let (said, closed) = rest(&mut stream);
            assert!(closed && start.elapsed() < Duration::from_secs(3), "{transport:?}: {case}");
            // An alert, if anything: no DNS, no HTTP in the clear.
            assert!(said.is_empty() || said[0] == 21, "{transport:?}: {case}: {said:?}");
        }
    }
    // Handshakes have five seconds: all of these at the same time.
    let (mut slow, start) = (Vec::new(), Instant::now());
    for transport in [Transport::Tls, Transport::Https] {
        for (case, octets) in [("silence", &[][..]), ("half a handshake", &[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])] {
            let mut stream = connect(it.address(transport));
            stream.write_all(octets).unwrap();
            slow.push((transport, case, stream));
        }
    }
    for (transport, case, mut stream) in slow {
        assert!(rest(&mut stream).1, "{transport:?}: {case}");
        assert!((4900..9000).contains(&start.elapsed().as_millis()), "{transport:?}: {case}: {:?}", start.elapsed());
    }
    // Noise is no QUIC; nobody answers it.
    for transport in [Transport::Quic, Transport::H3] {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(it.address(transport)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        for message in [&question()[..], &[0xff; 1200], &[]] {
            socket.send(message).unwrap();
            assert!(socket.recv(&mut [0; 2000]).is_err(), "{transport:?}");
        }
    }
    it.is_well("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_says_nothing_is_let_go() {
    let it = Encrypted::start(&["--tcp-idle", "3s"]);
    let (mut held, start) = (Vec::new(), Instant::now());
    for endpoint in it.endpoints() {
        held.push(Client::connect(endpoint, &it.trust).await.unwrap());
        let mut asks = Client::connect(endpoint, &it.trust).await.unwrap();
        asks.ask(&question()).await.unwrap();
        held.push(asks);
    }
    let last = Instant::now();
    it.becomes("encrypted_connections", 0.0);
    assert!(start.elapsed() > Duration::from_millis(2900), "{:?}", start.elapsed());
    assert!(last.elapsed() < Duration::from_secs(8), "{:?}", last.elapsed());
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_asks_now_and_then_stays() {
    let it = Encrypted::start(&["--tcp-idle", "8s"]);
    let mut clients = vec![Client::http1(it.address(Transport::Https), &it.trust).await.unwrap()];
    for endpoint in it.endpoints() {
        clients.push(Client::connect(endpoint, &it.trust).await.unwrap());
    }
    for pause in [0, 5, 5] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        for client in &mut clients {
            client.ask(&question()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tls_says_that_it_ends() {
    let it = Encrypted::start(&["--tcp-idle", "1s"]);
    let mut stream = encrypted::tls(it.address(Transport::Tls), it.trust.config(None)).await.unwrap();
    let mut octets = [0; 16];
    // rustls takes an end without close_notify for an error: somebody else may have cut the connection.
    assert_eq!(tokio::io::AsyncReadExt::read(&mut stream, &mut octets).await.unwrap(), 0);
}

/// h3 keeps a frame until it is whole: one that says that it has a thousand million octets must not be kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn frames_of_http3_without_end() {
    let it = Encrypted::start(&[]);
    const LENGTH: [u8; 4] = [0xbf, 0xff, 0xff, 0xff];
    let connect = async || encrypted::quic(it.address(Transport::H3), it.trust.config(Some("h3"))).await.unwrap();
    // Stops when nobody reads any more; says how much was taken.
    let pour = async |stream: &mut quinn::SendStream| {
        let mut poured = 0;
        while poured < 4_000_000 {
            match tokio::time::timeout(Duration::from_secs(5), stream.write_all(&[0; 4096])).await {
                Ok(Ok(())) => poured += 4096,
                _ => break,
            }
        }
        poured
    };
    for (case, kind) in [("HEADERS", 1), ("a frame that nobody knows", 0x21)] {
        let (_endpoint, connection) = connect().await;
        let (mut request, _reply) = connection.open_bi().await.unwrap();
        request.write_all(&[&[kind][..], &LENGTH].concat()).await.unwrap();
        let poured = pour(&mut request).await;
        assert!(poured < 200_000, "{case}: {poured}");
    }
    for (case, start) in [("SETTINGS", [0, 4]), ("a frame that nobody knows on the control stream", [0, 0x21])] {
        let (_endpoint, connection) = connect().await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[&start[..], &LENGTH].concat()).await.unwrap();
        let poured = pour(&mut control).await;
        assert!(poured < 200_000, "{case}: {poured}");
    }
    // Streams that end before they are requests.
    let (_endpoint, connection) = connect().await;
    let mut opened = 0;
    while let Ok(Ok((mut stream, _reply))) = tokio::time::timeout(Duration::from_secs(5), connection.open_bi()).await {
        opened += 1;
        assert!(opened < 3000, "they are counted");
        let _ = stream.finish();
    }
    assert_eq!(closed(&connection).await, Some(0x107), "H3_EXCESSIVE_LOAD");
    it.is_well("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_on_connections() {
    let it = Encrypted::start(&["--tcp-connections", "6", "--tcp-connections-per-address", "4"]);
    for endpoint in it.endpoints() {
        let mut clients = Vec::new();
        for _ in 0..12 {
            let mut client = Client::connect(endpoint, &it.trust).await.unwrap();
            client.ask(&question()).await.unwrap();
            clients.push(client);
        }
        assert!(it.metric("encrypted_connections") <= 4.0, "{endpoint}: {}", it.metric("encrypted_connections"));
        // The last four are there, the others made room.
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.ask(&question()).await.is_ok(), index >= 8, "{endpoint}: {index}");
        }
    }
    // Who only knocks pushes nobody out who asks, though it came later.
    let mut useful = Client::connect(it.endpoint(Transport::Tls), &it.trust).await.unwrap();
    useful.ask(&question()).await.unwrap();
    let knocks: Vec<_> = (0..20).map(|_| connect(it.address(Transport::Https))).collect();
    it.is_well("while others knock").await;
    useful.ask(&question()).await.unwrap();
    drop(knocks);
}

/// First packets of handshakes of QUIC that go no further, each from an address that may be made up: it takes the place of
/// nobody who has asked, and there are never more than a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn handshakes_of_quic_that_go_no_further() {
    const FIRST: usize = 300;
    let it = Encrypted::start(&[]);
    let trap = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = trap.local_addr().unwrap();
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(it.trust.config(Some("doq"))).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let attempts: Vec<_> = (0..FIRST).map(|_| endpoint.connect_with(config.clone(), to, NAME).unwrap()).collect();
    // By the id that the client chose for the server: packets are sent again.
    let mut first = std::collections::HashMap::new();
    let mut packet = [0; 2000];
    while first.len() < FIRST {
        let length = trap.recv(&mut packet).unwrap();
        let id = packet[6..6 + usize::from(packet[5])].to_vec();
        first.entry(id).or_insert_with(|| packet[..length].to_vec());
    }
    let mut useful = Client::connect(it.endpoint(Transport::Quic), &it.trust).await.unwrap();
    useful.ask(&question()).await.unwrap();
    for (index, packet) in first.values().enumerate() {
        let from = SocketAddr::from(([127, 0, 1 + (index / 250) as u8, (index % 250) as u8], 0));
        let socket = std::net::UdpSocket::bind(from).unwrap();
        socket.send_to(packet, it.address(Transport::Quic)).unwrap();
        let open = it.metric("encrypted_connections");
        assert!(open <= 101.0, "{open} after {index}");
    }
    assert!(it.metric("encrypted_connections") > 50.0, "they are handshakes");
    useful.ask(&question()).await.unwrap();
    it.is_well("meanwhile").await;
    drop(attempts);
}

/// Twenty connections ask a hundred times each for 48 kB and take nothing: 96 MB, of which none is owed more than its due.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_that_take_nothing_are_owed_little() {
    let endpoints: Vec<String> = (0..3000).map(|n| format!("{{addresses: [10.1.{}.{}]}}", n / 250, n % 250)).collect();
    let slice = |part: usize, endpoints: &[String]| {
        format!(
            "---\nkind: EndpointSlice\nmetadata: {{name: big-{part}, namespace: web, labels: {{kubernetes.io/service-name: big}}}}\n\
             addressType: IPv4\nports: []\nendpoints: [{}]\n",
            endpoints.join(", ")
        )
    };
    let slices: String = endpoints.chunks(1000).zip(0..).map(|(endpoints, part)| slice(part, endpoints)).collect();
    let objects = format!(
        "{OBJECTS}---\nkind: Service\nmetadata: {{name: big, namespace: web}}\nspec: {{clusterIP: None}}\n{slices}"
    );
    let it = Encrypted::start(&[]);
    it.folder.file("objects.yaml", &objects);
    let mut big = query("big.web.svc.cluster.local A", None);
    big[..2].fill(0);
    let start = Instant::now();
    while Client::connect(it.endpoint(Transport::Tls), &it.trust).await.unwrap().ask(&big).await.unwrap().len() < 48_000
    {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    let before = it.server.status("VmRSS:");
    let (mut kept, mut carried) = (Vec::new(), quinn::TransportConfig::default());
    carried.stream_receive_window(500u32.into()).receive_window(1000u32.into());
    let carried = Arc::new(carried);
    for transport in [Transport::Quic, Transport::H3, Transport::Https] {
        let address = it.address(transport);
        for _ in 0..20 {
            if transport != Transport::Https {
                let protocol = if transport == Transport::Quic { "doq" } else { "h3" };
                let config = it.trust.config(Some(protocol));
                let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
                let mut config = quinn::ClientConfig::new(Arc::new(config));
                config.transport_config(carried.clone());
                let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
                let connection = endpoint.connect_with(config, address, NAME).unwrap().await.unwrap();
                if transport == Transport::H3 {
                    let carried = h3_quinn::Connection::new(connection.clone());
                    let (mut driver, mut client) = h3::client::new(carried).await.unwrap();
                    kept.push(tokio::spawn(async move { drop(driver.wait_idle().await) }));
                    let mut streams = Vec::new();
                    for _ in 0..100 {
                        let (head, body) =
                            http("POST", "/dns-query", "application/dns-message", big.clone()).into_parts();
                        let mut stream = client.send_request(Request::from_parts(head, ())).await.unwrap();
                        stream.send_data(body).await.unwrap();
                        stream.finish().await.unwrap();
                        streams.push(stream);
                    }
                    kept.push(tokio::spawn(async move {
                        let _kept = (endpoint, connection, client, streams);
                        std::future::pending::<()>().await;
                    }));
                    continue;
                }
                let mut streams = Vec::new();
                for _ in 0..100 {
                    let (mut question, reply) = connection.open_bi().await.unwrap();
                    question.write_all(&framed(&big)).await.unwrap();
                    question.finish().unwrap();
                    streams.push(reply);
                }
                kept.push(tokio::spawn(async move {
                    let _kept = (endpoint, connection, streams);
                    std::future::pending::<()>().await;
                }));
            } else {
                let stream = encrypted::tls(address, it.trust.config(Some("h2"))).await.unwrap();
                let mut client = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let client = client.initial_stream_window_size(500).handshake(hyper_util::rt::TokioIo::new(stream));
                let (mut client, connection) = client.await.unwrap();
                kept.push(tokio::spawn(async move { drop(connection.await) }));
                for _ in 0..100 {
                    let request = http("POST", "/dns-query", "application/dns-message", big.clone());
                    let response = client.send_request(request.map(http_body_util::Full::new));
                    kept.push(tokio::spawn(async move {
                        let _kept = response.await;
                        std::future::pending::<()>().await;
                    }));
                }
                kept.push(tokio::spawn(async move {
                    let _kept = client;
                    std::future::pending::<()>().await;
                }));
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let taken = it.server.status("VmRSS:").saturating_sub(before);
        assert!(taken < 40_000, "{transport:?}: {taken} kB");
        it.is_well("meanwhile").await;
    }
    assert!(it.metric("encrypted_connections") >= 60.0, "they are there");
    for task in kept {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn descriptors_that_run_out() {
    let program = env!("CARGO_BIN_EXE_callsign");
    let mut limited = process::with(Path::new("sh"));
    limited.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\"", program]);
    let it = Encrypted::start_by(limited, &["--tcp-connections-per-address", "1000"]);
    let held: Vec<_> = (0..200).map(|_| connect(it.address(Transport::Tls))).collect();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", it.server.child.id())).unwrap();
        let fields: Vec<u64> =
            stat.rsplit(')').next().unwrap().split(' ').filter_map(|field| field.parse().ok()).collect();
        fields[10] + fields[11]
    };
    let before = ticks();
    for _ in 0..10 {
        assert!(it.server.ask(QUESTION).contains("10.96.0.10"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // In a second: a listener that spins takes a hundred of a hundred ticks.
    assert!(ticks() - before < 30, "{} ticks", ticks() - before);
    ask_once(it.endpoint(Transport::Quic), &it.trust).await.unwrap();
    drop(held);
    let start = Instant::now();
    while ask_once(it.endpoint(Transport::Tls), &it.trust).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn names_of_others_and_the_end() {
    let records = upstream::parse("www.example.com 300 A 192.0.2.1");
    let slow = Arc::new(AtomicBool::new(false));
    let waits = slow.clone();
    let upstream = upstream::Upstream::start(move |question, _| {
        if waits.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1500));
        }
        vec![upstream::from_zone(&records, question)]
    });
    let it = Encrypted::start(&[&upstream.flag(), "--cache-entries", "0"]);
    let mut asked = query("www.example.com A", Some(1232));
    asked[..2].fill(0);
    let mut clients = Vec::new();
    for endpoint in it.endpoints() {
        let mut client = Client::connect(endpoint, &it.trust).await.unwrap();
        let reply = common::text(&client.ask(&asked).await.unwrap());
        assert!(reply.contains("192.0.2.1"), "{endpoint}: {reply}");
        clients.push((endpoint, client));
    }
    // What has been asked when the server is told to end is answered.
    slow.store(true, Relaxed);
    let before = it.metric("cache_misses_total");
    let mut waiting = tokio::task::JoinSet::new();
    for (endpoint, mut client) in clients {
        let asked = asked.clone();
        waiting.spawn(async move { (endpoint, client.ask(&asked).await) });
    }
    it.becomes("cache_misses_total", before + 4.0);
    it.server.signal("-INT");
    while let Some(answer) = waiting.join_next().await {
        let (endpoint, answer) = answer.unwrap();
        let reply = common::text(&answer.unwrap_or_else(|error| panic!("{endpoint}: {error}")));
        assert!(reply.contains("192.0.2.1"), "{endpoint}: {reply}");
    }
    let start = Instant::now();
    let (status, log) = it.server.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn busy_connections_do_not_hold_the_end() {
    let it = Encrypted::start(&[]);
    let mut busy = tokio::task::JoinSet::new();
    let asked = Arc::new(AtomicU32::new(0));
    for endpoint in it.endpoints() {
        let client = Client::connect(endpoint, &it.trust).await.unwrap();
        // Several questions at a time where that can be: there is never a moment without one.
        let clients = match client {
            Client::Quic(endpoint, connection) => {
                (0..8).map(|_| Client::Quic(endpoint.clone(), connection.clone())).collect()
            }
            Client::H3(endpoint, connection, client) => {
                (0..8).map(|_| Client::H3(endpoint.clone(), connection.clone(), client.clone())).collect()
            }
            Client::Http2(client) => (0..8).map(|_| Client::Http2(client.clone())).collect(),
            other => vec![other],
        };
        for mut client in clients {
            let asked = asked.clone();
            busy.spawn(async move {
                while client.ask(&question()).await.is_ok() {
                    asked.fetch_add(1, Relaxed);
                }
            });
        }
    }
    while asked.load(Relaxed) < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let start = Instant::now();
    it.server.signal("-INT");
    let (status, log) = it.server.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    while busy.join_next().await.is_some() {}
}
