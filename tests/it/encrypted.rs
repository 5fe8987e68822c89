//! TLS, HTTPS, QUIC and HTTP/3: accepted and rejected clients, protocol rules, limits, and certificate reloads.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::common::exchange::{self, framed};
use crate::common::process::Server;
use crate::common::tls::{self, Authority, BoxError, Client, NAME, Pair, Trust};
use crate::common::{self, Scratch, process, query, upstream};
use callsign::server::encrypted::{ListenUrl, Transport};
use hickory_proto::op::Message;
use hyper::Request;
use hyper::body::Bytes;
use rustls::pki_types::ServerName;

const OBJECTS: &str = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n";
const QUESTION: &str = "api.web.svc.cluster.local A";
const ALL: &str = "tls://127.0.0.1:0,https://127.0.0.1:0,quic://127.0.0.1:0,h3://127.0.0.1:0";

/// A server with its own certificates.
struct Encrypted {
    server: Server,
    trust: Trust,
    authority: Authority,
    folder: Scratch,
}

impl Encrypted {
    fn start(flags: &[&str]) -> Encrypted {
        Encrypted::start_with(process::callsign(), flags)
    }

    fn start_with(command: Command, flags: &[&str]) -> Encrypted {
        let (folder, authority) = (Scratch::folder("encrypted"), Authority::new("An authority"));
        authority.issue("A server").write(&folder.0);
        Encrypted::start_in(folder, authority, command, flags)
    }

    /// Uses the certificate and key in this folder.
    fn start_in(folder: Scratch, authority: Authority, command: Command, flags: &[&str]) -> Encrypted {
        let objects = folder.file("objects.yaml", OBJECTS);
        let file = |name: &str| folder.0.join(name).into_os_string().into_string().unwrap();
        let (certificate, key) = (file("tls.crt"), file("tls.key"));
        let shown = ["--listen", ALL, "--tls-cert", &certificate, "--tls-key", &key, "--lame-duck", "0"];
        let source = ["--manifests", objects.to_str().unwrap()];
        let flags: Vec<&str> = shown.iter().chain(&source).chain(flags).copied().collect();
        let server = Server::start_with(command, &flags, None);
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

    fn wait_for_metric(&self, name: &str, expected: f64) {
        let start = Instant::now();
        while self.metric(name) != expected {
            assert!(start.elapsed() < Duration::from_secs(10), "{name} is {}, not {expected}", self.metric(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that other clients are answered over UDP and over a new connection of each transport.
    async fn assert_still_serving(&self, case: &str) {
        assert!(self.server.ask(QUESTION).contains("10.96.0.10"), "{case}");
        for endpoint in self.endpoints() {
            ask_once(endpoint, &self.trust).await.unwrap_or_else(|error| panic!("{case}: {endpoint}: {error}"));
        }
    }
}

/// Returns a query whose id is 0, as DNS over QUIC requires.
fn question() -> Vec<u8> {
    let mut query = query(QUESTION, Some(1232));
    query[..2].fill(0);
    query
}

async fn ask_once(endpoint: ListenUrl, trust: &Trust) -> Result<(), BoxError> {
    let reply = Client::connect(endpoint, trust).await?.ask(&question()).await?;
    if common::text(&reply).contains("10.96.0.10") { Ok(()) } else { Err(common::text(&reply).into()) }
}

/// Reads until the peer closes; returns the octets, and whether the peer closed.
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
fn invalid_tls_configuration_prevents_startup() {
    let folder = Scratch::folder("invalid");
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
            "a certificate without an encrypted listener",
            &["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key],
            &["--tls-cert needs an encrypted listener", "--listen tls://"],
        ),
        (
            "an unknown scheme",
            &["--listen", "ftp://127.0.0.1:0"],
            &["--listen 'ftp://127.0.0.1:0'", "tls, https, quic and h3"],
        ),
        ("no port", &["--listen", "tls://127.0.0.1"], &["--listen 'tls://127.0.0.1'", "ADDR:PORT"]),
        (
            "a missing certificate file",
            &["--listen", tls, "--tls-cert", &missing, "--tls-key", &key],
            &["--tls-cert", &missing, "No such file"],
        ),
        (
            "a missing key file",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &missing],
            &["--tls-key", &missing, "No such file"],
        ),
        (
            "an empty certificate file",
            &["--listen", tls, "--tls-cert", &empty, "--tls-key", &key],
            &["--tls-cert", &empty, "contains no certificate"],
        ),
        (
            "an empty key file",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &empty],
            &["--tls-key", &empty, "contains no private key"],
        ),
        (
            "malformed PEM",
            &["--listen", tls, "--tls-cert", &noise, "--tls-key", &key],
            &["--tls-cert", &noise, "not valid PEM"],
        ),
        (
            "PEM without a valid certificate",
            &["--listen", tls, "--tls-cert", &shell, "--tls-key", &key],
            &["--tls-cert", &shell, "not an X.509 certificate"],
        ),
        (
            "certificate and key swapped",
            &["--listen", tls, "--tls-cert", &key, "--tls-key", &certificate],
            &["--tls-cert", &key, "contains no certificate"],
        ),
        (
            "the key of another certificate",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &other_key],
            &["--tls-key", &other_key, "not the key of", &certificate],
        ),
        (
            "an expired certificate",
            &["--listen", tls, "--tls-cert", &expired, "--tls-key", &expired_key],
            &["--tls-cert", &expired, "expired at 2021-01-01T00:00:00Z"],
        ),
        (
            "a certificate that is not valid yet",
            &["--listen", tls, "--tls-cert", &early, "--tls-key", &early_key],
            &["--tls-cert", &early, "not valid before 2080-01-01T00:00:00Z"],
        ),
        (
            "an empty file of client authorities",
            &["--listen", tls, "--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &empty],
            &["--tls-client-ca", &empty, "contains no certificate"],
        ),
    ];
    for (case, flags, expected) in cases {
        let always = [
            "serve",
            "--admin",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
            "--upstream",
            "none",
            "--manifests",
            &objects,
        ];
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
async fn only_clients_with_a_trusted_certificate_are_answered() {
    let folder = Scratch::folder("authorities");
    let (clients, strangers) = (Authority::new("For clients"), Authority::new("Untrusted"));
    let authorities = write(&folder, "ca.crt", &clients.pem);
    let it = Encrypted::start(&["--tls-client-ca", &authorities]);
    let with = |identity| Trust { identity, ..it.trust.clone() };
    for endpoint in it.endpoints() {
        for (case, identity, answered) in [
            ("no certificate", None, false),
            ("issued by another authority", Some(strangers.issue("A stranger")), false),
            ("expired", Some(clients.issue_for("A client", 2020..2021)), false),
            ("issued by the authority", Some(clients.issue("A client")), true),
        ] {
            let answer = ask_once(endpoint, &with(identity)).await;
            assert_eq!(answer.is_ok(), answered, "{endpoint}: {case}: {answer:?}");
        }
    }
    assert!(it.metric("encrypted_handshake_failures_total") >= 12.0);
    // Sessions are not resumed: that would skip the check of the certificate for as long as the client returns.
    let config = with(Some(clients.issue("A client"))).config(Some("dot"));
    for _ in 0..2 {
        let mut client = Client::Tls(Box::new(tls::tls(it.address(Transport::Tls), config.clone()).await.unwrap()));
        client.ask(&question()).await.unwrap();
        let Client::Tls(stream) = &client else { unreachable!() };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    // After a change of authorities, certificates of the previous one are rejected.
    std::fs::write(&authorities, &strangers.pem).unwrap();
    let known = with(Some(clients.issue("A client")));
    let start = Instant::now();
    while ask_once(it.endpoint(Transport::Tls), &known).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for endpoint in it.endpoints() {
        assert!(ask_once(endpoint, &known).await.is_err(), "{endpoint}");
        ask_once(endpoint, &with(Some(strangers.issue("A trusted client")))).await.unwrap();
    }
}

/// Returns the certificate that the server presents.
async fn shown(endpoint: ListenUrl, trust: &Trust) -> Vec<u8> {
    match endpoint.transport {
        Transport::Tls | Transport::Https => {
            let stream = tls::tls(endpoint.address, trust.config(None)).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        }
        transport => {
            let protocol = if transport == Transport::Quic { "doq" } else { "h3" };
            let (_, connection) = tls::quic(endpoint.address, trust.config(Some(protocol))).await.unwrap();
            let chain = connection.peer_identity().unwrap();
            chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap()[0].to_vec()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_are_reloaded() {
    let it = Encrypted::start(&[]);
    let folder = &it.folder.0;
    let assert_all_present = async |pair: &Pair, case: &str| {
        for endpoint in it.endpoints() {
            assert_eq!(shown(endpoint, &it.trust).await, pair.der(), "{case}: {endpoint}");
        }
    };
    // Files overwritten in place.
    let second = it.authority.issue_for("The second", 2020..2088);
    second.write(folder);
    it.wait_for_metric("tls_certificate_not_after_timestamp_seconds", 3_723_753_600.0);
    assert_all_present(&second, "in place").await;
    // An invalid certificate changes nothing.
    let certificate = folder.join("tls.crt");
    let mut failures = it.metric("tls_certificate_reload_failures_total");
    for (case, text) in [
        ("a certificate for another key", it.authority.issue("Another").certificate),
        ("truncated", second.certificate[..300].to_owned()),
        ("expired", it.authority.issue_for("The second", 2020..2021).certificate),
    ] {
        std::fs::write(&certificate, text).unwrap();
        failures += 1.0;
        it.wait_for_metric("tls_certificate_reload_failures_total", failures);
        assert_all_present(&second, case).await;
    }
    std::fs::remove_file(&certificate).unwrap();
    it.wait_for_metric("tls_certificate_reload_failures_total", failures + 1.0);
    assert_all_present(&second, "removed").await;
    // A valid certificate is accepted again.
    let third = it.authority.issue_for("The third", 2020..2087);
    third.write(folder);
    it.wait_for_metric("tls_certificate_not_after_timestamp_seconds", 3_692_217_600.0);
    assert_all_present(&third, "after the failures").await;
    // A certificate that expires without renewal is logged, but still presented.
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 4;
    let last = it.authority.issue_until("The last", soon);
    last.write(folder);
    it.wait_for_metric("tls_certificate_not_after_timestamp_seconds", soon as f64);
    tokio::time::sleep(Duration::from_secs(6)).await;
    it.folder.file("unrelated", "");
    tokio::time::sleep(Duration::from_secs(1)).await;
    it.server.signal("-INT");
    let (status, log) = it.server.wait();
    assert_eq!(status, Some(0), "{log}");
    for part in [
        "certificate reload failed; still using the previous one",
        "not the key of",
        "expired at 2021",
        "No such file",
        "certificate reloaded",
        "has expired",
    ] {
        assert!(log.contains(part), "'{part}' is missing: {log}");
    }
}

/// Writes a pair as the kubelet mounts a Secret: a new folder, and a symbolic link that is renamed.
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
async fn no_query_fails_while_certificates_change_under_load() {
    let (folder, authority) = (Scratch::folder("mounted"), Authority::new("An authority"));
    mount(&folder.0, 0, &authority.issue("Version 0"));
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.0.join(name)).unwrap();
    }
    let it = Encrypted::start_in(folder, authority, process::callsign(), &[]);
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
                assert!(start.elapsed() < Duration::from_secs(10), "{endpoint}: version {version} is not presented");
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

/// The case; method, URI, content type and body of the request; status and Cache-Control of the response.
type Exchange = (&'static str, &'static str, String, &'static str, Vec<u8>, u16, &'static str);

fn http(method: &str, uri: &str, kind: &str, body: Vec<u8>) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(format!("https://{NAME}{uri}"));
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    request.body(body.into()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http_requests_get_the_right_status_and_headers() {
    let it = Encrypted::start(&[]);
    let dns = "application/dns-message";
    let url = |message: &[u8]| format!("/dns-query?dns={}", data_encoding::BASE64URL_NOPAD.encode(message));
    let padded = format!("/dns-query?dns={}", data_encoding::BASE64URL.encode(&question()));
    let reply = [&[0, 0, 0x80, 0][..], &[0; 8]].concat();
    let cases: Vec<Exchange> = vec![
        ("a question in the body", "POST", "/dns-query".into(), dns, question(), 200, "private, max-age=5"),
        (
            "a content type in mixed case, with parameters",
            "POST",
            "/dns-query".into(),
            "Application/DNS-Message; a=b",
            question(),
            200,
            "private, max-age=5",
        ),
        ("a question in the URI", "GET", url(&question()), "", vec![], 200, "private, max-age=5"),
        ("with padding, which the RFC omits", "GET", padded, "", vec![], 200, "private, max-age=5"),
        (
            "other parameters before dns=",
            "GET",
            url(&question()).replace("?dns", "?a=b&dns"),
            "",
            vec![],
            200,
            "private, max-age=5",
        ),
        (
            "a missing name: the lifetime comes from the SOA",
            "GET",
            url(&query("none.web.svc.cluster.local A", None)),
            "",
            vec![],
            200,
            "private, max-age=5",
        ),
        ("a refused name", "GET", url(&query("www.example.com A", None)), "", vec![], 200, "no-store"),
        ("a malformed query gets a DNS reply", "POST", "/dns-query".into(), dns, vec![7; 100], 200, "no-store"),
        ("another path", "GET", "/".into(), "", vec![], 404, "no-store"),
        ("GET without dns=", "GET", "/dns-query".into(), "", vec![], 400, "no-store"),
        ("not base64url at all", "GET", "/dns-query?dns=!!!!".into(), "", vec![], 400, "no-store"),
        ("base64, not base64url", "GET", "/dns-query?dns=AA%2F%2B".into(), "", vec![], 400, "no-store"),
        ("too short for a query", "GET", "/dns-query?dns=AAAA".into(), "", vec![], 400, "no-store"),
        ("a reply instead of a query", "GET", url(&reply), "", vec![], 400, "no-store"),
        ("a URI longer than any query", "GET", url(&vec![0; 4097]), "", vec![], 414, "no-store"),
        ("another method", "PUT", "/dns-query".into(), dns, question(), 405, "no-store"),
        ("another content type", "POST", "/dns-query".into(), "text/plain", question(), 415, "no-store"),
        ("no content type", "POST", "/dns-query".into(), "", question(), 415, "no-store"),
        ("an empty body", "POST", "/dns-query".into(), dns, vec![], 400, "no-store"),
        ("a body of the maximum length", "POST", "/dns-query".into(), dns, vec![7; 4096], 200, "no-store"),
        ("a body above the maximum length", "POST", "/dns-query".into(), dns, vec![7; 4097], 413, "no-store"),
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
                // A client that is still sending when it is refused may see the close before the response.
                Err(error) if body.len() > 1_000_000 && version != "3" && error.to_string() != "timed out" => continue,
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
    it.assert_still_serving("after all that").await;
}

/// Returns the error code with which the server closes a connection.
async fn closed(connection: &quinn::Connection) -> Option<u64> {
    match tokio::time::timeout(Duration::from_secs(5), connection.closed()).await {
        Ok(quinn::ConnectionError::ApplicationClosed(close)) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn violations_of_dns_over_quic_close_the_connection() {
    let it = Encrypted::start(&[]);
    let good = question();
    let with_id = query(QUESTION, None);
    let keepalive = {
        use hickory_proto::op::Edns;
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
        ("an id that is not 0, in a message longer than any query", [&[0xff, 0xff, 0, 1][..], &[0; 5000]].concat()),
        ("two queries", [framed(&good), framed(&good)].concat()),
        ("octets after the query", [framed(&good), vec![0]].concat()),
        ("half a query", framed(&good)[..20].to_vec()),
        ("half a length", vec![0]),
        ("an empty stream", vec![]),
        ("the edns-tcp-keepalive option", framed(&keepalive)),
        ("a reply", framed(&reply)),
        ("an empty message", framed(&[])),
    ] {
        let (_endpoint, connection) =
            tls::quic(it.address(Transport::Quic), it.trust.config(Some("doq"))).await.unwrap();
        let (mut stream, _reply) = connection.open_bi().await.unwrap();
        let _ = stream.write_all(&octets).await;
        let _ = stream.finish();
        assert_eq!(closed(&connection).await, Some(2), "{case}: DOQ_PROTOCOL_ERROR");
    }
    let (_endpoint, connection) = tls::quic(it.address(Transport::Quic), it.trust.config(Some("doq"))).await.unwrap();
    let one_way = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(one_way.is_err(), "unidirectional streams are not allowed");
    // A message with id 0 that is longer than any query gets a bare header in reply, as over TCP.
    let reply = tls::ask_quic(&connection, &[&good[..], &[0; 5000]].concat()).await.unwrap();
    assert_eq!((reply.len(), reply[3] & 15), (12, 1));
    // More queries than a connection may have in flight, all on one connection.
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let connection = connection.clone();
        asked.spawn(async move { tls::ask_quic(&connection, &question()).await.unwrap() });
    }
    while let Some(reply) = asked.join_next().await {
        assert_eq!(reply.unwrap()[3] & 15, 0);
    }
    // A client that cancels one query can still send others.
    let (mut question, mut reply) = connection.open_bi().await.unwrap();
    question.write_all(&framed(&good)[..20]).await.unwrap();
    question.reset(3u32.into()).unwrap();
    reply.stop(3u32.into()).unwrap();
    tls::ask_quic(&connection, &good).await.unwrap();
    it.assert_still_serving("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn alpn_protocols_are_negotiated() {
    let it = Encrypted::start(&[]);
    let dot = it.address(Transport::Tls);
    // RFC 7858 defines no ALPN protocol, so a client that offers none is served.
    for (case, address, protocol, agreed) in [
        ("none, for TLS", dot, None, true),
        ("dot, for TLS", dot, Some("dot"), true),
        ("another, for TLS", dot, Some("h2"), false),
        ("none, for HTTPS: HTTP/1.1", it.address(Transport::Https), None, true),
        ("another, for HTTPS", it.address(Transport::Https), Some("dot"), false),
    ] {
        assert_eq!(tls::tls(address, it.trust.config(protocol)).await.is_ok(), agreed, "{case}");
    }
    for (case, transport, protocol, agreed) in [
        ("doq", Transport::Quic, Some("doq"), true),
        ("none, for QUIC", Transport::Quic, None, false),
        ("h3, for QUIC", Transport::Quic, Some("h3"), false),
        ("doq, for HTTP/3", Transport::H3, Some("doq"), false),
    ] {
        assert_eq!(tls::quic(it.address(transport), it.trust.config(protocol)).await.is_ok(), agreed, "{case}");
    }
    // TLS 1.2 is supported; earlier versions are not.
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
    let mut client = Client::Tls(Box::new(tls::tls(dot, config).await.unwrap()));
    client.ask(&question()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_are_resumed_and_early_data_is_not_accepted() {
    let it = Encrypted::start(&[]);
    let mut config = it.trust.config(Some("dot"));
    config.enable_early_data = true;
    for (case, kind) in [("first", rustls::HandshakeKind::Full), ("again", rustls::HandshakeKind::Resumed)] {
        let stream = tls::tls(it.address(Transport::Tls), config.clone()).await.unwrap();
        let mut client = Client::Tls(Box::new(stream));
        client.ask(&question()).await.unwrap();
        let Client::Tls(stream) = &client else { unreachable!() };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{case}");
        assert!(!stream.get_ref().1.is_early_data_accepted(), "{case}");
    }
    // A rustls client sends early data only if its ticket allows it. The same holds for QUIC.
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
        assert!(connecting.is_err(), "the ticket does not allow early data");
        let connection = connecting.err().unwrap().await.unwrap();
        tls::ask_quic(&connection, &question()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_protocols_and_stalled_handshakes_are_cut_off() {
    let it = Encrypted::start(&["--tcp-idle", "1s"]);
    for transport in [Transport::Tls, Transport::Https] {
        let address = it.address(transport);
        for (case, octets) in [
            ("plain DNS", framed(&question())),
            ("plain HTTP", b"GET /dns-query HTTP/1.1\r\nHost: it\r\n\r\n".to_vec()),
            ("a record above the maximum length", vec![22, 3, 1, 0xff, 0xff]),
        ] {
            let mut stream = exchange::tcp_stream(address);
            let start = Instant::now();
            stream.write_all(&octets).unwrap();
            let (said, closed) = rest(&mut stream);
            assert!(closed && start.elapsed() < Duration::from_secs(3), "{transport:?}: {case}");
            // At most an alert: no DNS or HTTP in plain text.
            assert!(said.is_empty() || said[0] == 21, "{transport:?}: {case}: {said:?}");
        }
    }
    // Handshakes time out after five seconds. All of these run at the same time.
    let (mut slow, start) = (Vec::new(), Instant::now());
    for transport in [Transport::Tls, Transport::Https] {
        for (case, octets) in [("silence", &[][..]), ("half a handshake", &[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])] {
            let mut stream = exchange::tcp_stream(it.address(transport));
            stream.write_all(octets).unwrap();
            slow.push((transport, case, stream));
        }
    }
    for (transport, case, mut stream) in slow {
        assert!(rest(&mut stream).1, "{transport:?}: {case}");
        assert!((4900..9000).contains(&start.elapsed().as_millis()), "{transport:?}: {case}: {:?}", start.elapsed());
    }
    // Noise that is not QUIC gets no reply.
    for transport in [Transport::Quic, Transport::H3] {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(it.address(transport)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        for message in [&question()[..], &[0xff; 1200], &[]] {
            socket.send(message).unwrap();
            assert!(socket.recv(&mut [0; 2000]).is_err(), "{transport:?}");
        }
    }
    it.assert_still_serving("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_connections_are_closed() {
    let it = Encrypted::start(&["--tcp-idle", "3s"]);
    let (mut held, start) = (Vec::new(), Instant::now());
    for endpoint in it.endpoints() {
        held.push(Client::connect(endpoint, &it.trust).await.unwrap());
        let mut asks = Client::connect(endpoint, &it.trust).await.unwrap();
        asks.ask(&question()).await.unwrap();
        held.push(asks);
    }
    let last = Instant::now();
    it.wait_for_metric("encrypted_connections", 0.0);
    assert!(start.elapsed() > Duration::from_millis(2900), "{:?}", start.elapsed());
    assert!(last.elapsed() < Duration::from_secs(8), "{:?}", last.elapsed());
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_with_occasional_queries_stay_open() {
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
async fn tls_connections_end_with_close_notify() {
    let it = Encrypted::start(&["--tcp-idle", "1s"]);
    let mut stream = tls::tls(it.address(Transport::Tls), it.trust.config(None)).await.unwrap();
    let mut octets = [0; 16];
    // rustls reports an end without close_notify as an error: an attacker may have cut the connection.
    assert_eq!(tokio::io::AsyncReadExt::read(&mut stream, &mut octets).await.unwrap(), 0);
}

/// h3 buffers a frame until it is complete: a frame that announces a gigabyte must not be buffered.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn endless_http3_frames_are_not_buffered() {
    let it = Encrypted::start(&[]);
    const LENGTH: [u8; 4] = [0xbf, 0xff, 0xff, 0xff];
    let connect = async || tls::quic(it.address(Transport::H3), it.trust.config(Some("h3"))).await.unwrap();
    // Writes until the server stops reading; returns the number of octets written.
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
    for (case, kind) in [("HEADERS", 1), ("an unknown frame", 0x21)] {
        let (_endpoint, connection) = connect().await;
        let (mut request, _reply) = connection.open_bi().await.unwrap();
        request.write_all(&[&[kind][..], &LENGTH].concat()).await.unwrap();
        let poured = pour(&mut request).await;
        assert!(poured < 200_000, "{case}: {poured}");
    }
    for (case, start) in [("SETTINGS", [0, 4]), ("an unknown frame on the control stream", [0, 0x21])] {
        let (_endpoint, connection) = connect().await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[&start[..], &LENGTH].concat()).await.unwrap();
        let poured = pour(&mut control).await;
        assert!(poured < 200_000, "{case}: {poured}");
    }
    // Streams that end without a request.
    let (_endpoint, connection) = connect().await;
    let mut opened = 0;
    while let Ok(Ok((mut stream, _reply))) = tokio::time::timeout(Duration::from_secs(5), connection.open_bi()).await {
        opened += 1;
        assert!(opened < 3000, "empty streams are limited");
        let _ = stream.finish();
    }
    assert_eq!(closed(&connection).await, Some(0x107), "H3_EXCESSIVE_LOAD");
    it.assert_still_serving("after all that").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connection_limits_evict_the_oldest_connections() {
    let it = Encrypted::start(&["--tcp-connections", "6", "--tcp-connections-per-address", "4"]);
    for endpoint in it.endpoints() {
        let mut clients = Vec::new();
        for _ in 0..12 {
            let mut client = Client::connect(endpoint, &it.trust).await.unwrap();
            client.ask(&question()).await.unwrap();
            clients.push(client);
        }
        assert!(it.metric("encrypted_connections") <= 4.0, "{endpoint}: {}", it.metric("encrypted_connections"));
        // The last four are still open; the others were evicted.
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.ask(&question()).await.is_ok(), index >= 8, "{endpoint}: {index}");
        }
    }
    // Later connections without a query do not evict one that has sent queries.
    let mut useful = Client::connect(it.endpoint(Transport::Tls), &it.trust).await.unwrap();
    useful.ask(&question()).await.unwrap();
    let knocks: Vec<_> = (0..20).map(|_| exchange::tcp_stream(it.address(Transport::Https))).collect();
    it.assert_still_serving("during the silent connections").await;
    useful.ask(&question()).await.unwrap();
    drop(knocks);
}

/// Initial packets of QUIC handshakes that never complete, each from an address that may be spoofed. They evict no
/// connection that has sent a query, and few of them are held at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unfinished_quic_handshakes_evict_no_active_connection() {
    const FIRST: usize = 300;
    let it = Encrypted::start(&[]);
    let trap = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = trap.local_addr().unwrap();
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(it.trust.config(Some("doq"))).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let attempts: Vec<_> = (0..FIRST).map(|_| endpoint.connect_with(config.clone(), to, NAME).unwrap()).collect();
    // Keyed by the destination connection id, because clients retransmit.
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
    assert!(it.metric("encrypted_connections") > 50.0, "the packets start handshakes");
    useful.ask(&question()).await.unwrap();
    it.assert_still_serving("meanwhile").await;
    drop(attempts);
}

/// Twenty connections each send a hundred queries for 48 kB and read no reply. The server must not buffer these 96 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_that_do_not_read_cost_little_memory() {
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
                let stream = tls::tls(address, it.trust.config(Some("h2"))).await.unwrap();
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
        it.assert_still_serving("meanwhile").await;
    }
    assert!(it.metric("encrypted_connections") >= 60.0, "the connections are still open");
    for task in kept {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn running_out_of_descriptors_does_not_stop_the_server() {
    let program = env!("CARGO_BIN_EXE_callsign");
    let mut limited = process::with(Path::new("sh"));
    limited.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\"", program]);
    let it = Encrypted::start_with(limited, &["--tcp-connections-per-address", "1000"]);
    let held: Vec<_> = (0..200).map(|_| exchange::tcp_stream(it.address(Transport::Tls))).collect();
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
    // In about a second: a listener that spins would use all of its hundred ticks.
    assert!(ticks() - before < 30, "{} ticks", ticks() - before);
    ask_once(it.endpoint(Transport::Quic), &it.trust).await.unwrap();
    drop(held);
    let start = Instant::now();
    while ask_once(it.endpoint(Transport::Tls), &it.trust).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forwarded_queries_are_answered_even_during_shutdown() {
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
    // Queries in flight at the signal are answered.
    slow.store(true, Relaxed);
    let before = it.metric("cache_misses_total");
    let mut waiting = tokio::task::JoinSet::new();
    for (endpoint, mut client) in clients {
        let asked = asked.clone();
        waiting.spawn(async move { (endpoint, client.ask(&asked).await) });
    }
    it.wait_for_metric("cache_misses_total", before + 4.0);
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
async fn busy_connections_do_not_delay_shutdown() {
    let it = Encrypted::start(&[]);
    let mut busy = tokio::task::JoinSet::new();
    let asked = Arc::new(AtomicU32::new(0));
    for endpoint in it.endpoints() {
        let client = Client::connect(endpoint, &it.trust).await.unwrap();
        // Several queries at a time where the transport allows it, so that one is always in flight.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn padded_queries_get_padded_replies() {
    use hickory_proto::rr::rdata::opt::EdnsOption;
    let it = Encrypted::start(&[]);
    let mut padded = Message::from_vec(&question()).unwrap();
    padded.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(12, vec![0; 40]));
    let padded = padded.to_vec().unwrap();
    for endpoint in it.endpoints() {
        let mut client = Client::connect(endpoint, &it.trust).await.unwrap();
        let reply = client.ask(&padded).await.unwrap();
        assert_eq!(reply.len(), 468, "{endpoint}: a multiple of 468 octets (RFC 8467)");
        assert!(common::text(&reply).contains("10.96.0.10"), "{endpoint}");
        let plain = client.ask(&question()).await.unwrap();
        assert!(plain.len() < 200, "{endpoint}: only for clients that pad");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn published_holes_of_other_servers_are_closed() {
    let it = Encrypted::start(&[]);
    let before = it.server.status("VmRSS:");
    // Streams that stall after half a query (CVE-2025-47950: a goroutine for each, without a limit).
    let mut kept = Vec::new();
    for _ in 0..10 {
        let (endpoint, connection) =
            tls::quic(it.address(Transport::Quic), it.trust.config(Some("doq"))).await.unwrap();
        let mut streams = Vec::new();
        while let Ok(Ok((mut stream, reply))) =
            tokio::time::timeout(Duration::from_millis(50), connection.open_bi()).await
        {
            let _ = stream.write_all(&framed(&question())[..20]).await;
            streams.push((stream, reply));
        }
        assert!(streams.len() <= 1000, "a connection has {} streams", streams.len());
        kept.push((endpoint, connection, streams));
    }
    it.assert_still_serving("with stalled QUIC streams").await;
    // Many tiny HTTP/2 streams, reset at once (CVE-2023-44487).
    let stream = tls::tls(it.address(Transport::Https), it.trust.config(Some("h2"))).await.unwrap();
    let client = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let (mut client, connection) = client.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..5000 {
        let request = http("POST", "/dns-query", "application/dns-message", question());
        // Dropping the response resets its stream.
        drop(client.send_request(request.map(http_body_util::Full::new)));
        tokio::task::yield_now().await;
    }
    it.assert_still_serving("with many streams that are reset").await;
    driver.abort();
    // A GET with a query of 64 KB, which others decode before they look at its length.
    let uri = format!("/dns-query?dns={}", "A".repeat(65_000));
    let mut client = Client::http1(it.address(Transport::Https), &it.trust).await.unwrap();
    match client.request(http("GET", &uri, "", vec![])).await {
        Ok(response) => assert!(matches!(response.status().as_u16(), 414 | 431), "{}", response.status()),
        Err(error) => assert!(!error.to_string().is_empty(), "the connection is closed"),
    }
    // UPDATE and NOTIFY.
    for endpoint in it.endpoints() {
        for opcode in [4, 5, 15] {
            let mut query = question();
            query[2] = query[2] & 0x87 | opcode << 3;
            let reply = Client::connect(endpoint, &it.trust).await.unwrap().ask(&query).await.unwrap();
            assert_eq!(reply[3] & 0x0f, 4, "{endpoint}: NOTIMP for opcode {opcode}");
        }
    }
    it.assert_still_serving("after all that").await;
    let taken = it.server.status("VmRSS:").saturating_sub(before);
    assert!(taken < 40_000, "{taken} kB");
}
